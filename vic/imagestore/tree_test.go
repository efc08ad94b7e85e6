package imagestore_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/vicsdk/vic-go/internal/testimage"
	"github.com/vicsdk/vic-go/internal/testlab"
	"github.com/vicsdk/vic-go/internal/treecmp"
	"github.com/vicsdk/vic-go/vic/imagestore"
)

// The tree after every layer, read by the kernel from the chain that qemu-img
// flattened, is the tree that umoci extracts.
func TestTreeAfterEveryLayer(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root, to mount and to extract owners and devices")
		}
		t.Skip("needs root, to mount and to extract owners and devices")
	}
	for _, kind := range []struct {
		name string
		lab  testlab.Options
		most int // regular files
	}{
		{"upload", testlab.Options{NoBoot: true}, 1 << 20},
		{"apply", testlab.Options{Lab: native}, 5000},
	} {
		t.Run(kind.name, func(t *testing.T) { treeAfterEveryLayer(t, testlab.Start(t, kind.lab), kind.most) })
	}
}

func treeAfterEveryLayer(t *testing.T, e *testlab.Env, most int) {
	for _, c := range []struct {
		name  string
		build func(context.Context) (string, error)
		// qemu-img asks for the state of each sector: a smaller disk takes it
		// seconds instead of minutes.
		bytes int64
		least int // regular files
	}{
		{"demo", func(ctx context.Context) (string, error) { return testimage.Demo(ctx, "") }, 128 << 20, 1000},
		{"python", func(ctx context.Context) (string, error) {
			return testimage.Debian(ctx, "", "python3", "python3-pip")
		}, 512 << 20, 10000},
	} {
		if c.least > most {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			if os.Getenv("VIC_SOAK") == "" && c.least > 5000 {
				t.Skip("takes minutes: make soak has it")
			}
			layout, err := c.build(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			eng := e.Open(t, e.Client, &imagestore.Options{Bytes: c.bytes})
			n := layerCount(t, layout)
			first := 1
			if os.Getenv("VIC_SOAK") == "" && most < 1<<20 {
				first = n // QEMU's tools take half a minute for each.
			}
			for i := first; i <= n; i++ {
				cut := truncate(t, layout, i)
				want := reference(t, cut)
				name := e.Push(t, cut, fmt.Sprintf("%s:upto%d", c.name, i))
				img, err := eng.Pull(t.Context(), name, nil)
				if err != nil {
					t.Fatal(err)
				}
				got := flattened(t, e.Local(t, img.Root().Path))
				diffs := treecmp.Diff(want, got)
				t.Logf("layer %d of %d: %d entries, %d differences", i, n, len(want), len(diffs))
				for _, d := range diffs[:min(len(diffs), 20)] {
					t.Error(d)
				}
				if files := regular(want); i == n && files < c.least {
					t.Errorf("the image has %d files, not %d", files, c.least)
				}
			}
		})
	}
}

func regular(list []treecmp.Entry) (n int) {
	for _, e := range list {
		if e.Type == treecmp.File {
			n++
		}
	}
	return n
}

func layerCount(t *testing.T, layout string) int {
	_, m, _ := load(t, layout)
	return len(m.Layers)
}

// load reads an OCI layout's image "latest".
func load(t *testing.T, layout string) (ocispec.Index, ocispec.Manifest, ocispec.Image) {
	t.Helper()
	var idx ocispec.Index
	readJSON(t, filepath.Join(layout, "index.json"), &idx)
	var m ocispec.Manifest
	var c ocispec.Image
	for _, d := range idx.Manifests {
		if d.Annotations[ocispec.AnnotationRefName] == "latest" {
			readJSON(t, blob(layout, d.Digest), &m)
		}
	}
	readJSON(t, blob(layout, m.Config.Digest), &c)
	return idx, m, c
}

func blob(layout string, d digest.Digest) string {
	return filepath.Join(layout, "blobs", d.Algorithm().String(), d.Encoded())
}

func readJSON(t *testing.T, file string, v any) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(b, v)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// truncate makes a layout of the image's first n layers.
func truncate(t *testing.T, layout string, n int) string {
	t.Helper()
	_, m, c := load(t, layout)
	dir := t.TempDir()
	m.Layers = m.Layers[:n]
	c.RootFS.DiffIDs = c.RootFS.DiffIDs[:n]
	c.History = nil
	for _, l := range m.Layers {
		if err := os.MkdirAll(filepath.Dir(blob(dir, l.Digest)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(blob(layout, l.Digest), blob(dir, l.Digest)); err != nil && !os.IsExist(err) {
			t.Fatal(err)
		}
	}
	put := func(mediaType string, v any) ocispec.Descriptor {
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
		if err := os.WriteFile(blob(dir, d.Digest), b, 0o644); err != nil {
			t.Fatal(err)
		}
		return d
	}
	m.Config = put(ocispec.MediaTypeImageConfig, c)
	d := put(ocispec.MediaTypeImageManifest, m)
	d.Annotations = map[string]string{ocispec.AnnotationRefName: "latest"}
	b, err := json.Marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{d}})
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{"index.json": b, ocispec.ImageLayoutFile: []byte(`{"imageLayoutVersion":"1.0.0"}`)} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// reference extracts an image with umoci.
func reference(t *testing.T, layout string) []treecmp.Entry {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "bundle")
	if err := treecmp.Reference(t.Context(), layout, dir); err != nil {
		t.Fatal(err)
	}
	list, err := treecmp.List(filepath.Join(dir, "rootfs"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	return list
}

// flattened checks a chain with QEMU and e2fsck, and lists its tree as the
// kernel sees it.
func flattened(t *testing.T, vmdk string) []treecmp.Entry {
	t.Helper()
	tree, _ := wholeTree(t, vmdk)
	return tree
}

// wholeChain spells a chain for QEMU's tools, to which the hints of ESXi's kind
// mean nothing on this machine.
func wholeChain(t *testing.T, vmdk string) string {
	t.Helper()
	b, err := json.Marshal(chainNode(t, vmdk))
	if err != nil {
		t.Fatal(err)
	}
	return "json:" + string(b)
}

// chainNode is a chain as QEMU's block graph has it.
func chainNode(t *testing.T, vmdk string) map[string]any {
	t.Helper()
	root, _, ok := strings.Cut(vmdk, "/datastores/")
	if !ok {
		t.Fatalf("%s is on no datastore", vmdk)
	}
	var node func(file string) map[string]any
	node = func(file string) map[string]any {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		n := map[string]any{"driver": "vmdk", "file": map[string]any{"driver": "file", "filename": file}}
		for line := range strings.Lines(string(b)) {
			hint, ok := strings.CutPrefix(strings.TrimSpace(line), "parentFileNameHint=")
			if !ok {
				continue
			}
			hint = strings.Trim(hint, `"`)
			if rest, ok := strings.CutPrefix(hint, "/vmfs/volumes/"); ok {
				n["backing"] = node(filepath.Join(root, "datastores", rest))
			} else {
				n["backing"] = node(filepath.Join(filepath.Dir(file), hint))
			}
		}
		return n
	}
	return node(vmdk)
}

func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func latest(index []byte) (ocispec.Descriptor, error) {
	var idx ocispec.Index
	if err := json.Unmarshal(index, &idx); err != nil {
		return ocispec.Descriptor{}, err
	}
	for _, d := range idx.Manifests {
		if d.Annotations[ocispec.AnnotationRefName] == "latest" {
			return d, nil
		}
	}
	return ocispec.Descriptor{}, os.ErrNotExist
}
