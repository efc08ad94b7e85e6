//go:build linux && amd64

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/vicsdk/vic-go/vic/tether"
	"golang.org/x/sys/unix"
)

// runHelper makes the machine a helper that writes to disks for a controller,
// until it is told to end or nobody speaks to it any more. An error means that
// it could not be reached.
func (m *machine) runHelper(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	var keyErr, netErr error
	wg.Go(func() { keyErr = m.makeHostKey() })
	wg.Go(func() { m.net, netErr = bringUp(ctx, m.events, m.config, m.log) })
	if err := unix.Sethostname([]byte(hostname(m.config))); err != nil {
		m.log.Error("hostname", "error", err)
	}
	wg.Wait()
	if err := errors.Join(keyErr, netErr); err != nil {
		return err
	}
	m.mark("network")
	a := tether.NewApplier(func(ctx context.Context, unit int) (tether.DiskWriter, error) {
		return openRawDisk(ctx, m.events, unit)
	})
	err := m.listen(ctx, tether.ServerConfig{
		HostKey: m.hostKey, Authorities: m.trusted, ID: m.config.ID,
		Container: m.container, Applier: a, Logger: m.log,
	})
	if err != nil {
		return err
	}
	m.net.changed = func() {
		m.reached()
		m.publish()
	}
	m.publish()
	if err := onPowerButton(ctx, a.End); err != nil {
		m.log.Warn("no graceful stop by the power button", "error", err)
	}
	idle := m.config.Apply.Idle
	if idle == 0 {
		idle = tether.DefaultIdle
	}
	reason := a.Wait(ctx, idle)
	m.server.Hangup(5 * answerTime) // Who asked for the end is to hear that it comes.
	m.log.Info("end", "reason", reason, "uptime", uptime())
	return nil
}

// A rawDisk is a whole disk that is written to from its first byte on.
type rawDisk struct {
	*os.File
	size int64
	name string // of its block device
}

// openRawDisk waits for the disk of a unit. One that is mounted is refused.
func openRawDisk(ctx context.Context, u *uevents, unit int) (*rawDisk, error) {
	dev, err := findDisk(ctx, u, unit)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(dev, os.O_WRONLY|unix.O_EXCL, 0)
	if err != nil {
		return nil, err
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return &rawDisk{File: f, size: size, name: filepath.Base(dev)}, nil
}

func (d *rawDisk) Size() int64 { return d.size }

// Close has the kernel forget the disk, so that it can be detached and another
// may come in its place.
func (d *rawDisk) Close() error {
	if err := d.File.Close(); err != nil {
		return err
	}
	if err := os.WriteFile("/sys/class/block/"+d.name+"/device/delete", []byte("1"), 0); err != nil {
		return fmt.Errorf("let go of %s: %w", d.name, err)
	}
	return nil
}
