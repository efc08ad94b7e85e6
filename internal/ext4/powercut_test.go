package ext4_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/vicsdk/vic-go/internal/ext4"
)

// powerOff ends a mounted filesystem where it stands, the journal's log unflushed, as a power
// failure does: FS_IOC_SHUTDOWN of linux/fs.h with EXT4_GOING_FLAGS_NOLOGFLUSH.
func powerOff(t testing.TB, dir string) {
	t.Helper()
	const shutdown, noLogFlush = 0x8004587d, 2
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.IoctlSetPointerInt(int(f.Fd()), shutdown, noLogFlush); err != nil {
		t.Skipf("this kernel cannot shut a filesystem down: %v", err)
	}
}

// busy works in a directory until the filesystem is gone, and calls at after so many steps.
func busy(dir string, seed, after int, at func()) {
	data := []byte(noise(uint64(seed), 200000))
	magic := strings.Repeat("\xc0\x3b\x39\x98", 2048)
	for i := 0; ; i++ {
		if i == after {
			at()
		}
		p := func(n int) string {
			return filepath.Join(dir, fmt.Sprintf("file-%d-%d-with-a-name-of-some-length", seed, n))
		}
		var err error
		switch i % 9 {
		case 0, 1, 2, 3:
			err = os.WriteFile(p(i), data[:i*997%len(data)], 0o644)
		case 4:
			err = os.WriteFile(p(i), []byte(magic), 0o600)
		case 5:
			os.Remove(p(i - 40 + i%7))
			err = unix.Setxattr(p(i-1), "user.x", data[:i*13%900], 0)
		case 6:
			err = os.MkdirAll(filepath.Join(dir, fmt.Sprint("d", i), "sub"), 0o700)
			os.RemoveAll(filepath.Join(dir, fmt.Sprint("d", i-27)))
		case 7:
			err = os.Symlink(string(data[:i*7%300+1]), p(i))
			os.Rename(p(i-40), p(i-41))
		case 8:
			var f *os.File
			if f, err = os.OpenFile(p(i-5), os.O_WRONLY|os.O_APPEND, 0); err == nil {
				_, err = f.Write(data[:5000])
				if i%4 == 0 {
					err = errors.Join(err, f.Sync())
				}
				f.Close()
			}
		}
		if errors.Is(err, unix.EIO) || errors.Is(err, unix.EROFS) || errors.Is(err, unix.ESHUTDOWN) || i > after+100000 {
			return
		}
	}
}

// TestPowerCut cuts filesystems off while two writers work on them. Our reader must see what a
// kernel sees that recovers them, and e2fsck too; our own filesystems must take a file then.
func TestPowerCut(t *testing.T) {
	if testing.Short() {
		t.Skip("mounts filesystems")
	}
	t.Parallel()
	need(t, "mke2fs", "e2fsck", "mount", "debugfs")
	for _, tc := range []struct{ name, mkfs, opts string }{
		{"ours", "", "loop"},
		{"ours, journalled data", "", "loop,data=journal"},
		{"small journal", "-b4096,-Jsize=4", "loop,data=journal"},
		{"1 KiB blocks", "-b1024,-Jsize=1", "loop"},
		{"old journal", "-b4096,-Jsize=4,-O^metadata_csum,^64bit", "loop,data=journal"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			const size = 192 << 20
			var notes struct{ replayed, revokes, escapes, wraps int }
			rounds := 1
			if tc.mkfs == "" && os.Getenv("VIC_SOAK") != "" {
				rounds = 4
			}
			for round := range rounds {
				img := filepath.Join(t.TempDir(), "cut.img")
				if tc.mkfs == "" {
					im := newImage(t, 256<<20)
					im.mustApply(t, richLayers(t)[0])
					img = im.save(t)
				} else {
					args := strings.Split(strings.Replace(tc.mkfs, "csum,^", "csum;^", 1), ",")
					for i := range args {
						args[i] = strings.ReplaceAll(args[i], ";", ",")
					}
					run(t, "mke2fs", append(append([]string{"-q", "-t", "ext4"}, args...), img, strconv.Itoa(size>>10)+"k")...)
				}
				dir, umount := mount(t, img, tc.opts)
				work := dir
				if tc.mkfs == "" {
					work = filepath.Join(dir, "rootfs")
				}
				var wg sync.WaitGroup
				for i := range 2 {
					d := filepath.Join(work, fmt.Sprint("w", i))
					run(t, "mkdir", d)
					wg.Go(func() {
						busy(d, i, 900-300*round, func() {
							if i == 0 {
								powerOff(t, dir)
							}
						})
					})
				}
				wg.Wait()
				umount()

				dump, _ := exec.Command("debugfs", "-R", "logdump -a", img).Output()
				r, w, e := journalNotes(string(dump))
				notes.revokes, notes.wraps, notes.escapes = notes.revokes+r, notes.wraps+w, notes.escapes+e
				f, err := os.Open(img)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				st, _ := f.Stat()
				reader, err := ext4.Open(f, st.Size())
				if err != nil {
					t.Fatal(err)
				}
				notes.replayed += reader.Replayed()
				got := readerTree(t, reader, "")

				copied := filepath.Join(t.TempDir(), "kernel.img")
				run(t, "cp", "--sparse=always", img, copied)
				dir, umount = mount(t, copied, "loop")
				if diff := cmp.Diff(kernelTree(t, dir), got); diff != "" {
					t.Fatalf("round %d: kernel's recovery and our reader (-kernel +reader):\n%.4000s", round, diff)
				}
				umount()
				os.Remove(copied)
				if tc.mkfs == "" {
					copyIn(t, img, makeTar(t, entry{name: "ours", body: noise(1, 1<<20)}, entry{name: "w0/ours", body: "x"}), "")
					fsckFile(t, img)
					dir, umount = mount(t, img, "loop")
					after := kernelTree(t, dir)
					umount()
					for _, name := range []string{"rootfs/ours", "rootfs/w0/ours"} {
						if after[name].Mode == 0 {
							t.Errorf("%s is not there", name)
						}
						delete(after, name)
					}
					if diff := cmp.Diff(got, after); diff != "" {
						t.Errorf("round %d: what was not touched (-before +after):\n%.4000s", round, diff)
					}
				}
				os.Remove(img)
			}
			t.Logf("%+v", notes)
			if notes.replayed == 0 {
				t.Error("nothing was replayed: the test proves nothing")
			}
		})
	}
}

var logLine = regexp.MustCompile(`(?m)type (\d) \(.*\) at block (\d+)`)

// journalNotes counts, in debugfs's words, revoke records, turns of the log and escaped blocks.
func journalNotes(dump string) (revokes, wraps, escapes int) {
	last := 0
	for _, m := range logLine.FindAllStringSubmatch(dump, -1) {
		if m[1] == "5" {
			revokes++
		}
		at, _ := strconv.Atoi(m[2])
		if at < last {
			wraps++
		}
		last = at
	}
	for _, m := range regexp.MustCompile(`flags 0x([0-9a-f]+)`).FindAllStringSubmatch(dump, -1) {
		if n, _ := strconv.ParseUint(m[1], 16, 32); n&1 == 1 {
			escapes++
		}
	}
	return revokes, wraps, escapes
}
