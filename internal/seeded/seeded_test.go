package seeded_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"hash"
	"io"
	"maps"
	"os"
	"path"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vicsdk/vic-go/internal/chain"
	"github.com/vicsdk/vic-go/internal/ext4"
	"github.com/vicsdk/vic-go/internal/seeded"
	"github.com/vicsdk/vic-go/internal/vmdk"
)

var update = flag.Bool("update", false, "write testdata/sums.txt anew")

// TestSums makes the chain of disks of the layers and compares every byte, by
// its hash, with what came out elsewhere. "make determinism" runs it as programs
// of several architectures.
func TestSums(t *testing.T) {
	got := map[string]string{}
	files := disks{"base/base-flat.vmdk": nil}
	put(t, files, "base/base.vmdk", vmdk.FlatDescriptor(seeded.Bytes, 1, "base-flat.vmdk"))
	fs, err := ext4.New(ext4.Geometry{Bytes: seeded.Bytes})
	if err != nil {
		t.Fatal(err)
	}
	parent := "../base/base.vmdk"
	for i, tar := range append([][]byte{nil}, seeded.Layers()...) {
		extent := layer(t, fs, tar)
		dir := fmt.Sprint(i)
		files[dir+"/extent"] = extent
		put(t, files, dir+"/disk", vmdk.LayerDescriptor(seeded.Bytes, uint32(i+2), uint32(i+1), parent, "extent"))
		parent = "../" + dir + "/disk"
		index, err := fs.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		got[fmt.Sprintf("layer %d extent", i)] = fmt.Sprintf("%x", sha256.Sum256(extent))
		got[fmt.Sprintf("layer %d index", i)] = fmt.Sprintf("%x", sha256.Sum256(index))
		got[fmt.Sprintf("layer %d descriptor", i)] = fmt.Sprintf("%x", sha256.Sum256(files[dir+"/disk"]))
	}
	d, err := chain.Open(t.Context(), parent[3:], files.open)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	r, err := ext4.Open(d, seeded.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	tree := sha256.New()
	if err := r.TarOut(tree, "/"+ext4.RootDir, &ext4.TarOptions{Sparse: true}); err != nil {
		t.Fatal(err)
	}
	got["tree"] = hex(tree)
	if *update {
		var b strings.Builder
		for _, k := range slices.Sorted(maps.Keys(got)) {
			fmt.Fprintln(&b, k, got[k])
		}
		if err := os.WriteFile("testdata/sums.txt", []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(seeded.Sums(), got); diff != "" {
		t.Errorf("on %s (-elsewhere +here):\n%s", runtime.GOARCH, diff)
	}
	t.Logf("%s: %d hashes are the same", runtime.GOARCH, len(got))
}

func hex(h hash.Hash) string { return fmt.Sprintf("%x", h.Sum(nil)) }

// layer applies one layer, nil for that of the empty filesystem, and returns its
// extent. Package imagestore does the same with a file.
func layer(t *testing.T, fs *ext4.FS, tar []byte) []byte {
	t.Helper()
	f := &memory{}
	w, err := vmdk.NewLayerWriter(f, seeded.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if tar != nil {
		l, err := ext4.ReadLayer(bytes.NewReader(tar), w, ext4.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		extents, err := fs.Apply(l)
		if err != nil {
			t.Fatal(err)
		}
		const sectors = ext4.BlockSize / vmdk.SectorSize
		for _, e := range extents {
			if err := w.Bind(e.Rel*sectors, e.Abs*sectors, e.N*sectors); err != nil {
				t.Fatal(err)
			}
		}
	}
	var b [ext4.BlockSize]byte
	for _, lba := range fs.Dirty() {
		fs.Block(lba, b[:])
		if _, err := w.WriteAt(b[:], int64(lba)*ext4.BlockSize); err != nil {
			t.Fatal(err)
		}
	}
	n, err := w.Finish()
	if err != nil {
		t.Fatal(err)
	}
	fs.Commit()
	return f.b[:n] // behind it is what no file has in the end
}

// memory is a file.
type memory struct{ b []byte }

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	if n := int(off) + len(p); n > len(m.b) {
		m.b = append(m.b, make([]byte, n-len(m.b))...)
	}
	return copy(m.b[off:], p), nil
}

func (m *memory) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(m.b).ReadAt(p, off)
}

// disks are the files of a datastore; nil is the flat disk of zeroes.
type disks map[string][]byte

func put(t *testing.T, files disks, name string, d *vmdk.Descriptor) {
	t.Helper()
	b, err := d.Encode()
	if err != nil {
		t.Fatal(err)
	}
	files[name] = b
}

func (d disks) open(_ context.Context, name string) (chain.File, error) {
	b, ok := d[path.Clean(name)]
	switch {
	case !ok:
		return nil, errors.New("no file " + name)
	case b == nil:
		return zeroes{}, nil
	}
	return file{bytes.NewReader(b)}, nil
}

type file struct{ *bytes.Reader }

func (file) Close() error { return nil }

type zeroes struct{}

func (zeroes) ReadAt(p []byte, off int64) (int, error) {
	if off >= seeded.Bytes {
		return 0, io.EOF
	}
	n := min(int64(len(p)), seeded.Bytes-off)
	clear(p[:n])
	if n < int64(len(p)) {
		return int(n), io.EOF
	}
	return int(n), nil
}
func (zeroes) Close() error { return nil }
func (zeroes) Size() int64  { return seeded.Bytes }
