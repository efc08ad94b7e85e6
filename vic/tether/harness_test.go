package tether_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"flag"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vicsdk/vic-go/vic/tether"
	"golang.org/x/crypto/ssh"
)

const testID = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// TestMain fails where a test left goroutines behind.
func TestMain(m *testing.M) {
	before := runtime.NumGoroutine()
	code := m.Run()
	// The fuzzing engine has goroutines of its own.
	if code == 0 && flag.Lookup("test.fuzz").Value.String() == "" {
		deadline := time.Now().Add(10 * time.Second)
		for runtime.NumGoroutine() > before && time.Now().Before(deadline) {
			runtime.Gosched()
		}
		if n := runtime.NumGoroutine(); n > before {
			b := make([]byte, 1<<20)
			_, _ = os.Stderr.Write(b[:runtime.Stack(b, true)])
			_, _ = os.Stderr.WriteString("goroutines were left behind\n")
			code = 1
		}
	}
	os.Exit(code)
}

func newKey(t testing.TB) ed25519.PrivateKey {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func sshKey(t testing.TB, key crypto.Signer) ssh.Signer {
	t.Helper()
	s, err := ssh.NewSignerFromSigner(key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// guest is a Server with a local process for the container's.
type guest struct {
	t         testing.TB
	authority ed25519.PrivateKey
	hostKey   ssh.Signer
	container *tether.Container
	output    *tether.Recorder
	log       *tether.LogFiles
	server    *tether.Server
	addr      string
	served    chan error
	stop      context.CancelFunc
}

func newGuest(t testing.TB, change func(*tether.Config)) *guest {
	t.Helper()
	return newGuestWith(t, change, func(*tether.ServerConfig) {})
}

func newGuestWith(t testing.TB, change func(*tether.Config), with func(*tether.ServerConfig)) *guest {
	t.Helper()
	config := tether.Config{Version: 1, ID: testID, Process: tether.Process{Args: []string{"unused"}}}
	if change != nil {
		change(&config)
	}
	f, err := tether.OpenLogFiles(t.TempDir(), config.Log)
	if err != nil {
		t.Fatal(err)
	}
	g := &guest{t: t, authority: newKey(t), hostKey: sshKey(t, newKey(t)), log: f, served: make(chan error, 1)}
	g.container = tether.NewContainer(config, "boot")
	g.output = tether.NewRecorder(f, 0)
	server := tether.ServerConfig{
		HostKey: g.hostKey, Authorities: []ssh.PublicKey{sshKey(t, g.authority).PublicKey()}, ID: testID,
		Container: g.container, Output: g.output,
	}
	with(&server)
	g.server, err = tether.NewServer(server)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g.addr = l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	g.stop = cancel
	go func() { g.served <- g.server.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-g.served; err != nil {
			t.Errorf("Serve: %v", err)
		}
		_ = g.output.Close()
		_ = f.Close()
	})
	return g
}

func (g *guest) authorizedKey() string {
	return string(ssh.MarshalAuthorizedKey(g.hostKey.PublicKey()))
}

func (g *guest) dial(ctx context.Context) *tether.Client {
	g.t.Helper()
	signer, err := tether.NewControllerSigner(g.authority, testID, time.Minute)
	if err != nil {
		g.t.Fatal(err)
	}
	c, err := g.dialAs(ctx, signer, g.authorizedKey())
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { _ = c.Close() })
	return c
}

func (g *guest) dialAs(ctx context.Context, signer ssh.Signer, hostKey string) (*tether.Client, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", g.addr)
	if err != nil {
		return nil, err
	}
	return tether.NewClient(ctx, conn, tether.ClientConfig{Signer: signer, HostKey: hostKey, ID: testID})
}

// localProcess is a process of this machine as a container's.
type localProcess struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
}

func (p *localProcess) Signal(n int) error {
	if err := p.cmd.Process.Signal(syscall.Signal(n)); errors.Is(err, os.ErrProcessDone) {
		return tether.ErrNotRunning
	} else if err != nil {
		return err
	}
	return nil
}

func (p *localProcess) Resize(uint16, uint16) error { return tether.ErrUnsupported }
func (p *localProcess) Stdin() io.WriteCloser       { return p.stdin }

// run starts a shell script as the container's process; it is ended with the
// test.
func (g *guest) run(script string) {
	g.t.Helper()
	cmd := exec.Command("sh", "-c", script)
	cmd.Stdout, cmd.Stderr = g.output.Writer(tether.Stdout), g.output.Writer(tether.Stderr)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		g.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		g.t.Fatal(err)
	}
	g.container.Started(&localProcess{cmd, stdin}, time.Now())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = cmd.Wait()
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		ws := cmd.ProcessState.Sys().(syscall.WaitStatus)
		exit := tether.Exit{Code: ws.ExitStatus()}
		if ws.Signaled() {
			exit = tether.Exit{Code: 128 + int(ws.Signal()), Signal: tether.SignalName(int(ws.Signal()))}
		}
		_ = g.output.Close()
		g.container.Finished(exit, time.Now())
	}()
	g.t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		<-done
	})
}

func testContext(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// result attaches with replay and waits for the end.
func result(t testing.TB, ctx context.Context, c *tether.Client, stdin io.Reader) (tether.Exit, string, string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	a, err := c.Attach(ctx, tether.AttachOptions{
		Streams: tether.Streams{Stdin: stdin, Stdout: &stdout, Stderr: &stderr}, Replay: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	e, err := a.Wait()
	if err != nil {
		t.Fatal(err)
	}
	return e, stdout.String(), stderr.String()
}

func fill(n int) string { return strings.Repeat("x", n) }
