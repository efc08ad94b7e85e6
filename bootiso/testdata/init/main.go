//go:build linux

// Command init is PID 1 of a VM under test: it tells what it finds and powers
// off.
package main

import (
	"crypto/sha256"
	"fmt"
	"os"
	"strings"
	"syscall"
)

func main() {
	fmt.Println("@PID1")
	self, err := os.ReadFile("/init")
	fmt.Printf("@init %x %v\n", sha256.Sum256(self), err)
	_ = syscall.Mount("proc", "/proc", "proc", 0, "")
	cmdline, err := os.ReadFile("/proc/cmdline")
	fmt.Printf("@cmdline %s %v\n", strings.TrimSpace(string(cmdline)), err)
	meminfo, _ := os.ReadFile("/proc/meminfo")
	for _, line := range strings.Split(string(meminfo), "\n") {
		if strings.HasPrefix(line, "MemTotal:") || strings.HasPrefix(line, "MemFree:") {
			fmt.Println("@" + strings.Join(strings.Fields(line)[:2], " "))
		}
	}
	fmt.Println("@end")
	_ = syscall.Reboot(syscall.LINUX_REBOOT_CMD_POWER_OFF)
}
