//go:build linux && amd64

package main

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// mount is one filesystem of the initial RAM disk or of the container.
type mount struct {
	kind, target string
	flags        uintptr
	data         string
	mode         os.FileMode // of target, where it must be made
}

// ownMounts are what the tether itself needs.
var ownMounts = []mount{
	{"devtmpfs", "/dev", unix.MS_NOSUID, "", 0o755},
	{"proc", "/proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, "", 0o555},
	{"sysfs", "/sys", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, "", 0o555},
	{"tmpfs", "/run", unix.MS_NOSUID | unix.MS_NODEV, "mode=755,size=16m", 0o755},
	{"cgroup2", "/sys/fs/cgroup", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, "", 0o555},
}

// do mounts m, making its target where it can.
func (m mount) do() error {
	if err := os.MkdirAll(m.target, m.mode); err != nil {
		return fmt.Errorf("mount %s: %w", m.target, err)
	}
	if err := unix.Mount(m.kind, m.target, m.kind, m.flags, m.data); err != nil && err != unix.EBUSY {
		return fmt.Errorf("mount %s on %s: %w", m.kind, m.target, err)
	}
	return nil
}

// uptime is the time since the kernel's start.
func uptime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}
