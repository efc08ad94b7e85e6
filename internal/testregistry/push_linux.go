package testregistry

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Push copies an image, or an index with all its images, from an OCI layout
// to the registry with skopeo, without changing a byte of it. The layout is
// "path" (of the tag "latest") or "path:tag"; name is "name" or "name:tag".
// It returns the full name, which begins with [Registry.Addr], and the
// digest of the manifest or index.
func (r *Registry) Push(ctx context.Context, layout, name string) (ref string, dgst digest.Digest, err error) {
	if _, err := exec.LookPath("skopeo"); err != nil {
		return "", "", fmt.Errorf("skopeo: %w", ErrMissing)
	}
	path, tag := layout, "latest"
	if _, err := os.Stat(layout); err != nil {
		at := strings.LastIndexByte(layout, ':')
		if at < 0 {
			return "", "", fmt.Errorf("layout: %w", err)
		}
		path, tag = layout[:at], layout[at+1:]
	}
	desc, err := findTag(path, tag)
	if err != nil {
		return "", "", err
	}
	work, err := os.MkdirTemp(r.dir, "push-")
	if err != nil {
		return "", "", err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	view := filepath.Join(work, "image")
	if err := directoryView(path, desc, view); err != nil {
		return "", "", err
	}
	auth, err := r.authFile(work)
	if err != nil {
		return "", "", err
	}
	ref = r.addr + "/" + name
	// The image goes by the "dir" transport as skopeo's "oci" transport
	// refuses Docker's media types.
	cmd := exec.CommandContext(ctx, "skopeo", "--insecure-policy", "copy", "--quiet", "--all", "--preserve-digests",
		"--dest-tls-verify=false", "--dest-authfile", auth, "dir:"+view, "docker://"+ref)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", "", fmt.Errorf("push %s: skopeo: %w: %s", ref, err, bytes.TrimSpace(out))
	}
	return ref, desc.Digest, nil
}

func findTag(path, tag string) (ocispec.Descriptor, error) {
	name := filepath.Join(path, ocispec.ImageIndexFile)
	text, err := os.ReadFile(name)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("layout: %w", err)
	}
	var index ocispec.Index
	if err := json.Unmarshal(text, &index); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("layout: %s: %w", name, err)
	}
	for _, m := range index.Manifests {
		if m.Annotations[ocispec.AnnotationRefName] == tag {
			return m, nil
		}
	}
	return ocispec.Descriptor{}, fmt.Errorf("layout: %s has no tag %q", path, tag)
}

// directoryView makes a directory as skopeo's "dir" transport wants it
// (containers/image, directory/directory_transport.go) out of links to the
// blobs of a layout.
func directoryView(layout string, desc ocispec.Descriptor, view string) error {
	layout, err := filepath.Abs(layout)
	if err != nil {
		return err
	}
	if err := os.Mkdir(view, 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(view, "version"), []byte("Directory Transport Version: 1.1\n"), 0o600); err != nil {
		return err
	}
	return linkManifest(layout, desc, view, "manifest.json")
}

func linkManifest(layout string, desc ocispec.Descriptor, view, as string) error {
	file, err := blobFile(layout, desc)
	if err != nil {
		return err
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(view, as), text, 0o600); err != nil {
		return err
	}
	var m struct {
		Config    ocispec.Descriptor   `json:"config"`
		Layers    []ocispec.Descriptor `json:"layers"`
		Manifests []ocispec.Descriptor `json:"manifests"`
	}
	if err := json.Unmarshal(text, &m); err != nil {
		return fmt.Errorf("layout: manifest %s: %w", desc.Digest, err)
	}
	for _, child := range m.Manifests {
		if err := linkManifest(layout, child, view, child.Digest.Encoded()+".manifest.json"); err != nil {
			return err
		}
	}
	blobs := m.Layers
	if len(m.Manifests) == 0 {
		blobs = append(blobs, m.Config)
	}
	for _, b := range blobs {
		file, err := blobFile(layout, b)
		if err != nil {
			return err
		}
		// Layers of one image, or of several, may be the same.
		if err := os.Symlink(file, filepath.Join(view, b.Digest.Encoded())); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	return nil
}

func blobFile(layout string, desc ocispec.Descriptor) (string, error) {
	if err := desc.Digest.Validate(); err != nil {
		return "", fmt.Errorf("layout: digest %q: %w", desc.Digest, err)
	}
	return filepath.Join(layout, ocispec.ImageBlobsDir, desc.Digest.Algorithm().String(), desc.Digest.Encoded()), nil
}

// authFile writes what skopeo may send as credentials, so that they appear
// in no process list and none of the machine's own are used.
func (r *Registry) authFile(dir string) (string, error) {
	type entry struct {
		Auth string `json:"auth"`
	}
	auths := map[string]entry{}
	if r.opts.Username != "" {
		auths[r.addr] = entry{base64.StdEncoding.EncodeToString([]byte(r.opts.Username + ":" + r.opts.Password))}
	}
	text, err := json.Marshal(map[string]any{"auths": auths})
	if err != nil {
		return "", err
	}
	name := filepath.Join(dir, "auth.json")
	return name, os.WriteFile(name, text, 0o600)
}
