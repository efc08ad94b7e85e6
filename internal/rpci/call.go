package rpci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// ErrNotFound reports a key that the host does not have.
var ErrNotFound = errors.New("rpci: no value found")

// A Client sends requests over a stream, one at a time. Its methods may be
// called by several goroutines.
type Client struct {
	mu      sync.Mutex
	w       io.Writer
	seq     uint32
	answers chan answer
	retry   time.Duration
}

type answer struct {
	seq     uint32
	payload []byte
	err     error
}

// NewClient speaks RPCI over rw. It starts one goroutine that reads rw until
// it fails; closing rw, which is the caller's, ends it. A request that has no
// answer after retry (one second where that is zero) is sent again, and after twice
// as long each further time: on a machine that has too much to do, the answers are
// on their way, and would be so again and again.
func NewClient(rw io.ReadWriter, retry time.Duration) *Client {
	if retry <= 0 {
		retry = time.Second
	}
	c := &Client{w: rw, answers: make(chan answer, 4), retry: retry}
	go c.read(NewReader(rw))
	return c
}

func (c *Client) read(r *Reader) {
	defer close(c.answers)
	for {
		seq, p, err := r.Next()
		a := answer{seq, p, err}
		select {
		case c.answers <- a:
		default:
			// Nobody waits: answers to requests given up long ago.
			select {
			case <-c.answers:
			default:
			}
			c.answers <- a
		}
		if err != nil {
			return
		}
	}
}

// Call sends one request and returns the answer without its leading "1 ".
// An answer of failure is an error that carries the host's words.
func (c *Client) Call(ctx context.Context, request string) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seq++
	f, err := AppendFrame(nil, c.seq, []byte(request))
	if err != nil {
		return "", err
	}
	for pause := c.retry; ; pause *= 2 {
		if _, err := c.w.Write(f); err != nil {
			return "", fmt.Errorf("rpci: %w", err)
		}
		ok, s, err := c.await(ctx, time.After(pause))
		if ok || err != nil {
			return s, err
		}
	}
}

func (c *Client) await(ctx context.Context, again <-chan time.Time) (done bool, s string, err error) {
	for {
		select {
		case <-ctx.Done():
			return false, "", ctx.Err()
		case <-again:
			return false, "", nil
		case a, open := <-c.answers:
			if !open {
				return false, "", fmt.Errorf("rpci: %w", io.ErrClosedPipe)
			}
			if a.err != nil {
				return false, "", fmt.Errorf("rpci: %w", a.err)
			}
			if a.seq != c.seq {
				continue
			}
			s, err = parseAnswer(string(a.payload))
			return true, s, err
		}
	}
}

func parseAnswer(p string) (string, error) {
	switch {
	case p == "1" || strings.HasPrefix(p, "1 "):
		return strings.TrimPrefix(p[1:], " "), nil
	case strings.HasPrefix(p, "0 No value found"):
		return "", ErrNotFound
	}
	return "", fmt.Errorf("rpci: the host refused: %.200q", p)
}

// Get asks for a key such as "guestinfo.vic.config". A key that does not exist
// is ErrNotFound.
func (c *Client) Get(ctx context.Context, key string) (string, error) {
	return c.Call(ctx, "info-get "+key)
}

// Set gives a key a value.
func (c *Client) Set(ctx context.Context, key, value string) error {
	_, err := c.Call(ctx, "info-set "+key+" "+value)
	return err
}

// A Handler answers one request. What it returns is the whole answer, with
// its leading "1 " or "0 ".
type Handler func(request string) string

// Serve answers requests from rw with h until rw fails; io.EOF is no error.
// The caller closes rw.
func Serve(rw io.ReadWriter, h Handler) error {
	r := NewReader(rw)
	var out []byte
	for {
		seq, p, err := r.Next()
		if err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		a := h(string(p))
		out, err = AppendFrame(out[:0], seq, []byte(a))
		if err != nil {
			out, err = AppendFrame(out[:0], seq, []byte("0 Answer above 128 KiB"))
			if err != nil {
				return err
			}
		}
		if _, err := rw.Write(out); err != nil {
			return err
		}
	}
}
