//go:build linux && amd64

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// containerCgroup makes the container's cgroup, with every controller the
// kernel has. The caller closes the directory.
func containerCgroup() (*os.File, error) {
	root := filepath.Dir(containerGroup)
	b, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
	if err != nil {
		return nil, fmt.Errorf("cgroup: %w", err)
	}
	for _, c := range strings.Fields(string(b)) {
		// One that cannot be turned on does not hinder the others.
		_ = os.WriteFile(filepath.Join(root, "cgroup.subtree_control"), []byte("+"+c), 0)
	}
	if err := os.Mkdir(containerGroup, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("cgroup: %w", err)
	}
	return os.Open(containerGroup)
}

// endContainer ends whatever is left in the container: the kernel kills a PID
// namespace with its first process.
func endContainer(pid1 int) {
	_ = os.WriteFile(filepath.Join(containerGroup, "cgroup.kill"), []byte("1"), 0)
	_ = unix.Kill(pid1, unix.SIGKILL)
}

// removeCgroup removes a cgroup, and those below it, once the processes that
// were killed in it are gone.
func removeCgroup(dir string) error {
	all, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range all {
		if e.IsDir() {
			if err := removeCgroup(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	for wait, end := time.Millisecond, time.Now().Add(killTime); ; wait *= 2 {
		err := unix.Rmdir(dir)
		if err != unix.EBUSY || time.Now().After(end) {
			return err
		}
		time.Sleep(wait)
	}
}

// killTime is how long a killed process may take to go.
const killTime = 10 * time.Second

// oomKills counts the processes of the container's cgroup, and of those below
// it, that the kernel killed for want of memory (cgroup-v2.rst, memory.events).
func oomKills() int {
	f, err := os.Open(filepath.Join(containerGroup, "memory.events"))
	if err != nil {
		return 0
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		if v, ok := strings.CutPrefix(sc.Text(), "oom_kill "); ok {
			n, _ := strconv.Atoi(v)
			return n
		}
	}
	return 0
}

// setrlimit goes by package syscall, which then hands the limit on to the
// processes it starts.
func setrlimit(what int, l unix.Rlimit) error {
	if err := syscall.Setrlimit(what, &syscall.Rlimit{Cur: l.Cur, Max: l.Max}); err != nil {
		return fmt.Errorf("limit %d: %w", what, err)
	}
	return nil
}

// sysctls are those that Docker sets in a container's network namespace.
func sysctls(log *slog.Logger) {
	for name, value := range map[string]string{
		"net/ipv4/ip_unprivileged_port_start": "0",
		"net/ipv4/ping_group_range":           "0 2147483647",
	} {
		if err := os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0); err != nil {
			log.Warn("sysctl", "name", name, "error", err)
		}
	}
}
