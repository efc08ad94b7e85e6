package tether

import (
	"bytes"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"time"
)

// slowConn counts writes, which wait for go.
type slowConn struct {
	net.Conn
	writes int
	got    bytes.Buffer
	turn   chan struct{}
	fail   atomic.Pointer[error]
}

func (c *slowConn) Write(p []byte) (int, error) {
	<-c.turn
	c.writes++
	if err := c.fail.Load(); err != nil {
		return 0, *err
	}
	return c.got.Write(p)
}
func (c *slowConn) Close() error                     { close(c.turn); return nil }
func (c *slowConn) SetReadDeadline(time.Time) error  { return nil }
func (c *slowConn) SetWriteDeadline(time.Time) error { return nil }

// settle waits until nothing is under way.
func settle(t *testing.T, c *batchConn) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		c.mu.Lock()
		busy := c.busy
		c.mu.Unlock()
		if !busy {
			return
		}
		if time.Now().After(end) {
			t.Fatal("it does not pass on")
		}
	}
}

func TestBatch(t *testing.T) {
	slow := &slowConn{turn: make(chan struct{})}
	c := batched(slow).(*batchConn)
	var want bytes.Buffer
	for i := range 100 {
		p := bytes.Repeat([]byte{byte(i)}, i)
		want.Write(p)
		if n, err := c.Write(p); n != i || err != nil {
			t.Fatal(n, err)
		}
	}
	go func() {
		for range 2 {
			slow.turn <- struct{}{}
		}
	}()
	settle(t, c)
	if slow.writes > 2 || !bytes.Equal(slow.got.Bytes(), want.Bytes()) {
		t.Errorf("%d writes, %d bytes, want %d", slow.writes, slow.got.Len(), want.Len())
	}

	// Where nobody takes it, no more than so much is kept. One turn may be left.
	took := make(chan int, 1000)
	go func() {
		for n := 0; ; n += 1 << 10 {
			took <- n
			if _, err := c.Write(make([]byte, 1<<10)); err != nil {
				close(took)
				return
			}
		}
	}()
	time.Sleep(100 * time.Millisecond)
	if n := len(took); n < 64 || n > 3*batchSize>>10+3 {
		t.Errorf("%d KiB were taken", n)
	}
	broken := errors.New("broken")
	slow.fail.Store(&broken)
	slow.turn <- struct{}{}
	for range took {
	}
	if _, err := c.Write([]byte("x")); !errors.Is(err, broken) {
		t.Errorf("after a failure: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if _, err := c.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// TestBatchClose: what was written before Close arrives; who does not take it is
// not waited for; a reader ends.
func TestBatchClose(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	pair := func() (net.Conn, net.Conn) {
		near, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		far, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		return batched(near), far
	}
	near, far := pair()
	defer far.Close()
	read := make(chan error, 1)
	go func() {
		_, err := near.Read(make([]byte, 1))
		read <- err
	}()
	for range 50 {
		if _, err := near.Write(make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
	}
	if err := near.Close(); err != nil {
		t.Error(err)
	}
	if err := <-read; !errors.Is(err, net.ErrClosed) {
		t.Errorf("read: %v", err)
	}
	if b, err := io.ReadAll(far); len(b) != 50_000 || err != nil {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	if err := near.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed twice: %v", err)
	}

	near, far = pair()
	defer far.Close()
	full := make(chan error, 1)
	go func() {
		for {
			if _, err := near.Write(make([]byte, 32<<10)); err != nil {
				full <- err
				return
			}
		}
	}()
	time.Sleep(200 * time.Millisecond)
	began := time.Now()
	if err := near.Close(); err != nil {
		t.Error(err)
	}
	if err := <-full; !errors.Is(err, net.ErrClosed) {
		t.Errorf("a writer that waited: %v", err)
	}
	if d := time.Since(began); d > batchLinger/2 {
		t.Errorf("Close took %v", d)
	}
	settle(t, near.(*batchConn))
}
