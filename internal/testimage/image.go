package testimage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Image is an image to write.
type Image struct {
	// Config is what a container of the image runs and how.
	Config ocispec.ImageConfig
	// Extra are further members of the config that Docker knows and OCI
	// does not, such as "Healthcheck".
	Extra map[string]any
	// Platform is linux/amd64 if its fields are empty.
	Platform ocispec.Platform
	// Steps make the image, the first one first.
	Steps []Step
}

// Step is one line of an image's history.
type Step struct {
	// Layer is nil for a step that changed the configuration only.
	Layer     *Layer
	CreatedBy string
}

// Compression is how layers are stored.
type Compression string

// The compressions that OCI defines. The zero value is Gzip.
const (
	Gzip  Compression = "gzip"
	Zstd  Compression = "zstd"
	Plain Compression = "plain"
)

// Options say how images are written. A nil *Options and the zero value mean
// OCI media types, gzip layers and the tag "latest".
type Options struct {
	Tag         string
	Compression Compression
	// Docker writes Docker's schema 2 media types, which have no zstd.
	Docker bool
}

func (o *Options) defaults() (Options, error) {
	var v Options
	if o != nil {
		v = *o
	}
	if v.Tag == "" {
		v.Tag = "latest"
	}
	switch v.Compression {
	case "":
		v.Compression = Gzip
	case Gzip, Plain:
	case Zstd:
		if v.Docker {
			return v, errors.New("option Compression: Docker schema 2 has no media type for zstd layers; use gzip or plain")
		}
	default:
		return v, fmt.Errorf("option Compression: unknown %q; use gzip, zstd or plain", v.Compression)
	}
	return v, nil
}

// Docker's media types: docker/distribution, "Image Manifest Version 2,
// Schema 2", section "Media Types".
const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerConfig   = "application/vnd.docker.container.image.v1+json"
	dockerPlain    = "application/vnd.docker.image.rootfs.diff.tar"
	dockerGzip     = "application/vnd.docker.image.rootfs.diff.tar.gzip"
)

func (o Options) layerType() string {
	switch {
	case o.Docker && o.Compression == Plain:
		return dockerPlain
	case o.Docker:
		return dockerGzip
	case o.Compression == Plain:
		return ocispec.MediaTypeImageLayer
	case o.Compression == Zstd:
		return ocispec.MediaTypeImageLayerZstd
	}
	return ocispec.MediaTypeImageLayerGzip
}

func (o Options) choose(oci, docker string) string {
	if o.Docker {
		return docker
	}
	return oci
}

// Write adds the image to the OCI layout in the directory dir, which it
// makes if it is missing, and returns the manifest's descriptor. A tag that
// the layout already has moves to the new image. The same image gives the
// same bytes. One process may write to a layout at a time.
func (im *Image) Write(ctx context.Context, dir string, opts *Options) (ocispec.Descriptor, error) {
	o, err := opts.defaults()
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	l, err := openLayout(dir)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	desc, err := im.write(ctx, l, o)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return desc, l.tag(o.Tag, desc)
}

// WriteIndex adds an index of several images, one for each platform, to the
// OCI layout in the directory dir, as [Image.Write] does for one image. It
// returns the index's descriptor.
func WriteIndex(ctx context.Context, dir string, images []*Image, opts *Options) (ocispec.Descriptor, error) {
	o, err := opts.defaults()
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	l, err := openLayout(dir)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	index := ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: o.choose(ocispec.MediaTypeImageIndex, dockerList),
	}
	for _, im := range images {
		desc, err := im.write(ctx, l, o)
		if err != nil {
			return ocispec.Descriptor{}, err
		}
		index.Manifests = append(index.Manifests, desc)
	}
	desc, err := l.putJSON(index.MediaType, index)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return desc, l.tag(o.Tag, desc)
}

func (im *Image) platform() ocispec.Platform {
	p := im.Platform
	if p.OS == "" {
		p.OS = "linux"
	}
	if p.Architecture == "" {
		p.Architecture = "amd64"
	}
	return p
}

func (im *Image) write(ctx context.Context, l *layout, o Options) (ocispec.Descriptor, error) {
	created := Epoch()
	config := ocispec.Image{
		Created:  &created,
		Platform: im.platform(),
		Config:   im.Config,
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{}},
	}
	manifest := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: o.choose(ocispec.MediaTypeImageManifest, dockerManifest),
		Layers:    []ocispec.Descriptor{},
	}
	for i, s := range im.Steps {
		config.History = append(config.History, ocispec.History{
			Created: &created, CreatedBy: s.CreatedBy, EmptyLayer: s.Layer == nil,
		})
		if s.Layer == nil {
			continue
		}
		desc, diffID, err := l.putLayer(ctx, s.Layer, o)
		if err != nil {
			return ocispec.Descriptor{}, fmt.Errorf("step %d (%s): %w", i, s.CreatedBy, err)
		}
		manifest.Layers = append(manifest.Layers, desc)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, diffID)
	}
	text, err := im.configJSON(config)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if manifest.Config, err = l.put(o.choose(ocispec.MediaTypeImageConfig, dockerConfig), text); err != nil {
		return ocispec.Descriptor{}, err
	}
	desc, err := l.putJSON(manifest.MediaType, manifest)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	p := im.platform()
	desc.Platform = &p
	return desc, nil
}

// configJSON writes the configuration with the members that OCI's type has
// no field for.
func (im *Image) configJSON(config ocispec.Image) ([]byte, error) {
	text, err := json.Marshal(config)
	if err != nil || len(im.Extra) == 0 {
		return text, err
	}
	var doc map[string]any
	if err := json.Unmarshal(text, &doc); err != nil {
		return nil, err
	}
	inner, ok := doc["config"].(map[string]any)
	if !ok {
		inner = map[string]any{}
	}
	maps.Copy(inner, im.Extra)
	doc["config"] = inner
	return json.Marshal(doc)
}
