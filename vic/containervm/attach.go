package containervm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/vmware/govmomi/vim25/types"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/internal/vsphere"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/tether"
)

// An Attachment carries the streams of a container's main process from its
// start to its end.
type Attachment struct {
	vm      *VM
	streams tether.Streams
	stale   string // the boot that was the last one when the VM was off
	fresh   bool   // what was written before the first session is left out
	wasOff  bool
	kick    chan struct{}
	cancel  context.CancelFunc
	done    chan struct{}
	exit    tether.Exit
	err     error
	out     counter
	errOut  counter
	boot    string // of the guest that was attached to
	number  int    // of the run that is attached to; zero where it is not known

	mu            sync.Mutex
	live          *tether.Attachment
	rows, columns uint16
	timeline      []Moment
}

// A Moment is when something was reached on the controller's side.
type Moment struct {
	Name string
	Time time.Time
}

// Timeline tells how the guest was reached, for the first time: "reachable",
// when vSphere told where the guest is; "connected", after the handshake;
// "attached". An attachment to a container that is off has none.
func (a *Attachment) Timeline() []Moment {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]Moment(nil), a.timeline...)
}

func (a *Attachment) mark(name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, m := range a.timeline {
		if m.Name == name {
			return
		}
	}
	a.timeline = append(a.timeline, Moment{name, time.Now()})
}

// Attach carries everything that one run of the main process writes, from its
// start on, and brings it a standard input. It may be called before Start, and
// is to the first run then, so that nothing is missed; else it is to the present
// run, or the next where the guest is about to start the process again. What a
// log with a limit has dropped of a run's beginning is left out. It
// returns at once: the guest is reached when it can be. Where
// the process ends before that, its output is read from its disk. A connection
// that is lost is made again, without loss and without repetition, unless
// Streams has a Stdin, whose bytes under way cannot be told from lost ones.
//
// Of one VM value only one Attachment that is waiting for Start is told of it.
// ctx bounds the call, not the attachment; Detach ends that and leaves the
// process as it is.
func (v *VM) Attach(ctx context.Context, s tether.Streams) (*Attachment, error) {
	return v.AttachWith(ctx, AttachOptions{Streams: s})
}

// AttachOptions are the details of an attachment.
type AttachOptions struct {
	tether.Streams
	// New leaves out what a process that runs already has written so far.
	New bool
}

// AttachWith is Attach with all of its options.
func (v *VM) AttachWith(ctx context.Context, o AttachOptions) (*Attachment, error) {
	const op = "attach to container"
	if _, err := newSigner(v.c, v.id); err != nil {
		return nil, fault.Wrap(op, v.Ref(), err)
	}
	a := &Attachment{
		vm: v, streams: o.Streams, kick: make(chan struct{}, 1), done: make(chan struct{}),
		out: counter{w: o.Stdout}, errOut: counter{w: o.Stderr},
	}
	if v.view.unstarted() {
		a.wasOff, a.number = true, 1
	} else {
		info, err := v.look(ctx)
		if err != nil {
			return nil, fault.Wrap(op, v.Ref(), err)
		}
		if !info.On() {
			a.wasOff, a.stale, a.number = true, info.status.Boot, 1
		}
		a.fresh = o.New && info.On()
	}
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	a.cancel = cancel
	v.starts.add(a.kick)
	go func() {
		defer close(a.done)
		defer cancel()
		defer v.starts.remove(a.kick)
		a.exit, a.err = a.run(run)
	}()
	return a, nil
}

// starts are the attachments that wait for a VM's start.
type starts struct {
	mu sync.Mutex
	m  map[chan struct{}]struct{}
}

func (s *starts) add(c chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.m == nil {
		s.m = map[chan struct{}]struct{}{}
	}
	s.m[c] = struct{}{}
}

func (s *starts) remove(c chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.m, c)
}

func (s *starts) tell() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.m {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// Wait returns after the process's end and all of its output, or after Detach,
// which is tether.ErrDetached. An error means that the outcome, or part of the
// output, is not known.
func (a *Attachment) Wait() (tether.Exit, error) {
	<-a.done
	return a.exit, a.err
}

// Done is closed when Wait would not wait.
func (a *Attachment) Done() <-chan struct{} { return a.done }

// Detach ends the attachment and leaves the process running.
func (a *Attachment) Detach() {
	a.cancel()
	<-a.done
}

// Resize sets the size of the process's terminal in characters, now or when
// the guest is reached.
func (a *Attachment) Resize(rows, columns uint16) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.rows, a.columns = rows, columns
	if a.live == nil {
		return nil
	}
	return a.live.Resize(rows, columns)
}

// outcome of waiting for the guest.
type outcome struct {
	Info
	off bool
}

func (a *Attachment) run(ctx context.Context) (tether.Exit, error) {
	const op = "attach to container"
	failed := map[string]int{} // tries by boot
	for {
		o, err := a.await(ctx)
		if err == nil && o.off {
			return a.fromDisk(ctx)
		}
		var exit tether.Exit
		if err == nil {
			a.mark("reachable")
			if a.boot != "" && a.boot != o.status.Boot {
				return tether.Exit{}, fault.Wrap(op, a.vm.Ref(), fault.Of(vic.ErrUnknownOutcome, "the connection was lost, and the VM has been started again since"))
			}
			var connected bool
			connected, exit, err = a.session(ctx, o.Info)
			if connected && err == nil {
				return exit, nil
			}
			if errors.Is(err, tether.ErrDetached) || errors.As(err, new(*writeError)) {
				return exit, err
			}
			if connected && errors.As(err, new(*tether.RemoteError)) {
				return exit, fault.Wrap(op, a.vm.Ref(), err) // The guest's last word.
			}
			if connected && a.streams.Stdin != nil {
				if info, e := a.vm.Inspect(ctx); e != nil || info.On() {
					return exit, fault.Wrap(op, a.vm.Ref(), fault.As(vic.ErrUnavailable, fmt.Errorf("the connection was lost, and with it perhaps a part of the input: %w", err)))
				}
			}
			if connected {
				failed[o.status.Boot] = 0
			}
			failed[o.status.Boot]++
		}
		switch {
		case ctx.Err() != nil:
			return exit, tether.ErrDetached
		case o.status.Boot == "":
			return exit, fault.Wrap(op, a.vm.Ref(), err)
		case failed[o.status.Boot] > maxTries, errors.Is(err, tether.ErrRefused):
			return exit, fault.Wrap(op, a.vm.Ref(), err)
		}
		a.vm.c.Logger().Debug("trying again to reach the guest", "container", a.vm.name, "reason", err)
		select {
		case <-ctx.Done():
		case <-time.After(backOff(failed[o.status.Boot])):
		}
	}
}

// maxTries bounds how often one boot of a guest is dialled in vain; pauses add
// up to two minutes.
const maxTries = 28

// await returns when the guest of the boot that counts can be dialled, or has
// powered off.
func (a *Attachment) await(ctx context.Context) (outcome, error) {
	a.vm.view.awaitStart(ctx)
	x, err := a.vm.hold(ctx)
	if err != nil {
		return outcome{}, err
	}
	defer x.Release()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var mu sync.Mutex
	var o outcome
	seenOn := !a.wasOff
	found := false
	judge := func(s vsphere.State) (bool, error) {
		if err := s.Err(a.vm.ref); err != nil {
			return false, err
		}
		info, power := a.vm.info(s)
		st := info.status
		mu.Lock()
		defer mu.Unlock()
		fresh := st.Boot != "" && (!a.wasOff || st.Boot != a.stale)
		switch {
		case found:
		case power == types.VirtualMachinePowerStatePoweredOn:
			seenOn = true
			if fresh && info.reach.knows(st) {
				o.Info, found = info, true
			}
		case power == types.VirtualMachinePowerStatePoweredOff && (seenOn || fresh):
			o.off, found = true, true
		}
		return found, nil
	}
	// A start and an end between two updates would go unseen: where a start that
	// this VM value made is not seen soon, look.
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case <-ctx.Done():
			return
		case <-a.kick:
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(startTime):
		}
		mu.Lock()
		seen := seenOn
		mu.Unlock()
		if seen {
			return
		}
		info, err := a.vm.Inspect(ctx)
		if err == nil && !info.On() {
			mu.Lock()
			if !found {
				o.off, found = true, true
			}
			mu.Unlock()
			cancel()
		}
	})
	err = x.Wait(ctx, judge)
	cancel()
	wg.Wait()
	mu.Lock()
	defer mu.Unlock()
	if found {
		return o, nil
	}
	return o, err
}

// session attaches over the network and reports whether the guest was reached.
func (a *Attachment) session(ctx context.Context, info Info) (connected bool, exit tether.Exit, err error) {
	t, err := a.vm.dialNow(ctx, info)
	if err != nil {
		return false, exit, err
	}
	defer t.Close()
	a.mark("connected")
	// The guest replays from the process's start but for what was written.
	s := a.streams
	out, errOut := &resumed{c: &a.out}, &resumed{c: &a.errOut}
	s.Stdout, s.Stderr = out, errOut
	if s.Stdin != nil {
		in := &gate{r: s.Stdin, stop: make(chan struct{})}
		defer in.close()
		s.Stdin = in
	}
	skip := [2]int64{a.out.n, a.errOut.n}
	live, err := t.Attach(ctx, tether.AttachOptions{Streams: s, Replay: !a.fresh, Run: a.number, Skip: skip})
	if err != nil {
		return false, exit, err
	}
	a.mark("attached")
	a.boot = info.status.Boot
	a.mu.Lock()
	a.live = live
	rows, columns := a.rows, a.columns
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		a.live = nil
		a.mu.Unlock()
	}()
	if rows > 0 && columns > 0 {
		_ = live.Resize(rows, columns)
	}
	select {
	case <-live.Done():
	case <-ctx.Done():
		return true, exit, tether.ErrDetached
	}
	exit, err = live.Wait()
	if n, from := live.Run(); n > 0 {
		a.number, a.fresh = n, false
		a.out.n += max(0, from[0]-skip[0])
		a.errOut.n += max(0, from[1]-skip[1])
	}
	if w := errors.Join(out.failed, errOut.failed); w != nil {
		err = &writeError{w}
	}
	return true, exit, err
}

// fromDisk completes the output of a container that is off from its log, and
// the outcome from what the guest left.
func (a *Attachment) fromDisk(ctx context.Context) (tether.Exit, error) {
	const op = "attach to container"
	info, err := a.vm.ended(ctx)
	if err != nil {
		return tether.Exit{}, fault.Wrap(op, a.vm.Ref(), err)
	}
	exit := tether.Exit{Code: info.ExitCode, OOMKilled: info.OOMKilled, Error: info.Error}
	output := tether.LogOptions{Since: info.Started}
	if !info.Known {
		err = fault.Wrap(op, a.vm.Ref(), fault.Of(vic.ErrUnknownOutcome, "the VM was powered off before its guest wrote down how the process ended"))
	}
	if last := info.status.Restarts + 1; a.number > 0 && a.number < last {
		i := slices.IndexFunc(info.status.Runs, func(r tether.Run) bool { return r.Number == a.number })
		if i < 0 {
			return exit, fault.Wrap(op, a.vm.Ref(), fault.Of(vic.ErrUnknownOutcome, "the guest has started the process again too often to know how its run %d ended", a.number))
		}
		r := info.status.Runs[i]
		exit, err = tether.Exit{Code: r.ExitCode, Restarts: true}, nil
		output = tether.LogOptions{Since: r.Started, Until: r.Finished}
	}
	if !output.Since.IsZero() && !a.fresh { // what it wrote before is not told from the rest
		out, errOut := a.out.resume(), a.errOut.resume()
		e := a.vm.diskLogs(ctx, output, func(l tether.LogEntry) error {
			w := out
			if l.Stream == tether.Stderr {
				w = errOut
			}
			_, err := w.Write(l.Data)
			return err
		})
		if e != nil {
			err = errors.Join(err, fault.Wrap(op, a.vm.Ref(), fmt.Errorf("the rest of the output: %w", e)))
		}
	}
	return exit, err
}

// counter counts what went to a stream, so that a replay can skip it.
type counter struct {
	w io.Writer
	n int64
}

func (c *counter) resume() *resumed { return &resumed{c: c, skip: c.n} }

// resumed drops the bytes that were written before.
type resumed struct {
	c      *counter
	skip   int64
	failed error
}

func (r *resumed) Write(p []byte) (int, error) {
	total := len(p)
	n := min(r.skip, int64(len(p)))
	r.skip -= n
	p = p[n:]
	if len(p) == 0 || r.c.w == nil {
		r.c.n += int64(len(p))
		return total, nil
	}
	m, err := r.c.w.Write(p)
	r.c.n += int64(m)
	if err != nil {
		r.failed = err
		return int(n) + m, err
	}
	return total, nil
}

type writeError struct{ err error }

func (w *writeError) Error() string { return "write output: " + w.err.Error() }
func (w *writeError) Unwrap() error { return w.err }

// gate stops passing a reader's bytes on once closed, so that a session that
// has ended takes none from the next.
type gate struct {
	r    io.Reader
	stop chan struct{}
}

func (g *gate) Read(p []byte) (int, error) {
	select {
	case <-g.stop:
		return 0, io.ErrClosedPipe
	default:
	}
	return g.r.Read(p)
}

func (g *gate) close() { close(g.stop) }
