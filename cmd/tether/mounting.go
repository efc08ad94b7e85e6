//go:build linux && amd64

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vicsdk/vic-go/internal/ext4"
	"github.com/vicsdk/vic-go/vic/tether"
	"golang.org/x/sys/unix"
)

// hotWait bounds how long a disk is waited for that is to be mounted in a running
// machine: vSphere has added it before.
const hotWait = 20 * time.Second

// Mount implements tether.Mounter.
func (m *machine) Mount(ctx context.Context, t tether.Mount) error {
	m.mounting.Lock()
	defer m.mounting.Unlock()
	for _, have := range m.mounts {
		switch {
		case have.Target != t.Target:
		case reflect.DeepEqual(have, t):
			return nil
		default:
			return fmt.Errorf("%w: %s is the target of another mount: unmount that first", tether.ErrConflict, t.Target)
		}
	}
	if len(m.mounts) >= tether.MaxMounts {
		return fmt.Errorf("%w: %d mounts already, the most there may be", tether.ErrInvalid, len(m.mounts))
	}
	if err := m.bring(ctx, t); err != nil {
		return fmt.Errorf("mount %s: %w", t.Target, err)
	}
	// Where no process runs now, the next one will have it.
	if err := m.world.mount(t, m.volumes.servers()); err != nil && !errors.Is(err, tether.ErrNotRunning) {
		err = fmt.Errorf("mount %s: %w", t.Target, err)
		if !m.shared(t, m.mounts) {
			err = errors.Join(err, m.volumes.drop(t))
		}
		return err
	}
	m.mounts = append(m.mounts, t)
	return nil
}

// bring mounts what t needs in the tether's own namespace, where it is not yet.
func (m *machine) bring(ctx context.Context, t tether.Mount) error {
	switch v := t.Volume; {
	case v == nil:
		return nil
	case v.NFS != nil:
		_, err := m.volumes.mountNFS(ctx, []tether.Mount{t}, m.net.resolv())
		return err
	default:
		ctx, cancel := context.WithTimeout(ctx, hotWait)
		defer cancel()
		return m.volumes.add(ctx, m.events, v.Unit)
	}
}

// shared tells whether other mounts are of t's disk, too.
func (m *machine) shared(t tether.Mount, others []tether.Mount) bool {
	return t.Volume == nil || t.Volume.NFS == nil && slices.ContainsFunc(others, func(o tether.Mount) bool {
		return o.Target != t.Target && o.Volume != nil && o.Volume.NFS == nil && o.Volume.Unit == t.Volume.Unit
	})
}

// Unmount implements tether.Mounter.
func (m *machine) Unmount(_ context.Context, target string) error {
	m.mounting.Lock()
	defer m.mounting.Unlock()
	i := slices.IndexFunc(m.mounts, func(t tether.Mount) bool { return t.Target == target })
	if i < 0 {
		return fmt.Errorf("%w: nothing is mounted at %s", tether.ErrNotFound, target)
	}
	t := m.mounts[i]
	if err := m.world.unmount(target); err != nil && !errors.Is(err, tether.ErrNotRunning) {
		return m.busy(t, fmt.Errorf("unmount %s: %w", target, err))
	}
	if !m.shared(t, m.mounts) {
		if err := m.volumes.drop(t); err != nil {
			err = m.busy(t, fmt.Errorf("unmount %s: %w", target, err))
			// The container goes on with what it had.
			if e := m.world.mount(t, m.volumes.servers()); e != nil && !errors.Is(e, tether.ErrNotRunning) {
				err = errors.Join(err, fmt.Errorf("mount it again: %w", e))
			}
			return err
		}
	}
	m.mounts = slices.Delete(m.mounts, i, i+1)
	return nil
}

// busy says who uses a mount, where that is why it cannot be unmounted.
func (m *machine) busy(t tether.Mount, err error) error {
	if !errors.Is(err, unix.EBUSY) {
		return err
	}
	who := "a process of the container, or a mount below it"
	if t.Volume != nil && t.Volume.NFS == nil {
		if all := diskUsers(volumeDir(t.Volume.Unit)); len(all) > 0 {
			who = strings.Join(all, ", ")
		}
	}
	return fmt.Errorf("%w by %s: %w", tether.ErrBusy, who, err)
}

// Grow implements tether.Mounter.
func (m *machine) Grow(_ context.Context, unit int) (tether.VolumeSize, error) {
	m.mounting.Lock()
	defer m.mounting.Unlock()
	return m.volumes.grow(unit)
}

// mount mounts t inside the container. nfs is where servers' directories are
// mounted outside, by target.
func (w *world) mount(t tether.Mount, nfs map[string]string) error {
	n := w.current()
	if n == nil {
		return tether.ErrNotRunning
	}
	p := &placed{Mount: t, tree: -1, content: -1}
	defer closeMounts([]*placed{p})
	if t.Volume != nil {
		if err := p.open(t.Volume, nfs, false); err != nil {
			return err
		}
	}
	table, err := n.mountTable()
	if err != nil {
		return err
	}
	defer table.Close()
	err = w.inside(func(error) {}, func() error {
		if err := os.MkdirAll(t.Target, 0o755); err != nil {
			return err
		}
		at, err := filepath.EvalSymlinks(t.Target)
		if err != nil {
			return err
		}
		all, err := readMounts(table)
		if err != nil {
			return err
		}
		for _, have := range all {
			if have.at == at || strings.HasPrefix(have.at, at+"/") {
				return fmt.Errorf("%w: it would hide what is mounted at %s", tether.ErrConflict, have.at)
			}
		}
		return p.place()
	})
	if err == nil {
		n.placed[t.Target] = p.id
	}
	return err
}

// unmount takes away what was mounted for a target, wherever it is now.
func (w *world) unmount(target string) error {
	n := w.current()
	if n == nil {
		return tether.ErrNotRunning
	}
	table, err := n.mountTable()
	if err != nil {
		return err
	}
	defer table.Close()
	all, err := readMounts(table)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(all, func(x mounted) bool { return x.id == n.placed[target] })
	if i < 0 {
		return nil // the container, which may be privileged, has done it itself
	}
	return w.inside(func(error) {}, func() error { return unix.Unmount(all[i].at, unix.UMOUNT_NOFOLLOW) })
}

// current is the namespace of the container that runs, or nil. Whoever holds
// machine.mounting has no other come in its place.
func (w *world) current() *namespace {
	w.mu.RLock()
	defer w.mu.RUnlock()
	return w.ns
}

// mountTable opens the list of the container's mounts, as its root sees them.
func (n *namespace) mountTable() (*os.File, error) {
	return os.Open(fmt.Sprintf("/proc/self/task/%d/mountinfo", n.thread))
}

// A mounted is a line of a mountinfo.
type mounted struct {
	id uint64
	at string
}

// readMounts reads a mountinfo (proc(5)).
func readMounts(r io.Reader) ([]mounted, error) {
	var out []mounted
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		f := strings.Fields(sc.Text())
		if len(f) < 5 {
			return nil, fmt.Errorf("mountinfo: %.80q", sc.Text())
		}
		id, err := strconv.ParseUint(f[0], 10, 64)
		if err != nil {
			return nil, fmt.Errorf("mountinfo: %.80q", sc.Text())
		}
		out = append(out, mounted{id, unescape(f[4])})
	}
	return out, sc.Err()
}

// unescape undoes how mountinfo spells blanks and backslashes, as \ooo.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// mountID is the kernel's number of the mount that a file is on (statx(2)).
func mountID(dir int, name string) (uint64, error) {
	var st unix.Statx_t
	flags := unix.AT_NO_AUTOMOUNT
	if name == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	if err := unix.Statx(dir, name, flags, unix.STATX_MNT_ID, &st); err != nil {
		return 0, err
	}
	return st.Mnt_id, nil
}

// add mounts the disk of a volume in a running machine. A copy to it that was cut
// off elsewhere is taken back. Where that fails, the kernel lets go of the disk.
func (v *volumes) add(ctx context.Context, u *uevents, unit int) error {
	v.mu.Lock()
	_, have := v.disks[unit]
	v.mu.Unlock()
	if have {
		return nil
	}
	dev, err := mountVolume(ctx, u, unit)
	if err == nil {
		err = v.heal(unit)
	}
	if err == nil {
		v.mu.Lock()
		if v.ended {
			err = tether.ErrNotRunning
		} else {
			v.note(unit, dev)
		}
		v.mu.Unlock()
	}
	if err != nil && dev != "" {
		if e := unix.Unmount(volumeDir(unit), 0); e != nil && !errors.Is(e, unix.EINVAL) && !errors.Is(e, unix.ENOENT) {
			return errors.Join(err, e)
		}
		err = errors.Join(err, letGo(dev))
	}
	return err
}

func (v *volumes) heal(unit int) error {
	state, err := os.OpenRoot(filepath.Join(volumeDir(unit), "state"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer state.Close()
	return fill(contentDir(unit), state, "", false)
}

// drop unmounts in the tether's own namespace what t is a mount of, and has the
// kernel let go of a disk. A disk that is mounted anywhere else, as in a namespace
// that the container has made, is EBUSY and stays as it was.
func (v *volumes) drop(t tether.Mount) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if t.Volume.NFS != nil {
		dir := v.nfs[t.Target]
		if dir == "" {
			return nil
		}
		if err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW); err != nil {
			return err
		}
		delete(v.nfs, t.Target)
		return os.Remove(dir)
	}
	dev, dir := v.disks[t.Volume.Unit], volumeDir(t.Volume.Unit)
	if dev == "" {
		return nil
	}
	if err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW); err != nil {
		return err
	}
	if err := letGo(dev); err != nil {
		return errors.Join(err, unix.Mount(dev, dir, "ext4", unix.MS_NOATIME, ""))
	}
	delete(v.disks, t.Volume.Unit)
	return os.Remove(dir)
}

// letGo has the kernel forget a disk that is not in use, once its filesystem is
// gone: the last of the processes that used it may be about to end.
func letGo(dev string) error {
	var err error
	for range 50 {
		var f *os.File
		if f, err = os.OpenFile(dev, os.O_RDONLY|unix.O_EXCL, 0); err == nil {
			_ = f.Close()
			return os.WriteFile("/sys/class/block/"+filepath.Base(dev)+"/device/delete", []byte("1"), 0)
		}
		if !errors.Is(err, unix.EBUSY) {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
	return fmt.Errorf("it is mounted in another namespace: %w", err)
}

// grow lets a mounted filesystem have the whole of its disk, as that is now.
func (v *volumes) grow(unit int) (s tether.VolumeSize, err error) {
	v.mu.Lock()
	dev := v.disks[unit]
	v.mu.Unlock()
	if dev == "" {
		return s, fmt.Errorf("%w: no volume is mounted of unit %d", tether.ErrNotFound, unit)
	}
	if err := os.WriteFile("/sys/class/block/"+filepath.Base(dev)+"/device/rescan", []byte("1"), 0); err != nil {
		return s, fmt.Errorf("volume at unit %d: ask for its size: %w", unit, err)
	}
	f, err := os.Open(dev)
	if err != nil {
		return s, err
	}
	defer f.Close()
	if s.Disk, err = f.Seek(0, io.SeekEnd); err != nil {
		return s, err
	}
	blocks, err := fsBlocks(f)
	if err == nil {
		blocks, err = growFS(volumeDir(unit), s.Disk, blocks)
	}
	if err != nil {
		return s, fmt.Errorf("volume at unit %d: %w", unit, err)
	}
	s.Filesystem = int64(blocks) * ext4.BlockSize
	return s, nil
}

// diskUsers names processes that have something open on the filesystem at dir, a few
// at most.
func diskUsers(dir string) (out []string) {
	// Nothing is asked of servers, which may not answer.
	const flags = unix.AT_STATX_DONT_SYNC
	var fsys unix.Statx_t
	if unix.Statx(unix.AT_FDCWD, dir, flags, 0, &fsys) != nil {
		return nil
	}
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range procs {
		names, _ := filepath.Glob(p + "/fd/*")
		for _, name := range append(names, p+"/cwd", p+"/root", p+"/exe") {
			var st unix.Statx_t
			if unix.Statx(unix.AT_FDCWD, name, flags, 0, &st) != nil || st.Dev_major != fsys.Dev_major || st.Dev_minor != fsys.Dev_minor {
				continue
			}
			pid, _ := strconv.Atoi(filepath.Base(p))
			out = append(out, fmt.Sprintf("process %d (%.40q)", containerPID(pid), strings.TrimSpace(readString(p, "comm"))))
			break
		}
		if len(out) == 4 {
			return out
		}
	}
	return out
}
