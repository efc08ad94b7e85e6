package bench_test

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	kgzip "github.com/klauspost/compress/gzip"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/vmware/govmomi/vim25/types"
	"golang.org/x/sync/errgroup"

	"github.com/vicsdk/vic-go/internal/testimage"
	"github.com/vicsdk/vic-go/internal/testlab"
	"github.com/vicsdk/vic-go/vic/registry"
)

// BenchmarkPull measures a pull of a Debian image with Python into an empty
// store beside its floor, which is what no way of pulling can do without: the
// greater of the download alone and of the processor's share (each layer
// hashed, decompressed, hashed again and written to a file, over as many cores
// as there are layers), and then the plain PUT of the files that came out.
func BenchmarkPull(b *testing.B) {
	layout, err := testimage.Debian(b.Context(), "", "python3", "python3-pip")
	if err != nil {
		b.Fatal(err)
	}
	e := testlab.Start(b, testlab.Options{NoBoot: true})
	image := e.Push(b, layout, "python:latest")
	layers := layersOf(b, layout)
	for b.Loop() {
		var pulls, downloads, shares, puts, floors, cpu []time.Duration
		var size int64
		for range 5 {
			download := fetchAll(b, image)
			start := cpuTime(b)
			size = 0
			for _, name := range layers {
				n, err := floorOf(name)
				if err != nil {
					b.Fatal(err)
				}
				size += n
			}
			share := (cpuTime(b) - start) / time.Duration(min(runtime.GOMAXPROCS(0), len(layers)))

			began := time.Now()
			start = cpuTime(b)
			if _, err := e.Engine.Pull(b.Context(), image, nil); err != nil {
				b.Fatal(err)
			}
			pulls, cpu = append(pulls, time.Since(began)), append(cpu, cpuTime(b)-start)
			put := putAll(b, e)
			downloads, shares, puts = append(downloads, download), append(shares, share), append(puts, put)
			floors = append(floors, max(download, share)+put)
			if _, err := e.Engine.DeleteImage(b.Context(), image, nil); err != nil {
				b.Fatal(err)
			}
		}
		report(b, pulls, "pull")
		b.ReportMetric(ms(cpu), "pull-cpu-median-ms") // with the lab's
		b.ReportMetric(ms(downloads), "download-median-ms")
		b.ReportMetric(ms(shares), "cpu-share-median-ms")
		b.ReportMetric(ms(puts), "put-median-ms")
		report(b, floors, "floor")
		b.ReportMetric(ratio(pulls, floors), "pull/floor")
		b.ReportMetric(float64(size)/1e6/median(pulls).Seconds(), "MB/s")
		b.ReportMetric(float64(len(layers)), "layers")
	}
}

func ms(d []time.Duration) float64 { return float64(median(d).Microseconds()) / 1000 }

// cpuTime is what this process has used so far.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// fetchAll downloads an image's layers at once and drops them.
func fetchAll(b *testing.B, image string) time.Duration {
	b.Helper()
	n, err := registry.ParseName(image)
	if err != nil {
		b.Fatal(err)
	}
	r, err := registry.Open(n, &registry.Options{PlainHTTP: true})
	if err != nil {
		b.Fatal(err)
	}
	defer r.Close()
	start := time.Now()
	var m ocispec.Manifest
	d, err := r.Resolve(b.Context(), n.Reference)
	if err == nil {
		var body io.ReadCloser
		if body, err = r.Fetch(b.Context(), d); err == nil {
			err = json.NewDecoder(body).Decode(&m)
			body.Close()
		}
	}
	if err != nil {
		b.Fatal(err)
	}
	g, ctx := errgroup.WithContext(b.Context())
	for _, l := range m.Layers {
		g.Go(func() error {
			body, err := r.Fetch(ctx, l)
			if err != nil {
				return err
			}
			defer body.Close()
			_, err = io.Copy(io.Discard, body)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		b.Fatal(err)
	}
	return time.Since(start)
}

// putAll uploads what lies in the store once more, one file after the other.
func putAll(b *testing.B, e *testlab.Env) time.Duration {
	b.Helper()
	place := e.Engine.VCH().Images()
	ds := types.ManagedObjectReference{Type: "Datastore", Value: place.Datastore.ID}
	files := e.Client.Session().Files(ds, place.Datastore.Name)
	if err := files.MkdirAll(b.Context(), "again"); err != nil {
		b.Fatal(err)
	}
	all, err := filepath.Glob(filepath.Join(e.Datastore(), place.Dir, "layers", "*", "*"))
	if err != nil {
		b.Fatal(err)
	}
	var took time.Duration
	for i, name := range all {
		if strings.HasPrefix(filepath.Base(filepath.Dir(name)), "base-") {
			continue // There before a pull.
		}
		f, err := os.Open(name)
		if err != nil {
			b.Fatal(err)
		}
		st, err := f.Stat()
		if err != nil {
			b.Fatal(err)
		}
		start := time.Now()
		if err := files.Put(b.Context(), fmt.Sprintf("again/%d", i), f, st.Size()); err != nil {
			b.Fatal(err)
		}
		took += time.Since(start)
		f.Close()
	}
	if err := files.Delete(b.Context(), "again"); err != nil {
		b.Fatal(err)
	}
	return took
}

// BenchmarkPullMemory tells the most memory that the program vic has while it
// pulls an image of 2 GB in four layers.
func BenchmarkPullMemory(b *testing.B) {
	const layers, each, piece = 4, 512 << 20, 8 << 20
	im := &testimage.Image{}
	for i := range layers {
		l := testimage.NewLayer()
		for k := range each / piece {
			l.AddReader(fmt.Sprintf("layer%d/file%d", i, k), piece, func() (io.ReadCloser, error) {
				return io.NopCloser(io.LimitReader(rand.NewChaCha8([32]byte{byte(i), byte(k)}), piece)), nil
			}, nil)
		}
		im.Steps = append(im.Steps, testimage.Step{Layer: l, CreatedBy: "a benchmark"})
	}
	dir := b.TempDir()
	if _, err := im.Write(b.Context(), dir, &testimage.Options{Compression: testimage.Zstd}); err != nil {
		b.Fatal(err)
	}
	e := testlab.Start(b, testlab.Options{NoBoot: true})
	c := newCommand(b, e, e.Busybox(b))
	image := e.Push(b, dir, "large:latest")
	for b.Loop() {
		cmd := exec.CommandContext(b.Context(), c.vic, "pull", image)
		cmd.Env = c.env
		start := time.Now()
		if out, err := cmd.CombinedOutput(); err != nil {
			b.Fatalf("vic pull: %v\n%s", err, out)
		}
		took := time.Since(start)
		u, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage)
		if !ok {
			b.Fatal("no resource usage")
		}
		b.ReportMetric(float64(u.Maxrss)/1024, "peak-MB")
		b.ReportMetric(layers*each/1e6/took.Seconds(), "MB/s")
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

// floorOf does the work for a layer that no converter can leave out, and returns
// the unpacked size in bytes.
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
