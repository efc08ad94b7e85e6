package imagestore

import (
	"bytes"
	"context"
	"io"

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
