package ext4_test

import (
	"archive/tar"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vicsdk/vic-go/internal/ext4"
)

// noise is n bytes without a pattern.
func noise(seed uint64, n int) string {
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	b := make([]byte, n)
	r.Read(b)
	return string(b)
}

// holey alternates 64 KiB of data and of zeroes, which makes n extents.
func holey(n int) string {
	b := make([]byte, n*128<<10)
	for i := range n {
		copy(b[i*128<<10:], noise(uint64(i), 64<<10))
	}
	return string(b)
}

// acl is an access control list in the form of setxattr(2): rwx for the owner, r-x for user
// 1000 and the mask, r-- for the group, nothing for others.
func acl() string {
	b := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range [][3]uint32{{1, 7, 0xffffffff}, {2, 5, 1000}, {4, 4, 0xffffffff}, {16, 5, 0xffffffff}, {32, 0, 0xffffffff}} {
		b = binary.LittleEndian.AppendUint16(b, uint16(e[0]))
		b = binary.LittleEndian.AppendUint16(b, uint16(e[1]))
		b = binary.LittleEndian.AppendUint32(b, e[2])
	}
	return string(b)
}

// capability is a security.capability of version 2: cap_net_bind_service=ep.
func capability() string {
	b := binary.LittleEndian.AppendUint32(nil, 0x02000001)
	return string(append(binary.LittleEndian.AppendUint32(b, 1<<10), make([]byte, 12)...))
}

// richLayers is an image with a bit of everything.
func richLayers(t testing.TB) [][]byte {
	many := func(dir string, from, to int) (out []entry) {
		for i := from; i < to; i++ {
			out = append(out, entry{name: fmt.Sprintf("%s/%sentry-with-a-name-of-some-length-%d", dir, strings.Repeat("ü", i%2), i), body: fmt.Sprint(i % 7)})
		}
		return out
	}
	one := []entry{
		{name: "./", mode: 0o711, uid: 5, gid: 6},
		{name: "bin/"}, {name: "etc/"}, {name: "usr/"}, {name: "usr/lib/"}, {name: "dev/"}, {name: "big/"}, {name: "var/"}, {name: "var/cache/"},
		{name: "lib", typ: tar.TypeSymlink, link: "usr/lib", mode: 0o777},
		{name: "lib/libc.so", body: noise(1, 300000), mode: 0o755},
		{name: "abs", typ: tar.TypeSymlink, link: "/etc", mode: 0o777},
		{name: "abs/passwd", body: "root:x:0:0::/root:/bin/sh\n"},
		{name: "up", typ: tar.TypeSymlink, link: "../../../../etc", mode: 0o777},
		{name: "up/group", body: "root:x:0:\n"},
		{name: "bin/su", body: noise(2, 5000), mode: 0o4755},
		{name: "bin/write", body: noise(3, 10), mode: 0o2755, gid: 5},
		{name: "tmp/", mode: 0o1777},
		{name: "bin/ping", body: "ping", mode: 0o755, xattr: map[string]string{"security.capability": capability()}},
		{name: "etc/acl", body: "acl", mode: 0o750, xattr: map[string]string{"system.posix_acl_access": acl()}},
		{name: "etc/acls/", mode: 0o755, xattr: map[string]string{"system.posix_acl_default": acl()}},
		{name: "etc/attrs", body: "x", xattr: map[string]string{"user.a": "1", "user.bb": noise(4, 60), "user.long": noise(5, 2000), "trusted.t": "t"}},
		{name: "etc/fast59", typ: tar.TypeSymlink, link: strings.Repeat("f", 59), mode: 0o777},
		{name: "etc/slow60", typ: tar.TypeSymlink, link: strings.Repeat("s", 60), mode: 0o777},
		{name: "etc/slow2000", typ: tar.TypeSymlink, link: strings.Repeat("abcdefgh/", 220), mode: 0o777},
		{name: "etc/linked", typ: tar.TypeLink, link: "./etc/passwd"},
		{name: "etc/linkedlink", typ: tar.TypeLink, link: "etc/fast59"},
		{name: "dev/null", typ: tar.TypeChar, dev: [2]int64{1, 3}, mode: 0o666},
		{name: "dev/large", typ: tar.TypeBlock, dev: [2]int64{4095, 1048575}},
		{name: "dev/mid", typ: tar.TypeChar, dev: [2]int64{255, 256}},
		{name: "dev/fifo", typ: tar.TypeFifo},
		{name: "var/ids", body: "ids", uid: id(3000000000), gid: 70000},
		{name: "var/old", body: "old", mtime: time.Unix(-1234567890, 5)},
		{name: "var/y2100", body: "new", mtime: time.Date(2100, 1, 1, 0, 0, 0, 999999999, time.UTC)},
		{name: "var/epoch", body: "new", mtime: time.Unix(0, 0)},
		{name: "var/empty"}, {name: "var/zeroes", body: strings.Repeat("\x00", 200000)},
		{name: "var/holey", body: holey(12)},
		{name: "var/cache/a", body: "a"}, {name: "var/cache/b", body: "b"}, {name: "var/cache/sub/"}, {name: "var/cache/sub/c", body: "c"},
		{name: "var/" + strings.Repeat("n", 255), body: "long name"},
		{name: "var/ümläut-日本語", body: "utf-8"},
		{name: "twice", body: noise(6, 100000)}, {name: "twice", body: "second"},
		{name: "turns", body: "file first"}, {name: "turns/"}, {name: "turns/inside", body: "dir now"},
		{name: "gone/"}, {name: "gone/deep/"}, {name: "gone/deep/er", body: "x"},
		{name: "../../escape", body: "stays inside"},
	}
	one = append(one, many("big", 0, 3000)...)
	two := []entry{
		{name: "etc/"}, {name: "etc/new-before-whiteout", body: "1"}, {name: "var/cache/"},
		{name: "var/cache/kept", body: "new before opaque"}, {name: "var/cache/.wh..wh..opq"}, {name: "var/cache/b", body: "b again"},
		{name: ".wh.gone"}, {name: "etc/.wh.linked"}, {name: "big/.wh.üentry-with-a-name-of-some-length-1"},
		{name: "etc/passwd2", typ: tar.TypeLink, link: "etc/passwd"},
		{name: "turns", body: "file again"},
		{name: "bin/su", body: "no suid any more", mode: 0o755},
		{name: "var/ids", typ: tar.TypeSymlink, link: "empty", mode: 0o777},
		{name: "usr/", mode: 0o700, uid: 1, xattr: map[string]string{"user.dir": noise(9, 200)}},
		{name: ".wh.nothing-there"},
	}
	two = append(two, many("big", 3000, 3100)...)
	three := []entry{{name: ".wh.big"}, {name: "big/"}, {name: "etc/attrs", body: "x"}, {name: ".wh.var"}, {name: "var/"}, {name: "var/fresh", body: noise(10, 70000)}}
	return [][]byte{makeTar(t, one...), makeTar(t, two...), makeTar(t, three...)}
}

// TestLayersAgree applies layers one by one. After each, e2fsck must find nothing, and the tree
// must be the same for our reader, for the kernel mounting our disk, for umoci unpacking onto a
// filesystem made by mke2fs, and for our reader on that filesystem, still mounted and not clean.
func TestLayersAgree(t *testing.T) {
	if testing.Short() {
		t.Skip("mounts filesystems")
	}
	t.Parallel()
	need(t, "e2fsck", "mke2fs", "umoci", "mount")
	layers := richLayers(t)
	im := newImage(t, 256<<20)
	im.fsck(t)

	oci := filepath.Join(t.TempDir(), "oci")
	run(t, "umoci", "init", "--layout", oci)
	run(t, "umoci", "new", "--image", oci+":x")
	other := filepath.Join(t.TempDir(), "kernel.img")
	for i, l := range layers {
		n := im.mustApply(t, l)
		im.fsck(t)
		name := filepath.Join(t.TempDir(), "layer.tar")
		if err := os.WriteFile(name, l, 0o600); err != nil {
			t.Fatal(err)
		}
		run(t, "umoci", "raw", "add-layer", "--image", oci+":x", name)
		t.Logf("layer %d: %d metadata blocks", i+1, n)

		got := readerTree(t, im.reader(t), "rootfs")
		dir, umount := mount(t, im.save(t), "loop,ro")
		if diff := cmp.Diff(kernelTree(t, filepath.Join(dir, "rootfs")), got); diff != "" {
			t.Errorf("layer %d: reader and kernel on our disk (-kernel +reader):\n%s", i+1, diff)
		}
		umount()

		os.Remove(other)
		run(t, "mke2fs", "-q", "-t", "ext4", "-b", "4096", other, "128M")
		dir, umount = mount(t, other, "loop,user_xattr,acl")
		run(t, "umoci", "raw", "unpack", "--image", oci+":x", filepath.Join(dir, "rootfs"))
		want := kernelTree(t, filepath.Join(dir, "rootfs"))
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("layer %d: umoci and we (-umoci +we):\n%s", i+1, diff)
		}
		run(t, "sync", "-f", dir)
		cut := filepath.Join(t.TempDir(), "cut.img")
		run(t, "cp", other, cut)
		f, err := os.Open(cut)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		r, err := ext4.Open(f, 128<<20)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("layer %d: %d blocks replayed from the journal", i+1, r.Replayed())
		if diff := cmp.Diff(want, readerTree(t, r, "rootfs")); diff != "" {
			t.Errorf("layer %d: reader on the kernel's disk, cut off (-kernel +reader):\n%s", i+1, diff)
		}
		umount()
	}
}
