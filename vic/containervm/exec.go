package containervm

import (
	"context"
	"errors"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/tether"
)

// guestError gives what a guest answers its kind.
func guestError(err error) error {
	for of, kind := range map[error]error{
		tether.ErrNotRunning: vic.ErrState, tether.ErrPaused: vic.ErrState, tether.ErrInvalid: vic.ErrInvalid,
		tether.ErrUnsupported: vic.ErrUnsupported, tether.ErrNotFound: vic.ErrNotFound, tether.ErrConflict: vic.ErrConflict,
		tether.ErrNoSpace: vic.ErrNoSpace, tether.ErrBusy: vic.ErrInUse,
	} {
		if errors.Is(err, of) {
			return fault.As(kind, err)
		}
	}
	return err
}

// ask calls f with a connection to the guest of a running container. Whoever asks
// often dials once (see Dial) and uses the tether's client.
func (v *VM) ask(ctx context.Context, op string, f func(*tether.Client) error) error {
	t, err := v.Dial(ctx)
	if err != nil {
		return fault.Wrap(op, v.Ref(), err)
	}
	defer t.Close()
	return fault.Wrap(op, v.Ref(), guestError(f(t)))
}

// An Exec is a process that runs in a container beside its main process, with
// somebody attached to it.
type Exec struct {
	vm     *VM
	id     string
	client *tether.Client
	live   *tether.Attachment
}

// Exec runs a process in a running container and carries its streams. A container
// that does not run, or is paused, is vic.ErrState, from here or from Wait. ctx
// bounds the call, not the process. The caller calls Wait or Detach.
func (v *VM) Exec(ctx context.Context, e tether.ExecSpec, s tether.Streams) (*Exec, error) {
	const op = "exec in container"
	t, err := v.Dial(ctx)
	if err != nil {
		return nil, fault.Wrap(op, v.Ref(), err)
	}
	if e.ID == "" {
		e.ID = tether.NewExecID()
	}
	a, err := t.Exec(ctx, e, s)
	if err != nil {
		t.Close()
		return nil, fault.Wrap(op, v.Ref(), guestError(err))
	}
	return &Exec{vm: v, id: e.ID, client: t, live: a}, nil
}

// ID by which the guest knows the exec (see InspectExec).
func (e *Exec) ID() string { return e.id }

// Wait returns after the process's end and its output. A process that could not
// be started has an Exit with an Error and code 126 or 127. After Detach it is
// tether.ErrDetached. Other errors mean that the outcome is not known.
func (e *Exec) Wait() (tether.Exit, error) {
	exit, err := e.live.Wait()
	_ = e.client.Close() // It may be broken already.
	if err != nil && !errors.Is(err, tether.ErrDetached) {
		err = fault.Wrap("exec in container", e.vm.Ref(), guestError(err))
	}
	return exit, err
}

// Done is closed when Wait would not wait for the process.
func (e *Exec) Done() <-chan struct{} { return e.live.Done() }

// Resize sets the size of the process's terminal in characters.
func (e *Exec) Resize(rows, columns uint16) error { return e.live.Resize(rows, columns) }

// Signal sends a signal by name to the process.
func (e *Exec) Signal(name string) error { return e.live.Signal(name) }

// Detach leaves the process running, with its standard input at its end and its
// further output dropped.
func (e *Exec) Detach() {
	_ = e.live.Detach()
	_ = e.client.Close()
}

// ExecDetached runs a process in a running container with no streams, and returns
// when it has been started, or could not be: see the info's Exit. It goes on with
// nobody connected.
func (v *VM) ExecDetached(ctx context.Context, e tether.ExecSpec) (info tether.ExecInfo, err error) {
	if e.ID == "" {
		e.ID = tether.NewExecID()
	}
	err = v.ask(ctx, "exec in container", func(t *tether.Client) error {
		info, err = t.ExecDetached(ctx, e)
		return err
	})
	return info, err
}

// InspectExec tells of an exec, also of one that has ended. An unknown one, and any
// once the container has been restarted, is vic.ErrNotFound.
func (v *VM) InspectExec(ctx context.Context, id string) (info tether.ExecInfo, err error) {
	err = v.ask(ctx, "inspect exec of container", func(t *tether.Client) error {
		info, err = t.InspectExec(ctx, id)
		return err
	})
	return info, err
}

// Pause freezes the container's processes; the VM runs on and its guest answers.
// A container that does not run is vic.ErrState; one that is paused stays so.
func (v *VM) Pause(ctx context.Context) error {
	return v.ask(ctx, "pause container", func(t *tether.Client) error { return t.Pause(ctx) })
}

// Unpause lets the container's processes go on.
func (v *VM) Unpause(ctx context.Context) error {
	return v.ask(ctx, "unpause container", func(t *tether.Client) error { return t.Unpause(ctx) })
}

// Top lists the processes of a running container.
func (v *VM) Top(ctx context.Context) (all []tether.ProcessInfo, err error) {
	err = v.ask(ctx, "list processes of container", func(t *tether.Client) error {
		all, err = t.Top(ctx)
		return err
	})
	return all, err
}

// Stats tells what a running container uses, by its guest. Of one that does not
// answer HostStats tells something.
func (v *VM) Stats(ctx context.Context) (s tether.Stats, err error) {
	err = v.ask(ctx, "measure container", func(t *tether.Client) error {
		s, err = t.Stats(ctx)
		return err
	})
	return s, err
}
