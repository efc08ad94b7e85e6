package registry_test

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/registry"
)

func TestParseChallenges(t *testing.T) {
	type c = registry.Challenge
	type p = map[string]string
	for _, tc := range []struct {
		name  string
		lines []string
		want  []c
	}{
		{"bearer", []string{`Bearer realm="https://auth.example/token",service="r.example",scope="repository:a/b:pull,push"`},
			[]c{{"bearer", p{"realm": "https://auth.example/token", "service": "r.example", "scope": "repository:a/b:pull,push"}}}},
		{"basic", []string{`Basic realm="x"`}, []c{{"basic", p{"realm": "x"}}}},
		{"case and space", []string{"bEaReR  Realm = \"x\" ,\tSERVICE=y"}, []c{{"bearer", p{"realm": "x", "service": "y"}}}},
		{"two in a line", []string{`Basic realm="x, Bearer", Bearer realm="y"`}, []c{{"basic", p{"realm": "x, Bearer"}}, {"bearer", p{"realm": "y"}}}},
		{"two lines", []string{"Negotiate", `Basic realm=x`}, []c{{"negotiate", p{}}, {"basic", p{"realm": "x"}}}},
		{"token68", []string{`Negotiate YWJj==, Basic realm=x`}, []c{{"negotiate", p{}}, {"basic", p{"realm": "x"}}}},
		{"escapes", []string{`Basic realm="a\"b\\c"`}, []c{{"basic", p{"realm": `a"b\c`}}}},
		{"first of two counts", []string{`Basic realm=a, realm=b`}, []c{{"basic", p{"realm": "a"}}}},
		{"scheme alone", []string{"Basic"}, []c{{"basic", p{}}}},
		{"open quote", []string{`Bearer realm="x`}, []c{{"bearer", p{}}}},
		{"nothing", []string{"", " , ,", "\x00"}, nil},
	} {
		if diff := cmp.Diff(tc.want, registry.ParseChallenges(tc.lines)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tc.name, diff)
		}
	}
}

func FuzzParseChallenges(f *testing.F) {
	for _, s := range []string{
		`Bearer realm="https://auth.example/token",service="r.example",scope="repository:a/b:pull"`,
		`Basic realm="x", Bearer realm=y`, `Negotiate YWJj==, Basic realm=x`, `Bearer realm="\"`, "a=b", ",,", `Bearer error="insufficient_scope" x`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		all := registry.ParseChallenges([]string{s})
		if len(all) > 16 {
			t.Fatalf("%d challenges", len(all))
		}
		for _, c := range all {
			if c.Scheme == "" || c.Scheme != strings.ToLower(c.Scheme) || len(c.Params) > 16 {
				t.Fatalf("%q gives %+v", s, c)
			}
			// What was read is read again from its quoted form.
			line, sep := c.Scheme, " "
			for k, v := range c.Params {
				line += sep + k + `="` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(v) + `"`
				sep = ", "
			}
			if diff := cmp.Diff([]registry.Challenge{c}, registry.ParseChallenges([]string{line})); diff != "" {
				t.Fatalf("%q, read from %q, is something else (-want +got):\n%s", line, s, diff)
			}
		}
	})
}

func TestHeaders(t *testing.T) {
	now := time.Date(2024, 5, 1, 12, 0, 0, 0, time.UTC)
	for in, want := range map[string]time.Duration{
		"": 0, "0": 0, "7": 7 * time.Second, " 7 ": 7 * time.Second, "-1": 0, "x": 0, "99999999999999999999": 0,
		now.Add(time.Minute).Format(http.TimeFormat): time.Minute, now.Add(-time.Minute).Format(http.TimeFormat): 0, "4000000000": 7 * 24 * time.Hour,
	} {
		if got := registry.RetryAfter(in, now); got != want {
			t.Errorf("Retry-After %q: %s, want %s", in, got, want)
		}
	}
	for in, want := range map[string]string{
		"bytes 5-9/10": "5 9 10 true", "bytes 5-9/*": "5 9 -1 true", "bytes 0-0/1": "0 0 1 true",
		"": "", "bytes */10": "", "bytes 9-5/10": "", "bytes 5-10/10": "", "bytes -5-9/10": "", "items 5-9/10": "", "bytes 5-9": "", "bytes 5-9/-1": "",
	} {
		first, last, total, ok := registry.ParseContentRange(in)
		if got := fmt.Sprint(first, last, total, ok); got != want && (ok || want != "") {
			t.Errorf("Content-Range %q: %s, want %s", in, got, want)
		}
	}
	for in, want := range map[string]string{"100;w=21600": "100 6h0m0s true", "100": "100 0s true", "0; w=60": "0 1m0s true", "x": "", "-1": "", "": ""} {
		n, w, ok := registry.ParseRate(in)
		if got := fmt.Sprint(n, w, ok); got != want && (ok || want != "") {
			t.Errorf("rate %q: %s, want %s", in, got, want)
		}
	}
	for in, want := range map[string]int64{"0-0": 0, "0-9": 10, "bytes=0-9": 10, "1-9": -1, "": -1, "0--5": -1, "0-x": -1} {
		n, ok := registry.UploadRange(in)
		if ok != (want >= 0) || ok && n != want {
			t.Errorf("Range %q: %d, %t; want %d", in, n, ok, want)
		}
	}
}

// FuzzHeaders: no header makes a parser fail or give what is out of bounds.
func FuzzHeaders(f *testing.F) {
	for _, s := range []string{"7", "bytes 5-9/10", "100;w=21600", "0-9", "Wed, 01 May 2024 12:00:00 GMT", "bytes */5"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if d := registry.RetryAfter(s, time.Now()); d < 0 || d > 7*24*time.Hour {
			t.Errorf("Retry-After %q is %s", s, d)
		}
		if first, last, total, ok := registry.ParseContentRange(s); ok && (first < 0 || last < first || total != -1 && total <= last) {
			t.Errorf("range %q is %d to %d of %d", s, first, last, total)
		}
		if n, w, ok := registry.ParseRate(s); ok && (n < 0 || w < 0) {
			t.Errorf("rate %q is %d in %s", s, n, w)
		}
		if n, ok := registry.UploadRange(s); ok && n < 0 {
			t.Errorf("upload range %q is %d", s, n)
		}
		registry.Exempt(s, "registry.example", "443")
		registry.RedactText(s)
		_, _ = registry.DocumentType("", []byte(s))
	})
}

func TestExempt(t *testing.T) {
	for _, tc := range []struct {
		entry, host, port string
		want              bool
	}{
		{"*", "r.example", "443", true},
		{"example", "r.example", "443", true},
		{"r.example", "r.example", "443", true},
		{".example", "r.example", "443", true},
		{"*.example", "r.example", "443", true},
		{".r.example", "r.example", "443", false},
		{"ample", "r.example", "443", false},
		{"r.example:443", "r.example", "443", true},
		{"r.example:80", "r.example", "443", false},
		{"10.0.0.0/8", "10.1.2.3", "443", true},
		{"10.0.0.0/8", "11.1.2.3", "443", false},
		{"10.1.2.3", "10.1.2.3", "5000", true},
		{"10.1.2.3:5000", "10.1.2.3", "5000", true},
		{"2.3", "10.1.2.3", "443", false},
		{"::1", "::1", "443", true},
		{"[::1]:443", "::1", "443", true},
		{"[::1]:80", "::1", "443", false},
		{"", "r.example", "443", false},
	} {
		if got := registry.Exempt(tc.entry, tc.host, tc.port); got != tc.want {
			t.Errorf("%q for %s:%s: %t", tc.entry, tc.host, tc.port, got)
		}
	}
}

func TestPolicy(t *testing.T) {
	type o = registry.Options
	for _, tc := range []struct {
		name string
		o    o
		host string // and port
		own  bool
		at   string
		near string // the registry
		want string // in the error
	}{
		{"everything", o{}, "r.example:443", true, "192.0.2.1", "192.0.2.1", ""},
		{"by name", o{Allow: []string{"r.example"}}, "r.example:443", true, "192.0.2.1", "192.0.2.1", ""},
		{"case", o{Allow: []string{"R.Example"}}, "r.EXAMPLE.:443", true, "192.0.2.1", "192.0.2.1", ""},
		{"other name", o{Allow: []string{"r.example"}}, "s.example:443", true, "192.0.2.1", "192.0.2.1", "option Allow"},
		{"other port", o{Allow: []string{"r.example"}}, "r.example:5000", true, "192.0.2.1", "192.0.2.1", "option Allow"},
		{"this port", o{Allow: []string{"r.example:5000"}}, "r.example:5000", true, "192.0.2.1", "192.0.2.1", ""},
		{"any port", o{Allow: []string{"r.example:*"}}, "r.example:5000", true, "192.0.2.1", "192.0.2.1", ""},
		{"below", o{Allow: []string{"*.example"}}, "a.r.example:443", true, "192.0.2.1", "192.0.2.1", ""},
		{"not itself", o{Allow: []string{"*.example"}}, "example:443", true, "192.0.2.1", "192.0.2.1", "option Allow"},
		{"not an end", o{Allow: []string{"*.example"}}, "badexample:443", true, "192.0.2.1", "192.0.2.1", "option Allow"},
		{"below on any port", o{Allow: []string{"*.example:*"}}, "r.example:5000", true, "192.0.2.1", "192.0.2.1", ""},
		{"star", o{Allow: []string{"*"}}, "r.example:5000", true, "192.0.2.1", "192.0.2.1", ""},
		{"none", o{Allow: []string{}}, "r.example:443", true, "192.0.2.1", "192.0.2.1", "option Allow"},
		{"network", o{Allow: []string{"192.0.2.0/24"}}, "r.example:443", true, "192.0.2.1", "192.0.2.1", ""},
		{"lying name", o{Allow: []string{"192.0.2.0/24"}}, "r.example:443", true, "198.51.100.1", "198.51.100.1", "its address is 198.51.100.1"},
		{"mapped address", o{Allow: []string{"192.0.2.0/24"}}, "r.example:443", true, "::ffff:192.0.2.1", "192.0.2.1", ""},
		{"IPv6", o{Allow: []string{"2001:db8::/32"}}, "[2001:db8::1]:443", true, "2001:db8::1", "2001:db8::1", ""},
		{"IPv6 bare", o{Allow: []string{"2001:db8::1"}}, "[2001:db8:0::1]:443", true, "2001:db8::1", "2001:db8::1", ""},
		{"deny name", o{Deny: []string{"r.example:*"}}, "r.example:5000", true, "192.0.2.1", "192.0.2.1", "option Deny"},
		{"deny wins", o{Allow: []string{"*"}, Deny: []string{"*.example"}}, "r.example:443", true, "192.0.2.1", "192.0.2.1", "option Deny"},
		{"deny network", o{Allow: []string{"r.example"}, Deny: []string{"192.0.2.0/24"}}, "r.example:443", true, "192.0.2.1", "192.0.2.1", "option Deny"},
		{"deny elsewhere", o{Deny: []string{"192.0.2.0/24"}}, "cdn.example:443", false, "192.0.2.1", "198.51.100.1", "option Deny"},
		{"elsewhere", o{}, "cdn.example:443", false, "192.0.2.1", "198.51.100.1", ""},
		{"elsewhere, nearer", o{}, "cdn.example:443", false, "10.0.0.1", "198.51.100.1", "name it in option Redirects"},
		{"elsewhere, metadata", o{}, "cdn.example:80", false, "169.254.169.254", "10.0.0.1", "name it in option Redirects"},
		{"elsewhere, loopback", o{}, "cdn.example:80", false, "127.0.0.1", "10.0.0.1", "name it in option Redirects"},
		{"elsewhere, mapped loopback", o{}, "cdn.example:80", false, "::ffff:127.0.0.1", "10.0.0.1", "name it in option Redirects"},
		{"private to private", o{}, "gitlab.example:443", false, "10.0.0.2", "192.168.0.1", ""},
		{"named redirect", o{Redirects: []string{"cdn.example"}}, "cdn.example:443", false, "10.0.0.1", "198.51.100.1", ""},
		{"redirect's network", o{Redirects: []string{"10.0.0.0/8"}}, "cdn.example:443", false, "10.0.0.1", "198.51.100.1", ""},
		{"with a list", o{Allow: []string{"r.example"}}, "cdn.example:443", false, "192.0.2.1", "192.0.2.1", "Allow nor Redirects"},
		{"with a list, named", o{Allow: []string{"r.example"}, Redirects: []string{"*.example"}}, "cdn.example:443", false, "192.0.2.1", "192.0.2.1", ""},
		{"redirects allow no registry", o{Allow: []string{}, Redirects: []string{"*"}}, "r.example:443", true, "192.0.2.1", "192.0.2.1", "option Allow"},
		{"docker's parts", o{Allow: []string{"docker.io"}}, "auth.docker.io:443", false, "192.0.2.1", "192.0.2.1", ""},
		{"docker's storage", o{Allow: []string{"docker.io"}}, "production.cloudflare.docker.com:443", false, "192.0.2.1", "192.0.2.1", ""},
		{"docker's host", o{Allow: []string{"docker.io"}}, "registry-1.docker.io:443", true, "192.0.2.1", "192.0.2.1", ""},
		{"deny docker", o{Deny: []string{"docker.io"}}, "registry-1.docker.io:443", true, "192.0.2.1", "192.0.2.1", "option Deny"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			u := &url.URL{Host: tc.host}
			err := registry.JudgeAddress(&tc.o, u.Hostname(), u.Port(), tc.own, netip.MustParseAddr(tc.at), netip.MustParseAddr(tc.near))
			switch {
			case tc.want == "" && err != nil:
				t.Errorf("refused: %v", err)
			case tc.want != "" && (err == nil || !errors.Is(err, vic.ErrDenied) || !strings.Contains(err.Error(), tc.want)):
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
		})
	}
}

func TestOptions(t *testing.T) {
	proxy := func(s string) *url.URL {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	for _, tc := range []struct {
		name string
		o    registry.Options
		kind error
		want string
	}{
		{"CA", registry.Options{CA: []byte("x")}, vic.ErrInvalid, "option CA holds no certificate"},
		{"CA without TLS", registry.Options{CA: []byte("x"), PlainHTTP: true}, vic.ErrInvalid, "PlainHTTP"},
		{"Insecure without TLS", registry.Options{Insecure: true, PlainHTTP: true}, vic.ErrInvalid, "PlainHTTP"},
		{"client certificate", registry.Options{ClientCert: []byte("x")}, vic.ErrInvalid, "ClientCert"},
		{"password only", registry.Options{Password: "x"}, vic.ErrInvalid, "User and Password"},
		{"colon", registry.Options{User: "a:b", Password: "x"}, vic.ErrInvalid, "colon"},
		{"mirror's scheme", registry.Options{Mirrors: []string{"ftp://m.example"}}, vic.ErrInvalid, "option Mirrors"},
		{"mirror's host", registry.Options{Mirrors: []string{"m_/x"}}, vic.ErrInvalid, "option Mirrors"},
		{"mirror's prefix", registry.Options{Mirrors: []string{"m.example/UPPER"}}, vic.ErrInvalid, "option Mirrors"},
		{"mirror not allowed", registry.Options{Allow: []string{"r.example"}, Mirrors: []string{"m.example"}}, vic.ErrDenied, "m.example"},
		{"registry not allowed", registry.Options{Allow: []string{"s.example"}}, vic.ErrDenied, "r.example"},
		{"pattern", registry.Options{Allow: []string{"a b"}}, vic.ErrInvalid, "option Allow"},
		{"network", registry.Options{Deny: []string{"10.0.0.0/33"}}, vic.ErrInvalid, "option Deny"},
		{"two ports", registry.Options{Redirects: []string{"a:1:*"}}, vic.ErrInvalid, "option Redirects"},
		{"insecure", registry.Options{InsecureRegistries: []string{"-"}}, vic.ErrInvalid, "option InsecureRegistries"},
		{"proxy's scheme", registry.Options{Proxy: proxy("ftp://user:secret@p.example")}, vic.ErrInvalid, "option Proxy"},
		{"proxy's host", registry.Options{Proxy: proxy("http:///x")}, vic.ErrInvalid, "option Proxy"},
		{"no proxy", registry.Options{NoProxy: "x"}, vic.ErrInvalid, "NoProxy"},
		{"attempts", registry.Options{Attempts: -1}, vic.ErrInvalid, "Attempts"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := registry.Open(registry.Name{Registry: "r.example", Repository: "x"}, &tc.o)
			if err == nil || !errors.Is(err, tc.kind) || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "secret") {
				t.Errorf("error %v, want one with %q", err, tc.want)
			}
		})
	}
	if _, err := registry.Open(registry.Name{Registry: "r.example", Repository: "UPPER"}, nil); !errors.Is(err, vic.ErrInvalid) {
		t.Errorf("a name that is none: %v", err)
	}
}

func TestOptionsShowNoSecret(t *testing.T) {
	u, err := url.Parse("http://me:hidden-proxy@p.example:3128")
	if err != nil {
		t.Fatal(err)
	}
	o := registry.Options{User: "me", Password: "hidden-password", IdentityToken: "hidden-identity", RegistryToken: "hidden-token", ClientKey: []byte("hidden-key"), Proxy: u}
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "options", o, "pointer", &o)
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "options", o, "pointer", &o)
	for _, s := range []string{fmt.Sprint(o), fmt.Sprintf("%+v", o), fmt.Sprintf("%#v", o), fmt.Sprintf("%s", &o), fmt.Sprintf("%#v", &o), fmt.Sprintf("%q", o), log.String()} {
		if strings.Contains(s, "hidden") || !strings.Contains(s, "p.example") {
			t.Errorf("shown: %s", s)
		}
	}
}

func TestRedact(t *testing.T) {
	for in, want := range map[string]string{
		`Get "https://s3.example/x?X-Amz-Signature=secret&a=b": dial`: `Get "https://s3.example/x": dial`,
		`https://u:secret@h.example/p#secret`:                         `https://h.example/p`,
		`no URL? right`:                                               `no URL? right`,
		`http://a?secret http://b?secret`:                             `http://a http://b`,
	} {
		if got := registry.RedactText(in); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}
