//go:build linux && amd64

package main

import (
	"fmt"
	"net"

	"github.com/vicsdk/vic-go/vic/tether"
	"golang.org/x/sys/unix"
)

// listenSerial serves controllers on COM2, 3 or 4. The port is this program's
// alone from then on (TIOCEXCL): the container has neither the device nor the
// privilege to open it all the same.
func listenSerial(com int) (net.Listener, error) {
	f, err := openSerial(fmt.Sprintf("/dev/ttyS%d", com-1))
	if err != nil {
		return nil, fmt.Errorf("serial: %w", err)
	}
	c, err := f.SyscallConn()
	if err == nil {
		e := c.Control(func(fd uintptr) {
			// ioctl_tty(2).
			err = unix.IoctlSetInt(int(fd), unix.TIOCEXCL, 0)
			if err == nil {
				// What came before anybody listened is of no use.
				err = unix.IoctlSetInt(int(fd), unix.TCFLSH, unix.TCIOFLUSH)
			}
		})
		if err == nil {
			err = e
		}
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("serial: %w", err)
	}
	return tether.ListenLine(f), nil
}
