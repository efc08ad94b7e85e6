package imagestore

import (
	"io"
	"os"

	"github.com/vicsdk/vic-go/internal/ext4"
	"github.com/vicsdk/vic-go/internal/vmdk"
)

// A spool is a layer's extent while it is made: a temporary file that has no
// name, so that nothing is left of it whatever happens to the process. File
// contents are appended while the layer is unpacked; their places on the disk
// are bound when the parent's end is known.
type spool struct {
	f    *os.File
	w    *vmdk.LayerWriter
	size int64
}

func newSpool(dir string, bytes int64) (*spool, error) {
	f, err := tempFile(dir, "layer")
	if err != nil {
		return nil, err
	}
	w, err := vmdk.NewLayerWriter(f, bytes)
	if err != nil {
		f.Close()
		return nil, err
	}
	return &spool{f: f, w: w}, nil
}

// seal binds the file contents, adds the metadata that the layer touched, and
// completes the extent and the layer's record. l and r are nil for a layer
// without a tar. Of the disks below, files are taken over that the layer has
// again, and the extent holds what is in those that it is to take the place of.
func (s *spool) seal(fs *ext4.FS, l *ext4.Layer, r *recorder, under *below) error {
	if l != nil {
		o := &ext4.ApplyOptions{Contents: func(c ext4.Contents) error { return r.place(c, s.w.Data()) }}
		if under.s.publisher.readable(under) {
			o.Spool, o.Parent = s.w.Data(), under
		}
		extents, err := fs.ApplyWith(l, o)
		if err == nil {
			err = r.finish()
		}
		if err != nil {
			return content(err)
		}
		// First, because what the layer itself writes takes its place.
		if err := under.copyFolded(fs, s.w); err != nil {
			return err
		}
		const sectors = ext4.BlockSize / vmdk.SectorSize
		for _, e := range extents {
			if err := s.w.Bind(e.Rel*sectors, e.Abs*sectors, e.N*sectors); err != nil {
				return err
			}
		}
	}
	var b [ext4.BlockSize]byte
	for _, lba := range fs.Dirty() {
		fs.Block(lba, b[:])
		if _, err := s.w.WriteAt(b[:], int64(lba)*ext4.BlockSize); err != nil {
			return err
		}
	}
	n, err := s.w.Finish()
	if err != nil {
		return err
	}
	s.size = n
	fs.Commit()
	return nil
}

// reader reads the extent; tell, where it is not nil, hears how far it is.
func (s *spool) reader(tell func(done int64)) io.Reader {
	r := io.NewSectionReader(s.f, 0, s.size)
	if tell == nil {
		return r
	}
	return &told{r: r, tell: tell}
}

type told struct {
	r    io.Reader
	tell func(int64)
	n    int64
	last int64
}

func (t *told) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	if t.n += int64(n); t.n-t.last >= 1<<20 {
		t.last = t.n
		t.tell(t.n)
	}
	return n, err
}

func (s *spool) close() { s.f.Close() }
