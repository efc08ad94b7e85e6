package lab

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
)

// The forms of VMDK that vSphere runs, after VMware's Virtual Disk Format 5.0:
// a text descriptor beside flat extents or COWD ("vmfsSparse") ones.

const (
	maxDescriptor = 64 << 10
	maxExtents    = 64
	sector        = 512
	noParent      = 0xffffffff
)

type descriptor struct {
	cid, parentCID uint32
	createType     string
	parentHint     string
	extents        []extent
	uuid           string // ddb.uuid as it stands
}

type extent struct {
	sectors int64
	kind    string // VMFS, FLAT, VMFSSPARSE
	file    string // a name in the descriptor's directory
}

func (d *descriptor) bytes() int64 {
	var n int64
	for _, e := range d.extents {
		n += e.sectors * sector
	}
	return n
}

// parseDescriptor reads a descriptor and refuses what vSphere would not run and
// what names files outside the descriptor's directory.
func parseDescriptor(b []byte) (*descriptor, error) {
	if !bytes.HasPrefix(b, []byte("# Disk DescriptorFile")) {
		return nil, errors.New("not a VMDK descriptor")
	}
	d := &descriptor{parentCID: noParent}
	sc := bufio.NewScanner(bytes.NewReader(b))
	sc.Buffer(nil, maxDescriptor)
	for sc.Scan() {
		line := strings.TrimSpace(strings.TrimRight(sc.Text(), "\x00"))
		if line == "" || line[0] == '#' {
			continue
		}
		if f := strings.Fields(line); f[0] == "RW" || f[0] == "RDONLY" || f[0] == "NOACCESS" {
			e, err := parseExtent(line)
			if err != nil {
				return nil, err
			}
			if d.extents = append(d.extents, e); len(d.extents) > maxExtents {
				return nil, fmt.Errorf("more than %d extents", maxExtents)
			}
			continue
		}
		k, v, _ := strings.Cut(line, "=")
		v = strings.Trim(strings.TrimSpace(v), `"`)
		var err error
		switch strings.TrimSpace(k) {
		case "CID":
			d.cid, err = parseCID(v)
		case "parentCID":
			d.parentCID, err = parseCID(v)
		case "createType":
			d.createType = v
		case "parentFileNameHint":
			d.parentHint = v
		case "ddb.uuid":
			d.uuid = v
		}
		if err != nil {
			return nil, err
		}
	}
	if err := sc.Err(); err != nil {
		return nil, err
	}
	return d, d.check()
}

func (d *descriptor) check() error {
	want := ""
	switch d.createType {
	case "vmfs", "monolithicFlat":
		if d.parentCID != noParent {
			return fmt.Errorf("createType %q has a parent", d.createType)
		}
	case "vmfsSparse":
		want = "VMFSSPARSE"
	default:
		return fmt.Errorf("createType %q: a datastore's disks are vmfs or vmfsSparse", d.createType)
	}
	if len(d.extents) == 0 {
		return errors.New("no extent")
	}
	var n int64
	for _, e := range d.extents {
		if n += e.sectors; n > 1<<42 {
			return errors.New("more than 2 PiB")
		}
		if (e.kind == "VMFSSPARSE") != (want == "VMFSSPARSE") {
			return fmt.Errorf("extent of type %s in a disk of createType %q", e.kind, d.createType)
		}
	}
	if d.parentCID != noParent && d.parentHint == "" {
		return errors.New("parentCID without parentFileNameHint")
	}
	return nil
}

func parseCID(v string) (uint32, error) {
	n, err := strconv.ParseUint(v, 16, 32)
	if err != nil {
		return 0, fmt.Errorf("content ID %q is not a number of 32 bits", v)
	}
	return uint32(n), nil
}

// parseExtent reads a line such as: RW 2048 VMFS "disk-flat.vmdk".
func parseExtent(line string) (extent, error) {
	var e extent
	f := strings.SplitN(line, " ", 4)
	if len(f) != 4 {
		return e, fmt.Errorf("extent %q: want access, sectors, type and file", line)
	}
	n, err := strconv.ParseInt(f[1], 10, 64)
	if err != nil || n <= 0 || n > 1<<42 {
		return e, fmt.Errorf("extent of %q sectors", f[1])
	}
	switch f[2] {
	case "VMFS", "FLAT", "VMFSSPARSE":
	default:
		return e, fmt.Errorf("extent type %q: a datastore's extents are VMFS, FLAT or VMFSSPARSE", f[2])
	}
	rest := f[3]
	if len(rest) < 2 || rest[0] != '"' {
		return e, fmt.Errorf("extent %q has no quoted file name", line)
	}
	name, after, ok := strings.Cut(rest[1:], `"`)
	if after = strings.TrimSpace(after); !ok || (after != "" && after != "0") {
		return e, fmt.Errorf("extent %q: only offset 0 is known", line)
	}
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\\\x00:") {
		return e, fmt.Errorf("extent file %q is not a plain name in the descriptor's directory", name)
	}
	return extent{n, f[2], name}, nil
}

// format writes a descriptor as ESXi does.
func (d *descriptor) format() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "# Disk DescriptorFile\nversion=1\nencoding=\"UTF-8\"\nCID=%08x\nparentCID=%08x\ncreateType=\"%s\"\n", d.cid, d.parentCID, d.createType)
	if d.parentHint != "" {
		fmt.Fprintf(&b, "parentFileNameHint=\"%s\"\n", d.parentHint)
	}
	b.WriteString("\n# Extent description\n")
	for _, e := range d.extents {
		fmt.Fprintf(&b, "RW %d %s \"%s\"\n", e.sectors, e.kind, e.file)
	}
	fmt.Fprintf(&b, "\n# The Disk Data Base\n#DDB\n\nddb.adapterType = \"lsilogic\"\nddb.thinProvisioned = \"1\"\nddb.uuid = \"%s\"\nddb.virtualHWVersion = \"21\"\n", d.uuid)
	return b.Bytes()
}

// newDiskID returns a content ID and a UUID in VMware's spelling,
// "60 00 C2 9a … - … ".
func newDiskID() (cid uint32, id string) {
	var r [20]byte
	_, _ = rand.Read(r[:])
	cid = binary.LittleEndian.Uint32(r[16:])&0x7fffffff | 1
	u := r[:16]
	copy(u, []byte{0x60, 0x00, 0xC2, 0x90 | u[3]&0xf})
	h := make([]string, 16)
	for i := range u {
		h[i] = hex.EncodeToString(u[i : i+1])
	}
	return cid, strings.Join(h[:8], " ") + "-" + strings.Join(h[8:], " ")
}

// canonicalUUID turns ddb.uuid into the form that the API reports.
func canonicalUUID(ddb string) string {
	h := strings.NewReplacer(" ", "", "-", "").Replace(ddb)
	if len(h) != 32 {
		return ""
	}
	return strings.ToUpper(h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:])
}

// writeCOWD fills f with an empty COWD extent of the given capacity whose grain
// tables are all there: with absent ones QEMU's writes report success and are
// lost.
//
//	sector 0   header, 4 sectors: "COWD", version 1, flags 3, capacity,
//	           grain size (128 sectors), directory's sector (4), directory's
//	           entries, first free sector
//	sector 4   grain directory: sectors of the tables
//	then       tables of 4,096 entries (32 sectors); entry 0 means "the parent's"
func writeCOWD(f io.WriterAt, truncate func(int64) error, sectors int64) error {
	const grain, dirAt, perTable = 128, 4, 4096
	tables := (sectors + perTable*grain - 1) / (perTable * grain)
	first := dirAt + (tables*4+sector-1)/sector
	free := first + tables*(perTable*4/sector)
	if sectors > 1<<32-1 || free > 1<<32-1 {
		return errors.New("a vmfsSparse disk has at most 2 TiB")
	}
	h := make([]byte, 4*sector)
	copy(h, "COWD")
	for i, v := range []int64{1, 3, sectors, grain, dirAt, tables, free} {
		binary.LittleEndian.PutUint32(h[4+4*i:], uint32(v))
	}
	dir := make([]byte, 4*tables)
	for i := range tables {
		binary.LittleEndian.PutUint32(dir[4*i:], uint32(first+i*(perTable*4/sector)))
	}
	if _, err := f.WriteAt(h, 0); err != nil {
		return err
	}
	if _, err := f.WriteAt(dir, dirAt*sector); err != nil {
		return err
	}
	return truncate(free * sector)
}

// createBase makes a thin disk: a descriptor and a flat extent that is a hole.
func createBase(p location, bytes int64) error {
	if bytes <= 0 || bytes%sector != 0 || bytes > 62<<40 {
		return fmt.Errorf("capacity of %d bytes is not a multiple of 512 up to 62 TiB", bytes)
	}
	d := &descriptor{parentCID: noParent, createType: "vmfs"}
	d.extents = []extent{{bytes / sector, "VMFS", stem(p) + "-flat.vmdk"}}
	return createDisk(p, d, func(f *os.File) error { return f.Truncate(bytes) })
}

// createChild makes an empty child of the given parent. hint is the parent's
// path relative to the child's directory.
func createChild(p location, parent *descriptor, hint string) error {
	n := parent.bytes() / sector
	d := &descriptor{parentCID: parent.cid, createType: "vmfsSparse", parentHint: hint}
	d.extents = []extent{{n, "VMFSSPARSE", stem(p) + "-delta.vmdk"}}
	return createDisk(p, d, func(f *os.File) error { return writeCOWD(f, f.Truncate, n) })
}

// createDisk makes the extent first: a descriptor never names what is not there.
func createDisk(p location, d *descriptor, fill func(*os.File) error) error {
	d.cid, d.uuid = newDiskID()
	if p.exists() {
		return os.ErrExist
	}
	ext, err := p.parent().join(d.extents[0].file)
	if err != nil {
		return err
	}
	if err := ext.create(fill); err != nil {
		return err
	}
	err = p.create(func(f *os.File) error {
		_, err := f.Write(d.format())
		return err
	})
	if err != nil {
		_ = ext.root.Remove(ext.rel)
	}
	return err
}

// stem is the name of a disk's descriptor without ".vmdk".
func stem(p location) string {
	_, name, ok := cutLast(p.rel, '/')
	if !ok {
		name = p.rel
	}
	return strings.TrimSuffix(name, ".vmdk")
}

func cutLast(s string, sep byte) (before, after string, ok bool) {
	i := strings.LastIndexByte(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+1:], true
}
