//go:build linux && amd64

package main

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/vicsdk/vic-go/vic/tether"
)

// The directory of a volume is made by its owner, as a server must see it that takes
// root for nobody.
func TestMakeNFSDir(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("takes other users' parts: needs root")
	}
	dir := filepath.Join(t.TempDir(), "export")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	// A user's way there, as a mounted server is.
	for d := filepath.Dir(dir); d != "/"; d = filepath.Dir(d) {
		if st, err := os.Stat(d); err == nil {
			_ = os.Chmod(d, st.Mode()|0o111)
		}
	}
	n := &tether.NFS{Server: "s", Path: "/export", Dir: "one", UID: 1234, GID: 567}
	if err := makeNFSDir(t.Context(), n, dir); err == nil || !strings.Contains(err.Error(), "user 1234 of group 567") {
		t.Errorf("in a directory that is root's: %v", err)
	}
	if err := os.Chown(dir, 1234, 567); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := makeNFSDir(t.Context(), n, dir); err != nil {
			t.Fatal(err)
		}
	}
	st, err := os.Lstat(filepath.Join(dir, "one"))
	if err != nil || !st.IsDir() {
		t.Fatal(err)
	}
	if s := st.Sys().(*syscall.Stat_t); s.Uid != 1234 || s.Gid != 567 {
		t.Errorf("it is %d:%d's", s.Uid, s.Gid)
	}
	// A link in its place leads nowhere.
	if err := os.Symlink("/", filepath.Join(dir, "two")); err != nil {
		t.Fatal(err)
	}
	n.Dir = "two"
	if err := makeNFSDir(t.Context(), n, dir); err != nil {
		t.Fatal(err)
	}
	if fd, err := cloneTree(filepath.Join(dir, n.Dir), ""); err == nil {
		t.Errorf("a link is mounted: %d", fd)
	}
}
