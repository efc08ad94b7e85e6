package testimage_test

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/vicsdk/vic-go/internal/testimage"
)

// need skips the test where a program is missing, but not in CI, which has
// to install it.
func need(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
	}
}

func output(t *testing.T, stdin []byte, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Stdin = bytes.NewReader(stdin)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, stderr.Bytes())
	}
	return out
}

func small() *testimage.Image {
	first := testimage.NewLayer()
	first.AddDir("d", nil)
	first.AddFile("d/f", []byte(strings.Repeat("hello ", 1000)), nil)
	second := testimage.NewLayer()
	second.Whiteout("d/f")
	return &testimage.Image{
		Config: ocispec.ImageConfig{Cmd: []string{"true"}, User: "1:2"},
		Extra:  map[string]any{"Healthcheck": map[string]any{"Test": []string{"NONE"}}},
		Steps:  []testimage.Step{{Layer: first, CreatedBy: "one"}, {CreatedBy: "ENV"}, {Layer: second, CreatedBy: "two"}, {Layer: testimage.NewLayer()}},
	}
}

// blob reads a blob of a layout and checks its digest and size.
func blob(t *testing.T, dir string, desc ocispec.Descriptor) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, "blobs/sha256", desc.Digest.Encoded()))
	if err != nil {
		t.Fatal(err)
	}
	if digest.FromBytes(text) != desc.Digest || int64(len(text)) != desc.Size {
		t.Fatalf("blob %s: has digest %s and %d bytes, want %d", desc.Digest, digest.FromBytes(text), len(text), desc.Size)
	}
	return text
}

func TestWrite(t *testing.T) {
	need(t, "skopeo", "gzip", "zstd")
	docker := "application/vnd.docker."
	for _, tc := range []struct {
		name                    string
		opts                    *testimage.Options
		manifest, config, layer string
		decompress              []string
	}{
		{"default", nil, ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageConfig, ocispec.MediaTypeImageLayerGzip, []string{"gzip", "-d"}},
		{"zstd", &testimage.Options{Compression: testimage.Zstd}, ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageConfig, ocispec.MediaTypeImageLayerZstd, []string{"zstd", "-d"}},
		{"plain", &testimage.Options{Compression: testimage.Plain}, ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageConfig, ocispec.MediaTypeImageLayer, []string{"cat"}},
		{"docker", &testimage.Options{Docker: true}, docker + "distribution.manifest.v2+json", docker + "container.image.v1+json", docker + "image.rootfs.diff.tar.gzip", []string{"gzip", "-d"}},
		{"docker plain", &testimage.Options{Docker: true, Compression: testimage.Plain}, docker + "distribution.manifest.v2+json", docker + "container.image.v1+json", docker + "image.rootfs.diff.tar", []string{"cat"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			desc, err := small().Write(t.Context(), dir, tc.opts)
			if err != nil {
				t.Fatal(err)
			}
			if desc.MediaType != tc.manifest {
				t.Errorf("manifest's type %s, want %s", desc.MediaType, tc.manifest)
			}
			var m ocispec.Manifest
			if err := json.Unmarshal(blob(t, dir, desc), &m); err != nil {
				t.Fatal(err)
			}
			if m.MediaType != tc.manifest || m.Config.MediaType != tc.config {
				t.Errorf("types %s and %s, want %s and %s", m.MediaType, m.Config.MediaType, tc.manifest, tc.config)
			}
			var c struct {
				ocispec.Image
				Config struct {
					User        string
					Healthcheck struct{ Test []string }
				} `json:"config"`
			}
			if err := json.Unmarshal(blob(t, dir, m.Config), &c); err != nil {
				t.Fatal(err)
			}
			if c.Config.User != "1:2" || len(c.Config.Healthcheck.Test) != 1 || c.Architecture != "amd64" || c.OS != "linux" {
				t.Errorf("config %+v", c)
			}
			var empty []bool
			for _, h := range c.History {
				empty = append(empty, h.EmptyLayer)
			}
			if d := cmp.Diff([]bool{false, true, false, false}, empty); d != "" {
				t.Errorf("empty layers: -want +got\n%s", d)
			}
			if len(m.Layers) != 3 || len(c.RootFS.DiffIDs) != 3 {
				t.Fatalf("%d layers, %d diff IDs, want 3", len(m.Layers), len(c.RootFS.DiffIDs))
			}
			for i, l := range m.Layers {
				if l.MediaType != tc.layer {
					t.Errorf("layer %d: type %s, want %s", i, l.MediaType, tc.layer)
				}
				tar := output(t, blob(t, dir, l), tc.decompress[0], tc.decompress[1:]...)
				if got := digest.FromBytes(tar); got != c.RootFS.DiffIDs[i] {
					t.Errorf("layer %d: unpacked by %s it has the digest %s, want the diff ID %s", i, tc.decompress[0], got, c.RootFS.DiffIDs[i])
				}
			}
			// skopeo reads no Docker manifest from an OCI layout; for those the
			// registry is the witness, see the package testregistry.
			if tc.opts == nil || !tc.opts.Docker {
				if got := output(t, nil, "skopeo", "inspect", "--raw", "oci:"+dir+":latest"); digest.FromBytes(got) != desc.Digest {
					t.Errorf("skopeo reads a manifest of digest %s, want %s", digest.FromBytes(got), desc.Digest)
				}
			}

			again, err := small().Write(t.Context(), t.TempDir(), tc.opts)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(desc, again); d != "" {
				t.Errorf("the same image written again: -first +second\n%s", d)
			}
		})
	}
}

func TestWriteTags(t *testing.T) {
	need(t, "skopeo")
	dir := t.TempDir()
	var last ocispec.Descriptor
	for _, user := range []string{"a", "b"} {
		for _, tag := range []string{"x", "y"} {
			im := small()
			im.Config.User = user + tag
			desc, err := im.Write(t.Context(), dir, &testimage.Options{Tag: tag})
			if err != nil {
				t.Fatal(err)
			}
			last = desc
		}
	}
	var index ocispec.Index
	text, err := os.ReadFile(filepath.Join(dir, "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &index); err != nil {
		t.Fatal(err)
	}
	if len(index.Manifests) != 2 {
		t.Errorf("%d manifests, want one for each of two tags", len(index.Manifests))
	}
	if got := output(t, nil, "skopeo", "inspect", "--raw", "oci:"+dir+":y"); digest.FromBytes(got) != last.Digest {
		t.Errorf("tag y is %s, want %s", digest.FromBytes(got), last.Digest)
	}
}

func TestWriteIndex(t *testing.T) {
	need(t, "skopeo")
	for _, docker := range []bool{false, true} {
		dir := t.TempDir()
		amd, arm := small(), small()
		arm.Platform = ocispec.Platform{Architecture: "arm64", Variant: "v8"}
		desc, err := testimage.WriteIndex(t.Context(), dir, []*testimage.Image{amd, arm}, &testimage.Options{Docker: docker})
		if err != nil {
			t.Fatal(err)
		}
		var index ocispec.Index
		if err := json.Unmarshal(blob(t, dir, desc), &index); err != nil {
			t.Fatal(err)
		}
		if len(index.Manifests) != 2 || index.MediaType != desc.MediaType {
			t.Fatalf("index %+v", index)
		}
		for i, arch := range []string{"amd64", "arm64"} {
			if got := index.Manifests[i].Platform; got == nil || got.Architecture != arch || got.OS != "linux" {
				t.Errorf("manifest %d: platform %+v, want %s", i, got, arch)
			}
			if docker {
				continue
			}
			got := output(t, nil, "skopeo", "--override-arch", arch, "inspect", "--config", "oci:"+dir+":latest")
			if !bytes.Contains(got, []byte(arch)) {
				t.Errorf("skopeo chooses %s for %s", got, arch)
			}
		}
	}
}

func TestWriteRefuses(t *testing.T) {
	bad := testimage.NewLayer()
	bad.AddXattr("none", "user.x", "")
	for _, tc := range []struct {
		name string
		im   *testimage.Image
		opts *testimage.Options
		want string
	}{
		{"docker zstd", small(), &testimage.Options{Docker: true, Compression: testimage.Zstd}, "Docker schema 2 has no media type"},
		{"compression", small(), &testimage.Options{Compression: "rar"}, `unknown "rar"`},
		{"layer", &testimage.Image{Steps: []testimage.Step{{Layer: bad, CreatedBy: "me"}}}, nil, "step 0 (me): add xattr"},
		{"source", &testimage.Image{Steps: []testimage.Step{{Layer: testimage.RawLayer(func() (io.ReadCloser, error) { return nil, os.ErrClosed })}}}, nil, "file already closed"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			_, err := tc.im.Write(t.Context(), dir, tc.opts)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
			if left, _ := filepath.Glob(filepath.Join(dir, "blobs/sha256/.*")); len(left) > 0 {
				t.Errorf("left over: %q", left)
			}
		})
	}
}
