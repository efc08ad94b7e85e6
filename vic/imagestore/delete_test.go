package imagestore_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/vicsdk/vic-go/internal/testlab"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/containervm"
	"github.com/vicsdk/vic-go/vic/imagestore"
)

const small = 128 << 20

// tagImage puts an image into a repository in memory, with a layer for each text.
func (m *memory) tagImage(tag string, change func(*ocispec.Image), layers ...string) digest.Digest {
	f := &fake{m: m}
	f.config = ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}, RootFS: ocispec.RootFS{Type: "layers"}}
	f.config.Config.Cmd = []string{"sh"}
	if change != nil {
		change(&f.config)
	}
	for i, text := range layers {
		t := oneFile(fmt.Sprintf("file%d", i), text)
		f.config.RootFS.DiffIDs = append(f.config.RootFS.DiffIDs, digest.FromBytes(t))
		f.manifest.Layers = append(f.manifest.Layers, m.put(ocispec.MediaTypeImageLayerGzip, gz(t)))
	}
	f.tag()
	m.tags[tag] = m.tags["x"]
	return m.tags[tag].Digest
}

func newMemory() *memory {
	return &memory{tags: map[string]ocispec.Descriptor{}, blobs: map[digest.Digest][]byte{}}
}

const repo = "registry.example/app:"

func pull(t *testing.T, s *imagestore.Store, m *memory, tag string) *imagestore.Image {
	t.Helper()
	img, err := s.Pull(t.Context(), m, repo+tag, nil)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// storeFiles lists the store's directories, without what the datastore and the
// VCH have besides.
func storeFiles(t *testing.T, e *testlab.Env, elem ...string) []string {
	t.Helper()
	es, err := os.ReadDir(filepath.Join(append([]string{e.Datastore(), "vic/images"}, elem...)...))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	var out []string
	for _, x := range es {
		out = append(out, x.Name())
	}
	return out
}

func layerDirs(s *imagestore.Store, images ...*imagestore.Image) []string {
	out := []string{fmt.Sprintf("base-%dm-v%s", small>>20, "")}
	for _, i := range images {
		out = append(out, s.LayerDirs(i)...)
	}
	// The base has the suffix of all others.
	_, suffix, _ := strings.Cut(out[1], "-")
	out[0] = "base-" + suffix
	slices.Sort(out)
	return slices.Compact(out)
}

func wantLayers(t *testing.T, e *testlab.Env, s *imagestore.Store, images ...*imagestore.Image) {
	t.Helper()
	var want []string
	if len(images) > 0 {
		want = layerDirs(s, images...)
	}
	if d := cmp.Diff(want, storeFiles(t, e, "layers")); d != "" {
		t.Errorf("layers (-want +got):\n%s", d)
	}
	if left := storeFiles(t, e, "leases"); len(left) > 0 {
		t.Errorf("leases are left: %v", left)
	}
}

// container makes a container of an image, that nobody starts.
func container(t *testing.T, e *testlab.Env, name string, img *imagestore.Image) *containervm.VM {
	t.Helper()
	vm, err := containervm.Create(t.Context(), e.Client, containervm.Spec{
		Owner: e.Engine.VCH().Owner(), Name: name, Root: img.Root(), Image: img.Config(), ImageName: img.Name()})
	if err != nil {
		t.Fatal(err)
	}
	return vm
}

func openStore(t *testing.T, e *testlab.Env, lease time.Duration) *imagestore.Store {
	t.Helper()
	o := imagestore.Options{Bytes: small}
	if lease > 0 {
		o = *imagestore.WithLeaseTime(o, lease)
	}
	s, err := imagestore.Open(t.Context(), e.Client, e.Engine.VCH().Images(), &o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestDelete(t *testing.T) {
	e := testlab.Start(t, testlab.Options{NoBoot: true})
	s, m := openStore(t, e, 0), newMemory()
	m.tagImage("a", nil, "shared", "only a")
	m.tagImage("b", nil, "shared", "only b")
	m.tagImage("c", func(i *ocispec.Image) { i.Config.Cmd = []string{"other"} }, "shared", "only b") // b's disk
	a, b, c := pull(t, s, m, "a"), pull(t, s, m, "b"), pull(t, s, m, "c")
	m.tags["a2"] = m.tags["a"]
	pull(t, s, m, "a2")
	wantLayers(t, e, s, a, b)

	for name, want := range map[string]digest.Digest{
		repo + "a":                                    a.Digest(),
		a.Digest().String():                           a.Digest(),
		a.Digest().Encoded()[:8]:                      a.Digest(),
		"sha256:" + a.Digest().Encoded()[:9]:          a.Digest(),
		"registry.example/app@" + b.Digest().String(): b.Digest(),
	} {
		if i, err := s.Find(t.Context(), name); err != nil || i.Digest() != want {
			t.Errorf("find %s: %v", name, err)
		}
	}
	for _, name := range []string{"registry.example/app@sha256:" + strings.Repeat("0", 64), "registry.example/ap@" + b.Digest().String(), repo + "none", "abc", "zzzz"} {
		if _, err := s.Find(t.Context(), name); !errors.Is(err, vic.ErrNotFound) {
			t.Errorf("find %s: %v", name, err)
		}
		if d, err := s.Delete(t.Context(), name, nil); err != nil || len(d.Untagged)+len(d.Images)+len(d.Layers) > 0 {
			t.Errorf("delete %s: %+v, %v", name, d, err)
		}
	}

	// One of two names.
	if d, err := s.Delete(t.Context(), repo+"a2", nil); err != nil || !slices.Equal(d.Untagged, []string{repo + "a2"}) || len(d.Images)+len(d.Layers) > 0 {
		t.Errorf("%+v, %v", d, err)
	}
	pull(t, s, m, "a2")
	if _, err := s.Delete(t.Context(), a.Digest().String(), nil); !errors.Is(err, vic.ErrConflict) || !strings.Contains(err.Error(), repo+"a2") {
		t.Errorf("by digest with two names: %v", err)
	}
	d, err := s.Delete(t.Context(), a.Digest().Encoded()[:12], &imagestore.DeleteOptions{Force: true})
	if err != nil || len(d.Untagged) != 2 || len(d.Images) != 1 || len(d.Layers) != 1 || d.Bytes < 1000 {
		t.Errorf("%+v, %v", d, err)
	}
	wantLayers(t, e, s, b)

	// In use. c stands on the same disk.
	vm := container(t, e, "user", b)
	for _, i := range []*imagestore.Image{b, c} {
		for _, name := range []string{i.Name(), i.Digest().String()} {
			if _, err := s.Delete(t.Context(), name, nil); !errors.Is(err, vic.ErrInUse) || !strings.Contains(err.Error(), "user") {
				t.Errorf("delete %s, which is in use: %v", name, err)
			}
		}
	}
	// What another image stands on is not in use for that; its layers stay.
	m.tagImage("lower", nil, "shared")
	lower := pull(t, s, m, "lower")
	if d, err := s.Delete(t.Context(), lower.Name(), nil); err != nil || len(d.Images) != 1 || len(d.Layers) > 0 {
		t.Errorf("%+v, %v", d, err)
	}
	if d, err := s.Delete(t.Context(), c.Name(), &imagestore.DeleteOptions{Force: true}); err != nil || len(d.Untagged) != 1 || len(d.Images) > 0 {
		t.Errorf("forced: %+v, %v", d, err)
	}
	if d, err := s.Dangling(t.Context()); err != nil || len(d) != 1 || d[0].Digest() != c.Digest() || d[0].Name() != "" {
		t.Errorf("dangling: %v, %v", d, err)
	}
	if d, err := s.Prune(t.Context(), &imagestore.PruneOptions{All: true}); err != nil || len(d.Images) > 0 {
		t.Errorf("pruned what is in use: %+v, %v", d, err)
	}
	if i, err := s.Find(t.Context(), c.Digest().Encoded()[:10]); err != nil || i.Digest() != c.Digest() || !bytes.Equal([]byte(i.Config().Cmd[0]), []byte("other")) {
		t.Errorf("found: %v", err)
	}
	if err := vm.Delete(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if d, err := s.Prune(t.Context(), nil); err != nil || len(d.Images) != 1 || d.Images[0] != c.Digest() || len(d.Layers) > 0 {
		t.Errorf("pruned: %+v, %v", d, err)
	}
	if d, err := s.Prune(t.Context(), &imagestore.PruneOptions{All: true}); err != nil || len(d.Images) != 1 || len(d.Untagged) != 1 || len(d.Layers) != 3 {
		t.Errorf("pruned: %+v, %v", d, err)
	}
	wantLayers(t, e, s)
}

// A tag that is pulled again leaves its old image without a name.
func TestDanglingAndPrune(t *testing.T) {
	e := testlab.Start(t, testlab.Options{NoBoot: true})
	s, m := openStore(t, e, 0), newMemory()
	at := func(day int, label string) func(*ocispec.Image) {
		return func(i *ocispec.Image) {
			c := time.Date(2025, 6, day, 12, 0, 0, 0, time.UTC)
			i.Created = &c
			i.Config.Labels = map[string]string{"stage": label}
		}
	}
	m.tagImage("latest", at(1, "build"), "shared", "one")
	one := pull(t, s, m, "latest")
	m.tagImage("latest", at(2, "test"), "shared", "two")
	two := pull(t, s, m, "latest")
	m.tagImage("latest", at(3, "test"), "shared", "three")
	three := pull(t, s, m, "latest")
	vm := container(t, e, "old", one)

	u, err := s.Usage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(u.Images) != 3 || u.Layers != 5 || u.Unreferenced != 0 || !slices.Equal(u.Images[0].Names, []string{repo + "latest"}) || len(u.Images[1].Names) > 0 {
		t.Errorf("usage: %+v", u)
	}
	var unique, total int64
	for _, i := range u.Images {
		unique += i.Unique
		total = i.Shared
		if i.Unique == 0 || i.Shared == 0 || (i.Digest == one.Digest()) != (len(i.Containers) == 1) {
			t.Errorf("usage: %+v", i)
		}
	}
	if unique+total != u.Bytes {
		t.Errorf("%d unique and %d shared are not all %d bytes", unique, total, u.Bytes)
	}
	// What the records say is what the files take.
	var disk int64
	for _, f := range e.Files(t) {
		if strings.Contains(f, "vic/images/layers/") && (strings.HasSuffix(f, "layer-delta.vmdk") || strings.HasSuffix(f, "/index")) {
			st, err := os.Stat(filepath.Join(e.Datastore(), f))
			if err != nil {
				t.Fatal(err)
			}
			disk += st.Size()
		}
	}
	if disk != u.Bytes {
		t.Errorf("the files take %d bytes, the store says %d", disk, u.Bytes)
	}

	for _, f := range [][]string{{"label=stage=prod"}, {"label!=stage"}, {"until=2025-06-01"}, {"label=none"}} {
		o, err := imagestore.ParsePruneFilters(f, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		if d, err := s.Prune(t.Context(), o); err != nil || len(d.Images) > 0 {
			t.Errorf("%v: %+v, %v", f, d, err)
		}
	}
	// one is used by a container, three has a name.
	o, err := imagestore.ParsePruneFilters([]string{"until=2025-06-02T13:00", "label=stage=test"}, time.Now().UTC())
	if err != nil {
		t.Fatal(err)
	}
	d, err := s.Prune(t.Context(), o)
	if err != nil || !slices.Equal(d.Images, []digest.Digest{two.Digest()}) || len(d.Layers) != 1 || len(d.Untagged) > 0 {
		t.Errorf("%+v, %v", d, err)
	}
	wantLayers(t, e, s, one, three)
	if err := vm.Delete(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if d, err := s.Prune(t.Context(), nil); err != nil || len(d.Images) != 1 {
		t.Errorf("%+v, %v", d, err)
	}
	wantLayers(t, e, s, three)
}

func TestPruneFilters(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, c := range []struct {
		in   []string
		want *imagestore.PruneOptions
	}{
		{nil, &imagestore.PruneOptions{}},
		{[]string{"dangling=false", "label=a", "label=b=c", "label!=d"}, &imagestore.PruneOptions{All: true, Labels: []string{"a", "b=c"}, NotLabels: []string{"d"}}},
		{[]string{"until=24h"}, &imagestore.PruneOptions{Until: now.Add(-24 * time.Hour)}},
		{[]string{"until=1767323045"}, &imagestore.PruneOptions{Until: now}},
		{[]string{"until=2026-01-02T03:04:05Z"}, &imagestore.PruneOptions{Until: now}},
		{[]string{"until=2026-01-02"}, &imagestore.PruneOptions{Until: now.Truncate(24 * time.Hour)}},
		{[]string{"until=yesterday"}, nil}, {[]string{"until=1h", "until=2h"}, nil}, {[]string{"dangling=perhaps"}, nil},
		{[]string{"before=x"}, nil}, {[]string{"label"}, nil}, {[]string{"label="}, nil},
	} {
		got, err := imagestore.ParsePruneFilters(c.in, now)
		if c.want == nil {
			if !errors.Is(err, vic.ErrInvalid) {
				t.Errorf("%v: %+v, %v", c.in, got, err)
			}
			continue
		}
		if d := cmp.Diff(c.want, got); d != "" || err != nil {
			t.Errorf("%v: %v, (-want +got):\n%s", c.in, err, d)
		}
	}
}

// What cannot be understood is not deleted, nor is anything that it may need.
func TestDamagedRecords(t *testing.T) {
	e := testlab.Start(t, testlab.Options{NoBoot: true})
	s, m := openStore(t, e, 0), newMemory()
	m.tagImage("a", nil, "one", "two")
	img := pull(t, s, m, "a")
	for _, f := range []string{"names/" + strings.Repeat("0", 64) + ".json", "images/" + strings.Repeat("0", 64) + ".json", "layers/" + s.LayerDirs(img)[0] + "/layer.json"} {
		p := filepath.Join(e.Datastore(), "vic/images", f)
		was, _ := os.ReadFile(p)
		if err := os.WriteFile(p, []byte(`{"version":7}`), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := s.GC(t.Context()); err == nil {
			t.Errorf("with %s", f)
		}
		if was == nil {
			_ = os.Remove(p)
		} else if err := os.WriteFile(p, was, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if d, err := s.GC(t.Context()); err != nil || len(d.Layers) > 0 {
		t.Errorf("%+v, %v", d, err)
	}
	wantLayers(t, e, s, img)
}

// Layers of a pull that failed stay for the next try, until a GC.
func TestGCOfWhatAFailedPullLeft(t *testing.T) {
	e := testlab.Start(t, testlab.Options{NoBoot: true})
	s, m := openStore(t, e, 0), newMemory()
	m.tagImage("a", nil, "one", "two")
	m.tagImage("b", nil, "one")
	f := &fake{m: m}
	f.config = ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}, RootFS: ocispec.RootFS{Type: "layers"}}
	for i, text := range []string{"one", "broken"} {
		b := oneFile(fmt.Sprintf("file%d", i), text)
		f.config.RootFS.DiffIDs = append(f.config.RootFS.DiffIDs, digest.FromBytes(b))
		f.manifest.Layers = append(f.manifest.Layers, m.put(ocispec.MediaTypeImageLayerGzip, gz(b)))
	}
	f.config.RootFS.DiffIDs[1] = digest.FromString("something else")
	f.tag()
	if _, err := s.Pull(t.Context(), m, repo+"x", nil); !errors.Is(err, vic.ErrInvalid) {
		t.Fatal(err)
	}
	if l := storeFiles(t, e, "layers"); len(l) > 2 {
		t.Errorf("a failed pull left %v", l)
	}
	if d, err := s.GC(t.Context()); err != nil || len(storeFiles(t, e, "layers")) > 0 {
		t.Errorf("%+v, %v", d, err)
	}
	a := pull(t, s, m, "a")
	wantLayers(t, e, s, a)
}
