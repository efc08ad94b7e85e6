package imagestore

import (
	"fmt"
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
	f, err := os.CreateTemp(dir, "vic-layer-*")
	if err != nil {
		return nil, fmt.Errorf("temporary file for a layer: %w", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, fmt.Errorf("temporary file for a layer: %w", err)
	}
	w, err := vmdk.NewLayerWriter(f, bytes)
	if err != nil {
		f.Close()
		return nil, err
	}
	return &spool{f: f, w: w}, nil
}

// seal binds the file contents, adds the metadata that the layer touched, and
// completes the extent. l is nil for a layer without a tar.
func (s *spool) seal(fs *ext4.FS, l *ext4.Layer) error {
	if l != nil {
		extents, err := fs.Apply(l)
		if err != nil {
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

func (s *spool) reader() io.Reader { return io.NewSectionReader(s.f, 0, s.size) }

func (s *spool) close() { s.f.Close() }
