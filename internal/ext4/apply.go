package ext4

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
)

// Extent binds blocks of a layer's spool to the filesystem: spool block Rel+i belongs at
// filesystem block Abs+i, for i below N.
type Extent struct {
	Rel, Abs, N uint64
}

// Apply makes the filesystem what it is after the layer, and returns where the layer's data
// belongs, in the order of the spool. Blocks of the spool that no file has in the end (a path
// that came twice) are left out. The first extent starts on a boundary of 64 KiB, and data
// follows without gaps except where a backup superblock lies in the way, until the disk's end is
// reached; from then on blocks freed by earlier layers are used again.
//
// The rules are those of the OCI image specification ("Applying Changesets"); where it is
// silent, those of umoci:
//
//   - A whiteout removes what older layers put there, however deep, and spares what this layer
//     puts there, whatever the order of entries.
//   - Symlinks among the parents of an entry's name are followed inside /rootfs, and a target
//     that does not exist is made. More than 255 of them are an error.
//   - Missing parents are made with mode 0755, owned by root, dated 1970. A parent that is
//     neither directory nor symlink is replaced by such a directory.
//   - A directory over a directory changes its attributes and keeps its entries; all else is
//     replaced, and its other hard links keep what they have.
//   - The parents' times stay as they are.
//   - The entry of the root sets the attributes of /rootfs.
//
// After an error the model is half changed and refuses all further work; [Unmarshal] or
// [Rebuild] give a fresh one. A [*NoSpaceError] says by how much the filesystem is too small.
func (fs *FS) Apply(l *Layer) ([]Extent, error) { return fs.ApplyWith(l, nil) }

// ApplyWith is [FS.Apply] with options.
func (fs *FS) ApplyWith(l *Layer, o *ApplyOptions) ([]Extent, error) {
	if o == nil {
		o = &ApplyOptions{}
	}
	if (o.Spool == nil) != (o.Parent == nil) {
		return nil, errors.New("ext4: ApplyOptions.Spool and Parent: set both, to reuse contents, or neither")
	}
	if fs.broken != nil {
		return nil, fmt.Errorf("ext4: the model is unusable since an earlier error: %w", fs.broken)
	}
	if fs.base {
		return nil, errors.New("ext4: Apply before Commit: the empty filesystem's own blocks would be lost")
	}
	out, err := fs.apply(l, o)
	if err != nil {
		var full *NoSpaceError
		if errors.As(err, &full) && !full.Inodes {
			full.Missing = max(full.Missing, int64(l.Blocks-min(l.Blocks, fs.freeBlocks))*BlockSize)
		}
		fs.broken = err
		return nil, err
	}
	return out, nil
}

func (fs *FS) apply(l *Layer, o *ApplyOptions) ([]Extent, error) {
	root := fs.inode(inoRoot).dir.names[RootDir]
	a := applier{fs: fs, plain: l.plain, root: root.in.dir, base: root.in.dir, equal: map[int]*inode{}}
	if o.Dir != "" {
		d, err := a.lookup(o.Dir, false)
		if err == nil && d == nil {
			err = errors.New("there is no such directory")
		}
		if err != nil {
			return nil, fmt.Errorf("ext4: apply: ApplyOptions.Dir %s: %w", quote(o.Dir), err)
		}
		a.base, a.last = d, nil
	}
	if o.Parent != nil {
		if err := a.findEqual(l.ops, o); err != nil {
			return nil, fmt.Errorf("ext4: apply: %w", err)
		}
	}
	if o.Contents != nil {
		a.made = make([]*inode, len(l.ops))
	}
	for i := range l.ops {
		if err := a.do(i, &l.ops[i]); err != nil {
			return nil, fmt.Errorf("ext4: apply %s: %w", quote(l.ops[i].name), err)
		}
	}
	out, err := a.bind()
	if err != nil {
		return nil, fmt.Errorf("ext4: apply: %w", err)
	}
	if o.Contents != nil {
		if err := a.contents(l.ops, o.Contents); err != nil {
			return nil, fmt.Errorf("ext4: apply: %w", err)
		}
	}
	return out, nil
}

// applier applies one layer.
type applier struct {
	fs    *FS
	plain bool // no layer
	root  *directory
	base  *directory // where names start: the root, or ApplyOptions.Dir
	// The parent found last; most entries share theirs with the entry before.
	lastPath string
	last     *directory
	fresh    []*inode       // files with contents of this layer
	equal    map[int]*inode // by number of the entry: what has the same contents
	heirs    []heir
	made     []*inode // by number of the entry: the file that it became; nil if nobody asks
}

// parent finds the directory that holds a name, and the name in it.
func (a *applier) parent(name string, create bool) (*directory, string, error) {
	dir, base := path.Split(name)
	d, err := a.lookup(dir, create)
	return d, base, err
}

func (a *applier) do(i int, o *op) error {
	if o.name == "" && o.kind != opOpaque {
		if o.kind != opPut {
			return errors.New("the root can only be a directory")
		}
		return a.setDir(a.base.in, o)
	}
	switch o.kind {
	case opWhiteout:
		d, base, err := a.parent(o.name, false)
		if err != nil || d == nil {
			return err
		}
		if e := d.names[base]; e != nil {
			a.whiteout(d, e)
		}
		return nil
	case opOpaque:
		d, err := a.lookup(o.name, false)
		if err != nil || d == nil {
			return err
		}
		for _, e := range d.sorted() {
			a.whiteout(d, e)
		}
		return nil
	}
	d, base, err := a.parent(o.name, true)
	if err != nil {
		return err
	}
	if o.kind == opLink {
		return a.link(d, base, o)
	}
	return a.put(d, base, i, o)
}

// whiteout removes what only older layers named, from e downwards.
func (a *applier) whiteout(d *directory, e *dirent) {
	type item struct {
		d *directory
		e *dirent
	}
	for stack := []item{{d, e}}; len(stack) > 0; {
		it := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if it.e.step < a.fs.step {
			a.unlink(it.d, it.e)
		} else if sub := it.e.in.dir; sub != nil {
			for _, c := range sub.sorted() {
				stack = append(stack, item{sub, c})
			}
		}
	}
}

func (a *applier) unlink(d *directory, e *dirent) {
	a.last = nil
	a.fs.unlink(d, e)
}

// touched notes that this layer named something in d, so that no whiteout of this layer
// removes d. All parents of a directory that was touched are.
func (a *applier) touched(d *directory) {
	for ; d != a.root && d.self.step != a.fs.step; d = d.parent {
		d.self.step = a.fs.step
	}
}

var errSymlinks = errors.New("more than 255 symlinks on the way")

// lookup finds a directory below the root, following symlinks. With create it makes what is
// missing; otherwise it returns nil for what is missing or no directory.
func (a *applier) lookup(name string, create bool) (*directory, error) {
	if a.last != nil && name == a.lastPath {
		return a.last, nil
	}
	cur, links := a.base, 0
	for rest := name; rest != ""; {
		var c string
		c, rest, _ = strings.Cut(rest, "/")
		switch c {
		case "", ".":
			continue
		case "..":
			if cur != a.root {
				cur = cur.parent
			}
			continue
		}
		e := cur.names[c]
		if e != nil && e.in.mode&modeType == modeSymlink {
			if links++; links > 255 {
				return nil, errSymlinks
			}
			if strings.HasPrefix(e.in.link, "/") {
				cur = a.root
			}
			rest = e.in.link + "/" + rest
			continue
		}
		if e == nil || e.in.dir == nil {
			if !create {
				return nil, nil
			}
			if err := checkName(c); err != nil {
				return nil, err
			}
			if e != nil {
				a.unlink(cur, e)
			}
			in, err := a.fs.mkdir(cur, c, attrs{mode: 0o755})
			if err != nil {
				return nil, err
			}
			a.touched(cur)
			cur = in.dir
			continue
		}
		cur = e.in.dir
	}
	a.lastPath, a.last = name, cur
	return cur, nil
}

// setDir gives a directory that is there new attributes. An archive that is no layer adds extended
// attributes to those it has, as programs do that unpack.
func (a *applier) setDir(in *inode, o *op) error {
	at := o.attrs
	if a.plain {
		at.xattrs = slices.Clone(at.xattrs)
		for _, old := range in.xattrs {
			if !slices.ContainsFunc(o.attrs.xattrs, func(x xattr) bool { return x.index == old.index && x.name == old.name }) {
				at.xattrs = append(at.xattrs, old)
			}
		}
		sortXattrs(at.xattrs)
	}
	return a.fs.setAttrs(in, modeDir, at)
}

// put makes a directory, file, symlink, device or FIFO.
func (a *applier) put(d *directory, base string, i int, o *op) error {
	old := d.names[base]
	a.touched(d)
	if o.typ == modeDir {
		if old != nil && old.in.dir != nil {
			old.step = a.fs.step
			return a.setDir(old.in, o)
		}
		if old != nil {
			a.unlink(d, old)
		}
		_, err := a.fs.mkdir(d, base, o.attrs)
		return err
	}
	var from *inode
	if old != nil && a.unchanged(i, o, old.in) {
		if old.in.nlink == 1 {
			old.step = a.fs.step
			a.note(i, old.in)
			return a.fs.setAttrs(old.in, o.typ, o.attrs)
		}
		if o.typ == modeRegular {
			from = old.in
			from.kept = true
		}
	}
	if old != nil {
		a.unlink(d, old)
	}
	in, err := a.fs.newInode(o.typ, o.attrs)
	if err != nil {
		return err
	}
	a.note(i, in)
	if from != nil {
		a.heirs = append(a.heirs, heir{in, from})
	}
	in.nlink, in.size, in.link = 1, o.size, o.link
	in.major, in.minor = o.major, o.minor
	if len(o.extents) > 0 {
		in.extents = make([]extent, len(o.extents))
		for i, e := range o.extents {
			e.phys |= unbound
			in.extents[i] = e
		}
		a.fresh = append(a.fresh, in)
	}
	_, err = a.fs.addEntry(d, base, in)
	return err
}

func (a *applier) link(d *directory, base string, o *op) error {
	from, name, err := a.parent(o.link, false)
	if err != nil {
		return err
	}
	if from == nil || from.names[name] == nil {
		return fmt.Errorf("hard link target %s does not exist: it must be in an older layer, or before its link in this one", quote(o.link))
	}
	target := from.names[name].in
	if target.dir != nil {
		return fmt.Errorf("hard link target %s is a directory", quote(o.link))
	}
	a.touched(d)
	if old := d.names[base]; old != nil {
		if old.in == target {
			old.step = a.fs.step
			return nil
		}
		a.unlink(d, old)
		if target.nlink == 0 {
			return fmt.Errorf("hard link target %s lies below the directory that the link replaces", quote(o.link))
		}
	}
	if target.nlink >= maxLinks {
		return errTooManyLinks
	}
	if _, err := a.fs.addEntry(d, base, target); err != nil {
		return err
	}
	target.nlink++
	a.fs.touch(target.ino)
	return nil
}

// bind gives addresses to the contents of all files of this layer that are still there.
func (a *applier) bind() ([]Extent, error) {
	fs := a.fs
	a.inherit()
	var need uint64
	for _, in := range a.fresh {
		for _, e := range in.extents {
			if e.phys&unbound != 0 {
				need += uint64(e.n)
			}
		}
	}
	if need == 0 {
		return nil, nil
	}
	if need > fs.freeBlocks {
		return nil, &NoSpaceError{Missing: int64(need-fs.freeBlocks) * BlockSize}
	}
	if !fs.wrapped {
		fs.dataNext = min(roundUp(fs.dataNext, grainBlocks), fs.lay.blocks)
	}
	var out []Extent
	for _, in := range a.fresh {
		rel := in.extents // empty if the file is gone again
		if len(rel) == 0 || rel[0].phys&unbound == 0 {
			continue // or has inherited
		}
		in.extents = nil
		for _, e := range rel {
			for e.n > 0 {
				start, n, err := fs.allocRun(uint64(e.n))
				if err != nil {
					return nil, err
				}
				got := extent{e.logical, uint32(n), start}
				if k := len(in.extents) - 1; k >= 0 && in.extents[k].end() == got.phys &&
					in.extents[k].logical+in.extents[k].n == got.logical && in.extents[k].n+got.n <= maxExtentBlocks {
					in.extents[k].n += got.n
				} else {
					in.extents = append(in.extents, got)
				}
				r := e.phys &^ unbound
				if k := len(out) - 1; k >= 0 && out[k].Rel+out[k].N == r && out[k].Abs+out[k].N == start {
					out[k].N += n
				} else {
					out = append(out, Extent{r, start, n})
				}
				e.logical += uint32(n)
				e.phys += n
				e.n -= uint32(n)
			}
		}
		if in.nlink > 0 {
			if err := fs.growTree(in); err != nil {
				return nil, err
			}
			fs.touch(in.ino)
		}
	}
	return out, nil
}

func (e extent) end() uint64 { return e.phys + uint64(e.n) }
