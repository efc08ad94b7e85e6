package tether

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/ssh"
)

// An Executor starts processes beside a container's main process.
type Executor interface {
	// StartExec starts a process that writes to stdout and stderr, whose
	// methods do not fail; with openStdin it has a standard input. An error
	// with a method ExitCode() int, other than ErrNotRunning, is of the
	// process's start.
	StartExec(e ExecSpec, openStdin bool, stdout, stderr io.Writer) (ExecProcess, error)
}

// An ExecProcess is a process that an Executor has started.
type ExecProcess interface {
	Main
	// PID in the container, or zero where it has ended.
	PID() int
	// Wait waits for the end of the process and of its output.
	Wait() Exit
}

// Bounds of the execs that a guest knows.
const (
	maxExecs     = 1024    // that run or wait for their start
	maxEndedExec = 256     // that have ended
	maxExecBytes = 1 << 20 // of arguments and environments of those that do not run
)

// execs are what was run in a container.
type execs struct {
	container *Container
	executor  Executor
	now       func() time.Time

	mu   sync.Mutex
	all  map[string]*execution
	list []*execution // oldest first
}

// execution is one exec. execs.mu guards what may change.
type execution struct {
	info    ExecInfo
	process ExecProcess // while it runs
	done    chan struct{}
}

func newExecs(c *Container, e Executor) *execs {
	return &execs{container: c, executor: e, now: time.Now, all: map[string]*execution{}}
}

func (e *ExecSpec) size() int {
	n := len(e.Dir) + len(e.User)
	for _, l := range [][]string{e.Args, e.Env} {
		for _, s := range l {
			n += len(s) + 16
		}
	}
	return n
}

// add takes an exec up, and lets go of what ended longest ago. It tells the one
// that was created under the ID where there are no arguments.
func (x *execs) add(e ExecSpec, state ExecState) (*execution, error) {
	if x.executor == nil {
		return nil, fmt.Errorf("%w: this guest runs no further processes", ErrUnsupported)
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if old := x.all[e.ID]; old != nil && len(e.Args) == 0 {
		if old.info.State != ExecCreated {
			return nil, fmt.Errorf("%w: exec %s has been started already", ErrInvalid, e.ID)
		}
		old.info.State = state
		return old, nil
	} else if old != nil {
		return nil, fmt.Errorf("%w: exec.id: there is an exec %s", ErrInvalid, e.ID)
	} else if len(e.Args) == 0 && e.ID != "" {
		return nil, fmt.Errorf("%w: no exec %.80s", ErrNotFound, e.ID)
	}
	if err := e.validate(); err != nil {
		return nil, err
	}
	if e.ID == "" {
		e.ID = NewExecID()
	}
	x.trim()
	if len(x.list) >= maxExecs+maxEndedExec {
		return nil, fmt.Errorf("%d execs run: no more can be started", maxExecs)
	}
	n := &execution{info: ExecInfo{ExecSpec: e, State: state}, done: make(chan struct{})}
	x.all[e.ID] = n
	x.list = append(x.list, n)
	return n, nil
}

// trim drops the oldest of those that do not run. execs.mu is held.
func (x *execs) trim() {
	ended, bytes := 0, 0
	for _, e := range x.list {
		if e.info.State != ExecRunning {
			bytes += e.info.size()
			ended++
		}
	}
	kept := x.list[:0]
	for _, e := range x.list {
		if e.info.State != ExecRunning && (ended > maxEndedExec || bytes > maxExecBytes) {
			ended, bytes = ended-1, bytes-e.info.size()
			delete(x.all, e.info.ID)
			continue
		}
		kept = append(kept, e)
	}
	clear(x.list[len(kept):])
	x.list = kept
}

// start runs an exec. The error is of the container; a process that could not be
// started has ended.
func (x *execs) start(e ExecSpec, openStdin bool, stdout, stderr io.Writer) (*execution, error) {
	if err := x.container.canExec(); err != nil {
		return nil, err
	}
	n, err := x.add(e, ExecRunning)
	if err != nil {
		return nil, err
	}
	p, err := x.executor.StartExec(n.info.ExecSpec, openStdin, stdout, stderr)
	var coded interface{ ExitCode() int }
	switch {
	case err == nil:
		x.mu.Lock()
		n.process, n.info.Started = p, x.now()
		x.mu.Unlock()
		go func() { x.ended(n, p.Wait()) }()
	case errors.As(err, &coded) && !errors.Is(err, ErrNotRunning):
		exit := Exit{Code: coded.ExitCode(), Error: truncate(err.Error(), 4096)}
		if exit.Code != 127 {
			exit.Code = 126 // whatever kept it from running, as docker exec has it
		}
		x.ended(n, exit)
	default:
		x.ended(n, Exit{Code: 126, Error: truncate(err.Error(), 4096)})
		return nil, err
	}
	return n, nil
}

func (x *execs) ended(n *execution, e Exit) {
	x.mu.Lock()
	defer x.mu.Unlock()
	n.process, n.info.State, n.info.Exit, n.info.Finished = nil, ExecEnded, e, x.now()
	close(n.done)
}

func (x *execs) find(id string) (*execution, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if n := x.all[id]; n != nil {
		return n, nil
	}
	return nil, fmt.Errorf("%w: no exec %.80s", ErrNotFound, id)
}

// describe returns what is known of an exec now.
func (x *execs) describe(n *execution) ExecInfo {
	x.mu.Lock()
	i, p := n.info, n.process
	x.mu.Unlock()
	if p != nil {
		i.PID = p.PID()
	}
	return i
}

func (x *execs) ids() []string {
	x.mu.Lock()
	defer x.mu.Unlock()
	ids := make([]string, 0, min(len(x.list), maxDocument/80)) // as many as an answer holds
	for _, n := range x.list[max(0, len(x.list)-cap(ids)):] {
		ids = append(ids, n.info.ID)
	}
	return ids
}

func (x *execs) running(id string) (*execution, ExecProcess, error) {
	n, err := x.find(id)
	if err != nil {
		return nil, nil, err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if n.process == nil {
		return nil, nil, fmt.Errorf("%w: exec %s is %s", ErrNotRunning, id, n.info.State)
	}
	return n, n.process, nil
}

func (n *execution) resize(p ExecProcess, rows, columns uint16) error {
	switch {
	case !n.info.TTY:
		return fmt.Errorf("%w: the exec has no terminal", ErrUnsupported)
	case rows == 0 || columns == 0:
		return fmt.Errorf("%w: a terminal of %d rows by %d columns", ErrInvalid, rows, columns)
	}
	return p.Resize(rows, columns)
}

// exec serves one channelExec.
func (c *serverConn) exec(ctx context.Context, n ssh.NewChannel) {
	var q execRequest
	if err := decode("exec", n.ExtraData(), &q); err != nil {
		_ = n.Reject(ssh.Prohibited, err.Error())
		return
	}
	s := c.server
	done := s.wantEnd()
	defer done(false)
	eof, started := make(chan struct{}), make(chan struct{})
	endInput := sync.OnceFunc(func() { close(eof) })
	var x *execution
	ctx, ch, gone, cancel := accept(ctx, n, func(r *ssh.Request) {
		if r.Type == requestEOF {
			endInput()
			return
		}
		<-started
		c.execRequest(x, r)
	})
	if ch == nil {
		return
	}
	defer cancel()
	stdout, stderr := &leavable{w: ch}, &leavable{w: ch.Stderr()}
	x, err := s.execs.start(q.ExecSpec, q.Stdin, stdout, stderr)
	close(started)
	if err != nil {
		go func() { _, _ = io.Copy(io.Discard, ch) }()
		c.exit(ch, Exit{}, err)
		finish(ch, gone)
		return
	}
	// It may outlive the attacher, where the process does not read.
	go func() {
		if q.Stdin {
			s.execs.input(x, ch)
		}
		_, _ = io.Copy(io.Discard, ch)
	}()
	select {
	case <-ctx.Done():
	case <-x.done:
		c.exit(ch, s.execs.describe(x).Exit, nil)
		finish(ch, gone)
	}
	_ = ch.Close()
}

// input carries an attacher's input to a process, and its end or the attacher's.
func (x *execs) input(n *execution, r io.Reader) {
	_, p, err := x.running(n.info.ID)
	if err != nil {
		return
	}
	w := p.Stdin()
	if w == nil {
		return
	}
	_, _ = io.Copy(struct{ io.Writer }{w}, r)
	_ = w.Close()
}

// execRequest handles the standard requests on an exec's channel.
func (c *serverConn) execRequest(n *execution, r *ssh.Request) {
	err := ErrNotRunning
	if n != nil {
		var p ExecProcess
		if n, p, err = c.server.execs.running(n.info.ID); err == nil {
			err = n.request(p, r)
		}
	}
	if r.WantReply {
		_ = r.Reply(err == nil, nil)
	}
}

func (n *execution) request(p ExecProcess, r *ssh.Request) error {
	switch r.Type {
	case "window-change":
		var w windowChange
		if err := ssh.Unmarshal(r.Payload, &w); err != nil {
			return err
		}
		if w.Rows > 1<<16-1 || w.Columns > 1<<16-1 {
			return ErrInvalid
		}
		return n.resize(p, uint16(w.Rows), uint16(w.Columns))
	case "signal":
		var s signalName
		if err := ssh.Unmarshal(r.Payload, &s); err != nil {
			return err
		}
		number, err := SignalNumber(s.Name)
		if err != nil {
			return err
		}
		return p.Signal(number)
	}
	return ErrUnsupported
}

// leavable is a stream to an attacher that may leave: what is written then is
// dropped.
type leavable struct {
	w    io.Writer
	left atomic.Bool
}

// Write implements io.Writer.
func (l *leavable) Write(p []byte) (int, error) {
	if !l.left.Load() {
		if _, err := l.w.Write(p); err != nil {
			l.left.Store(true)
		}
	}
	return len(p), nil
}

// doExec answers the calls about execs.
func (c *serverConn) doExec(q callRequest) (any, error) {
	x := c.server.execs
	if q.Method == methodExecs {
		return x.ids(), nil
	}
	if q.Method == methodExec || q.Method == methodExecCreate {
		var e ExecSpec
		if err := decode("exec", q.Params, &e); err != nil {
			return nil, err
		}
		var n *execution
		var err error
		if q.Method == methodExec {
			n, err = x.start(e, false, io.Discard, io.Discard)
		} else if err = e.validate(); err == nil {
			if err = x.container.canExec(); err == nil {
				n, err = x.add(e, ExecCreated)
			}
		}
		if err != nil {
			return nil, err
		}
		return x.describe(n), nil
	}
	var p execParams
	if err := decode("exec", q.Params, &p); err != nil {
		return nil, err
	}
	if q.Method == methodExecInspect {
		n, err := x.find(p.ID)
		if err != nil {
			return nil, err
		}
		return x.describe(n), nil
	}
	n, process, err := x.running(p.ID)
	if err != nil {
		return nil, err
	}
	return nil, n.resize(process, p.Rows, p.Columns)
}
