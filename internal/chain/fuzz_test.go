package chain_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vicsdk/vic-go/internal/chain"
	"github.com/vicsdk/vic-go/internal/ext4"
	"github.com/vicsdk/vic-go/internal/vmdk"
)

type inMemory struct{ *bytes.Reader }

func (inMemory) Close() error { return nil }

// filesOf opens the files of a datastore with two disks.
func filesOf(t testing.TB, top, parent string, extent []byte) chain.Opener {
	return func(_ context.Context, name string) (chain.File, error) {
		if strings.HasPrefix(name, "../") || strings.Contains(name, "/../") {
			t.Fatalf("%q leads out of the datastore", name)
		}
		switch strings.TrimPrefix(name, "/") {
		case "top/disk":
			return inMemory{bytes.NewReader([]byte(top))}, nil
		case "parent/disk":
			return inMemory{bytes.NewReader([]byte(parent))}, nil
		case "top/extent":
			return inMemory{bytes.NewReader(extent)}, nil
		case "parent/flat":
			return flat{}, nil
		}
		return nil, errors.New("no such file")
	}
}

// flat is a disk of zeroes.
type flat struct{}

func (flat) ReadAt(p []byte, off int64) (int, error) { clear(p); return len(p), nil }
func (flat) Close() error                            { return nil }
func (flat) Size() int64                             { return 128 << 20 }

// FuzzOpen opens a chain of any two descriptors over any extent, and reads from
// it what it says it has.
func FuzzOpen(f *testing.F) {
	fs, err := ext4.New(ext4.Geometry{Bytes: 128 << 20})
	if err != nil {
		f.Fatal(err)
	}
	s := &store{dir: f.TempDir()}
	writeLayer(f, s, "extent", fs, nil)
	extent, err := os.ReadFile(filepath.Join(s.dir, "extent"))
	if err != nil {
		f.Fatal(err)
	}
	encoded := func(d *vmdk.Descriptor) string {
		b, err := d.Encode()
		if err != nil {
			f.Fatal(err)
		}
		return string(b)
	}
	parent := encoded(vmdk.FlatDescriptor(128<<20, 1, "flat"))
	f.Add(encoded(vmdk.LayerDescriptor(128<<20, 2, 1, "../parent/disk", "extent")), parent, extent)
	f.Add(encoded(vmdk.LayerDescriptor(128<<20, 2, 2, "disk", "extent")), parent, extent)
	f.Add(encoded(vmdk.LayerDescriptor(128<<20, 2, 1, "/parent/../parent/disk", "extent")), parent, extent)
	f.Add(encoded(vmdk.LayerDescriptor(128<<20, 2, 1, "../a/../parent/disk", "extent")), parent, extent)
	sound := func(top string) (err error) {
		d, err := chain.Open(f.Context(), "top/disk", filesOf(f, top, parent, extent))
		if err == nil {
			d.Close()
		}
		return err
	}
	if err := sound(encoded(vmdk.LayerDescriptor(128<<20, 2, 1, "../parent/disk", "extent"))); err != nil {
		f.Fatalf("the first seed is no chain: %v", err)
	}
	f.Fuzz(func(t *testing.T, top, parent string, extent []byte) {
		d, err := chain.Open(t.Context(), "top/disk", filesOf(t, top, parent, extent))
		if err != nil {
			return
		}
		defer d.Close()
		var b [4096]byte
		for off := int64(0); off < 1<<30; off = 2*off + 4096 {
			if n, err := d.ReadAt(b[:], off); err == io.EOF && n == 0 {
				break
			}
		}
		n := 0
		d.TopRuns(func(off, length int64) error {
			if off < 0 || length <= 0 {
				t.Fatalf("a run of %d bytes at %d", length, off)
			}
			if n++; n > 1000 {
				return io.EOF
			}
			return nil
		})
	})
}
