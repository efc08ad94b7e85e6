package imagestore

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/vic"
)

// A Source is a repository to pull from. remote.Repository of oras-go is one.
type Source interface {
	// Resolve finds the descriptor of a tag or a digest.
	Resolve(ctx context.Context, reference string) (ocispec.Descriptor, error)
	// Fetch opens what a descriptor names; the caller closes it.
	Fetch(ctx context.Context, target ocispec.Descriptor) (io.ReadCloser, error)
}

// Docker's media types (distribution, docs/spec/manifest-v2-2.md).
const (
	dockerManifest     = "application/vnd.docker.distribution.manifest.v2+json"
	dockerList         = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerConfig       = "application/vnd.docker.container.image.v1+json"
	dockerLayer        = "application/vnd.docker.image.rootfs.diff.tar.gzip"
	dockerPlainLayer   = "application/vnd.docker.image.rootfs.diff.tar"
	dockerForeignLayer = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
	dockerSchema1      = "application/vnd.docker.distribution.manifest.v1"
)

const (
	manifestLimit = 4 << 20
	configLimit   = 8 << 20
	maxLayers     = 512
	maxObjects    = 64 << 10 // of one JSON document
)

// found is an image as a registry describes it.
type found struct {
	manifest    digest.Digest
	mediaType   string // of the manifest
	layers      []ocispec.Descriptor
	config      ocispec.Image
	rawManifest []byte
	rawConfig   []byte
}

// reference cuts a name such as registry/repository:tag@digest into what a
// Source resolves: the digest where there is one, else the tag.
func reference(name string) (string, error) {
	if _, d, ok := strings.Cut(name, "@"); ok {
		dg, err := digest.Parse(d)
		if err != nil {
			return "", fault.Of(vic.ErrInvalid, "name %q: %v", name, err)
		}
		return dg.String(), nil
	}
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		return name[i+1:], nil
	}
	return "", fault.Of(vic.ErrInvalid, "name %q has neither a tag nor a digest", name)
}

// describeImage follows a reference to manifest and configuration of the
// platform.
func describeImage(ctx context.Context, src Source, ref string, want ocispec.Platform) (*found, error) {
	d, err := src.Resolve(ctx, ref)
	if err != nil {
		return nil, fmt.Errorf("resolve %s: %w", ref, err)
	}
	for range 3 {
		switch {
		case d.MediaType == ocispec.MediaTypeImageIndex || d.MediaType == dockerList:
			if d, err = choose(ctx, src, d, want); err != nil {
				return nil, err
			}
		case d.MediaType == ocispec.MediaTypeImageManifest || d.MediaType == dockerManifest:
			return readManifest(ctx, src, d, want)
		case strings.HasPrefix(d.MediaType, dockerSchema1):
			return nil, fault.Of(vic.ErrUnsupported, "the manifest is of Docker's schema 1, which names no layers' contents; push the image again with a current tool")
		default:
			return nil, fault.Of(vic.ErrUnsupported, "%q is no image but media type %q", ref, d.MediaType)
		}
	}
	return nil, fault.Of(vic.ErrUnsupported, "indexes are nested more than two deep")
}

// choose picks the platform's manifest out of an index.
func choose(ctx context.Context, src Source, d ocispec.Descriptor, want ocispec.Platform) (ocispec.Descriptor, error) {
	var idx ocispec.Index
	if _, err := fetchJSON(ctx, src, d, manifestLimit, &idx); err != nil {
		return d, err
	}
	var have []string
	for _, m := range idx.Manifests {
		p := m.Platform
		if p == nil {
			if len(idx.Manifests) == 1 {
				return m, nil // its configuration will tell
			}
			continue
		}
		if p.OS == want.OS && p.Architecture == want.Architecture {
			return m, nil
		}
		have = append(have, fmt.Sprintf("%.20s/%.20s", p.OS, p.Architecture))
	}
	if len(have) > 10 {
		have = append(have[:10], "others")
	}
	return d, fault.Of(vic.ErrUnsupported, "the image is not made for %s/%s but for %s", want.OS, want.Architecture, strings.Join(have, ", "))
}

func readManifest(ctx context.Context, src Source, d ocispec.Descriptor, want ocispec.Platform) (*found, error) {
	var m ocispec.Manifest
	raw, err := fetchJSON(ctx, src, d, manifestLimit, &m)
	if err != nil {
		return nil, err
	}
	switch m.Config.MediaType {
	case ocispec.MediaTypeImageConfig, dockerConfig:
	default:
		return nil, fault.Of(vic.ErrUnsupported, "the manifest is no image's: its configuration is of media type %q", m.Config.MediaType)
	}
	f := &found{manifest: d.Digest, mediaType: d.MediaType, layers: m.Layers, rawManifest: raw}
	if f.rawConfig, err = fetchJSON(ctx, src, m.Config, configLimit, &f.config); err != nil {
		return nil, err
	}
	c := &f.config
	switch {
	case c.OS != want.OS || c.Architecture != want.Architecture:
		return nil, fault.Of(vic.ErrUnsupported, "the image is made for %s/%s, not for %s/%s", c.OS, c.Architecture, want.OS, want.Architecture)
	case c.RootFS.Type != "layers":
		return nil, fault.Of(vic.ErrUnsupported, "the configuration's rootfs.type is %q, not \"layers\"", c.RootFS.Type)
	case len(c.RootFS.DiffIDs) != len(m.Layers):
		return nil, fault.Of(vic.ErrInvalid, "the configuration has %d diff IDs for %d layers", len(c.RootFS.DiffIDs), len(m.Layers))
	case len(m.Layers) == 0:
		return nil, fault.Of(vic.ErrUnsupported, "the image has no layers: there is nothing to run")
	case len(m.Layers) > maxLayers:
		return nil, fault.Of(vic.ErrUnsupported, "the image has %d layers; at most %d are taken", len(m.Layers), maxLayers)
	}
	for i, l := range m.Layers {
		if _, err := compressionOf(l.MediaType); err != nil {
			return nil, fmt.Errorf("layer %d: %w", i+1, err)
		}
		if err := checkDescriptor(l); err != nil {
			return nil, fmt.Errorf("layer %d: %w", i+1, err)
		}
		if err := c.RootFS.DiffIDs[i].Validate(); err != nil || c.RootFS.DiffIDs[i].Algorithm() != digest.SHA256 {
			return nil, fault.Of(vic.ErrInvalid, "diff ID %d, %.80q, is no sha256 digest", i+1, c.RootFS.DiffIDs[i])
		}
	}
	return f, nil
}

func checkDescriptor(d ocispec.Descriptor) error {
	if err := d.Digest.Validate(); err != nil || !d.Digest.Algorithm().Available() {
		return fault.Of(vic.ErrInvalid, "digest %.80q: %v", d.Digest, err)
	}
	if d.Size < 0 {
		return fault.Of(vic.ErrInvalid, "size %d is negative", d.Size)
	}
	return nil
}

type compression int

const (
	plain compression = iota
	gzipped
	zstandard
)

// compressionOf tells how a layer's media type says it is packed. The bytes
// themselves decide in the end: registries hold layers whose type lies.
func compressionOf(mediaType string) (compression, error) {
	switch mediaType {
	case ocispec.MediaTypeImageLayer, dockerPlainLayer, "application/vnd.oci.image.layer.nondistributable.v1.tar":
		return plain, nil
	case ocispec.MediaTypeImageLayerGzip, dockerLayer, dockerForeignLayer, "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip":
		return gzipped, nil
	case ocispec.MediaTypeImageLayerZstd, "application/vnd.docker.image.rootfs.diff.tar.zstd", "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd":
		return zstandard, nil
	}
	return 0, fault.Of(vic.ErrUnsupported, "media type %q is no filesystem layer", mediaType)
}

// fetchJSON reads a small document, verified by size and digest, and returns
// its bytes, too.
func fetchJSON(ctx context.Context, src Source, d ocispec.Descriptor, limit int64, v any) ([]byte, error) {
	if err := checkDescriptor(d); err != nil {
		return nil, err
	}
	if d.Size > limit {
		return nil, fault.Of(vic.ErrInvalid, "%s is %d bytes; at most %d are taken for a %s", d.Digest, d.Size, limit, d.MediaType)
	}
	r, err := src.Fetch(ctx, d)
	if err != nil {
		return nil, fmt.Errorf("fetch %s: %w", d.Digest, err)
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, d.Size+1))
	if err != nil {
		return nil, fmt.Errorf("fetch %s: %w", d.Digest, err)
	}
	if int64(len(b)) != d.Size || d.Digest.Algorithm().FromBytes(b) != d.Digest {
		return nil, fault.Of(vic.ErrInvalid, "something else came than %s", d.Digest)
	}
	// An object of two bytes becomes a hundred in memory.
	if n := objects(b); n > maxObjects {
		return nil, fault.Of(vic.ErrInvalid, "%s has %d objects; at most %d are taken", d.Digest, n, maxObjects)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return nil, fault.Of(vic.ErrInvalid, "%s: %v", d.Digest, err)
	}
	return b, nil
}

// objects counts the objects of a JSON document.
func objects(b []byte) (n int) {
	quoted := false
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case c == '"':
			quoted = !quoted
		case c == '\\' && quoted:
			i++
		case c == '{' && !quoted:
			n++
		}
	}
	return n
}
