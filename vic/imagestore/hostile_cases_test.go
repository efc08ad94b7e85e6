package imagestore_test

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/vicsdk/vic-go/vic"
)

// tarCase is a case whose second layer is a bad tar, whole but for its end.
func tarCase(name, text string, write func(r *rawTar)) hostile {
	return tarCaseOf(name, vic.ErrInvalid, text, write)
}

func tarCaseOf(name string, kind error, text string, write func(r *rawTar)) hostile {
	return hostile{name, kind, text, func(f *fake) {
		b := made(write)
		f.replace(gz(b), b)
	}}
}

// cut is a case of a tar that is cut off after n bytes.
func cut(name, text string, n int, write func(r *rawTar)) hostile {
	return hostile{name, vic.ErrInvalid, text, func(f *fake) {
		b := made(write)[:n]
		f.replace(gz(b), b)
	}}
}

const badHeader = "invalid tar header"

func hostileHeaders() []hostile {
	file := func(cs ...change) func(r *rawTar) { return func(r *rawTar) { r.header("f", '0', "", 0, cs...) } }
	pax := func(records string) func(r *rawTar) {
		return func(r *rawTar) {
			r.extended('x', records)
			r.file("f", "x")
		}
	}
	sparse := func(records ...string) func(r *rawTar) {
		return func(r *rawTar) {
			r.pax(records...)
			r.file("f", "abc")
		}
	}
	return []hostile{
		tarCase("checksum is wrong", badHeader, func(r *rawTar) { r.noSum = true; r.file("f", "x") }),
		tarCase("no tar", badHeader, func(r *rawTar) { r.WriteString(strings.Repeat("no tar ", 1000)) }),
		tarCase("size of a gigabyte", "end early", file(octal(fieldSize, 1e9))),
		tarCase("size of 4 EiB", "exceeds", file(base256(fieldSize, 1<<62))),
		tarCase("size of 8 EiB", badHeader, file(func(h []byte) { copy(h[fieldSize.off:], "\x80\x00\x00\x00\x80\x00\x00\x00\x00\x00\x00\x00") })),
		tarCase("size is negative", badHeader, file(base256(fieldSize, -512))),
		tarCase("size is no number", badHeader, file(text(fieldSize, "12345678901z"))),
		tarCase("mode is no number", badHeader, file(text(fieldMode, "rw-r--r-"))),
		tarCase("owner is negative", "owner", file(base256(fieldUID, -1))),
		tarCase("owner is no ID", "owner", func(r *rawTar) { r.pax("uid=4294967295"); r.file("f", "") }),
		tarCase("group beyond 32 bits", "owner", func(r *rawTar) { r.pax("gid=4294967296"); r.file("f", "") }),
		cut("cut off in a header", "unexpected EOF", 300, file()),
		cut("cut off in contents", "end early", 512+1000, func(r *rawTar) { r.file("f", strings.Repeat("x", 5000)) }),
		cut("cut off in an extended header", "unexpected EOF", 512+100, pax(strings.Repeat(paxRecord("comment=x"), 100))),

		tarCase("extended header of 2 MiB", "too long", pax(paxRecord("comment="+strings.Repeat("x", 2<<20)))),
		tarCase("extended header of 8 EiB", badHeader, func(r *rawTar) {
			r.header("x", 'x', "", 0, func(h []byte) { copy(h[fieldSize.off:], "\x80\x00\x00\x00\x80\x00\x00\x00\x00\x00\x00\x00") })
		}),
		tarCase("a million records", "too long", func(r *rawTar) {
			var b strings.Builder
			for i := range 1000000 {
				b.WriteString(paxRecord(fmt.Sprintf("k%d=", i)))
			}
			pax(b.String())(r)
		}),
		tarCase("150,000 records with a bad path after them", "255 is the limit", pax(strings.Repeat(paxRecord("a="), 150000)+paxRecord("path="+strings.Repeat("n", 256)))),
		tarCase("record shorter than it says", badHeader, pax("50 path=f\n")),
		tarCase("record longer than it says", badHeader, pax("9 path=fffffff\n")),
		tarCase("record of length 0", badHeader, pax("0 path=f\n")),
		tarCase("record of negative length", badHeader, pax("-8 path=f\n")),
		tarCase("record without an equals sign", badHeader, pax("9 path f\n")),
		tarCase("record of a negative size", badHeader, pax(paxRecord("size=-1"))),
		tarCase("record of a giant size", "end early", pax(paxRecord("size=1000000000"))),
		tarCase("record of a size that is no number", badHeader, pax(paxRecord("size=0x10"))),
		tarCase("record of a path with NUL", badHeader, pax(paxRecord("path=a\x00b"))),
		tarCase("record of a target with NUL", badHeader, func(r *rawTar) { r.pax("linkpath=a\x00b"); r.symlink("s", "x") }),
		tarCase("record of a time that is no number", badHeader, pax(paxRecord("mtime=yesterday"))),
		tarCase("record of a time beyond 64 bits", badHeader, pax(paxRecord("mtime=99999999999999999999"))),
		tarCase("long name of 2 MiB", "too long", func(r *rawTar) { r.extended('L', strings.Repeat("n/", 1<<20)); r.file("f", "") }),
		tarCase("long link of 2 MiB", "too long", func(r *rawTar) { r.extended('K', strings.Repeat("n/", 1<<20)); r.symlink("f", "x") }),
		tarCase("long name of a gigabyte that does not come", "unexpected EOF", func(r *rawTar) { r.header("x", 'L', "", 1<<30) }),

		tarCase("sparse 0.0: more stretches than it has", badHeader, sparse("GNU.sparse.size=10", "GNU.sparse.numblocks=1000000000", "GNU.sparse.offset=0", "GNU.sparse.numbytes=3")),
		tarCase("sparse 0.1: stretches overlap", badHeader, sparse("GNU.sparse.map=0,2,1,1", "GNU.sparse.numblocks=2", "GNU.sparse.size=10")),
		tarCase("sparse 0.1: beyond the size", badHeader, sparse("GNU.sparse.map=9,3", "GNU.sparse.numblocks=1", "GNU.sparse.size=10")),
		tarCase("sparse 0.1: negative", badHeader, sparse("GNU.sparse.map=-5,3", "GNU.sparse.numblocks=1", "GNU.sparse.size=10")),
		tarCase("sparse 0.1: beyond 64 bits", badHeader, sparse("GNU.sparse.map=9223372036854775807,3", "GNU.sparse.numblocks=1", "GNU.sparse.size=9223372036854775807")),
		tarCase("sparse 1.0: a billion stretches", "unexpected EOF", func(r *rawTar) {
			r.pax("GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.realsize=10")
			r.file("f", "1000000000\n0\n3\n"+strings.Repeat("\x00", 497)+"abc")
		}),
		tarCase("sparse 1.0: more data than there is", "non-existent data", func(r *rawTar) {
			r.pax("GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.realsize=10000")
			r.file("f", "1\n0\n9000\n"+strings.Repeat("\x00", 503)+"abc")
		}),
		tarCase("sparse, old: stretches overlap", badHeader, func(r *rawTar) {
			r.typed("f", 'S', "abc", gnuSparse(10, 0, 2), func(h []byte) {
				octal(span{410, 12}, 1)(h)
				octal(span{422, 12}, 1)(h)
			})
		}),
		tarCase("sparse, old: less data than it says", "non-existent data", func(r *rawTar) { r.typed("f", 'S', "abc", gnuSparse(1<<20, 0, 1<<20)) }),
		tarCase("sparse: 8 TiB of holes", "sparse", func(r *rawTar) {
			r.typed("f", 'S', "", gnuSparse(8<<30, 8<<30, 0), base256(span{386, 12}, 8<<40), base256(span{483, 12}, 8<<40))
		}),
		tarCase("sparse: a thousand files of 1 GiB of holes", "sparse", func(r *rawTar) {
			for i := range 1000 {
				r.typed(fmt.Sprint("f", i), 'S', "", gnuSparse(1<<30, 1<<30, 0))
			}
		}),
	}
}

func hostileEntries() []hostile {
	xattr := func(records ...string) func(r *rawTar) {
		return func(r *rawTar) {
			r.pax(records...)
			r.file("f", "x")
		}
	}
	const acl, capability = "SCHILY.xattr.system.posix_acl_access=", "SCHILY.xattr.security.capability="
	no := ^uint32(0)
	return []hostile{
		tarCase("file without a name", "the root can only be a directory", func(r *rawTar) { r.file("", "x") }),
		tarCase("file named dot", "the root can only be a directory", func(r *rawTar) { r.file(".", "x") }),
		tarCase("file named dot dot", "the root can only be a directory", func(r *rawTar) { r.file("..", "x") }),
		tarCase("symlink named slash", "the root can only be a directory", func(r *rawTar) { r.symlink("/", "/etc") }),
		tarCase("hard link named slash", "the root can only be a directory", func(r *rawTar) { r.link("./..", "base/file") }),
		tarCase("name of 256 bytes", "256 bytes long", func(r *rawTar) { r.pax("path=d/" + strings.Repeat("n", 256)); r.file("f", "") }),
		tarCase("path of 4097 bytes", "4097 bytes long", func(r *rawTar) { r.pax("path=" + strings.Repeat("d/", 2048) + "f"); r.file("f", "") }),
		tarCase("path of 100,000 bytes", "100001 bytes long", func(r *rawTar) { r.extended('L', strings.Repeat("d/", 50000)+"f\x00"); r.file("f", "") }),

		tarCase("symlink without a target", "no target", func(r *rawTar) { r.symlink("s", "") }),
		tarCase("symlink of 4096 bytes", "4096 bytes long", func(r *rawTar) { r.pax("linkpath=" + strings.Repeat("t", 4096)); r.symlink("s", "x") }),
		tarCase("parent is a symlink to itself", "symlinks", func(r *rawTar) { r.symlink("l", "l"); r.file("l/f", "x") }),
		tarCase("parents are symlinks to each other", "symlinks", func(r *rawTar) { r.symlink("a", "b/x"); r.symlink("b", "../a"); r.file("a/f", "x") }),
		tarCase("300 symlinks on the way", "symlinks", func(r *rawTar) {
			for i := range 300 {
				r.symlink(fmt.Sprint("s", i), fmt.Sprint("s", i+1))
			}
			r.dir("s300")
			r.file("s0/f", "x")
		}),
		tarCase("symlink makes a name of 256 bytes", "256 bytes long", func(r *rawTar) {
			r.pax("linkpath=" + strings.Repeat("t", 256))
			r.symlink("s", "x")
			r.file("s/f", "x")
		}),

		tarCase("hard link to nothing", "does not exist", func(r *rawTar) { r.link("l", "nothing") }),
		tarCase("hard link to what comes later", "does not exist", func(r *rawTar) { r.link("l", "f"); r.file("f", "x") }),
		tarCase("hard link to what this layer deleted", "does not exist", func(r *rawTar) { r.empty("base/.wh.file"); r.link("l", "base/file") }),
		tarCase("hard link to a directory", "is a directory", func(r *rawTar) { r.link("l", "base") }),
		tarCase("hard link to the root", "is a directory", func(r *rawTar) { r.link("l", "../..") }),
		tarCase("hard link without a target", "is a directory", func(r *rawTar) { r.link("l", "") }),
		tarCase("hard link out of the root", "does not exist", func(r *rawTar) { r.link("l", "../../../../../../etc/passwd") }),
		tarCase("hard link out of the root through a symlink", "does not exist", func(r *rawTar) { r.symlink("s", "/etc"); r.link("l", "s/passwd") }),
		tarCase("hard link to what is ours", "does not exist", func(r *rawTar) { r.link("l", "../log/.") }),
		tarCase("hard link replaces its target's directory", "below the directory", func(r *rawTar) { r.link("base", "base/file") }),
		tarCase("hard link to a new name of itself", "does not exist", func(r *rawTar) { r.link("l", "l") }),
		tarCase("65001 names of one file", "65000", func(r *rawTar) {
			for i := range 65000 {
				r.link(fmt.Sprint("l", i), "base/file")
			}
		}),

		tarCase("whiteout of no name", "cannot be a name", func(r *rawTar) { r.empty("base/.wh.") }),
		tarCase("whiteout of dot", "cannot be a name", func(r *rawTar) { r.empty("base/.wh..") }),
		tarCase("whiteout of dot dot", "cannot be a name", func(r *rawTar) { r.empty("base/.wh...") }),
		tarCase("whiteout behind a loop", "symlinks", func(r *rawTar) { r.symlink("l", "./l"); r.empty("l/.wh.f") }),

		tarCase("type that is unknown", "type 'Z'", func(r *rawTar) { r.header("f", 'Z', "", 0) }),
		tarCase("volume header of GNU tar", "type 'V'", func(r *rawTar) { r.header("volume", 'V', "", 0) }),
		tarCase("member of another volume", "type 'M'", func(r *rawTar) { r.typed("f", 'M', "x") }),
		tarCase("major number beyond 12 bits", "device number 4096:0", func(r *rawTar) { r.device("d", '3', 4096, 0) }),
		tarCase("minor number beyond 20 bits", "device number 0:1048576", func(r *rawTar) { r.device("d", '4', 0, 1<<20) }),
		tarCase("device number is negative", "device number -1:-1", func(r *rawTar) { r.device("d", '4', -1, -1) }),

		tarCase("attribute of 65 KiB", "exceed", xattr("SCHILY.xattr.user.x="+strings.Repeat("v", 65<<10))),
		tarCase("attribute of 5 KiB", "do not fit", xattr("SCHILY.xattr.user.x="+strings.Repeat("v", 5<<10))),
		tarCase("five thousand attributes", "extended attributes", func(r *rawTar) {
			var rec []string
			for i := range 5000 {
				rec = append(rec, fmt.Sprintf("SCHILY.xattr.user.x%d=", i))
			}
			xattr(rec...)(r)
		}),
		tarCase("attribute whose name has 256 bytes", "255 bytes", xattr("SCHILY.xattr.user."+strings.Repeat("n", 256)+"=1")),
		tarCase("attribute of a namespace alone", "has no name", xattr("SCHILY.xattr.user.=1")),
		tarCase("attribute that is no base64", "base64", xattr("LIBARCHIVE.xattr.user.x=***")),
		tarCase("attribute whose name is badly encoded", "URL", xattr("LIBARCHIVE.xattr.user.%zz=YQ")),
		tarCase("capabilities cut off", "security.capability", xattr(capability+"\x01\x00\x00\x02\x00\x20")),
		tarCase("capabilities of an unknown version", "security.capability", xattr(capability+"\x00\x00\x00\x07"+strings.Repeat("\x00", 16))),
		tarCase("capabilities of nothing", "security.capability", xattr(capability)),
		tarCase("access list of no version", "access control list", xattr(acl+"\x02\x00")),
		tarCase("access list of version 1", "access control list", xattr(acl+"\x01\x00\x00\x00")),
		tarCase("access list cut off in an entry", "access control list", xattr(acl+aclOf(aclEntry{1, 7, no})[:9])),
		tarCase("access list of an unknown tag", "access control list", xattr(acl+aclOf(aclEntry{3, 7, no}))),
		tarCase("access list without others", "access control list", xattr(acl+aclOf(aclEntry{1, 7, no}, aclEntry{4, 5, no}))),
		tarCase("access list out of order", "access control list", xattr(acl+aclOf(aclEntry{32, 0, no}, aclEntry{4, 5, no}, aclEntry{1, 7, no}))),
		tarCase("access list of a user without a mask", "access control list", xattr(acl+aclOf(aclEntry{1, 7, no}, aclEntry{2, 7, 5}, aclEntry{4, 5, no}, aclEntry{32, 0, no}))),
		tarCase("access list of permissions beyond rwx", "access control list", xattr(acl+aclOf(aclEntry{1, 0xff, no}, aclEntry{4, 5, no}, aclEntry{32, 0, no}))),

		tarCaseOf("more bytes than the filesystem has", vic.ErrNoSpace, "Bytes", func(r *rawTar) {
			for i := range 40 {
				r.file(fmt.Sprint("f", i), strings.Repeat("x", 4<<20))
			}
		}),
		tarCaseOf("more files than inodes", vic.ErrNoSpace, "inode", func(r *rawTar) {
			for i := range 9000 {
				r.file(fmt.Sprint("f", i), "")
			}
		}),
		tarCaseOf("more directories than blocks", vic.ErrNoSpace, "", func(r *rawTar) {
			for i := range 60000 {
				r.file(fmt.Sprintf("d%d/f", i), "")
			}
		}),
	}
}

func hostilePacking() []hostile {
	good := func() []byte {
		return made(func(r *rawTar) { r.file("f", strings.Repeat("contents ", 10000)) })
	}
	packed := func(name, text string, pack func(b []byte) []byte) hostile {
		return hostile{name, vic.ErrInvalid, text, func(f *fake) { b := good(); f.replace(pack(b), b) }}
	}
	return []hostile{
		packed("gzip is cut off", "unexpected EOF", func(b []byte) []byte { p := gz(b); return p[:len(p)-20] }),
		packed("gzip is cut off in its header", "gzip", func(b []byte) []byte { return gz(b)[:6] }),
		packed("gzip of a wrong checksum", "checksum", func(b []byte) []byte { p := gz(b); p[len(p)-6] ^= 1; return p }),
		packed("gzip of a wrong length", "checksum", func(b []byte) []byte { p := gz(b); p[len(p)-1] ^= 1; return p }),
		packed("gzip with garbage behind it", "gzip", func(b []byte) []byte { return append(gz(b), "garbage behind it"...) }),
		packed("gzip of another method", "gzip", func(b []byte) []byte { p := gz(b); p[2] = 7; return p }),
		packed("gzip in gzip", "unexpected EOF", func(b []byte) []byte { return gz(gz(b)) }),
		packed("zstd in gzip", "unexpected EOF", func(b []byte) []byte { return gz(zst(b)) }),
		packed("zstd is cut off", "unexpected EOF", func(b []byte) []byte { p := zst(b); return p[:len(p)-5] }),
		packed("zstd of a wrong checksum", "CRC", func(b []byte) []byte { p := zst(b); p[len(p)-1] ^= 1; return p }),
		packed("zstd with garbage behind it", "magic", func(b []byte) []byte { return append(zst(b), "garbage behind it"...) }),
		// RFC 8878, 3.1.1.1: a frame without a size, whose window has 2^31 and more bytes.
		packed("zstd of a giant window", "window", func([]byte) []byte { return []byte("\x28\xb5\x2f\xfd\x00\xa8\x01\x00\x00") }),
		packed("zstd of a giant window and 1 EiB", "window", func([]byte) []byte {
			return []byte("\x28\xb5\x2f\xfd\xc0\xf8\x00\x00\x00\x00\x00\x00\x00\x10\x01\x00\x00")
		}),
		packed("zstd of a size it has not", "size", func(b []byte) []byte {
			// One segment that says 5 bytes and is an empty block.
			return []byte("\x28\xb5\x2f\xfd\x20\x05\x01\x00\x00")
		}),
		hostile{"zstd bomb", vic.ErrInvalid, "unpacks to more than", func(f *fake) {
			f.replace(bytes.Repeat(zst(make([]byte, 64<<20)), 64), nil)
		}},
		hostile{"gzip bomb", vic.ErrInvalid, "unpacks to more than", func(f *fake) { f.replace(bomb(4<<30), nil) }},
		hostile{"bomb in a file", vic.ErrInvalid, "unpacks to more than", func(f *fake) {
			head := made(func(r *rawTar) { r.header("f", '0', "", 8<<30) })[:512]
			f.replace(append(gz(head), bomb(4<<30)...), nil)
		}},
		hostile{"bomb behind the end", vic.ErrInvalid, "unpacks to more than", func(f *fake) { f.replace(append(gz(good()), bomb(4<<30)...), nil) }},
		hostile{"bomb of one file's copies", vic.ErrNoSpace, "Bytes", func(f *fake) {
			// A few kilobytes that want more than the disk has.
			b := made(func(r *rawTar) {
				for i := range 10 {
					r.file(fmt.Sprint("f", i), strings.Repeat("x", 16<<20))
				}
			})
			f.replace(gz(b), b)
		}},
		hostile{"digest of another blob", vic.ErrInvalid, "diff ID", func(f *fake) {
			d := &f.manifest.Layers[1]
			evil := gz(made(func(r *rawTar) { r.file("evil", "") }))
			f.m.blobs[d.Digest], d.Size = evil, int64(len(evil))
		}},
		hostile{"digest of another blob of this diff ID", vic.ErrInvalid, "digest", func(f *fake) {
			d := &f.manifest.Layers[1]
			plain := made(func(r *rawTar) { r.file("filler", "replaced by most cases") })
			f.m.blobs[d.Digest], d.Size = plain, int64(len(plain))
		}},
		hostile{"diff ID of another layer", vic.ErrInvalid, "diff ID", func(f *fake) { f.config.RootFS.DiffIDs[1] = digest.FromString("x") }},
		hostile{"diff ID of the packed bytes", vic.ErrInvalid, "diff ID", func(f *fake) { f.config.RootFS.DiffIDs[1] = f.manifest.Layers[1].Digest }},
		hostile{"layer smaller than the manifest says", vic.ErrUnavailable, "bytes came", func(f *fake) { f.manifest.Layers[1].Size += 100 }},
		hostile{"layer larger than the manifest says", vic.ErrInvalid, "more than", func(f *fake) { f.manifest.Layers[1].Size -= 10 }},
		hostile{"layer of 8 EiB", vic.ErrUnavailable, "bytes came", func(f *fake) { f.manifest.Layers[1].Size = 1<<63 - 1 }},
	}
}

func hostileManifests() []hostile {
	raw := func(mediaType, text string) func(f *fake) {
		return func(f *fake) {
			f.after = func(ocispec.Descriptor) ocispec.Descriptor { return f.m.put(mediaType, []byte(text)) }
		}
	}
	config := func(text string) func(f *fake) {
		return func(f *fake) { f.manifest.Config = f.m.put(ocispec.MediaTypeImageConfig, []byte(text)) }
	}
	index := func(change func(f *fake, d ocispec.Descriptor) ocispec.Index) func(f *fake) {
		return func(f *fake) {
			f.after = func(d ocispec.Descriptor) ocispec.Descriptor {
				return f.m.putJSON(ocispec.MediaTypeImageIndex, change(f, d))
			}
		}
	}
	platform := func(os, arch string) *ocispec.Platform { return &ocispec.Platform{OS: os, Architecture: arch} }
	const manifestType, indexType = ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex
	invalid, unsupported := vic.ErrInvalid, vic.ErrUnsupported
	return []hostile{
		{"manifest is empty", invalid, "JSON", raw(manifestType, "")},
		{"manifest is null", unsupported, "configuration", raw(manifestType, "null")},
		{"manifest is a list", invalid, "array", raw(manifestType, "[]")},
		{"manifest is cut off", invalid, "JSON", raw(manifestType, `{"schemaVersion":2,"config":{`)},
		{"manifest is 100,000 levels deep", invalid, "depth", raw(manifestType, `{"config":`+strings.Repeat(`[`, 100000)+strings.Repeat(`]`, 100000)+`}`)},
		{"a million layers", invalid, "at most", func(f *fake) {
			text := strings.Repeat(`{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"sha256:0000000000000000000000000000000000000000000000000000000000000000","size":1},`, 1000000)
			raw(manifestType, `{"layers":[`+text+`{}]}`)(f)
		}},
		{"a million layers of few bytes", invalid, "1000003 objects", func(f *fake) {
			c := f.m.putJSON(ocispec.MediaTypeImageConfig, f.config)
			raw(manifestType, fmt.Sprintf(`{"config":{"mediaType":%q,"digest":%q,"size":%d},"layers":[`, c.MediaType, c.Digest, c.Size)+strings.Repeat(`{},`, 1000000)+`{}]}`)(f)
		}},
		{"two million diff IDs", invalid, "diff IDs", config(`{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[` + strings.Repeat(`"",`, 2000000) + `""]}}`)},
		{"index of 13,000 platforms", unsupported, "x/00008, x/00009, others", index(func(f *fake, d ocispec.Descriptor) (idx ocispec.Index) {
			for i := range 13000 {
				d.Platform = platform("x", fmt.Sprintf("%05d", i))
				idx.Manifests = append(idx.Manifests, d)
			}
			return idx
		})},
		{"configuration of a million steps", invalid, "objects", config(`{"os":"linux","architecture":"amd64","history":[` + strings.Repeat(`{},`, 1000000) + `{}]}`)},
		{"index of a million manifests", invalid, "1000002 objects", raw(indexType, `{"manifests":[`+strings.Repeat(`{},`, 1000000)+`{}]}`)},
		{"513 layers", unsupported, "at most 512", func(f *fake) {
			for range 511 {
				f.manifest.Layers = append(f.manifest.Layers, f.manifest.Layers[1])
				f.config.RootFS.DiffIDs = append(f.config.RootFS.DiffIDs, f.config.RootFS.DiffIDs[1])
			}
		}},
		{"fewer diff IDs than layers", invalid, "1 diff IDs for 2 layers", func(f *fake) { f.config.RootFS.DiffIDs = f.config.RootFS.DiffIDs[:1] }},
		{"more diff IDs than layers", invalid, "2 diff IDs for 1 layers", func(f *fake) { f.manifest.Layers = f.manifest.Layers[:1] }},
		{"no layers", unsupported, "no layers", func(f *fake) { f.manifest.Layers, f.config.RootFS.DiffIDs = nil, nil }},
		{"configuration without rootfs", unsupported, "rootfs.type", config(`{"os":"linux","architecture":"amd64"}`)},
		{"configuration without a platform", unsupported, "made for", config(`{"rootfs":{"type":"layers"}}`)},
		{"configuration is null", unsupported, "made for", config(`null`)},
		{"configuration of 9 MiB", invalid, "at most", func(f *fake) { config(`{"author":"` + strings.Repeat("a", 9<<20) + `"}`)(f) }},
		{"configuration of a wrong size", invalid, "something else", func(f *fake) {
			f.manifest.Config = f.m.putJSON(ocispec.MediaTypeImageConfig, f.config)
			f.manifest.Config.Size--
		}},
		{"configuration of another type of rootfs", unsupported, `"windows"`, func(f *fake) { f.config.RootFS.Type = "windows" }},
		{"diff ID is a path", invalid, "diff ID 2", func(f *fake) { f.config.RootFS.DiffIDs[1] = "sha256:../../names/x" }},
		{"digest is a path", invalid, "digest", func(f *fake) { f.manifest.Layers[1].Digest = "../../names/x" }},
		{"digest of md5", invalid, "digest", func(f *fake) { f.manifest.Layers[1].Digest = "md5:d41d8cd98f00b204e9800998ecf8427e" }},
		{"size is negative", invalid, "negative", func(f *fake) { f.manifest.Layers[1].Size = -1 }},
		{"layer is encrypted", unsupported, "encrypted", func(f *fake) {
			f.manifest.Layers[1].MediaType = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted"
		}},
		{"layer is foreign and not there", vic.ErrNotFound, "blob", func(f *fake) {
			l := &f.manifest.Layers[1]
			l.MediaType = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
			l.URLs = []string{"http://127.0.0.1:1/layer"}
			delete(f.m.blobs, l.Digest)
		}},
		{"artifact of an empty configuration", unsupported, "empty", func(f *fake) {
			f.manifest.ArtifactType = "application/vnd.example.thing"
			f.manifest.Config = f.m.put(ocispec.MediaTypeEmptyJSON, []byte("{}"))
		}},
		{"artifact manifest", unsupported, "artifact", raw("application/vnd.oci.artifact.manifest.v1+json", `{}`)},
		{"manifest of schema 1", unsupported, "schema 1", raw("application/vnd.docker.distribution.manifest.v1+json", `{}`)},
		{"manifest of no media type", unsupported, "media type", raw("", `{}`)},
		{"manifest of a wrong size", invalid, "something else", func(f *fake) {
			f.after = func(d ocispec.Descriptor) ocispec.Descriptor { d.Size++; return d }
		}},
		{"manifest of 5 MiB", invalid, "at most", func(f *fake) { raw(manifestType, strings.Repeat(" ", 5<<20)+"{}")(f) }},
		{"index of no manifests", unsupported, "linux/amd64", raw(indexType, `{"manifests":[]}`)},
		{"index without the platform", unsupported, "windows/amd64", index(func(_ *fake, d ocispec.Descriptor) ocispec.Index {
			a, b := d, d
			a.Platform, b.Platform = platform("windows", "amd64"), platform("linux", "arm64")
			return ocispec.Index{Manifests: []ocispec.Descriptor{a, b}}
		})},
		{"index that lies about the platform", unsupported, "linux/s390x", func(f *fake) {
			f.config.Architecture = "s390x"
			index(func(_ *fake, d ocispec.Descriptor) ocispec.Index {
				d.Platform = platform("linux", "amd64")
				return ocispec.Index{Manifests: []ocispec.Descriptor{d}}
			})(f)
		}},
		{"index of indexes without end", unsupported, "nested", func(f *fake) {
			f.after = func(d ocispec.Descriptor) ocispec.Descriptor {
				for range 10 {
					d = f.m.putJSON(indexType, ocispec.Index{Manifests: []ocispec.Descriptor{d}})
				}
				return d
			}
		}},
		{"index of what is no digest", invalid, "digest", index(func(_ *fake, d ocispec.Descriptor) ocispec.Index {
			d.Digest = "sha256:x"
			return ocispec.Index{Manifests: []ocispec.Descriptor{d}}
		})},
	}
}
