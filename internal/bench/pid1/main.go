// Command pid1 says on the first serial port that it runs, and powers off. It
// stands in for PID 1 where a bare boot is measured. With arguments "serial" and
// two numbers it before that writes so many bytes to the second serial port, and
// reads so many from it.
//
// Run with arguments "tcp", "out" or "in", and a number, it is a program in a
// container that waits for one connection to port 5000 and writes so many bytes to it
// or reads them from it.
package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"syscall"
	"unsafe"
)

func main() {
	if len(os.Args) == 4 && os.Args[1] == "tcp" {
		if err := tcp(os.Args[2], os.Args[3]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	_ = os.MkdirAll("/dev", 0o755)
	_ = syscall.Mount("devtmpfs", "/dev", "devtmpfs", 0, "")
	if f, err := os.OpenFile("/dev/ttyS0", os.O_WRONLY|syscall.O_NOCTTY, 0); err == nil {
		_, _ = f.WriteString("@PID1\n")
		if len(os.Args) == 4 && os.Args[1] == "serial" {
			if err := serial(os.Args[2], os.Args[3]); err != nil {
				_, _ = f.WriteString(err.Error() + "\n")
			}
		}
		_ = f.Close()
	}
	_ = syscall.Reboot(syscall.LINUX_REBOOT_CMD_POWER_OFF)
}

func tcp(direction, size string) error {
	n, err := strconv.Atoi(size)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", ":5000")
	if err != nil {
		return err
	}
	c, err := l.Accept()
	if err != nil {
		return err
	}
	b := make([]byte, 256<<10)
	for n > 0 && err == nil {
		p := b[:min(n, len(b))]
		var did int
		if direction == "out" {
			did, err = c.Write(p)
		} else {
			did, err = c.Read(p)
		}
		n -= did
	}
	if err != nil {
		return err
	}
	return c.Close()
}

// serial writes to the second serial port, then reads from it, then writes a byte.
func serial(write, read string) error {
	w, err := strconv.Atoi(write)
	if err != nil {
		return err
	}
	r, err := strconv.Atoi(read)
	if err != nil {
		return err
	}
	f, err := os.OpenFile("/dev/ttyS1", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return err
	}
	t := syscall.Termios{Cflag: syscall.CS8 | syscall.CREAD | syscall.CLOCAL | syscall.B115200, Ispeed: syscall.B115200, Ospeed: syscall.B115200}
	t.Cc[syscall.VMIN] = 1
	if _, _, e := syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), syscall.TCSETS, uintptr(unsafe.Pointer(&t))); e != 0 {
		return fmt.Errorf("/dev/ttyS1: %w", e)
	}
	b := make([]byte, 32<<10)
	for n := 0; n < w; n += len(b) {
		if _, err := f.Write(b); err != nil {
			return err
		}
	}
	if _, err := io.CopyN(io.Discard, f, int64(r)); err != nil {
		return err
	}
	_, err = f.Write(b[:1])
	return err
}
