package imagestore_test

import (
	"bytes"
	"io"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/vicsdk/vic-go/internal/ext4"
	"github.com/vicsdk/vic-go/internal/testimage"
	"github.com/vicsdk/vic-go/internal/testlab"
	"github.com/vicsdk/vic-go/vic/imagestore"
)

// pythonLayers are the plain tars of an image of 12,000 files.
func pythonLayers(b *testing.B) (string, [][]byte) {
	b.Helper()
	layout, err := testimage.Debian(b.Context(), "", "python3", "python3-pip")
	if err != nil {
		b.Skip(err)
	}
	all, err := filepath.Glob(filepath.Join(layout, "blobs/sha256/*"))
	if err != nil {
		b.Fatal(err)
	}
	var out [][]byte
	for _, f := range all {
		if t, err := exec.CommandContext(b.Context(), "gzip", "-dc", f).Output(); err == nil {
			out = append(out, t)
		}
	}
	return layout, out
}

// What the record costs: the same layers read without and with one.
func BenchmarkRecord(b *testing.B) {
	_, layers := pythonLayers(b)
	var size int64
	for _, l := range layers {
		size += int64(len(l))
	}
	for _, with := range []bool{false, true} {
		name := "without"
		if with {
			name = "with"
		}
		b.Run(name, func(b *testing.B) {
			b.SetBytes(size)
			var record int64
			for b.Loop() {
				record = 0
				for _, l := range layers {
					o := &ext4.ReadOptions{}
					var finish func() int64
					if with {
						var err error
						if o.Frame, finish, err = imagestore.NewRecorder(b.TempDir()); err != nil {
							b.Fatal(err)
						}
					}
					if _, err := ext4.ReadLayerWith(bytes.NewReader(l), io.Discard, ext4.Limits{}, o); err != nil {
						b.Fatal(err)
					}
					if with {
						record += finish()
					}
				}
			}
			b.ReportMetric(float64(record), "record-bytes")
		})
	}
}

// How fast layers come out again, through the lab's vCenter.
func BenchmarkWriteLayer(b *testing.B) {
	layout, _ := pythonLayers(b)
	e := testlab.Start(b, testlab.Options{NoBoot: true})
	store := e.Open(b, e.Client, &imagestore.Options{Bytes: 1 << 30}).Images()
	img, err := store.Pull(b.Context(), onDisk(layout), "a.example/python:v1", nil)
	if err != nil {
		b.Fatal(err)
	}
	h, err := store.History(b.Context(), img)
	if err != nil {
		b.Fatal(err)
	}
	var size int64
	for _, s := range h {
		size += s.Bytes
	}
	b.SetBytes(size)
	for b.Loop() {
		for i := range img.Layers() {
			if err := store.WriteLayer(b.Context(), img, i, io.Discard); err != nil {
				b.Fatal(err)
			}
		}
	}
}
