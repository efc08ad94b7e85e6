package imagestore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/vmware/govmomi/vim25/mo"

	"github.com/vicsdk/vic-go/internal/chain"
	"github.com/vicsdk/vic-go/internal/ext4"
	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/internal/vsphere"
	"github.com/vicsdk/vic-go/vic"
)

// An FS is the file tree of an image or of a container that is off, read from
// its disk with no machine running. Names are slash paths from the container's
// root, with or without a leading slash; symlinks are followed inside the root
// and lead nowhere else. Its methods may be called by several goroutines.
//
// What does not exist is vic.ErrNotFound (and fs.ErrNotExist). What the disk
// holds comes from whoever ran the container: it is checked, and a damaged disk
// gives errors.
type FS struct {
	s    *Store
	disk *chain.Disk
	r    *ext4.Reader
	ref  vic.Ref
}

// FileInfo is what is known of a file.
type FileInfo struct {
	// Name is the last element of the path.
	Name string
	// Mode has type, permissions, setuid, setgid and sticky.
	Mode     fs.FileMode
	UID, GID uint32
	// Size in bytes; of a symlink, its target's length.
	Size  int64
	Links uint32
	// Modified, Accessed and Changed (the inode's own change), in UTC.
	Modified, Accessed, Changed time.Time
	// Major and Minor of a device.
	Major, Minor uint32
	// Link is a symlink's target, as it is.
	Link string
	// Xattrs by their full names; nil if there are none.
	Xattrs map[string][]byte
}

// A DirEntry is a name in a directory.
type DirEntry struct {
	Name string
	// Type has the type bits only.
	Type fs.FileMode
}

// OpenFS opens the file tree of a disk: an image's Root, or the top disk of a
// container, with its parents. It must not be the disk of a VM that runs. ctx
// bounds all reading, not just this call. The caller closes it.
func (s *Store) OpenFS(ctx context.Context, top vic.Disk) (*FS, error) {
	const op = "open file tree"
	ref := vic.Ref{Kind: "disk", ID: top.Path}
	d, err := s.openDisk(ctx, top.Path, nil)
	if err != nil {
		return nil, fault.Wrap(op, ref, err)
	}
	r, err := ext4.Open(d, d.Size())
	if err == nil {
		r, err = r.Sub(ext4.RootDir)
	}
	if err != nil {
		return nil, fault.Wrap(op, ref, errors.Join(err, d.Close()))
	}
	return &FS{s: s, disk: d, r: r, ref: ref}, nil
}

// Close closes the disk's files.
func (f *FS) Close() error { return f.disk.Close() }

// wrap gives an error of a file its kind.
func (f *FS) wrap(op string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		err = fault.As(vic.ErrNotFound, err)
	}
	return fault.Wrap(op, f.ref, err)
}

func fileInfo(name string, i ext4.Info) FileInfo {
	return FileInfo{
		Name: path.Base(path.Clean("/" + name)), Mode: i.Mode, UID: i.UID, GID: i.GID, Size: i.Size, Links: i.Nlink,
		Modified: i.Mtime, Accessed: i.Atime, Changed: i.Ctime, Major: i.Major, Minor: i.Minor, Link: i.Link, Xattrs: i.Xattrs,
	}
}

// Stat describes what a name leads to.
func (f *FS) Stat(name string) (FileInfo, error) {
	i, err := f.r.Stat(name)
	return fileInfo(name, i), f.wrap("stat file", err)
}

// Lstat describes a name; a symlink itself, not its target.
func (f *FS) Lstat(name string) (FileInfo, error) {
	i, err := f.r.Lstat(name)
	return fileInfo(name, i), f.wrap("stat file", err)
}

// ReadDir lists a directory by name.
func (f *FS) ReadDir(name string) ([]DirEntry, error) {
	es, err := f.r.ReadDir(name)
	out := make([]DirEntry, len(es))
	for i, e := range es {
		out[i] = DirEntry{Name: e.Name, Type: e.Type}
	}
	return out, f.wrap("list directory", err)
}

// Readlink is the target of a symlink, as it is.
func (f *FS) Readlink(name string) (string, error) {
	l, err := f.r.Readlink(name)
	return l, f.wrap("read symlink", err)
}

// Resolve gives the path of what a name leads to, without symlinks, with a
// leading slash.
func (f *FS) Resolve(name string) (string, error) {
	p, err := f.r.Resolve(name)
	return p, f.wrap("resolve file", err)
}

// A File is a regular file that is open. It reads, seeks and reads at offsets,
// the latter by several goroutines. There is nothing to close.
type File struct {
	io.ReadSeeker
	io.ReaderAt
	Info FileInfo
}

// Open opens a regular file, following symlinks.
func (f *FS) Open(name string) (*File, error) {
	o, err := f.r.OpenFile(name)
	if err != nil {
		return nil, f.wrap("open file", err)
	}
	return &File{ReadSeeker: o, ReaderAt: o, Info: fileInfo(name, o.Info())}, nil
}

// TarOptions are the details of FS.TarOut; nil means none.
type TarOptions struct {
	// Name is what the first entry is called; the last element of the path
	// where it is empty.
	Name string
}

// TarOut writes a file, or a directory with all below it, as a tar in PAX
// format, as "docker cp" does. A symlink at the end of name is written itself,
// not what it leads to. The same tree gives the same bytes.
func (f *FS) TarOut(w io.Writer, name string, o *TarOptions) error {
	if o == nil {
		o = &TarOptions{}
	}
	return f.wrap("read files", f.r.TarOut(w, name, &ext4.TarOptions{Name: o.Name, Sparse: false}))
}

// A Change is a path that a container changed.
type Change struct {
	// Kind is "C" for changed, "A" for added, "D" for deleted.
	Kind string `json:"kind"`
	Path string `json:"path"`
}

// Changes lists what a container changed in its image's file tree, by path. As
// "docker diff", it lists a directory as changed if something in it changed, and
// not what was in a directory that is gone; what a container needs for being
// started (the mount points of /dev, /proc and others) is no change of its own.
// The disk of an image is vic.ErrInvalid.
func (f *FS) Changes() ([]Change, error) {
	c, err := f.changes()
	return c, f.wrap("compare with the image", err)
}

func (f *FS) changes() ([]Change, error) {
	links := f.disk.Links()
	_, ds := f.s.files.Datastore()
	layers := diskPath(ds, f.s.path("layers")) + "/"
	n := slices.IndexFunc(links, func(l chain.Link) bool { return strings.HasPrefix(l.Path, layers) })
	if n <= 0 {
		return nil, fault.Of(vic.ErrInvalid, "it is no container's disk on an image of %s", f.s.files.Path(f.s.dir))
	}
	lower := f.disk
	var runs []ext4.Range
	for range n {
		if err := lower.TopRuns(func(off, n int64) error {
			runs = append(runs, ext4.Range{Off: off, N: n})
			return nil
		}); err != nil {
			return nil, err
		}
		lower = lower.Parent()
	}
	lr, err := ext4.Open(lower, lower.Size())
	if err == nil {
		lr, err = lr.Sub(ext4.RootDir)
	}
	if err != nil {
		return nil, fmt.Errorf("the image: %w", err)
	}
	points := &mountPoints{lower: lr, upper: f.r}
	all, err := ext4.Diff(lr, f.r, &ext4.DiffOptions{Changed: merge(runs), Skip: points.skip})
	if err != nil {
		return nil, err
	}
	out := []Change{}
	for i, c := range all {
		last := i+1 == len(all) || !strings.HasPrefix(all[i+1].Path, strings.TrimSuffix(c.Path, "/")+"/")
		if c.Path == "/" || c.Kind == ext4.Modified && last && points.only(c.Path) {
			continue
		}
		out = append(out, Change{Kind: c.Kind.String(), Path: c.Path})
	}
	return out, nil
}

// merge puts ranges in order and joins those that touch.
func merge(r []ext4.Range) []ext4.Range {
	slices.SortFunc(r, func(a, b ext4.Range) int { return int(min(max(a.Off-b.Off, -1), 1)) })
	var out []ext4.Range
	for _, x := range r {
		if n := len(out); n > 0 && x.Off <= out[n-1].Off+out[n-1].N {
			out[n-1].N = max(out[n-1].N, x.Off+x.N-out[n-1].Off)
			continue
		}
		out = append(out, x)
	}
	return out
}

// mountPoints are what a guest makes in a container's tree to mount something
// on: empty directories and files that the image lacks.
type mountPoints struct {
	lower, upper *ext4.Reader
	parents      map[string]bool
}

func (m *mountPoints) skip(name string) bool {
	switch name {
	case "dev", "proc", "sys", "etc", "etc/hosts", "etc/hostname", "etc/resolv.conf":
	default:
		return false
	}
	if _, err := m.lower.Lstat(name); !errors.Is(err, fs.ErrNotExist) {
		return false
	}
	i, err := m.upper.Lstat(name)
	if err != nil || !i.Mode.IsDir() && (!i.Mode.IsRegular() || i.Size > 0) {
		return false
	}
	if i.Mode.IsDir() {
		es, err := m.upper.ReadDir(name)
		if err != nil {
			return false
		}
		for _, e := range es {
			if !m.skip(path.Join(name, e.Name)) {
				return false
			}
		}
	}
	if m.parents == nil {
		m.parents = map[string]bool{}
	}
	m.parents[path.Dir("/"+name)] = true
	return true
}

// only tells whether a directory differs by nothing but such names in it.
func (m *mountPoints) only(name string) bool {
	if !m.parents[name] {
		return false
	}
	a, err := m.lower.Lstat(name)
	if err != nil {
		return false
	}
	b, err := m.upper.Lstat(name)
	return err == nil && a.Mode == b.Mode && a.UID == b.UID && a.GID == b.GID && len(a.Xattrs) == len(b.Xattrs)
}

// openDisk opens a disk by its datastore path, with its parents, which may lie
// on other datastores. replace, where it is not nil, gives another file in the
// place of one.
func (s *Store) openDisk(ctx context.Context, top string, replace func(p string) chain.File) (*chain.Disk, error) {
	ds, file, err := vsphere.SplitPath(top)
	if err != nil {
		return nil, err
	}
	return chain.Open(ctx, diskPath(ds, file), func(ctx context.Context, p string) (chain.File, error) {
		if replace != nil {
			if f := replace(p); f != nil {
				return f, nil
			}
		}
		files, rel, err := s.locate(ctx, p)
		if err != nil {
			return nil, err
		}
		return files.OpenFile(ctx, rel)
	})
}

// volumes is where ESXi shows datastores, and what a disk's hint to a parent in
// another directory begins with.
const volumes = "/vmfs/volumes/"

func diskPath(datastore, file string) string { return path.Join(volumes, datastore, file) }

// locate finds the datastore of a path such as ESXi has: by name, or by the
// volume's identifier.
func (s *Store) locate(ctx context.Context, p string) (*vsphere.Files, string, error) {
	rest, ok := strings.CutPrefix(p, volumes)
	volume, rel, ok2 := strings.Cut(rest, "/")
	if !ok || !ok2 {
		return nil, "", fault.Of(vic.ErrInvalid, "%s is on no datastore", p)
	}
	if _, name := s.files.Datastore(); name == volume {
		return s.files, rel, nil
	}
	d, err := s.c.Session().Datastore(ctx, volume, func(d vsphere.Datastore) bool { return d.Name == volume })
	if err == nil {
		return s.c.Session().Files(d.Ref, d.Name), rel, nil
	}
	all, e := s.c.Session().Datastores(ctx, false)
	if e != nil {
		return nil, "", e
	}
	for _, d := range all {
		var m mo.Datastore
		if e := vsphere.Properties(ctx, s.c.Session(), d.Ref, []string{"summary.url"}, &m); e != nil {
			return nil, "", e
		}
		if path.Base(strings.TrimSuffix(m.Summary.Url, "/")) == volume {
			return s.c.Session().Files(d.Ref, d.Name), rel, nil
		}
	}
	return nil, "", err
}
