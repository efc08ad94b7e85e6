package ext4

import (
	"cmp"
	"errors"
	"slices"
	"strings"
)

const (
	dirTail     = 12 // checksum, disguised as an unused entry
	dirCapacity = BlockSize - dirTail
	dotsUsed    = 24 // "." and ".." at the start of block 0
	// Places for index entries: the first holds limit, count and the first child.
	rootLimit = (BlockSize - 32 - 8) / 8
	nodeLimit = (BlockSize - 8 - 8) / 8
)

// directory is a directory's contents. One block is searched linearly; more than one are a
// hash tree ("Hash Tree Directories" in the kernel's documentation): block 0 is its root.
type directory struct {
	in     *inode
	parent *directory // nil for the filesystem's root
	self   *dirent    // its entry in parent
	names  map[string]*dirent
	blocks []dirBlockRef // by logical number
	nodes  []*hashNode   // nil while there is one block
	inRoot bool          // the only node is the root block itself
}

// dirBlockRef is where a block lies and what it holds; both nil for the root of a hash tree
// that has nodes of its own.
type dirBlockRef struct {
	phys uint64
	leaf *leaf
	node *hashNode
}

type dirent struct {
	name string
	in   *inode
	hash uint32
	step uint32 // the last step that named it or something below it
	leaf *leaf
}

// leaf is a block of entries. Its hashes start at start, whose lowest bit says that the
// previous leaf ends with the same hash.
type leaf struct {
	logical uint32
	start   uint32
	used    int
	entries []*dirent
}

// hashNode is a block of the index, with its leaves in the order of their hashes.
type hashNode struct {
	logical uint32
	leaves  []*leaf
}

func (n *hashNode) start() uint32 { return n.leaves[0].start }

func entryLen(name string) int { return (8 + len(name) + 3) &^ 3 }

// sorted lists the entries by name, where the order must not depend on a map's.
func (d *directory) sorted() []*dirent {
	out := make([]*dirent, 0, len(d.names))
	for _, e := range d.names {
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b *dirent) int { return strings.Compare(a.name, b.name) })
	return out
}

// initDir gives a fresh directory inode its first block.
func (fs *FS) initDir(in *inode, parent *directory, self *dirent) error {
	d := &directory{in: in, parent: parent, self: self, names: map[string]*dirent{}}
	in.dir = d
	fs.groupStat[(in.ino-1)/groupInodes].dirs++
	fs.dirtyGroup(int((in.ino - 1) / groupInodes))
	if err := fs.growDir(d); err != nil {
		return err
	}
	d.blocks[0].leaf = &leaf{used: dotsUsed}
	return nil
}

// growDir appends a block.
func (fs *FS) growDir(d *directory) error {
	b, err := fs.allocMeta()
	if err != nil {
		return err
	}
	n := uint32(len(d.blocks))
	fs.zone[b] = owner{d.in, n, dirBlock}
	fs.dirty[b] = struct{}{}
	d.blocks = append(d.blocks, dirBlockRef{phys: b})
	if k := len(d.in.extents); k > 0 && d.in.extents[k-1].phys+uint64(d.in.extents[k-1].n) == b && d.in.extents[k-1].n < maxExtentBlocks {
		d.in.extents[k-1].n++
	} else {
		d.in.extents = append(d.in.extents, extent{logical: n, n: 1, phys: b})
	}
	d.in.size = int64(len(d.blocks)) * BlockSize
	fs.touch(d.in.ino)
	return fs.growTree(d.in)
}

func (fs *FS) dirtyDirBlock(d *directory, logical uint32) {
	fs.dirty[d.blocks[logical].phys] = struct{}{}
}

// addEntry names in. The name must be valid and not there yet; the link count is the
// caller's business.
func (fs *FS) addEntry(d *directory, name string, in *inode) (*dirent, error) {
	e := &dirent{name: name, in: in, step: fs.step}
	for {
		l := d.blocks[0].leaf
		if d.nodes != nil {
			e.hash = hashName(name)
			l = d.findLeaf(e.hash)
		}
		if l.used+entryLen(name) <= dirCapacity {
			l.used += entryLen(name)
			l.entries = append(l.entries, e)
			e.leaf = l
			d.names[name] = e
			fs.dirtyDirBlock(d, l.logical)
			return e, nil
		}
		var err error
		if d.nodes == nil {
			err = fs.startIndex(d)
		} else {
			err = fs.splitLeaf(d, l)
		}
		if err != nil {
			return nil, err
		}
	}
}

func (fs *FS) removeEntry(d *directory, e *dirent) {
	l := e.leaf
	i := slices.Index(l.entries, e)
	l.entries = slices.Delete(l.entries, i, i+1)
	l.used -= entryLen(e.name)
	delete(d.names, e.name)
	fs.dirtyDirBlock(d, l.logical)
}

// findNode is the index of the node that hash h belongs to, findLeaf the leaf.
func (d *directory) findNode(h uint32) int {
	i, _ := slices.BinarySearchFunc(d.nodes, h, func(n *hashNode, h uint32) int {
		if n.start() <= h {
			return -1
		}
		return 1
	})
	return max(i-1, 0)
}

func (d *directory) findLeaf(h uint32) *leaf {
	n := d.nodes[d.findNode(h)]
	return n.leaves[n.find(h)]
}

func (n *hashNode) find(h uint32) int {
	i, _ := slices.BinarySearchFunc(n.leaves, h, func(l *leaf, h uint32) int {
		if l.start <= h {
			return -1
		}
		return 1
	})
	return max(i-1, 0)
}

// startIndex turns a full block 0 into the root of a hash tree over one leaf.
func (fs *FS) startIndex(d *directory) error {
	if err := fs.growDir(d); err != nil {
		return err
	}
	l := d.blocks[0].leaf
	l.logical = 1
	l.used -= dotsUsed
	for _, e := range l.entries {
		e.hash = hashName(e.name)
	}
	n := &hashNode{leaves: []*leaf{l}}
	d.blocks[0].leaf, d.blocks[0].node, d.blocks[1].leaf = nil, n, l
	d.nodes, d.inRoot = []*hashNode{n}, true
	fs.dirtyDirBlock(d, 0)
	return nil
}

var errDirFull = errors.New("the directory has more entries than its hash tree can hold")

// splitLeaf moves the upper half of a leaf's hashes to a new leaf.
func (fs *FS) splitLeaf(d *directory, l *leaf) error {
	// Nodes that continue one hash may start alike: go back to the one that holds l.
	ni := d.findNode(l.start)
	for !slices.Contains(d.nodes[ni].leaves, l) {
		ni--
	}
	limit := nodeLimit
	if d.inRoot {
		limit = rootLimit
	}
	if len(d.nodes[ni].leaves) == limit {
		if err := fs.splitNode(d, ni); err != nil {
			return err
		}
		if !slices.Contains(d.nodes[ni].leaves, l) {
			ni++
		}
	}
	n := d.nodes[ni]
	if err := fs.growDir(d); err != nil {
		return err
	}
	slices.SortFunc(l.entries, func(a, b *dirent) int {
		if c := cmp.Compare(a.hash, b.hash); c != 0 {
			return c
		}
		return strings.Compare(a.name, b.name)
	})
	at, sum := 1, entryLen(l.entries[0].name)
	for at < len(l.entries)-1 && sum < l.used/2 {
		sum += entryLen(l.entries[at].name)
		at++
	}
	upper := &leaf{logical: uint32(len(d.blocks) - 1), start: l.entries[at].hash}
	if l.entries[at-1].hash == upper.start {
		upper.start |= 1
	}
	upper.entries = slices.Clone(l.entries[at:])
	l.entries = slices.Delete(l.entries, at, len(l.entries))
	for _, e := range upper.entries {
		e.leaf = upper
		upper.used += entryLen(e.name)
	}
	l.used -= upper.used
	d.blocks[upper.logical].leaf = upper
	i := slices.Index(n.leaves, l)
	n.leaves = slices.Insert(n.leaves, i+1, upper)
	fs.dirtyDirBlock(d, n.logical)
	fs.dirtyDirBlock(d, l.logical)
	return nil
}

// splitNode makes room in node i. A node in the root block first moves out of it.
func (fs *FS) splitNode(d *directory, i int) error {
	if d.inRoot {
		if err := fs.growDir(d); err != nil {
			return err
		}
		n := d.nodes[0]
		n.logical = uint32(len(d.blocks) - 1)
		d.blocks[0].node, d.blocks[n.logical].node = nil, n
		d.inRoot = false
	}
	if len(d.nodes) == rootLimit {
		return errDirFull
	}
	if err := fs.growDir(d); err != nil {
		return err
	}
	n := d.nodes[i]
	half := len(n.leaves) / 2
	upper := &hashNode{logical: uint32(len(d.blocks) - 1), leaves: slices.Clone(n.leaves[half:])}
	n.leaves = slices.Delete(n.leaves, half, len(n.leaves))
	d.blocks[upper.logical].node = upper
	d.nodes = slices.Insert(d.nodes, i+1, upper)
	fs.dirtyDirBlock(d, 0)
	fs.dirtyDirBlock(d, n.logical)
	fs.dirtyDirBlock(d, upper.logical)
	return nil
}

// encodeDir writes one block of a directory.
func (fs *FS) encodeDir(d *directory, logical uint32, b []byte) {
	ref := d.blocks[logical]
	up := uint32(inoRoot)
	if d.parent != nil {
		up = d.parent.in.ino
	}
	if ref.leaf == nil {
		fs.encodeIndex(d, ref.node, logical, up, b)
		return
	}
	o, last := 0, -1
	put := func(name string, ino uint32, typ byte) {
		n := entryLen(name)
		le.PutUint32(b[o:], ino)
		le.PutUint16(b[o+4:], uint16(n))
		b[o+6], b[o+7] = byte(len(name)), typ
		copy(b[o+8:], name)
		last = o
		o += n
	}
	if logical == 0 {
		put(".", d.in.ino, 2)
		put("..", up, 2)
	}
	for _, e := range ref.leaf.entries {
		put(e.name, e.in.ino, fileType(e.in.mode))
	}
	// The last entry owns the rest of the block; an empty block is one unused entry.
	le.PutUint16(b[max(last, 0)+4:], uint16(dirCapacity-max(last, 0)))
	le.PutUint16(b[dirCapacity+4:], dirTail)
	b[dirCapacity+7] = 0xde
	le.PutUint32(b[dirCapacity+8:], crc(fs.inodeSeed(d.in), b[:dirCapacity]))
}

// encodeIndex writes the root (logical 0) or a node of a hash tree.
func (fs *FS) encodeIndex(d *directory, n *hashNode, logical, up uint32, b []byte) {
	head, limit := 8, nodeLimit
	if logical == 0 {
		head, limit = 32, rootLimit
		le.PutUint32(b, d.in.ino)
		le.PutUint16(b[4:], 12)
		b[6], b[7], b[8] = 1, 2, '.'
		le.PutUint32(b[12:], up)
		le.PutUint16(b[16:], BlockSize-12)
		b[18], b[19] = 2, 2
		copy(b[20:], "..")
		b[28] = hashVersion
		b[29] = 8 // length of this record
		if !d.inRoot {
			b[30] = 1 // levels of nodes below the root
		}
	} else {
		le.PutUint16(b[4:], BlockSize)
	}
	count := 0
	put := func(start, block uint32) {
		// The first child has no hash: limit and count are in its place.
		if count > 0 {
			le.PutUint32(b[head+8*count:], start)
		}
		le.PutUint32(b[head+8*count+4:], block)
		count++
	}
	if n != nil {
		for _, l := range n.leaves {
			put(l.start, l.logical)
		}
	} else {
		for _, n := range d.nodes {
			put(n.start(), n.logical)
		}
	}
	le.PutUint16(b[head:], uint16(limit))
	le.PutUint16(b[head+2:], uint16(count))
	tail := head + 8*limit
	c := crc(fs.inodeSeed(d.in), b[:head+8*count])
	le.PutUint32(b[tail+4:], crc(c, b[tail:tail+8]))
}
