package ext4

import (
	"fmt"
	"math/bits"
)

// NoSpaceError says that a layer does not fit.
type NoSpaceError struct {
	// Missing is how many bytes the filesystem would have to be larger, at least.
	Missing int64
	// Inodes is set where not bytes but inodes ran out; a larger filesystem has more of them.
	Inodes bool
}

func (e *NoSpaceError) Error() string {
	if e.Inodes {
		return fmt.Sprintf("the filesystem has no inode left: make it larger (Geometry.Bytes; each 128 MiB adds %d inodes)", groupInodes)
	}
	return fmt.Sprintf("the filesystem is full: make it larger by at least %d bytes (Geometry.Bytes)", e.Missing)
}

// bitmap is a set of numbers below 64*len.
type bitmap []uint64

func (b bitmap) has(i uint64) bool { return b[i/64]>>(i%64)&1 == 1 }

// fill sets or clears n bits from start and returns how many changed.
func (b bitmap) fill(start, n uint64, on bool) (changed int) {
	for n > 0 {
		off := start % 64
		c := min(64-off, n)
		mask := ^uint64(0) >> (64 - c) << off
		w := &b[start/64]
		if on {
			changed += bits.OnesCount64(mask &^ *w)
			*w |= mask
		} else {
			changed += bits.OnesCount64(mask & *w)
			*w &^= mask
		}
		start += c
		n -= c
	}
	return changed
}

// nextFree is the first clear bit at or after i, or limit.
func (b bitmap) nextFree(i, limit uint64) uint64 {
	for i < limit {
		w := ^b[i/64] >> (i % 64)
		if w != 0 {
			return min(i+uint64(bits.TrailingZeros64(w)), limit)
		}
		i = (i/64 + 1) * 64
	}
	return limit
}

// nextUsed is the first set bit at or after i, or limit.
func (b bitmap) nextUsed(i, limit uint64) uint64 {
	for i < limit {
		w := b[i/64] >> (i % 64)
		if w != 0 {
			return min(i+uint64(bits.TrailingZeros64(w)), limit)
		}
		i = (i/64 + 1) * 64
	}
	return limit
}

// group counts what a group descriptor reports.
type group struct {
	usedBlocks, usedInodes, dirs int
}

// Used reports whether a block of the disk is in use, for metadata or for a
// file; what is in any other means nothing.
func (fs *FS) Used(block uint64) bool {
	return block < fs.lay.blocks && fs.blockBits.has(block)
}

// markBlocks sets or clears a run of blocks in the block bitmap.
func (fs *FS) markBlocks(start, n uint64, used bool) (changed int) {
	for n > 0 {
		g := start / groupBlocks
		c := min((g+1)*groupBlocks-start, n)
		d := fs.blockBits.fill(start, c, used)
		changed += d
		if !used {
			d = -d
		}
		fs.groupStat[g].usedBlocks += d
		if used {
			fs.freeBlocks -= uint64(d)
		} else {
			fs.freeBlocks += uint64(-d)
		}
		fs.dirtyGroup(int(g))
		fs.dirty[fs.lay.blockMap+g] = struct{}{}
		fs.forget(start, c)
		start += c
		n -= c
	}
	return changed
}

func (fs *FS) markInode(ino uint32, used bool) {
	i := uint64(ino - 1)
	g := int(i / groupInodes)
	d := fs.inodeBits.fill(i, 1, used)
	if used {
		fs.groupStat[g].usedInodes += d
		fs.freeInodes -= uint64(d)
	} else {
		fs.groupStat[g].usedInodes -= d
		fs.freeInodes += uint64(d)
	}
	fs.dirtyGroup(g)
	fs.dirty[fs.lay.inodeMap+uint64(g)] = struct{}{}
	fs.touch(ino)
}

func (fs *FS) dirtyGroup(g int) { fs.dirty[uint64(1+g/descsPerBlock)] = struct{}{} }

// touch marks an inode's block to be written again.
func (fs *FS) touch(ino uint32) { fs.dirty[fs.lay.inodeBlock(ino)] = struct{}{} }

// allocMeta takes one block for metadata, from the metadata zone as long as it lasts.
func (fs *FS) allocMeta() (uint64, error) {
	b := fs.blockBits.nextFree(max(fs.metaNext, fs.lay.metaStart), fs.lay.dataStart)
	if b < fs.lay.dataStart {
		fs.metaNext = b + 1
		fs.markBlocks(b, 1, true)
		return b, nil
	}
	fs.metaNext = b
	b, _, err := fs.allocRun(1)
	return b, err
}

// allocRun takes up to want successive blocks. It goes forward through the disk, past what
// layers freed, and turns back to freed blocks only after reaching the end.
func (fs *FS) allocRun(want uint64) (start, n uint64, err error) {
	if fs.freeBlocks == 0 {
		return 0, 0, &NoSpaceError{Missing: int64(want) * BlockSize}
	}
	for {
		start = fs.blockBits.nextFree(fs.dataNext, fs.lay.blocks)
		if start != fs.dataNext && !fs.wrapped {
			start = min(roundUp(start, grainBlocks), fs.lay.blocks)
		}
		if start == fs.lay.blocks {
			fs.wrapped, fs.dataNext = true, 0
			continue
		}
		if fs.blockBits.has(start) {
			fs.dataNext = start
			continue
		}
		end := fs.blockBits.nextUsed(start, min(start+min(want, maxExtentBlocks), fs.lay.blocks))
		n = end - start
		fs.markBlocks(start, n, true)
		fs.dataNext = end
		return start, n, nil
	}
}

// allocInode takes an inode number. Directories come first in the table, so that the files'
// inodes of one layer lie together.
func (fs *FS) allocInode(dir bool) (uint32, error) {
	if fs.freeInodes == 0 {
		return 0, &NoSpaceError{Missing: groupBytes, Inodes: true}
	}
	count := uint64(fs.lay.groups) * groupInodes
	if dir {
		// Bit i stands for inode i+1.
		if i := fs.inodeBits.nextFree(uint64(fs.dirInoNext-1), groupInodes); i < groupInodes {
			fs.dirInoNext = uint32(i) + 2
			fs.markInode(uint32(i)+1, true)
			return uint32(i) + 1, nil
		}
		fs.dirInoNext = groupInodes + 1
	}
	i := fs.inodeBits.nextFree(uint64(fs.fileInoNext-1), count)
	if i == count {
		i = fs.inodeBits.nextFree(0, count)
	}
	fs.fileInoNext = uint32(i) + 2
	fs.markInode(uint32(i)+1, true)
	return uint32(i) + 1, nil
}
