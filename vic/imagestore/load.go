package imagestore

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/vic"
)

// LoadOptions are the details of a loading; nil means none.
type LoadOptions struct {
	// Name is for an image that the archive gives no name, or a tag alone, and
	// ends in a tag. An archive must not have more than one of these.
	Name string
	// ParseName makes a name of the archive's be one of the store's, in full;
	// nil takes names that have a registry, a path and a tag as they are. An
	// error says that it is no name.
	ParseName func(string) (string, error)
	// MaxBytes bounds what the archive unpacks to, all images together; 0 is
	// 64 GiB. So much may be needed in the store's TempDir.
	MaxBytes int64
	// Progress hears of the archive (phase "read") and then of each layer as
	// Pull's does. It is called by one goroutine at a time and not after Load
	// has returned.
	Progress func(vic.Event)
}

const (
	defaultArchiveBytes = 64 << 30
	maxArchiveImages    = 1024
)

// Load brings the images of an archive into the store and returns one for each
// of their names. It takes docker-archives (those with a directory for each
// layer, too) and oci-archives, as docker, skopeo, podman and buildah write
// them, packed with gzip or zstd or not, and reads them once from front to end.
//
// Every digest is verified. No name stands for an image before all layers of
// all images are there; an archive that is damaged, hostile or names something
// that is not in it is vic.ErrInvalid.
func (s *Store) Load(ctx context.Context, r io.Reader, o *LoadOptions) ([]*Image, error) {
	const op = "load"
	if o == nil {
		o = &LoadOptions{}
	}
	t := &teller{op: op, f: o.Progress}
	defer t.close()
	out, err := s.loadArchive(ctx, r, *o, t)
	return out, fault.Wrap(op, vic.Ref{Kind: "archive"}, err)
}

// loading is an image of an archive, with all its names.
type loading struct {
	names []string
	src   Source
	found *found
}

func (s *Store) loadArchive(ctx context.Context, r io.Reader, o LoadOptions, t *teller) ([]*Image, error) {
	if o.MaxBytes < 0 {
		return nil, fault.Of(vic.ErrInvalid, "LoadOptions: MaxBytes is negative")
	}
	if o.MaxBytes == 0 {
		o.MaxBytes = defaultArchiveBytes
	}
	if o.Name != "" {
		if err := checkTagged(o.Name); err != nil {
			return nil, err
		}
	}
	a, err := s.readArchive(ctx, r, o.MaxBytes, func(n int64) { t.tell("", "read", n, 0) })
	if err != nil {
		return nil, err
	}
	defer a.close()
	all, err := a.images(ctx, &o)
	if err != nil {
		return nil, err
	}
	var out []*Image
	// Names only when all images are there. The second time around little is
	// to be done, and what was deleted meanwhile is made again.
	for _, named := range []bool{false, true} {
		for _, l := range all {
			err := s.usingImage(ctx, l.found, func(ctx context.Context, s *Store) error {
				top, err := s.layers(ctx, l.src, l.found, true, t)
				if err != nil {
					return err
				}
				doc, err := s.enter(ctx, l.found, top, "", nil)
				if err != nil || !named {
					return err
				}
				for _, n := range l.names {
					img, err := s.name(ctx, n, doc)
					if err != nil {
						return err
					}
					out = append(out, img)
				}
				return nil
			})
			if err != nil {
				return out, fmt.Errorf("image %s: %w", strings.Join(l.names, ", "), err)
			}
		}
	}
	return out, nil
}

// images describes all images of an archive: what can be wrong with documents is
// found before a layer is made.
func (a *archive) images(ctx context.Context, o *LoadOptions) (all []*loading, err error) {
	switch {
	case a.has(ocispec.ImageIndexFile) && a.has(ocispec.ImageLayoutFile):
		all, err = a.layout(o)
	case a.has("manifest.json"):
		all, err = a.docker(o)
	default:
		err = fault.Of(vic.ErrUnsupported, "it is no archive of images: there is neither manifest.json nor index.json with oci-layout in it")
	}
	if err != nil {
		return nil, err
	}
	for _, l := range all {
		if l.found, err = describeImage(ctx, l.src, strings.Join(l.names, ", "), platform); err == nil {
			err = a.check(l.found)
		}
		if err == nil {
			err = a.count(int64(len(l.found.rawManifest) + len(l.found.rawConfig)))
		}
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", strings.Join(l.names, ", "), err)
		}
	}
	return all, nil
}

// check finds layers that are not what the manifest says, without reading them
// again.
func (a *archive) check(f *found) error {
	for i, l := range f.layers {
		if l.Digest.Algorithm() != digest.SHA256 {
			continue // the conversion finds out
		}
		m, err := a.find(blobPath(l.Digest))
		if err != nil {
			continue // a docker-archive's, which was hashed to make the manifest
		}
		if m.sha256 != l.Digest || m.size != l.Size {
			return fault.Of(vic.ErrInvalid, "layer %d: the archive has %s with %d bytes in place of %s with %d", i+1, m.sha256, m.size, l.Digest, l.Size)
		}
	}
	return nil
}

// named makes the names of an image.
func (o *LoadOptions) named(names []string, used map[string]bool) ([]string, error) {
	var out []string
	for _, n := range tagged(names) {
		full := n
		if o.ParseName != nil {
			var err error
			if full, err = o.ParseName(n); err != nil {
				return nil, fault.As(vic.ErrInvalid, fmt.Errorf("the archive calls an image %.200q: %w", n, err))
			}
		}
		if err := checkTagged(full); err != nil || !strings.Contains(full, "/") {
			return nil, fault.Of(vic.ErrInvalid, "the archive calls an image %.200q, which is no full name: REGISTRY/PATH:TAG", n)
		}
		if used[full] {
			return nil, fault.Of(vic.ErrInvalid, "the archive has several images called %q", full)
		}
		if !slices.Contains(out, full) {
			out = append(out, full)
		}
	}
	if len(out) == 0 {
		if o.Name == "" {
			return nil, fault.Of(vic.ErrInvalid, "the archive has an image without a name: give it one (LoadOptions.Name)")
		}
		if used[o.Name] {
			return nil, fault.Of(vic.ErrInvalid, "the archive has several images without a name, or one called %q, too", o.Name)
		}
		out = append(out, o.Name)
	}
	for _, n := range out {
		used[n] = true
	}
	return out, nil
}

// layoutSource is an OCI layout in an archive as the source of one of its images.
type layoutSource struct {
	a    *archive
	root ocispec.Descriptor
	docs map[digest.Digest][]byte
}

// Resolve implements Source.
func (l *layoutSource) Resolve(context.Context, string) (ocispec.Descriptor, error) {
	return l.root, nil
}

// Fetch implements Source.
func (l *layoutSource) Fetch(_ context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	if b, ok := l.docs[d.Digest]; ok {
		return io.NopCloser(bytes.NewReader(b)), nil
	}
	m, err := l.a.find(blobPath(d.Digest))
	if err != nil {
		return nil, err
	}
	return io.NopCloser(l.a.open(m)), nil
}

// layout finds the images of an OCI layout.
func (a *archive) layout(o *LoadOptions) ([]*loading, error) {
	var mark ocispec.ImageLayout
	if _, err := a.readJSON(ocispec.ImageLayoutFile, manifestLimit, &mark); err != nil {
		return nil, err
	}
	if !strings.HasPrefix(mark.Version, "1.") {
		return nil, fault.Of(vic.ErrUnsupported, "the archive's layout is of version %q; 1 is known", mark.Version)
	}
	var idx ocispec.Index
	if _, err := a.readJSON(ocispec.ImageIndexFile, manifestLimit, &idx); err != nil {
		return nil, err
	}
	if len(idx.Manifests) == 0 || len(idx.Manifests) > maxArchiveImages {
		return nil, fault.Of(vic.ErrInvalid, "the archive's index.json names %d images; 1 to %d are taken", len(idx.Manifests), maxArchiveImages)
	}
	// Descriptors with the same name are one image for several platforms,
	// those with the same digest one image with several names.
	type group struct {
		name string
		of   []ocispec.Descriptor
	}
	var groups []*group
	for _, d := range idx.Manifests {
		if d.ArtifactType != "" {
			continue // a signature, for example, and no image
		}
		name := layoutName(d)
		i := slices.IndexFunc(groups, func(g *group) bool { return g.name == name })
		if i < 0 {
			i = len(groups)
			groups = append(groups, &group{name: name})
		}
		groups[i].of = append(groups[i].of, d)
	}
	var all []*loading
	at := map[digest.Digest]*loading{}
	names := map[*loading][]string{}
	for _, g := range groups {
		src := &layoutSource{a: a, root: g.of[0]}
		if len(g.of) > 1 {
			b, err := json.Marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: g.of})
			if err != nil {
				return nil, err
			}
			src.root = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageIndex, Digest: digest.FromBytes(b), Size: int64(len(b))}
			src.docs = map[digest.Digest][]byte{src.root.Digest: b}
		}
		l := at[src.root.Digest]
		if l == nil {
			l = &loading{src: src}
			at[src.root.Digest] = l
			all = append(all, l)
		}
		if g.name != "" {
			names[l] = append(names[l], g.name)
		}
	}
	return all, o.nameAll(all, names)
}

// nameAll gives images the names that the archive has for them.
func (o *LoadOptions) nameAll(all []*loading, names map[*loading][]string) (err error) {
	used := map[string]bool{}
	for _, l := range all {
		if l.names, err = o.named(names[l], used); err != nil {
			return err
		}
	}
	return nil
}

// layoutName is the name of an image in an index, or empty. Docker has a full
// name beside the tag; a tag alone is no name.
func layoutName(d ocispec.Descriptor) string {
	if n := d.Annotations[containerdName]; n != "" {
		return n
	}
	if n := d.Annotations[ocispec.AnnotationRefName]; strings.ContainsAny(n, "/:") {
		return n
	}
	return ""
}

// docker finds the images of a docker-archive and makes manifests for them.
func (a *archive) docker(o *LoadOptions) ([]*loading, error) {
	var list []archiveEntry
	if _, err := a.readJSON("manifest.json", manifestLimit, &list); err != nil {
		return nil, err
	}
	if len(list) == 0 || len(list) > maxArchiveImages {
		return nil, fault.Of(vic.ErrInvalid, "the archive's manifest.json names %d images; 1 to %d are taken", len(list), maxArchiveImages)
	}
	var all []*loading
	names := map[*loading][]string{}
	for i, e := range list {
		src, err := a.dockerImage(e)
		if err != nil {
			return nil, fmt.Errorf("image %d (%.200s): %w", i+1, strings.Join(e.RepoTags, ", "), err)
		}
		l := &loading{src: src}
		all, names[l] = append(all, l), e.RepoTags
	}
	return all, o.nameAll(all, names)
}

// memberSource is a docker-archive as the source of one of its images.
type memberSource struct {
	*staged
	a      *archive
	layers map[digest.Digest]*member
}

// Fetch implements Source.
func (m *memberSource) Fetch(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	if l, ok := m.layers[d.Digest]; ok {
		return io.NopCloser(m.a.open(l)), nil
	}
	return m.staged.Fetch(ctx, d)
}

func (a *archive) dockerImage(e archiveEntry) (*memberSource, error) {
	config, err := a.read(e.Config, configLimit)
	if err != nil {
		return nil, err
	}
	// The configuration's name is its digest, in all that write such archives.
	base := strings.TrimSuffix(e.Config[strings.LastIndexByte(e.Config, '/')+1:], ".json")
	if d := digest.NewDigestFromEncoded(digest.SHA256, base); d.Validate() == nil && digest.FromBytes(config) != d {
		return nil, fault.Of(vic.ErrInvalid, "the archive's configuration %.200q is %s", e.Config, digest.FromBytes(config))
	}
	if len(e.Layers) > maxLayers {
		return nil, fault.Of(vic.ErrUnsupported, "the image has %d layers; at most %d are taken", len(e.Layers), maxLayers)
	}
	src := &memberSource{staged: newStaged(), a: a, layers: map[digest.Digest]*member{}}
	var layers []ocispec.Descriptor
	for i, name := range e.Layers {
		m, err := a.find(name)
		if err != nil {
			return nil, fmt.Errorf("layer %d: %w", i+1, err)
		}
		d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: m.sha256, Size: m.size}
		switch {
		case bytes.HasPrefix(m.magic, []byte{0x1f, 0x8b}):
			d.MediaType = ocispec.MediaTypeImageLayerGzip
		case bytes.Equal(m.magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
			d.MediaType = ocispec.MediaTypeImageLayerZstd
		}
		src.layers[d.Digest] = m
		layers = append(layers, d)
	}
	return src, src.manifest(false, config, layers)
}
