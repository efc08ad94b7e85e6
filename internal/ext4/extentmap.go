package ext4

import (
	"errors"
	"fmt"
	"sync"
)

// extentMap finds a file's blocks. It keeps one leaf of the extent tree and is safe for
// concurrent use.
type extentMap struct {
	v  *volume
	in *rawInode

	mu     sync.Mutex
	leaf   []extent
	lo, hi uint64 // logical blocks that leaf speaks for
}

func newExtentMap(v *volume, in *rawInode) *extentMap { return &extentMap{v: v, in: in} }

// blockRun is a run of a file's blocks that are alike.
type blockRun struct {
	phys uint64
	n    uint64 // more than 0
	zero bool   // a hole, or allocated and never written
}

const unwrittenBias = maxExtentBlocks

// find says where logical block n lies, and how many follow it there.
func (m *extentMap) find(n uint64) (blockRun, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if n >= 1<<32 {
		return blockRun{}, fmt.Errorf("inode %d: block %d is beyond the largest file", m.in.ino, n)
	}
	if m.leaf == nil || n < m.lo || n >= m.hi {
		if err := m.load(n); err != nil {
			m.leaf = nil
			return blockRun{}, fmt.Errorf("inode %d: %w", m.in.ino, err)
		}
	}
	next := m.hi
	for _, e := range m.leaf {
		length := uint64(e.n)
		unwritten := length > unwrittenBias
		if unwritten {
			length -= unwrittenBias
		}
		start := uint64(e.logical)
		if n < start {
			next = start
			break
		}
		if n < start+length {
			return blockRun{phys: e.phys + n - start, n: start + length - n, zero: unwritten}, nil
		}
	}
	return blockRun{n: next - n, zero: true}, nil
}

var errNoExtents = errors.New("the file has no extents but a block map of ext2, which is not supported")

// load walks from the inode to the leaf that speaks for logical block n.
func (m *extentMap) load(n uint64) error {
	if m.in.flags()&flagExtents == 0 {
		return errNoExtents
	}
	node := m.in.b[0x28 : 0x28+60]
	depth := int(le.Uint16(node[6:]))
	if depth > 5 {
		return fmt.Errorf("extent tree of depth %d", depth)
	}
	m.lo, m.hi = 0, 1<<32
	var buf []byte
	for {
		entries := int(le.Uint16(node[2:]))
		if le.Uint16(node) != extentMagic || int(le.Uint16(node[6:])) != depth || 12+12*entries > len(node) {
			return errors.New("damaged extent tree")
		}
		if depth == 0 {
			return m.parse(node, entries)
		}
		child, found, prev := uint64(0), false, int64(m.lo)-1
		for i := range entries {
			e := node[12+12*i:]
			start := uint64(le.Uint32(e))
			if start > n {
				m.hi = min(m.hi, start)
				break
			}
			if int64(start) <= prev {
				return errors.New("extent tree is not in order")
			}
			m.lo, prev, found = start, int64(start), true
			child = uint64(le.Uint32(e[4:])) | uint64(le.Uint16(e[8:]))<<32
		}
		if !found {
			m.leaf = []extent{}
			return nil
		}
		if buf == nil {
			buf = make([]byte, m.v.super.blockSize)
		}
		if err := m.readNode(child, buf); err != nil {
			return err
		}
		node = buf
		depth--
	}
}

// readNode reads a block of the tree.
func (m *extentMap) readNode(lba uint64, b []byte) error {
	if err := m.v.readBlock(lba, b); err != nil {
		return fmt.Errorf("extent tree: %w", err)
	}
	if m.v.super.checksums {
		at := 12 + 12*int(le.Uint16(b[4:]))
		if at+4 > len(b) || crc(m.in.seed, b[:at]) != le.Uint32(b[at:]) {
			return fmt.Errorf("extent block %d: checksum does not match", lba)
		}
	}
	return nil
}

func (m *extentMap) parse(node []byte, entries int) error {
	m.leaf = make([]extent, entries)
	end := m.lo
	for i := range m.leaf {
		b := node[12+12*i:]
		e := extent{logical: le.Uint32(b), n: uint32(le.Uint16(b[4:])), phys: uint64(le.Uint32(b[8:])) | uint64(le.Uint16(b[6:]))<<32}
		length := uint64(e.n)
		if length > unwrittenBias {
			length -= unwrittenBias
		}
		if length == 0 || uint64(e.logical) < end || e.phys >= m.v.super.blocks || length > m.v.super.blocks-e.phys {
			return errors.New("extent is empty, out of order or outside the filesystem")
		}
		end = uint64(e.logical) + length
		if end > m.hi {
			return errors.New("extent reaches into the next")
		}
		m.leaf[i] = e
	}
	return nil
}

// readAt fills p from byte off, holes as zeroes. The caller keeps it within the file's size.
func (m *extentMap) readAt(p []byte, off int64) error {
	bs := m.v.super.blockSize
	for len(p) > 0 {
		run, err := m.find(uint64(off / bs))
		if err != nil {
			return err
		}
		within := off % bs
		n := int64(len(p))
		// Not multiplied: a hole may be longer than its bytes can be counted.
		if k := uint64((within + n + bs - 1) / bs); run.n < k {
			n = int64(run.n)*bs - within
		}
		if run.zero {
			clear(p[:n])
		} else if err := m.v.readAt(p[:n], int64(run.phys)*bs+within); err != nil {
			return fmt.Errorf("inode %d: %w", m.in.ino, err)
		}
		p, off = p[n:], off+n
	}
	return nil
}
