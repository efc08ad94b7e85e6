// Command probe is PID 1 of the VM in which the kernel's tests ask for what
// container workloads need. It does each thing for real and prints one line
// for it: "ok NAME", or "FAIL NAME: why".
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A probe returns nil if the kernel can do what its name says.
type probe struct {
	name string
	run  func() error
}

func main() {
	if len(os.Args) > 1 {
		child(os.Args[1:])
		return
	}
	fmt.Println("probe: up")
	for _, m := range [][2]string{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"tmpfs", "/run"}} {
		if err := mount(m[0], m[1], m[0], ""); err != nil {
			fmt.Printf("FAIL %s: %v\n", m[0], err)
		}
	}
	start := time.Now()
	for _, p := range slices.Concat(machine(), processes(), sockets(), files(), controlGroups(), links(), netfilter(), messages()) {
		if err := bounded(p.run); err != nil {
			fmt.Printf("FAIL %s: %v\n", p.name, err)
		} else {
			fmt.Printf("ok %s\n", p.name)
		}
	}
	fmt.Printf("probe: done in %v\n", time.Since(start).Round(time.Millisecond))
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

// bounded runs a probe on a thread of its own, which goes away with what the
// probe did to it, and does not wait forever.
func bounded(run func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer func() {
			if r := recover(); r != nil {
				done <- fmt.Errorf("panic: %v", r)
			}
		}()
		done <- run()
	}()
	select {
	case err := <-done:
		return err
	case <-time.After(10 * time.Second):
		return errors.New("no answer within 10 s")
	}
}

// mount makes the target and mounts on it.
func mount(source, target, fstype, data string) error {
	if err := os.MkdirAll(target, 0o755); err != nil {
		return err
	}
	return os.NewSyscallError("mount "+fstype, unix.Mount(source, target, fstype, 0, data))
}

// holds returns an error unless the file has all the words.
func holds(file string, words ...string) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	have := strings.Fields(string(b))
	for _, w := range words {
		if !slices.Contains(have, w) {
			return fmt.Errorf("%s has no %q: %q", file, w, strings.Join(have, " "))
		}
	}
	return nil
}

// exists returns an error unless something matches each pattern.
func exists(patterns ...string) func() error {
	return func() error {
		for _, p := range patterns {
			if m, err := filepath.Glob(p); err != nil || len(m) == 0 {
				return fmt.Errorf("no %s (%v)", p, err)
			}
		}
		return nil
	}
}

// await waits for what a driver makes on its own time.
func await(pattern string) error {
	var err error
	for range 200 {
		if err = exists(pattern)(); err == nil {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return err
}

// write writes to a file of the kernel's.
func write(file, text string) error {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// call makes a system call and names it in the error.
func call(name string, trap uintptr, a ...uintptr) (uintptr, error) {
	var v [6]uintptr
	copy(v[:], a)
	r, _, errno := unix.Syscall6(trap, v[0], v[1], v[2], v[3], v[4], v[5])
	if errno != 0 {
		return 0, os.NewSyscallError(name, errno)
	}
	return r, nil
}
