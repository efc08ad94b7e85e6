package ext4_test

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"testing"

	"github.com/vicsdk/vic-go/internal/ext4"
)

// BenchmarkReadLayer reads plain tars: one of large files, one of many small ones.
func BenchmarkReadLayer(b *testing.B) {
	var large, small []entry
	for i := range 8 {
		large = append(large, entry{name: fmt.Sprint(i), body: noise(uint64(i), 32<<20)})
	}
	for i := range 20000 {
		small = append(small, entry{name: fmt.Sprintf("usr/share/%d/file-%d", i/100, i), body: noise(uint64(i), 3000)})
	}
	layers := map[string][]byte{"large": makeTar(b, large...), "small": makeTar(b, small...)}
	if name := os.Getenv("VIC_DEBIAN_TAR"); name != "" {
		var err error
		if layers["debian"], err = os.ReadFile(name); err != nil {
			b.Fatal(err)
		}
	}
	for name, layer := range layers {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(layer)))
			b.ReportAllocs()
			entries := 0
			for b.Loop() {
				l, err := ext4.ReadLayer(bytes.NewReader(layer), io.Discard, ext4.Limits{})
				if err != nil {
					b.Fatal(err)
				}
				entries += l.Entries
			}
			b.ReportMetric(float64(entries)/b.Elapsed().Seconds(), "entries/s")
		})
	}
}

// BenchmarkApply applies a layer of 11,000 files to the empty filesystem, and makes its metadata.
func BenchmarkApply(b *testing.B) {
	var es []entry
	for i := range 11000 {
		es = append(es, entry{name: fmt.Sprintf("usr/share/%d/file-%d", i/40, i), body: "contents"})
	}
	l, err := ext4.ReadLayer(bytes.NewReader(makeTar(b, es...)), io.Discard, ext4.Limits{})
	if err != nil {
		b.Fatal(err)
	}
	var blocks, index int
	for b.Loop() {
		b.StopTimer()
		fs, err := ext4.New(ext4.Geometry{Bytes: 8 << 30})
		if err != nil {
			b.Fatal(err)
		}
		fs.Commit()
		b.StartTimer()
		if _, err := fs.Apply(l); err != nil {
			b.Fatal(err)
		}
		var p [ext4.BlockSize]byte
		d := fs.Dirty()
		for _, lba := range d {
			fs.Block(lba, p[:])
		}
		fs.Commit()
		b.StopTimer()
		x, err := fs.MarshalBinary()
		if err != nil {
			b.Fatal(err)
		}
		blocks, index = len(d), len(x)
		b.StartTimer()
	}
	b.ReportMetric(float64(blocks), "metablocks")
	b.ReportMetric(float64(index), "index-bytes")
}

// BenchmarkIndex stores and loads the index of 11,000 files.
func BenchmarkIndex(b *testing.B) {
	var es []entry
	for i := range 11000 {
		es = append(es, entry{name: fmt.Sprintf("usr/share/%d/file-%d", i/40, i), body: "contents"})
	}
	im := newImage(b, 8<<30)
	im.mustApply(b, makeTar(b, es...))
	var raw []byte
	var err error
	b.Run("marshal", func(b *testing.B) {
		for b.Loop() {
			if raw, err = im.fs.MarshalBinary(); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(len(raw)), "index-bytes")
	})
	b.Run("unmarshal", func(b *testing.B) {
		for b.Loop() {
			if _, err := ext4.Unmarshal(raw); err != nil {
				b.Fatal(err)
			}
		}
	})
}
