//go:build linux && amd64

package main

import (
	"errors"
	"io/fs"
	"os"
	"slices"
	"sync/atomic"

	"github.com/vicsdk/vic-go/vic/tether"
	"golang.org/x/sys/unix"
)

// Tree implements tether.Files.
func (w *world) Tree(each func(tether.TreeEntry) error) error {
	var ended atomic.Bool
	return w.inside(func(error) { ended.Store(true) }, func() error {
		var root unix.Stat_t
		if err := unix.Lstat("/", &root); err != nil {
			return err
		}
		t := treeLister{dev: root.Dev, ended: &ended, each: each}
		return t.dir("")
	})
}

type treeLister struct {
	dev   uint64
	ended *atomic.Bool
	each  func(tether.TreeEntry) error
}

// dir lists what is in a directory; its path is empty or ends in a slash. What goes
// away meanwhile is left out.
func (t *treeLister) dir(path string) error {
	d, err := os.OpenFile("/"+path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_DIRECTORY, 0)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
			return nil
		}
		return err
	}
	names, err := d.Readdirnames(-1)
	_ = d.Close()
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, n := range names {
		if t.ended.Load() {
			return tether.ErrNotRunning
		}
		var st unix.Stat_t
		if err := unix.Lstat("/"+path+n, &st); err == unix.ENOENT {
			continue
		} else if err != nil {
			return &fs.PathError{Op: "stat", Path: "/" + path + n, Err: err}
		}
		e := tether.TreeEntry{
			Path: path + n, Mode: fileMode(st.Mode), UID: st.Uid, GID: st.Gid, Inode: st.Ino, Changed: timeOf(st.Ctim), Mount: st.Dev != t.dev,
		}
		if err := t.each(e); err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT == unix.S_IFDIR && !e.Mount {
			if err := t.dir(path + n + "/"); err != nil {
				return err
			}
		}
	}
	return nil
}
