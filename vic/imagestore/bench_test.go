package imagestore_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/vicsdk/vic-go/internal/chain"
	"github.com/vicsdk/vic-go/internal/testlab"
	"github.com/vicsdk/vic-go/vic/imagestore"
)

// likeText is n bytes that pack about as well as programs do.
func likeText(seed uint64, n int) []byte {
	rnd := rand.New(rand.NewPCG(seed, 1))
	words := make([][]byte, 4096)
	for i := range words {
		words[i] = make([]byte, 2+rnd.IntN(12))
		for j := range words[i] {
			words[i][j] = byte(rnd.Uint32())
		}
	}
	out := make([]byte, 0, n+16)
	for len(out) < n {
		out = append(out, words[rnd.IntN(len(words))]...)
	}
	return out[:n]
}

// manyFiles is a tar of n bytes of files of 4 KiB to 4 MiB.
func manyFiles(seed uint64, n int) []byte {
	rnd := rand.New(rand.NewPCG(seed, 2))
	body := likeText(seed, 8<<20)
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := 0; b.Len() < n; i++ {
		size := 4096 << rnd.IntN(11)
		at := rnd.IntN(len(body) - size)
		_ = w.WriteHeader(&tar.Header{Name: fmt.Sprintf("dir%d/file%d", i%100, i), Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(size)})
		_, _ = w.Write(body[at : at+size])
	}
	_ = w.Close()
	return b.Bytes()
}

// cpuTime is what this process has used so far.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkConvert measures how fast a layer becomes a disk's data, hashing and
// writing included, by the processor time it takes: MB of tar for each second of
// a core. sha256 is what hashing the tar alone allows, copy what hashing and
// writing it to a file allow.
func BenchmarkConvert(b *testing.B) {
	const size = 512 << 20
	plain := manyFiles(1, size)
	diffID := digest.FromBytes(plain)
	rate := func(d time.Duration) float64 { return float64(len(plain)) / 1e6 / d.Seconds() }
	for _, c := range []struct {
		name      string
		mediaType string
		pack      func([]byte) []byte
		unpack    func(io.Reader) (io.Reader, error)
	}{
		{"plain", ocispec.MediaTypeImageLayer, func(p []byte) []byte { return p }, func(r io.Reader) (io.Reader, error) { return r, nil }},
		{"zstd", ocispec.MediaTypeImageLayerZstd, func(p []byte) []byte {
			w, _ := zstd.NewWriter(nil)
			return w.EncodeAll(p, nil)
		}, func(r io.Reader) (io.Reader, error) { return zstd.NewReader(r, zstd.WithDecoderConcurrency(1)) }},
		{"gzip", ocispec.MediaTypeImageLayerGzip, func(p []byte) []byte {
			var out bytes.Buffer
			w := gzip.NewWriter(&out)
			_, _ = w.Write(p)
			_ = w.Close()
			return out.Bytes()
		}, func(r io.Reader) (io.Reader, error) { return gzip.NewReader(r) }},
	} {
		b.Run(c.name, func(b *testing.B) {
			m := &memory{tags: map[string]ocispec.Descriptor{}, blobs: map[digest.Digest][]byte{}}
			blob := c.pack(plain)
			d := m.put(c.mediaType, blob)
			dir := b.TempDir()
			for b.Loop() {
				start := cpuTime(b)
				if _, err := imagestore.Convert(b.Context(), dir, 2<<30, m, d, diffID); err != nil {
					b.Fatal(err)
				}
				took := cpuTime(b) - start

				start = cpuTime(b)
				_ = sha256.Sum256(plain)
				hash := cpuTime(b) - start

				start = cpuTime(b)
				if err := copyHashed(dir, blob, c.unpack, c.name != "plain"); err != nil {
					b.Fatal(err)
				}
				floor := cpuTime(b) - start
				b.ReportMetric(rate(took), "MB/core-s")
				b.ReportMetric(rate(hash), "sha256-MB/core-s")
				b.ReportMetric(rate(floor), "floor-MB/core-s")
				b.ReportMetric(float64(took)/float64(floor), "cpu/floor")
			}
		})
	}
}

// copyHashed does what no conversion can leave out: hash, unpack, hash, write.
func copyHashed(dir string, blob []byte, unpack func(io.Reader) (io.Reader, error), packed bool) error {
	f, err := os.CreateTemp(dir, "floor-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	var r io.Reader = bytes.NewReader(blob)
	if packed {
		r = io.TeeReader(r, sha256.New())
	}
	if r, err = unpack(r); err != nil {
		return err
	}
	_, err = io.CopyBuffer(struct{ io.Writer }{io.MultiWriter(sha256.New(), f)}, struct{ io.Reader }{r}, make([]byte, 1<<20))
	return err
}

// BenchmarkLayerSize tells what small layers cost on the datastore: one file
// added, and the owner of 64 MB of files changed. "payload" is the data that the
// disk holds, "file" the extent's length.
func BenchmarkLayerSize(b *testing.B) {
	e := testlab.Start(b, testlab.Options{NoBoot: true})
	const touched = 64 << 20
	var base, owned bytes.Buffer
	for i, w := range []*bytes.Buffer{&base, &owned} {
		t := tar.NewWriter(w)
		for f := range 64 {
			_ = t.WriteHeader(&tar.Header{Name: fmt.Sprintf("file%d", f), Typeflag: tar.TypeReg, Mode: 0o644, Uid: i * 1000, Size: touched / 64})
			_, _ = t.Write(likeText(uint64(f), touched/64))
		}
		_ = t.Close()
	}
	for b.Loop() {
		f := newFake("sizes")
		f.config.RootFS.DiffIDs, f.manifest.Layers = nil, nil
		for _, t := range [][]byte{base.Bytes(), owned.Bytes(), oneFile("etc/one", "a line\n")} {
			f.config.RootFS.DiffIDs = append(f.config.RootFS.DiffIDs, digest.FromBytes(t))
			f.manifest.Layers = append(f.manifest.Layers, f.m.put(ocispec.MediaTypeImageLayer, t))
		}
		f.tag()
		img, err := e.Engine.Images().Pull(b.Context(), f.m, "sizes.example/image:x", nil)
		if err != nil {
			b.Fatal(err)
		}
		disk := openDisk(b, e.Local(b, img.Root().Path))
		for i, name := range []string{"one-file", "chown"} {
			payload, err := disk.Allocated(i)
			if err != nil {
				b.Fatal(err)
			}
			st, err := os.Stat(disk.Links()[i].Extent)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(payload)/1024, name+"-payload-KiB")
			b.ReportMetric(float64(st.Size())/1024, name+"-file-KiB")
			if name == "chown" {
				b.ReportMetric(100*float64(payload)/touched, "chown-%-of-touched")
			}
		}
	}
}

// openDisk opens a chain by the files below the lab's datastore.
func openDisk(b *testing.B, top string) *chain.Disk {
	b.Helper()
	d, err := chain.Open(b.Context(), top, func(_ context.Context, p string) (chain.File, error) { return openLocal(p) })
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { d.Close() })
	return d
}
