package ext4

const (
	extentMagic = 0xf30a
	rootExtents = 4                     // entries in the inode
	nodeExtents = (BlockSize - 12) / 12 // entries in a block, leaving room for the checksum
)

// unbound marks an extent whose address is still relative to the layer being applied.
const unbound = 1 << 63

// treeLevels says how many blocks each level of an extent tree over n extents has, leaves
// first; none where the inode itself holds them all.
func treeLevels(n int) (levels []int) {
	for n > rootExtents {
		n = (n + nodeExtents - 1) / nodeExtents
		levels = append(levels, n)
	}
	return levels
}

// growTree gives an inode the blocks that its extents need, and marks them as changed.
func (fs *FS) growTree(in *inode) error {
	need := 0
	for _, n := range treeLevels(len(in.extents)) {
		need += n
	}
	for len(in.tree) < need {
		b, err := fs.allocMeta()
		if err != nil {
			return err
		}
		in.tree = append(in.tree, b)
	}
	// A kernel's tree may have had more blocks than it needs.
	for ; len(in.tree) > need; in.tree = in.tree[:len(in.tree)-1] {
		fs.freeMeta(in.tree[len(in.tree)-1])
	}
	for i, b := range in.tree {
		fs.zone[b] = owner{in, uint32(i), treeBlock}
		fs.dirty[b] = struct{}{}
	}
	in.ownMap = true
	return nil
}

func putExtentHeader(b []byte, entries, limit, depth int) {
	le.PutUint16(b, extentMagic)
	le.PutUint16(b[2:], uint16(entries))
	le.PutUint16(b[4:], uint16(limit))
	le.PutUint16(b[6:], uint16(depth))
}

func putExtents(b []byte, extents []extent) {
	for i, e := range extents {
		le.PutUint32(b[12*i:], e.logical)
		le.PutUint16(b[12*i+4:], uint16(e.n))
		le.PutUint16(b[12*i+6:], uint16(e.phys>>32))
		le.PutUint32(b[12*i+8:], uint32(e.phys))
	}
}

// putChildren writes index entries for the blocks at in.tree[first:first+n], each of which
// covers span extents, from extent number at.
func putChildren(b []byte, in *inode, first, n, at, span int) {
	for i := range n {
		p := in.tree[first+i]
		le.PutUint32(b[12*i:], in.extents[at+i*span].logical)
		le.PutUint32(b[12*i+4:], uint32(p))
		le.PutUint16(b[12*i+8:], uint16(p>>32))
	}
}

// encodeExtentRoot writes the 60 bytes of i_block.
func encodeExtentRoot(in *inode, b []byte) {
	levels := treeLevels(len(in.extents))
	if len(levels) == 0 {
		putExtentHeader(b, len(in.extents), rootExtents, 0)
		putExtents(b[12:], in.extents)
		return
	}
	first, span := 0, nodeExtents
	for _, n := range levels[:len(levels)-1] {
		first += n
		span *= nodeExtents
	}
	top := levels[len(levels)-1]
	putExtentHeader(b, top, rootExtents, len(levels))
	putChildren(b[12:], in, first, top, 0, span)
}

// encodeExtentBlock writes block idx of an inode's extent tree.
func (fs *FS) encodeExtentBlock(in *inode, idx int, b []byte) {
	level, below, base, span := 0, 0, 0, nodeExtents // span: extents below one block of this level
	for _, n := range treeLevels(len(in.extents)) {
		if idx < base+n {
			break
		}
		below, base = base, base+n
		level++
		span *= nodeExtents
	}
	k := idx - base
	if level == 0 {
		ex := in.extents[k*nodeExtents : min(len(in.extents), (k+1)*nodeExtents)]
		putExtentHeader(b, len(ex), nodeExtents, 0)
		putExtents(b[12:], ex)
	} else {
		n := min(base-below-k*nodeExtents, nodeExtents)
		putExtentHeader(b, n, nodeExtents, level)
		putChildren(b[12:], in, below+k*nodeExtents, n, k*span, span/nodeExtents)
	}
	le.PutUint32(b[BlockSize-4:], crc(fs.inodeSeed(in), b[:BlockSize-4]))
}
