package treecmp_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/vicsdk/vic-go/internal/treecmp"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: makes devices and mounts")
	}
}

func need(t *testing.T, program string) {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
}

func command(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
}

const nsec = 123456789

// plant makes a tree with every kind of file and returns what List must say
// about it, written down by hand.
func plant(t *testing.T, dir string) []treecmp.Entry {
	t.Helper()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	sum := func(s string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(s))) }
	in := func(name string) string { return filepath.Join(dir, name) }
	long := strings.Repeat("n", 255)
	check(os.MkdirAll(in("d/sub"), 0o755))
	check(os.WriteFile(in("d/file"), []byte("hello"), 0o600))
	check(os.Link(in("d/file"), in("a-link")))
	check(os.WriteFile(in("d/"+long), nil, 0o600))
	check(os.WriteFile(in("bad\xff\nname"), []byte("x"), 0o600))
	check(os.Symlink("/does/not/exist", in("d/sym")))
	check(unix.Mknod(in("null"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 300))))
	check(unix.Mknod(in("disk"), unix.S_IFBLK|0o600, int(unix.Mkdev(259, 70000))))
	check(unix.Mkfifo(in("pipe"), 0o600))
	check(unix.Mknod(in("sock"), unix.S_IFSOCK|0o600, 0))
	check(unix.Setxattr(in("d/file"), "user.note", []byte{0, 1, 255}, 0))
	check(unix.Setxattr(in("d"), "user.empty", nil, 0))
	check(unix.Lsetxattr(in("d/sym"), "trusted.l", []byte("s"), 0))
	big := bytes.Repeat([]byte("v"), 900) // More than the first buffer of the reader.
	check(unix.Setxattr(in("d/file"), "user.big", big, 0))

	want := []treecmp.Entry{
		{Path: ".", Type: treecmp.Dir, Mode: 0o750},
		{Path: "a-link", Type: treecmp.File, Mode: 0o6711, UID: 7, GID: 8, Size: 5, SHA256: sum("hello"), Group: "a-link",
			Xattrs: map[string][]byte{"user.note": {0, 1, 255}, "user.big": big}},
		{Path: "bad\xff\nname", Type: treecmp.File, Size: 1, SHA256: sum("x")},
		{Path: "d", Type: treecmp.Dir, Mode: 0o1777, Xattrs: map[string][]byte{"user.empty": {}}},
		{Path: "d/file", Type: treecmp.File, Mode: 0o6711, UID: 7, GID: 8, Size: 5, SHA256: sum("hello"), Group: "a-link",
			Xattrs: map[string][]byte{"user.note": {0, 1, 255}, "user.big": big}},
		{Path: "d/" + long, Type: treecmp.File, Mode: 0o4, UID: 1 << 31, GID: 4000000000, SHA256: sum("")},
		{Path: "d/sub", Type: treecmp.Dir, Mode: 0o2755},
		{Path: "d/sym", Type: treecmp.Symlink, Mode: 0o777, UID: 9, GID: 9, Size: 15, Target: "/does/not/exist",
			Xattrs: map[string][]byte{"trusted.l": []byte("s")}},
		{Path: "disk", Type: treecmp.Block, Mode: 0o660, Major: 259, Minor: 70000},
		{Path: "null", Type: treecmp.Char, Mode: 0o666, Major: 1, Minor: 300},
		{Path: "pipe", Type: treecmp.FIFO, Mode: 0o640},
		{Path: "sock", Type: treecmp.Socket, Mode: 0o700},
	}
	// Owners first, as chown clears setuid; times last, deepest first.
	for i := len(want) - 1; i >= 0; i-- {
		e := &want[i]
		e.MtimeSec, e.MtimeNsec = int64(4102444800+i), nsec
		if e.Group != "" {
			e.MtimeSec = -86400
		}
		check(os.Lchown(in(e.Path), int(e.UID), int(e.GID)))
		if e.Type != treecmp.Symlink {
			check(unix.Chmod(in(e.Path), e.Mode))
		}
	}
	for i := len(want) - 1; i >= 0; i-- {
		ts := unix.Timespec{Sec: want[i].MtimeSec, Nsec: want[i].MtimeNsec}
		check(unix.UtimesNanoAt(unix.AT_FDCWD, in(want[i].Path), []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW))
	}
	return want
}

func TestList(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	want := plant(t, dir)
	got, err := treecmp.List(dir)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("List: -want +got\n%s", d)
	}

	// A mount point is shown, what is mounted is not.
	command(t, "mount", "-t", "tmpfs", "tmpfs", filepath.Join(dir, "d/sub"))
	t.Cleanup(func() { exec.Command("umount", filepath.Join(dir, "d/sub")).Run() })
	if err := os.WriteFile(filepath.Join(dir, "d/sub/hidden"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	got, err = treecmp.List(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range got {
		if strings.HasSuffix(e.Path, "hidden") {
			t.Errorf("%q lies on another filesystem", e.Path)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d entries, want %d", len(got), len(want))
	}
}

func TestListRefuses(t *testing.T) {
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, root := range map[string]string{"file": file, "nothing": file + "x"} {
		if _, err := treecmp.List(root); err == nil {
			t.Errorf("List of a %s: no error", name)
		}
	}
}

// The tree copied into a filesystem by the kernel, and looked at through a
// read-only mount, is the same tree.
func TestMount(t *testing.T) {
	needRoot(t)
	need(t, "mke2fs")
	dir := t.TempDir()
	src, raw, mnt := filepath.Join(dir, "src"), filepath.Join(dir, "raw"), filepath.Join(dir, "mnt")
	for _, d := range []string{src, mnt} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	want := plant(t, src)
	command(t, "truncate", "-s", "64M", raw)
	command(t, "mke2fs", "-q", "-t", "ext4", "-I", "256", raw)
	command(t, "mount", "-o", "loop", raw, mnt)
	rw := true
	t.Cleanup(func() {
		if rw {
			exec.Command("umount", mnt).Run()
		}
	})
	command(t, "cp", "-a", src, filepath.Join(mnt, "rootfs"))
	command(t, "umount", mnt)
	rw = false

	unmount, err := treecmp.Mount(t.Context(), raw, mnt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unmount() })
	got, err := treecmp.List(mnt)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range treecmp.Diff(want, treecmp.Under(got, "rootfs")) {
		t.Error(line)
	}
	if err := os.WriteFile(filepath.Join(mnt, "x"), nil, 0o600); err == nil {
		t.Error("the mount takes writes")
	}

	// The program that runs in guests says the same.
	lister := filepath.Join(dir, "treelist")
	if err := treecmp.BuildTreelist(t.Context(), lister); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), lister, "-under", "rootfs", mnt).Output()
	if err != nil {
		t.Fatal(err)
	}
	listed, err := treecmp.Decode(bytes.NewReader(out))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range treecmp.Diff(want, listed) {
		t.Error("treelist:", line)
	}
	if err := exec.CommandContext(t.Context(), lister, "-under", "none", mnt).Run(); err == nil {
		t.Error("treelist -under a directory that is not there: no error")
	}

	for range 2 {
		if err := unmount(); err != nil {
			t.Fatal(err)
		}
	}
	if left, err := os.ReadDir(mnt); err != nil || len(left) != 0 {
		t.Errorf("still mounted: %v, %v", left, err)
	}
}

func TestMountRefuses(t *testing.T) {
	needRoot(t)
	raw := filepath.Join(t.TempDir(), "raw")
	if err := os.WriteFile(raw, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := treecmp.Mount(t.Context(), raw, t.TempDir()); err == nil {
		t.Error("an image of zeros was mounted")
	}
	ctx, cancel := context.WithTimeout(t.Context(), -time.Second)
	defer cancel()
	if _, err := treecmp.Mount(ctx, raw, t.TempDir()); err == nil {
		t.Error("mounted after the context's end")
	}
}
