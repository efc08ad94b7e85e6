package lab

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// marker is an argument of each QEMU's command line that no other process has:
// its log file's path.
func (l *Lab) marker(vm string) string { return filepath.Join(l.run.Name(), vm+".qemu.log") }

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

// leftovers finds the QEMUs that a killed lab left behind among all processes, by
// their marker: each one's process by the value of its VM's reference.
func leftovers(run string) (map[string]int, error) {
	ents, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	out := map[string]int{}
	for _, e := range ents {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if vm := marked(pid, run); vm != "" {
			out[vm] = pid
		}
	}
	return out, nil
}

// marked returns the VM of a process that is a QEMU of the lab whose run directory
// this is, and "" of others.
func marked(pid int, run string) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return ""
	}
	args := strings.Split(string(b), "\x00")
	for i := 1; i < len(args); i++ {
		if vm, ok := strings.CutSuffix(filepath.Base(args[i]), ".qemu.log"); ok && args[i-1] == "-D" && filepath.Dir(args[i]) == run {
			return vm
		}
	}
	return ""
}

// awaitEnd returns when the process of an open pidfd has ended, or false after
// the given time; a negative one is for ever.
func awaitEnd(fd int, patience time.Duration) (bool, error) {
	deadline := time.Now().Add(patience)
	for {
		ms := -1
		if patience >= 0 {
			ms = max(0, int(time.Until(deadline).Milliseconds()))
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, ms)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		return n > 0, err
	}
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
	if marked(pid, run) == "" {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	ended, err := awaitEnd(fd, 10*time.Second)
	if err == nil && !ended {
		err = errors.New("it does not end")
	}
	return err
}
