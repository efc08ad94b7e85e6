package imagestore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/internal/vmdk"
	"github.com/vicsdk/vic-go/internal/vsphere"
	"github.com/vicsdk/vic-go/vic"
)

// A Publish says how the disks of layers come to the datastore.
type Publish string

const (
	// PublishAuto uploads where the datastore takes uploaded disks (its
	// capability vmfsSparseSupported), and applies elsewhere.
	PublishAuto Publish = ""
	// PublishUpload puts disks that are written here, as files.
	PublishUpload Publish = "upload"
	// PublishApply has vSphere make each disk, in whatever format the datastore
	// has, and a helper VM write to it what the layer changes.
	PublishApply Publish = "apply"
)

// A publisher puts a layer's disk into a directory that is being filled, and
// says in the layer's record what came of it.
type publisher interface {
	// base makes the disk that all chains stand on, with what sp holds.
	base(ctx context.Context, s *Store, dir string, l *layer, sp *spool) error
	// child makes a child of a disk, which hint names as seen from dir. tell,
	// where it is not nil, hears how many bytes are written.
	child(ctx context.Context, s *Store, dir string, l *layer, sp *spool, parentCID uint32, hint string, tell func(int64)) error
	// readable tells whether the disk of a layer can be read from here.
	readable(b *below) bool
}

// choosePublisher decides how disks are written, by what the options say and what
// the datastore can.
func choosePublisher(o *Options, d vsphere.Datastore) (publisher, error) {
	how := o.Publish
	switch how {
	case PublishUpload, PublishApply:
	case PublishAuto:
		how = PublishApply
		if d.SparseDisks {
			how = PublishUpload
		}
	default:
		return nil, fault.Of(vic.ErrInvalid, "Publish: %q is not %q, %q or empty", o.Publish, PublishUpload, PublishApply)
	}
	if how == PublishUpload {
		if !d.SparseDisks {
			return nil, fault.Of(vic.ErrUnsupported, "Publish: %q: the datastore takes no uploaded disks (its capability vmfsSparseSupported is not set)", how)
		}
		return uploads{}, nil
	}
	why := "Publish asks for it"
	if o.Publish == PublishAuto {
		why = "the datastore takes no uploaded disks (its capability vmfsSparseSupported is not set)"
	}
	if err := o.Helper.check(); err != nil {
		return nil, fault.As(vic.ErrInvalid, fmt.Errorf("layers are written by a helper VM, because %s: %w", why, err))
	}
	return applies{spec: *o.Helper}, nil
}

// uploads is PublishUpload: a thin disk that vSphere makes, a vmfsSparse child
// of it with the empty filesystem, vmfsSparse children of that.
type uploads struct{}

func (u uploads) base(ctx context.Context, s *Store, dir string, l *layer, sp *spool) error {
	l.Depth, l.Extent = 2, sp.size
	if err := s.files.CreateThinDisk(ctx, path.Join(dir, "base.vmdk"), s.bytes); err != nil {
		return err
	}
	// vSphere chose the base's CID; the child must name it.
	cid, err := s.readCID(ctx, path.Join(dir, "base.vmdk"))
	if err != nil {
		return fmt.Errorf("the base disk's descriptor: %w", err)
	}
	return u.child(ctx, s, dir, l, sp, cid, "base.vmdk", nil)
}

func (uploads) child(ctx context.Context, s *Store, dir string, l *layer, sp *spool, parentCID uint32, hint string, tell func(int64)) error {
	if parentCID == 0 {
		return fault.Of(vic.ErrUnsupported, "the parent %s was made by vSphere in a format of which no uploaded disk can be a child: open the store with Publish %q", hint, PublishApply)
	}
	desc, err := vmdk.LayerDescriptor(s.bytes, l.CID, parentCID, hint, extentFile).Encode()
	if err != nil {
		return err
	}
	if err := s.put(ctx, path.Join(dir, diskFile), desc); err != nil {
		return err
	}
	return s.files.Put(ctx, path.Join(dir, extentFile), sp.reader(tell), sp.size)
}

func (uploads) readable(*below) bool { return true }

// applies is PublishApply: a thin disk with the empty filesystem, children of it
// in the datastore's own format. The base has no child beside it, because
// vSphere may name a parent by its whole path, and this one's directory is yet
// to get its name; a layer is published before it becomes a parent.
type applies struct{ spec HelperSpec }

func (a applies) base(ctx context.Context, s *Store, dir string, l *layer, sp *spool) error {
	l.Depth = 1
	if err := s.files.CreateThinDisk(ctx, path.Join(dir, diskFile), s.bytes); err != nil {
		return err
	}
	return a.write(ctx, s, dir, "", l, sp, nil)
}

func (a applies) child(ctx context.Context, s *Store, dir string, l *layer, sp *spool, _ uint32, hint string, tell func(int64)) error {
	return a.write(ctx, s, dir, s.files.Path(path.Join(dir, hint)), l, sp, tell)
}

func (a applies) write(ctx context.Context, s *Store, dir, parent string, l *layer, sp *spool, tell func(int64)) error {
	file := path.Join(dir, diskFile)
	var err error
	l.Extent, err = s.held.write(ctx, s, &a.spec, s.files.Path(file), parent, l.Bytes, func(w io.WriterAt) error { return sp.runs(w, tell) })
	if err != nil {
		return err
	}
	// Writing has changed the CID. One that cannot be read is of no use to
	// anybody but uploads.
	l.CID, err = s.readCID(ctx, file)
	if errors.Is(err, vic.ErrInvalid) {
		l.CID, err = 0, nil
	}
	return err
}

// readable opens the disk. The formats of some datastores are not known here;
// then a layer takes nothing over from the one below but what it leaves alone.
func (applies) readable(b *below) bool {
	var p [1]byte
	_, err := b.ReadAt(p[:], 0)
	if err != nil && b.ctx.Err() == nil {
		b.s.c.Logger().Info("a layer's disk cannot be read from here, so files that come again are stored again", "disk", b.s.disk(b.top).Path, "reason", err)
	}
	return err == nil
}

// readCID reads the content ID of a disk. A descriptor that is not known is
// vic.ErrInvalid.
func (s *Store) readCID(ctx context.Context, p string) (uint32, error) {
	b, err := s.files.ReadFile(ctx, p, vmdk.MaxDescriptorBytes)
	if err != nil {
		return 0, err
	}
	d, err := vmdk.ParseDescriptor(b)
	if err != nil {
		return 0, fault.As(vic.ErrInvalid, err)
	}
	return d.CID, nil
}

// erase deletes what is not published, or not any more. A disk that vSphere made
// is deleted as a disk first: on vSAN its data is no file beside its descriptor,
// and would stay.
func (s *Store) erase(ctx context.Context, p string) error {
	if _, ok := s.publisher.(applies); !ok {
		return s.files.Delete(ctx, p)
	}
	tree, err := s.files.Tree(ctx, p)
	switch {
	case errors.Is(err, vic.ErrNotFound):
		return nil
	case err != nil:
		return s.files.Delete(ctx, p) // a file, perhaps
	}
	for dir, es := range tree {
		for _, e := range es {
			if e.Name != diskFile {
				continue
			}
			file := path.Join(p, dir, e.Name)
			if err := s.files.DeleteDisk(ctx, file); err != nil && !errors.Is(err, vic.ErrNotFound) {
				if errors.Is(err, vic.ErrInUse) {
					return err
				}
				s.c.Logger().Warn("a disk is deleted as a file, because it cannot be as a disk", "disk", s.files.Path(file), "reason", err)
			}
		}
	}
	return s.files.Delete(ctx, p)
}

// runs writes what an extent holds, in the order of the disk. tell, where it is
// not nil, hears how many bytes that were.
func (s *spool) runs(w io.WriterAt, tell func(done int64)) error {
	x, err := vmdk.OpenCOWD(s.f, s.size)
	if err != nil {
		return err
	}
	buf := make([]byte, 1<<20)
	var at, n, done, last int64 // a run that is being gathered
	flush := func() error {
		if n == 0 {
			return nil
		}
		_, err := w.WriteAt(buf[:n], at)
		if done += n; tell != nil && done-last >= 1<<20 {
			last = done
			tell(done)
		}
		n = 0
		return err
	}
	err = x.Runs(func(off int64, r vmdk.Run) error {
		for r.Bytes > 0 {
			if n > 0 && (at+n != off || n == int64(len(buf))) {
				if err := flush(); err != nil {
					return err
				}
			}
			if n == 0 {
				at = off
			}
			k := min(r.Bytes, int64(len(buf))-n)
			if err := x.ReadData(buf[n:n+k], r.Offset); err != nil {
				return err
			}
			n, off = n+k, off+k
			r.Offset, r.Bytes = r.Offset+k, r.Bytes-k
		}
		return nil
	})
	if err != nil {
		return err
	}
	return flush()
}
