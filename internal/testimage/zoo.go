package testimage

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"time"
)

// The zoo is the part of the demonstration image below /zoo: one of every
// kind of file, name, time, owner and attribute that a tar can carry and
// that umoci, our witness, unpacks as it is.

const (
	longestName = 255     // bytes that a name may have on Linux
	bigFile     = 3 << 20 // bytes; several grains of a disk
	crowd       = 1500    // names that fill several blocks of a directory
)

// addZoo adds the zoo.
func addZoo(l *Layer) {
	l.AddDir("zoo", nil)
	addNames(l)
	addKinds(l)
	addMetadata(l)
	addContents(l)
	addVictims(l)
}

func addNames(l *Layer) {
	l.AddDir("zoo/names", nil)
	for _, name := range []string{
		" ", "a b", "-rf", "new\nline", "tab\t", "back\\slash", "quo\"te'", "*", "$HOME", "..hidden", "...",
		"ünï-cödé", "日本語", "e\u0301", "\u00e9", "latin1-\xe9\xff", "\x01\x7f", "wh.not-a-whiteout", "UPPER", "upper",
		strings.Repeat("n", longestName), strings.Repeat("ü", longestName/2),
	} {
		l.AddFile("zoo/names/"+name, []byte(name), nil)
	}
	deep := "zoo/deep"
	l.AddDir(deep, nil)
	for i := range 60 {
		deep += fmt.Sprintf("/%02d-%s", i, strings.Repeat("d", 40))
		l.AddDir(deep, nil)
	}
	l.AddFile(deep+"/bottom", []byte("you found it\n"), nil)
	l.AddDir("zoo/crowd", nil)
	for i := range crowd {
		l.AddFile(fmt.Sprintf("zoo/crowd/member-%05d-of-a-directory-with-several-blocks", i), []byte{byte(i)}, nil)
	}
}

func addKinds(l *Layer) {
	l.AddDir("zoo/kinds", nil)
	l.AddFile("zoo/kinds/first", []byte("one file of three names\n"), &Meta{Mode: 0o640, UID: 3, GID: 4})
	l.AddXattr("zoo/kinds/first", "user.shared", "yes")
	l.AddHardlink("zoo/kinds/second", "zoo/kinds/first", nil)
	l.AddDir("zoo/elsewhere", nil)
	l.AddHardlink("zoo/elsewhere/third", "zoo/kinds/first", nil)
	l.AddSymlink("zoo/kinds/absolute", "/bin/busybox", nil)
	l.AddSymlink("zoo/kinds/relative", "../names/a b", nil)
	l.AddSymlink("zoo/kinds/dangling", "nowhere", nil)
	l.AddSymlink("zoo/kinds/loop", "loop", nil)
	l.AddSymlink("zoo/kinds/outside", "../../../../../../etc/passwd", nil)
	// ext4 keeps a target of up to 59 bytes in the inode.
	l.AddSymlink("zoo/kinds/inline", strings.Repeat("t", 59), nil)
	l.AddSymlink("zoo/kinds/block", strings.Repeat("t", 60), nil)
	l.AddSymlink("zoo/kinds/longest", strings.Repeat("/t", 2047), &Meta{Mode: 0o777, UID: 5, GID: 6})
	l.AddHardlink("zoo/kinds/symlink-twice", "zoo/kinds/dangling", nil)
	l.AddDevice("zoo/kinds/null", 'c', 1, 3, &Meta{Mode: 0o666})
	l.AddDevice("zoo/kinds/disk", 'b', 8, 1, &Meta{Mode: 0o660, GID: 6})
	// Numbers that do not fit the old 8:8 bits.
	l.AddDevice("zoo/kinds/wide", 'b', 259, 70000, &Meta{Mode: 0o600})
	l.AddDevice("zoo/kinds/pipe", 'p', 0, 0, &Meta{Mode: 0o620})
	l.AddHardlink("zoo/kinds/pipe-twice", "zoo/kinds/pipe", nil)
}

func addMetadata(l *Layer) {
	l.AddDir("zoo/meta", nil)
	for _, mode := range []int64{0, 0o1, 0o111, 0o200, 0o755, 0o1755, 0o2755, 0o4755, 0o6711, 0o7777} {
		l.AddFile(fmt.Sprintf("zoo/meta/file-%04o", mode), []byte("x"), &Meta{Mode: mode})
		l.AddDir(fmt.Sprintf("zoo/meta/dir-%04o", mode), &Meta{Mode: mode})
	}
	for _, id := range []int{1, 65535, 65536, 1 << 21, 4000000000} {
		l.AddFile(fmt.Sprintf("zoo/meta/owner-%d", id), nil, &Meta{Mode: 0o644, UID: id, GID: id - 1})
	}
	for _, t := range []struct {
		name string
		time time.Time
	}{
		{"epoch", time.Unix(0, 0)},
		{"nanoseconds", time.Unix(1234567890, 123456789)},
		{"before-1970", time.Unix(-1, 0)},
		{"year-1902", time.Unix(-2145916800, 0)},
		{"year-2038", time.Unix(1<<31, 999999999)},
		{"year-2106", time.Unix(1<<32, 1)},
		{"year-2200", time.Unix(7258118400, 5)}, // umoci counts nanoseconds, until 2262
	} {
		l.AddFile("zoo/meta/time-"+t.name, nil, &Meta{Mode: 0o644, ModTime: t.time})
		l.AddDir("zoo/meta/time-dir-"+t.name, &Meta{Mode: 0o755, ModTime: t.time})
		l.AddSymlink("zoo/meta/time-link-"+t.name, "x", &Meta{Mode: 0o777, ModTime: t.time})
	}
	l.AddDir("zoo/xattr", nil)
	l.AddXattr("zoo/xattr", "user.dir", "a directory has some too")
	l.AddFile("zoo/xattr/one", nil, nil)
	l.AddXattr("zoo/xattr/one", "user.one", "1")
	l.AddXattr("zoo/xattr/one", "user.binary", "\x00\x01\xff")
	l.AddXattr("zoo/xattr/one", "trusted.overlay.like", "y")
	l.AddFile("zoo/xattr/many", []byte("x"), nil)
	for i := range 30 {
		// An empty value would mean "no such record" to a reader of pax.
		l.AddXattr("zoo/xattr/many", fmt.Sprintf("user.number-%02d", i), strings.Repeat("v", i+1))
	}
	l.AddFile("zoo/xattr/large", nil, nil)
	l.AddXattr("zoo/xattr/large", "user.large", strings.Repeat("v", 3000))
	l.AddFile("zoo/xattr/capability", []byte("#!/bin/sh\n"), &Meta{Mode: 0o755})
	l.AddXattr("zoo/xattr/capability", "security.capability", netRawCapability())
	l.AddFile("zoo/xattr/acl", nil, &Meta{Mode: 0o664})
	l.AddXattr("zoo/xattr/acl", "system.posix_acl_access", aclForUser(1000))
	l.AddDir("zoo/xattr/default-acl", nil)
	l.AddXattr("zoo/xattr/default-acl", "system.posix_acl_default", aclForUser(1000))
	l.AddSymlink("zoo/xattr/symlink", "one", nil)
	l.AddXattr("zoo/xattr/symlink", "trusted.on-a-symlink", "z")
}

// netRawCapability is cap_net_raw=ep: struct vfs_cap_data of revision 2 in
// linux/capability.h.
func netRawCapability() string {
	b := binary.LittleEndian.AppendUint32(nil, 0x02000001) // revision 2, effective
	b = binary.LittleEndian.AppendUint32(b, 1<<13)         // permitted, CAP_NET_RAW
	return string(append(b, make([]byte, 12)...))
}

// aclForUser gives one more user read and write: linux/posix_acl_xattr.h.
func aclForUser(uid uint32) string {
	b := binary.LittleEndian.AppendUint32(nil, 2) // version
	for _, e := range []struct {
		tag, perm uint16
		id        uint32
	}{{0x01, 6, 1<<32 - 1}, {0x02, 6, uid}, {0x04, 4, 1<<32 - 1}, {0x10, 6, 1<<32 - 1}, {0x20, 4, 1<<32 - 1}} {
		b = binary.LittleEndian.AppendUint16(b, e.tag)
		b = binary.LittleEndian.AppendUint16(b, e.perm)
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	return string(b)
}

func addContents(l *Layer) {
	l.AddDir("zoo/content", nil)
	l.AddFile("zoo/content/empty", nil, nil)
	for _, size := range []int{1, 4095, 4096, 4097, 65535, 65536, 65537} {
		l.AddReader(fmt.Sprintf("zoo/content/noise-%d", size), int64(size), noise(size), nil)
	}
	l.AddReader("zoo/content/noise", bigFile, noise(bigFile), nil)
	l.AddFile("zoo/content/zeros", make([]byte, bigFile), nil)
	island := make([]byte, bigFile)
	copy(island[bigFile/2:], "an island in a sea of zeros")
	l.AddFile("zoo/content/island", island, nil)
}

// noise does not compress, and is the same each time.
func noise(size int) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) {
		var seed [32]byte
		binary.LittleEndian.PutUint64(seed[:], uint64(size))
		return io.NopCloser(io.LimitReader(rand.NewChaCha8(seed), int64(size))), nil
	}
}

// addVictims adds what the next layer changes; see addChanges.
func addVictims(l *Layer) {
	text := func(name string) { l.AddFile(name, []byte("first: "+name+"\n"), nil) }
	l.AddDir("zoo/change", nil)
	for _, name := range []string{"gone", "again", "chmod", "rewritten", "file-to-dir", "file-to-symlink", "file-to-device", "pair-a", "stays"} {
		text("zoo/change/" + name)
	}
	l.AddHardlink("zoo/change/pair-b", "zoo/change/pair-a", nil)
	for _, dir := range []string{"gone-dir", "opaque", "opaque-late", "opaque-later", "opaque-empty", "dir-to-file", "dir-to-symlink", "dir-again", "real"} {
		l.AddDir("zoo/change/"+dir, nil)
		text("zoo/change/" + dir + "/old")
		l.AddDir("zoo/change/"+dir+"/sub", nil)
		text("zoo/change/" + dir + "/sub/older")
	}
	l.AddSymlink("zoo/change/symlink-to-file", "stays", nil)
	l.AddSymlink("zoo/change/symlink-to-dir", "real", nil)
	l.AddSymlink("zoo/change/through", "real", nil)
	l.AddSymlink("zoo/change/retarget", "stays", nil)
}

// addChanges adds a layer's worth of deletions and replacements of what
// addVictims made.
func addChanges(l *Layer) {
	text := func(name string) { l.AddFile(name, []byte("second: "+name+"\n"), nil) }
	in := func(name string) string { return "zoo/change/" + name }
	l.Whiteout(in("gone"))
	l.Whiteout(in("gone-dir"))
	l.Whiteout("zoo/kinds/second") // One name of three.
	// A whiteout removes what older layers had, not what this one adds.
	l.Whiteout(in("again"))
	text(in("again"))
	l.Whiteout(in("dir-again"))
	l.AddDir(in("dir-again"), nil)
	text(in("dir-again/new"))
	l.AddDir(in("opaque"), &Meta{Mode: 0o711, UID: 1})
	l.Opaque(in("opaque"))
	text(in("opaque/new"))
	l.AddDir(in("opaque-late"), nil)
	text(in("opaque-late/new"))
	l.Opaque(in("opaque-late"))
	l.Opaque(in("opaque-empty"))
	l.AddFile(in("chmod"), []byte("first: zoo/change/chmod\n"), &Meta{Mode: 0o4700, UID: 1000, GID: 1000})
	text(in("rewritten"))
	l.AddDir(in("file-to-dir"), nil)
	text(in("file-to-dir/inside"))
	l.AddSymlink(in("file-to-symlink"), "stays", nil)
	l.AddDevice(in("file-to-device"), 'c', 5, 0, &Meta{Mode: 0o666})
	text(in("dir-to-file"))
	l.AddSymlink(in("dir-to-symlink"), "real", nil)
	text(in("symlink-to-file"))
	l.AddDir(in("symlink-to-dir"), &Meta{Mode: 0o750})
	text(in("symlink-to-dir/inside"))
	text(in("through/added")) // Lands in "real".
	l.AddSymlink(in("retarget"), "rewritten", nil)
	text(in("pair-a")) // The other name keeps the old file.
	l.AddHardlink(in("link-to-earlier-layer"), in("stays"), nil)
	l.AddHardlink(in("link-to-busybox"), "bin/busybox", &Meta{Mode: 0o755})
}
