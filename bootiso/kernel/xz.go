package kernel

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"hash/crc64"

	"github.com/ulikunitz/xz/lzma"
)

// Parts of the .xz format (xz-file-format.txt 1.2.1, sections in brackets).
// Kernels are packed as one block whose filters are x86 BCJ and LZMA2
// (scripts/xz_wrap.sh); the xz package knows LZMA2 alone.
const (
	xzMagic      = "\xfd7zXZ\x00" // [2.1.1.1]
	xzHeaderSize = 12             // [2.1.1]
	filterX86    = 0x04           // [5.3.2]
	filterLZMA2  = 0x21           // [5.3.1]
)

// unxz unpacks the first block of an xz stream, which must yield size bytes.
func unxz(p []byte, size int64) ([]byte, error) {
	if len(p) < xzHeaderSize+8 {
		return nil, errors.New("stream header: too short")
	}
	le := binary.LittleEndian
	flags := p[6:8] // [2.1.1.2]
	if le.Uint32(p[8:]) != crc32.ChecksumIEEE(flags) {
		return nil, errors.New("stream header: wrong CRC32")
	}
	check, err := xzCheck(flags)
	if err != nil {
		return nil, err
	}
	p = p[xzHeaderSize:]
	// [3.1.1]: the real size of the block header; 0 would be the index.
	n := (int(p[0]) + 1) * 4
	if p[0] == 0 || n+8 > len(p) {
		return nil, fmt.Errorf("block header: %d bytes of %d", n, len(p))
	}
	head := p[:n-4]
	if le.Uint32(p[n-4:]) != crc32.ChecksumIEEE(head) {
		return nil, errors.New("block header: wrong CRC32")
	}
	dict, x86, err := xzFilters(head)
	if err != nil {
		return nil, fmt.Errorf("block header: %w", err)
	}
	in := bytes.NewReader(p[n:])
	// A dictionary larger than all that there is to say is of no use.
	dict = max(lzma.MinDictCap, min(dict, size))
	r, err := lzma.Reader2Config{DictCap: int(dict)}.NewReader2(in)
	if err != nil {
		return nil, err
	}
	b, err := readExactly(r, size)
	if err != nil {
		return nil, err
	}
	if x86 {
		undoX86(b)
	}
	// [3.3], [3.4]: padding to a multiple of four, then the check.
	used := len(p) - n - in.Len()
	rest := p[n+used+(4-used%4)%4:]
	if check != nil {
		_, _ = check.Write(b)
		if sum := check.Sum(nil); !bytes.HasPrefix(rest, sum) {
			return nil, errors.New("the block's check does not match its contents")
		}
	}
	return b, nil
}

// leSum turns a checksum that Go writes big endian around.
type leSum struct{ hash.Hash }

func (s leSum) Sum(b []byte) []byte {
	sum := s.Hash.Sum(nil)
	for i := range sum {
		b = append(b, sum[len(sum)-1-i])
	}
	return b
}

// xzCheck returns what checks the contents of blocks [2.1.1.2], which may be
// nothing.
func xzCheck(flags []byte) (hash.Hash, error) {
	if flags[0] == 0 {
		switch flags[1] {
		case 0x00:
			return nil, nil
		case 0x01:
			return leSum{crc32.NewIEEE()}, nil
		case 0x04:
			return leSum{crc64.New(crc64.MakeTable(crc64.ECMA))}, nil
		case 0x0a:
			return sha256.New(), nil
		}
	}
	return nil, fmt.Errorf("stream header: unsupported flags % x", flags)
}

// xzFilters reads a block header without its CRC32 [3.1]: the size of the
// dictionary, and whether the x86 filter was applied.
func xzFilters(head []byte) (dict int64, x86 bool, err error) {
	flags := head[1] // [3.1.2]
	r := bytes.NewReader(head[2:])
	if flags&0x3c != 0 {
		return 0, false, fmt.Errorf("reserved flags 0x%02x", flags)
	}
	for _, bit := range []byte{0x40, 0x80} { // sizes, packed and unpacked
		if flags&bit != 0 {
			if _, err := binary.ReadUvarint(r); err != nil {
				return 0, false, err
			}
		}
	}
	last := int(flags & 3)
	for i := 0; i <= last; i++ {
		id, err := binary.ReadUvarint(r)
		if err != nil {
			return 0, false, err
		}
		n, err := binary.ReadUvarint(r)
		if err != nil {
			return 0, false, err
		}
		if n > uint64(r.Len()) {
			return 0, false, fmt.Errorf("filter 0x%02x: %d bytes of properties", id, n)
		}
		props := make([]byte, n)
		_, _ = r.Read(props)
		switch {
		case id == filterX86 && i == 0 && last == 1 && n == 0:
			x86 = true
		case id == filterLZMA2 && i == last && n == 1 && props[0] < 40:
			dict = int64(2|props[0]&1) << (props[0]/2 + 11)
		case id == filterLZMA2 && i == last && n == 1 && props[0] == 40:
			dict = 1<<32 - 1
		default:
			return 0, false, fmt.Errorf("filter 0x%02x with %d bytes of properties as number %d of %d is not supported", id, n, i+1, last+1)
		}
	}
	return dict, x86, nil
}

// undoX86 turns the absolute targets of x86 calls and jumps (opcodes e8 and
// e9) into relative ones again. The format is defined by its implementations:
// lib/xz/xz_dec_bcj.c of Linux and, there in the public domain, of XZ
// Embedded. mask has a bit for each of the last three bytes that was an
// opcode or might have been a target's highest byte.
func undoX86(b []byte) {
	high := func(c byte) bool { return c == 0x00 || c == 0xff }
	bits := [8]uint{0, 1, 2, 2, 3, 3, 3, 3}
	allowed := [8]bool{true, true, true, false, true, false, false, false}
	prev, mask := -1, uint(0)
	for i := 0; i < len(b)-4; i++ {
		if b[i]&0xfe != 0xe8 {
			continue
		}
		if gap := i - prev; gap > 3 {
			mask = 0
		} else {
			mask = mask << (gap - 1) & 7
			if mask != 0 && (!allowed[mask] || high(b[i+4-int(bits[mask])])) {
				prev, mask = i, mask<<1|1
				continue
			}
		}
		prev = i
		if !high(b[i+4]) {
			mask = mask<<1 | 1
			continue
		}
		src := binary.LittleEndian.Uint32(b[i+1:])
		dest := src - uint32(i+5)
		for mask != 0 {
			shift := bits[mask] * 8
			if !high(byte(dest >> (24 - shift))) {
				break
			}
			src = dest ^ (1<<(32-shift) - 1)
			dest = src - uint32(i+5)
		}
		dest &= 0x01ffffff
		dest |= -(dest & 0x01000000)
		binary.LittleEndian.PutUint32(b[i+1:], dest)
		i += 4
	}
}
