package ext4_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vicsdk/vic-go/internal/ext4"
)

// memImage is a disk in memory that holds only what was written.
type memImage struct {
	blocks map[uint64][]byte
	bytes  int64
}

func newMemImage(n int64) *memImage { return &memImage{map[uint64][]byte{}, n} }

func (m *memImage) put(lba uint64, p []byte) {
	for ; len(p) > 0; lba, p = lba+1, p[ext4.BlockSize:] {
		m.blocks[lba] = bytes.Clone(p[:ext4.BlockSize])
	}
}

func (m *memImage) ReadAt(p []byte, off int64) (int, error) {
	done := 0
	for done < len(p) {
		at := off + int64(done)
		if at >= m.bytes {
			return done, io.EOF
		}
		in := int(at % ext4.BlockSize)
		n := min(ext4.BlockSize-in, len(p)-done)
		if b := m.blocks[uint64(at/ext4.BlockSize)]; b != nil {
			copy(p[done:done+n], b[in:])
		} else {
			clear(p[done : done+n])
		}
		done += n
	}
	return done, nil
}

// image is a filesystem and its disk.
type image struct {
	*memImage
	fs *ext4.FS
}

func newImage(t testing.TB, size int64) *image {
	t.Helper()
	fs, err := ext4.New(ext4.Geometry{Bytes: size})
	if err != nil {
		t.Fatal(err)
	}
	im := &image{newMemImage(size), fs}
	im.emit()
	return im
}

func (im *image) emit() (n int) {
	b := make([]byte, ext4.BlockSize)
	for _, lba := range im.fs.Dirty() {
		im.fs.Block(lba, b)
		im.put(lba, b)
		n++
	}
	im.fs.Commit()
	return n
}

// apply adds a layer and returns how many metadata blocks it took.
func (im *image) apply(layer []byte) (int, error) {
	var spool bytes.Buffer
	l, err := ext4.ReadLayer(bytes.NewReader(layer), &spool, ext4.Limits{})
	if err != nil {
		return 0, err
	}
	bound, err := im.fs.Apply(l)
	if err != nil {
		return 0, err
	}
	if uint64(spool.Len()) != l.Blocks*ext4.BlockSize {
		return 0, fmt.Errorf("spool holds %d bytes, the layer says %d blocks", spool.Len(), l.Blocks)
	}
	for _, e := range bound {
		im.put(e.Abs, spool.Bytes()[e.Rel*ext4.BlockSize:(e.Rel+e.N)*ext4.BlockSize])
	}
	return im.emit(), nil
}

func (im *image) mustApply(t testing.TB, layer []byte) int {
	t.Helper()
	n, err := im.apply(layer)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// save writes the disk to a sparse file.
func (im *image) save(t testing.TB) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "disk.img")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(im.bytes); err != nil {
		t.Fatal(err)
	}
	var run []byte
	var end uint64
	flush := func() {
		if _, err := f.WriteAt(run, int64(end)*ext4.BlockSize-int64(len(run))); err != nil {
			t.Fatal(err)
		}
		run = run[:0]
	}
	for _, lba := range slices.Sorted(maps.Keys(im.blocks)) {
		if lba != end || len(run) >= 1<<20 {
			flush()
		}
		run, end = append(run, im.blocks[lba]...), lba+1
	}
	flush()
	return name
}

func (im *image) reader(t testing.TB) *ext4.Reader {
	t.Helper()
	r, err := ext4.Open(im, im.bytes)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// fsck has e2fsck judge the disk.
func (im *image) fsck(t testing.TB) {
	t.Helper()
	need(t, "e2fsck")
	name := im.save(t)
	if out, err := exec.Command("e2fsck", "-fn", name).CombinedOutput(); err != nil {
		t.Fatalf("e2fsck: %v\n%s", err, out)
	}
	os.Remove(name)
}

// need skips the test where a program is missing, unless on CI.
func need(t testing.TB, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatalf("%s is needed on CI", p)
			}
			t.Skipf("%s is not installed", p)
		}
	}
}

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// mount mounts a disk image and unmounts it at the end of the test, or when the result is called.
func mount(t testing.TB, img, opts string) (string, func()) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-o", opts, img, dir).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v: %s", err, out)
	}
	done := false
	un := func() {
		if !done {
			done = true
			run(t, "umount", dir)
		}
	}
	t.Cleanup(un)
	return dir, un
}

// node is what a test compares about a file.
type node struct {
	Mode         fs.FileMode
	UID, GID     uint32
	Size         int64 // not of directories
	Mtime        time.Time
	Nlink        uint32
	Major, Minor uint32
	Link         string
	Xattrs       map[string]string
	Sum          string
	Same         string // first path of the same inode
}

// readerTree lists what the Reader says.
func readerTree(t testing.TB, r *ext4.Reader, root string) map[string]node {
	t.Helper()
	out := map[string]node{}
	first := map[uint32]string{}
	err := r.Walk(root, func(name string, in ext4.Info) error {
		rel, _ := filepath.Rel("/"+root, "/"+name)
		n := node{Mode: in.Mode, UID: in.UID, GID: in.GID, Size: in.Size, Mtime: in.Mtime, Nlink: in.Nlink, Major: in.Major, Minor: in.Minor, Link: in.Link}
		for k, v := range in.Xattrs {
			if n.Xattrs == nil {
				n.Xattrs = map[string]string{}
			}
			n.Xattrs[k] = string(v)
		}
		if in.Mode.IsDir() {
			n.Size = 0
		} else if p, ok := first[in.Ino]; ok {
			n.Same = p
		} else {
			first[in.Ino] = rel
		}
		if in.Mode.IsRegular() {
			f, err := r.OpenFile(name)
			if err != nil {
				return err
			}
			h := sha256.New()
			if _, err := io.Copy(h, f); err != nil {
				return err
			}
			n.Sum = fmt.Sprintf("%x", h.Sum(nil))
		}
		out[rel] = n
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// kernelTree lists what the kernel says.
func kernelTree(t testing.TB, root string) map[string]node {
	t.Helper()
	out := map[string]node{}
	first := map[uint64]string{}
	err := filepath.WalkDir(root, func(name string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(name, &st); err != nil {
			return err
		}
		fi, err := os.Lstat(name)
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, name)
		n := node{Mode: fi.Mode(), UID: st.Uid, GID: st.Gid, Size: st.Size, Mtime: time.Unix(int64(st.Mtim.Sec), int64(st.Mtim.Nsec)).UTC(), Nlink: uint32(st.Nlink)}
		switch {
		case fi.IsDir():
			n.Size = 0
		case first[st.Ino] != "":
			n.Same = first[st.Ino]
		default:
			first[st.Ino] = rel
		}
		if fi.Mode()&fs.ModeDevice != 0 {
			n.Major, n.Minor = unix.Major(st.Rdev), unix.Minor(st.Rdev)
		}
		if fi.Mode()&fs.ModeSymlink != 0 {
			if n.Link, err = os.Readlink(name); err != nil {
				return err
			}
		}
		if fi.Mode().IsRegular() {
			f, err := os.Open(name)
			if err != nil {
				return err
			}
			h := sha256.New()
			_, err = io.Copy(h, f)
			f.Close()
			if err != nil {
				return err
			}
			n.Sum = fmt.Sprintf("%x", h.Sum(nil))
		}
		if n.Xattrs, err = kernelXattrs(name); err != nil {
			return err
		}
		out[rel] = n
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func kernelXattrs(name string) (map[string]string, error) {
	list := make([]byte, 64<<10)
	n, err := unix.Llistxattr(name, list)
	if err != nil {
		return nil, fmt.Errorf("listxattr %s: %w", name, err)
	}
	var out map[string]string
	for _, k := range strings.Split(strings.TrimSuffix(string(list[:n]), "\x00"), "\x00") {
		if k == "" {
			continue
		}
		v := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(name, k, v)
		if err != nil && !errors.Is(err, unix.ENODATA) {
			return nil, fmt.Errorf("getxattr %s %s: %w", name, k, err)
		}
		if out == nil {
			out = map[string]string{}
		}
		out[k] = string(v[:n])
	}
	return out, nil
}

// id is an owner as package tar has it, whose int is too small on machines of 32 bits.
func id(n uint32) int {
	if int(n) < 0 {
		return int(n >> 1)
	}
	return int(n)
}

// entry is a tar entry in short.
type entry struct {
	name  string
	typ   byte // 0 for a file, or a directory if the name ends in a slash
	body  string
	link  string
	mode  int64
	uid   int
	gid   int
	mtime time.Time
	dev   [2]int64
	xattr map[string]string
}

var day = time.Date(2024, 2, 29, 12, 30, 15, 123456789, time.UTC)

func makeTar(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Typeflag: e.typ, Linkname: e.link, Mode: e.mode, Uid: e.uid, Gid: e.gid, ModTime: e.mtime,
			Devmajor: e.dev[0], Devminor: e.dev[1], Format: tar.FormatPAX}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
			if strings.HasSuffix(e.name, "/") {
				h.Typeflag = tar.TypeDir
			}
		}
		if h.Mode == 0 {
			h.Mode = 0o644
			if h.Typeflag == tar.TypeDir {
				h.Mode = 0o755
			}
		}
		if h.ModTime.IsZero() {
			h.ModTime = day
		}
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(e.body))
		}
		for k, v := range e.xattr {
			if h.PAXRecords == nil {
				h.PAXRecords = map[string]string{}
			}
			h.PAXRecords["SCHILY.xattr."+k] = v
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.body); err != nil && h.Typeflag == tar.TypeReg {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
