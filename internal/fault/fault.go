// Package fault holds the error type and the kinds of error that package vic
// gives to its users under the same names, so that packages below vic can make
// them too.
package fault

import (
	"errors"
	"fmt"
	"strings"
)

// The kinds of error. An error of this module that is of a kind satisfies
// errors.Is for it.
var (
	ErrNotFound       = errors.New("not found")
	ErrConflict       = errors.New("conflict")
	ErrUnsupported    = errors.New("not supported")
	ErrUnknownOutcome = errors.New("outcome unknown")
	ErrInvalid        = errors.New("invalid")
	ErrDenied         = errors.New("access denied")
	ErrInUse          = errors.New("in use")
	ErrNoSpace        = errors.New("no space left")
	ErrState          = errors.New("wrong state")
	ErrUnavailable    = errors.New("unavailable")
)

// A Ref names an object: a VM, a disk, a folder, a layer.
type Ref struct {
	// Kind of object: "vm", "vch", "pool", "folder", "datastore", "disk",
	// "image", "layer", "network", "file".
	Kind string `json:"kind"`
	// ID is the managed object's id, or, for what is a file, its datastore
	// path "[datastore] path".
	ID string `json:"id"`
	// Name for people; may be empty.
	Name string `json:"name,omitempty"`
}

// String gives kind, name and id, as far as they are known.
func (r Ref) String() string {
	switch {
	case r.Name != "" && r.ID != "" && r.Name != r.ID:
		return fmt.Sprintf("%s %q (%s)", r.Kind, r.Name, r.ID)
	case r.Name != "":
		return fmt.Sprintf("%s %q", r.Kind, r.Name)
	case r.ID != "":
		return fmt.Sprintf("%s %s", r.Kind, r.ID)
	}
	return r.Kind
}

// An Error tells what was tried on what and why it failed.
type Error struct {
	// Op is the operation, such as "create VCH".
	Op string
	// Ref is what it was tried on.
	Ref Ref
	// Err is the cause.
	Err error
	// Left names what was made or could not be undone, and still exists.
	Left []Ref
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Op)
	if e.Ref != (Ref{}) {
		b.WriteString(" ")
		b.WriteString(e.Ref.String())
	}
	b.WriteString(": ")
	b.WriteString(e.Err.Error())
	if len(e.Left) > 0 {
		b.WriteString(" (left behind:")
		for _, r := range e.Left {
			b.WriteString(" ")
			b.WriteString(r.String())
		}
		b.WriteString(")")
	}
	return b.String()
}

func (e *Error) Unwrap() error { return e.Err }

// Wrap makes an Error of err, or nil of nil. An Error of the same operation
// and object is returned as it is.
func Wrap(op string, ref Ref, err error) error {
	if err == nil {
		return nil
	}
	if e, ok := err.(*Error); ok && e.Op == op && e.Ref == ref {
		return err
	}
	return &Error{Op: op, Ref: ref, Err: err}
}

// Of makes an error of a kind with a text of its own; its message is the text
// alone.
func Of(kind error, format string, args ...any) error {
	return &kinded{kind: kind, err: fmt.Errorf(format, args...)}
}

// As gives err a kind and keeps its text and chain. An error that has the kind
// already is returned as it is.
func As(kind, err error) error {
	if err == nil || errors.Is(err, kind) {
		return err
	}
	return &kinded{kind: kind, err: err}
}

type kinded struct {
	kind error
	err  error
}

func (k *kinded) Error() string   { return k.err.Error() }
func (k *kinded) Unwrap() []error { return []error{k.err, k.kind} }
