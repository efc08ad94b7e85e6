//go:build linux && amd64

package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/vicsdk/vic-go/vic/tether"
	"golang.org/x/sys/unix"
)

// leaveTime bounds how long the container's end waits for those who work on its
// files to let go of them.
const leaveTime = 5 * time.Second

// inside runs f on a thread of its own inside the container, whose root is its
// root, so that no path and no link leads out. stop is called where the container
// ends meanwhile, and has f end.
func (w *world) inside(stop func(error), f func() error) error {
	w.mu.Lock()
	if w.ns == nil {
		w.mu.Unlock()
		return tether.ErrNotRunning
	}
	n, err := w.ns.another()
	if err != nil {
		w.mu.Unlock()
		return err
	}
	if w.files == nil {
		w.files = map[*namespace]func(error){}
	}
	w.files[n] = stop
	done := w.idle
	done.Add(1)
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		close(n.calls)
		delete(w.files, n)
		done.Done()
	}()
	return fileError(n.do(func() error {
		if err := renounceReserve(); err != nil {
			return err
		}
		return f()
	}))
}

// renounceReserve has the thread write like the container, which leaves what the
// filesystem reserves to the log.
func renounceReserve() error {
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var d [2]unix.CapUserData
	if err := unix.Capget(&h, &d[0]); err != nil {
		return fmt.Errorf("capabilities: %w", err)
	}
	d[0].Effective &^= 1 << unix.CAP_SYS_RESOURCE
	if err := unix.Capset(&h, &d[0]); err != nil {
		return fmt.Errorf("capabilities: %w", err)
	}
	return nil
}

// fileError gives errors of the container's files their kind.
func fileError(err error) error {
	for of, kind := range map[error]error{
		fs.ErrNotExist: tether.ErrNotFound, unix.ENOTDIR: tether.ErrInvalid, unix.ELOOP: tether.ErrInvalid,
		unix.ENAMETOOLONG: tether.ErrInvalid, unix.ENOSPC: tether.ErrNoSpace, unix.EDQUOT: tether.ErrNoSpace,
		unix.EROFS: tether.ErrUnsupported,
	} {
		if errors.Is(err, of) {
			return fmt.Errorf("%w: %w", kind, err)
		}
	}
	return err
}

// Lstat implements tether.Files.
func (w *world) Lstat(name string) (info tether.FileInfo, err error) {
	err = w.inside(func(error) {}, func() error {
		info, _, err = lstat("/" + name)
		return err
	})
	return info, err
}

// lstat describes a file; the name is not cleaned, so that "/." at its end follows
// a symlink.
func lstat(name string) (tether.FileInfo, *unix.Stat_t, error) {
	var st unix.Stat_t
	if err := unix.Lstat(name, &st); err != nil {
		return tether.FileInfo{}, nil, &fs.PathError{Op: "stat", Path: name, Err: err}
	}
	i := tether.FileInfo{
		Name: path.Base(path.Clean(name)), Mode: fileMode(st.Mode), UID: st.Uid, GID: st.Gid, Size: st.Size, Links: uint32(st.Nlink),
		Modified: timeOf(st.Mtim), Accessed: timeOf(st.Atim), Changed: timeOf(st.Ctim),
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFBLK, unix.S_IFCHR:
		i.Major, i.Minor = unix.Major(st.Rdev), unix.Minor(st.Rdev)
	case unix.S_IFLNK:
		l, err := os.Readlink(name)
		if err != nil {
			return i, nil, err
		}
		i.Link = l
	}
	return i, &st, nil
}

func timeOf(t unix.Timespec) time.Time { return time.Unix(t.Unix()).UTC() }

func fileMode(m uint32) fs.FileMode {
	mode := fs.FileMode(m & 0o777)
	for bit, f := range map[uint32]fs.FileMode{unix.S_ISUID: fs.ModeSetuid, unix.S_ISGID: fs.ModeSetgid, unix.S_ISVTX: fs.ModeSticky} {
		if m&bit != 0 {
			mode |= f
		}
	}
	switch m & unix.S_IFMT {
	case unix.S_IFDIR:
		mode |= fs.ModeDir
	case unix.S_IFLNK:
		mode |= fs.ModeSymlink
	case unix.S_IFIFO:
		mode |= fs.ModeNamedPipe
	case unix.S_IFSOCK:
		mode |= fs.ModeSocket
	case unix.S_IFBLK:
		mode |= fs.ModeDevice
	case unix.S_IFCHR:
		mode |= fs.ModeDevice | fs.ModeCharDevice
	}
	return mode
}

// TarOut implements tether.Files. The pipe lets go of the files when the container
// ends, however slow the receiver is.
func (w *world) TarOut(to io.Writer, name string, started func(tether.FileInfo) error) error {
	r, p := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := w.inside(func(err error) { _ = r.CloseWithError(err) }, func() error {
			info, _, err := lstat("/" + name)
			if err != nil {
				return err
			}
			real, err := realPath("/" + name)
			if err != nil {
				return err
			}
			if err := started(info); err != nil {
				return err
			}
			return tarTree(p, real)
		})
		_ = p.CloseWithError(err)
		done <- err
	}()
	_, err := io.CopyBuffer(struct{ io.Writer }{to}, r, make([]byte, 64<<10))
	_ = r.CloseWithError(err)
	if e := <-done; e != nil && (err == nil || !errors.Is(e, err)) {
		err = e
	}
	return err
}

// realPath resolves the symlinks in a path, but for the one at its end, where it
// does not end in "/.".
func realPath(name string) (string, error) {
	base := name[strings.LastIndexByte(name, '/')+1:]
	if base == "" || base == "." || base == ".." {
		return filepath.EvalSymlinks(name)
	}
	dir, err := filepath.EvalSymlinks(path.Dir(name))
	return path.Join(dir, base), err
}

// TarIn implements tether.Files.
func (w *world) TarIn(from io.Reader, dir string, o tether.TarInOptions) error {
	r, p := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := w.inside(func(err error) { _ = p.CloseWithError(err) }, func() error {
			if st, err := os.Stat("/" + dir); err != nil {
				return err
			} else if !st.IsDir() {
				return fmt.Errorf("%w: %s is no directory", tether.ErrInvalid, dir)
			}
			return untar(r, path.Clean("/"+dir), o)
		})
		if err == nil {
			_, err = io.Copy(io.Discard, r) // what follows the tar's end
		}
		_ = r.CloseWithError(err)
		done <- err
	}()
	_, err := io.CopyBuffer(p, struct{ io.Reader }{from}, make([]byte, 64<<10))
	_ = p.CloseWithError(err)
	if e := <-done; e != nil {
		return e
	}
	return err
}
