package tether_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vicsdk/vic-go/vic/tether"
	"golang.org/x/crypto/ssh"
)

// memoryDisk is a disk in memory that notes whether it was synced and let go of.
type memoryDisk struct {
	mu             sync.Mutex
	b              []byte
	synced, closed bool
	fail           error
}

func (d *memoryDisk) WriteAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fail != nil {
		return 0, d.fail
	}
	return copy(d.b[off:], p), nil
}
func (d *memoryDisk) Size() int64  { return int64(len(d.b)) }
func (d *memoryDisk) Sync() error  { d.synced = true; return nil }
func (d *memoryDisk) Close() error { d.closed = true; return nil }

// newHelper is a helper VM's server with one disk at unit 3.
func newHelper(t *testing.T, d *memoryDisk) (*guest, *tether.Applier) {
	t.Helper()
	g := &guest{t: t, authority: newKey(t), hostKey: sshKey(t, newKey(t)), served: make(chan error, 1)}
	a := tether.NewApplier(func(_ context.Context, unit int) (tether.DiskWriter, error) {
		if unit != 3 {
			return nil, errors.New("no such disk")
		}
		return d, nil
	})
	var err error
	g.server, err = tether.NewServer(tether.ServerConfig{
		HostKey: g.hostKey, Authorities: []ssh.PublicKey{sshKey(t, g.authority).PublicKey()}, ID: testID,
		Container: tether.NewContainer(tether.Config{Version: 1, ID: testID, Apply: &tether.Apply{}}, "boot"), Applier: a,
	})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g.addr = l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	go func() { g.served <- g.server.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-g.served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return g, a
}

func TestApply(t *testing.T) {
	ctx := testContext(t)
	d := &memoryDisk{b: make([]byte, 8<<20)}
	g, _ := newHelper(t, d)
	c := g.dial(ctx)
	want := make([]byte, len(d.b))
	_, _ = rand.Read(want[512 : 512+3<<20])
	_, _ = rand.Read(want[len(want)-4096:])
	n, err := c.Apply(ctx, 3, int64(len(want)), func(w io.WriterAt) error {
		if _, err := w.WriteAt(want[512:512+3<<20], 512); err != nil {
			return err
		}
		_, err := w.WriteAt(want[len(want)-4096:], int64(len(want)-4096))
		return err
	})
	if err != nil || n != 3<<20+4096 {
		t.Fatalf("Apply: %d, %v", n, err)
	}
	if !bytes.Equal(d.b, want) || !d.synced || !d.closed {
		t.Errorf("the disk is not what was sent (synced %t, closed %t)", d.synced, d.closed)
	}
	// Nothing is an end too.
	if n, err := c.Apply(ctx, 3, int64(len(want)), func(io.WriterAt) error { return nil }); n != 0 || err != nil {
		t.Errorf("Apply of nothing: %d, %v", n, err)
	}
	if err := c.Signal(ctx, "SIGTERM"); !errors.Is(err, tether.ErrUnsupported) {
		t.Errorf("a helper takes signals: %v", err)
	}
	if _, err := c.Attach(ctx, tether.AttachOptions{}); err == nil {
		t.Error("a helper is attached to")
	}
	if st, err := c.Status(ctx); err != nil || st.State != tether.Starting {
		t.Errorf("status: %+v, %v", st, err)
	}
}

func TestApplyRefuses(t *testing.T) {
	ctx := testContext(t)
	const size = 1 << 20
	for _, tc := range []struct {
		name  string
		unit  int
		bytes int64
		off   int64
		n     int
		want  string
	}{
		{"another size", 3, size + 512, 0, 512, "has 1048576 bytes"},
		{"another unit", 4, size, 0, 512, "no such disk"},
		{"unit below zero", -1, size, 0, 512, "unit"},
		{"behind the end", 3, size, size, 512, "the disk has"},
		{"over the end", 3, size, size - 512, 1024, "the disk has"},
		{"offset that overflows", 3, size, -512, 1024, "the disk has"},
		{"part of a sector", 3, size, 0, 100, "whole sectors"},
		{"between sectors", 3, size, 7, 512, "whole sectors"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := &memoryDisk{b: make([]byte, size)}
			g, _ := newHelper(t, d)
			c := g.dial(ctx)
			_, err := c.Apply(ctx, tc.unit, tc.bytes, func(w io.WriterAt) error {
				_, err := w.WriteAt(bytes.Repeat([]byte{1}, tc.n), tc.off)
				return err
			})
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("Apply: %v", err)
			}
			if !bytes.Equal(d.b, make([]byte, size)) || d.synced {
				t.Error("the disk was written to")
			}
			// The connection and the disk are still of use.
			if tc.unit == 3 && tc.bytes == size {
				if _, err := c.Apply(ctx, 3, size, func(w io.WriterAt) error { _, err := w.WriteAt(make([]byte, 512), 0); return err }); err != nil {
					t.Errorf("Apply afterwards: %v", err)
				}
			}
		})
	}
	t.Run("the source fails", func(t *testing.T) {
		d := &memoryDisk{b: make([]byte, size)}
		g, _ := newHelper(t, d)
		cause := errors.New("the source failed")
		if _, err := g.dial(ctx).Apply(ctx, 3, size, func(io.WriterAt) error { return cause }); !errors.Is(err, cause) {
			t.Errorf("Apply: %v", err)
		}
	})
	t.Run("the disk fails", func(t *testing.T) {
		d := &memoryDisk{b: make([]byte, size), fail: errors.New("medium error")}
		g, _ := newHelper(t, d)
		_, err := g.dial(ctx).Apply(ctx, 3, size, func(w io.WriterAt) error {
			for range 1000 { // more than the window takes
				if _, err := w.WriteAt(make([]byte, size), 0); err != nil {
					return err
				}
			}
			return nil
		})
		if err == nil || !strings.Contains(err.Error(), "medium error") {
			t.Errorf("Apply: %v", err)
		}
	})
	t.Run("others", func(t *testing.T) {
		d := &memoryDisk{b: make([]byte, size)}
		g, _ := newHelper(t, d)
		other, err := tether.NewControllerSigner(newKey(t), testID, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := g.dialAs(ctx, other, g.authorizedKey()); err == nil {
			t.Error("a controller of another authority was let in")
		}
		if _, err := g.dialAs(ctx, sshKey(t, newKey(t)), g.authorizedKey()); err == nil {
			t.Error("a plain key was let in")
		}
		elsewhere, err := tether.NewControllerSigner(g.authority, strings.Repeat("9", 64), time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := g.dialAs(ctx, elsewhere, g.authorizedKey()); err == nil {
			t.Error("a certificate for another VM was let in")
		}
	})
	t.Run("a container", func(t *testing.T) {
		if _, err := newGuest(t, nil).dial(ctx).Apply(ctx, 0, size, func(io.WriterAt) error { return nil }); err == nil {
			t.Error("a container's tether takes runs")
		}
	})
}

// A stream that ends before its end is no success, and what is in it never makes
// the guest hold more than a run.
func TestApplyHostile(t *testing.T) {
	const size = 1 << 20
	frame := func(off uint64, n uint32, data []byte) []byte {
		b := binary.BigEndian.AppendUint64(nil, off)
		return append(binary.BigEndian.AppendUint32(b, n), data...)
	}
	for _, tc := range []struct {
		name string
		send []byte
		want string
	}{
		{"nothing", nil, "cut off"},
		{"half a header", []byte{0, 0, 0}, "cut off"},
		{"half a run", frame(0, 1024, make([]byte, 512)), "cut off"},
		{"no end", frame(0, 512, make([]byte, 512)), "cut off"},
		{"wrong sum", append(frame(0, 512, make([]byte, 512)), frame(1024, 0, nil)...), "a sum of"},
		{"huge run", frame(0, 1<<31, nil), "more than"},
		{"huge offset", frame(1<<63, 512, nil), "the disk has"},
		{"offset at the top", frame(1<<64-512, 512, nil), "the disk has"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := &memoryDisk{b: make([]byte, size)}
			g, _ := newHelper(t, d)
			signer, err := tether.NewControllerSigner(g.authority, testID, time.Minute)
			if err != nil {
				t.Fatal(err)
			}
			c, err := ssh.Dial("tcp", g.addr, &ssh.ClientConfig{
				User: testID, Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)}, HostKeyCallback: ssh.FixedHostKey(g.hostKey.PublicKey()),
			})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			ch, requests, err := c.OpenChannel("apply@vicsdk.github.com", []byte(`{"unit":3,"bytes":1048576}`))
			if err != nil {
				t.Fatal(err)
			}
			go ssh.DiscardRequests(requests)
			if _, err := ch.Write(tc.send); err != nil {
				t.Fatal(err)
			}
			_ = ch.CloseWrite()
			b, err := io.ReadAll(ch)
			if err != nil {
				t.Fatal(err)
			}
			var a struct{ Error *tether.RemoteError }
			if err := json.Unmarshal(b, &a); err != nil || a.Error == nil || !strings.Contains(a.Error.Message, tc.want) {
				t.Errorf("answer %s", b)
			}
			if d.synced || !d.closed {
				t.Errorf("synced %t, closed %t", d.synced, d.closed)
			}
		})
	}
}

func TestApplierEnds(t *testing.T) {
	ctx := testContext(t)
	g, a := newHelper(t, &memoryDisk{b: make([]byte, 512)})
	start := time.Now()
	if err := a.Wait(ctx, 50*time.Millisecond); err == nil || time.Since(start) < 50*time.Millisecond {
		t.Errorf("nobody speaks: %v after %v", err, time.Since(start))
	}
	c := g.dial(ctx)
	done := make(chan error, 1)
	go func() { done <- a.Wait(ctx, 400*time.Millisecond) }()
	for range 8 { // each ping is a sign of life
		if _, err := c.Ping(ctx); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-done:
			t.Fatalf("it ended while a controller spoke: %v", err)
		case <-time.After(100 * time.Millisecond):
		}
	}
	if err := c.PowerOff(ctx); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Errorf("told to end: %v", err)
	}
}
