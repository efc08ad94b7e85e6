package ext4_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// TestTarFormats has GNU tar pack a tree in each of its formats, unpack it again, and compares
// that with what we make of the same tars. Sparse files must come out with their holes.
func TestTarFormats(t *testing.T) {
	if testing.Short() {
		t.Skip("mounts filesystems")
	}
	t.Parallel()
	need(t, "tar", "mke2fs", "mount")
	other := filepath.Join(t.TempDir(), "other.img")
	run(t, "mke2fs", "-q", "-t", "ext4", "-b", "4096", other, "256M")
	dir, _ := mount(t, other, "loop,user_xattr,acl")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	plain, full := filepath.Join(dir, "plain"), filepath.Join(dir, "full")
	for _, d := range []string{plain, full} {
		must(os.MkdirAll(filepath.Join(d, "d"), 0o1711))
		must(os.WriteFile(filepath.Join(d, "d/f"), []byte("contents"), 0o600))
		must(os.Chmod(filepath.Join(d, "d/f"), 0o604|os.ModeSetuid))
		must(os.Link(filepath.Join(d, "d/f"), filepath.Join(d, "hard")))
		must(os.Symlink("d/f", filepath.Join(d, "soft")))
		must(os.Chown(filepath.Join(d, "d"), 1000, 1001))
	}
	p := func(name string) string { return filepath.Join(full, name) }
	must(os.WriteFile(p("long-"+strings.Repeat("n", 250)), []byte("1"), 0o644))
	deep := p(strings.Repeat(strings.Repeat("d", 90)+"/", 5))
	must(os.MkdirAll(deep, 0o755))
	must(os.WriteFile(filepath.Join(deep, "deep"), []byte("2"), 0o644))
	must(os.Link(filepath.Join(deep, "deep"), p("hard-to-deep")))
	must(os.Symlink(strings.Repeat("target/", 150), p("long-link")))
	must(os.WriteFile(p("latin-\xe9\xff"), nil, 0o644))
	must(unix.Mknod(p("fifo"), unix.S_IFIFO|0o640, 0))
	must(unix.Mknod(p("dev"), unix.S_IFBLK|0o640, int(unix.Mkdev(259, 70000))))
	must(unix.Mknod(p("sock"), unix.S_IFSOCK|0o640, 0))
	must(os.Chown(p("latin-\xe9\xff"), 3000000, id(4294967294)))
	must(os.WriteFile(p("old"), nil, 0o644))
	must(os.Chtimes(p("old"), day, time.Unix(-300000000, 0)))
	must(os.WriteFile(p("far"), nil, 0o644))
	must(os.Chtimes(p("far"), day, time.Unix(1<<33, 0)))
	holes := func(name string, size int64, at ...int64) {
		f, err := os.Create(p(name))
		must(err)
		for _, o := range at {
			_, err = f.WriteAt([]byte(noise(uint64(o), 70000)), o)
			must(err)
		}
		must(f.Truncate(size))
		must(f.Close())
	}
	holes("sparse", 40<<20, 0, 5<<20, 17<<20+4096)
	holes("sparse-end", 3<<20, 1<<20)
	holes("only-hole", 2<<20)
	var many []int64
	for i := range int64(60) { // more stretches than one header of the old format holds
		many = append(many, i*200<<10)
	}
	holes("many-holes", 13<<20, many...)

	for _, tc := range []struct {
		name, tree string
		args       []string
	}{
		{"v7", plain, []string{"--format=v7"}},
		{"ustar", plain, []string{"--format=ustar"}},
		{"oldgnu", full, []string{"--format=oldgnu"}},
		{"gnu", full, []string{"--format=gnu"}},
		{"posix", full, []string{"--format=posix"}},
		{"global header", full, []string{"--format=posix", "--pax-option=comment=made for a test"}},
		{"oldgnu sparse", full, []string{"--format=oldgnu", "-S"}},
		{"gnu sparse", full, []string{"--format=gnu", "-S"}},
		{"sparse 0.0", full, []string{"--format=posix", "-S", "--sparse-version=0.0"}},
		{"sparse 0.1", full, []string{"--format=posix", "-S", "--sparse-version=0.1"}},
		{"sparse 1.0", full, []string{"--format=posix", "-S", "--sparse-version=1.0"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cmd := exec.Command("tar", append(append([]string{"-C", tc.tree, "-c"}, tc.args...), ".")...)
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			layer, err := cmd.Output()
			if err != nil {
				t.Fatalf("tar: %v\n%s", err, stderr.Bytes())
			}
			im := newImage(t, 256<<20)
			im.mustApply(t, layer)
			im.fsck(t)
			out, err := os.MkdirTemp(dir, "out")
			must(err)
			defer os.RemoveAll(out)
			cmd = exec.Command("tar", "-C", out, "--numeric-owner", "--same-owner", "-xpf", "-")
			cmd.Stdin = bytes.NewReader(layer)
			if b, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("tar: %v\n%s", err, b)
			}
			if diff := cmp.Diff(kernelTree(t, out), readerTree(t, im.reader(t), "rootfs")); diff != "" {
				t.Errorf("GNU tar and we (-tar +we):\n%.4000s", diff)
			}
			free := im.fs.Usage().FreeBlocks
			if used := newImage(t, 256<<20).fs.Usage().FreeBlocks - free; tc.tree == full && used > 2200 {
				t.Errorf("%d blocks are used: holes were stored", used)
			}
		})
	}
}

// TestTimes checks times at the edges of what ext4 holds, in the kernel's view; beyond, the
// nearest is taken.
func TestTimes(t *testing.T) {
	if testing.Short() {
		t.Skip("mounts filesystems")
	}
	need(t, "mount")
	lo, hi := time.Unix(-1<<31, 0).UTC(), time.Unix(1<<34-1<<31-1, 999999999).UTC()
	times := []struct{ in, want time.Time }{
		{time.Unix(-1, 999999999), time.Unix(-1, 999999999)},
		{lo, lo}, {lo.Add(-time.Second), lo}, {time.Unix(-1<<40, 0), lo},
		{time.Unix(1<<31-1, 1), time.Unix(1<<31-1, 1)}, {time.Unix(1<<31, 2), time.Unix(1<<31, 2)},
		{time.Unix(1<<32-1, 3), time.Unix(1<<32-1, 3)}, {time.Unix(1<<32, 4), time.Unix(1<<32, 4)}, {time.Unix(3<<32, 5), time.Unix(3<<32, 5)},
		{hi, hi}, {hi.Add(time.Nanosecond), time.Unix(hi.Unix(), 0)}, {time.Unix(1<<40, 0), time.Unix(hi.Unix(), 0)},
	}
	var es []entry
	for i, x := range times {
		es = append(es, entry{name: fmt.Sprint(i), mtime: x.in})
	}
	im := newImage(t, 128<<20)
	im.mustApply(t, makeTar(t, es...))
	im.fsck(t)
	dir, _ := mount(t, im.save(t), "loop,ro")
	tree, ours := kernelTree(t, filepath.Join(dir, "rootfs")), readerTree(t, im.reader(t), "rootfs")
	for i, x := range times {
		name := fmt.Sprint(i)
		if !tree[name].Mtime.Equal(x.want) || !ours[name].Mtime.Equal(x.want) {
			t.Errorf("%v: kernel %v, reader %v, want %v", x.in.UTC(), tree[name].Mtime, ours[name].Mtime, x.want.UTC())
		}
	}
}

// TestHardLinks checks links across layers.
func TestHardLinks(t *testing.T) {
	t.Parallel()
	base := []entry{{name: "a", body: "old"}, {name: "d/b", typ: tar.TypeLink, link: "a"}, {name: "s", typ: tar.TypeSymlink, link: "d"}}
	for _, tc := range []struct {
		name  string
		layer []entry
		want  map[string]string // contents, and the first name of the same file
	}{
		{"to an older layer's file", []entry{{name: "c", typ: tar.TypeLink, link: "a"}}, map[string]string{"a": "old a", "c": "old a", "d/b": "old a"}},
		{"through a symlink", []entry{{name: "c", typ: tar.TypeLink, link: "s/b"}}, map[string]string{"a": "old a", "c": "old a", "d/b": "old a"}},
		{"one name is deleted", []entry{{name: ".wh.a"}}, map[string]string{"d/b": "old d/b"}},
		{"all names are deleted", []entry{{name: ".wh.a"}, {name: ".wh.d"}}, map[string]string{}},
		{"one name is replaced", []entry{{name: "a", body: "new"}}, map[string]string{"a": "new a", "d/b": "old d/b"}},
		{"linked, then the target is deleted", []entry{{name: "c", typ: tar.TypeLink, link: "a"}, {name: ".wh.a"}}, map[string]string{"c": "old c", "d/b": "old c"}},
		{"linked, then the target is replaced", []entry{{name: "c", typ: tar.TypeLink, link: "a"}, {name: "a", body: "new"}}, map[string]string{"a": "new a", "c": "old c", "d/b": "old c"}},
		{"replaced, then linked", []entry{{name: "a", body: "new"}, {name: "c", typ: tar.TypeLink, link: "a"}}, map[string]string{"a": "new a", "c": "new a", "d/b": "old d/b"}},
		{"over another of its names", []entry{{name: "d/b", typ: tar.TypeLink, link: "a"}}, map[string]string{"a": "old a", "d/b": "old a"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			im := newImage(t, 128<<20)
			im.mustApply(t, makeTar(t, base...))
			im.mustApply(t, makeTar(t, tc.layer...))
			im.fsck(t)
			got := map[string]string{}
			r := rootfs(t, im, im.bytes)
			for name, n := range readerTree(t, r, "") {
				if !n.Mode.IsRegular() {
					continue
				}
				f, err := r.OpenFile(name)
				if err != nil {
					t.Fatal(err)
				}
				b := make([]byte, n.Size)
				f.ReadAt(b, 0)
				if n.Same == "" {
					n.Same = name
				}
				got[name] = string(b) + " " + n.Same
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
	_, err := newImage(t, 128<<20).apply(makeTar(t, entry{name: "h", typ: tar.TypeLink, link: "later"}, entry{name: "later"}))
	if err == nil || !strings.Contains(err.Error(), `"h"`) || !strings.Contains(err.Error(), "before its link") {
		t.Errorf("a link before its target: %v", err)
	}
	var es []entry
	second := day.Truncate(time.Second) // needs no extended header
	es = append(es, entry{name: "f", mtime: second})
	for i := range 65000 {
		es = append(es, entry{name: fmt.Sprint("l", i), typ: tar.TypeLink, link: "f", mtime: second})
	}
	if _, err := newImage(t, 128<<20).apply(makeTar(t, es...)); err == nil || !strings.Contains(err.Error(), "65000") {
		t.Errorf("65,001 links: %v", err)
	}
}
