package tether

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

const (
	// lineGuestWindow is how many bytes may be under way to a guest, whose kernel
	// holds 4096 of a terminal's input that nobody has read yet.
	lineGuestWindow = 3 << 10
	// lineWindow is how many may be under way to a controller.
	lineWindow = lineQueue

	lineBuffer = 64 << 10 // bytes that came and were not read
	// lineQueue is how many written bytes wait: few, because pings wait behind them.
	lineQueue = 8 << 10

	lineRetry   = 300 * time.Millisecond
	lineSlowest = 3 * time.Second // between tries
	lineIdle    = 10 * time.Second
	lineDead    = 2 * time.Minute // of silence
	lineLinger  = time.Second     // for the rest, when closed
)

// A lineConn is a connection over a serial line, a net.Conn: what is lost is sent
// again from there on, and no more is sent than the other side takes.
type lineConn struct {
	epoch  uint32
	window uint32 // how many bytes may be under way to this side
	send   func(*frame) error
	done   func() // called once, after the end

	mu   sync.Mutex
	cond *sync.Cond // for those who read, write and close
	kick chan struct{}
	end  chan struct{} // closed at the end

	out       []byte // from una on
	una       uint32 // the oldest byte that is not confirmed
	next      uint32 // the next byte to send
	sent      uint32 // the end of what was sent ever
	edge      uint32 // the end of what the other side takes
	in        []byte // from rcv-len(in) on
	rcv       uint32 // the next byte that is expected
	answer    byte   // kind of the frame that is owed, or 0
	nacked    bool   // what is missing at rcv was told
	heard     time.Time
	moved     time.Time // since when what is under way has been
	retry     time.Duration
	finished  bool // the other side has closed
	closed    bool // this side has
	err       error
	readBy    lineDeadline
	writeBy   lineDeadline
	whenEnded sync.Once
}

type lineDeadline struct {
	at    time.Time
	timer *time.Timer
}

func (d *lineDeadline) over() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }

func newLineConn(epoch, window uint32, send func(*frame) error, done func()) *lineConn {
	now := time.Now()
	c := &lineConn{
		epoch: epoch, window: window, send: send, done: done, kick: make(chan struct{}, 1), end: make(chan struct{}),
		edge: lineGuestWindow, heard: now, moved: now, retry: lineRetry,
	}
	c.cond = sync.NewCond(&c.mu)
	go c.pump()
	return c
}

// wake has the pump look. c is locked or not.
func (c *lineConn) wake() {
	select {
	case c.kick <- struct{}{}:
	default:
	}
}

// fail ends the connection. What was received can still be read where the error
// is an io.EOF.
func (c *lineConn) fail(err error) {
	c.mu.Lock()
	if c.err == nil {
		c.err = err
		close(c.end)
	}
	c.cond.Broadcast()
	c.mu.Unlock()
	c.whenEnded.Do(func() {
		if c.done != nil {
			c.done()
		}
	})
}

// pump sends.
func (c *lineConn) pump() {
	t := time.NewTimer(0)
	defer t.Stop()
	spoke := time.Now()
	for {
		f, pause, err := c.compose(spoke)
		switch {
		case err != nil:
			c.fail(err)
			return
		case f != nil:
			if err := c.send(f); err != nil {
				c.fail(fmt.Errorf("serial line: %w", err))
				return
			}
			spoke = time.Now()
			continue
		}
		t.Reset(pause)
		select {
		case <-c.end:
			return
		case <-c.kick:
		case <-t.C:
		}
	}
}

// compose makes the next frame, or tells when to look again.
func (c *lineConn) compose(spoke time.Time) (*frame, time.Duration, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if c.err != nil {
		return nil, 0, c.err
	}
	if now.Sub(c.heard) > lineDead {
		return nil, 0, fmt.Errorf("serial line: %w: nothing was heard for %v", os.ErrDeadlineExceeded, lineDead)
	}
	f := &frame{kind: frameData, epoch: c.epoch, seq: c.next, ack: c.rcv, window: min(c.window, uint32(lineBuffer-len(c.in)))}
	late := len(c.out) > 0 && now.Sub(c.moved) >= c.retry
	if late {
		c.moved, c.retry = now, min(2*c.retry, lineSlowest)
		if c.next == c.una { // there was no room
			f.kind = frameProbe
			c.answer = 0
			return f, 0, nil
		}
		c.next = c.una
		f.seq = c.next
	}
	left := min(uint32(len(c.out))-(c.next-c.una), c.edge-c.next, framePayload)
	if int32(c.edge-c.next) <= 0 {
		left = 0
	}
	switch {
	case left > 0:
		if c.next == c.una && !late {
			c.moved = now
		}
		at := c.next - c.una
		f.payload = append([]byte(nil), c.out[at:at+left]...)
		c.next += left
		if int32(c.next-c.sent) > 0 {
			c.sent = c.next
		}
		if c.answer == frameNack {
			f.kind = frameNack
		}
	case c.answer != 0:
		f.kind = c.answer
	case now.Sub(spoke) >= lineIdle:
	default:
		pause := lineIdle - now.Sub(spoke)
		if len(c.out) > 0 {
			pause = min(pause, c.retry-now.Sub(c.moved))
		}
		return nil, max(pause, time.Millisecond), nil
	}
	c.answer = 0
	return f, 0, nil
}

// receive takes a frame of this epoch.
func (c *lineConn) receive(f *frame) {
	switch f.kind {
	case frameBye:
		c.mu.Lock()
		c.finished = true
		c.mu.Unlock()
		c.fail(io.EOF)
		return
	case frameReset:
		c.fail(ErrLineTaken)
		return
	case frameData, frameNack, frameProbe:
	default:
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.heard = time.Now()
	if n := f.ack - c.una; n <= c.sent-c.una {
		if n > 0 {
			c.out = c.out[n:]
			c.una = f.ack
			if int32(c.next-c.una) < 0 {
				c.next = c.una
			}
			c.moved, c.retry = c.heard, lineRetry
			c.cond.Broadcast()
		}
		c.edge = f.ack + min(f.window, lineWindow)
		if f.kind == frameNack {
			c.next = c.una
		}
	}
	if f.kind == frameProbe {
		c.answer = frameData
	}
	if len(f.payload) > 0 {
		switch {
		case c.answer == 0:
			c.answer = frameData
		}
		switch {
		case f.seq == c.rcv && len(c.in)+len(f.payload) <= lineBuffer:
			c.in = append(c.in, f.payload...)
			c.rcv += uint32(len(f.payload))
			c.nacked = false
			c.cond.Broadcast()
		case int32(f.seq-c.rcv) > 0 && !c.nacked:
			c.answer, c.nacked = frameNack, true
		}
	}
	c.wake()
}

// Read implements net.Conn.
func (c *lineConn) Read(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		switch {
		case c.closed:
			return 0, net.ErrClosed
		case len(c.in) > 0 && (c.err == nil || c.finished):
			full := uint32(lineBuffer-len(c.in)) < c.window
			n := copy(p, c.in)
			if c.in = c.in[n:]; len(c.in) == 0 {
				c.in = nil
			}
			if full && uint32(lineBuffer-len(c.in)) >= c.window && c.answer == 0 {
				c.answer = frameData
				c.wake()
			}
			return n, nil
		case c.err != nil:
			return 0, c.err
		case c.readBy.over():
			return 0, os.ErrDeadlineExceeded
		case len(p) == 0:
			return 0, nil
		}
		c.cond.Wait()
	}
}

// Write implements net.Conn. It returns when p is on its way, not when it has
// arrived.
func (c *lineConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	done := 0
	for {
		switch {
		case c.closed:
			return done, net.ErrClosed
		case c.finished:
			return done, syscall.EPIPE
		case c.err != nil:
			return done, c.err
		case c.writeBy.over():
			return done, os.ErrDeadlineExceeded
		}
		if n := min(len(p)-done, lineQueue-len(c.out)); n > 0 {
			if len(c.out) == 0 {
				c.moved = time.Now()
			}
			c.out = append(c.out, p[done:done+n]...)
			done += n
			c.wake()
		}
		if done == len(p) {
			return done, nil
		}
		c.cond.Wait()
	}
}

// Close sends what was written, for at most a second, and ends the connection.
func (c *lineConn) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return net.ErrClosed
	}
	c.closed = true
	c.cond.Broadcast()
	t := time.AfterFunc(lineLinger, func() { c.fail(os.ErrDeadlineExceeded) })
	defer t.Stop()
	for len(c.out) > 0 && c.err == nil {
		c.cond.Wait()
	}
	whole := c.err == nil
	c.mu.Unlock()
	if whole {
		_ = c.send(&frame{kind: frameBye, epoch: c.epoch})
	}
	c.fail(net.ErrClosed)
	return nil
}

// LocalAddr implements net.Conn.
func (c *lineConn) LocalAddr() net.Addr { return lineAddr{} }

// RemoteAddr implements net.Conn.
func (c *lineConn) RemoteAddr() net.Addr { return lineAddr{} }

// SetDeadline implements net.Conn.
func (c *lineConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// SetReadDeadline implements net.Conn.
func (c *lineConn) SetReadDeadline(t time.Time) error { return c.set(&c.readBy, t) }

// SetWriteDeadline implements net.Conn.
func (c *lineConn) SetWriteDeadline(t time.Time) error { return c.set(&c.writeBy, t) }

func (c *lineConn) set(d *lineDeadline, t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	d.at = t
	if !t.IsZero() {
		d.timer = time.AfterFunc(time.Until(t), func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.cond.Broadcast()
		})
	}
	c.cond.Broadcast()
	return nil
}

type lineAddr struct{}

// Network implements net.Addr.
func (lineAddr) Network() string { return "serial" }

// String implements net.Addr.
func (lineAddr) String() string { return "serial line" }
