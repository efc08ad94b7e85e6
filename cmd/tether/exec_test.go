//go:build linux && amd64

package main_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vicsdk/vic-go/vic/tether"
)

// exec runs a process beside the main one to its end.
func exec1(ctx context.Context, c *tether.Client, e tether.ExecSpec, stdin io.Reader) (exit tether.Exit, stdout, stderr string, err error) {
	var out, errs bytes.Buffer
	a, err := c.Exec(ctx, e, tether.Streams{Stdin: stdin, Stdout: &out, Stderr: &errs})
	if err == nil {
		exit, err = a.Wait()
	}
	return exit, out.String(), errs.String(), err
}

// TestBootExec looks at execs in one VM whose settings are none of the defaults.
func TestBootExec(t *testing.T) {
	g := boot(t, bootOptions{config: func(c *tether.Config) {
		c.Process.OpenStdin, c.Process.User, c.Process.Env = true, "app", []string{"A=main", "B=main"}
		c.Settings = tether.Settings{
			CapDrop: []string{"ALL"}, CapAdd: []string{"KILL"}, NoNewPrivileges: true, OOMScoreAdj: 321,
			Ulimits:  []tether.Ulimit{{Name: "nofile", Soft: 123, Hard: 456}, {Name: "memlock", Soft: -1, Hard: -1}},
			GroupAdd: []string{"extra", "4711"}, Sysctls: map[string]string{"net.core.somaxconn": "777"},
			Domainname: "example.org",
		}
	}}, "sh", "-c", "ulimit -n; ulimit -l; id -G; cat")
	ctx := testContext(t)
	s := g.status(func(s tether.Status) bool { return s.State == tether.Running || ended(s) })
	c := g.dialKey(ctx, s.HostKey)
	var out bytes.Buffer
	in, stdin := io.Pipe()
	a, err := c.Attach(ctx, tether.AttachOptions{Streams: tether.Streams{Stdin: in, Stdout: &out}, Replay: true})
	if err != nil {
		t.Fatal(err)
	}
	status := "grep -E 'CapBnd|CapEff|NoNewPrivs' /proc/self/status"
	for _, tt := range []struct {
		name  string
		e     tether.ExecSpec
		stdin string
		want  string
		exit  tether.Exit
	}{
		{"streams and code", tether.ExecSpec{Args: []string{"sh", "-c", "cat; echo err >&2; exit 7"}}, "input", "input|err\n", tether.Exit{Code: 7}},
		{"killed", tether.ExecSpec{Args: []string{"sh", "-c", "kill -9 $$"}}, "", "|", tether.Exit{Code: 137, Signal: "SIGKILL"}},
		{"missing", tether.ExecSpec{Args: []string{"frobnicate"}}, "", "|", tether.Exit{Code: 127, Error: `exec: "frobnicate": executable file not found in $PATH`}},
		{"not executable", tether.ExecSpec{Args: []string{"/etc/data"}}, "", "|", tether.Exit{Code: 126, Error: `exec: "/etc/data": permission denied`}},
		{"no such directory", tether.ExecSpec{Args: []string{"true"}, Dir: "/none"}, "", "|", tether.Exit{Code: 126, Error: `exec.dir: stat /none: no such file or directory`}},
		{"no such user", tether.ExecSpec{Args: []string{"true"}, User: "none"}, "", "|", tether.Exit{Code: 126, Error: `process.user: the container's /etc/passwd has no user "none"`}},
		{"the main process's user and environment", tether.ExecSpec{Args: []string{"sh", "-c", "id -un; id -G; pwd; echo $A $B $HOME $HOSTNAME"}, Env: []string{"B=exec"}}, "", "app\n1001 1002 4711\n/\nmain exec /home/app test\n|", tether.Exit{}},
		{"another user and directory", tether.ExecSpec{Args: []string{"sh", "-c", "id -u; id -G; pwd; echo $HOME"}, User: "0", Dir: "/etc"}, "", "0\n0 1002 4711\n/etc\n/root\n|", tether.Exit{}},
		{"limits", tether.ExecSpec{Args: []string{"sh", "-c", "ulimit -n; ulimit -Hn; ulimit -l; cat /proc/self/oom_score_adj /proc/sys/net/core/somaxconn; dnsdomainname"}}, "", "123\n456\nunlimited\n321\n777\nexample.org\n|", tether.Exit{}},
		{"capabilities of root", tether.ExecSpec{Args: []string{"sh", "-c", status}, User: "root"}, "", "CapEff:\t0000000000000020\nCapBnd:\t0000000000000020\nNoNewPrivs:\t1\n|", tether.Exit{}},
		{"privileged", tether.ExecSpec{Args: []string{"sh", "-c", status}, User: "root", Privileged: true}, "", "CapEff:\t000001ffffffffff\nCapBnd:\t000001ffffffffff\nNoNewPrivs:\t1\n|", tether.Exit{}},
		{"terminal", tether.ExecSpec{Args: []string{"sh", "-c", "tty; stty size; echo $TERM; echo err >&2"}, TTY: true, Rows: 33, Columns: 101}, "", "/dev/pts/0\r\n33 101\r\nxterm\r\nerr\r\n|", tether.Exit{}},
	} {
		exit, stdout, stderr, err := exec1(ctx, c, tt.e, strings.NewReader(tt.stdin))
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		if d := cmp.Diff([]any{tt.want, tt.exit}, []any{stdout + "|" + stderr, exit}); d != "" {
			t.Errorf("%s: %s", tt.name, d)
		}
	}

	// Many at once.
	var wg sync.WaitGroup
	for i := range 15 {
		wg.Go(func() {
			exit, stdout, _, err := exec1(ctx, c, tether.ExecSpec{Args: []string{"sh", "-c", fmt.Sprintf("echo %d; exit %d", i, i)}}, nil)
			if err != nil || exit.Code != i || stdout != fmt.Sprintln(i) {
				t.Errorf("exec %d: %+v, %q, %v", i, exit, stdout, err)
			}
		})
	}
	wg.Wait()

	// One goes on without its controller, and is known after its end.
	other := g.dialKey(ctx, s.HostKey)
	id := tether.NewExecID()
	i, err := other.ExecDetached(ctx, tether.ExecSpec{ID: id, Args: []string{"sh", "-c", "while [ ! -e /dev/shm/go ]; do sleep 0.05; done; exit 5"}})
	if err != nil || i.State != tether.ExecRunning || i.PID < 2 {
		t.Fatalf("detached: %+v, %v", i, err)
	}
	_ = other.Close()
	if _, err := c.ExecDetached(ctx, tether.ExecSpec{ID: id, Args: []string{"true"}}); !errors.Is(err, tether.ErrInvalid) {
		t.Errorf("the same ID again: %v", err)
	}
	if _, _, _, err := exec1(ctx, c, tether.ExecSpec{Args: []string{"touch", "/dev/shm/go"}}, nil); err != nil {
		t.Fatal(err)
	}
	for {
		if i, err = c.InspectExec(ctx, id); err != nil {
			t.Fatal(err)
		}
		if i.State == tether.ExecEnded {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if i.Exit.Code != 5 || i.PID != 0 || i.Finished.IsZero() || i.Args[0] != "sh" {
		t.Errorf("after its end: %+v", i)
	}

	// An exec ends with the container.
	up, said := io.Pipe()
	last, err := c.Exec(ctx, tether.ExecSpec{Args: []string{"sh", "-c", "echo; exec sleep 1000"}}, tether.Streams{Stdout: said})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := up.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	_ = stdin.Close()
	exit, err := a.Wait()
	if err != nil || exit.Code != 0 || out.String() != "123\nunlimited\n1001 1002 4711\n" {
		t.Errorf("main process: %+v, %v, %q", exit, err, out.String())
	}
	if exit, err := last.Wait(); err != nil || exit.Code != 137 {
		t.Errorf("the last exec: %+v, %v", exit, err)
	}
	g.off()
}
