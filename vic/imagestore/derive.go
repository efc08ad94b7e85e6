package imagestore

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/vic"
)

// ConfigOptions say what the configuration of a new image is to be beside what
// its parent's is.
type ConfigOptions struct {
	// Changes come first, then Instructions, in the form that a Dockerfile
	// has: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME,
	// WORKDIR.
	Changes      Changes
	Instructions []string
	// Author of the image, and of the history's new entry.
	Author string
	// Comment and CreatedBy of the history's new entry.
	Comment   string
	CreatedBy string
	// Created is now where it is zero.
	Created time.Time
}

// derive makes a configuration out of another, nil for none, with a layer more
// where diffID is not empty. Members that are not known here are kept.
func (o *ConfigOptions) derive(from []byte, diffID digest.Digest) ([]byte, error) {
	if from == nil {
		from = []byte(`{"architecture":"amd64","os":"linux","rootfs":{"type":"layers"}}`)
	}
	var img ocispec.Image
	if err := json.Unmarshal(from, &img); err != nil {
		return nil, fault.As(vic.ErrInvalid, err)
	}
	all, err := parts(from)
	if err != nil {
		return nil, err
	}
	config := all["config"]
	if len(config) == 0 || string(config) == "null" {
		config = []byte("{}")
	}
	inner, err := parts(config)
	if err != nil {
		return nil, err
	}
	c := img.Config
	if err := o.Changes.apply(&c); err != nil {
		return nil, err
	}
	if err := instruct(&c, o.Instructions); err != nil {
		return nil, err
	}
	b, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	changed, err := parts(b) // without what is empty
	if err != nil {
		return nil, err
	}
	for _, k := range []string{"Env", "Cmd", "Entrypoint", "WorkingDir", "User", "Labels", "ExposedPorts", "Volumes", "StopSignal"} {
		delete(inner, k)
		if v, ok := changed[k]; ok {
			inner[k] = v
		}
	}
	created := o.Created.UTC()
	if o.Created.IsZero() {
		created = time.Now().UTC()
	}
	// History has an entry for each layer, or some tools refuse the image.
	n := 0
	for _, h := range img.History {
		if !h.EmptyLayer {
			n++
		}
	}
	var history []ocispec.History
	for ; n < len(img.RootFS.DiffIDs); n++ {
		history = append(history, ocispec.History{Comment: "no history is known of this layer"})
	}
	history = append(history, img.History...)
	history = append(history, ocispec.History{Created: &created, CreatedBy: o.CreatedBy, Author: o.Author, Comment: o.Comment, EmptyLayer: diffID == ""})
	rootfs := img.RootFS
	if diffID != "" {
		rootfs.DiffIDs = append(rootfs.DiffIDs, diffID)
	}
	values := map[string]any{"config": inner, "created": created, "history": history, "rootfs": rootfs}
	if o.Author != "" {
		values["author"] = o.Author
	}
	// Of the parent's making, by Docker.
	for _, k := range []string{"container", "container_config", "id", "parent"} {
		delete(all, k)
	}
	for k, v := range values {
		if err := set(all, k, v); err != nil {
			return nil, err
		}
	}
	return json.Marshal(all)
}

// staged is an image that lies here: the source of pulls from this machine.
type staged struct {
	docs  map[digest.Digest][]byte
	blobs map[digest.Digest]*packed
	// missing says why a blob is not there.
	missing func(digest.Digest) error
	root    ocispec.Descriptor
}

func newStaged() *staged {
	return &staged{docs: map[digest.Digest][]byte{}, blobs: map[digest.Digest]*packed{}}
}

func (s *staged) put(mediaType string, b []byte) ocispec.Descriptor {
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	s.docs[d.Digest] = b
	return d
}

// manifest makes a manifest, which becomes what Resolve finds.
func (s *staged) manifest(docker bool, config []byte, layers []ocispec.Descriptor) error {
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Layers: layers}
	configType := ocispec.MediaTypeImageConfig
	if docker {
		m.MediaType, configType = dockerManifest, dockerConfig
	}
	m.Config = s.put(configType, config)
	b, err := json.Marshal(m)
	s.root = s.put(m.MediaType, b)
	return err
}

// Resolve implements Source.
func (s *staged) Resolve(context.Context, string) (ocispec.Descriptor, error) { return s.root, nil }

// Fetch implements Source.
func (s *staged) Fetch(_ context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	if b, ok := s.docs[d.Digest]; ok {
		return io.NopCloser(bytes.NewReader(b)), nil
	}
	if p, ok := s.blobs[d.Digest]; ok {
		return io.NopCloser(p.reader()), nil
	}
	if s.missing != nil {
		return nil, s.missing(d.Digest)
	}
	return nil, fault.Of(vic.ErrNotFound, "layer %s was deleted meanwhile: pull its image again", d.Digest)
}

// adopt brings a staged image into the store as a pull would.
func (s *Store) adopt(ctx context.Context, src Source, name string, known []knownBlob, t *teller) (*Image, error) {
	f, err := describeImage(ctx, src, name, platform)
	if err != nil {
		return nil, err
	}
	var img *Image
	err = s.usingImage(ctx, f, func(ctx context.Context, s *Store) error {
		top, err := s.layers(ctx, src, f, false, t)
		if err != nil {
			return err
		}
		doc, err := s.enter(ctx, f, top, "", known)
		if err != nil {
			return err
		}
		img, err = s.name(ctx, name, doc)
		return err
	})
	return img, err
}
