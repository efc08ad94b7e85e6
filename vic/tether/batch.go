package tether

import (
	"errors"
	"net"
	"sync"
	"time"
)

const (
	// batchSize is how many written bytes may wait while others are on their way.
	batchSize = 64 << 10
	// batchLinger is how long the rest may take of a connection that was closed.
	batchLinger = time.Second
)

// A batchConn passes on together what is written while it is busy, or before its
// writer next waits: SSH writes each message by itself, and each would be a
// packet of the network. Write returns before the bytes are on their way; what goes
// wrong there is the error of the next one.
type batchConn struct {
	net.Conn

	mu     sync.Mutex
	cond   *sync.Cond // for those who write
	out    []byte     // that waits
	spare  []byte     // to be used next
	busy   bool       // passOn runs
	closed bool
	err    error
}

// batched makes a connection pass on in batches, if it does not by itself.
func batched(conn net.Conn) net.Conn {
	switch conn.(type) {
	case *batchConn, *lineConn:
		return conn
	}
	c := &batchConn{Conn: conn}
	c.cond = sync.NewCond(&c.mu)
	return c
}

// Read implements net.Conn.
func (c *batchConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.closed {
			err = net.ErrClosed
		}
	}
	return n, err
}

// Write implements net.Conn.
func (c *batchConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.out) >= batchSize && c.err == nil && !c.closed {
		c.cond.Wait()
	}
	switch {
	case c.closed:
		return 0, net.ErrClosed
	case c.err != nil:
		return 0, c.err
	}
	c.out = append(c.out, p...)
	if !c.busy {
		c.busy = true
		go c.passOn()
	}
	return len(p), nil
}

// passOn writes until nothing waits.
func (c *batchConn) passOn() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.out) > 0 && c.err == nil {
		b := c.out
		c.out, c.spare = c.spare[:0], nil
		c.mu.Unlock()
		_, err := c.Conn.Write(b)
		c.mu.Lock()
		if c.spare = b; cap(b) > 2*batchSize {
			c.spare = nil
		}
		c.err = err
		c.cond.Broadcast()
	}
	c.busy = false
	if c.closed {
		_ = c.Conn.Close()
	}
}

// Close ends the connection. What was written before is passed on, for a second
// at most, after Close has returned.
func (c *batchConn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	c.closed = true
	c.cond.Broadcast()
	if !c.busy {
		return c.Conn.Close()
	}
	return errors.Join(c.Conn.SetReadDeadline(time.Unix(1, 0)), c.Conn.SetWriteDeadline(time.Now().Add(batchLinger)))
}

// SetDeadline implements net.Conn.
func (c *batchConn) SetDeadline(t time.Time) error { return c.set(c.Conn.SetDeadline, t) }

// SetReadDeadline implements net.Conn.
func (c *batchConn) SetReadDeadline(t time.Time) error { return c.set(c.Conn.SetReadDeadline, t) }

// SetWriteDeadline implements net.Conn.
func (c *batchConn) SetWriteDeadline(t time.Time) error { return c.set(c.Conn.SetWriteDeadline, t) }

func (c *batchConn) set(deadline func(time.Time) error, t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	return deadline(t)
}
