package treecmp

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

// List walks the tree at root and returns its entries ordered by path, the
// root itself first as ".". Symlinks are not followed, except at root. A
// directory on another filesystem is listed, but nothing below it, so that
// a guest can list its own root beside /proc. A name longer than PATH_MAX,
// counted from the caller's point of view, is an error. The caller needs the
// right to read every file, which in general only root has.
func List(root string) ([]Entry, error) {
	root, err := filepath.EvalSymlinks(root)
	if err != nil {
		return nil, err
	}
	l := lister{root: root, files: map[inode][]int{}}
	var st unix.Stat_t
	if err := unix.Lstat(root, &st); err != nil {
		return nil, &os.PathError{Op: "lstat", Path: root, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil, &os.PathError{Op: "list", Path: root, Err: unix.ENOTDIR}
	}
	l.dev = st.Dev
	if err := l.visit(".", &st); err != nil {
		return nil, err
	}
	for _, at := range l.files {
		nameGroup(l.entries, at)
	}
	sort.Slice(l.entries, func(i, j int) bool { return l.entries[i].Path < l.entries[j].Path })
	return l.entries, nil
}

type inode struct{ dev, ino uint64 }

type lister struct {
	root    string
	dev     uint64
	entries []Entry
	// files holds the places of the names of every file that has several.
	files map[inode][]int
}

func (l *lister) visit(rel string, st *unix.Stat_t) error {
	full := filepath.Join(l.root, rel)
	e := Entry{
		Path: rel, Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid,
		MtimeSec: st.Mtim.Sec, MtimeNsec: st.Mtim.Nsec,
	}
	var err error
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		e.Type, e.Size = File, st.Size
		e.SHA256, err = hash(full, st.Size)
	case unix.S_IFDIR:
		e.Type = Dir
	case unix.S_IFLNK:
		e.Type, e.Size = Symlink, st.Size
		e.Target, err = os.Readlink(full)
	case unix.S_IFCHR:
		e.Type, e.Major, e.Minor = Char, unix.Major(st.Rdev), unix.Minor(st.Rdev)
	case unix.S_IFBLK:
		e.Type, e.Major, e.Minor = Block, unix.Major(st.Rdev), unix.Minor(st.Rdev)
	case unix.S_IFIFO:
		e.Type = FIFO
	case unix.S_IFSOCK:
		e.Type = Socket
	default:
		err = fmt.Errorf("%s: unknown file type %#o", full, st.Mode&unix.S_IFMT)
	}
	if err != nil {
		return err
	}
	if e.Xattrs, err = xattrs(full); err != nil {
		return err
	}
	if e.Type != Dir && st.Nlink > 1 {
		id := inode{st.Dev, st.Ino}
		l.files[id] = append(l.files[id], len(l.entries))
	}
	l.entries = append(l.entries, e)
	if e.Type == Dir && st.Dev == l.dev {
		return l.children(rel, full)
	}
	return nil
}

func (l *lister) children(rel, full string) error {
	d, err := os.Open(full)
	if err != nil {
		return err
	}
	names, err := d.Readdirnames(-1)
	d.Close()
	if err != nil {
		return err
	}
	for _, name := range names {
		var st unix.Stat_t
		if err := unix.Lstat(full+"/"+name, &st); err != nil {
			return &os.PathError{Op: "lstat", Path: full + "/" + name, Err: err}
		}
		child := name
		if rel != "." {
			child = rel + "/" + name
		}
		if err := l.visit(child, &st); err != nil {
			return err
		}
	}
	return nil
}

func hash(name string, size int64) (string, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	if err != nil {
		return "", err
	}
	if n != size {
		return "", fmt.Errorf("%s: read %d bytes of a file of %d; does somebody write to the tree?", name, n, size)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func xattrs(name string) (map[string][]byte, error) {
	list, err := grow(func(buf []byte) (int, error) { return unix.Llistxattr(name, buf) })
	if errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	if err != nil {
		return nil, &os.PathError{Op: "llistxattr", Path: name, Err: err}
	}
	var m map[string][]byte
	for attr := range strings.SplitSeq(strings.TrimSuffix(string(list), "\x00"), "\x00") {
		if attr == "" {
			continue
		}
		value, err := grow(func(buf []byte) (int, error) { return unix.Lgetxattr(name, attr, buf) })
		if err != nil {
			return nil, &os.PathError{Op: "lgetxattr " + attr, Path: name, Err: err}
		}
		if m == nil {
			m = map[string][]byte{}
		}
		m[attr] = value
	}
	return m, nil
}

// grow calls get with a buffer that is large enough.
func grow(get func([]byte) (int, error)) ([]byte, error) {
	buf := make([]byte, 256)
	for {
		n, err := get(buf)
		if errors.Is(err, unix.ERANGE) && len(buf) < 1<<20 {
			buf = make([]byte, 4*len(buf))
			continue
		}
		if err != nil {
			return nil, err
		}
		return buf[:n:n], nil
	}
}
