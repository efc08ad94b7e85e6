package imagestore

import (
	"context"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
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
