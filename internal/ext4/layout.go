package ext4

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"sync"
)

const (
	// BlockSize is the size in bytes of every block this package writes.
	BlockSize = 4096
	// FormatVersion changes whenever the same layers would give other bytes than before. Names
	// derived from layers (content identifiers of disks, keys of stores) should include it.
	FormatVersion = 2
	// GroupBlocks is the number of blocks in a block group: filesystems have whole groups.
	GroupBlocks = groupBlocks
	// RootDir is the directory that holds the image's tree.
	RootDir = "rootfs"
)

const (
	groupBlocks     = 8 * BlockSize // one block of bitmap
	groupBytes      = groupBlocks * BlockSize
	groupInodes     = 8192
	inodeSize       = 256
	inodesPerBlock  = BlockSize / inodeSize
	inodeTableSize  = groupInodes / inodesPerBlock
	journalBlocks   = 4096 // 16 MiB
	grainBlocks     = 16   // 64 KiB, the coarsest grain of the disk formats in use
	descSize        = 64
	descsPerBlock   = BlockSize / descSize
	maxBytes        = 1 << 40
	maxExtentBlocks = 32768 // more would mean "unwritten"
	maxFileBlocks   = 1<<32 - 1
	maxLinks        = 65000

	inoRoot      = 2
	inoJournal   = 8
	inoLostFound = 11
	firstIno     = 11
)

// The features of every filesystem this package makes. There is no resize_inode (the kernel
// grows such a filesystem online with meta_bg), no orphan_file and no inline_data, so that
// every kernel and e2fsprogs since 2014 can use it.
const (
	compatHasJournal = 0x4
	compatExtAttr    = 0x8
	compatDirIndex   = 0x20

	incompatFiletype = 0x2
	incompatRecover  = 0x4
	incompatExtents  = 0x40
	incompat64Bit    = 0x80
	incompatFlexBG   = 0x200

	roCompatSparseSuper  = 0x1
	roCompatLargeFile    = 0x2
	roCompatHugeFile     = 0x8
	roCompatDirNlink     = 0x20
	roCompatExtraIsize   = 0x40
	roCompatMetadataCsum = 0x400

	featCompat   = compatHasJournal | compatExtAttr | compatDirIndex
	featIncompat = incompatFiletype | incompatExtents | incompat64Bit | incompatFlexBG
	featROCompat = roCompatSparseSuper | roCompatLargeFile | roCompatHugeFile | roCompatDirNlink | roCompatExtraIsize | roCompatMetadataCsum
)

const (
	flagIndex   = 0x1000  // hashed directory
	flagExtents = 0x80000 // i_block holds an extent tree
)

// The filesystem's UUID also seeds all its checksums and its directory hash. It is fixed: two
// containers never see each other's disks, and equal layers must give equal bytes.
var fixedUUID = [16]byte{'v', 'i', 'c', '-', 'i', 'm', 0x40, 'g', 0x80, '-', 'e', 'x', 't', '4', '-', '1'}

var (
	le = binary.LittleEndian
	be = binary.BigEndian
	// Made when it is first asked for: it takes a good part of a container VM's start.
	castagnoli = sync.OnceValue(func() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) })
)

// crc is CRC-32C as ext4 uses it: the seed is the running value and nothing is inverted.
func crc(seed uint32, p []byte) uint32 { return ^crc32.Update(^seed, castagnoli(), p) }

// Geometry is what a new filesystem is made from.
type Geometry struct {
	// Bytes is the size of the filesystem: a multiple of 128 MiB (one block group), from
	// 128 MiB to 1 TiB.
	Bytes int64
}

func (g Geometry) check() error {
	switch {
	case g.Bytes < groupBytes:
		return fmt.Errorf("ext4: Geometry.Bytes is %d: the smallest filesystem is 128 MiB (%d)", g.Bytes, int64(groupBytes))
	case g.Bytes > maxBytes:
		return fmt.Errorf("ext4: Geometry.Bytes is %d: the largest filesystem is 1 TiB (%d)", g.Bytes, int64(maxBytes))
	case g.Bytes%groupBytes != 0:
		return fmt.Errorf("ext4: Geometry.Bytes is %d: it must be a multiple of 128 MiB, for example %d", g.Bytes, (g.Bytes/groupBytes+1)*groupBytes)
	}
	return nil
}

// layout says where the fixed structures lie. Metadata is gathered at the front of the disk:
//
//	superblock, descriptors | block bitmaps | inode bitmaps | inode tables | journal | metadata zone | data
//
// interrupted only by the backup superblocks at the start of some groups.
type layout struct {
	blocks      uint64
	groups      int
	descBlocks  int // blocks of group descriptors
	blockMap    uint64
	inodeMap    uint64
	inodeTables []uint64
	journal     uint64
	metaStart   uint64 // directory blocks, extent tree blocks, attribute blocks
	dataStart   uint64
}

// hasBackup reports whether group g starts with a copy of the superblock and the descriptors
// (sparse_super: groups 0, 1 and the powers of 3, 5 and 7).
func hasBackup(g int) bool {
	if g <= 1 {
		return true
	}
	for _, b := range [...]int{3, 5, 7} {
		p := b
		for p < g {
			p *= b
		}
		if p == g {
			return true
		}
	}
	return false
}

func roundUp(x, to uint64) uint64 { return (x + to - 1) / to * to }

// newLayout computes the layout and reports every fixed run of blocks to mark.
func newLayout(bytes int64, mark func(start, n uint64)) layout {
	l := layout{blocks: uint64(bytes / BlockSize), groups: int(bytes / groupBytes)}
	l.descBlocks = (l.groups + descsPerBlock - 1) / descsPerBlock
	head := uint64(1 + l.descBlocks)
	for g := range l.groups {
		if hasBackup(g) {
			mark(uint64(g)*groupBlocks, head)
		}
	}
	// place finds room for n blocks at or after p, on a grain, clear of backup superblocks.
	place := func(p, n uint64) uint64 {
		for {
			p = roundUp(p, grainBlocks)
			clear := true
			for g := p / groupBlocks; g <= (p+n-1)/groupBlocks; g++ {
				if start := g * groupBlocks; hasBackup(int(g)) && start < p+n && p < start+head {
					p, clear = start+head, false
					break
				}
			}
			if clear {
				mark(p, n)
				return p
			}
		}
	}
	l.blockMap = place(head, uint64(l.groups))
	l.inodeMap = place(l.blockMap+uint64(l.groups), uint64(l.groups))
	p := l.inodeMap + uint64(l.groups)
	for range l.groups {
		at := place(p, inodeTableSize)
		l.inodeTables = append(l.inodeTables, at)
		p = at + inodeTableSize
	}
	l.journal = place(p, journalBlocks)
	l.metaStart = roundUp(l.journal+journalBlocks, grainBlocks)
	l.dataStart = l.metaStart + min(16384, roundUp(l.blocks/32, grainBlocks))
	return l
}

// inodeBlock is the block of the inode table that holds ino.
func (l *layout) inodeBlock(ino uint32) uint64 {
	i := ino - 1
	return l.inodeTables[i/groupInodes] + uint64(i%groupInodes)/inodesPerBlock
}

// tableAt finds the inode table that lba belongs to.
func (l *layout) tableAt(lba uint64) (group int, ok bool) {
	lo, hi := 0, l.groups
	for lo < hi {
		mid := (lo + hi) / 2
		if l.inodeTables[mid] <= lba {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo == 0 || lba >= l.inodeTables[lo-1]+inodeTableSize {
		return 0, false
	}
	return lo - 1, true
}

// baseMeta counts the blocks of group g that its own position alone implies.
func (l *layout) baseMeta(g int) int {
	if hasBackup(g) {
		return 1 + l.descBlocks
	}
	return 0
}
