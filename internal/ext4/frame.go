package ext4

import (
	"fmt"
	"io"
	"io/fs"
)

// A Frame is told all of a tar but the contents of its files, so that the tar can be put together
// again, byte for byte, when the contents are elsewhere: headers, padding, what follows the end.
//
// Write gets the bytes between contents, and Contents is called where a file's contents are left
// out, with their size, which is above 0. Contents of entries in one of the sparse formats, and of
// entries that become no file, go to Write like the rest.
type Frame interface {
	io.Writer
	Contents(size int64) error
}

// ReadOptions are the details of [ReadLayerWith]; nil means none.
type ReadOptions struct {
	// Frame, or nil. Where the contents told to it are in the end, [ApplyOptions.Contents] hears.
	Frame Frame
}

// ReadLayerWith is [ReadLayer] with options.
func ReadLayerWith(r io.Reader, data io.Writer, lim Limits, o *ReadOptions) (*Layer, error) {
	if o == nil {
		o = &ReadOptions{}
	}
	return readTar(r, data, lim, false, o.Frame)
}

// framed stands below package tar's Reader, which reads no byte ahead: what is read while no
// file's contents are asked for belongs to the frame.
type framed struct {
	r      io.Reader
	frame  Frame
	inside bool
}

func (f *framed) enter(size int64) error {
	f.inside = true
	return f.frame.Contents(size)
}

func (f *framed) leave() { f.inside = false }

func (f *framed) Read(p []byte) (int, error) {
	n, err := f.r.Read(p)
	if n > 0 && !f.inside {
		if _, werr := f.frame.Write(p[:n]); werr != nil {
			return n, werr
		}
	}
	return n, err
}

// Contents tells where contents are that a [Frame] left out.
type Contents struct {
	// Ino is the inode of a file that has them, for [Reader.OpenInode]. It is 0 where no file
	// does, because a later entry of the same layer took its place: then only the spool has them.
	Ino  uint32
	Size int64

	extents []extent
}

// Reader reads the contents from the spool: what [ReadLayerWith] wrote, from byte 0 on.
func (c Contents) Reader(spool io.ReaderAt) io.Reader { return &spooled{c: c, r: spool} }

type spooled struct {
	c   Contents
	r   io.ReaderAt
	off int64
}

func (s *spooled) Read(p []byte) (int, error) {
	if s.off >= s.c.Size {
		return 0, io.EOF
	}
	n := min(int64(len(p)), s.c.Size-s.off)
	for len(s.c.extents) > 0 {
		e := s.c.extents[0]
		start, end := int64(e.logical)*BlockSize, int64(e.logical+e.n)*BlockSize
		if s.off >= end {
			s.c.extents = s.c.extents[1:]
			continue
		}
		if s.off < start {
			n = min(n, start-s.off)
			break
		}
		n = min(n, end-s.off)
		if _, err := readFullAt(s.r, p[:n], int64(e.phys)*BlockSize+s.off-start); err != nil {
			return 0, fmt.Errorf("ext4: spool: %w", err)
		}
		s.off += n
		return int(n), nil
	}
	clear(p[:n])
	s.off += n
	return int(n), nil
}

func (a *applier) note(i int, in *inode) {
	if a.made != nil {
		a.made[i] = in
	}
}

// contents tells where the contents of framed entries are.
func (a *applier) contents(ops []op, f func(Contents) error) error {
	for i := range ops {
		o := &ops[i]
		if !o.framed {
			continue
		}
		c := Contents{Size: o.size, extents: o.extents}
		// An inode's number may be another file's by now.
		if in := a.made[i]; in != nil && in.nlink > 0 && a.fs.inode(in.ino) == in {
			c.Ino = in.ino
		}
		if err := f(c); err != nil {
			return fmt.Errorf("contents of %s: %w", quote(o.name), err)
		}
	}
	return nil
}

// OpenInode opens a regular file by its inode's number.
func (r *Reader) OpenInode(ino uint32) (*File, error) {
	fail := func(err error) (*File, error) {
		return nil, &fs.PathError{Op: "open", Path: fmt.Sprintf("inode %d", ino), Err: err}
	}
	in, err := r.v.inode(ino)
	if err != nil {
		return fail(err)
	}
	if in.mode()&modeType != modeRegular {
		return fail(errNotFile)
	}
	info, err := r.info(in)
	if err != nil {
		return fail(err)
	}
	return &File{info: info, m: newExtentMap(r.v, in)}, nil
}
