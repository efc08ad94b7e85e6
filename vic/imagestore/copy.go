package imagestore

import (
	"bytes"
	"context"
	"fmt"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/vic"
)

// copier copies manifests with what they name from one repository to another.
type copier struct {
	src  ReferrerSource
	dst  Destination
	seen map[digest.Digest]bool
}

const (
	// maxReferrers and maxReferrerDepth bound what a registry can make us copy:
	// manifests, and how far what refers to a referrer is followed.
	maxReferrers     = 4096
	maxReferrerDepth = 8
)

// artifactManifest was a manifest of the OCI's in release candidates of version
// 1.1, which signatures of that time have.
const artifactManifest = "application/vnd.oci.artifact.manifest.v1+json"

// referrers copies what refers to a manifest.
func (c *copier) referrers(ctx context.Context, subject ocispec.Descriptor, depth int) error {
	if depth == maxReferrerDepth {
		return nil
	}
	var all []ocispec.Descriptor
	err := c.src.Referrers(ctx, subject, "", func(page []ocispec.Descriptor) error {
		if all = append(all, page...); len(all) > maxReferrers {
			return fault.Of(vic.ErrUnsupported, "more than %d manifests refer to %s", maxReferrers, subject.Digest)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, d := range all {
		d = ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}
		if err := c.manifest(ctx, d, subject.Digest, 0); err != nil {
			return fmt.Errorf("%s, which refers to %s: %w", d.Digest, subject.Digest, err)
		}
		if err := c.referrers(ctx, d, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// manifest copies a manifest, what it names before it. One that is said to
// refer to a subject and does not is left out.
func (c *copier) manifest(ctx context.Context, d ocispec.Descriptor, subject digest.Digest, depth int) error {
	if c.seen[d.Digest] {
		return nil
	}
	if len(c.seen) > maxReferrers || depth > 2 {
		return fault.Of(vic.ErrUnsupported, "too many manifests belong together")
	}
	c.seen[d.Digest] = true
	switch d.MediaType {
	case ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex, artifactManifest, dockerManifest, dockerList:
	default:
		return fault.Of(vic.ErrUnsupported, "media type %q is no manifest", d.MediaType)
	}
	var m struct {
		Config    *ocispec.Descriptor  `json:"config"`
		Layers    []ocispec.Descriptor `json:"layers"`
		Blobs     []ocispec.Descriptor `json:"blobs"`
		Manifests []ocispec.Descriptor `json:"manifests"`
		Subject   *ocispec.Descriptor  `json:"subject"`
	}
	raw, err := fetchJSON(ctx, c.src, d, manifestLimit, &m)
	if err != nil {
		return err
	}
	if subject != "" && (m.Subject == nil || m.Subject.Digest != subject) {
		return nil
	}
	if there, err := c.dst.Exists(ctx, d); err != nil || there {
		return err
	}
	for _, child := range m.Manifests {
		child = ocispec.Descriptor{MediaType: child.MediaType, Digest: child.Digest, Size: child.Size}
		if err := c.manifest(ctx, child, "", depth+1); err != nil {
			return err
		}
	}
	blobs := append(m.Layers, m.Blobs...)
	if m.Config != nil {
		blobs = append(blobs, *m.Config)
	}
	for _, b := range blobs {
		if err := c.blob(ctx, b); err != nil {
			return fmt.Errorf("blob %s: %w", b.Digest, err)
		}
	}
	return c.dst.Push(ctx, d, bytes.NewReader(raw))
}

func (c *copier) blob(ctx context.Context, d ocispec.Descriptor) error {
	if err := checkDescriptor(d); err != nil {
		return err
	}
	// Data that the descriptor holds itself is a blob all the same.
	d = ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}
	if there, err := c.dst.Exists(ctx, d); err != nil || there {
		return err
	}
	r, err := c.src.Fetch(ctx, d)
	if err != nil {
		return err
	}
	defer r.Close()
	return c.dst.Push(ctx, d, r)
}
