package ext4

import (
	"errors"
	"fmt"
	"iter"
	"strings"
)

// FS is the model of a filesystem: all of its metadata and none of its contents. It is not
// safe for concurrent use.
type FS struct {
	lay       layout
	seed      uint32
	blockBits bitmap
	inodeBits bitmap
	groupStat []group

	freeBlocks, freeInodes  uint64
	metaNext, dataNext      uint64 // where the search for a free block goes on
	dirInoNext, fileInoNext uint32
	wrapped                 bool // the disk's end was reached once: freed blocks are used again

	tables []*[groupInodes]*inode // by group
	zone   map[uint64]owner
	dirty  map[uint64]struct{}
	step   uint32 // the layer being applied; entries remember the one that named them
	base   bool   // New's own blocks are not committed yet
	broken error

	// Of a filesystem that a kernel wrote to, see Adopt.
	super    []byte            // superblock
	journal  []byte            // superblock of the journal
	replayed map[uint64][]byte // what the journal has of blocks
	shared   map[uint64]*sharedXattrs
}

// stamp is a point in time: seconds since 1970 and nanoseconds.
type stamp struct {
	sec  int64
	nsec uint32
}

func (s stamp) valid() bool { return s.sec >= -1<<31 && s.sec < 1<<34-1<<31 && s.nsec < 1e9 }

// extent maps n file blocks from logical to n disk blocks from phys.
type extent struct {
	logical, n uint32
	phys       uint64
}

type inode struct {
	ino                 uint32
	mode                uint16 // type and permission, as on disk
	uid, gid            uint32
	size                int64
	nlink               uint32
	atime, mtime, ctime stamp
	major, minor        uint32
	link                string // symlink target
	extents             []extent
	tree                []uint64 // blocks of the extent tree, leaves first
	xattrs              []xattr  // in disk order
	xblock              uint64   // block of the attributes that the inode cannot hold, or 0
	dir                 *directory
	// Of an inode that a kernel wrote: how it was, and what of it was made anew since.
	raw               []byte
	ownMap, ownXattrs bool
	kept              bool // while a layer is applied: its blocks outlive it, for an heir
}

const (
	modeType    = 0xf000
	modeFIFO    = 0x1000
	modeChar    = 0x2000
	modeDir     = 0x4000
	modeBlock   = 0x6000
	modeRegular = 0x8000
	modeSymlink = 0xa000
	modeSocket  = 0xc000
)

// fileType is the type byte of a directory entry.
func fileType(mode uint16) byte {
	switch mode & modeType {
	case modeRegular:
		return 1
	case modeDir:
		return 2
	case modeChar:
		return 3
	case modeBlock:
		return 4
	case modeFIFO:
		return 5
	case modeSocket:
		return 6
	case modeSymlink:
		return 7
	}
	return 0
}

type blockKind byte

const (
	dirBlock blockKind = iota
	treeBlock
	xattrBlock
	sharedBlock // attributes that several inodes have; only kernels make them
)

// owner says whose metadata a block of the zone is.
type owner struct {
	in   *inode
	idx  uint32
	kind blockKind
}

// New makes the model of an empty filesystem: /rootfs, /log and /state (both 0700) and
// lost+found, all owned by root and dated 1970. Its blocks are those that [FS.Dirty] names; every
// other block of the disk must read as zeroes.
func New(g Geometry) (*FS, error) {
	if err := g.check(); err != nil {
		return nil, err
	}
	fs := newModel(g)
	for i := uint32(1); i < firstIno; i++ {
		fs.markInode(i, true)
	}
	root := &inode{ino: inoRoot, mode: modeDir | 0o755, nlink: 2}
	fs.putInode(root)
	if err := fs.initDir(root, nil, nil); err != nil {
		return nil, err
	}
	fs.putJournal()
	for _, d := range []struct {
		name string
		perm uint16
	}{{"lost+found", 0o700}, {RootDir, 0o755}, {"log", 0o700}, {"state", 0o700}} {
		if _, err := fs.mkdir(root.dir, d.name, attrs{mode: d.perm}); err != nil {
			return nil, err
		}
	}
	fs.dirty[fs.lay.journal] = struct{}{}
	for g := range fs.lay.groups {
		fs.dirtyGroup(g)
		if g > 0 && hasBackup(g) {
			for k := range 1 + fs.lay.descBlocks {
				fs.dirty[uint64(g*groupBlocks+k)] = struct{}{}
			}
		}
		// A group that is marked uninitialised needs no bitmap on disk.
		if fs.blocksUninit(g) {
			delete(fs.dirty, fs.lay.blockMap+uint64(g))
		} else {
			fs.dirty[fs.lay.blockMap+uint64(g)] = struct{}{}
		}
	}
	fs.base = true
	return fs, nil
}

// newModel makes a model in which only the fixed structures are marked as used.
func newModel(g Geometry) *FS {
	fs := &FS{seed: crc(0xffffffff, fixedUUID[:]), zone: map[uint64]owner{}, dirty: map[uint64]struct{}{}, step: 1}
	groups := int(g.Bytes / groupBytes)
	fs.blockBits = make(bitmap, groups*groupBlocks/64)
	fs.inodeBits = make(bitmap, groups*groupInodes/64)
	fs.groupStat = make([]group, groups)
	fs.freeBlocks = uint64(groups) * groupBlocks
	fs.freeInodes = uint64(groups) * groupInodes
	type run struct{ start, n uint64 }
	var fixed []run
	fs.lay = newLayout(g.Bytes, func(start, n uint64) { fixed = append(fixed, run{start, n}) })
	for _, r := range fixed {
		fs.markBlocks(r.start, r.n, true)
	}
	fs.tables = make([]*[groupInodes]*inode, groups)
	fs.metaNext, fs.dataNext = fs.lay.metaStart, fs.lay.dataStart
	fs.dirInoNext, fs.fileInoNext = firstIno, groupInodes+1
	return fs
}

// Geometry is what the filesystem was made from.
func (fs *FS) Geometry() Geometry { return Geometry{Bytes: int64(fs.lay.blocks) * BlockSize} }

// Usage counts blocks of [BlockSize] bytes and inodes.
type Usage struct {
	Blocks, FreeBlocks, Inodes, FreeInodes uint64
}

// Usage reports how full the filesystem is.
func (fs *FS) Usage() Usage {
	return Usage{fs.lay.blocks, fs.freeBlocks, uint64(fs.lay.groups) * groupInodes, fs.freeInodes}
}

// Commit ends a step: what [FS.Dirty] named is taken as written, and the next [FS.Apply]
// treats all that exists as belonging to older layers.
func (fs *FS) Commit() {
	clear(fs.dirty)
	fs.step++
	fs.base = false
}

// attrs is what a name is given besides its contents.
type attrs struct {
	mode                uint16 // permission bits
	uid, gid            uint32
	atime, mtime, ctime stamp
	xattrs              []xattr
}

// newInode makes an inode of the given type, not yet named by any directory.
func (fs *FS) newInode(typ uint16, a attrs) (*inode, error) {
	ino, err := fs.allocInode(typ == modeDir)
	if err != nil {
		return nil, err
	}
	in := &inode{ino: ino}
	if err := fs.setAttrs(in, typ, a); err != nil {
		return nil, err
	}
	fs.putInode(in)
	return in, nil
}

func (fs *FS) putInode(in *inode) {
	t := &fs.tables[(in.ino-1)/groupInodes]
	if *t == nil {
		*t = new([groupInodes]*inode)
	}
	(*t)[(in.ino-1)%groupInodes] = in
}

// putJournal makes the inode of the journal, which never changes.
func (fs *FS) putJournal() {
	fs.putInode(&inode{ino: inoJournal, mode: modeRegular | 0o600, nlink: 1, size: journalBlocks * BlockSize,
		extents: []extent{{n: journalBlocks, phys: fs.lay.journal}}})
}

// inode is the inode of a number from 1 on, or nil.
func (fs *FS) inode(ino uint32) *inode {
	if g := (ino - 1) / groupInodes; int64(g) < int64(len(fs.tables)) && fs.tables[g] != nil {
		return fs.tables[g][(ino-1)%groupInodes]
	}
	return nil
}

// all iterates over the inodes by number, the journal's left out.
func (fs *FS) all() iter.Seq[*inode] {
	return func(yield func(*inode) bool) {
		for _, t := range fs.tables {
			if t == nil {
				continue
			}
			for _, in := range t {
				if in != nil && in.ino != inoJournal && !yield(in) {
					return
				}
			}
		}
	}
}

func (fs *FS) setAttrs(in *inode, typ uint16, a attrs) error {
	in.mode = typ | a.mode
	in.uid, in.gid = a.uid, a.gid
	in.atime, in.mtime, in.ctime = a.atime, a.mtime, a.ctime
	fs.touch(in.ino)
	return fs.setXattrs(in, a.xattrs)
}

// setXattrs replaces the attributes; what the inode has no room for goes to a block of its own.
func (fs *FS) setXattrs(in *inode, xs []xattr) error {
	_, outer, err := splitXattrs(xs)
	if err != nil {
		return err
	}
	in.xattrs, in.ownXattrs = xs, true
	fs.leaveShared(in)
	switch {
	case len(outer) > 0 && in.xblock == 0:
		if in.xblock, err = fs.allocMeta(); err != nil {
			return err
		}
		fs.zone[in.xblock] = owner{in, 0, xattrBlock}
	case len(outer) == 0 && in.xblock != 0:
		fs.freeMeta(in.xblock)
		in.xblock = 0
	}
	if in.xblock != 0 {
		fs.dirty[in.xblock] = struct{}{}
	}
	return nil
}

func (fs *FS) freeMeta(b uint64) {
	fs.markBlocks(b, 1, false)
	delete(fs.zone, b)
	delete(fs.dirty, b)
}

// mkdir makes an empty directory.
func (fs *FS) mkdir(parent *directory, name string, a attrs) (*inode, error) {
	in, err := fs.newInode(modeDir, a)
	if err != nil {
		return nil, err
	}
	in.nlink = 2
	e, err := fs.addEntry(parent, name, in)
	if err != nil {
		return nil, err
	}
	if err := fs.initDir(in, parent, e); err != nil {
		return nil, err
	}
	parent.in.nlink++
	fs.touch(parent.in.ino)
	return in, nil
}

// unlink removes a name and, with its last name, what it names: a whole tree for a directory.
func (fs *FS) unlink(d *directory, e *dirent) {
	fs.removeEntry(d, e)
	if e.in.dir == nil {
		fs.drop(e.in)
		return
	}
	d.in.nlink--
	fs.touch(d.in.ino)
	// An explicit stack: the tree may be as deep as it has inodes.
	for stack := []*inode{e.in}; len(stack) > 0; {
		in := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		for _, c := range in.dir.sorted() {
			if c.in.dir != nil {
				stack = append(stack, c.in)
			} else {
				fs.drop(c.in)
			}
		}
		fs.release(in)
	}
}

// drop takes away one of a file's names.
func (fs *FS) drop(in *inode) {
	in.nlink--
	fs.touch(in.ino)
	if in.nlink == 0 {
		fs.release(in)
	}
}

// release frees an inode and its blocks. Extents of the layer being applied are not bound yet
// and hold no blocks.
func (fs *FS) release(in *inode) {
	if !in.kept {
		fs.freeBlocksOf(in)
	}
	fs.leaveShared(in)
	if in.xblock != 0 {
		fs.freeMeta(in.xblock)
	}
	if in.dir != nil {
		fs.groupStat[(in.ino-1)/groupInodes].dirs--
	}
	in.nlink, in.xblock = 0, 0
	fs.tables[(in.ino-1)/groupInodes][(in.ino-1)%groupInodes] = nil
	fs.markInode(in.ino, false)
}

// freeBlocksOf frees an inode's contents and its extent tree.
func (fs *FS) freeBlocksOf(in *inode) {
	for _, e := range in.extents {
		if e.phys&unbound != 0 {
			continue
		}
		fs.markBlocks(e.phys, uint64(e.n), false)
		if in.dir != nil {
			for b := range uint64(e.n) {
				delete(fs.zone, e.phys+b)
				delete(fs.dirty, e.phys+b)
			}
		}
	}
	for _, b := range in.tree {
		fs.freeMeta(b)
	}
	in.extents, in.tree = nil, nil
}

// checkName refuses what no directory can hold.
func checkName(name string) error {
	switch {
	case name == "" || name == "." || name == "..":
		return fmt.Errorf("%q cannot be a name", name)
	case len(name) > 255:
		return fmt.Errorf("name %.40q... is %d bytes long: 255 is the limit", name, len(name))
	case strings.ContainsAny(name, "/\x00"):
		return fmt.Errorf("name %q contains a slash or a NUL", name)
	}
	return nil
}

var errTooManyLinks = errors.New("more than 65000 hard links to one file")
