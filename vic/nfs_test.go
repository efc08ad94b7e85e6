package vic_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vicsdk/vic-go/vic"
)

func TestParseNFS(t *testing.T) {
	for s, want := range map[string]vic.NFS{
		"nfs://server/":                 {Server: "server", Path: "/"},
		"nfs://10.0.0.9/srv/a%20b":      {Server: "10.0.0.9", Path: "/srv/a b"},
		"nfs://[fd00::1]/x?version=4.1": {Server: "fd00::1", Path: "/x", Version: "4.1"},
		"nfs://[fd00::1]:2050/x":        {Server: "fd00::1", Path: "/x", Port: 2050},
		"nfs://s.example:99/x?gid=7&mountport=98&uid=1000&version=3": {
			Server: "s.example", Path: "/x", Version: "3", Port: 99, MountPort: 98, UID: 1000, GID: 7},
	} {
		got, err := vic.ParseNFS(s)
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v", s, got, err)
		}
		if got.String() != s {
			t.Errorf("%s is told as %s", s, got)
		}
	}
	for s, text := range map[string]string{
		"": "want nfs", "nfs:///x": "want nfs", "http://s/x": "want nfs", "nfs://u@s/x": "want nfs", "nfs://s": "path", "nfs://s/x/": "path",
		"nfs://s/../x": "path", "nfs://a_b/x": "neither", "nfs://s:99999/x": "number", "nfs://s/x?uid=-1": "number", "nfs://s/x?uid=1&uid=2": "twice",
		"nfs://s/x?version=2": "version", "nfs://s/x?hard=1": "not known", "nfs://s/\x00": "invalid", "nfs://s/x#y": "want nfs",
	} {
		if got, err := vic.ParseNFS(s); !errors.Is(err, vic.ErrInvalid) || !strings.Contains(err.Error(), text) {
			t.Errorf("%q: %v, %v", s, cmp.Diff(vic.NFS{}, got), err)
		}
	}
}
