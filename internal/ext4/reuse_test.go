package ext4_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vicsdk/vic-go/internal/ext4"
)

// reapply is apply with reuse of contents. It returns the bytes of metadata and of contents that
// the layer's disk holds.
func (im *image) reapply(t testing.TB, layer []byte) (meta, data int64) {
	t.Helper()
	var spool bytes.Buffer
	l, err := ext4.ReadLayer(bytes.NewReader(layer), &spool, ext4.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	bound, err := im.fs.ApplyWith(l, &ext4.ApplyOptions{Spool: bytes.NewReader(spool.Bytes()), Parent: im})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range bound {
		im.put(e.Abs, spool.Bytes()[e.Rel*ext4.BlockSize:(e.Rel+e.N)*ext4.BlockSize])
		data += int64(e.N) * ext4.BlockSize
	}
	return int64(im.emit()) * ext4.BlockSize, data
}

// TestReuse changes owners of a tree like a Dockerfile's "chown -R": the layer must hold metadata
// only, at most 5 % of what the files take.
func TestReuse(t *testing.T) {
	t.Parallel()
	tree := func(uid int) []byte {
		var es []entry
		for i := range 1000 {
			e := entry{name: fmt.Sprintf("app/node_modules/package-%d/file-%d.js", i/20, i), body: noise(uint64(i), i*37%40000), uid: uid}
			es = append(es, e)
			if i%50 == 0 { // hard links, whose other name comes later
				es = append(es, entry{name: fmt.Sprintf("app/links/%d", i), typ: tar.TypeLink, link: e.name})
			}
		}
		es = append(es, entry{name: "app/big", body: noise(5, 9<<20), uid: uid}, entry{name: "app/holey", body: holey(60), uid: uid},
			entry{name: "app/zero", body: strings.Repeat("\x00", 100000), uid: uid}, entry{name: "app/empty", uid: uid},
			entry{name: "app/slow", typ: tar.TypeSymlink, link: strings.Repeat("s", 500), uid: uid}, entry{name: "app/fast", typ: tar.TypeSymlink, link: "big", uid: uid},
			entry{name: "app/dev", typ: tar.TypeChar, dev: [2]int64{7, 70000}, uid: uid}, entry{name: "app/fifo", typ: tar.TypeFifo, uid: uid})
		return makeTar(t, es...)
	}
	im := newImage(t, 256<<20)
	_, whole := im.reapply(t, tree(0))
	meta, data := im.reapply(t, tree(1000))
	im.fsck(t)
	t.Logf("%d bytes of contents, then %d of metadata and %d of contents: %.2f %%", whole, meta, data, 100*float64(meta+data)/float64(whole))
	if data != 0 || meta*20 > whole {
		t.Errorf("a change of owners holds %d bytes of metadata and %d of contents, of files of %d bytes", meta, data, whole)
	}
	want := newImage(t, 256<<20)
	want.mustApply(t, tree(1000))
	if diff := cmp.Diff(readerTree(t, want.reader(t), "rootfs"), readerTree(t, im.reader(t), "rootfs")); diff != "" {
		t.Errorf("reused and fresh (-fresh +reused):\n%.4000s", diff)
	}
	fs, err := ext4.Rebuild(im.reader(t))
	if err != nil {
		t.Fatal(err)
	}
	a, err := im.fs.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	if b, err := fs.MarshalBinary(); err != nil || !bytes.Equal(a, b) {
		t.Errorf("the rebuilt index is another (%v)", err)
	}
}

// TestReuseRefused checks what must not be reused: contents that are almost the same, names that
// are not the same file.
func TestReuseRefused(t *testing.T) {
	t.Parallel()
	body := noise(1, 300000)
	flip := func(i int) string {
		b := []byte(body)
		b[i] ^= 1
		return string(b)
	}
	base := []entry{{name: "f", body: body}, {name: "d/f", body: body}, {name: "l", typ: tar.TypeSymlink, link: "d"}, {name: "a", body: body},
		{name: "b", typ: tar.TypeLink, link: "a"}, {name: "c", typ: tar.TypeLink, link: "a"}, {name: "holes", body: holey(20)}, {name: "tree", body: holey(8)}}
	for _, tc := range []struct {
		name   string
		layer  []entry
		blocks int64 // of contents that the layer holds
	}{
		{"the same", []entry{{name: "f", body: body, uid: 1}}, 0},
		{"first byte", []entry{{name: "f", body: flip(0)}}, 74},
		{"last byte", []entry{{name: "f", body: flip(299999)}}, 74},
		{"byte after the first megabyte's window", []entry{{name: "holes", body: holey(19) + strings.Repeat("\x00", 128<<10-1) + "x"}}, 19*16 + 16},
		{"shorter", []entry{{name: "f", body: body[:299999]}}, 74},
		{"longer", []entry{{name: "f", body: body + "\x00"}}, 74},
		{"zeroes for a hole", []entry{{name: "holes", body: strings.Repeat("\x00", 20*128<<10)}}, 0},
		{"through a symlink", []entry{{name: "l/f", body: body, uid: 1}}, 0},
		{"behind a symlink that is replaced", []entry{{name: "l/"}, {name: "l/f", body: body}}, 74},
		{"below a directory that is deleted later", []entry{{name: "d/f", body: body, uid: 1}, {name: ".wh.d"}}, 0},
		{"deleted and added", []entry{{name: ".wh.f"}, {name: "f", body: body}}, 74},
		{"twice", []entry{{name: "f", body: body, uid: 1}, {name: "f", body: body, uid: 2}}, 0},
		{"twice, the second changed", []entry{{name: "f", body: body, uid: 1}, {name: "f", body: flip(7), uid: 2}}, 74},
		{"one name of three", []entry{{name: "b", body: body, uid: 1}}, 74},
		{"two names of three", []entry{{name: "b", body: body, uid: 1}, {name: "a", typ: tar.TypeLink, link: "b"}}, 74},
		{"all names", []entry{{name: "b", body: body, uid: 1}, {name: "a", typ: tar.TypeLink, link: "b"}, {name: "c", typ: tar.TypeLink, link: "b"}}, 0},
		{"all names, separately", []entry{{name: "a", body: body}, {name: "b", body: body}, {name: "c", body: body}}, 2 * 74},
		{"all names, then none", []entry{{name: "b", body: body}, {name: "a", typ: tar.TypeLink, link: "b"}, {name: "c", typ: tar.TypeLink, link: "b"}, {name: "x/"}, {name: "b", body: "1"}, {name: "a", body: "2"}, {name: "c", body: "3"}}, 3},
		{"extent tree", []entry{{name: "tree", body: holey(8), mode: 0o600}}, 0},
		{"extent tree and a link", []entry{{name: "tree2", typ: tar.TypeLink, link: "tree"}, {name: "tree", body: holey(8)}, {name: "tree2", typ: tar.TypeLink, link: "tree"}}, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			im, fresh := newImage(t, 128<<20), newImage(t, 128<<20)
			im.mustApply(t, makeTar(t, base...))
			fresh.mustApply(t, makeTar(t, base...))
			_, data := im.reapply(t, makeTar(t, tc.layer...))
			fresh.mustApply(t, makeTar(t, tc.layer...))
			if data != tc.blocks*ext4.BlockSize {
				t.Errorf("%d blocks of contents, want %d", data/ext4.BlockSize, tc.blocks)
			}
			im.fsck(t)
			if diff := cmp.Diff(readerTree(t, fresh.reader(t), "rootfs"), readerTree(t, im.reader(t), "rootfs")); diff != "" {
				t.Errorf("reused and fresh (-fresh +reused):\n%s", diff)
			}
			sound(t, im)
		})
	}
	l, err := ext4.ReadLayer(bytes.NewReader(makeTar(t, base...)), io.Discard, ext4.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := newImage(t, 128<<20).fs.ApplyWith(l, &ext4.ApplyOptions{Parent: bytes.NewReader(nil)}); err == nil || !strings.Contains(err.Error(), "Spool") {
		t.Errorf("Parent without Spool: %v", err)
	}
	im := newImage(t, 128<<20)
	im.mustApply(t, makeTar(t, base...))
	if _, err := im.fs.ApplyWith(l, &ext4.ApplyOptions{Spool: bytes.NewReader(nil), Parent: im}); err == nil || !strings.Contains(err.Error(), "spool") {
		t.Errorf("a spool that cannot be read: %v", err)
	}
	if _, err := im.clone0(t).fs.ApplyWith(l, &ext4.ApplyOptions{Dir: "none"}); err == nil || !strings.Contains(err.Error(), `Dir "none"`) {
		t.Errorf("Dir: %v", err)
	}
}

// clone0 is an image with one directory.
func (im *image) clone0(t testing.TB) *image {
	out := newImage(t, im.bytes)
	out.mustApply(t, makeTar(t, entry{name: "d/"}))
	return out
}

// TestDir applies below a directory.
func TestDir(t *testing.T) {
	im := newImage(t, 128<<20)
	im.mustApply(t, makeTar(t, entry{name: "d/e/"}, entry{name: "l", typ: tar.TypeSymlink, link: "/d/e"}, entry{name: "d/e/up", typ: tar.TypeSymlink, link: "../.."}, entry{name: "d/e/abs", typ: tar.TypeSymlink, link: "/d"}))
	l, err := ext4.ReadArchive(bytes.NewReader(makeTar(t, entry{name: "./", mode: 0o700}, entry{name: "f"}, entry{name: "h", typ: tar.TypeLink, link: "f"},
		entry{name: "up/at-root"}, entry{name: "abs/in-d"}, entry{name: "../../../stays"}, entry{name: ".wh.f"})), io.Discard, ext4.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := im.fs.ApplyWith(l, &ext4.ApplyOptions{Dir: "l"}); err != nil {
		t.Fatal(err)
	}
	im.emit()
	im.fsck(t)
	tree := readerTree(t, im.reader(t), "rootfs")
	want := []string{".", "at-root", "d", "d/e", "d/e/.wh.f", "d/e/abs", "d/e/f", "d/e/h", "d/e/stays", "d/e/up", "d/in-d", "l"}
	if diff := cmp.Diff(want, slices.Sorted(maps.Keys(tree))); diff != "" {
		t.Error(diff)
	}
	if m := tree["d/e"].Mode.Perm(); m != 0o700 {
		t.Errorf("the directory itself has mode %o", m)
	}
}

// TestOrder parses layers side by side, by one goroutine and by eight, in any order: the disk must
// come out the same, byte by byte.
func TestOrder(t *testing.T) {
	t.Parallel()
	layers := richLayers(t)
	for i := range 5 {
		layers = append(layers, makeTar(t, entry{name: "var/fresh", body: noise(10, 70000), uid: i}, entry{name: fmt.Sprint("n", i), body: noise(uint64(i), 200000)}))
	}
	build := func(workers int, seed uint64) *image {
		type parsed struct {
			l     *ext4.Layer
			spool bytes.Buffer
		}
		out := make([]parsed, len(layers))
		order := rand.New(rand.NewPCG(seed, 1)).Perm(len(layers))
		next := make(chan int)
		var wg sync.WaitGroup
		for range workers {
			wg.Go(func() {
				for i := range next {
					l, err := ext4.ReadLayer(bytes.NewReader(layers[i]), &out[i].spool, ext4.Limits{})
					if err != nil {
						t.Error(err)
					}
					out[i].l = l
				}
			})
		}
		for _, i := range order {
			next <- i
		}
		close(next)
		wg.Wait()
		im := newImage(t, 256<<20)
		for i := range out {
			p := &out[i]
			bound, err := im.fs.ApplyWith(p.l, &ext4.ApplyOptions{Spool: bytes.NewReader(p.spool.Bytes()), Parent: im})
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range bound {
				im.put(e.Abs, p.spool.Bytes()[e.Rel*ext4.BlockSize:(e.Rel+e.N)*ext4.BlockSize])
			}
			im.emit()
		}
		return im
	}
	want := build(1, 0)
	for seed := range uint64(3) {
		got := build(8, seed)
		if len(got.blocks) != len(want.blocks) {
			t.Errorf("%d blocks, not %d", len(got.blocks), len(want.blocks))
		}
		for lba, b := range want.blocks {
			if !bytes.Equal(b, got.blocks[lba]) {
				t.Errorf("block %d differs", lba)
			}
		}
	}
}
