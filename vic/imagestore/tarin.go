package imagestore

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"github.com/vicsdk/vic-go/internal/chain"
	"github.com/vicsdk/vic-go/internal/ext4"
	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/internal/vmdk"
	"github.com/vicsdk/vic-go/internal/vsphere"
	"github.com/vicsdk/vic-go/vic"
)

// TarInOptions are the details of TarIn; nil means none.
type TarInOptions struct {
	// KeepTypes refuses an archive that would put something else in the place
	// of a directory, or a directory in the place of something else
	// (vic.ErrConflict).
	KeepTypes bool
}

// TarIn unpacks a tar into a directory of a container that is off, which must
// exist, as "docker cp" does. All of it is there then, or nothing: the disk's
// extent is made anew beside the old one and takes its place by one rename on the
// datastore, which vSphere refuses while a VM uses it (vic.ErrInUse). What a kernel
// wrote is kept, and a filesystem that was cut off by power is repaired from its
// journal first.
//
// Only disks of type vmfsSparse can be changed from outside, on datastores that
// take uploaded ones (capability vmfsSparseSupported); others are
// vic.ErrUnsupported, and so is a filesystem that needs repair beyond its journal. An
// archive that is damaged, or is no tar, is vic.ErrInvalid; one that does not fit,
// vic.ErrNoSpace. The disk of an image is vic.ErrInvalid.
//
// The whole extent is read and written again, so the time it takes grows with
// what the container wrote. Beside the archive's size, Options.TempDir needs room for it.
func (s *Store) TarIn(ctx context.Context, top vic.Disk, dir string, r io.Reader, o *TarInOptions) error {
	if o == nil {
		o = &TarInOptions{}
	}
	err := s.alone(ctx, top.Path, func(ctx context.Context, s *Store) error {
		t := &tarIn{s: s, top: top.Path}
		defer t.close()
		return t.run(ctx, dir, r, o)
	})
	return fault.Wrap("unpack into", vic.Ref{Kind: "disk", ID: top.Path}, err)
}

// alone runs f as the only one that changes something, which is called what,
// by this store's leases.
func (s *Store) alone(ctx context.Context, what string, f func(ctx context.Context, s *Store) error) error {
	h := sha256.Sum256([]byte(what))
	return s.using(ctx, leaseDoc{}, func(ctx context.Context, s *Store) error {
		name := []string{"disk-" + hex.EncodeToString(h[:16])}
		end, free, err := s.reserve(ctx, name, 0, func() {})
		for err == nil && end == 0 {
			end, free, err = s.reserve(ctx, name, 0, func() {})
		}
		if err != nil {
			return err
		}
		defer free()
		return f(ctx, s)
	})
}

type tarIn struct {
	s    *Store
	top  string
	disk *chain.Disk
	// extent is the old one.
	files  *vsphere.Files
	extent string // from the datastore's root
	link   chain.Link
	mark   mark

	contents, fresh *os.File // nameless
}

func (t *tarIn) close() {
	if t.disk != nil {
		t.disk.Close()
	}
	for _, f := range []*os.File{t.contents, t.fresh} {
		if f != nil {
			f.Close()
		}
	}
}

func (t *tarIn) run(ctx context.Context, dir string, r io.Reader, o *TarInOptions) error {
	if err := t.open(ctx); err != nil {
		return err
	}
	reader, err := ext4.Open(t.disk, t.disk.Size())
	if err != nil {
		return err
	}
	if err := t.checkDir(reader, dir); err != nil {
		return err
	}
	if t.contents, err = nameless(t.s.tempDir); err != nil {
		return err
	}
	layer, err := t.read(reader, dir, r, o)
	if err != nil {
		return err
	}
	model, err := ext4.Adopt(reader)
	if err != nil {
		return fault.As(vic.ErrUnsupported, err)
	}
	extents, err := model.ApplyWith(layer, &ext4.ApplyOptions{Dir: dir})
	if err != nil {
		var full *ext4.NoSpaceError
		if errors.As(err, &full) {
			return fault.As(vic.ErrNoSpace, err)
		}
		return fault.As(vic.ErrInvalid, err)
	}
	size, err := t.write(ctx, model, extents)
	if err != nil {
		return err
	}
	if err := t.verify(ctx, size, dir); err != nil {
		return err
	}
	return t.replace(ctx, size)
}

// open opens the disk and notes what its top is like.
func (t *tarIn) open(ctx context.Context) error {
	ds, file, err := vsphere.SplitPath(t.top)
	if err != nil {
		return err
	}
	_, own := t.s.files.Datastore()
	if ds == own && strings.HasPrefix(file, t.s.path("layers")+"/") {
		return fault.Of(vic.ErrInvalid, "it is an image's disk, which never changes")
	}
	if t.files, _, err = t.s.locate(ctx, diskPath(ds, file)); err != nil {
		return err
	}
	d, err := t.s.c.Session().Datastore(ctx, ds, func(d vsphere.Datastore) bool { return d.Name == ds })
	if err != nil {
		return err
	}
	if !d.SparseDisks {
		return fault.Of(vic.ErrUnsupported, "datastore %s takes no uploaded disks (its capability vmfsSparseSupported is not set), so a disk there is changed by the VM that runs on it only", ds)
	}
	// The mark is taken first: what changes while the disk is read changes it.
	before, err := t.s.openDisk(ctx, t.top, nil)
	if err != nil {
		return err
	}
	t.extent = strings.TrimPrefix(before.Links()[0].Extent, volumes+ds+"/")
	before.Close()
	if t.mark, err = t.look(ctx, file); err != nil {
		return err
	}
	if t.disk, err = t.s.openDisk(ctx, t.top, nil); err != nil {
		return err
	}
	t.link = t.disk.Links()[0]
	if t.link.ParentCID == vmdk.NoParent || t.link.Path == t.link.Extent || t.disk.Parent() == nil {
		return fault.Of(vic.ErrUnsupported, "the disk is of type %s; only vmfsSparse children can be changed from outside", t.link.CreateType)
	}
	return nil
}

// mark is what changes when a VM has used a disk, or another process has replaced
// its extent.
type mark struct {
	descriptor string
	size       int64
	at         time.Time
}

func (t *tarIn) look(ctx context.Context, descriptor string) (m mark, err error) {
	b, err := t.files.ReadFile(ctx, descriptor, vmdk.MaxDescriptorBytes)
	if err != nil {
		return m, err
	}
	es, err := t.files.List(ctx, path.Dir(t.extent))
	if err != nil {
		return m, err
	}
	for _, e := range es {
		if e.Name == path.Base(t.extent) {
			return mark{string(b), e.Size, e.Modified}, nil
		}
	}
	return m, fault.Of(vic.ErrNotFound, "there is no extent %s", t.files.Path(t.extent))
}

// checkDir sees that the directory is there.
func (t *tarIn) checkDir(r *ext4.Reader, dir string) error {
	root, err := r.Sub(ext4.RootDir)
	if err != nil {
		return err
	}
	i, err := root.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fault.As(vic.ErrNotFound, err)
	case err != nil:
		return err
	case !i.Mode.IsDir():
		return fault.Of(vic.ErrInvalid, "%s is no directory", dir)
	}
	return nil
}

// read reads the archive; files' contents go to t.contents.
func (t *tarIn) read(reader *ext4.Reader, dir string, r io.Reader, o *TarInOptions) (*ext4.Layer, error) {
	if !o.KeepTypes {
		l, err := ext4.ReadArchive(r, t.contents, ext4.Limits{})
		if err != nil {
			return nil, content(err)
		}
		return l, nil
	}
	root, err := reader.Sub(ext4.RootDir)
	if err != nil {
		return nil, err
	}
	// A second reader looks at the entries' names and types as they pass.
	pr, pw := io.Pipe()
	clash := make(chan error, 1)
	go func() {
		err := typesFit(root, dir, pr)
		_, _ = io.Copy(io.Discard, pr)
		clash <- err
	}()
	l, err := ext4.ReadArchive(io.TeeReader(r, pw), t.contents, ext4.Limits{})
	pw.CloseWithError(err)
	if e := <-clash; err == nil && e != nil {
		return nil, e
	}
	if err != nil {
		return nil, content(err)
	}
	return l, nil
}

// typesFit tells whether no entry changes a directory into something else or
// the reverse.
func typesFit(root *ext4.Reader, dir string, r io.Reader) error {
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if err != nil {
			return nil // ReadArchive tells what is wrong
		}
		name := path.Join(dir, path.Clean("/"+h.Name))
		old, err := root.Lstat(name)
		if err != nil || name == path.Clean(dir) {
			continue
		}
		if old.Mode.IsDir() != (h.Typeflag == tar.TypeDir) {
			what := "a directory, and the archive has something else"
			if !old.Mode.IsDir() {
				what = "no directory, and the archive has one"
			}
			return fault.Of(vic.ErrConflict, "%s is %s", name, what)
		}
	}
}

func nameless(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, "vic-copy-*")
	if err != nil {
		return nil, fmt.Errorf("temporary file: %w", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, fmt.Errorf("temporary file: %w", err)
	}
	return f, nil
}

// write makes the new extent of a copy of the old one, and returns its size.
func (t *tarIn) write(ctx context.Context, model *ext4.FS, extents []ext4.Extent) (int64, error) {
	var err error
	if t.fresh, err = nameless(t.s.tempDir); err != nil {
		return 0, err
	}
	old, err := t.files.Get(ctx, t.extent)
	if err != nil {
		return 0, err
	}
	defer old.Close()
	n, err := io.Copy(t.fresh, old)
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", t.files.Path(t.extent), err)
	}
	if n != t.mark.size {
		return 0, t.changed()
	}
	child, err := vmdk.OpenChild(t.fresh, n, t.disk.Parent())
	if err != nil {
		return 0, fault.As(vic.ErrUnsupported, err)
	}
	buf := make([]byte, 1<<20)
	for _, e := range extents {
		for done := int64(0); done < int64(e.N)*ext4.BlockSize; {
			b := buf[:min(int64(len(buf)), int64(e.N)*ext4.BlockSize-done)]
			if _, err := t.contents.ReadAt(b, int64(e.Rel)*ext4.BlockSize+done); err != nil {
				return 0, err
			}
			if _, err := child.WriteAt(b, int64(e.Abs)*ext4.BlockSize+done); err != nil {
				return 0, err
			}
			done += int64(len(b))
		}
	}
	var b [ext4.BlockSize]byte
	for _, lba := range model.Dirty() {
		model.Block(lba, b[:])
		if _, err := child.WriteAt(b[:], int64(lba)*ext4.BlockSize); err != nil {
			return 0, err
		}
	}
	return child.Finish()
}

// verify reads the tree as it will be.
func (t *tarIn) verify(ctx context.Context, size int64, dir string) error {
	d, err := t.s.openDisk(ctx, t.top, func(p string) chain.File {
		if p == t.link.Extent {
			return &local{t.fresh, size}
		}
		return nil
	})
	if err != nil {
		return err
	}
	defer d.Close()
	r, err := ext4.Open(d, d.Size())
	if err != nil {
		return err
	}
	if n := r.Replayed(); n > 0 {
		return fmt.Errorf("the new filesystem has %d blocks in its journal", n)
	}
	return t.checkDir(r, dir)
}

// local is a file of this machine in a chain; it is closed by its owner.
type local struct {
	*os.File
	size int64
}

func (l *local) Size() int64  { return l.size }
func (l *local) Close() error { return nil }

func (t *tarIn) changed() error {
	return fault.Of(vic.ErrConflict, "the disk was written to meanwhile, by a container that was started or by another copy")
}

// replace uploads the new extent beside the old and puts it in its place.
func (t *tarIn) replace(ctx context.Context, size int64) error {
	dir, base := path.Split(t.extent)
	// What one that was killed left; nobody else is at this disk.
	es, err := t.files.List(ctx, path.Clean(dir))
	if err != nil {
		return err
	}
	prefix := staging + base + "-"
	for _, e := range es {
		if strings.HasPrefix(e.Name, prefix) {
			if err := t.files.Delete(ctx, dir+e.Name); err != nil {
				return err
			}
		}
	}
	tmp := dir + prefix + vsphere.Nonce()
	err = t.files.Put(ctx, tmp, io.NewSectionReader(t.fresh, 0, size), size)
	if err == nil {
		var n int64
		if n, err = t.files.Stat(ctx, tmp); err == nil && n != size {
			err = fault.Of(vic.ErrUnavailable, "%d of %d bytes came to the datastore", n, size)
		}
	}
	if err == nil {
		err = t.s.held.check(ctx)
	}
	if err == nil {
		var now mark
		_, file, _ := vsphere.SplitPath(t.top)
		if now, err = t.look(ctx, file); err == nil && (now.descriptor != t.mark.descriptor || now.size != t.mark.size || !now.at.Equal(t.mark.at)) {
			err = t.changed()
		}
	}
	if err == nil {
		err = t.files.Move(ctx, tmp, t.extent, true)
	}
	if err != nil && !errors.Is(err, vic.ErrUnknownOutcome) {
		dctx, cancel := vsphere.Detached(ctx)
		defer cancel()
		_ = t.files.Delete(dctx, tmp)
	}
	return err
}
