package bench_test

import (
	"crypto/sha256"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	kgzip "github.com/klauspost/compress/gzip"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/vicsdk/vic-go/internal/testimage"
	"github.com/vicsdk/vic-go/internal/testlab"
)

// BenchmarkPull measures a pull of a Debian image with Python into an empty
// store beside its floor: the same layers decompressed, hashed before and
// after, and written to a file each, as many at once as there are cores.
func BenchmarkPull(b *testing.B) {
	layout, err := testimage.Debian(b.Context(), "", "python3", "python3-pip")
	if err != nil {
		b.Fatal(err)
	}
	e := testlab.Start(b, testlab.Options{NoBoot: true})
	image := e.Push(b, layout, "python:latest")
	layers := layersOf(b, layout)
	for b.Loop() {
		var pulls, floors []time.Duration
		var size int64
		for range 3 {
			start := time.Now()
			n := floor(b, layers)
			floors = append(floors, time.Since(start))
			size = n
			start = time.Now()
			if _, err := e.Engine.Pull(b.Context(), image, nil); err != nil {
				b.Fatal(err)
			}
			pulls = append(pulls, time.Since(start))
			if _, err := e.Engine.DeleteImage(b.Context(), image, nil); err != nil {
				b.Fatal(err)
			}
		}
		report(b, pulls, "pull")
		report(b, floors, "floor")
		b.ReportMetric(float64(median(pulls))/float64(median(floors)), "pull/floor")
		b.ReportMetric(float64(size)/1e6/median(pulls).Seconds(), "MB/s")
	}
}

func layersOf(b *testing.B, layout string) []string {
	b.Helper()
	read := func(file string, v any) {
		text, err := os.ReadFile(file)
		if err == nil {
			err = json.Unmarshal(text, v)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	var idx ocispec.Index
	read(filepath.Join(layout, "index.json"), &idx)
	var m ocispec.Manifest
	read(filepath.Join(layout, "blobs", "sha256", idx.Manifests[0].Digest.Encoded()), &m)
	var out []string
	for _, l := range m.Layers {
		out = append(out, filepath.Join(layout, "blobs", "sha256", l.Digest.Encoded()))
	}
	return out
}

// floor does the work that no converter can leave out, and returns the
// unpacked size in bytes.
func floor(b *testing.B, layers []string) int64 {
	b.Helper()
	sem := make(chan struct{}, runtime.GOMAXPROCS(0))
	var wg sync.WaitGroup
	var mu sync.Mutex
	var total int64
	for _, name := range layers {
		wg.Go(func() {
			sem <- struct{}{}
			defer func() { <-sem }()
			n, err := floorOf(name)
			mu.Lock()
			defer mu.Unlock()
			total += n
			if err != nil {
				b.Error(err)
			}
		})
	}
	wg.Wait()
	return total
}

func floorOf(name string) (int64, error) {
	f, err := os.Open(name)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	out, err := os.CreateTemp("", "vic-floor-*")
	if err != nil {
		return 0, err
	}
	defer os.Remove(out.Name())
	defer out.Close()
	packed, plain := sha256.New(), sha256.New()
	z, err := kgzip.NewReader(io.TeeReader(f, packed))
	if err != nil {
		return 0, err
	}
	return io.CopyBuffer(struct{ io.Writer }{io.MultiWriter(out, plain)}, z, make([]byte, 1<<20))
}
