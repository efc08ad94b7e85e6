package ext4

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
)

// Adopt makes a model of a filesystem that this package made and a kernel has written to since,
// so that a layer can be applied to it without a kernel: it is how files are put into a container
// that is off. The filesystem may have been cut off by a power failure.
//
// [FS.Dirty] then names what has to be written even without a layer: what the journal holds, a
// journal that is empty, the superblock. After the first [FS.Apply] and the writing of its data
// and all dirty blocks the filesystem is clean. All must be written, or nothing: what was written
// half is damaged. What the kernel wrote about inodes (generation, flags, birth) is kept, except
// where the layer replaces it.
//
// What cannot be taken over is refused: a filesystem with errors, with features switched on since,
// resized, with a directory that lost its index, or that was cut off while a file was cut short.
// Such a model has no index.
func Adopt(r *Reader) (*FS, error) {
	fs, err := adopt(r.v)
	if err != nil {
		return nil, fmt.Errorf("ext4: adopt: %w", err)
	}
	return fs, nil
}

func adopt(v *volume) (*FS, error) {
	s := &v.super
	if s.uuid != fixedUUID || s.blockSize != BlockSize || s.inodeSize != inodeSize || s.descSize != descSize ||
		s.perGroup != groupInodes || s.groupBlocks != groupBlocks || s.incompat&^incompatRecover != featIncompat || s.roCompat != featROCompat {
		return nil, errors.New("the filesystem was not made by this package, or its features were changed since")
	}
	raw := make([]byte, 1024)
	if err := v.readAt(raw, 1024); err != nil {
		return nil, err
	}
	if le.Uint16(raw[0x3a:])&2 != 0 {
		return nil, errors.New("superblock: the kernel found errors in the filesystem: run e2fsck on it")
	}
	g := Geometry{Bytes: int64(s.blocks) * BlockSize}
	if err := g.check(); err != nil {
		return nil, fmt.Errorf("the filesystem was resized: %w", err)
	}
	b := newBuilder(g)
	b.adopt = true
	if err := b.boot(v); err != nil {
		return nil, err
	}
	if err := b.inodes(v); err != nil {
		return nil, err
	}
	if err := b.share(v); err != nil {
		return nil, err
	}
	if err := b.journal(v); err != nil {
		return nil, err
	}
	if err := notCutShort(v, le.Uint32(raw[0xe8:])); err != nil {
		return nil, err
	}
	fs, err := b.finish()
	if err != nil {
		return nil, err
	}
	if err := b.account(v); err != nil {
		return nil, err
	}
	fs.super = raw
	for _, in := range b.orphans {
		fs.release(in)
	}
	if len(b.orphans) > 0 || s.incompat&incompatRecover != 0 {
		fs.dirty[0] = struct{}{}
	}
	return fs, fs.takeJournal(v)
}

// checkAdopted is check for an inode that a kernel may have written.
func (b *builder) checkAdopted(in *inode) error {
	switch {
	case in.ino == 0, uint64(in.ino) > uint64(b.fs.lay.groups)*groupInodes, in.ino < firstIno && in.ino != inoRoot:
		return errors.New("no such number")
	case b.fs.inode(in.ino) != nil:
		return errors.New("given twice")
	case le.Uint16(in.raw[0x80:]) != 32:
		return fmt.Errorf("i_extra_isize is %d, not 32", le.Uint16(in.raw[0x80:]))
	}
	var end uint64
	for i := range in.extents {
		e := &in.extents[i]
		if e.n > unwrittenBias {
			e.n -= unwrittenBias // allocated and not written: the blocks are the file's all the same
		}
		if e.n == 0 || uint64(e.logical) < end {
			return errors.New("extents are empty or not in order")
		}
		end = uint64(e.logical) + uint64(e.n)
	}
	flags := le.Uint32(in.raw[0x20:])
	switch in.mode & modeType {
	case modeRegular, modeDir:
		if flags&flagExtents == 0 {
			return errNoExtents
		}
		if in.dir != nil && (in.size == 0 || in.size%BlockSize != 0) {
			return fmt.Errorf("directory of %d bytes", in.size)
		}
	case modeSymlink, modeChar, modeBlock, modeFIFO, modeSocket:
	default:
		return fmt.Errorf("mode %#o", in.mode)
	}
	return nil
}

// notCutShort refuses a filesystem whose orphans have names: those are files that were being
// cut short, and have blocks behind their end.
func notCutShort(v *volume, ino uint32) error {
	seen := map[uint32]bool{}
	for ino != 0 && !seen[ino] {
		seen[ino] = true
		in, err := v.inode(ino)
		if err != nil {
			return fmt.Errorf("list of orphans: %w", err)
		}
		if le.Uint16(in.b[0x1a:]) != 0 {
			return fmt.Errorf("file with inode %d was cut off while it was cut short: start the container once, its kernel repairs that", ino)
		}
		ino = le.Uint32(in.b[0x14:])
	}
	return nil
}

// sharedXattrs is a block of attributes that a kernel gave to several inodes.
type sharedXattrs struct {
	raw   []byte
	users []*inode
}

func (x *sharedXattrs) encode(fs *FS, lba uint64, b []byte) {
	copy(b, x.raw)
	le.PutUint32(b[4:], uint32(len(x.users)))
	le.PutUint32(b[16:], 0)
	var n [8]byte
	le.PutUint64(n[:], lba)
	le.PutUint32(b[16:], crc(crc(fs.seed, n[:]), b))
}

// share sorts out which blocks of attributes have several users.
func (b *builder) share(v *volume) error {
	fs := b.fs
	for blk, users := range b.xblocks {
		raw := make([]byte, BlockSize)
		if err := v.readBlock(blk, raw); err != nil {
			return err
		}
		if n := le.Uint32(raw[4:]); int64(n) != int64(len(users)) {
			return fmt.Errorf("block %d of extended attributes says that %d inodes use it, not %d: run e2fsck", blk, n, len(users))
		}
		if len(users) > 1 {
			if fs.shared == nil {
				fs.shared = map[uint64]*sharedXattrs{}
			}
			fs.shared[blk] = &sharedXattrs{raw, users}
			fs.zone[blk] = owner{kind: sharedBlock}
		}
	}
	return nil
}

// leaveShared ends an inode's use of a block that others use too. The last one has it for itself.
func (fs *FS) leaveShared(in *inode) {
	x := fs.shared[in.xblock]
	if x == nil {
		return
	}
	x.users = slices.DeleteFunc(x.users, func(u *inode) bool { return u == in })
	if len(x.users) == 0 {
		delete(fs.shared, in.xblock)
		fs.zone[in.xblock] = owner{in, 0, xattrBlock}
		return
	}
	fs.dirty[in.xblock] = struct{}{}
	in.xblock = 0
}

// journal checks that the journal lies where it was put.
func (b *builder) journal(v *volume) error {
	in, err := v.inode(inoJournal)
	if err != nil {
		return err
	}
	run, err := newExtentMap(v, in).find(0)
	if err == nil && (run.zero || run.phys != b.fs.lay.journal || run.n < journalBlocks || in.size() != journalBlocks*BlockSize) {
		err = errors.New("it is not where it was made")
	}
	if err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	return nil
}

// account checks that the disk's bitmaps say what follows from its inodes, so that no block is
// given away that something unknown uses.
func (b *builder) account(v *volume) error {
	fs := b.fs
	disk, model := make([]byte, BlockSize), make([]byte, BlockSize)
	for g := range fs.lay.groups {
		d, err := v.groupDesc(uint64(g))
		if err != nil {
			return err
		}
		flags := le.Uint16(d[0x12:])
		if flags&descBlocksUninit == 0 {
			if err := v.readBlock(fs.lay.blockMap+uint64(g), disk); err != nil {
				return err
			}
			if fs.encodeBlockMap(g, model); !bytes.Equal(disk, model) {
				return fmt.Errorf("group %d: the bitmap of blocks does not fit the files: run e2fsck", g)
			}
		} else if fs.groupStat[g].usedBlocks != fs.lay.baseMeta(g) {
			return fmt.Errorf("group %d: the blocks of files are marked as never used: run e2fsck", g)
		}
		if flags&descInodesUninit == 0 {
			if err := v.readBlock(fs.lay.inodeMap+uint64(g), disk); err != nil {
				return err
			}
			if fs.encodeInodeMap(g, model); !bytes.Equal(disk[:groupInodes/8], model[:groupInodes/8]) {
				return fmt.Errorf("group %d: the bitmap of inodes does not fit the files: run e2fsck", g)
			}
		} else if fs.groupStat[g].usedInodes != 0 {
			return fmt.Errorf("group %d: its inodes are marked as never used: run e2fsck", g)
		}
	}
	return nil
}

// takeJournal brings what the journal holds to where it belongs, and empties it.
func (fs *FS) takeJournal(v *volume) error {
	for k := range fs.lay.descBlocks {
		disk, model := make([]byte, BlockSize), make([]byte, BlockSize)
		lba := uint64(1 + k)
		if err := v.readBlock(lba, disk); err != nil {
			return err
		}
		if fs.encodeDescs(k, model); !bytes.Equal(disk, model) {
			fs.dirty[lba] = struct{}{}
		}
	}
	fs.replayed = map[uint64][]byte{}
	for lba := range v.overlay {
		if !fs.blockBits.has(lba) {
			continue
		}
		raw := make([]byte, BlockSize)
		if err := v.readBlock(lba, raw); err != nil {
			return err
		}
		fs.replayed[lba] = raw
		fs.dirty[lba] = struct{}{}
	}
	raw := make([]byte, BlockSize)
	if err := v.rawAt(raw, int64(fs.lay.journal)*BlockSize); err != nil {
		return err
	}
	if be.Uint32(raw[32:]) != 0 {
		return errors.New("journal: the kernel noted an error in it: run e2fsck")
	}
	fs.journal = raw
	if be.Uint32(raw[28:]) == 0 {
		return nil
	}
	// Blocks of the old log must not be taken for successors of the new one's: as the kernel
	// does after recovery, go on behind them.
	be.PutUint32(raw[24:], v.journalEnd+1)
	be.PutUint32(raw[28:], 0)
	if be.Uint32(raw[40:])&(journalCsumV2|journalCsumV3) != 0 {
		be.PutUint32(raw[0xfc:], 0)
		be.PutUint32(raw[0xfc:], crc(0xffffffff, raw[:1024]))
	}
	fs.dirty[fs.lay.journal] = struct{}{}
	return nil
}

// forget drops what the journal had of blocks that change hands.
func (fs *FS) forget(start, n uint64) {
	if len(fs.replayed) == 0 {
		return
	}
	for b := start; b < start+n; b++ {
		if _, ok := fs.replayed[b]; ok {
			delete(fs.replayed, b)
			delete(fs.dirty, b)
		}
	}
}

// foreign reports whether a block cannot be made from the model: contents, and metadata in a
// form that the kernel chose.
func (fs *FS) foreign(lba uint64) bool {
	if o, ok := fs.zone[lba]; ok {
		switch o.kind {
		case treeBlock:
			return o.in.raw != nil && !o.in.ownMap
		case xattrBlock:
			return o.in.raw != nil && !o.in.ownXattrs
		}
		return false
	}
	l := &fs.lay
	n := uint64(l.groups)
	_, table := l.tableAt(lba)
	return !table && lba != l.journal && int(lba%groupBlocks) >= l.baseMeta(int(lba/groupBlocks)) &&
		(lba < l.blockMap || lba >= l.blockMap+n) && (lba < l.inodeMap || lba >= l.inodeMap+n)
}

// patchInode writes an inode that a kernel wrote, with what was changed since.
func (fs *FS) patchInode(in *inode, b []byte) {
	copy(b, in.raw)
	in.putAttrs(b)
	if in.ownMap {
		clear(b[0x28:0x64])
		encodeExtentRoot(in, b[0x28:])
		flags := le.Uint32(b[0x20:]) | flagExtents
		if in.dir != nil && in.dir.nodes != nil {
			flags |= flagIndex
		}
		le.PutUint32(b[0x20:], flags)
	}
	if in.ownXattrs {
		clear(b[xattrInode:inodeSize])
		encodeInodeXattrs(in, b)
	}
	if in.ownMap || in.ownXattrs {
		in.putBlocks(b)
	}
	fs.sumInode(in, b)
}

// patchSuper writes the superblock that a kernel wrote, as of a filesystem cleanly unmounted.
func (fs *FS) patchSuper(b []byte) {
	b = b[:1024]
	copy(b, fs.super)
	le.PutUint32(b[0x0c:], uint32(fs.freeBlocks))
	le.PutUint32(b[0x10:], uint32(fs.freeInodes))
	le.PutUint16(b[0x3a:], 1)
	le.PutUint32(b[0x60:], le.Uint32(b[0x60:])&^incompatRecover)
	le.PutUint32(b[0xe8:], 0) // first orphan
	le.PutUint32(b[0x3fc:], crc(0xffffffff, b[:0x3fc]))
}
