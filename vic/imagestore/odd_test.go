package imagestore_test

import (
	"encoding/binary"
	"fmt"
	"strings"
)

// An oddCase is what a layer may ask for, however odd. What it makes lies in the
// directory of its name, except for paths that are wanted with a leading slash.
// What is wanted is written down by hand, after the OCI image specification
// (layer.md) and, where that is silent, after Docker, umoci and GNU tar.
type oddCase struct {
	name   string
	layers []func(r *rawTar) // what it has in the first, second, third layer
	// want describes each path, in the form of the function describe. Parents
	// that no entry names are dated 1970.
	want map[string]string
}

type layers []func(r *rawTar)

const implied = "dir mtime=0"

func oddCases() []oddCase {
	var all []oddCase
	for _, part := range [][]oddCase{oddNames(), oddLinks(), oddWhiteouts(), oddReplacements(), oddAttributes(), oddHeaders()} {
		all = append(all, part...)
	}
	return all
}

func oddNames() []oddCase {
	long, bytes255 := strings.Repeat("n", 255), strings.Repeat("\xff", 255)
	deep := "deep" + strings.Repeat("/d", 2000)
	deepWant := map[string]string{".": implied}
	for i := range 2000 {
		deepWant[strings.Repeat("d/", i)+"d"] = implied
	}
	deepWant[strings.Repeat("d/", 2000)+"f"] = "file \"bottom\""
	return []oddCase{
		{"dotdot", layers{func(r *rawTar) { r.file("../../dotdot/a/../../../dotdot/./f", "x") }}, map[string]string{".": implied, "f": `file "x"`}},
		{"absolute", layers{func(r *rawTar) { r.file("//absolute///f", "x") }}, map[string]string{".": implied, "f": `file "x"`}},
		{"trailing-slashes", layers{func(r *rawTar) {
			r.dir("trailing-slashes///")
			r.file("trailing-slashes/f/", "x")
			r.symlink("trailing-slashes/s//", "f")
		}}, map[string]string{".": "dir", "f": `file "x"`, "s": `symlink "f"`}},
		{"root-in-many-spellings", layers{func(r *rawTar) {
			for _, n := range []string{".", "./", "/", "..", "../..", "", "./.."} {
				r.dir(n, octal(fieldMode, 0o711), octal(fieldUID, 1))
			}
		}, nil, func(r *rawTar) { r.dir("./", octal(fieldMode, 0o751), octal(fieldUID, 2)) }},
			map[string]string{"/.": "dir mode=0751 owner=2:0"}},
		{"names-of-255-bytes", layers{func(r *rawTar) {
			r.dir("names-of-255-bytes")
			r.pax("path=names-of-255-bytes/" + long)
			r.file("short", "x")
			r.extended('L', "names-of-255-bytes/"+bytes255+"\x00")
			r.file("short", "y")
		}}, map[string]string{".": "dir", long: `file "x"`, bytes255: `file "y"`}},
		{"bytes-in-names", layers{func(r *rawTar) {
			for _, n := range []string{" ", "new\nline", "back\\slash", "...", "..x", "latin-\xe9", "wh.x", "-rf", "\x01"} {
				r.file("bytes-in-names/"+n, n)
			}
		}}, map[string]string{".": implied, " ": `file " "`, "new\nline": `file "new\nline"`, "back\\slash": `file "back\\slash"`,
			"...": `file "..."`, "..x": `file "..x"`, "latin-\xe9": `file "latin-\xe9"`, "wh.x": `file "wh.x"`, "-rf": `file "-rf"`, "\x01": `file "\x01"`}},
		{"nul-ends-a-name", layers{func(r *rawTar) { r.file("nul-ends-a-name/f\x00hidden", "x") }}, map[string]string{".": implied, "f": `file "x"`}},
		{"deep", layers{func(r *rawTar) {
			r.pax("path=" + deep + "/f")
			r.file("short", "bottom")
		}}, deepWant},
		{"crowd", layers{func(r *rawTar) {
			r.dir("crowd")
			for i := range 100000 {
				if i%50000 == 0 {
					r.file(fmt.Sprintf("crowd/%06d", i), "member")
				} else {
					r.link(fmt.Sprintf("crowd/%06d", i), fmt.Sprintf("crowd/%06d", i-i%50000))
				}
			}
		}, func(r *rawTar) { r.empty("crowd/.wh.000001", "crowd/.wh.099999") }}, crowd()},
	}
}

func crowd() map[string]string {
	want := map[string]string{".": "dir"}
	for i := range 100000 {
		want[fmt.Sprintf("%06d", i)] = fmt.Sprintf(`file "member" =crowd/%06d`, i-i%50000)
	}
	delete(want, "000001")
	delete(want, "099999")
	return want
}

func oddLinks() []oddCase {
	return []oddCase{
		{"absolute-symlink-as-parent", layers{func(r *rawTar) { r.symlink("absolute-symlink-as-parent/l", "/outside") }, func(r *rawTar) { r.file("absolute-symlink-as-parent/l/sub/f", "x") }},
			map[string]string{".": implied, "l": `symlink "/outside"`, "/outside": implied, "/outside/sub": implied, "/outside/sub/f": `file "x"`}},
		{"climbing-symlink-in-one-layer", layers{func(r *rawTar) {
			r.symlink("climbing-symlink-in-one-layer/up", "../../../../../../..")
			r.file("climbing-symlink-in-one-layer/up/climbed-1", "x")
		}}, map[string]string{".": implied, "up": `symlink "../../../../../../.."`, "/climbed-1": `file "x"`}},
		{"climbing-symlink-across-layers", layers{func(r *rawTar) { r.symlink("climbing-symlink-across-layers/up", "../../a/../../..") }, func(r *rawTar) { r.file("climbing-symlink-across-layers/up/climbed-2", "x") }},
			map[string]string{".": implied, "up": `symlink "../../a/../../.."`, "/a": implied, "/climbed-2": `file "x"`}},
		{"symlink-to-proc", layers{func(r *rawTar) {
			r.symlink("symlink-to-proc/l", "/proc/self/root")
			r.file("symlink-to-proc/l/f", "x")
		}}, map[string]string{".": implied, "l": `symlink "/proc/self/root"`, "/proc": implied, "/proc/self": implied, "/proc/self/root": implied, "/proc/self/root/f": `file "x"`}},
		{"row-of-symlinks", layers{func(r *rawTar) {
			r.dir("row-of-symlinks/real")
			r.symlink("row-of-symlinks/a", "b")
			r.symlink("row-of-symlinks/b", "./c/.")
			r.symlink("row-of-symlinks/c", "/row-of-symlinks/real")
		}, func(r *rawTar) { r.file("row-of-symlinks/a/f", "x") }},
			map[string]string{".": implied, "real": "dir", "real/f": `file "x"`, "a": `symlink "b"`, "b": `symlink "./c/."`, "c": `symlink "/row-of-symlinks/real"`}},
		{"loop-is-replaced", layers{func(r *rawTar) { r.symlink("loop-is-replaced/l", "l") }, func(r *rawTar) { r.file("loop-is-replaced/l", "x") }},
			map[string]string{".": implied, "l": `file "x"`}},
		{"link-across-layers", layers{func(r *rawTar) { r.file("link-across-layers/f", "x") }, func(r *rawTar) { r.link("link-across-layers/g", "link-across-layers/f") }},
			map[string]string{".": implied, "f": `file "x" =link-across-layers/f`, "g": `file "x" =link-across-layers/f`}},
		{"link-outlives-its-file", layers{func(r *rawTar) { r.file("link-outlives-its-file/f", "x") },
			func(r *rawTar) { r.link("link-outlives-its-file/g", "link-outlives-its-file/f") },
			func(r *rawTar) { r.empty("link-outlives-its-file/.wh.f") }},
			map[string]string{".": implied, "g": `file "x"`}},
		{"one-of-two-is-replaced", layers{func(r *rawTar) {
			r.file("one-of-two-is-replaced/f", "old")
			r.link("one-of-two-is-replaced/g", "one-of-two-is-replaced/f")
		}, func(r *rawTar) { r.file("one-of-two-is-replaced/f", "new") }},
			map[string]string{".": implied, "f": `file "new"`, "g": `file "old"`}},
		{"link-to-what-the-layer-deletes", layers{func(r *rawTar) { r.file("link-to-what-the-layer-deletes/f", "x") }, func(r *rawTar) {
			r.link("link-to-what-the-layer-deletes/g", "link-to-what-the-layer-deletes/f")
			r.empty("link-to-what-the-layer-deletes/.wh.f")
		}}, map[string]string{".": implied, "g": `file "x"`}},
		{"link-to-a-symlink", layers{func(r *rawTar) {
			r.symlink("link-to-a-symlink/s", "nowhere")
			r.link("link-to-a-symlink/t", "link-to-a-symlink/s")
		}}, map[string]string{".": implied, "s": `symlink "nowhere" =link-to-a-symlink/s`, "t": `symlink "nowhere" =link-to-a-symlink/s`}},
		{"link-through-symlinks", layers{func(r *rawTar) {
			r.file("link-through-symlinks/real/f", "x")
			r.symlink("link-through-symlinks/s", "../../../link-through-symlinks/real")
		}, func(r *rawTar) { r.link("link-through-symlinks/s/g", "link-through-symlinks/s/f") }},
			map[string]string{".": implied, "real": implied, "s": `symlink "../../../link-through-symlinks/real"`,
				"real/f": `file "x" =link-through-symlinks/real/f`, "real/g": `file "x" =link-through-symlinks/real/f`}},
		{"link-targets-spelt-oddly", layers{func(r *rawTar) {
			r.file("link-targets-spelt-oddly/f", "x")
			r.link("link-targets-spelt-oddly/g", "/link-targets-spelt-oddly/f")
			r.link("link-targets-spelt-oddly/h", "../../link-targets-spelt-oddly//./f/")
		}}, map[string]string{".": implied, "f": `file "x" =link-targets-spelt-oddly/f`, "g": `file "x" =link-targets-spelt-oddly/f`, "h": `file "x" =link-targets-spelt-oddly/f`}},
		{"link-to-itself", layers{func(r *rawTar) { r.file("link-to-itself/f", "x") }, func(r *rawTar) { r.link("link-to-itself/f", "link-to-itself/f") }},
			map[string]string{".": implied, "f": `file "x"`}},
	}
}

func oddWhiteouts() []oddCase {
	return []oddCase{
		{"whiteout-of-nothing", layers{func(r *rawTar) { r.dir("whiteout-of-nothing") }, func(r *rawTar) {
			r.empty("whiteout-of-nothing/.wh.x", "whiteout-of-nothing/no/such/.wh.dir", "whiteout-of-nothing/nor/this/.wh..wh..opq")
		}}, map[string]string{".": "dir"}},
		{"whiteouts-of-all-types", layers{func(r *rawTar) {
			for _, n := range []string{"a", "b", "c", "d", "e/f"} {
				r.file("whiteouts-of-all-types/"+n, n)
			}
		}, func(r *rawTar) {
			r.dir("whiteouts-of-all-types/.wh.a/")
			r.device("whiteouts-of-all-types/.wh.b", '3', 0, 0)
			r.symlink("whiteouts-of-all-types/.wh.c", "/etc")
			r.header("whiteouts-of-all-types/.wh.d", '6', "", 0)
			r.file("whiteouts-of-all-types/.wh.e", "with contents")
		}}, map[string]string{".": implied}},
		{"whiteout-spares-its-own-layer", layers{func(r *rawTar) { r.file("whiteout-spares-its-own-layer/before", "old") }, func(r *rawTar) {
			r.file("whiteout-spares-its-own-layer/before", "new")
			r.empty("whiteout-spares-its-own-layer/.wh.before", "whiteout-spares-its-own-layer/.wh.after")
			r.file("whiteout-spares-its-own-layer/after", "new")
		}}, map[string]string{".": implied, "before": `file "new"`, "after": `file "new"`}},
		{"whiteout-of-a-directory-with-news", layers{func(r *rawTar) { r.file("whiteout-of-a-directory-with-news/d/old", "x") }, func(r *rawTar) {
			r.file("whiteout-of-a-directory-with-news/d/new", "y")
			r.empty("whiteout-of-a-directory-with-news/.wh.d")
		}}, map[string]string{".": implied, "d": implied, "d/new": `file "y"`}},
		{"whiteout-through-a-symlink", layers{func(r *rawTar) {
			r.empty("whiteout-through-a-symlink/real/f", "whiteout-through-a-symlink/real/g")
			r.symlink("whiteout-through-a-symlink/s", "/whiteout-through-a-symlink/real")
		}, func(r *rawTar) { r.empty("whiteout-through-a-symlink/s/.wh.f") }},
			map[string]string{".": implied, "real": implied, "real/g": `file ""`, "s": `symlink "/whiteout-through-a-symlink/real"`}},
		{"whiteout-above-the-root", layers{nil, func(r *rawTar) { r.empty("../.wh.rootfs", "../../.wh.log", "/../.wh.state") }}, map[string]string{}},
		{"opaque-first", layers{func(r *rawTar) { r.empty("opaque-first/old", "opaque-first/s/old") }, func(r *rawTar) { r.empty("opaque-first/.wh..wh..opq", "opaque-first/new", "opaque-first/s/new") }},
			map[string]string{".": implied, "new": `file ""`, "s": implied, "s/new": `file ""`}},
		{"opaque-last", layers{func(r *rawTar) { r.empty("opaque-last/old", "opaque-last/s/old") }, func(r *rawTar) { r.empty("opaque-last/new", "opaque-last/s/new", "opaque-last/.wh..wh..opq") }},
			map[string]string{".": implied, "new": `file ""`, "s": implied, "s/new": `file ""`}},
		{"opaque-of-its-own-layer", layers{func(r *rawTar) { r.empty("opaque-of-its-own-layer/f", "opaque-of-its-own-layer/.wh..wh..opq") }},
			map[string]string{".": implied, "f": `file ""`}},
		{"opaque-is-a-directory", layers{func(r *rawTar) { r.empty("opaque-is-a-directory/old") }, func(r *rawTar) { r.dir("opaque-is-a-directory/.wh..wh..opq/") }}, map[string]string{".": implied}},
		{"opaque-file", layers{func(r *rawTar) { r.file("opaque-file/f", "x") }, func(r *rawTar) { r.empty("opaque-file/f/.wh..wh..opq") }},
			map[string]string{".": implied, "f": `file "x"`}},
		{"bookkeeping-of-aufs", layers{func(r *rawTar) {
			r.dir(".wh..wh.orph/")
			r.empty(".wh..wh.aufs", ".wh..wh.plnk/5.6", "bookkeeping-of-aufs/f")
		}}, map[string]string{".": implied, "f": `file ""`}},
	}
}

func oddReplacements() []oddCase {
	return []oddCase{
		{"file-twice", layers{func(r *rawTar) {
			r.file("file-twice/f", "first, and longer")
			r.file("file-twice/f", "second")
		}}, map[string]string{".": implied, "f": `file "second"`}},
		{"file-directory-file", layers{func(r *rawTar) {
			r.file("file-directory-file/f", "1")
			r.dir("file-directory-file/f")
			r.file("file-directory-file/f/g", "2")
			r.file("file-directory-file/f", "3")
		}}, map[string]string{".": implied, "f": `file "3"`}},
		{"directory-symlink-file-beneath", layers{func(r *rawTar) {
			r.dir("directory-symlink-file-beneath/real")
			r.file("directory-symlink-file-beneath/d/inner", "1")
			r.symlink("directory-symlink-file-beneath/d", "real")
			r.file("directory-symlink-file-beneath/d/f", "2")
		}}, map[string]string{".": implied, "d": `symlink "real"`, "real": "dir", "real/f": `file "2"`}},
		{"symlink-to-directory-directory", layers{func(r *rawTar) {
			r.file("symlink-to-directory-directory/real/f", "x")
			r.symlink("symlink-to-directory-directory/d", "real")
		}, func(r *rawTar) { r.dir("symlink-to-directory-directory/d/", octal(fieldMode, 0o700)) }},
			map[string]string{".": implied, "real": implied, "real/f": `file "x"`, "d": "dir mode=0700"}},
		{"parent-is-a-file", layers{func(r *rawTar) { r.file("parent-is-a-file/p", "x") }, func(r *rawTar) { r.file("parent-is-a-file/p/q", "y") }},
			map[string]string{".": implied, "p": implied, "p/q": `file "y"`}},
		{"directory-again", layers{func(r *rawTar) {
			r.dir("directory-again")
			r.file("directory-again/f", "x")
		}, func(r *rawTar) { r.dir("directory-again", octal(fieldMode, 0o1777), octal(fieldGID, 7)) }},
			map[string]string{".": "dir mode=1777 owner=0:7", "f": `file "x"`}},
		{"every-type-after-the-other", layers{func(r *rawTar) {
			const n = "every-type-after-the-other/x"
			r.header(n, '6', "", 0)
			r.device(n, '4', 8, 1)
			r.symlink(n, "y")
			r.dir(n)
			r.device(n, '3', 1, 3)
			r.file("every-type-after-the-other/y", "y")
			r.link(n, "every-type-after-the-other/y")
		}, func(r *rawTar) { r.header("every-type-after-the-other/x", '6', "", 0) }},
			map[string]string{".": implied, "x": "fifo", "y": `file "y"`}},
	}
}

func oddAttributes() []oddCase {
	const d = "attributes/"
	acl := aclOf(aclEntry{1, 7, ^uint32(0)}, aclEntry{2, 6, 1000}, aclEntry{4, 5, ^uint32(0)}, aclEntry{16, 7, ^uint32(0)}, aclEntry{32, 0, ^uint32(0)})
	capability := "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	at := func(r *rawTar, name string, records ...string) {
		r.pax(records...)
		r.file(name, "")
	}
	return []oddCase{
		{"modes", layers{func(r *rawTar) {
			r.file("modes/type-bits", "", octal(fieldMode, 0o104755))
			r.file("modes/all-bits", "", text(fieldMode, "7777777\x00"))
			r.file("modes/none", "", octal(fieldMode, 0))
			r.symlink("modes/setuid-symlink", "x", octal(fieldMode, 0o4711))
			r.file("modes/spaces", "", text(fieldMode, "   600 \x00"))
		}}, map[string]string{".": implied, "type-bits": `file "" mode=4755`, "all-bits": `file "" mode=7777`, "none": `file "" mode=0000`,
			"setuid-symlink": `symlink "x"`, "spaces": `file "" mode=0600`}},
		{"owners", layers{func(r *rawTar) {
			at(r, "owners/largest", "uid=4294967294", "gid=4294967294")
			r.file("owners/base256", "", base256(fieldUID, 3000000000), base256(fieldGID, 1<<21))
			r.symlink("owners/of-symlink", "x", octal(fieldUID, 7))
		}}, map[string]string{".": implied, "largest": `file "" owner=4294967294:4294967294`, "base256": `file "" owner=3000000000:2097152`, "of-symlink": `symlink "x" owner=7:0`}},
		{"times", layers{func(r *rawTar) {
			for name, m := range map[string]string{"nanoseconds": "1.123456789", "more-digits": "1.9999999999", "negative": "-1.5", "y2038": "2147483648", "last": "15032385535.999999999",
				"after-2446": "15032385536", "far": "9000000000000", "before-1901": "-2147483649", "year-1": "-62135596800"} {
				at(r, "times/"+name, "mtime="+m)
			}
			r.file("times/base256", "", base256(fieldTime, -5))
			r.file("times/base256-far", "", base256(fieldTime, 1<<61))
			r.file("times/y2106-octal", "", octal(fieldTime, 1<<32))
		}}, map[string]string{".": implied, "nanoseconds": `file "" mtime=1.123456789`, "more-digits": `file "" mtime=1.999999999`, "negative": `file "" mtime=-2.500000000`,
			"y2038": `file "" mtime=2147483648`, "last": `file "" mtime=15032385535.999999999`, "after-2446": `file "" mtime=15032385535`, "far": `file "" mtime=15032385535`,
			"before-1901": `file "" mtime=-2147483648`, "year-1": `file "" mtime=-2147483648`, "base256": `file "" mtime=-5`, "base256-far": `file "" mtime=15032385535`, "y2106-octal": `file "" mtime=4294967296`}},
		{"attributes", layers{func(r *rawTar) {
			at(r, d+"plain", "SCHILY.xattr.user.a=1", "SCHILY.xattr.user.binary=\x00\xff=\n", "SCHILY.xattr.trusted.t=2", "SCHILY.xattr.user.empty=")
			at(r, d+"no-namespace", "SCHILY.xattr.nonamespace=1", "SCHILY.xattr.com.apple.quarantine=2", "SCHILY.xattr.user.kept=3", "SCHILY.xattr.=4")
			at(r, d+"block", "SCHILY.xattr.user.large="+strings.Repeat("v", 3900))
			at(r, d+"libarchive", "LIBARCHIVE.xattr.user.%61=dmFsdWU")
			at(r, d+"capability", "SCHILY.xattr.security.capability="+capability)
			at(r, d+"acl", "SCHILY.xattr.system.posix_acl_access="+acl)
			at(r, d+"empty-acl", "SCHILY.xattr.system.posix_acl_access=\x02\x00\x00\x00")
			r.pax("SCHILY.xattr.user.on-symlink=1", "SCHILY.xattr.trusted.on-symlink=1")
			r.symlink(d+"symlink", "x")
			r.pax("SCHILY.xattr.user.on-fifo=1", "SCHILY.xattr.trusted.on-fifo=1")
			r.header(d+"fifo", '6', "", 0)
		}}, map[string]string{".": implied, "plain": `file "" trusted.t="2" user.a="1" user.binary="\x00\xff=\n" user.empty=""`, "no-namespace": `file "" user.kept="3"`,
			"block": `file "" user.large="` + strings.Repeat("v", 3900) + `"`, "libarchive": `file "" user.a="value"`,
			"capability": fmt.Sprintf(`file "" security.capability=%q`, capability), "acl": fmt.Sprintf(`file "" system.posix_acl_access=%q`, acl), "empty-acl": `file ""`,
			"symlink": `symlink "x" trusted.on-symlink="1"`, "fifo": `fifo trusted.on-fifo="1"`}},
		{"devices", layers{func(r *rawTar) {
			r.device("devices/largest", '4', 4095, 1048575)
			r.device("devices/zero", '3', 0, 0)
			r.device("devices/null", '3', 1, 3)
			r.header("devices/pipe", '6', "", 0, octal(fieldMajor, 3))
		}}, map[string]string{".": implied, "largest": "block 4095:1048575", "zero": "char 0:0", "null": "char 1:3", "pipe": "fifo"}},
	}
}

type aclEntry struct {
	tag, perm uint16
	id        uint32
}

// aclOf is an access control list in the form of setxattr(2).
func aclOf(es ...aclEntry) string {
	b := []byte{2, 0, 0, 0}
	for _, e := range es {
		b = binary.LittleEndian.AppendUint16(b, e.tag)
		b = binary.LittleEndian.AppendUint16(b, e.perm)
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	return string(b)
}

func oddHeaders() []oddCase {
	hole := strings.Repeat("\x00", 200000)
	return []oddCase{
		{"sizes", layers{func(r *rawTar) {
			r.file("sizes/base256", "twelve bytes", base256(fieldSize, 12))
			r.file("sizes/spaces", "12345", text(fieldSize, "          5 "))
			r.pax("size=7")
			r.file("sizes/pax-wins", "seven b", octal(fieldSize, 0))
			r.header("sizes/dir", '5', "", 4096)
			r.header("sizes/link", '1', "sizes/base256", 12)
		}}, map[string]string{".": implied, "base256": `file "twelve bytes" =sizes/base256`, "spaces": `file "12345"`, "pax-wins": `file "seven b"`, "dir": "dir", "link": `file "twelve bytes" =sizes/base256`}},
		{"pax-wins", layers{func(r *rawTar) {
			r.pax("path=../pax-wins/real", "uid=9")
			r.file("pax-wins/false", "x")
			r.pax("linkpath=/pax-wins/real", "path=pax-wins/l")
			r.symlink("pax-wins/false", "false")
			r.pax("path=pax-wins/not-this", "path=pax-wins/last-record")
			r.file("pax-wins/false", "y")
		}}, map[string]string{".": implied, "real": `file "x" owner=9:0`, "l": `symlink "/pax-wins/real"`, "last-record": `file "y"`}},
		{"pax-global", layers{func(r *rawTar) {
			r.extended('g', paxRecord("path=pax-global/evil")+paxRecord("comment=of the archive"))
			r.file("pax-global/f", "x")
		}}, map[string]string{".": implied, "f": `file "x"`}},
		{"gnu-long", layers{func(r *rawTar) {
			name := "gnu-long/" + strings.Repeat("n", 200)
			r.extended('L', name+"\x00")
			r.file("gnu-long/cut", "x")
			r.extended('K', strings.Repeat("t/", 1000)+"t\x00")
			r.symlink("gnu-long/s", "cut")
			r.extended('K', name+"\x00")
			r.extended('L', "gnu-long/l\x00")
			r.link("cut", "cut")
		}}, map[string]string{".": implied, strings.Repeat("n", 200): `file "x" =gnu-long/l`, "l": `file "x" =gnu-long/l`, "s": fmt.Sprintf("symlink %q", strings.Repeat("t/", 1000)+"t")}},
		{"types-of-files", layers{func(r *rawTar) {
			r.typed("types-of-files/contiguous", '7', "x")
			r.typed("types-of-files/old", 0, "y")
			r.header("types-of-files/old-dir/", 0, "", 0)
		}}, map[string]string{".": implied, "contiguous": `file "x"`, "old": `file "y"`, "old-dir": "dir mode=0644"}},
		{"sparse", layers{func(r *rawTar) {
			r.note(hole + "abc")
			r.note(strings.Repeat("\x00", 1000000))
			r.pax("GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.name=sparse/1.0", "GNU.sparse.realsize=200003")
			r.file("sparse/x", "1\n200000\n3\n"+strings.Repeat("\x00", 512-11)+"abc")
			r.pax("GNU.sparse.map=200000,3", "GNU.sparse.numblocks=1", "GNU.sparse.size=200003", "GNU.sparse.name=sparse/0.1")
			r.file("sparse/x", "abc")
			r.pax("GNU.sparse.size=200003", "GNU.sparse.numblocks=1", "GNU.sparse.offset=200000", "GNU.sparse.numbytes=3")
			r.file("sparse/0.0", "abc")
			r.typed("sparse/old", 'S', "abc", gnuSparse(200003, 200000, 3))
			r.typed("sparse/old-all-hole", 'S', "", gnuSparse(1000000, 1000000, 0))
		}}, map[string]string{".": implied, "1.0": `file "200003 bytes"`, "0.1": `file "200003 bytes"`, "0.0": `file "200003 bytes"`, "old": `file "200003 bytes"`, "old-all-hole": `file "1000000 bytes"`}},
	}
}

// gnuSparse makes a header GNU tar's old one for sparse files: one stretch of
// data, and the size with holes.
func gnuSparse(size, at, n int64) change {
	return func(h []byte) {
		copy(h[257:265], "ustar  \x00")
		octal(span{386, 12}, at)(h)
		octal(span{398, 12}, n)(h)
		octal(span{483, 12}, size)(h)
	}
}
