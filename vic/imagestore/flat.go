package imagestore

import (
	"context"
	"fmt"
	"io"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/vicsdk/vic-go/internal/ext4"
	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/vic"
)

// platform of the images that can be run.
var platform = ocispec.Platform{OS: "linux", Architecture: "amd64"}

// ExportOptions are the details of an export; nil means none.
type ExportOptions struct {
	// Sparse keeps the holes of files that have at least 1 MiB of them, in
	// GNU's sparse format 1.0. Without it holes are zeroes.
	Sparse bool
}

// Export writes the whole tree on a disk as one tar in PAX format: an image's
// (Image.Root), or that of a container that is off. It is what Import takes.
func (s *Store) Export(ctx context.Context, d vic.Disk, w io.Writer, o *ExportOptions) error {
	if o == nil {
		o = &ExportOptions{}
	}
	err := func() error {
		r, closeTree, err := s.openTree(ctx, d)
		if err != nil {
			return err
		}
		defer func() { _ = closeTree() }() // it was only read
		tree, err := r.Sub(ext4.RootDir)
		if err != nil {
			return err
		}
		return tree.TarOut(&whileContext{ctx, w}, "/", &ext4.TarOptions{Sparse: o.Sparse})
	}()
	return fault.Wrap("export", vic.Ref{Kind: "disk", ID: d.Path}, err)
}

// ImportOptions are the details of an import; nil means none.
type ImportOptions struct {
	ConfigOptions
	// Progress hears of the layer as it does of a pull's.
	Progress func(vic.Event)
}

// Import makes an image of one layer out of a tar, which may be packed with gzip
// or zstd, under a name that ends in a tag. Its configuration is that of the
// options alone.
func (s *Store) Import(ctx context.Context, r io.Reader, name string, o *ImportOptions) (*Image, error) {
	const op = "import"
	if o == nil {
		o = &ImportOptions{}
	}
	t := &teller{op: op, f: o.Progress}
	defer t.close()
	img, err := s.importTar(ctx, r, name, o, t)
	return img, fault.Wrap(op, vic.Ref{Kind: "image", Name: name}, err)
}

func (s *Store) importTar(ctx context.Context, r io.Reader, name string, o *ImportOptions, t *teller) (*Image, error) {
	if err := checkTagged(name); err != nil {
		return nil, err
	}
	if _, err := o.derive(nil, ""); err != nil {
		return nil, err
	}
	t.tell(name, "pack", 0, 0)
	p, diffID, _, err := s.packTar(Gzip, false, func(w io.Writer) error {
		in, closeIn, err := decompress(r, s.bytes)
		if err != nil {
			return err
		}
		defer closeIn()
		limit := s.layerLimit()
		n, err := io.Copy(&whileContext{ctx, w}, io.LimitReader(in, limit+1))
		if err == nil && n > limit {
			err = fault.Of(vic.ErrInvalid, "the tar has more than %d bytes, more than its filesystem could hold", limit)
		}
		if err != nil {
			return fmt.Errorf("the tar: %w", err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	defer p.close()
	config, err := o.derive(nil, diffID)
	if err != nil {
		return nil, err
	}
	stage := newStaged()
	stage.blobs[p.desc.Digest] = p
	if err := stage.manifest(false, config, []ocispec.Descriptor{p.desc}); err != nil {
		return nil, err
	}
	return s.adopt(ctx, stage, name, nil, t)
}
