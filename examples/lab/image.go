package main

import (
	"archive/tar"
	"bytes"
	"context"
	_ "embed" // the container's program
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content/memory"
)

//go:embed hello/main.go
var helloSource []byte

// helloImage makes an image of one layer with one file, the static program
// /hello, and gives it a tag. It needs the directory dir for the compiler.
func helloImage(ctx context.Context, dir, tag string) (*memory.Store, error) {
	program, err := compileHello(ctx, dir)
	if err != nil {
		return nil, err
	}
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	if err := w.WriteHeader(&tar.Header{Name: "hello", Mode: 0o755, Size: int64(len(program))}); err != nil {
		return nil, err
	}
	if _, err := w.Write(program); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}

	store := memory.New()
	push := func(mediaType string, b []byte) (ocispec.Descriptor, error) {
		d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
		return d, store.Push(ctx, d, bytes.NewReader(b))
	}
	pushJSON := func(mediaType string, v any) (ocispec.Descriptor, error) {
		b, err := json.Marshal(v)
		if err != nil {
			return ocispec.Descriptor{}, err
		}
		return push(mediaType, b)
	}
	l, err := push(ocispec.MediaTypeImageLayer, layer.Bytes())
	if err != nil {
		return nil, err
	}
	config, err := pushJSON(ocispec.MediaTypeImageConfig, ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"},
		Config:   ocispec.ImageConfig{Cmd: []string{"/hello"}},
		// A layer that is not compressed has one digest for both.
		RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{l.Digest}},
	})
	if err != nil {
		return nil, err
	}
	manifest, err := pushJSON(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: config, Layers: []ocispec.Descriptor{l},
	})
	if err != nil {
		return nil, err
	}
	return store, store.Tag(ctx, manifest, tag)
}

func compileHello(ctx context.Context, dir string) ([]byte, error) {
	source, program := filepath.Join(dir, "hello.go"), filepath.Join(dir, "hello")
	if err := os.WriteFile(source, helloSource, 0o600); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", program, source)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64", "GOFLAGS=", "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("compile the container's program: %w\n%s", err, out)
	}
	return os.ReadFile(program)
}
