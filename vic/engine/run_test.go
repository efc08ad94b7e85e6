package engine_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vicsdk/vic-go/internal/testlab"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/containervm"
	"github.com/vicsdk/vic-go/vic/engine"
	"github.com/vicsdk/vic-go/vic/tether"
)

// result of a run to its end.
type result struct {
	out, err string
	exit     tether.Exit
}

// do runs a container, deletes it, and returns what it did.
func do(t *testing.T, e *testlab.Env, image string, stdin io.Reader, spec containervm.Spec) result {
	t.Helper()
	var out, errOut bytes.Buffer
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	spec.OpenStdin = stdin != nil
	spec.StdinOnce = stdin != nil
	_, exit, err := e.Engine.Run(ctx, engine.RunSpec{
		Image: image, Container: spec, Remove: true,
		Streams: tether.Streams{Stdin: stdin, Stdout: &out, Stderr: &errOut},
	})
	if err != nil {
		t.Fatalf("run: %v\nstdout: %s\nstderr: %s", err, &out, &errOut)
	}
	return result{out.String(), errOut.String(), exit}
}

func sh(script string) containervm.Spec {
	return containervm.Spec{Args: []string{"sh", "-c", script}}
}

func TestRun(t *testing.T) {
	t.Parallel()
	e := testlab.Start(t, testlab.Options{})
	image := e.Busybox(t)
	before := e.Files(t)
	big := strings.Repeat("0123456789abcde\n", 64<<10) // 1 MiB

	for _, c := range []struct {
		name  string
		spec  containervm.Spec
		stdin io.Reader
		want  func(t *testing.T, r result)
		soak  bool // others look at this, too, without a VM of its own
	}{
		{name: "own kernel, both streams, exit code", spec: sh("uname -r; echo oops >&2; exit 7"), want: func(t *testing.T, r result) {
			if r.exit.Code != 7 || r.err != "oops\n" || strings.TrimSpace(r.out) == "" || strings.TrimSpace(r.out) == hostKernel(t) {
				t.Errorf("got %+v", r)
			}
		}},
		{name: "standard input and its end", spec: containervm.Spec{Args: []string{"cat"}}, stdin: strings.NewReader("hello\n"), want: equal("hello\n", 0)},
		{name: "a megabyte there and back", spec: containervm.Spec{Args: []string{"cat"}}, stdin: strings.NewReader(big), want: equal(big, 0)},
		{soak: true, name: "no standard input is an end of file", spec: sh("cat; echo done"), want: equal("done\n", 0)},
		{name: "killed by SIGKILL", spec: sh("kill -9 $$"), want: equal("", 137)},
		{soak: true, name: "killed by SIGSEGV", spec: sh("kill -11 $$"), want: equal("", 139)},
		{name: "missing command", spec: containervm.Spec{Args: []string{"no-such-program", "x"}}, want: func(t *testing.T, r result) {
			if r.exit.Code != 127 || !strings.Contains(r.exit.Error, "no-such-program") {
				t.Errorf("got %+v", r)
			}
		}},
		{soak: true, name: "not executable", spec: containervm.Spec{Args: []string{"/etc/passwd"}}, want: func(t *testing.T, r result) {
			if r.exit.Code != 126 || !strings.Contains(r.exit.Error, "/etc/passwd") {
				t.Errorf("got %+v", r)
			}
		}},
		{soak: true, name: "environment, directory, user, host name",
			spec: containervm.Spec{Args: []string{"sh", "-c", "echo $A $B; pwd; id -u; id -g; hostname"}, Env: []string{"A=1", "B=2", "A=3"}, Dir: "/made/up", User: "12:34", Hostname: "box"},
			want: equal("3 2\n/made/up\n12\n34\nbox\n", 0)},
		{soak: true, name: "unknown user", spec: containervm.Spec{Args: []string{"true"}, User: "nobody-knows"}, want: func(t *testing.T, r result) {
			if r.exit.Code != 125 && r.exit.Code != 126 || !strings.Contains(r.exit.Error, "nobody-knows") {
				t.Errorf("got %+v", r)
			}
		}},
		{name: "output of children that outlive their parent", spec: sh("(sleep 1; echo late) & echo early"), want: func(t *testing.T, r result) {
			if !strings.HasPrefix(r.out, "early\n") || r.exit.Code != 0 {
				t.Errorf("got %+v", r)
			}
		}},
	} {
		if c.soak && os.Getenv("VIC_SOAK") == "" {
			continue
		}
		t.Run(c.name, func(t *testing.T) { c.want(t, do(t, e, image, c.stdin, c.spec)) })
	}
	after := e.Files(t)
	var layers []string
	for _, f := range after {
		if !strings.HasPrefix(f, "vic/images/") {
			layers = append(layers, f)
		}
	}
	if d := cmp.Diff(before, layers); d != "" {
		t.Errorf("containers that were removed left files (-before +after):\n%s", d)
	}
}

func equal(out string, code int) func(*testing.T, result) {
	return func(t *testing.T, r result) {
		t.Helper()
		if r.exit.Code != code || r.err != "" || r.exit.Error != "" {
			t.Errorf("got exit %+v, stderr %q; want code %d", r.exit, r.err, code)
		}
		if r.out != out {
			t.Errorf("stdout: got %d bytes %.200q, want %d bytes %.200q", len(r.out), r.out, len(out), out)
		}
	}
}

func hostKernel(t *testing.T) string {
	b, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// A terminal: window size at the start and after a change, Ctrl-C by the line
// discipline.
func TestRunTerminal(t *testing.T) {
	e := testlab.Start(t, testlab.Options{})
	image := e.Busybox(t)
	in, keys := io.Pipe()
	defer keys.Close()
	screen := &buffer{}
	var exit tether.Exit
	var err error
	done := make(chan struct{})
	attached := make(chan *containervm.Attachment, 1)
	go func() {
		defer close(done)
		_, exit, err = e.Engine.Run(t.Context(), engine.RunSpec{
			Image: image, Remove: true,
			Container: containervm.Spec{
				Args: []string{"sh", "-c", `stty size; tty; trap 'stty size' WINCH; trap 'echo interrupted; exit 42' INT; echo ready; while :; do sleep 1; done`},
				TTY:  true, OpenStdin: true, Rows: 33, Columns: 101,
			},
			Streams: tether.Streams{Stdin: in, Stdout: screen},
			Started: func(_ *containervm.VM, a *containervm.Attachment) { attached <- a },
		})
	}()
	wait := func(what string) {
		t.Helper()
		if !screen.wait(what, time.Minute) {
			t.Fatalf("%q did not appear; the screen shows %q", what, screen.String())
		}
	}
	wait("33 101\r\n")
	wait("/dev/pts/")
	wait("ready\r\n")
	if err := (<-attached).Resize(50, 132); err != nil {
		t.Fatal(err)
	}
	wait("50 132\r\n")
	if _, err := keys.Write([]byte{3}); err != nil {
		t.Fatal(err)
	}
	wait("interrupted\r\n")
	<-done
	if err != nil || exit.Code != 42 {
		t.Errorf("exit %+v, error %v", exit, err)
	}
}

// Stop lets a trap run and ends within the grace; a process that ignores the
// signal is killed after it.
func TestStop(t *testing.T) {
	e := testlab.Start(t, testlab.Options{})
	image := e.Busybox(t)
	ctx := t.Context()
	start := func(script string) *containervm.VM {
		vm, _, err := e.Engine.Run(ctx, engine.RunSpec{Image: image, Detach: true, Container: sh(script)})
		if err != nil {
			t.Fatal(err)
		}
		waitLog(t, vm, "ready")
		return vm
	}
	logs := func(vm *containervm.VM) string {
		var b strings.Builder
		if err := vm.Logs(ctx, tether.LogOptions{}, func(l tether.LogEntry) error { b.Write(l.Data); return nil }); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}

	polite := start(`trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.1; done`)
	if got := logs(polite); got != "ready\n" {
		t.Errorf("logs while running: %q", got)
	}
	grace := time.Minute
	if err := polite.Stop(ctx, &containervm.StopOptions{Grace: &grace}); err != nil {
		t.Fatal(err)
	}
	info, err := polite.Inspect(ctx)
	if err != nil || info.State != containervm.Exited || info.ExitCode != 3 || !info.Known {
		t.Errorf("after stop: %+v, %v", info, err)
	}
	if took := info.Finished.Sub(info.Started); took > grace {
		t.Errorf("the process lived %v", took)
	}
	if got := logs(polite); got != "ready\nbye\n" {
		t.Errorf("logs of the stopped container: %q", got)
	}
	if err := polite.Stop(ctx, nil); err != nil {
		t.Errorf("stop again: %v", err)
	}
	if err := polite.Delete(ctx, false); err != nil {
		t.Fatal(err)
	}
	if err := polite.Delete(ctx, false); err != nil {
		t.Errorf("delete again: %v", err)
	}

	deaf := start(`trap '' TERM; echo ready; while :; do sleep 0.1; done`)
	grace = time.Second
	if err := deaf.Stop(ctx, &containervm.StopOptions{Grace: &grace}); err != nil {
		t.Fatal(err)
	}
	if info, err := deaf.Inspect(ctx); err != nil || info.ExitCode != 137 {
		t.Errorf("after the kill: %+v, %v", info, err)
	}
	// A container that ran can run again.
	if err := deaf.Start(ctx); err != nil {
		t.Fatal(err)
	}
	waitLog(t, deaf, "ready\nready\n")
	if err := deaf.Start(ctx); !errors.Is(err, vic.ErrState) {
		t.Errorf("start while running: %v", err)
	}
	if err := deaf.Delete(ctx, false); !errors.Is(err, vic.ErrState) {
		t.Errorf("delete while running: %v", err)
	}
	if err := deaf.Delete(ctx, true); err != nil {
		t.Fatal(err)
	}
}

// waitLog waits until a container's log begins with text.
func waitLog(t *testing.T, vm *containervm.VM, text string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	got := ""
	for {
		got = ""
		err := vm.Logs(ctx, tether.LogOptions{Follow: true}, func(l tether.LogEntry) error {
			got += string(l.Data)
			if strings.HasPrefix(got, text) {
				return io.EOF
			}
			return nil
		})
		if strings.HasPrefix(got, text) {
			return
		}
		if err == nil {
			t.Fatalf("the log ended with %q", got)
		}
		if !errors.Is(err, vic.ErrUnavailable) {
			t.Fatal(err)
		}
		select {
		case <-ctx.Done():
			t.Fatalf("the log shows %q: %v", got, err)
		case <-time.After(50 * time.Millisecond): // the guest is not up yet
		}
	}
}

// Two containers of one image write the same file at once; neither sees the
// other's, and the image's disks stay as they are.
func TestContainersAreApart(t *testing.T) {
	e := testlab.Start(t, testlab.Options{})
	image := e.Busybox(t)
	ctx := t.Context()
	if _, err := e.Engine.Pull(ctx, image, nil); err != nil {
		t.Fatal(err)
	}
	before := sums(t, e)
	var wg sync.WaitGroup
	out := make([]result, 2)
	for i := range out {
		wg.Go(func() {
			out[i] = do(t, e, image, nil, sh(fmt.Sprintf("echo %d >/etc/mine; sync; sleep 2; cat /etc/mine; ls /etc", i)))
		})
	}
	wg.Wait()
	for i, r := range out {
		if want := fmt.Sprintf("%d\n", i); !strings.HasPrefix(r.out, want) || r.exit.Code != 0 {
			t.Errorf("container %d: %+v", i, r)
		}
	}
	if d := cmp.Diff(before, sums(t, e)); d != "" {
		t.Errorf("the image's disks changed:\n%s", d)
	}
}

// A controller that comes later finds the container, its outcome and its
// output by vSphere alone.
func TestOtherController(t *testing.T) {
	e := testlab.Start(t, testlab.Options{})
	image := e.Busybox(t)
	ctx := t.Context()
	vm, _, err := e.Engine.Run(ctx, engine.RunSpec{Image: image, Detach: true, Container: containervm.Spec{Name: "x", Args: []string{"sh", "-c", "echo one; exit 9"}}})
	if err != nil {
		t.Fatal(err)
	}
	other := e.Open(t, e.Connect(t), nil)
	again, _, err := other.Find(ctx, vm.ID()[:12])
	if err != nil {
		t.Fatal(err)
	}
	info, err := again.Wait(ctx)
	if err != nil || info.ExitCode != 9 || !info.Known || info.Name != "x" || info.Image != image {
		t.Errorf("got %+v, %v", info, err)
	}
	var b strings.Builder
	if err := again.Logs(ctx, tether.LogOptions{}, func(l tether.LogEntry) error { b.Write(l.Data); return nil }); err != nil || b.String() != "one\n" {
		t.Errorf("logs %q, %v", b.String(), err)
	}
	_, err = other.Create(ctx, engine.RunSpec{Image: image, Container: containervm.Spec{Name: "x"}})
	if !errors.Is(err, vic.ErrConflict) {
		t.Errorf("a second container of the name: %v", err)
	}
	same, err := other.Create(ctx, engine.RunSpec{Image: image, Container: containervm.Spec{Name: "x", ID: vm.ID()}})
	if err != nil || same.Ref() != vm.Ref() {
		t.Errorf("the same ID again: %v, %v", same, err)
	}
	if _, err := e.Engine.DeleteImage(ctx, image, nil); !errors.Is(err, vic.ErrInUse) {
		t.Errorf("delete the image in use: %v", err)
	}
	if err := engine.DeleteVCH(ctx, e.Client, "test", engine.DeleteOptions{}); !errors.Is(err, vic.ErrInUse) {
		t.Errorf("delete the VCH in use: %v", err)
	}
	if err := engine.DeleteVCH(ctx, e.Client, "test", engine.DeleteOptions{Force: true, Images: true}); err != nil {
		t.Fatal(err)
	}
	if left := e.Files(t); len(left) > 0 {
		t.Errorf("left on the datastore: %v", left)
	}
}

// buffer is a screen that can be waited on.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func (b *buffer) wait(s string, d time.Duration) bool {
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if strings.Contains(b.String(), s) {
			return true
		}
	}
	return false
}
