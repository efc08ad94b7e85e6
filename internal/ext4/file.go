package ext4

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
)

// Walk calls fn for root and everything below it: a directory before its entries, entries by
// name. No symlink is followed. fn may return fs.SkipDir to leave a directory out and fs.SkipAll
// to end the walk; any other error ends it and is returned.
func (r *Reader) Walk(root string, fn func(name string, info Info) error) error {
	return r.walk(root, func(name string, _ *rawInode, info Info) error { return fn(name, info) })
}

func (r *Reader) walk(root string, fn func(name string, in *rawInode, info Info) error) error {
	type item struct {
		name  string
		ino   uint32
		depth int
	}
	ino, _, err := r.resolve(root, false)
	if err != nil {
		return &fs.PathError{Op: "walk", Path: root, Err: err}
	}
	seen := dirGuard{v: r.v}
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
		switch err := fn(it.name, in, info); {
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
		if err := seen.enter(in, it.depth); err != nil {
			return fail(err)
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

// dirGuard ends walks through a tree that is none.
type dirGuard struct {
	v     *volume
	seen  map[uint32]bool
	total int64
}

// enter notes that a directory is listed: on a sound disk no two share an inode or a block.
func (g *dirGuard) enter(in *rawInode, depth int) error {
	if g.seen == nil {
		g.seen = map[uint32]bool{}
	}
	g.total += max(in.size(), 0)
	if g.seen[in.ino] || g.total > g.v.bytes {
		return errors.New("a directory is below itself, or directories share blocks")
	}
	g.seen[in.ino] = true
	if depth >= maxDepth {
		return errDepth
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
