package ext4

import (
	"bytes"
	"errors"
	"fmt"
)

// Rebuild makes the model of a filesystem from its blocks, for when its index is lost. The filesystem
// must be one that this package made and nobody has written to since; each of its metadata blocks
// is compared with what the model says, and any difference is an error. The result is the very model
// that wrote the blocks.
func Rebuild(r *Reader) (*FS, error) {
	fs, err := rebuild(r.v)
	if err != nil {
		return nil, fmt.Errorf("ext4: rebuild: %w", err)
	}
	return fs, nil
}

func rebuild(v *volume) (*FS, error) {
	s := &v.super
	if len(v.overlay) > 0 || s.uuid != fixedUUID || s.blockSize != BlockSize || s.inodeSize != inodeSize || s.descSize != descSize ||
		s.perGroup != groupInodes || s.groupBlocks != groupBlocks || s.incompat != featIncompat || s.roCompat != featROCompat {
		return nil, errors.New("the filesystem was not made by this package, or was mounted for writing since")
	}
	g := Geometry{Bytes: int64(s.blocks) * BlockSize}
	if err := g.check(); err != nil {
		return nil, err
	}
	b := newBuilder(g)
	if err := b.boot(v); err != nil {
		return nil, err
	}
	if err := b.inodes(v); err != nil {
		return nil, err
	}
	fs, err := b.finish()
	if err != nil {
		return nil, err
	}
	return fs, compare(v, fs)
}

// inodes reads all inodes that are in use.
func (b *builder) inodes(v *volume) error {
	used := make([]byte, BlockSize)
	for grp := range b.fs.lay.groups {
		// The bitmap of a group without inodes was never written and reads as zeroes.
		if err := v.readBlock(b.fs.lay.inodeMap+uint64(grp), used); err != nil {
			return err
		}
		for i := range groupInodes {
			ino := uint32(grp*groupInodes + i + 1)
			if used[i/8]>>(i%8)&1 == 0 || ino < firstIno && ino != inoRoot {
				continue
			}
			in, err := b.read(v, ino)
			if err != nil {
				return fmt.Errorf("inode %d: %w", ino, err)
			}
			if err := b.add(in); err != nil {
				return err
			}
		}
	}
	return nil
}

// boot reads where the allocators stood.
func (b *builder) boot(v *volume) error {
	raw := make([]byte, 1024)
	if err := v.readAt(raw, 0); err != nil {
		return err
	}
	o := 32
	if !bytes.HasPrefix(raw, []byte(bootMagic)) || crc(0xffffffff, raw[:o+32]) != le.Uint32(raw[o+32:]) {
		return errors.New("the record of the allocators, in front of the superblock, is missing or damaged")
	}
	if n := le.Uint32(raw[o:]); n != FormatVersion {
		return fmt.Errorf("format version %d: this program knows %d", n, FormatVersion)
	}
	fs := b.fs
	fs.wrapped = le.Uint32(raw[o+4:]) == 1
	fs.metaNext, fs.dataNext = le.Uint64(raw[o+8:]), le.Uint64(raw[o+16:])
	fs.dirInoNext, fs.fileInoNext = le.Uint32(raw[o+24:]), le.Uint32(raw[o+28:])
	if n := uint64(fs.lay.groups)*groupInodes + 1; fs.metaNext > fs.lay.blocks || fs.dataNext > fs.lay.blocks ||
		uint64(fs.dirInoNext)-1 >= n || uint64(fs.fileInoNext)-1 >= n {
		return errors.New("the record of the allocators points outside the filesystem")
	}
	return nil
}

// read converts an inode from its form on disk.
func (b *builder) read(v *volume, ino uint32) (*inode, error) {
	raw, err := v.inode(ino)
	if err != nil {
		return nil, err
	}
	a := raw.attrs()
	in := &inode{ino: ino, mode: raw.mode(), uid: a.uid, gid: a.gid, size: raw.size(), atime: a.atime, mtime: a.mtime, ctime: a.ctime,
		xblock: raw.xattrBlock()}
	if in.xattrs, err = v.xattrs(raw); err != nil {
		return nil, err
	}
	sortXattrs(in.xattrs)
	if b.adopt {
		in.raw = raw.b
		if le.Uint16(raw.b[0x1a:]) == 0 {
			b.orphans = append(b.orphans, in)
		}
	}
	if raw.flags()&flagExtents != 0 {
		if err := in.readTree(v, raw); err != nil {
			return nil, err
		}
	}
	switch in.mode & modeType {
	case modeSymlink:
		in.link, err = v.readlink(raw)
	case modeChar, modeBlock:
		in.major, in.minor = raw.device()
	case modeDir:
		if b.adopt && le.Uint16(raw.b[0x1a:]) == 0 {
			break // deleted, and still open when the power failed: nothing is in it
		}
		err = b.readTreeDir(v, raw, in)
	}
	return in, err
}

// readTree lists the extents and the blocks of the extent tree, level by level.
func (in *inode) readTree(v *volume, raw *rawInode) error {
	m := newExtentMap(v, raw)
	nodes := [][]byte{raw.b[0x28 : 0x28+60]}
	depth := int(le.Uint16(nodes[0][6:]))
	if depth > 5 {
		return fmt.Errorf("extent tree of depth %d", depth)
	}
	var levels [][]uint64
	total := uint64(0)
	for ; depth > 0; depth-- {
		var blocks []uint64
		var below [][]byte
		for _, node := range nodes {
			for i := range int(le.Uint16(node[2:])) {
				if 24+12*i > len(node) {
					return errors.New("damaged extent tree")
				}
				e := node[12+12*i:]
				blocks = append(blocks, uint64(le.Uint32(e[4:]))|uint64(le.Uint16(e[8:]))<<32)
			}
		}
		if total += uint64(len(blocks)); total > v.super.blocks {
			return errors.New("extent tree has more blocks than the filesystem")
		}
		for _, p := range blocks {
			b := make([]byte, BlockSize)
			if err := m.readNode(p, b); err != nil {
				return err
			}
			below = append(below, b)
		}
		nodes = below
		levels = append(levels, blocks)
	}
	for i := len(levels) - 1; i >= 0; i-- {
		in.tree = append(in.tree, levels[i]...)
	}
	// Read the extents themselves as any reader does, which checks order and checksums.
	m.lo, m.hi = 0, 1<<32
	for _, node := range nodes {
		n := int(le.Uint16(node[2:]))
		if le.Uint16(node) != extentMagic || 12+12*n > len(node) || le.Uint16(node[6:]) != 0 {
			return errors.New("damaged extent tree")
		}
		if err := m.parse(node, n); err != nil {
			return err
		}
		in.extents = append(in.extents, m.leaf...)
	}
	return nil
}

// readTreeDir reads a directory block by block, its hash tree included.
func (b *builder) readTreeDir(v *volume, raw *rawInode, in *inode) error {
	d := b.newDir(in)
	var blocks [][]byte
	if err := v.dirBlocks(raw, func(_ uint32, p []byte) error {
		blocks = append(blocks, bytes.Clone(p))
		return nil
	}); err != nil {
		return err
	}
	if len(blocks) == 0 {
		return errors.New("directory without blocks")
	}
	leafAt := func(l *leaf) error {
		if int64(l.logical) >= int64(len(blocks)) {
			return fmt.Errorf("hash tree names block %d of %d", l.logical, len(blocks))
		}
		return v.dirEntries(raw, l.logical, blocks[l.logical], func(name string, ino uint32, _ byte) error {
			if l.logical == 0 && (name == "." || name == "..") {
				return nil
			}
			return b.entry(d, l, name, int64(ino))
		})
	}
	if raw.flags()&flagIndex == 0 {
		l := &leaf{used: dotsUsed}
		b.only(d, l)
		return leafAt(l)
	}
	root := blocks[0]
	type child struct{ start, logical uint32 }
	children := func(p []byte, limit int) (out []child, err error) {
		n := int(le.Uint16(p[2:]))
		if n < 1 || n > limit {
			return nil, errors.New("damaged hash tree")
		}
		for i := range n {
			c := child{le.Uint32(p[8*i:]), le.Uint32(p[8*i+4:])}
			if i == 0 {
				c.start = 0
			}
			out = append(out, c)
		}
		return out, nil
	}
	top, err := children(root[32:], rootLimit)
	if err != nil {
		return err
	}
	d.inRoot = root[30] == 0
	nodes := []child{{}}
	if !d.inRoot {
		nodes = top
	}
	for _, c := range nodes {
		leaves := top
		if !d.inRoot {
			if int64(c.logical) >= int64(len(blocks)) {
				return fmt.Errorf("hash tree names block %d of %d", c.logical, len(blocks))
			}
			if leaves, err = children(blocks[c.logical][8:], nodeLimit); err != nil {
				return err
			}
			leaves[0].start = c.start
		}
		n := &hashNode{logical: c.logical}
		for _, lc := range leaves {
			l := &leaf{logical: lc.logical, start: lc.start}
			n.leaves = append(n.leaves, l)
			if err := leafAt(l); err != nil {
				return err
			}
		}
		d.nodes = append(d.nodes, n)
	}
	return nil
}

// compare checks that the disk holds exactly the metadata of the model. Backup superblocks are
// those of the empty filesystem and are left out.
func compare(v *volume, fs *FS) error {
	check := map[uint64]struct{}{0: {}, fs.lay.journal: {}}
	for b := range fs.zone {
		check[b] = struct{}{}
	}
	for k := range fs.lay.descBlocks {
		check[uint64(1+k)] = struct{}{}
	}
	for g := range fs.lay.groups {
		if !fs.blocksUninit(g) {
			check[fs.lay.blockMap+uint64(g)] = struct{}{}
		}
		if fs.groupStat[g].usedInodes > 0 {
			check[fs.lay.inodeMap+uint64(g)] = struct{}{}
		}
	}
	for in := range fs.all() {
		check[fs.lay.inodeBlock(in.ino)] = struct{}{}
	}
	disk, model := make([]byte, BlockSize), make([]byte, BlockSize)
	for b := range check {
		if err := v.readBlock(b, disk); err != nil {
			return err
		}
		if fs.Block(b, model); !bytes.Equal(disk, model) {
			return fmt.Errorf("metadata block %d is not as this package writes it: the filesystem was written to by something else", b)
		}
	}
	return nil
}
