package ext4

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"time"
)

// span is a stretch of a file's bytes.
type span struct{ off, n int64 }

// data lists the stretches of a file that are no holes.
func (f *File) data() (out []span, err error) {
	bs := f.m.v.super.blockSize
	for off := int64(0); off < f.info.Size; {
		run, err := f.m.find(uint64(off / bs))
		if err != nil {
			return nil, err
		}
		left := f.info.Size - off
		n := left
		if run.n < uint64((left+bs-1)/bs) {
			n = int64(run.n) * bs
		}
		if !run.zero {
			if k := len(out) - 1; k >= 0 && out[k].off+out[k].n == off {
				out[k].n += n
			} else {
				out = append(out, span{off, n})
			}
		}
		off += n
	}
	return out, nil
}

// minHoles is what a file must have of holes to be written as a sparse one.
const minHoles = 1 << 20

func worthSparse(pieces []span, size int64) bool {
	for _, p := range pieces {
		size -= p.n
	}
	return size >= minHoles
}

// addSparse writes a file in format 1.0 of GNU tar's manual, "Storing Sparse Files in PAX
// Format": a list of the stretches with data, in decimal, then those. Package tar reads it but does
// not write it.
func (t *tarWriter) addSparse(h *tar.Header, f *File, pieces []span) error {
	if err := t.tw.Flush(); err != nil {
		return err
	}
	if n := len(pieces); n == 0 || pieces[n-1].off+pieces[n-1].n < h.Size {
		pieces = append(pieces, span{h.Size, 0}) // a hole at the end is told by an empty stretch
	}
	list := strconv.AppendInt(nil, int64(len(pieces)), 10)
	list = append(list, '\n')
	var total int64
	for _, p := range pieces {
		list = append(strconv.AppendInt(list, p.off, 10), '\n')
		list = append(strconv.AppendInt(list, p.n, 10), '\n')
		total += p.n
	}
	list = append(list, make([]byte, pad512(int64(len(list))))...)
	size := int64(len(list)) + total

	records := map[string]string{
		"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": h.Name, "GNU.sparse.realsize": fmt.Sprint(h.Size),
		"mtime": paxTime(h.ModTime), "uid": fmt.Sprint(h.Uid), "gid": fmt.Sprint(h.Gid), "size": fmt.Sprint(size),
	}
	maps.Copy(records, h.PAXRecords)
	var ext bytes.Buffer
	for _, k := range slices.Sorted(maps.Keys(records)) {
		ext.WriteString(paxRecord(k, records[k]))
	}
	n := int64(ext.Len())
	ext.Write(make([]byte, pad512(n)))
	head := ustarHeader("PaxHeaders.0/sparse", 'x', 0o644, n)
	head = append(head, ext.Bytes()...)
	head = append(head, ustarHeader("GNUSparseFile.0/sparse", tar.TypeReg, h.Mode, size)...)
	head = append(head, list...)
	if _, err := t.w.Write(head); err != nil {
		return err
	}
	for _, p := range pieces {
		if _, err := io.Copy(t.w, io.NewSectionReader(f, p.off, p.n)); err != nil {
			return err
		}
	}
	_, err := t.w.Write(make([]byte, pad512(total)))
	return err
}

// pad512 is what is missing to whole records of a tar.
func pad512(n int64) int64 { return -n & 511 }

// paxRecord is "LENGTH KEY=VALUE\n", where the length counts itself: pax(1), "pax Extended Header".
func paxRecord(k, v string) string {
	n := len(k) + len(v) + 3
	for {
		s := fmt.Sprintf("%d %s=%s\n", n, k, v)
		if len(s) == n {
			return s
		}
		n = len(s)
	}
}

// paxTime is seconds with a fraction, which for times before 1970 is negative too.
func paxTime(t time.Time) string {
	sec, nsec := t.Unix(), int64(t.Nanosecond())
	if nsec == 0 {
		return fmt.Sprint(sec)
	}
	sign := ""
	if sec < 0 {
		sign, sec, nsec = "-", -(sec + 1), 1e9-nsec
	}
	return fmt.Sprintf("%s%d.%09d", sign, sec, nsec)
}

// ustarHeader is a header of pax(1), "ustar Interchange Format". What its fields cannot hold is
// in the extended header before it.
func ustarHeader(name string, typ byte, mode, size int64) []byte {
	b := make([]byte, 512)
	copy(b, name)
	copy(b[100:], fmt.Sprintf("%07o", mode&0o7777))
	copy(b[108:], "0000000")
	copy(b[116:], "0000000")
	copy(b[124:], fmt.Sprintf("%011o", min(size, 1<<33-1)))
	copy(b[136:], "00000000000")
	copy(b[148:], "        ")
	b[156] = typ
	copy(b[257:], "ustar\x0000")
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
	return b
}
