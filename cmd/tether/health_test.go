//go:build linux && amd64

package main_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vicsdk/vic-go/vic/tether"
)

// TestBootHealth: with no controller connected the check is run, in the process's
// own circumstances, and told of; it ends with its time, and leaves nothing.
func TestBootHealth(t *testing.T) {
	check := `echo "$(id -u) $(pwd) $FOO $(cat /proc/self/cgroup) tty=$(tty)"; echo two >&2`
	g := boot(t, bootOptions{
		config: func(c *tether.Config) {
			c.Process.User, c.Process.Dir, c.Process.Env = "app", "/srv", []string{"FOO=bar"}
			c.Process.OpenStdin = true
			c.Health = &tether.Health{Args: []string{"sh", "-c", check}, Interval: 300 * time.Millisecond, Timeout: 2 * time.Second, Retries: 2}
		},
	}, "sh", "-c", "exec cat")
	s := g.status(func(s tether.Status) bool { return s.Health != nil && s.Health.State == tether.Healthy })
	if s.State != tether.Running || s.Health.FailingStreak != 0 || s.Health.Log != nil {
		t.Errorf("%+v", s)
	}
	c := g.dialKey(testContext(t), s.HostKey)
	h, err := c.Health(testContext(t))
	if err != nil || len(h.Log) == 0 {
		t.Fatalf("%+v, %v", h, err)
	}
	if diff := cmp.Diff("1000 /srv bar 0::/container tty=not a tty\ntwo\n", string(h.Log[0].Output)); diff != "" {
		t.Errorf("output: %s", diff)
	}
	if _, err := c.Stop(testContext(t), "SIGKILL", 0); err != nil {
		t.Fatal(err)
	}
	g.off()
}

// TestBootHealthComesAndGoes follows a check by its states alone.
func TestBootHealthComesAndGoes(t *testing.T) {
	script := `while :; do : >/ok; sleep 3; rm /ok; sleep 3; echo hang >/ok; sleep 6; done`
	check := `[ -e /ok ] || exit 7; [ -s /ok ] || exit 0; sleep 1000`
	g := boot(t, bootOptions{config: func(c *tether.Config) {
		c.Health = &tether.Health{Args: []string{"sh", "-c", check}, Interval: 200 * time.Millisecond, Timeout: time.Second, Retries: 2}
	}}, "sh", "-c", script)
	for _, want := range []tether.HealthState{tether.Healthy, tether.Unhealthy, tether.Healthy, tether.Unhealthy} {
		s := g.status(func(s tether.Status) bool { return s.Health != nil && s.Health.State == want })
		if s.State != tether.Running || (want == tether.Unhealthy) != (s.Health.FailingStreak >= 2) {
			t.Errorf("%+v, %+v", s, s.Health)
		}
	}
	ctx := testContext(t)
	c := g.dial(ctx)
	var codes []int
	for end := time.Now().Add(bootTime); ; time.Sleep(100 * time.Millisecond) {
		h, err := c.Health(ctx)
		if err != nil {
			t.Fatal(err)
		}
		codes = codes[:0]
		for _, r := range h.Log {
			codes = append(codes, r.ExitCode)
			if r.ExitCode == -1 && (r.End.Sub(r.Start) < time.Second || !strings.Contains(string(r.Output), "exceeded timeout (1s)")) {
				t.Fatalf("%+v", r)
			}
		}
		if len(codes) == 5 && codes[4] == -1 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%v", codes)
		}
	}
	if _, err := c.Stop(ctx, "SIGKILL", 0); err != nil {
		t.Fatal(err)
	}
	g.off()
}
