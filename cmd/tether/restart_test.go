//go:build linux && amd64

package main_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vicsdk/vic-go/vic/tether"
)

func restart(policy string, max int) func(*tether.Config) {
	return func(c *tether.Config) { c.Restart = tether.Restart{Policy: policy, MaxRetries: max} }
}

// statusOnDisk reads the status that a guest left.
func (g *guest) statusOnDisk() (s tether.Status) {
	g.t.Helper()
	if err := json.Unmarshal([]byte(g.read(tether.StatusPath)), &s); err != nil {
		g.t.Fatal(err)
	}
	return s
}

// TestBootRestarts: with no controller connected the process is started again,
// each time in a fresh world on the same files, until its retries are used up.
func TestBootRestarts(t *testing.T) {
	// What a run may leave behind, and what it must not find.
	script := `n=$(cat /n 2>/dev/null || echo 0); n=$((n+1)); echo $n >/n
echo run $n: $(ls /dev/shm) $(ls -d /sys/fs/cgroup/container/left 2>/dev/null) $(mount | grep -c /mnt) $(ps -o comm | grep -c '^sleep') $(cat)
touch /dev/shm/left; mkdir /sys/fs/cgroup/container/left; mkdir -p /mnt; (sleep 1000 &)
printf 'no end'; exit $((40+n))`
	g := boot(t, bootOptions{config: func(c *tether.Config) {
		restart("on-failure", 3)(c)
		c.AwaitAttach = 0
	}}, "sh", "-c", script)
	s := g.status(ended)
	g.off()
	if diff := cmp.Diff([]any{tether.Exited, 44, 3, 4, true}, []any{s.State, s.ExitCode, s.Restarts, len(s.Runs), s.NextStart.IsZero()}); diff != "" {
		t.Error(diff)
	}
	for i, r := range s.Runs {
		if r.Number != i+1 || r.ExitCode != 41+i || r.Finished.Before(r.Started) {
			t.Errorf("run %d: %+v", i+1, r)
		}
		if i == 0 {
			continue
		}
		if wait := r.Started.Sub(s.Runs[i-1].Finished); wait < 100*time.Millisecond<<(i-1) {
			t.Errorf("run %d started %v after the last", r.Number, wait)
		}
	}
	if last := s.Runs[3]; !last.Started.Equal(s.Started) || !last.Finished.Equal(s.Finished) {
		t.Errorf("the last run %+v in %+v", last, s)
	}
	var log strings.Builder
	l := tether.NewLogReader(strings.NewReader(g.read(tether.LogPath)))
	for e, err := l.Next(); err == nil; e, err = l.Next() {
		log.Write(e.Data)
	}
	want := "run 1: 0 0\nno endrun 2: 0 0\nno endrun 3: 0 0\nno endrun 4: 0 0\nno end"
	if diff := cmp.Diff(want, log.String()); diff != "" {
		t.Errorf("log: %s", diff)
	}
	if diff := cmp.Diff(s, g.statusOnDisk()); diff != "" {
		t.Errorf("status on disk: %s", diff)
	}
}

// TestBootRestartSeen watches restarts from outside: attachments end with their
// run, logs and statuses go on, a stop during the pause ends it, and so does the
// kill of a process.
func TestBootRestartSeen(t *testing.T) {
	g := boot(t, bootOptions{config: func(c *tether.Config) {
		restart("always", 0)(c)
		c.Process.OpenStdin = true
	}}, "sh", "-c", "echo up; read x; echo got $x; exit 3")
	ctx := testContext(t)
	c := g.dial(ctx)
	logs, err := c.Logs(ctx, tether.LogOptions{Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	defer logs.Close()
	for n := 1; n <= 4; n++ {
		var out bytes.Buffer
		a, err := c.Attach(ctx, tether.AttachOptions{Streams: tether.Streams{Stdin: strings.NewReader("it\n"), Stdout: &out}, Replay: true, Run: n})
		if err != nil {
			t.Fatal(err)
		}
		exit, err := a.Wait()
		number, _ := a.Run()
		if err != nil || exit != (tether.Exit{Code: 3, Restarts: true}) || out.String() != "up\ngot it\n" || number != n {
			t.Errorf("run %d, seen as %d: %+v, %v, %q", n, number, exit, err, &out)
		}
		s := g.status(func(s tether.Status) bool { return s.Restarts == n })
		if s.State == tether.Restarting && (s.ExitCode != 3 || s.NextStart.Sub(s.Finished) != 100*time.Millisecond<<(n-1)) {
			t.Errorf("after run %d: %+v", n, s)
		}
		// The next run, before it has started.
		if n < 4 {
			a, err := c.Attach(ctx, tether.AttachOptions{Run: n + 1})
			if err != nil {
				t.Fatal(err)
			}
			_ = a.Detach()
		}
	}
	if err := c.Signal(ctx, "SIGHUP"); err != nil {
		t.Errorf("a signal that means stop, during the pause: %v", err)
	}
	// Who asks once the guest has hung up gets no answer, and learns the end by its
	// status, below.
	var refused *tether.RemoteError
	if exit, err := c.Wait(ctx); err == nil && exit != (tether.Exit{Code: 3}) || errors.As(err, &refused) {
		t.Errorf("%+v, %v", exit, err)
	}
	var seen []string
	for e, err := logs.Next(); err == nil; e, err = logs.Next() {
		seen = append(seen, string(e.Data))
	}
	want := strings.SplitAfter(strings.Repeat("up\ngot it\n", 4), "\n")
	if diff := cmp.Diff(want[:8], seen); diff != "" {
		t.Errorf("log: %s", diff)
	}
	s := g.status(ended)
	if s.State != tether.Exited || s.ExitCode != 3 || s.Restarts != 4 || len(s.Runs) != 4 {
		t.Errorf("at the end: %+v", s)
	}
	g.off()
}

// TestBootRestartCannotStart: what cannot be started again is not tried again.
func TestBootRestartCannotStart(t *testing.T) {
	g := boot(t, bootOptions{config: func(c *tether.Config) {
		restart("always", 0)(c)
		c.AwaitAttach = 0
	}, files: map[string]string{"/bin/once": "#!/bin/sh\nrm /bin/once\n"}}, "once")
	s := g.status(ended)
	if s.State != tether.Failed || s.ExitCode != 127 || s.Restarts != 1 || len(s.Runs) != 2 || s.Runs[0].ExitCode != 0 {
		t.Errorf("%+v", s)
	}
	g.off()
}
