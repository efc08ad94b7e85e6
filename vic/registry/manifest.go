package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/vic"
)

// manifestLimit is the size up to which registries must take manifests
// (distribution specification, "Pushing Manifests").
const manifestLimit = 4 << 20

// Docker's media types (distribution, docs/spec/manifest-v2-2.md).
const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerSchema1  = "application/vnd.docker.distribution.manifest.v1"
)

var manifestTypes = []string{ocispec.MediaTypeImageIndex, dockerList, ocispec.MediaTypeImageManifest, dockerManifest}

// artifactManifest is OCI's short-lived type of 1.1.0-rc; registries have
// signatures of it.
const artifactManifest = "application/vnd.oci.artifact.manifest.v1+json"

func isManifest(mediaType string) bool {
	return slices.Contains(manifestTypes, mediaType) || mediaType == artifactManifest
}

// A manifest has been read and is what its digest says.
type manifest struct {
	mediaType string
	bytes     []byte
}

// open returns a manifest for the descriptor that asked for it.
func (m manifest) open(d ocispec.Descriptor) (io.ReadCloser, error) {
	switch {
	case m.mediaType != d.MediaType:
		return nil, contradiction("%s is of media type %q, not %q as what refers to it says", d.Digest, clean(m.mediaType), clean(d.MediaType))
	case int64(len(m.bytes)) != d.Size:
		return nil, contradiction("%s has %d bytes, not %d as what refers to it says", d.Digest, len(m.bytes), d.Size)
	}
	return io.NopCloser(bytes.NewReader(m.bytes)), nil
}

// resolve asks for a manifest's header, which registries do not count as a
// pull, and reads the manifest if that does not say everything.
func (e *endpoint) resolve(ctx context.Context, reference string) (ocispec.Descriptor, *manifest, error) {
	resp, err := e.request(ctx, http.MethodHead, "manifests/"+reference, http.Header{"Accept": {strings.Join(manifestTypes, ", ")}})
	if err == nil {
		drain(resp.Body)
		d := ocispec.Descriptor{MediaType: contentType(resp), Size: resp.ContentLength, Digest: digest.Digest(resp.Header.Get("Docker-Content-Digest"))}
		if d.Digest == "" && strings.Contains(reference, ":") {
			d.Digest = digest.Digest(reference)
		}
		if err := checkDigestHeader(resp, reference); err != nil {
			return d, nil, err
		}
		if isManifest(d.MediaType) && d.Size > 0 && d.Digest != "" {
			if d.Size > manifestLimit {
				return d, nil, tooLarge(d.Size)
			}
			return d, nil, nil
		}
	} else if a := (*answer)(nil); !errors.As(err, &a) || a.status != http.StatusMethodNotAllowed && a.status != http.StatusBadRequest && a.status != http.StatusNotImplemented {
		return ocispec.Descriptor{}, nil, err
	}
	m, err := e.manifest(ctx, reference, strings.Join(manifestTypes, ", "))
	if err != nil {
		return ocispec.Descriptor{}, nil, err
	}
	algorithm := digest.Canonical
	if want, err := digest.Parse(reference); err == nil {
		algorithm = want.Algorithm()
	}
	return ocispec.Descriptor{MediaType: m.mediaType, Size: int64(len(m.bytes)), Digest: algorithm.FromBytes(m.bytes)}, &m, nil
}

func tooLarge(n int64) error {
	return contradiction("the manifest has %d bytes; at most %d are taken", n, manifestLimit)
}

func contentType(resp *http.Response) string {
	t, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil {
		return ""
	}
	return t
}

// checkDigestHeader compares what a registry says it sends with what was
// asked for by digest.
func checkDigestHeader(resp *http.Response, reference string) error {
	h := resp.Header.Get("Docker-Content-Digest")
	if h == "" {
		return nil
	}
	got, err := digest.Parse(h)
	if err != nil {
		return contradiction("the registry's Docker-Content-Digest %q is no digest", clean(h))
	}
	want, err := digest.Parse(reference)
	if err == nil && want != got && want.Algorithm() == got.Algorithm() {
		return contradiction("the registry sends %s instead of %s", got, want)
	}
	return nil
}

// manifest reads a manifest and holds it against the digest that it was asked
// for by, or else the one that the registry tells.
func (e *endpoint) manifest(ctx context.Context, reference, accept string) (manifest, error) {
	resp, err := e.request(ctx, http.MethodGet, "manifests/"+reference, http.Header{"Accept": {accept}})
	if err != nil {
		return manifest{}, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return manifest{}, contradiction("the registry answers %s to a request for a manifest", clean(resp.Status))
	}
	if err := checkDigestHeader(resp, reference); err != nil {
		return manifest{}, err
	}
	if resp.ContentLength > manifestLimit {
		return manifest{}, tooLarge(resp.ContentLength)
	}
	body, err := e.readSmall(resp.Body)
	if err != nil {
		return manifest{}, err
	}
	want, err := digest.Parse(reference)
	if err != nil {
		want, _ = digest.Parse(resp.Header.Get("Docker-Content-Digest"))
	}
	m := manifest{bytes: body}
	if m.mediaType, err = documentType(contentType(resp), body); err != nil {
		return manifest{}, err
	}
	if want != "" && want.Algorithm().Available() && want.Algorithm().FromBytes(body) != want {
		return manifest{}, contradiction("the registry sent a manifest that is not %s, %d bytes", want, len(body))
	}
	return m, nil
}

// readSmall reads a document of at most manifestLimit bytes, within four times
// the time that a connection may stall.
func (e *endpoint) readSmall(body io.Reader) ([]byte, error) {
	var b bytes.Buffer
	for start := time.Now(); ; {
		n, err := io.CopyN(&b, body, 64<<10)
		switch {
		case b.Len() > manifestLimit:
			return nil, tooLarge(int64(b.Len()))
		case err == io.EOF:
			return b.Bytes(), nil
		case err != nil:
			return nil, fault.As(vic.ErrUnavailable, err)
		case n > 0 && time.Since(start) > 4*e.o.StallTimeout:
			return nil, fault.As(vic.ErrUnavailable, errStalled)
		}
	}
}

// documentType finds a manifest's media type: in the answer's header, and in
// the document where the header says nothing. A document that says something
// else than the header, or could be read as two types, is refused
// (CVE-2021-41190).
func documentType(header string, body []byte) (string, error) {
	var doc struct {
		SchemaVersion int             `json:"schemaVersion"`
		MediaType     string          `json:"mediaType"`
		Manifests     json.RawMessage `json:"manifests"`
		Config        json.RawMessage `json:"config"`
		Layers        json.RawMessage `json:"layers"`
		FSLayers      json.RawMessage `json:"fsLayers"`
	}
	if err := json.Unmarshal(body, &doc); err != nil {
		return "", contradiction("what should be a manifest is no JSON but of content type %q: is this a registry?", clean(header))
	}
	list, image := doc.Manifests != nil, doc.Config != nil || doc.Layers != nil
	switch {
	case strings.HasPrefix(header, dockerSchema1), doc.SchemaVersion == 1, doc.FSLayers != nil:
		return "", fault.Of(vic.ErrUnsupported, "the manifest is of Docker's schema 1, which names no layers' contents; push the image again with a current tool")
	case list && image:
		return "", contradiction("the manifest has both manifests and layers")
	case isManifest(header) && doc.MediaType != "" && doc.MediaType != header:
		return "", contradiction("the manifest's mediaType is %q, but it is sent as %q", clean(doc.MediaType), header)
	case isManifest(header):
		return header, nil
	case isManifest(doc.MediaType):
		return doc.MediaType, nil
	case doc.MediaType != "":
		return "", fault.Of(vic.ErrUnsupported, "the media type %q is neither an image's nor an index's; pull it with the tool that it was made with", clean(doc.MediaType))
	case doc.SchemaVersion == 2 && list:
		return ocispec.MediaTypeImageIndex, nil
	case doc.SchemaVersion == 2 && image:
		return ocispec.MediaTypeImageManifest, nil
	}
	return "", fault.Of(vic.ErrUnsupported, "the registry sends a document of content type %q that is no image's manifest", clean(header))
}
