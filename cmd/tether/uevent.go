//go:build linux && amd64

package main

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// uevents tells that some device came or went (the kernel's kobject uevents,
// NETLINK_KOBJECT_UEVENT), so that devices need not be polled for.
type uevents struct {
	file *os.File

	mu      sync.Mutex
	changed chan struct{}
}

func listenUevents() (*uevents, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, fmt.Errorf("uevents: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("uevents: %w", err)
	}
	u := &uevents{file: os.NewFile(uintptr(fd), "uevents"), changed: make(chan struct{})}
	go u.read()
	return u, nil
}

func (u *uevents) read() {
	b := make([]byte, 4096)
	for {
		// A lost event (ENOBUFS) is an event too.
		if _, err := u.file.Read(b); err != nil && !isErrno(err, unix.ENOBUFS) {
			return
		}
		u.mu.Lock()
		close(u.changed)
		u.changed = make(chan struct{})
		u.mu.Unlock()
	}
}

// wait waits until found tells true, asking at every event.
func (u *uevents) wait(ctx context.Context, found func() bool) error {
	// Some things appear without an event of their own.
	t := time.NewTicker(50 * time.Millisecond)
	defer t.Stop()
	for {
		u.mu.Lock()
		changed := u.changed
		u.mu.Unlock()
		if found() {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case <-t.C:
		}
	}
}
