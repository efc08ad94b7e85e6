package registry_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/vicsdk/vic-go/internal/testregistry"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/registry"
)

// certificate makes a client's certificate and its key, both PEM; it is its
// own authority.
func certificate(t *testing.T) (cert, key []byte) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "client"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		BasicConstraintsValid: true, IsCA: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	kd, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: kd})
}

// certsDir lays out a directory as Docker does.
func certsDir(t *testing.T, host string, files map[string][]byte) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, host), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, b := range files {
		if err := os.WriteFile(filepath.Join(dir, host, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestTLS(t *testing.T) {
	cert, key := certificate(t)
	reg := testregistry.ForTest(t, &testregistry.Options{TLS: true})
	strict := testregistry.ForTest(t, &testregistry.Options{TLS: true, ClientCA: cert})
	noTLS := testregistry.ForTest(t, nil)
	_, port, _ := strings.Cut(reg.Addr(), ":")
	otherName := "127.0.0.2:" + port
	push(t, open(t, reg.Addr(), "a", &registry.Options{CA: reg.CA()}), "tls")
	push(t, open(t, strict.Addr(), "a", &registry.Options{CA: strict.CA(), ClientCert: cert, ClientKey: key}), "tls")
	push(t, open(t, noTLS.Addr(), "a", plain()), "tls")
	for _, tc := range []struct {
		name, host string
		o          registry.Options
		kind       error
		want       string
	}{
		{"CA", reg.Addr(), registry.Options{CA: reg.CA()}, nil, ""},
		{"untrusted", reg.Addr(), registry.Options{}, vic.ErrDenied, "option CA or CertsDir, or set Insecure"},
		{"Insecure", reg.Addr(), registry.Options{Insecure: true}, nil, ""},
		{"insecure list", reg.Addr(), registry.Options{InsecureRegistries: []string{reg.Addr()}}, nil, ""},
		{"insecure network", reg.Addr(), registry.Options{InsecureRegistries: []string{"127.0.0.0/8"}}, nil, ""},
		{"insecure network by name", "localhost:" + port, registry.Options{InsecureRegistries: []string{"127.0.0.0/8", "::1/128"}}, nil, ""},
		{"other insecure network", reg.Addr(), registry.Options{InsecureRegistries: []string{"10.0.0.0/8"}}, vic.ErrDenied, "not trusted"},
		{"certs.d", reg.Addr(), registry.Options{CertsDir: certsDir(t, reg.Addr(), map[string][]byte{"ca.crt": reg.CA()})}, nil, ""},
		{"certs.d of another", reg.Addr(), registry.Options{CertsDir: certsDir(t, "r.example", map[string][]byte{"ca.crt": reg.CA()})}, vic.ErrDenied, "not trusted"},
		{"certs.d without a certificate", reg.Addr(), registry.Options{CertsDir: certsDir(t, reg.Addr(), map[string][]byte{"ca.crt": []byte("x")})}, vic.ErrInvalid, "ca.crt holds no certificate"},
		{"certs.d without a key", reg.Addr(), registry.Options{CertsDir: certsDir(t, reg.Addr(), map[string][]byte{"client.cert": cert})}, vic.ErrInvalid, "client.key"},
		{"certs.d without a cert", reg.Addr(), registry.Options{CertsDir: certsDir(t, reg.Addr(), map[string][]byte{"client.key": key})}, vic.ErrInvalid, "client.cert"},
		{"name", otherName, registry.Options{CA: reg.CA()}, vic.ErrUnavailable, "refused"}, // it listens on 127.0.0.1 only
		{"client certificate", strict.Addr(), registry.Options{CA: strict.CA(), ClientCert: cert, ClientKey: key}, nil, ""},
		{"client certificate of certs.d", strict.Addr(), registry.Options{CertsDir: certsDir(t, strict.Addr(), map[string][]byte{"ca.crt": strict.CA(), "client.cert": cert, "client.key": key})}, nil, ""},
		{"no client certificate", strict.Addr(), registry.Options{CA: strict.CA()}, nil, "options ClientCert and ClientKey"},
		{"TLS to HTTP", noTLS.Addr(), registry.Options{}, vic.ErrInvalid, "set option PlainHTTP"},
		{"HTTP to TLS", reg.Addr(), registry.Options{PlainHTTP: true}, vic.ErrInvalid, "leave out option PlainHTTP"},
		{"insecure list finds HTTP", noTLS.Addr(), registry.Options{InsecureRegistries: []string{"127.0.0.1:*"}}, nil, ""},
		{"insecure network finds HTTP", noTLS.Addr(), registry.Options{InsecureRegistries: []string{"127.0.0.0/8"}}, nil, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, err := registry.Open(registry.Name{Registry: tc.host, Repository: "a"}, quick(tc.o))
			if err == nil {
				err = pull(t, r)
			}
			if tc.want == "" && err != nil || tc.want != "" && (err == nil || tc.kind != nil && !errors.Is(err, tc.kind) || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("%v, want %q", err, tc.want)
			}
		})
	}
}

// TestHostnameOfCertificate wants an error that says so.
func TestHostnameOfCertificate(t *testing.T) {
	f := unstarted(t, nil)
	f.StartTLS()
	_, port, _ := strings.Cut(f.host(), ":")
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.Certificate().Raw})
	if err := pull(t, open(t, "localhost:"+port, "a", quick(registry.Options{CA: ca}))); !errors.Is(err, vic.ErrDenied) || !strings.Contains(err.Error(), "for another name") {
		t.Errorf("error %v", err)
	}
	f.add(image("x"), "v1")
	if err := pull(t, open(t, f.host(), "a", quick(registry.Options{CA: ca}))); err != nil {
		t.Errorf("HTTP/2 or TLS of net/http: %v", err)
	}
}

// TestMirrors checks who is asked and when.
func TestMirrors(t *testing.T) {
	m, data := image("mirrored"), random(200000)
	for _, tc := range []struct {
		name    string
		mirror  func(f *fake) func(w http.ResponseWriter, r *http.Request) bool
		has     bool // the mirror has the image
		asked   bool // so is the registry
		kind    error
		want    string
		stopped bool
	}{
		{"has it", nil, true, false, nil, "", false},
		{"has it not", nil, false, true, nil, "", false},
		{"denies", func(*fake) func(w http.ResponseWriter, r *http.Request) bool {
			return func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(http.StatusForbidden); return true }
		}, true, true, nil, "", false},
		{"fails", func(*fake) func(w http.ResponseWriter, r *http.Request) bool {
			return func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(http.StatusBadGateway); return true }
		}, true, true, nil, "", false},
		{"limits", func(*fake) func(w http.ResponseWriter, r *http.Request) bool {
			return func(w http.ResponseWriter, _ *http.Request) bool {
				w.Header().Set("Retry-After", "60")
				w.WriteHeader(http.StatusTooManyRequests)
				return true
			}
		}, true, true, nil, "", false},
		{"is down", nil, true, true, nil, "", true},
		{"lies about the digest", func(*fake) func(w http.ResponseWriter, r *http.Request) bool {
			return func(w http.ResponseWriter, r *http.Request) bool {
				if strings.Contains(r.URL.Path, "/manifests/sha256:") {
					w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
					_, _ = w.Write(image("something else"))
					return true
				}
				return false
			}
		}, true, false, vic.ErrInvalid, "is not sha256", false},
		{"breaks off a blob for good", func(f *fake) func(w http.ResponseWriter, r *http.Request) bool {
			return func(w http.ResponseWriter, r *http.Request) bool {
				if strings.Contains(r.URL.Path, "/blobs/") {
					cut(w, f, r, max(0, 70000-len(r.Header.Get("Range"))*70000))
				}
				return false
			}
		}, true, true, nil, "", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var f *fake
			f = newFake(t, func(w http.ResponseWriter, r *http.Request) bool {
				return tc.mirror != nil && tc.mirror(f)(w, r)
			})
			reg := newFake(t, nil)
			reg.add(m, "v1")
			reg.add(data)
			if tc.has {
				f.add(m, "v1")
				f.add(data)
			}
			if tc.stopped {
				f.Close()
			}
			o := plain()
			o.Mirrors, o.Attempts = []string{"http://" + f.host() + "/cache/hub"}, 2
			r := open(t, reg.host(), "a/b", o)
			err := pull(t, r)
			if err == nil {
				_, err = read(t.Context(), r, blobOf(data))
			}
			if tc.want == "" && err != nil || tc.want != "" && (err == nil || !errors.Is(err, tc.kind) || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("%v, want %q", err, tc.want)
			}
			if got := len(reg.seen()) > 0; got != tc.asked {
				t.Errorf("the registry was asked: %v", reg.seen())
			}
			for _, line := range f.seen() {
				if !strings.Contains(line, " /v2/cache/hub/a/b/") {
					t.Errorf("the mirror was asked %s", line)
				}
			}
			if tc.stopped || tc.name == "fails" {
				before := len(f.seen())
				if err := pull(t, r); err != nil || len(f.seen()) != before {
					t.Errorf("a mirror that cannot be reached is asked again at once: %v, %v", err, f.seen()[before:])
				}
			}
		})
	}
	f, reg := newFake(t, nil), newFake(t, nil)
	o := plain()
	o.Mirrors = []string{"http://" + f.host()}
	if err := pull(t, open(t, reg.host(), "a", o)); !errors.Is(err, vic.ErrNotFound) || !strings.Contains(err.Error(), "mirrors: "+f.host()) {
		t.Errorf("nobody has it: %v", err)
	}
}

// TestPullThrough pulls through a real registry that mirrors another.
func TestPullThrough(t *testing.T) {
	reg := testregistry.ForTest(t, nil)
	m := push(t, open(t, reg.Addr(), "a", plain()), "pulled through")
	cache := testregistry.ForTest(t, &testregistry.Options{ProxyOf: reg.URL()})
	o := plain()
	o.Mirrors = []string{"http://" + cache.Addr()}
	r := open(t, reg.Addr(), "a", o)
	if _, err := read(t.Context(), r, manifestOf(m)); err != nil {
		t.Fatal(err)
	}
	if err := reg.Stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := read(t.Context(), r, manifestOf(m)); err != nil {
		t.Errorf("what the mirror has is not served without the registry: %v", err)
	}
}

func TestRedirects(t *testing.T) {
	data := random(100000)
	path := "/v2/a/blobs/" + digest.FromBytes(data).String()
	storage := newFake(t, func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") != "" || r.Header.Get("Referer") != "" {
			t.Errorf("storage gets %v", r.Header)
		}
		return false
	})
	storage.add(data)
	secure := unstarted(t, nil)
	secure.add(data)
	secure.StartTLS()
	_, port, _ := strings.Cut(storage.host(), ":")
	target := "http://localhost:" + port + "/" + digest.FromBytes(data).String() + "?X-Signature=hush-hush"
	for _, tc := range []struct {
		name     string
		location string
		tls      bool
		o        registry.Options
		kind     error
		want     string
	}{
		{"to storage", target, false, registry.Options{}, nil, ""},
		{"another port of its host", "http://" + storage.host() + "/" + digest.FromBytes(data).String(), false, registry.Options{}, nil, ""},
		{"from TLS", target, true, registry.Options{}, vic.ErrDenied, "from TLS to plain HTTP"},
		{"loop", "LOOP", false, registry.Options{}, vic.ErrInvalid, "more than 10 times"},
		{"file", "file:///etc/passwd", false, registry.Options{}, vic.ErrInvalid, `scheme "file"`},
		{"nowhere", "http:///x", false, registry.Options{}, vic.ErrInvalid, ""},
		{"denied by name", target, false, registry.Options{Deny: []string{"localhost:*"}}, vic.ErrDenied, "option Deny"},
		{"not listed", target, false, registry.Options{Allow: []string{"127.0.0.1:*"}}, vic.ErrDenied, "neither option Allow nor Redirects"},
		{"listed", target, false, registry.Options{Allow: []string{"127.0.0.1:*"}, Redirects: []string{"localhost:*"}}, nil, ""},
		{"listed by network", target, false, registry.Options{Allow: []string{"127.0.0.0/8", "::1/128"}}, nil, ""},
		{"listed by another network", target, false, registry.Options{Allow: []string{"127.0.0.1:*"}, Redirects: []string{"10.0.0.0/8"}}, vic.ErrDenied, "its address is"},
		{"refused there", "http://localhost:" + port + "/missing?X-Signature=hush-hush", false, registry.Options{}, vic.ErrNotFound, "404"},
		{"unreachable there", "http://localhost:1/x?X-Signature=hush-hush", false, registry.Options{}, vic.ErrUnavailable, "refused"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := unstarted(t, func(w http.ResponseWriter, r *http.Request) bool {
				switch {
				case r.Header.Get("Authorization") == "":
					w.Header().Set("Www-Authenticate", `Basic realm="x"`)
					w.WriteHeader(http.StatusUnauthorized)
				case tc.location == "LOOP":
					w.Header().Set("Location", path+"?"+r.URL.RawQuery+"x")
					w.WriteHeader(http.StatusTemporaryRedirect)
				default:
					w.Header().Set("Location", tc.location)
					w.WriteHeader(http.StatusTemporaryRedirect)
				}
				return true
			})
			tc.o.User, tc.o.Password, tc.o.Attempts = user, password, 2
			if tc.tls {
				f.StartTLS()
				tc.o.CA = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.Certificate().Raw})
			} else {
				f.Start()
				tc.o.PlainHTTP = true
			}
			_, err := read(t.Context(), open(t, f.host(), "a", quick(tc.o)), blobOf(data))
			if tc.kind == nil && err != nil || tc.kind != nil && (err == nil || !errors.Is(err, tc.kind) || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("%v, want %q", err, tc.want)
			}
			secretsIn(t, fmt.Sprintf("%v %+v", err, err))
		})
	}
}

// TestDialedAddress: a name that is allowed or not by its address.
func TestDialedAddress(t *testing.T) {
	f := newFake(t, nil)
	f.add(image("x"), "v1")
	_, port, _ := strings.Cut(f.host(), ":")
	for _, tc := range []struct {
		name string
		o    registry.Options
		want string
	}{
		{"allowed", registry.Options{Allow: []string{"127.0.0.0/8", "::1/128"}}, ""},
		{"elsewhere", registry.Options{Allow: []string{"10.0.0.0/8"}}, "option Allow"},
		{"denied", registry.Options{Allow: []string{"localhost:*"}, Deny: []string{"127.0.0.0/8", "::1/128"}}, "option Deny"},
	} {
		tc.o.PlainHTTP = true
		err := pull(t, open(t, "localhost:"+port, "a", quick(tc.o)))
		if tc.want == "" && err != nil || tc.want != "" && (!errors.Is(err, vic.ErrDenied) || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
	}
}

// proxy is a forward proxy that takes every name for the address to; it wants
// a login if user is not empty.
type proxy struct {
	*httptest.Server
	to, login string
	seen      atomic.Int32
	t         *testing.T
}

func newProxy(t *testing.T, to, login string) *proxy {
	p := &proxy{to: to, login: login, t: t}
	p.Server = httptest.NewServer(p)
	t.Cleanup(func() { p.CloseClientConnections(); p.Close() })
	return p
}

func (p *proxy) url(t *testing.T, userinfo string) *url.URL {
	u, err := url.Parse(strings.Replace(p.URL, "http://", "http://"+userinfo, 1))
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.seen.Add(1)
	if want := "Basic " + base64.StdEncoding.EncodeToString([]byte(p.login)); p.login != "" && r.Header.Get("Proxy-Authorization") != want {
		w.Header().Set("Proxy-Authenticate", "Basic")
		w.WriteHeader(http.StatusProxyAuthRequired)
		return
	}
	if r.Method != http.MethodConnect {
		r.Header.Del("Proxy-Authorization")
		r.URL.Host, r.RequestURI = p.to, ""
		resp, err := http.DefaultTransport.RoundTrip(r)
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		defer resp.Body.Close()
		for k, v := range resp.Header {
			w.Header()[k] = v
		}
		w.WriteHeader(resp.StatusCode)
		_, _ = io.Copy(w, resp.Body)
		return
	}
	if strings.HasPrefix(r.Host, "forbidden.") {
		w.WriteHeader(http.StatusForbidden)
		return
	}
	out, err := net.Dial("tcp", p.to)
	if err != nil {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	defer out.Close()
	in, buf, err := w.(http.Hijacker).Hijack()
	if err != nil {
		return
	}
	defer in.Close()
	_, _ = in.Write([]byte("HTTP/1.1 200 OK\r\n\r\n"))
	go func(r *bufio.Reader) { _, _ = io.Copy(out, r); _ = out.Close() }(buf.Reader)
	_, _ = io.Copy(in, out)
}

func TestProxy(t *testing.T) {
	check := func(w http.ResponseWriter, r *http.Request) bool {
		if h := r.Header.Get("Proxy-Authorization"); h != "" {
			t.Errorf("the registry gets the proxy's login: %s", h)
		}
		return false
	}
	secure, bare := unstarted(t, check), newFake(t, check)
	secure.StartTLS()
	for _, f := range []*fake{secure, bare} {
		f.add(image("x"), "v1")
	}
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: secure.Certificate().Raw}) // for example.com
	login := "walter:hush-hush-proxy"
	for _, tc := range []struct {
		name, host string
		userinfo   string
		o          registry.Options
		direct     bool
		kind       error
		want       string
	}{
		{"TLS", "example.com", login + "@", registry.Options{CA: ca}, false, nil, ""},
		{"HTTP", "r.example", login + "@", registry.Options{PlainHTTP: true}, false, nil, ""},
		{"no login", "example.com", "", registry.Options{CA: ca}, false, vic.ErrDenied, "wants a login"},
		{"no login, HTTP", "r.example", "", registry.Options{PlainHTTP: true}, false, vic.ErrDenied, "407"},
		{"wrong login", "example.com", "walter:hush-hush-x@", registry.Options{CA: ca}, false, vic.ErrDenied, "wants a login"},
		{"forbidden", "forbidden.example", login + "@", registry.Options{CA: ca}, false, vic.ErrDenied, "refuses: 403"},
		{"exempt", bare.host(), login + "@", registry.Options{PlainHTTP: true, NoProxy: "a.example,127.0.0.0/8"}, true, nil, ""},
		{"allowed by name", "example.com", login + "@", registry.Options{CA: ca, Allow: []string{"example.com"}}, false, nil, ""},
		{"allowed by network", "example.com", login + "@", registry.Options{CA: ca, Allow: []string{"127.0.0.0/8"}}, true, vic.ErrDenied, "cannot be seen through the proxy"},
		{"denied network", "10.1.2.3:5000", login + "@", registry.Options{PlainHTTP: true, Deny: []string{"10.0.0.0/8"}}, true, vic.ErrDenied, "option Deny"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			to := bare.host()
			if !tc.o.PlainHTTP {
				to = secure.host()
			}
			p := newProxy(t, to, login)
			tc.o.Proxy, tc.o.Attempts = p.url(t, tc.userinfo), 2
			r, err := registry.Open(registry.Name{Registry: tc.host, Repository: "a"}, quick(tc.o))
			if err == nil {
				err = pull(t, r)
			}
			if tc.kind == nil && err != nil || tc.kind != nil && (err == nil || !errors.Is(err, tc.kind) || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("%v, want %q", err, tc.want)
			}
			if got := p.seen.Load() == 0; got != tc.direct {
				t.Errorf("the proxy saw %d requests", p.seen.Load())
			}
			secretsIn(t, fmt.Sprintf("%v %+v", err, err))
		})
	}
}

// TestProxyOfEnvironment runs itself with the variables set, because net/http
// reads them once.
func TestProxyOfEnvironment(t *testing.T) {
	if os.Getenv("VIC_TEST_PROXIED") != "" {
		o := registry.Options{PlainHTTP: true}
		for _, host := range []string{"r.example", os.Getenv("VIC_TEST_PROXIED")} {
			if err := pull(t, open(t, host, "a", quick(o))); err != nil {
				t.Error(err)
			}
		}
		return
	}
	bare := newFake(t, nil)
	bare.add(image("x"), "v1")
	p := newProxy(t, bare.host(), "")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestProxyOfEnvironment$")
	cmd.Env = append(os.Environ(), "VIC_TEST_PROXIED="+bare.host(), "http_proxy="+p.URL, "HTTP_PROXY="+p.URL, "no_proxy=127.0.0.1", "NO_PROXY=127.0.0.1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if p.seen.Load() != 2 || len(bare.seen()) != 4 {
		t.Errorf("the proxy saw %d requests, the registry %v", p.seen.Load(), bare.seen())
	}
}
