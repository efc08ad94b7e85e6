//go:build linux && amd64

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vicsdk/vic-go/vic/tether"
)

// freezeTime bounds how long the kernel may take to stop the processes.
const freezeTime = 10 * time.Second

// Freeze implements tether.Freezer (cgroup-v2.rst, cgroup.freeze).
func (w *world) Freeze(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, freezeTime)
	defer cancel()
	if err := os.WriteFile(filepath.Join(containerGroup, "cgroup.freeze"), []byte("1"), 0); err != nil {
		return fmt.Errorf("pause: %w", err)
	}
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		if keyed(readString(containerGroup, "cgroup.events"))["frozen"] == 1 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("pause: not all of the processes have stopped: %w", ctx.Err())
		case <-time.After(wait):
		}
	}
}

// Thaw implements tether.Freezer.
func (w *world) Thaw() error {
	if err := os.WriteFile(filepath.Join(containerGroup, "cgroup.freeze"), []byte("0"), 0); err != nil {
		return fmt.Errorf("unpause: %w", err)
	}
	return nil
}

// readString reads a file of /proc, /sys or a cgroup, or nothing.
func readString(dir, name string) string {
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return ""
	}
	return string(b)
}

func number(s string) uint64 {
	n, _ := strconv.ParseUint(strings.TrimSpace(s), 10, 64)
	return n
}

// keyed reads lines of a name and a number.
func keyed(s string) map[string]uint64 {
	m := map[string]uint64{}
	for line := range strings.Lines(s) {
		if f := strings.Fields(line); len(f) >= 2 {
			m[strings.TrimSuffix(f[0], ":")] = number(f[1])
		}
	}
	return m
}

// Stats implements tether.Monitor. The counters are those of the container's
// cgroup (cgroup-v2.rst); the network is the VM's, which is the container's.
func (w *world) Stats() (tether.Stats, error) {
	cpu, mem := keyed(readString(containerGroup, "cpu.stat")), keyed(readString(containerGroup, "memory.stat"))
	micro := func(name string) time.Duration { return time.Duration(cpu[name]) * time.Microsecond }
	s := tether.Stats{
		Time: time.Now().UTC(), CPUs: runtime.NumCPU(),
		CPU: micro("usage_usec"), CPUUser: micro("user_usec"), CPUSystem: micro("system_usec"),
		MemoryUsed: number(readString(containerGroup, "memory.current")), MemoryCache: mem["inactive_file"],
		MemoryLimit: keyed(readString("/proc", "meminfo"))["MemTotal"] << 10,
		PIDs:        number(readString(containerGroup, "pids.current")),
		Networks:    map[string]tether.NetworkStats{},
	}
	if limit := number(readString(containerGroup, "memory.max")); limit > 0 {
		s.MemoryLimit = min(s.MemoryLimit, limit)
	}
	for line := range strings.Lines(readString(containerGroup, "io.stat")) {
		for f := range strings.FieldsSeq(line) {
			name, value, _ := strings.Cut(f, "=")
			switch name {
			case "rbytes":
				s.BlockRead += number(value)
			case "wbytes":
				s.BlockWritten += number(value)
			case "rios":
				s.BlockReadOps += number(value)
			case "wios":
				s.BlockWriteOps += number(value)
			}
		}
	}
	links, err := os.ReadDir("/sys/class/net")
	if err != nil {
		return s, err
	}
	for _, l := range links {
		dir := filepath.Join("/sys/class/net", l.Name(), "statistics")
		if _, err := os.Stat(filepath.Join("/sys/class/net", l.Name(), "device")); err != nil {
			continue // no adapter: loopback, tunnels
		}
		n := func(name string) uint64 { return number(readString(dir, name)) }
		s.Networks[l.Name()] = tether.NetworkStats{
			RxBytes: n("rx_bytes"), RxPackets: n("rx_packets"), RxErrors: n("rx_errors"), RxDropped: n("rx_dropped"),
			TxBytes: n("tx_bytes"), TxPackets: n("tx_packets"), TxErrors: n("tx_errors"), TxDropped: n("tx_dropped"),
		}
	}
	return s, nil
}

// Top implements tether.Monitor.
func (w *world) Top(after int) ([]tether.ProcessInfo, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	inside := map[int]int{} // PIDs in the container by those that the tether sees
	var outside []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if in := containerPID(pid); in > 1 { // 1 is ours
			inside[pid] = in
			outside = append(outside, pid)
		} else if in == 1 {
			inside[pid] = in
		}
	}
	users := w.users()
	boot := time.Now().Add(-uptime())
	var all []tether.ProcessInfo
	for _, pid := range outside {
		if inside[pid] <= after {
			continue
		}
		p, parent, err := readProcess(filepath.Join("/proc", strconv.Itoa(pid)), boot)
		if err != nil {
			continue // It has ended.
		}
		p.PID, p.PPID, p.User = inside[pid], inside[parent], users[p.UID]
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b tether.ProcessInfo) int { return a.PID - b.PID })
	return all, nil
}

// clockTick is the unit of times in /proc (USER_HZ on x86).
const clockTick = 10 * time.Millisecond

// readProcess reads one directory of /proc (proc(5), /proc/pid/stat) and tells the
// parent's PID.
func readProcess(dir string, boot time.Time) (p tether.ProcessInfo, parent int, err error) {
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return p, 0, err
	}
	// The name may hold anything, also blanks and brackets.
	i, j := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	f := strings.Fields(string(stat[j+1:]))
	if i < 0 || j < i || len(f) < 20 {
		return p, 0, errors.New("no process")
	}
	parent, _ = strconv.Atoi(f[1])
	p.State = f[0]
	if tty := number(f[4]); tty>>8&0xfff == 136 {
		p.TTY = "pts/" + strconv.FormatUint(tty&0xff|tty>>12&0xfff00, 10)
	}
	p.CPU = time.Duration(number(f[11])+number(f[12])) * clockTick
	p.Started = boot.Add(time.Duration(number(f[19])) * clockTick).UTC()
	p.UID = uint32(keyed(readString(dir, "status"))["Uid"])
	line := make([]byte, 1<<10)
	if f, err := os.Open(filepath.Join(dir, "cmdline")); err == nil {
		n, _ := io.ReadFull(f, line)
		line = bytes.TrimRight(line[:n], "\x00")
		_ = f.Close()
	} else {
		line = nil
	}
	p.Command = strings.ToValidUTF8(string(bytes.ReplaceAll(line, []byte{0}, []byte{' '})), "?")
	if p.Command == "" {
		p.Command = "[" + strings.ToValidUTF8(string(stat[i+1:j]), "?") + "]"
	}
	return p, parent, nil
}

// users are the names in the container's /etc/passwd, as far as it can be read.
func (w *world) users() map[uint32]string {
	names := map[uint32]string{}
	w.mu.RLock()
	defer w.mu.RUnlock()
	if w.ns == nil {
		return names
	}
	_ = w.ns.do(func() error {
		f, err := openRegular("/etc/passwd")
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		defer f.Close()
		return lines(f, func(fields []string) bool {
			if a, ok := parseAccount(fields); ok && len(a.name) <= 256 {
				if _, have := names[a.uid]; !have {
					names[a.uid] = a.name
				}
			}
			return len(names) < 1<<16
		})
	})
	return names
}
