package containervm_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vicsdk/vic-go/internal/testlab"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/containervm"
	"github.com/vicsdk/vic-go/vic/engine"
	"github.com/vicsdk/vic-go/vic/tether"
)

// A network that breaks again and again costs an attachment time, but no byte
// of output, and brings none twice.
func TestOutputSurvivesLostConnections(t *testing.T) {
	e := testlab.Start(t, testlab.Options{})
	image := e.Busybox(t)
	c, dials := breakingClient(t, e, 60<<10)

	const lines = 8000
	var out bytes.Buffer
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	_, exit, err := e.Open(t, c, nil).Run(ctx, engine.RunSpec{
		Image: image, Remove: true,
		Container: containervm.Spec{Args: []string{"sh", "-c", `i=0; while [ $i -lt 8000 ]; do echo "line $i of the output"; i=$((i+1)); done; exit 4`}},
		Streams:   tether.Streams{Stdout: &out},
	})
	if err != nil || exit.Code != 4 {
		t.Fatalf("exit %+v, %v", exit, err)
	}
	got := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	if len(got) != lines || got[0] != "line 0 of the output" || got[lines-1] != "line 7999 of the output" {
		t.Errorf("%d lines came, first %q, last %q", len(got), got[0], got[len(got)-1])
	}
	if n := dials.Load(); n < 4 {
		t.Errorf("the guest was dialled %d times: the connection did not break", n)
	}
}

// Who attaches to new output gets it from one byte on, whatever breaks.
func TestNewOutputSurvivesLostConnections(t *testing.T) {
	e := testlab.Start(t, testlab.Options{})
	c, dials := breakingClient(t, e, 30<<10)
	vm, _, err := e.Engine.Run(t.Context(), engine.RunSpec{
		Image: e.Busybox(t), Detach: true,
		Container: containervm.Spec{Args: []string{"sh", "-c", `n() { i=$1; while [ $i -lt $2 ]; do echo "line $i of the output"; i=$((i+1)); done; }; n 0 1000; read x; n 1000 6000; exit 4`}, OpenStdin: true},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for last := ""; !strings.HasPrefix(last, "line 999 "); time.Sleep(50 * time.Millisecond) {
		err := vm.Logs(ctx, tether.LogOptions{Tail: 1}, func(l tether.LogEntry) error { last = string(l.Data); return nil })
		if ctx.Err() != nil {
			t.Fatalf("it has written %q, %v", last, err)
		}
	}
	there, _, err := e.Open(t, c, nil).Find(t.Context(), vm.ID())
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	att, err := there.AttachWith(t.Context(), containervm.AttachOptions{Streams: tether.Streams{Stdout: &out}, New: true})
	if err != nil {
		t.Fatal(err)
	}
	for len(att.Timeline()) < 3 { // attached
		time.Sleep(20 * time.Millisecond)
	}
	in, err := vm.Attach(t.Context(), tether.Streams{Stdin: strings.NewReader("go\n")})
	if err != nil {
		t.Fatal(err)
	}
	defer in.Detach()
	exit, err := att.Wait()
	if err != nil || exit.Code != 4 {
		t.Fatalf("exit %+v, %v", exit, err)
	}
	got := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	if len(got) != 5000 || got[0] != "line 1000 of the output" || got[4999] != "line 5999 of the output" {
		t.Errorf("%d lines came, first %q, last %q", len(got), got[0], got[len(got)-1])
	}
	if n := dials.Load(); n < 4 {
		t.Errorf("the guest was dialled %d times: the connection did not break", n)
	}
}

// breakingClient is a client whose first three connections to guests break after
// so many bytes were read.
func breakingClient(t *testing.T, e *testlab.Env, after int) (*vic.Client, *atomic.Int32) {
	t.Helper()
	cfg, err := e.Lab.Config()
	if err != nil {
		t.Fatal(err)
	}
	dial, dials := cfg.DialGuest, new(atomic.Int32)
	cfg.DialGuest = func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := dial(ctx, network, address)
		if err != nil || dials.Add(1) > 3 {
			return c, err
		}
		return &breaking{Conn: c, left: after}, nil
	}
	c, err := vic.Connect(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close(context.WithoutCancel(t.Context())) })
	return c, dials
}

// Who follows a log over a network that breaks reads each line once.
func TestFollowedLogSurvivesLostConnections(t *testing.T) {
	e := testlab.Start(t, testlab.Options{})
	image := e.Busybox(t)
	cfg, err := e.Lab.Config()
	if err != nil {
		t.Fatal(err)
	}
	dial := cfg.DialGuest
	var dials atomic.Int32
	cfg.DialGuest = func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := dial(ctx, network, address)
		if err != nil || dials.Add(1) > 3 {
			return c, err
		}
		return &breaking{Conn: c, left: 20 << 10}, nil
	}
	c, err := vic.Connect(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(context.WithoutCancel(t.Context()))
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	vm, _, err := e.Open(t, c, nil).Run(ctx, engine.RunSpec{
		Image: image, Detach: true,
		Container: containervm.Spec{Args: []string{"sh", "-c", `i=0; while [ $i -lt 1000 ]; do echo "line $i"; [ $((i%100)) = 0 ] && sleep 1; i=$((i+1)); done`}},
	})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	for {
		err := vm.Logs(ctx, tether.LogOptions{Follow: true}, func(l tether.LogEntry) error {
			_, err := out.Write(l.Data)
			return err
		})
		if err == nil {
			break
		}
		if out.Len() > 0 || !errors.Is(err, vic.ErrUnavailable) {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond) // the guest is not up yet
	}
	var want strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&want, "line %d\n", i)
	}
	if out.String() != want.String() {
		t.Errorf("%d bytes came, want %d", out.Len(), want.Len())
	}
	if n := dials.Load(); n < 4 {
		t.Errorf("the guest was dialled %d times: the connection did not break", n)
	}
	if err := vm.Delete(ctx, true); err != nil {
		t.Fatal(err)
	}
}

// breaking is a connection that ends after so many bytes were read.
type breaking struct {
	net.Conn
	left int
}

func (b *breaking) Read(p []byte) (int, error) {
	if b.left <= 0 {
		b.Conn.Close()
		return 0, net.ErrClosed
	}
	n, err := b.Conn.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}
