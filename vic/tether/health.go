package tether

import (
	"context"
	"fmt"
	"time"
)

// Health is a health check: a command that the guest runs beside the main
// process again and again, as its user, with its environment and in its
// directory, whether or not a controller is connected. The durations and the
// retries have Docker's defaults where they are zero.
type Health struct {
	// Args is the program and its arguments. Exit code 0 is healthy, others are
	// not.
	Args []string `json:"args"`
	// Interval is the time before the first check and between one's end and the
	// next one's start (30 s).
	Interval time.Duration `json:"interval,omitempty"`
	// Timeout is how long a check may run before it is killed and has failed
	// (30 s).
	Timeout time.Duration `json:"timeout,omitempty"`
	// StartPeriod is how long after its start a process whose check has not
	// succeeded yet may fail it without that being counted (0), and
	// StartInterval the time between checks meanwhile (5 s).
	StartPeriod   time.Duration `json:"startPeriod,omitempty"`
	StartInterval time.Duration `json:"startInterval,omitempty"`
	// Retries is how many failures in a row are unhealthy (3).
	Retries int `json:"retries,omitempty"`
}

const (
	healthLog    = 5    // results that are remembered
	healthOutput = 4096 // bytes of output of each
)

func (h *Health) validate() error {
	if h == nil {
		return nil
	}
	if len(h.Args) == 0 || h.Args[0] == "" {
		return fmt.Errorf("health.args: empty")
	}
	for name, d := range map[string]time.Duration{
		"interval": h.Interval, "timeout": h.Timeout, "startPeriod": h.StartPeriod, "startInterval": h.StartInterval,
	} {
		if d != 0 && d < time.Millisecond {
			return fmt.Errorf("health.%s: %v is less than a millisecond", name, d)
		}
	}
	if h.Retries < 0 {
		return fmt.Errorf("health.retries: negative")
	}
	return nil
}

func or[T comparable](v, otherwise T) T {
	var zero T
	if v == zero {
		return otherwise
	}
	return v
}

// A HealthState is what the health checks of a run have come to.
type HealthState string

// The states, by Docker's names.
const (
	HealthStarting HealthState = "starting" // not known yet
	Healthy        HealthState = "healthy"
	Unhealthy      HealthState = "unhealthy"
)

// HealthStatus is the outcome of health checks. After the process's end it stays
// as it was last.
type HealthStatus struct {
	State HealthState `json:"state"`
	// FailingStreak is how many checks have failed since the last good one.
	FailingStreak int `json:"failingStreak,omitempty"`
	// Log has the last results, oldest first, at most five. A Status has none:
	// see Client.Health.
	Log []HealthResult `json:"log,omitempty"`
}

// HealthResult is the outcome of one check.
type HealthResult struct {
	Start time.Time `json:"start"`
	End   time.Time `json:"end"`
	// ExitCode of the command; -1 where it was killed after its time or could
	// not be started.
	ExitCode int `json:"exitCode"`
	// Output of both streams, at most 4096 bytes and "..." where there was more.
	Output []byte `json:"output,omitempty"`
}

// add takes a result in. started is when the process was started.
func (s *HealthStatus) add(h *Health, r HealthResult, started time.Time) {
	s.Log = append(s.Log[max(0, len(s.Log)+1-healthLog):len(s.Log):len(s.Log)], r)
	switch {
	case r.ExitCode == 0:
		s.State, s.FailingStreak = Healthy, 0
	case s.State == HealthStarting && r.Start.Sub(started) < h.StartPeriod:
	default:
		s.FailingStreak++
		if s.FailingStreak >= or(h.Retries, 3) {
			s.State = Unhealthy
		}
	}
}

// pause is the time before the next check.
func (h *Health) pause(s HealthState, ran time.Duration) time.Duration {
	if s == HealthStarting && ran < h.StartPeriod {
		return or(h.StartInterval, 5*time.Second)
	}
	return or(h.Interval, 30*time.Second)
}

// checkHealth checks the run that has just started until ctx ends.
func (c *Container) checkHealth(ctx context.Context, r Runner, started time.Time) {
	h := c.config.Health
	for state := HealthStarting; ; {
		select {
		case <-ctx.Done():
			return
		case <-time.After(h.pause(state, time.Since(started))):
		}
		result := probe(ctx, h, r)
		changed := false
		c.mu.Lock()
		if ctx.Err() == nil {
			old := *c.health
			c.health.add(h, result, started)
			state = c.health.State
			changed = old.State != state || old.FailingStreak != c.health.FailingStreak
		}
		c.mu.Unlock()
		if changed {
			r.Changed()
		}
	}
}

// probe runs the check once.
func probe(ctx context.Context, h *Health, r Runner) HealthResult {
	limit := or(h.Timeout, 30*time.Second)
	result := HealthResult{Start: time.Now()}
	out := &limitedBuffer{most: healthOutput}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	code, err := r.Probe(ctx, h.Args, out)
	result.ExitCode, result.End = code, time.Now()
	result.Output = out.bytes()
	switch {
	case ctx.Err() != nil:
		result.ExitCode = -1
		text := fmt.Sprintf("Health check exceeded timeout (%v)", limit)
		if len(result.Output) > 0 {
			text += ": "
		}
		result.Output = append([]byte(text), result.Output...)
	case err != nil:
		result.ExitCode = -1
		result.Output = []byte(truncate(err.Error(), healthOutput))
	}
	return result
}

// HealthStatus returns the state of the health checks and their last results;
// nil where there are no checks.
func (c *Container) HealthStatus() *HealthStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.health == nil {
		return nil
	}
	s := *c.health
	s.Log = append([]HealthResult(nil), s.Log...)
	return &s
}
