package tether

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// A Main is a container's started main process.
type Main interface {
	// Signal sends a signal by its Linux number.
	Signal(number int) error
	// Resize changes the terminal's size in characters; an ErrUnsupported
	// where the process has none.
	Resize(rows, columns uint16) error
	// Stdin is the process's standard input, or nil where it has none.
	// Closing it is an end of file for a pipe and nothing for a terminal.
	// A write that waits fails at the latest when the process has ended.
	Stdin() io.WriteCloser
}

// A Container is the guest's record of its main process. The guest's own code
// calls Started, Finished and Reached; a Server serves what they tell. Methods
// may be called by several goroutines.
type Container struct {
	config  Config
	pausing sync.Mutex // held while freezing and thawing; taken before mu

	mu       sync.Mutex
	freezer  Freezer // of a container that is paused
	status   Status
	exit     Exit
	process  Main
	stages   []Stage
	started  chan struct{} // closed by Started or, at the latest, Finished
	finished chan struct{}
	stopping *time.Timer
	asked    stopParams // a stop asked for before the process started
	wanted   bool

	input     chan []byte // to the process's standard input
	endInput  func()      // closes inputEnd
	inputEnd  chan struct{}
	inputGone chan struct{} // closed when the process takes no more
}

// NewContainer makes the record of a container that has not started. boot is
// Status.Boot.
func NewContainer(c Config, boot string) *Container {
	inputEnd := make(chan struct{})
	return &Container{
		config: c,
		status: Status{Version: 1, Boot: boot, State: Starting},

		started:  make(chan struct{}),
		finished: make(chan struct{}),

		input:     make(chan []byte),
		endInput:  sync.OnceFunc(func() { close(inputEnd) }),
		inputEnd:  inputEnd,
		inputGone: make(chan struct{}),
	}
}

// Mark adds a stage to the timeline.
func (c *Container) Mark(name string, at time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stages = append(c.stages, Stage{name, at})
}

// Timeline returns the stages so far.
func (c *Container) Timeline() []Stage {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]Stage(nil), c.stages...)
}

// Reached sets where controllers reach the server and by which key they know
// it.
func (c *Container) Reached(hostKey string, addresses []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.status.HostKey, c.status.Addresses = hostKey, addresses
}

// Status returns the present status.
func (c *Container) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.status
	s.Addresses = append([]string(nil), s.Addresses...)
	if s.State != Starting {
		s.Timeline = append([]Stage(nil), c.stages...)
	}
	return s
}

// Started tells that the process runs. Once.
func (c *Container) Started(p Main, at time.Time) {
	c.mu.Lock()
	c.process = p
	c.status.State, c.status.Started = Running, at
	wanted, asked := c.wanted, c.asked
	var stdin io.WriteCloser
	if c.config.Process.OpenStdin {
		stdin = p.Stdin()
	}
	go c.feed(stdin)
	close(c.started)
	c.mu.Unlock()
	if wanted {
		_ = c.Stop(asked.Signal, asked.Grace) // The process may have ended already.
	}
}

// Finished tells that the process has ended and all of its output is
// recorded, or that it could not be started (Exit.Error). Once.
func (c *Container) Finished(e Exit, at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.exit = e
	if c.process == nil {
		close(c.started)
		c.status.State = Failed
	} else {
		c.status.State = Exited
	}
	c.process, c.freezer, c.status.Paused = nil, nil, false
	c.status.Finished, c.status.ExitCode, c.status.Error, c.status.OOMKilled = at, e.Code, e.Error, e.OOMKilled
	if c.stopping != nil {
		c.stopping.Stop()
	}
	close(c.finished)
}

// Wait waits for the end. The error is ctx's.
func (c *Container) Wait(ctx context.Context) (Exit, error) {
	select {
	case <-ctx.Done():
		return Exit{}, ctx.Err()
	case <-c.finished:
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.exit, nil
}

func (c *Container) running() (Main, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.process == nil {
		return nil, fmt.Errorf("%w (it is %s)", ErrNotRunning, c.status.State)
	}
	return c.process, nil
}

// Signal sends a signal by name.
func (c *Container) Signal(name string) error {
	n, err := SignalNumber(name)
	if err != nil {
		return err
	}
	p, err := c.running()
	if err != nil {
		return err
	}
	if err := p.Signal(n); err != nil {
		return err
	}
	// As docker kill does: a paused container could not act on the signal.
	c.pausing.Lock()
	defer c.pausing.Unlock()
	return c.thaw()
}

// Resize changes the size of the process's terminal.
func (c *Container) Resize(rows, columns uint16) error {
	if !c.config.Process.TTY {
		return fmt.Errorf("%w: the container has no terminal", ErrUnsupported)
	}
	if rows == 0 || columns == 0 {
		return fmt.Errorf("%w: a terminal of %d rows by %d columns", ErrInvalid, rows, columns)
	}
	p, err := c.running()
	if err != nil {
		return err
	}
	return p.Resize(rows, columns)
}

// Stop asks the process to end and kills it after grace. An empty signal and a
// negative grace stand for those of the configuration. It does not wait.
// Asking again can only bring the kill forward. A process that has not started
// yet is stopped as soon as it has.
func (c *Container) Stop(signal string, grace time.Duration) error {
	if signal == "" {
		signal = c.config.Stop.Signal
	}
	if signal == "" {
		signal = "SIGTERM"
	}
	if grace < 0 {
		grace = c.config.Stop.Grace
		if grace == 0 {
			grace = 10 * time.Second
		}
	}
	n, err := SignalNumber(signal)
	if err != nil {
		return err
	}
	c.mu.Lock()
	if c.status.State == Starting {
		c.wanted, c.asked = true, stopParams{signal, grace}
		c.mu.Unlock()
		return nil
	}
	p := c.process
	if p == nil {
		c.mu.Unlock()
		return nil
	}
	if c.stopping == nil || c.stopping.Stop() {
		// A timer that has fired already has killed the process.
		c.stopping = time.AfterFunc(grace, func() { _ = p.Signal(9) })
	}
	c.mu.Unlock()
	if err := p.Signal(n); err != nil && !errors.Is(err, ErrNotRunning) {
		return err
	}
	c.pausing.Lock()
	defer c.pausing.Unlock()
	return c.thaw()
}

// feed writes attachers' input to the process. What one attacher has handed
// over is written even where it goes, and one that waits does not hold up the
// others' going.
func (c *Container) feed(w io.WriteCloser) {
	defer close(c.inputGone)
	if w == nil {
		return
	}
	defer w.Close()
	for {
		select {
		case <-c.finished:
			return
		case <-c.inputEnd:
			return
		case p := <-c.input:
			if _, err := w.Write(p); err != nil {
				return
			}
		}
	}
}

// stdin carries one attacher's input to the process, once that has started.
// An end of file closes the process's standard input; an attacher that just
// goes does so with StdinOnce only; meant tells, after an io.EOF, which of the
// two it was. It returns when the process takes no more, too.
func (c *Container) stdin(ctx context.Context, r io.Reader, meant func() bool) {
	select {
	case <-ctx.Done():
		return
	case <-c.finished:
		return
	case <-c.started:
	}
	for {
		p := make([]byte, 32<<10)
		n, err := r.Read(p)
		if n > 0 {
			select {
			case <-ctx.Done():
				err = ctx.Err()
			case <-c.finished:
				return
			case <-c.inputGone:
				return
			case c.input <- p[:n]:
			}
		}
		if err == nil {
			continue
		}
		if (err == io.EOF && meant()) || c.config.Process.StdinOnce {
			c.endInput()
		}
		return
	}
}
