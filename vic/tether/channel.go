package tether

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"
	"unicode"

	"golang.org/x/crypto/ssh"
)

const (
	// openWait is how long a guest may take to open a channel or to refuse it.
	openWait = 30 * time.Second
	// closeWait is how long a guest may take to confirm that a channel is
	// closed. SSH's own Close only asks for it: what waits for the channel's end
	// waits for the guest.
	closeWait = 5 * time.Second
)

// A channel is a controller's. A guest that does not confirm its end in time
// loses the connection, so that nobody waits on it for ever.
type channel struct {
	ssh.Channel
	out    channelReader
	err    channelReader
	conn   ssh.Conn
	closed chan struct{} // closed by Close
	gone   chan struct{} // closed when the guest has closed it, or the connection has ended
	once   sync.Once
}

// adopt makes a channel of an open one. free is called at its end.
func adopt(conn ssh.Conn, ch ssh.Channel, in <-chan *ssh.Request, free func()) (*channel, <-chan *ssh.Request) {
	c := &channel{Channel: ch, conn: conn, closed: make(chan struct{}), gone: make(chan struct{})}
	c.out = channelReader{r: ch, closed: c.closed}
	c.err = channelReader{r: ch.Stderr(), closed: c.closed}
	out := make(chan *ssh.Request)
	go func() {
		defer free()
		defer close(out)
		defer close(c.gone)
		for r := range in {
			select {
			case out <- r:
			case <-c.closed:
				refuse(r)
			}
		}
	}()
	return c, out
}

// Close ends the channel. Where the guest has not ended it before, nothing
// more is read from it.
func (c *channel) Close() error {
	err := c.Channel.Close()
	c.once.Do(func() {
		select {
		case <-c.gone:
			return
		default:
		}
		close(c.closed)
		// What still comes must not be kept.
		go c.out.drain()
		go c.err.drain()
		go func() {
			t := time.NewTimer(closeWait)
			defer t.Stop()
			select {
			case <-c.gone:
			case <-t.C:
				_ = c.conn.Close()
			}
		}()
	})
	return err
}

// Read implements io.Reader.
func (c *channel) Read(p []byte) (int, error) { return c.out.Read(p) }

// Stderr implements ssh.Channel.
func (c *channel) Stderr() io.ReadWriter {
	return struct {
		io.Reader
		io.Writer
	}{&c.err, c.Channel.Stderr()}
}

// A channelReader reads a stream of a channel until it is closed, and then drops
// what still comes. SSH's streams wake one reader only.
type channelReader struct {
	mu     sync.Mutex
	r      io.Reader
	closed <-chan struct{}
}

// Read implements io.Reader.
func (c *channelReader) Read(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n, err := c.r.Read(p)
	select {
	case <-c.closed:
	default:
		return n, err
	}
	if err == nil {
		_, _ = io.Copy(io.Discard, c.r)
	}
	return 0, net.ErrClosed
}

func (c *channelReader) drain() {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, _ = io.Copy(io.Discard, c.r)
}

var errOpenWait = errors.New("the guest neither opens nor refuses a channel")

// open opens a channel within ctx. Its requests must be read until they end.
func (c *Client) open(ctx context.Context, kind string, params any) (ssh.Channel, <-chan *ssh.Request, error) {
	b, err := json.Marshal(params)
	if err != nil {
		return nil, nil, err
	}
	if len(b) > maxDocument {
		return nil, nil, fmt.Errorf("%w: %d bytes of parameters, more than %d", ErrInvalid, len(b), maxDocument)
	}
	select {
	case c.slots <- struct{}{}:
	default:
		return nil, nil, fmt.Errorf("%d channels are open, or not yet closed by the guest", maxChannels)
	}
	free := func() { <-c.slots }
	type opened struct {
		ch       ssh.Channel
		requests <-chan *ssh.Request
		err      error
	}
	result := make(chan opened, 1)
	go func() {
		ch, requests, err := c.conn.OpenChannel(kind, b)
		if err != nil {
			free()
			result <- opened{err: err}
			return
		}
		var own *channel
		var out <-chan *ssh.Request
		c.mu.Lock()
		own, out = adopt(c.conn, ch, requests, func() {
			c.mu.Lock()
			delete(c.own, own)
			c.mu.Unlock()
			free()
		})
		c.own[own] = struct{}{}
		off := c.off
		c.mu.Unlock()
		if off {
			_ = own.Close()
		}
		result <- opened{own, out, nil}
	}()
	wctx, cancel := context.WithTimeoutCause(ctx, openWait, errOpenWait)
	defer cancel()
	select {
	case o := <-result:
		return o.ch, o.requests, o.err
	case <-wctx.Done():
		go func() {
			if o := <-result; o.err == nil {
				go ssh.DiscardRequests(o.requests)
				_ = o.ch.Close()
			}
		}()
		if ctx.Err() != nil {
			return nil, nil, ctx.Err()
		}
		_ = c.conn.Close()
		return nil, nil, errOpenWait
	}
}

// readAnswer reads the one document that a guest answers on a channel. It obeys
// ctx also where the guest does not end the channel.
func readAnswer(ctx context.Context, ch ssh.Channel) ([]byte, error) {
	type answer struct {
		b   []byte
		err error
	}
	result := make(chan answer, 1)
	go func() {
		b, err := io.ReadAll(io.LimitReader(ch, maxDocument+1))
		result <- answer{b, err}
	}()
	select {
	case a := <-result:
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return a.b, a.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// plain makes a guest's words fit to be shown: bounded, and without what a
// terminal would take for orders.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) && r != '\n' && r != '\t' || r == '\u2028' || r == '\u2029' || unicode.Is(unicode.Bidi_Control, r) {
			return unicode.ReplacementChar
		}
		return r
	}, truncate(strings.ToValidUTF8(s, "\ufffd"), 4096))
}

// check refuses an end that no process can have come to.
func (e *Exit) check() error {
	if e.Code < 0 || e.Code > 255 {
		code := e.Code
		*e = Exit{}
		return fmt.Errorf("%w: exit: code %d is not between 0 and 255", ErrInvalid, code)
	}
	e.Signal, e.Error = plain(e.Signal), plain(e.Error)
	return nil
}
