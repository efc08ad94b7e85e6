package engine_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vicsdk/vic-go/internal/testlab"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/containervm"
	"github.com/vicsdk/vic-go/vic/engine"
	"github.com/vicsdk/vic-go/vic/tether"
)

// A container without a network is reached over a serial port of its VM.
func TestNoNetwork(t *testing.T) {
	t.Parallel()
	e := testlab.Start(t, testlab.Options{})
	image := e.Busybox(t)
	none := func(s containervm.Spec) containervm.Spec {
		s.NICs = []vic.NIC{}
		return s
	}
	big := strings.Repeat("0123456789abcde\n", 2<<10) // 32 KiB
	r := do(t, e, image, strings.NewReader(big), none(sh("cat; ls /sys/class/net >&2; exit 5")))
	if r.exit.Code != 5 || r.out != big || strings.TrimSpace(r.err) != "lo" {
		t.Errorf("exit %+v, %d bytes, %q", r.exit, len(r.out), r.err)
	}

	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	vm, err := e.Engine.Create(ctx, engine.RunSpec{Image: image, Detach: true, Container: none(sh(
		`trap 'echo hangup' HUP; trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.1; done`))})
	if err != nil {
		t.Fatal(err)
	}
	if err := vm.Start(ctx); err != nil {
		t.Fatal(err)
	}
	// Whoever listens hears nothing of the kernel.
	raw := dialPort(t, ctx, e, vm)
	_ = raw.SetReadDeadline(time.Now().Add(time.Minute))
	go func() {
		for ctx.Err() == nil {
			if info, err := vm.Inspect(ctx); err == nil && !info.Started.IsZero() {
				_ = raw.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
				return
			}
			time.Sleep(100 * time.Millisecond)
		}
	}()
	if b, err := io.ReadAll(raw); len(b) > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the line carries %q, %v", b, err)
	}
	// What it left in the middle disturbs nobody.
	_, _ = raw.Write([]byte("~half a frame"))
	_ = raw.Close()

	waitLog(t, vm, "ready\n")
	// Who is attached sends signals over the same connection.
	out := &lines{seen: make(chan string, 10)}
	att, err := vm.Attach(ctx, tether.Streams{Stdout: out})
	if err != nil {
		t.Fatal(err)
	}
	out.await(t, ctx, "ready")
	if err := vm.Kill(ctx, "SIGHUP"); err != nil {
		t.Errorf("a signal beside an attachment: %v", err)
	}
	out.await(t, ctx, "hangup")

	// Another process waits for the line, and hears why it does not get it.
	other, _, err := e.Open(t, e.Connect(t), nil).Find(ctx, vm.ID())
	if err != nil {
		t.Fatal(err)
	}
	short, cancelShort := context.WithTimeout(ctx, 2*time.Second)
	if _, err := other.Dial(short); !errors.Is(err, vic.ErrUnavailable) || !strings.Contains(err.Error(), "another controller") {
		t.Errorf("a second process: %v", err)
	}
	cancelShort()
	got := make(chan error, 1)
	go func() { got <- other.Kill(ctx, "SIGHUP") }()
	att.Detach()
	if err := <-got; err != nil {
		t.Errorf("the process that waited: %v", err)
	}

	// One that does not let go of the line keeps nobody from sending signals and from
	// stopping: these come by guestinfo, and the process ends by itself.
	held, err := other.Dial(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	if err := vm.Kill(ctx, "SIGHUP"); err != nil {
		t.Errorf("a signal while another process has the line: %v", err)
	}
	logShows(t, ctx, held, "ready\nhangup\nhangup\nhangup\n")
	// What the VM uses its host tells.
	stats, err := vm.HostStats(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if rss := residentOf(t, e.Lab.Dir(), vm.Name()); stats.MemoryConsumed < rss*3/4 || stats.MemoryConsumed > rss*5/4 {
		t.Errorf("it tells %d bytes of memory, the process has %d", stats.MemoryConsumed, rss)
	}
	if stats.CPUMHz <= 0 || stats.CPUPercent <= 0 || stats.Interval < time.Second || time.Since(stats.Time).Abs() > time.Minute || !slices.Contains(stats.Missing, "net.received.average") {
		t.Errorf("the host tells %+v", stats)
	}
	if err := vm.Kill(ctx, "SIGNONE"); !errors.Is(err, vic.ErrInvalid) {
		t.Errorf("no signal: %v", err)
	}
	if err := vm.Stop(ctx, nil); err != nil {
		t.Fatal(err)
	}
	if info, err := vm.Inspect(ctx); err != nil || info.ExitCode != 3 || !info.Known {
		t.Errorf("after the stop: %+v, %v", info, err)
	}
	if _, err := vm.HostStats(ctx); !errors.Is(err, vic.ErrState) {
		t.Errorf("a VM that is off is measured: %v", err)
	}
	if err := vm.Delete(ctx, false); err != nil {
		t.Fatal(err)
	}
}

// A serial line that is cut again and again costs no byte.
func TestSerialLineIsCut(t *testing.T) {
	t.Parallel()
	e := testlab.Start(t, testlab.Options{})
	image := e.Busybox(t)
	cfg, err := e.Lab.Config()
	if err != nil {
		t.Fatal(err)
	}
	dial := cfg.DialHost
	var dials atomic.Int32
	cfg.DialHost = func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := dial(ctx, network, address)
		if err != nil || dials.Add(1) > 3 {
			return c, err
		}
		return &cut{Conn: c, left: 25 << 10}, nil
	}
	c, err := vic.Connect(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(context.WithoutCancel(t.Context()))
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	var out bytes.Buffer
	_, exit, err := e.Open(t, c, nil).Run(ctx, engine.RunSpec{
		Image: image, Remove: true, Streams: tether.Streams{Stdout: &out},
		Container: containervm.Spec{NICs: []vic.NIC{}, Args: []string{"sh", "-c", "i=0; while [ $i -lt 4000 ]; do echo line $i of the output; [ $((i%400)) = 0 ] && sleep 1; i=$((i+1)); done; exit 4"}},
	})
	if err != nil || exit.Code != 4 {
		t.Fatalf("exit %+v, %v", exit, err)
	}
	got := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	if len(got) != 4000 || got[0] != "line 0 of the output" || got[3999] != "line 3999 of the output" {
		t.Errorf("%d lines came, first %q, last %q", len(got), got[0], got[len(got)-1])
	}
	if n := dials.Load(); n < 4 {
		t.Errorf("the line was dialled %d times: it was not cut", n)
	}
}

// cut is a connection that ends after so many bytes were read.
type cut struct {
	net.Conn
	left int
}

func (c *cut) Read(p []byte) (int, error) {
	if c.left <= 0 {
		c.Conn.Close()
		return 0, net.ErrClosed
	}
	n, err := c.Conn.Read(p[:min(len(p), c.left)])
	c.left -= n
	return n, err
}

// residentOf is the resident memory of a VM's QEMU, as the kernel tells it.
func residentOf(t *testing.T, dir, name string) int64 {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		b, err := os.ReadFile(f)
		if err != nil || !bytes.Contains(b, []byte("guest="+name)) || !bytes.Contains(b, []byte(dir)) {
			continue
		}
		status, _ := os.ReadFile(filepath.Join(filepath.Dir(f), "status"))
		_, rest, _ := bytes.Cut(status, []byte("VmRSS:"))
		words := bytes.Fields(rest)
		if len(words) > 0 {
			n, _ := strconv.ParseInt(string(words[0]), 10, 64)
			return n << 10
		}
	}
	t.Fatalf("no QEMU of %s", name)
	return 0
}

// logShows waits until the guest's log shows a text.
func logShows(t *testing.T, ctx context.Context, c *tether.Client, want string) {
	t.Helper()
	l, err := c.Logs(ctx, tether.LogOptions{Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for got := ""; got != want; {
		e, err := l.Next()
		if got += string(e.Data); err != nil || !strings.HasPrefix(want, got) {
			t.Fatalf("the log shows %q, not %q: %v", got, want, err)
		}
	}
}

// dialPort connects to the serial line of a VM as anybody could.
func dialPort(t *testing.T, ctx context.Context, e *testlab.Env, vm *containervm.VM) net.Conn {
	t.Helper()
	var m mo.VirtualMachine
	ref := types.ManagedObjectReference{Type: "VirtualMachine", Value: vm.Ref().ID}
	if err := object.NewVirtualMachine(e.Client.Vim(), ref).Properties(ctx, ref, []string{"config.hardware.device"}, &m); err != nil {
		t.Fatal(err)
	}
	for _, d := range m.Config.Hardware.Device {
		s, ok := d.(*types.VirtualSerialPort)
		if !ok || !s.Connectable.StartConnected {
			continue
		}
		port := strings.TrimPrefix(s.Backing.(*types.VirtualSerialPortURIBackingInfo).ServiceURI, "tcp://")
		c, err := e.Client.DialHost(ctx, "tcp", "host1"+port)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	t.Fatal("the VM has no serial port")
	return nil
}

// lines are what was written, line by line.
type lines struct {
	mu   sync.Mutex
	rest []byte
	seen chan string
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rest = append(l.rest, p...)
	for {
		line, rest, ok := bytes.Cut(l.rest, []byte("\n"))
		if !ok {
			return len(p), nil
		}
		l.seen <- string(line)
		l.rest = rest
	}
}

func (l *lines) await(t *testing.T, ctx context.Context, want string) {
	t.Helper()
	select {
	case got := <-l.seen:
		if got != want {
			t.Fatalf("line %q came, not %q", got, want)
		}
	case <-ctx.Done():
		t.Fatalf("%q did not come: %v", want, ctx.Err())
	}
}
