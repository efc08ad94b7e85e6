package testimage_test

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/vicsdk/vic-go/internal/testimage"
	"github.com/vicsdk/vic-go/internal/treecmp"
)

// unpack lists the tree that umoci makes of an image.
func unpack(t *testing.T, layout string) map[string]treecmp.Entry {
	t.Helper()
	need(t, "umoci")
	if os.Getuid() != 0 {
		t.Skip("needs root: unpacks owners and devices")
	}
	bundle := filepath.Join(t.TempDir(), "bundle")
	if err := treecmp.Reference(t.Context(), layout, bundle); err != nil {
		t.Fatal(err)
	}
	entries, err := treecmp.List(filepath.Join(bundle, "rootfs"))
	if err != nil {
		t.Fatal(err)
	}
	tree := map[string]treecmp.Entry{}
	for _, e := range entries {
		tree[e.Path] = e
	}
	return tree
}

// history counts the layers and empty steps of an image.
func history(t *testing.T, layout, tag string) (layers, empty int, config ocispec.ImageConfig) {
	t.Helper()
	need(t, "skopeo")
	var c ocispec.Image
	if err := json.Unmarshal(output(t, nil, "skopeo", "inspect", "--config", "oci:"+layout+":"+tag), &c); err != nil {
		t.Fatal(err)
	}
	for _, h := range c.History {
		if h.EmptyLayer {
			empty++
		}
	}
	return len(c.RootFS.DiffIDs), empty, c.Config
}

func TestBusybox(t *testing.T) {
	need(t, "apt-get", "dpkg-deb")
	layout, err := testimage.Busybox(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	if layers, _, config := history(t, layout, "latest"); layers != 1 || !slices.Equal(config.Cmd, []string{"sh"}) {
		t.Errorf("%d layers, Cmd %q; want one layer that runs sh", layers, config.Cmd)
	}
	tree := unpack(t, layout)
	if sh := tree["bin/sh"]; sh.Mode != 0o755 || sh.SHA256 != tree["bin/busybox"].SHA256 || sh.Group == "" {
		t.Errorf("bin/sh is no link to busybox: %+v", sh)
	}
	if r := tree["sbin/reboot"]; r.Target != "/bin/busybox" {
		t.Errorf("sbin/reboot: %+v", r)
	}
	if tmp := tree["tmp"]; tmp.Mode != 0o1777 {
		t.Errorf("tmp: %+v", tmp)
	}
}

// What a layer says about a file is what umoci makes of it and what our list
// says: three parties that must agree on every oddity.
func TestDemoIsUnpackedAsSaid(t *testing.T) {
	need(t, "apt-get", "dpkg-deb")
	layout, err := testimage.Demo(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	im, err := testimage.DemoImage(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	tree := unpack(t, layout)
	types := map[byte]treecmp.Type{
		tar.TypeReg: treecmp.File, tar.TypeDir: treecmp.Dir, tar.TypeSymlink: treecmp.Symlink,
		tar.TypeChar: treecmp.Char, tar.TypeBlock: treecmp.Block, tar.TypeFifo: treecmp.FIFO,
	}
	checked := 0
	headers, contents := read(t, im.Steps[2].Layer)
	for i, h := range headers {
		name := path.Clean(h.Name)
		rest, ok := strings.CutPrefix(name, "zoo/")
		if !ok || strings.HasPrefix(rest, "change") || strings.HasPrefix(rest, "elsewhere") || h.Typeflag == tar.TypeLink {
			continue
		}
		want := treecmp.Entry{
			Path: name, Type: types[h.Typeflag], Mode: uint32(h.Mode), UID: uint32(h.Uid), GID: uint32(h.Gid),
			MtimeSec: h.ModTime.Unix(), MtimeNsec: int64(h.ModTime.Nanosecond()),
			Target: h.Linkname, Major: uint32(h.Devmajor), Minor: uint32(h.Devminor),
			Group: tree[name].Group,
		}
		switch want.Type {
		case treecmp.File:
			want.Size, want.SHA256 = h.Size, fmt.Sprintf("%x", sha256.Sum256([]byte(contents[i])))
		case treecmp.Symlink:
			want.Size = int64(len(h.Linkname))
		}
		for k, v := range h.PAXRecords {
			if attr, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok {
				if want.Xattrs == nil {
					want.Xattrs = map[string][]byte{}
				}
				want.Xattrs[attr] = []byte(v)
			}
		}
		got, ok := tree[name]
		if !ok {
			t.Errorf("%q is missing", name)
			continue
		}
		for _, line := range treecmp.Diff([]treecmp.Entry{want}, []treecmp.Entry{got}) {
			t.Error(line)
		}
		checked++
	}
	if checked < 1500 {
		t.Errorf("only %d entries were compared", checked)
	}
	for name, group := range map[string]string{
		"zoo/kinds/first": "", "zoo/kinds/dangling": "zoo/kinds/dangling", "zoo/kinds/symlink-twice": "zoo/kinds/dangling",
		"zoo/kinds/pipe-twice": "zoo/kinds/pipe",
	} {
		if got := tree[name].Group; got != group {
			t.Errorf("%s: hard-link group %q, want %q", name, got, group)
		}
	}
}

// The tree after all layers, where they change each other: written down by
// hand from the image specification's rules.
func TestDemoChanges(t *testing.T) {
	need(t, "apt-get", "dpkg-deb")
	layout, err := testimage.Demo(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	tree := unpack(t, layout)
	want := map[string]string{
		".":                     "dir",
		"again":                 "file second",
		"chmod":                 "file first 4700",
		"dir-again":             "dir",
		"dir-again/new":         "file second",
		"dir-to-file":           "file second",
		"dir-to-symlink":        "symlink real",
		"file-to-device":        "char",
		"file-to-dir":           "dir",
		"file-to-dir/inside":    "file second",
		"file-to-symlink":       "symlink stays",
		"link-of-link":          "file first = zoo/change/link-of-link",
		"link-to-busybox":       "file busybox = " + tree["bin/busybox"].Group,
		"link-to-earlier-layer": "file first = zoo/change/link-of-link",
		"opaque":                "dir 0711",
		"opaque-empty":          "dir",
		"opaque-late":           "dir",
		"opaque-late/new":       "file second",
		"opaque-later":          "dir",
		"opaque/new":            "file second",
		"pair-a":                "file second",
		"pair-b":                "file first",
		"real":                  "dir",
		"real/added":            "file second",
		"real/old":              "file first",
		"real/sub":              "dir",
		"real/sub/older":        "file first",
		"retarget":              "symlink rewritten",
		"rewritten":             "file second",
		"stays":                 "file first = zoo/change/link-of-link",
		"symlink-to-dir":        "dir 0750",
		"symlink-to-dir/inside": "file second",
		"symlink-to-file":       "file second",
		"through":               "symlink real",
	}
	got := map[string]string{}
	for name, e := range tree {
		rest, ok := strings.CutPrefix(name, "zoo/change")
		if !ok {
			continue
		}
		s := string(e.Type)
		switch e.Type {
		case treecmp.Symlink:
			s += " " + e.Target
		case treecmp.File:
			s += " " + content(e, rest)
			if e.Mode != 0o644 && e.Mode != 0o755 {
				s += fmt.Sprintf(" %04o", e.Mode)
			}
			if e.Group != "" {
				s += " = " + e.Group
			}
		case treecmp.Dir:
			if e.Mode != 0o755 {
				s += fmt.Sprintf(" %04o", e.Mode)
			}
		}
		got[path.Join(".", strings.TrimPrefix(rest, "/"))] = s
	}
	for _, name := range []string{"link-to-earlier-layer", "link-of-link", "pair-b", "link-to-busybox"} {
		if _, ok := tree["zoo/change/"+name]; !ok {
			t.Errorf("%s is missing", name)
		}
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("zoo/change: -want +got\n%s", d)
	}
	var elsewhere []string
	for name := range tree {
		if strings.HasPrefix(name, "zoo/elsewhere") || strings.HasPrefix(name, "zoo/kinds/second") {
			elsewhere = append(elsewhere, name)
		}
	}
	slices.Sort(elsewhere)
	if d := cmp.Diff([]string{"zoo/elsewhere", "zoo/elsewhere/new"}, elsewhere); d != "" {
		t.Errorf("zoo/elsewhere: -want +got\n%s", d)
	}
}

// content tells by a file's hash which layer it is of.
func content(e treecmp.Entry, rest string) string {
	for _, name := range []string{rest, "/stays", "/pair-a", "/real/added"} {
		for _, origin := range []string{"first", "second"} {
			for _, as := range []string{name, strings.Replace(name, "/real/", "/through/", 1)} {
				if e.SHA256 == fmt.Sprintf("%x", sha256.Sum256([]byte(origin+": zoo/change"+as+"\n"))) {
					return origin
				}
			}
		}
	}
	if e.Size > 500_000 {
		return "busybox"
	}
	return "unknown"
}

func TestDemoTags(t *testing.T) {
	need(t, "apt-get", "dpkg-deb")
	layout, err := testimage.Demo(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	for tag, want := range map[string]ocispec.ImageConfig{
		"latest":  {Entrypoint: []string{"/entry.sh"}, Cmd: []string{"default", "two words"}, WorkingDir: "/work"},
		"user":    {Entrypoint: []string{"/entry.sh"}, Cmd: []string{"default", "two words"}, WorkingDir: "/work", User: "demo"},
		"numeric": {Entrypoint: []string{"/entry.sh"}, Cmd: []string{"default", "two words"}, WorkingDir: "/work", User: "1234:5678"},
		"shell":   {Cmd: []string{"/bin/sh", "-c", `echo "$DEMO $SPACES"`}, WorkingDir: "/work"},
		"exit":    {Entrypoint: []string{"/bin/sh", "-c"}, Cmd: []string{"exit 7"}},
	} {
		layers, empty, got := history(t, layout, tag)
		if layers != 6 || empty != 2 {
			t.Errorf("%s: %d layers and %d empty steps, want 6 and 2", tag, layers, empty)
		}
		if len(got.Env) != 5 || len(got.Volumes) != 1 {
			t.Errorf("%s: Env %q, Volumes %v", tag, got.Env, got.Volumes)
		}
		got = ocispec.ImageConfig{Entrypoint: got.Entrypoint, Cmd: got.Cmd, WorkingDir: got.WorkingDir, User: got.User}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: -want +got\n%s", tag, d)
		}
	}
}

func TestDebian(t *testing.T) {
	if os.Getenv("VIC_SOAK") == "" {
		t.Skip("builds and unpacks a Debian root, which takes minutes: set VIC_SOAK=1, as make soak does")
	}
	need(t, "mmdebstrap", "apt-get")
	layout, err := testimage.Debian(t.Context(), "", "python3")
	if err != nil {
		t.Fatal(err)
	}
	if layers, empty, _ := history(t, layout, "latest"); layers != 3 || empty != 1 {
		t.Errorf("%d layers and %d empty steps, want 3 and 1", layers, empty)
	}
	tree := unpack(t, layout)
	if len(tree) < 10_000 {
		t.Errorf("%d entries, want 10,000", len(tree))
	}

	checked := 0
	for name, e := range tree {
		if strings.HasPrefix(name, "usr/lib/python3.11/json/") && e.Type == treecmp.File && e.Size > 0 {
			checked++
		}
	}
	if checked < 4 {
		t.Errorf("%d files in the json package of Python", checked)
	}
	if e := tree["bin"]; e.Target != "usr/bin" {
		t.Errorf("bin: %+v", e)
	}
	if e := tree["usr/bin/passwd"]; e.Mode != 0o4755 {
		t.Errorf("usr/bin/passwd: %+v", e)
	}
	if e := tree["etc/hostname"]; e.Size != int64(len("debian\n")) {
		t.Errorf("etc/hostname: %+v", e)
	}
	for _, gone := range []string{"usr/share/doc/dpkg", "usr/sbin/start-stop-daemon.REAL"} {
		if _, ok := tree[gone]; ok {
			t.Errorf("%s is still there", gone)
		}
	}
	for name := range tree {
		if strings.Contains(name, ".wh.") {
			t.Errorf("%s: a whiteout became a file", name)
		}
	}
}

func TestDebianRefusesNames(t *testing.T) {
	for _, name := range []string{"", "a", "-o", "Upper", "a b", "a,b", "a=1", "../x"} {
		if _, err := testimage.Debian(t.Context(), t.TempDir(), name); err == nil || !strings.Contains(err.Error(), "package name") {
			t.Errorf("package %q: %v", name, err)
		}
	}
}
