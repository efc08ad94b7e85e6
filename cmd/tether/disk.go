//go:build linux && amd64

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	diskMount  = "/disk"         // of the root disk, in the initial RAM disk
	diskWait   = 3 * time.Minute // with many VMs starting at once
	reservedTo = 2147483646      // a user that nobody is, see mountRoot
)

// scsiHosts returns the numbers of the SCSI hosts in the kernel's order; the
// paravirtual ones first, since host 0 of the configuration is one of those
// and IDE or SATA ports may come before it.
func scsiHosts(sys string) []int {
	names, _ := filepath.Glob(filepath.Join(sys, "class/scsi_host/host*"))
	var paravirtual, others []int
	for _, name := range names {
		n, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(name), "host"))
		if err != nil {
			continue
		}
		b, _ := os.ReadFile(filepath.Join(name, "proc_name"))
		if strings.TrimSpace(string(b)) == "vmw_pvscsi" {
			paravirtual = append(paravirtual, n)
		} else {
			others = append(others, n)
		}
	}
	slices.Sort(paravirtual)
	slices.Sort(others)
	return append(paravirtual, others...)
}

// scsiDisk returns the block device at target unit of the first host, and ""
// where there is none yet.
func scsiDisk(sys string, host, unit int) string {
	names, _ := filepath.Glob(filepath.Join(sys, fmt.Sprintf("class/scsi_device/%d:0:%d:0/device/block/*", host, unit)))
	if len(names) == 0 {
		return ""
	}
	return filepath.Base(names[0])
}

// findDisk waits for the disk of a unit.
func findDisk(ctx context.Context, u *uevents, unit int) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, diskWait)
	defer cancel()
	var dev string
	scanned := -1
	err := u.wait(ctx, func() bool {
		hosts := scsiHosts("/sys")
		if len(hosts) == 0 {
			return false
		}
		if dev = scsiDisk("/sys", hosts[0], unit); dev == "" && scanned != hosts[0] {
			// The kernel is told to scan nothing by itself: scanning 64 targets
			// takes longer than mounting the disk.
			_ = os.WriteFile(fmt.Sprintf("/sys/class/scsi_host/host%d/scan", hosts[0]), fmt.Appendf(nil, "0 %d 0", unit), 0)
			scanned = hosts[0]
			dev = scsiDisk("/sys", hosts[0], unit)
		}
		if dev == "" {
			return false
		}
		// The node is there before the disk can be opened.
		f, err := os.Open("/dev/" + dev)
		if err == nil {
			_ = f.Close()
		}
		return err == nil
	})
	if err != nil {
		return "", fmt.Errorf("no disk at SCSI unit %d within %v (SCSI hosts: %v)", unit, diskWait, scsiHosts("/sys"))
	}
	return "/dev/" + dev, nil
}

// mountRoot mounts the root disk and makes what lies beside the container's
// root on it.
func mountRoot(dev string) error {
	if err := os.MkdirAll(diskMount, 0o700); err != nil {
		return err
	}
	// The blocks that the filesystem reserves are for a user that does not
	// exist, hence for CAP_SYS_RESOURCE, which the tether has and the
	// container has not: a container that fills its disk leaves room for logs.
	data := fmt.Sprintf("resuid=%d", reservedTo)
	if err := unix.Mount(dev, diskMount, "ext4", unix.MS_NOATIME, data); err != nil {
		return fmt.Errorf("root: mount %s as ext4: %w", dev, err)
	}
	for _, dir := range []string{"/log", "/state"} {
		if err := os.Mkdir(diskMount+dir, 0o700); err != nil && !os.IsExist(err) {
			return fmt.Errorf("root: %w", err)
		}
	}
	st, err := os.Lstat(diskMount + "/rootfs")
	if err != nil || !st.IsDir() {
		return fmt.Errorf("root: the disk holds no directory /rootfs")
	}
	return nil
}

// unmountRoot leaves the filesystem clean. The container's mount namespace
// still holds it, so it is made read-only rather than unmounted.
func unmountRoot() error {
	if err := unix.Mount("", diskMount, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil && err != unix.EINVAL {
		return fmt.Errorf("root: make read-only: %w", err)
	}
	return nil
}
