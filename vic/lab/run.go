package lab

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A record is what run/VM.json tells of a QEMU.
type record struct {
	VM  string `json:"vm"`
	PID int    `json:"pid"`
	// Start is the process's start time in clock ticks since boot, field 22 of
	// /proc/PID/stat: with it a process number names one process for good.
	Start  uint64 `json:"start"`
	Marker string `json:"marker"`
}

// marker is an argument of each QEMU's command line that no other process has:
// its log file's path.
func (l *Lab) marker(vm string) string { return filepath.Join(l.run.Name(), vm+".qemu.log") }

func (l *Lab) writeRecord(q *qemu, vm string) error {
	pid := q.cmd.Process.Pid
	start, err := startOf(pid)
	if err != nil {
		return fmt.Errorf("QEMU ended at once: %w", err)
	}
	b, err := json.Marshal(record{vm, pid, start, l.marker(vm)})
	if err != nil {
		return err
	}
	q.record = filepath.Join(l.run.Name(), vm+".json")
	return writeFile(q.record, b)
}

// startOf reads a process's start time.
func startOf(pid int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The second field is the program's name in parentheses and may have both
	// blanks and parentheses in it.
	i := bytes.LastIndexByte(b, ')')
	f := strings.Fields(string(b[i+1:]))
	if i < 0 || len(f) < 20 {
		return 0, errors.New("strange /proc/PID/stat")
	}
	return strconv.ParseUint(f[19], 10, 64)
}

// endLeftovers ends the QEMUs that a killed lab left behind. They are found by
// their marker among all processes, so that one that had no record yet is found
// too; the records of the dead are removed.
func endLeftovers(run string) error {
	ents, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	for _, e := range ents {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || !marked(pid, run) {
			continue
		}
		if err := end(pid, run); err != nil {
			return fmt.Errorf("end QEMU %d of an earlier lab: %w", pid, err)
		}
	}
	left, err := os.ReadDir(run)
	if err != nil {
		return err
	}
	for _, e := range left {
		if err := os.RemoveAll(filepath.Join(run, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// marked tells whether a process is a QEMU of the lab whose run directory this is.
func marked(pid int, run string) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return false
	}
	args := strings.Split(string(b), "\x00")
	for i := 1; i < len(args); i++ {
		if args[i-1] == "-D" && filepath.Dir(args[i]) == run && strings.HasSuffix(args[i], ".qemu.log") {
			return true
		}
	}
	return false
}

// end kills a process and waits until it is gone. The process is held by its
// file descriptor and looked at again, so that no other one that got its number
// meanwhile can be hit.
func end(pid int, run string) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		if errors.Is(err, unix.ESRCH) {
			return nil
		}
		return err
	}
	defer unix.Close(fd)
	if !marked(pid, run) {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	deadline := time.Now().Add(10 * time.Second)
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(time.Until(deadline).Milliseconds()))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		case n == 0:
			return errors.New("it does not end")
		default:
			return nil
		}
	}
}
