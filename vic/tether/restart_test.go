package tether_test

import (
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vicsdk/vic-go/vic/tether"
)

// lives are runs of a process, each with its length and exit code.
type lives struct {
	c       *tether.Container
	runs    []life
	starts  []time.Duration // when each was started, since begin
	begin   time.Time
	stop    func(run int) // called at a run's end
	changed []tether.State
}

type life struct {
	ran  time.Duration
	code int
}

var errNoMore = errors.New("no more")

func (l *lives) Start(n int) (tether.RunningMain, error) {
	if n > len(l.runs) {
		return nil, errNoMore
	}
	l.starts = append(l.starts, time.Since(l.begin))
	return &fakeMain{l, n}, nil
}

func (l *lives) Changed() { l.changed = append(l.changed, l.c.Status().State) }

type fakeMain struct {
	l *lives
	n int
}

func (m *fakeMain) Signal(int) error            { return nil }
func (m *fakeMain) Resize(uint16, uint16) error { return nil }
func (m *fakeMain) Stdin() io.WriteCloser       { return nil }
func (m *fakeMain) Wait(ended func()) tether.Exit {
	time.Sleep(m.l.runs[m.n-1].ran)
	ended()
	if m.l.stop != nil {
		m.l.stop(m.n)
	}
	return tether.Exit{Code: m.l.runs[m.n-1].code}
}

// TestRestarts: which ends are followed by a start, and when, by Docker's rules.
func TestRestarts(t *testing.T) {
	const s, ms = time.Second, time.Millisecond
	fail, good := life{0, 1}, life{0, 0}
	many := make([]life, 12)
	for _, tt := range []struct {
		name   string
		policy tether.Restart
		runs   []life
		stop   func(c *tether.Container, run int)
		starts []time.Duration
		err    error
		code   int
		// pending is 1 where a restart was counted and did not come.
		pending int
	}{
		{"none", tether.Restart{}, []life{fail, fail}, nil, []time.Duration{0}, nil, 1, 0},
		{"no", tether.Restart{Policy: "no"}, []life{fail, fail}, nil, []time.Duration{0}, nil, 1, 0},
		{"on failure until it is good", tether.Restart{Policy: "on-failure"}, []life{fail, fail, good, fail}, nil, []time.Duration{0, 100 * ms, 300 * ms}, nil, 0, 0},
		{"on failure, counted", tether.Restart{Policy: "on-failure", MaxRetries: 2}, []life{fail, fail, {0, 7}, fail}, nil, []time.Duration{0, 100 * ms, 300 * ms}, nil, 7, 0},
		{"always, up to a minute", tether.Restart{Policy: "always"}, many, nil, []time.Duration{
			0, 100 * ms, 300 * ms, 700 * ms, 1500 * ms, 3100 * ms, 6300 * ms, 12700 * ms, 25500 * ms, 51100 * ms, 102300 * ms, 162300 * ms}, errNoMore, 0, 0},
		{"a long run begins anew", tether.Restart{Policy: "unless-stopped"}, []life{fail, fail, {10 * s, 1}, {9999 * ms, 1}, fail}, nil, []time.Duration{
			0, 100 * ms, 300 * ms, 10400 * ms, 20599 * ms}, errNoMore, 0, 0},
		{"stopped while it runs", tether.Restart{Policy: "always"}, many, func(c *tether.Container, run int) {
			if run == 3 {
				_ = c.Stop("", 0)
			}
		}, []time.Duration{0, 100 * ms, 300 * ms}, nil, 0, 0},
		{"stopped during the pause", tether.Restart{Policy: "always"}, many, func(c *tether.Container, run int) {
			if run == 3 {
				time.AfterFunc(10*ms, func() { _ = c.Stop("", 0) })
			}
		}, []time.Duration{0, 100 * ms, 300 * ms}, nil, 0, 1},
		{"killed during the pause", tether.Restart{Policy: "always"}, many, func(c *tether.Container, run int) {
			if run == 2 {
				time.AfterFunc(10*ms, func() { _ = c.Signal("SIGKILL") })
			}
		}, []time.Duration{0, 100 * ms}, nil, 0, 1},
		{"a signal that is not the stop signal", tether.Restart{Policy: "on-failure"}, []life{fail, fail, good}, func(c *tether.Container, run int) {
			_ = c.Signal("SIGHUP")
		}, []time.Duration{0, 100 * ms, 300 * ms}, nil, 0, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f, err := tether.OpenLogFiles(t.TempDir(), tether.LogLimit{})
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			synctest.Test(t, func(t *testing.T) {
				c := tether.NewContainer(tether.Config{Restart: tt.policy, Stop: tether.Stop{Signal: "SIGTERM"}}, "boot")
				l := &lives{c: c, runs: tt.runs, begin: time.Now()}
				if tt.stop != nil {
					l.stop = func(run int) { tt.stop(c, run) }
				}
				out := tether.NewRecorder(f, 0)
				exit, err := c.Run(l, out)
				if err := out.Close(); err != nil {
					t.Error(err)
				}
				if diff := cmp.Diff(tt.starts, l.starts); diff != "" {
					t.Errorf("starts: %s", diff)
				}
				if !errors.Is(err, tt.err) || exit.Code != tt.code || exit.Restarts {
					t.Errorf("%+v, %v", exit, err)
				}
				c.Finished(exit, time.Now())
				if s := c.Status(); err == nil && (s.State != tether.Exited || s.Restarts != len(l.starts)-1+tt.pending || !s.NextStart.IsZero()) {
					t.Errorf("%+v", s)
				}
			})
		})
	}
}

func TestRestartValidate(t *testing.T) {
	for name, r := range map[string]tether.Restart{
		"restart.policy":     {Policy: "sometimes"},
		"restart.maxRetries": {Policy: "always", MaxRetries: 1},
	} {
		c := tether.Config{Version: 1, Process: tether.Process{Args: []string{"x"}}, Restart: r}
		if err := c.Validate(); err == nil || err.Error()[:len(name)] != name {
			t.Errorf("%+v: %v", r, err)
		}
	}
}
