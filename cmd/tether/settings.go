//go:build linux && amd64

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/vicsdk/vic-go/vic/tether"
	"golang.org/x/sys/unix"
)

// bound has what is started from this thread from now on live within the
// settings: root has the capabilities of the bounding set, others none.
func bound(s tether.Settings) error {
	granted, err := s.Capabilities()
	if err != nil {
		return fmt.Errorf("settings.%w", err)
	}
	for c := range uintptr(unix.CAP_LAST_CAP + 1) {
		if granted&(1<<c) != 0 {
			continue
		}
		// EINVAL: a kernel that does not know this one.
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil && err != unix.EINVAL {
			return fmt.Errorf("capability %d: %w", c, err)
		}
	}
	if s.NoNewPrivileges {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("settings.noNewPrivileges: %w", err)
		}
	}
	return nil
}

// procDir is the tether's own /proc, which threads inside the container do not
// see: they are handed open files.
const procDir = "/proc"

// apply sets what holds for the whole VM: the kernel's parameters, the domain
// name, and what the container's processes inherit of the tether. The kernel
// never kills the tether itself, which is the VM's first process.
func apply(s tether.Settings) error {
	for name, value := range s.Sysctls {
		if err := setSysctl(name, value); err != nil {
			return fmt.Errorf("settings.sysctls: %s: %w", name, err)
		}
	}
	if s.Domainname != "" {
		if err := unix.Setdomainname([]byte(s.Domainname)); err != nil {
			return fmt.Errorf("settings.domainname: %w", err)
		}
	}
	for i, u := range s.Ulimits {
		// The launcher lowers the limits of what it starts, without the right to
		// raise them.
		resource, _, hard, err := u.Resource()
		if err != nil {
			return fmt.Errorf("settings.ulimits[%d].%w", i, err)
		}
		var now unix.Rlimit
		if err := unix.Getrlimit(resource, &now); err != nil {
			return fmt.Errorf("settings.ulimits[%d].%s: %w", i, u.Name, err)
		}
		if now.Max < hard {
			now.Max = hard
			if err := setrlimit(resource, now); err != nil {
				return fmt.Errorf("settings.ulimits[%d].%s: the kernel does not take %d: %w", i, u.Name, u.Hard, err)
			}
		}
	}
	return nil
}

// setSysctl sets a parameter of the kernel by its name.
func setSysctl(name, value string) error {
	file := filepath.Join("/proc/sys", strings.ReplaceAll(name, ".", "/"))
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return errors.New("the VM's kernel has no such parameter")
	}
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("%q: %w", value, err)
	}
	return nil
}

// setOOMScore makes a process more or less likely to be killed for want of
// memory (proc(5), /proc/pid/oom_score_adj).
func setOOMScore(pid string, score int) error {
	err := os.WriteFile(filepath.Join(procDir, pid, "oom_score_adj"), []byte(strconv.Itoa(score)), 0)
	if err != nil {
		return fmt.Errorf("settings.oomScoreAdj: %w", err)
	}
	return nil
}

// device is a node of the VM's /dev.
type device struct {
	name string
	mode uint32
	rdev int
}

// allDevices lists the nodes below dir, which the kernel keeps.
func allDevices(dir string) ([]device, error) {
	var all []device
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.Type()&fs.ModeDevice == 0 {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(name, &st); err != nil {
			return err
		}
		all = append(all, device{name: "/dev" + strings.TrimPrefix(name, dir), mode: st.Mode, rdev: int(st.Rdev)})
		return nil
	})
	return all, err
}

// make makes the node where there is none of its name.
func (d device) make() error {
	old := unix.Umask(0)
	defer unix.Umask(old)
	if err := os.MkdirAll(filepath.Dir(d.name), 0o755); err != nil {
		return err
	}
	if err := unix.Mknod(d.name, d.mode, d.rdev); err != nil && err != unix.EEXIST {
		return fmt.Errorf("%s: %w", d.name, err)
	}
	return nil
}
