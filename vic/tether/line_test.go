package tether_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/vicsdk/vic-go/vic/tether"
)

// uart is a virtual machine's serial port, of which the far end is whoever has
// connected: one at a time, the next waits. What is sent to nobody is gone.
type uart struct {
	net.Listener
	mu  sync.Mutex
	far net.Conn
	in  *io.PipeReader
	inW *io.PipeWriter
	// mangle changes what passes, in either direction; nil passes all on.
	mangle func(p []byte) []byte
	// many takes several far ends at once, which all hear the guest.
	many   bool
	others []net.Conn
}

func newUART(t testing.TB) *uart {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	u := &uart{Listener: l}
	u.in, u.inW = io.Pipe()
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			u.mu.Lock()
			u.far = c
			many := u.many
			u.mu.Unlock()
			if many {
				u.mu.Lock()
				u.others = append(u.others, c)
				u.mu.Unlock()
				wg.Go(func() { u.take(c) })
				continue
			}
			u.take(c)
		}
	})
	t.Cleanup(func() {
		_ = u.Close()
		wg.Wait()
	})
	return u
}

func (u *uart) take(c net.Conn) {
	b := make([]byte, 512)
	for {
		n, err := c.Read(b)
		if err != nil {
			break
		}
		if _, err := u.inW.Write(u.pass(b[:n])); err != nil {
			break
		}
	}
	u.mu.Lock()
	if u.far == c {
		u.far = nil
	}
	u.mu.Unlock()
	_ = c.Close()
}

func (u *uart) pass(p []byte) []byte {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.mangle == nil {
		return p
	}
	return u.mangle(p)
}

func (u *uart) setMangle(f func([]byte) []byte) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.mangle = f
}

// cut drops the connection of the far end.
func (u *uart) cut() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.far != nil {
		_ = u.far.Close()
	}
}

func (u *uart) Read(p []byte) (int, error) { return u.in.Read(p) }

func (u *uart) Write(p []byte) (int, error) {
	u.mu.Lock()
	far := append([]net.Conn(nil), u.others...)
	if !u.many && u.far != nil {
		far = append(far, u.far)
	}
	u.mu.Unlock()
	for _, c := range far {
		_, _ = c.Write(u.pass(bytes.Clone(p)))
	}
	return len(p), nil
}

func (u *uart) Close() error {
	_ = u.inW.Close()
	_ = u.in.Close()
	u.cut()
	return u.Listener.Close()
}

func (u *uart) dial(ctx context.Context) (net.Conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, "tcp", u.Addr().String())
	if err != nil {
		return nil, err
	}
	return tether.DialLine(ctx, c)
}

// echoing serves a line that sends back what it gets.
func echoing(t testing.TB, u *uart) *tether.Line {
	t.Helper()
	l := tether.ListenLine(u)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				_, _ = io.Copy(c, c)
				_ = c.Close()
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		wg.Wait()
	})
	return l
}

// echo sends n bytes and wants them back.
func echo(t testing.TB, c net.Conn, n int) {
	t.Helper()
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(rand.Uint32())
	}
	sent := make(chan error, 1)
	go func() {
		_, err := c.Write(p)
		sent <- err
	}()
	got := make([]byte, n)
	if _, err := io.ReadFull(c, got); err != nil {
		t.Errorf("read: %v", err)
	}
	if err := <-sent; err != nil {
		t.Errorf("write: %v", err)
	}
	if sha256.Sum256(got) != sha256.Sum256(p) {
		t.Error("other bytes came back than were sent")
	}
}

func TestLineCarries(t *testing.T) {
	u := newUART(t)
	echoing(t, u)
	c, err := u.dial(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	echo(t, c, 4<<20)
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a read after the close: %v", err)
	}
}

// A line that loses, changes and adds bytes loses none of a connection's.
func TestLineLoses(t *testing.T) {
	for name, mangle := range map[string]func(p []byte) []byte{
		"lost": func(p []byte) []byte {
			if i := rand.IntN(8000); i < len(p) {
				return append(p[:i], p[min(len(p), i+1+rand.IntN(40)):]...)
			}
			return p
		},
		"changed": func(p []byte) []byte {
			if i := rand.IntN(8000); i < len(p) {
				p[i] ^= 1 << rand.IntN(8)
			}
			return p
		},
		"added": func(p []byte) []byte {
			if rand.IntN(30) == 0 {
				return append(append([]byte(nil), "~[  0.1] kernel says a word}~"...), p...)
			}
			return p
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			u := newUART(t)
			echoing(t, u)
			u.setMangle(mangle)
			c, err := u.dial(testContext(t))
			if err != nil {
				t.Fatal(err)
			}
			echo(t, c, 128<<10)
			_ = c.Close()
		})
	}
}

// Controllers come one after the other, whatever the one before left under way.
func TestLineControllersInTurn(t *testing.T) {
	u := newUART(t)
	echoing(t, u)
	for i := range 20 {
		c, err := u.dial(testContext(t))
		if err != nil {
			t.Fatal(err)
		}
		echo(t, c, 1000)
		switch i % 3 {
		case 0: // in the middle of a frame, with answers under way
			_, _ = c.Write(make([]byte, 40<<10))
			u.cut()
		case 1:
			u.cut()
		}
		_ = c.Close()
	}
}

// While one controller has the line the next waits, and hears why.
func TestLineIsBusy(t *testing.T) {
	u := newUART(t)
	echoing(t, u)
	ctx := testContext(t)
	first, err := u.dial(ctx)
	if err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	if _, err := u.dial(short); !errors.Is(err, context.DeadlineExceeded) || !bytes.Contains([]byte(err.Error()), []byte("another controller")) {
		t.Errorf("a second controller: %v", err)
	}
	echo(t, first, 1000)
	waiting := make(chan error, 1)
	go func() {
		c, err := u.dial(ctx)
		if err == nil {
			_ = c.Close()
		}
		waiting <- err
	}()
	_ = first.Close()
	if err := <-waiting; err != nil {
		t.Errorf("the one that waited: %v", err)
	}
}

// Where the far end lets two in, the later one has the line.
func TestLineIsTaken(t *testing.T) {
	u := newUART(t)
	u.mu.Lock()
	u.many = true
	u.mu.Unlock()
	echoing(t, u)
	ctx := testContext(t)
	first, err := u.dial(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	second, err := u.dial(ctx)
	if err != nil {
		t.Fatal(err)
	}
	echo(t, second, 1000)
	_, _ = first.Write([]byte("still there?"))
	if _, err := first.Read(make([]byte, 1)); !errors.Is(err, tether.ErrLineTaken) {
		t.Errorf("the former controller: %v", err)
	}
	echo(t, second, 1000)
	_ = second.Close()
}

func TestLineDeadlines(t *testing.T) {
	u := newUART(t)
	l := tether.ListenLine(u)
	defer l.Close()
	accepted := make(chan net.Conn, 1)
	go func() {
		if c, err := l.Accept(); err == nil {
			accepted <- c
		}
	}()
	c, err := u.dial(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	guest := <-accepted
	defer guest.Close()
	_ = c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read: %v", err)
	}
	_ = c.SetReadDeadline(time.Time{})
	read := make(chan error, 1)
	go func() {
		_, err := c.Read(make([]byte, 1))
		read <- err
	}()
	_ = c.SetReadDeadline(time.Unix(1, 0))
	if err := <-read; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a read under way: %v", err)
	}
	// Nobody reads: what is taken is bounded.
	_ = c.SetWriteDeadline(time.Now().Add(time.Second))
	n, err := c.Write(make([]byte, 1<<20))
	if !errors.Is(err, os.ErrDeadlineExceeded) || n < 64<<10 || n > 128<<10 {
		t.Errorf("write: %d bytes, %v", n, err)
	}
}

// A guest that is not there costs the time that the context gives.
func TestLineOfSilentGuest(t *testing.T) {
	u := newUART(t)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := u.dial(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}

// The protocol runs over a line as over anything else.
func TestServerOnLine(t *testing.T) {
	g := newGuest(t, nil)
	u := newUART(t)
	ctx, cancel := context.WithCancel(testContext(t))
	served := make(chan error, 1)
	go func() { served <- g.server.Serve(ctx, tether.ListenLine(u)) }()
	defer func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()
	signer, err := tether.NewControllerSigner(g.authority, testID, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	reach := func() *tether.Client {
		conn, err := u.dial(ctx)
		if err != nil {
			t.Fatal(err)
		}
		c, err := tether.NewClient(ctx, conn, tether.ClientConfig{Signer: signer, HostKey: g.authorizedKey(), ID: testID})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	c := reach()
	if _, err := c.Ping(ctx); err != nil {
		t.Error(err)
	}
	u.cut()
	<-c.Done()
	_ = c.Close()
	c = reach()
	g.run("head -c 1000000 /dev/zero; echo end >&2; exit 3")
	e, out, errOut := result(t, ctx, c, nil)
	if e.Code != 3 || len(out) != 1000000 || errOut != "end\n" {
		t.Errorf("exit %+v, %d bytes, %q", e, len(out), errOut)
	}
	_ = c.Close()
}
