package tether_test

import (
	"context"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/vicsdk/vic-go/vic/tether"
)

// A machine that opens connections without end keeps no other out, and what it
// opened does not stay.
func TestFloodOfHandshakes(t *testing.T) {
	ctx := testContext(t)
	g := newGuest(t, nil)
	flood, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	from := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	opened := make(chan struct{}, 1000)
	for range 8 {
		wg.Go(func() {
			for flood.Err() == nil {
				c, err := from.DialContext(flood, "tcp", g.addr)
				if err != nil {
					continue
				}
				wg.Go(func() {
					defer c.Close()
					_, _ = io.Copy(io.Discard, c) // until the server has enough of it
				})
				select {
				case opened <- struct{}{}:
				case <-flood.Done():
					_ = c.Close()
				}
			}
		})
	}
	for range 200 { // it is in full swing
		<-opened
	}
	go func() {
		for range opened { //nolint:revive // the flood goes on
		}
	}()
	defer close(opened)
	defer wg.Wait()
	defer stop()
	for range 5 {
		if _, err := g.dial(ctx).Ping(ctx); err != nil {
			t.Fatal(err)
		}
	}
}

// What a controller once sent opens nothing again.
func TestReplay(t *testing.T) {
	ctx := testContext(t)
	g := newGuest(t, nil)
	signer, err := tether.NewControllerSigner(g.authority, testID, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", g.addr)
	if err != nil {
		t.Fatal(err)
	}
	said := &recorded{Conn: conn}
	c, err := tether.NewClient(ctx, said, tether.ClientConfig{Signer: signer, HostKey: g.authorizedKey(), ID: testID})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Signal(ctx, "SIGTERM"); err == nil {
		t.Fatal("there is no process to signal")
	}
	_ = c.Close()
	again, err := net.Dial("tcp", g.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	_ = again.SetDeadline(time.Now().Add(20 * time.Second))
	said.mu.Lock()
	_, _ = again.Write(said.b)
	said.mu.Unlock()
	// The server ends it: the keys are others each time.
	if _, err := io.Copy(io.Discard, again); err != nil {
		if e, ok := err.(net.Error); ok && e.Timeout() {
			t.Error("the server keeps the connection")
		}
	}
}

// recorded keeps what is written.
type recorded struct {
	net.Conn
	mu sync.Mutex
	b  []byte
}

func (r *recorded) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.b = append(r.b, p...)
	return r.Conn.Write(p)
}
