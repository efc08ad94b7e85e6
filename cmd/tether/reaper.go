//go:build linux && amd64

package main

import (
	"os"
	"os/signal"
	"sync"

	"golang.org/x/sys/unix"
)

// A reaper collects every child that ends, those that were handed to PID 1
// too, and tells those that somebody waits for.
type reaper struct {
	mu      sync.Mutex
	ended   map[int]unix.WaitStatus // that nobody has asked for yet
	waiting map[int]chan unix.WaitStatus
	starts  int // starts under way; while zero, unknown children are dropped
	signals chan os.Signal
}

func newReaper() *reaper {
	r := &reaper{
		ended: make(map[int]unix.WaitStatus), waiting: make(map[int]chan unix.WaitStatus),
		signals: make(chan os.Signal, 1),
	}
	signal.Notify(r.signals, unix.SIGCHLD)
	go func() {
		for range r.signals {
			r.reap()
		}
	}()
	return r
}

func (r *reaper) reap() {
	for {
		var ws unix.WaitStatus
		r.mu.Lock()
		pid, err := unix.Wait4(-1, &ws, unix.WNOHANG, nil)
		if pid > 0 {
			if c := r.waiting[pid]; c != nil {
				delete(r.waiting, pid)
				c <- ws
			} else if r.starts > 0 {
				r.ended[pid] = ws
			}
		}
		r.mu.Unlock()
		if pid <= 0 && err != unix.EINTR {
			return
		}
	}
}

// start runs a function that starts a child and returns a channel that brings
// the child's end.
func (r *reaper) start(f func() (pid int, err error)) (int, <-chan unix.WaitStatus, error) {
	r.mu.Lock()
	r.starts++
	r.mu.Unlock()
	pid, err := f()
	r.mu.Lock()
	defer r.mu.Unlock()
	defer func() {
		if r.starts--; r.starts == 0 {
			clear(r.ended)
		}
	}()
	if err != nil {
		return 0, nil, err
	}
	c := make(chan unix.WaitStatus, 1)
	if ws, ok := r.ended[pid]; ok {
		c <- ws
	} else {
		r.waiting[pid] = c
	}
	return pid, c, nil
}

// killGroup kills the process group of a child that leads one and has not been
// reaped.
func (r *reaper) killGroup(pid int) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.waiting[pid] == nil {
		return unix.ESRCH
	}
	return unix.Kill(-pid, unix.SIGKILL)
}

// signal sends a signal to a child that has not been reaped; the pid cannot
// have been given to another process meanwhile.
func (r *reaper) signal(pid, number int) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.waiting[pid] == nil {
		return unix.ESRCH
	}
	return unix.Kill(pid, unix.Signal(number))
}
