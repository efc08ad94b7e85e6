package registry

import (
	"net/netip"
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

const (
	hub         = "docker.io"
	hubHost     = "registry-1.docker.io"
	maxPath     = 255 // RepositoryNameTotalLengthMax of distribution/reference
	maxHost     = 253 // RFC 1035, section 2.3.4
	maxNameText = 1024
)

// The grammar of distribution/reference (regexp.go).
var (
	hostRE       = regexp.MustCompile(`^(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])(?:\.(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9]))*$`)
	tagRE        = regexp.MustCompile(`^\w[\w.-]{0,127}$`)
	identifierRE = regexp.MustCompile(`^[a-f0-9]{64}$`)
)

// ParseName reads a name as docker's users write it (distribution/reference,
// normalize.go): without a registry it is docker.io's, without a slash there
// library's, without a tag "latest". What stands before the first slash is a
// registry if it has a dot, a colon or a capital letter, or is "localhost". A
// tag beside a digest is checked and dropped, because the digest decides.
// What is no name is vic.ErrInvalid.
func ParseName(s string) (Name, error) {
	bad := func(format string, args ...any) (Name, error) {
		return Name{}, fault.Of(vic.ErrInvalid, "image name %.300q: %w", s, fault.Of(vic.ErrInvalid, format, args...))
	}
	switch {
	case s == "":
		return bad("empty")
	case len(s) > maxNameText:
		return bad("longer than %d characters", maxNameText)
	case strings.Contains(s, "://"):
		return bad("names have no scheme; write it without what is before \"//\"")
	case identifierRE.MatchString(s):
		return bad("64 hexadecimal digits are an ID; write sha256 digests as repository@sha256:...")
	}
	host, rest, slash := strings.Cut(s, "/")
	if !slash || !strings.ContainsAny(host, ".:") && host != "localhost" && strings.ToLower(host) == host {
		host, rest = hub, s
	}
	if host == "index.docker.io" {
		host = hub
	}
	if why := checkHost(host); why != "" {
		return bad("registry %.100q: %s", host, why)
	}
	path, digest, hasDigest := strings.Cut(rest, "@")
	path, tag, hasTag := strings.Cut(path, ":")
	if host == hub && !strings.Contains(path, "/") && path != "" {
		path = "library/" + path
	}
	ref := registry.Reference{Registry: host, Repository: path, Reference: "latest"}
	switch {
	case path == "":
		return bad("no repository")
	case len(path) > maxPath:
		return bad("the repository is longer than %d characters", maxPath)
	case strings.ToLower(path) != path:
		return bad("the repository must be in lower case")
	case ref.ValidateRepository() != nil:
		return bad("the repository %.100q must be of lower-case letters and digits, separated by single dots, one or two underscores, dashes or slashes", path)
	case hasTag && !tagRE.MatchString(tag):
		return bad("the tag %.140q must be of up to 128 letters, digits, dots, dashes and underscores", tag)
	}
	if hasTag {
		ref.Reference = tag
	}
	if hasDigest {
		ref.Reference = digest
		if err := ref.ValidateReferenceAsDigest(); err != nil {
			return bad("the digest %.140q must be of the form sha256:<64 hexadecimal digits>", digest)
		}
	}
	return Name{ref.Registry, ref.Repository, ref.Reference}, nil
}

// checkHost says what is wrong with a registry's host and port, if anything.
func checkHost(s string) string {
	host, port, ok := splitHost(s)
	if !ok {
		return "not of the form host or host:port"
	}
	if strings.HasPrefix(host, "[") {
		a, err := netip.ParseAddr(strings.Trim(host, "[]"))
		if err != nil || !a.Is6() || a.Zone() != "" {
			return "not an IPv6 address in brackets"
		}
	} else if !hostRE.MatchString(host) || len(host) > maxHost {
		return "not a host name"
	}
	if port != "" {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || port[0] == '+' {
			return "its port is not between 1 and 65535"
		}
	}
	return ""
}

// splitHost parts host and port; the port is empty where there is none, and
// an IPv6 address keeps its brackets.
func splitHost(s string) (host, port string, ok bool) {
	rest := s
	if strings.HasPrefix(s, "[") {
		end := strings.IndexByte(s, ']')
		if end < 0 {
			return "", "", false
		}
		host, rest = s[:end+1], s[end+1:]
	} else if i := strings.IndexByte(s, ':'); i >= 0 {
		host, rest = s[:i], s[i:]
	} else {
		host, rest = s, ""
	}
	if rest == "" {
		return host, "", host != ""
	}
	if rest[0] != ':' || len(rest) == 1 {
		return "", "", false
	}
	return host, rest[1:], host != ""
}

// String is the name in full, which an image store knows it by.
func (n Name) String() string {
	sep := ":"
	if strings.Contains(n.Reference, ":") {
		sep = "@"
	}
	return n.Registry + "/" + n.Repository + sep + n.Reference
}

// apiHost is the host that answers for a registry: docker.io's has another
// name.
func apiHost(name string) string {
	return registry.Reference{Registry: name}.Host()
}
