package tether

import (
	"context"
	"fmt"
	"time"
)

// ProcessInfo is a process of the container.
type ProcessInfo struct {
	// PID and PPID in the container. The parent of the main process, and of an
	// exec, is 0.
	PID  int `json:"pid"`
	PPID int `json:"ppid"`
	// UID, and its name in the container's /etc/passwd where it has one.
	UID  uint32 `json:"uid"`
	User string `json:"user,omitempty"`
	// TTY as "pts/0", or empty.
	TTY     string        `json:"tty,omitempty"`
	Started time.Time     `json:"started"`
	CPU     time.Duration `json:"cpu"` // spent so far
	// State as ps(1) shows it: R, S, D, T, Z, …
	State string `json:"state"`
	// Command line, its arguments joined by blanks and cut off at 1 KiB; the
	// name in brackets where there is none.
	Command string `json:"command"`
}

// Stats are counters since the container's start, and gauges.
type Stats struct {
	Time time.Time `json:"time"`
	// CPUs that the VM has.
	CPUs int `json:"cpus"`
	// CPU time spent by the container's processes.
	CPU       time.Duration `json:"cpu"`
	CPUUser   time.Duration `json:"cpuUser"`
	CPUSystem time.Duration `json:"cpuSystem"`
	// Memory in bytes: Used with what files are cached, Cache the part of that
	// which the kernel can give back at once, Limit what there is at most.
	MemoryUsed  uint64 `json:"memoryUsed"`
	MemoryCache uint64 `json:"memoryCache"`
	MemoryLimit uint64 `json:"memoryLimit"`
	// PIDs is the number of processes and threads.
	PIDs uint64 `json:"pids"`
	// Bytes and operations of block devices.
	BlockRead     uint64 `json:"blockRead"`
	BlockWritten  uint64 `json:"blockWritten"`
	BlockReadOps  uint64 `json:"blockReadOps"`
	BlockWriteOps uint64 `json:"blockWriteOps"`
	// Networks by interface, loopback left out.
	Networks map[string]NetworkStats `json:"networks,omitempty"`
}

// NetworkStats are an interface's counters.
type NetworkStats struct {
	RxBytes   uint64 `json:"rxBytes"`
	RxPackets uint64 `json:"rxPackets"`
	RxErrors  uint64 `json:"rxErrors"`
	RxDropped uint64 `json:"rxDropped"`
	TxBytes   uint64 `json:"txBytes"`
	TxPackets uint64 `json:"txPackets"`
	TxErrors  uint64 `json:"txErrors"`
	TxDropped uint64 `json:"txDropped"`
}

// A Monitor tells what the container's processes do.
type Monitor interface {
	// Top lists the processes whose PID is above after, by PID.
	Top(after int) ([]ProcessInfo, error)
	Stats() (Stats, error)
}

// maxProcesses bounds what a guest can make a controller take; Linux has no
// higher PIDs than 4194304, and by default 32768.
const maxProcesses = 1 << 17

type topParams struct {
	After int `json:"after"`
}

// topAnswer is a part of the processes; the rest is asked for by the last one's
// PID.
type topAnswer struct {
	Processes []ProcessInfo `json:"processes"`
	More      bool          `json:"more,omitempty"`
}

// page cuts a list down to what one answer holds.
func (a *topAnswer) page() {
	bytes := 0
	for i := range a.Processes {
		// A byte of a command line is at most six in JSON.
		bytes += 512 + 6*len(a.Processes[i].Command)
		if i > 0 && bytes > maxDocument-4096 {
			a.Processes, a.More = a.Processes[:i], true
			return
		}
	}
}

// Top lists the container's processes by PID. It is ErrNotRunning where the
// container does not run.
func (c *Client) Top(ctx context.Context) ([]ProcessInfo, error) {
	var all []ProcessInfo
	for after := 0; ; {
		var a topAnswer
		if err := c.call(ctx, methodTop, topParams{after}, &a); err != nil {
			return nil, err
		}
		for _, p := range a.Processes {
			if p.PID <= after || len(all) >= maxProcesses {
				return nil, fmt.Errorf("tether: top: the guest's list does not end")
			}
			after = p.PID
			all = append(all, p)
		}
		if !a.More || len(a.Processes) == 0 {
			return all, nil
		}
	}
}

// Stats asks what the container uses. It is ErrNotRunning where it does not run.
func (c *Client) Stats(ctx context.Context) (Stats, error) {
	var s Stats
	err := c.call(ctx, methodStats, struct{}{}, &s)
	return s, err
}

// monitor answers the calls that look at, freeze and thaw the container.
func (c *serverConn) monitor(ctx context.Context, q callRequest) (any, error) {
	container, m := c.server.config.Container, c.server.config.Monitor
	switch q.Method {
	case methodPause:
		return nil, container.Pause(ctx, c.server.config.Freezer)
	case methodUnpause:
		return nil, container.Unpause()
	}
	if _, err := container.running(); err != nil {
		return nil, err
	}
	if m == nil {
		return nil, fmt.Errorf("%w: this guest does not watch its processes", ErrUnsupported)
	}
	if q.Method == methodStats {
		return m.Stats()
	}
	var p topParams
	if err := decode("top", q.Params, &p); err != nil {
		return nil, err
	}
	all, err := m.Top(p.After)
	a := topAnswer{Processes: all}
	a.page()
	return a, err
}
