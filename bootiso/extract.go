package bootiso

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Bounds of what Extract reads.
const (
	maxCmdline = 2047      // of x86 kernels, without the NUL
	maxConfig  = 64 << 10  // isolinux.cfg
	maxPart    = 512 << 20 // kernel or initrd
	maxDir     = 1 << 20
)

// Parts are what a machine boots from.
type Parts struct {
	// Kernel is a bzImage and Initrd the compressed RAM disk.
	Kernel, Initrd []byte
	// Cmdline is the kernel's command line.
	Cmdline string
}

// Extract reads the kernel, the RAM disk and the command line out of an image
// that Build wrote, or of any ISO 9660 image with an isolinux configuration at
// the same place whose default entry starts Linux with one RAM disk. Files are
// found by their ISO 9660 names, without Rock Ridge or Joliet. It reads no more memory than the parts have bytes, which are
// at most 512 MiB each. The reader stays the caller's.
func Extract(r io.ReaderAt) (*Parts, error) {
	root, err := openISO(r)
	if err != nil {
		return nil, fmt.Errorf("bootiso: %w", err)
	}
	config, err := root.file(pathConfig, maxConfig)
	if err != nil {
		return nil, fmt.Errorf("bootiso: %w", err)
	}
	kernel, initrd, cmdline, err := parseConfig(string(config))
	if err != nil {
		return nil, fmt.Errorf("bootiso: %s: %w", pathConfig, err)
	}
	p := &Parts{Cmdline: cmdline}
	if p.Kernel, err = root.file(kernel, maxPart); err != nil {
		return nil, fmt.Errorf("bootiso: %w", err)
	}
	if err := checkKernel(p.Kernel); err != nil {
		return nil, fmt.Errorf("bootiso: %s: %w", kernel, err)
	}
	if p.Initrd, err = root.file(initrd, maxPart); err != nil {
		return nil, fmt.Errorf("bootiso: %w", err)
	}
	return p, nil
}

// parseConfig reads the default entry of an isolinux configuration (Syslinux,
// doc/syslinux.txt): DEFAULT names a label, without it the first one counts.
func parseConfig(text string) (kernel, initrd, cmdline string, err error) {
	type entry struct{ kernel, initrd, cmdline string }
	var first, cur *entry
	labels := map[string]*entry{}
	want := ""
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		value = strings.TrimSpace(value)
		key = strings.ToUpper(key)
		switch {
		case key == "UI":
			return "", "", "", fmt.Errorf("UI %.80q: a menu decides what boots", value)
		case key == "DEFAULT":
			want = value
		case key == "LABEL":
			cur = new(entry)
			labels[value] = cur
			if first == nil {
				first = cur
			}
		case cur == nil: // a default for all labels, which Build has no use for
		case key == "KERNEL" || key == "LINUX":
			cur.kernel = value
		case key == "INITRD":
			cur.initrd = value
		case key == "APPEND":
			cur.cmdline = value
		}
	}
	if first == nil {
		return "", "", "", errors.New("no LABEL")
	}
	e := first
	if want != "" {
		if e = labels[want]; e == nil {
			return "", "", "", fmt.Errorf("DEFAULT %.80q is no LABEL", want)
		}
	}
	kernel, initrd, cmdline = e.kernel, e.initrd, e.cmdline
	// Syslinux takes a RAM disk's name out of APPEND, too.
	if args := strings.Fields(cmdline); strings.Contains(cmdline, "initrd=") {
		cmdline = strings.Join(slices.DeleteFunc(args, func(a string) bool {
			v, ok := strings.CutPrefix(a, "initrd=")
			if ok {
				initrd = v
			}
			return ok
		}), " ")
	}
	switch {
	case kernel == "":
		err = errors.New("no KERNEL")
	case initrd == "":
		err = errors.New("no INITRD")
	case strings.Contains(initrd, ","):
		err = fmt.Errorf("INITRD %.80q: several RAM disks", initrd)
	case len(cmdline) > maxCmdline:
		err = fmt.Errorf("APPEND: longer than %d bytes", maxCmdline)
	case strings.IndexByte(cmdline, 0) >= 0:
		err = errors.New("APPEND: holds a NUL byte")
	}
	return kernel, initrd, cmdline, err
}

// isoExtent is a file or directory of an image.
type isoExtent struct {
	r    io.ReaderAt
	at   int64 // byte offset
	size int64
	dir  bool
}

// openISO finds the root directory (ECMA-119 sections 8.1 and 8.4).
func openISO(r io.ReaderAt) (isoExtent, error) {
	b := make([]byte, sector)
	for n := int64(sectorPVD); n < sectorPVD+64; n++ {
		if _, err := r.ReadAt(b, n*sector); err != nil {
			return isoExtent{}, fmt.Errorf("not an ISO 9660 image: %w", err)
		}
		if string(b[1:6]) != "CD001" {
			return isoExtent{}, errors.New("not an ISO 9660 image")
		}
		switch b[0] {
		case 1:
			if size := binary.LittleEndian.Uint16(b[128:]); size != sector {
				return isoExtent{}, fmt.Errorf("ISO 9660: logical blocks of %d bytes", size)
			}
			e, _, err := parseRecord(r, b[156:190])
			if err == nil && !e.dir {
				err = errors.New("ISO 9660: the root is no directory")
			}
			return e, err
		case 255:
			return isoExtent{}, errors.New("ISO 9660: no primary volume descriptor")
		}
	}
	return isoExtent{}, errors.New("ISO 9660: too many volume descriptors")
}

// parseRecord reads a directory record.
func parseRecord(r io.ReaderAt, b []byte) (e isoExtent, id string, err error) {
	if len(b) < 34 || len(b) < 33+int(b[32]) {
		return e, "", errors.New("ISO 9660: a directory record is cut off")
	}
	e = isoExtent{
		r:  r,
		at: int64(binary.LittleEndian.Uint32(b[2:])) * sector, size: int64(binary.LittleEndian.Uint32(b[10:])),
		dir: b[25]&2 != 0,
	}
	if b[25]&0x80 != 0 {
		return e, "", errors.New("ISO 9660: a file in several extents")
	}
	return e, string(b[33 : 33+int(b[32])]), nil
}

// read reads all of e; memory grows with what is really there.
func (e isoExtent) read(limit int64) ([]byte, error) {
	if e.size > limit {
		return nil, fmt.Errorf("%d bytes, more than %d", e.size, limit)
	}
	var b bytes.Buffer
	n, err := io.Copy(&b, io.NewSectionReader(e.r, e.at, e.size))
	if err == nil && n < e.size {
		err = io.ErrUnexpectedEOF
	}
	return b.Bytes(), err
}

// file reads a file by its path, without regard to case.
func (e isoExtent) file(name string, limit int64) ([]byte, error) {
	for part := range strings.SplitSeq(strings.Trim(name, "/"), "/") {
		next, err := e.lookup(part)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		e = next
	}
	if e.dir {
		return nil, fmt.Errorf("%s: is a directory", name)
	}
	b, err := e.read(limit)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return b, nil
}

func (e isoExtent) lookup(name string) (isoExtent, error) {
	if !e.dir {
		return e, errors.New("not in a directory")
	}
	b, err := e.read(maxDir)
	if err != nil {
		return e, err
	}
	for len(b) > 0 {
		n := int(b[0])
		if n == 0 {
			// Records do not cross sectors; the rest of this one is empty.
			skip := len(b) % sector
			if skip == 0 {
				skip = min(sector, len(b))
			}
			b = b[skip:]
			continue
		}
		if n > len(b) {
			return e, errors.New("ISO 9660: a directory record is cut off")
		}
		next, id, err := parseRecord(e.r, b[:n])
		if err != nil {
			return e, err
		}
		id, _, _ = strings.Cut(id, ";")
		if strings.EqualFold(strings.TrimSuffix(id, "."), name) {
			return next, nil
		}
		b = b[n:]
	}
	return e, errors.New("no such file")
}
