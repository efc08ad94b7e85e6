package vmdk

import (
	"errors"
	"fmt"
	"io"
	"math/bits"
)

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
	w       File
	sectors uint64
	start   uint64 // first data sector of the file
	tables  []*[cowdTable]uint32
	buf     []byte
	off     int64 // file offset of buf
	done    bool
}

// File is what a [LayerWriter] writes to: an empty file, for example.
type File interface {
	io.ReaderAt
	io.WriterAt
}

// NewLayerWriter starts an extent of a disk of the given capacity. w's first bytes are written
// last. It is read where data was appended that no place was found for in the end.
func NewLayerWriter(w File, bytes int64) (*LayerWriter, error) {
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

// Data reads what was appended, from the first byte of the first Write on.
func (w *LayerWriter) Data() io.ReaderAt { return appended{w} }

type appended struct{ w *LayerWriter }

func (a appended) ReadAt(p []byte, off int64) (int, error) {
	w := a.w
	if w.done {
		return 0, errFinished
	}
	if off < 0 {
		return 0, fmt.Errorf("vmdk: negative offset %d", off)
	}
	at, done := int64(w.start)*SectorSize+off, 0
	if k := min(int64(len(p)), w.off-at); k > 0 {
		n, err := w.w.ReadAt(p[:k], at)
		if int64(n) < k {
			if err == nil || err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return n, err
		}
		done = n
	}
	if rest := at + int64(done) - w.off; done < len(p) && rest < int64(len(w.buf)) {
		done += copy(p[done:], w.buf[rest:])
	}
	if done < len(p) {
		return done, io.EOF
	}
	return done, nil
}

// compactAt is the share of data without a place that is worth moving the rest for: one part in so many.
const compactAt = 32

// compact moves data together over data that is not bound.
func (w *LayerWriter) compact() error {
	total := w.next()
	bound := make([]uint64, (total+63)/64)
	for _, t := range w.tables {
		if t == nil {
			continue
		}
		for _, v := range t {
			if v != 0 {
				r := uint64(v) - w.start
				bound[r/64] |= 1 << (r % 64)
			}
		}
	}
	// rank[i] counts what is bound below sector 64*i.
	rank, used := make([]uint32, len(bound)), uint64(0)
	for i, b := range bound {
		rank[i] = uint32(used)
		used += uint64(bits.OnesCount64(b))
	}
	if total == used || total-used < total/compactAt {
		return nil
	}
	if err := w.flush(); err != nil {
		return err
	}
	has := func(i uint64) bool { return i < total && bound[i/64]>>(i%64)&1 == 1 }
	buf := w.buf[:cap(w.buf)]
	const most = writeBufferSize / SectorSize
	for from, to := uint64(0), uint64(0); from < total; {
		n := uint64(0)
		for n < most && has(from+n) {
			n++
		}
		if n == 0 {
			from++
			continue
		}
		if from != to {
			p := buf[:n*SectorSize]
			if k, err := w.w.ReadAt(p, int64(w.start+from)*SectorSize); k < len(p) {
				return fmt.Errorf("vmdk: move data together: %w", err)
			}
			if _, err := w.w.WriteAt(p, int64(w.start+to)*SectorSize); err != nil {
				return err
			}
		}
		from, to = from+n, to+n
	}
	for _, t := range w.tables {
		if t == nil {
			continue
		}
		for j, v := range t {
			if v != 0 {
				r := uint64(v) - w.start
				t[j] = uint32(w.start) + rank[r/64] + uint32(bits.OnesCount64(bound[r/64]&(1<<(r%64)-1)))
			}
		}
	}
	w.off, w.buf = int64(w.start+used)*SectorSize, w.buf[:0]
	return nil
}

// Finish writes the tables, the directory and the header, and returns the length of the extent.
// The file may be longer; what follows is of no use.
func (w *LayerWriter) Finish() (int64, error) {
	if w.done {
		return 0, errFinished
	}
	if err := w.compact(); err != nil {
		return 0, err
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
