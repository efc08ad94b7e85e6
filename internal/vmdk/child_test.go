package vmdk_test

import (
	"bytes"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/vicsdk/vic-go/internal/vmdk"
)

// What a Child writes is what QEMU reads, whoever made the extent: one with all
// tables and large grains, and one with neither.
func TestChild(t *testing.T) {
	if _, err := exec.LookPath("qemu-img"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	// QEMU looks at each sector of a layer: a smaller one has several tables too.
	for kind, size := range map[string]int64{"writable child": 264 << 20, "layer": 12 << 20} {
		t.Run(kind, func(t *testing.T) {
			dir := t.TempDir()
			r := rand.New(rand.NewPCG(1, 2))
			noise := func(n int) []byte {
				b := make([]byte, n)
				for i := range b {
					b[i] = byte(r.Uint32())
				}
				return b
			}
			want := make([]byte, size)
			copy(want[7<<20:], noise(1<<20)) // the parent's
			writeFile(t, filepath.Join(dir, "base-flat.vmdk"), want)
			d := vmdk.FlatDescriptor(size, 7, "base-flat.vmdk")
			writeDescriptor(t, filepath.Join(dir, "base.vmdk"), d)
			writeDescriptor(t, filepath.Join(dir, "top.vmdk"), vmdk.LayerDescriptor(size, 8, 7, "base.vmdk", "top-delta.vmdk"))
			f, err := os.Create(filepath.Join(dir, "top-delta.vmdk"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if kind == "layer" {
				w, err := vmdk.NewLayerWriter(f, size)
				if err != nil {
					t.Fatal(err)
				}
				b := noise(8192)
				if _, err := w.WriteAt(b, 4<<20); err != nil {
					t.Fatal(err)
				}
				copy(want[4<<20:], b)
				if _, err := w.Finish(); err != nil {
					t.Fatal(err)
				}
			} else if err := vmdk.WriteChild(f, size); err != nil {
				t.Fatal(err)
			}
			parent := bytes.NewReader(bytes.Clone(want))
			for range 3 { // opened again, as for a further copy
				st, err := f.Stat()
				if err != nil {
					t.Fatal(err)
				}
				c, err := vmdk.OpenChild(f, st.Size(), parent)
				if err != nil {
					t.Fatal(err)
				}
				for _, at := range []int64{0, 4096, 4<<20 + 4096, 7<<20 - 4096, 7<<20 + 512, size - 1<<20, size - 512, r.Int64N(size/512-600) * 512} {
					b := noise(512 * (1 + r.IntN(300)))
					b = b[:min(len(b), int(size-at))]
					if _, err := c.WriteAt(b, at); err != nil {
						t.Fatal(err)
					}
					copy(want[at:], b)
				}
				n, err := c.Finish()
				if err != nil {
					t.Fatal(err)
				}
				if err := f.Truncate(n); err != nil {
					t.Fatal(err)
				}
				raw := filepath.Join(dir, "raw")
				if out, err := exec.Command("qemu-img", "convert", "-O", "raw", filepath.Join(dir, "top.vmdk"), raw).CombinedOutput(); err != nil {
					t.Fatalf("%v: %s", err, out)
				}
				got, err := os.ReadFile(raw)
				if err != nil || !bytes.Equal(got, want) {
					t.Fatalf("QEMU reads something else (%v)", err)
				}
			}
			c, err := vmdk.OpenChild(f, mustSize(t, f), parent)
			if err != nil {
				t.Fatal(err)
			}
			for _, off := range []int64{-512, 1, size} {
				if _, err := c.WriteAt(make([]byte, 512), off); err == nil {
					t.Errorf("wrote at %d", off)
				}
			}
		})
	}
}

func mustSize(t *testing.T, f *os.File) int64 {
	t.Helper()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return st.Size()
}

func writeFile(t *testing.T, name string, b []byte) {
	t.Helper()
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func writeDescriptor(t *testing.T, name string, d *vmdk.Descriptor) {
	t.Helper()
	b, err := d.Encode()
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, name, b)
}
