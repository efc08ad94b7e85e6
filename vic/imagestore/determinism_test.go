package imagestore_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/gzip"

	"github.com/vicsdk/vic-go/internal/seeded"
	"github.com/vicsdk/vic-go/internal/testlab"
	"github.com/vicsdk/vic-go/vic/imagestore"
)

// TestSameBytes pulls images that share layers into several stores, packed in
// every way, with one worker and with eight, one after the other in any order and
// all at once: every file of every layer has the same bytes in all of them, and
// those that other architectures make of the layers.
func TestSameBytes(t *testing.T) {
	long(t)
	e := testlab.Start(t, testlab.Options{NoBoot: true})
	tars := seeded.Layers()
	whole, n := tars, len(tars)
	branch := made(func(r *rawTar) { r.file("branch", "of another image"); r.empty("crowd/.wh..wh..opq") })
	image := func(pack func([]byte) []byte, tars ...[]byte) *fake {
		var ls []packedLayer
		for _, b := range tars {
			ls = append(ls, packedLayer{pack(b), b})
		}
		f := imageOf(ls...)
		f.tag()
		return f
	}
	images := func(pack func([]byte) []byte) map[string]*fake {
		return map[string]*fake{
			"whole": image(pack, whole...), "half": image(pack, whole[:n/2]...),
			"branch": image(pack, append(append([][]byte{}, whole[:2]...), branch)...),
			"again":  image(pack, append(append([][]byte{}, whole[:3]...), branch)...),
		}
	}
	plain := func(b []byte) []byte { return b }
	var first map[string]string
	for _, c := range []struct {
		name    string
		pack    func([]byte) []byte
		workers int
		order   []string // nil for all at once
	}{
		{"gzip-1", quick, 1, []string{"whole", "half", "branch", "again"}},
		{"zstd-8", zst, 8, []string{"again", "branch", "half", "whole"}},
		{"plain-1", plain, 1, []string{"half", "again", "whole", "branch"}},
		{"gzip-8-at-once", quick, 8, nil},
		{"plain-8-at-once", plain, 8, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			store, err := imagestore.OpenNamed(t.Context(), e.Client, "datastore1/"+c.name, &imagestore.Options{Bytes: seeded.Bytes, Workers: c.workers})
			if err != nil {
				t.Fatal(err)
			}
			all := images(once(c.pack))
			pull := func(name string) {
				if _, err := store.Pull(t.Context(), all[name].m, "registry.example/"+name+":x", nil); err != nil {
					t.Error(err)
				}
			}
			for _, name := range c.order {
				pull(name)
			}
			if c.order == nil {
				var wg sync.WaitGroup
				for name := range all {
					wg.Go(func() { pull(name) })
				}
				wg.Wait()
			}
			got := layerSums(t, filepath.Join(e.Datastore(), c.name, "layers"))
			if want := 4 * (n + 2); len(got) != want {
				t.Errorf("%d files of layers, not %d", len(got), want)
			}
			if first == nil {
				first = got
			}
			if d := cmp.Diff(first, got); d != "" {
				t.Errorf("another store has other bytes (-first +%s):\n%s", c.name, d)
			}
		})
	}
	elsewhere := seeded.Sums()
	for i := range n {
		for file, what := range map[string]string{"layer-delta.vmdk": "extent", "index": "index"} {
			sum := elsewhere[fmt.Sprintf("layer %d %s", i+1, what)]
			found := false
			for name, s := range first {
				found = found || s == sum && filepath.Base(name) == file
			}
			if !found {
				t.Errorf("layer %d: no %s has the bytes that package seeded knows", i+1, file)
			}
		}
	}
}

// quick is gzip that does not try hard: half of the layers is noise.
func quick(b []byte) []byte {
	var w bytes.Buffer
	z, err := gzip.NewWriterLevel(&w, gzip.HuffmanOnly)
	if err != nil {
		panic(err)
	}
	z.Write(b)
	z.Close()
	return w.Bytes()
}

// once packs each layer once, however many images have it.
func once(pack func([]byte) []byte) func([]byte) []byte {
	packed := map[*byte][]byte{}
	return func(b []byte) []byte {
		p, ok := packed[&b[0]]
		if !ok {
			p = pack(b)
			packed[&b[0]] = p
		}
		return p
	}
}

// layerSums hashes the files of every layer but the base, whose parent vSphere
// makes.
func layerSums(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	names, err := filepath.Glob(filepath.Join(dir, "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		rel, _ := filepath.Rel(dir, name)
		if strings.HasPrefix(rel, "base-") || filepath.Base(rel) == "layer.json" {
			continue
		}
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		out[rel] = fmt.Sprintf("%x", sha256.Sum256(b))
	}
	return out
}
