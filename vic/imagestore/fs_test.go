package imagestore_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/vicsdk/vic-go/internal/testlab"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/imagestore"
)

// entry is a file of a tar.
type entry struct {
	name, link, body string
	typ              byte
	mode             int64
}

func tarOf(t *testing.T, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		if e.typ == 0 {
			e.typ = tar.TypeReg
		}
		if e.mode == 0 {
			e.mode = 0o644
		}
		if err := w.WriteHeader(&tar.Header{Name: e.name, Linkname: e.link, Typeflag: e.typ, Mode: e.mode, Size: int64(len(e.body)), ModTime: time.Unix(1e9, 0)}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// pullTar pulls an image with one layer.
func pullTar(t *testing.T, s *imagestore.Store, layer []byte) *imagestore.Image {
	t.Helper()
	f := &fake{m: newMemory()}
	f.config = ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}, RootFS: ocispec.RootFS{Type: "layers"}}
	f.config.Config.Cmd = []string{"sh"}
	f.config.RootFS.DiffIDs = append(f.config.RootFS.DiffIDs, digest.FromBytes(layer))
	f.manifest.Layers = append(f.manifest.Layers, f.m.put(ocispec.MediaTypeImageLayerGzip, gz(layer)))
	f.tag()
	return pull(t, s, f.m, "x")
}

// list reads a tar's names and contents.
func list(t *testing.T, b []byte) []string {
	t.Helper()
	var out []string
	for r := tar.NewReader(bytes.NewReader(b)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		s := h.Name
		if h.Linkname != "" {
			s += "->" + h.Linkname
		}
		if len(body) > 0 && len(body) < 100 {
			s += "=" + string(body)
		}
		out = append(out, s)
	}
}

func TestFS(t *testing.T) {
	e := testlab.Start(t, testlab.Options{NoBoot: true})
	s := openStore(t, e, 0)
	img := pullTar(t, s, tarOf(t,
		entry{name: "etc/", typ: tar.TypeDir, mode: 0o755}, entry{name: "etc/passwd", body: "root:x:0:0\n"},
		entry{name: "up", typ: tar.TypeSymlink, link: "../../../etc"}, entry{name: "abs", typ: tar.TypeSymlink, link: "/etc/passwd"},
		entry{name: "loop", typ: tar.TypeSymlink, link: "loop"}, entry{name: "tool", body: "#!", mode: 0o4755},
		entry{name: "d/a/", typ: tar.TypeDir, mode: 0o700}, entry{name: "d/a/f", body: "f"}, entry{name: "d/hard", typ: tar.TypeLink, link: "d/a/f"}))
	check := func(f *imagestore.FS) {
		t.Helper()
		for _, name := range []string{"up/passwd", "/abs", "etc/../etc/passwd", "../../etc/passwd"} {
			i, err := f.Stat(name)
			if err != nil || i.Size != 11 || !i.Mode.IsRegular() {
				t.Errorf("%s: %+v, %v", name, i, err)
			}
			o, err := f.Open(name)
			if err != nil {
				t.Fatal(err)
			}
			if b, err := io.ReadAll(o); err != nil || string(b) != "root:x:0:0\n" {
				t.Errorf("%s: %q, %v", name, b, err)
			}
			if p, err := f.Resolve(name); err != nil || p != "/etc/passwd" {
				t.Errorf("%s leads to %s, %v", name, p, err)
			}
		}
		if i, err := f.Lstat("abs"); err != nil || i.Mode&fs.ModeSymlink == 0 || i.Link != "/etc/passwd" || i.Name != "abs" {
			t.Errorf("%+v, %v", i, err)
		}
		if i, err := f.Stat("tool"); err != nil || i.Mode != 0o755|fs.ModeSetuid {
			t.Errorf("%+v, %v", i, err)
		}
		if l, err := f.Readlink("up"); err != nil || l != "../../../etc" {
			t.Errorf("%q, %v", l, err)
		}
		es, err := f.ReadDir("/")
		if d := cmp.Diff([]imagestore.DirEntry{{"abs", fs.ModeSymlink}, {"d", fs.ModeDir}, {"etc", fs.ModeDir}, {"loop", fs.ModeSymlink}, {"tool", 0}, {"up", fs.ModeSymlink}}, es); d != "" || err != nil {
			t.Errorf("%v, (-want +got):\n%s", err, d)
		}
		for _, name := range []string{"none", "etc/none", "lost+found", "../log"} {
			if _, err := f.Stat(name); !errors.Is(err, vic.ErrNotFound) || !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s: %v", name, err)
			}
		}
		for _, name := range []string{"loop", "etc/passwd/x", "etc"} {
			if _, err := f.Open(name); err == nil {
				t.Errorf("%s was opened", name)
			}
		}
		for name, want := range map[string][]string{
			"d":        {"d/", "d/a/", "d/a/f=f", "d/hard->d/a/f"},
			"abs":      {"abs->/etc/passwd"},
			"up/":      {"etc/", "etc/passwd=root:x:0:0\n"},
			"/etc/":    {"etc/", "etc/passwd=root:x:0:0\n"},
			"d/a/../a": {"a/", "a/f=f"},
		} {
			var b bytes.Buffer
			if err := f.TarOut(&b, name, nil); err != nil {
				t.Errorf("%s: %v", name, err)
			} else if d := cmp.Diff(want, list(t, b.Bytes())); d != "" {
				t.Errorf("%s: (-want +got):\n%s", name, d)
			}
		}
	}
	f, err := s.OpenFS(t.Context(), img.Root())
	if err != nil {
		t.Fatal(err)
	}
	check(f)
	if _, err := f.Changes(); !errors.Is(err, vic.ErrInvalid) {
		t.Errorf("changes of an image: %v", err)
	}
	f.Close()
	vm := container(t, e, "resting", img)
	d, err := vm.RestingDisk(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if f, err = s.OpenFS(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	check(f)
	if c, err := f.Changes(); err != nil || len(c) > 0 {
		t.Errorf("changes of a container that never ran: %v, %v", c, err)
	}
	f.Close()
	if _, err := s.OpenFS(t.Context(), vic.Disk{Path: "[datastore1] none.vmdk"}); !errors.Is(err, vic.ErrNotFound) {
		t.Error(err)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestTarIn(t *testing.T) {
	e := testlab.Start(t, testlab.Options{NoBoot: true})
	s := openStore(t, e, 0)
	img := pullTar(t, s, tarOf(t, entry{name: "etc/", typ: tar.TypeDir, mode: 0o755}, entry{name: "etc/a", body: "a"}, entry{name: "etc/b", body: "b"},
		entry{name: "link", typ: tar.TypeSymlink, link: "/etc"}, entry{name: "proc/", typ: tar.TypeDir, mode: 0o555}))
	vm := container(t, e, "target", img)
	d, err := vm.RestingDisk(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	in := func(dir string, o *imagestore.TarInOptions, entries ...entry) error {
		return s.TarIn(t.Context(), d, dir, bytes.NewReader(tarOf(t, entries...)), o)
	}
	big := make([]byte, 3<<20)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(big)
	for _, err := range []error{
		in("/etc", nil, entry{name: "a", body: "changed"}, entry{name: ".wh.b", body: "no whiteout"}),
		in("link/..//", nil, entry{name: "new/", typ: tar.TypeDir, mode: 0o750}, entry{name: "new/big", body: string(big)}, entry{name: "new/sym", typ: tar.TypeSymlink, link: "../../../etc/a"}),
		in("new", &imagestore.TarInOptions{KeepTypes: true}, entry{name: "deep/er/f", body: "deep"}, entry{name: "deep/", typ: tar.TypeDir, mode: 0o711}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	sum := func() string {
		b, err := os.ReadFile(filepath.Join(e.Datastore(), "target/target-delta.vmdk"))
		if err != nil {
			t.Fatal(err)
		}
		return digest.FromBytes(b).String()
	}
	files := e.Files(t)
	before := sum()
	for _, c := range []struct {
		what string
		err  error
		kind error
	}{
		{"no directory", in("none", nil, entry{name: "x"}), vic.ErrNotFound},
		{"a file", in("etc/a", nil, entry{name: "x"}), vic.ErrInvalid},
		{"no tar", s.TarIn(t.Context(), d, "/", strings.NewReader(strings.Repeat("no tar ", 300)), nil), vic.ErrInvalid},
		{"cut off", s.TarIn(t.Context(), d, "/", bytes.NewReader(tarOf(t, entry{name: "x", body: string(big)})[:2<<20]), nil), vic.ErrInvalid},
		{"too big", in("/", nil, entry{name: "x", body: strings.Repeat(string(big), small/len(big)+1)}), vic.ErrNoSpace},
		{"file over directory", in("/", &imagestore.TarInOptions{KeepTypes: true}, entry{name: "etc", body: "x"}), vic.ErrConflict},
		{"directory over file", in("/etc", &imagestore.TarInOptions{KeepTypes: true}, entry{name: "a/", typ: tar.TypeDir}), vic.ErrConflict},
		{"an image", s.TarIn(t.Context(), img.Root(), "/", bytes.NewReader(tarOf(t)), nil), vic.ErrInvalid},
	} {
		if !errors.Is(c.err, c.kind) {
			t.Errorf("%s: %v, want %v", c.what, c.err, c.kind)
		}
	}
	if d := cmp.Diff(files, e.Files(t)); d != "" || before != sum() {
		t.Errorf("what failed changed something:\n%s", d)
	}

	f, err := s.OpenFS(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for name, want := range map[string]string{"etc/a": "changed", "etc/.wh.b": "no whiteout", "etc/b": "b", "new/sym": "changed", "new/deep/er/f": "deep", "new/big": string(big)} {
		o, err := f.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(o); err != nil || string(b) != want {
			t.Errorf("%s: %d bytes, %v", name, len(b), err)
		}
	}
	if i, err := f.Stat("new/deep"); err != nil || i.Mode.Perm() != 0o711 {
		t.Errorf("%+v, %v", i, err)
	}
	got, err := f.Changes()
	var lines []string
	for _, c := range got {
		lines = append(lines, c.Kind+" "+c.Path)
	}
	want := []string{"C /etc", "A /etc/.wh.b", "C /etc/a", "A /new", "A /new/big", "A /new/deep", "A /new/deep/er", "A /new/deep/er/f", "A /new/sym"}
	if err != nil || !slices.Equal(lines, want) {
		t.Errorf("%v, (-want +got):\n%s", err, cmp.Diff(want, lines))
	}

	// A VM that ran and is off again has written to its disk, meanwhile.
	extent := filepath.Join(e.Datastore(), "target/target-delta.vmdk")
	archive := bytes.NewReader(tarOf(t, entry{name: "late"}))
	ran := false
	err = s.TarIn(t.Context(), d, "/", readerFunc(func(p []byte) (int, error) {
		if !ran {
			ran = true
			if err := os.Chtimes(extent, time.Now(), time.Now()); err != nil {
				t.Error(err)
			}
		}
		return archive.Read(p)
	}), nil)
	if !errors.Is(err, vic.ErrConflict) || before != sum() {
		t.Errorf("copied over what a VM wrote: %v", err)
	}

	// Copies at the same time come one after the other, and what a killed one
	// left goes.
	left := filepath.Join(e.Datastore(), "target/.new-target-delta.vmdk-0123456789abcdef")
	if err := os.WriteFile(left, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 4 {
		store := s
		if i%2 == 1 {
			store = openStore(t, e, 0)
		}
		wg.Go(func() {
			if err := store.TarIn(t.Context(), d, "/new", bytes.NewReader(tarOf(t, entry{name: fmt.Sprint("beside", i)})), nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if _, err := os.Stat(left); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is left: %v", left, err)
	}
	f2, err := s.OpenFS(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	defer f2.Close()
	for i := range 4 {
		if _, err := f2.Stat(fmt.Sprint("new/beside", i)); err != nil {
			t.Errorf("a copy is lost: %v", err)
		}
	}

	// Witnesses that share no code with us.
	disk := e.Local(t, d.Path)
	command(t, "qemu-img", "info", "--backing-chain", disk)
	raw := filepath.Join(t.TempDir(), "raw")
	command(t, "qemu-img", "convert", "-O", "raw", disk, raw)
	command(t, "e2fsck", "-fn", raw)
	if out := command(t, "debugfs", "-R", "cat /rootfs/new/deep/er/f", raw); !strings.HasSuffix(out, "deep") {
		t.Errorf("debugfs reads %q", out)
	}
	if out := command(t, "debugfs", "-R", "cat /rootfs/etc/a", raw); !strings.HasSuffix(out, "changed") {
		t.Errorf("debugfs reads %q", out)
	}
	if left := storeFiles(t, e, "leases"); len(left) > 0 {
		t.Errorf("leases are left: %v", left)
	}
}
