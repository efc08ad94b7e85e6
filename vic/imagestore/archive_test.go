package imagestore_test

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/vicsdk/vic-go/internal/testimage"
	"github.com/vicsdk/vic-go/internal/testlab"
	"github.com/vicsdk/vic-go/internal/treecmp"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/imagestore"
	"github.com/vicsdk/vic-go/vic/registry"
)

// parseName makes names full, as the engine does.
func parseName(s string) (string, error) {
	n, err := registry.ParseName(s)
	return n.String(), err
}

// stocked is a store with the images busybox and demo, the second under two
// names.
type stocked struct {
	e             *testlab.Env
	store         *imagestore.Store
	busybox, demo string // layouts
	names         []string
}

func stock(t *testing.T) *stocked {
	t.Helper()
	s := &stocked{e: testlab.Start(t, testlab.Options{NoBoot: true})}
	s.store = s.fresh(t)
	var err error
	if s.busybox, err = testimage.Busybox(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	if s.demo, err = testimage.Demo(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	s.names = []string{"registry.example/busybox:latest", "registry.example/demo:one", "docker.io/library/demo:two"}
	for i, layout := range []string{s.busybox, s.demo, s.demo} {
		if _, err := s.store.Pull(t.Context(), onDisk(layout), s.names[i], nil); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// fresh opens a store that has nothing.
func (s *stocked) fresh(t *testing.T) *imagestore.Store {
	t.Helper()
	dir := "fresh-" + digest.FromString(t.Name() + fmt.Sprint(len(s.e.Files(t)))).Encoded()[:12]
	store, err := imagestore.OpenNamed(t.Context(), s.e.Client, "datastore1/"+dir, &imagestore.Options{Bytes: 256 << 20})
	if err != nil {
		t.Fatal(err)
	}
	return store
}

func save(t *testing.T, s *imagestore.Store, names []string, o *imagestore.SaveOptions) string {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "archive.tar"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := s.Save(t.Context(), f, names, o); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}

func loadFile(t *testing.T, s *imagestore.Store, name string, o *imagestore.LoadOptions) []*imagestore.Image {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	out, err := s.Load(t.Context(), f, o)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// What is saved is what skopeo takes, with the tree that umoci unpacks of the
// image as it came; and it loads into another store as the same disks.
func TestSave(t *testing.T) {
	long(t)
	s := stock(t)
	root := os.Geteuid() == 0
	var want []treecmp.Entry
	if root {
		want = reference(t, s.demo)
	}
	_, own, _ := load(t, s.demo)
	for _, o := range []imagestore.SaveOptions{
		{},
		{Format: imagestore.OCIArchive},
		{Format: imagestore.OCIArchive, Compression: imagestore.Gzip},
		{Format: imagestore.OCIArchive, Compression: imagestore.Zstd},
	} {
		name := strings.Trim(fmt.Sprintf("%s %s", o.Format, o.Compression), " ")
		t.Run(name, func(t *testing.T) {
			file := save(t, s.store, s.names, &o)
			var again bytes.Buffer
			if err := s.store.Save(t.Context(), &again, s.names, &o); err != nil {
				t.Fatal(err)
			}
			b, err := os.ReadFile(file)
			if err != nil || !bytes.Equal(b, again.Bytes()) {
				t.Errorf("saved twice: other bytes (%v)", err)
			}
			t.Logf("%d bytes", len(b))
			format := o.Format
			if format == "" {
				format = imagestore.DockerArchive
			}
			for i, layout := range []string{s.busybox, s.demo} {
				dir := skopeoLayout(t, string(format)+":"+file+":"+s.names[i])
				_, m, config := load(t, dir)
				_, own, _ := load(t, layout)
				if format == imagestore.OCIArchive && m.Config.Digest != own.Config.Digest {
					t.Errorf("%s: the configuration is %s, not %s", s.names[i], m.Config.Digest, own.Config.Digest)
				}
				if o.Compression == imagestore.Zstd {
					zstdLayers(t, dir, m, config)
				} else if root && i == 1 {
					sameTree(t, want, reference(t, dir))
				}
			}
			got := loadFile(t, s.fresh(t), file, nil)
			var names []string
			for _, i := range got {
				names = append(names, i.Name())
			}
			if fmt.Sprint(names) != fmt.Sprint(s.names) {
				t.Errorf("loaded %q, not %q", names, s.names)
			}
			for i, img := range got {
				as, err := s.store.Image(t.Context(), s.names[i])
				if err != nil {
					t.Fatal(err)
				}
				sameDisk(t, s.e, as, img)
			}
			if o.Format == imagestore.OCIArchive {
				return
			}
			var entries []struct{ Config string }
			members := untar(t, b)
			if err := json.Unmarshal(members["manifest.json"], &entries); err != nil || len(entries) != 2 || entries[1].Config != own.Config.Digest.Encoded()+".json" {
				t.Errorf("%+v, %v", entries, err)
			}
		})
	}
	for _, c := range []struct {
		names []string
		o     imagestore.SaveOptions
		kind  error
	}{
		{nil, imagestore.SaveOptions{}, vic.ErrInvalid},
		{s.names, imagestore.SaveOptions{Format: "rar"}, vic.ErrInvalid},
		{s.names, imagestore.SaveOptions{Compression: imagestore.Gzip}, vic.ErrUnsupported},
		{s.names, imagestore.SaveOptions{Format: imagestore.OCIArchive, Compression: "xz"}, vic.ErrInvalid},
		{[]string{"registry.example/none:x"}, imagestore.SaveOptions{}, vic.ErrNotFound},
	} {
		if err := s.store.Save(t.Context(), io.Discard, c.names, &c.o); !errors.Is(err, c.kind) {
			t.Errorf("%q, %+v: %v", c.names, c.o, err)
		}
	}
}

// sameDisk compares the extents of two images' top disks.
func sameDisk(t *testing.T, e *testlab.Env, a, b *imagestore.Image) {
	t.Helper()
	var bs [2][]byte
	for i, img := range []*imagestore.Image{a, b} {
		var err error
		if bs[i], err = os.ReadFile(filepath.Join(filepath.Dir(e.Local(t, img.Root().Path)), "layer-delta.vmdk")); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(bs[0], bs[1]) {
		t.Errorf("%s and %s have other disks", a.Name(), b.Name())
	}
}

func untar(t *testing.T, b []byte) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	for tr := tar.NewReader(bytes.NewReader(b)); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return out
		}
		if err == nil {
			out[h.Name], err = io.ReadAll(tr)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// pack makes a tar of members; a value that begins with "-> " is a symlink.
func pack(members ...[2]string) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range members {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: m[0], Mode: 0o644, Size: int64(len(m[1]))}
		if to, ok := strings.CutPrefix(m[1], "-> "); ok {
			h.Typeflag, h.Linkname, h.Size = tar.TypeSymlink, to, 0
		}
		_ = w.WriteHeader(h)
		if h.Size > 0 {
			_, _ = io.WriteString(w, m[1])
		}
	}
	_ = w.Close()
	return b.Bytes()
}

// Archives as other tools write them.
func TestLoad(t *testing.T) {
	s := stock(t)
	var own []*imagestore.Image
	for _, n := range s.names {
		own = append(own, must(s.store.Image(t.Context(), n)))
	}
	skopeo := func(to string) func(*testing.T, string) {
		return func(t *testing.T, file string) {
			command(t, "skopeo", "--insecure-policy", "copy", "-q", "oci:"+s.demo+":latest", strings.Replace(to, "FILE", file, 1))
		}
	}
	buildah := func(args ...string) func(*testing.T, string) {
		return func(t *testing.T, file string) {
			if _, err := exec.LookPath("buildah"); err != nil {
				if os.Getenv("CI") == "true" {
					t.Fatal(err)
				}
				t.Skip(err)
			}
			dir := t.TempDir()
			run := func(args ...string) string {
				return command(t, "buildah", append([]string{"--storage-driver", "vfs", "--root", dir + "/root", "--runroot", dir + "/run", "--registries-conf", "/dev/null"}, args...)...)
			}
			policy := filepath.Join(dir, "policy.json")
			if err := os.WriteFile(policy, []byte(`{"default":[{"type":"insecureAcceptAnything"}]}`), 0o600); err != nil {
				t.Fatal(err)
			}
			from := s.e.Push(t, s.busybox, "busybox:latest")
			id := strings.Fields(run("pull", "-q", "--signature-policy", policy, "--tls-verify=false", "docker://"+from))[0]
			run("tag", id, "registry.example/built:v1")
			if args[0] == "manifest" {
				run("manifest", "create", "registry.example/list:v1")
				run("manifest", "add", "registry.example/list:v1", "registry.example/built:v1")
			}
			for i := range args {
				args[i] = strings.NewReplacer("FILE", file, "POLICY", policy).Replace(args[i])
			}
			run(args...)
		}
	}
	// made is an archive by hand of the image's layers.
	made := func(f func(config []byte, layers [][]byte) []byte) func(*testing.T, string) {
		return func(t *testing.T, file string) {
			members := untar(t, must(os.ReadFile(save(t, s.store, s.names[1:2], nil))))
			var e []struct {
				Config string
				Layers []string
			}
			if err := json.Unmarshal(members["manifest.json"], &e); err != nil {
				t.Fatal(err)
			}
			var layers [][]byte
			for _, l := range e[0].Layers {
				layers = append(layers, members[l])
			}
			if err := os.WriteFile(file, f(members[e[0].Config], layers), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, c := range []struct {
		name  string
		write func(t *testing.T, file string)
		o     imagestore.LoadOptions
		want  []string
	}{
		{"skopeo, docker-archive", skopeo("docker-archive:FILE:registry.example/demo:v1"), imagestore.LoadOptions{}, []string{"registry.example/demo:v1"}},
		{"skopeo, docker-archive, Docker's name", skopeo("docker-archive:FILE:demo:v1"), imagestore.LoadOptions{ParseName: parseName}, []string{"docker.io/library/demo:v1"}},
		{"skopeo, docker-archive without a name", skopeo("docker-archive:FILE"), imagestore.LoadOptions{Name: "a.example/b:c"}, []string{"a.example/b:c"}},
		{"skopeo, oci-archive", skopeo("oci-archive:FILE:registry.example/demo:v1"), imagestore.LoadOptions{}, []string{"registry.example/demo:v1"}},
		{"skopeo, oci-archive with a tag alone", skopeo("oci-archive:FILE:v1"), imagestore.LoadOptions{Name: "a.example/b:c"}, []string{"a.example/b:c"}},
		{"skopeo, oci-archive without a name", skopeo("oci-archive:FILE"), imagestore.LoadOptions{Name: "a.example/b:c"}, []string{"a.example/b:c"}},
		{"buildah, docker-archive", buildah("push", "-q", "--signature-policy", "POLICY", "registry.example/built:v1", "docker-archive:FILE:registry.example/built:v1"), imagestore.LoadOptions{}, []string{"registry.example/built:v1"}},
		{"buildah, oci-archive", buildah("push", "-q", "--signature-policy", "POLICY", "registry.example/built:v1", "oci-archive:FILE:registry.example/built:v1"), imagestore.LoadOptions{}, []string{"registry.example/built:v1"}},
		{"buildah, a list in an oci-archive", buildah("manifest", "push", "-q", "--all", "--signature-policy", "POLICY", "registry.example/list:v1", "oci-archive:FILE:registry.example/list:v1"), imagestore.LoadOptions{}, []string{"registry.example/list:v1"}},
		{"docker before 25: a directory for each layer, one of them a link", made(func(config []byte, layers [][]byte) []byte {
			id := digest.FromBytes(config).Encoded()
			members := [][2]string{{id + ".json", string(config)}}
			var names []string
			at := map[string]string{}
			for i, l := range layers {
				dir := digest.FromString(fmt.Sprint("id ", i)).Encoded()
				members = append(members, [2]string{dir + "/VERSION", "1.0"}, [2]string{dir + "/json", `{"id":"` + dir + `"}`})
				body := string(l)
				if first, ok := at[body]; ok {
					body = "-> ../" + first + "/layer.tar"
				} else {
					at[body] = dir
				}
				members = append(members, [2]string{dir + "/layer.tar", body})
				names = append(names, dir+"/layer.tar")
			}
			last := digest.FromString("top").Encoded()
			members = append(members, [2]string{last + "/layer.tar", "-> ../" + strings.TrimSuffix(names[len(names)-1], "/layer.tar") + "/layer.tar"})
			names[len(names)-1] = last + "/layer.tar"
			b := must(json.Marshal([]any{map[string]any{"Config": id + ".json", "RepoTags": []string{"demo:v1", "demo:v2"}, "Layers": names}}))
			return pack(append(members, [2]string{"manifest.json", string(b)}, [2]string{"repositories", `{"demo":{"v1":"` + last + `"}}`})...)
		}), imagestore.LoadOptions{ParseName: parseName}, []string{"docker.io/library/demo:v1", "docker.io/library/demo:v2"}},
		{"docker since 25: both layouts in one, with an index of an index", made(func(config []byte, layers [][]byte) []byte {
			var members [][2]string
			seen := map[string]bool{}
			put := func(mediaType string, b []byte) ocispec.Descriptor {
				d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
				if name := "blobs/sha256/" + d.Digest.Encoded(); !seen[name] {
					seen[name] = true
					members = append(members, [2]string{name, string(b)})
				}
				return d
			}
			m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: put(ocispec.MediaTypeImageConfig, config)}
			var names []string
			for _, l := range layers {
				m.Layers = append(m.Layers, put(ocispec.MediaTypeImageLayer, l))
				names = append(names, "blobs/sha256/"+digest.FromBytes(l).Encoded())
			}
			d := put(ocispec.MediaTypeImageManifest, must(json.Marshal(m)))
			d.Platform = &ocispec.Platform{OS: "linux", Architecture: "amd64"}
			other := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("not in the archive"), Size: 5, Platform: &ocispec.Platform{OS: "linux", Architecture: "arm64"}}
			proof := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("nor this"), Size: 5, Platform: &ocispec.Platform{OS: "unknown", Architecture: "unknown"}}
			index := func(ds ...ocispec.Descriptor) []byte {
				return must(json.Marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: ds}))
			}
			inner := put(ocispec.MediaTypeImageIndex, index(other, d, proof))
			inner.Annotations = map[string]string{"io.containerd.image.name": "docker.io/library/demo:v1", ocispec.AnnotationRefName: "v1"}
			members = append(members, [2]string{"index.json", string(index(inner))}, [2]string{"oci-layout", `{"imageLayoutVersion":"1.0.0"}`},
				[2]string{"manifest.json", string(must(json.Marshal([]any{map[string]any{"Config": "blobs/sha256/" + m.Config.Digest.Encoded(), "RepoTags": []string{"demo:v1"}, "Layers": names}})))})
			return pack(members...)
		}), imagestore.LoadOptions{}, []string{"docker.io/library/demo:v1"}},
		{"packed with gzip", func(t *testing.T, file string) {
			skopeo("docker-archive:FILE:registry.example/demo:v1")(t, file)
			if err := os.WriteFile(file, gz(must(os.ReadFile(file))), 0o600); err != nil {
				t.Fatal(err)
			}
		}, imagestore.LoadOptions{}, []string{"registry.example/demo:v1"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "archive")
			c.write(t, file)
			store := s.fresh(t)
			var phases []string
			c.o.Progress = func(e vic.Event) {
				if e.Op != "load" {
					t.Errorf("event %+v", e)
				}
				if !slices.Contains(phases, e.Phase) {
					phases = append(phases, e.Phase)
				}
			}
			got := loadFile(t, store, file, &c.o)
			var names []string
			for _, i := range got {
				names = append(names, i.Name())
				of := own[1]
				if strings.HasPrefix(c.name, "buildah") { // whose storage is slow without privileges
					of = own[0]
				}
				sameDisk(t, s.e, of, i)
			}
			if fmt.Sprint(names) != fmt.Sprint(c.want) || phases[0] != "read" {
				t.Errorf("loaded %q with phases %q; want %q", names, phases, c.want)
			}
			// What was loaded can go on.
			if err := store.Save(t.Context(), io.Discard, c.want, nil); err != nil {
				t.Error(err)
			}
		})
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// Whatever an archive holds, the result is its images or an error that says
// what is wrong, and then no name.
func TestHostileArchives(t *testing.T) {
	e := testlab.Start(t, testlab.Options{NoBoot: true})
	layer := oneFile("f", "layer")
	config := string(must(json.Marshal(ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}, RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(layer)}}})))
	id := digest.FromString(config).Encoded() + ".json"
	manifest := func(config, layer string, tags ...string) [2]string {
		return [2]string{"manifest.json", string(must(json.Marshal([]any{map[string]any{"Config": config, "RepoTags": tags, "Layers": []string{layer}}})))}
	}
	const name = "a.example/b:c"
	good := manifest(id, "layer.tar", name)
	body := [2]string{"layer.tar", string(layer)}
	conf := [2]string{id, config}

	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromString(config), Size: int64(len(config))},
		Layers: []ocispec.Descriptor{{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(layer), Size: int64(len(layer))}}}
	mb := string(must(json.Marshal(m)))
	blobName := func(s string) string { return "blobs/sha256/" + digest.FromString(s).Encoded() }
	md := ocispec.Descriptor{MediaType: m.MediaType, Digest: digest.FromString(mb), Size: int64(len(mb)), Annotations: map[string]string{ocispec.AnnotationRefName: name}}
	index := func(ds ...ocispec.Descriptor) [2]string {
		return [2]string{"index.json", string(must(json.Marshal(ocispec.Index{Manifests: ds})))}
	}
	mark := [2]string{"oci-layout", `{"imageLayoutVersion":"1.0.0"}`}
	confBlob, manBlob, layerBlob := [2]string{blobName(config), config}, [2]string{blobName(mb), mb}, [2]string{blobName(string(layer)), string(layer)}

	for _, c := range []struct {
		name    string
		archive []byte
		o       imagestore.LoadOptions
		kind    error
		text    string // empty: it loads
	}{
		{"docker-archive", pack(conf, body, good), imagestore.LoadOptions{}, nil, ""},
		{"layout", pack(mark, index(md), confBlob, manBlob, layerBlob), imagestore.LoadOptions{}, nil, ""},
		{"names with ./", pack([2]string{"./" + id, config}, [2]string{"./layer.tar", string(layer)}, [2]string{"./manifest.json", good[1]}), imagestore.LoadOptions{}, nil, ""},
		{"nothing", nil, imagestore.LoadOptions{}, vic.ErrInvalid, "empty"},
		{"no tar", []byte(strings.Repeat("no tar ", 300)), imagestore.LoadOptions{}, vic.ErrInvalid, "archive"},
		{"another tar", layer, imagestore.LoadOptions{}, vic.ErrUnsupported, "no archive of images"},
		{"cut off", pack(conf, body, good)[:1500], imagestore.LoadOptions{}, nil, "archive"},
		{"a name that leads out", pack([2]string{"../../etc/passwd", "x"}, conf, body, good), imagestore.LoadOptions{}, vic.ErrInvalid, "../../etc/passwd"},
		{"an absolute name", pack([2]string{"/etc/passwd", "x"}, conf, body, good), imagestore.LoadOptions{}, vic.ErrInvalid, "/etc/passwd"},
		{"a link that leads out", pack(conf, [2]string{"layer.tar", "-> ../../../etc/passwd"}, good), imagestore.LoadOptions{}, vic.ErrInvalid, "leads out"},
		{"an absolute link", pack(conf, [2]string{"layer.tar", "-> /etc/passwd"}, good), imagestore.LoadOptions{}, vic.ErrInvalid, "leads out"},
		{"links in a circle", pack(conf, [2]string{"layer.tar", "-> a"}, [2]string{"a", "-> b"}, [2]string{"b", "-> a"}, good), imagestore.LoadOptions{}, vic.ErrInvalid, "leads to no file"},
		{"a link to itself", pack(conf, [2]string{"layer.tar", "-> layer.tar"}, good), imagestore.LoadOptions{}, vic.ErrInvalid, "leads to no file"},
		{"a link to nothing", pack(conf, [2]string{"layer.tar", "-> gone"}, good), imagestore.LoadOptions{}, vic.ErrInvalid, "link to"},
		{"a layer outside", pack(conf, body, manifest(id, "../layer.tar", name)), imagestore.LoadOptions{}, vic.ErrInvalid, "leads out"},
		{"a configuration outside", pack(conf, body, manifest("/etc/passwd", "layer.tar", name)), imagestore.LoadOptions{}, vic.ErrInvalid, "leads out"},
		{"a layer is missing", pack(conf, good), imagestore.LoadOptions{}, vic.ErrInvalid, "layer.tar"},
		{"the configuration is missing", pack(body, good), imagestore.LoadOptions{}, vic.ErrInvalid, id},
		{"the configuration is another", pack([2]string{id, config + " "}, body, good), imagestore.LoadOptions{}, vic.ErrInvalid, "is sha256:"},
		{"the layer is another", pack(conf, [2]string{"layer.tar", string(oneFile("f", "evil"))}, good), imagestore.LoadOptions{}, vic.ErrInvalid, "diff ID"},
		{"a member twice, differently", pack(conf, body, [2]string{"layer.tar", "x"}, good), imagestore.LoadOptions{}, vic.ErrInvalid, "twice"},
		{"a member twice, the same", pack(conf, body, body, good), imagestore.LoadOptions{}, nil, ""},
		{"larger than what is taken", pack(conf, [2]string{"layer.tar", strings.Repeat("x", 1<<20)}, good), imagestore.LoadOptions{MaxBytes: 1 << 19}, vic.ErrInvalid, "larger than"},
		{"a member of a petabyte", petabyte(), imagestore.LoadOptions{}, vic.ErrInvalid, "larger than"},
		{"a sparse member of a petabyte", sparsePetabyte(t), imagestore.LoadOptions{}, vic.ErrInvalid, "huge"},
		{"gzip with a wrong checksum", func() []byte {
			b := gz(pack(conf, body, good))
			b[len(b)-6] ^= 1
			return b
		}(), imagestore.LoadOptions{}, vic.ErrInvalid, "checksum"},
		{"padding behind the end", append(pack(conf, body, good), make([]byte, 3<<20)...), imagestore.LoadOptions{}, nil, ""},
		{"a device", func() []byte {
			var b bytes.Buffer
			w := tar.NewWriter(&b)
			_ = w.WriteHeader(&tar.Header{Typeflag: tar.TypeChar, Name: "layer.tar"})
			_ = w.Close()
			return b.Bytes()
		}(), imagestore.LoadOptions{}, vic.ErrInvalid, "neither a file"},
		{"manifest.json is no JSON", pack(conf, body, [2]string{"manifest.json", "<html>"}), imagestore.LoadOptions{}, vic.ErrInvalid, "manifest.json"},
		{"manifest.json of 5 MB", pack(conf, body, [2]string{"manifest.json", strings.Repeat(" ", 5<<20)}), imagestore.LoadOptions{}, vic.ErrInvalid, "at most"},
		{"manifest.json names nothing", pack(conf, body, [2]string{"manifest.json", "[]"}), imagestore.LoadOptions{}, vic.ErrInvalid, "0 images"},
		{"no name", pack(conf, body, manifest(id, "layer.tar")), imagestore.LoadOptions{}, vic.ErrInvalid, "without a name"},
		{"a name that is none", pack(conf, body, manifest(id, "layer.tar", "A B")), imagestore.LoadOptions{ParseName: parseName}, vic.ErrInvalid, "A B"},
		{"a name without registry", pack(conf, body, manifest(id, "layer.tar", "b:c")), imagestore.LoadOptions{}, vic.ErrInvalid, "full name"},
		{"a bomb", bomb(1 << 30), imagestore.LoadOptions{MaxBytes: 1 << 20}, vic.ErrInvalid, "archive"},
		{"layout: a blob is missing", pack(mark, index(md), confBlob, manBlob), imagestore.LoadOptions{}, vic.ErrInvalid, blobName(string(layer))},
		{"layout: the manifest is missing", pack(mark, index(md), confBlob, layerBlob), imagestore.LoadOptions{}, vic.ErrInvalid, blobName(mb)},
		{"layout: a blob is another", pack(mark, index(md), confBlob, manBlob, [2]string{layerBlob[0], string(oneFile("f", "evil"))}), imagestore.LoadOptions{}, vic.ErrInvalid, "in place of"},
		{"layout: the manifest is another", pack(mark, index(md), confBlob, [2]string{manBlob[0], mb + " "}, layerBlob), imagestore.LoadOptions{}, vic.ErrInvalid, "something else"},
		{"layout: another version", pack([2]string{"oci-layout", `{"imageLayoutVersion":"2.0.0"}`}, index(md)), imagestore.LoadOptions{}, vic.ErrUnsupported, "2.0.0"},
		{"layout: nothing in it", pack(mark, index()), imagestore.LoadOptions{}, vic.ErrInvalid, "0 images"},
		{"layout: a digest that is a path", pack(mark, index(ocispec.Descriptor{MediaType: md.MediaType, Digest: "sha256:../../../etc/passwd", Size: 3, Annotations: md.Annotations})), imagestore.LoadOptions{}, vic.ErrInvalid, "digest"},
		{"layout: two without a name", pack(mark, index(ocispec.Descriptor{MediaType: md.MediaType, Digest: md.Digest, Size: md.Size}, ocispec.Descriptor{MediaType: md.MediaType, Digest: digest.FromString("other"), Size: 3}), manBlob, confBlob, layerBlob), imagestore.LoadOptions{Name: name}, vic.ErrUnsupported, "not made for"},
		{"of two images the second is bad", pack(conf, body, [2]string{"manifest.json", strings.TrimSuffix(good[1], "]") + "," + manifest(id, "gone.tar", "a.example/b:d")[1][1:]}), imagestore.LoadOptions{}, vic.ErrInvalid, "gone.tar"},
		{"a wrong option", nil, imagestore.LoadOptions{Name: "b"}, vic.ErrInvalid, "neither a tag"},
	} {
		t.Run(c.name, func(t *testing.T) {
			temp := t.TempDir()
			store := must(imagestore.OpenNamed(t.Context(), e.Client, "datastore1/"+digest.FromString(c.name).Encoded(), &imagestore.Options{Bytes: 256 << 20, TempDir: temp}))
			got, err := store.Load(t.Context(), bytes.NewReader(c.archive), &c.o)
			if left := must(os.ReadDir(temp)); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
			if c.text == "" {
				if err != nil || len(got) != 1 || got[0].Name() != name {
					t.Errorf("%+v, %v", got, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.text) || c.kind != nil && !errors.Is(err, c.kind) {
				t.Errorf("error %v; want one of kind %v with %q", err, c.kind, c.text)
			}
			if all, err := store.List(t.Context()); err != nil || len(all) > 0 {
				t.Errorf("there is %v, %v", all, err)
			}
		})
	}
}

// petabyte is a member that says it is so large.
func petabyte() []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	_ = w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "huge", Size: 1 << 50})
	return append(b.Bytes(), make([]byte, 4096)...)
}

// sparsePetabyte is one that unrolls to so much.
func sparsePetabyte(t *testing.T) []byte {
	t.Helper()
	dir := t.TempDir()
	f := must(os.Create(filepath.Join(dir, "huge")))
	if err := f.Truncate(1 << 42); err != nil {
		t.Fatal(err)
	}
	f.Close()
	return must(exec.CommandContext(t.Context(), "tar", "-C", dir, "--format=pax", "--sparse", "-c", "huge").Output())
}

// FuzzLoad gives a store any archive.
func FuzzLoad(f *testing.F) {
	layer := oneFile("f", "x")
	const config = `{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":["sha256:0000000000000000000000000000000000000000000000000000000000000000"]}}`
	f.Add(pack([2]string{"c.json", config}, [2]string{"l.tar", string(layer)}, [2]string{"manifest.json", `[{"Config":"c.json","RepoTags":["a.example/b:c"],"Layers":["l.tar"]}]`}))
	f.Add(pack([2]string{"oci-layout", `{"imageLayoutVersion":"1.0.0"}`}, [2]string{"index.json", `{"manifests":[{"digest":"sha256:00"}]}`}, [2]string{"a", "-> b"}, [2]string{"b", "-> a"}))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, b []byte) {
		images, err := imagestore.DescribeArchive(t.Context(), dir, b)
		if err == nil && images == 0 {
			t.Fatal("accepted an archive without images")
		}
	})
}
