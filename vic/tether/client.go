package tether

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
)

// ClientConfig says who a controller is and whom it expects.
type ClientConfig struct {
	// Signer with a certificate of the container's authority; see
	// NewControllerSigner.
	Signer ssh.Signer
	// HostKey the guest must show, in authorized_keys form, from its Status.
	HostKey string
	// ID of the container, the user name of the SSH connection.
	ID string
	// KeepAlive is how long the guest may be silent before it is asked for a
	// sign of life; a guest that gives none for twice as long again is given
	// up. Zero means 15 seconds, a negative value never.
	KeepAlive time.Duration
}

// A Client is a controller's connection to one guest. Its methods may be
// called by several goroutines; everything it opened ends with it.
type Client struct {
	*connection

	mu  sync.Mutex
	own map[*channel]struct{}
	off bool
}

// connection is what clients share.
type connection struct {
	conn ssh.Conn
	done chan struct{} // closed when the connection has ended
	quit chan struct{} // closed when the keep-alive loop has ended

	slots chan struct{} // of open channels

	mu      sync.Mutex
	clients int
}

// NewClient greets the guest at the other end of conn, for at most ten seconds
// and within ctx. It takes over conn, also where it fails. A guest with another
// host key is ErrHostKey, one that does not let the controller in ErrRefused.
func NewClient(ctx context.Context, conn net.Conn, c ClientConfig) (*Client, error) {
	check, err := pinHostKey(c.HostKey)
	if err == nil && c.Signer == nil {
		err = fmt.Errorf("%w: Signer: missing", ErrInvalid)
	}
	if err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("tether: %w", err)
	}
	keepAlive(conn)
	conn = batched(conn)
	_ = conn.SetDeadline(time.Now().Add(handshakeTimeout))
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	user := c.ID
	if user == "" {
		user = ControllerPrincipal
	}
	sc, channels, requests, err := ssh.NewClientConn(conn, "", &ssh.ClientConfig{
		Config:            algorithms(),
		User:              user,
		Auth:              []ssh.AuthMethod{ssh.PublicKeys(c.Signer)},
		HostKeyCallback:   check,
		HostKeyAlgorithms: []string{ssh.KeyAlgoED25519},
		ClientVersion:     "SSH-2.0-vic-controller",
	})
	if !stop() {
		if err == nil {
			_ = sc.Close()
		}
		return nil, fmt.Errorf("tether: %w", ctx.Err())
	}
	if err != nil {
		_ = conn.Close()
		if strings.Contains(err.Error(), "unable to authenticate") { // It has no type.
			err = fmt.Errorf("%w (%w)", ErrRefused, err)
		}
		return nil, fmt.Errorf("tether: %w", err)
	}
	_ = conn.SetDeadline(time.Time{})
	cl := &Client{own: map[*channel]struct{}{}, connection: &connection{
		conn: sc, done: make(chan struct{}), quit: make(chan struct{}), slots: make(chan struct{}, maxChannels), clients: 1,
	}}
	go ssh.DiscardRequests(requests)
	go func() {
		for n := range channels {
			_ = n.Reject(ssh.Prohibited, "guests open no channels")
		}
		_ = sc.Wait()
		close(cl.done)
	}()
	every := c.KeepAlive
	if every == 0 {
		every = 15 * time.Second
	}
	go cl.keepAlive(every)
	return cl, nil
}

func (c *Client) keepAlive(every time.Duration) {
	defer close(c.quit)
	if every < 0 {
		return
	}
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-c.done:
			return
		case <-t.C:
			ctx, cancel := context.WithTimeout(context.Background(), 2*every)
			if _, err := c.Ping(ctx); err != nil {
				_ = c.conn.Close()
			}
			cancel()
		}
	}
}

// Share returns another client of the same connection, which has its own Close.
// It is false where the connection has ended or has no client any more.
func (c *Client) Share() (*Client, bool) {
	c.connection.mu.Lock()
	defer c.connection.mu.Unlock()
	select {
	case <-c.done:
		return nil, false
	default:
	}
	if c.clients == 0 {
		return nil, false
	}
	c.clients++
	return &Client{connection: c.connection, own: map[*channel]struct{}{}}, true
}

// Close ends everything that was opened by this client, and, where no other
// shares it, the connection.
func (c *Client) Close() error {
	c.mu.Lock()
	was := c.off
	c.off = true
	own := slices.Collect(maps.Keys(c.own))
	c.mu.Unlock()
	if was {
		return nil
	}
	c.connection.mu.Lock()
	c.clients--
	last := c.clients == 0
	c.connection.mu.Unlock()
	if !last {
		for _, ch := range own {
			_ = ch.Close()
		}
		return nil
	}
	err := c.conn.Close()
	<-c.done
	<-c.quit
	if errors.Is(err, net.ErrClosed) {
		return nil // The guest was first.
	}
	return err
}

// Done is closed when the connection has ended, by either side.
func (c *Client) Done() <-chan struct{} { return c.done }

// Ping returns the time of one round trip.
func (c *Client) Ping(ctx context.Context) (time.Duration, error) {
	start := time.Now()
	reply := make(chan error, 1)
	go func() {
		_, _, err := c.conn.SendRequest(requestPing, true, nil)
		reply <- err
	}()
	select {
	case <-ctx.Done():
		return 0, fmt.Errorf("tether: ping: %w", ctx.Err())
	case err := <-reply:
		if err != nil {
			return 0, fmt.Errorf("tether: ping: %w", err)
		}
		return time.Since(start), nil
	}
}

// call sends one request and reads its answer into result, which may be nil.
func (c *Client) call(ctx context.Context, method string, params, result any) error {
	b, err := json.Marshal(params)
	if err != nil {
		return fmt.Errorf("tether: %s: %w", method, err)
	}
	ch, requests, err := c.open(ctx, channelCall, callRequest{Method: method, Params: b})
	if err != nil {
		return fmt.Errorf("tether: %s: %w", method, err)
	}
	go ssh.DiscardRequests(requests)
	defer ch.Close()
	b, err = readAnswer(ctx, ch)
	switch {
	case err != nil:
		return fmt.Errorf("tether: %s: %w", method, err)
	case len(b) == 0:
		return fmt.Errorf("tether: %s: %w", method, io.ErrUnexpectedEOF)
	}
	var a callAnswer
	if err := decode("answer", b, &a); err != nil {
		return fmt.Errorf("tether: %s: %w", method, err)
	}
	if a.Error != nil {
		a.Error.Message = plain(a.Error.Message)
		return fmt.Errorf("tether: %s: %w", method, a.Error)
	}
	if result == nil {
		return nil
	}
	if len(a.Result) == 0 {
		return fmt.Errorf("tether: %s: the guest's answer holds no result", method)
	}
	if err := json.Unmarshal(a.Result, result); err != nil {
		return fmt.Errorf("tether: %s: %w", method, err)
	}
	return nil
}

// Signal sends a signal by name, such as SIGHUP, to the main process. The
// error is an ErrNotRunning after its end.
func (c *Client) Signal(ctx context.Context, name string) error {
	return c.call(ctx, methodSignal, signalParams{name}, nil)
}

// Stop asks the process to end by signal (empty: the configured one), has the
// guest kill it after grace (negative: the configured time), and waits for the
// end. The kill happens even where ctx ends before.
func (c *Client) Stop(ctx context.Context, signal string, grace time.Duration) (Exit, error) {
	var e Exit
	err := c.call(ctx, methodStop, stopParams{signal, grace}, &e)
	if err == nil {
		err = e.check()
	}
	return e, err
}

// Resize sets the size of the process's terminal in characters.
func (c *Client) Resize(ctx context.Context, rows, columns uint16) error {
	return c.call(ctx, methodResize, resizeParams{rows, columns}, nil)
}

// Wait waits for the process's end. An error means that the outcome is not
// known from here.
func (c *Client) Wait(ctx context.Context) (Exit, error) {
	var e Exit
	err := c.call(ctx, methodWait, struct{}{}, &e)
	if err == nil {
		err = e.check()
	}
	return e, err
}

// Status asks the guest for its status.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var s Status
	err := c.call(ctx, methodStatus, struct{}{}, &s)
	if err == nil {
		err = s.check()
	}
	return s, err
}

// Timeline asks for the stages of the guest's start so far.
func (c *Client) Timeline(ctx context.Context) ([]Stage, error) {
	var t []Stage
	err := c.call(ctx, methodTimeline, struct{}{}, &t)
	return t, err
}

// Health asks for the state of the health checks and their last results; an
// ErrUnsupported where the container has none.
func (c *Client) Health(ctx context.Context) (HealthStatus, error) {
	var h HealthStatus
	err := c.call(ctx, methodHealth, struct{}{}, &h)
	if err == nil {
		err = h.check()
	}
	return h, err
}

// Logs reads the log of the process's output and, with Follow, goes on until
// the process has ended or ctx ends. The reader must be closed. It tells io.EOF
// at the log's end only, and not where the connection broke.
func (c *Client) Logs(ctx context.Context, o LogOptions) (*LogReader, error) {
	ch, requests, err := c.open(ctx, channelLogs, o)
	if err != nil {
		return nil, fmt.Errorf("tether: logs: %w", err)
	}
	whole := make(chan bool, 1)
	go func() {
		end := false
		for r := range requests {
			end = end || r.Type == requestEnd
			refuse(r)
		}
		whole <- end
	}()
	stop := context.AfterFunc(ctx, func() { _ = ch.Close() })
	l := NewLogReader(&logStream{ch: ch, whole: whole, canceled: ctx.Err})
	l.close = func() error {
		stop()
		_ = ch.Close() // The guest may have closed it before.
		return nil
	}
	return l, nil
}

// logStream tells a log's end from a connection's: both are an io.EOF of the
// channel.
type logStream struct {
	ch       ssh.Channel
	whole    <-chan bool
	canceled func() error
	err      error
}

func (s *logStream) Read(p []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	n, err := s.ch.Read(p)
	if err == io.EOF && !s.complete() {
		err = io.ErrUnexpectedEOF
	}
	if err != nil && err != io.EOF {
		if c := s.canceled(); c != nil {
			err = c
		}
		err = fmt.Errorf("tether: logs: %w", err)
	}
	s.err = err
	return n, err
}

// complete tells, after the log's last byte, whether the guest said that it was.
func (s *logStream) complete() bool {
	t := time.NewTimer(closeWait)
	defer t.Stop()
	select {
	case whole := <-s.whole:
		return whole
	case <-t.C:
		return false
	}
}
