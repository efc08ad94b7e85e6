package ext4_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vicsdk/vic-go/internal/ext4"
)

// clone copies a disk and its model.
func (im *image) clone(t testing.TB) *image {
	t.Helper()
	b, err := im.fs.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	model, err := ext4.Unmarshal(b)
	if err != nil {
		t.Fatal(err)
	}
	return &image{&memImage{maps.Clone(im.blocks), im.bytes}, model}
}

// rootfs is a Reader of the image's tree.
func rootfs(t testing.TB, r io.ReaderAt, size int64) *ext4.Reader {
	t.Helper()
	whole, err := ext4.Open(r, size)
	if err != nil {
		t.Fatal(err)
	}
	sub, err := whole.Sub("rootfs")
	if err != nil {
		t.Fatal(err)
	}
	return sub
}

// changed lists the blocks in which two images differ.
func changed(t testing.TB, lower, upper *image) (out []ext4.Range) {
	t.Helper()
	zero := make([]byte, ext4.BlockSize)
	at := func(m *image, lba uint64) []byte {
		if b := m.blocks[lba]; b != nil {
			return b
		}
		return zero
	}
	for _, lba := range slices.Sorted(maps.Keys(upper.blocks)) {
		if bytes.Equal(at(lower, lba), upper.blocks[lba]) {
			continue
		}
		off := int64(lba) * ext4.BlockSize
		if k := len(out) - 1; k >= 0 && out[k].Off+out[k].N == off {
			out[k].N += ext4.BlockSize
		} else {
			out = append(out, ext4.Range{Off: off, N: ext4.BlockSize})
		}
	}
	return out
}

// changedAt lists the blocks in which two disks differ, as a chain's top would hold them.
func changedAt(t testing.TB, lower, upper io.ReaderAt, size int64) (out []ext4.Range) {
	t.Helper()
	a, b := make([]byte, 1<<20), make([]byte, 1<<20)
	for off := int64(0); off < size; off += int64(len(a)) {
		if _, err := lower.ReadAt(a, off); err != nil && err != io.EOF {
			t.Fatal(err)
		}
		if _, err := upper.ReadAt(b, off); err != nil && err != io.EOF {
			t.Fatal(err)
		}
		if bytes.Equal(a, b) {
			continue
		}
		for o := 0; o < len(a); o += ext4.BlockSize {
			if bytes.Equal(a[o:o+ext4.BlockSize], b[o:o+ext4.BlockSize]) {
				continue
			}
			at := off + int64(o)
			if k := len(out) - 1; k >= 0 && out[k].Off+out[k].N == at {
				out[k].N += ext4.BlockSize
			} else {
				out = append(out, ext4.Range{Off: at, N: ext4.BlockSize})
			}
		}
	}
	return out
}

// counting counts what is read.
type counting struct {
	io.ReaderAt
	n int64
}

func (c *counting) ReadAt(p []byte, off int64) (int, error) {
	c.n += int64(len(p))
	return c.ReaderAt.ReadAt(p, off)
}

func list(cs []ext4.Change) (out []string) {
	for _, c := range cs {
		out = append(out, c.Kind.String()+" "+c.Path)
	}
	return out
}

// TestDiff checks single rules: what a second layer does is found, and the layer made of it does
// the same again.
func TestDiff(t *testing.T) {
	later := day.Add(time.Hour)
	one := []entry{{name: "d/", mode: 0o755}, {name: "d/f", body: "one"}, {name: "d/g", body: noise(1, 70000)}, {name: "d/sub/"}, {name: "d/sub/x", body: "x"},
		{name: "a", body: "linked"}, {name: "b", typ: tar.TypeLink, link: "a"}, {name: "l", typ: tar.TypeSymlink, link: "d"},
		{name: "n", typ: tar.TypeChar, dev: [2]int64{1, 3}}, {name: "z", body: "last"}}
	for _, tc := range []struct {
		name string
		two  []entry
		want []string
	}{
		{"nothing", nil, nil},
		{"the same again", one, nil},
		{"added", []entry{{name: "d/new/"}, {name: "d/new/f"}}, []string{"C /d", "A /d/new", "A /d/new/f"}},
		{"deleted", []entry{{name: "d/.wh.sub"}, {name: ".wh.l"}}, []string{"C /d", "D /d/sub", "D /l"}},
		{"contents of the same size", []entry{{name: "d/f", body: "two"}}, []string{"C /d", "C /d/f"}},
		{"last byte", []entry{{name: "d/g", body: noise(1, 69999) + "\x01"}}, []string{"C /d", "C /d/g"}},
		{"mode", []entry{{name: "d/sub/", mode: 0o700}}, []string{"C /d", "C /d/sub"}},
		{"owner", []entry{{name: "z", body: "last", uid: 5}}, []string{"C /z"}},
		{"time", []entry{{name: "z", body: "last", mtime: later}}, []string{"C /z"}},
		{"xattr", []entry{{name: "z", body: "last", xattr: map[string]string{"user.x": "1"}}}, []string{"C /z"}},
		{"device", []entry{{name: "n", typ: tar.TypeChar, dev: [2]int64{1, 5}}}, []string{"C /n"}},
		{"target", []entry{{name: "l", typ: tar.TypeSymlink, link: "e"}}, []string{"C /l"}},
		{"root", []entry{{name: "./", mode: 0o700}}, []string{"C /"}},
		{"file to directory", []entry{{name: "z/"}, {name: "z/in"}}, []string{"C /z", "A /z/in"}},
		{"directory to file", []entry{{name: "d", body: "flat"}}, []string{"C /d"}},
		{"directory to symlink", []entry{{name: "d", typ: tar.TypeSymlink, link: "z"}}, []string{"C /d"}},
		{"directory to another", []entry{{name: "d/.wh..wh..opq"}, {name: "d/only", body: "1"}},
			[]string{"C /d", "D /d/f", "D /d/g", "A /d/only", "D /d/sub"}},
		{"link added", []entry{{name: "c", typ: tar.TypeLink, link: "a"}}, []string{"A /c"}},
		{"link gone", []entry{{name: ".wh.a"}}, []string{"D /a"}},
		{"link broken", []entry{{name: "b", body: "linked"}}, []string{"C /b"}},
		{"link made", []entry{{name: "z", typ: tar.TypeLink, link: "a"}}, []string{"C /z"}},
		{"linked file changed", []entry{{name: "a", body: "other"}, {name: "b", typ: tar.TypeLink, link: "a"}}, []string{"C /a", "C /b"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			lower := newImage(t, 128<<20)
			lower.mustApply(t, makeTar(t, one...))
			upper := lower.clone(t)
			upper.mustApply(t, makeTar(t, tc.two...))
			lo, up := rootfs(t, lower, lower.bytes), rootfs(t, upper, upper.bytes)
			o := &ext4.DiffOptions{Changed: changed(t, lower, upper)}
			for _, o := range []*ext4.DiffOptions{nil, o} {
				got, err := ext4.Diff(lo, up, o)
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(tc.want, list(got)); diff != "" {
					t.Error(diff)
				}
			}
			var layer bytes.Buffer
			if err := ext4.DiffTar(&layer, lo, up, o, nil); err != nil {
				t.Fatal(err)
			}
			again := lower.clone(t)
			again.mustApply(t, layer.Bytes())
			if diff := cmp.Diff(readerTree(t, up, ""), readerTree(t, rootfs(t, again, again.bytes), "")); diff != "" {
				t.Errorf("the layer makes another tree (-upper +layer):\n%s", diff)
			}
			// And the way back.
			layer.Reset()
			if err := ext4.DiffTar(&layer, up, lo, nil, nil); err != nil {
				t.Fatal(err)
			}
			back := upper.clone(t)
			back.mustApply(t, layer.Bytes())
			if diff := cmp.Diff(readerTree(t, lo, ""), readerTree(t, rootfs(t, back, back.bytes), "")); diff != "" {
				t.Errorf("the way back (-lower +layer):\n%s", diff)
			}
		})
	}
}

func TestDiffSkipsAndRefuses(t *testing.T) {
	lower := newImage(t, 128<<20)
	lower.mustApply(t, makeTar(t, entry{name: "keep"}, entry{name: "tmp/old"}))
	upper := lower.clone(t)
	upper.mustApply(t, makeTar(t, entry{name: ".wh.keep"}, entry{name: "tmp/new"}, entry{name: "tmp/.wh.old"}))
	lo, up := rootfs(t, lower, lower.bytes), rootfs(t, upper, upper.bytes)
	got, err := ext4.Diff(lo, up, &ext4.DiffOptions{Skip: func(name string) bool { return name == "tmp" }})
	if diff := cmp.Diff([]string{"D /keep"}, list(got)); err != nil || diff != "" {
		t.Error(err, diff)
	}
	// A name that no layer can have.
	l, err := ext4.ReadArchive(bytes.NewReader(makeTar(t, entry{name: "d/.wh.evil"})), io.Discard, ext4.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := upper.fs.Apply(l); err != nil {
		t.Fatal(err)
	}
	upper.emit()
	up = rootfs(t, upper, upper.bytes)
	if err := ext4.DiffTar(io.Discard, lo, up, nil, nil); err == nil || !strings.Contains(err.Error(), "d/.wh.evil") {
		t.Errorf("DiffTar: %v", err)
	}
	if err := ext4.DiffTar(io.Discard, lo, up, nil, &ext4.TarOptions{Skip: func(name string) bool { return name == "d" }}); err != nil {
		t.Error(err)
	}
}

// TestDiffKernel has a kernel change an image's disk as a container would, cuts the disk off,
// and makes a layer of the difference. umoci and we must unpack it to the kernel's tree, and
// contents that did not change must not be read.
func TestDiffKernel(t *testing.T) {
	if testing.Short() {
		t.Skip("mounts filesystems")
	}
	t.Parallel()
	need(t, "umoci", "mount")
	lower := newImage(t, 256<<20)
	layers := append(richLayers(t)[:2:2], makeTar(t, entry{name: "opt/"}, entry{name: "opt/large", body: noise(42, 24<<20)}))
	for _, l := range layers {
		lower.mustApply(t, l)
	}
	img := lower.save(t)
	dir, umount := mount(t, img, "loop,user_xattr,acl")
	release := disturb(t, filepath.Join(dir, "rootfs"))
	run(t, "sync", "-f", dir)
	cut := filepath.Join(t.TempDir(), "cut.img")
	run(t, "cp", "--sparse=always", img, cut)
	release()
	os.Remove(filepath.Join(dir, "rootfs/k/sock"))
	want := kernelTree(t, filepath.Join(dir, "rootfs"))
	umount()

	f, err := os.Open(cut)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	o := &ext4.DiffOptions{Changed: changedAt(t, lower, f, lower.bytes)}
	cl, cu := &counting{ReaderAt: lower}, &counting{ReaderAt: f}
	lo, up := rootfs(t, cl, lower.bytes), rootfs(t, cu, lower.bytes)
	cl.n, cu.n = 0, 0
	fast, err := ext4.Diff(lo, up, o)
	if err != nil {
		t.Fatal(err)
	}
	known := cl.n + cu.n
	slow, err := ext4.Diff(lo, up, nil)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(slow, fast); diff != "" {
		t.Errorf("the list of ranges changes the result (-without +with): %s", diff)
	}
	all := cl.n + cu.n - known
	t.Logf("%d changes, %d KiB read, %d KiB without the list of ranges", len(fast), known>>10, all>>10)
	if known > all/8 {
		t.Error("contents that did not change were read")
	}
	var layer bytes.Buffer
	if err := ext4.DiffTar(&layer, lo, up, o, &ext4.TarOptions{Sparse: true}); err != nil {
		t.Fatal(err)
	}
	again := lower.clone(t)
	again.mustApply(t, layer.Bytes())
	again.fsck(t)
	delete(want, "k/sock")
	ours := readerTree(t, rootfs(t, again, again.bytes), "")
	// The socket was removed after the cut, and with it the time of its directory.
	k := want["k"]
	k.Mtime = ours["k"].Mtime
	want["k"] = k
	if diff := cmp.Diff(want, ours); diff != "" {
		t.Errorf("kernel and our layer (-kernel +layer):\n%.4000s", diff)
	}

	oci := filepath.Join(t.TempDir(), "oci")
	run(t, "umoci", "init", "--layout", oci)
	run(t, "umoci", "new", "--image", oci+":x")
	for _, l := range append(layers, layer.Bytes()) {
		name := filepath.Join(t.TempDir(), "layer.tar")
		if err := os.WriteFile(name, l, 0o600); err != nil {
			t.Fatal(err)
		}
		run(t, "umoci", "raw", "add-layer", "--image", oci+":x", name)
	}
	other := filepath.Join(t.TempDir(), "other.img")
	run(t, "mke2fs", "-q", "-t", "ext4", "-b", "4096", other, "256M")
	dir, _ = mount(t, other, "loop,user_xattr,acl")
	run(t, "umoci", "raw", "unpack", "--image", oci+":x", filepath.Join(dir, "rootfs"))
	theirs := kernelTree(t, filepath.Join(dir, "rootfs"))
	for _, tree := range []map[string]node{ours, theirs} { // umoci counts nanoseconds, until 2262
		n := tree["etc/group"]
		n.Mtime = time.Time{}
		tree["etc/group"] = n
	}
	if diff := cmp.Diff(theirs, ours); diff != "" {
		t.Errorf("umoci and we (-umoci +we):\n%.4000s", diff)
	}
}

// TestTarOut has GNU tar unpack what we packed; the kernel must see the same tree as on our disk.
func TestTarOut(t *testing.T) {
	if testing.Short() {
		t.Skip("mounts filesystems")
	}
	t.Parallel()
	need(t, "tar", "mke2fs", "mount")
	im := newImage(t, 256<<20)
	for _, l := range richLayers(t)[:2] {
		im.mustApply(t, l)
	}
	im.mustApply(t, makeTar(t, entry{name: "sparse", body: strings.Repeat("\x00", 3<<20) + noise(1, 200000) + strings.Repeat("\x00", 5<<20)},
		entry{name: "hole", body: strings.Repeat("\x00", 2<<20)}, entry{name: "eq", body: "x", xattr: map[string]string{"user.a": "=", "user.e": ""}}))
	r := rootfs(t, im, im.bytes)
	want := readerTree(t, r, "")
	for name, sparse := range map[string]bool{"full": false, "sparse": true} {
		t.Run(name, func(t *testing.T) {
			var one, two bytes.Buffer
			o := &ext4.TarOptions{Sparse: sparse}
			if err := r.TarOut(&one, "/", o); err != nil {
				t.Fatal(err)
			}
			if err := r.TarOut(&two, ".", o); err != nil || !bytes.Equal(one.Bytes(), two.Bytes()) {
				t.Errorf("the second time it is another tar (%v)", err)
			}
			again := newImage(t, 256<<20)
			again.mustApply(t, one.Bytes())
			if diff := cmp.Diff(want, readerTree(t, rootfs(t, again, again.bytes), "")); diff != "" {
				t.Errorf("our reader of tars (-packed +unpacked):\n%.4000s", diff)
			}
			file := filepath.Join(t.TempDir(), "out.tar")
			if err := os.WriteFile(file, one.Bytes(), 0o600); err != nil {
				t.Fatal(err)
			}
			other := filepath.Join(t.TempDir(), "other.img")
			run(t, "mke2fs", "-q", "-t", "ext4", "-b", "4096", other, "256M")
			dir, umount := mount(t, other, "loop,user_xattr,acl")
			defer umount()
			root := filepath.Join(dir, "rootfs")
			run(t, "mkdir", root)
			run(t, "tar", "-C", root, "--numeric-owner", "--xattrs", "--xattrs-include=*", "--same-owner", "-xpf", file)
			if diff := cmp.Diff(want, kernelTree(t, root)); diff != "" {
				t.Errorf("GNU tar (-packed +unpacked):\n%.4000s", diff)
			}
			t.Logf("%d bytes", one.Len())
		})
	}
}

func TestTarOutNames(t *testing.T) {
	im := newImage(t, 128<<20)
	im.mustApply(t, makeTar(t, entry{name: "etc/"}, entry{name: "etc/a", body: "1"}, entry{name: "etc/b", typ: tar.TypeLink, link: "etc/a"}, entry{name: "etc/skip/x"},
		entry{name: "l", typ: tar.TypeSymlink, link: "../../etc"}, entry{name: "loop", typ: tar.TypeSymlink, link: "loop"}))
	r := rootfs(t, im, im.bytes)
	for _, tc := range []struct {
		path, name string
		want       []string
	}{
		{"/etc/a", "", []string{"a"}},
		{"/etc/a", "renamed", []string{"renamed"}},
		{"etc", "", []string{"etc/", "etc/a", "etc/b -> etc/a"}},
		{"etc/", ".", []string{"./", "a", "b -> a"}},
		{"l", "", []string{"l -> ../../etc"}},
		{"l/", "", []string{"etc/", "etc/a", "etc/b -> etc/a"}},
		{"l/a", "", []string{"a"}},
		{"/", "", []string{"./", "etc/", "etc/a", "etc/b -> etc/a", "l -> ../../etc", "loop -> loop"}},
		{"/", "all", []string{"all/", "all/etc/", "all/etc/a", "all/etc/b -> all/etc/a", "all/l -> ../../etc", "all/loop -> loop"}},
	} {
		var b bytes.Buffer
		if err := r.TarOut(&b, tc.path, &ext4.TarOptions{Name: tc.name, Skip: func(name string) bool { return name == "etc/skip" }}); err != nil {
			t.Errorf("%s: %v", tc.path, err)
			continue
		}
		var got []string
		for tr := tar.NewReader(&b); ; {
			h, err := tr.Next()
			if err != nil {
				break
			}
			s := h.Name
			if h.Linkname != "" {
				s += " -> " + h.Linkname
			}
			got = append(got, s)
		}
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("%s as %q: %s", tc.path, tc.name, diff)
		}
	}
	for name, want := range map[string]error{"none": fs.ErrNotExist, "../log": fs.ErrNotExist, "etc/a/": nil, "loop/": nil} {
		err := r.TarOut(io.Discard, name, nil)
		if err == nil || want != nil && !errors.Is(err, want) {
			t.Errorf("TarOut(%q) = %v", name, err)
		}
	}
	for name, want := range map[string]string{"l": "/etc", "l/../etc/./a": "/etc/a", "/": "/", "..": "/"} {
		if got, err := r.Resolve(name); err != nil || got != want {
			t.Errorf("Resolve(%q) = %q, %v, want %q", name, got, err, want)
		}
	}
	if got, err := r.Readlink("l"); err != nil || got != "../../etc" {
		t.Errorf("Readlink = %q, %v", got, err)
	}
	if _, err := r.Readlink("etc"); err == nil {
		t.Error("Readlink reads a directory")
	}
}
