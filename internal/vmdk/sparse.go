package vmdk

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"
)

// State says what an image knows about a part of the disk.
type State int

const (
	Absent State = iota // nothing: it is as in the parent, or zeroes without one
	Zero                // zeroes, whatever the parent has
	Data                // data at an offset of the file
)

// Run is a part of the disk that is of one kind.
type Run struct {
	State State
	// Bytes is its length, more than 0.
	Bytes int64
	// Offset is where it lies in the file, for Data.
	Offset int64
}

// Sparse is an extent of grains, opened for reading. It keeps at most 64 tables in memory and
// is safe for concurrent use. Closing the file is the caller's business.
type Sparse struct {
	r         io.ReaderAt
	size      int64 // of the file
	sectors   uint64
	grain     uint64 // sectors
	tableLen  uint64 // entries
	zeroGrain bool   // entry 1 means zeroes
	gd        []uint32

	mu     sync.Mutex
	tables map[uint64][]uint32
	order  []uint64
}

const maxTables = 64

// Size is the disk's capacity in bytes.
func (s *Sparse) Size() int64 { return int64(s.sectors) * SectorSize }

// OpenCOWD opens a vmfsSparse extent of any grain, size bytes long. Everything it says is checked against size.
func OpenCOWD(r io.ReaderAt, size int64) (*Sparse, error) {
	h := make([]byte, 32)
	if err := readFull(r, h, 0, size); err != nil {
		return nil, fmt.Errorf("vmdk: vmfsSparse header: %w", err)
	}
	if string(h[:4]) != cowdMagic {
		return nil, errors.New("vmdk: not a vmfsSparse extent: magic number is not COWD")
	}
	if v := le.Uint32(h[4:]); v != 1 {
		return nil, fmt.Errorf("vmdk: vmfsSparse header: version %d: only 1 is known", v)
	}
	if free := int64(le.Uint32(h[28:])) * SectorSize; free > size {
		return nil, fmt.Errorf("vmdk: vmfsSparse extent is cut off: its header says %d bytes, the file has %d", free, size)
	}
	s := &Sparse{r: r, size: size, sectors: uint64(le.Uint32(h[12:])), grain: uint64(le.Uint32(h[16:])), tableLen: cowdTable}
	if err := s.open(uint64(le.Uint32(h[20:])), uint64(le.Uint32(h[24:])), "vmfsSparse"); err != nil {
		return nil, err
	}
	return s, nil
}

const (
	kdmvMagic        = "KDMV"
	kdmvCompressed   = 1 << 16
	kdmvMarkers      = 1 << 17
	kdmvZeroGrain    = 1 << 2
	kdmvGDAtEnd      = 1<<64 - 1
	kdmvNewlineCheck = "\n \r\n"
)

// OpenKDMV opens a monolithicSparse disk, size bytes long, with its embedded descriptor. A
// streamOptimized disk is refused: its grains are compressed.
func OpenKDMV(r io.ReaderAt, size int64) (*Sparse, *Descriptor, error) {
	h := make([]byte, SectorSize)
	if err := readFull(r, h, 0, size); err != nil {
		return nil, nil, fmt.Errorf("vmdk: sparse header: %w", err)
	}
	if string(h[:4]) != kdmvMagic {
		return nil, nil, errors.New("vmdk: not a sparse extent: magic number is not KDMV")
	}
	if v := le.Uint32(h[4:]); v < 1 || v > 3 {
		return nil, nil, fmt.Errorf("vmdk: sparse header: version %d: 1 to 3 are known", v)
	}
	flags := le.Uint32(h[8:])
	gd := le.Uint64(h[56:])
	if flags&(kdmvCompressed|kdmvMarkers) != 0 || gd == kdmvGDAtEnd {
		return nil, nil, errors.New("vmdk: the disk is streamOptimized, which cannot be read in place: convert it to monolithicSparse")
	}
	if flags&1 != 0 && string(h[73:77]) != kdmvNewlineCheck {
		return nil, nil, errors.New("vmdk: sparse header: line ends were changed by a text transfer")
	}
	s := &Sparse{r: r, size: size, sectors: le.Uint64(h[12:]), grain: le.Uint64(h[20:]), tableLen: uint64(le.Uint32(h[44:])),
		zeroGrain: flags&kdmvZeroGrain != 0}
	if s.tableLen == 0 || s.tableLen > cowdTable {
		return nil, nil, fmt.Errorf("vmdk: sparse header: %d entries in a grain table: 1 to %d are possible", s.tableLen, cowdTable)
	}
	if s.sectors > maxSectors || s.grain == 0 || s.grain > 1<<20 {
		return nil, nil, fmt.Errorf("vmdk: sparse header: capacity of %d sectors in grains of %d", s.sectors, s.grain)
	}
	tables := (s.sectors + s.grain*s.tableLen - 1) / (s.grain * s.tableLen)
	if err := s.open(gd, tables, "sparse"); err != nil {
		return nil, nil, err
	}
	at, n := le.Uint64(h[28:]), le.Uint64(h[36:])
	if at == 0 || n == 0 || n > MaxDescriptorBytes/SectorSize || at > maxSectors {
		return nil, nil, errors.New("vmdk: sparse header: no embedded descriptor of up to 64 KiB")
	}
	raw := make([]byte, n*SectorSize)
	if err := readFull(r, raw, int64(at)*SectorSize, size); err != nil {
		return nil, nil, fmt.Errorf("vmdk: embedded descriptor: %w", err)
	}
	d, err := ParseDescriptor(raw)
	if err != nil {
		return nil, nil, err
	}
	if d.Bytes() != s.Size() {
		return nil, nil, fmt.Errorf("vmdk: the descriptor says %d bytes, the header %d", d.Bytes(), s.Size())
	}
	return s, d, nil
}

// open checks the geometry and reads the grain directory.
func (s *Sparse) open(gd, entries uint64, kind string) error {
	if s.sectors == 0 || s.sectors > maxSectors || s.grain == 0 || s.grain > 1<<20 {
		return fmt.Errorf("vmdk: %s header: capacity of %d sectors in grains of %d", kind, s.sectors, s.grain)
	}
	span := s.grain * s.tableLen
	if need := (s.sectors + span - 1) / span; entries != need {
		return fmt.Errorf("vmdk: %s header: %d grain directory entries: %d sectors need %d", kind, entries, s.sectors, need)
	}
	if entries > 1<<22 || gd > maxSectors {
		return fmt.Errorf("vmdk: %s header: grain directory of %d entries at sector %d", kind, entries, gd)
	}
	// Check before allocating: the directory must lie in the file.
	if end := int64(gd)*SectorSize + int64(entries)*4; end > s.size {
		return fmt.Errorf("vmdk: %s: grain directory ends at %d, the file at %d", kind, end, s.size)
	}
	raw := make([]byte, entries*4)
	if err := readFull(s.r, raw, int64(gd)*SectorSize, s.size); err != nil {
		return fmt.Errorf("vmdk: %s: grain directory: %w", kind, err)
	}
	s.gd = make([]uint32, entries)
	for i := range s.gd {
		s.gd[i] = le.Uint32(raw[4*i:])
	}
	s.tables = map[uint64][]uint32{}
	return nil
}

// table reads grain table i, nil if it is absent.
func (s *Sparse) table(i uint64) ([]uint32, error) {
	if s.gd[i] == 0 {
		return nil, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if t, ok := s.tables[i]; ok {
		return t, nil
	}
	raw := make([]byte, 4*s.tableLen)
	if err := readFull(s.r, raw, int64(s.gd[i])*SectorSize, s.size); err != nil {
		return nil, fmt.Errorf("vmdk: grain table %d: %w", i, err)
	}
	t := make([]uint32, s.tableLen)
	for j := range t {
		t[j] = le.Uint32(raw[4*j:])
	}
	if len(s.order) == maxTables {
		delete(s.tables, s.order[0])
		s.order = append(s.order[:0], s.order[1:]...)
	}
	s.tables[i] = t
	s.order = append(s.order, i)
	return t, nil
}

// Map says what lies at byte off of the disk, for as many bytes as it can tell at once.
func (s *Sparse) Map(off int64) (Run, error) {
	if off < 0 || off >= s.Size() {
		return Run{}, fmt.Errorf("vmdk: offset %d is outside a disk of %d bytes", off, s.Size())
	}
	sector := uint64(off) / SectorSize
	grain, span := s.grain*SectorSize, s.grain*s.tableLen*SectorSize
	t, err := s.table(sector / (s.grain * s.tableLen))
	if err != nil {
		return Run{}, err
	}
	rest := s.Size() - off
	if t == nil {
		return Run{State: Absent, Bytes: min(int64(span-uint64(off)%span), rest)}, nil
	}
	i := sector / s.grain % s.tableLen
	within := int64(uint64(off) % grain)
	run := Run{State: s.state(t[i]), Bytes: int64(grain) - within}
	step := uint32(0)
	if run.State == Data {
		run.Offset = int64(t[i])*SectorSize + within
		step = uint32(s.grain)
	}
	for j := i + 1; j < s.tableLen && run.Bytes < rest; j++ {
		if s.state(t[j]) != run.State || t[j]-t[j-1] != step && run.State == Data {
			break
		}
		run.Bytes += int64(grain)
	}
	run.Bytes = min(run.Bytes, rest)
	if run.State == Data && run.Offset+run.Bytes > s.size {
		return Run{}, fmt.Errorf("vmdk: grain at disk offset %d lies at %d, behind the file's end at %d", off, run.Offset, s.size)
	}
	return run, nil
}

func (s *Sparse) state(entry uint32) State {
	switch {
	case entry == 0:
		return Absent
	case entry == 1 && s.zeroGrain:
		return Zero
	}
	return Data
}

// ReadData reads from the extent's file what [Sparse.Map] found there.
func (s *Sparse) ReadData(p []byte, offset int64) error { return readFull(s.r, p, offset, s.size) }

// Allocated is how many bytes of the disk the extent holds itself.
func (s *Sparse) Allocated() (int64, error) {
	var total int64
	err := s.Runs(func(_ int64, r Run) error {
		total += r.Bytes
		return nil
	})
	return total, err
}

// Runs calls fn for each run that is not Absent, in the order of the disk. Runs that follow
// each other on the disk and in the file may come in several calls. An error of fn ends it.
func (s *Sparse) Runs(fn func(off int64, r Run) error) error {
	for off := int64(0); off < s.Size(); {
		r, err := s.Map(off)
		if err != nil {
			return err
		}
		if r.State != Absent {
			if err := fn(off, r); err != nil {
				return err
			}
		}
		off += r.Bytes
	}
	return nil
}

// readFull reads len(p) bytes at off of a file that is size bytes long.
func readFull(r io.ReaderAt, p []byte, off, size int64) error {
	if off < 0 || off > size || int64(len(p)) > size-off {
		return fmt.Errorf("%d bytes at %d lie behind the file's end at %d", len(p), off, size)
	}
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// Kind tells the formats apart by a file's first bytes, at least 32 of them.
func Kind(head []byte) string {
	switch {
	case IsDescriptor(head):
		return "descriptor"
	case bytes.HasPrefix(head, []byte(kdmvMagic)):
		return "sparse"
	case bytes.HasPrefix(head, []byte(cowdMagic)):
		return "vmfsSparse"
	}
	return ""
}
