package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/registry/remote/auth"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/vic"
)

// A Repository is one repository of a registry, with its mirrors. It may be
// used by many goroutines.
type Repository struct {
	ref      vic.Ref
	o        Options
	registry *endpoint
	reading  []*endpoint // mirrors, then the registry

	mu     sync.Mutex
	recent map[digest.Digest]manifest // at most one: read to resolve it
}

// Open opens the repository of a name. It makes no request, but reads the
// files that the options name. Options that contradict each other are
// vic.ErrInvalid, a registry that they do not allow is vic.ErrDenied.
func Open(n Name, o *Options) (*Repository, error) {
	r := &Repository{ref: vic.Ref{Kind: "repository", Name: n.Registry + "/" + n.Repository}, o: o.withDefaults()}
	if err := r.open(n); err != nil {
		return nil, fault.Wrap("open", r.ref, err)
	}
	return r, nil
}

func (r *Repository) open(n Name) error {
	o := &r.o
	switch {
	case o.PlainHTTP && len(o.Mirrors) == 0 && len(o.CA) > 0, o.PlainHTTP && len(o.ClientCert) > 0:
		return fault.Of(vic.ErrInvalid, "PlainHTTP excludes the options CA (but for mirrors) and ClientCert")
	case o.PlainHTTP && o.Insecure:
		return fault.Of(vic.ErrInvalid, "PlainHTTP and Insecure exclude each other: the one has no certificate to look at")
	case o.Attempts < 0, o.RetryDelay < 0, o.MaxRetryAfter < 0, o.StallTimeout < 0, o.UploadChunk < 0:
		return fault.Of(vic.ErrInvalid, "options Attempts, RetryDelay, MaxRetryAfter, StallTimeout and UploadChunk must not be negative")
	}
	if why := checkHost(n.Registry); why != "" {
		return fault.Of(vic.ErrInvalid, "registry %.100q: %s", n.Registry, why)
	}
	p, err := newPolicy(o)
	if err != nil {
		return err
	}
	if r.registry, err = newEndpoint(o, p, n.Registry, n.Repository, false, o.PlainHTTP); err != nil {
		return err
	}
	for _, m := range o.Mirrors {
		e, err := openMirror(o, p, m, n.Repository)
		if err != nil {
			return fmt.Errorf("option Mirrors: %.200q: %w", redactText(m), err)
		}
		r.reading = append(r.reading, e)
	}
	r.reading = append(r.reading, r.registry)
	return nil
}

// openMirror reads host[:port][/prefix] with or without a scheme.
func openMirror(o *Options, p *policy, s, repository string) (*endpoint, error) {
	plain := false
	if scheme, rest, ok := strings.Cut(s, "://"); ok {
		switch scheme {
		case "http":
			plain = true
		case "https":
		default:
			return nil, fault.Of(vic.ErrInvalid, "scheme %q; take http or https", scheme)
		}
		s = rest
	}
	host, prefix, _ := strings.Cut(strings.TrimRight(s, "/"), "/")
	if why := checkHost(host); why != "" {
		return nil, fault.Of(vic.ErrInvalid, "its host is %s", why)
	}
	if prefix != "" {
		repository = prefix + "/" + repository
	}
	return newEndpoint(o, p, host, repository, true, plain)
}

// Close drops idle connections. The repository can be used afterwards.
func (r *Repository) Close() error {
	for _, e := range r.reading {
		e.close()
	}
	return nil
}

// String is registry/repository.
func (r *Repository) String() string { return r.ref.Name }

// Resolve finds the descriptor of a manifest or index by a tag or a digest
// (distribution specification, "Pulling manifests"). A tag is what the first
// mirror that has it says.
//
// A manifest of Docker's schema 1 is vic.ErrUnsupported; what is not there is
// vic.ErrNotFound.
func (r *Repository) Resolve(ctx context.Context, reference string) (ocispec.Descriptor, error) {
	var out ocispec.Descriptor
	err := checkReference(reference)
	if err == nil {
		err = r.read(ctx, func(ctx context.Context, e *endpoint) error {
			d, whole, err := e.resolve(ctx, reference)
			if err == nil {
				out = d
				r.keep(d, whole)
			}
			return err
		})
	}
	return out, fault.Wrap("resolve "+clean(reference)+" in", r.ref, err)
}

func checkReference(s string) error {
	if strings.Contains(s, ":") {
		if _, err := digest.Parse(s); err != nil {
			return fault.Of(vic.ErrInvalid, "digest %.140q: %v", s, err)
		}
		return nil
	}
	if !tagRE.MatchString(s) {
		return fault.Of(vic.ErrInvalid, "tag %.140q must be of up to 128 letters, digits, dots, dashes and underscores", s)
	}
	return nil
}

// Fetch opens a manifest, index or blob; the caller closes it. ctx bounds the
// reading, too.
//
// A manifest has been read and verified when Fetch returns. A blob comes as it
// is read: a connection that breaks or stalls is replaced by another one from
// the byte where it stopped. The reader gives exactly the descriptor's size or
// an error, and the caller verifies the digest.
func (r *Repository) Fetch(ctx context.Context, target ocispec.Descriptor) (io.ReadCloser, error) {
	rc, err := r.fetch(ctx, target)
	if err != nil {
		return nil, fault.Wrap("fetch "+clean(target.Digest.String())+" from", r.ref, err)
	}
	return rc, nil
}

func (r *Repository) fetch(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	if err := d.Digest.Validate(); err != nil || d.Size < 0 {
		return nil, fault.Of(vic.ErrInvalid, "descriptor with digest %.140q and size %d: %w", d.Digest, d.Size, errors.Join(err, vic.ErrInvalid))
	}
	if !isManifest(d.MediaType) {
		return r.openBlob(ctx, d)
	}
	if m, ok := r.kept(d.Digest); ok {
		return m.open(d)
	}
	var m manifest
	err := r.read(ctx, func(ctx context.Context, e *endpoint) (err error) {
		m, err = e.manifest(ctx, d.Digest.String(), d.MediaType)
		return err
	})
	if err != nil {
		return nil, err
	}
	return m.open(d)
}

// keep remembers a manifest that had to be read to resolve its tag.
func (r *Repository) keep(d ocispec.Descriptor, m *manifest) {
	if m == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.recent = map[digest.Digest]manifest{d.Digest: *m}
}

func (r *Repository) kept(d digest.Digest) (manifest, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m, ok := r.recent[d]
	return m, ok
}

// mirrorRest is how long a mirror that could not be reached is left alone.
const mirrorRest = time.Minute

// order lists the endpoints to read from: mirrors that failed lately are left
// out.
func (r *Repository) order() []*endpoint {
	var out []*endpoint
	for _, e := range r.reading {
		if at := e.down.Load(); e.mirror && at != 0 && time.Since(time.Unix(0, at)) < mirrorRest {
			continue
		}
		out = append(out, e)
	}
	return out
}

// read calls f for one endpoint after the other until one succeeds.
func (r *Repository) read(ctx context.Context, f func(context.Context, *endpoint) error) error {
	var before []string
	for _, e := range r.order() {
		err := e.do(ctx, f, auth.ActionPull)
		if err == nil {
			return nil
		}
		if !e.mirror || !elsewhere(ctx, err) {
			if len(before) > 0 {
				err = &failure{text: err.Error() + " (mirrors: " + strings.Join(before, "; ") + ")", errs: []error{err}}
			}
			return err
		}
		if errors.Is(err, vic.ErrUnavailable) {
			e.down.Store(time.Now().UnixNano())
		}
		r.o.debug(ctx, "mirror is passed over", "mirror", e.host, "why", err.Error())
		before = append(before, err.Error())
	}
	return nil // not reached: the registry is always last
}

// elsewhere says of an error whether another mirror may do better.
func elsewhere(ctx context.Context, err error) bool {
	return ctx.Err() == nil && !errors.As(err, new(*contradictory))
}

// do calls f with the scopes that tokens shall have.
func (e *endpoint) do(ctx context.Context, f func(context.Context, *endpoint) error, actions ...string) error {
	if _, err := e.prepare(ctx); err != nil {
		return explain(e.host, err)
	}
	return e.explain(f(auth.AppendRepositoryScope(ctx, e.ref, actions...), e))
}

func (e *endpoint) explain(err error) error {
	if err == nil {
		return nil
	}
	return e.auth.safe(explain(e.host, err))
}

// request makes a request to the repository's part of the API.
func (e *endpoint) request(ctx context.Context, method, path string, header http.Header) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, e.scheme()+"://"+e.host+"/v2/"+e.ref.Repository+"/"+path, nil)
	if err != nil {
		return nil, fault.As(vic.ErrInvalid, err)
	}
	for k, v := range header {
		req.Header[k] = v
	}
	resp, err := e.auth.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusNotFound {
		return nil, e.auth.safe(readAnswer(resp))
	}
	return resp, nil
}
