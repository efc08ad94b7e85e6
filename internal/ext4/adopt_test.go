package ext4_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/vicsdk/vic-go/internal/ext4"
)

// copyIn applies a tar to a disk image that a kernel wrote to, as one would to a container that is
// off: read, adopt, apply, write.
func copyIn(t testing.TB, img string, tarball []byte, dir string) {
	t.Helper()
	f, err := os.OpenFile(img, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	r, err := ext4.Open(f, st.Size())
	if err != nil {
		t.Fatal(err)
	}
	fs, err := ext4.Adopt(r)
	if err != nil {
		t.Fatal(err)
	}
	var spool bytes.Buffer
	l, err := ext4.ReadArchive(bytes.NewReader(tarball), &spool, ext4.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	bound, err := fs.ApplyWith(l, &ext4.ApplyOptions{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	writes := map[uint64][]byte{}
	for _, e := range bound {
		for i := range e.N {
			writes[e.Abs+i] = spool.Bytes()[(e.Rel+i)*ext4.BlockSize:][:ext4.BlockSize]
		}
	}
	for _, lba := range fs.Dirty() {
		if writes[lba] != nil {
			t.Fatalf("block %d is both contents and metadata", lba)
		}
		b := make([]byte, ext4.BlockSize)
		fs.Block(lba, b)
		writes[lba] = b
	}
	fs.Commit()
	for lba, b := range writes {
		if _, err := f.WriteAt(b, int64(lba)*ext4.BlockSize); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d blocks replayed, %d blocks written", r.Replayed(), len(writes))
}

func fsckFile(t testing.TB, img string) {
	t.Helper()
	if out, err := exec.Command("e2fsck", "-fn", img).CombinedOutput(); err != nil {
		t.Fatalf("e2fsck: %v\n%s", err, out)
	}
}

// disturb does to a mounted image's tree what containers do. It leaves a file and a directory
// open that are deleted.
func disturb(t testing.TB, root string) (release func()) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	p := func(name string) string { return filepath.Join(root, name) }
	must(os.MkdirAll(p("k/sub"), 0o755))
	for i := range 700 { // a directory with a hash tree of the kernel's
		must(os.WriteFile(p(fmt.Sprintf("k/sub/some-file-with-a-rather-long-name-%d", i)), []byte(noise(uint64(i), i*3)), 0o640))
	}
	for i := 0; i < 700; i += 3 {
		must(os.Remove(p(fmt.Sprintf("k/sub/some-file-with-a-rather-long-name-%d", i))))
	}
	for i := range 6 { // attributes that share a block
		name := p(fmt.Sprintf("k/shared-%d", i))
		must(os.WriteFile(name, []byte("x"), 0o600))
		must(unix.Setxattr(name, "user.big", []byte(strings.Repeat("v", 700)), 0))
		must(unix.Setxattr(name, "user.small", []byte("s"), 0))
	}
	must(unix.Setxattr(p("k"), "user.zz", []byte(strings.Repeat("k", 150)), 0))
	must(os.Link(p("k/shared-0"), p("k/link")))
	must(os.Symlink(strings.Repeat("t", 200), p("k/slow")))
	must(os.Symlink("sub", p("k/fast")))
	must(unix.Mknod(p("k/fifo"), unix.S_IFIFO|0o600, 0))
	must(unix.Mknod(p("k/sock"), unix.S_IFSOCK|0o600, 0))
	must(unix.Mknod(p("k/dev"), unix.S_IFCHR|0o600, int(unix.Mkdev(300, 70000))))
	f, err := os.Create(p("k/allocated"))
	must(err)
	must(unix.Fallocate(int(f.Fd()), 0, 0, 3<<20))
	_, err = f.WriteAt([]byte("in the middle"), 1<<20)
	must(err)
	must(unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 4<<20, 1<<20))
	must(f.Close())
	f, err = os.Create(p("k/many-extents"))
	must(err)
	for i := range int64(900) {
		_, err = f.WriteAt([]byte(noise(uint64(i), 4096)), i*8192)
		must(err)
	}
	must(f.Close())
	must(os.Rename(p("etc/fast59"), p("k/renamed")))
	must(os.Chmod(p("bin/write"), 0o700))
	must(os.RemoveAll(p("var/cache")))
	must(os.WriteFile(p("lib/libc.so"), []byte(noise(77, 250000)), 0o755))
	must(os.Chtimes(p("etc/group"), day, time.Date(2300, 1, 1, 0, 0, 0, 7, time.UTC)))

	gone, err := os.Create(p("k/gone"))
	must(err)
	_, err = gone.WriteString(noise(5, 300000))
	must(err)
	must(os.Mkdir(p("k/gonedir"), 0o755))
	dir, err := os.Open(p("k/gonedir"))
	must(err)
	must(os.Remove(p("k/gone")))
	must(os.Remove(p("k/gonedir")))
	return func() { gone.Close(); dir.Close() }
}

// TestAdopt copies files into disks that a kernel wrote to, cleanly unmounted and cut off while
// files were open: e2fsck must find nothing, and a kernel the same tree as where GNU tar unpacked
// the files.
func TestAdopt(t *testing.T) {
	if testing.Short() {
		t.Skip("mounts filesystems")
	}
	t.Parallel()
	need(t, "e2fsck", "mount", "tar", "debugfs")
	im := newImage(t, 256<<20)
	for _, l := range richLayers(t)[:2] {
		im.mustApply(t, l)
	}
	img := im.save(t)
	dir, umount := mount(t, img, "loop,user_xattr,acl")
	release := disturb(t, filepath.Join(dir, "rootfs"))
	run(t, "sync", "-f", dir)
	cut := filepath.Join(t.TempDir(), "cut.img")
	run(t, "cp", "--sparse=always", img, cut)
	release()
	want := filepath.Join(t.TempDir(), "want.img")
	umount()
	run(t, "cp", "--sparse=always", img, want)
	fsckFile(t, img)
	acl := func(name string) string {
		_, rest, _ := strings.Cut(run(t, "debugfs", "-R", "stat /rootfs/k/"+name, img), "File ACL: ")
		n, _, _ := strings.Cut(rest, "\n")
		return strings.TrimSpace(n)
	}
	if a := acl("shared-0"); a == "0" || a != acl("shared-5") {
		t.Error("the kernel did not share a block of attributes: that goes untested")
	}

	// Over what the kernel made, below and beside it.
	var es []entry
	es = append(es, entry{name: "./", mtime: day}, entry{name: "sub/", mode: 0o700, uid: 3, xattr: map[string]string{"user.d": noise(1, 300)}})
	for i := range 500 {
		es = append(es, entry{name: fmt.Sprintf("sub/ours-%d-with-a-name-that-splits-blocks", i), body: noise(uint64(i), i*11)})
	}
	es = append(es,
		entry{name: "sub/some-file-with-a-rather-long-name-1", body: "replaced"},
		entry{name: "shared-1", body: "no more", mode: 0o755},
		entry{name: "shared-2", body: "x", xattr: map[string]string{"user.big": strings.Repeat("v", 700)}},
		entry{name: "link", body: "a file of its own"},
		entry{name: "slow", typ: '2', link: strings.Repeat("t", 200), uid: 9, mode: 0o777},
		entry{name: "fifo", body: "file now"},
		entry{name: "allocated", body: noise(3, 100000)},
		entry{name: "many-extents", body: noise(4, 40000)},
		entry{name: "hard", typ: '1', link: "shared-3"},
		entry{name: ".wh.literal", body: "no whiteout"},
		entry{name: "new/deep/er", body: noise(6, 3<<20)},
		entry{name: "new/", mtime: day}, entry{name: "new/deep/", mtime: day})
	tarball := makeTar(t, es...)

	dir, umount = mount(t, want, "loop,user_xattr,acl")
	cmd := exec.Command("tar", "-C", filepath.Join(dir, "rootfs/k"), "--numeric-owner", "--xattrs", "--xattrs-include=*", "--same-owner", "--keep-directory-symlink", "-xpf", "-")
	cmd.Stdin = bytes.NewReader(tarball)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("tar: %v\n%s", err, out)
	}
	wantTree := kernelTree(t, dir)
	umount()

	for name, img := range map[string]string{"clean": img, "cut off": cut} {
		t.Run(name, func(t *testing.T) {
			copyIn(t, img, tarball, "k")
			fsckFile(t, img)
			dir, umount := mount(t, img, "loop")
			defer umount()
			if diff := cmp.Diff(wantTree, kernelTree(t, dir)); diff != "" {
				t.Errorf("GNU tar and we (-tar +we):\n%.6000s", diff)
			}
			// And the kernel goes on writing, and we after it.
			if err := os.RemoveAll(filepath.Join(dir, "rootfs/k/sub")); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, "rootfs/k/after"), []byte(noise(8, 1<<20)), 0o600); err != nil {
				t.Fatal(err)
			}
			umount()
			fsckFile(t, img)
			copyIn(t, img, makeTar(t, entry{name: "again", body: noise(9, 1<<20)}), "")
			fsckFile(t, img)
		})
	}
}

// TestAdoptRefuses checks what cannot be taken over.
func TestAdoptRefuses(t *testing.T) {
	le := binary.LittleEndian
	super := func(im *image, change func(b []byte)) {
		b := bytes.Clone(im.blocks[0])
		change(b[1024:])
		le.PutUint32(b[1024+0x3fc:], ext4.CRC(0xffffffff, b[1024:1024+0x3fc]))
		im.put(0, b)
	}
	for _, tc := range []struct {
		name  string
		spoil func(im *image)
		want  string
	}{
		{"errors", func(im *image) { super(im, func(b []byte) { b[0x3a] |= 2 }) }, "found errors"},
		{"foreign", func(im *image) { super(im, func(b []byte) { b[0x64] ^= 2 }) }, "not made by this package"},
		{"bitmap", func(im *image) { im.blocks[16][4000] ^= 1 }, "bitmap of blocks"},
		{"allocators", func(im *image) { im.blocks[0][40] ^= 1 }, "allocators"},
		{"cut short", func(im *image) {
			in, err := im.reader(t).Lstat("rootfs/f")
			if err != nil {
				t.Fatal(err)
			}
			super(im, func(b []byte) { le.PutUint32(b[0xe8:], in.Ino) })
		}, "cut short"},
		{"journal", func(im *image) { im.blocks[ext4.JournalStart(im.fs)][35] = 5 }, "noted an error"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			im := newImage(t, 128<<20)
			im.mustApply(t, makeTar(t, entry{name: "f", body: "x"}))
			if fs, err := ext4.Adopt(im.reader(t)); err != nil || len(fs.Dirty()) > 0 {
				t.Fatalf("a clean disk: %v, something to write: %v", err, fs != nil)
			} else if _, err := fs.MarshalBinary(); err == nil {
				t.Error("an adopted model has an index")
			}
			tc.spoil(im)
			if _, err := ext4.Adopt(im.reader(t)); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want an error with %q", err, tc.want)
			}
		})
	}
}
