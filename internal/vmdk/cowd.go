package vmdk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

var le = binary.LittleEndian

const (
	cowdMagic       = "COWD"
	cowdHeader      = 4 // sectors
	cowdTable       = 4096
	cowdTableBytes  = 4 * cowdTable
	childGrain      = 128 // sectors, 64 KiB
	maxCOWDSectors  = 1<<32 - 1
	writeBufferSize = 1 << 20
)

// cowdLayout gives the number of grain tables and the first sector after the grain directory.
func cowdLayout(sectors, grain uint64) (tables, start uint64) {
	tables = (sectors + cowdTable*grain - 1) / (cowdTable * grain)
	return tables, cowdHeader + (tables*4+SectorSize-1)/SectorSize
}

func checkCOWDSize(bytes int64) error {
	if bytes <= 0 || bytes%SectorSize != 0 || bytes/SectorSize > maxCOWDSectors {
		return fmt.Errorf("vmdk: capacity %d: it must be a multiple of 512, and a vmfsSparse disk ends below 2 TiB", bytes)
	}
	return nil
}

// encodeCOWDHeader writes a COWDisk_Header.
func encodeCOWDHeader(sectors, grain, tables, free uint64) []byte {
	h := make([]byte, cowdHeader*SectorSize)
	copy(h, cowdMagic)
	le.PutUint32(h[4:], 1) // version
	le.PutUint32(h[8:], 3) // flags
	le.PutUint32(h[12:], uint32(sectors))
	le.PutUint32(h[16:], uint32(grain))
	le.PutUint32(h[20:], cowdHeader) // grain directory
	le.PutUint32(h[24:], uint32(tables))
	le.PutUint32(h[28:], uint32(free))
	return h
}

// LayerWriter writes a vmfsSparse extent that will only be read: grains of one sector, and no
// table where a stretch of the disk has no grain. QEMU must not open the result for writing.
//
// Data may be appended before it is known where on the disk it belongs ([LayerWriter.Write],
// then [LayerWriter.Bind]) or after ([LayerWriter.WriteAt]). [LayerWriter.Finish] completes the file;
// nothing before that is a valid extent. Memory is 16 KiB for every 2 MiB of disk touched.
//
// A LayerWriter is not safe for concurrent use, does not close what it writes to, and is of no use
// after an error.
type LayerWriter struct {
	w       io.WriterAt
	sectors uint64
	start   uint64 // first data sector of the file
	tables  []*[cowdTable]uint32
	buf     []byte
	off     int64 // file offset of buf
	done    bool
}

// NewLayerWriter starts an extent of a disk of the given capacity. w's first bytes are written last.
func NewLayerWriter(w io.WriterAt, bytes int64) (*LayerWriter, error) {
	if err := checkCOWDSize(bytes); err != nil {
		return nil, err
	}
	sectors := uint64(bytes / SectorSize)
	tables, start := cowdLayout(sectors, 1)
	return &LayerWriter{w: w, sectors: sectors, start: start, off: int64(start) * SectorSize,
		tables: make([]*[cowdTable]uint32, tables), buf: make([]byte, 0, writeBufferSize)}, nil
}

// next is the number of data sectors appended so far.
func (w *LayerWriter) next() uint64 {
	return uint64(w.off+int64(len(w.buf)))/SectorSize - w.start
}

var errFinished = errors.New("vmdk: LayerWriter used after Finish")

// Write appends data whose place on the disk is not known yet. p must be whole sectors.
func (w *LayerWriter) Write(p []byte) (int, error) {
	if w.done {
		return 0, errFinished
	}
	if len(p)%SectorSize != 0 {
		return 0, fmt.Errorf("vmdk: LayerWriter.Write of %d bytes: not a multiple of 512", len(p))
	}
	if w.start+w.next()+uint64(len(p)/SectorSize) > maxCOWDSectors {
		return 0, errors.New("vmdk: a vmfsSparse extent ends below 2 TiB")
	}
	if len(p) >= writeBufferSize {
		if err := w.flush(); err != nil {
			return 0, err
		}
		n, err := w.w.WriteAt(p, w.off)
		w.off += int64(n)
		return n, err
	}
	if len(w.buf)+len(p) > writeBufferSize {
		if err := w.flush(); err != nil {
			return 0, err
		}
	}
	w.buf = append(w.buf, p...)
	return len(p), nil
}

func (w *LayerWriter) flush() error {
	n, err := w.w.WriteAt(w.buf, w.off)
	if err == nil {
		w.off += int64(n)
		w.buf = w.buf[:0]
	}
	return err
}

// Bind places n sectors of data: those appended as number rel and after become the disk's
// sectors lba and after. What was bound there before is forgotten.
func (w *LayerWriter) Bind(rel, lba, n uint64) error {
	switch {
	case w.done:
		return errFinished
	case rel > w.next() || n > w.next()-rel:
		return fmt.Errorf("vmdk: Bind of data sectors %d to %d: only %d were written", rel, rel+n, w.next())
	case lba > w.sectors || n > w.sectors-lba:
		return fmt.Errorf("vmdk: Bind to disk sectors %d to %d: the disk has %d", lba, lba+n, w.sectors)
	}
	for n > 0 {
		t := w.tables[lba/cowdTable]
		if t == nil {
			t = new([cowdTable]uint32)
			w.tables[lba/cowdTable] = t
		}
		c := min(n, cowdTable-lba%cowdTable)
		run := t[lba%cowdTable:][:c]
		first := uint32(w.start + rel)
		for i := range run {
			run[i] = first + uint32(i)
		}
		rel, lba, n = rel+c, lba+c, n-c
	}
	return nil
}

// WriteAt appends p and binds it to byte off of the disk; both must be whole sectors. Data need
// not come in the order of the disk.
func (w *LayerWriter) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off%SectorSize != 0 {
		return 0, fmt.Errorf("vmdk: LayerWriter.WriteAt offset %d: not a multiple of 512", off)
	}
	rel := w.next()
	n, err := w.Write(p)
	if err != nil {
		return n, err
	}
	if err := w.Bind(rel, uint64(off/SectorSize), uint64(n/SectorSize)); err != nil {
		return 0, err
	}
	return n, nil
}

// Finish writes the tables, the directory and the header, and returns the length of the file.
func (w *LayerWriter) Finish() (int64, error) {
	if w.done {
		return 0, errFinished
	}
	gd := make([]byte, (w.start-cowdHeader)*SectorSize)
	var raw [cowdTableBytes]byte
	for i, t := range w.tables {
		if t == nil {
			continue
		}
		le.PutUint32(gd[4*i:], uint32(w.start+w.next()))
		for j, v := range t {
			le.PutUint32(raw[4*j:], v)
		}
		if _, err := w.Write(raw[:]); err != nil {
			return 0, err
		}
	}
	if err := w.flush(); err != nil {
		return 0, err
	}
	if _, err := w.w.WriteAt(gd, cowdHeader*SectorSize); err != nil {
		return 0, err
	}
	h := encodeCOWDHeader(w.sectors, 1, uint64(len(w.tables)), uint64(w.off/SectorSize))
	if _, err := w.w.WriteAt(h, 0); err != nil {
		return 0, err
	}
	w.done = true
	return w.off, nil
}

// WriteChild writes the extent of an empty vmfsSparse child that can be written to: grains of
// 64 KiB and every grain table in place, as QEMU needs (it does not add tables). The file takes
// 16 KiB for every 256 MiB of capacity, plus one sector or two.
func WriteChild(w io.Writer, bytes int64) error {
	if err := checkCOWDSize(bytes); err != nil {
		return err
	}
	sectors := uint64(bytes / SectorSize)
	tables, start := cowdLayout(sectors, childGrain)
	// New grains go to the end of the file: it must lie on a grain's boundary.
	end := start + tables*cowdTableBytes/SectorSize
	end = (end + childGrain - 1) / childGrain * childGrain
	head := encodeCOWDHeader(sectors, childGrain, tables, end)
	head = append(head, make([]byte, (start-cowdHeader)*SectorSize)...)
	for i := range tables {
		le.PutUint32(head[cowdHeader*SectorSize+4*i:], uint32(start+i*cowdTableBytes/SectorSize))
	}
	if _, err := w.Write(head); err != nil {
		return err
	}
	zeroes := make([]byte, cowdTableBytes)
	for left := (end - start) * SectorSize; left > 0; {
		n, err := w.Write(zeroes[:min(left, cowdTableBytes)])
		if err != nil {
			return err
		}
		left -= uint64(n)
	}
	return nil
}
