package imagestore

import (
	"archive/tar"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/vic"
)

// Format is the format of an archive of images.
type Format string

const (
	// DockerArchive is what "docker save" writes and "docker load" reads:
	// manifest.json, configurations, layers as plain tars.
	DockerArchive Format = "docker-archive"
	// OCIArchive is an image layout of the OCI's (image-layout.md) in a tar.
	// Images are named by the annotation org.opencontainers.image.ref.name,
	// in full.
	OCIArchive Format = "oci-archive"
)

// SaveOptions are the details of a saving; nil means none.
type SaveOptions struct {
	// Format is DockerArchive where it is empty.
	Format Format
	// Compression of the layers of an OCIArchive; empty is None. Manifests
	// name the layers as they are packed in the archive, so with None images
	// have other digests there than in a registry, and the same
	// configurations.
	Compression Compression
	// Progress hears of each layer, by its diff ID: phases "pack" and "done".
	// It is called by one goroutine at a time and not after Save has
	// returned.
	Progress func(vic.Event)
}

// Save writes images as one archive. A layer that several have is in it once.
// An image named by a digest has no name there.
// The same images give the same bytes. What was written is of no worth if there
// is an error.
func (s *Store) Save(ctx context.Context, w io.Writer, names []string, o *SaveOptions) error {
	const op = "save"
	if o == nil {
		o = &SaveOptions{}
	}
	t := &teller{op: op, f: o.Progress}
	defer t.close()
	return fault.Wrap(op, vic.Ref{Kind: "image", Name: strings.Join(names, ", ")}, s.save(ctx, w, names, *o, t))
}

func (s *Store) save(ctx context.Context, w io.Writer, names []string, o SaveOptions, t *teller) (err error) {
	if len(names) == 0 {
		return fault.Of(vic.ErrInvalid, "no image is named")
	}
	if o.Compression, err = o.Compression.check(None); err != nil {
		return err
	}
	switch {
	case o.Format == "":
		o.Format = DockerArchive
	case o.Format != DockerArchive && o.Format != OCIArchive:
		return fault.Of(vic.ErrInvalid, "format %q; take %q or %q", o.Format, DockerArchive, OCIArchive)
	}
	if o.Format == DockerArchive && o.Compression != None {
		return fault.Of(vic.ErrUnsupported, "the layers of a %s are plain tars; take %s for packed ones", DockerArchive, OCIArchive)
	}
	v := &saver{s: s, o: o, t: t, tw: tar.NewWriter(w), have: map[string]bool{}, layers: map[digest.Digest]ocispec.Descriptor{}}
	byDigest := map[digest.Digest]int{}
	for _, name := range names {
		img, err := s.Image(ctx, name)
		if err != nil {
			return err
		}
		i, ok := byDigest[img.Digest()]
		if !ok {
			in := saved{}
			if in.doc, err = s.originalOf(ctx, img); err == nil {
				in.tars, err = s.layersOf(ctx, in.doc)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			for n, l := range in.doc.Layers {
				if foreign(l.MediaType) {
					return fault.Of(vic.ErrUnsupported, "%s: layer %d (%s) is not to be distributed: its media type is %s", name, n+1, l.Digest, l.MediaType)
				}
				if in.tars[n].Record == 0 {
					return fmt.Errorf("%s: layer %d: %w", name, n+1, errNoRecord)
				}
			}
			i = len(v.images)
			byDigest[img.Digest()] = i
			v.images = append(v.images, in)
		}
		if !slices.Contains(v.images[i].names, name) {
			v.images[i].names = append(v.images[i].names, name)
		}
	}
	if o.Format == OCIArchive {
		err = v.oci(ctx)
	} else {
		err = v.docker(ctx)
	}
	if err != nil {
		return err
	}
	return v.tw.Close()
}

// saved is an image that is saved.
type saved struct {
	names []string
	doc   *imageDoc
	tars  []*layer
}

type saver struct {
	s      *Store
	o      SaveOptions
	t      *teller
	tw     *tar.Writer
	images []saved
	have   map[string]bool // files that are written
	layers map[digest.Digest]ocispec.Descriptor
}

// file writes one file, if it is not there yet.
func (v *saver) file(name string, size int64, write func(io.Writer) error) error {
	if v.have[name] {
		return nil
	}
	v.have[name] = true
	if err := v.tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size, ModTime: time.Unix(0, 0)}); err != nil {
		return err
	}
	return write(v.tw)
}

func (v *saver) document(name string, b []byte) error {
	return v.file(name, int64(len(b)), func(w io.Writer) error { _, err := w.Write(b); return err })
}

func (v *saver) blob(b []byte) error { return v.document(blobPath(digest.FromBytes(b)), b) }

// tar writes a layer as it was.
func (v *saver) tar(ctx context.Context, name string, l *layer) error {
	return v.file(name, l.Tar, func(w io.Writer) error {
		id := l.DiffID.String()
		v.t.tell(id, "pack", 0, l.Tar)
		err := v.s.writeTar(ctx, l, w)
		if err == nil {
			v.t.tell(id, "done", l.Tar, l.Tar)
		}
		return err
	})
}

// archiveEntry is an image in the manifest.json of a docker-archive (Docker's
// image specification, "Combined Image JSON + Filesystem Changeset Format").
type archiveEntry struct {
	Config   string
	RepoTags []string
	Layers   []string
}

func (v *saver) docker(ctx context.Context) error {
	var list []archiveEntry
	for _, img := range v.images {
		e := archiveEntry{Config: digest.FromBytes(img.doc.Original.Config).Encoded() + ".json"}
		e.RepoTags = tagged(img.names)
		for _, l := range img.tars {
			e.Layers = append(e.Layers, l.DiffID.Encoded()+".tar")
		}
		list = append(list, e)
	}
	b, err := json.Marshal(list)
	if err == nil {
		err = v.document("manifest.json", b)
	}
	if err != nil {
		return err
	}
	for i, img := range v.images {
		if err := v.document(list[i].Config, img.doc.Original.Config); err != nil {
			return err
		}
		for n, l := range img.tars {
			if err := v.tar(ctx, list[i].Layers[n], l); err != nil {
				return err
			}
		}
	}
	return nil
}

// tagged leaves out names with a digest, which archives have no place for.
func tagged(names []string) []string {
	return slices.DeleteFunc(slices.Clone(names), func(n string) bool { return strings.Contains(n, "@") })
}

func blobPath(d digest.Digest) string {
	return "blobs/" + d.Algorithm().String() + "/" + d.Encoded()
}

// containerdName is the annotation that containerd and Docker name images by.
const containerdName = "io.containerd.image.name"

func (v *saver) oci(ctx context.Context) error {
	if err := v.document(ocispec.ImageLayoutFile, []byte(`{"imageLayoutVersion":"`+ocispec.ImageLayoutVersion+`"}`)); err != nil {
		return err
	}
	idx := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for _, img := range v.images {
		var layers []ocispec.Descriptor
		for _, l := range img.tars {
			d, err := v.layer(ctx, l)
			if err != nil {
				return err
			}
			layers = append(layers, d)
		}
		// An archive of the OCI's has its media types only.
		o := *img.doc.Original
		var err error
		if o.MediaType, o.Manifest, err = ociManifest(o); err != nil {
			return err
		}
		m, err := o.remake(layers)
		if err != nil {
			return err
		}
		if err := v.blob(o.Config); err != nil {
			return err
		}
		if err := v.blob(m.bytes); err != nil {
			return err
		}
		m.desc.Platform = &ocispec.Platform{OS: img.doc.Config.OS, Architecture: img.doc.Config.Architecture}
		names := tagged(img.names)
		for _, n := range names {
			d := m.desc
			d.Annotations = map[string]string{ocispec.AnnotationRefName: n, containerdName: n}
			idx.Manifests = append(idx.Manifests, d)
		}
		if len(names) == 0 {
			idx.Manifests = append(idx.Manifests, m.desc)
		}
	}
	b, err := json.Marshal(idx)
	if err != nil {
		return err
	}
	return v.document(ocispec.ImageIndexFile, b)
}

// ociManifest gives a manifest of Docker's the OCI's type.
func ociManifest(o original) (string, []byte, error) {
	if o.MediaType != dockerManifest {
		return o.MediaType, o.Manifest, nil
	}
	p, err := parts(o.Manifest)
	if err != nil {
		return "", nil, err
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(o.Manifest, &m); err != nil {
		return "", nil, fault.As(vic.ErrInvalid, err)
	}
	m.Config.MediaType = ocispec.MediaTypeImageConfig
	for i := range m.Layers {
		c, err := packing(m.Layers[i].MediaType)
		if err != nil {
			return "", nil, err
		}
		m.Layers[i].MediaType = c.layerType(false)
	}
	for k, v := range map[string]any{"mediaType": ocispec.MediaTypeImageManifest, "config": m.Config, "layers": m.Layers} {
		if err := set(p, k, v); err != nil {
			return "", nil, err
		}
	}
	b, err := json.Marshal(p)
	return ocispec.MediaTypeImageManifest, b, err
}

// layer writes a layer as a blob.
func (v *saver) layer(ctx context.Context, l *layer) (ocispec.Descriptor, error) {
	if d, ok := v.layers[l.DiffID]; ok {
		return d, nil
	}
	d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: l.DiffID, Size: l.Tar}
	if v.o.Compression == None {
		if err := v.tar(ctx, blobPath(d.Digest), l); err != nil {
			return d, err
		}
	} else {
		v.t.tell(l.DiffID.String(), "pack", 0, l.Tar)
		p, err := v.s.pack(ctx, l, v.o.Compression, false)
		if err != nil {
			return d, err
		}
		defer p.close()
		d = p.desc
		err = v.file(blobPath(d.Digest), d.Size, func(w io.Writer) error { _, err := io.Copy(w, p.reader()); return err })
		if err != nil {
			return d, err
		}
		v.t.tell(l.DiffID.String(), "done", l.Tar, l.Tar)
	}
	v.layers[l.DiffID] = d
	return d, nil
}
