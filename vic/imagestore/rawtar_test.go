package imagestore_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"
)

// rawTar writes a tar byte by byte, so that it can hold what no writer would
// write. Formats: pax(1), "ustar Interchange Format" and "pax Extended Header";
// GNU tar's manual, "Basic Tar Format" and "Storing Sparse Files".
type rawTar struct {
	bytes.Buffer
	noSum bool              // leave the next header's checksum wrong
	sums  map[string]string // of the contents written, where not nil
}

// now is the time of entries that give no other.
const now = 1704067200

// Places of a header's fields.
var (
	fieldMode, fieldUID, fieldGID = span{100, 8}, span{108, 8}, span{116, 8}
	fieldSize, fieldTime          = span{124, 12}, span{136, 12}
	fieldMagic                    = span{257, 8}
	fieldMajor, fieldMinor        = span{329, 8}, span{337, 8}
	fieldPrefix                   = span{345, 155}
)

type span struct{ off, n int }

// A change spoils a header before its checksum is made.
type change func(h []byte)

// octal is a field as numbers are mostly written.
func octal(f span, v int64) change {
	return func(h []byte) { copy(h[f.off:f.off+f.n], fmt.Sprintf("%0*o\x00", f.n-1, v)) }
}

// base256 is a field as GNU tar writes large and negative numbers.
func base256(f span, v int64) change {
	return func(h []byte) {
		b := h[f.off : f.off+f.n]
		for i := range b {
			b[i] = byte(v >> 63)
		}
		binary.BigEndian.PutUint64(b[len(b)-8:], uint64(v))
		b[0] |= 0x80
	}
}

// text is a field as it is.
func text(f span, s string) change {
	return func(h []byte) { copy(h[f.off:f.off+f.n], s+strings.Repeat("\x00", max(0, f.n-len(s)))) }
}

// header writes a header alone.
func (r *rawTar) header(name string, typ byte, link string, size int64, cs ...change) {
	h := make([]byte, 512)
	copy(h[:100], name)
	mode := int64(0o644)
	switch typ {
	case '5':
		mode = 0o755
	case '2':
		mode = 0o777
	}
	octal(fieldMode, mode)(h)
	octal(fieldUID, 0)(h)
	octal(fieldGID, 0)(h)
	if size < 1<<33 {
		octal(fieldSize, size)(h)
	} else {
		base256(fieldSize, size)(h)
	}
	octal(fieldTime, now)(h)
	h[156] = typ
	copy(h[157:257], link)
	copy(h[257:265], "ustar\x0000")
	for _, c := range cs {
		c(h)
	}
	copy(h[148:156], "        ")
	sum := 0
	for _, c := range h {
		sum += int(c)
	}
	if r.noSum {
		sum++
		r.noSum = false
	}
	copy(h[148:156], fmt.Sprintf("%06o\x00 ", sum))
	r.Write(h)
}

func (r *rawTar) body(b string) {
	r.WriteString(b)
	r.Write(make([]byte, -len(b)&511))
}

// file is an entry with contents.
func (r *rawTar) file(name, body string, cs ...change) { r.typed(name, '0', body, cs...) }

func (r *rawTar) typed(name string, typ byte, body string, cs ...change) {
	r.header(name, typ, "", int64(len(body)), cs...)
	r.body(body)
	r.note(body)
}

// note remembers what a hash stands for.
func (r *rawTar) note(body string) {
	if r.sums != nil {
		r.sums[fmt.Sprintf("%x", sha256.Sum256([]byte(body)))] = brief(body)
	}
}

func brief(s string) string {
	if len(s) > 80 {
		return fmt.Sprintf("%d bytes", len(s))
	}
	return s
}

func (r *rawTar) dir(name string, cs ...change)            { r.header(name, '5', "", 0, cs...) }
func (r *rawTar) symlink(name, target string, c ...change) { r.header(name, '2', target, 0, c...) }
func (r *rawTar) link(name, target string, cs ...change)   { r.header(name, '1', target, 0, cs...) }
func (r *rawTar) empty(names ...string) {
	for _, n := range names {
		r.file(n, "")
	}
}

// device is a device of kind '3' (character) or '4' (block).
func (r *rawTar) device(name string, kind byte, major, minor int64) {
	r.header(name, kind, "", 0, base256(fieldMajor, major), base256(fieldMinor, minor))
}

// pax writes an extended header for the entry that follows, of KEY=VALUE each.
func (r *rawTar) pax(records ...string) {
	var b strings.Builder
	for _, rec := range records {
		b.WriteString(paxRecord(rec))
	}
	r.extended('x', b.String())
}

// extended is an entry of a type that says something of the next.
func (r *rawTar) extended(typ byte, body string) {
	r.header("extended", typ, "", int64(len(body)))
	r.body(body)
}

// paxRecord puts the length before a record; it counts itself.
func paxRecord(rec string) string {
	n := len(rec) + 2
	for n != len(rec)+2+len(strconv.Itoa(n)) {
		n = len(rec) + 2 + len(strconv.Itoa(n))
	}
	return fmt.Sprintf("%d %s\n", n, rec)
}

// end is the archive's end marker.
func (r *rawTar) end() []byte {
	r.Write(make([]byte, 1024))
	return r.Bytes()
}

// made is the archive of what a function writes.
func made(write func(r *rawTar)) []byte {
	r := &rawTar{}
	write(r)
	return r.end()
}
