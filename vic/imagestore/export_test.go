package imagestore

import (
	"bytes"
	"context"
	"io"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/vicsdk/vic-go/internal/ext4"
)

// Describe reads manifest and configuration, for tests of the parsers alone.
func Describe(ctx context.Context, src Source, ref string) (layers, diffIDs int, err error) {
	f, err := describeImage(ctx, src, ref, ocispec.Platform{OS: "linux", Architecture: "amd64"})
	if err != nil {
		return 0, 0, err
	}
	return len(f.layers), len(f.config.RootFS.DiffIDs), nil
}

// WithLeaseTime gives options with another time that a lease stands.
func WithLeaseTime(o Options, d time.Duration) *Options {
	o.leaseTime = d
	return &o
}

// TakeLease holds a use of layer directories, and returns what stops its renewal,
// as the death of a process does.
func (s *Store) TakeLease(ctx context.Context, dirs ...string) (die func(), err error) {
	l, err := s.take(ctx, useLease, leaseDoc{Wants: dirs}, func(error) {})
	if err != nil {
		return nil, err
	}
	return l.end, nil
}

// LayerDirs names the directories of an image's layers, the lowest first.
func (s *Store) LayerDirs(i *Image) []string { return s.dirs(i.doc.Config.RootFS.DiffIDs) }

// DescribeArchive reads an archive's documents, for tests of the parsers alone.
func DescribeArchive(ctx context.Context, dir string, b []byte) (images int, err error) {
	s := &Store{tempDir: dir, bytes: 128 << 20}
	a, err := s.readArchive(ctx, bytes.NewReader(b), 16<<20, func(int64) {})
	if err != nil {
		return 0, err
	}
	defer a.close()
	all, err := a.images(ctx, &LoadOptions{Name: "a.example/b:c"})
	return len(all), err
}

// Instruct applies instructions of a Dockerfile.
func Instruct(c *ocispec.ImageConfig, lines []string) error { return instruct(c, lines) }

// Derive makes a configuration out of another.
func Derive(o *ConfigOptions, from []byte, diffID digest.Digest) ([]byte, error) {
	return o.derive(from, diffID)
}

// NewRecorder starts a record; finish ends it and gives the size of its first
// part.
func NewRecorder(dir string) (f ext4.Frame, finish func() int64, err error) {
	r, err := newRecorder(dir)
	if err != nil {
		return nil, nil, err
	}
	return r, func() int64 {
		defer r.close()
		if err := r.cut(); err != nil {
			panic(err)
		}
		return r.first
	}, nil
}

// Convert unpacks a layer as a pull does and returns the length of its tar's
// contents.
func Convert(ctx context.Context, dir string, bytes int64, src Source, d ocispec.Descriptor, diffID digest.Digest) (int64, error) {
	s := &Store{tempDir: dir, bytes: bytes}
	u, err := s.unpack(ctx, src, d, diffID, func(int64) {})
	if err != nil {
		return 0, err
	}
	defer u.close()
	return u.layer.Bytes, nil
}

// Decompress unpacks a layer's bytes as a pull does, at most n of them.
func Decompress(b []byte, n int64) ([]byte, error) {
	packed := readAhead(bytes.NewReader(b))
	defer packed.close()
	r, closeR, err := decompress(packed, 1<<30)
	if err != nil {
		return nil, err
	}
	defer closeR()
	plain := readAhead(r)
	defer plain.close()
	return io.ReadAll(io.LimitReader(plain, n))
}
