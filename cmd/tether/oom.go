//go:build linux && amd64

package main

import (
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// watchOOM tells of processes of the run that the kernel kills for want of memory
// while the main process lives on, until the run has ended. The kernel reports a
// change of memory.events by inotify (cgroup-v2.rst, Core Interface Files).
func (r *runner) watchOOM(ended <-chan struct{}) {
	select {
	case <-ended:
		return
	case <-time.After(settleTime):
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err == nil {
		_, err = unix.InotifyAddWatch(fd, filepath.Join(containerGroup, "memory.events"), unix.IN_MODIFY)
	}
	if err != nil {
		r.m.log.Warn("kills for want of memory are told at the end only", "error", err)
		return
	}
	f := os.NewFile(uintptr(fd), "inotify")
	defer f.Close()
	go func() {
		<-ended
		_ = f.Close()
	}()
	b := make([]byte, 4096)
	for last := 0; ; {
		if n := oomKills(); n != last {
			last = n
			r.m.container.OOMKills(r.oomKills + n)
			r.m.tell()
		}
		if _, err := f.Read(b); err != nil {
			return
		}
	}
}
