package tether_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vicsdk/vic-go/vic/tether"
	"golang.org/x/crypto/ssh"
)

func openStdin(c *tether.Config) { c.Process.OpenStdin = true }

func TestAttachTellsOutputAndExit(t *testing.T) {
	for _, tt := range []struct {
		name, script   string
		stdout, stderr string
		exit           tether.Exit
	}{
		{"success", "echo out", "out\n", "", tether.Exit{}},
		{"failure", "echo out; echo err >&2; exit 7", "out\n", "err\n", tether.Exit{Code: 7}},
		{"signal", "kill -9 $$", "", "", tether.Exit{Code: 137, Signal: "SIGKILL"}},
		{"no output", "exit 1", "", "", tether.Exit{Code: 1}},
		{"no newline", "printf abc", "abc", "", tether.Exit{}},
		{"not text", `printf '\377\376\000\n\200'`, "\xff\xfe\x00\n\x80", "", tether.Exit{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx := testContext(t)
			g := newGuest(t, nil)
			g.run(tt.script)
			e, stdout, stderr := result(t, ctx, g.dial(ctx), nil)
			if diff := cmp.Diff([]any{tt.exit, tt.stdout, tt.stderr}, []any{e, stdout, stderr}); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestAttachBeforeStartAndAfterExit(t *testing.T) {
	ctx := testContext(t)
	g := newGuest(t, nil)
	before := g.dial(ctx)
	var out bytes.Buffer
	a, err := before.Attach(ctx, tether.AttachOptions{Streams: tether.Streams{Stdout: &out}})
	if err != nil {
		t.Fatal(err)
	}
	if s, err := before.Status(ctx); err != nil || s.State != tether.Starting {
		t.Errorf("status %+v, %v", s, err)
	}
	if err := before.Signal(ctx, "TERM"); !errors.Is(err, tether.ErrNotRunning) {
		t.Errorf("signal before the start: %v", err)
	}
	g.run("echo one; exit 2")
	if e, err := a.Wait(); err != nil || e.Code != 2 || out.String() != "one\n" {
		t.Errorf("attached before: %+v, %v, %q", e, err, out.String())
	}
	e, stdout, _ := result(t, ctx, g.dial(ctx), nil)
	if e.Code != 2 || stdout != "one\n" {
		t.Errorf("attached after: %+v, %q", e, stdout)
	}
	if e, err := g.dial(ctx).Wait(ctx); err != nil || e.Code != 2 {
		t.Errorf("wait after: %+v, %v", e, err)
	}
	if err := before.Signal(ctx, "TERM"); !errors.Is(err, tether.ErrNotRunning) {
		t.Errorf("signal after the end: %v", err)
	}
	if s, err := before.Status(ctx); err != nil || s.State != tether.Exited || s.ExitCode != 2 {
		t.Errorf("status %+v, %v", s, err)
	}
}

func TestAttachNeverStarted(t *testing.T) {
	ctx := testContext(t)
	g := newGuest(t, nil)
	want := tether.Exit{Code: 127, Error: `exec: "frob": executable file not found in $PATH`}
	_ = g.output.Close()
	g.container.Finished(want, time.Now())
	if e, _, _ := result(t, ctx, g.dial(ctx), strings.NewReader("input")); e != want {
		t.Errorf("exit %+v", e)
	}
	if s := g.container.Status(); s.State != tether.Failed || s.Error != want.Error {
		t.Errorf("status %+v", s)
	}
}

func TestStdinHalfClose(t *testing.T) {
	ctx := testContext(t)
	g := newGuest(t, openStdin)
	g.run("cat; echo end")
	in := strings.Repeat("some input\n", 300<<10) // beyond every window and buffer
	e, stdout, _ := result(t, ctx, g.dial(ctx), strings.NewReader(in))
	if e.Code != 0 || stdout != in+"end\n" {
		t.Errorf("exit %+v with %d bytes, want %d", e, len(stdout), len(in)+4)
	}
}

func TestStdinIsTakenWhereTheProcessDoesNot(t *testing.T) {
	ctx := testContext(t)
	g := newGuest(t, openStdin)
	g.run("exec <&-; echo closed; sleep 0.2")
	e, stdout, _ := result(t, ctx, g.dial(ctx), strings.NewReader(fill(8<<20)))
	if e.Code != 0 || stdout != "closed\n" {
		t.Errorf("exit %+v, output %q", e, stdout)
	}
}

// A detached attacher leaves process and input alone; with StdinOnce its going
// is the end of the input.
func TestDetach(t *testing.T) {
	for _, once := range []bool{false, true} {
		t.Run(fmt.Sprintf("once=%v", once), func(t *testing.T) {
			ctx := testContext(t)
			g := newGuest(t, func(c *tether.Config) { c.Process.OpenStdin, c.Process.StdinOnce = true, once })
			g.run("while read x; do echo got $x; done; echo end")
			in, keys := io.Pipe()
			defer keys.Close()
			seen := newWaiter()
			a, err := g.dial(ctx).Attach(ctx, tether.AttachOptions{Streams: tether.Streams{Stdin: in, Stdout: seen}})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(keys, "one\n"); err != nil {
				t.Fatal(err)
			}
			seen.wait(t, "got one\n")
			if err := a.Detach(); err != nil {
				t.Fatal(err)
			}
			if _, err := a.Wait(); !errors.Is(err, tether.ErrDetached) {
				t.Errorf("Wait after Detach: %v", err)
			}
			var more io.Reader
			want := "got one\nend\n"
			if !once {
				more, want = strings.NewReader("two\n"), "got one\ngot two\nend\n"
			}
			e, stdout, _ := result(t, ctx, g.dial(ctx), more)
			if e.Code != 0 || stdout != want {
				t.Errorf("exit %+v, output %q", e, stdout)
			}
		})
	}
}

// waiter is a writer whose contents can be waited for.
type waiter struct {
	mu      sync.Mutex
	b       []byte
	changed chan struct{}
}

func newWaiter() *waiter { return &waiter{changed: make(chan struct{})} }

func (w *waiter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.b = append(w.b, p...)
	close(w.changed)
	w.changed = make(chan struct{})
	return len(p), nil
}

func (w *waiter) wait(t *testing.T, want string) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	for {
		w.mu.Lock()
		got, changed := string(w.b), w.changed
		w.mu.Unlock()
		if strings.Contains(got, want) {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("no %q in %q", want, got)
		}
	}
}

// Every attacher gets everything, whatever its speed; one that never reads
// holds up nobody.
func TestManyAttachers(t *testing.T) {
	ctx := testContext(t)
	g := newGuest(t, nil)
	stuck, release := io.Pipe()
	defer release.Close()
	_ = stuck
	never, err := g.dial(ctx).Attach(ctx, tether.AttachOptions{Streams: tether.Streams{Stdout: release}})
	if err != nil {
		t.Fatal(err)
	}
	sums := make([]*counter, 6)
	var wg sync.WaitGroup
	for i := range sums {
		sums[i] = &counter{slow: i == 1}
		c := g.dial(ctx)
		a, err := c.Attach(ctx, tether.AttachOptions{Streams: tether.Streams{Stdout: sums[i]}, Replay: i%2 == 0})
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			if e, err := a.Wait(); err != nil || e.Code != 0 {
				t.Errorf("attacher %d: %+v, %v", i, e, err)
			}
		})
	}
	const n = 6 << 20
	g.run(fmt.Sprintf("yes 'a line of output that fills some space' | head -c %d", n))
	wg.Wait()
	for i, s := range sums {
		if s.n != n || s.bad {
			t.Errorf("attacher %d got %d of %d bytes, wrong: %v", i, s.n, n, s.bad)
		}
	}
	// Its window is full and its reader asleep; it ends when told to.
	_ = release.CloseWithError(io.ErrClosedPipe)
	_ = stuck.CloseWithError(io.ErrClosedPipe)
	if _, err := never.Wait(); err == nil {
		t.Error("the stuck attacher's Wait tells no error")
	}
}

// counter checks the output of TestManyAttachers.
type counter struct {
	n    int
	bad  bool
	slow bool
}

func (c *counter) Write(p []byte) (int, error) {
	const line = "a line of output that fills some space\n"
	for i, b := range p {
		if b != line[(c.n+i)%len(line)] {
			c.bad = true
		}
	}
	c.n += len(p)
	if c.slow && c.n%(1<<20) < len(p) {
		time.Sleep(20 * time.Millisecond) // This one is slow by intent; nothing waits for it.
	}
	return len(p), nil
}

func TestStop(t *testing.T) {
	for _, tt := range []struct {
		name   string
		script string
		config func(*tether.Config)
		signal string
		grace  time.Duration
		want   tether.Exit
	}{
		{"default signal", "trap 'exit 3' TERM; echo ready; while :; do sleep 0.02; done", nil, "", time.Minute, tether.Exit{Code: 3}},
		{"configured signal", "trap 'exit 4' USR2; echo ready; while :; do sleep 0.02; done",
			func(c *tether.Config) { c.Stop.Signal = "SIGUSR2" }, "", time.Minute, tether.Exit{Code: 4}},
		{"given signal", "trap 'exit 5' USR1; echo ready; while :; do sleep 0.02; done", nil, "10", time.Minute, tether.Exit{Code: 5}},
		{"kill", "trap '' TERM; echo ready; while :; do sleep 0.02; done", nil, "", 0, tether.Exit{Code: 137, Signal: "SIGKILL"}},
		{"configured grace", "trap '' TERM; echo ready; while :; do sleep 0.02; done",
			func(c *tether.Config) { c.Stop.Grace = time.Millisecond }, "", -1, tether.Exit{Code: 137, Signal: "SIGKILL"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx := testContext(t)
			g := newGuest(t, tt.config)
			c := g.dial(ctx)
			seen := newWaiter()
			if _, err := c.Attach(ctx, tether.AttachOptions{Streams: tether.Streams{Stdout: seen}}); err != nil {
				t.Fatal(err)
			}
			g.run(tt.script)
			seen.wait(t, "ready\n")
			e, err := c.Stop(ctx, tt.signal, tt.grace)
			if err != nil || e != tt.want {
				t.Errorf("Stop: %+v, %v", e, err)
			}
			if e, err := c.Stop(ctx, "", 0); err != nil || e != tt.want {
				t.Errorf("Stop again: %+v, %v", e, err)
			}
		})
	}
}

// The kill of a stop happens though its caller went away.
func TestStopOutlivesCaller(t *testing.T) {
	ctx := testContext(t)
	g := newGuest(t, nil)
	c := g.dial(ctx)
	seen := newWaiter()
	if _, err := g.dial(ctx).Attach(ctx, tether.AttachOptions{Streams: tether.Streams{Stdout: seen}}); err != nil {
		t.Fatal(err)
	}
	g.run("trap 'echo asked' TERM; echo ready; while :; do sleep 0.02; done")
	seen.wait(t, "ready\n")
	short, cancel := context.WithCancel(ctx)
	stopped := make(chan error, 1)
	go func() {
		_, err := c.Stop(short, "", 500*time.Millisecond)
		stopped <- err
	}()
	seen.wait(t, "asked\n")
	cancel()
	if err := <-stopped; !errors.Is(err, context.Canceled) {
		t.Errorf("Stop: %v", err)
	}
	_ = c.Close()
	if e, err := g.dial(ctx).Wait(ctx); err != nil || e.Signal != "SIGKILL" {
		t.Errorf("%+v, %v", e, err)
	}
}

// What is stopped before it has started is stopped when it has.
func TestStopBeforeStart(t *testing.T) {
	ctx := testContext(t)
	g := newGuest(t, nil)
	if err := g.container.Stop("TERM", time.Minute); err != nil {
		t.Fatal(err)
	}
	g.run("exec sleep 1000")
	if e, err := g.container.Wait(ctx); err != nil || e.Signal != "SIGTERM" {
		t.Errorf("%+v, %v", e, err)
	}
}

func TestBadArguments(t *testing.T) {
	ctx := testContext(t)
	g := newGuest(t, nil)
	g.run("sleep 1000")
	c := g.dial(ctx)
	for name, tt := range map[string]struct {
		err  error
		want error
	}{
		"signal":   {c.Signal(ctx, "SIGNONSENSE"), tether.ErrInvalid},
		"number":   {c.Signal(ctx, "65"), tether.ErrInvalid},
		"resize":   {c.Resize(ctx, 10, 10), tether.ErrUnsupported},
		"too long": {c.Signal(ctx, fill(70<<10)), tether.ErrInvalid},
	} {
		if !errors.Is(tt.err, tt.want) {
			t.Errorf("%s: %v, want %v", name, tt.err, tt.want)
		}
	}
	if _, err := c.Stop(ctx, "SIGFOO", 0); !errors.Is(err, tether.ErrInvalid) {
		t.Errorf("Stop: %v", err)
	}
	if err := c.Signal(ctx, "kill"); err != nil {
		t.Error(err)
	}
}

func TestAuthentication(t *testing.T) {
	ctx := testContext(t)
	g := newGuest(t, nil)
	cert := func(change func(*ssh.Certificate), by ssh.Signer) ssh.Signer {
		t.Helper()
		key := sshKey(t, newKey(t))
		now := time.Now()
		c := &ssh.Certificate{
			Key: key.PublicKey(), CertType: ssh.UserCert, ValidPrincipals: []string{testID},
			ValidAfter: uint64(now.Unix()), ValidBefore: uint64(now.Add(time.Minute).Unix()),
		}
		if change != nil {
			change(c)
		}
		if err := c.SignCert(rand.Reader, by); err != nil {
			t.Fatal(err)
		}
		s, err := ssh.NewCertSigner(c, key)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	ca := sshKey(t, g.authority)
	at := func(d time.Duration) uint64 { return uint64(time.Now().Add(d).Unix()) }
	for _, tt := range []struct {
		name   string
		signer ssh.Signer
		host   string
		ok     bool
		is     error
	}{
		{"good", cert(nil, ca), "", true, nil},
		{"controller principal", cert(func(c *ssh.Certificate) { c.ValidPrincipals = []string{tether.ControllerPrincipal} }, ca), "", true, nil},
		{"within skew, early", cert(func(c *ssh.Certificate) { c.ValidAfter, c.ValidBefore = at(5*time.Minute), at(6*time.Minute) }, ca), "", true, nil},
		{"within skew, late", cert(func(c *ssh.Certificate) { c.ValidAfter, c.ValidBefore = at(-8*time.Minute), at(-6*time.Minute) }, ca), "", true, nil},
		{"not yet valid", cert(func(c *ssh.Certificate) { c.ValidAfter, c.ValidBefore = at(time.Hour), at(2*time.Hour) }, ca), "", false, nil},
		{"expired", cert(func(c *ssh.Certificate) { c.ValidAfter, c.ValidBefore = at(-2*time.Hour), at(-time.Hour) }, ca), "", false, nil},
		{"other authority", cert(nil, sshKey(t, newKey(t))), "", false, nil},
		{"other container", cert(func(c *ssh.Certificate) { c.ValidPrincipals = []string{strings.Repeat("f", 64)} }, ca), "", false, nil},
		{"no principal", cert(func(c *ssh.Certificate) { c.ValidPrincipals = nil }, ca), "", false, nil},
		{"host certificate", cert(func(c *ssh.Certificate) { c.CertType = ssh.HostCert }, ca), "", false, nil},
		{"unknown critical option", cert(func(c *ssh.Certificate) { c.CriticalOptions = map[string]string{"force-command": "x"} }, ca), "", false, nil},
		{"plain key", sshKey(t, newKey(t)), "", false, nil},
		{"the authority's own key", ca, "", false, nil},
		{"other host key", cert(nil, ca), string(ssh.MarshalAuthorizedKey(ca.PublicKey())), false, tether.ErrHostKey},
		{"no host key", cert(nil, ca), "none", false, tether.ErrInvalid},
		{"no signer", nil, "", false, tether.ErrInvalid},
	} {
		t.Run(tt.name, func(t *testing.T) {
			host := tt.host
			if host == "" {
				host = g.authorizedKey()
			}
			c, err := g.dialAs(ctx, tt.signer, host)
			if err == nil {
				_ = c.Close()
			}
			if (err == nil) != tt.ok {
				t.Errorf("%v, want success: %v", err, tt.ok)
			}
			if tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("%v is not %v", err, tt.is)
			}
		})
	}
}

func TestNewControllerSignerRefuses(t *testing.T) {
	if _, err := tether.NewControllerSigner(newKey(t), "", 0); !errors.Is(err, tether.ErrInvalid) {
		t.Error(err)
	}
}

// Silent connections neither keep controllers out nor stay.
func TestSilentConnections(t *testing.T) {
	ctx := testContext(t)
	g := newGuest(t, nil)
	first, err := net.Dial("tcp", g.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	for range 64 {
		c, err := net.Dial("tcp", g.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	if _, err := g.dial(ctx).Ping(ctx); err != nil {
		t.Error(err)
	}
	_ = first.SetReadDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.Copy(io.Discard, first); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the oldest silent connection is still open")
	}
}

func TestClientContext(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := net.Dial("tcp", l.Addr().String()) // Nobody answers.
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	key := sshKey(t, newKey(t))
	_, err = tether.NewClient(ctx, conn, tether.ClientConfig{Signer: key, HostKey: string(ssh.MarshalAuthorizedKey(key.PublicKey()))})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

func TestLostConnection(t *testing.T) {
	ctx := testContext(t)
	g := newGuest(t, nil)
	c := g.dial(ctx)
	g.run("echo here; exec sleep 1000")
	a, err := c.Attach(ctx, tether.AttachOptions{Replay: true})
	if err != nil {
		t.Fatal(err)
	}
	l, err := c.Logs(ctx, tether.LogOptions{Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	g.stop()
	for err == nil {
		_, err = l.Next()
	}
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a log on a lost connection ends in %v", err)
	}
	if _, err := a.Wait(); err == nil || errors.Is(err, tether.ErrDetached) {
		t.Errorf("Wait on a lost connection: %v", err)
	}
	<-c.Done()
	if _, err := c.Ping(ctx); err == nil {
		t.Error("Ping on a lost connection")
	}
	if _, err := c.Wait(ctx); err == nil {
		t.Error("Wait on a lost connection")
	}
}

func TestKeepAliveGivesUp(t *testing.T) {
	ctx := testContext(t)
	g := newGuest(t, nil)
	// A line that is cut without either end being told.
	here, there := net.Pipe()
	up, err := net.Dial("tcp", g.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer up.Close()
	cut := make(chan struct{})
	go func() {
		b := make([]byte, 32<<10)
		for {
			n, err := there.Read(b)
			if err != nil {
				return
			}
			select {
			case <-cut:
				continue
			default:
			}
			if _, err := up.Write(b[:n]); err != nil {
				return
			}
		}
	}()
	go func() { _, _ = io.Copy(there, up) }()
	signer, err := tether.NewControllerSigner(g.authority, "", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	c, err := tether.NewClient(ctx, here, tether.ClientConfig{
		Signer: signer, HostKey: g.authorizedKey(), ID: testID, KeepAlive: 20 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Ping(ctx); err != nil {
		t.Fatal(err)
	}
	close(cut)
	select {
	case <-c.Done():
	case <-ctx.Done():
		t.Error("the client did not give up")
	}
}

func TestLinger(t *testing.T) {
	ctx := testContext(t)
	g := newGuest(t, nil)
	if g.server.Linger(ctx, 10*time.Millisecond) {
		t.Error("delivered though nobody came")
	}
	c := g.dial(ctx)
	a, err := c.Attach(ctx, tether.AttachOptions{Replay: true})
	if err != nil {
		t.Fatal(err)
	}
	g.run("exit 1")
	if !g.server.Linger(ctx, time.Minute) {
		t.Error("not delivered")
	}
	if e, err := a.Wait(); err != nil || e.Code != 1 {
		t.Errorf("%+v, %v", e, err)
	}
	_ = c.Close()
}

// Who is not done when the guest goes loses the connection, and is not told that the
// log could not be read.
func TestHangup(t *testing.T) {
	ctx := testContext(t)
	g := newGuest(t, nil)
	c := g.dial(ctx)
	defer c.Close()
	r, w := io.Pipe()
	defer w.Close()
	a, err := c.Attach(ctx, tether.AttachOptions{Replay: true, Streams: tether.Streams{Stdout: w}})
	if err != nil {
		t.Fatal(err)
	}
	g.run("yes " + strings.Repeat("more-than-anybody-takes", 100) + " | head -c 8388608; exit 1")
	if _, err := g.dial(ctx).Wait(ctx); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	g.server.Hangup(100 * time.Millisecond)
	if took := time.Since(start); took < 100*time.Millisecond || took > 10*time.Second {
		t.Errorf("hung up after %v", took)
	}
	go func() { _, _ = io.Copy(io.Discard, r) }()
	var remote *tether.RemoteError
	if _, err := a.Wait(); err == nil || errors.As(err, &remote) {
		t.Errorf("the attacher: %v", err)
	}
	signer, err := tether.NewControllerSigner(g.authority, testID, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if c, err := g.dialAs(ctx, signer, g.authorizedKey()); err == nil {
		if _, err := c.Status(ctx); err == nil {
			t.Error("a connection after the end")
		}
		_ = c.Close()
	}
	g.server.Hangup(time.Minute) // again, with nobody there
}

func TestTimelineAndStatus(t *testing.T) {
	ctx := testContext(t)
	g := newGuest(t, nil)
	want := []tether.Stage{{Name: "tether", At: time.Second}, {Name: "process", At: 2 * time.Second}}
	for _, s := range want {
		g.container.Mark(s.Name, s.At)
	}
	g.container.Reached(g.authorizedKey(), []string{"192.0.2.1:2377"})
	c := g.dial(ctx)
	got, err := c.Timeline(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	s, err := c.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(g.container.Status(), s); diff != "" {
		t.Error(diff)
	}
}

func TestLogs(t *testing.T) {
	ctx := testContext(t)
	g := newGuest(t, openStdin)
	g.run("echo 1; echo 2; echo 3; echo 4; read x; echo $x; printf tail")
	c := g.dial(ctx)
	seen := newWaiter()
	in, keys := io.Pipe()
	a, err := c.Attach(ctx, tether.AttachOptions{Streams: tether.Streams{Stdin: in, Stdout: seen}, Replay: true})
	if err != nil {
		t.Fatal(err)
	}
	seen.wait(t, "4\n")
	read := func(o tether.LogOptions) (got []string) {
		t.Helper()
		l, err := c.Logs(ctx, o)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		for {
			e, err := l.Next()
			if err == io.EOF {
				return got
			}
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, e.Stream.String()+":"+string(e.Data))
		}
	}
	if diff := cmp.Diff([]string{"stdout:3\n", "stdout:4\n"}, read(tether.LogOptions{Tail: 2})); diff != "" {
		t.Error(diff)
	}
	if got := read(tether.LogOptions{Until: time.Now().Add(-time.Hour)}); got != nil {
		t.Errorf("an hour ago: %q", got)
	}
	follow, err := c.Logs(ctx, tether.LogOptions{Follow: true, Tail: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer follow.Close()
	if _, err := io.WriteString(keys, "five\n"); err != nil {
		t.Fatal(err)
	}
	_ = keys.Close()
	var got []string
	for {
		e, err := follow.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, string(e.Data))
	}
	if diff := cmp.Diff([]string{"4\n", "five\n", "tail"}, got); diff != "" {
		t.Error(diff)
	}
	if _, err := a.Wait(); err != nil {
		t.Error(err)
	}
}
