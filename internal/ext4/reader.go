package ext4

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"sort"
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
	last *listing // the directory listed last
}

type listing struct {
	mu      sync.Mutex
	ino     uint32
	entries []DirEntry
}

// Open opens the filesystem in the first bytes bytes of r. If it was not cleanly unmounted, the
// journal's committed transactions count as if they were in place; r is only read.
func Open(r io.ReaderAt, bytes int64) (*Reader, error) {
	v, err := openVolume(r, bytes)
	if err != nil {
		return nil, fmt.Errorf("ext4: %w", err)
	}
	return &Reader{v: v, root: inoRoot, last: &listing{}}, nil
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
	return &Reader{v: r.v, root: ino, last: &listing{}}, nil
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

// resolve walks a path. With follow, a symlink at its end is followed too.
func (r *Reader) resolve(name string, follow bool) (uint32, *rawInode, error) {
	cur, err := r.v.inode(r.root)
	if err != nil {
		return 0, nil, err
	}
	stack := []*rawInode{cur} // the directories on the way, for ".."
	links := 0
	for rest := name; rest != ""; {
		var c string
		c, rest, _ = strings.Cut(rest, "/")
		if c == "" || c == "." {
			continue
		}
		if cur.mode()&modeType != modeDir {
			return 0, nil, errNotDir
		}
		if c == ".." {
			if len(stack) > 1 {
				stack = stack[:len(stack)-1]
			}
			cur = stack[len(stack)-1]
			continue
		}
		ino, err := r.find(cur, c)
		if err != nil {
			return 0, nil, err
		}
		next, err := r.v.inode(ino)
		if err != nil {
			return 0, nil, err
		}
		// A slash behind the name means what the symlink leads to, even at the end.
		if next.mode()&modeType == modeSymlink && (follow || rest != "") {
			if links++; links > 255 {
				return 0, nil, errSymlinks
			}
			target, err := r.v.readlink(next)
			if err != nil {
				return 0, nil, err
			}
			if strings.HasPrefix(target, "/") {
				stack = stack[:1]
				cur = stack[0]
			}
			rest = target + "/" + rest
			follow = true
			continue
		}
		cur = next
		if cur.mode()&modeType == modeDir {
			if len(stack) > maxDepth {
				return 0, nil, errDepth
			}
			stack = append(stack, cur)
		}
	}
	return cur.ino, cur, nil
}

// find looks for a name in a directory.
func (r *Reader) find(dir *rawInode, name string) (uint32, error) {
	entries, err := r.list(dir)
	if err != nil {
		return 0, err
	}
	i := sort.Search(len(entries), func(i int) bool { return entries[i].Name >= name })
	if i == len(entries) || entries[i].Name != name {
		return 0, fs.ErrNotExist
	}
	return entries[i].Ino, nil
}

// list reads a directory, or remembers it from the call before. The result must not be changed.
func (r *Reader) list(dir *rawInode) ([]DirEntry, error) {
	r.last.mu.Lock()
	defer r.last.mu.Unlock()
	if r.last.ino == dir.ino {
		return r.last.entries, nil
	}
	entries, err := r.v.readDir(dir)
	if err == nil {
		r.last.ino, r.last.entries = dir.ino, entries
	}
	return entries, err
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

// maxDepth bounds how deep directories may be nested.
const maxDepth = 8192

var errDepth = fmt.Errorf("directories are nested more than %d deep", maxDepth)

// Walk calls fn for root and everything below it: a directory before its entries, entries by
// name. No symlink is followed. fn may return fs.SkipDir to leave a directory out and fs.SkipAll
// to end the walk; any other error ends it and is returned.
func (r *Reader) Walk(root string, fn func(name string, info Info) error) error {
	type item struct {
		name  string
		ino   uint32
		depth int
	}
	ino, _, err := r.resolve(root, false)
	if err != nil {
		return &fs.PathError{Op: "walk", Path: root, Err: err}
	}
	seen := map[uint32]bool{}
	var total int64
	for stack := []item{{path.Clean("/" + root)[1:], ino, 0}}; len(stack) > 0; {
		it := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		fail := func(err error) error { return &fs.PathError{Op: "walk", Path: it.name, Err: err} }
		in, err := r.v.inode(it.ino)
		if err != nil {
			return fail(err)
		}
		info, err := r.info(in)
		if err != nil {
			return fail(err)
		}
		switch err := fn(it.name, info); {
		case err == fs.SkipAll:
			return nil
		case err == fs.SkipDir:
			continue
		case err != nil:
			return err
		}
		if !info.Mode.IsDir() {
			continue
		}
		// On a sound disk no two directories share an inode or a block.
		total += info.Size
		if seen[it.ino] || total > r.v.bytes {
			return fail(errors.New("a directory is below itself, or directories share blocks"))
		}
		if seen[it.ino] = true; it.depth == maxDepth {
			return fail(errDepth)
		}
		entries, err := r.v.readDir(in)
		if err != nil {
			return fail(err)
		}
		for i := len(entries) - 1; i >= 0; i-- {
			stack = append(stack, item{path.Join(it.name, entries[i].Name), entries[i].Ino, it.depth + 1})
		}
	}
	return nil
}

// File is an open regular file. Its methods other than Read and Seek can be called
// concurrently. There is nothing to close.
type File struct {
	info Info
	m    *extentMap
	off  int64
}

// OpenFile opens a regular file, following symlinks.
func (r *Reader) OpenFile(name string) (*File, error) {
	_, in, err := r.resolve(name, true)
	if err == nil && in.mode()&modeType != modeRegular {
		err = errNotFile
	}
	var info Info
	if err == nil {
		info, err = r.info(in)
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return &File{info: info, m: newExtentMap(r.v, in)}, nil
}

// Info describes the file.
func (f *File) Info() Info { return f.info }

// ReadAt implements io.ReaderAt. Holes read as zeroes.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("ext4: negative offset %d", off)
	}
	if off >= f.info.Size {
		return 0, io.EOF
	}
	n := min(int64(len(p)), f.info.Size-off)
	if err := f.m.readAt(p[:n], off); err != nil {
		return 0, fmt.Errorf("ext4: %w", err)
	}
	if n < int64(len(p)) {
		return int(n), io.EOF
	}
	return int(n), nil
}

// Read implements io.Reader.
func (f *File) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	n, err := f.ReadAt(p, f.off)
	f.off += int64(n)
	if n > 0 && err == io.EOF {
		err = nil
	}
	return n, err
}

// Seek implements io.Seeker.
func (f *File) Seek(off int64, whence int) (int64, error) {
	switch whence {
	case io.SeekStart:
	case io.SeekCurrent:
		off += f.off
	case io.SeekEnd:
		off += f.info.Size
	default:
		return 0, fmt.Errorf("ext4: seek from %d", whence)
	}
	if off < 0 {
		return 0, fmt.Errorf("ext4: seek to %d", off)
	}
	f.off = off
	return off, nil
}
