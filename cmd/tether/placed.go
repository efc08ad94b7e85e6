//go:build linux && amd64

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vicsdk/vic-go/vic/tether"
	"golang.org/x/sys/unix"
)

// A placed is a mount of the configuration on its way into the container.
type placed struct {
	tether.Mount
	tree    int      // what to mount, not attached anywhere; -1 for a tmpfs
	content int      // the whole volume, for filling it; -1 where that is not done
	state   *os.Root // the tether's directory beside that
	id      uint64   // the kernel's number of the mount, once it is placed
}

// openMounts opens what a container's mounts are to show, parents first. It runs
// before the container's root is entered.
func openMounts(mounts []tether.Mount, nfs map[string]string) ([]*placed, error) {
	var out []*placed
	filled := map[int]bool{}
	for _, m := range mounts {
		p := &placed{Mount: m, tree: -1, content: -1}
		out = append(out, p)
		v := m.Volume
		if v == nil {
			continue
		}
		if err := p.open(v, nfs, !filled[v.Unit]); err != nil {
			closeMounts(out)
			return nil, fmt.Errorf("mount %s: %w", m.Target, err)
		}
		filled[v.Unit] = true
	}
	slices.SortStableFunc(out, func(a, b *placed) int {
		return strings.Count(a.Target, "/") - strings.Count(b.Target, "/")
	})
	return out, nil
}

func closeMounts(all []*placed) {
	for _, p := range all {
		for _, fd := range []int{p.tree, p.content} {
			if fd >= 0 {
				_ = unix.Close(fd)
			}
		}
		if p.state != nil {
			_ = p.state.Close()
		}
	}
}

func (p *placed) open(v *tether.Volume, nfs map[string]string, first bool) error {
	base := contentDir(v.Unit)
	if v.NFS != nil {
		base = filepath.Join(nfs[p.Target], v.NFS.Dir)
	}
	var err error
	if p.tree, err = cloneTree(base, v.Subpath); err != nil {
		return err
	}
	if p.ReadOnly {
		if err := unix.MountSetattr(p.tree, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
			return fmt.Errorf("make read-only: %w", err)
		}
	}
	if v.NFS != nil || !first {
		return nil
	}
	if p.content, err = cloneTree(base, ""); err != nil {
		return err
	}
	p.state, err = os.OpenRoot(filepath.Join(volumeDir(v.Unit), "state"))
	return err
}

// cloneTree copies the mount of a directory (open_tree(2)), or of a directory in
// it. Links in sub are looked up with base as their root; base is no link.
func cloneTree(base, sub string) (int, error) {
	dir, err := unix.Open(base, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(dir)
	at := dir
	if sub != "" {
		at, err = unix.Openat2(dir, sub, &unix.OpenHow{
			Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
		})
		if err != nil {
			return -1, fmt.Errorf("the volume's directory %q: %w", sub, err)
		}
		defer unix.Close(at)
	}
	fd, err := unix.OpenTree(at, "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, err
	}
	return fd, nil
}

// fillingAt is where a volume's content is seen while it is filled.
const fillingAt = "/dev/.vic-volume"

// placeMounts fills empty volumes, from the image as it is without any mount, and
// then mounts everything. It runs inside the container.
func placeMounts(all []*placed, first bool) error {
	for _, p := range all {
		if p.state == nil {
			continue
		}
		if err := p.fill(first); err != nil {
			return fmt.Errorf("mount %s: fill the volume: %w", p.Target, err)
		}
	}
	for _, p := range all {
		if err := p.place(); err != nil {
			return fmt.Errorf("mount %s: %w", p.Target, err)
		}
	}
	return nil
}

func (p *placed) fill(first bool) (err error) {
	if err := os.Mkdir(fillingAt, 0o700); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(fillingAt)) }()
	if err := unix.MoveMount(p.content, "", unix.AT_FDCWD, fillingAt, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Unmount(fillingAt, unix.MNT_DETACH)) }()
	v := p.Volume
	return fill(fillingAt, p.state, p.Target, first && !v.NoCopy && v.Subpath == "")
}

func (p *placed) place() (err error) {
	if err := os.MkdirAll(p.Target, 0o755); err != nil {
		return err
	}
	if p.Tmpfs != nil {
		if err := tmpfsMount(p.Mount).do(); err != nil {
			return err
		}
		p.id, err = mountID(unix.AT_FDCWD, p.Target)
		return err
	}
	if p.id, err = mountID(p.tree, ""); err != nil {
		return err
	}
	return unix.MoveMount(p.tree, "", unix.AT_FDCWD, p.Target, unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_SYMLINKS)
}

// tmpfsMount says how a tmpfs is mounted.
func tmpfsMount(m tether.Mount) mount {
	t := m.Tmpfs
	mode := t.Mode
	if mode == 0 {
		mode = 0o1777
	}
	data := fmt.Sprintf("mode=%o,uid=%d,gid=%d", mode, t.UID, t.GID)
	if t.Bytes > 0 {
		data += fmt.Sprintf(",size=%d", t.Bytes)
	}
	if t.Inodes > 0 {
		data += fmt.Sprintf(",nr_inodes=%d", t.Inodes)
	}
	var flags uintptr
	for _, f := range []struct {
		lifted bool
		flag   uintptr
	}{{t.Exec, unix.MS_NOEXEC}, {t.SUID, unix.MS_NOSUID}, {t.Dev, unix.MS_NODEV}, {!m.ReadOnly, unix.MS_RDONLY}} {
		if !f.lifted {
			flags |= f.flag
		}
	}
	return mount{"tmpfs", m.Target, flags, data, 0o755}
}
