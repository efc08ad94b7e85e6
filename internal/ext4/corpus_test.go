package ext4_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vicsdk/vic-go/internal/ext4"
)

// TestDebian converts a Debian tree and compares it, through the kernel, with what GNU tar
// unpacks. VIC_DEBIAN_TAR may name a tar made before by "mmdebstrap --variant=minbase bookworm".
func TestDebian(t *testing.T) {
	if os.Getenv("VIC_SOAK") == "" && os.Getenv("VIC_DEBIAN_TAR") == "" {
		t.Skip("\"make soak\" runs it; package imagestore's tests compare trees of Debian packages in every run")
	}
	need(t, "tar", "e2fsck", "mke2fs", "mount")
	name := os.Getenv("VIC_DEBIAN_TAR")
	if name == "" {
		need(t, "mmdebstrap")
		name = filepath.Join(t.TempDir(), "debian.tar")
		if out, err := exec.Command("mmdebstrap", "--variant=minbase", "bookworm", name).CombinedOutput(); err != nil {
			t.Skipf("no Debian mirror: %v\n%s", err, out)
		}
	}
	layer, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	im := newImage(t, 2<<30)
	start := time.Now()
	n := im.mustApply(t, layer)
	t.Logf("%d bytes of tar in %v, %d metadata blocks", len(layer), time.Since(start), n)
	im.fsck(t)

	dir, _ := mount(t, im.save(t), "loop,ro")
	got := kernelTree(t, filepath.Join(dir, "rootfs"))
	other := filepath.Join(t.TempDir(), "other.img")
	run(t, "mke2fs", "-q", "-t", "ext4", other, "1G")
	want, _ := mount(t, other, "loop,user_xattr,acl")
	root := filepath.Join(want, "rootfs")
	run(t, "mkdir", root)
	run(t, "tar", "-C", root, "--numeric-owner", "--xattrs", "--xattrs-include=*", "--same-owner", "-xpf", name)
	if diff := cmp.Diff(kernelTree(t, root), got); diff != "" {
		t.Errorf("GNU tar and we (-tar +we):\n%.4000s", diff)
	}
	if diff := cmp.Diff(got, readerTree(t, im.reader(t), "rootfs")); diff != "" {
		t.Errorf("kernel and reader (-kernel +reader):\n%.4000s", diff)
	}
	index, err := im.fs.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d files, index of %d bytes", len(got), len(index))
}

// TestJournal cuts a kernel's filesystem off while it works: directories that were deleted and
// whose blocks hold data now (revoke records), data that looks like the journal's own blocks
// (escapes), symlinks and attributes, in ordered mode and with all data in the journal.
func TestJournal(t *testing.T) {
	if testing.Short() {
		t.Skip("mounts filesystems")
	}
	t.Parallel()
	need(t, "mke2fs", "mount")
	for _, tc := range []struct{ name, mkfs, opts string }{
		{"ordered", "-b4096", "loop,commit=1"},
		{"journalled data", "-b4096", "loop,data=journal"},
		{"1 KiB blocks", "-b1024", "loop"},
		{"old journal", "-b4096,-O^metadata_csum,^64bit", "loop"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			img := filepath.Join(t.TempDir(), "k.img")
			run(t, "mke2fs", append(append([]string{"-q", "-t", "ext4"}, splitMkfs(tc.mkfs)...), img, "256M")...)
			dir, umount := mount(t, img, tc.opts)
			replayed := 0
			for round := range 4 {
				d := filepath.Join(dir, fmt.Sprint("d", round))
				run(t, "mkdir", d)
				for i := range 400 {
					if err := os.WriteFile(filepath.Join(d, fmt.Sprint("some-file-with-a-long-name-", i)), []byte(noise(uint64(i), i*17)), 0o640); err != nil {
						t.Fatal(err)
					}
				}
				run(t, "ln", "-s", string(bytes.Repeat([]byte("x"), 100)), filepath.Join(d, "slow"))
				run(t, "sync", "-f", dir)
				if round > 0 {
					run(t, "rm", "-r", filepath.Join(dir, fmt.Sprint("d", round-1)))
					magic := bytes.Repeat([]byte{0xc0, 0x3b, 0x39, 0x98}, 300000)
					if err := os.WriteFile(filepath.Join(dir, "magic"), magic, 0o600); err != nil {
						t.Fatal(err)
					}
				}
				run(t, "sync", "-f", dir)
				want := kernelTree(t, dir)
				cut := filepath.Join(t.TempDir(), "cut.img")
				run(t, "cp", img, cut)
				f, err := os.Open(cut)
				if err != nil {
					t.Fatal(err)
				}
				r, err := ext4.Open(f, 256<<20)
				if err != nil {
					t.Fatal(err)
				}
				replayed += r.Replayed()
				if diff := cmp.Diff(want, readerTree(t, r, "")); diff != "" {
					t.Errorf("round %d (-kernel +reader):\n%.4000s", round, diff)
				}
				f.Close()
				os.Remove(cut)
			}
			umount()
			if replayed == 0 {
				t.Error("nothing was replayed: the test proves nothing")
			}
			t.Logf("%d blocks replayed", replayed)
		})
	}
}

func splitMkfs(s string) []string {
	first, rest, ok := strings.Cut(s, ",")
	if !ok {
		return []string{first}
	}
	return []string{first, rest}
}

// TestHash compares the directory hash with debugfs's, which takes bytes as signed and so agrees
// for ASCII only; e2fsck and the kernel judge other names in TestLayersAgree.
func TestHash(t *testing.T) {
	need(t, "debugfs")
	names := []string{"a", "etc", "exactly-thirty-two-bytes-long-ok", "exactly-thirty-two-bytes-long-ok1", string(bytes.Repeat([]byte("z"), 255))}
	for _, n := range names {
		out := run(t, "debugfs", "-R", `dx_hash -h half_md4 -s `+ext4.HashSeed()+` "`+n+`"`, newImage(t, 128<<20).save(t))
		_, got, ok := strings.Cut(out, " is 0x")
		if !ok || !strings.HasPrefix(got, fmt.Sprintf("%08x", ext4.HashName(n))) {
			t.Errorf("%q: %#x, debugfs says %s", n, ext4.HashName(n), out)
		}
	}
}
