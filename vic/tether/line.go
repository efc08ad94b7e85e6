package tether

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// helloEvery is how often a controller says that it is there, until it is
// heard.
const helloEvery = 200 * time.Millisecond

// DialLine begins a connection over a serial line: port is the controller's end,
// as a connection to the machine that has the line. Whatever is still under way
// of others is skipped, and a connection that the guest has with another
// controller ends with ErrLineTaken. A line has one far end at a time, and on
// vSphere who has it keeps it: where the guest does not answer until ctx ends,
// another controller may be the reason. DialLine takes over port, also where it
// fails.
func DialLine(ctx context.Context, port net.Conn) (net.Conn, error) {
	var b [4]byte
	_, _ = rand.Read(b[:]) // It cannot fail (crypto/rand).
	l := &linePort{rw: port}
	c := newLineConn(binary.LittleEndian.Uint32(b[:]), lineWindow, l.write, func() { _ = port.Close() })
	welcome := make(chan struct{})
	go func() {
		ready := sync.OnceFunc(func() { close(welcome) })
		r := newFrameReader(port)
		for {
			f, err := r.next()
			if err != nil {
				if err == io.EOF {
					err = io.ErrUnexpectedEOF
				}
				c.fail(fmt.Errorf("serial line: %w", err))
				return
			}
			if f.epoch != c.epoch {
				continue
			}
			if f.kind == frameWelcome {
				ready()
				continue
			}
			c.receive(&f)
		}
	}()
	// The context bounds what is written, too, and a line that nobody reads.
	stop := context.AfterFunc(ctx, func() { c.fail(ctx.Err()) })
	defer stop()
	t := time.NewTicker(helloEvery)
	defer t.Stop()
	for {
		if err := l.write(&frame{kind: frameHello, epoch: c.epoch}); err != nil {
			c.fail(err)
		}
		select {
		case <-welcome:
			if !stop() {
				return nil, fmt.Errorf("serial line: %w", ctx.Err())
			}
			return c, nil
		case <-c.end:
			if ctx.Err() != nil {
				return nil, fmt.Errorf("serial line: the guest does not answer; another controller may have the line: %w", ctx.Err())
			}
			c.mu.Lock()
			defer c.mu.Unlock()
			return nil, c.err
		case <-t.C:
		}
	}
}

// linePort writes whole frames.
type linePort struct {
	mu  sync.Mutex
	rw  io.ReadWriteCloser
	buf []byte
}

func (l *linePort) write(f *frame) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buf = f.append(l.buf[:0])
	_, err := l.rw.Write(l.buf)
	return err
}

// A Line is the guest's end of a serial line, a net.Listener. It has one
// connection at a time: a controller that begins one ends the one before.
type Line struct {
	port    linePort
	accept  chan *lineConn
	control chan frame // answers that the reader must not wait for
	end     chan struct{}
	once    sync.Once
	err     error
}

// ListenLine serves a serial port until Close, which closes it.
func ListenLine(port io.ReadWriteCloser) *Line {
	l := &Line{port: linePort{rw: port}, accept: make(chan *lineConn), control: make(chan frame, 8), end: make(chan struct{})}
	go l.read()
	go func() {
		for {
			select {
			case <-l.end:
				return
			case f := <-l.control:
				_ = l.port.write(&f)
			}
		}
	}()
	return l
}

func (l *Line) read() {
	var c *lineConn
	r := newFrameReader(l.port.rw)
	for {
		f, err := r.next()
		if err != nil {
			l.stop(err)
			if c != nil {
				c.fail(err)
			}
			return
		}
		switch {
		case f.kind == frameHello && (c == nil || c.epoch != f.epoch):
			if c != nil {
				c.fail(ErrLineTaken)
			}
			c = newLineConn(f.epoch, lineGuestWindow, l.port.write, nil)
			l.reply(frame{kind: frameWelcome, epoch: f.epoch})
			select {
			case l.accept <- c:
			case <-l.end:
			}
		case c == nil || c.epoch != f.epoch || c.ended():
			if f.kind != frameReset && f.kind != frameBye {
				l.reply(frame{kind: frameReset, epoch: f.epoch})
			}
		case f.kind == frameHello:
			l.reply(frame{kind: frameWelcome, epoch: f.epoch})
		default:
			c.receive(&f)
		}
	}
}

// reply sends a frame soon, or, where too many wait, never: it is asked for
// again.
func (l *Line) reply(f frame) {
	select {
	case l.control <- f:
	default:
	}
}

func (c *lineConn) ended() bool {
	select {
	case <-c.end:
		return true
	default:
		return false
	}
}

// Accept implements net.Listener.
func (l *Line) Accept() (net.Conn, error) {
	select {
	case c := <-l.accept:
		return c, nil
	case <-l.end:
		return nil, l.err
	}
}

// Close implements net.Listener.
func (l *Line) Close() error {
	l.stop(net.ErrClosed)
	return nil
}

func (l *Line) stop(err error) {
	l.once.Do(func() {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		l.err = err
		close(l.end)
		_ = l.port.rw.Close()
	})
}

// Addr implements net.Listener.
func (l *Line) Addr() net.Addr { return lineAddr{} }
