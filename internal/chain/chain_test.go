package chain_test

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vicsdk/vic-go/internal/chain"
	"github.com/vicsdk/vic-go/internal/ext4"
	"github.com/vicsdk/vic-go/internal/vmdk"
)

func need(t testing.TB, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatalf("%s is needed on CI", p)
			}
			t.Skipf("%s is not installed", p)
		}
	}
}

func run(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// store is a directory that counts its open files.
type store struct {
	dir  string
	open int
}

type file struct {
	*os.File
	s    *store
	size int64
}

func (f *file) Size() int64 { return f.size }
func (f *file) Close() error {
	f.s.open--
	return f.File.Close()
}

func (s *store) opener(_ context.Context, name string) (chain.File, error) {
	f, err := os.Open(filepath.Join(s.dir, name))
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	s.open++
	return &file{f, s, st.Size()}, nil
}

func (s *store) write(t testing.TB, name string, b []byte) {
	t.Helper()
	p := filepath.Join(s.dir, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func (s *store) descriptor(t testing.TB, name string, d *vmdk.Descriptor) {
	t.Helper()
	b, err := d.Encode()
	if err != nil {
		t.Fatal(err)
	}
	s.write(t, name, b)
}

func layerTar(t testing.TB, files map[string]string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, body := range files {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(body))}); err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, body)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// writeLayer stores what the model has to write, and the layer's data, as one child disk.
func writeLayer(t testing.TB, s *store, name string, fs *ext4.FS, tarball []byte) {
	t.Helper()
	f, err := os.Create(filepath.Join(s.dir, name))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w, err := vmdk.NewLayerWriter(f, fs.Geometry().Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if tarball != nil {
		l, err := ext4.ReadLayer(bytes.NewReader(tarball), w, ext4.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		bound, err := fs.Apply(l)
		if err != nil {
			t.Fatal(err)
		}
		seal(t, w, fs, bound)
	} else {
		seal(t, w, fs, nil)
	}
	if _, err := w.Finish(); err != nil {
		t.Fatal(err)
	}
}

// seal binds a layer's data and adds its metadata.
func seal(t testing.TB, w *vmdk.LayerWriter, fs *ext4.FS, bound []ext4.Extent) {
	t.Helper()
	const sectors = ext4.BlockSize / vmdk.SectorSize
	for _, e := range bound {
		if err := w.Bind(e.Rel*sectors, e.Abs*sectors, e.N*sectors); err != nil {
			t.Fatal(err)
		}
	}
	var b [ext4.BlockSize]byte
	for _, lba := range fs.Dirty() {
		fs.Block(lba, b[:])
		if _, err := w.WriteAt(b[:], int64(lba)*ext4.BlockSize); err != nil {
			t.Fatal(err)
		}
	}
	fs.Commit()
}

const size = 256 << 20

// TestChangeOfOwner stores a layer that changes owners only, as "RUN chown -R" leaves it: all its
// files' contents again. Its disk must hold next to nothing of them, and the difference of it and its
// parent must be found without reading them.
func TestChangeOfOwner(t *testing.T) {
	need(t, "qemu-img", "e2fsck")
	files := map[string]string{}
	for i := range 300 {
		files[fmt.Sprintf("app/%d/%d", i/30, i)] = strings.Repeat(fmt.Sprintf("%d,", i), 10000)
	}
	s := &store{dir: t.TempDir()}
	s.descriptor(t, "base.vmdk", vmdk.FlatDescriptor(size, 1, "base-flat.vmdk"))
	s.write(t, "base-flat.vmdk", nil)
	if err := os.Truncate(filepath.Join(s.dir, "base-flat.vmdk"), size); err != nil {
		t.Fatal(err)
	}
	fs, err := ext4.New(ext4.Geometry{Bytes: size})
	if err != nil {
		t.Fatal(err)
	}
	writeLayer(t, s, "0-delta.vmdk", fs, nil)
	s.descriptor(t, "0.vmdk", vmdk.LayerDescriptor(size, 2, 1, "base.vmdk", "0-delta.vmdk"))
	var sizes []int64
	for i, uid := range []int{0, 1000} {
		parent, err := chain.Open(t.Context(), fmt.Sprintf("%d.vmdk", i), s.opener)
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		tw := tar.NewWriter(&b)
		for _, name := range slices.Sorted(maps.Keys(files)) {
			if err := tw.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(files[name])), Uid: uid}); err != nil {
				t.Fatal(err)
			}
			io.WriteString(tw, files[name])
		}
		tw.Close()
		f, err := os.Create(filepath.Join(s.dir, fmt.Sprintf("%d-delta.vmdk", i+1)))
		if err != nil {
			t.Fatal(err)
		}
		w, err := vmdk.NewLayerWriter(f, size)
		if err != nil {
			t.Fatal(err)
		}
		l, err := ext4.ReadLayer(&b, w, ext4.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		bound, err := fs.ApplyWith(l, &ext4.ApplyOptions{Spool: w.Data(), Parent: parent})
		if err != nil {
			t.Fatal(err)
		}
		seal(t, w, fs, bound)
		n, err := w.Finish()
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Truncate(n); err != nil {
			t.Fatal(err)
		}
		f.Close()
		parent.Close()
		sizes = append(sizes, n)
		s.descriptor(t, fmt.Sprintf("%d.vmdk", i+1), vmdk.LayerDescriptor(size, uint32(i+3), uint32(i+2), fmt.Sprintf("%d.vmdk", i), fmt.Sprintf("%d-delta.vmdk", i+1)))
	}
	t.Logf("the files' layer has %d bytes, that with their owners %d: %.1f %%", sizes[0], sizes[1], 100*float64(sizes[1])/float64(sizes[0]))
	if sizes[1]*20 > sizes[0] {
		t.Error("the second is more than 5 % of the first")
	}
	raw := filepath.Join(s.dir, "flat.raw")
	run(t, "qemu-img", "convert", "-f", "vmdk", "-O", "raw", filepath.Join(s.dir, "2.vmdk"), raw)
	run(t, "e2fsck", "-fn", raw)

	top, err := chain.Open(t.Context(), "2.vmdk", s.opener)
	if err != nil {
		t.Fatal(err)
	}
	defer top.Close()
	o := &ext4.DiffOptions{}
	if err := top.TopRuns(func(off, n int64) error {
		o.Changed = append(o.Changed, ext4.Range{Off: off, N: n})
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	upper, err := ext4.Open(top, size)
	if err != nil {
		t.Fatal(err)
	}
	lower, err := ext4.Open(top.Parent(), size)
	if err != nil {
		t.Fatal(err)
	}
	got, err := ext4.Diff(lower, upper, o)
	if err != nil {
		t.Fatal(err)
	}
	var want []ext4.Change
	dirs := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		for d := filepath.Dir("/rootfs/" + name); d != "/"; d = filepath.Dir(d) {
			if !dirs[d] {
				dirs[d] = true
				want = append(want, ext4.Change{Kind: ext4.Modified, Path: d})
			}
		}
		want = append(want, ext4.Change{Kind: ext4.Modified, Path: "/rootfs/" + name})
	}
	slices.SortFunc(want, func(a, b ext4.Change) int { return strings.Compare(a.Path, b.Path) })
	slices.SortFunc(got, func(a, b ext4.Change) int { return strings.Compare(a.Path, b.Path) })
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// makeChain builds flat base, empty filesystem, two layers and a writable child.
func makeChain(t testing.TB) *store {
	s := &store{dir: t.TempDir()}
	s.descriptor(t, "base/base.vmdk", vmdk.FlatDescriptor(size, 1, "base-flat.vmdk"))
	s.write(t, "base/base-flat.vmdk", nil)
	if err := os.Truncate(filepath.Join(s.dir, "base/base-flat.vmdk"), size); err != nil {
		t.Fatal(err)
	}
	fs, err := ext4.New(ext4.Geometry{Bytes: size})
	if err != nil {
		t.Fatal(err)
	}
	parent := "../base/base.vmdk"
	for i, tarball := range [][]byte{nil, layerTar(t, map[string]string{"a": strings.Repeat("A", 100000), "b": "old"}), layerTar(t, map[string]string{"b": "new", "c": strings.Repeat("C", 5000)})} {
		dir := fmt.Sprintf("layer%d", i)
		s.write(t, dir+"/.keep", nil)
		writeLayer(t, s, dir+"/disk-delta.vmdk", fs, tarball)
		s.descriptor(t, dir+"/disk.vmdk", vmdk.LayerDescriptor(size, uint32(i+2), uint32(i+1), parent, "disk-delta.vmdk"))
		parent = fmt.Sprintf("../layer%d/disk.vmdk", i)
	}
	var child bytes.Buffer
	if err := vmdk.WriteChild(&child, size); err != nil {
		t.Fatal(err)
	}
	s.write(t, "vm/vm-delta.vmdk", child.Bytes())
	s.descriptor(t, "vm/vm.vmdk", vmdk.LayerDescriptor(size, 9, 4, "../layer2/disk.vmdk", "vm-delta.vmdk"))
	return s
}

func TestChain(t *testing.T) {
	need(t, "qemu-img", "qemu-io", "e2fsck")
	s := makeChain(t)
	top := filepath.Join(s.dir, "vm/vm.vmdk")
	run(t, "qemu-io", "-f", "vmdk", "-c", "write -P 0x11 200M 64k", "-c", "write -P 0x12 209781248 64k", top)
	raw := filepath.Join(s.dir, "flat.raw")
	run(t, "qemu-img", "convert", "-f", "vmdk", "-O", "raw", top, raw)
	run(t, "e2fsck", "-fn", raw)
	want, err := os.ReadFile(raw)
	if err != nil {
		t.Fatal(err)
	}

	d, err := chain.Open(t.Context(), "vm/vm.vmdk", s.opener)
	// QEMU gives a disk that it wrote to a new CID, which is no parent's, so the chain holds.
	if err != nil {
		t.Fatal(err)
	}
	if len(d.Links()) != 5 || d.Size() != size {
		t.Fatalf("%d links, %d bytes", len(d.Links()), d.Size())
	}
	got := make([]byte, size)
	if n, err := d.ReadAt(got, 0); n != size || err != nil {
		t.Fatalf("ReadAt: %d, %v", n, err)
	}
	if !bytes.Equal(got, want) {
		t.Error("the chain reads other than QEMU does")
	}
	for _, r := range [][2]int64{{1, 1}, {511, 2}, {200<<20 - 7, 70000}, {size - 3, 3}} {
		b := make([]byte, r[1])
		if _, err := d.ReadAt(b, r[0]); err != nil || !bytes.Equal(b, want[r[0]:r[0]+r[1]]) {
			t.Errorf("ReadAt(%d bytes at %d): %v", r[1], r[0], err)
		}
	}
	if n, err := d.ReadAt(make([]byte, 10), size-4); n != 4 || err != io.EOF {
		t.Errorf("ReadAt over the end: %d, %v", n, err)
	}
	var runs [][2]int64
	if err := d.TopRuns(func(off, n int64) error {
		runs = append(runs, [2]int64{off, n})
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	// The second write began within a grain of 64 KiB.
	if diff := cmp.Diff([][2]int64{{200 << 20, 192 << 10}}, runs); diff != "" {
		t.Errorf("TopRuns: %s", diff)
	}
	for i, want := range []int64{192 << 10, -1, -1, -1, size} {
		if n, err := d.Allocated(i); err != nil || want >= 0 && n != want || n <= 0 {
			t.Errorf("Allocated(%d) = %d, %v; want %d", i, n, err, want)
		}
	}
	r, err := ext4.Open(d.Parent(), size)
	if err != nil {
		t.Fatal(err)
	}
	if f, err := r.OpenFile("rootfs/b"); err != nil {
		t.Error(err)
	} else if b, err := io.ReadAll(f); err != nil || string(b) != "new" {
		t.Errorf("rootfs/b = %q, %v", b, err)
	}
	if err := d.Close(); err != nil || s.open != 0 {
		t.Errorf("after Close %d files are open, %v", s.open, err)
	}
}

func TestOpenRefuses(t *testing.T) {
	for _, tc := range []struct {
		name string
		mend func(t *testing.T, s *store)
		want string
	}{
		{"parent written to", func(t *testing.T, s *store) {
			s.descriptor(t, "layer1/disk.vmdk", vmdk.LayerDescriptor(size, 77, 2, "../layer0/disk.vmdk", "disk-delta.vmdk"))
		}, "CID 00000003, but layer1/disk.vmdk has 0000004d"},
		{"loop", func(t *testing.T, s *store) {
			s.descriptor(t, "layer1/disk.vmdk", vmdk.LayerDescriptor(size, 3, 9, "../vm/./vm.vmdk", "disk-delta.vmdk"))
		}, "its own ancestor"},
		{"missing parent", func(t *testing.T, s *store) { os.Remove(filepath.Join(s.dir, "base/base.vmdk")) }, "base/base.vmdk"},
		{"parent outside", func(t *testing.T, s *store) {
			s.descriptor(t, "layer1/disk.vmdk", vmdk.LayerDescriptor(size, 3, 2, "../../etc/passwd", "disk-delta.vmdk"))
		}, "leads out"},
		{"extent outside", func(t *testing.T, s *store) {
			s.descriptor(t, "layer1/disk.vmdk", vmdk.LayerDescriptor(size, 3, 2, "../layer0/disk.vmdk", "../vm/vm-delta.vmdk"))
		}, "not a plain name"},
		{"flat too short", func(t *testing.T, s *store) { os.Truncate(filepath.Join(s.dir, "base/base-flat.vmdk"), 5) }, "5 bytes long"},
		{"extent cut off", func(t *testing.T, s *store) { os.Truncate(filepath.Join(s.dir, "layer1/disk-delta.vmdk"), 4000) }, "cut off"},
		{"not a disk", func(t *testing.T, s *store) { s.write(t, "layer2/disk.vmdk", bytes.Repeat([]byte("x"), 100)) }, "not a virtual disk"},
		{"empty", func(t *testing.T, s *store) { s.write(t, "layer2/disk.vmdk", nil) }, "not a virtual disk"},
		{"other size", func(t *testing.T, s *store) {
			s.descriptor(t, "layer1/disk.vmdk", vmdk.LayerDescriptor(2*size, 3, 2, "../layer0/disk.vmdk", "disk-delta.vmdk"))
		}, "capacity"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := makeChain(t)
			tc.mend(t, s)
			d, err := chain.Open(t.Context(), "vm/vm.vmdk", s.opener)
			if err == nil {
				d.Close()
				t.Fatal("no error")
			}
			if !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v: does not contain %q", err, tc.want)
			}
			if s.open != 0 {
				t.Errorf("%d files are left open", s.open)
			}
		})
	}
}

func TestTooDeep(t *testing.T) {
	s := &store{dir: t.TempDir()}
	var child bytes.Buffer
	if err := vmdk.WriteChild(&child, 1<<20); err != nil {
		t.Fatal(err)
	}
	s.write(t, "e.vmdk", child.Bytes())
	for i := range 70 {
		s.descriptor(t, fmt.Sprintf("%d.vmdk", i), vmdk.LayerDescriptor(1<<20, uint32(i), uint32(i+1), fmt.Sprintf("%d.vmdk", i+1), "e.vmdk"))
	}
	if _, err := chain.Open(t.Context(), "0.vmdk", s.opener); err == nil || !strings.Contains(err.Error(), "more than 64") || s.open != 0 {
		t.Errorf("%v, %d files open", err, s.open)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := chain.Open(ctx, "0.vmdk", s.opener); err != context.Canceled {
		t.Errorf("cancelled: %v", err)
	}
}
