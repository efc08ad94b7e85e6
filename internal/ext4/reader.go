package ext4

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"time"
)

// Reader reads a filesystem: that of a container's disk, of an image, or any other with
// ext4's usual features. It never writes, and is safe for concurrent use if its io.ReaderAt is.
//
// Names are slash paths from the Reader's root, with or without a leading slash. Symlinks are
// followed inside the root: absolute targets start at it, and ".." ends at it. Errors are
// *fs.PathError; what does not exist is fs.ErrNotExist. All that the disk says is checked, and so
// is every checksum: a damaged or hostile image gives an error.
type Reader struct {
	v    *volume
	root uint32
	last *listings
}

// listings remembers directories. It is shared by all views of a volume.
type listings struct {
	mu      sync.Mutex
	dirs    map[uint32][]DirEntry
	entries int
}

// maxListed bounds the entries that are remembered of several directories together.
const maxListed = 1 << 18

// Open opens the filesystem in the first bytes bytes of r. If it was not cleanly unmounted, the
// journal's committed transactions count as if they were in place; r is only read, and must not
// change while the Reader is used: parts of it are remembered.
func Open(r io.ReaderAt, bytes int64) (*Reader, error) {
	v, err := openVolume(r, bytes)
	if err != nil {
		return nil, fmt.Errorf("ext4: %w", err)
	}
	return &Reader{v: v, root: inoRoot, last: &listings{dirs: map[uint32][]DirEntry{}}}, nil
}

// Sub is a view whose root is the directory dir.
func (r *Reader) Sub(dir string) (*Reader, error) {
	ino, in, err := r.resolve(dir, true)
	if err == nil && in.mode()&modeType != modeDir {
		err = errNotDir
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	return &Reader{v: r.v, root: ino, last: r.last}, nil
}

// Replayed is the number of blocks that are read from the journal.
func (r *Reader) Replayed() int { return len(r.v.overlay) }

// Info is all that an inode says about a file.
type Info struct {
	Ino                 uint32
	Mode                fs.FileMode // type, permissions, setuid, setgid, sticky
	UID, GID            uint32
	Size                int64 // bytes
	Nlink               uint32
	Atime, Mtime, Ctime time.Time
	Major, Minor        uint32            // of a device
	Link                string            // target of a symlink
	Xattrs              map[string][]byte // by full name, values as getxattr(2) gives them; nil if none
}

// DirEntry is a name in a directory.
type DirEntry struct {
	Name string
	Ino  uint32
	Type fs.FileMode // type bits only
}

var (
	errNotDir  = errors.New("not a directory")
	errNotFile = errors.New("not a regular file")
	errNotLink = errors.New("not a symlink")
)

// fileMode converts a mode from its form on disk.
func fileMode(mode uint16) fs.FileMode {
	m := fs.FileMode(mode & 0o777)
	switch mode & modeType {
	case modeDir:
		m |= fs.ModeDir
	case modeSymlink:
		m |= fs.ModeSymlink
	case modeChar:
		m |= fs.ModeDevice | fs.ModeCharDevice
	case modeBlock:
		m |= fs.ModeDevice
	case modeFIFO:
		m |= fs.ModeNamedPipe
	case modeSocket:
		m |= fs.ModeSocket
	case modeRegular:
	default:
		m |= fs.ModeIrregular
	}
	if mode&0o4000 != 0 {
		m |= fs.ModeSetuid
	}
	if mode&0o2000 != 0 {
		m |= fs.ModeSetgid
	}
	if mode&0o1000 != 0 {
		m |= fs.ModeSticky
	}
	return m
}

// Lstat describes what name is; a symlink itself, not its target.
func (r *Reader) Lstat(name string) (Info, error) { return r.stat("lstat", name, false) }

// Stat describes what name leads to.
func (r *Reader) Stat(name string) (Info, error) { return r.stat("stat", name, true) }

func (r *Reader) stat(op, name string, follow bool) (Info, error) {
	_, in, err := r.resolve(name, follow)
	var info Info
	if err == nil {
		info, err = r.info(in)
	}
	if err != nil {
		return Info{}, &fs.PathError{Op: op, Path: name, Err: err}
	}
	return info, nil
}

func (r *Reader) info(in *rawInode) (Info, error) {
	a := in.attrs()
	at := func(s stamp) time.Time { return time.Unix(s.sec, int64(s.nsec)).UTC() }
	info := Info{Ino: in.ino, Mode: fileMode(in.mode()), UID: a.uid, GID: a.gid, Size: in.size(),
		Nlink: uint32(le.Uint16(in.b[0x1a:])), Atime: at(a.atime), Mtime: at(a.mtime), Ctime: at(a.ctime)}
	if info.Size < 0 {
		return info, fmt.Errorf("inode %d: size %d", in.ino, info.Size)
	}
	var err error
	switch in.mode() & modeType {
	case modeSymlink:
		if info.Link, err = r.v.readlink(in); err != nil {
			return info, err
		}
	case modeChar, modeBlock:
		info.Major, info.Minor = in.device()
	}
	xs, err := r.v.xattrs(in)
	if err != nil {
		return info, fmt.Errorf("inode %d: extended attributes: %w", in.ino, err)
	}
	for _, x := range xs {
		value := x.value
		if x.index == indexACL || x.index == indexACLDefault {
			if value, err = aclFromDisk(value); err != nil {
				return info, fmt.Errorf("inode %d: %w", in.ino, err)
			}
		}
		// Attributes of namespaces unknown here have no name to give them.
		if name := x.fullName(); name != "" {
			if info.Xattrs == nil {
				info.Xattrs = map[string][]byte{}
			}
			info.Xattrs[name] = []byte(value)
		}
	}
	return info, nil
}

// readlink reads a symlink's target: in the inode if it is shorter than 60 bytes.
func (v *volume) readlink(in *rawInode) (string, error) {
	n := in.size()
	if n <= 0 || n > v.super.blockSize {
		return "", fmt.Errorf("inode %d: symlink of %d bytes", in.ino, n)
	}
	if n < 60 && in.flags()&flagExtents == 0 {
		return string(in.b[0x28 : 0x28+n]), nil
	}
	b := make([]byte, n)
	if err := newExtentMap(v, in).readAt(b, 0); err != nil {
		return "", err
	}
	return string(b), nil
}

// step is a directory on the way, and its name in the one before.
type step struct {
	name string
	in   *rawInode
}

// resolve walks a path. With follow, a symlink at its end is followed too.
func (r *Reader) resolve(name string, follow bool) (uint32, *rawInode, error) {
	in, _, err := r.resolvePath(name, follow)
	if err != nil {
		return 0, nil, err
	}
	return in.ino, in, nil
}

// resolvePath is resolve, and gives the path without symlinks, starting with a slash.
func (r *Reader) resolvePath(name string, follow bool) (*rawInode, string, error) {
	cur, err := r.v.inode(r.root)
	if err != nil {
		return nil, "", err
	}
	stack := []step{{"", cur}} // for ".."
	last := ""                 // the name of what is no directory
	links := 0
	for rest := name; rest != ""; {
		c, after, slash := strings.Cut(rest, "/")
		rest = after
		if c == "" || c == "." {
			continue
		}
		if cur.mode()&modeType != modeDir {
			return nil, "", errNotDir
		}
		if c == ".." {
			if len(stack) > 1 {
				stack = stack[:len(stack)-1]
			}
			cur = stack[len(stack)-1].in
			continue
		}
		ino, err := r.find(cur, c)
		if err != nil {
			return nil, "", err
		}
		next, err := r.v.inode(ino)
		if err != nil {
			return nil, "", err
		}
		// A slash behind the name means what the symlink leads to, even at the end.
		if next.mode()&modeType == modeSymlink && (follow || slash) {
			if links++; links > maxSymlinks {
				return nil, "", errManyLinks
			}
			target, err := r.v.readlink(next)
			if err != nil {
				return nil, "", err
			}
			if strings.HasPrefix(target, "/") {
				stack = stack[:1]
				cur = stack[0].in
			}
			if rest = target; slash {
				rest += "/" + after
			}
			follow = true
			continue
		}
		cur = next
		if cur.mode()&modeType != modeDir {
			if slash {
				return nil, "", errNotDir
			}
			last = c
			continue
		}
		if len(stack) > maxDepth {
			return nil, "", errDepth
		}
		stack = append(stack, step{c, cur})
	}
	names := make([]string, 0, len(stack)+1)
	for _, s := range stack[1:] {
		names = append(names, s.name)
	}
	if cur.mode()&modeType != modeDir {
		names = append(names, last)
	}
	return cur, "/" + strings.Join(names, "/"), nil
}

// Resolve gives the path of what name leads to, without symlinks, "." and "..", from the
// Reader's root, with a leading slash. What is there at its end must exist.
func (r *Reader) Resolve(name string) (string, error) {
	_, p, err := r.resolvePath(name, true)
	if err != nil {
		return "", &fs.PathError{Op: "resolve", Path: name, Err: err}
	}
	return p, nil
}

// find looks for a name in a directory.
func (r *Reader) find(dir *rawInode, name string) (uint32, error) {
	entries, err := r.list(dir)
	if err != nil {
		return 0, err
	}
	i, ok := slices.BinarySearchFunc(entries, name, func(e DirEntry, name string) int { return strings.Compare(e.Name, name) })
	if !ok {
		return 0, fs.ErrNotExist
	}
	return entries[i].Ino, nil
}

// list reads a directory, or remembers it. The result must not be changed.
func (r *Reader) list(dir *rawInode) ([]DirEntry, error) {
	l := r.last
	l.mu.Lock()
	defer l.mu.Unlock()
	if entries, ok := l.dirs[dir.ino]; ok {
		return entries, nil
	}
	entries, err := r.v.readDir(dir)
	if err != nil {
		return nil, err
	}
	if l.entries += len(entries); l.entries > maxListed {
		clear(l.dirs)
		l.entries = len(entries)
	}
	l.dirs[dir.ino] = entries
	return entries, nil
}

// ReadDir lists a directory by name, without "." and "..".
func (r *Reader) ReadDir(name string) ([]DirEntry, error) {
	_, in, err := r.resolve(name, true)
	if err == nil && in.mode()&modeType != modeDir {
		err = errNotDir
	}
	var entries []DirEntry
	if err == nil {
		entries, err = r.list(in)
	}
	if err != nil {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: err}
	}
	return append([]DirEntry(nil), entries...), nil
}

// maxSymlinks is the kernel's limit, path_resolution(7).
const maxSymlinks = 40

var errManyLinks = fmt.Errorf("more than %d symlinks on the way", maxSymlinks)

// Readlink is the target of a symlink, as it is.
func (r *Reader) Readlink(name string) (string, error) {
	_, in, err := r.resolve(name, false)
	if err == nil && in.mode()&modeType != modeSymlink {
		err = errNotLink
	}
	var target string
	if err == nil {
		target, err = r.v.readlink(in)
	}
	if err != nil {
		return "", &fs.PathError{Op: "readlink", Path: name, Err: err}
	}
	return target, nil
}

// maxDepth bounds how deep directories may be nested.
const maxDepth = 8192

var errDepth = fmt.Errorf("directories are nested more than %d deep", maxDepth)
