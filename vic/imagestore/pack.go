package imagestore

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/vic"
)

// Compression is how layers are packed.
type Compression string

const (
	Gzip Compression = "gzip"
	// Zstd is for images of the OCI's format only; Docker's knows no such
	// layers. RFC 8878.
	Zstd Compression = "zstd"
	// None leaves layers plain tars.
	None Compression = "none"
)

func (c Compression) check(or Compression) (Compression, error) {
	switch c {
	case "":
		return or, nil
	case Gzip, Zstd, None:
		return c, nil
	}
	return "", fault.Of(vic.ErrInvalid, "compression %q; take %q, %q or %q", c, Gzip, Zstd, None)
}

// gzipLevel is fixed, so that the same layer always packs to the same bytes.
const gzipLevel = 6

// writer packs; the same bytes give the same bytes, with one release.
func (c Compression) writer(w io.Writer) (io.WriteCloser, error) {
	switch c {
	case Gzip:
		return gzip.NewWriterLevel(w, gzipLevel)
	case Zstd:
		return zstd.NewWriter(w, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedDefault))
	}
	return nopWriteCloser{w}, nil
}

type nopWriteCloser struct{ io.Writer }

func (nopWriteCloser) Close() error { return nil }

// layerType is the media type of a layer; docker tells Docker's format from the
// OCI's.
func (c Compression) layerType(docker bool) string {
	switch {
	case c == Gzip && docker:
		return dockerLayer
	case c == None && docker:
		return dockerPlainLayer
	case c == Gzip:
		return ocispec.MediaTypeImageLayerGzip
	case c == Zstd:
		return ocispec.MediaTypeImageLayerZstd
	}
	return ocispec.MediaTypeImageLayer
}

// packing tells how a layer's media type says it is packed.
func packing(mediaType string) (Compression, error) {
	c, err := compressionOf(mediaType)
	return [...]Compression{plain: None, gzipped: Gzip, zstandard: Zstd}[c], err
}

// foreign says of a layer that it is not to be distributed (OCI image
// specification, layer.md, "Non-Distributable Layers").
func foreign(mediaType string) bool {
	return mediaType == dockerForeignLayer || strings.Contains(mediaType, ".nondistributable.")
}

// packed is a layer that lies packed in a file without a name.
type packed struct {
	f    *os.File
	desc ocispec.Descriptor
}

func (p *packed) close() { p.f.Close() }

// reader reads it from its beginning.
func (p *packed) reader() *io.SectionReader { return io.NewSectionReader(p.f, 0, p.desc.Size) }

// packTar spools a packed tar that write gives, and returns the digest and size
// of the tar as it was, too.
func (s *Store) packTar(c Compression, docker bool, write func(io.Writer) error) (*packed, digest.Digest, int64, error) {
	f, err := tempFile(s.tempDir, "packed layer")
	if err != nil {
		return nil, "", 0, err
	}
	p := &packed{f: f}
	out := &meter{w: f, d: digest.SHA256.Digester()}
	in := &meter{d: digest.SHA256.Digester()}
	err = func() error {
		z, err := c.writer(out)
		if err != nil {
			return err
		}
		in.w = z
		if err := write(in); err != nil {
			return err
		}
		return z.Close()
	}()
	if err != nil {
		p.close()
		return nil, "", 0, err
	}
	p.desc = ocispec.Descriptor{MediaType: c.layerType(docker), Digest: out.d.Digest(), Size: out.n}
	return p, in.d.Digest(), in.n, nil
}

// meter hashes and counts what is written through it.
type meter struct {
	w io.Writer
	d digest.Digester
	n int64
}

func (m *meter) Write(p []byte) (int, error) {
	n, err := m.w.Write(p)
	m.d.Hash().Write(p[:n])
	m.n += int64(n)
	return n, err
}

// pack packs a layer of the store.
func (s *Store) pack(ctx context.Context, l *layer, c Compression, docker bool) (*packed, error) {
	p, _, _, err := s.packTar(c, docker, func(w io.Writer) error { return s.writeTar(ctx, l, w) })
	return p, err
}

// remade is a manifest with other layers.
type remade struct {
	desc   ocispec.Descriptor
	bytes  []byte
	config ocispec.Descriptor
}

// remake gives an image's manifest the layers that are there to be had. If those
// are its own, the manifest stays what it was to the byte. The configuration
// never changes, because it names the layers by what is in them.
func (o *original) remake(layers []ocispec.Descriptor) (*remade, error) {
	var m ocispec.Manifest
	if err := json.Unmarshal(o.Manifest, &m); err != nil {
		return nil, fault.As(vic.ErrInvalid, fmt.Errorf("the manifest in the image's record: %w", err))
	}
	if len(m.Layers) != len(layers) {
		return nil, fault.Of(vic.ErrInvalid, "the manifest in the image's record has %d layers, not %d", len(m.Layers), len(layers))
	}
	same := true
	docker := o.MediaType == dockerManifest
	packings := make([]Compression, len(layers))
	for i, l := range layers {
		same = same && l.Digest == m.Layers[i].Digest
		var err error
		if packings[i], err = packing(l.MediaType); err != nil {
			return nil, err
		}
	}
	b, mediaType := o.Manifest, o.MediaType
	if !same {
		for _, p := range packings {
			docker = docker && p != Zstd
		}
		for i := range layers {
			own := m.Layers[i]
			if layers[i].Digest == own.Digest {
				layers[i].Annotations = own.Annotations
			}
			layers[i].MediaType = packings[i].layerType(docker)
		}
		p, err := parts(o.Manifest)
		if err != nil {
			return nil, err
		}
		mediaType, m.Config.MediaType = ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageConfig
		if docker {
			mediaType, m.Config.MediaType = dockerManifest, dockerConfig
		}
		for k, v := range map[string]any{"layers": layers, "mediaType": mediaType, "config": m.Config, "schemaVersion": 2} {
			if err := set(p, k, v); err != nil {
				return nil, err
			}
		}
		if b, err = json.Marshal(p); err != nil {
			return nil, err
		}
	}
	return &remade{
		desc:  ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))},
		bytes: b, config: m.Config,
	}, nil
}
