package treecmp_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/vicsdk/vic-go/internal/testimage"
	"github.com/vicsdk/vic-go/internal/treecmp"
)

func TestReference(t *testing.T) {
	needRoot(t)
	need(t, "umoci")
	layout := t.TempDir()
	base, change := testimage.NewLayer(), testimage.NewLayer()
	base.AddDir("d", &testimage.Meta{Mode: 0o1770, UID: 5, GID: 6, ModTime: time.Unix(77, 88), Xattrs: map[string]string{"user.a": "b"}})
	base.AddFile("d/gone", nil, nil)
	base.AddDevice("d/null", 'c', 1, 3, &testimage.Meta{Mode: 0o666})
	change.Whiteout("d/gone")
	im := testimage.Image{Steps: []testimage.Step{{Layer: base}, {Layer: change}}}
	for _, o := range []*testimage.Options{nil, {Tag: "other"}, {Tag: "zstd", Compression: testimage.Zstd}} {
		if _, err := im.Write(t.Context(), layout, o); err != nil {
			t.Fatal(err)
		}
	}
	epoch := testimage.Epoch().Unix()
	want := []treecmp.Entry{
		// The whiteout leaves the directory's time alone.
		{Path: "d", Type: treecmp.Dir, Mode: 0o1770, UID: 5, GID: 6, MtimeSec: 77, MtimeNsec: 88, Xattrs: map[string][]byte{"user.a": []byte("b")}},
		{Path: "d/null", Type: treecmp.Char, Mode: 0o666, MtimeSec: epoch, Major: 1, Minor: 3},
	}
	for name, image := range map[string]string{"path": layout, "path:tag": layout + ":other"} {
		dir := filepath.Join(t.TempDir(), "made", "bundle")
		if err := treecmp.Reference(t.Context(), image, dir); err != nil {
			t.Fatal(err)
		}
		got, err := treecmp.List(filepath.Join(dir, "rootfs"))
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range treecmp.Diff(want, got[1:]) {
			t.Errorf("%s: %s", name, line)
		}
		if err := treecmp.Reference(t.Context(), image, dir); !errors.Is(err, os.ErrExist) {
			t.Errorf("%s: unpacked over another tree: %v", name, err)
		}
	}
	for name, image := range map[string]string{
		"no layout": layout + "/none", "no tag": layout + ":none", "no layout with a tag": layout + "/none:x", "zstd": layout + ":zstd",
	} {
		if err := treecmp.Reference(t.Context(), image, filepath.Join(t.TempDir(), "b")); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
