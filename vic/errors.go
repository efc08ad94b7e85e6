package vic

import "github.com/vicsdk/vic-go/internal/fault"

// An Error tells what was tried on what, why it failed, and what it left
// behind. Use errors.As to get at it and errors.Is with the kinds below.
type Error = fault.Error

// A Ref names an object: a VM, a disk, a folder, a layer.
type Ref = fault.Ref

// The kinds of error.
var (
	// ErrNotFound: there is no such object.
	ErrNotFound = fault.ErrNotFound
	// ErrConflict: the name is taken, or another operation is under way.
	ErrConflict = fault.ErrConflict
	// ErrUnsupported: it cannot be done here; the text says why.
	ErrUnsupported = fault.ErrUnsupported
	// ErrUnknownOutcome: the request went out and its end was not seen.
	ErrUnknownOutcome = fault.ErrUnknownOutcome
	// ErrInvalid: what was asked for cannot be right; the text names the field.
	ErrInvalid = fault.ErrInvalid
	// ErrDenied: the login or its privileges do not suffice.
	ErrDenied = fault.ErrDenied
	// ErrInUse: something still uses the object.
	ErrInUse = fault.ErrInUse
	// ErrNoSpace: a datastore or a filesystem is full.
	ErrNoSpace = fault.ErrNoSpace
	// ErrState: the object is not in a state that allows it.
	ErrState = fault.ErrState
	// ErrUnavailable: a server or a guest cannot be reached now.
	ErrUnavailable = fault.ErrUnavailable
)
