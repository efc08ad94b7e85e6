package tether

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"golang.org/x/crypto/ssh"
)

// Streams connect an attachment. A nil Stdin brings none; a nil Stdout or
// Stderr discards.
type Streams struct {
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
}

// AttachOptions say what an attachment carries. Whether there is a terminal is
// the container's configuration; with one, all output is on Stdout.
type AttachOptions struct {
	Streams
	// Replay first brings everything since the process's start, or what the
	// guest still has of it, then what comes, with nothing twice. Without it the output
	// starts with the attachment.
	Replay bool
	// Run is the run of the process in this boot whose streams are attached,
	// from 1; zero is the present one, or the next where the process is about
	// to be started again. A run that has ended can be attached to while the
	// guest remembers it.
	Run int
	// Skip leaves out so many bytes of standard output and error of a Replay.
	Skip [2]int64
}

// ErrDetached is what Wait tells after Detach.
var ErrDetached = errors.New("detached")

// An Attachment carries a process's streams until its end or Detach.
type Attachment struct {
	op       string
	ch       ssh.Channel
	run      attachedRun
	detached chan struct{}
	once     sync.Once
	done     chan struct{}
	exit     Exit
	err      error
}

// Attach connects to a run of the main process, also before it has started and, while
// the guest lingers, after its end. ctx bounds the connecting only. Output is
// written by two goroutines, one to Stdout and one to Stderr; an error of
// either ends the attachment. Stdin is read until its end, which closes the
// process's standard input, or until an error, which leaves it open; a read
// that waits at the attachment's end is not waited for.
func (c *Client) Attach(ctx context.Context, o AttachOptions) (*Attachment, error) {
	return c.attach(ctx, channelAttach, attachRequest{Replay: o.Replay, Stdin: o.Stdin != nil, Run: o.Run, Skip: o.Skip}, "attach", o.Streams)
}

// attach opens a channel that carries a process's streams.
func (c *Client) attach(ctx context.Context, kind string, request any, op string, s Streams) (*Attachment, error) {
	ch, requests, err := c.open(ctx, kind, request)
	if err != nil {
		return nil, fmt.Errorf("tether: %s: %w", op, err)
	}
	a := &Attachment{op: op, ch: ch, detached: make(chan struct{}), done: make(chan struct{})}
	go a.carry(s, requests)
	if s.Stdin != nil {
		go func() {
			if _, err := io.Copy(ch, s.Stdin); err == nil {
				_ = a.CloseStdin()
			}
		}()
	}
	return a, nil
}

func (a *Attachment) carry(s Streams, requests <-chan *ssh.Request) {
	defer close(a.done)
	var (
		wg     sync.WaitGroup
		mu     sync.Mutex
		failed error
	)
	output := func(name string, w io.Writer, r io.Reader) {
		if w == nil {
			w = io.Discard
		}
		if _, err := io.CopyBuffer(struct{ io.Writer }{w}, r, make([]byte, 32<<10)); err != nil {
			mu.Lock()
			failed = errors.Join(failed, fmt.Errorf("%s: %w", name, err))
			mu.Unlock()
			_ = a.ch.Close()
		}
	}
	wg.Go(func() { output("stdout", s.Stdout, a.ch) })
	wg.Go(func() { output("stderr", s.Stderr, a.ch.Stderr()) })
	exit, ended := a.requests(requests)
	_ = a.ch.Close()
	wg.Wait()
	a.exit = exit
	select {
	case <-a.detached:
		a.err = ErrDetached
		return
	default:
	}
	switch {
	case failed != nil:
		a.err = fmt.Errorf("tether: %s: %w", a.op, failed)
	case ended != nil:
		a.err = fmt.Errorf("tether: %s: %w", a.op, ended)
	}
}

// requests reads the guest's word on the end.
func (a *Attachment) requests(requests <-chan *ssh.Request) (Exit, error) {
	var (
		exit Exit
		err  = fmt.Errorf("the guest went without telling the process's end: %w", io.ErrUnexpectedEOF)
	)
	for r := range requests {
		if r.Type == requestRun {
			var doc attachedRun
			if decode("run", r.Payload, &doc) == nil {
				a.run = doc
			}
		}
		if r.Type == requestExit {
			var doc struct {
				Exit  *Exit        `json:"exit"`
				Error *RemoteError `json:"error"`
			}
			switch derr := decode("exit", r.Payload, &doc); {
			case derr != nil:
				err = derr
			case doc.Error != nil:
				doc.Error.Message = plain(doc.Error.Message)
				err = doc.Error
			case doc.Exit != nil:
				err = doc.Exit.check()
				exit = *doc.Exit
			}
		}
		if r.WantReply {
			_ = r.Reply(false, nil)
		}
	}
	return exit, err
}

// Wait returns after the process's end and all of its output, or after
// Detach (ErrDetached). Other errors mean that the outcome, or a part of the
// output, is not known.
func (a *Attachment) Wait() (Exit, error) {
	<-a.done
	return a.exit, a.err
}

// Run is the number of the run that the attachment was to, and from which byte of
// the run's standard output and error on it carried them: after Skip where a
// Replay lacked something because the log was rotated. Both are known after Wait,
// and zero where the guest had not told them.
func (a *Attachment) Run() (number int, from [2]int64) {
	<-a.done
	return a.run.Run, a.run.From
}

// Done is closed when Wait would not wait.
func (a *Attachment) Done() <-chan struct{} { return a.done }

// CloseStdin ends the process's standard input.
func (a *Attachment) CloseStdin() error {
	if _, err := a.ch.SendRequest(requestEOF, false, nil); err != nil {
		if errors.Is(err, io.EOF) {
			return nil // The process has ended.
		}
		return fmt.Errorf("tether: close stdin: %w", err)
	}
	if err := a.ch.CloseWrite(); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("tether: close stdin: %w", err)
	}
	return nil
}

// Resize sets the size of the process's terminal in characters. It does not
// wait for the guest; Client.Resize does.
func (a *Attachment) Resize(rows, columns uint16) error {
	_, err := a.ch.SendRequest("window-change", false,
		ssh.Marshal(windowChange{Columns: uint32(columns), Rows: uint32(rows)}))
	if err != nil {
		return fmt.Errorf("tether: resize: %w", err)
	}
	return nil
}

// Signal sends a signal by name, such as SIGINT, to the process that the
// attachment is of. It does not wait for the guest.
func (a *Attachment) Signal(name string) error {
	if _, err := SignalNumber(name); err != nil {
		return fmt.Errorf("tether: signal: %w", err)
	}
	if _, err := a.ch.SendRequest("signal", false, ssh.Marshal(signalName{name})); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("tether: signal: %w", err)
	}
	return nil
}

// Detach ends the attachment and leaves the process alone. It may be called
// more than once, and after the end does nothing.
func (a *Attachment) Detach() error {
	a.once.Do(func() {
		select {
		case <-a.done:
		default:
			close(a.detached)
		}
	})
	_ = a.ch.Close() // The guest may have closed it before.
	<-a.done
	return nil
}

// Close is Detach.
func (a *Attachment) Close() error { return a.Detach() }
