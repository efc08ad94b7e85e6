package vic

import (
	"net"
	"net/netip"
	"net/url"
	"path"
	"strconv"
	"strings"

	"github.com/vicsdk/vic-go/internal/fault"
)

// NFS is a directory of an NFS server, as guests mount it. It is inert data.
type NFS struct {
	// Server is an address, or a name that the guests' DNS servers know.
	Server string
	// Path that the server exports.
	Path string
	// Version is "3", "4", "4.1" or "4.2", or empty for what the server has.
	Version string
	// Port of the NFS service and MountPort of version 3's MOUNT service; 0 asks the
	// server's port mapper, and is 2049 with version 4.
	Port, MountPort int
	// UID and GID make the directories of volumes, and own them.
	UID, GID uint32
	// Dir, where it is not empty, is a directory in Path, which the first guest that
	// mounts it makes.
	Dir string
}

// ParseNFS reads nfs://SERVER[:PORT]/PATH, and after a question mark, with & between
// them, version=, mountport=, uid= and gid=. The error names what is wrong.
func ParseNFS(s string) (NFS, error) {
	refuse := func(format string, args ...any) (NFS, error) {
		return NFS{}, fault.Of(ErrInvalid, "%.200q: "+format, append([]any{s}, args...)...)
	}
	u, err := url.Parse(s)
	switch {
	case err != nil:
		return refuse("%v", err)
	case u.Scheme != "nfs" || u.Host == "" || u.User != nil || u.Fragment != "":
		return refuse("want nfs://SERVER[:PORT]/PATH")
	case !path.IsAbs(u.Path) || path.Clean(u.Path) != u.Path || len(u.Path) > 768 || strings.ContainsAny(u.Path, "\x00"):
		return refuse("the path %.100q is no clean absolute one", u.Path)
	}
	n := NFS{Server: u.Hostname(), Path: u.Path}
	if _, err := netip.ParseAddr(n.Server); err != nil && (n.Server == "" || len(n.Server) > 253 || strings.Trim(strings.ToLower(n.Server), "abcdefghijklmnopqrstuvwxyz0123456789.-") != "") {
		return refuse("%.80q is neither an address nor a name", n.Server)
	}
	number := func(v string, bits int) (n uint64) {
		if err == nil {
			n, err = strconv.ParseUint(v, 10, bits)
		}
		return n
	}
	if p := u.Port(); p != "" {
		n.Port = int(number(p, 16))
	}
	q, e := url.ParseQuery(u.RawQuery)
	if e != nil {
		return refuse("%v", e)
	}
	for k, vs := range q {
		v := vs[0]
		if len(vs) > 1 {
			return refuse("%s is there twice", k)
		}
		switch k {
		case "version":
			n.Version = v
			if v != "3" && v != "4" && v != "4.1" && v != "4.2" {
				return refuse("version: %.20q is not 3, 4, 4.1 or 4.2", v)
			}
		case "mountport":
			n.MountPort = int(number(v, 16))
		case "uid":
			n.UID = uint32(number(v, 32))
		case "gid":
			n.GID = uint32(number(v, 32))
		default:
			return refuse("%.40q is not known: there are version, mountport, uid and gid", k)
		}
	}
	if err != nil {
		return refuse("want a number: %v", err)
	}
	return n, nil
}

// String is what ParseNFS reads, and with Dir the path of that, for people.
func (n NFS) String() string {
	u := url.URL{Scheme: "nfs", Host: n.Server, Path: path.Join(n.Path, n.Dir)}
	if strings.Contains(n.Server, ":") {
		u.Host = "[" + n.Server + "]"
	}
	if n.Port != 0 {
		u.Host = net.JoinHostPort(n.Server, strconv.Itoa(n.Port))
	}
	q := url.Values{}
	if n.Version != "" {
		q.Set("version", n.Version)
	}
	for k, v := range map[string]uint64{"mountport": uint64(n.MountPort), "uid": uint64(n.UID), "gid": uint64(n.GID)} {
		if v != 0 {
			q.Set(k, strconv.FormatUint(v, 10))
		}
	}
	u.RawQuery = q.Encode()
	return u.String()
}
