package testregistry_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/vicsdk/vic-go/internal/testimage"
	"github.com/vicsdk/vic-go/internal/testregistry"
)

func image(text string) *testimage.Image {
	l := testimage.NewLayer()
	l.AddFile("f", []byte(text), nil)
	return &testimage.Image{Steps: []testimage.Step{{Layer: l}, {Layer: l}}}
}

// get asks the registry as any client would.
func get(t *testing.T, r *testregistry.Registry, path, user, password string) (int, string, []byte) {
	t.Helper()
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	if ca := r.CA(); ca != nil {
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(ca) {
			t.Fatalf("CA is no certificate: %s", ca)
		}
		transport.TLSClientConfig = &tls.Config{RootCAs: pool}
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, r.URL()+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, accept := range []string{
		"application/vnd.oci.image.manifest.v1+json", "application/vnd.oci.image.index.v1+json",
		"application/vnd.docker.distribution.manifest.v2+json", "application/vnd.docker.distribution.manifest.list.v2+json",
	} {
		req.Header.Add("Accept", accept)
	}
	if user != "" {
		req.SetBasicAuth(user, password)
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header.Get("Content-Type"), body
}

func TestPush(t *testing.T) {
	r := testregistry.ForTest(t, nil)
	for _, tc := range []struct {
		name  string
		opts  *testimage.Options
		index bool
		want  string
	}{
		{"gzip", nil, false, "application/vnd.oci.image.manifest.v1+json"},
		{"zstd", &testimage.Options{Compression: testimage.Zstd, Tag: "t"}, false, "application/vnd.oci.image.manifest.v1+json"},
		{"plain", &testimage.Options{Compression: testimage.Plain}, false, "application/vnd.oci.image.manifest.v1+json"},
		{"docker", &testimage.Options{Docker: true}, false, "application/vnd.docker.distribution.manifest.v2+json"},
		{"index", nil, true, "application/vnd.oci.image.index.v1+json"},
		{"list", &testimage.Options{Docker: true}, true, "application/vnd.docker.distribution.manifest.list.v2+json"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			im := image(tc.name)
			desc, err := im.Write(t.Context(), dir, tc.opts)
			if err != nil {
				t.Fatal(err)
			}
			layout := dir
			if tc.opts != nil && tc.opts.Tag != "" {
				layout += ":" + tc.opts.Tag
			}
			if tc.index {
				arm := image("arm")
				arm.Platform.Architecture = "arm64"
				if desc, err = testimage.WriteIndex(t.Context(), dir, []*testimage.Image{im, arm}, tc.opts); err != nil {
					t.Fatal(err)
				}
			}
			ref, dgst, err := r.Push(t.Context(), layout, "some/"+tc.name+":v1")
			if err != nil {
				t.Fatal(err)
			}
			if want := r.Addr() + "/some/" + tc.name + ":v1"; ref != want || dgst != desc.Digest {
				t.Errorf("pushed %s as %s, want %s as %s", dgst, ref, desc.Digest, want)
			}
			status, kind, body := get(t, r, "/v2/some/"+tc.name+"/manifests/v1", "", "")
			if status != http.StatusOK || kind != tc.want || digest.FromBytes(body) != desc.Digest {
				t.Errorf("manifest: %d, %s, digest %s; want %s, %s", status, kind, digest.FromBytes(body), tc.want, desc.Digest)
			}
		})
	}
}

func TestPushRefuses(t *testing.T) {
	r := testregistry.ForTest(t, nil)
	dir := t.TempDir()
	if _, err := image("x").Write(t.Context(), dir, nil); err != nil {
		t.Fatal(err)
	}
	broken := t.TempDir()
	desc, err := image("x").Write(t.Context(), broken, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(broken, "blobs/sha256", desc.Digest.Encoded()), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ name, layout, as, want string }{
		{"no layout", dir + "/none", "a", "layout:"},
		{"empty layout", t.TempDir(), "a", "layout:"},
		{"no tag", dir + ":other", "a", `no tag "other"`},
		{"bad name", dir, "UPPER", "skopeo"},
		{"bad manifest", broken, "a", "layout: manifest sha256:"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, _, err := r.Push(t.Context(), tc.layout, tc.as); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
		})
	}
}

func TestSecured(t *testing.T) {
	r := testregistry.ForTest(t, &testregistry.Options{TLS: true, Username: "me", Password: "secret"})
	dir := t.TempDir()
	desc, err := image("x").Write(t.Context(), dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := r.Push(t.Context(), dir, "x:1"); err != nil {
		t.Fatal(err)
	}
	if status, _, _ := get(t, r, "/v2/x/manifests/1", "", ""); status != http.StatusUnauthorized {
		t.Errorf("without a password: %d", status)
	}
	if status, _, _ := get(t, r, "/v2/x/manifests/1", "me", "wrong"); status != http.StatusUnauthorized {
		t.Errorf("with a wrong password: %d", status)
	}
	if status, _, body := get(t, r, "/v2/x/manifests/1", "me", "secret"); status != http.StatusOK || digest.FromBytes(body) != desc.Digest {
		t.Errorf("with the password: %d, %s", status, body)
	}
	if _, err := http.Get(r.URL() + "/v2/"); err == nil {
		t.Error("the certificate is trusted by everybody")
	}
}

func TestRestart(t *testing.T) {
	r := testregistry.ForTest(t, nil)
	dir, addr := t.TempDir(), r.Addr()
	desc, err := image("x").Write(t.Context(), dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := r.Push(t.Context(), dir, "x:1"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := r.Stop(); err != nil {
			t.Fatal(err)
		}
		if c, err := net.Dial("tcp", addr); err == nil {
			c.Close()
			t.Error("somebody still listens")
		}
		if err := r.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if status, _, body := get(t, r, "/v2/x/manifests/1", "", ""); r.Addr() != addr || status != http.StatusOK || digest.FromBytes(body) != desc.Digest {
		t.Errorf("after a restart: %s, %d, %s", r.Addr(), status, body)
	}
}

// TestTokens: only who has a token of the server is let in, as skopeo, which
// shares no code with us, sees it.
func TestTokens(t *testing.T) {
	tokens := testregistry.TokensForTest(t, testregistry.TokenOptions{Username: "me", Password: "secret"})
	r := testregistry.ForTest(t, &testregistry.Options{Tokens: tokens})
	if status, _, _ := get(t, r, "/v2/x/manifests/1", "me", "secret"); status != http.StatusUnauthorized {
		t.Errorf("with a password but no token: %d", status)
	}
	dir := t.TempDir()
	if _, err := image("x").Write(t.Context(), dir, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := exec.LookPath("skopeo"); err != nil && os.Getenv("CI") != "true" {
		t.Skip(err)
	}
	for creds, want := range map[string]bool{"me:secret": true, "me:wrong": false} {
		out, err := exec.CommandContext(t.Context(), "skopeo", "--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false",
			"--dest-creds", creds, "oci:"+dir+":latest", "docker://"+r.Addr()+"/x:1").CombinedOutput()
		if (err == nil) != want {
			t.Errorf("skopeo with %s: %v, %s", creds, err, out)
		}
	}
	if n := len(tokens.Requests()); n < 2 {
		t.Errorf("the token server was asked %d times", n)
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	var log bytes.Buffer
	opts := &testregistry.Options{Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	r, err := testregistry.Start(t.Context(), opts)
	if errors.Is(err, testregistry.ErrMissing) && os.Getenv("CI") != "true" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if c, err := net.Dial("tcp", r.Addr()); err == nil {
		c.Close()
		t.Error("somebody still listens")
	}
	if left, err := os.ReadDir(os.Getenv("TMPDIR")); err != nil || len(left) > 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
	if !strings.Contains(log.String(), "listening on") {
		t.Errorf("log: %s", log.String())
	}
}

func TestStartRefuses(t *testing.T) {
	testregistry.ForTest(t, nil)
	t.Setenv("TMPDIR", t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for name, start := range map[string]func() error{
		"user without password": func() error {
			_, err := testregistry.Start(t.Context(), &testregistry.Options{Username: "me"})
			return err
		},
		"password too long for bcrypt": func() error {
			_, err := testregistry.Start(t.Context(), &testregistry.Options{Username: "me", Password: strings.Repeat("p", 100)})
			return err
		},
		"tokens and a password": func() error {
			_, err := testregistry.Start(t.Context(), &testregistry.Options{Username: "me", Password: "x", Tokens: &testregistry.Tokens{}})
			return err
		},
		"client certificates without TLS": func() error {
			_, err := testregistry.Start(t.Context(), &testregistry.Options{ClientCA: []byte("x")})
			return err
		},
		"after the context's end": func() error {
			_, err := testregistry.Start(ctx, nil)
			return err
		},
	} {
		if err := start(); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if left, err := os.ReadDir(os.Getenv("TMPDIR")); err != nil || len(left) > 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
	t.Setenv("PATH", t.TempDir())
	if _, err := testregistry.Start(t.Context(), nil); !errors.Is(err, testregistry.ErrMissing) {
		t.Errorf("without the program: %v, want %v", err, testregistry.ErrMissing)
	}
}

// fakeTB records how ForTest ends a test.
type fakeTB struct {
	testregistry.TB
	outcome string
}

func (f *fakeTB) Helper()                  {}
func (f *fakeTB) Context() context.Context { return context.Background() }
func (f *fakeTB) Cleanup(func())           {}
func (f *fakeTB) Skipf(string, ...any)     { f.outcome = "skipped"; panic(f) }
func (f *fakeTB) Fatalf(string, ...any)    { f.outcome = "failed"; panic(f) }

func TestForTestWithoutRegistry(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	for ci, want := range map[string]string{"true": "failed", "": "skipped"} {
		t.Setenv("CI", ci)
		f := &fakeTB{}
		func() {
			defer func() { _ = recover() }()
			testregistry.ForTest(f, nil)
		}()
		if f.outcome != want {
			t.Errorf("CI=%q: %q, want %q", ci, f.outcome, want)
		}
	}
}
