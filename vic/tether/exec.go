package tether

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"path"
	"strings"
	"time"
)

// ExecSpec says what to run in a running container beside its main process. It
// runs in the container's namespaces and cgroup, within its Settings, and ends
// with the container at the latest. Together with its envelope it is at most
// 64 KiB as JSON.
type ExecSpec struct {
	// ID by which it is inspected: 64 hexadecimal digits, see NewExecID. Empty
	// has the guest draw one.
	ID string `json:"id,omitempty"`
	// Args is the program and its arguments, looked up as Process.Args is.
	Args []string `json:"args,omitempty"`
	// Env is added to the main process's; a variable named in both has this
	// value.
	Env []string `json:"env,omitempty"`
	// Dir is the working directory, which must exist. Empty is the main
	// process's.
	Dir string `json:"dir,omitempty"`
	// User as Process.User. Empty is the main process's.
	User string `json:"user,omitempty"`
	// Privileged gives all capabilities.
	Privileged bool `json:"privileged,omitempty"`
	// TTY gives it a pseudo-terminal of its own.
	TTY     bool   `json:"tty,omitempty"`
	Rows    uint16 `json:"rows,omitempty"`
	Columns uint16 `json:"columns,omitempty"`
}

// ExecState is what an exec is doing.
type ExecState string

// The states of an exec.
const (
	ExecCreated ExecState = "created"
	ExecRunning ExecState = "running"
	ExecEnded   ExecState = "ended" // or could not be started: Exit.Error
)

// ExecInfo is what a guest tells of an exec.
type ExecInfo struct {
	ExecSpec
	State ExecState `json:"state"`
	// PID in the container, while it runs.
	PID int `json:"pid,omitempty"`
	// Exit counts when State is ExecEnded.
	Exit     Exit      `json:"exit,omitzero"`
	Started  time.Time `json:"started,omitzero"`
	Finished time.Time `json:"finished,omitzero"`
}

// NewExecID draws an exec's ID.
func NewExecID() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // It cannot fail (crypto/rand).
	return hex.EncodeToString(b[:])
}

// validate tells the first field that cannot be right.
func (e *ExecSpec) validate() error {
	switch {
	case e.ID != "" && !isExecID(e.ID):
		return fmt.Errorf("%w: exec.id: %.80q has not 64 hexadecimal digits", ErrInvalid, e.ID)
	case len(e.Args) == 0 || e.Args[0] == "":
		return fmt.Errorf("%w: exec.args: empty", ErrInvalid)
	case e.Dir != "" && !path.IsAbs(e.Dir):
		return fmt.Errorf("%w: exec.dir: %q is not absolute", ErrInvalid, e.Dir)
	}
	for i, s := range e.Args {
		if strings.IndexByte(s, 0) >= 0 {
			return fmt.Errorf("%w: exec.args[%d]: holds a NUL byte", ErrInvalid, i)
		}
	}
	for i, s := range e.Env {
		if k, _, ok := strings.Cut(s, "="); !ok || k == "" || strings.IndexByte(s, 0) >= 0 {
			return fmt.Errorf("%w: exec.env[%d]: %.40q is not KEY=value", ErrInvalid, i, s)
		}
	}
	return nil
}

func isExecID(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == 32 && s == strings.ToLower(s)
}

// Process is what the exec runs in a container whose main process is p.
func (e *ExecSpec) Process(p Process) Process {
	q := Process{
		Args: e.Args, Env: MergeEnv(p.Env, e.Env), Dir: p.Dir, User: p.User,
		TTY: e.TTY, Rows: e.Rows, Columns: e.Columns,
	}
	if e.Dir != "" {
		q.Dir = e.Dir
	}
	if e.User != "" {
		q.User = e.User
	}
	return q
}

// MergeEnv joins lists of KEY=value; later settings of a variable replace
// earlier ones in place.
func MergeEnv(lists ...[]string) []string {
	var out []string
	at := map[string]int{}
	for _, l := range lists {
		for _, kv := range l {
			k, _, _ := strings.Cut(kv, "=")
			if i, ok := at[k]; ok {
				out[i] = kv
				continue
			}
			at[k] = len(out)
			out = append(out, kv)
		}
	}
	return out
}

// execRequest opens a channelExec. All parameters travel with it, so an exec
// takes one round trip and the time of its process. The output and its end come
// as on an attachment.
type execRequest struct {
	ExecSpec
	Stdin bool `json:"stdin,omitempty"`
}

// Exec runs a process in the container and carries its streams, until its end or
// Detach. Without Args it starts the one that CreateExec made of the ID. ctx
// bounds the connecting only. A process that could not be started is no error:
// its Exit has an Error and code 126, or 127 where there is no such program.
//
// Nothing of the output is kept: a slow Stdout or Stderr slows the process down,
// as a pipe does, and what a process writes after its attacher went is dropped.
// An attacher that goes closes the process's standard input and leaves the
// process running.
//
// The error is ErrNotRunning where the main process does not run, ErrPaused where
// the container is paused, and comes from the Attachment's Wait.
func (c *Client) Exec(ctx context.Context, e ExecSpec, s Streams) (*Attachment, error) {
	if len(e.Args) > 0 || e.ID == "" {
		if err := e.validate(); err != nil {
			return nil, fmt.Errorf("tether: exec: %w", err)
		}
	}
	return c.attach(ctx, channelExec, execRequest{e, s.Stdin != nil}, "exec", s)
}

// ExecDetached runs a process in the container with no streams and returns when
// it has been started, or could not be: see the info's Exit.
func (c *Client) ExecDetached(ctx context.Context, e ExecSpec) (ExecInfo, error) {
	var i ExecInfo
	err := c.call(ctx, methodExec, e, &i)
	return i, err
}

// CreateExec has the guest keep what to run under an ID that is drawn where it is
// empty; Exec and ExecDetached start it, once.
func (c *Client) CreateExec(ctx context.Context, e ExecSpec) (ExecInfo, error) {
	var i ExecInfo
	err := c.call(ctx, methodExecCreate, e, &i)
	return i, err
}

// InspectExec tells of an exec. The guest keeps the last few hundred that have
// ended, until its power-off. An unknown one is ErrNotFound.
func (c *Client) InspectExec(ctx context.Context, id string) (ExecInfo, error) {
	var i ExecInfo
	err := c.call(ctx, methodExecInspect, execParams{ID: id}, &i)
	return i, err
}

// Execs lists the IDs of the execs that the guest knows, oldest first.
func (c *Client) Execs(ctx context.Context) ([]string, error) {
	var ids []string
	err := c.call(ctx, methodExecs, struct{}{}, &ids)
	return ids, err
}

// ResizeExec sets the size of an exec's terminal in characters.
func (c *Client) ResizeExec(ctx context.Context, id string, rows, columns uint16) error {
	return c.call(ctx, methodExecResize, execParams{ID: id, resizeParams: resizeParams{rows, columns}}, nil)
}

type execParams struct {
	ID string `json:"id"`
	resizeParams
}
