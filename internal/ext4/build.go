package ext4

import (
	"errors"
	"fmt"
	"slices"
)

// builder makes a model from inodes and directory entries of unknown origin, and checks that
// they are one consistent filesystem.
type builder struct {
	fs    *FS
	refs  []ref
	dirs  []*directory
	first map[*directory]*leaf // the only leaf of a directory without an index

	// For Adopt: a kernel may have written to the filesystem.
	adopt   bool
	orphans []*inode            // have no name
	xblocks map[uint64][]*inode // blocks of attributes, and who uses them
}

// ref is an entry whose inode may still have to come.
type ref struct {
	d   *directory
	e   *dirent
	ino int64
}

func newBuilder(g Geometry) *builder {
	return &builder{fs: newModel(g), first: map[*directory]*leaf{}, xblocks: map[uint64][]*inode{}}
}

func (b *builder) newDir(in *inode) *directory {
	d := &directory{in: in, names: map[string]*dirent{}}
	in.dir = d
	b.dirs = append(b.dirs, d)
	return d
}

func (b *builder) only(d *directory, l *leaf) { b.first[d] = l }

// entry adds a name to a leaf.
func (b *builder) entry(d *directory, l *leaf, name string, ino int64) error {
	if err := checkName(name); err != nil {
		return err
	}
	if d.names[name] != nil {
		return fmt.Errorf("directory %d has %s twice", d.in.ino, quote(name))
	}
	if l.used += entryLen(name); l.used > dirCapacity {
		return fmt.Errorf("directory %d has a block with more entries than fit", d.in.ino)
	}
	e := &dirent{name: name, leaf: l}
	l.entries = append(l.entries, e)
	d.names[name] = e
	b.refs = append(b.refs, ref{d, e, ino})
	return nil
}

// add takes an inode, whose blocks must be free and whose fields must fit together.
func (b *builder) add(in *inode) error {
	fs := b.fs
	check := b.check
	if b.adopt {
		check = b.checkAdopted
	}
	if err := check(in); err != nil {
		return fmt.Errorf("inode %d: %w", in.ino, err)
	}
	fs.putInode(in)
	fs.markInode(in.ino, true)
	take := func(start, n uint64) error {
		if n == 0 || start >= fs.lay.blocks || n > fs.lay.blocks-start {
			return fmt.Errorf("inode %d: blocks %d to %d are outside the filesystem", in.ino, start, start+n)
		}
		if fs.markBlocks(start, n, true) != int(n) {
			return fmt.Errorf("inode %d: blocks %d to %d are in use by something else", in.ino, start, start+n-1)
		}
		return nil
	}
	for _, e := range in.extents {
		if err := take(e.phys, uint64(e.n)); err != nil {
			return err
		}
	}
	for i, blk := range in.tree {
		if err := take(blk, 1); err != nil {
			return err
		}
		fs.zone[blk] = owner{in, uint32(i), treeBlock}
	}
	if b.adopt && in.xblock != 0 {
		b.xblocks[in.xblock] = append(b.xblocks[in.xblock], in)
	}
	if in.xblock != 0 && len(b.xblocks[in.xblock]) < 2 {
		if err := take(in.xblock, 1); err != nil {
			return err
		}
		fs.zone[in.xblock] = owner{in, 0, xattrBlock}
	}
	return nil
}

func (b *builder) check(in *inode) error {
	switch {
	case in.ino == 0, uint64(in.ino) > uint64(b.fs.lay.groups)*groupInodes, in.ino < firstIno && in.ino != inoRoot:
		return errors.New("no such number")
	case b.fs.inode(in.ino) != nil:
		return errors.New("given twice")
	case !in.atime.valid() || !in.mtime.valid() || !in.ctime.valid():
		return errors.New("a time is outside 1901 to 2446")
	case len(in.tree) != sum(treeLevels(len(in.extents))):
		return errors.New("extent tree does not have the blocks that its extents need")
	}
	_, outer, err := splitXattrs(in.xattrs)
	if err != nil {
		return err
	}
	if len(outer) > 0 != (in.xblock != 0) {
		return errors.New("block for extended attributes is missing or not needed")
	}
	for _, x := range in.xattrs {
		if x.fullName() == "" || x.name == "" != (x.index == indexACL || x.index == indexACLDefault) {
			return fmt.Errorf("extended attribute %q in namespace %d", x.name, x.index)
		}
	}
	sorted := slices.Clone(in.xattrs)
	sortXattrs(sorted)
	if !slices.Equal(sorted, in.xattrs) {
		return errors.New("extended attributes are not in order")
	}
	var end uint64
	for _, e := range in.extents {
		if e.n == 0 || e.n > maxExtentBlocks || uint64(e.logical) < end {
			return errors.New("extents are empty or not in order")
		}
		end = uint64(e.logical) + uint64(e.n)
	}
	if end > roundUp(uint64(in.size), BlockSize)/BlockSize {
		return errors.New("extents go beyond the size")
	}
	switch in.mode & modeType {
	case modeRegular:
	case modeDir:
		if in.size == 0 || in.size%BlockSize != 0 {
			return fmt.Errorf("directory of %d bytes", in.size)
		}
	case modeSymlink:
		if in.link == "" || int64(len(in.link)) != in.size || (len(in.link) >= 60) != (end == 1) {
			return errors.New("symlink's target does not fit its size")
		}
	case modeChar, modeBlock, modeFIFO:
		if in.size != 0 || end != 0 {
			return errors.New("device or FIFO with contents")
		}
	default:
		return fmt.Errorf("mode %#o", in.mode)
	}
	return nil
}

func sum(v []int) (n int) {
	for _, x := range v {
		n += x
	}
	return n
}

// finish ties everything together and checks it as a whole.
func (b *builder) finish() (*FS, error) {
	fs := b.fs
	for i := uint32(1); i < firstIno; i++ {
		fs.markInode(i, true)
	}
	fs.putJournal()
	for _, d := range b.dirs {
		if err := b.layDir(d); err != nil {
			return nil, fmt.Errorf("directory %d: %w", d.in.ino, err)
		}
	}
	if err := b.resolve(); err != nil {
		return nil, err
	}
	root := fs.inode(inoRoot)
	if root == nil || root.dir == nil {
		return nil, errors.New("there is no root directory")
	}
	if e := root.dir.names[RootDir]; e == nil || e.in.dir == nil {
		return nil, fmt.Errorf("there is no directory /%s", RootDir)
	}
	for in := range fs.all() {
		if in.nlink == 0 && !slices.Contains(b.orphans, in) {
			return nil, fmt.Errorf("inode %d has no name", in.ino)
		}
		if in.dir == nil && in.nlink > maxLinks {
			return nil, errTooManyLinks
		}
	}
	// Each directory has one parent; if all hang on the root, none is its own ancestor.
	seen := 0
	for stack := []*directory{root.dir}; len(stack) > 0; {
		d := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		seen++
		for _, e := range d.names {
			if e.in.dir != nil {
				stack = append(stack, e.in.dir)
			}
		}
	}
	if seen != len(b.dirs) {
		return nil, errors.New("directories that are not below the root")
	}
	clear(fs.dirty)
	return fs, nil
}

// layDir checks a directory's blocks and index.
func (b *builder) layDir(d *directory) error {
	fs := b.fs
	fs.groupStat[(d.in.ino-1)/groupInodes].dirs++
	for _, e := range d.in.extents {
		if int(e.logical) != len(d.blocks) {
			return errors.New("has a hole")
		}
		for i := range uint64(e.n) {
			fs.zone[e.phys+i] = owner{d.in, uint32(len(d.blocks)), dirBlock}
			d.blocks = append(d.blocks, dirBlockRef{phys: e.phys + i})
		}
	}
	if int64(len(d.blocks))*BlockSize != d.in.size {
		return errors.New("has a hole")
	}
	claimed := 0
	claim := func(logical uint32) (*dirBlockRef, error) {
		if int64(logical) >= int64(len(d.blocks)) || d.blocks[logical].leaf != nil || d.blocks[logical].node != nil {
			return nil, fmt.Errorf("block %d does not exist or is used twice", logical)
		}
		claimed++
		return &d.blocks[logical], nil
	}
	if d.nodes == nil {
		l := b.first[d]
		if l == nil || len(d.blocks) != 1 {
			return errors.New("more than one block, but no index")
		}
		d.blocks[0].leaf = l
		return nil
	}
	limit := nodeLimit
	if d.inRoot {
		limit = rootLimit
	} else {
		claimed++ // block 0, which holds neither node nor leaf
	}
	var last uint32
	for ni, n := range d.nodes {
		r, err := claim(n.logical)
		if err != nil {
			return err
		}
		if (n.logical == 0) != d.inRoot || len(n.leaves) == 0 || len(n.leaves) > limit {
			return errors.New("index node is empty, too full or in the wrong place")
		}
		r.node = n
		for li, l := range n.leaves {
			if l.logical == 0 || (l.start == 0) != (ni == 0 && li == 0) || l.start < last || l.start == last && l.start&1 == 0 && l.start != 0 {
				return errors.New("hash tree is not in order")
			}
			if r, err = claim(l.logical); err != nil {
				return err
			}
			r.leaf = l
			last = l.start
		}
	}
	if claimed != len(d.blocks) {
		return errors.New("has blocks that are not in its hash tree")
	}
	return checkHashes(d)
}

// checkHashes computes the entries' hashes and checks that a search finds them: below the
// start of the next leaf, and not below the leaf's own, whose lowest bit does not count.
func checkHashes(d *directory) error {
	var prev *leaf
	for _, n := range d.nodes {
		for _, l := range n.leaves {
			for _, e := range l.entries {
				if e.hash = hashName(e.name); e.hash < l.start&^1 {
					return fmt.Errorf("%s is in the wrong block of the hash tree", quote(e.name))
				}
			}
			if prev != nil {
				for _, e := range prev.entries {
					if e.hash >= l.start {
						return fmt.Errorf("%s is in the wrong block of the hash tree", quote(e.name))
					}
				}
			}
			prev = l
		}
	}
	return nil
}

// resolve gives every entry its inode, every directory its parent, and counts links.
func (b *builder) resolve() error {
	for _, d := range b.dirs {
		d.in.nlink += 2
	}
	for _, r := range b.refs {
		if r.ino < 1 || r.ino > 1<<32-1 {
			return fmt.Errorf("entry %s has inode number %d", quote(r.e.name), r.ino)
		}
		in := b.fs.inode(uint32(r.ino))
		if in == nil || in.ino == inoRoot || in.ino == inoJournal {
			return fmt.Errorf("entry %s has inode %d, which cannot have a name", quote(r.e.name), r.ino)
		}
		r.e.in = in
		if in.dir == nil {
			in.nlink++
			continue
		}
		if in.dir.self != nil {
			return fmt.Errorf("directory %d has more than one name", in.ino)
		}
		in.dir.self, in.dir.parent = r.e, r.d
		r.d.in.nlink++
	}
	return nil
}
