package imagestore

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/vic"
)

// original is what only those need who give an image on: its documents to the
// byte, and where its layers are to be had packed. It is in images/DIGEST.json
// and not in names, which every start of a container reads.
type original struct {
	MediaType string      `json:"mediaType"` // of the manifest
	Manifest  []byte      `json:"manifest"`
	Config    []byte      `json:"config"`
	Blobs     []knownBlob `json:"blobs,omitempty"`
}

// knownBlob is a packed form of a layer that was seen in repositories, named as
// REGISTRY/PATH. It may be gone from there.
type knownBlob struct {
	Layer        int                `json:"layer"` // from 0
	Descriptor   ocispec.Descriptor `json:"descriptor"`
	Repositories []string           `json:"repositories"`
}

// repositoryOf cuts tag or digest off a name.
func repositoryOf(name string) string {
	name, _, _ = strings.Cut(name, "@")
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		name = name[:i]
	}
	return name
}

// registryOf is a name's part before its first slash.
func registryOf(name string) string {
	r, _, _ := strings.Cut(name, "/")
	return r
}

// maxRepositories bounds what is remembered of where a blob is.
const maxRepositories = 16

// seen notes that a repository has a layer.
func (o *original) seen(n int, d ocispec.Descriptor, repositories ...string) {
	d = ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}
	i := slices.IndexFunc(o.Blobs, func(b knownBlob) bool { return b.Layer == n && b.Descriptor.Digest == d.Digest })
	if i < 0 {
		i = len(o.Blobs)
		o.Blobs = append(o.Blobs, knownBlob{Layer: n, Descriptor: d})
	}
	b := &o.Blobs[i]
	for _, r := range repositories {
		if r != "" && !slices.Contains(b.Repositories, r) {
			b.Repositories = append(b.Repositories, r)
		}
	}
	if over := len(b.Repositories) - maxRepositories; over > 0 {
		b.Repositories = b.Repositories[over:]
	}
}

// enter writes an image's record. What an earlier one knew of its blobs is
// kept. known are blobs of the image's lower layers that another image's record
// has.
func (s *Store) enter(ctx context.Context, f *found, top *layer, repository string, known []knownBlob) (*imageDoc, error) {
	doc := &imageDoc{Version: 1, Manifest: f.manifest, Config: f.config, Docker: dockerConfigOf(f.rawConfig), Layers: f.layers, Dir: top.Dir, Bytes: top.Bytes, Pulled: s.now()}
	doc.Original = &original{MediaType: f.mediaType, Manifest: f.rawManifest, Config: f.rawConfig}
	before, err := s.readImage(ctx, f.manifest)
	switch {
	case err == nil && before.Original != nil:
		known = append(known, before.Original.Blobs...)
	case err != nil && !errors.Is(err, vic.ErrNotFound) && !errors.Is(err, vic.ErrInvalid):
		return nil, err // a damaged one is replaced
	}
	for _, b := range known {
		if b.Layer >= 0 && b.Layer < len(f.layers) {
			doc.Original.seen(b.Layer, b.Descriptor, b.Repositories...)
		}
	}
	if repository != "" {
		for i, d := range f.layers {
			doc.Original.seen(i, d, repository)
		}
	}
	return doc, s.writeJSON(ctx, doc, "images", imageFile(f.manifest))
}

// name makes a name stand for an image.
func (s *Store) name(ctx context.Context, name string, doc *imageDoc) (*Image, error) {
	short := *doc
	short.Original = nil
	if err := s.writeJSON(ctx, nameDoc{Version: 2, Name: name, Manifest: doc.Manifest, Image: &short}, "names", nameFile(name)); err != nil {
		return nil, err
	}
	return &Image{name: name, doc: short, root: s.disk(&layer{Dir: doc.Dir, Bytes: doc.Bytes})}, nil
}

// originalOf reads the whole record of an image that is opened.
func (s *Store) originalOf(ctx context.Context, i *Image) (*imageDoc, error) {
	doc, err := s.readImage(ctx, i.doc.Manifest)
	if err != nil {
		return nil, err
	}
	if doc.Original == nil {
		return nil, fault.Of(vic.ErrUnsupported, "an older release pulled it and kept no copy of its manifest: pull it again")
	}
	return doc, nil
}

// parts splits a JSON object, to change some of its members and keep the
// others, whatever they are.
func parts(b []byte) (map[string]json.RawMessage, error) {
	var m map[string]json.RawMessage
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, fault.As(vic.ErrInvalid, err)
	}
	if m == nil {
		m = map[string]json.RawMessage{}
	}
	return m, nil
}

// set gives a member a value; a nil one removes it.
func set(m map[string]json.RawMessage, key string, v any) error {
	if v == nil {
		delete(m, key)
		return nil
	}
	b, err := json.Marshal(v)
	m[key] = b
	return err
}
