// Package seeded makes image layers out of a seed, the same on every machine,
// and holds the hashes of what must become of them, on every machine.
//
// Tests of several packages compare with them: what those packages write may
// depend neither on the byte order or word size of the machine, nor on the
// order of maps, nor on what runs at the same time.
package seeded

import (
	"archive/tar"
	"bytes"
	_ "embed"
	"encoding/binary"
	"fmt"
	"strings"
	"time"
)

// Bytes is the size of the filesystem that the hashes are for.
const Bytes = 256 << 20

//go:embed testdata/sums.txt
var sums string

// Sums are the hashes that must come out, by what they are of: "layer N extent",
// "layer N index" and "layer N descriptor", where layer 0 is the empty filesystem,
// and "tree" for the tar of the last tree.
func Sums() map[string]string {
	out := map[string]string{}
	for line := range strings.Lines(sums) {
		if i := strings.LastIndexByte(line, ' '); i > 0 {
			out[line[:i]] = strings.TrimSpace(line[i:])
		}
	}
	return out
}

// random is a generator (Steele, Lea, Flood: "Fast Splittable Pseudorandom
// Number Generators"); the library's need not stay as it is.
type random uint64

func (r *random) next() uint64 {
	*r += 0x9e3779b97f4a7c15
	z := uint64(*r)
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

func (r *random) below(n uint64) uint64 { return r.next() % n }

// body is noise with holes in it.
func (r *random) body(n int) []byte {
	b := make([]byte, 0, n+8)
	for len(b) < n {
		if len(b)%65536 == 0 && r.below(4) == 0 && n > 65536 {
			b = append(b, make([]byte, min(65536, n-len(b)))...)
			continue
		}
		b = binary.LittleEndian.AppendUint64(b, r.next())
	}
	return b[:n]
}

// maker writes the layers and remembers what they have made.
type maker struct {
	random
	w     *tar.Writer
	dirs  []string
	files []string
}

// Layers returns the uncompressed layers of an image, the first one first.
func Layers() [][]byte {
	m := &maker{random: 20240229, dirs: []string{""}}
	var out [][]byte
	for i := range 7 {
		var b bytes.Buffer
		m.w = tar.NewWriter(&b)
		switch {
		case i == 0:
			for range 60 {
				m.dir()
			}
			for range 1500 {
				m.file()
			}
			m.crowd(2000)
		case i == 3:
			m.odd()
		default:
			for range 120 {
				m.change(i)
			}
		}
		m.must(m.w.Close())
		out = append(out, b.Bytes())
	}
	return out
}

func (m *maker) must(err error) {
	if err != nil {
		panic(err) // a writer to memory
	}
}

func (m *maker) add(h tar.Header, body []byte) {
	h.Format, h.Size = tar.FormatPAX, int64(len(body))
	h.ModTime = time.Unix(int64(m.below(1<<34))-1<<31, int64(m.below(1e9)))
	h.Uid, h.Gid = int(m.below(70000)), int(m.below(70000))
	m.must(m.w.WriteHeader(&h))
	_, err := m.w.Write(body)
	m.must(err)
}

func (m *maker) name() string {
	dir := m.dirs[m.below(uint64(len(m.dirs)))]
	n := fmt.Sprintf("%x", m.next())
	switch m.below(8) {
	case 0:
		n += strings.Repeat("n", int(m.below(200)))
	case 1:
		n += "-\xe4\xff\x80-ü" // bytes that are negative where bytes have a sign
	}
	return dir + n
}

func (m *maker) dir() {
	n := m.name() + "/"
	m.add(tar.Header{Typeflag: tar.TypeDir, Name: n, Mode: int64(0o700 | m.below(0o100))}, nil)
	m.dirs = append(m.dirs, n)
}

func (m *maker) file() {
	n := m.name()
	m.files = append(m.files, n)
	size := int(m.below(12000))
	if m.below(100) == 0 {
		size = int(m.below(1 << 20))
	}
	h := tar.Header{Typeflag: tar.TypeReg, Name: n, Mode: int64(m.below(0o10000))}
	if m.below(10) == 0 {
		h.PAXRecords = map[string]string{}
		for i := range m.below(6) {
			h.PAXRecords[fmt.Sprintf("SCHILY.xattr.user.%d-%x", i, m.below(1<<16))] = string(m.body(int(m.below(300))))
		}
	}
	m.add(h, m.body(size))
}

// crowd makes a directory of several levels of blocks.
func (m *maker) crowd(n int) {
	m.add(tar.Header{Typeflag: tar.TypeDir, Name: "crowd/", Mode: 0o755}, nil)
	for i := range n {
		m.add(tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("crowd/%x-%s", m.next(), strings.Repeat("c", i%150)), Mode: 0o644}, nil)
	}
}

// odd makes one of every kind of entry.
func (m *maker) odd() {
	m.add(tar.Header{Typeflag: tar.TypeReg, Name: "attributes", Mode: 0o755, PAXRecords: map[string]string{
		"SCHILY.xattr.security.capability":      "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
		"SCHILY.xattr.system.posix_acl_access":  "\x02\x00\x00\x00\x01\x00\x07\x00\xff\xff\xff\xff\x02\x00\x06\x00\xe8\x03\x00\x00\x04\x00\x05\x00\xff\xff\xff\xff\x10\x00\x07\x00\xff\xff\xff\xff\x20\x00\x00\x00\xff\xff\xff\xff",
		"SCHILY.xattr.trusted.\xff\x80":         "bytes that are negative where bytes have a sign: \xff\x80",
		"SCHILY.xattr.user.in-a-block":          string(m.body(1000)),
		"LIBARCHIVE.xattr.user.as-libarchive":   "dmFsdWU",
		"SCHILY.xattr.com.apple.not-for-linux":  "x",
		"SCHILY.xattr.user.empty":               "",
		"SCHILY.xattr.user.another-in-a-block-": string(m.body(500)),
	}}, m.body(100))
	m.add(tar.Header{Typeflag: tar.TypeReg, Name: "large", Mode: 0o644}, m.body(9<<20))
	for i := range 20 {
		m.add(tar.Header{Typeflag: tar.TypeSymlink, Name: m.name(), Linkname: strings.Repeat("t", 1+i*10), Mode: 0o777}, nil)
		m.add(tar.Header{Typeflag: tar.TypeLink, Name: m.name(), Linkname: "attributes"}, nil)
		m.add(tar.Header{Typeflag: tar.TypeBlock, Name: m.name(), Devmajor: int64(m.below(4096)), Devminor: int64(m.below(1 << 20)), Mode: 0o600}, nil)
		m.add(tar.Header{Typeflag: tar.TypeFifo, Name: m.name(), Mode: 0o600}, nil)
	}
}

// change does what upper layers do to lower ones.
func (m *maker) change(i int) {
	f := m.files[m.below(uint64(len(m.files)))]
	at := strings.LastIndexByte(f, '/') + 1
	switch m.below(uint64(5 + i)) {
	case 0:
		m.add(tar.Header{Typeflag: tar.TypeReg, Name: f[:at] + ".wh." + f[at:]}, nil)
	case 1:
		m.add(tar.Header{Typeflag: tar.TypeReg, Name: f, Mode: 0o600}, m.body(int(m.below(30000))))
	case 2:
		if at > 0 && m.below(20) == 0 {
			m.add(tar.Header{Typeflag: tar.TypeReg, Name: f[:at] + ".wh..wh..opq"}, nil)
		}
	case 3:
		m.dir()
	default:
		m.file()
	}
}
