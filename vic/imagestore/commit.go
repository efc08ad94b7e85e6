package imagestore

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/vicsdk/vic-go/internal/chain"
	"github.com/vicsdk/vic-go/internal/ext4"
	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/vic"
)

// CommitOptions are the details of a commit; nil means none.
type CommitOptions struct {
	ConfigOptions
	// Base is the name of the image that the disk is a child of. It says whose
	// configuration is taken where several images have the same layers; a name
	// that stands for another image by now is passed over.
	Base string
	// Sparse keeps the holes of files that have at least 1 MiB of them, in
	// GNU's sparse format 1.0, which not every tool reads. Without it holes
	// are zeroes.
	Sparse bool
	// Check, if set, is called when the disk has been read and before anything
	// is made of it. Its error ends the commit. It is how a caller makes sure
	// that nobody wrote to the disk meanwhile.
	Check func(ctx context.Context) error
	// Progress hears of the new layer as it does of a pull's.
	Progress func(vic.Event)
}

// Commit makes an image of a container's root disk: the image that the disk is a
// child of, with a layer of what differs in the container's tree, and under the
// name, which must end in a tag. Where nothing differs there is no new layer.
// The layer is converted as one that is pulled.
//
// The disk must not be written to meanwhile. One that is no child of an image of
// this store is vic.ErrInvalid.
func (s *Store) Commit(ctx context.Context, disk vic.Disk, name string, o *CommitOptions) (*Image, error) {
	const op = "commit"
	if o == nil {
		o = &CommitOptions{}
	}
	t := &teller{op: op, f: o.Progress}
	defer t.close()
	img, err := s.commit(ctx, disk, name, o, t)
	return img, fault.Wrap(op, vic.Ref{Kind: "disk", ID: disk.Path}, err)
}

func (s *Store) commit(ctx context.Context, disk vic.Disk, name string, o *CommitOptions, t *teller) (*Image, error) {
	if err := checkTagged(name); err != nil {
		return nil, err
	}
	// Wrong options are found before the disk is read.
	if _, err := o.derive(nil, ""); err != nil {
		return nil, err
	}
	c, err := s.openDisk(ctx, disk.Path, nil)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	dir, depth, err := s.imageLink(ctx, c)
	if err != nil {
		return nil, err
	}
	base, err := s.baseOf(ctx, dir, o.Base)
	if err != nil {
		return nil, err
	}
	docker := base.Original.MediaType == dockerManifest
	t.tell(name, "pack", 0, 0)
	p, diffID, size, err := s.packTar(Gzip, docker, func(w io.Writer) error { return s.diff(ctx, c, dir, depth, w, o.Sparse) })
	if err != nil {
		return nil, err
	}
	defer p.close()
	if o.Check != nil {
		if err := o.Check(ctx); err != nil {
			return nil, err
		}
	}
	stage := newStaged()
	layers := slices.Clone(base.Layers)
	if size == emptyTar {
		diffID = ""
	} else {
		stage.blobs[p.desc.Digest] = p
		layers = append(layers, p.desc)
	}
	config, err := o.derive(base.Original.Config, diffID)
	if err != nil {
		return nil, err
	}
	if err := stage.manifest(docker, config, layers); err != nil {
		return nil, err
	}
	return s.adopt(ctx, stage, name, base.Original.Blobs, t)
}

// emptyTar is the size of a tar without entries.
const emptyTar = 1024

// imageLink finds the first link of a chain that is an image's, and tells the
// directory it lies in.
func (s *Store) imageLink(ctx context.Context, c *chain.Disk) (dir string, depth int, err error) {
	own, _ := s.files.Datastore()
	for i, l := range c.Links() {
		files, p, err := s.locate(ctx, l.Path)
		if err != nil {
			return "", 0, err
		}
		if ds, _ := files.Datastore(); ds == own && path.Base(p) == diskFile && path.Dir(path.Dir(p)) == s.path("layers") {
			if i == 0 {
				return "", 0, fault.Of(vic.ErrInvalid, "it is an image's own disk, not a child of one")
			}
			return path.Base(path.Dir(p)), i, nil
		}
	}
	return "", 0, fault.Of(vic.ErrInvalid, "it is not a child of a disk of %s", s.files.Path(s.dir))
}

// diff writes the layer that makes the tree of a disk out of that of the image's
// disk, which is link number depth of its chain.
func (s *Store) diff(ctx context.Context, c *chain.Disk, dir string, depth int, w io.Writer, sparse bool) error {
	o := &ext4.DiffOptions{}
	lower := c.Parent()
	if depth == 1 {
		err := c.TopRuns(func(off, n int64) error {
			o.Changed = append(o.Changed, ext4.Range{Off: off, N: n})
			return nil
		})
		if err != nil {
			return err
		}
		if len(o.Changed) == 0 { // it never ran
			return tar.NewWriter(w).Close()
		}
	} else { // by snapshots there are several disks above the image's
		d, err := s.openDisk(ctx, s.disk(&layer{Dir: dir}).Path, nil)
		if err != nil {
			return err
		}
		defer d.Close()
		lower = d
	}
	var trees [2]*ext4.Reader
	for i, d := range []*chain.Disk{lower, c} {
		r, err := ext4.Open(d, d.Size())
		if err == nil {
			trees[i], err = r.Sub(ext4.RootDir)
		}
		if err != nil {
			return fmt.Errorf("the filesystem of %s: %w", [...]string{"the image", "the container"}[i], err)
		}
	}
	o.Skip = (&mountPoints{lower: trees[0], upper: trees[1]}).skip
	return ext4.DiffTar(&whileContext{ctx, w}, trees[0], trees[1], o, &ext4.TarOptions{Sparse: sparse})
}

// whileContext ends a long writing with its context.
type whileContext struct {
	ctx context.Context
	w   io.Writer
}

func (w *whileContext) Write(p []byte) (int, error) {
	if err := w.ctx.Err(); err != nil {
		return 0, context.Cause(w.ctx)
	}
	return w.w.Write(p)
}

// imagesOf are the records of the images whose top disk lies in a layer directory.
func (s *Store) imagesOf(ctx context.Context, dir string) (is []*imageDoc, err error) {
	es, err := s.files.List(ctx, s.path("images"))
	if err != nil && !errors.Is(err, vic.ErrNotFound) {
		return nil, err
	}
	for _, e := range es {
		hex, ok := strings.CutSuffix(e.Name, ".json")
		d := digest.NewDigestFromEncoded(digest.SHA256, hex)
		if e.Dir || !ok || d.Validate() != nil {
			continue
		}
		doc, err := s.readImage(ctx, d)
		if errors.Is(err, vic.ErrNotFound) {
			continue // deleted meanwhile
		}
		if err != nil {
			return nil, err
		}
		if doc.Dir == dir {
			is = append(is, doc)
		}
	}
	return is, nil
}

// baseOf finds the image whose top disk is in a directory.
func (s *Store) baseOf(ctx context.Context, dir, name string) (*imageDoc, error) {
	if name != "" {
		img, err := s.Image(ctx, name)
		if err == nil && img.doc.Dir == dir {
			return s.originalOf(ctx, img)
		}
		if err != nil && !errors.Is(err, vic.ErrNotFound) {
			return nil, err
		}
	}
	is, err := s.imagesOf(ctx, dir)
	// A record that is replaced at this moment may be between its old and its new one.
	for try := 0; err == nil && len(is) == 0 && try < 3; try++ {
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(100 * time.Millisecond):
		}
		is, err = s.imagesOf(ctx, dir)
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, doc := range is {
		names = append(names, doc.Manifest.String())
	}
	switch len(is) {
	case 0:
		return nil, fault.Of(vic.ErrNotFound, "the image that it is a child of is not in the store any more: pull it again (%s)", name)
	case 1:
		return s.originalOf(ctx, &Image{doc: *is[0]})
	}
	return nil, fault.Of(vic.ErrConflict, "several images have the layers that it is a child of, and none of them is called %q: name one as CommitOptions.Base (%s)", name, strings.Join(names, ", "))
}
