package testimage

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// layout writes an OCI layout: OCI image spec, image-layout.md.
type layout struct{ dir string }

func openLayout(dir string) (*layout, error) {
	l := &layout{dir}
	if err := os.MkdirAll(l.blobs(), 0o755); err != nil {
		return nil, err
	}
	marker, err := json.Marshal(ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, ocispec.ImageLayoutFile), marker, 0o644); err != nil {
		return nil, err
	}
	return l, nil
}

func (l *layout) blobs() string {
	return filepath.Join(l.dir, ocispec.ImageBlobsDir, digest.SHA256.String())
}

func (l *layout) putJSON(mediaType string, v any) (ocispec.Descriptor, error) {
	text, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return l.put(mediaType, text)
}

func (l *layout) put(mediaType string, content []byte) (ocispec.Descriptor, error) {
	return l.putFrom(mediaType, func(w io.Writer) error {
		_, err := io.Copy(w, bytes.NewReader(content))
		return err
	})
}

// putFrom stores what write writes under its digest.
func (l *layout) putFrom(mediaType string, write func(io.Writer) error) (desc ocispec.Descriptor, err error) {
	f, err := os.CreateTemp(l.blobs(), ".new-")
	if err != nil {
		return desc, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close(), os.Remove(f.Name()))
		}
	}()
	sum := digest.SHA256.Digester()
	if err := write(io.MultiWriter(f, sum.Hash())); err != nil {
		return desc, err
	}
	st, err := f.Stat()
	if err != nil {
		return desc, err
	}
	if err := f.Chmod(0o644); err != nil {
		return desc, err
	}
	desc = ocispec.Descriptor{MediaType: mediaType, Digest: sum.Digest(), Size: st.Size()}
	if err := os.Rename(f.Name(), filepath.Join(l.blobs(), desc.Digest.Encoded())); err != nil {
		return desc, err
	}
	return desc, f.Close()
}

// putLayer stores a layer, and returns its blob and its diff ID.
func (l *layout) putLayer(ctx context.Context, layer *Layer, o Options) (ocispec.Descriptor, digest.Digest, error) {
	diff := digest.SHA256.Digester()
	desc, err := l.putFrom(o.layerType(), func(w io.Writer) error {
		c, err := compressor(w, o.Compression)
		if err != nil {
			return err
		}
		if err := layer.WriteTar(ctx, io.MultiWriter(c, diff.Hash())); err != nil {
			return errors.Join(err, c.Close())
		}
		return c.Close()
	})
	return desc, diff.Digest(), err
}

// compressor writes the same bytes for the same input each time: zstd
// splits its input by workers, so it has one.
func compressor(w io.Writer, c Compression) (io.WriteCloser, error) {
	switch c {
	case Gzip:
		return gzip.NewWriter(w), nil
	case Zstd:
		return zstd.NewWriter(w, zstd.WithEncoderConcurrency(1))
	case Plain:
		return nopCloser{w}, nil
	}
	return nil, fmt.Errorf("unknown compression %q", c)
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// tag points tag to desc in the layout's index.
func (l *layout) tag(tag string, desc ocispec.Descriptor) error {
	name := filepath.Join(l.dir, ocispec.ImageIndexFile)
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	text, err := os.ReadFile(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	default:
		if err := json.Unmarshal(text, &index); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	manifests := []ocispec.Descriptor{}
	for _, m := range index.Manifests {
		if m.Annotations[ocispec.AnnotationRefName] != tag {
			manifests = append(manifests, m)
		}
	}
	desc.Annotations = map[string]string{ocispec.AnnotationRefName: tag}
	index.Manifests = append(manifests, desc)
	if text, err = json.Marshal(index); err != nil {
		return err
	}
	if err := os.WriteFile(name+".new", text, 0o644); err != nil {
		return err
	}
	return os.Rename(name+".new", name)
}
