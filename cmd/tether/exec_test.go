//go:build linux && amd64

package main_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
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
	ctx, cancel := context.WithTimeout(context.Background(), 3*bootTime)
	defer cancel()
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

	testPause(ctx, t, g, c)
	testMonitor(ctx, t, c)
	testFiles(ctx, t, c)

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

// testPause freezes the container: nothing in it goes on, the guest answers, and no
// exec begins.
func testPause(ctx context.Context, t *testing.T, g *guest, c *tether.Client) {
	t.Helper()
	r, w := io.Pipe()
	counting, err := c.Exec(ctx, tether.ExecSpec{Args: []string{"sh", "-c", "while :; do echo; sleep 0.01; done"}}, tether.Streams{Stdout: w})
	if err != nil {
		t.Fatal(err)
	}
	ticks := make(chan struct{})
	go func() {
		defer close(ticks)
		b := make([]byte, 1)
		for {
			if _, err := r.Read(b); err != nil {
				return
			}
			ticks <- struct{}{}
		}
	}()
	<-ticks
	for range 2 { // Pausing a paused one is nothing.
		if err := c.Pause(ctx); err != nil {
			t.Fatal(err)
		}
	}
	g.status(func(s tether.Status) bool { return s.Paused && s.State == tether.Running })
	quiet := 0
	for deadline := time.After(bootTime); quiet < 3; {
		select {
		case <-ticks: // what was under way
			quiet = 0
		case <-time.After(200 * time.Millisecond):
			quiet++
		case <-deadline:
			t.Fatal("a paused container goes on writing")
		}
	}
	if _, _, _, err := exec1(ctx, c, tether.ExecSpec{Args: []string{"true"}}, nil); !errors.Is(err, tether.ErrPaused) {
		t.Errorf("exec while paused: %v", err)
	}
	if _, err := c.ExecDetached(ctx, tether.ExecSpec{Args: []string{"true"}}); !errors.Is(err, tether.ErrPaused) {
		t.Errorf("detached exec while paused: %v", err)
	}
	for range 2 {
		if err := c.Unpause(ctx); err != nil {
			t.Fatal(err)
		}
	}
	<-ticks
	g.status(func(s tether.Status) bool { return !s.Paused })
	// A signal lets a paused container go on (WINCH does nothing to sh).
	if err := c.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	if err := c.Signal(ctx, "SIGWINCH"); err != nil {
		t.Fatal(err)
	}
	go func() {
		for range ticks {
		}
	}()
	defer r.Close()
	if err := counting.Signal("KILL"); err != nil {
		t.Fatal(err)
	}
	if exit, err := counting.Wait(); err != nil || exit.Code != 137 {
		t.Errorf("killed: %+v, %v", exit, err)
	}
}

// testMonitor looks at the process list and the counters.
func testMonitor(ctx context.Context, t *testing.T, c *tether.Client) {
	t.Helper()
	before, err := c.Stats(ctx)
	if err != nil {
		t.Fatal(err)
	}
	r, w := io.Pipe()
	a, err := c.Exec(ctx, tether.ExecSpec{TTY: true, User: "0", Args: []string{"sh", "-c",
		"head -c 8000000 /dev/zero >/dev/shm/fill; head -c 300000 /dev/zero >/big; sync; i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo; exec sleep 1000"}}, tether.Streams{Stdout: w})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	all, err := c.Top(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, p := range all {
		if p.PID < 2 || p.CPU < 0 || time.Since(p.Started) < -2*time.Second || time.Since(p.Started) > time.Hour || p.State == "" {
			t.Errorf("process %+v", p)
		}
		got = append(got, fmt.Sprintf("%s %d %q %s", p.User, p.PPID, p.TTY, p.Command))
	}
	want := []string{`app 0 "" cat`, `root 0 "pts/0" sleep 1000`}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	s, err := c.Stats(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if s.CPU <= before.CPU || s.CPUUser <= before.CPUUser || s.CPUs != 1 || !s.Time.After(before.Time) || s.MemoryUsed < before.MemoryUsed+7000000 ||
		s.MemoryUsed >= s.MemoryLimit || s.MemoryLimit > 256<<20 || s.PIDs != 2 || s.BlockWritten < before.BlockWritten+300000 || s.BlockWriteOps <= before.BlockWriteOps ||
		s.BlockRead == 0 || s.Networks["eth0"].RxBytes <= before.Networks["eth0"].RxBytes || s.Networks["eth0"].TxPackets <= before.Networks["eth0"].TxPackets {
		t.Errorf("before %+v, then %+v", before, s)
	}
	_ = r.Close()
	_ = a.Signal("KILL")
	if _, err := a.Wait(); !errors.Is(err, io.ErrClosedPipe) {
		t.Error(err)
	}
}

// testFiles takes files out and puts files in.
func testFiles(ctx context.Context, t *testing.T, c *tether.Client) {
	t.Helper()
	sh := func(script string) string {
		exit, out, errs, err := exec1(ctx, c, tether.ExecSpec{Args: []string{"sh", "-c", script}, User: "0:0"}, nil)
		if err != nil || exit.Code != 0 {
			t.Fatalf("%s: %+v, %v, %s", script, exit, err, errs)
		}
		return out
	}
	sh(`mkdir -p /f/d/e /f/out; cd /f/d; echo one >a; ln a b; ln -s ../../etc/data l; ln -s /f/d /f/way; mkfifo p; chmod 4751 a; head -c 100000 /dev/zero >e/big; touch -d 2001-02-03 a`)
	i, err := c.LstatFile(ctx, "/f/d/a")
	if err != nil || i.Name != "a" || i.Mode.String() != "urwxr-x--x" || i.Size != 4 || i.Links != 2 || i.Modified.Year() != 2001 {
		t.Errorf("stat: %+v, %v", i, err)
	}
	if i, err := c.LstatFile(ctx, "f/way"); err != nil || i.Link != "/f/d" || i.Mode.Type() != fs.ModeSymlink {
		t.Errorf("stat of a symlink: %+v, %v", i, err)
	}
	if i, err := c.LstatFile(ctx, "/f/way/."); err != nil || !i.Mode.IsDir() {
		t.Errorf("stat of what it leads to: %+v, %v", i, err)
	}
	for path, want := range map[string]error{"/none": tether.ErrNotFound, "/f/d/a/.": tether.ErrInvalid} {
		if _, err := c.LstatFile(ctx, path); !errors.Is(err, want) {
			t.Errorf("stat %s: %v", path, err)
		}
	}

	// What comes out goes in again, and is the same.
	var b bytes.Buffer
	var told tether.FileInfo
	if err := c.TarOut(ctx, "/f/d", &b, func(i tether.FileInfo) error { told = i; return nil }); err != nil || told.Name != "d" {
		t.Fatalf("out: %+v, %v", told, err)
	}
	if err := c.TarIn(ctx, "/f/out", bytes.NewReader(b.Bytes()), tether.TarInOptions{}); err != nil {
		t.Fatal(err)
	}
	list := `cd %s; find . | sort | while read f; do stat -c '%%n %%F %%a %%u %%g %%h %%Y %%N' $f; done; cat a; wc -c <e/big`
	if d := cmp.Diff(sh(fmt.Sprintf(list, "/f/d")), sh(fmt.Sprintf(list, "/f/out/d"))); d != "" {
		t.Error(d)
	}
	var names []string
	for tr := tar.NewReader(&b); ; {
		h, err := tr.Next()
		if err != nil {
			break
		}
		names = append(names, fmt.Sprintf("%c %s", h.Typeflag, h.Name))
	}
	slices.Sort(names)
	// Which of a and b is the file and which the link is the directory's order.
	if s := strings.Join(names, ","); s != "0 d/a,0 d/e/big,1 d/b,2 d/l,5 d/,5 d/e/,6 d/p" && s != "0 d/b,0 d/e/big,1 d/a,2 d/l,5 d/,5 d/e/,6 d/p" {
		t.Errorf("entries: %s", s)
	}
	// Of the root, only the points where the kernel's filesystems are mounted.
	b.Reset()
	if err := c.TarOut(ctx, "/", &b, nil); err != nil {
		t.Error(err)
	}
	names = nil
	for tr := tar.NewReader(&b); ; {
		h, err := tr.Next()
		if err != nil {
			break
		}
		if names = append(names, h.Name); strings.HasPrefix(h.Name, "proc/") && h.Name != "proc/" {
			t.Errorf("the whole tree has %s", h.Name)
		}
	}
	if !slices.Contains(names, "etc/passwd") || !slices.Contains(names, "proc/") || !slices.Contains(names, "./") {
		t.Errorf("the whole tree: %q", names)
	}
	if err := c.TarOut(ctx, "/none", &b, nil); !errors.Is(err, tether.ErrNotFound) {
		t.Errorf("out of nothing: %v", err)
	}

	one := func(h tar.Header) io.Reader {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		if h.Typeflag == tar.TypeReg {
			h.Size = 1
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Size == 1 {
			_, _ = w.Write([]byte("x"))
		}
		_ = w.Close()
		return &b
	}
	for name, tt := range map[string]struct {
		dir  string
		r    io.Reader
		want error
	}{
		"no such directory":      {"/none", one(tar.Header{Name: "a", Typeflag: tar.TypeReg}), tether.ErrNotFound},
		"no directory":           {"/etc/data", one(tar.Header{Name: "a", Typeflag: tar.TypeReg}), tether.ErrInvalid},
		"leads out":              {"/f", one(tar.Header{Name: "x/../../a", Typeflag: tar.TypeReg}), tether.ErrInvalid},
		"link leads out":         {"/f", one(tar.Header{Name: "a", Linkname: "../etc/data", Typeflag: tar.TypeLink}), tether.ErrInvalid},
		"file over directory":    {"/f", one(tar.Header{Name: "d", Typeflag: tar.TypeReg}), tether.ErrConflict},
		"directory over symlink": {"/f", one(tar.Header{Name: "way", Typeflag: tar.TypeDir}), tether.ErrConflict},
		"no tar":                 {"/f", strings.NewReader(strings.Repeat("no tar", 1000)), tether.ErrInvalid},
		"endless and no tar":     {"/f", io.LimitReader(zeroes('x'), 1<<30), tether.ErrInvalid},
	} {
		if err := c.TarIn(ctx, tt.dir, tt.r, tether.TarInOptions{KeepTypes: true}); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A symlink in the way of a file is replaced, not followed; one in the way to
	// it is followed inside the container.
	sh("ln -s /etc/data /f/trap; ln -s /../../f/out /f/inside")
	for _, name := range []string{"trap", "inside/made/file"} {
		if err := c.TarIn(ctx, "/f", one(tar.Header{Name: name, Typeflag: tar.TypeReg, Uid: 7, Gid: 8, Mode: 0o640}), tether.TarInOptions{}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := sh("cat /etc/data; stat -c '%F %u %g %a' /f/trap /f/out/made/file"); got != "not a program\nregular file 7 8 640\nregular file 7 8 640\n" {
		t.Errorf("%s", got)
	}
	// A full disk: a copy does not take what is kept for the log.
	sh("i=0; for n in 4194304 65536 4096; do while fallocate -l $n /f/full$i 2>/dev/null; do i=$((i+1)); done; done")
	b.Reset()
	tw := tar.NewWriter(&b)
	_ = tw.WriteHeader(&tar.Header{Name: "big", Typeflag: tar.TypeReg, Size: 1 << 20})
	_, _ = tw.Write(make([]byte, 1<<20))
	_ = tw.Close()
	if err := c.TarIn(ctx, "/f", &b, tether.TarInOptions{}); !errors.Is(err, tether.ErrNoSpace) {
		t.Errorf("a full disk: %v", err)
	}
	sh("rm -r /f")
}

type zeroes byte

func (z zeroes) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(z)
	}
	return len(p), nil
}
