//go:build linux && amd64

package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// copyingMark is the file beside a volume's content that says that it is being
// filled; who finds it empties the volume.
const copyingMark = "copying"

// fill gives an empty volume what the image has at target. at is where the
// volume's content is mounted, state the directory of the tether beside it. It
// runs inside the container, before anything of it does.
func fill(at string, state *os.Root, target string, wanted bool) error {
	_, err := state.Lstat(copyingMark)
	interrupted := err == nil
	if interrupted {
		if err := empty(at); err != nil {
			return fmt.Errorf("empty a volume that was not filled whole: %w", err)
		}
	}
	if wanted || interrupted {
		if err := fillEmpty(at, state, target, wanted); err != nil {
			return err
		}
	}
	if _, err := state.Lstat(copyingMark); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	// What was copied is on the disk before the mark goes.
	if err := syncFS(at); err != nil {
		return err
	}
	if err := state.Remove(copyingMark); err != nil {
		return err
	}
	return syncFS(at)
}

func fillEmpty(at string, state *os.Root, target string, wanted bool) error {
	has, err := os.ReadDir(at)
	if err != nil || len(has) > 0 || !wanted {
		return err
	}
	from, err := filepath.EvalSymlinks(target)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	st, err := os.Lstat(from)
	if err != nil {
		return err
	}
	if !st.IsDir() {
		return fmt.Errorf("the image has no directory there, but a file")
	}
	es, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	if len(es) > 0 {
		f, err := state.Create(copyingMark)
		if err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
		if err := syncFS(at); err != nil {
			return err
		}
	}
	c := copier{links: map[inode]string{}}
	return c.dir(from, at, st)
}

func empty(dir string) error {
	es, err := os.ReadDir(dir)
	for _, e := range es {
		err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
	}
	return err
}

func syncFS(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Syncfs(int(f.Fd()))
}

type inode struct{ dev, ino uint64 }

// copier copies a tree. Nothing changes it meanwhile.
type copier struct {
	links map[inode]string // copies of files with several names
}

// dir copies what from has into to, which exists, and makes to look like from.
func (c *copier) dir(from, to string, st fs.FileInfo) error {
	es, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range es {
		if err := c.entry(filepath.Join(from, e.Name()), filepath.Join(to, e.Name())); err != nil {
			return err
		}
	}
	return dress(from, to, st)
}

func (c *copier) entry(from, to string) error {
	st, err := os.Lstat(from)
	if err != nil {
		return err
	}
	sys := st.Sys().(*syscall.Stat_t)
	if !st.IsDir() && sys.Nlink > 1 {
		id := inode{sys.Dev, sys.Ino}
		if have, ok := c.links[id]; ok {
			return os.Link(have, to)
		}
		c.links[id] = to
	}
	switch st.Mode().Type() {
	case fs.ModeDir:
		if err := os.Mkdir(to, 0o700); err != nil {
			return err
		}
		return c.dir(from, to, st)
	case fs.ModeSymlink:
		link, err := os.Readlink(from)
		if err != nil {
			return err
		}
		if err := os.Symlink(link, to); err != nil {
			return err
		}
	case 0:
		if err := copyContents(from, to); err != nil {
			return err
		}
	default: // a device, a FIFO or a socket
		if err := unix.Mknod(to, sys.Mode, int(sys.Rdev)); err != nil {
			return &fs.PathError{Op: "mknod", Path: to, Err: err}
		}
	}
	return dress(from, to, st)
}

func copyContents(from, to string) error {
	r, err := os.Open(from)
	if err != nil {
		return err
	}
	defer r.Close()
	w, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(w, r)
	return errors.Join(err, w.Close())
}

// dress gives to the owner, attributes, mode and times of from. The owner comes
// first: a change of it clears set-user-ID bits and capabilities.
func dress(from, to string, st fs.FileInfo) error {
	sys := st.Sys().(*syscall.Stat_t)
	if err := os.Lchown(to, int(sys.Uid), int(sys.Gid)); err != nil {
		return err
	}
	if err := copyAttributes(from, to); err != nil {
		return err
	}
	if st.Mode()&fs.ModeSymlink == 0 {
		if err := unix.Chmod(to, sys.Mode&0o7777); err != nil {
			return &fs.PathError{Op: "chmod", Path: to, Err: err}
		}
	}
	times := []unix.Timespec{unix.Timespec(sys.Atim), unix.Timespec(sys.Mtim)}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, to, times, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &fs.PathError{Op: "utimensat", Path: to, Err: err}
	}
	return nil
}

func copyAttributes(from, to string) error {
	n, err := unix.Llistxattr(from, nil)
	if err != nil || n == 0 {
		if err == unix.ENOTSUP {
			return nil
		}
		return err
	}
	names := make([]byte, n)
	if n, err = unix.Llistxattr(from, names); err != nil {
		return err
	}
	value := make([]byte, 64<<10) // XATTR_SIZE_MAX
	for _, name := range splitNames(names[:n]) {
		k, err := unix.Lgetxattr(from, name, value)
		if err == nil {
			err = unix.Lsetxattr(to, name, value[:k], 0)
		}
		if err != nil {
			return &fs.PathError{Op: "attribute " + name, Path: to, Err: err}
		}
	}
	return nil
}

func splitNames(b []byte) []string {
	var out []string
	start := 0
	for i, c := range b {
		if c == 0 {
			out = append(out, string(b[start:i]))
			start = i + 1
		}
	}
	return out
}
