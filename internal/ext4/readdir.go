package ext4

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
)

// maxDirBytes bounds a directory that is read: room for a million entries with the longest names.
const maxDirBytes = 256 << 20

// readDir lists a directory, sorted, and refuses names that no filesystem can hold.
func (v *volume) readDir(in *rawInode) ([]DirEntry, error) {
	var out []DirEntry
	err := v.dirBlocks(in, func(n uint32, b []byte) error {
		return v.dirEntries(in, n, b, func(name string, ino uint32, typ byte) error {
			if name == "." || name == ".." {
				return nil
			}
			if err := checkName(name); err != nil {
				return err
			}
			out = append(out, DirEntry{name, ino, fileMode(typeMode(typ)) &^ 0o777})
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("directory %d: %w", in.ino, err)
	}
	slices.SortFunc(out, func(a, b DirEntry) int { return strings.Compare(a.Name, b.Name) })
	for i := 1; i < len(out); i++ {
		if out[i].Name == out[i-1].Name {
			return nil, fmt.Errorf("directory %d has %s twice", in.ino, quote(out[i].Name))
		}
	}
	// Filesystems without the filetype feature leave the type to the inode.
	if v.super.incompat&incompatFiletype == 0 {
		for i := range out {
			c, err := v.inode(out[i].Ino)
			if err != nil {
				return nil, err
			}
			out[i].Type = fileMode(c.mode()) & fs.ModeType
		}
	}
	return out, nil
}

// typeMode is the reverse of fileType.
func typeMode(t byte) uint16 {
	return [...]uint16{0, modeRegular, modeDir, modeChar, modeBlock, modeFIFO, modeSocket, modeSymlink}[min(t, 8)%8]
}

// dirBlocks calls fn for each block of a directory.
func (v *volume) dirBlocks(in *rawInode, fn func(n uint32, b []byte) error) error {
	bs := v.super.blockSize
	size := in.size()
	if size < 0 || size%bs != 0 || size > maxDirBytes || size > v.bytes {
		return fmt.Errorf("size %d: a multiple of %d up to %d is supported", size, bs, min(maxDirBytes, v.bytes))
	}
	m := newExtentMap(v, in)
	b := make([]byte, bs)
	for n := range uint32(size / bs) {
		run, err := m.find(uint64(n))
		if err != nil {
			return err
		}
		if run.zero {
			return fmt.Errorf("block %d is a hole", n)
		}
		if err := v.readBlock(run.phys, b); err != nil {
			return err
		}
		if err := fn(n, b); err != nil {
			return err
		}
	}
	return nil
}

// indexSum checks the checksum of a block of a hash tree's index, whose entries start at head.
func indexSum(seed uint32, b []byte, head int) bool {
	limit, count := int(le.Uint16(b[head:])), int(le.Uint16(b[head+2:]))
	tail := head + 8*limit
	if count > limit || tail+8 > len(b) {
		return false
	}
	c := crc(crc(seed, b[:head+8*count]), b[tail:tail+4])
	return crc(c, []byte{0, 0, 0, 0}) == le.Uint32(b[tail+4:])
}

// dirEntries calls fn for each entry of block n of a directory. Blocks of a hash tree's index look
// like blocks with nothing but unused entries, and may end with what is left of a checksum of
// entries.
func (v *volume) dirEntries(in *rawInode, n uint32, b []byte, fn func(name string, ino uint32, typ byte) error) error {
	end := len(b)
	head := 0
	if in.flags()&flagIndex != 0 {
		if n == 0 {
			head = 24 + int(b[29])
		} else if le.Uint32(b) == 0 && int(le.Uint16(b[4:])) == len(b) {
			head = 8
		}
	}
	if head > 0 {
		if v.super.checksums && (head+4 > len(b) || !indexSum(in.seed, b, head)) {
			return errors.New("checksum of the index does not match")
		}
	} else if tail := b[end-dirTail:]; v.super.checksums && le.Uint32(tail) == 0 && le.Uint16(tail[4:]) == dirTail && tail[6] == 0 && tail[7] == 0xde {
		end -= dirTail
		if crc(in.seed, b[:end]) != le.Uint32(tail[8:]) {
			return errors.New("checksum does not match")
		}
	}
	for o := 0; o < end; {
		if end-o < 8 {
			return errors.New("damaged entry")
		}
		e := b[o:]
		n, name := int(le.Uint16(e[4:])), int(e[6])
		if n < 8 || n%4 != 0 || o+n > end && o+n != len(b) || 8+name > n {
			return errors.New("damaged entry")
		}
		if ino := le.Uint32(e); ino != 0 {
			if 8+name > end-o {
				return errors.New("damaged entry")
			}
			if err := fn(string(e[8:8+name]), ino, e[7]); err != nil {
				return err
			}
		}
		o += n
	}
	return nil
}

// xattrs reads an inode's extended attributes, those in the inode first.
func (v *volume) xattrs(in *rawInode) ([]xattr, error) {
	var out []xattr
	var err error
	if at := 128 + in.extra(); len(in.b) > 128 && at+8 <= len(in.b) && at%4 == 0 && le.Uint32(in.b[at:]) == xattrMagic {
		if out, err = parseXattrs(in.b, at+4, at+4, out); err != nil {
			return nil, err
		}
	}
	blk := in.xattrBlock()
	if blk == 0 {
		return out, nil
	}
	b := make([]byte, v.super.blockSize)
	if err := v.readBlock(blk, b); err != nil {
		return nil, err
	}
	if le.Uint32(b) != xattrMagic || le.Uint32(b[8:]) != 1 {
		return nil, fmt.Errorf("block %d holds none", blk)
	}
	if v.super.checksums {
		want := le.Uint32(b[16:])
		le.PutUint32(b[16:], 0)
		var n [8]byte
		le.PutUint64(n[:], blk)
		if crc(crc(v.super.seed, n[:]), b) != want {
			return nil, fmt.Errorf("block %d: checksum does not match", blk)
		}
	}
	return parseXattrs(b, xattrBlockHead, 0, out)
}

// parseXattrs reads entries from b[at:] on; offsets of values count from b[origin].
func parseXattrs(b []byte, at, origin int, out []xattr) ([]xattr, error) {
	for {
		if at+4 > len(b) {
			return nil, errors.New("the list has no end")
		}
		if le.Uint32(b[at:]) == 0 {
			return out, nil
		}
		if at+16 > len(b) {
			return nil, errors.New("damaged entry")
		}
		e := b[at:]
		name, off, size := int(e[0]), origin+int(le.Uint16(e[2:])), int(le.Uint32(e[8:]))
		if le.Uint32(e[4:]) != 0 {
			return nil, errors.New("a value in an inode of its own (ea_inode) is not supported")
		}
		if 16+name > len(e) || size > len(b) || size > 0 && (off < at || off+size > len(b)) {
			return nil, errors.New("damaged entry")
		}
		x := xattr{index: e[1], name: string(e[16 : 16+name])}
		if size > 0 {
			x.value = string(b[off : off+size])
		}
		out = append(out, x)
		at += 16 + pad4(name)
	}
}
