// Package registry opens repositories of OCI registries, for image stores to
// pull from.
package registry

import (
	"regexp"
	"strconv"
	"strings"

	"oras.land/oras-go/v2/registry"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/vic"
)

// A Name is an image's full name.
type Name struct {
	// Registry host and port, such as docker.io.
	Registry string
	// Repository, such as library/alpine.
	Repository string
	// Reference is a tag, or a digest with its algorithm.
	Reference string
}

var hostRE = regexp.MustCompile(`^([A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?$`)

// ParseName reads a name as docker's users write it: without a registry it is
// docker.io's, without a slash there library's, without a tag "latest". A tag
// beside a digest is dropped, because the digest decides.
func ParseName(s string) (Name, error) {
	bad := func(why string) (Name, error) {
		return Name{}, fault.Of(vic.ErrInvalid, "image name %.300q: %s", s, why)
	}
	switch {
	case s == "":
		return bad("empty")
	case strings.HasSuffix(s, ":"), strings.HasSuffix(s, "@"):
		return bad("nothing follows its end")
	}
	first, rest, slash := strings.Cut(s, "/")
	if !slash || !strings.ContainsAny(first, ".:") && first != "localhost" {
		first, rest = "docker.io", s
		if first == "docker.io" && !strings.Contains(strings.SplitN(rest, "@", 2)[0], "/") {
			rest = "library/" + rest
		}
	} else if (first == "docker.io" || first == "index.docker.io") && !strings.Contains(strings.SplitN(rest, "@", 2)[0], "/") {
		first, rest = "docker.io", "library/"+rest
	}
	ref, err := registry.ParseReference(first + "/" + rest)
	if err != nil {
		return bad(strings.TrimPrefix(err.Error(), "invalid reference: "))
	}
	if !hostRE.MatchString(ref.Registry) {
		return bad("no registry can be called " + strconv.Quote(ref.Registry))
	}
	if ref.Reference == "" {
		ref.Reference = "latest"
	}
	return Name{ref.Registry, ref.Repository, ref.Reference}, nil
}

// String is the name in full, which an image store knows it by.
func (n Name) String() string {
	sep := ":"
	if strings.Contains(n.Reference, ":") {
		sep = "@"
	}
	return n.Registry + "/" + n.Repository + sep + n.Reference
}
