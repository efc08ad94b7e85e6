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

// A Container is the guest's record of its main process, which may run several
// times in a boot. The guest's own code calls Run (or Started, Ended and
// Finished), and Reached; a Server serves what they tell. Methods may be called
// by several goroutines.
type Container struct {
	config  Config
	pausing sync.Mutex // held while freezing and thawing; taken before mu

	mu       sync.Mutex
	freezer  Freezer // of a container that is paused
	status   Status
	exit     Exit
	health   *HealthStatus
	run      *run         // that goes on or is to come
	past     map[int]Exit // of the last runs
	stages   []Stage
	finished chan struct{}
	stopped  chan struct{} // closed when the process is not to be started again
	stopOnce sync.Once
	stopping *time.Timer
	asked    *stopParams // a stop asked for while no process ran
}

// A run is one run of the main process and its standard input.
type run struct {
	number  int
	process Main
	exit    Exit
	started chan struct{} // closed by Started or, at the latest, with ended
	ended   chan struct{}

	input     chan []byte // to the process's standard input
	endInput  func()      // closes inputEnd
	inputEnd  chan struct{}
	inputGone chan struct{} // closed when the process takes no more
}

func newRun(number int) *run {
	inputEnd := make(chan struct{})
	return &run{
		number: number, started: make(chan struct{}), ended: make(chan struct{}),
		input: make(chan []byte), inputEnd: inputEnd, inputGone: make(chan struct{}),
		endInput: sync.OnceFunc(func() { close(inputEnd) }),
	}
}

// pastRuns is how many runs are remembered whose output can still be attached to,
// statusRuns how many of them the status tells.
const (
	pastRuns   = 16
	statusRuns = 8
)

// NewContainer makes the record of a container that has not started. boot is
// Status.Boot.
func NewContainer(c Config, boot string) *Container {
	return &Container{
		config: c,
		status: Status{Version: 1, Boot: boot, State: Starting},
		run:    newRun(1), past: make(map[int]Exit),
		finished: make(chan struct{}), stopped: make(chan struct{}),
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

// OOMKills sets how many of the container's processes the kernel has ended for
// want of memory.
func (c *Container) OOMKills(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.status.OOMKills = n
}

// Status returns the present status.
func (c *Container) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.status
	s.Addresses = append([]string(nil), s.Addresses...)
	s.Runs = append([]Run(nil), s.Runs...)
	if c.health != nil {
		s.Health = &HealthStatus{State: c.health.State, FailingStreak: c.health.FailingStreak}
	}
	if s.State != Starting {
		s.Timeline = append([]Stage(nil), c.stages...)
	}
	return s
}

// Started tells that the process runs: for the first time, or again after
// Ended.
func (c *Container) Started(p Main, at time.Time) {
	c.mu.Lock()
	r := c.run
	r.process = p
	c.status.State, c.status.Started, c.status.NextStart = Running, at, time.Time{}
	if c.config.Health != nil {
		// The log of the last run stays, as Docker's does.
		if c.health == nil {
			c.health = &HealthStatus{}
		}
		c.health.State, c.health.FailingStreak = HealthStarting, 0
	}
	asked := c.asked
	var stdin io.WriteCloser
	if c.config.Process.OpenStdin {
		stdin = p.Stdin()
	}
	go r.feed(stdin)
	close(r.started)
	c.mu.Unlock()
	if asked != nil {
		_ = c.Stop(asked.Signal, asked.Grace) // The process may have ended already.
	}
}

// Ended tells that the process has ended, that all of its output is recorded,
// and that it is to be started again after a time.
func (c *Container) Ended(e Exit, at time.Time, wait time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e.Restarts = true
	c.ended(e, c.status.Started, at)
	c.status.State, c.status.NextStart = Restarting, at.Add(wait)
	c.status.Restarts++
	c.run = newRun(c.run.number + 1)
}

// ended closes the present run. The container is locked.
func (c *Container) ended(e Exit, started, at time.Time) {
	r, s := c.run, &c.status
	s.Finished, s.ExitCode, s.Error, s.OOMKilled = at, e.Code, e.Error, e.OOMKilled
	if e.Restarts || r.number > 1 {
		s.Runs = append(s.Runs, Run{r.number, started, at, e.Code})
		s.Runs = s.Runs[max(0, len(s.Runs)-statusRuns):]
	}
	c.past[r.number] = e
	delete(c.past, r.number-pastRuns)
	r.process, r.exit = nil, e
	c.freezer, s.Paused = nil, false
	if c.stopping != nil {
		c.stopping.Stop()
	}
	close(r.ended)
}

// Finished tells that the process has ended for good and all of its output is
// recorded, or that it could not be started (Exit.Error). A process that was to
// be started again, and is not, has ended already. Once.
func (c *Container) Finished(e Exit, at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	ran := c.run.process != nil
	if !ran {
		close(c.run.started)
	}
	switch {
	case ran:
		c.ended(e, c.status.Started, at)
	case e.Error != "":
		c.ended(e, at, at)
	default:
		c.run.exit = e
		close(c.run.ended)
	}
	c.status.State, c.status.NextStart = Exited, time.Time{}
	if e.Error != "" {
		c.status.State = Failed
	}
	c.exit = e
	close(c.finished)
}

// Wait waits for the end, after which the process is not started again. The
// error is ctx's.
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

// runOf returns a run by its number, or the present one for zero.
func (c *Container) runOf(number int) (*run, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if number == 0 || number == c.run.number {
		return c.run, nil
	}
	e, ok := c.past[number]
	if !ok {
		return nil, fmt.Errorf("%w: the output of run %d; run %d goes on", ErrInvalid, number, c.run.number)
	}
	r := newRun(number)
	r.exit = e
	close(r.started)
	close(r.ended)
	return r, nil
}

// end waits for the run's end. The error is ctx's.
func (r *run) end(ctx context.Context) (Exit, error) {
	select {
	case <-ctx.Done():
		return Exit{}, ctx.Err()
	case <-r.ended:
		return r.exit, nil
	}
}

func (c *Container) running() (Main, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.run.process == nil {
		return nil, fmt.Errorf("%w (it is %s)", ErrNotRunning, c.status.State)
	}
	return c.run.process, nil
}

// Signal sends a signal by name. SIGKILL and the signal of Config.Stop end the
// restarting, too, and so does any signal where the configuration names none:
// that is what Docker takes for the user's wish to stop.
func (c *Container) Signal(name string) error {
	n, err := SignalNumber(name)
	if err != nil {
		return err
	}
	c.mu.Lock()
	p, state := c.run.process, c.status.State
	c.mu.Unlock()
	if c.config.Stop.IsMeantBy(n) && (p != nil || state == Restarting) {
		c.endRestarts()
		if p == nil {
			return nil // It waits to be started again, and is not now.
		}
	}
	if p == nil {
		return fmt.Errorf("%w (it is %s)", ErrNotRunning, state)
	}
	if err := p.Signal(n); err != nil {
		return err
	}
	// As docker kill does: a paused container could not act on the signal.
	c.pausing.Lock()
	defer c.pausing.Unlock()
	return c.thaw()
}

// IsMeantBy tells whether a signal to the main process means that it is to stop
// for good.
func (s Stop) IsMeantBy(number int) bool {
	own, err := SignalNumber(s.Signal)
	return number == 9 || s.Signal == "" || err == nil && number == own
}

// endRestarts keeps the process from being started again.
func (c *Container) endRestarts() { c.stopOnce.Do(func() { close(c.stopped) }) }

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

// Stop asks the process to end, kills it after grace, and has it not started
// again. An empty signal and a negative grace stand for those of the
// configuration. It does not wait. Asking again can only bring the kill
// forward. A process that has not started yet is stopped as soon as it has.
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
	c.endRestarts()
	c.mu.Lock()
	p := c.run.process
	if p == nil {
		// One that is just being started gets it when it has.
		c.asked = &stopParams{signal, grace}
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
func (r *run) feed(w io.WriteCloser) {
	defer close(r.inputGone)
	if w == nil {
		return
	}
	defer w.Close()
	for {
		select {
		case <-r.ended:
			return
		case <-r.inputEnd:
			return
		case p := <-r.input:
			if _, err := w.Write(p); err != nil {
				return
			}
		}
	}
}

// stdin carries one attacher's input to the process, once that has started.
// An end of file closes the process's standard input; an attacher that just
// goes does so where once is set only; meant tells, after an io.EOF, which of
// the two it was. It returns when the process takes no more, too.
func (r *run) stdin(ctx context.Context, in io.Reader, once bool, meant func() bool) {
	select {
	case <-ctx.Done():
		return
	case <-r.ended:
		return
	case <-r.started:
	}
	for {
		p := make([]byte, 32<<10)
		n, err := in.Read(p)
		if n > 0 {
			select {
			case <-ctx.Done():
				err = ctx.Err()
			case <-r.ended:
				return
			case <-r.inputGone:
				return
			case r.input <- p[:n]:
			}
		}
		if err == nil {
			continue
		}
		if (err == io.EOF && meant()) || once {
			r.endInput()
		}
		return
	}
}
