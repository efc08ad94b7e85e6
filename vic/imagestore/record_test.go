package imagestore_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/vicsdk/vic-go/internal/testimage"
	"github.com/vicsdk/vic-go/internal/testlab"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/imagestore"
)

// noise is the same incompressible text for the same seed.
func noise(seed uint64, n int) string {
	b := make([]byte, n)
	c := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	_, _ = c.Read(b)
	return string(b)
}

// entries makes a tar by hand.
func entries(t *testing.T, format tar.Format, hs ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range hs {
		body := h.Gname // stands for the contents
		h.Gname = ""
		h.Format = format
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		h.Size = int64(len(body))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func file(name, body string) tar.Header { return tar.Header{Name: name, Gname: body} }

// gnuTar makes a tar with GNU tar of a directory with holes, long names and
// links.
func gnuTar(t *testing.T, args ...string) []byte {
	t.Helper()
	dir := t.TempDir()
	long := strings.Repeat("long-name/", 15)
	if err := os.MkdirAll(filepath.Join(dir, long), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, make := range map[string]func(f *os.File){
		"small":       func(f *os.File) { fmt.Fprint(f, "small") },
		long + "deep": func(f *os.File) { fmt.Fprint(f, noise(1, 100000)) },
		"holes":       func(f *os.File) { f.WriteAt([]byte(noise(2, 5000)), 3<<20); f.Truncate(9 << 20) },
		"holes-and-holes": func(f *os.File) {
			for i := range int64(30) {
				f.WriteAt([]byte(noise(3, 4096)), i<<17)
			}
		},
		"only-a-hole": func(f *os.File) { f.Truncate(1 << 20) },
	} {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		make(f)
		f.Close()
	}
	if err := os.Link(filepath.Join(dir, "small"), filepath.Join(dir, "zlink")); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "tar", append(append([]string{"-C", dir, "-c"}, args...), ".")...).Output()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Whatever the tar was like, it comes out of the store again byte for byte.
func TestLayersComeOutAgain(t *testing.T) {
	e := testlab.Start(t, testlab.Options{NoBoot: true})
	store := e.Open(t, e.Client, &imagestore.Options{Bytes: 256 << 20}).Images()
	whiteout := file("d/.wh.gone", "a whiteout with contents")
	for _, c := range []struct {
		name string
		tar  []byte
	}{
		{"one file", oneFile("f", "hello")},
		{"no entries", make([]byte, 1024)},
		{"nothing at all", nil},
		{"no entries, and a megabyte of zeroes", make([]byte, 1<<20)},
		{"empty files", entries(t, tar.FormatUSTAR, file("a", ""), file("b", ""))},
		{"large file", entries(t, tar.FormatPAX, file("a", noise(4, 3<<20+17)), file("z", strings.Repeat("\x00", 5<<20)))},
		{"a name twice", entries(t, tar.FormatPAX, file("a", noise(5, 70000)), file("b", "between"), file("a", noise(6, 300)))},
		{"a name twice, the same contents", entries(t, tar.FormatPAX, file("a", "same"), file("a", "same"))},
		{"a name twice, kept by a link", entries(t, tar.FormatPAX, file("a", noise(7, 9000)),
			tar.Header{Name: "b", Linkname: "a", Typeflag: tar.TypeLink}, file("a", "other"))},
		{"a directory that becomes a file", entries(t, tar.FormatPAX, tar.Header{Name: "d/", Typeflag: tar.TypeDir}, file("d/f", noise(8, 200000)), file("d", "file"))},
		{"a directory that becomes a symlink", entries(t, tar.FormatPAX, file("d/f", "below"), tar.Header{Name: "d", Linkname: "e", Typeflag: tar.TypeSymlink}, file("d/f", "elsewhere"))},
		{"a path through a symlink", entries(t, tar.FormatPAX, tar.Header{Name: "l", Linkname: "/real", Typeflag: tar.TypeSymlink}, file("l/f", "one"), file("real/f", "two"))},
		{"inodes that are used again", entries(t, tar.FormatPAX, file("a", "1"), file("a", "2"), file("a", "3"), file("b", "4"), file("b", "5"))},
		{"whiteouts with contents", entries(t, tar.FormatPAX, whiteout, file("d/.wh..wh..opq", "x"), file(".wh..wh.aufs", noise(9, 1000)), file("d/f", "f"))},
		{"bytes behind the end", append(oneFile("f", "hello"), noise(10, 12345)...)},
		{"no end", bytes.TrimRight(oneFile("f", strings.Repeat("x", 512)), "\x00")},
		{"GNU", gnuTar(t, "--format=gnu")},
		{"GNU, sparse", gnuTar(t, "--format=gnu", "--sparse")},
		{"PAX, sparse 0.0", gnuTar(t, "--format=pax", "--sparse", "--sparse-version=0.0")},
		{"PAX, sparse 0.1", gnuTar(t, "--format=pax", "--sparse", "--sparse-version=0.1")},
		{"PAX, sparse 1.0", gnuTar(t, "--format=pax", "--sparse", "--sparse-version=1.0")},
		{"PAX, global header", gnuTar(t, "--format=pax", "--pax-option=globexthdr.name=g,comment=hello")},
		{"V7", entries(t, tar.FormatUSTAR, file("old", "old"))},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFake(c.name)
			f.replace(gz(c.tar), c.tar)
			f.tag()
			img, err := store.Pull(t.Context(), f.m, "registry.example/again:x", nil)
			if err != nil {
				t.Fatal(err)
			}
			var got bytes.Buffer
			if err := store.WriteLayer(t.Context(), img, 1, &got); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got.Bytes(), c.tar) {
				t.Errorf("%d bytes, not the %d that were put in", got.Len(), len(c.tar))
			}
		})
	}
}

// All layers of real images come out again; and what the record takes.
func TestRealLayersComeOutAgain(t *testing.T) {
	e := testlab.Start(t, testlab.Options{NoBoot: true})
	store := e.Open(t, e.Client, &imagestore.Options{Bytes: 512 << 20}).Images()
	for name, build := range map[string]func(context.Context, string) (string, error){"busybox": testimage.Busybox, "demo": testimage.Demo} {
		layout, err := build(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		_, m, config := load(t, layout)
		img, err := store.Pull(t.Context(), onDisk(layout), "registry.example/"+name+":latest", nil)
		if err != nil {
			t.Fatal(err)
		}
		for i := range m.Layers {
			h := digest.SHA256.Digester()
			if err := store.WriteLayer(t.Context(), img, i, h.Hash()); err != nil {
				t.Fatal(err)
			}
			if h.Digest() != config.RootFS.DiffIDs[i] {
				t.Errorf("%s: layer %d is %s, not %s", name, i, h.Digest(), config.RootFS.DiffIDs[i])
			}
		}
		if err := store.WriteLayer(t.Context(), img, len(m.Layers), io.Discard); !errors.Is(err, vic.ErrInvalid) {
			t.Errorf("a layer too many: %v", err)
		}
	}
	var disks, records int64
	for _, f := range e.Files(t) {
		st, err := os.Stat(filepath.Join(e.Datastore(), f))
		if err != nil {
			t.Fatal(err)
		}
		switch filepath.Base(f) {
		case "layer-delta.vmdk":
			disks += st.Size()
		case "tar.zst":
			records += st.Size()
		}
	}
	t.Logf("disks %d bytes, records %d", disks, records)
}

// A disk or a record that was changed since is named, and nobody gets other
// bytes for the layer's.
func TestChangedLayerIsNamed(t *testing.T) {
	e := testlab.Start(t, testlab.Options{NoBoot: true})
	store := e.Open(t, e.Client, &imagestore.Options{Bytes: 256 << 20}).Images()
	body := noise(20, 100000)
	for _, c := range []struct {
		name  string
		spoil func(t *testing.T, dir string)
		text  string
	}{
		{"disk", func(t *testing.T, dir string) {
			edit(t, filepath.Join(dir, "layer-delta.vmdk"), func(b []byte) []byte {
				i := bytes.Index(b, []byte(body[:4096]))
				if i < 0 {
					t.Fatal("the contents are not in the extent")
				}
				b[i] ^= 1
				return b
			})
		}, "was changed"},
		{"record", func(t *testing.T, dir string) {
			edit(t, filepath.Join(dir, "tar.zst"), func(b []byte) []byte { b[len(b)/2] ^= 0x40; return b })
		}, ""},
		{"record cut off", func(t *testing.T, dir string) {
			edit(t, filepath.Join(dir, "tar.zst"), func(b []byte) []byte { return b[:len(b)-3] })
		}, "damaged"},
		{"no record", func(t *testing.T, dir string) {
			if err := os.Remove(filepath.Join(dir, "tar.zst")); err != nil {
				t.Fatal(err)
			}
		}, "tar.zst"},
		{"pulled before there were records", func(t *testing.T, dir string) {
			edit(t, filepath.Join(dir, "layer.json"), func(b []byte) []byte { return bytes.Replace(b, []byte(`"record"`), []byte(`"x"`), 1) })
		}, "pull it again"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFake("changed " + c.name)
			p := oneFile("f", body)
			f.replace(gz(p), p)
			f.tag()
			img, err := store.Pull(t.Context(), f.m, "registry.example/changed:x", nil)
			if err != nil {
				t.Fatal(err)
			}
			c.spoil(t, filepath.Dir(e.Local(t, img.Root().Path)))
			err = store.WriteLayer(t.Context(), img, 1, io.Discard)
			if err == nil || !strings.Contains(err.Error(), c.text) || !strings.Contains(err.Error(), digest.FromBytes(p).String()) {
				t.Errorf("error %v; want one with %q and the diff ID", err, c.text)
			}
		})
	}
}

func edit(t *testing.T, name string, f func([]byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err == nil {
		err = os.WriteFile(name, f(b), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// onDisk is an OCI layout as a source; every reference is "latest".
type onDisk string

func (l onDisk) Resolve(context.Context, string) (ocispec.Descriptor, error) {
	b, err := os.ReadFile(filepath.Join(string(l), "index.json"))
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return latest(b)
}

func (l onDisk) Fetch(_ context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	return os.Open(blob(string(l), d.Digest))
}
