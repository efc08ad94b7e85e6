package imagestore_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/vicsdk/vic-go/internal/testimage"
	"github.com/vicsdk/vic-go/internal/testlab"
	"github.com/vicsdk/vic-go/internal/testregistry"
	"github.com/vicsdk/vic-go/internal/treecmp"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/imagestore"
	"github.com/vicsdk/vic-go/vic/registry"
)

// repository opens the repository of a name on a test's registry.
func repository(t *testing.T, name string) *registry.Repository {
	t.Helper()
	n, err := registry.ParseName(name)
	if err != nil {
		t.Fatal(err)
	}
	r, err := registry.Open(n, &registry.Options{PlainHTTP: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// counting counts what is sent.
type counting struct {
	imagestore.Destination
	mu     sync.Mutex
	pushed []string // media types
}

func (c *counting) Push(ctx context.Context, d ocispec.Descriptor, r io.Reader) error {
	c.mu.Lock()
	c.pushed = append(c.pushed, d.MediaType)
	c.mu.Unlock()
	return c.Destination.Push(ctx, d, r)
}

// pushed pushes an image and returns the phases that its layers ended with.
func pushed(t *testing.T, s *imagestore.Store, name string, o imagestore.PushOptions) (ocispec.Descriptor, map[string]int, []string) {
	t.Helper()
	to := o.Name
	if to == "" {
		to = name
	}
	dst := &counting{Destination: repository(t, to)}
	phases := map[string]int{}
	o.Progress = func(e vic.Event) {
		if e.Op != "push" {
			t.Errorf("event %+v", e)
		}
		if e.Phase != "push" {
			phases[e.Phase]++
		}
	}
	d, err := s.Push(t.Context(), dst, name, &o)
	if err != nil {
		t.Fatal(err)
	}
	return d, phases, dst.pushed
}

// skopeoLayout copies an image of a registry into a layout.
func skopeoLayout(t *testing.T, from string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "layout")
	command(t, "skopeo", "--insecure-policy", "copy", "--quiet", "--src-tls-verify=false", from, "oci:"+dir+":latest")
	return dir
}

func inspect(t *testing.T, name string) digest.Digest {
	t.Helper()
	return digest.FromString(command(t, "skopeo", "inspect", "--raw", "--tls-verify=false", "docker://"+name))
}

func sameTree(t *testing.T, want, got []treecmp.Entry) {
	t.Helper()
	diffs := treecmp.Diff(want, got)
	for _, d := range diffs[:min(len(diffs), 20)] {
		t.Error(d)
	}
}

func TestPush(t *testing.T) {
	e := testlab.Start(t, testlab.Options{NoBoot: true})
	store := e.Open(t, e.Client, &imagestore.Options{Bytes: 256 << 20}).Images()
	layout, err := testimage.Demo(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	name := e.Push(t, layout, "demo:latest")
	img, err := store.Pull(t.Context(), repository(t, name), name, nil)
	if err != nil {
		t.Fatal(err)
	}
	unique := map[digest.Digest]bool{}
	for _, l := range img.Layers() {
		unique[l.Digest] = true
	}
	n := len(unique)
	addr, _, _ := strings.Cut(name, "/")

	t.Run("where it came from", func(t *testing.T) {
		d, phases, sent := pushed(t, store, name, imagestore.PushOptions{})
		if d.Digest != img.Digest() || phases["exists"] != n || len(sent) != 0 {
			t.Errorf("digest %s, phases %v, sent %q", d.Digest, phases, sent)
		}
	})
	t.Run("another repository of the registry", func(t *testing.T) {
		other := addr + "/team/copy:v1"
		if err := store.Tag(t.Context(), name, other); err != nil {
			t.Fatal(err)
		}
		d, phases, sent := pushed(t, store, other, imagestore.PushOptions{})
		if d.Digest != img.Digest() || phases["mounted"] != n || !slices.Equal(sent, []string{img0(t, layout)}) {
			t.Errorf("digest %s, phases %v, sent %q", d.Digest, phases, sent)
		}
		if got := inspect(t, other); got != img.Digest() {
			t.Errorf("the registry has %s, not %s", got, img.Digest())
		}
	})

	second := testregistry.ForTest(t, nil)
	root := os.Geteuid() == 0
	var want []treecmp.Entry
	if root {
		want = reference(t, layout)
	}
	for _, c := range []struct {
		name  string
		o     imagestore.PushOptions
		sends string // media type of layers
	}{
		{"gzip", imagestore.PushOptions{}, "tar+gzip"},
		{"zstd", imagestore.PushOptions{Compression: imagestore.Zstd, Repack: true}, "tar+zstd"},
		{"plain", imagestore.PushOptions{Compression: imagestore.None, Repack: true}, "v1.tar"},
	} {
		t.Run("another registry, "+c.name, func(t *testing.T) {
			c.o.Name = second.Addr() + "/" + c.name + ":v1"
			d, phases, sent := pushed(t, store, name, c.o)
			// The configuration may be had from where the image went before.
			if phases["done"] != n || len(sent) < n+1 || len(sent) > n+2 {
				t.Errorf("phases %v, sent %q", phases, sent)
			}
			for _, m := range sent[:n] {
				if !strings.HasSuffix(m, c.sends) {
					t.Errorf("a layer was sent as %s", m)
				}
			}
			if got := inspect(t, c.o.Name); got != d.Digest {
				t.Errorf("the registry has %s, not %s", got, d.Digest)
			}
			again, phases, sent := pushed(t, store, name, c.o)
			if again.Digest != d.Digest || phases["exists"] != n || len(sent) != 0 || phases["pack"] != 0 {
				t.Errorf("again: digest %s, not %s; phases %v, sent %q", again.Digest, d.Digest, phases, sent)
			}
			c.o.Name = second.Addr() + "/mounted/" + c.name + ":v1"
			again, phases, sent = pushed(t, store, name, c.o)
			if again.Digest != d.Digest || phases["mounted"] != n || len(sent) != 1 {
				t.Errorf("mounted: digest %s, not %s; phases %v, sent %q", again.Digest, d.Digest, phases, sent)
			}
			there := skopeoLayout(t, "docker://"+c.o.Name)
			_, m, config := load(t, there)
			_, own, _ := load(t, layout)
			if m.Config.Digest != own.Config.Digest {
				t.Errorf("the configuration is %s, not %s", m.Config.Digest, own.Config.Digest)
			}
			if c.o.Compression == imagestore.Zstd { // which umoci does not know
				zstdLayers(t, there, m, config)
			} else if root {
				sameTree(t, want, reference(t, there))
			}
		})
	}
	t.Run("by a digest that it does not arrive as", func(t *testing.T) {
		_, err := store.Push(t.Context(), repository(t, second.Addr()+"/x:y"), name, &imagestore.PushOptions{
			Name: second.Addr() + "/bydigest@" + img.Digest().String(), Compression: imagestore.Zstd, Repack: true,
		})
		if !errors.Is(err, vic.ErrConflict) {
			t.Error(err)
		}
	})
	t.Run("wrong options", func(t *testing.T) {
		for _, o := range []imagestore.PushOptions{
			{Compression: "lzma"}, {Repack: true}, {From: repository(t, name), Repack: true, Compression: imagestore.Gzip}, {Name: "no-tag"},
		} {
			if _, err := store.Push(t.Context(), repository(t, name), name, &o); !errors.Is(err, vic.ErrInvalid) {
				t.Errorf("%+v: %v", o, err)
			}
		}
		if _, err := store.Push(t.Context(), repository(t, name), addr+"/none:x", nil); !errors.Is(err, vic.ErrNotFound) {
			t.Error(err)
		}
	})
}

// zstdLayers unpacks layers with the program zstd.
func zstdLayers(t *testing.T, layout string, m ocispec.Manifest, config ocispec.Image) {
	t.Helper()
	for i, l := range m.Layers {
		out, err := exec.CommandContext(t.Context(), "zstd", "-q", "-d", "-c", blob(layout, l.Digest)).Output()
		if err != nil {
			t.Fatal(err)
		}
		if d := digest.FromBytes(out); d != config.RootFS.DiffIDs[i] {
			t.Errorf("layer %d is %s, not %s", i, d, config.RootFS.DiffIDs[i])
		}
	}
}

// img0 is the media type of a layout's manifest.
func img0(t *testing.T, layout string) string {
	t.Helper()
	idx, _, _ := load(t, layout)
	for _, d := range idx.Manifests {
		if d.Annotations[ocispec.AnnotationRefName] == "latest" {
			return d.MediaType
		}
	}
	return ""
}

// An image of Docker's format stays one.
func TestPushDockerFormat(t *testing.T) {
	e := testlab.Start(t, testlab.Options{NoBoot: true})
	store := e.Open(t, e.Client, &imagestore.Options{Bytes: 256 << 20}).Images()
	f := newFake("docker")
	f.manifest.Layers[0].MediaType = "application/vnd.docker.image.rootfs.diff.tar.gzip"
	f.manifest.Layers[1].MediaType = "application/vnd.docker.image.rootfs.diff.tar.gzip"
	f.manifest.Config = f.m.putJSON("application/vnd.docker.container.image.v1+json", f.config)
	f.manifest.SchemaVersion, f.manifest.MediaType = 2, "application/vnd.docker.distribution.manifest.v2+json"
	f.m.tags["x"] = f.m.putJSON(f.manifest.MediaType, f.manifest)
	const name = "elsewhere.example/docker:x"
	img, err := store.Pull(t.Context(), f.m, name, nil)
	if err != nil {
		t.Fatal(err)
	}
	for c, format := range map[imagestore.Compression]string{imagestore.Gzip: "docker.distribution.manifest.v2", imagestore.None: "docker.distribution.manifest.v2", imagestore.Zstd: "oci.image.manifest.v1"} {
		to := e.Registry.Addr() + "/docker:" + string(c)
		d, _, _ := pushed(t, store, name, imagestore.PushOptions{Name: to, Compression: c, Repack: true})
		if !strings.Contains(d.MediaType, format) {
			t.Errorf("%s: %s", c, d.MediaType)
		}
		there := skopeoLayout(t, "docker://"+to)
		if c == imagestore.Zstd {
			_, m, config := load(t, there)
			zstdLayers(t, there, m, config)
		} else if os.Geteuid() == 0 {
			if n := len(reference(t, there)); n != 3 {
				t.Errorf("%s: %d entries", c, n)
			}
		}
		back, err := store.Pull(t.Context(), repository(t, to), to, nil)
		if err != nil || back.Root() != img.Root() {
			t.Errorf("%s: %+v, %v", c, back, err)
		}
	}
}

func TestPushRefusesForeignLayers(t *testing.T) {
	e := testlab.Start(t, testlab.Options{NoBoot: true})
	store := e.Open(t, e.Client, &imagestore.Options{Bytes: 256 << 20}).Images()
	for _, mediaType := range []string{
		"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
		"application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
	} {
		f := newFake("foreign " + mediaType)
		f.manifest.Layers[1].MediaType = mediaType
		f.tag()
		if _, err := store.Pull(t.Context(), f.m, "elsewhere.example/foreign:x", nil); err != nil {
			t.Fatal(err)
		}
		dst := &counting{Destination: repository(t, e.Registry.Addr()+"/foreign:x")}
		_, err := store.Push(t.Context(), dst, "elsewhere.example/foreign:x", nil)
		if !errors.Is(err, vic.ErrUnsupported) || !strings.Contains(err.Error(), f.manifest.Layers[1].Digest.String()) || len(dst.pushed) > 0 {
			t.Errorf("%v, sent %q", err, dst.pushed)
		}
	}
}

// A copy to another registry is the same to the byte, and what refers to the
// image goes with it.
func TestCopyKeepsReferrers(t *testing.T) {
	e := testlab.Start(t, testlab.Options{NoBoot: true})
	store := e.Open(t, e.Client, &imagestore.Options{Bytes: 256 << 20}).Images()
	name := e.Busybox(t)
	src := repository(t, name)
	img, err := store.Pull(t.Context(), src, name, nil)
	if err != nil {
		t.Fatal(err)
	}
	subject, err := src.Resolve(t.Context(), "latest")
	if err != nil {
		t.Fatal(err)
	}
	refer := func(subject ocispec.Descriptor, kind, body string) ocispec.Descriptor {
		t.Helper()
		put := func(mediaType string, b []byte) ocispec.Descriptor {
			d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
			if err := src.Push(t.Context(), d, bytes.NewReader(b)); err != nil {
				t.Fatal(err)
			}
			return d
		}
		b, err := json.Marshal(ocispec.Manifest{
			Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, ArtifactType: kind,
			Config: put(ocispec.MediaTypeEmptyJSON, []byte("{}")), Layers: []ocispec.Descriptor{put("text/plain", []byte(body))}, Subject: &subject,
		})
		if err != nil {
			t.Fatal(err)
		}
		return put(ocispec.MediaTypeImageManifest, b)
	}
	sbom := refer(subject, "application/sbom", "what is in it")
	signature := refer(subject, "application/signature", "signed")
	ofSBOM := refer(sbom, "application/signature", "the bill is signed")

	second := testregistry.ForTest(t, nil)
	to := second.Addr() + "/copy:latest"
	d, _, _ := pushed(t, store, name, imagestore.PushOptions{Name: to, From: src})
	if d.Digest != img.Digest() || inspect(t, to) != img.Digest() {
		t.Errorf("%s and %s, not %s", d.Digest, inspect(t, to), img.Digest())
	}
	dst := repository(t, to)
	for _, c := range []struct {
		of   ocispec.Descriptor
		want []digest.Digest
	}{{subject, []digest.Digest{sbom.Digest, signature.Digest}}, {sbom, []digest.Digest{ofSBOM.Digest}}} {
		var got []digest.Digest
		err := dst.Referrers(t.Context(), c.of, "", func(ds []ocispec.Descriptor) error {
			for _, d := range ds {
				got = append(got, d.Digest)
			}
			return nil
		})
		slices.Sort(got)
		slices.Sort(c.want)
		if err != nil || fmt.Sprint(got) != fmt.Sprint(c.want) {
			t.Errorf("referrers of %s: %v, %v; want %v", c.of.Digest, got, err, c.want)
		}
	}
	// Without the source the layers are packed by us.
	to = second.Addr() + "/packed:latest"
	if d, _, _ := pushed(t, store, name, imagestore.PushOptions{Name: to}); d.Digest == "" {
		t.Error("no digest")
	}
}

// What an older release pulled has no copy of its manifest, and its layers no
// record: both are said, with what to do.
func TestOlderImages(t *testing.T) {
	e := testlab.Start(t, testlab.Options{NoBoot: true})
	store := e.Open(t, e.Client, &imagestore.Options{Bytes: 256 << 20}).Images()
	name := e.Busybox(t)
	pull := func() *imagestore.Image {
		t.Helper()
		img, err := store.Pull(t.Context(), repository(t, name), name, nil)
		if err != nil {
			t.Fatal(err)
		}
		return img
	}
	img := pull()
	record := filepath.Join(e.Datastore(), "vic/images/images", img.Digest().Encoded()+".json")
	edit(t, record, func(b []byte) []byte { return bytes.Replace(b, []byte(`"original"`), []byte(`"other"`), 1) })
	to := e.Registry.Addr() + "/older:v1"
	for what, err := range map[string]error{
		"push": func() error {
			_, err := store.Push(t.Context(), repository(t, to), name, &imagestore.PushOptions{Name: to})
			return err
		}(),
		"save": store.Save(t.Context(), io.Discard, []string{name}, nil),
	} {
		if !errors.Is(err, vic.ErrUnsupported) || !strings.Contains(err.Error(), "pull it again") {
			t.Errorf("%s: %v", what, err)
		}
	}
	pull()
	edit(t, filepath.Join(filepath.Dir(e.Local(t, img.Root().Path)), "layer.json"), func(b []byte) []byte {
		return bytes.Replace(b, []byte(`"record"`), []byte(`"other"`), 1)
	})
	// Without a record it still goes where its layers are.
	if d, phases, _ := pushed(t, store, name, imagestore.PushOptions{Name: to}); d.Digest != img.Digest() || phases["mounted"] != len(img.Layers()) {
		t.Errorf("%s, %v", d.Digest, phases)
	}
	second := testregistry.ForTest(t, nil)
	_, err := store.Push(t.Context(), repository(t, second.Addr()+"/older:v1"), name, &imagestore.PushOptions{Name: second.Addr() + "/older:v1"})
	if !errors.Is(err, vic.ErrUnsupported) || !strings.Contains(err.Error(), "pull it again") {
		t.Errorf("push elsewhere: %v", err)
	}
	if h, err := store.History(t.Context(), img); err != nil || h[len(h)-1].Bytes != -1 {
		t.Errorf("%+v, %v", h, err)
	}
}

// An image that has one layer twice, packed differently, goes out as it came.
func TestPushSameLayerPackedTwice(t *testing.T) {
	e := testlab.Start(t, testlab.Options{NoBoot: true})
	store := e.Open(t, e.Client, &imagestore.Options{Bytes: 256 << 20}).Images()
	f := newFake("twice")
	p := oneFile("file0", "twice")
	f.manifest.Layers[0] = f.m.put(ocispec.MediaTypeImageLayerGzip, gz(p))
	f.config.RootFS.DiffIDs[0] = digest.FromBytes(p)
	f.replace(p, p)
	f.manifest.Layers[1].MediaType = ocispec.MediaTypeImageLayer
	f.tag()
	name := e.Registry.Addr() + "/twice:x"
	r := repository(t, name)
	for d, b := range f.m.blobs {
		mediaType := "application/octet-stream"
		if d == f.m.tags["x"].Digest {
			continue
		}
		if err := r.Push(t.Context(), ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(b))}, bytes.NewReader(b)); err != nil {
			t.Fatal(err)
		}
	}
	d := f.m.tags["x"]
	if err := r.Push(t.Context(), d, bytes.NewReader(f.m.blobs[d.Digest])); err != nil {
		t.Fatal(err)
	}
	if err := r.Tag(t.Context(), d, "x"); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Pull(t.Context(), r, name, nil); err != nil {
		t.Fatal(err)
	}
	got, phases, _ := pushed(t, store, name, imagestore.PushOptions{Name: e.Registry.Addr() + "/other/twice:x"})
	if got.Digest != d.Digest || phases["mounted"] != 2 {
		t.Errorf("%s, not %s; %v", got.Digest, d.Digest, phases)
	}
}

// shelf is a destination in memory that may fail.
type shelf struct {
	mu    sync.Mutex
	blobs map[digest.Digest][]byte
	tags  map[string]digest.Digest
	mount func() (bool, error)
	push  func(ocispec.Descriptor) error
}

func (s *shelf) Exists(_ context.Context, d ocispec.Descriptor) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.blobs[d.Digest]
	return ok, nil
}

func (s *shelf) Mount(context.Context, ocispec.Descriptor, string) (bool, error) { return s.mount() }

func (s *shelf) Push(_ context.Context, d ocispec.Descriptor, r io.Reader) error {
	b, err := io.ReadAll(r)
	if err == nil {
		err = s.push(d)
	}
	if err == nil && (digest.FromBytes(b) != d.Digest || int64(len(b)) != d.Size) {
		err = fmt.Errorf("%s is sent with %d bytes of %s", d.Digest, len(b), digest.FromBytes(b))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		s.blobs[d.Digest] = b
	}
	return err
}

func (s *shelf) Tag(_ context.Context, d ocispec.Descriptor, tag string) error {
	s.tags[tag] = d.Digest
	return nil
}

// Repositories that may not be read from are passed over; a layer that cannot be
// sent is named, and then there is no manifest.
func TestPushThatFails(t *testing.T) {
	e := testlab.Start(t, testlab.Options{NoBoot: true})
	store := e.Open(t, e.Client, &imagestore.Options{Bytes: 256 << 20}).Images()
	f := newFake("push")
	f.tag()
	const name = "registry.example/a/b:x"
	if _, err := store.Pull(t.Context(), f.m, name, nil); err != nil {
		t.Fatal(err)
	}
	fine := func(ocispec.Descriptor) error { return nil }
	o := &imagestore.PushOptions{Name: "registry.example/c/d:x"}
	s := &shelf{blobs: map[digest.Digest][]byte{}, tags: map[string]digest.Digest{}, push: fine, mount: func() (bool, error) { return false, vic.ErrDenied }}
	d, err := store.Push(t.Context(), s, name, o)
	if err != nil || s.tags["x"] != d.Digest || len(s.blobs) != 4 {
		t.Errorf("%v, %v, %d blobs, %v", d, s.tags, len(s.blobs), err)
	}
	broken := errors.New("the line is cut")
	s = &shelf{blobs: map[digest.Digest][]byte{}, tags: map[string]digest.Digest{}, mount: func() (bool, error) { return false, nil },
		push: func(d ocispec.Descriptor) error {
			if strings.Contains(d.MediaType, "layer") {
				return broken
			}
			return nil
		}}
	if _, err := store.Push(t.Context(), s, name, o); !errors.Is(err, broken) || !strings.Contains(err.Error(), "layer ") || len(s.tags)+len(s.blobs) > 0 {
		t.Errorf("%v, %v", err, s.tags)
	}
	ctx, cancel := context.WithCancel(t.Context())
	s.push = func(ocispec.Descriptor) error { cancel(); return nil }
	if _, err := store.Push(ctx, s, name, o); !errors.Is(err, context.Canceled) || len(s.tags) > 0 {
		t.Errorf("%v, %v", err, s.tags)
	}
}
