package registry_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/registry"
)

const emptySum = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func TestParseName(t *testing.T) {
	for in, want := range map[string]string{
		"alpine":                                     "docker.io/library/alpine:latest",
		"alpine:3.22":                                "docker.io/library/alpine:3.22",
		"me/tool":                                    "docker.io/me/tool:latest",
		"docker.io/alpine":                           "docker.io/library/alpine:latest",
		"docker.io/library/alpine":                   "docker.io/library/alpine:latest",
		"index.docker.io/alpine:1":                   "docker.io/library/alpine:1",
		"index.docker.io/me/tool":                    "docker.io/me/tool:latest",
		"localhost/x":                                "localhost/x:latest",
		"localhost:5000/x":                           "localhost:5000/x:latest",
		"localhost":                                  "docker.io/library/localhost:latest",
		"127.0.0.1:5000/a/b:v1":                      "127.0.0.1:5000/a/b:v1",
		"[::1]:5000/a:v1":                            "[::1]:5000/a:v1",
		"[2001:db8::1]/a":                            "[2001:db8::1]/a:latest",
		"xn--7o8h.com/myimage":                       "xn--7o8h.com/myimage:latest",
		"Upper/x":                                    "Upper/x:latest", // a registry: it has a capital
		"REG.example/x:TAG":                          "REG.example/x:TAG",
		"a-b/c":                                      "docker.io/a-b/c:latest",
		"a.b/c":                                      "a.b/c:latest",
		"a__b/c---d.e_f":                             "docker.io/a__b/c---d.e_f:latest",
		"ghcr.io/a/b@" + emptySum:                    "ghcr.io/a/b@" + emptySum,
		"ghcr.io/a/b:tag@" + emptySum:                "ghcr.io/a/b@" + emptySum,
		"alpine@" + emptySum:                         "docker.io/library/alpine@" + emptySum,
		"alpine:3@" + emptySum:                       "docker.io/library/alpine@" + emptySum,
		"x@sha512:" + strings.Repeat("ab", 64):       "docker.io/library/x@sha512:" + strings.Repeat("ab", 64),
		"registry.example:443/deep/er/im":            "registry.example:443/deep/er/im:latest",
		"r.example/" + strings.Repeat("a", 255):      "r.example/" + strings.Repeat("a", 255) + ":latest",
		"x:" + strings.Repeat("t", 128):              "docker.io/library/x:" + strings.Repeat("t", 128),
		"x:_.-":                                      "docker.io/library/x:_.-",
		strings.Repeat("a", 63) + ".example/x":       strings.Repeat("a", 63) + ".example/x:latest",
		strings.Repeat("f", 64) + "/x":               "docker.io/" + strings.Repeat("f", 64) + "/x:latest",
		"r.example:65535/" + strings.Repeat("f", 64): "r.example:65535/" + strings.Repeat("f", 64) + ":latest",
	} {
		n, err := registry.ParseName(in)
		if err != nil || n.String() != want {
			t.Errorf("%s: got %s, %v; want %s", in, n, err, want)
		}
	}
	for in, why := range map[string]string{
		"":                         "empty",
		"UPPER":                    "lower case",
		"a/UPPER":                  "lower case",
		"a b":                      "repository",
		"x:":                       "tag",
		"x@":                       "digest",
		"x@sha256:12":              "digest",
		"x@md5:00":                 "digest",
		"x:bad tag@" + emptySum:    "tag",
		"x@SHA256:" + emptySum[7:]: "digest",
		"x@" + strings.ToUpper(emptySum[:8]) + emptySum[8:]: "digest",
		"../x":                                  "registry",
		"./x":                                   "registry",
		"a//b":                                  "repository",
		"a/":                                    "repository",
		"/a":                                    "repository",
		":tag":                                  "no repository",
		"https://r.example/x":                   "scheme",
		"r..example/x":                          "registry",
		"-r.example/x":                          "registry",
		"r_.example/x":                          "registry",
		"r.example:/x":                          "registry",
		"r.example:0/x":                         "port",
		"r.example:65536/x":                     "port",
		"r.example:+80/x":                       "port",
		"r.example:a/x":                         "port",
		"[::1/x":                                "registry",
		"[::g]/x":                               "IPv6",
		"[127.0.0.1]/x":                         "IPv6",
		"[fe80::1%25eth0]:5/x":                  "IPv6",
		"a/b._c":                                "repository",
		"a/_b":                                  "repository",
		"a/b-":                                  "repository",
		"a/b___c":                               "repository",
		"x:.t":                                  "tag",
		"x:" + strings.Repeat("t", 129):         "tag",
		"r.example/" + strings.Repeat("a", 256): "longer",
		strings.Repeat("a.", 200) + "example/x": "registry",
		strings.Repeat("f", 64):                 "digest",
		"user:password@r.example/x":             "registry",
		strings.Repeat("a", 5000):               "longer",
		"r.example/x\x00":                       "repository",
		"r.example/ẍ":                           "repository",
	} {
		n, err := registry.ParseName(in)
		if !errors.Is(err, vic.ErrInvalid) || err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("%.60q: got %s, %v; want an error with %q", in, n, err, why)
		}
	}
}

// FuzzParseName: what is accepted is a name that parses to itself.
func FuzzParseName(f *testing.F) {
	for _, s := range []string{
		"alpine", "127.0.0.1:5000/a/b:v1", "[::1]:5000/x", "ghcr.io/a/b:tag@" + emptySum, "localhost/x", "Upper/x", "index.docker.io/a",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := registry.ParseName(s)
		if err != nil {
			return
		}
		again, err := registry.ParseName(n.String())
		if err != nil || again != n {
			t.Fatalf("%q is %+v, which is %+v, %v", s, n, again, err)
		}
		if _, err := registry.Open(n, nil); err != nil {
			t.Fatalf("%q is a name that cannot be opened: %v", s, err)
		}
	})
}
