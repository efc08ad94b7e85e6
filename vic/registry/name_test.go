package registry_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/registry"
)

func TestParseName(t *testing.T) {
	const sum = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	for in, want := range map[string]string{
		"alpine":                          "docker.io/library/alpine:latest",
		"alpine:3.22":                     "docker.io/library/alpine:3.22",
		"me/tool":                         "docker.io/me/tool:latest",
		"docker.io/alpine":                "docker.io/library/alpine:latest",
		"index.docker.io/alpine:1":        "docker.io/library/alpine:1",
		"localhost/x":                     "localhost/x:latest",
		"127.0.0.1:5000/a/b:v1":           "127.0.0.1:5000/a/b:v1",
		"ghcr.io/a/b@" + sum:              "ghcr.io/a/b@" + sum,
		"ghcr.io/a/b:tag@" + sum:          "ghcr.io/a/b@" + sum,
		"alpine@" + sum:                   "docker.io/library/alpine@" + sum,
		"registry.example:443/deep/er/im": "registry.example:443/deep/er/im:latest",
	} {
		n, err := registry.ParseName(in)
		if err != nil || n.String() != want {
			t.Errorf("%s: got %s, %v; want %s", in, n, err, want)
		}
	}
	for _, in := range []string{"", "UPPER", "a b", "x:", "x@sha256:12", "x@md5:00", "../x", "a//b", ":tag", strings.Repeat("a", 5000) + ":" + strings.Repeat("t", 200)} {
		if n, err := registry.ParseName(in); !errors.Is(err, vic.ErrInvalid) {
			t.Errorf("%.40q: got %s, %v", in, n, err)
		}
	}
}

// FuzzParseName: what is accepted is a name that parses to itself.
func FuzzParseName(f *testing.F) {
	f.Add("alpine")
	f.Add("127.0.0.1:5000/a/b:v1")
	f.Add("ghcr.io/a/b:tag@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
	f.Fuzz(func(t *testing.T, s string) {
		n, err := registry.ParseName(s)
		if err != nil {
			return
		}
		again, err := registry.ParseName(n.String())
		if err != nil || again != n {
			t.Fatalf("%q is %+v, which is %+v, %v", s, n, again, err)
		}
	})
}
