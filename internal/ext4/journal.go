package ext4

import (
	"errors"
	"fmt"
)

// The journal, jbd2: all its fields are big-endian ("Journal (jbd2)").
const (
	journalMagic = 0xc03b3998

	journalDescriptor = 1
	journalCommit     = 2
	journalSuperV1    = 3
	journalSuperV2    = 4
	journalRevoke     = 5

	journal64Bit      = 0x2
	journalCsumV2     = 0x8
	journalCsumV3     = 0x10
	journalFastCommit = 0x20
	journalKnown      = 0x1 | journal64Bit | 0x4 | journalCsumV2 | journalCsumV3 | journalFastCommit

	tagEscape   = 1
	tagSameUUID = 2
	tagLast     = 8

	maxRevokes = 4 << 20
)

// logged says where in the journal a block's newest content is.
type logged struct {
	block   uint64
	escaped bool
}

type journal struct {
	v             *volume
	m             *extentMap
	seed          uint32
	incompat      uint32
	first, length uint32
	visited       uint32
	revoked       map[uint64]uint32 // newest transaction that revoked a block
	revokes       int
	end           uint32 // the first transaction that is not there
}

// write is a block's content in a committed transaction.
type write struct {
	target uint64
	tid    uint32
	at     logged
}

// replay finds what committed transactions say and fills v.overlay with it. It does what the
// kernel does when mounting, but leaves the disk alone.
func (v *volume) replay() error {
	s := &v.super
	if s.journalIno == 0 {
		if s.incompat&incompatRecover != 0 {
			return errors.New("it is needed, but it is on another device")
		}
		return nil
	}
	in, err := v.inode(s.journalIno)
	if err != nil {
		return err
	}
	j := &journal{v: v, m: newExtentMap(v, in), revoked: map[uint64]uint32{}}
	b := make([]byte, s.blockSize)
	if err := j.read(0, b); err != nil {
		return fmt.Errorf("superblock: %w", err)
	}
	kind := be.Uint32(b[4:])
	if be.Uint32(b) != journalMagic || kind != journalSuperV1 && kind != journalSuperV2 {
		return errors.New("superblock: the magic number is missing")
	}
	start := be.Uint32(b[28:])
	if start == 0 {
		return nil
	}
	j.length, j.first = be.Uint32(b[16:]), be.Uint32(b[20:])
	if kind == journalSuperV2 {
		j.incompat = be.Uint32(b[40:])
	}
	switch {
	case int64(be.Uint32(b[12:])) != s.blockSize:
		return fmt.Errorf("superblock: block size %d", be.Uint32(b[12:]))
	case j.incompat&^journalKnown != 0:
		return fmt.Errorf("superblock: feature %#x is not supported", j.incompat&^journalKnown)
	case j.incompat&journalFastCommit != 0:
		return errors.New("superblock: replaying fast commits is not supported")
	case int64(j.length)*s.blockSize > in.size() || j.first == 0 || j.first >= j.length || start < j.first || start >= j.length:
		return fmt.Errorf("superblock: log from block %d to %d, starting at %d", j.first, j.length, start)
	}
	if j.checksums() {
		if j.seed = crc(0xffffffff, b[48:64]); !sumOK(b[:1024], 0xfc, 0xffffffff) {
			return errors.New("superblock: checksum does not match")
		}
	}
	writes, err := j.scan(start, be.Uint32(b[24:]))
	if err != nil {
		return err
	}
	v.journalEnd = j.end
	v.overlay = map[uint64]logged{}
	for _, w := range writes {
		if tid, ok := j.revoked[w.target]; ok && int32(tid-w.tid) >= 0 {
			continue
		}
		v.overlay[w.target] = w.at
	}
	return nil
}

func (j *journal) checksums() bool { return j.incompat&(journalCsumV2|journalCsumV3) != 0 }

// sumOK checks a big-endian CRC-32C at b[at:] that was computed with zeroes in its place.
func sumOK(b []byte, at int, seed uint32) bool {
	want := be.Uint32(b[at:])
	c := crc(crc(crc(seed, b[:at]), []byte{0, 0, 0, 0}), b[at+4:])
	return c == want
}

// phys is where a block of the journal lies on disk.
func (j *journal) phys(n uint32) (uint64, error) {
	run, err := j.m.find(uint64(n))
	if err == nil && run.zero {
		err = errors.New("has a hole")
	}
	return run.phys, err
}

func (j *journal) read(n uint32, b []byte) error {
	p, err := j.phys(n)
	if err != nil {
		return err
	}
	return j.v.rawAt(b, int64(p)*j.v.super.blockSize)
}

// next is the block after n: the log is a ring.
func (j *journal) next(n uint32) uint32 {
	if n++; n >= j.length {
		return j.first
	}
	return n
}

// scan reads transactions until the first that is not complete.
func (j *journal) scan(at, tid uint32) (done []write, err error) {
	b := make([]byte, j.v.super.blockSize)
	var open []write
	var revoked []uint64
	for j.visited = 0; j.visited < j.length; j.visited++ {
		j.end = tid
		if err := j.read(at, b); err != nil {
			return nil, err
		}
		if be.Uint32(b) != journalMagic || be.Uint32(b[8:]) != tid {
			return done, nil
		}
		at = j.next(at)
		switch be.Uint32(b[4:]) {
		case journalDescriptor:
			if j.checksums() && !sumOK(b, len(b)-4, j.seed) {
				return done, nil
			}
			if open, at, err = j.descriptor(b, at, tid, open); err != nil {
				return nil, err
			}
		case journalRevoke:
			if j.checksums() && !sumOK(b, len(b)-4, j.seed) {
				return done, nil
			}
			if revoked, err = j.revoke(b, revoked); err != nil {
				return nil, err
			}
		case journalCommit:
			if j.checksums() && !sumOK(b, 16, j.seed) {
				return done, nil
			}
			for _, w := range open {
				if w.target == damaged {
					return nil, fmt.Errorf("a block of transaction %d is damaged: its checksum does not match", tid)
				}
			}
			done = append(done, open...)
			for _, r := range revoked {
				j.revoked[r] = tid
			}
			open, revoked = open[:0], revoked[:0]
			tid++
		default:
			return done, nil
		}
	}
	return done, nil
}

// descriptor reads the tags of a descriptor block; the blocks they describe follow it.
func (j *journal) descriptor(b []byte, at, tid uint32, out []write) ([]write, uint32, error) {
	end := len(b)
	if j.checksums() {
		end -= 4
	}
	size := 8
	switch {
	case j.incompat&journalCsumV3 != 0:
		size = 16
	case j.incompat&journal64Bit != 0:
		size = 12
	}
	if j.incompat&(journalCsumV3|journalCsumV2) == journalCsumV2 {
		size += 2
	}
	data := make([]byte, len(b))
	for o := 12; o+size <= end; {
		t := b[o:]
		target := uint64(be.Uint32(t))
		flags := uint32(be.Uint16(t[6:]))
		if j.incompat&journalCsumV3 != 0 {
			flags = be.Uint32(t[4:])
		}
		if j.incompat&journal64Bit != 0 {
			target |= uint64(be.Uint32(t[8:])) << 32
		}
		o += size
		if flags&tagSameUUID == 0 {
			o += 16
		}
		if target >= j.v.super.blocks {
			return nil, 0, fmt.Errorf("transaction %d writes block %d of %d", tid, target, j.v.super.blocks)
		}
		if j.visited++; j.visited >= j.length {
			return nil, 0, errors.New("a transaction is longer than the log")
		}
		p, err := j.phys(at)
		if err != nil {
			return nil, 0, err
		}
		if j.incompat&journalCsumV3 != 0 {
			if err := j.v.rawAt(data, int64(p)*j.v.super.blockSize); err != nil {
				return nil, 0, err
			}
			var n [4]byte
			be.PutUint32(n[:], tid)
			if crc(crc(j.seed, n[:]), data) != be.Uint32(t[12:]) {
				// Of no matter if the transaction was never committed.
				target = damaged
			}
		}
		out = append(out, write{target, tid, logged{p, flags&tagEscape != 0}})
		at = j.next(at)
		if flags&tagLast != 0 {
			break
		}
	}
	return out, at, nil
}

// damaged stands for the target of a block whose checksum is wrong.
const damaged = 1<<64 - 1

func (j *journal) revoke(b []byte, out []uint64) ([]uint64, error) {
	end := int(be.Uint32(b[12:]))
	size := 4
	if j.incompat&journal64Bit != 0 {
		size = 8
	}
	limit := len(b)
	if j.checksums() {
		limit -= 4
	}
	if end < 16 || end > limit {
		return nil, fmt.Errorf("revoke block of %d bytes", end)
	}
	for o := 16; o+size <= end; o += size {
		r := uint64(be.Uint32(b[o:]))
		if size == 8 {
			r = be.Uint64(b[o:])
		}
		if j.revokes++; j.revokes > maxRevokes {
			return nil, fmt.Errorf("more than %d revoked blocks", maxRevokes)
		}
		out = append(out, r)
	}
	return out, nil
}
