package imagestore

import (
	"context"

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
