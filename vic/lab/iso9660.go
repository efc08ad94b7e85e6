package lab

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// A minimal reader of ISO 9660 (ECMA-119) with Rock Ridge names (RRIP 1.12,
// 4.1.4), enough to take named files out of a boot CD.

const isoSector = 2048

type isoFile struct {
	at, size int64
	dir      bool
}

type iso struct {
	r    io.ReaderAt
	size int64
	root isoFile
}

func openISO(r io.ReaderAt, size int64) (*iso, error) {
	b := make([]byte, isoSector)
	for s := int64(16); s < 32; s++ {
		if _, err := r.ReadAt(b, s*isoSector); err != nil {
			return nil, fmt.Errorf("not an ISO 9660 image: %w", err)
		}
		if string(b[1:6]) != "CD001" {
			break
		}
		if b[0] != 1 { // not the primary volume descriptor
			continue
		}
		c := &iso{r: r, size: size}
		f, err := c.record(b[156:190])
		if err != nil || !f.dir {
			return nil, errors.New("ISO 9660: no root directory")
		}
		c.root = f
		return c, nil
	}
	return nil, errors.New("not an ISO 9660 image")
}

// record reads a directory record's place (ECMA-119, 9.1).
func (c *iso) record(b []byte) (isoFile, error) {
	f := isoFile{
		at:   int64(binary.LittleEndian.Uint32(b[2:])) * isoSector,
		size: int64(binary.LittleEndian.Uint32(b[10:])),
		dir:  b[25]&2 != 0,
	}
	if b[25]&0x80 != 0 {
		return f, errors.New("ISO 9660: a file of several extents")
	}
	if f.at+f.size > c.size {
		return f, errors.New("ISO 9660: a file beyond the image's end")
	}
	return f, nil
}

// open finds a file by its path, without regard to case.
func (c *iso) open(path string) (*io.SectionReader, error) {
	f := c.root
	for _, name := range strings.Split(strings.Trim(path, "/"), "/") {
		next, err := c.lookup(f, name)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		f = next
	}
	if f.dir {
		return nil, fmt.Errorf("%s is a directory", path)
	}
	return io.NewSectionReader(c.r, f.at, f.size), nil
}

func (c *iso) lookup(dir isoFile, name string) (isoFile, error) {
	if !dir.dir {
		return isoFile{}, errors.New("goes through a file")
	}
	if dir.size > 4<<20 {
		return isoFile{}, errors.New("ISO 9660: a directory above 4 MiB")
	}
	b := make([]byte, dir.size)
	if _, err := c.r.ReadAt(b, dir.at); err != nil {
		return isoFile{}, err
	}
	for off := 0; off < len(b); {
		n := int(b[off])
		if n == 0 { // records do not cross sectors
			off = (off/isoSector + 1) * isoSector
			continue
		}
		if n < 34 || off+n > len(b) {
			return isoFile{}, errors.New("ISO 9660: a broken directory")
		}
		rec := b[off : off+n]
		off += n
		nl := int(rec[32])
		if 33+nl > n {
			return isoFile{}, errors.New("ISO 9660: a broken directory")
		}
		plain, _, _ := strings.Cut(string(rec[33:33+nl]), ";")
		if strings.EqualFold(strings.TrimSuffix(plain, "."), name) || strings.EqualFold(rockRidge(rec[min(33+nl+(nl+1)&1, n):]), name) {
			return c.record(rec)
		}
	}
	return isoFile{}, errors.New("no such file in the image")
}

// rockRidge returns the name in a record's system use area, if there is one.
func rockRidge(b []byte) string {
	var name bytes.Buffer
	for len(b) >= 5 && int(b[2]) >= 4 && int(b[2]) <= len(b) {
		e := b[:b[2]]
		if string(e[:2]) == "NM" && len(e) >= 5 {
			name.Write(e[5:])
		}
		b = b[len(e):]
	}
	return name.String()
}
