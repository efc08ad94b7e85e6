package tether_test

import (
	"context"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vicsdk/vic-go/vic/tether"
)

// checked is a process of some runs whose health check has given outcomes.
type checked struct {
	lives
	probes []check
	seen   []string // when, which, and what came of the last one
	told   []string
}

// check is what one check does.
type check struct {
	code int
	out  string
	err  error
	hang time.Duration // until it ends, or longer where it is killed before
}

func (c *checked) Probe(ctx context.Context, args []string, out io.Writer) (int, error) {
	n := len(c.seen)
	c.seen = append(c.seen, fmt.Sprintf("%v %v", time.Since(c.begin), state(c.c.Status())))
	if n >= len(c.probes) {
		return 0, nil
	}
	p := c.probes[n]
	_, _ = io.WriteString(out, p.out)
	select {
	case <-time.After(p.hang):
	case <-ctx.Done():
		return 137, nil
	}
	return p.code, p.err
}

func (c *checked) Changed() { c.told = append(c.told, state(c.c.Status())) }

func state(s tether.Status) string {
	return fmt.Sprintf("%s/%s/%d", s.State, s.Health.State, s.Health.FailingStreak)
}

func (l *lives) Probe(context.Context, []string, io.Writer) (int, error) {
	return 0, io.ErrUnexpectedEOF
}

func TestHealth(t *testing.T) {
	const s, ms = time.Second, time.Millisecond
	bad, good := check{code: 1}, check{}
	for _, tt := range []struct {
		name   string
		health tether.Health
		policy string
		runs   []life
		probes []check
		seen   []string
		told   []string
		log    []string
	}{
		{"unhealthy and back", tether.Health{Interval: s}, "", []life{{6500 * ms, 0}}, []check{bad, bad, bad, bad, good},
			[]string{"1s running/starting/0", "2s running/starting/1", "3s running/starting/2", "4s running/unhealthy/3", "5s running/unhealthy/4", "6s running/healthy/0"},
			[]string{"running/starting/1", "running/starting/2", "running/unhealthy/3", "running/unhealthy/4", "running/healthy/0"},
			[]string{"1 ", "1 ", "1 ", "0 ", "0 "}},
		{"the defaults", tether.Health{}, "", []life{{100 * s, 0}}, nil,
			[]string{"30s running/starting/0", "1m0s running/healthy/0", "1m30s running/healthy/0"}, []string{"running/healthy/0"}, []string{"0 ", "0 ", "0 "}},
		{"failures in the start period", tether.Health{Interval: 10 * s, StartPeriod: 4 * s, StartInterval: s, Retries: 1}, "", []life{{15 * s, 0}}, []check{bad, bad, bad, bad, bad},
			[]string{"1s running/starting/0", "2s running/starting/0", "3s running/starting/0", "4s running/starting/0", "14s running/unhealthy/1"},
			[]string{"running/unhealthy/1", "running/unhealthy/2"}, []string{"1 ", "1 ", "1 ", "1 ", "1 "}},
		{"the start period ends with the first success", tether.Health{Interval: 2 * s, StartPeriod: 9 * s, StartInterval: s, Retries: 1}, "", []life{{6 * s, 0}}, []check{good, bad},
			[]string{"1s running/starting/0", "3s running/healthy/0", "5s running/unhealthy/1"},
			[]string{"running/healthy/0", "running/unhealthy/1", "running/healthy/0"}, []string{"0 ", "1 ", "0 "}},
		{"too slow, and one that cannot be run", tether.Health{Interval: s, Timeout: 2 * s, Retries: 2}, "", []life{{7 * s, 0}},
			[]check{{hang: time.Hour, out: "half"}, {err: io.ErrNoProgress, code: -1}, {code: 2, out: strings.Repeat("x", 5000)}, {hang: 5 * s}},
			[]string{"1s running/starting/0", "4s running/starting/1", "5s running/unhealthy/2", "6s running/unhealthy/3"},
			[]string{"running/starting/1", "running/unhealthy/2", "running/unhealthy/3"},
			[]string{"-1 Health check exceeded timeout (2s): half", "-1 " + io.ErrNoProgress.Error(), "2 " + strings.Repeat("x", 4096) + "..."}},
		{"each run anew", tether.Health{Interval: s, Retries: 1}, "on-failure", []life{{1500 * ms, 1}, {1500 * ms, 0}}, []check{bad},
			[]string{"1s running/starting/0", "2.6s running/starting/0"},
			[]string{"running/unhealthy/1", "restarting/unhealthy/1", "running/starting/0", "running/healthy/0"}, []string{"1 ", "0 "}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f, err := tether.OpenLogFiles(t.TempDir(), tether.LogLimit{})
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			synctest.Test(t, func(t *testing.T) {
				tt.health.Args = []string{"check"}
				c := tether.NewContainer(tether.Config{Health: &tt.health, Restart: tether.Restart{Policy: tt.policy}}, "boot")
				l := &checked{lives: lives{c: c, runs: tt.runs, begin: time.Now()}, probes: tt.probes}
				out := tether.NewRecorder(f, 0)
				if _, err := c.Run(l, out); err != nil {
					t.Error(err)
				}
				_ = out.Close()
				if d := cmp.Diff(tt.seen, l.seen); d != "" {
					t.Errorf("checks: %s", d)
				}
				if d := cmp.Diff(tt.told, l.told); d != "" {
					t.Errorf("told: %s", d)
				}
				var log []string
				for _, r := range c.HealthStatus().Log {
					log = append(log, fmt.Sprintf("%d %s", r.ExitCode, r.Output))
				}
				if d := cmp.Diff(tt.log, log); d != "" {
					t.Errorf("log: %s", d)
				}
			})
		})
	}
}
