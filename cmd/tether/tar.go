//go:build linux && amd64

package main

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path"
	"strings"
	"time"

	"github.com/vicsdk/vic-go/vic/tether"
	"golang.org/x/sys/unix"
)

// kernelDirs are where a container finds the kernel's own filesystems: a tar of
// what is above them has the directories alone.
var kernelDirs = map[string]bool{"/dev": true, "/proc": true, "/sys": true}

// xattrPrefix begins the PAX records of extended attributes.
const xattrPrefix = "SCHILY.xattr."

// maxLinked bounds what is remembered of files with several names, and of
// directories whose times are to be set at the end.
const maxLinked = 1 << 20

// tarTree writes a file with all below it. The path has no symlinks but its last
// element; what the container changes meanwhile may be in it or not.
func tarTree(w io.Writer, name string) error {
	t := &treeWriter{tw: tar.NewWriter(w), first: map[fileID]string{}}
	base := path.Base(name)
	if base == "/" {
		base = "."
	}
	if info, _, err := lstat(name); err != nil {
		return err
	} else if info.Mode.Type() == fs.ModeSocket {
		return fmt.Errorf("%w: %s is a socket, which cannot be in a tar", tether.ErrInvalid, name)
	}
	if err := t.add(name, base); err != nil {
		return err
	}
	return t.tw.Close()
}

type fileID struct{ dev, ino uint64 }

type treeWriter struct {
	tw    *tar.Writer
	first map[fileID]string // the entry of a file with several names
}

func (t *treeWriter) add(name, entry string) error {
	info, st, err := lstat(name)
	if err != nil {
		return err
	}
	h := &tar.Header{
		Name: entry, Mode: int64(st.Mode &^ unix.S_IFMT), Uid: int(st.Uid), Gid: int(st.Gid), ModTime: info.Modified,
		Format: tar.FormatPAX,
	}
	if info.Mode.Type() == fs.ModeSocket {
		return nil
	}
	id := fileID{st.Dev, st.Ino}
	if first, ok := t.first[id]; ok {
		h.Typeflag, h.Linkname = tar.TypeLink, first
		return t.tw.WriteHeader(h)
	}
	if st.Nlink > 1 && !info.Mode.IsDir() && len(t.first) < maxLinked {
		t.first[id] = entry
	}
	if h.PAXRecords, err = readXattrs(name); err != nil {
		return err
	}
	switch info.Mode.Type() {
	case 0:
		return t.file(name, h)
	case fs.ModeDir:
		h.Typeflag, h.Name = tar.TypeDir, entry+"/"
	case fs.ModeSymlink:
		h.Typeflag, h.Linkname = tar.TypeSymlink, info.Link
	case fs.ModeNamedPipe:
		h.Typeflag = tar.TypeFifo
	case fs.ModeDevice:
		h.Typeflag = tar.TypeBlock
	default:
		h.Typeflag = tar.TypeChar
	}
	h.Devmajor, h.Devminor = int64(info.Major), int64(info.Minor)
	if err := t.tw.WriteHeader(h); err != nil {
		return err
	}
	if info.Mode.IsDir() && !kernelDirs[name] {
		return t.dir(name, entry)
	}
	return nil
}

// dir adds what is in a directory; what goes away meanwhile is left out.
func (t *treeWriter) dir(name, entry string) error {
	d, err := os.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer d.Close()
	for {
		names, err := d.Readdirnames(256)
		for _, n := range names {
			below := path.Join(name, n)
			if err := t.add(below, path.Join(entry, n)); err != nil {
				if _, _, gone := lstat(below); errors.Is(err, fs.ErrNotExist) && errors.Is(gone, fs.ErrNotExist) {
					continue
				}
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// file adds a regular file as long as it is when it is opened.
func (t *treeWriter) file(name string, h *tar.Header) error {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOATIME, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return fmt.Errorf("%s was replaced while it was read", name)
	}
	h.Typeflag, h.Size = tar.TypeReg, st.Size()
	if err := t.tw.WriteHeader(h); err != nil {
		return err
	}
	n, err := io.CopyN(t.tw, f, h.Size)
	if err == io.EOF {
		return fmt.Errorf("%s became shorter while it was read: %d of %d bytes were left", name, n, h.Size)
	}
	return err
}

// readXattrs returns the PAX records of a file's extended attributes.
func readXattrs(name string) (map[string]string, error) {
	fail := func(err error) error { return &fs.PathError{Op: "listxattr", Path: name, Err: err} }
	var list [64 << 10]byte // the kernel's limit (xattr(7))
	n, err := unix.Llistxattr(name, list[:])
	if err == unix.EOPNOTSUPP || n == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, fail(err)
	}
	records := map[string]string{}
	for key := range strings.SplitSeq(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00") {
		var value [64 << 10]byte
		n, err := unix.Lgetxattr(name, key, value[:])
		if err == unix.ENODATA {
			continue // It is gone.
		}
		if err != nil {
			return nil, fail(fmt.Errorf("%s: %w", key, err))
		}
		if strings.Contains(key, "=") {
			return nil, fail(fmt.Errorf("%q: a tar takes no attribute of that name", key))
		}
		records[xattrPrefix+key] = string(value[:n])
	}
	return records, nil
}

// untar unpacks a tar into a directory.
func untar(r io.Reader, dir string, o tether.TarInOptions) error {
	u := &untarrer{dir: dir, o: o}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return u.finish()
		}
		if err != nil {
			if errors.Is(err, tar.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF) {
				err = fmt.Errorf("%w: %w", tether.ErrInvalid, err)
			}
			return err
		}
		if err := u.entry(h, tr); err != nil {
			return fmt.Errorf("%.200q: %w", h.Name, err)
		}
	}
}

type untarrer struct {
	dir  string
	o    tether.TarInOptions
	dirs []dirTime
}

type dirTime struct {
	name string
	at   time.Time
}

// below is where an entry belongs. The root of the thread is the container's, so
// symlinks lead nowhere else.
func (u *untarrer) below(name string) (string, error) {
	name = path.Clean(strings.TrimLeft(name, "/"))
	if name == ".." || strings.HasPrefix(name, "../") {
		return "", fmt.Errorf("%w: %.200q leads out of the directory", tether.ErrInvalid, name)
	}
	return path.Join(u.dir, name), nil
}

func (u *untarrer) entry(h *tar.Header, r io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	for _, id := range []int{h.Uid, h.Gid} {
		if id < 0 || id >= math.MaxUint32 {
			return fmt.Errorf("%w: there is no owner %d", tether.ErrInvalid, id)
		}
	}
	name, err := u.below(h.Name)
	if err != nil {
		return err
	}
	isDir := h.Typeflag == tar.TypeDir
	if name == u.dir {
		if !isDir {
			return fmt.Errorf("%w: it is the directory itself", tether.ErrInvalid)
		}
		return u.attributes(name, h)
	}
	if err := os.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	old, err := os.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	case u.o.KeepTypes && old.IsDir() != isDir:
		return fmt.Errorf("%w: a directory would take the place of something else, or the reverse", tether.ErrConflict)
	case !old.IsDir() || !isDir:
		if err := os.RemoveAll(name); err != nil {
			return err
		}
		old = nil
	}
	if old == nil || !isDir {
		if err := u.make(name, h, r); err != nil {
			return err
		}
	}
	if h.Typeflag == tar.TypeLink {
		return nil // Its attributes are the file's.
	}
	return u.attributes(name, h)
}

// make makes what an entry says, where nothing is.
func (u *untarrer) make(name string, h *tar.Header, r io.Reader) error {
	dev := int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor)))
	switch h.Typeflag {
	case tar.TypeDir:
		return os.Mkdir(name, 0o700)
	case tar.TypeReg, tar.TypeGNUSparse:
		f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, r)
		return errors.Join(err, f.Close())
	case tar.TypeLink:
		to, err := u.below(h.Linkname)
		if err != nil {
			return err
		}
		return os.Link(to, name)
	case tar.TypeSymlink:
		return os.Symlink(h.Linkname, name)
	case tar.TypeFifo:
		return unix.Mknod(name, unix.S_IFIFO|0o600, 0)
	case tar.TypeChar:
		return unix.Mknod(name, unix.S_IFCHR|0o600, dev)
	case tar.TypeBlock:
		return unix.Mknod(name, unix.S_IFBLK|0o600, dev)
	}
	return fmt.Errorf("%w: entries of type %q are not known", tether.ErrInvalid, h.Typeflag)
}

func (u *untarrer) attributes(name string, h *tar.Header) error {
	if err := os.Lchown(name, h.Uid, h.Gid); err != nil {
		return err
	}
	for k, v := range h.PAXRecords {
		if key, ok := strings.CutPrefix(k, xattrPrefix); ok {
			if err := unix.Lsetxattr(name, key, []byte(v), 0); err != nil {
				return fmt.Errorf("attribute %.100q: %w", key, err)
			}
		}
	}
	if h.Typeflag != tar.TypeSymlink {
		// After the owner, whose change takes setuid and setgid away.
		if err := unix.Fchmodat(unix.AT_FDCWD, name, uint32(h.Mode&0o7777), 0); err != nil {
			return err
		}
	}
	if h.Typeflag == tar.TypeDir {
		if len(u.dirs) >= maxLinked {
			return fmt.Errorf("%w: more than %d directories", tether.ErrInvalid, maxLinked)
		}
		u.dirs = append(u.dirs, dirTime{name, h.ModTime})
		return nil
	}
	return setTime(name, h.ModTime)
}

// finish sets the times of directories, which what was made in them has changed.
func (u *untarrer) finish() error {
	for i := len(u.dirs) - 1; i >= 0; i-- {
		if err := setTime(u.dirs[i].name, u.dirs[i].at); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func setTime(name string, at time.Time) error {
	if at.IsZero() {
		at = time.Unix(0, 0)
	}
	ts, err := unix.TimeToTimespec(at)
	if err != nil {
		return fmt.Errorf("%w: time %v: %w", tether.ErrInvalid, at, err)
	}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, name, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &fs.PathError{Op: "utimensat", Path: name, Err: err}
	}
	return nil
}
