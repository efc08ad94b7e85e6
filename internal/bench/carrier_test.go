package bench_test

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vicsdk/vic-go/internal/testlab"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/containervm"
	"github.com/vicsdk/vic-go/vic/engine"
	"github.com/vicsdk/vic-go/vic/tether"
)

// BenchmarkCarrier measures how many bytes a second come out of a guest and go in,
//
//   - by the tether (an exec's standard output and input), and by the main process's
//     output, which is also logged to the guest's disk,
//
// over each of the two carriers, beside the raw carrier:
//
//   - tcp: a connection to a program of the container, over the same NIC;
//   - serial: the same serial port of a VM booted by hand, whose PID 1 writes to it
//     and reads from it.
func BenchmarkCarrier(b *testing.B) {
	e := testlab.Start(b, testlab.Options{})
	image := e.Busybox(b)
	b.Run("tcp", func(b *testing.B) {
		const size = 8 << 20
		vm, c := running(b, e, image, containervm.Spec{}, size)
		address := guestAddress(b, vm)
		placeProgram(b, c)
		for b.Loop() {
			out := rawOut(b, e, c, address, size)
			in := rawIn(b, e, c, address, size)
			carried(b, c, size, out, in)
		}
	})
	b.Run("serial", func(b *testing.B) {
		const size = 128 << 10
		img, err := e.Engine.Pull(b.Context(), image, nil)
		if err != nil {
			b.Fatal(err)
		}
		hand := newBareVM(b, e, img)
		_, c := running(b, e, image, containervm.Spec{NICs: []vic.NIC{}}, size)
		for b.Loop() {
			out, in := hand.serial(b, size)
			carried(b, c, size, out, in)
		}
	})
}

// running starts a container whose process writes so many bytes whenever it reads
// a line.
func running(b *testing.B, e *testlab.Env, image string, s containervm.Spec, size int) (*containervm.VM, *tether.Client) {
	b.Helper()
	s.Args = []string{"sh", "-c", fmt.Sprintf("while read x; do yes 'a line of output as programs write them, of some length' | head -c %d; done; sleep 100000", size)}
	s.OpenStdin = true
	vm, _, err := e.Engine.Run(b.Context(), engine.RunSpec{Image: image, Detach: true, Container: s})
	if err != nil {
		b.Fatal(err)
	}
	c := dial(b, vm)
	b.Cleanup(func() {
		_ = c.Close()
		if err := vm.Delete(context.WithoutCancel(b.Context()), true); err != nil {
			b.Error(err)
		}
	})
	return vm, c
}

// carried measures the tether, and reports it beside the raw carrier.
func carried(b *testing.B, c *tether.Client, size int, rawOut, rawIn float64) {
	b.Helper()
	begin := time.Now()
	var n counted
	a, err := c.Exec(b.Context(), tether.ExecSpec{Args: []string{"dd", "if=/dev/zero", "bs=64k", "status=none", fmt.Sprint("count=", size>>16)}}, tether.Streams{Stdout: &n})
	finish(b, a, err)
	if int(n) != size {
		b.Fatalf("%d bytes came, not %d", n, size)
	}
	out := rate(size, begin)

	begin = time.Now()
	a, err = c.Exec(b.Context(), tether.ExecSpec{Args: []string{"cat"}}, tether.Streams{Stdin: io.LimitReader(zeroes{}, int64(size/4))})
	if err == nil {
		// Its output is what went in, and is not looked at: the input's end is the process's.
		_, err = a.Wait()
	}
	if err != nil {
		b.Fatal(err)
	}
	both := rate(size/4, begin)

	begin = time.Now()
	a, err = c.Exec(b.Context(), tether.ExecSpec{Args: []string{"sh", "-c", "cat > /dev/null"}}, tether.Streams{Stdin: io.LimitReader(zeroes{}, int64(size/4))})
	finish(b, a, err)
	in := rate(size/4, begin)

	begin = time.Now()
	pipe, w := io.Pipe()
	att, err := c.Attach(b.Context(), tether.AttachOptions{Streams: tether.Streams{Stdin: strings.NewReader("go\n"), Stdout: w}})
	if err != nil {
		b.Fatal(err)
	}
	go func() {
		exit, err := att.Wait()
		_ = w.CloseWithError(fmt.Errorf("the output has ended: exit %+v, %w", exit, err))
	}()
	if n, err := io.CopyN(io.Discard, pipe, int64(size)); err != nil {
		b.Fatalf("%d bytes: %v", n, err)
	}
	logged := rate(size, begin)
	_ = att.Detach()

	for _, m := range []struct {
		name string
		rate float64
	}{{"raw-out", rawOut}, {"out", out}, {"logged-out", logged}, {"raw-in", rawIn}, {"in", in}, {"in-and-out", both}} {
		b.ReportMetric(m.rate/1e6, m.name+"-MB/s")
	}
	b.ReportMetric(out/rawOut, "out/raw")
	b.ReportMetric(in/rawIn, "in/raw")
}

func finish(b *testing.B, a *tether.Attachment, err error) {
	b.Helper()
	var exit tether.Exit
	if err == nil {
		exit, err = a.Wait()
	}
	if err != nil || exit.Code != 0 {
		b.Fatal(exit, err)
	}
}

func rate(size int, begin time.Time) float64 { return float64(size) / time.Since(begin).Seconds() }

// rawOut reads from a program in the container that listens.
func rawOut(b *testing.B, e *testlab.Env, c *tether.Client, address string, size int) float64 {
	b.Helper()
	conn, done := listening(b, e, c, address, "out", size)
	defer conn.Close()
	begin := time.Now()
	if n, err := io.Copy(io.Discard, conn); err != nil || int(n) != size {
		b.Fatalf("raw: %d bytes, %v", n, err)
	}
	r := rate(size, begin)
	_ = conn.Close()
	finish(b, done, nil)
	return r
}

// rawIn writes to a program in the container that listens.
func rawIn(b *testing.B, e *testlab.Env, c *tether.Client, address string, size int) float64 {
	b.Helper()
	conn, done := listening(b, e, c, address, "in", size)
	defer conn.Close()
	begin := time.Now()
	if _, err := io.CopyN(conn, zeroes{}, int64(size)); err != nil {
		b.Fatal(err)
	}
	finish(b, done, nil)
	return rate(size, begin)
}

// placeProgram brings the program pid1 into the container's root.
func placeProgram(b *testing.B, c *tether.Client) {
	b.Helper()
	prog := pid1(b, b.TempDir())
	var a bytes.Buffer
	w := tar.NewWriter(&a)
	err := w.WriteHeader(&tar.Header{Name: "pid1", Mode: 0o755, Size: int64(len(prog))})
	if err == nil {
		_, err = w.Write(prog)
	}
	if err == nil {
		err = w.Close()
	}
	if err == nil {
		err = c.TarIn(b.Context(), "/", &a, tether.TarInOptions{})
	}
	if err != nil {
		b.Fatal(err)
	}
}

func listening(b *testing.B, e *testlab.Env, c *tether.Client, address, direction string, size int) (net.Conn, *tether.Attachment) {
	b.Helper()
	a, err := c.Exec(b.Context(), tether.ExecSpec{Args: []string{"/pid1", "tcp", direction, fmt.Sprint(size)}}, tether.Streams{})
	if err != nil {
		b.Fatal(err)
	}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		conn, err := e.Client.DialGuest(b.Context(), "tcp", net.JoinHostPort(address, "5000"))
		if err == nil {
			return conn, a
		}
		if time.Now().After(end) {
			b.Fatalf("the container does not listen: %v", err)
		}
	}
}

// guestAddress is the address of a container's NIC.
func guestAddress(b *testing.B, vm *containervm.VM) string {
	b.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		info, err := vm.Inspect(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		for _, a := range info.IPs {
			if !strings.Contains(a, ":") {
				return a
			}
		}
		if time.Now().After(end) {
			b.Fatalf("the container has no address: %+v", info)
		}
	}
}

// serial boots the VM with a second serial port whose other end is here, and tells
// how fast bytes came out of it and went in.
func (v *bareVM) serial(b *testing.B, size int) (out, in float64) {
	b.Helper()
	path := filepath.Join(b.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	argv := slices.Clone(v.argv)
	i := slices.Index(argv, "-append")
	argv[i+1] += fmt.Sprintf(" -- serial %d %d", size, size)
	argv = append(argv, "-chardev", "socket,id=line,path="+path, "-device", "isa-serial,chardev=line,index=1")
	ctx, cancel := context.WithTimeout(b.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", argv...)
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	defer func() {
		cancel()
		_ = cmd.Wait()
	}()
	conn, err := l.Accept()
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
		b.Fatal(err)
	}
	begin := time.Now()
	if _, err := io.CopyN(io.Discard, conn, int64(size-1)); err != nil {
		b.Fatal(err)
	}
	out = rate(size, begin)
	begin = time.Now()
	if _, err := io.CopyN(conn, zeroes{}, int64(size)); err != nil {
		b.Fatal(err)
	}
	if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
		b.Fatal(err)
	}
	return out, rate(size, begin)
}

type zeroes struct{}

func (zeroes) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// counted counts what is written to it.
type counted int

func (c *counted) Write(p []byte) (int, error) {
	*c += counted(len(p))
	return len(p), nil
}
