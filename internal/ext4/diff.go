package ext4

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
)

// ChangeKind says what happened to a path.
type ChangeKind byte

const (
	Modified ChangeKind = iota
	Added
	Deleted
)

// String gives the letters of "docker diff".
func (k ChangeKind) String() string { return string("CAD"[k%3]) }

// Change is a path of which two trees differ.
type Change struct {
	Kind ChangeKind
	Path string // from the Readers' root, with a leading slash
}

// Range is N bytes of a disk from byte Off on.
type Range struct{ Off, N int64 }

// DiffOptions are the details of a comparison; nil means none.
type DiffOptions struct {
	// Changed lists, in ascending order, where the disks of the two Readers may differ: what the
	// upper link of a chain holds itself. What both have in the same place outside of it is equal
	// without being read. Empty means not known: all contents are read that are not holes.
	Changed []Range
	// Skip, if set, leaves out a path and all below it. Paths are without a leading slash.
	Skip func(name string) bool
}

// Diff lists what has to be done to the tree of lower to get that of upper, by path, a directory
// before what is in it. The two are usually one filesystem at two points of its history, but
// inode numbers are not relied on: what counts is type, permissions, owner, modification time,
// device, target, extended attributes, contents, and which names are hard links of each other.
//
// As "docker diff" does, it lists a directory as modified if anything in it changed, the root
// excepted, and does not list what was in a directory that is gone.
func Diff(lower, upper *Reader, o *DiffOptions) ([]Change, error) {
	d, err := newDiffer(lower, upper, o)
	if err != nil {
		return nil, err
	}
	out := make([]Change, len(d.out))
	for i, c := range d.out {
		out[i] = c.Change
	}
	return out, nil
}

// DiffTar writes what [Diff] finds as an uncompressed layer of the OCI image specification
// ("Creating a Filesystem Changeset"): deleted paths are whiteouts; a directory that was
// replaced by another has a whiteout for each of the names that are gone, as umoci's and
// containerd's have. If one name of a file changed, all its names are in the layer, so that they stay
// one file wherever it is unpacked. Sockets are left out. Names that start with ".wh." cannot be
// told from whiteouts and are an error.
func DiffTar(w io.Writer, lower, upper *Reader, o *DiffOptions, t *TarOptions) error {
	if t == nil {
		t = &TarOptions{}
	}
	if o == nil {
		o = &DiffOptions{}
	}
	if t.Skip != nil {
		both, skip := *o, o.Skip
		both.Skip = func(name string) bool { return t.Skip(name) || skip != nil && skip(name) }
		o = &both
	}
	d, err := newDiffer(lower, upper, o)
	if err != nil {
		return err
	}
	tw := newTarWriter(upper.v, w, t.Sparse)
	for _, c := range d.layer() {
		name := c.Path[1:]
		for rest := name; rest != ""; {
			var part string
			part, rest, _ = strings.Cut(rest, "/")
			if strings.HasPrefix(part, whiteoutPrefix) {
				return fmt.Errorf("ext4: tar: %s: a name that starts with %s would delete another when the layer is unpacked: rename it", quote(name), whiteoutPrefix)
			}
		}
		if c.Kind == Deleted {
			if err := tw.whiteout(name); err != nil {
				return err
			}
			continue
		}
		in, err := upper.v.inode(c.ino)
		if err != nil {
			return err
		}
		info, err := upper.info(in)
		if err != nil {
			return err
		}
		if name == "" {
			name = "."
		}
		if err := tw.add(name, in, info); err != nil {
			return err
		}
	}
	return tw.tw.Close()
}

type change struct {
	Change
	ino uint32 // of upper, 0 if deleted
}

type differ struct {
	o            *DiffOptions
	lower, upper *Reader
	touched      []uint64 // blocks that one of the journals speaks for, sorted
	out          []change
	names        map[uint32][]string // upper's files with several names
	changed      map[uint32]bool     // those of which one is in out
	firstLower   map[uint32]string
	firstUpper   map[uint32]string
	bufs         [2][]byte
}

// side is a file of one of the trees.
type side struct {
	in   *rawInode
	info Info
	dir  bool
}

// frame is a directory on the way: how far its listing was compared, and whether it is in out.
type frame struct {
	name   string
	names  []string
	lo, up map[string]uint32 // nil if there is no such directory
	ino    uint32            // upper's
	listed bool
}

func newDiffer(lower, upper *Reader, o *DiffOptions) (*differ, error) {
	if o == nil {
		o = &DiffOptions{}
	}
	if lower.v.super.blockSize != upper.v.super.blockSize {
		return nil, errors.New("ext4: diff: the filesystems have different block sizes")
	}
	d := &differ{o: o, lower: lower, upper: upper, names: map[uint32][]string{}, changed: map[uint32]bool{}, firstLower: map[uint32]string{}, firstUpper: map[uint32]string{}}
	for _, v := range []*volume{lower.v, upper.v} {
		d.touched = slices.AppendSeq(d.touched, maps.Keys(v.overlay))
	}
	slices.Sort(d.touched)
	for i := range d.bufs {
		d.bufs[i] = make([]byte, pieceBytes)
	}
	return d, d.run()
}

func (d *differ) run() error {
	guards := [2]dirGuard{{v: d.lower.v}, {v: d.upper.v}}
	var stack []*frame
	// enter lists a directory of one or both trees.
	enter := func(name string, lo, up *rawInode, listed bool) error {
		f := &frame{name: name, listed: listed}
		for i, in := range []*rawInode{lo, up} {
			if in == nil {
				continue
			}
			if err := guards[i].enter(in, len(stack)); err != nil {
				return err
			}
			entries, err := []*Reader{d.lower, d.upper}[i].v.readDir(in)
			if err != nil {
				return err
			}
			m := make(map[string]uint32, len(entries))
			for _, e := range entries {
				m[e.Name] = e.Ino
				f.names = append(f.names, e.Name)
			}
			if i == 0 {
				f.lo = m
			} else {
				f.up, f.ino = m, in.ino
			}
		}
		slices.Sort(f.names)
		f.names = slices.Compact(f.names)
		stack = append(stack, f)
		return nil
	}
	fail := func(name string, err error) error { return &fs.PathError{Op: "diff", Path: "/" + name, Err: err} }
	emit := func(c change) {
		for _, f := range stack {
			if !f.listed {
				f.listed = true
				d.out = append(d.out, change{Change{Modified, "/" + f.name}, f.ino})
			}
		}
		d.out = append(d.out, c)
		d.changed[c.ino] = true
	}

	lo, err := d.load(d.lower, d.lower.root)
	if err != nil {
		return fail("", err)
	}
	up, err := d.load(d.upper, d.upper.root)
	if err != nil {
		return fail("", err)
	}
	if same, err := d.same(lo, up); err != nil {
		return fail("", err)
	} else if !same {
		emit(change{Change{Modified, "/"}, up.in.ino})
	}
	if err := enter("", lo.in, up.in, true); err != nil {
		return fail("", err)
	}
	for len(stack) > 0 {
		f := stack[len(stack)-1]
		if len(f.names) == 0 {
			stack = stack[:len(stack)-1]
			continue
		}
		base := f.names[0]
		f.names = f.names[1:]
		name := path.Join(f.name, base)
		if d.o.Skip != nil && d.o.Skip(name) {
			continue
		}
		var lo, up side
		loIno, inLo := f.lo[base]
		upIno, inUp := f.up[base]
		if inLo {
			if lo, err = d.load(d.lower, loIno); err != nil {
				return fail(name, err)
			}
		}
		if inUp {
			if up, err = d.load(d.upper, upIno); err != nil {
				return fail(name, err)
			}
		}
		same := false
		switch {
		case !inUp:
			emit(change{Change{Deleted, "/" + name}, 0})
			continue
		case !inLo:
			d.named(name, up)
			emit(change{Change{Added, "/" + name}, upIno})
		default:
			d.named(name, up)
			linked := first(d.firstLower, name, lo) == first(d.firstUpper, name, up)
			if same, err = d.same(lo, up); err != nil {
				return fail(name, err)
			}
			if same = same && linked; !same {
				emit(change{Change{Modified, "/" + name}, upIno})
			}
		}
		if up.dir {
			below := lo.in
			if !lo.dir {
				below = nil
			}
			if err := enter(name, below, up.in, !same); err != nil {
				return fail(name, err)
			}
		}
	}
	return nil
}

func (d *differ) load(r *Reader, ino uint32) (side, error) {
	in, err := r.v.inode(ino)
	if err != nil {
		return side{}, err
	}
	info, err := r.info(in)
	return side{in, info, in.mode()&modeType == modeDir}, err
}

// several reports whether a file has several names.
func (s side) several() bool { return !s.dir && s.info.Nlink > 1 }

// named notes a name of upper's.
func (d *differ) named(name string, up side) {
	if up.several() {
		d.names[up.in.ino] = append(d.names[up.in.ino], name)
	}
}

// first is the first of a file's names that both trees have: where it is not the same in both,
// other names are links of each other.
func first(seen map[uint32]string, name string, s side) string {
	if !s.several() {
		return name
	}
	if f, ok := seen[s.in.ino]; ok {
		return f
	}
	seen[s.in.ino] = name
	return name
}

// same compares two files that have one path.
func (d *differ) same(lo, up side) (bool, error) {
	a, b := &lo.info, &up.info
	if a.Mode != b.Mode || a.UID != b.UID || a.GID != b.GID || !a.Mtime.Equal(b.Mtime) || a.Major != b.Major || a.Minor != b.Minor ||
		a.Link != b.Link || !lo.dir && a.Size != b.Size || !maps.EqualFunc(a.Xattrs, b.Xattrs, bytes.Equal) {
		return false, nil
	}
	if !a.Mode.IsRegular() {
		return true, nil
	}
	return d.sameContents(lo, up)
}

// sameContents compares two files of one size, and reads only what may differ.
func (d *differ) sameContents(lo, up side) (bool, error) {
	bs := d.upper.v.super.blockSize
	trees := [2]*extentMap{newExtentMap(d.lower.v, lo.in), newExtentMap(d.upper.v, up.in)}
	for off := int64(0); off < up.info.Size; {
		var runs [2]blockRun
		for i, m := range trees {
			var err error
			if runs[i], err = m.find(uint64(off / bs)); err != nil {
				return false, err
			}
		}
		l, u := runs[0], runs[1]
		left := up.info.Size - off
		n := left
		if k := min(l.n, u.n); k < uint64((left+bs-1)/bs) {
			n = int64(k) * bs
		}
		if l.zero && u.zero || !l.zero && !u.zero && l.phys == u.phys && d.unchanged(l.phys, uint64((n+bs-1)/bs)) {
			off += n
			continue
		}
		n = min(n, pieceBytes)
		for i, m := range trees {
			if err := m.readAt(d.bufs[i][:n], off); err != nil {
				return false, err
			}
		}
		if !bytes.Equal(d.bufs[0][:n], d.bufs[1][:n]) {
			return false, nil
		}
		off += n
	}
	return true, nil
}

// unchanged reports whether n blocks from b on are known to be the same on both disks.
func (d *differ) unchanged(b, n uint64) bool {
	if len(d.o.Changed) == 0 {
		return false
	}
	if i, found := slices.BinarySearch(d.touched, b); found || i < len(d.touched) && d.touched[i] < b+n {
		return false
	}
	bs := d.upper.v.super.blockSize
	start, end := int64(b)*bs, int64(b+n)*bs
	i, _ := slices.BinarySearchFunc(d.o.Changed, start, func(r Range, at int64) int {
		if r.Off+r.N <= at {
			return -1
		}
		return 1
	})
	return i == len(d.o.Changed) || d.o.Changed[i].Off >= end
}

// layer is what a layer must hold: the changes, and all names of the files that changed.
func (d *differ) layer() []change {
	out := d.out
	have := make(map[string]bool, len(out))
	for _, c := range out {
		have[c.Path] = true
	}
	for ino, names := range d.names {
		if !d.changed[ino] {
			continue
		}
		for _, name := range names {
			if !have["/"+name] {
				out = append(out, change{Change{Modified, "/" + name}, ino})
			}
		}
	}
	// By path, element by element: a directory before what is in it.
	slices.SortFunc(out, func(a, b change) int { return strings.Compare(sortKey(a.Path), sortKey(b.Path)) })
	return out
}

func sortKey(p string) string { return strings.ReplaceAll(p, "/", "\x00") }
