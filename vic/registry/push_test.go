package registry_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/vicsdk/vic-go/internal/testregistry"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/imagestore"
	"github.com/vicsdk/vic-go/vic/registry"
)

// sink is what an image store will ask of a registry to push to.
type sink interface {
	Exists(ctx context.Context, target ocispec.Descriptor) (bool, error)
	Mount(ctx context.Context, target ocispec.Descriptor, from string) (bool, error)
	Push(ctx context.Context, target ocispec.Descriptor, content io.Reader) error
	Tag(ctx context.Context, target ocispec.Descriptor, tag string) error
}

var (
	_ sink              = (*registry.Repository)(nil)
	_ imagestore.Source = (*registry.Repository)(nil)
)

func TestPush(t *testing.T) {
	reg := testregistry.ForTest(t, nil)
	data := random(3<<20 + 17)
	for name, chunk := range map[string]int{"whole": 0, "pieces": 1 << 20, "pieces of one byte more": 3<<20 + 16, "one piece": 4 << 20} {
		o := plain()
		o.UploadChunk = chunk
		r := open(t, reg.Addr(), "push/"+strings.ReplaceAll(name, " ", "-"), o)
		d := blobOf(data)
		if ok, err := r.Exists(t.Context(), d); ok || err != nil {
			t.Errorf("%s: exists before: %t, %v", name, ok, err)
		}
		// A reader that is no Seeker and gives what it likes.
		if err := r.Push(t.Context(), d, iotest.HalfReader(bytes.NewReader(data))); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if ok, err := r.Exists(t.Context(), d); !ok || err != nil {
			t.Errorf("%s: exists after: %t, %v", name, ok, err)
		}
		if got, err := read(t.Context(), r, d); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s: read %d bytes, %v", name, len(got), err)
		}
	}
	r := open(t, reg.Addr(), "push/other", plain())
	if err := r.Push(t.Context(), blobOf(nil), bytes.NewReader(nil)); err != nil {
		t.Errorf("nothing: %v", err)
	}
	if left := uploads(t, reg); len(left) > 0 {
		t.Errorf("uploads are left: %v", left)
	}
}

func TestPushRefuses(t *testing.T) {
	reg := testregistry.ForTest(t, nil)
	data := random(100000)
	d := blobOf(data)
	other := d
	other.Digest = digest.FromString("x")
	broken := errors.New("the disk is on fire")
	m := image("x")
	for _, tc := range []struct {
		name string
		d    ocispec.Descriptor
		r    io.Reader
		kind error
		want string
	}{
		{"another content", other, bytes.NewReader(data), vic.ErrInvalid, "DIGEST_INVALID"},
		{"too short", d, bytes.NewReader(data[:99]), vic.ErrInvalid, ""},
		{"too short, no seeker", d, io.LimitReader(bytes.NewReader(data), 99), vic.ErrInvalid, ""},
		{"too long", d, io.MultiReader(bytes.NewReader(data), strings.NewReader("x")), vic.ErrInvalid, ""},
		{"reader fails", d, io.MultiReader(bytes.NewReader(data[:50000]), iotest.ErrReader(broken)), broken, "on fire"},
		{"bad digest", ocispec.Descriptor{MediaType: d.MediaType, Digest: "x", Size: 1}, strings.NewReader("x"), vic.ErrInvalid, "digest"},
		{"another manifest", manifestOf(image("y")), bytes.NewReader(m), vic.ErrInvalid, "not what the descriptor says"},
		{"manifest of what is not there", manifestOf(m), bytes.NewReader(m), nil, "BLOB_UNKNOWN"},
		{"large manifest", ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: d.Digest, Size: 5 << 20}, strings.NewReader(""), vic.ErrInvalid, "5242880"},
	} {
		for _, chunk := range []int{0, 1 << 14} {
			o := plain()
			o.UploadChunk = chunk
			if s, ok := tc.r.(io.Seeker); ok {
				_, _ = s.Seek(0, io.SeekStart)
			} else if chunk > 0 {
				continue
			}
			err := open(t, reg.Addr(), "refused", o).Push(t.Context(), tc.d, tc.r)
			if err == nil || tc.kind != nil && !errors.Is(err, tc.kind) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%s, pieces of %d: %v, want %q", tc.name, chunk, err, tc.want)
			}
		}
	}
	r := open(t, reg.Addr(), "refused", plain())
	if err := r.Tag(t.Context(), manifestOf(m), "v1"); !errors.Is(err, vic.ErrNotFound) {
		t.Errorf("tag what is not there: %v", err)
	}
	if err := r.Tag(t.Context(), manifestOf(m), "a/b"); !errors.Is(err, vic.ErrInvalid) {
		t.Errorf("tag badly: %v", err)
	}
	if err := r.Tag(t.Context(), d, "v1"); !errors.Is(err, vic.ErrInvalid) {
		t.Errorf("tag a layer: %v", err)
	}
}

// uploads lists the uploads that a registry keeps.
func uploads(t *testing.T, reg *testregistry.Registry) []string {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(reg.Dir(), "docker/registry/v2/repositories/*/_uploads/*"))
	if err != nil {
		t.Fatal(err)
	}
	more, err := filepath.Glob(filepath.Join(reg.Dir(), "docker/registry/v2/repositories/*/*/_uploads/*"))
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(append(left, more...), func(s string) bool { _, err := os.Stat(filepath.Join(s, "data")); return err != nil })
}

func TestMount(t *testing.T) {
	reg := testregistry.ForTest(t, nil)
	data := random(5000)
	d := blobOf(data)
	if err := open(t, reg.Addr(), "from", plain()).Push(t.Context(), d, bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	r := open(t, reg.Addr(), "to", plain())
	if ok, err := r.Mount(t.Context(), d, "from"); !ok || err != nil {
		t.Errorf("mount: %t, %v", ok, err)
	}
	if ok, err := r.Exists(t.Context(), d); !ok || err != nil {
		t.Errorf("mounted: %t, %v", ok, err)
	}
	if ok, err := r.Mount(t.Context(), blobOf([]byte("x")), "from"); ok || err != nil {
		t.Errorf("what is not there: %t, %v", ok, err)
	}
	if ok, err := r.Mount(t.Context(), d, "UPPER"); ok || !errors.Is(err, vic.ErrInvalid) {
		t.Errorf("from nowhere: %t, %v", ok, err)
	}
	if left := uploads(t, reg); len(left) > 0 {
		t.Errorf("uploads are left: %v", left)
	}
}

func TestTagsAndReferrers(t *testing.T) {
	reg := testregistry.ForTest(t, nil)
	r := open(t, reg.Addr(), "a/b", plain())
	m := push(t, r, "tags")
	want := []string{"v1"}
	for _, tag := range []string{"a", "b", "c", "v1"} {
		if err := r.Tag(t.Context(), manifestOf(m), tag); err != nil {
			t.Fatal(err)
		}
		want = append(want, tag)
	}
	slices.Sort(want)
	var got []string
	if err := r.Tags(t.Context(), "", func(tags []string) error { got = append(got, tags...); return nil }); err != nil {
		t.Fatal(err)
	}
	slices.Sort(got) // this registry has them in no order
	if diff := cmp.Diff(slices.Compact(want), got); diff != "" {
		t.Errorf("tags (-want +got):\n%s", diff)
	}

	subject := manifestOf(m)
	empty := ocispec.DescriptorEmptyJSON
	signature, err := json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, ArtifactType: "application/vnd.example.signature",
		Config: empty, Layers: []ocispec.Descriptor{empty}, Subject: &subject,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Push(t.Context(), empty, bytes.NewReader(empty.Data)); err != nil {
		t.Fatal(err)
	}
	if err := r.Push(t.Context(), manifestOf(signature), bytes.NewReader(signature)); err != nil {
		t.Fatal(err)
	}
	// Another client sees it by the tag, because this registry has no API.
	for artifactType, want := range map[string]int{"": 1, "application/vnd.example.signature": 1, "application/vnd.example.other": 0} {
		n := 0
		err := open(t, reg.Addr(), "a/b", plain()).Referrers(t.Context(), subject, artifactType, func(ds []ocispec.Descriptor) error {
			for _, d := range ds {
				if d.Digest != digest.FromBytes(signature) {
					t.Errorf("referrer %s", d.Digest)
				}
				n++
			}
			return nil
		})
		if err != nil || n != want {
			t.Errorf("referrers of type %q: %d, %v; want %d", artifactType, n, err, want)
		}
	}
}

// between is a reverse proxy before a registry that can be told to break.
func between(t *testing.T, to string, breaks func(w http.ResponseWriter, r *http.Request) bool) string {
	t.Helper()
	u, err := url.Parse(to)
	if err != nil {
		t.Fatal(err)
	}
	p := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(u); r.Out.Host = r.In.Host }}
	return newFake(t, func(w http.ResponseWriter, r *http.Request) bool {
		if !breaks(w, r) {
			p.ServeHTTP(w, r)
		}
		return true
	}).host()
}

// TestPushGoesOn breaks uploads to a real registry.
func TestPushGoesOn(t *testing.T) {
	reg := testregistry.ForTest(t, nil)
	data := random(4 << 20)
	for _, tc := range []struct {
		name   string
		chunk  int
		seeker bool
		method string // whose requests break
		times  int32
		before bool // the registry gets them
		fail   bool
	}{
		{"whole, twice", 0, true, http.MethodPut, 2, false, false},
		{"whole, no seeker", 0, false, http.MethodPut, 1, false, true},
		{"whole, for ever", 0, true, http.MethodPut, 99, false, true},
		{"pieces, lost", 1 << 20, false, http.MethodPatch, 2, false, false},
		{"pieces, answer lost", 1 << 20, true, http.MethodPatch, 1, true, false},
		{"pieces, answer lost, no seeker", 1 << 20, false, http.MethodPatch, 1, true, true}, // distribution does not let go on
		{"pieces, for ever", 1 << 20, false, http.MethodPatch, 99, false, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var n atomic.Int32
			var through string
			through = between(t, reg.URL(), func(w http.ResponseWriter, r *http.Request) bool {
				if r.Method != tc.method || r.Header.Get("X-Through") != "" || n.Add(1) > tc.times {
					return false
				}
				if tc.before {
					again := r.Clone(r.Context())
					again.RequestURI, again.URL.Scheme, again.URL.Host = "", "http", through
					again.Header.Set("X-Through", "yes")
					resp, err := http.DefaultTransport.RoundTrip(again)
					if err != nil {
						t.Error(err)
					} else {
						resp.Body.Close()
					}
				} else {
					_, _ = io.CopyN(io.Discard, r.Body, 300000)
				}
				panic(http.ErrAbortHandler)
			})
			o := plain()
			o.UploadChunk, o.Attempts = tc.chunk, 3
			repository := "on/" + strings.NewReplacer(" ", "-", ",", "").Replace(tc.name)
			r := open(t, through, repository, o)
			var content io.Reader = bytes.NewReader(data)
			if !tc.seeker {
				content = io.MultiReader(content)
			}
			err := r.Push(t.Context(), blobOf(data), content)
			if tc.fail {
				if !errors.Is(err, vic.ErrUnavailable) {
					t.Errorf("error %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got, err := read(t.Context(), open(t, reg.Addr(), repository, plain()), blobOf(data)); err != nil || !bytes.Equal(got, data) {
				t.Errorf("the registry has %d bytes, %v", len(got), err)
			}
		})
	}
}

// TestUploadResumes breaks uploads in pieces to a registry that keeps to the
// specification and can tell how far they got.
func TestUploadResumes(t *testing.T) {
	data := random(3 << 20)
	for name, limit := range map[string]int{"a part": 300000, "all of it": 1 << 30} {
		var n atomic.Int32
		var f *fake
		f = newFake(t, func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodPatch || n.Add(1)%2 == 0 {
				return false
			}
			r.Body = io.NopCloser(io.LimitReader(r.Body, int64(limit)))
			f.serveUpload(httptest.NewRecorder(), r)
			panic(http.ErrAbortHandler)
		})
		o := plain()
		o.UploadChunk, o.Attempts = 1<<20, 2
		r := open(t, f.host(), "a", o)
		if err := r.Push(t.Context(), blobOf(data), io.MultiReader(bytes.NewReader(data))); err != nil {
			t.Errorf("%s: %v, %v", name, err, f.seen())
		}
		if got, err := read(t.Context(), r, blobOf(data)); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s: the registry has %d bytes, %v", name, len(got), err)
		}
	}
}

// TestUploadElsewhere: content and credentials go to the registry only.
func TestUploadElsewhere(t *testing.T) {
	other := newFake(t, nil)
	for _, location := range []string{"http://" + other.host() + "/x", "https://HOST/x", "", "file:///x", "http://a:b@HOST/x"} {
		var f *fake
		f = newFake(t, func(w http.ResponseWriter, r *http.Request) bool {
			if location != "" {
				w.Header().Set("Location", strings.ReplaceAll(location, "HOST", f.host()))
			}
			w.WriteHeader(http.StatusAccepted)
			return true
		})
		err := open(t, f.host(), "a", plain()).Push(t.Context(), blobOf([]byte("x")), strings.NewReader("x"))
		if !errors.Is(err, vic.ErrInvalid) || len(f.seen()) != 1 || len(other.seen()) != 0 {
			t.Errorf("%q: %v, %v", location, err, f.seen())
		}
	}
}

// TestUploadStalls: a registry that takes no more.
func TestUploadStalls(t *testing.T) {
	release := make(chan struct{})
	var f *fake
	f = newFake(t, func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPost {
			w.Header().Set("Location", "/upload")
			w.WriteHeader(http.StatusAccepted)
			return true
		}
		if r.Method == http.MethodPut {
			<-release
		}
		return true
	})
	defer close(release)
	o := plain()
	o.StallTimeout, o.Attempts = 200*time.Millisecond, 1
	data := random(64 << 20)
	if err := open(t, f.host(), "a", o).Push(t.Context(), blobOf(data), bytes.NewReader(data)); !errors.Is(err, vic.ErrUnavailable) || !strings.Contains(err.Error(), "stalled") {
		t.Errorf("error %v", err)
	}
}

// TestRestart stops a real registry in the middle of a blob.
func TestRestart(t *testing.T) {
	reg := testregistry.ForTest(t, nil)
	data := random(64 << 20)
	o := plain()
	o.RetryDelay, o.Attempts = 50*time.Millisecond, 8
	r := open(t, reg.Addr(), "a", o)
	if err := r.Push(t.Context(), blobOf(data), bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	rc, err := r.Fetch(t.Context(), blobOf(data))
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	got := make([]byte, len(data))
	if _, err := io.ReadFull(rc, got[:1<<20]); err != nil {
		t.Fatal(err)
	}
	if err := reg.Stop(); err != nil {
		t.Fatal(err)
	}
	started := make(chan error, 1)
	go func() {
		time.Sleep(300 * time.Millisecond) // some attempts find nobody
		started <- reg.Restart(t.Context())
	}()
	if _, err := io.ReadFull(rc, got[1<<20:]); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%v", err)
	}
	if n, err := rc.Read(got); n != 0 || err != io.EOF {
		t.Errorf("at the end: %d, %v", n, err)
	}
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	if err := reg.Stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := read(t.Context(), r, blobOf(data)); !errors.Is(err, vic.ErrUnavailable) {
		t.Errorf("nobody comes back: %v", err)
	}
}
