package imagestore_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"runtime/metrics"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/vicsdk/vic-go/internal/testlab"
	"github.com/vicsdk/vic-go/internal/treecmp"
	"github.com/vicsdk/vic-go/vic/imagestore"
)

// heapBound is what a pull of these images may add to the heap, garbage
// included. The most comes from two million diff IDs in a configuration of the
// greatest size that is read.
const heapBound = 128 << 20

// packedLayer is a layer as a registry has it, and unpacked.
type packedLayer struct{ packed, plain []byte }

// imageOf makes an image of layers.
func imageOf(ls ...packedLayer) *fake {
	f := newFake("")
	f.manifest.Layers, f.config.RootFS.DiffIDs = nil, nil
	for _, l := range ls {
		f.manifest.Layers = append(f.manifest.Layers, f.m.put(ocispec.MediaTypeImageLayerGzip, l.packed))
		f.config.RootFS.DiffIDs = append(f.config.RootFS.DiffIDs, digest.FromBytes(l.plain))
	}
	return f
}

// TestOddLayers makes one image of all layers that are odd and right, and
// another whose layers are packed in odd ways, and compares the kernel's view of
// them with what is wanted.
func TestOddLayers(t *testing.T) {
	long(t)
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root, to mount")
		}
		t.Skip("needs root, to mount")
	}
	e := testlab.Start(t, testlab.Options{NoBoot: true})
	store := e.Open(t, e.Client, &imagestore.Options{Bytes: 128 << 20}).Images()
	pull := func(t *testing.T, f *fake, name string) ([]treecmp.Entry, []string) {
		f.tag()
		img, err := store.Pull(t.Context(), f.m, "registry.example/"+name+":x", nil)
		if err != nil {
			t.Fatal(err)
		}
		return wholeTree(t, e.Local(t, img.Root().Path))
	}
	t.Run("content", func(t *testing.T) {
		sums := map[string]string{}
		tars := []*rawTar{{sums: sums}, {sums: sums}, {sums: sums}}
		cases := oddCases()
		want := map[string]string{".": ""}
		for _, c := range cases {
			for i, write := range c.layers {
				if write != nil {
					write(tars[i])
				}
			}
			for p, s := range c.want {
				if rest, ok := strings.CutPrefix(p, "/"); ok {
					want[rest] = s
				} else if p == "." {
					want[c.name] = s
				} else {
					want[c.name+"/"+p] = s
				}
			}
		}
		var ls []packedLayer
		for _, r := range tars {
			b := r.end()
			ls = append(ls, packedLayer{gz(b), b})
		}
		got, _ := pull(t, imageOf(ls...), "odd-content")
		checkTree(t, want, got, sums)
		t.Logf("%d cases, %d entries", len(cases), len(got))
	})
	t.Run("opaque root", func(t *testing.T) {
		one := made(func(r *rawTar) {
			r.dir(".", octal(fieldMode, 0o700))
			r.empty("old", "d/old")
		})
		two := made(func(r *rawTar) { r.empty("d/new", ".wh..wh..opq", "new") })
		got, outside := pull(t, imageOf(packedLayer{gz(one), one}, packedLayer{gz(two), two}), "opaque-root")
		checkTree(t, map[string]string{".": "dir mode=0700", "d": implied, "d/new": `file ""`, "new": `file ""`}, got, map[string]string{emptySum: ""})
		if d := cmp.Diff([]string{".", "log", "lost+found", "rootfs", "state"}, outside); d != "" {
			t.Errorf("beside the image's tree (-want +got):\n%s", d)
		}
	})
	t.Run("framing", func(t *testing.T) {
		sums := map[string]string{}
		want := map[string]string{".": ""}
		var ls []packedLayer
		for _, c := range oddFramings() {
			r := &rawTar{sums: sums}
			l := c.make(r)
			for p, s := range c.want {
				want[p] = s
			}
			ls = append(ls, l)
		}
		got, _ := pull(t, imageOf(ls...), "odd-framing")
		checkTree(t, want, got, sums)
	})
}

const emptySum = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

// oddFramings are whole layers whose archive or packing is odd.
func oddFramings() []struct {
	make func(r *rawTar) packedLayer
	want map[string]string
} {
	packed := func(b []byte) packedLayer { return packedLayer{gz(b), b} }
	named := func(name string) map[string]string { return map[string]string{name: fmt.Sprintf("file %q", name)} }
	type framing = struct {
		make func(r *rawTar) packedLayer
		want map[string]string
	}
	return []framing{
		{func(r *rawTar) packedLayer {
			r.typed("v7", 0, "v7", text(fieldMagic, ""))
			r.header("v7-dir/", 0, "", 0, text(fieldMagic, ""), octal(fieldMode, 0o755))
			return packed(r.end())
		}, map[string]string{"v7": `file "v7"`, "v7-dir": "dir"}},
		{func(r *rawTar) packedLayer {
			r.file(strings.Repeat("n", 100), "ustar", text(fieldPrefix, "ustar/prefix"))
			return packed(r.end())
		}, map[string]string{"ustar": implied, "ustar/prefix": implied, "ustar/prefix/" + strings.Repeat("n", 100): `file "ustar"`}},
		{func(r *rawTar) packedLayer {
			r.file("star", "star", text(fieldPrefix, "star-prefix"), text(span{476, 12}, "14542655377 "), text(span{488, 12}, "14542655377 "), text(span{508, 4}, "tar\x00"))
			return packed(r.end())
		}, map[string]string{"star-prefix": implied, "star-prefix/star": `file "star"`}},
		{func(r *rawTar) packedLayer {
			r.file("gnu", "gnu", text(fieldMagic, "ustar  \x00"))
			return packed(r.end())
		}, named("gnu")},
		{func(r *rawTar) packedLayer {
			r.file("no-end", "no-end")
			return packed(r.Bytes())
		}, named("no-end")},
		{func(r *rawTar) packedLayer {
			r.file("half-an-end", "half-an-end")
			r.Write(make([]byte, 512))
			return packed(r.Bytes())
		}, named("half-an-end")},
		{func(r *rawTar) packedLayer {
			r.file("garbage-after", "garbage-after")
			r.end()
			r.WriteString("garbage that is no whole record")
			return packed(r.Bytes())
		}, named("garbage-after")},
		{func(r *rawTar) packedLayer { // the second is not read, as by GNU tar without -i
			r.file("first-archive", "first-archive")
			r.end()
			r.file("second-archive", "second-archive")
			return packed(r.end())
		}, named("first-archive")},
		{func(r *rawTar) packedLayer { // RFC 1952, 2.2
			r.file("gzip-members", "gzip-members")
			b := r.end()
			var p []byte
			for _, part := range [][]byte{b[:100], nil, b[100:513], b[513:]} {
				p = append(p, gz(part)...)
			}
			return packedLayer{p, b}
		}, named("gzip-members")},
		{func(r *rawTar) packedLayer { // RFC 1952, 2.3: all optional fields
			r.file("gzip-fields", "gzip-fields")
			b := r.end()
			var w bytes.Buffer
			z := gzip.NewWriter(&w)
			z.Name, z.Comment, z.Extra, z.ModTime = "../../name", strings.Repeat("c", 200), make([]byte, 300), time.Unix(1, 0)
			z.Write(b)
			z.Close()
			return packedLayer{w.Bytes(), b}
		}, named("gzip-fields")},
		{func(r *rawTar) packedLayer { // RFC 8878, 3.1: frames, some to be skipped
			r.file("zstd-frames", "zstd-frames")
			b := r.end()
			skip := "\x5f\x2a\x4d\x18\x05\x00\x00\x00 skip"
			p := skip + string(zst(b[:700])) + skip + string(zst(b[700:])) + skip
			return packedLayer{[]byte(p), b}
		}, named("zstd-frames")},
		{func(r *rawTar) packedLayer {
			r.file("not-packed", "not-packed")
			return packedLayer{r.end(), r.Bytes()}
		}, named("not-packed")},
		{func(r *rawTar) packedLayer { // an extended header that nothing follows says nothing, as for Docker
			r.file("extended-last", "extended-last")
			r.pax("path=nothing")
			return packed(r.Bytes())
		}, named("extended-last")},
		{func(*rawTar) packedLayer { return packedLayer{} }, nil},
		{func(*rawTar) packedLayer { return packed(nil) }, nil},
		{func(*rawTar) packedLayer { return packedLayer{zst(nil), nil} }, nil},
		{func(r *rawTar) packedLayer { return packed(r.end()) }, nil},
		{func(r *rawTar) packedLayer {
			r.extended('g', paxRecord("comment=nothing else"))
			return packed(r.end())
		}, nil},
	}
}

func zst(b []byte) []byte {
	z, err := zstd.NewWriter(nil)
	if err != nil {
		panic(err)
	}
	defer z.Close()
	return z.EncodeAll(b, nil)
}

// describe says in one line what is not as it usually is.
func describe(e treecmp.Entry, sums map[string]string) string {
	s, mode := string(e.Type), uint32(0o644)
	switch e.Type {
	case treecmp.File:
		body, ok := sums[e.SHA256]
		if !ok {
			body = "unknown, sha256 " + e.SHA256
		}
		s += fmt.Sprintf(" %q", body)
	case treecmp.Dir:
		mode = 0o755
	case treecmp.Symlink:
		s, mode = s+fmt.Sprintf(" %q", e.Target), 0o777
	case treecmp.Char, treecmp.Block:
		s += fmt.Sprintf(" %d:%d", e.Major, e.Minor)
	}
	if e.Mode != mode {
		s += fmt.Sprintf(" mode=%04o", e.Mode)
	}
	if e.UID != 0 || e.GID != 0 {
		s += fmt.Sprintf(" owner=%d:%d", e.UID, e.GID)
	}
	if e.MtimeSec != now || e.MtimeNsec != 0 {
		s += fmt.Sprintf(" mtime=%d", e.MtimeSec)
		if e.MtimeNsec != 0 {
			s += fmt.Sprintf(".%09d", e.MtimeNsec)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(e.Xattrs)) {
		s += fmt.Sprintf(" %s=%q", k, e.Xattrs[k])
	}
	if e.Group != "" {
		s += " =" + e.Group
	}
	return s
}

// checkTree compares a tree with descriptions of its paths; an empty one is not
// compared.
func checkTree(t *testing.T, want map[string]string, tree []treecmp.Entry, sums map[string]string) {
	t.Helper()
	got := map[string]string{}
	for _, e := range tree {
		got[e.Path] = describe(e, sums)
		if w, ok := want[e.Path]; ok && w == "" {
			got[e.Path] = ""
		}
	}
	if maps.Equal(want, got) {
		return
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("tree (-want +got):\n%.8000s", d)
	}
}

// TestHostileLayers gives a store that has a good image every image that is bad.
// Each must fail with an error that says why, in bounded memory, and leave
// nothing.
func TestHostileLayers(t *testing.T) {
	long(t)
	e := testlab.Start(t, testlab.Options{NoBoot: true})
	spool := t.TempDir()
	store := e.Open(t, e.Client, &imagestore.Options{Bytes: 128 << 20, TempDir: spool}).Images()
	base := made(func(r *rawTar) { r.file("base/file", "of the layer that all images share") })
	filler := made(func(r *rawTar) { r.file("filler", "replaced by most cases") })
	image := func() *fake { return imageOf(packedLayer{gz(base), base}, packedLayer{gz(filler), filler}) }
	good := imageOf(packedLayer{gz(base), base})
	good.tag()
	img, err := store.Pull(t.Context(), good.m, "registry.example/good:x", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.Pull(t.Context(), good.m, "registry.example/good:x", nil); err != nil { // all that is made once is there
		t.Fatal(err)
	}
	before := contentsOf(t, e.Datastore())
	goroutines := runtime.NumGoroutine()
	var worst uint64
	cases := slices.Concat(hostileHeaders(), hostileEntries(), hostilePacking(), hostileManifests())
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			f := image()
			c.spoil(f)
			f.tag()
			var err error
			grown := heapGrowth(func() {
				_, err = store.Pull(t.Context(), f.m, "registry.example/hostile:x", nil)
			})
			t.Logf("heap +%d MB: %v", grown>>20, err)
			if err == nil || !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("want an error of kind %v with %q", c.kind, c.text)
			}
			if err != nil && len(err.Error()) > 1500 {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
			if worst = max(worst, grown); grown > heapBound {
				t.Errorf("the heap grew by %d MB, more than %d", grown>>20, heapBound>>20)
			}
			after := contentsOf(t, e.Datastore())
			if d := cmp.Diff(before, after); d != "" {
				t.Errorf("the datastore changed (-before +after):\n%s", d)
			}
			before = after // what one case did wrong is not the next one's fault
			if left, err := os.ReadDir(spool); err != nil || len(left) > 0 {
				t.Errorf("temporary files: %v, %v", left, err)
			}
		})
	}
	t.Logf("%d cases; the heap grew by %d MB at most", len(cases), worst>>20)
	// A few connections may be kept open; one left by each case would be many.
	for deadline := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > goroutines+12; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<20)
			t.Fatalf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), goroutines, buf[:runtime.Stack(buf, true)])
		}
	}
	if os.Geteuid() == 0 {
		tree, _ := wholeTree(t, e.Local(t, img.Root().Path))
		if len(tree) != 3 {
			t.Errorf("the good image has %d entries, not 3", len(tree))
		}
	}
}

// contentsOf lists all below a directory, files with their hashes.
func contentsOf(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		out[rel] = d.Type().String()
		if d.Type().IsRegular() {
			info, err := d.Info()
			if err != nil {
				return err
			}
			out[rel] = fmt.Sprintf("%d bytes", info.Size())
			if info.Size() < 64<<20 { // but not the base disk, which is empty and only its size
				b, err := os.ReadFile(p)
				if err != nil {
					return err
				}
				out[rel] = fmt.Sprintf("%x", sha256.Sum256(b))
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// heapGrowth measures by how much the heap grows at most while something is
// done, garbage included.
func heapGrowth(do func()) uint64 {
	runtime.GC()
	read := func() uint64 {
		s := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
		metrics.Read(s)
		return s[0].Value.Uint64()
	}
	start := read()
	stop, peak := make(chan struct{}), make(chan uint64)
	go func() {
		most := start
		for {
			select {
			case <-stop:
				peak <- max(most, read())
				return
			case <-time.After(time.Millisecond):
				most = max(most, read())
			}
		}
	}()
	do()
	close(stop)
	return max(start, <-peak) - start
}

// hostile is an image that a case makes bad: its second layer, by replace, or
// its documents.
type hostile struct {
	name  string
	kind  error
	text  string
	spoil func(f *fake)
}
