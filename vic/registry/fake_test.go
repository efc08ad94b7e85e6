package registry_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/vicsdk/vic-go/vic/registry"
)

// fake is a registry that can be told to misbehave: hook may answer a request
// itself. The rest is served as the specification says.
type fake struct {
	*httptest.Server
	hook func(w http.ResponseWriter, r *http.Request) bool

	mu       sync.Mutex
	content  map[string][]byte // by digest and by tag
	upload   []byte            // there is one at a time
	requests []string
}

func newFake(t *testing.T, hook func(w http.ResponseWriter, r *http.Request) bool) *fake {
	f := unstarted(t, hook)
	f.Start()
	return f
}

func unstarted(t *testing.T, hook func(w http.ResponseWriter, r *http.Request) bool) *fake {
	f := &fake{hook: hook, content: map[string][]byte{}}
	f.Server = httptest.NewUnstartedServer(f)
	t.Cleanup(func() {
		f.CloseClientConnections()
		f.Close()
	})
	return f
}

// host is the server's address as registries are named.
func (f *fake) host() string { return f.Listener.Addr().String() }

func (f *fake) add(b []byte, names ...string) digest.Digest {
	f.mu.Lock()
	defer f.mu.Unlock()
	d := digest.FromBytes(b)
	for _, n := range append(names, d.String()) {
		f.content[n] = b
	}
	return d
}

func (f *fake) seen() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.requests...)
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	line := r.Method + " " + r.URL.Path
	if rg := r.Header.Get("Range"); rg != "" {
		line += " " + rg
	}
	f.requests = append(f.requests, line)
	f.mu.Unlock()
	if f.hook != nil && f.hook(w, r) {
		return
	}
	f.serve(w, r)
}

func (f *fake) serve(w http.ResponseWriter, r *http.Request) {
	name := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
	f.mu.Lock()
	b, ok := f.content[name]
	f.mu.Unlock()
	switch {
	case r.URL.Path == "/v2/":
		return
	case strings.Contains(r.URL.Path, "/blobs/uploads/"):
		f.serveUpload(w, r)
		return
	case !ok:
		w.WriteHeader(http.StatusNotFound)
		_, _ = w.Write([]byte(`{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}`))
		return
	case strings.Contains(r.URL.Path, "/manifests/"):
		w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
		w.Header().Set("Docker-Content-Digest", digest.FromBytes(b).String())
	default:
		w.Header().Set("Content-Type", "application/octet-stream")
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
}

// serveUpload takes a blob in pieces and keeps what it gets of a broken one.
func (f *fake) serveUpload(w http.ResponseWriter, r *http.Request) {
	var body []byte
	buf := make([]byte, 1<<16)
	for {
		n, err := r.Body.Read(buf)
		body = append(body, buf[:n]...)
		if err != nil {
			break
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	w.Header().Set("Location", "/v2/a/blobs/uploads/session")
	status := http.StatusAccepted
	switch r.Method {
	case http.MethodPost:
		f.upload = nil
	case http.MethodPatch:
		if want := fmt.Sprintf("%d-%d", len(f.upload), int64(len(f.upload))+r.ContentLength-1); r.Header.Get("Content-Range") != want {
			w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
			return
		}
		f.upload = append(f.upload, body...)
	case http.MethodGet:
		status = http.StatusNoContent
	case http.MethodPut:
		f.upload = append(f.upload, body...)
		d := digest.FromBytes(f.upload)
		if status = http.StatusCreated; r.URL.Query().Get("digest") != d.String() {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		f.content[d.String()] = f.upload
	}
	w.Header().Set("Range", fmt.Sprintf("0-%d", max(0, len(f.upload)-1)))
	w.WriteHeader(status)
}

// image is the smallest manifest.
func image(note string) []byte {
	empty := ocispec.DescriptorEmptyJSON
	empty.MediaType = ocispec.MediaTypeImageConfig
	b, err := json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: empty, Layers: []ocispec.Descriptor{},
		Annotations: map[string]string{"note": note},
	})
	if err != nil {
		panic(err)
	}
	return b
}

func random(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{7})
	_, _ = r.Read(b)
	return b
}

func blobOf(b []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(b), Size: int64(len(b))}
}

func manifestOf(b []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(b), Size: int64(len(b))}
}

// quick makes retries short.
func quick(o registry.Options) *registry.Options {
	if o.RetryDelay == 0 {
		o.RetryDelay = time.Millisecond
	}
	return &o
}

func plain() *registry.Options { return quick(registry.Options{PlainHTTP: true}) }

func open(t *testing.T, host, repository string, o *registry.Options) *registry.Repository {
	t.Helper()
	r, err := registry.Open(registry.Name{Registry: host, Repository: repository}, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

func read(ctx context.Context, r *registry.Repository, d ocispec.Descriptor) ([]byte, error) {
	rc, err := r.Fetch(ctx, d)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	b, err := io.ReadAll(rc)
	if err == nil && digest.FromBytes(b) != d.Digest {
		err = fmt.Errorf("read %d bytes with another digest", len(b))
	}
	return b, err
}
