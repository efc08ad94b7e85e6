package imagestore_test

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/vicsdk/vic-go/internal/treecmp"
)

// rawView has QEMU show a chain of disks as one raw file, until done is called.
// Where that cannot be had, for want of FUSE, QEMU makes a copy, which takes
// minutes for gigabytes.
func rawView(t *testing.T, vmdk string) (file string, done func()) {
	t.Helper()
	// A short name leaves room for the longest paths.
	dir, err := os.MkdirTemp("", "v")
	if err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(dir, "raw")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var complaints bytes.Buffer
	node := chainNode(t, vmdk)
	node["node-name"], node["read-only"] = "top", true
	top, err := json.Marshal(node)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("qemu-storage-daemon",
		"--blockdev", string(top),
		"--export", "type=fuse,id=raw,node-name=top,writable=off,mountpoint="+file)
	cmd.Stderr = &complaints
	exited := make(chan struct{})
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		cmd.Wait()
		close(exited)
	}()
	stop := func() {
		cmd.Process.Signal(syscall.SIGTERM)
		<-exited
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if st, err := os.Stat(file); err == nil && st.Size() > 0 {
			return file, stop
		}
		select {
		case <-exited:
			t.Logf("no FUSE: %s", complaints.Bytes())
			command(t, "qemu-img", "convert", "-O", "raw", wholeChain(t, vmdk), file)
			return file, stop
		default:
		}
		if time.Now().After(deadline) {
			stop()
			t.Fatalf("qemu-storage-daemon does not show %s: %s", vmdk, complaints.Bytes())
		}
	}
}

// wholeTree checks a chain with QEMU and e2fsck, lists the image's tree as the
// kernel sees it, and names what is beside it.
func wholeTree(t *testing.T, vmdk string) (tree []treecmp.Entry, outside []string) {
	t.Helper()
	raw, done := rawView(t, vmdk)
	defer done()
	command(t, "e2fsck", "-fn", raw)
	mnt, err := os.MkdirTemp("", "m")
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(mnt)
	unmount, err := treecmp.Mount(t.Context(), raw, mnt)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unmount(); err != nil {
			t.Error(err)
		}
	}()
	if tree, err = treecmp.List(filepath.Join(mnt, "rootfs")); err != nil {
		t.Fatal(err)
	}
	err = filepath.WalkDir(mnt, func(p string, d fs.DirEntry, err error) error {
		rel, _ := filepath.Rel(mnt, p)
		outside = append(outside, rel)
		if rel == "rootfs" {
			return fs.SkipDir
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return tree, outside
}

// long leaves a test out of short runs. "make test" runs it without the race
// detector, under which unpacking is many times slower; what goes on at once in
// it, others do under the detector.
func long(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("long (-short)")
	}
}
