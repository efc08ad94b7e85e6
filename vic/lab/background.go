package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// stateFile is where a serving lab tells how to reach it.
const stateFile = "lab.json"

// ErrNotRunning reports that no lab serves a directory.
var ErrNotRunning = errors.New("lab: not running")

// A State tells where a lab is and how to log in. It is what lab.json has, which
// only its owner may read.
type State struct {
	URL      string `json:"url"`
	User     string `json:"user"`
	Password string `json:"password"`
	// Thumbprint is the server certificate's, SHA-256; ThumbprintSHA1 is the
	// older form that vSphere's own tools show.
	Thumbprint     string `json:"thumbprint"`
	ThumbprintSHA1 string `json:"thumbprintSHA1"`
	CA             string `json:"ca"` // PEM
	// GuestProxy is an HTTP proxy for CONNECT into the port groups' networks,
	// with the same login: http://127.0.0.1:PORT.
	GuestProxy string `json:"guestProxy"`
	// GuestNetworks are the port groups' subnets.
	GuestNetworks []netip.Prefix `json:"guestNetworks"`
	// PID is the lab's process and Start its start time (/proc/PID/stat, field
	// 22). Both are 0 in the file of a lab that has ended.
	PID   int    `json:"pid"`
	Start uint64 `json:"start"`
	Dir   string `json:"dir"`
}

// Serve is Start, a guest proxy and lab.json, until ctx ends; then Close.
func Serve(ctx context.Context, o Options) error {
	l, err := Start(ctx, o)
	if err != nil {
		return err
	}
	defer l.Close()
	proxy, err := l.guestProxy()
	if err != nil {
		return fmt.Errorf("lab: guest proxy: %w", err)
	}
	e := l.Endpoint()
	start, err := startOf(os.Getpid())
	if err != nil {
		return err
	}
	s := State{
		URL: e.URL.String(), User: e.User, Password: e.Password, Thumbprint: e.SHA256, ThumbprintSHA1: e.SHA1,
		CA: string(e.CA), GuestProxy: proxy, GuestNetworks: l.subnets(), PID: os.Getpid(), Start: start, Dir: l.opts.Dir,
	}
	if err := s.write(); err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	<-ctx.Done()
	// The login stays known for the next lab on this directory.
	s.PID, s.Start, s.URL, s.GuestProxy = 0, 0, "", ""
	return errors.Join(l.Close(), s.write())
}

func (s State) write() error {
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(s.Dir, stateFile), append(b, '\n'))
}

// UpOptions says how to start a lab in the background.
type UpOptions struct {
	// Dir of the lab, as in Options.
	Dir string
	// Argv is a command that calls Serve on Dir and ends on SIGTERM, such as
	// the CLI's own hidden command.
	Argv []string
	// Log is the file that takes the command's output; Dir/lab.log where empty.
	Log string
	// Env of the command; the caller's own where nil.
	Env []string
}

// Up starts a lab as a process of its own, in a session of its own, and waits
// until it serves or ctx ends. Where one serves Dir already, Up returns its
// state.
func Up(ctx context.Context, o UpOptions) (State, error) {
	if o.Dir == "" || len(o.Argv) == 0 {
		return State{}, errors.New("lab: UpOptions needs Dir and Argv")
	}
	if s, err := Status(o.Dir); err == nil {
		return s, nil
	} else if !errors.Is(err, ErrNotRunning) {
		return State{}, err
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return State{}, fmt.Errorf("lab: %w", err)
	}
	if o.Log == "" {
		o.Log = filepath.Join(o.Dir, "lab.log")
	}
	out, err := os.OpenFile(o.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return State{}, fmt.Errorf("lab: %w", err)
	}
	defer out.Close()
	cmd := exec.Command(o.Argv[0], o.Argv[1:]...)
	cmd.Stdout, cmd.Stderr, cmd.Env = out, out, o.Env
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return State{}, fmt.Errorf("lab: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t := time.NewTicker(20 * time.Millisecond)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			if s, err := Status(o.Dir); err == nil {
				return s, nil
			}
		case err := <-ended:
			if s, serr := Status(o.Dir); serr == nil {
				return s, nil // another Up was faster
			}
			return State{}, fmt.Errorf("lab: it ended at once (%v): %s", err, lastLines(o.Log))
		case <-ctx.Done():
			_ = cmd.Process.Signal(syscall.SIGTERM)
			return State{}, fmt.Errorf("lab: not up in time: %w: %s", ctx.Err(), lastLines(o.Log))
		}
	}
}

func lastLines(name string) string {
	b, _ := os.ReadFile(name)
	if len(b) > 2000 {
		b = b[len(b)-2000:]
	}
	return strings.TrimSpace(string(b))
}

// Status tells of the lab that serves a directory. Where none does, the error is
// ErrNotRunning.
func Status(dir string) (State, error) {
	var s State
	b, err := os.ReadFile(filepath.Join(dir, stateFile))
	if errors.Is(err, fs.ErrNotExist) {
		return s, ErrNotRunning
	}
	if err != nil {
		return s, fmt.Errorf("lab: %w", err)
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return State{}, fmt.Errorf("lab: %s: %w", stateFile, err)
	}
	if s.PID == 0 {
		return State{}, ErrNotRunning
	}
	if start, err := startOf(s.PID); err != nil || start != s.Start {
		return State{}, ErrNotRunning
	}
	return s, nil
}

// Down ends the lab that serves a directory, with its VMs, and waits for its end
// or ctx's. Where none serves it there is nothing to do.
func Down(ctx context.Context, dir string) error {
	s, err := Status(dir)
	if errors.Is(err, ErrNotRunning) {
		return nil
	}
	if err != nil {
		return err
	}
	fd, err := unix.PidfdOpen(s.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("lab: process %d: %w", s.PID, err)
	}
	defer unix.Close(fd)
	if start, err := startOf(s.PID); err != nil || start != s.Start {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("lab: process %d: %w", s.PID, err)
	}
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 100)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("lab: process %d: %w", s.PID, err)
		}
		if n > 0 {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("lab: process %d does not end: %w", s.PID, ctx.Err())
		}
	}
}
