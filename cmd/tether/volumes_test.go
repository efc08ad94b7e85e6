//go:build linux && amd64

package main

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vicsdk/vic-go/internal/ext4"
	"github.com/vicsdk/vic-go/internal/treecmp"
)

func needs(t *testing.T, program string) {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
}

func emptyDisk(t *testing.T, bytes int64) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(name, bytes); err != nil {
		t.Fatal(err)
	}
	return name
}

func e2fsck(t *testing.T, name string) {
	t.Helper()
	if out, err := exec.Command("e2fsck", "-fn", name).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v\n%s", err, out)
	}
}

// cutDisk fails from some write on.
type cutDisk struct {
	*os.File
	left int
}

var errCut = errors.New("power is off")

func (d *cutDisk) WriteAt(p []byte, off int64) (int, error) {
	if d.left--; d.left < 0 {
		return 0, errCut
	}
	return d.File.WriteAt(p, off)
}

func TestFilesystemMade(t *testing.T) {
	needs(t, "e2fsck")
	const group = ext4.GroupBlocks * ext4.BlockSize
	for _, size := range []int64{group, 3*group + 12345*512, 9 << 30} {
		name := emptyDisk(t, size)
		for range 2 {
			got, blocks, err := prepareVolume(name)
			if err != nil || got != size || blocks != uint64(size)/ext4.GroupBlocks/ext4.BlockSize*ext4.GroupBlocks {
				t.Fatalf("%d bytes: %d, %d blocks, %v", size, got, blocks, err)
			}
			e2fsck(t, name)
		}
	}
}

// An attempt that is cut off at any write leaves what nothing takes for a
// filesystem, and the next attempt makes it whole.
func TestFilesystemCutOff(t *testing.T) {
	needs(t, "e2fsck")
	const size = 3 << 30
	for n := 0; ; n++ {
		name := emptyDisk(t, size)
		f, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, err = makeFS(&cutDisk{f, n}, size)
		_ = f.Close()
		if err == nil {
			if n < 20 {
				t.Errorf("only %d writes", n)
			}
			return
		}
		if !errors.Is(err, errCut) {
			t.Fatal(err)
		}
		if out, err := exec.Command("blkid", "-p", name).CombinedOutput(); err == nil {
			t.Errorf("after %d writes: %s", n, out)
		}
		if _, blocks, err := prepareVolume(name); err != nil || blocks != size/ext4.BlockSize {
			t.Fatalf("after %d writes: %d blocks, %v", n, blocks, err)
		}
		if n%5 == 0 || n > 40 {
			e2fsck(t, name)
		}
	}
}

// A disk that holds anything else is left as it is.
func TestForeignDisks(t *testing.T) {
	for _, c := range []struct {
		at   int64
		text string
	}{{0, "x"}, {510, "\x55\xaa"}, {65536 + 64, "_BHRfS_M"}, {1024 + 0x38, "\x53\xee"}, {12, beingMadeText()[:20]}} {
		name := emptyDisk(t, 128<<20)
		f, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte(c.text), c.at); err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
		before, _ := os.ReadFile(name)
		if _, _, err := prepareVolume(name); err == nil || !strings.Contains(err.Error(), "not empty") {
			t.Errorf("%q at %d: %v", c.text, c.at, err)
		}
		if after, _ := os.ReadFile(name); !bytes.Equal(before, after) {
			t.Errorf("%q at %d: the disk was written to", c.text, c.at)
		}
	}
	if _, _, err := prepareVolume(emptyDisk(t, 100)); err == nil {
		t.Error("a disk of 100 bytes was taken")
	}
}

func beingMadeText() string { return string(beingMade) }

// A volume is filled once, whole, from what the image has, and one that was not
// filled whole is filled anew.
func TestFill(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("owners need root")
	}
	dir := t.TempDir()
	image := filepath.Join(dir, "image")
	for _, c := range [][]string{
		{"mkdir", "-p", image + "/sub/deep", image + "/empty"},
		{"sh", "-c", "cd " + image + "; echo one > a; ln a sub/b; ln -s ../nowhere sub/l; mkfifo f; mknod n c 1 3; echo two > sub/deep/s; chown 12:34 . sub sub/deep/s a; chmod 4755 sub/deep/s; chmod 1777 empty; chmod 751 .; touch -d @12345 sub a"},
	} {
		if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	want, err := treecmp.List(image)
	if err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(image, link); err != nil {
		t.Fatal(err)
	}
	at := filepath.Join(dir, "volume")
	state := filepath.Join(dir, "state")
	for _, d := range []string{at, state} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.OpenRoot(state)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	do := func(target string, wanted bool) {
		t.Helper()
		if err := fill(at, root, target, wanted); err != nil {
			t.Fatal(err)
		}
		if _, err := root.Lstat(copyingMark); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the mark is there still: %v", err)
		}
	}
	same := func(what string) {
		t.Helper()
		got, err := treecmp.List(at)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: %s", what, d)
		}
	}
	do(image, false)
	do(filepath.Join(dir, "not there"), true)
	if es, err := os.ReadDir(at); err != nil || len(es) > 0 {
		t.Fatalf("filled where it is not wanted: %v, %v", es, err)
	}
	do(link, true)
	same("filled")

	// Cut off: part of it is there, and the mark.
	if err := os.RemoveAll(filepath.Join(at, "sub")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(at, "part"), []byte("of another image"), 0o600); err != nil {
		t.Fatal(err)
	}
	mark := func() {
		if err := os.WriteFile(filepath.Join(state, copyingMark), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	mark()
	do(image, true)
	same("filled again")
	mark()
	do(image, false)
	if es, err := os.ReadDir(at); err != nil || len(es) > 0 {
		t.Fatalf("what was not filled whole is there: %v, %v", es, err)
	}
	if err := fill(at, root, filepath.Join(image, "a"), true); err == nil {
		t.Error("a file filled a volume")
	}
}
