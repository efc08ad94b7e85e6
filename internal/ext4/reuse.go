package ext4

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"slices"
)

// ApplyOptions are the details of [FS.ApplyWith]; nil means none.
type ApplyOptions struct {
	// Spool reads what ReadLayer wrote, from byte 0 on, and Parent the disk as it is before the
	// layer. With both, a file that is added again with the contents it has (by a change of owner
	// or permissions) keeps its blocks: only its inode changes, and its part of the spool is not
	// bound. Contents are compared byte by byte, so that no hash has to be trusted; a file that
	// has another size than before is not read, and one that differs only up to its first
	// difference.
	//
	// Both or neither must be set. Whether they are changes the bytes of the result: who derives
	// names from layers must always set them or never.
	Spool, Parent io.ReaderAt
	// Dir is the directory of the image's tree in which names of the layer start; "" is the
	// root. It must exist. Symlinks in it are followed inside the root.
	Dir string
	// Contents, if set, is called when all of a layer that was read by [ReadLayerWith] is applied:
	// once for each call of [Frame.Contents], in their order. An error ends it; the model is of no
	// use then.
	Contents func(Contents) error
}

// pair is a file of the layer and the file that has its path.
type pair struct {
	op  int
	old *inode
}

// findEqual finds the files of a layer that are there already with the same contents. What it
// finds is a fact about contents only; whether the file is still there when its entry's turn
// comes is put's business.
func (a *applier) findEqual(ops []op, o *ApplyOptions) error {
	var pairs []pair
	for i := range ops {
		op := &ops[i]
		if op.kind != opPut || op.typ != modeRegular || len(op.extents) == 0 {
			continue
		}
		d, base, err := a.parent(op.name, false)
		if err != nil || d == nil || d.names[base] == nil {
			continue // an error may be none when the entries before have been applied
		}
		old := d.names[base].in
		// What a kernel wrote may be allocated and still not count.
		if old.raw == nil && old.mode&modeType == modeRegular && old.size == op.size && len(old.extents) > 0 {
			pairs = append(pairs, pair{i, old})
		}
	}
	// In the order of the disk, so that small files come out of one read.
	slices.SortStableFunc(pairs, func(x, y pair) int { return cmp.Compare(x.old.extents[0].phys, y.old.extents[0].phys) })
	c := comparer{spool: o.Spool, disk: window{r: o.Parent}, buf: make([]byte, pieceBytes)}
	for _, p := range pairs {
		same, err := c.same(ops[p.op].extents, p.old.extents)
		if err != nil {
			return fmt.Errorf("compare %s with what is there: %w", quote(ops[p.op].name), err)
		}
		if same {
			a.equal[p.op] = p.old
		}
	}
	return nil
}

// comparer compares contents in the spool with contents on the disk.
type comparer struct {
	spool io.ReaderAt
	disk  window
	buf   []byte
}

// same compares two files of one size. Where one has a hole and the other blocks, they differ.
func (c *comparer) same(spool, disk []extent) (bool, error) {
	var s, d extent // what is left of the current ones
	for {
		if s.n == 0 {
			if len(spool) == 0 {
				return d.n == 0 && len(disk) == 0, nil
			}
			s, spool = spool[0], spool[1:]
		}
		if d.n == 0 {
			if len(disk) == 0 {
				return false, nil
			}
			d, disk = disk[0], disk[1:]
		}
		if s.logical != d.logical {
			return false, nil
		}
		n := min(s.n, d.n, pieceBytes/BlockSize)
		want, err := c.disk.read(int64(d.phys)*BlockSize, int(n)*BlockSize)
		if err != nil {
			return false, fmt.Errorf("disk: %w", err)
		}
		got := c.buf[:int(n)*BlockSize]
		if _, err := readFullAt(c.spool, got, int64(s.phys)*BlockSize); err != nil {
			return false, fmt.Errorf("spool: %w", err)
		}
		if !bytes.Equal(got, want) {
			return false, nil
		}
		s.logical, s.phys, s.n = s.logical+n, s.phys+uint64(n), s.n-n
		d.logical, d.phys, d.n = d.logical+n, d.phys+uint64(n), d.n-n
	}
}

// window reads ahead.
type window struct {
	r   io.ReaderAt
	buf []byte
	off int64
}

const windowBytes = 1 << 20

// read gives n bytes at off, up to the next call; n is at most windowBytes.
func (w *window) read(off int64, n int) ([]byte, error) {
	if off < w.off || off+int64(n) > w.off+int64(len(w.buf)) {
		if w.buf == nil {
			w.buf = make([]byte, windowBytes)
		}
		w.buf, w.off = w.buf[:windowBytes], off
		k, err := w.r.ReadAt(w.buf, off)
		if k < n {
			w.buf = w.buf[:0]
			if err == nil || err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
		w.buf = w.buf[:k]
	}
	return w.buf[off-w.off:][:n], nil
}

func readFullAt(r io.ReaderAt, p []byte, off int64) (int, error) {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return n, nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// unchanged reports whether what an entry makes differs from what is there in attributes only.
func (a *applier) unchanged(i int, o *op, old *inode) bool {
	if old.mode&modeType != o.typ || old.size != o.size {
		return false
	}
	switch o.typ {
	case modeRegular:
		return len(o.extents) == 0 && len(old.extents) == 0 || a.equal[i] == old
	case modeSymlink:
		return old.link == o.link
	case modeChar, modeBlock:
		return old.major == o.major && old.minor == o.minor
	}
	return o.typ == modeFIFO
}

// heir is a file that takes over the blocks of one that it replaces, if that has no name left
// in the end: its other hard links may be replaced by later entries, or not.
type heir struct {
	in, from *inode
}

// inherit settles who has the blocks of replaced files.
func (a *applier) inherit() {
	fs := a.fs
	for _, h := range a.heirs {
		if h.from.nlink > 0 || h.in.nlink == 0 || len(h.from.extents) == 0 {
			continue
		}
		h.in.extents, h.in.tree = h.from.extents, h.from.tree
		h.from.extents, h.from.tree = nil, nil
		for i, b := range h.in.tree {
			fs.zone[b] = owner{h.in, uint32(i), treeBlock}
			fs.dirty[b] = struct{}{} // its checksum depends on the inode's number
		}
		fs.touch(h.in.ino)
	}
	for _, h := range a.heirs {
		h.from.kept = false
		if h.from.nlink == 0 {
			fs.freeBlocksOf(h.from)
		}
	}
}
