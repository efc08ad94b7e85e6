package imagestore

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"path"
	"sort"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/internal/vsphere"
	"github.com/vicsdk/vic-go/vic"
)

// imageDoc is what images/DIGEST.json says.
type imageDoc struct {
	Version  int                  `json:"version"`
	Manifest digest.Digest        `json:"manifest"`
	Config   ocispec.Image        `json:"config"`
	Docker   DockerConfig         `json:"docker,omitzero"`
	Layers   []ocispec.Descriptor `json:"layers"`
	Dir      string               `json:"dir"` // of the top layer
	Bytes    int64                `json:"bytes"`
	Pulled   time.Time            `json:"pulled"`
	// Original is nil in a name's copy and in what older releases wrote.
	Original *original `json:"original,omitempty"`
}

// nameDoc is what names/HASH.json says. It has the image's record in it, so
// that an image is opened in one request: records do not change, and a name goes
// before its image does. A record of version 1 has none.
type nameDoc struct {
	Version  int           `json:"version"`
	Name     string        `json:"name"`
	Manifest digest.Digest `json:"manifest"`
	Image    *imageDoc     `json:"image,omitempty"`
}

// An Image is an image in a store.
type Image struct {
	name string
	doc  imageDoc
	root vic.Disk
}

// Name it was opened or pulled by.
func (i *Image) Name() string { return i.name }

// Digest of the image's manifest.
func (i *Image) Digest() digest.Digest { return i.doc.Manifest }

// Config is what the image says about running it.
func (i *Image) Config() ocispec.ImageConfig { return i.doc.Config.Config }

// Details is the whole of the image's configuration.
func (i *Image) Details() ocispec.Image { return i.doc.Config }

// Layers are the image's layers as its manifest names them.
func (i *Image) Layers() []ocispec.Descriptor {
	return append([]ocispec.Descriptor(nil), i.doc.Layers...)
}

// Size is the sum of the layers' sizes in the registry, in bytes.
func (i *Image) Size() int64 {
	var n int64
	for _, l := range i.doc.Layers {
		n += l.Size
	}
	return n
}

// Pulled is when the image was pulled.
func (i *Image) Pulled() time.Time { return i.doc.Pulled }

// Root is the top disk of the image's chain. It is only to be read; a
// container makes a child of it.
func (i *Image) Root() vic.Disk { return i.root }

func nameFile(name string) string {
	h := sha256.Sum256([]byte(name))
	return hex.EncodeToString(h[:]) + ".json"
}

func imageFile(d digest.Digest) string { return d.Encoded() + ".json" }

func (s *Store) readJSON(ctx context.Context, v any, elem ...string) error {
	p := s.path(elem...)
	b, err := s.files.ReadFile(ctx, p, documentLimit)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fault.Of(vic.ErrInvalid, "%s: %v", s.files.Path(p), err)
	}
	return nil
}

// writeJSON publishes a record. That of an image or of a name is written only
// while the image's layers are there, and they stay until it is.
func (s *Store) writeJSON(ctx context.Context, v any, elem ...string) error {
	if doc := imageOf(v); doc != nil && s.held == nil {
		wants := append(s.dirs(doc.Config.RootFS.DiffIDs), doc.Dir, s.baseDir())
		return s.using(ctx, leaseDoc{Wants: wants, Image: doc.Manifest}, func(ctx context.Context, s *Store) error {
			if _, err := s.readLayer(ctx, doc.Dir); err != nil {
				return err
			}
			return s.writeJSON(ctx, v, elem...)
		})
	}
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := s.files.MkdirAll(ctx, s.path(elem[:len(elem)-1]...)); err != nil {
		return err
	}
	if s.held == nil {
		return s.files.WriteFile(ctx, s.path(elem...), b)
	}
	tmp, err := s.held.stage(ctx, path.Join(elem[:len(elem)-1]...), func(tmp string) error { return s.put(ctx, tmp, b) })
	if err == nil {
		err = s.files.Move(ctx, tmp, s.path(elem...), true)
	}
	return s.unstage(ctx, tmp, err)
}

// imageOf is the image that a record is about, or nil.
func imageOf(v any) *imageDoc {
	switch d := v.(type) {
	case imageDoc:
		return &d
	case *imageDoc:
		return d
	case nameDoc:
		return d.Image
	case *nameDoc:
		return d.Image
	}
	return nil
}

// unstage takes back what was staged and, because of err, not published.
func (s *Store) unstage(ctx context.Context, tmp string, err error) error {
	if err == nil {
		return nil
	}
	dctx, cancel := vsphere.Detached(ctx)
	defer cancel()
	_ = s.files.Delete(dctx, tmp)
	if errors.Is(err, vic.ErrNotFound) {
		if e := s.held.check(dctx); e != nil {
			return e
		}
	}
	return err
}

// readImage reads an image's record by the digest of its manifest.
func (s *Store) readImage(ctx context.Context, d digest.Digest) (*imageDoc, error) {
	doc := &imageDoc{}
	err := s.readJSON(ctx, doc, "images", imageFile(d))
	if err == nil && (doc.Version != 1 || doc.Manifest != d) {
		err = fault.Of(vic.ErrInvalid, "the record of image %s is damaged", d)
	}
	return doc, err
}

func (s *Store) now() time.Time { return time.Now().UTC() }

// Image opens an image by the name it was pulled by. One that is not in the
// store is vic.ErrNotFound.
func (s *Store) Image(ctx context.Context, name string) (*Image, error) {
	const op = "open image"
	ref := vic.Ref{Kind: "image", Name: name}
	var n nameDoc
	if err := s.readJSON(ctx, &n, "names", nameFile(name)); err != nil {
		if errors.Is(err, vic.ErrNotFound) {
			err = fault.Of(vic.ErrNotFound, "it is not in %s: pull it", s.files.Path(s.dir))
		}
		return nil, fault.Wrap(op, ref, err)
	}
	img, err := s.open(ctx, n)
	return img, fault.Wrap(op, ref, err)
}

func (s *Store) open(ctx context.Context, n nameDoc) (*Image, error) {
	if n.Version > 2 {
		return nil, fault.Of(vic.ErrUnsupported, "the record of name %q is of version %d, which a newer release wrote; this one knows 2", n.Name, n.Version)
	}
	if err := n.Manifest.Validate(); err != nil || n.Version < 1 || n.Version == 2 && n.Image == nil {
		return nil, fault.Of(vic.ErrInvalid, "the record of name %q is damaged: pull it again", n.Name)
	}
	img := &Image{name: n.Name}
	if n.Version == 2 {
		img.doc = *n.Image
	} else if err := s.readJSON(ctx, &img.doc, "images", imageFile(n.Manifest)); err != nil {
		return nil, err
	}
	if err := img.doc.check(); err != nil {
		return nil, err
	}
	if img.doc.Manifest != n.Manifest {
		return nil, fault.Of(vic.ErrInvalid, "the record of image %s is damaged", n.Manifest)
	}
	img.root = s.disk(&layer{Dir: img.doc.Dir, Bytes: img.doc.Bytes})
	return img, nil
}

func (d *imageDoc) check() error {
	if d.Version > 1 {
		return fault.Of(vic.ErrUnsupported, "the record of image %s is of version %d, which a newer release wrote; this one knows 1", d.Manifest, d.Version)
	}
	if d.Version != 1 || d.Manifest.Validate() != nil || d.Dir == "" || strings.Contains(d.Dir, "/") {
		return fault.Of(vic.ErrInvalid, "the record of image %s is damaged", d.Manifest)
	}
	for _, id := range d.Config.RootFS.DiffIDs {
		if id.Validate() != nil {
			return fault.Of(vic.ErrInvalid, "the record of image %s is damaged", d.Manifest)
		}
	}
	return nil
}

// Has tells whether an image that was opened is still whole: its layers go after
// its name does.
func (s *Store) Has(ctx context.Context, i *Image) (bool, error) {
	_, err := s.readLayer(ctx, i.doc.Dir)
	if errors.Is(err, vic.ErrNotFound) {
		return false, nil
	}
	return err == nil, fault.Wrap("open image", vic.Ref{Kind: "image", Name: i.name}, err)
}

// List returns all images by name.
func (s *Store) List(ctx context.Context) ([]*Image, error) {
	const op = "list images"
	es, err := s.files.List(ctx, s.path("names"))
	if errors.Is(err, vic.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fault.Wrap(op, s.ref(), err)
	}
	var out []*Image
	for _, e := range es {
		if e.Dir || strings.HasPrefix(e.Name, ".") || !strings.HasSuffix(e.Name, ".json") {
			continue
		}
		var n nameDoc
		err := s.readJSON(ctx, &n, "names", e.Name)
		var img *Image
		if err == nil {
			img, err = s.open(ctx, n)
		}
		if errors.Is(err, vic.ErrNotFound) {
			continue // deleted meanwhile
		}
		if err != nil {
			return nil, fault.Wrap(op, s.ref(), err)
		}
		out = append(out, img)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].name < out[j].name })
	return out, nil
}
