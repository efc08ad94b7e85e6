//go:build linux && amd64

package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/vicsdk/vic-go/vic/tether"
	"golang.org/x/sys/unix"
)

// ExitCode is Docker's exit code of a process that could not be started.
func (e *startError) ExitCode() int { return e.code }

// A world is the running container, for what controllers ask of it beside its
// main process. It is empty while no container runs.
type world struct {
	config *tether.Config
	reaper *reaper

	mu         sync.RWMutex
	ns         *namespace
	group      *os.File
	privileged *namespace                 // made when it is first asked for
	files      map[*namespace]func(error) // threads that work on files, and what ends that
	idle       *sync.WaitGroup            // of them
}

// enter makes a container the one that runs; it stays until leave.
func (w *world) enter(ns *namespace, group *os.File) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ns, w.group, w.idle = ns, group, new(sync.WaitGroup)
}

// leave starts nothing any more, and waits for what is being started and, not
// for ever, until nobody works on the container's files.
func (w *world) leave() {
	w.mu.Lock()
	if w.privileged != nil {
		close(w.privileged.calls)
	}
	w.ns, w.group, w.privileged = nil, nil, nil
	for _, stop := range w.files {
		stop(tether.ErrNotRunning)
	}
	idle := make(chan struct{})
	go func(files *sync.WaitGroup) {
		files.Wait()
		close(idle)
	}(w.idle)
	w.mu.Unlock()
	select {
	case <-idle:
	case <-time.After(leaveTime):
	}
}

// beside starts a process beside the main one, as that one was started.
func (w *world) beside(p tether.Process, stdout, stderr io.Writer) (*process, error) {
	w.mu.RLock()
	defer w.mu.RUnlock()
	if w.ns == nil {
		return nil, tether.ErrNotRunning
	}
	return startProcess(w.ns, w.reaper, w.group, p, hostname(w.config), stdout, stderr)
}

// StartExec implements tether.Executor.
func (w *world) StartExec(e tether.ExecSpec, openStdin bool, stdout, stderr io.Writer) (tether.ExecProcess, error) {
	ns, err := w.namespace(e.Privileged)
	if err != nil {
		return nil, err
	}
	w.mu.RLock()
	defer w.mu.RUnlock()
	if ns != w.ns && ns != w.privileged {
		return nil, tether.ErrNotRunning // It has ended meanwhile; another may run.
	}
	p := e.Process(w.config.Process)
	p.OpenStdin = openStdin
	s := &process{reaper: w.reaper}
	err = ns.do(func() error {
		if p.Dir != "" {
			if st, err := os.Stat(p.Dir); err != nil {
				return &startError{codeCannotRun, fmt.Errorf("exec.dir: %w", err)}
			} else if !st.IsDir() {
				return &startError{codeCannotRun, fmt.Errorf("exec.dir: %s: %w", p.Dir, unix.ENOTDIR)}
			}
		}
		return s.start(ns, w.group, p, hostname(w.config), stdout, stderr)
	})
	if err != nil {
		return nil, err
	}
	return execProcess{s}, nil
}

// namespace returns what starts processes, with all capabilities or with the
// container's.
func (w *world) namespace(privileged bool) (*namespace, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case w.ns == nil:
		return nil, tether.ErrNotRunning
	case !privileged || w.config.Settings.Privileged:
		return w.ns, nil
	case w.privileged == nil:
		s := w.config.Settings
		s.Privileged = true
		n, err := w.ns.another()
		if err != nil {
			return nil, err
		}
		n.settings = s
		if err := n.do(func() error { return bound(s) }); err != nil {
			close(n.calls)
			return nil, err
		}
		w.privileged = n
	}
	return w.privileged, nil
}

// another is a further thread inside the container, with all capabilities, for
// what would keep the first one too long or needs more than it may hand on.
// Closing its calls ends it.
func (n *namespace) another() (*namespace, error) {
	world, err := os.Open(fmt.Sprintf("/proc/self/task/%d/ns/mnt", n.thread))
	if err != nil {
		return nil, err
	}
	defer world.Close()
	fd, err := unix.PidfdOpen(n.pid1, 0)
	if err != nil {
		return nil, fmt.Errorf("PID namespace: %w", err)
	}
	defer unix.Close(fd)
	a := *n
	a.calls = make(chan func())
	go func() {
		// Never unlocked: the thread ends with the function.
		runtime.LockOSThread()
		for f := range a.calls {
			f()
		}
	}()
	err = a.do(func() error {
		a.thread = unix.Gettid()
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return fmt.Errorf("enter the container: %w", err)
		}
		// It also makes the container's root this thread's (setns(2)).
		if err := unix.Setns(int(world.Fd()), unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("enter the container: %w", err)
		}
		if err := unix.Setns(fd, unix.CLONE_NEWPID); err != nil {
			return fmt.Errorf("enter the container: %w", err)
		}
		return nil
	})
	if err != nil {
		close(a.calls)
		return nil, err
	}
	return &a, nil
}

// execProcess is a process beside the main one.
type execProcess struct{ *process }

// outputTime is how long the end of an exec waits for output that something it
// left behind may still write, as docker exec does.
const outputTime = 2 * time.Second

// PID implements tether.ExecProcess.
func (p execProcess) PID() int { return containerPID(p.pid) }

// Wait implements tether.ExecProcess.
func (p execProcess) Wait() tether.Exit {
	ws := <-p.ended
	if p.stdin != nil {
		_ = p.stdin.Close() // Somebody may be writing.
	}
	all := make(chan struct{})
	go func() {
		p.output.Wait()
		close(all)
	}()
	t := time.NewTimer(outputTime)
	defer t.Stop()
	select {
	case <-all:
	case <-t.C:
	}
	if p.tty != nil {
		_ = p.tty.Close()
	}
	return exitOf(ws)
}

// containerPID is a process's number in the container, or zero where it is gone
// (proc(5), NSpid of /proc/pid/status).
func containerPID(pid int) int {
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		if rest, ok := strings.CutPrefix(sc.Text(), "NSpid:"); ok {
			all := strings.Fields(rest)
			if len(all) < 2 {
				return 0
			}
			n, _ := strconv.Atoi(all[len(all)-1])
			return n
		}
	}
	return 0
}
