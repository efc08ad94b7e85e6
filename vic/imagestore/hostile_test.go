package imagestore_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/internal/testlab"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/imagestore"
)

// memory is a repository in memory that may lie.
type memory struct {
	tags  map[string]ocispec.Descriptor
	blobs map[digest.Digest][]byte
}

func (m *memory) Resolve(_ context.Context, ref string) (ocispec.Descriptor, error) {
	d, ok := m.tags[ref]
	if !ok {
		return d, fmt.Errorf("no tag %q", ref)
	}
	return d, nil
}

func (m *memory) Fetch(_ context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	b, ok := m.blobs[d.Digest]
	if !ok {
		return nil, fault.Of(vic.ErrNotFound, "no blob %s", d.Digest)
	}
	return io.NopCloser(bytes.NewReader(b)), nil
}

func (m *memory) put(mediaType string, b []byte) ocispec.Descriptor {
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	m.blobs[d.Digest] = b
	return d
}

func (m *memory) putJSON(mediaType string, v any) ocispec.Descriptor {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return m.put(mediaType, b)
}

// fake is an image that a case spoils before it is put into a repository.
type fake struct {
	m        *memory
	config   ocispec.Image
	manifest ocispec.Manifest
	// after spoils what the manifest became, nil for nothing.
	after func(d ocispec.Descriptor) ocispec.Descriptor
}

func gz(b []byte) []byte {
	var w bytes.Buffer
	z := gzip.NewWriter(&w)
	_, _ = z.Write(b)
	_ = z.Close()
	return w.Bytes()
}

func oneFile(name, body string) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	_ = w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(body))})
	_, _ = io.WriteString(w, body)
	_ = w.Close()
	return b.Bytes()
}

// newFake makes an image whose layers no other case has.
func newFake(name string) *fake {
	f := &fake{m: &memory{tags: map[string]ocispec.Descriptor{}, blobs: map[digest.Digest][]byte{}}}
	f.config = ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}, RootFS: ocispec.RootFS{Type: "layers"}}
	f.config.Config.Cmd = []string{"sh"}
	for i := range 2 {
		t := oneFile(fmt.Sprintf("file%d", i), name)
		f.config.RootFS.DiffIDs = append(f.config.RootFS.DiffIDs, digest.FromBytes(t))
		f.manifest.Layers = append(f.manifest.Layers, f.m.put(ocispec.MediaTypeImageLayerGzip, gz(t)))
	}
	return f
}

func (f *fake) tag() {
	f.manifest.SchemaVersion = 2
	f.manifest.MediaType = ocispec.MediaTypeImageManifest
	if f.manifest.Config.Digest == "" {
		f.manifest.Config = f.m.putJSON(ocispec.MediaTypeImageConfig, f.config)
	}
	d := f.m.putJSON(ocispec.MediaTypeImageManifest, f.manifest)
	if f.after != nil {
		d = f.after(d)
	}
	f.m.tags["x"] = d
}

// replace gives the second layer another blob and diff ID.
func (f *fake) replace(packed, plain []byte) {
	f.manifest.Layers[1] = f.m.put(ocispec.MediaTypeImageLayerGzip, packed)
	f.config.RootFS.DiffIDs[1] = digest.FromBytes(plain)
}

// Whatever a registry sends, the result is the image or an error that says what
// is wrong, memory stays bounded and nothing half-made is seen.
func TestHostileRegistry(t *testing.T) {
	e := testlab.Start(t, testlab.Options{NoBoot: true})
	store := e.Open(t, e.Client, &imagestore.Options{Bytes: 256 << 20}).Images()
	for _, c := range []struct {
		name  string
		spoil func(f *fake)
		kind  error  // nil: any
		text  string // of the error; empty: the pull succeeds
	}{
		{"nothing wrong", func(*fake) {}, nil, ""},
		{"plain layer with the type of gzip", func(f *fake) {
			p := oneFile("plain", "not packed")
			f.replace(p, p)
		}, nil, ""},
		{"layer without entries", func(f *fake) { f.replace(gz(make([]byte, 1024)), make([]byte, 1024)) }, nil, ""},
		{"blob is something else", func(f *fake) {
			f.m.blobs[f.manifest.Layers[1].Digest] = gz(oneFile("evil", "which is longer than the layer that it stands for, packed"))
		}, vic.ErrInvalid, "layer 2"},
		{"blob is cut off", func(f *fake) {
			d := f.manifest.Layers[1].Digest
			f.m.blobs[d] = f.m.blobs[d][:40]
		}, nil, "layer 2"},
		{"blob goes on", func(f *fake) {
			d := f.manifest.Layers[1].Digest
			f.m.blobs[d] = append(bytes.Clone(f.m.blobs[d]), make([]byte, 1<<20)...)
		}, vic.ErrInvalid, "layer 2"},
		{"blob is missing", func(f *fake) { delete(f.m.blobs, f.manifest.Layers[1].Digest) }, nil, "no blob"},
		{"wrong diff ID", func(f *fake) { f.config.RootFS.DiffIDs[1] = digest.FromString("another") }, vic.ErrInvalid, "diff ID"},
		{"diff ID of another algorithm", func(f *fake) { f.config.RootFS.DiffIDs[1] = digest.SHA512.FromString("x") }, vic.ErrInvalid, "diff ID 2"},
		{"too few diff IDs", func(f *fake) { f.config.RootFS.DiffIDs = f.config.RootFS.DiffIDs[:1] }, vic.ErrInvalid, "diff IDs"},
		{"no layers", func(f *fake) { f.manifest.Layers, f.config.RootFS.DiffIDs = nil, nil }, vic.ErrUnsupported, "no layers"},
		{"another platform", func(f *fake) { f.config.Architecture = "s390x" }, vic.ErrUnsupported, "linux/s390x"},
		{"another layer type", func(f *fake) { f.manifest.Layers[1].MediaType = "application/vnd.wasm.content.layer.v1+wasm" }, vic.ErrUnsupported, "wasm"},
		{"negative size", func(f *fake) { f.manifest.Layers[1].Size = -1 }, vic.ErrInvalid, "negative"},
		{"digest is a path", func(f *fake) { f.manifest.Layers[1].Digest = "sha256:../../../etc/passwd" }, vic.ErrInvalid, "digest"},
		{"configuration is no image's", func(f *fake) {
			f.manifest.Config = f.m.putJSON("application/vnd.cncf.helm.config.v1+json", f.config)
		}, vic.ErrUnsupported, "helm"},
		{"configuration is no JSON", func(f *fake) { f.manifest.Config = f.m.put(ocispec.MediaTypeImageConfig, []byte("<html>")) }, vic.ErrInvalid, "invalid character"},
		{"manifest is something else", func(f *fake) {
			f.after = func(d ocispec.Descriptor) ocispec.Descriptor { f.m.blobs[d.Digest] = []byte("{}"); return d }
		}, vic.ErrInvalid, "something else"},
		{"manifest of a gigabyte", func(f *fake) {
			f.after = func(d ocispec.Descriptor) ocispec.Descriptor { d.Size = 1 << 30; return d }
		}, vic.ErrInvalid, "at most"},
		{"manifest of schema 1", func(f *fake) {
			f.after = func(d ocispec.Descriptor) ocispec.Descriptor {
				d.MediaType = "application/vnd.docker.distribution.manifest.v1+prettyjws"
				return d
			}
		}, vic.ErrUnsupported, "schema 1"},
		{"index without the platform", func(f *fake) {
			f.after = func(d ocispec.Descriptor) ocispec.Descriptor {
				d.Platform = &ocispec.Platform{OS: "windows", Architecture: "amd64"}
				return f.m.putJSON(ocispec.MediaTypeImageIndex, ocispec.Index{Manifests: []ocispec.Descriptor{d}})
			}
		}, vic.ErrUnsupported, "windows/amd64"},
		{"index of itself", func(f *fake) {
			f.after = func(d ocispec.Descriptor) ocispec.Descriptor {
				for range 5 {
					d = f.m.putJSON(ocispec.MediaTypeImageIndex, ocispec.Index{Manifests: []ocispec.Descriptor{d}})
				}
				return d
			}
		}, vic.ErrUnsupported, "nested"},
		{"no archive", func(f *fake) { b := []byte(strings.Repeat("no tar ", 200)); f.replace(gz(b), b) }, nil, "layer 2"},
		{"packed with xz", func(f *fake) { b := []byte("\xfd7zXZ\x00........"); f.replace(b, b) }, vic.ErrUnsupported, "xz"},
		{"archive cut off in a file", func(f *fake) { b := oneFile("f", strings.Repeat("x", 4000))[:1024]; f.replace(gz(b), b) }, nil, "layer 2"},
		{"bomb: 4 GiB of zeroes", func(f *fake) { f.replace(bomb(4<<30), nil) }, vic.ErrInvalid, "unpacks to more than"},
		{"more layers than a chain has disks", func(f *fake) {
			for i := range 40 {
				p := oneFile(fmt.Sprint("f", i), "x")
				f.manifest.Layers = append(f.manifest.Layers, f.m.put(ocispec.MediaTypeImageLayerGzip, gz(p)))
				f.config.RootFS.DiffIDs = append(f.config.RootFS.DiffIDs, digest.FromBytes(p))
			}
		}, nil, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFake(c.name)
			c.spoil(f)
			f.tag()
			name := "registry.example/" + strings.ReplaceAll(strings.ToLower(c.name), " ", "-") + ":x"
			img, err := store.Pull(t.Context(), f.m, name, nil)
			if c.text == "" {
				if err != nil {
					t.Fatal(err)
				}
				if d, err := store.Image(t.Context(), name); err != nil || d.Root() != img.Root() {
					t.Errorf("opened: %+v, %v", d, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.text) || c.kind != nil && !errors.Is(err, c.kind) {
				t.Errorf("error %v; want one of kind %v with %q", err, c.kind, c.text)
			}
			if _, err := store.Image(t.Context(), name); !errors.Is(err, vic.ErrNotFound) {
				t.Errorf("the image is there: %v", err)
			}
		})
	}
	for _, f := range e.Files(t) {
		if strings.Contains(f, "/.new-") {
			t.Errorf("left: %s", f)
		}
	}
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	t.Logf("memory obtained from the system over all cases: %d MB", m.Sys>>20)
	if m.Sys > 1<<30 {
		t.Errorf("%d MB of memory were needed", m.Sys>>20)
	}
}

// bomb is a gzip stream of n zero bytes: one member of 64 MiB again and again.
func bomb(n int) []byte {
	const member = 64 << 20
	one := gz(make([]byte, member))
	return bytes.Repeat(one, n/member)
}

// FuzzManifest gives a store any index, manifest and configuration; no index
// where it is empty. In the index MANIFEST-DIGEST and MANIFEST-SIZE stand for
// those of the manifest, CONFIG-… in the manifest for the configuration's, and
// LAYER-… for a layer's, which no mutation would hit upon.
func FuzzManifest(f *testing.F) {
	layer := gz(oneFile("f", "x"))
	const config = `{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":["DIFF-ID"]},"config":{"Cmd":["sh"]}}`
	const manifest = `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"CONFIG-DIGEST","size":CONFIG-SIZE},` +
		`"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"LAYER-DIGEST","size":LAYER-SIZE}]}`
	const index = `{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"MANIFEST-DIGEST","size":MANIFEST-SIZE,"platform":{"os":"linux","architecture":"amd64"}}]}`
	f.Add("", manifest, config)
	f.Add("", strings.ReplaceAll(manifest, "vnd.oci.image.manifest.v1", "vnd.docker.distribution.manifest.v2"), config)
	f.Add(index, manifest, config)
	f.Add(`{"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"MANIFEST-DIGEST","size":MANIFEST-SIZE}]}`, manifest, config)
	f.Add(strings.ReplaceAll(index, `"linux"`, `"windows"`), manifest, config)
	f.Fuzz(func(t *testing.T, index, manifest, config string) {
		m := &memory{tags: map[string]ocispec.Descriptor{}, blobs: map[digest.Digest][]byte{}}
		fill := func(text, what string, d ocispec.Descriptor) string {
			return strings.NewReplacer(what+"-DIGEST", d.Digest.String(), what+"-SIZE", fmt.Sprint(d.Size)).Replace(text)
		}
		config = strings.ReplaceAll(config, "DIFF-ID", digest.FromBytes(oneFile("f", "x")).String())
		manifest = fill(manifest, "LAYER", m.put(ocispec.MediaTypeImageLayerGzip, layer))
		manifest = fill(manifest, "CONFIG", m.put(ocispec.MediaTypeImageConfig, []byte(config)))
		d := m.put(ocispec.MediaTypeImageManifest, []byte(manifest))
		if index != "" {
			d = m.put(ocispec.MediaTypeImageIndex, []byte(fill(index, "MANIFEST", d)))
		}
		m.tags["x"] = d
		layers, diffIDs, err := imagestore.Describe(t.Context(), m, "x")
		if err == nil && (layers == 0 || layers != diffIDs) {
			t.Fatalf("accepted an image of %d layers and %d diff IDs", layers, diffIDs)
		}
	})
}

// FuzzDecompress compares what a pull makes of gzip's bytes with what the
// standard library does, and of all others wants an end.
func FuzzDecompress(f *testing.F) {
	t := oneFile("f", strings.Repeat("contents", 100))
	f.Add(t)
	f.Add(gz(t))
	f.Add(append(gz(t[:700]), gz(t[700:])...))
	f.Add(gz(make([]byte, 1<<20)))
	f.Add(zst(t))
	f.Add(append([]byte("\x50\x2a\x4d\x18\x04\x00\x00\x00skip"), zst(t)...))
	f.Add([]byte("\x28\xb5\x2f\xfd\x20\x05\x01\x00\x00"))
	f.Add([]byte("\xfd7zXZ\x00"))
	f.Fuzz(func(t *testing.T, packed []byte) {
		const limit = 4 << 20
		got, err := imagestore.Decompress(packed, limit)
		if !bytes.HasPrefix(packed, []byte("\x1f\x8b")) {
			return
		}
		var want []byte
		z, wantErr := gzip.NewReader(bytes.NewReader(packed))
		if wantErr == nil {
			want, wantErr = io.ReadAll(io.LimitReader(z, limit))
		}
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("error %v; the standard library's %v", err, wantErr)
		}
		if err == nil && !bytes.Equal(got, want) {
			t.Fatalf("%d bytes, other than the standard library's %d", len(got), len(want))
		}
	})
}
