package vmdk

import (
	"errors"
	"fmt"
	"io"
)

// A ReadWriterAt is a file that a [Child] changes.
type ReadWriterAt interface {
	io.ReaderAt
	io.WriterAt
}

// A Child writes to a vmfsSparse extent, of whatever grain and with or without
// grain tables in place, as a virtual machine that is running would. New grains
// and tables go to the file's end. The extent is not usable between the first
// WriteAt and Finish: work on a copy. Not safe for concurrent use.
type Child struct {
	f      ReadWriterAt
	s      *Sparse
	gd     int64 // where the grain directory lies in the file
	parent io.ReaderAt
	end    uint64 // sectors
	tables map[uint64][]uint32
}

// OpenChild opens an extent of size bytes. parent reads the disk without this
// extent, to fill the rest of a grain that is written in part.
func OpenChild(f ReadWriterAt, size int64, parent io.ReaderAt) (*Child, error) {
	s, err := OpenCOWD(f, size)
	if err != nil {
		return nil, err
	}
	var h [4]byte
	if _, err := f.ReadAt(h[:], 20); err != nil {
		return nil, err
	}
	return &Child{f: f, s: s, gd: int64(le.Uint32(h[:])) * SectorSize, parent: parent, end: uint64(size+SectorSize-1) / SectorSize, tables: map[uint64][]uint32{}}, nil
}

// WriteAt writes whole sectors at byte off of the disk.
func (c *Child) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off%SectorSize != 0 || len(p)%SectorSize != 0 || off+int64(len(p)) > c.s.Size() {
		return 0, fmt.Errorf("vmdk: Child.WriteAt of %d bytes at %d: want whole sectors inside of %d bytes", len(p), off, c.s.Size())
	}
	grain := int64(c.s.grain) * SectorSize
	n := 0
	for n < len(p) {
		at := off + int64(n)
		within := at % grain
		part := p[n:min(len(p), n+int(grain-within))]
		if err := c.writeGrain(part, at-within, within); err != nil {
			return n, err
		}
		n += len(part)
	}
	return n, nil
}

// writeGrain writes p into the grain that starts at byte start of the disk.
func (c *Child) writeGrain(p []byte, start, within int64) error {
	sector := uint64(start) / SectorSize
	ti, i := sector/(c.s.grain*c.s.tableLen), sector/c.s.grain%c.s.tableLen
	t, err := c.table(ti)
	if err != nil {
		return err
	}
	if t[i] != 0 {
		at := int64(t[i]) * SectorSize
		if at+within+int64(len(p)) > int64(c.end)*SectorSize {
			return fmt.Errorf("vmdk: grain at disk offset %d lies at %d, behind the file's end", start, at)
		}
		_, err := c.f.WriteAt(p, at+within)
		return err
	}
	b := make([]byte, c.s.grain*SectorSize)
	if len(p) < len(b) {
		// The last grain may go on behind the disk's end.
		have := min(int64(len(b)), c.s.Size()-start)
		if n, err := c.parent.ReadAt(b[:have], start); int64(n) < have {
			return fmt.Errorf("vmdk: rest of the grain at %d: %w", start, err)
		}
	}
	copy(b[within:], p)
	at, err := c.grow(c.s.grain, c.s.grain)
	if err != nil {
		return err
	}
	if _, err := c.f.WriteAt(b, int64(at)*SectorSize); err != nil {
		return err
	}
	t[i] = at
	var e [4]byte
	le.PutUint32(e[:], at)
	_, err = c.f.WriteAt(e[:], int64(c.s.gd[ti])*SectorSize+4*int64(i))
	return err
}

// table reads a grain table, or adds it.
func (c *Child) table(i uint64) ([]uint32, error) {
	if t := c.tables[i]; t != nil {
		return t, nil
	}
	if c.s.gd[i] != 0 {
		t, err := c.s.table(i)
		if err != nil {
			return nil, err
		}
		c.tables[i] = append([]uint32(nil), t...)
		return c.tables[i], nil
	}
	at, err := c.grow(cowdTableBytes/SectorSize, 1)
	if err != nil {
		return nil, err
	}
	if _, err := c.f.WriteAt(make([]byte, cowdTableBytes), int64(at)*SectorSize); err != nil {
		return nil, err
	}
	c.s.gd[i] = at
	var e [4]byte
	le.PutUint32(e[:], at)
	if _, err := c.f.WriteAt(e[:], c.gd+4*int64(i)); err != nil {
		return nil, err
	}
	c.tables[i] = make([]uint32, cowdTable)
	return c.tables[i], nil
}

// grow gives n sectors at the end of the file, on a boundary.
func (c *Child) grow(n, boundary uint64) (uint32, error) {
	at := (c.end + boundary - 1) / boundary * boundary
	if at+n > maxCOWDSectors {
		return 0, errors.New("vmdk: a vmfsSparse extent ends below 2 TiB")
	}
	c.end = at + n
	return uint32(at), nil
}

// Finish completes the header and returns the file's size in bytes.
func (c *Child) Finish() (int64, error) {
	var e [4]byte
	le.PutUint32(e[:], uint32(c.end))
	if _, err := c.f.WriteAt(e[:], 28); err != nil {
		return 0, err
	}
	return int64(c.end) * SectorSize, nil
}
