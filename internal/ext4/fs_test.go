package ext4_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vicsdk/vic-go/internal/ext4"
)

func TestGeometry(t *testing.T) {
	for _, tc := range []struct {
		bytes int64
		want  string
	}{
		{0, "smallest"}, {-1, "smallest"}, {128<<20 + 4096, "multiple"}, {2 << 40, "largest"},
	} {
		if _, err := ext4.New(ext4.Geometry{Bytes: tc.bytes}); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("New(%d) = %v, want an error with %q", tc.bytes, err, tc.want)
		}
	}
	for _, size := range []int64{128 << 20, 384 << 20, 8 << 30, 33 << 30} {
		im := newImage(t, size)
		im.fsck(t)
		im.mustApply(t, makeTar(t, entry{name: "f", body: "x"}))
		im.fsck(t)
	}
}

// TestDeterminism builds an image twice, the second time with its index stored and loaded after
// every layer, a third time rebuilt from its blocks: all blocks must be the same.
func TestDeterminism(t *testing.T) {
	t.Parallel()
	build := func(between func(*image) (*ext4.FS, error)) *image {
		im := newImage(t, 256<<20)
		for _, l := range richLayers(t) {
			im.mustApply(t, l)
			fs, err := between(im)
			if err != nil {
				t.Fatal(err)
			}
			im.fs = fs
		}
		return im
	}
	var size int
	plain := build(func(im *image) (*ext4.FS, error) { return im.fs, nil })
	stored := build(func(im *image) (*ext4.FS, error) {
		b, err := im.fs.MarshalBinary()
		if err != nil {
			return nil, err
		}
		size = max(size, len(b))
		return ext4.Unmarshal(b)
	})
	rebuilt := build(func(im *image) (*ext4.FS, error) { return ext4.Rebuild(im.reader(t)) })
	for name, im := range map[string]*image{"index": stored, "rebuild": rebuilt} {
		if len(im.blocks) != len(plain.blocks) {
			t.Errorf("%s: %d blocks, not %d", name, len(im.blocks), len(plain.blocks))
		}
		for lba, b := range plain.blocks {
			if !bytes.Equal(b, im.blocks[lba]) {
				t.Errorf("%s: block %d differs", name, lba)
			}
		}
	}
	want, err := plain.fs.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	for name, im := range map[string]*image{"index": stored, "rebuild": rebuilt} {
		if got, err := im.fs.MarshalBinary(); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: another index (%v)", name, err)
		}
	}
	t.Logf("index: %d bytes", size)
}

func TestRebuildRefusesForeign(t *testing.T) {
	im := newImage(t, 128<<20)
	im.mustApply(t, makeTar(t, entry{name: "f", body: "x"}))
	// The block bitmap of group 0 lies at block 16. Nothing that only reads files looks at it.
	im.blocks[16][0] ^= 1
	if _, err := ext4.Rebuild(im.reader(t)); err == nil {
		t.Error("Rebuild accepted a filesystem with a changed bitmap")
	}
}

// TestSemantics checks single rules by what is left in the tree.
func TestSemantics(t *testing.T) {
	for _, tc := range []struct {
		name   string
		layers [][]entry
		want   []string
	}{
		{"whiteout after the new file of its layer", [][]entry{{{name: "a", body: "1"}}, {{name: "a", body: "2"}, {name: ".wh.a"}}}, []string{"a"}},
		{"whiteout spares new files deep below", [][]entry{{{name: "d/e/old"}}, {{name: "d/e/new"}, {name: ".wh.d"}}}, []string{"d", "d/e", "d/e/new"}},
		{"opaque spares new files deep below", [][]entry{{{name: "d/e/old"}, {name: "d/x"}}, {{name: "d/e/new"}, {name: "d/.wh..wh..opq"}}}, []string{"d", "d/e", "d/e/new"}},
		{"whiteout of a whole tree", [][]entry{{{name: "d/e/f/g"}, {name: "x"}}, {{name: ".wh.d"}}}, []string{"x"}},
		{"whiteout in a directory that is not there makes none", [][]entry{{{name: "x"}}, {{name: "no/.wh.y"}, {name: "no/such/.wh..wh..opq"}}}, []string{"x"}},
		{"whiteout through a symlink", [][]entry{{{name: "d/f"}, {name: "d/g"}, {name: "l", typ: tar.TypeSymlink, link: "d"}}, {{name: "l/.wh.f"}}}, []string{"d", "d/g", "l"}},
		{"whiteout of a symlink, not of its target", [][]entry{{{name: "d/f"}, {name: "l", typ: tar.TypeSymlink, link: "d"}}, {{name: ".wh.l"}}}, []string{"d", "d/f"}},
		{"parent symlink with a missing target", [][]entry{{{name: "l", typ: tar.TypeSymlink, link: "/far/away"}}, {{name: "l/f"}}}, []string{"far", "far/away", "far/away/f", "l"}},
		{"parent symlink that climbs", [][]entry{{{name: "a/l", typ: tar.TypeSymlink, link: "../../../../etc"}}, {{name: "a/l/f"}}}, []string{"a", "a/l", "etc", "etc/f"}},
		{"parent that is a file", [][]entry{{{name: "p", body: "x"}}, {{name: "p/f"}}}, []string{"p", "p/f"}},
		{"directory over symlink", [][]entry{{{name: "d/f"}, {name: "l", typ: tar.TypeSymlink, link: "d"}}, {{name: "l/"}}}, []string{"d", "d/f", "l"}},
		{"file over directory", [][]entry{{{name: "d/f"}}, {{name: "d"}}}, []string{"d"}},
		{"AUFS bookkeeping", [][]entry{{{name: ".wh..wh.aufs"}, {name: ".wh..wh.plnk/x"}, {name: "f"}}}, []string{"f"}},
		{"hard link to itself", [][]entry{{{name: "f"}, {name: "f", typ: tar.TypeLink, link: "f"}}}, []string{"f"}},
		{"root opaque", [][]entry{{{name: "a"}, {name: "b/c"}}, {{name: "n"}, {name: ".wh..wh..opq"}}}, []string{"n"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			im := newImage(t, 128<<20)
			for _, l := range tc.layers {
				im.mustApply(t, makeTar(t, l...))
			}
			im.fsck(t)
			var got []string
			for name := range readerTree(t, im.reader(t), "rootfs") {
				if name != "." {
					got = append(got, name)
				}
			}
			slices.Sort(got)
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestRefused checks that what cannot be had is an error that names the entry.
func TestRefused(t *testing.T) {
	loop := entry{name: "l", typ: tar.TypeSymlink, link: "l", mode: 0o777}
	for _, tc := range []struct {
		name    string
		entries []entry
		want    []string
	}{
		{"name", []entry{{name: "d/" + strings.Repeat("x", 256)}}, []string{"d/xxx", "255"}},
		{"path", []entry{{name: strings.Repeat("dir/", 2000) + "f"}}, []string{"MaxNameBytes"}},
		{"loop", []entry{loop, {name: "l/f"}}, []string{`"l/f"`, "255 symlinks"}},
		{"target", []entry{{name: "h", typ: tar.TypeLink, link: "none"}}, []string{`"h"`, `"none" does not exist`}},
		{"link to directory", []entry{{name: "d/"}, {name: "h", typ: tar.TypeLink, link: "d"}}, []string{`"h"`, "is a directory"}},
		{"root", []entry{{name: ".", body: "x"}}, []string{"root"}},
		{"device", []entry{{name: "n", typ: tar.TypeChar, dev: [2]int64{4096, 0}}}, []string{`"n"`, "4096:0"}},
		{"xattr size", []entry{{name: "f", xattr: map[string]string{"user.x": noise(1, 5000)}}}, []string{`"f"`, "4 KiB"}},
		{"acl", []entry{{name: "f", xattr: map[string]string{"system.posix_acl_access": "nonsense"}}}, []string{`"f"`, "access control list"}},
		{"symlink", []entry{{name: "s", typ: tar.TypeSymlink, link: strings.Repeat("x", 4096)}}, []string{`"s"`, "4095"}},
		{"whiteout", []entry{{name: "d/.wh..."}}, []string{"cannot be a name"}},
		{"type", []entry{{name: "t", typ: 'Z'}}, []string{`"t"`, "type 'Z'"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := newImage(t, 128<<20).apply(makeTar(t, tc.entries...))
			if err == nil {
				t.Fatal("no error")
			}
			for _, w := range tc.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%v: does not contain %q", err, w)
				}
			}
		})
	}
}

// TestNUL: a name or target with a NUL would end there for every program but us.
func TestNUL(t *testing.T) {
	for _, e := range []entry{{name: "dür/X"}, {name: "l", typ: tar.TypeSymlink, link: "tür/X"}, {name: "h", typ: tar.TypeLink, link: "tür/X"}} {
		// Only an extended header holds such a name, and its contents have no checksum.
		layer := bytes.Replace(makeTar(t, e), []byte("ür/X\n"), []byte("ür/\x00\n"), 1)
		if _, err := newImage(t, 128<<20).apply(layer); err == nil {
			t.Errorf("%q is taken with a NUL", e.name)
		}
	}
}

func TestDroppedXattrs(t *testing.T) {
	l, err := ext4.ReadLayer(bytes.NewReader(makeTar(t, entry{name: "f", xattr: map[string]string{"com.apple.quarantine": "q", "user.x": "1"}})), io.Discard, ext4.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"f: com.apple.quarantine"}, l.Dropped); diff != "" {
		t.Error(diff)
	}
}

// TestLibarchiveXattr reads the attributes that libarchive writes.
func TestLibarchiveXattr(t *testing.T) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: "f", Mode: 0o644, ModTime: day, Format: tar.FormatPAX,
		PAXRecords: map[string]string{"LIBARCHIVE.xattr.user.a%20b": "dmFsdWU"}}); err != nil {
		t.Fatal(err)
	}
	w.Close()
	im := newImage(t, 128<<20)
	im.mustApply(t, b.Bytes())
	in, err := im.reader(t).Lstat("rootfs/f")
	if err != nil {
		t.Fatal(err)
	}
	if got := string(in.Xattrs["user.a b"]); got != "value" {
		t.Errorf("user.a b = %q", got)
	}
}

// TestLimits checks that each limit ends the reading.
func TestLimits(t *testing.T) {
	layer := makeTar(t, entry{name: "some/long/name", body: noise(1, 9000), xattr: map[string]string{"user.x": "0123456789"}}, entry{name: "b"})
	for field, lim := range map[string]ext4.Limits{
		"MaxEntries": {MaxEntries: 1}, "MaxNameBytes": {MaxNameBytes: 5}, "MaxXattrBytes": {MaxXattrBytes: 5},
		"MaxMetaBytes": {MaxMetaBytes: 10}, "MaxFileBytes": {MaxFileBytes: 8999},
	} {
		if _, err := ext4.ReadLayer(bytes.NewReader(layer), io.Discard, lim); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
	// Three headers come before the contents of the first file.
	for n := 3*512 + 1; n < 3*512+9000; n += 97 {
		if _, err := ext4.ReadLayer(bytes.NewReader(layer[:n]), io.Discard, ext4.Limits{}); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("a layer cut off after %d of %d bytes is accepted", n, len(layer))
		}
	}
}

// TestNoSpace fills the disk, checks what the error says, and that a layer that deletes makes
// room for the next.
func TestNoSpace(t *testing.T) {
	t.Parallel()
	im := newImage(t, 128<<20)
	free := int64(im.fs.Usage().FreeBlocks) * ext4.BlockSize
	fill := func(seed uint64, n int) string { return strings.Repeat(noise(seed, 1<<20), n>>20+1)[:n] }
	big := makeTar(t, entry{name: "big", body: fill(1, int(free)+5<<20)})
	var full *ext4.NoSpaceError
	_, err := im.apply(big)
	if !errors.As(err, &full) {
		t.Fatalf("got %v, want a NoSpaceError", err)
	}
	if full.Missing < 5<<20 || full.Missing > 6<<20 {
		t.Errorf("missing %d bytes, want 5 to 6 MiB", full.Missing)
	}
	if _, err := im.apply(makeTar(t)); err == nil {
		t.Error("the model goes on after an error")
	}

	var es []entry
	for i := range 9000 {
		es = append(es, entry{name: fmt.Sprint(i)})
	}
	if _, err = newImage(t, 128<<20).apply(makeTar(t, es...)); !errors.As(err, &full) || !full.Inodes || !strings.Contains(err.Error(), "Geometry.Bytes") {
		t.Errorf("9000 files: %v, want a NoSpaceError for inodes", err)
	}

	im = newImage(t, 128<<20)
	third := int(free / 5 * 2)
	im.mustApply(t, makeTar(t, entry{name: "one", body: fill(1, third)}))
	im.mustApply(t, makeTar(t, entry{name: "two", body: fill(2, third)}))
	im.mustApply(t, makeTar(t, entry{name: ".wh.one"}, entry{name: "d/"}))
	im.mustApply(t, makeTar(t, entry{name: "three", body: fill(3, third)}))
	im.fsck(t)
	tree := readerTree(t, im.reader(t), "rootfs")
	for name, seed := range map[string]uint64{"two": 2, "three": 3} {
		f, err := im.reader(t).OpenFile("rootfs/" + name)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(f)
		if err != nil || string(got) != fill(seed, third) {
			t.Errorf("%s: wrong content (%v), %+v", name, err, tree[name])
		}
	}
}

// TestLarge is about sizes: a directory of 100,000 entries, extent trees two levels deep, a
// 65,500 subdirectories, deep nesting. A kernel must find every one of the 100,000
// names by the hash tree.
func TestLarge(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a minute")
	}
	t.Parallel()
	im := newImage(t, 4<<30)
	second := day.Truncate(time.Second)   // needs no extended header
	extents := make([]byte, 1400*128<<10) // so many extents, with a hole behind each
	for i := range 1400 {
		extents[i*128<<10] = byte(i) | 1
	}
	var es []entry
	for i := range 100000 {
		es = append(es, entry{name: fmt.Sprintf("many/%s-%d", strings.Repeat("y", i%60), i), mtime: second})
	}
	for i := range 65500 {
		es = append(es, entry{name: fmt.Sprintf("dirs/%d/", i), mtime: second})
	}
	es = append(es, entry{name: strings.Repeat("deep/", 800) + "end"}, entry{name: "holey", body: string(extents)})
	im.mustApply(t, makeTar(t, es...))
	h, err := im.reader(t).OpenFile("rootfs/holey")
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(extents)+1)
	if n, err := h.ReadAt(got, 0); n != len(extents) || err != io.EOF || !bytes.Equal(got[:n], extents) {
		t.Errorf("holey is not what was written: %d bytes, %v", n, err)
	}
	if es, err := im.reader(t).ReadDir("rootfs/many"); err != nil || len(es) != 100000 {
		t.Errorf("ReadDir: %d entries, %v", len(es), err)
	}
	img := im.save(t)
	fsckFile(t, img)
	if os.Getuid() == 0 {
		dir, umount := mount(t, img, "loop,ro")
		start := time.Now()
		for i := range 100000 {
			if _, err := os.Lstat(filepath.Join(dir, "rootfs/many", fmt.Sprintf("%s-%d", strings.Repeat("y", i%60), i))); err != nil {
				t.Fatal(err)
			}
		}
		took := time.Since(start)
		t.Logf("a kernel's first look at 100,000 names: %v", took)
		// One after the other it would have to search 1,700 blocks for each.
		if took > time.Minute {
			t.Errorf("the kernel does not use the hash tree: %v for 100,000 names", took)
		}
		umount()
	}
	os.Remove(img)
	// Delete most of it, so that the hash tree's blocks are emptied, and add again.
	var del []entry
	for i := range 100000 {
		if i%10 != 0 {
			del = append(del, entry{name: fmt.Sprintf("many/.wh.%s-%d", strings.Repeat("y", i%60), i), mtime: second})
		}
	}
	im.mustApply(t, makeTar(t, append(del, entry{name: ".wh.dirs"}, entry{name: ".wh.deep"})...))
	im.fsck(t)
	if n := im.mustApply(t, makeTar(t, entry{name: "many/one-more"})); n > 12 {
		t.Errorf("one file in a large directory took %d metadata blocks", n)
	}
	b, err := im.fs.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ext4.Unmarshal(b); err != nil {
		t.Error(err)
	}
	if _, err := ext4.Rebuild(im.reader(t)); err != nil {
		t.Error(err)
	}
}

// TestBeyond4GiB stores a file of 5 GiB whose only data is at its ends, as GNU tar's sparse
// format has it.
func TestBeyond4GiB(t *testing.T) {
	t.Parallel()
	need(t, "tar", "truncate")
	dir := t.TempDir()
	run(t, "sh", "-c", "cd "+dir+" && truncate -s 5G f && printf start | dd of=f conv=notrunc status=none && printf end >>f")
	for _, format := range []string{"gnu", "posix"} {
		layer, err := exec.Command("tar", "-C", dir, "-S", "--format="+format, "-c", "f").Output()
		if err != nil {
			t.Fatal(err)
		}
		im := newImage(t, 128<<20)
		im.mustApply(t, layer)
		im.fsck(t)
		f, err := im.reader(t).OpenFile("rootfs/f")
		if err != nil {
			t.Fatal(err)
		}
		var head, tail [6]byte
		f.ReadAt(head[:5], 0)
		if n, err := f.ReadAt(tail[:], 5<<30-2); n != 5 || err != io.EOF || string(head[:]) != "start\x00" || string(tail[:]) != "\x00\x00end\x00" || f.Info().Size != 5<<30+3 {
			t.Errorf("%s: size %d, %q ... %q (%d, %v)", format, f.Info().Size, head, tail, n, err)
		}
		// The limit on holes counts its logical size.
		if _, err := ext4.ReadLayer(bytes.NewReader(layer), io.Discard, ext4.Limits{MaxSparseBytes: 1 << 30}); err == nil || !strings.Contains(err.Error(), "MaxSparseBytes") {
			t.Errorf("%s: MaxSparseBytes: %v", format, err)
		}
	}
}

func TestReaderPaths(t *testing.T) {
	im := newImage(t, 128<<20)
	im.mustApply(t, makeTar(t, entry{name: "etc/hostname", body: "h"}, entry{name: "l", typ: tar.TypeSymlink, link: "/etc/../etc/hostname"},
		entry{name: "dl", typ: tar.TypeSymlink, link: "../../etc"}, entry{name: "loop", typ: tar.TypeSymlink, link: "loop"}))
	r, err := im.reader(t).Sub("rootfs")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"etc/hostname", "/etc/hostname", "l", "dl/hostname", "../../dl/./hostname", "etc//hostname"} {
		if in, err := r.Stat(name); err != nil || in.Size != 1 {
			t.Errorf("Stat(%q) = %+v, %v", name, in, err)
		}
	}
	for name, want := range map[string]error{"none": fs.ErrNotExist, "log": fs.ErrNotExist, "../log": fs.ErrNotExist} {
		if _, err := r.Stat(name); !errors.Is(err, want) {
			t.Errorf("Stat(%q) = %v, want %v", name, err, want)
		}
	}
	for _, name := range []string{"loop", "l/x", "etc/hostname/x"} {
		if _, err := r.Stat(name); err == nil {
			t.Errorf("Stat(%q) succeeds", name)
		}
	}
	if _, err := r.OpenFile("etc"); err == nil {
		t.Error("OpenFile opens a directory")
	}
	if in, err := r.Lstat("loop"); err != nil || in.Link != "loop" {
		t.Errorf("Lstat(loop) = %+v, %v", in, err)
	}
}
