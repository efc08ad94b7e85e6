package tether

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"
)

// The restart policies, by Docker's names.
const (
	RestartNo            = "no"             // never; what an empty policy means, too
	RestartOnFailure     = "on-failure"     // after an exit code other than zero
	RestartAlways        = "always"         // after every end
	RestartUnlessStopped = "unless-stopped" // as always; the two differ after a power-off only
)

// Restart is a restart policy. The guest follows it by itself, within one boot
// of its VM. A Stop, and a signal that stands for one (see Container.Signal),
// ends the restarting until the VM is started again; so does a process that
// could not be started. Every boot counts from zero, as Docker does for a
// container that is started by its user.
type Restart struct {
	// Policy is one of the constants, or empty.
	Policy string `json:"policy,omitempty"`
	// MaxRetries bounds the restarts of RestartOnFailure. Zero does not.
	MaxRetries int `json:"maxRetries,omitempty"`
}

// Validate tells what cannot be right, by its name in JSON.
func (r Restart) Validate() error {
	switch r.Policy {
	case "", RestartNo, RestartAlways, RestartUnlessStopped:
		if r.MaxRetries != 0 {
			return fmt.Errorf("restart.maxRetries: only on-failure counts its restarts")
		}
	case RestartOnFailure:
		if r.MaxRetries < 0 {
			return fmt.Errorf("restart.maxRetries: negative")
		}
	default:
		return fmt.Errorf("restart.policy: %.40q is none of no, on-failure, always and unless-stopped", r.Policy)
	}
	return nil
}

// The time before a restart, as Docker's daemon has it: it doubles from one to
// the next and begins anew after a run that was long enough.
const (
	backoffFirst = 100 * time.Millisecond
	backoffMost  = time.Minute
	backoffReset = 10 * time.Second
)

// backoff decides on restarts.
type backoff struct {
	policy Restart
	count  int // restarts so far
	wait   time.Duration
}

// next tells whether a process that ended after it ran for a time is started
// again, and how long to wait before.
func (b *backoff) next(code int, ran time.Duration) (wait time.Duration, again bool) {
	switch b.policy.Policy {
	case RestartAlways, RestartUnlessStopped:
	case RestartOnFailure:
		if code == 0 || b.policy.MaxRetries > 0 && b.count >= b.policy.MaxRetries {
			return 0, false
		}
	default:
		return 0, false
	}
	if ran >= backoffReset {
		b.wait = 0
	}
	b.wait = min(max(2*b.wait, backoffFirst), backoffMost)
	b.count++
	return b.wait, true
}

// A Runner runs a container's process for Container.Run.
type Runner interface {
	// Start starts the process for the n-th time, from 1, in an environment
	// that is the same every time but for what processes left on the disks.
	Start(n int) (RunningMain, error)
	// Probe runs a command beside the process, as its user and in its
	// environment, with its output going to out, until it ends or ctx does, with
	// which it is killed. The error is that of starting it.
	Probe(ctx context.Context, args []string, out io.Writer) (code int, err error)
	// Changed is called when the status has changed after the first start. It
	// does not wait.
	Changed()
}

// RunningMain is a main process that was started.
type RunningMain interface {
	Main
	// Wait waits for the process's end, calls ended, ends what else is left of
	// the container and returns when all output is recorded.
	Wait(ended func()) Exit
}

// await waits for the end of a run and has its health checked meanwhile.
func (c *Container) await(p RunningMain, r Runner, started time.Time) Exit {
	if c.config.Health == nil {
		return p.Wait(func() {})
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { c.checkHealth(ctx, r, started) })
	return p.Wait(cancel)
}

// Run starts the container's process, and again as its restart policy says, and
// returns its last end, which the caller tells by Finished. The error is that of
// a start, after which there is no other: a restart policy is for processes that
// could be started. out records the output.
func (c *Container) Run(r Runner, out *Recorder) (Exit, error) {
	b := backoff{policy: c.config.Restart}
	for n := 1; ; n++ {
		p, err := r.Start(n)
		if err != nil {
			return Exit{}, err
		}
		started := time.Now()
		c.Started(p, started)
		if n > 1 {
			r.Changed()
		}
		exit := c.await(p, r, started)
		wait, again := b.next(exit.Code, time.Since(started))
		select {
		case <-c.stopped:
			again = false
		default:
		}
		if !again {
			return exit, nil
		}
		out.NextRun()
		c.Ended(exit, time.Now(), wait)
		r.Changed()
		select {
		case <-time.After(wait):
		case <-c.stopped:
			return exit, nil
		}
	}
}
