package tether

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
)

// ServerConfig is what a Server serves and to whom.
type ServerConfig struct {
	HostKey     ssh.Signer
	Authorities []ssh.PublicKey // of the controllers' certificates, until SetAuthorities
	ID          string          // of the container, a principal
	Container   *Container
	Output      *Recorder // nil where Applier is set
	// Applier makes the server that of a helper VM: it takes runs for disks,
	// tells Container's status, and does nothing else.
	Applier *Applier
	// Executor runs further processes in the container; nil runs none.
	Executor Executor
	// Freezer and Monitor pause the container and look at it; nil does not.
	Freezer Freezer
	Monitor Monitor
	// Mounter changes the container's mounts; nil does not.
	Mounter Mounter
	// Files are the container's; nil hands out none.
	Files Files
	// Now tells the time by which controllers' certificates are judged; nil is
	// time.Now.
	Now func() time.Time
	// Changed is called after a controller paused or unpaused the container; nil
	// calls nothing.
	Changed func()
	Logger  *slog.Logger // nil discards
}

// A Server is the guest's side of the protocol. It serves any number of
// listeners.
type Server struct {
	config ServerConfig
	ssh    *ssh.ServerConfig
	log    *slog.Logger
	execs  *execs
	// fileSlots bounds who works on files at once.
	fileSlots chan struct{}

	taking sync.Mutex
	taken  int64 // when the last Request was made that was taken

	mu        sync.Mutex
	trusted   map[string]bool     // authorities, in SSH's wire form
	starting  []net.Conn          // handshakes, oldest first
	conns     map[net.Conn]string // authenticated, and who certified them
	hungUp    bool                // no more of them
	open      int                 // attachments, waits and streams that will want the end
	delivered bool                // one has got it
	changed   chan struct{}       // closed and made anew when open or delivered changes
}

// NewServer checks the configuration.
func NewServer(c ServerConfig) (*Server, error) {
	switch {
	case c.HostKey == nil:
		return nil, fmt.Errorf("%w: HostKey: missing", ErrInvalid)
	case len(c.Authorities) == 0:
		return nil, fmt.Errorf("%w: Authorities: missing", ErrInvalid)
	case c.Container == nil:
		return nil, fmt.Errorf("%w: Container: missing", ErrInvalid)
	case c.Output == nil && c.Applier == nil:
		return nil, fmt.Errorf("%w: Output: missing", ErrInvalid)
	}
	s := &Server{config: c, log: c.Logger, execs: newExecs(c.Container, c.Executor), fileSlots: make(chan struct{}, maxFileOps),
		conns: make(map[net.Conn]string), changed: make(chan struct{})}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	now := c.Now
	if now == nil {
		now = time.Now
	}
	s.ssh = &ssh.ServerConfig{
		Config:                  algorithms(),
		MaxAuthTries:            2,
		PublicKeyAuthAlgorithms: []string{ssh.KeyAlgoED25519, ssh.KeyAlgoECDSA256}, // of the certified keys
		PublicKeyCallback:       checkController(s.trusts, c.ID, now),
		ServerVersion:           "SSH-2.0-vic-tether",
	}
	s.ssh.AddHostKey(c.HostKey)
	s.trust(c.Authorities)
	return s, nil
}

// Serve accepts connections until ctx ends or the listener fails; it closes
// the listener and every connection of its own and returns once they are gone.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer func() {
		cancel()
		stop()
		_ = l.Close()
		wg.Wait()
	}()
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			var tooMany interface{ Temporary() bool }
			if errors.As(err, &tooMany) && tooMany.Temporary() {
				// Out of descriptors, say: let some connections end.
				select {
				case <-ctx.Done():
				case <-time.After(100 * time.Millisecond):
				}
				continue
			}
			return fmt.Errorf("tether: accept: %w", err)
		}
		keepAlive(conn)
		conn = batched(conn)
		s.begin(conn) // here, so that those who came first are the oldest
		wg.Go(func() { s.serveConn(ctx, conn) })
	}
}

// ServeConn serves one connection until it or ctx ends, and closes it.
func (s *Server) ServeConn(ctx context.Context, conn net.Conn) {
	keepAlive(conn)
	conn = batched(conn)
	s.begin(conn)
	s.serveConn(ctx, conn)
}

func (s *Server) serveConn(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	_ = conn.SetDeadline(time.Now().Add(handshakeTimeout))
	sc, channels, requests, err := ssh.NewServerConn(conn, s.ssh)
	authority := ""
	if err == nil {
		authority, _ = sc.Permissions.ExtraData[authorityOf{}].(string)
	}
	if !s.authenticated(conn, authority) {
		if err == nil {
			err = fmt.Errorf("more than %d connections, or its authority is trusted no more, or the guest goes", maxConnections)
		}
		s.log.Warn("controller refused", "from", conn.RemoteAddr(), "reason", err)
		return
	}
	defer s.gone(conn)
	_ = conn.SetDeadline(time.Time{})
	c := &serverConn{server: s, conn: sc, authority: authority}
	c.serve(ctx, channels, requests)
}

// keepAlive has the kernel find out that a controller's machine is gone. A
// controller that is only stopped, as by a shell's job control, stays.
func keepAlive(conn net.Conn) {
	if t, ok := conn.(*net.TCPConn); ok {
		_ = t.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 15 * time.Second, Count: 6})
	}
}

// begin admits a handshake. Where too many are under way, the oldest goes of
// the machine that has the most, so that silent connections, however many, keep
// no controller of another machine out.
func (s *Server) begin(conn net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.starting = append(s.starting, conn)
	if len(s.starting) <= maxHandshakes {
		return
	}
	of := map[string]int{}
	for _, c := range s.starting {
		of[machine(c)]++
	}
	oldest := 0
	for i, c := range s.starting {
		if of[machine(c)] > of[machine(s.starting[oldest])] {
			oldest = i
		}
	}
	_ = s.starting[oldest].Close()
	s.starting = slices.Delete(s.starting, oldest, oldest+1)
}

// machine that a connection comes from.
func machine(conn net.Conn) string {
	if a, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		return a.IP.String()
	}
	return ""
}

// authenticated ends a handshake, of a controller that authority certified, or of
// one that failed where that is empty.
func (s *Server) authenticated(conn net.Conn, authority string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, c := range s.starting {
		if c == conn {
			s.starting = append(s.starting[:i], s.starting[i+1:]...)
			break
		}
	}
	if s.hungUp || !s.trusted[authority] || len(s.conns) >= maxConnections {
		s.touch()
		return false
	}
	s.conns[conn] = authority
	return true
}

func (s *Server) gone(conn net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, conn)
	s.touch()
}

// Hangup ends all connections, and those to come, once nobody waits for the end any
// more, and after most in any case. Who lacks something learns by it that the guest
// goes, and reads the rest from its disk: what is read of the log after its files were
// closed would be an error that tells nothing.
func (s *Server) Hangup(most time.Duration) {
	late := time.After(most)
	s.mu.Lock()
	defer s.mu.Unlock()
	for waiting := true; waiting && s.open > 0; {
		changed := s.changed
		s.mu.Unlock()
		select {
		case <-changed:
		case <-late:
			waiting = false
		}
		s.mu.Lock()
	}
	s.hungUp = true
	for _, c := range s.starting {
		_ = c.Close()
	}
	for c := range s.conns {
		_ = c.Close()
	}
}

// touch wakes Linger. The server is locked.
func (s *Server) touch() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// wantEnd counts someone who wants to learn the end; done says whether it did.
func (s *Server) wantEnd() (done func(delivered bool)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open++
	return func(delivered bool) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.open--
		s.delivered = s.delivered || delivered
		s.touch()
	}
}

// Linger waits after the process's end until an attacher has got all of it
// and no other still takes, or for most, or until ctx ends. It tells whether
// one has got it.
func (s *Server) Linger(ctx context.Context, most time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	for {
		s.mu.Lock()
		delivered, done, changed := s.delivered, s.delivered && s.open == 0, s.changed
		s.mu.Unlock()
		if done {
			return true
		}
		select {
		case <-ctx.Done():
			return delivered
		case <-changed:
		}
	}
}
