package imagestore_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vicsdk/vic-go/internal/testimage"
	"github.com/vicsdk/vic-go/internal/testlab"
	"github.com/vicsdk/vic-go/internal/treecmp"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/imagestore"
)

// The tree of an image that is exported and imported is the same, as the kernel
// sees it and as GNU tar unpacks it; and the history tells of it.
func TestExportImport(t *testing.T) {
	long(t)
	e := testlab.Start(t, testlab.Options{NoBoot: true})
	store := e.Open(t, e.Client, &imagestore.Options{Bytes: 128 << 20}).Images()
	layout, err := testimage.Demo(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	img, err := store.Pull(t.Context(), onDisk(layout), "a.example/demo:v1", nil)
	if err != nil {
		t.Fatal(err)
	}
	var flat, sparse bytes.Buffer
	if err := store.Export(t.Context(), img.Root(), &flat, nil); err != nil {
		t.Fatal(err)
	}
	if err := store.Export(t.Context(), img.Root(), &sparse, &imagestore.ExportOptions{Sparse: true}); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d bytes, %d with holes", flat.Len(), sparse.Len())
	var own []treecmp.Entry
	if os.Geteuid() == 0 {
		own = flattened(t, e.Local(t, img.Root().Path))
	}
	for name, b := range map[string][]byte{"plain": flat.Bytes(), "sparse": sparse.Bytes(), "gzip": gz(flat.Bytes())} {
		back, err := store.Import(t.Context(), bytes.NewReader(b), "a.example/flat:"+name, &imagestore.ImportOptions{ConfigOptions: imagestore.ConfigOptions{
			Comment: "imported", Changes: imagestore.Changes{Cmd: []string{"sh"}},
		}})
		if err != nil {
			t.Fatal(err)
		}
		if len(back.Layers()) != 1 || back.Config().Cmd[0] != "sh" {
			t.Errorf("%s: %+v", name, back)
		}
		if os.Geteuid() == 0 {
			sameTree(t, own, flattened(t, e.Local(t, back.Root().Path)))
		}
		h, err := store.History(t.Context(), back)
		if err != nil || len(h) != 1 || h[0].Comment != "imported" || name != "gzip" && h[0].Bytes != int64(len(b)) || h[0].DiffID != back.Details().RootFS.DiffIDs[0] {
			t.Errorf("%s: history %+v, %v", name, h, err)
		}
	}
	if os.Geteuid() == 0 {
		dir := filepath.Join(t.TempDir(), "tree")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		file := dir + ".tar"
		if err := os.WriteFile(file, flat.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		command(t, "tar", "-C", dir, "--numeric-owner", "--same-owner", "--same-permissions", "--xattrs", "--xattrs-include=*", "-xf", file)
		list, err := treecmp.List(dir)
		if err != nil {
			t.Fatal(err)
		}
		sameTree(t, own, list)
	}
}

func TestImportRefuses(t *testing.T) {
	e := testlab.Start(t, testlab.Options{NoBoot: true})
	store := e.Open(t, e.Client, &imagestore.Options{Bytes: 128 << 20}).Images()
	for _, c := range []struct {
		name, image string
		r           io.Reader
		o           imagestore.ImportOptions
		kind        error
		text        string
	}{
		{"no tar", "a.example/b:c", strings.NewReader(strings.Repeat("no tar ", 300)), imagestore.ImportOptions{}, vic.ErrInvalid, "layer 1"},
		{"a bomb", "a.example/b:c", bytes.NewReader(bomb(2 << 30)), imagestore.ImportOptions{}, vic.ErrInvalid, "more than"},
		{"too large", "a.example/b:c", bytes.NewReader(oneFile("f", noise(1, 130<<20))), imagestore.ImportOptions{}, vic.ErrNoSpace, "Bytes"},
		{"no tag", "a.example/b", strings.NewReader(""), imagestore.ImportOptions{}, vic.ErrInvalid, "tag"},
		{"a digest", "a.example/b@sha256:" + strings.Repeat("0", 64), strings.NewReader(""), imagestore.ImportOptions{}, vic.ErrInvalid, "REPOSITORY:TAG"},
		{"instruction", "a.example/b:c", strings.NewReader(""), imagestore.ImportOptions{ConfigOptions: imagestore.ConfigOptions{Instructions: []string{"RUN x"}}}, vic.ErrUnsupported, "RUN"},
	} {
		_, err := store.Import(t.Context(), c.r, c.image, &c.o)
		if !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v; want one of kind %v with %q", c.name, err, c.kind, c.text)
		}
	}
	if all, err := store.List(t.Context()); err != nil || len(all) > 0 {
		t.Errorf("%v, %v", all, err)
	}
}

func TestTagAndHistory(t *testing.T) {
	e := testlab.Start(t, testlab.Options{NoBoot: true})
	store := e.Open(t, e.Client, &imagestore.Options{Bytes: 128 << 20}).Images()
	layout, err := testimage.Demo(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	img, err := store.Pull(t.Context(), onDisk(layout), "a.example/demo:v1", nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Tag(t.Context(), "a.example/demo:v1", "b.example/other:v2"); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Delete(t.Context(), "a.example/demo:v1", nil); err != nil {
		t.Fatal(err)
	}
	other, err := store.Image(t.Context(), "b.example/other:v2")
	if err != nil || other.Digest() != img.Digest() || other.Root() != img.Root() {
		t.Fatalf("%+v, %v", other, err)
	}
	for name, kind := range map[string]error{"b.example/other": vic.ErrInvalid, ":x": vic.ErrInvalid, "b.example/x@sha256:" + strings.Repeat("1", 64): vic.ErrInvalid} {
		if err := store.Tag(t.Context(), "b.example/other:v2", name); !errors.Is(err, kind) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := store.Tag(t.Context(), "a.example/demo:v1", "b.example/x:y"); !errors.Is(err, vic.ErrNotFound) {
		t.Error(err)
	}
	h, err := store.History(t.Context(), other)
	if err != nil {
		t.Fatal(err)
	}
	_, m, config := load(t, layout)
	if len(h) != len(config.History) {
		t.Fatalf("%d steps, not %d", len(h), len(config.History))
	}
	n := 0
	for i, c := range config.History {
		got := h[len(h)-1-i]
		if got.CreatedBy != c.CreatedBy || (got.DiffID == "") != c.EmptyLayer {
			t.Errorf("step %d: %+v; want %+v", i, got, c)
		}
		if !c.EmptyLayer {
			if got.DiffID != config.RootFS.DiffIDs[n] || got.Packed != m.Layers[n].Size || got.Bytes < 1024 {
				t.Errorf("step %d: %+v", i, got)
			}
			n++
		}
	}
}
