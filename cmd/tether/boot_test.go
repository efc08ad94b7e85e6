//go:build linux && amd64

package main_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vicsdk/vic-go/bootiso/kernel"
	"github.com/vicsdk/vic-go/vic/tether"
)

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), bootTime)
	t.Cleanup(cancel)
	return ctx
}

// result attaches, with all output since the start, and waits for the end.
func (g *guest) result(ctx context.Context, stdin io.Reader) (exit tether.Exit, stdout, stderr string) {
	g.t.Helper()
	var out, errs bytes.Buffer
	a, err := g.dial(ctx).Attach(ctx, tether.AttachOptions{
		Streams: tether.Streams{Stdin: stdin, Stdout: &out, Stderr: &errs}, Replay: true,
	})
	if err != nil {
		g.t.Fatal(err)
	}
	exit, err = a.Wait()
	if err != nil {
		g.t.Fatal(err)
	}
	return exit, out.String(), errs.String()
}

func TestBootOutputAndExit(t *testing.T) {
	g := boot(t, bootOptions{}, "sh", "-c", "echo hello; echo oops >&2; exit 7")
	ctx := testContext(t)
	exit, stdout, stderr := g.result(ctx, nil)
	if diff := cmp.Diff([]any{tether.Exit{Code: 7}, "hello\n", "oops\n"}, []any{exit, stdout, stderr}); diff != "" {
		t.Error(diff)
	}
	g.off()
	var got []string
	l := tether.NewLogReader(strings.NewReader(g.read(tether.LogPath)))
	for {
		e, err := l.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		// The clock that the guest starts with counts whole seconds, and the
		// kernel takes it that half of one has passed.
		if d := time.Since(e.Time); d < -time.Second || d > time.Hour {
			t.Errorf("time %v is %v ago, not of now", e.Time, d)
		}
		got = append(got, e.Stream.String()+" "+string(e.Data))
	}
	slices.Sort(got) // two pipes: which is read first is chance
	if diff := cmp.Diff([]string{"stderr oops\n", "stdout hello\n"}, got); diff != "" {
		t.Error(diff)
	}
	var s tether.Status
	if err := json.Unmarshal([]byte(g.read(tether.StatusPath)), &s); err != nil {
		t.Fatal(err)
	}
	if s.State != tether.Exited || s.ExitCode != 7 || s.Finished.Before(s.Started) || s.Started.IsZero() {
		t.Errorf("status on disk: %+v", s)
	}
}

func TestBootTimeline(t *testing.T) {
	g := boot(t, bootOptions{config: func(c *tether.Config) { c.Process.OpenStdin = true }}, "sh", "-c", "free; cat")
	ctx := testContext(t)
	s := g.status(func(s tether.Status) bool { return s.State == tether.Running })
	t.Logf("fork of QEMU to a published start: %v", time.Since(g.born).Round(time.Millisecond))
	start := time.Now()
	c := g.dialKey(ctx, s.HostKey)
	t.Logf("dial and handshake: %v", time.Since(start).Round(100*time.Microsecond))
	for range 3 {
		start = time.Now()
		_ = g.dialKey(ctx, s.HostKey).Close()
		t.Logf("dial and handshake again: %v", time.Since(start).Round(100*time.Microsecond))
	}
	var pings []time.Duration
	for range 5 {
		d, err := c.Ping(ctx)
		if err != nil {
			t.Fatal(err)
		}
		pings = append(pings, d.Round(10*time.Microsecond))
	}
	t.Logf("pings: %v", pings)
	stages, err := c.Timeline(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, st := range stages {
		t.Logf("%8.1f ms %s", float64(st.At)/1e6, st.Name)
	}
	if len(stages) < 7 {
		t.Errorf("%d stages", len(stages))
	}
	var out bytes.Buffer
	start = time.Now()
	a, err := c.Attach(ctx, tether.AttachOptions{Streams: tether.Streams{Stdout: &out, Stdin: strings.NewReader("")}, Replay: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("attach: %v", time.Since(start).Round(100*time.Microsecond))
	exit, err := a.Wait()
	if err != nil || exit.Code != 0 {
		t.Fatalf("%+v, %v", exit, err)
	}
	t.Logf("end of input to exit: %v\n%s", time.Since(start).Round(100*time.Microsecond), out.String())
	if !strings.Contains(out.String(), "Mem:") {
		t.Errorf("output %q", out.String())
	}
	g.off()
}

func stdin(c *tether.Config) { c.Process.OpenStdin, c.Process.StdinOnce = true, true }

func TestBootStdin(t *testing.T) {
	g := boot(t, bootOptions{config: stdin}, "sh", "-c", "cat; echo; id; pwd; cat /proc/1/comm; ls -d /proc/[0-9]* | wc -l")
	in := strings.Repeat("0123456789abcde\n", 1<<16) // 1 MiB, more than any pipe or window holds
	exit, stdout, _ := g.result(testContext(t), strings.NewReader(in))
	got, ok := strings.CutPrefix(stdout, in)
	if !ok || exit.Code != 0 {
		t.Fatalf("exit %+v with %d bytes of output", exit, len(stdout))
	}
	lines := strings.Split(strings.TrimSpace(got), "\n")
	if len(lines) != 4 || !strings.HasPrefix(lines[0], "uid=0(root)") || lines[1] != "/" || lines[2] == "tether" {
		t.Errorf("in the container: %q", lines)
	}
	g.off()
}

func TestBootTTY(t *testing.T) {
	g := boot(t, bootOptions{config: func(c *tether.Config) {
		c.Process.OpenStdin, c.Process.TTY, c.Process.Rows, c.Process.Columns = true, true, 30, 100
	}}, "sh", "-c", "tty; stty size; trap 'stty size; echo interrupted; exit 5' INT; while :; do sleep 0.05; done")
	ctx := testContext(t)
	c := g.dial(ctx)
	r, w := io.Pipe()
	in, keys := io.Pipe()
	defer keys.Close()
	a, err := c.Attach(ctx, tether.AttachOptions{Streams: tether.Streams{Stdin: in, Stdout: w}, Replay: true})
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		<-a.Done()
		_ = w.Close()
	}()
	var seen strings.Builder
	b := make([]byte, 1024)
	for !strings.Contains(seen.String(), "30 100\r\n") {
		n, err := r.Read(b)
		if err != nil {
			t.Fatalf("after %q: %v", seen.String(), err)
		}
		seen.Write(b[:n])
	}
	if err := c.Resize(ctx, 50, 132); err != nil {
		t.Fatal(err)
	}
	if _, err := keys.Write([]byte{3}); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	seen.Write(rest)
	exit, err := a.Wait()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(tether.Exit{Code: 5}, exit); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff("/dev/pts/0\r\n30 100\r\n^C50 132\r\ninterrupted\r\n", seen.String()); diff != "" {
		t.Error(diff)
	}
	g.off()
}

func TestBootKilled(t *testing.T) {
	for _, tt := range []struct {
		name string
		args []string
		kill string
	}{
		{"by itself", []string{"sh", "-c", "kill -9 $$"}, ""},
		{"by a controller", []string{"sleep", "1000"}, "kill"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := boot(t, bootOptions{}, tt.args...)
			ctx := testContext(t)
			if tt.kill != "" {
				s := g.status(func(s tether.Status) bool { return s.State == tether.Running })
				if err := g.dialKey(ctx, s.HostKey).Signal(ctx, tt.kill); err != nil {
					t.Fatal(err)
				}
			}
			exit, _, _ := g.result(ctx, nil)
			if diff := cmp.Diff(tether.Exit{Code: 137, Signal: "SIGKILL"}, exit); diff != "" {
				t.Error(diff)
			}
			g.off()
		})
	}
}

func TestBootCannotStart(t *testing.T) {
	for _, tt := range []struct {
		name   string
		config func(*tether.Config)
		args   []string
		want   tether.Exit
	}{
		{"missing", nil, []string{"frobnicate", "-x"},
			tether.Exit{Code: 127, Error: `exec: "frobnicate": executable file not found in $PATH`}},
		{"missing path", nil, []string{"/no/such"}, tether.Exit{Code: 127, Error: `exec: "/no/such": no such file or directory`}},
		{"not executable", nil, []string{"/etc/data"}, tether.Exit{Code: 126, Error: `exec: "/etc/data": permission denied`}},
		{"no such user", func(c *tether.Config) { c.Process.User = "nobody-here" }, []string{"true"},
			tether.Exit{Code: 125, Error: `process.user: the container's /etc/passwd has no user "nobody-here"`}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := boot(t, bootOptions{config: tt.config}, tt.args...)
			exit, _, _ := g.result(testContext(t), nil)
			if diff := cmp.Diff(tt.want, exit); diff != "" {
				t.Error(diff)
			}
			s := g.status(ended)
			if s.State != tether.Failed || s.ExitCode != tt.want.Code || s.Error != tt.want.Error {
				t.Errorf("status %+v", s)
			}
			g.off()
		})
	}
}

func TestBootBadConfig(t *testing.T) {
	g := boot(t, bootOptions{config: func(c *tether.Config) { c.Process.Dir = "relative" }}, "true")
	s := g.status(ended)
	if s.State != tether.Failed || s.ExitCode != 125 || !strings.Contains(s.Error, `process.dir: "relative" is not absolute`) {
		t.Errorf("status %+v", s)
	}
	<-g.exited
}

func TestBootBadAuthority(t *testing.T) {
	g := boot(t, bootOptions{config: func(c *tether.Config) { c.Authority = "nonsense" }}, "true")
	s := g.status(ended)
	if s.State != tether.Failed || !strings.Contains(s.Error, "authority") {
		t.Errorf("status %+v", s)
	}
	<-g.exited
}

func TestBootStop(t *testing.T) {
	trap := "trap 'echo stopping; exit 3' USR1; echo ready; while :; do sleep 0.05; done"
	deaf := "trap '' TERM; echo ready; while :; do sleep 0.05; done"
	for _, tt := range []struct {
		name   string
		script string
		signal string
		stop   func(g *guest, ctx context.Context, c *tether.Client) (tether.Exit, error)
		want   tether.Exit
		out    string
	}{
		{"with its signal", trap, "SIGUSR1", func(_ *guest, ctx context.Context, c *tether.Client) (tether.Exit, error) {
			return c.Stop(ctx, "", 30*time.Second)
		}, tether.Exit{Code: 3}, "ready\nstopping\n"},
		{"killed after grace", deaf, "", func(_ *guest, ctx context.Context, c *tether.Client) (tether.Exit, error) {
			return c.Stop(ctx, "", 300*time.Millisecond)
		}, tether.Exit{Code: 137, Signal: "SIGKILL"}, "ready\n"},
		{"by the power button", trap, "SIGUSR1", func(g *guest, ctx context.Context, c *tether.Client) (tether.Exit, error) {
			// The button's driver is loaded while the process runs already.
			for {
				g.monitor("system_powerdown")
				short, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
				exit, err := c.Wait(short)
				cancel()
				if err == nil || ctx.Err() != nil {
					return exit, err
				}
			}
		}, tether.Exit{Code: 3}, "ready\nstopping\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := boot(t, bootOptions{config: func(c *tether.Config) { c.Stop.Signal = tt.signal }}, "sh", "-c", tt.script)
			ctx := testContext(t)
			c := g.dial(ctx)
			var out bytes.Buffer
			a, err := c.Attach(ctx, tether.AttachOptions{Streams: tether.Streams{Stdout: &out}, Replay: true})
			if err != nil {
				t.Fatal(err)
			}
			l, err := c.Logs(ctx, tether.LogOptions{Follow: true})
			if err != nil {
				t.Fatal(err)
			}
			if e, err := l.Next(); err != nil || string(e.Data) != "ready\n" {
				t.Fatalf("log: %q, %v", e.Data, err)
			}
			_ = l.Close()
			exit, err := tt.stop(g, ctx, c)
			if err != nil {
				t.Fatal(err)
			}
			attached, err := a.Wait()
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]any{tt.want, tt.want, tt.out}, []any{exit, attached, out.String()}); diff != "" {
				t.Error(diff)
			}
			g.off()
		})
	}
}

// TestBootWorld looks at what a process finds around it.
func TestBootWorld(t *testing.T) {
	script := `set -e
id; echo home=$HOME; pwd; hostname
cat /etc/hostname; grep -c test /etc/hosts; grep -c nameserver /etc/resolv.conf
echo to-stdout > /dev/stdout
echo x > /dev/shm/x; echo x > /dev/null
grep -c . /proc/self/cgroup; cat /proc/self/cgroup
grep CapBnd /proc/self/status; grep CapEff /proc/self/status
ulimit -n
ls /dev | tr '\n' ' '; echo
ip -4 addr show eth0 | grep -o 'inet 10.0.2.15/24'
ip route | grep -o 'default via 10.0.2.2'
ls / | tr '\n' ' '; echo
ls /log 2>/dev/null || echo no log here
`
	g := boot(t, bootOptions{config: func(c *tether.Config) {
		c.Process.User, c.Process.Dir = "app", "/srv/new"
	}}, "sh", "-c", script)
	exit, stdout, stderr := g.result(testContext(t), nil)
	if exit.Code != 0 {
		t.Errorf("exit %+v, %s", exit, stderr)
	}
	want := `uid=1000(app) gid=1001(app) groups=1001(app),1002(extra)
home=/home/app
/srv/new
test
test
1
1
to-stdout
1
0::/container
CapBnd:	00000000a80425fb
CapEff:	0000000000000000
1048576
fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero 
inet 10.0.2.15/24
default via 10.0.2.2
bin dev etc proc srv sys 
no log here
`
	if diff := cmp.Diff(want, stdout); diff != "" {
		t.Error(diff)
	}
	g.mu.Lock()
	if ip := g.info["guestinfo.ip"]; ip != "10.0.2.15" {
		t.Errorf("guestinfo.ip is %q", ip)
	}
	g.mu.Unlock()
	g.off()
	if got := g.read("/rootfs/etc/passwd"); !strings.Contains(got, "app:x:1000") {
		t.Errorf("the image's /etc/passwd: %q", got)
	}
}

// TestBootOrphans: nothing of the container outlives its main process, and
// orphans are reaped while it runs.
func TestBootOrphans(t *testing.T) {
	g := boot(t, bootOptions{}, "sh", "-c",
		"for i in 1 2 3 4 5; do (sleep 0.1 &); done; (sleep 1000 &); (sleep 1000; echo never) & sleep 0.5; ps -o stat,args | grep -c '^Z'; exit 9")
	exit, stdout, _ := g.result(testContext(t), nil)
	if diff := cmp.Diff([]any{tether.Exit{Code: 9}, "0\n"}, []any{exit, stdout}); diff != "" {
		t.Error(diff)
	}
	g.off()
}

func TestBootOutOfMemory(t *testing.T) {
	g := boot(t, bootOptions{ram: "128M"}, "tail", "/dev/zero")
	exit, _, _ := g.result(testContext(t), nil)
	if diff := cmp.Diff(tether.Exit{Code: 137, Signal: "SIGKILL", OOMKilled: true}, exit); diff != "" {
		t.Error(diff)
	}
	g.off()
}

// TestBootChildOutOfMemory: a child that the kernel kills is told of while the
// main process lives on.
func TestBootChildOutOfMemory(t *testing.T) {
	g := boot(t, bootOptions{ram: "128M", config: stdin}, "sh", "-c", "tail /dev/zero; echo $?; read x")
	ctx := testContext(t)
	s := g.status(func(s tether.Status) bool { return s.OOMKills > 0 })
	if s.State != tether.Running || s.OOMKills != 1 || s.OOMKilled {
		t.Errorf("%+v", s)
	}
	exit, stdout, _ := g.result(ctx, strings.NewReader("\n"))
	if diff := cmp.Diff([]any{tether.Exit{OOMKilled: true}, "137\n"}, []any{exit, stdout}); diff != "" {
		t.Error(diff)
	}
	if s := g.status(ended); s.OOMKills != 1 || !s.OOMKilled {
		t.Errorf("%+v", s)
	}
	g.off()
}

// TestBootAgain starts a container a second time on its disk: the log goes on
// and an attachment brings this start's output only.
func TestBootAgain(t *testing.T) {
	script := "echo start; cat /seen 2>/dev/null; echo was here > /seen"
	g := boot(t, bootOptions{}, "sh", "-c", script)
	if _, stdout, _ := g.result(testContext(t), nil); stdout != "start\n" {
		t.Errorf("first output %q", stdout)
	}
	g.off()
	g = boot(t, bootOptions{disk: g.disk}, "sh", "-c", script)
	if _, stdout, _ := g.result(testContext(t), nil); stdout != "start\nwas here\n" {
		t.Errorf("second output %q", stdout)
	}
	g.off()
	log := g.read(tether.LogPath)
	if n := strings.Count(log, "\n"); n != 3 {
		t.Errorf("%d lines in the log:\n%s", n, log)
	}
}

// TestBootCD starts from the image as a BIOS does.
func TestBootCD(t *testing.T) {
	g := boot(t, bootOptions{cd: true}, "echo", "from CD")
	if exit, stdout, _ := g.result(testContext(t), nil); exit.Code != 0 || stdout != "from CD\n" {
		t.Errorf("exit %+v, output %q", exit, stdout)
	}
	g.off()
}

// TestBootDebian starts Debian's kernel, whose modules the tether loads.
func TestBootDebian(t *testing.T) {
	g := boot(t, bootOptions{debian: true}, "uname", "-r")
	if exit, stdout, _ := g.result(testContext(t), nil); exit.Code != 0 || stdout == kernel.Version+"\n" {
		t.Errorf("exit %+v, output %q", exit, stdout)
	}
	g.off()
}

// TestBootNobodyComes: without an attacher the guest ends by itself, and its
// status and disk tell everything.
func TestBootNobodyComes(t *testing.T) {
	g := boot(t, bootOptions{config: func(c *tether.Config) { c.AwaitAttach = 0 }}, "sh", "-c", "printf 'no newline'; exit 4")
	if s := g.status(ended); s.ExitCode != 4 || s.State != tether.Exited {
		t.Errorf("status %+v", s)
	}
	g.off()
	if log := g.read(tether.LogPath); !strings.Contains(log, `{"log":"no newline","stream":"stdout"`) {
		t.Errorf("log %q", log)
	}
}
