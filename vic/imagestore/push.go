package imagestore

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/vic"
)

// A Destination is a repository to push to.
type Destination interface {
	// Exists tells whether the repository has a blob or manifest.
	Exists(ctx context.Context, target ocispec.Descriptor) (bool, error)
	// Mount takes a blob over from another repository of the same registry
	// and returns whether that was done.
	Mount(ctx context.Context, target ocispec.Descriptor, from string) (bool, error)
	// Push sends a blob or a manifest; the reader gives exactly its size.
	Push(ctx context.Context, target ocispec.Descriptor, content io.Reader) error
	// Tag gives a manifest that was pushed a tag.
	Tag(ctx context.Context, target ocispec.Descriptor, tag string) error
}

// A ReferrerSource is a repository that also tells what refers to a manifest
// (OCI distribution specification, "Listing Referrers").
type ReferrerSource interface {
	Source
	// Referrers calls f with the descriptors of manifests whose subject is the
	// one given, some at a time; an empty artifactType means all.
	Referrers(ctx context.Context, subject ocispec.Descriptor, artifactType string, f func([]ocispec.Descriptor) error) error
}

// PushOptions are the details of a push; nil means none.
type PushOptions struct {
	// Name of the image at the destination, REGISTRY/PATH:TAG; empty is its
	// name in the store. With a digest in place of the tag, the image must
	// arrive as what the digest says, and gets no tag.
	Name string
	// Compression of layers that the destination neither has nor can take
	// over as they were packed once; empty is Gzip.
	Compression Compression
	// Repack packs every layer with Compression, however it was packed before.
	Repack bool
	// From, if set, is the repository that the image was pulled from: the push
	// is a copy. What the destination does not have comes from there as it
	// is, so that the manifest stays what it was, and manifests that refer to
	// the image (signatures, bills of materials), and those that refer to
	// them, are copied, too. It excludes Repack and Compression.
	From ReferrerSource
	// Progress hears of each layer, by its digest in the image's manifest:
	// phases "exists", "mounted", "pack", "push" and "done". It is called by
	// one goroutine at a time and not after Push has returned.
	Progress func(vic.Event)
}

// Push sends an image to a registry and returns the descriptor of the manifest
// there.
//
// A layer that the destination has is not sent, and one that another repository
// of the same registry is known to have is taken over from there: packed as the
// image's manifest names it, or as an earlier push packed it. Where all layers
// are had as the manifest names them, that manifest goes out unchanged. Else
// layers are packed again and the manifest names those; it has another digest
// then, and the image's configuration is the same.
//
// An image with layers that are not to be distributed is vic.ErrUnsupported.
func (s *Store) Push(ctx context.Context, dst Destination, name string, o *PushOptions) (ocispec.Descriptor, error) {
	const op = "push"
	if o == nil {
		o = &PushOptions{}
	}
	t := &teller{op: op, f: o.Progress}
	defer t.close()
	d, err := s.push(ctx, dst, name, *o, t)
	return d, fault.Wrap(op, vic.Ref{Kind: "image", Name: name}, err)
}

// pusher is a push that is under way.
type pusher struct {
	s    *Store
	dst  Destination
	o    PushOptions
	t    *teller
	to   string // REGISTRY/PATH
	doc  *imageDoc
	tars []*layer
}

func (s *Store) push(ctx context.Context, dst Destination, name string, o PushOptions, t *teller) (none ocispec.Descriptor, err error) {
	if o.From != nil && (o.Repack || o.Compression != "") {
		return none, fault.Of(vic.ErrInvalid, "PushOptions: From excludes Repack and Compression: a copy changes nothing")
	}
	if o.Repack && o.Compression == "" {
		return none, fault.Of(vic.ErrInvalid, "PushOptions: Repack needs a Compression")
	}
	if o.Compression, err = o.Compression.check(Gzip); err != nil {
		return none, err
	}
	if o.Name == "" {
		o.Name = name
	}
	ref, err := reference(o.Name)
	if err != nil {
		return none, err
	}
	img, err := s.Image(ctx, name)
	if err != nil {
		return none, err
	}
	p := &pusher{s: s, dst: dst, o: o, t: t, to: repositoryOf(o.Name)}
	if p.doc, err = s.originalOf(ctx, img); err != nil {
		return none, err
	}
	for i, l := range p.doc.Layers {
		if foreign(l.MediaType) {
			return none, fault.Of(vic.ErrUnsupported, "layer %d (%s) is not to be distributed: its media type is %s", i+1, l.Digest, l.MediaType)
		}
	}
	if p.tars, err = s.layersOf(ctx, p.doc); err != nil {
		return none, err
	}
	layers, err := p.layers(ctx)
	if err != nil {
		return none, err
	}
	m, err := p.doc.Original.remake(layers)
	if err != nil {
		return none, err
	}
	if err := p.config(ctx, m.config); err != nil {
		return none, fmt.Errorf("configuration: %w", err)
	}
	byDigest := strings.Contains(ref, ":")
	if byDigest && ref != m.desc.Digest.String() {
		return none, fault.Of(vic.ErrConflict, "it would arrive as %s, not as %s: give the name a tag, or the repository that the image was pulled from (PushOptions.From)", m.desc.Digest, ref)
	}
	// From here on it can be seen, and a destination may not look at ctx.
	if err := ctx.Err(); err != nil {
		return none, err
	}
	if err := p.small(ctx, m.desc, m.bytes); err != nil {
		return none, fmt.Errorf("manifest: %w", err)
	}
	if !byDigest {
		if err := dst.Tag(ctx, m.desc, ref); err != nil {
			return none, err
		}
	}
	if o.From != nil {
		c := &copier{src: o.From, dst: dst, seen: map[digest.Digest]bool{m.desc.Digest: true}}
		if err := c.referrers(ctx, m.desc, 0); err != nil {
			return none, fmt.Errorf("the image is there, but what refers to it is not all: %w", err)
		}
	}
	p.remember(ctx, layers)
	return m.desc, nil
}

// small pushes a document where it is not there.
func (p *pusher) small(ctx context.Context, d ocispec.Descriptor, b []byte) error {
	if there, err := p.dst.Exists(ctx, d); err != nil || there {
		return err
	}
	return p.dst.Push(ctx, d, bytes.NewReader(b))
}

// layers sees to it that the destination has all layers, some at once.
func (p *pusher) layers(ctx context.Context) ([]ocispec.Descriptor, error) {
	out := make([]ocispec.Descriptor, len(p.doc.Layers))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(max(p.s.workers, 2))
	first := map[digest.Digest]int{}
	for i, l := range p.doc.Layers {
		if _, ok := first[l.Digest]; ok {
			continue
		}
		first[l.Digest] = i
		g.Go(func() (err error) {
			if out[i], err = p.layer(ctx, i); err != nil {
				return fmt.Errorf("layer %d (%s): %w", i+1, p.doc.Layers[i].Digest, err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	for i, l := range p.doc.Layers {
		out[i] = out[first[l.Digest]]
	}
	return out, nil
}

// candidates are the packed forms of a layer that may be had without packing,
// the manifest's own first.
func (p *pusher) candidates(n int) []knownBlob {
	own := knownBlob{Layer: n, Descriptor: p.doc.Layers[n]}
	var others []knownBlob
	for _, b := range p.doc.Original.Blobs {
		if b.Layer != n || checkDescriptor(b.Descriptor) != nil {
			continue
		}
		if b.Descriptor.Digest == own.Descriptor.Digest {
			own.Repositories = b.Repositories
		} else {
			others = append(others, b)
		}
	}
	out := []knownBlob{own}
	if p.o.From == nil {
		out = append(out, others...)
	}
	if p.o.Repack {
		out = slices.DeleteFunc(out, func(b knownBlob) bool {
			c, err := packing(b.Descriptor.MediaType)
			return err != nil || c != p.o.Compression
		})
	}
	return out
}

// maxMounts bounds how many repositories are asked for one blob.
const maxMounts = 4

// have looks for a packed form of a layer at the destination.
func (p *pusher) have(ctx context.Context, n int) (ocispec.Descriptor, string, error) {
	cs := p.candidates(n)
	for _, c := range cs {
		there, err := p.dst.Exists(ctx, c.Descriptor)
		if err != nil {
			return c.Descriptor, "", err
		}
		if there {
			return c.Descriptor, "exists", nil
		}
	}
	for _, c := range cs {
		if done, err := p.mount(ctx, c.Descriptor, c.Repositories); err != nil || done {
			return c.Descriptor, "mounted", err
		}
	}
	return ocispec.Descriptor{}, "", nil
}

// mount takes a blob over from one of the repositories that may have it.
func (p *pusher) mount(ctx context.Context, d ocispec.Descriptor, from []string) (bool, error) {
	host := registryOf(p.to) + "/"
	tried := 0
	for _, r := range slices.Backward(from) {
		path, ok := strings.CutPrefix(r, host)
		if !ok || r == p.to {
			continue
		}
		if tried++; tried > maxMounts {
			break
		}
		done, err := p.dst.Mount(ctx, d, path)
		if done || ctx.Err() != nil {
			return done, err
		}
		if err != nil {
			// Whoever may not read there may still push here.
			p.s.c.Logger().Debug("a blob cannot be taken over", "from", r, "blob", d.Digest, "reason", err)
		}
	}
	return false, nil
}

// config sees to it that the destination has the configuration, which is
// wherever the image's own layers are.
func (p *pusher) config(ctx context.Context, d ocispec.Descriptor) error {
	if there, err := p.dst.Exists(ctx, d); err != nil || there {
		return err
	}
	for _, b := range p.doc.Original.Blobs {
		if b.Layer == len(p.doc.Layers)-1 {
			if done, err := p.mount(ctx, d, b.Repositories); err != nil || done {
				return err
			}
		}
	}
	return p.dst.Push(ctx, d, bytes.NewReader(p.doc.Original.Config))
}

func (p *pusher) layer(ctx context.Context, n int) (ocispec.Descriptor, error) {
	own := p.doc.Layers[n]
	id := own.Digest.String()
	d, how, err := p.have(ctx, n)
	if err != nil {
		return d, err
	}
	if how != "" {
		p.t.tell(id, how, d.Size, d.Size)
		return d, nil
	}
	if p.o.From != nil {
		r, err := p.o.From.Fetch(ctx, own)
		if err != nil {
			return own, err
		}
		defer r.Close()
		if err := p.send(ctx, id, own, r); err != nil {
			return own, err
		}
		return own, nil
	}
	p.t.tell(id, "pack", 0, p.tars[n].Tar)
	pk, err := p.s.pack(ctx, p.tars[n], p.o.Compression, p.doc.Original.MediaType == dockerManifest)
	if err != nil {
		return d, err
	}
	defer pk.close()
	if pk.desc.Digest == own.Digest {
		pk.desc = own // what media type it has there
	}
	if there, err := p.dst.Exists(ctx, pk.desc); err != nil || there {
		p.t.tell(id, "exists", pk.desc.Size, pk.desc.Size)
		return pk.desc, err
	}
	return pk.desc, p.send(ctx, id, pk.desc, pk.reader())
}

func (p *pusher) send(ctx context.Context, id string, d ocispec.Descriptor, r io.Reader) error {
	tell := func(n int64) { p.t.tell(id, "push", n, d.Size) }
	var body io.Reader = &told{r: r, tell: tell}
	if s, ok := r.(io.ReadSeeker); ok {
		body = &toldSeeker{told: told{r: r, tell: tell}, s: s}
	}
	if err := p.dst.Push(ctx, d, body); err != nil {
		return err
	}
	p.t.tell(id, "done", d.Size, d.Size)
	return nil
}

// toldSeeker is told for what can begin again.
type toldSeeker struct {
	told
	s io.Seeker
}

func (t *toldSeeker) Seek(off int64, whence int) (int64, error) {
	n, err := t.s.Seek(off, whence)
	if err == nil {
		t.n, t.last = n, n
	}
	return n, err
}

// remember notes where the layers are now. It is of use to later pushes only,
// so that it fails is no failure of this one.
func (p *pusher) remember(ctx context.Context, layers []ocispec.Descriptor) {
	for i, d := range layers {
		p.doc.Original.seen(i, d, p.to)
	}
	if err := p.s.writeJSON(ctx, p.doc, "images", imageFile(p.doc.Manifest)); err != nil {
		p.s.c.Logger().Debug("where the image was pushed to is not noted", "image", p.doc.Manifest, "reason", err)
	}
}
