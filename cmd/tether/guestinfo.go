//go:build linux && amd64

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/vicsdk/vic-go/internal/rpci"
	"github.com/vicsdk/vic-go/vic/tether"
	"github.com/vmware/govmomi/toolbox"
	"golang.org/x/sys/unix"
)

// serialPort carries RPCI where the hypervisor has no backdoor.
const serialPort = "/dev/ttyS3"

// openGuestinfo finds the carrier of guestinfo. The backdoor is touched only
// where the processor says that it is VMware's (CPUID leaf 0x40000000).
func openGuestinfo() (tether.Guestinfo, error) {
	out := &toolbox.ChannelOut{Channel: toolbox.NewBackdoorChannelOut()}
	err := out.Start()
	if err == nil {
		return &backdoor{out: out}, nil
	}
	if !errors.Is(err, toolbox.ErrNotVirtualWorld) {
		return nil, fmt.Errorf("guestinfo: backdoor: %w", err)
	}
	f, err := openSerial(serialPort)
	if err != nil {
		return nil, fmt.Errorf("guestinfo: this is no VMware machine, and %w", err)
	}
	return rpci.NewClient(f, 0), nil
}

// backdoor is guestinfo by the hypervisor's own channel.
type backdoor struct {
	mu  sync.Mutex
	out *toolbox.ChannelOut
}

func (b *backdoor) call(request string) (string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	reply, err := b.out.Request([]byte(request))
	if err != nil && !strings.HasPrefix(request, "info-get") {
		return "", fmt.Errorf("guestinfo: backdoor: %.200s", err)
	}
	if err != nil {
		return "", fmt.Errorf("%w: %.200s", rpci.ErrNotFound, err)
	}
	return string(reply), nil
}

func (b *backdoor) Get(_ context.Context, key string) (string, error) {
	return b.call("info-get " + key)
}

func (b *backdoor) Set(_ context.Context, key, value string) error {
	_, err := b.call("info-set " + key + " " + value)
	return err
}

// openSerial opens a serial port raw at 115200 baud (termios(3)).
func openSerial(name string) (*os.File, error) {
	fd, err := unix.Open(name, unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	t := unix.Termios{
		Cflag:  unix.CS8 | unix.CREAD | unix.CLOCAL | unix.B115200,
		Ispeed: unix.B115200, Ospeed: unix.B115200,
	}
	t.Cc[unix.VMIN] = 1
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, &t); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("%s: no such serial port: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

func isErrno(err error, want unix.Errno) bool {
	var e unix.Errno
	return errors.As(err, &e) && e == want
}
