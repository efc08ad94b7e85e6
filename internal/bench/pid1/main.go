// Command pid1 says on the first serial port that it runs, and powers off. It
// stands in for PID 1 where a bare boot is measured.
package main

import (
	"os"
	"syscall"
)

func main() {
	_ = os.MkdirAll("/dev", 0o755)
	_ = syscall.Mount("devtmpfs", "/dev", "devtmpfs", 0, "")
	if f, err := os.OpenFile("/dev/ttyS0", os.O_WRONLY|syscall.O_NOCTTY, 0); err == nil {
		_, _ = f.WriteString("@PID1\n")
		_ = f.Close()
	}
	_ = syscall.Reboot(syscall.LINUX_REBOOT_CMD_POWER_OFF)
}
