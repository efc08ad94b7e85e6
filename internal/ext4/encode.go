package ext4

import (
	"math/bits"
	"slices"
)

// Dirty lists, in order, the metadata blocks that changed since the last [FS.Commit].
func (fs *FS) Dirty() []uint64 {
	out := make([]uint64, 0, len(fs.dirty)+1)
	for b := range fs.dirty {
		out = append(out, b)
	}
	// The superblock counts free blocks and inodes: any change is a change of it.
	if _, ok := fs.dirty[0]; !ok && len(out) > 0 {
		out = append(out, 0)
	}
	slices.Sort(out)
	return out
}

// Block fills p, which must be [BlockSize] bytes, with metadata block lba. A block that holds
// no metadata, or is a directory's or a file's no more, comes out as zeroes.
func (fs *FS) Block(lba uint64, p []byte) {
	b := p[:BlockSize]
	clear(b)
	if lba >= fs.lay.blocks {
		return
	}
	if raw, ok := fs.replayed[lba]; ok && fs.foreign(lba) {
		copy(b, raw)
		return
	}
	if o, ok := fs.zone[lba]; ok {
		switch o.kind {
		case dirBlock:
			fs.encodeDir(o.in.dir, o.idx, b)
		case treeBlock:
			fs.encodeExtentBlock(o.in, int(o.idx), b)
		case xattrBlock:
			fs.encodeXattrBlock(o.in, b)
		case sharedBlock:
			fs.shared[lba].encode(fs, lba, b)
		}
		return
	}
	l := &fs.lay
	g, off := int(lba/groupBlocks), int(lba%groupBlocks)
	switch {
	case off < l.baseMeta(g):
		if off > 0 {
			fs.encodeDescs(off-1, b)
		} else if g > 0 {
			fs.encodeSuper(g, b)
		} else {
			fs.encodeBoot(b)
			if fs.super != nil {
				fs.patchSuper(b[1024:])
			} else {
				fs.encodeSuper(0, b[1024:])
			}
		}
	case lba >= l.blockMap && lba < l.blockMap+uint64(l.groups):
		fs.encodeBlockMap(int(lba-l.blockMap), b)
	case lba >= l.inodeMap && lba < l.inodeMap+uint64(l.groups):
		fs.encodeInodeMap(int(lba-l.inodeMap), b)
	case lba == l.journal:
		if fs.journal != nil {
			copy(b, fs.journal)
		} else {
			encodeJournal(b)
		}
	default:
		if g, ok := l.tableAt(lba); ok {
			first := uint32(g*groupInodes) + uint32(lba-l.inodeTables[g])*inodesPerBlock + 1
			for i := range uint32(inodesPerBlock) {
				raw := b[i*inodeSize : (i+1)*inodeSize]
				if in := fs.inode(first + i); in != nil {
					fs.encodeInode(in, raw)
				} else if first+i < firstIno {
					fs.encodeInode(&inode{ino: first + i}, raw)
				}
			}
		}
	}
}

// inodeSeed seeds the checksums of all that belongs to an inode: its number, then its
// generation, which is 0 where the kernel did not make it.
func (fs *FS) inodeSeed(in *inode) uint32 {
	var t [8]byte
	le.PutUint32(t[:], in.ino)
	if in.raw != nil {
		copy(t[4:], in.raw[0x64:0x68])
	}
	return crc(fs.seed, t[:])
}

// putTime writes seconds to b[at:], and the bits that do not fit there with the nanoseconds to
// b[extra:].
func putTime(b []byte, at, extra int, t stamp) {
	le.PutUint32(b[at:], uint32(t.sec))
	le.PutUint32(b[extra:], t.nsec<<2|uint32((t.sec-int64(int32(t.sec)))>>32&3))
}

func (fs *FS) encodeInode(in *inode, b []byte) {
	if in.raw != nil {
		fs.patchInode(in, b)
		return
	}
	le.PutUint16(b[0x80:], 32)       // i_extra_isize: all fields up to the project ID
	putTime(b, 0x90, 0x94, in.mtime) // birth
	in.putAttrs(b)
	in.putBlocks(b)
	var flags uint32
	switch in.mode & modeType {
	case modeSymlink:
		if len(in.extents) == 0 {
			copy(b[0x28:0x64], in.link)
		} else {
			flags = flagExtents
			encodeExtentRoot(in, b[0x28:])
		}
	case modeChar, modeBlock:
		if in.major < 256 && in.minor < 256 {
			le.PutUint32(b[0x28:], in.major<<8|in.minor)
		} else {
			le.PutUint32(b[0x2c:], in.minor&0xff|in.major<<8|in.minor&^0xff<<12)
		}
	case modeRegular, modeDir:
		flags = flagExtents
		if in.dir != nil && in.dir.nodes != nil {
			flags |= flagIndex
		}
		encodeExtentRoot(in, b[0x28:])
	}
	le.PutUint32(b[0x20:], flags)
	encodeInodeXattrs(in, b)
	fs.sumInode(in, b)
}

// putAttrs writes what does not depend on where blocks lie.
func (in *inode) putAttrs(b []byte) {
	le.PutUint16(b, in.mode)
	le.PutUint16(b[2:], uint16(in.uid))
	le.PutUint16(b[0x78:], uint16(in.uid>>16))
	le.PutUint16(b[0x18:], uint16(in.gid))
	le.PutUint16(b[0x7a:], uint16(in.gid>>16))
	le.PutUint32(b[4:], uint32(in.size))
	le.PutUint32(b[0x6c:], uint32(in.size>>32))
	putTime(b, 0x08, 0x8c, in.atime)
	putTime(b, 0x0c, 0x84, in.ctime)
	putTime(b, 0x10, 0x88, in.mtime)
	links := in.nlink
	if in.dir != nil && links >= maxLinks {
		links = 1 // dir_nlink: not counted
	}
	le.PutUint16(b[0x1a:], uint16(links))
}

// putBlocks writes where the attributes are that the inode cannot hold, and how many blocks it
// has in all.
func (in *inode) putBlocks(b []byte) {
	blocks := uint64(len(in.tree))
	for _, e := range in.extents {
		blocks += uint64(e.n)
	}
	if in.xblock != 0 {
		blocks++
	}
	le.PutUint32(b[0x68:], uint32(in.xblock))
	le.PutUint16(b[0x76:], uint16(in.xblock>>32))
	sectors := blocks * (BlockSize / 512)
	le.PutUint32(b[0x1c:], uint32(sectors))
	le.PutUint16(b[0x74:], uint16(sectors>>32))
}

// sumInode writes an inode's checksum, whose own place counts as zeroes.
func (fs *FS) sumInode(in *inode, b []byte) {
	le.PutUint16(b[0x7c:], 0)
	le.PutUint16(b[0x82:], 0)
	c := crc(fs.inodeSeed(in), b[:inodeSize])
	le.PutUint16(b[0x7c:], uint16(c))
	le.PutUint16(b[0x82:], uint16(c>>16))
}

func (fs *FS) encodeBlockMap(g int, b []byte) {
	for i := range groupBlocks / 64 {
		le.PutUint64(b[i*8:], fs.blockBits[g*groupBlocks/64+i])
	}
}

func (fs *FS) encodeInodeMap(g int, b []byte) {
	for i := range groupInodes / 64 {
		le.PutUint64(b[i*8:], fs.inodeBits[g*groupInodes/64+i])
	}
	for i := groupInodes / 8; i < BlockSize; i++ {
		b[i] = 0xff
	}
}

// blocksUninit reports whether the kernel can tell the group's block bitmap without reading
// it. The last group's must always be on disk.
func (fs *FS) blocksUninit(g int) bool {
	return g != fs.lay.groups-1 && fs.groupStat[g].usedBlocks == fs.lay.baseMeta(g)
}

// unusedInodes counts the inodes at the end of a group's table that were never used.
func (fs *FS) unusedInodes(g int) int {
	w := fs.inodeBits[g*groupInodes/64 : (g+1)*groupInodes/64]
	for i := len(w) - 1; i >= 0; i-- {
		if w[i] != 0 {
			return groupInodes - 64*i - bits.Len64(w[i])
		}
	}
	return groupInodes
}

// Flags of a group descriptor.
const (
	descInodesUninit = 1
	descBlocksUninit = 2
	descInodesZeroed = 4
)

// encodeDescs writes block k of the group descriptors.
func (fs *FS) encodeDescs(k int, b []byte) {
	for g := k * descsPerBlock; g < min((k+1)*descsPerBlock, fs.lay.groups); g++ {
		fs.encodeDesc(g, b[(g-k*descsPerBlock)*descSize:][:descSize])
	}
}

func (fs *FS) encodeDesc(g int, b []byte) {
	st := fs.groupStat[g]
	le.PutUint32(b, uint32(fs.lay.blockMap)+uint32(g))
	le.PutUint32(b[4:], uint32(fs.lay.inodeMap)+uint32(g))
	le.PutUint32(b[8:], uint32(fs.lay.inodeTables[g]))
	le.PutUint16(b[0x0c:], uint16(groupBlocks-st.usedBlocks))
	le.PutUint16(b[0x0e:], uint16(groupInodes-st.usedInodes))
	le.PutUint16(b[0x10:], uint16(st.dirs))
	le.PutUint16(b[0x1c:], uint16(fs.unusedInodes(g)))
	// Tables read as zeroes where nothing was written, so the kernel need not write them.
	flags := uint16(descInodesZeroed)
	var t [BlockSize]byte
	if fs.blocksUninit(g) {
		flags |= descBlocksUninit
	} else {
		fs.encodeBlockMap(g, t[:])
		c := crc(fs.seed, t[:])
		le.PutUint16(b[0x18:], uint16(c))
		le.PutUint16(b[0x38:], uint16(c>>16))
	}
	if st.usedInodes == 0 {
		flags |= descInodesUninit
	} else {
		fs.encodeInodeMap(g, t[:])
		c := crc(fs.seed, t[:groupInodes/8])
		le.PutUint16(b[0x1a:], uint16(c))
		le.PutUint16(b[0x3a:], uint16(c>>16))
	}
	le.PutUint16(b[0x12:], flags)
	var n [4]byte
	le.PutUint32(n[:], uint32(g))
	le.PutUint16(b[0x1e:], uint16(crc(crc(fs.seed, n[:]), b[:descSize])))
}

// encodeSuper writes the superblock, or its copy at the start of group g.
func (fs *FS) encodeSuper(g int, b []byte) {
	b = b[:1024]
	p32 := func(o int, v uint32) { le.PutUint32(b[o:], v) }
	p16 := func(o int, v uint16) { le.PutUint16(b[o:], v) }
	p32(0x00, uint32(fs.lay.groups*groupInodes))
	p32(0x04, uint32(fs.lay.blocks))
	p32(0x0c, uint32(fs.freeBlocks))
	p32(0x10, uint32(fs.freeInodes))
	p32(0x18, 2) // log2(block size) - 10
	p32(0x1c, 2) // the same for clusters
	p32(0x20, groupBlocks)
	p32(0x24, groupBlocks)
	p32(0x28, groupInodes)
	p16(0x36, 0xffff) // mounts until a check: never
	p16(0x38, superMagic)
	p16(0x3a, 1) // clean
	p16(0x3c, 1) // on errors: continue
	p32(0x4c, 1) // dynamic revision
	p32(0x54, firstIno)
	p16(0x58, inodeSize)
	p16(0x5a, uint16(g))
	p32(0x5c, featCompat)
	p32(0x60, featIncompat)
	p32(0x64, featROCompat)
	copy(b[0x68:], fixedUUID[:])
	p32(0xe0, inoJournal)
	copy(b[0xec:], fixedUUID[:]) // hash seed
	b[0xfc] = hashVersion
	p16(0xfe, descSize)
	p16(0x15c, 32)
	p16(0x15e, 32)
	p32(0x160, flagUnsigned)
	b[0x174] = byte(bits.Len(uint(fs.lay.groups - 1))) // one flexible group spans the disk
	b[0x175] = 1                                       // checksums are CRC-32C
	p32(0x3fc, crc(0xffffffff, b[:0x3fc]))
}

const superMagic = 0xef53

// encodeJournal writes the superblock of an empty journal ("Journal (jbd2)", Super Block).
func encodeJournal(b []byte) {
	be.PutUint32(b, journalMagic)
	be.PutUint32(b[4:], journalSuperV2)
	be.PutUint32(b[12:], BlockSize)
	be.PutUint32(b[16:], journalBlocks)
	be.PutUint32(b[20:], 1) // first block of the log
	be.PutUint32(b[24:], 1) // first transaction expected
	copy(b[48:], fixedUUID[:])
	be.PutUint32(b[64:], 1) // one filesystem uses it
}

// The 1024 bytes before the superblock are free for boot code. They hold what cannot be told
// from the filesystem itself: where its allocators go on. With it [Rebuild] gives the very
// model that wrote the blocks.
const bootMagic = "vic ext4 allocators\n"

func (fs *FS) encodeBoot(b []byte) {
	copy(b, bootMagic)
	o := 32
	le.PutUint32(b[o:], FormatVersion)
	if fs.wrapped {
		le.PutUint32(b[o+4:], 1)
	}
	le.PutUint64(b[o+8:], fs.metaNext)
	le.PutUint64(b[o+16:], fs.dataNext)
	le.PutUint32(b[o+24:], fs.dirInoNext)
	le.PutUint32(b[o+28:], fs.fileInoNext)
	le.PutUint32(b[o+32:], crc(0xffffffff, b[:o+32]))
}
