package tether_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vicsdk/vic-go/vic/tether"
)

// localExecutor runs processes of this machine.
type localExecutor struct {
	running sync.WaitGroup
	taken   atomic.Int64 // bytes that were handed to attachers
}

type localExec struct {
	localProcess
	done chan tether.Exit
}

func (p *localExec) PID() int          { return p.cmd.Process.Pid }
func (p *localExec) Wait() tether.Exit { return <-p.done }

type notStarted int

func (n notStarted) Error() string { return fmt.Sprintf("no start for reason %d", int(n)) }
func (n notStarted) ExitCode() int { return int(n) }

func (x *localExecutor) StartExec(e tether.ExecSpec, openStdin bool, stdout, stderr io.Writer) (tether.ExecProcess, error) {
	var code int
	if n, _ := fmt.Sscanf(e.Args[0], "fail %d", &code); n == 1 {
		return nil, notStarted(code)
	}
	cmd := exec.Command(e.Args[0], e.Args[1:]...)
	cmd.Stdout, cmd.Stderr = counted{stdout, &x.taken}, counted{stderr, &x.taken}
	p := &localExec{localProcess{cmd: cmd}, make(chan tether.Exit, 1)}
	if openStdin {
		var err error
		if p.stdin, err = cmd.StdinPipe(); err != nil {
			return nil, err
		}
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	x.running.Go(func() {
		_ = cmd.Wait()
		ws := cmd.ProcessState.Sys().(syscall.WaitStatus)
		exit := tether.Exit{Code: ws.ExitStatus()}
		if ws.Signaled() {
			exit = tether.Exit{Code: 128 + int(ws.Signal()), Signal: tether.SignalName(int(ws.Signal()))}
		}
		p.done <- exit
	})
	return p, nil
}

type counted struct {
	io.Writer
	n *atomic.Int64
}

func (c counted) Write(p []byte) (int, error) {
	n, err := c.Writer.Write(p)
	c.n.Add(int64(n))
	return n, err
}

// newExecGuest is a guest whose main process waits for the test's end.
func newExecGuest(t *testing.T) (*guest, *localExecutor, *tether.Client) {
	t.Helper()
	x := new(localExecutor)
	g := newGuestWith(t, nil, func(c *tether.ServerConfig) { c.Executor = x })
	t.Cleanup(x.running.Wait)
	g.run("sleep 1000")
	return g, x, g.dial(testContext(t))
}

// A slow attacher slows the process down, and nothing piles up between them.
func TestExecBackPressure(t *testing.T) {
	_, x, c := newExecGuest(t)
	ctx := testContext(t)
	const total = 64 << 20
	r, w := io.Pipe()
	a, err := c.Exec(ctx, tether.ExecSpec{Args: []string{"head", "-c", fmt.Sprint(total), "/dev/zero"}}, tether.Streams{Stdout: w})
	if err != nil {
		t.Fatal(err)
	}
	for last := int64(-1); ; {
		now := x.taken.Load()
		if now > 0 && now == last {
			break
		}
		last = now
		time.Sleep(200 * time.Millisecond)
	}
	// An SSH window of 2 MiB (64 packets of 32 KiB), and what is in buffers.
	if n := x.taken.Load(); n > 4<<20 {
		t.Errorf("%d bytes were taken for an attacher that takes none", n)
	}
	go func() {
		<-a.Done()
		_ = w.Close()
	}()
	if n, err := io.Copy(io.Discard, r); err != nil || n != total {
		t.Errorf("%d bytes came, %v", n, err)
	}
	if exit, err := a.Wait(); err != nil || exit.Code != 0 {
		t.Errorf("%+v, %v", exit, err)
	}
}

// A process goes on when its attacher goes, with its input at its end and its
// output dropped, and holds up nobody.
func TestExecOutlivesItsAttacher(t *testing.T) {
	g, _, c := newExecGuest(t)
	ctx := testContext(t)
	id := tether.NewExecID()
	signer, err := tether.NewControllerSigner(g.authority, testID, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	other, err := g.dialAs(ctx, signer, g.authorizedKey())
	if err != nil {
		t.Fatal(err)
	}
	out := &screen{}
	in, keys := io.Pipe()
	defer keys.Close()
	if _, err := other.Exec(ctx, tether.ExecSpec{ID: id, Args: []string{"sh", "-c", "echo up; cat; head -c 10000000 /dev/zero; exit 6"}}, tether.Streams{Stdin: in, Stdout: out}); err != nil {
		t.Fatal(err)
	}
	for !strings.Contains(out.String(), "up") {
		time.Sleep(10 * time.Millisecond)
	}
	if i, err := c.InspectExec(ctx, id); err != nil || i.State != tether.ExecRunning || i.PID == 0 {
		t.Errorf("while it runs: %+v, %v", i, err)
	}
	_ = other.Close()
	var i tether.ExecInfo
	for i.State != tether.ExecEnded {
		if i, err = c.InspectExec(ctx, id); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	if i.Exit.Code != 6 || i.PID != 0 {
		t.Errorf("after its end: %+v", i)
	}
}

type screen struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func TestExecIsChecked(t *testing.T) {
	_, _, c := newExecGuest(t)
	ctx := testContext(t)
	for want, e := range map[string]tether.ExecSpec{
		"exec.args: empty":                        {},
		"exec.args[1]: holds a NUL":               {Args: []string{"a", "b\x00"}},
		"exec.env[0]:":                            {Args: []string{"a"}, Env: []string{"x"}},
		"exec.dir:":                               {Args: []string{"a"}, Dir: "x"},
		"exec.id: \"xyz\" has not 64 hexadecimal": {Args: []string{"a"}, ID: "xyz"},
		"bytes of parameters, more than":          {Args: []string{fill(70000)}},
	} {
		if _, err := c.Exec(ctx, e, tether.Streams{}); !errors.Is(err, tether.ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("exec: %v; want %s", err, want)
		}
		if _, err := c.ExecDetached(ctx, e); !errors.Is(err, tether.ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("detached: %v; want %s", err, want)
		}
		if _, err := c.CreateExec(ctx, e); !errors.Is(err, tether.ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("create: %v; want %s", err, want)
		}
	}
	for code, want := range map[int]int{125: 126, 126: 126, 127: 127} {
		i, err := c.ExecDetached(ctx, tether.ExecSpec{Args: []string{fmt.Sprintf("fail %d", code)}})
		if err != nil || i.State != tether.ExecEnded || i.Exit.Code != want || i.Exit.Error == "" {
			t.Errorf("a start that fails with %d: %+v, %v", code, i, err)
		}
	}
	if err := c.ResizeExec(ctx, tether.NewExecID(), 1, 1); !errors.Is(err, tether.ErrNotFound) {
		t.Errorf("resize of none: %v", err)
	}
}

// What was created is started once, by its ID.
func TestExecCreated(t *testing.T) {
	_, _, c := newExecGuest(t)
	ctx := testContext(t)
	i, err := c.CreateExec(ctx, tether.ExecSpec{Args: []string{"sh", "-c", "echo made; exit 3"}})
	if err != nil || i.State != tether.ExecCreated || len(i.ID) != 64 {
		t.Fatalf("%+v, %v", i, err)
	}
	var out bytes.Buffer
	a, err := c.Exec(ctx, tether.ExecSpec{ID: i.ID}, tether.Streams{Stdout: &out})
	if err != nil {
		t.Fatal(err)
	}
	if exit, err := a.Wait(); err != nil || exit.Code != 3 || out.String() != "made\n" {
		t.Errorf("%+v, %v, %q", exit, err, out.String())
	}
	if _, err := c.ExecDetached(ctx, tether.ExecSpec{ID: i.ID}); !errors.Is(err, tether.ErrInvalid) {
		t.Errorf("again: %v", err)
	}
	if _, err := c.ExecDetached(ctx, tether.ExecSpec{ID: tether.NewExecID()}); !errors.Is(err, tether.ErrNotFound) {
		t.Errorf("none: %v", err)
	}
}

// The list of what has ended is bounded, by number and by bytes.
func TestExecsAreForgotten(t *testing.T) {
	_, _, c := newExecGuest(t)
	ctx := testContext(t)
	last := ""
	for n := range 300 {
		i, err := c.ExecDetached(ctx, tether.ExecSpec{Args: []string{"fail 127"}})
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			last = i.ID
		}
	}
	ids, err := c.Execs(ctx)
	if err != nil || len(ids) < 200 || len(ids) > 257 {
		t.Errorf("%d execs, %v", len(ids), err)
	}
	if _, err := c.InspectExec(ctx, last); !errors.Is(err, tether.ErrNotFound) {
		t.Errorf("the first one: %v", err)
	}
	for range 40 {
		if _, err := c.CreateExec(ctx, tether.ExecSpec{Args: []string{"x", fill(60000)}}); err != nil {
			t.Fatal(err)
		}
	}
	if ids, err := c.Execs(ctx); err != nil || len(ids) > 19 {
		t.Errorf("%d execs with 60000 bytes each, %v", len(ids), err)
	}
}

// A guest that runs no container says so, and one that cannot do something too.
func TestExecRefused(t *testing.T) {
	g := newGuest(t, nil)
	ctx := testContext(t)
	c := g.dial(ctx)
	refused := func(want error) {
		t.Helper()
		for name, f := range map[string]func() error{
			"exec": func() error {
				a, err := c.Exec(ctx, tether.ExecSpec{Args: []string{"x"}}, tether.Streams{})
				if err == nil {
					_, err = a.Wait()
				}
				return err
			},
			"detached": func() error { _, err := c.ExecDetached(ctx, tether.ExecSpec{Args: []string{"x"}}); return err },
			"top":      func() error { _, err := c.Top(ctx); return err },
			"stats":    func() error { _, err := c.Stats(ctx); return err },
			"pause":    func() error { return c.Pause(ctx) },
			"stat":     func() error { _, err := c.LstatFile(ctx, "/"); return err },
			"out":      func() error { return c.TarOut(ctx, "/", io.Discard, nil) },
			"in":       func() error { return c.TarIn(ctx, "/", strings.NewReader("x"), tether.TarInOptions{}) },
		} {
			if err := f(); !errors.Is(err, want) {
				t.Errorf("%s: %v; want %v", name, err, want)
			}
		}
	}
	refused(tether.ErrNotRunning)
	g.run("sleep 1000")
	refused(tether.ErrUnsupported)
}
