package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/registry/remote/auth"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/vic"
)

// Exists tells whether the registry (not a mirror) has a blob or manifest in
// this repository.
func (r *Repository) Exists(ctx context.Context, target ocispec.Descriptor) (bool, error) {
	found := false
	err := target.Digest.Validate()
	if err != nil {
		err = fault.As(vic.ErrInvalid, err)
	} else {
		err = r.registry.do(ctx, func(ctx context.Context, e *endpoint) error {
			path, header := "blobs/", http.Header{}
			if isManifest(target.MediaType) {
				path, header = "manifests/", http.Header{"Accept": {target.MediaType}}
			}
			resp, err := e.request(ctx, http.MethodHead, path+target.Digest.String(), header)
			if errors.Is(err, vic.ErrNotFound) {
				return nil
			}
			if err != nil {
				return err
			}
			drain(resp.Body)
			if n := resp.ContentLength; n >= 0 && n != target.Size {
				return contradiction("%s has %d bytes there, not %d", target.Digest, n, target.Size)
			}
			found = true
			return checkDigestHeader(resp, target.Digest.String())
		}, auth.ActionPull)
	}
	return found && err == nil, fault.Wrap("look for "+target.Digest.String()+" in", r.ref, err)
}

// Mount makes a blob of another repository of the same registry be one of
// this, too, without sending it (distribution specification, "Mounting a blob
// from another repository"). It returns false where the registry does not do
// that or does not have it there; then the blob has to be pushed.
func (r *Repository) Mount(ctx context.Context, target ocispec.Descriptor, from string) (bool, error) {
	mounted := false
	source := r.registry.ref
	source.Repository = from
	err := source.ValidateRepository()
	if err == nil {
		err = target.Digest.Validate()
	}
	if err != nil {
		err = fault.As(vic.ErrInvalid, err)
	} else {
		ctx = auth.AppendRepositoryScope(ctx, source, auth.ActionPull)
		err = r.registry.do(ctx, func(ctx context.Context, e *endpoint) error {
			q := url.Values{"mount": {target.Digest.String()}, "from": {from}}
			resp, err := e.request(ctx, http.MethodPost, "blobs/uploads/?"+q.Encode(), nil)
			if err != nil {
				return err
			}
			drain(resp.Body)
			if resp.StatusCode == http.StatusCreated {
				mounted = true
				return checkDigestHeader(resp, target.Digest.String())
			}
			// An upload has begun instead.
			if loc, err := e.location(resp); err == nil {
				e.abandon(ctx, loc)
			}
			return nil
		}, auth.ActionPull, auth.ActionPush)
	}
	return mounted && err == nil, fault.Wrap(fmt.Sprintf("mount %s of %.200q in", target.Digest, from), r.ref, err)
}

// Push sends a blob or a manifest to the registry. The reader gives exactly
// the descriptor's size; the registry checks the digest. What a manifest
// refers to is pushed before it; a manifest with a subject is entered into the
// referrers' index where the registry has no API for them.
//
// A blob goes in one request, or in pieces as UploadChunk says. Where the
// connection breaks it goes on or begins again if it goes in pieces or the
// reader is an io.Seeker; else that is vic.ErrUnavailable.
func (r *Repository) Push(ctx context.Context, target ocispec.Descriptor, content io.Reader) error {
	err := target.Digest.Validate()
	switch {
	case err != nil || target.Size < 0:
		err = fault.Of(vic.ErrInvalid, "descriptor with digest %.140q and size %d", target.Digest, target.Size)
	case isManifest(target.MediaType):
		err = r.pushManifest(ctx, target, content, target.Digest.String())
	default:
		err = r.registry.do(ctx, func(ctx context.Context, e *endpoint) error {
			return e.pushBlob(ctx, target, content)
		}, auth.ActionPull, auth.ActionPush)
	}
	return fault.Wrap("push "+clean(target.Digest.String())+" to", r.ref, err)
}

func (r *Repository) pushManifest(ctx context.Context, d ocispec.Descriptor, content io.Reader, reference string) error {
	if d.Size > manifestLimit {
		return fault.Of(vic.ErrInvalid, "the manifest has %d bytes; registries take %d", d.Size, manifestLimit)
	}
	b, err := io.ReadAll(io.LimitReader(content, manifestLimit+1))
	if err != nil {
		return err
	}
	if int64(len(b)) != d.Size || d.Digest.Algorithm().FromBytes(b) != d.Digest {
		return fault.Of(vic.ErrInvalid, "the content is not what the descriptor says: %d bytes of %s", d.Size, d.Digest)
	}
	return r.registry.do(ctx, func(ctx context.Context, e *endpoint) error {
		repo, err := e.prepare(ctx)
		if err != nil {
			return err
		}
		return repo.PushReference(ctx, d, bytes.NewReader(b), reference)
	}, auth.ActionPull, auth.ActionPush)
}

// Tag gives a manifest that the registry has a tag. A tag that is taken is
// moved.
func (r *Repository) Tag(ctx context.Context, target ocispec.Descriptor, tag string) error {
	err := r.tag(ctx, target, tag)
	return fault.Wrap("tag "+clean(target.Digest.String())+" as "+clean(tag)+" in", r.ref, err)
}

func (r *Repository) tag(ctx context.Context, d ocispec.Descriptor, tag string) error {
	if !tagRE.MatchString(tag) {
		return fault.Of(vic.ErrInvalid, "tag %.140q must be of up to 128 letters, digits, dots, dashes and underscores", tag)
	}
	if !isManifest(d.MediaType) || d.Digest.Validate() != nil {
		return fault.Of(vic.ErrInvalid, "%.140q of media type %.100q is no manifest; only manifests have tags", d.Digest, d.MediaType)
	}
	var m manifest
	err := r.registry.do(ctx, func(ctx context.Context, e *endpoint) (err error) {
		m, err = e.manifest(ctx, d.Digest.String(), d.MediaType)
		return err
	}, auth.ActionPull, auth.ActionPush)
	if err != nil {
		return err
	}
	return r.pushManifest(ctx, d, bytes.NewReader(m.bytes), tag)
}

// Tags calls f with the repository's tags, a page at a time, in the registry's
// order; last is the tag to begin behind, or empty. f must not keep the slice.
func (r *Repository) Tags(ctx context.Context, last string, f func(tags []string) error) error {
	err := r.registry.do(ctx, func(ctx context.Context, e *endpoint) error {
		repo, err := e.prepare(ctx)
		if err != nil {
			return err
		}
		return repo.Tags(ctx, last, f)
	}, auth.ActionPull)
	return fault.Wrap("list tags of", r.ref, err)
}

// Referrers calls f with the manifests that refer to one, such as signatures,
// a page at a time; artifactType selects some, or all if it is empty. Where
// the registry has no API for that, the tag that stands in for it is read
// (distribution specification, "Listing Referrers" and "Referrers Tag
// Schema").
func (r *Repository) Referrers(ctx context.Context, subject ocispec.Descriptor, artifactType string, f func([]ocispec.Descriptor) error) error {
	err := subject.Digest.Validate()
	if err != nil {
		err = fault.As(vic.ErrInvalid, err)
	} else {
		err = r.registry.do(ctx, func(ctx context.Context, e *endpoint) error {
			repo, err := e.prepare(ctx)
			if err != nil {
				return err
			}
			return repo.Referrers(ctx, subject, artifactType, f)
		}, auth.ActionPull)
	}
	return fault.Wrap("list referrers of "+clean(subject.Digest.String())+" in", r.ref, err)
}

const abandonTimeout = 10 * time.Second

// location is where an upload goes on: at the registry, or it is refused, as
// content and credentials go there.
func (e *endpoint) location(resp *http.Response) (*url.URL, error) {
	u, err := resp.Location()
	if err != nil {
		return nil, contradiction("%s does not say where the upload goes", resp.Request.URL.Host)
	}
	if u.User != nil || !sameOrigin(u, resp.Request.URL) {
		return nil, contradiction("the registry wants uploads at %s://%s: set its external URL to %s://%s", u.Scheme, clean(u.Host), e.scheme(), e.host)
	}
	return u, nil
}

// abandon frees what the registry keeps for an upload. That it does not work
// costs the registry a little room until it cleans up by itself.
func (e *endpoint) abandon(ctx context.Context, loc *url.URL) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abandonTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodDelete, loc.String(), nil)
	if err != nil {
		return
	}
	if resp, err := e.auth.Do(req); err == nil {
		drain(resp.Body)
	}
}
