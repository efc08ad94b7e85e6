package vic_test

import (
	"crypto/ed25519"
	"errors"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/lab"
)

func TestConnect(t *testing.T) {
	l, err := lab.Start(t.Context(), lab.Options{Dir: filepath.Join(t.TempDir(), "lab"), NoQEMU: true})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	e := l.Endpoint()
	for _, c := range []struct {
		name   string
		change func(*vic.Config)
		kind   error // nil: it connects
		text   string
	}{
		{"by the authority's certificate", func(*vic.Config) {}, nil, ""},
		{"by thumbprint", func(c *vic.Config) { c.CA, c.Thumbprint = nil, e.SHA256 }, nil, ""},
		{"by the older thumbprint", func(c *vic.Config) { c.CA, c.Thumbprint = nil, e.SHA1 }, nil, ""},
		{"no trust names the thumbprint", func(c *vic.Config) { c.CA = nil }, vic.ErrDenied, e.SHA256},
		{"wrong thumbprint names the right one", func(c *vic.Config) { c.CA, c.Thumbprint = nil, "AA:BB" }, vic.ErrDenied, e.SHA256},
		{"wrong password", func(c *vic.Config) { c.Password = "guess" }, vic.ErrDenied, "InvalidLogin"},
		{"no user", func(c *vic.Config) { c.User = "" }, vic.ErrInvalid, "User"},
		{"no URL", func(c *vic.Config) { c.URL = "" }, vic.ErrInvalid, "URL"},
		{"no TLS", func(c *vic.Config) { c.URL = "http://127.0.0.1/sdk" }, vic.ErrInvalid, "https"},
		{"password in the URL", func(c *vic.Config) { c.URL = "https://u:p@127.0.0.1/sdk" }, vic.ErrInvalid, "user info"},
		{"nobody listens", func(c *vic.Config) { c.URL = "https://127.0.0.1:1/sdk" }, vic.ErrUnavailable, "refused"},
		{"CA is no certificate", func(c *vic.Config) { c.CA = []byte("x") }, vic.ErrInvalid, "CA"},
		{"datacenter by name", func(c *vic.Config) { c.Datacenter = "dc1" }, nil, ""},
		{"no such datacenter", func(c *vic.Config) { c.Datacenter = "dc9" }, vic.ErrNotFound, "Datacenter"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg, err := l.Config()
			if err != nil {
				t.Fatal(err)
			}
			c.change(&cfg)
			cl, err := vic.Connect(t.Context(), cfg)
			if c.kind == nil {
				if err != nil {
					t.Fatal(err)
				}
				if err := cl.Close(t.Context()); err != nil {
					t.Error(err)
				}
				return
			}
			if !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("got %v; want %v with %q", err, c.kind, c.text)
			}
			if err != nil && cfg.Password != "" && strings.Contains(err.Error(), cfg.Password) {
				t.Errorf("the error tells the password: %v", err)
			}
		})
	}
}

func TestAuthorityIsMadeOnce(t *testing.T) {
	file := filepath.Join(t.TempDir(), "sub", "key.pem")
	a, err := vic.OpenAuthority(file)
	if err != nil {
		t.Fatal(err)
	}
	b, err := vic.OpenAuthority(file)
	if err != nil {
		t.Fatal(err)
	}
	pub := a.Public().(ed25519.PublicKey)
	if !pub.Equal(b.Public()) {
		t.Error("two keys from one file")
	}

	// Others name it by either half.
	line, err := ssh.NewPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	half := file + ".pub"
	two := file + ".two"
	text := ssh.MarshalAuthorizedKey(line)
	for name, b := range map[string][]byte{half: text, two: append(text, text...), file + ".bad": []byte("x\n")} {
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{file, half} {
		if k, err := vic.ReadAuthority(f); err != nil || !pub.Equal(k) {
			t.Errorf("%s: %v, %v", f, k, err)
		}
	}
	for f, kind := range map[string]error{two: vic.ErrInvalid, file + ".bad": vic.ErrInvalid, file + ".none": fs.ErrNotExist} {
		if _, err := vic.ReadAuthority(f); !errors.Is(err, kind) {
			t.Errorf("%s: %v", f, err)
		}
	}
}

func TestProxyDialerRefuses(t *testing.T) {
	for _, s := range []string{"socks5://x", "http://", "x"} {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := vic.ProxyDialer(u); !errors.Is(err, vic.ErrInvalid) {
			t.Errorf("%s: %v", s, err)
		}
	}
}
