package registry_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/registry"
)

// cut sends only the first n bytes of what a request is for and drops the
// connection.
func cut(w http.ResponseWriter, f *fake, r *http.Request, n int) {
	f.serve(&cutter{ResponseWriter: w, left: n}, r)
	panic(http.ErrAbortHandler)
}

type cutter struct {
	http.ResponseWriter
	left int
}

func (c *cutter) Write(p []byte) (int, error) {
	n := min(c.left, len(p))
	c.left -= n
	if m, err := c.ResponseWriter.Write(p[:n]); err != nil {
		return m, err
	}
	if n < len(p) {
		if f, ok := c.ResponseWriter.(http.Flusher); ok {
			f.Flush()
		}
		return n, io.ErrShortWrite
	}
	return n, nil
}

// TestResume breaks each connection in its own way.
func TestResume(t *testing.T) {
	data := random(1 << 20)
	d := blobOf(data)
	path := "/v2/a/blobs/" + d.Digest.String()
	// respond writes a part of the blob as it comes.
	respond := func(w http.ResponseWriter, status int, contentRange string, length int, body []byte) bool {
		if contentRange != "" {
			w.Header().Set("Content-Range", contentRange)
		}
		if length >= 0 {
			w.Header().Set("Content-Length", strconv.Itoa(length))
		}
		w.WriteHeader(status)
		_, _ = w.Write(body)
		if length != len(body) && length >= 0 {
			panic(http.ErrAbortHandler)
		}
		return true
	}
	size := len(data)
	for _, tc := range []struct {
		name     string
		hook     func(f *fake, n int, w http.ResponseWriter, r *http.Request) bool
		requests []string // after the path
		kind     error
		want     string
	}{
		{"whole", nil, []string{""}, nil, ""},
		{"cut twice", func(f *fake, n int, w http.ResponseWriter, r *http.Request) bool {
			if n <= 2 {
				cut(w, f, r, 100000)
			}
			return false
		}, []string{"", " bytes=100000-", " bytes=200000-"}, nil, ""},
		{"ends early without a length", func(f *fake, n int, w http.ResponseWriter, r *http.Request) bool {
			if n == 1 {
				w.WriteHeader(http.StatusOK)
				w.(http.Flusher).Flush()
				_, _ = w.Write(data[:70000])
				return true
			}
			return false
		}, []string{"", " bytes=70000-"}, nil, ""},
		{"knows no ranges", func(f *fake, n int, w http.ResponseWriter, r *http.Request) bool {
			r.Header.Del("Range")
			if n <= 2 {
				cut(w, f, r, 300000*n)
			}
			return false
		}, []string{"", " bytes=300000-", " bytes=600000-"}, nil, ""},
		{"server errors between", func(f *fake, n int, w http.ResponseWriter, r *http.Request) bool {
			switch n {
			case 1:
				cut(w, f, r, 100000)
			case 2:
				http.Error(w, "x", http.StatusBadGateway)
				return true
			}
			return false
		}, []string{"", " bytes=100000-", " bytes=100000-"}, nil, ""},
		{"stalls", func(f *fake, n int, w http.ResponseWriter, r *http.Request) bool {
			if n == 1 {
				f.serve(&cutter{ResponseWriter: w, left: 100000}, r)
				<-r.Context().Done()
				return true
			}
			return false
		}, []string{"", " bytes=100000-"}, nil, ""},
		{"never progresses", func(f *fake, n int, w http.ResponseWriter, r *http.Request) bool {
			cut(w, f, r, map[bool]int{true: 100000}[n == 1])
			return true
		}, []string{"", " bytes=100000-", " bytes=100000-"}, vic.ErrUnavailable, "100000 of 1048576 bytes"},
		{"a byte at a time", func(f *fake, _ int, w http.ResponseWriter, r *http.Request) bool {
			cut(w, f, r, 1)
			return true
		}, []string{"", " bytes=1-", " bytes=2-"}, vic.ErrUnavailable, "3 of 1048576 bytes"},
		{"another length", func(_ *fake, _ int, w http.ResponseWriter, _ *http.Request) bool {
			return respond(w, 200, "", size-1, data[:size-1])
		}, []string{""}, vic.ErrInvalid, "sends 1048575 bytes"},
		{"more than it should", func(_ *fake, _ int, w http.ResponseWriter, _ *http.Request) bool {
			w.WriteHeader(http.StatusOK)
			w.(http.Flusher).Flush()
			_, _ = w.Write(data)
			_, _ = w.Write([]byte("x"))
			return true
		}, []string{""}, vic.ErrInvalid, "more than the 1048576 bytes"},
		{"a range unasked", func(_ *fake, _ int, w http.ResponseWriter, _ *http.Request) bool {
			return respond(w, 206, "bytes 0-1048575/1048576", size, data)
		}, []string{""}, vic.ErrInvalid, "range"},
		{"another range", func(f *fake, n int, w http.ResponseWriter, r *http.Request) bool {
			if n == 1 {
				cut(w, f, r, 100000)
			}
			return respond(w, 206, "bytes 5-1048575/1048576", size-5, data[5:])
		}, []string{"", " bytes=100000-"}, vic.ErrInvalid, "bytes 100000 to 1048575"},
		{"no range", func(f *fake, n int, w http.ResponseWriter, r *http.Request) bool {
			if n == 1 {
				cut(w, f, r, 100000)
			}
			return respond(w, 206, "", size-100000, data[100000:])
		}, []string{"", " bytes=100000-"}, vic.ErrInvalid, "range \"\""},
		{"another digest", func(_ *fake, _ int, w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Docker-Content-Digest", digest.FromString("x").String())
			return false
		}, []string{""}, vic.ErrInvalid, "instead of"},
		{"gone on resuming", func(f *fake, n int, w http.ResponseWriter, r *http.Request) bool {
			if n == 1 {
				cut(w, f, r, 100000)
			}
			http.NotFound(w, r)
			return true
		}, []string{"", " bytes=100000-"}, vic.ErrNotFound, "404"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var f *fake
			n := 0
			f = newFake(t, func(w http.ResponseWriter, r *http.Request) bool {
				n++
				return tc.hook != nil && tc.hook(f, n, w, r)
			})
			f.add(data)
			o := plain()
			o.Attempts, o.StallTimeout = 3, 300*time.Millisecond
			got, err := read(t.Context(), open(t, f.host(), "a", o), d)
			if tc.want == "" && (err != nil || !bytes.Equal(got, data)) {
				t.Errorf("got %d bytes, %v", len(got), err)
			}
			if tc.want != "" && (err == nil || !errors.Is(err, tc.kind) || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), f.host())) {
				t.Errorf("got %d bytes, %v; want an error with %q", len(got), err, tc.want)
			}
			var want []string
			for _, s := range tc.requests {
				want = append(want, "GET "+path+s)
			}
			if diff := cmp.Diff(want, f.seen()); diff != "" {
				t.Errorf("requests (-want +got):\n%s", diff)
			}
		})
	}
}

func TestCancel(t *testing.T) {
	data := random(1 << 20)
	release := make(chan struct{})
	defer close(release)
	var f *fake
	f = newFake(t, func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/blobs/") {
			f.serve(&cutter{ResponseWriter: w, left: 1000}, r)
		}
		select {
		case <-r.Context().Done():
		case <-release:
		}
		return true
	})
	f.add(data)
	r := open(t, f.host(), "a", plain())
	for name, use := range map[string]func(context.Context) error{
		"resolve": func(ctx context.Context) error { _, err := r.Resolve(ctx, "x"); return err },
		"read":    func(ctx context.Context) error { _, err := read(ctx, r, blobOf(data)); return err },
		"push":    func(ctx context.Context) error { return r.Push(ctx, blobOf(data), bytes.NewReader(data)) },
		"tags":    func(ctx context.Context) error { return r.Tags(ctx, "", func([]string) error { return nil }) },
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		if err := use(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: deadline: %v", name, err)
		}
		cancel()
		ctx, cancel = context.WithCancel(t.Context())
		time.AfterFunc(50*time.Millisecond, cancel)
		if err := use(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: cancelled: %v", name, err)
		}
		cancel()
	}
}

func TestManifests(t *testing.T) {
	good := image("x")
	index := []byte(`{"schemaVersion":2,"manifests":[]}`)
	send := func(status int, contentType string, body []byte, header ...string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if contentType != "" {
				w.Header().Set("Content-Type", contentType)
			} else {
				w.Header()["Content-Type"] = nil
			}
			for i := 0; i < len(header); i += 2 {
				w.Header().Set(header[i], header[i+1])
			}
			if r.Method == http.MethodHead {
				w.Header().Set("Content-Length", strconv.Itoa(len(body)))
			}
			w.WriteHeader(status)
			_, _ = w.Write(body)
			return true
		}
	}
	sum := digest.FromBytes(good)
	for _, tc := range []struct {
		name  string
		hook  func(http.ResponseWriter, *http.Request) bool
		ref   string
		media string
		kind  error
		want  string
	}{
		{"by tag", nil, "v1", ocispec.MediaTypeImageManifest, nil, ""},
		{"by digest", nil, sum.String(), ocispec.MediaTypeImageManifest, nil, ""},
		{"no digest header", send(200, ocispec.MediaTypeImageManifest, good), "v1", ocispec.MediaTypeImageManifest, nil, ""},
		{"no type", send(200, "", good), "v1", ocispec.MediaTypeImageManifest, nil, ""},
		{"type text", send(200, "text/plain; charset=utf-8", index), "v1", ocispec.MediaTypeImageIndex, nil, ""},
		{"no HEAD", func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodHead {
				w.WriteHeader(http.StatusMethodNotAllowed)
				return true
			}
			return false
		}, "v1", ocispec.MediaTypeImageManifest, nil, ""},
		{"no length", func(w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
			w.(http.Flusher).Flush()
			_, _ = w.Write(good)
			return true
		}, "v1", ocispec.MediaTypeImageManifest, nil, ""},
		{"missing", nil, "v2", "", vic.ErrNotFound, "404"},
		{"missing digest", nil, digest.FromString("y").String(), "", vic.ErrNotFound, "404"},
		{"bad tag", nil, "-", "", vic.ErrInvalid, "tag"},
		{"bad digest", nil, "sha256:1", "", vic.ErrInvalid, "digest"},
		{"a path as tag", nil, "a/b", "", vic.ErrInvalid, "tag"},
		{"another digest", send(200, ocispec.MediaTypeImageManifest, good, "Docker-Content-Digest", digest.FromString("x").String()), sum.String(), "", vic.ErrInvalid, "instead of"},
		{"digest is none", send(200, ocispec.MediaTypeImageManifest, good, "Docker-Content-Digest", "x"), "v1", "", vic.ErrInvalid, "no digest"},
		{"another content", send(200, "", []byte(`{"schemaVersion":2,"layers":[]}`)), sum.String(), "", vic.ErrInvalid, "is not sha256"},
		{"schema 1", send(200, "application/vnd.docker.distribution.manifest.v1+prettyjws", []byte(`{"schemaVersion":1}`)), "v1", "", vic.ErrUnsupported, "schema 1"},
		{"schema 1 as JSON", send(200, "application/json", []byte(`{"schemaVersion":1,"fsLayers":[]}`)), "v1", "", vic.ErrUnsupported, "schema 1"},
		{"something else", send(200, "application/vnd.example+json", []byte(`{"schemaVersion":2,"mediaType":"application/vnd.example+json"}`)), "v1", "", vic.ErrUnsupported, "application/vnd.example+json"},
		{"a page", send(200, "text/html", []byte(`<html>Log in</html>`)), "v1", "", vic.ErrInvalid, "is this a registry"},
		{"two types", send(200, "", []byte(`{"schemaVersion":2,"mediaType":"`+ocispec.MediaTypeImageIndex+`","manifests":[],"layers":[]}`)), "v1", "", vic.ErrInvalid, "both manifests and layers"},
		{"body of another type", send(200, ocispec.MediaTypeImageIndex, good), "v1", ocispec.MediaTypeImageIndex, vic.ErrInvalid, "mediaType"},
		{"large", send(200, ocispec.MediaTypeImageManifest, bytes.Repeat([]byte(" "), 4<<20+1), "Docker-Content-Digest", sum.String()), "v1", "", vic.ErrInvalid, "4194305 bytes"},
		{"endless", func(w http.ResponseWriter, r *http.Request) bool {
			w.WriteHeader(http.StatusOK)
			for r.Method == http.MethodGet {
				if _, err := w.Write(make([]byte, 1<<16)); err != nil {
					break
				}
			}
			return true
		}, "v1", "", vic.ErrInvalid, "at most 4194304"},
		{"gzip unasked", send(200, "", []byte("\x1f\x8b\x08\x00\x00\x00\x00\x00"), "Content-Encoding", "gzip"), "v1", "", vic.ErrInvalid, "no JSON"},
		{"large headers", func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("X-Large", strings.Repeat("x", 1<<20))
			return false
		}, "v1", "", vic.ErrInvalid, "headers"},
		{"teapot", send(http.StatusTeapot, "text/plain", []byte("short and\x1b[31m stout")), "v1", "", vic.ErrInvalid, "418"},
		{"denied", send(403, "application/json", []byte(`{"errors":[{"code":"DENIED","message":"requested access to the resource is denied"}]}`)), "v1", "", vic.ErrDenied, "nobody is logged in"},
		{"no content", send(204, "", nil), "v1", "", vic.ErrInvalid, "204"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFake(t, tc.hook)
			f.add(good, "v1")
			r := open(t, f.host(), "a/b", plain())
			d, err := r.Resolve(t.Context(), tc.ref)
			var b []byte
			if err == nil {
				b, err = read(t.Context(), r, d)
			}
			if tc.want != "" {
				if err == nil || !errors.Is(err, tc.kind) || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "\x1b") {
					t.Fatalf("error %v, want one with %q", err, tc.want)
				}
				return
			}
			if err != nil || d.MediaType != tc.media || d.Size != int64(len(b)) {
				t.Errorf("got %+v, %d bytes, %v", d, len(b), err)
			}
		})
	}
}

// TestManifestIsNotWhatItsDescriptorSays holds Fetch to the descriptor.
func TestManifestIsNotWhatItsDescriptorSays(t *testing.T) {
	good := image("x")
	f := newFake(t, nil)
	f.add(good)
	r := open(t, f.host(), "a", plain())
	for _, d := range []ocispec.Descriptor{
		{MediaType: ocispec.MediaTypeImageIndex, Digest: digest.FromBytes(good), Size: int64(len(good))},
		{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(good), Size: int64(len(good)) - 1},
		{MediaType: ocispec.MediaTypeImageManifest, Digest: "sha256:1", Size: 1},
		{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(good), Size: -1},
		{MediaType: ocispec.MediaTypeImageLayer, Digest: "md5:../../x", Size: 1},
	} {
		if _, err := r.Fetch(t.Context(), d); !errors.Is(err, vic.ErrInvalid) {
			t.Errorf("%+v: %v", d, err)
		}
	}
}

func TestRetries(t *testing.T) {
	good := image("x")
	status := func(code int, header ...string) func(http.ResponseWriter) {
		return func(w http.ResponseWriter) {
			for i := 0; i < len(header); i += 2 {
				w.Header().Set(header[i], header[i+1])
			}
			w.WriteHeader(code)
			_, _ = w.Write([]byte(`{"errors":[{"code":"TOOMANYREQUESTS","message":"You have reached your pull rate limit."}]}`))
		}
	}
	reset := func(w http.ResponseWriter) {
		c, _, err := w.(http.Hijacker).Hijack()
		if err == nil {
			_ = c.(*net.TCPConn).SetLinger(0)
			_ = c.Close()
		}
	}
	for _, tc := range []struct {
		name   string
		fail   func(http.ResponseWriter)
		times  int // that it fails
		total  int // requests
		kind   error
		want   string
		limit  time.Duration // of a RateLimitError
		remain int
	}{
		{"500", status(500), 2, 3, nil, "", 0, 0},
		{"503", status(503), 4, 5, nil, "", 0, 0},
		{"502 for ever", status(502), 99, 5, vic.ErrUnavailable, "502 Bad Gateway", 0, 0},
		{"501", status(501), 99, 2, vic.ErrUnsupported, "501", 0, 0},
		{"reset", reset, 2, 3, nil, "", 0, 0},
		{"reset for ever", reset, 99, 5, vic.ErrUnavailable, "cannot be reached", 0, 0},
		{"429", status(429), 2, 3, nil, "", 0, 0},
		{"429, soon", status(429, "Retry-After", "1"), 1, 2, nil, "", 0, 0},
		{"429, later", status(429, "Retry-After", "3600"), 99, 1, vic.ErrUnavailable, "try again in 1h0m0s", time.Hour, -1},
		{"503, later", status(503, "Retry-After", "3600"), 99, 1, vic.ErrUnavailable, "asks to wait 1h0m0s", 0, 0},
		{"Docker Hub", status(429, "ratelimit-limit", "100;w=21600", "ratelimit-remaining", "0;w=21600"), 99, 1, vic.ErrUnavailable,
			"limits the rate of requests (100 in 6h0m0s, 0 left): try again within 6h0m0s", 0, 0},
		{"429 for ever", status(429), 99, 5, vic.ErrUnavailable, "try again later", 0, -1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var n atomic.Int32
			f := newFake(t, func(w http.ResponseWriter, _ *http.Request) bool {
				if int(n.Add(1)) > tc.times {
					return false
				}
				tc.fail(w)
				return true
			})
			f.add(good, "v1")
			_, err := open(t, f.host(), "a", plain()).Resolve(t.Context(), "v1")
			if tc.want == "" && err != nil || tc.want != "" && (err == nil || !errors.Is(err, tc.kind) || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
			if got := int(n.Load()); got != tc.total {
				t.Errorf("%d requests, want %d", got, tc.total)
			}
			if strings.Contains(tc.name, "ever") || tc.limit == 0 && !strings.HasPrefix(tc.name, "Docker") {
				return
			}
			var limit *registry.RateLimitError
			if !errors.As(err, &limit) || limit.RetryAfter != tc.limit || limit.Remaining != tc.remain || limit.Registry != f.host() {
				t.Errorf("rate limit: %+v", limit)
			}
		})
	}
}

func TestUnreachable(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	_, err = open(t, l.Addr().String(), "a", plain()).Resolve(t.Context(), "v1")
	if !errors.Is(err, vic.ErrUnavailable) || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("nobody listens: %v", err)
	}
	_, err = open(t, "nobody.invalid", "a", plain()).Resolve(t.Context(), "v1")
	if !errors.Is(err, vic.ErrUnavailable) {
		t.Errorf("no such host: %v", err)
	}
}

func TestTags(t *testing.T) {
	pages := 0
	var f *fake
	f = newFake(t, func(w http.ResponseWriter, r *http.Request) bool {
		pages++
		switch r.URL.Path {
		case "/v2/endless/tags/list":
			w.Header().Set("Link", fmt.Sprintf(`</v2/endless/tags/list?n=%d>; rel="next"`, pages))
			_, _ = w.Write([]byte(`{"tags":["x"]}`))
		case "/v2/elsewhere/tags/list":
			w.Header().Set("Link", `<http://r.example/v2/x>; rel="next"`)
			_, _ = w.Write([]byte(`{"tags":["x"]}`))
		case "/v2/large/tags/list":
			_, _ = w.Write([]byte(`{"tags":["` + strings.Repeat("x", 5<<20) + `"]}`))
		default:
			return false
		}
		return true
	})
	for repository, want := range map[string]string{"endless": "1000 pages", "elsewhere": "origin", "large": "EOF", "missing": "not found"} {
		err := open(t, f.host(), repository, plain()).Tags(t.Context(), "", func([]string) error { return nil })
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", repository, err, want)
		}
	}
}
