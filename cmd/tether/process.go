//go:build linux && amd64

package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"github.com/vicsdk/vic-go/vic/tether"
	"golang.org/x/sys/unix"
)

// Exit codes of a process that could not be started, as docker run has them.
const (
	codeSetup      = 125
	codeCannotRun  = 126
	codeNotFound   = 127
	containerGroup = "/sys/fs/cgroup/container"
)

// startError is why a process could not be started.
type startError struct {
	code int
	err  error
}

func (e *startError) Error() string { return e.err.Error() }
func (e *startError) Unwrap() error { return e.err }

// process is a started process of the container.
type process struct {
	pid    int
	reaper *reaper
	ended  <-chan unix.WaitStatus
	stdin  *os.File // of a pipe; nil where there is none
	tty    *os.File // the master; nil where there is none
	output sync.WaitGroup
}

// startProcess starts p inside the container with its output going to stdout
// and stderr. It closes nothing of the caller's.
func startProcess(n *namespace, r *reaper, group *os.File, p tether.Process, host string, stdout, stderr io.Writer) (*process, error) {
	s := &process{reaper: r}
	err := n.do(func() error {
		dir := p.Dir
		if dir == "" {
			dir = "/"
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return &startError{codeSetup, fmt.Errorf("process.dir: %w", err)}
		}
		return s.start(n, group, p, host, stdout, stderr)
	})
	if err != nil {
		return nil, err
	}
	return s, nil
}

// start starts p; its directory must be there. It runs inside the container.
func (s *process) start(n *namespace, group *os.File, p tether.Process, host string, stdout, stderr io.Writer) error {
	setup := func(err error) error { return &startError{codeSetup, err} }
	id, err := s.identity(p.User, n.settings.GroupAdd)
	if err != nil {
		return setup(err)
	}
	dir := p.Dir
	if dir == "" {
		dir = "/"
	}
	env := environment(p, id.home, host)
	file, err := findProgram(p.Args[0], dir, env)
	if err != nil {
		return err
	}
	var ends streams
	if p.TTY {
		err = s.openTTY(&ends, p)
	} else {
		err = s.openPipes(&ends, p)
	}
	defer ends.close()
	if err != nil {
		s.closeOurs()
		return setup(err)
	}
	for _, f := range ends.own {
		if id.uid == 0 && !p.TTY {
			break // A pipe is ours, who are root.
		}
		// So that an unprivileged process can open /dev/stdout again.
		if err := f.Chown(int(id.uid), -1); err != nil {
			s.closeOurs()
			return setup(err)
		}
	}
	var told *os.File
	s.pid, s.ended, err = s.reaper.start(func() (pid int, err error) {
		pid, told, err = n.launch(file, p.Args, &syscall.ProcAttr{
			Dir: dir, Env: env, Files: ends.descriptors(),
			Sys: &syscall.SysProcAttr{
				Credential: &syscall.Credential{Uid: id.uid, Gid: id.gid, Groups: id.groups},
				Setsid:     true, Setctty: p.TTY,
				UseCgroupFD: true, CgroupFD: int(group.Fd()),
			},
		})
		return pid, err
	})
	if err != nil {
		err = runError(p.Args[0], err)
	} else if err = launched(told, p.Args[0]); err != nil {
		<-s.ended
	}
	if err != nil {
		s.closeOurs()
		return err
	}
	if s.tty != nil {
		s.copy(s.tty, stdout)
	}
	for i, f := range ends.read {
		s.copy(f, []io.Writer{stdout, stderr}[i])
	}
	ends.read = nil
	return nil
}

func (s *process) identity(user string, add []string) (identity, error) {
	passwd, err := openRegular("/etc/passwd")
	if err != nil {
		return identity{}, err
	}
	defer passwd.Close()
	group, err := openRegular("/etc/group")
	if err != nil {
		return identity{}, err
	}
	defer group.Close()
	return lookupUser(user, add, passwd, group)
}

// streams are the files of a start: the process's ends, and those of ours that
// are read from.
type streams struct {
	files []*os.File
	own   []*os.File // of these, what is to belong to the process's user
	fds   []int      // of files, by the process's descriptor
	read  []*os.File
}

func (e *streams) descriptors() []uintptr {
	var d []uintptr
	for _, i := range e.fds {
		d = append(d, e.files[i].Fd())
	}
	return d
}

func (e *streams) close() {
	for _, f := range append(e.files, e.read...) {
		_ = f.Close()
	}
}

func (s *process) openTTY(e *streams, p tether.Process) error {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("process.tty: /dev/ptmx: %w", err)
	}
	s.tty = os.NewFile(uintptr(fd), "/dev/ptmx")
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return fmt.Errorf("process.tty: unlock: %w", err)
	}
	peer, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		return fmt.Errorf("process.tty: number: %w", err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", peer), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return fmt.Errorf("process.tty: %w", err)
	}
	e.files, e.own, e.fds = []*os.File{slave}, []*os.File{slave}, []int{0, 0, 0}
	rows, columns := p.Rows, p.Columns
	if rows == 0 {
		rows = 24
	}
	if columns == 0 {
		columns = 80
	}
	return s.Resize(rows, columns)
}

func (s *process) openPipes(e *streams, p tether.Process) error {
	if p.OpenStdin {
		r, w, err := pipe()
		if err != nil {
			return err
		}
		if err := unix.SetNonblock(int(w), true); err != nil {
			return err
		}
		s.stdin = os.NewFile(w, "stdin")
		e.files = append(e.files, os.NewFile(r, "stdin"))
		e.own = append(e.own, e.files[0])
	} else {
		null, err := os.Open("/dev/null")
		if err != nil {
			return err
		}
		e.files = append(e.files, null)
	}
	for _, name := range []string{"stdout", "stderr"} {
		r, w, err := pipe()
		if err != nil {
			return err
		}
		file := os.NewFile(w, name)
		e.files, e.own = append(e.files, file), append(e.own, file)
		if err := unix.SetNonblock(int(r), true); err != nil {
			return err
		}
		e.read = append(e.read, os.NewFile(r, name))
	}
	e.fds = []int{0, 1, 2}
	return nil
}

// pipe makes a pipe whose ends block, as programs expect it of theirs.
func pipe() (r, w uintptr, err error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return 0, 0, fmt.Errorf("pipe: %w", err)
	}
	return uintptr(p[0]), uintptr(p[1]), nil
}

// outputBuffers are taken again: many short processes would have them collected.
var outputBuffers = sync.Pool{New: func() any { b := make([]byte, 32<<10); return &b }}

// copy records one output until its end. A terminal's end is EIO.
func (s *process) copy(from *os.File, to io.Writer) {
	s.output.Go(func() {
		buffer := outputBuffers.Get().(*[]byte)
		defer outputBuffers.Put(buffer)
		b := *buffer
		for {
			n, err := from.Read(b)
			if n > 0 {
				_, _ = to.Write(b[:n]) // The recorder is open as long as there is output.
			}
			if err != nil {
				break
			}
		}
		if from != s.tty {
			_ = from.Close()
		}
	})
}

func (s *process) closeOurs() {
	for _, f := range []*os.File{s.stdin, s.tty} {
		if f != nil {
			_ = f.Close()
		}
	}
}

// Signal implements tether.Main.
func (s *process) Signal(number int) error {
	err := s.reaper.signal(s.pid, number)
	if errors.Is(err, unix.ESRCH) {
		return tether.ErrNotRunning
	}
	return err
}

// Resize implements tether.Main.
func (s *process) Resize(rows, columns uint16) error {
	if s.tty == nil {
		return tether.ErrUnsupported
	}
	c, err := s.tty.SyscallConn()
	if err != nil {
		return err
	}
	var ierr error
	err = c.Control(func(fd uintptr) {
		ierr = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: columns})
	})
	return errors.Join(err, ierr)
}

// Stdin implements tether.Main.
func (s *process) Stdin() io.WriteCloser {
	switch {
	case s.tty != nil:
		return ttyInput{s.tty}
	case s.stdin != nil:
		return s.stdin
	}
	return nil
}

// ttyInput writes to a terminal, whose input has no end.
type ttyInput struct{ io.Writer }

func (ttyInput) Close() error { return nil }

// wait waits for the process's end, ends everything else in the container
// (which end does) and waits for the rest of the output.
func (s *process) wait(end func()) tether.Exit {
	ws := <-s.ended
	if s.stdin != nil {
		_ = s.stdin.Close() // Somebody may be writing.
	}
	end()
	s.output.Wait()
	if s.tty != nil {
		_ = s.tty.Close()
	}
	return exitOf(ws)
}

func exitOf(ws unix.WaitStatus) tether.Exit {
	if ws.Signaled() {
		n := int(ws.Signal())
		return tether.Exit{Code: 128 + n, Signal: tether.SignalName(n)}
	}
	return tether.Exit{Code: ws.ExitStatus()}
}

// environment adds what a process may rely on.
func environment(p tether.Process, home, host string) []string {
	env := append([]string(nil), p.Env...)
	add := func(key, value string) {
		for _, e := range env {
			if strings.HasPrefix(e, key+"=") {
				return
			}
		}
		env = append(env, key+"="+value)
	}
	add("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	add("HOSTNAME", host)
	add("HOME", home)
	if p.TTY {
		add("TERM", "xterm")
	}
	return env
}

// findProgram looks a program up as execvp(3) does, in the PATH of env.
func findProgram(name, dir string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		file := name
		if !filepath.IsAbs(file) {
			file = filepath.Join(dir, file)
		}
		if err := executable(file); err != nil {
			return "", runError(name, err)
		}
		return file, nil
	}
	var paths string
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			paths = v
		}
	}
	worst := error(fs.ErrNotExist)
	for p := range strings.SplitSeq(paths, ":") {
		if !filepath.IsAbs(p) {
			p = filepath.Join(dir, p)
		}
		file := filepath.Join(p, name)
		err := executable(file)
		if err == nil {
			return file, nil
		}
		if errors.Is(err, fs.ErrPermission) {
			worst = err
		}
	}
	if errors.Is(worst, fs.ErrNotExist) {
		return "", &startError{codeNotFound, fmt.Errorf("exec: %q: executable file not found in $PATH", name)}
	}
	return "", runError(name, worst)
}

func executable(file string) error {
	st, err := os.Stat(file)
	switch {
	case err != nil:
		return err
	case st.IsDir():
		return unix.EISDIR
	case st.Mode()&0o111 == 0:
		return unix.EACCES
	}
	return nil
}

// runError gives an error of starting a program its exit code.
func runError(name string, err error) error {
	var errno syscall.Errno
	_ = errors.As(err, &errno)
	code := codeCannotRun
	switch {
	case errors.Is(err, fs.ErrNotExist) || errno == unix.ENOTDIR:
		code = codeNotFound
	case errno == unix.EAGAIN || errno == unix.ENOMEM:
		code = codeSetup
	}
	if errno != 0 {
		err = errno
	}
	return &startError{code, fmt.Errorf("exec: %q: %w", name, err)}
}
