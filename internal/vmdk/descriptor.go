package vmdk

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

const (
	// SectorSize is the unit in which the format counts.
	SectorSize = 512
	// NoParent is the ParentCID of a disk that is no child.
	NoParent = 0xffffffff
	// MaxDescriptorBytes bounds the descriptors that are read and written.
	MaxDescriptorBytes = 64 << 10

	descriptorMagic = "# Disk DescriptorFile"
	maxExtents      = 64
	maxDDB          = 256
	maxSectors      = 1 << 40 // half a PiB; keeps all arithmetic in 64 bits
)

// createTypes of the format.
const (
	TypeVMFS             = "vmfs"             // flat, on a datastore
	TypeVMFSSparse       = "vmfsSparse"       // COWD child
	TypeMonolithicSparse = "monolithicSparse" // KDMV with an embedded descriptor
	TypeMonolithicFlat   = "monolithicFlat"   // flat, on a host's disk
)

// Descriptor is a disk's text descriptor.
type Descriptor struct {
	// CID identifies the disk's content: whoever writes to the disk changes it, which parts it
	// from its children.
	CID uint32
	// ParentCID is the parent's CID when the child was made, or NoParent.
	ParentCID  uint32
	CreateType string
	// ParentHint is the parent's descriptor, relative to this one's directory or absolute;
	// empty without a parent.
	ParentHint string
	Extents    []Extent
	// DDB is the disk data base (keys start with "ddb."), in the order of the file.
	DDB []Entry
}

// Extent is a line of a descriptor's extent description.
type Extent struct {
	Access  string // RW, RDONLY or NOACCESS
	Sectors uint64
	Type    string // VMFS, VMFSSPARSE, FLAT, SPARSE, ZERO, ...
	File    string // empty for ZERO
	Offset  uint64 // where it starts in the file, in sectors
}

// Entry is a key of the disk data base.
type Entry struct{ Key, Value string }

// Bytes is the disk's capacity.
func (d *Descriptor) Bytes() int64 {
	var n uint64
	for _, e := range d.Extents {
		n += e.Sectors
	}
	return int64(n) * SectorSize
}

// FlatDescriptor describes a thin flat disk without a parent. bytes must be a multiple of
// [SectorSize]; file is the extent's name beside the descriptor.
func FlatDescriptor(bytes int64, cid uint32, file string) *Descriptor {
	d := &Descriptor{CID: cid, ParentCID: NoParent, CreateType: TypeVMFS}
	d.Extents = []Extent{{Access: "RW", Sectors: uint64(bytes / SectorSize), Type: "VMFS", File: file}}
	d.DDB = append(geometry(bytes, cid), Entry{"ddb.thinProvisioned", "1"})
	return d
}

// LayerDescriptor describes a vmfsSparse child of the disk whose descriptor parentHint
// names and whose CID is parentCID.
func LayerDescriptor(bytes int64, cid, parentCID uint32, parentHint, file string) *Descriptor {
	d := &Descriptor{CID: cid, ParentCID: parentCID, CreateType: TypeVMFSSparse, ParentHint: parentHint}
	d.Extents = []Extent{{Access: "RW", Sectors: uint64(bytes / SectorSize), Type: "VMFSSPARSE", File: file}}
	d.DDB = geometry(bytes, cid)
	return d
}

// geometry is what ESXi writes for a disk on an LSI or paravirtual adapter of virtual
// hardware. The long content ID must end with the CID.
func geometry(bytes int64, cid uint32) []Entry {
	return []Entry{
		{"ddb.adapterType", "lsilogic"},
		{"ddb.geometry.cylinders", strconv.FormatInt(min(bytes/SectorSize/(255*63), 1<<31-1), 10)},
		{"ddb.geometry.heads", "255"},
		{"ddb.geometry.sectors", "63"},
		{"ddb.longContentID", fmt.Sprintf("%08x%08x%08x%08x", cid, ^cid, cid, cid)},
		{"ddb.virtualHWVersion", "4"},
	}
}

// check refuses values that could not be written so that they are read back the same.
func (d *Descriptor) check() error {
	quoted := func(field, v string) error {
		if strings.ContainsAny(v, "\"\r\n\x00") || !utf8.ValidString(v) || v != strings.TrimSpace(v) {
			return fmt.Errorf("vmdk: descriptor: %s %q contains a quote, a line break, a NUL, bytes that are not UTF-8, or blanks around it", field, v)
		}
		return nil
	}
	if d.CreateType == "" {
		return errors.New("vmdk: descriptor: createType is missing")
	}
	if err := quoted("createType", d.CreateType); err != nil {
		return err
	}
	if err := quoted("parentFileNameHint", d.ParentHint); err != nil {
		return err
	}
	if d.ParentCID != NoParent && d.ParentHint == "" {
		return fmt.Errorf("vmdk: descriptor: parentCID is %08x but parentFileNameHint is missing", d.ParentCID)
	}
	if d.ParentCID == NoParent && d.ParentHint != "" {
		return errors.New("vmdk: descriptor: parentFileNameHint without parentCID")
	}
	if len(d.Extents) == 0 {
		return errors.New("vmdk: descriptor: no extent")
	}
	if len(d.Extents) > maxExtents {
		return fmt.Errorf("vmdk: descriptor: %d extents: the limit is %d", len(d.Extents), maxExtents)
	}
	var total uint64
	for _, e := range d.Extents {
		switch e.Access {
		case "RW", "RDONLY", "NOACCESS":
		default:
			return fmt.Errorf("vmdk: descriptor: extent access %q is not RW, RDONLY or NOACCESS", e.Access)
		}
		if e.Type == "" || strings.ContainsFunc(e.Type, func(r rune) bool { return r < 'A' || r > 'Z' }) {
			return fmt.Errorf("vmdk: descriptor: extent type %q", e.Type)
		}
		if e.File == "" && e.Type != "ZERO" {
			return fmt.Errorf("vmdk: descriptor: extent of type %s names no file", e.Type)
		}
		if err := quoted("extent file", e.File); err != nil {
			return err
		}
		if total += e.Sectors; e.Sectors == 0 || e.Sectors > maxSectors || total > maxSectors || e.Offset > maxSectors {
			return fmt.Errorf("vmdk: descriptor: extent of %d sectors at %d: more than 0 and at most %d in all", e.Sectors, e.Offset, uint64(maxSectors))
		}
	}
	if len(d.DDB) > maxDDB {
		return fmt.Errorf("vmdk: descriptor: %d ddb entries: the limit is %d", len(d.DDB), maxDDB)
	}
	for _, e := range d.DDB {
		if !strings.HasPrefix(e.Key, "ddb.") || strings.ContainsAny(e.Key, "= \t\"\r\n\x00") || !utf8.ValidString(e.Key) {
			return fmt.Errorf("vmdk: descriptor: ddb key %q", e.Key)
		}
		if err := quoted(e.Key, e.Value); err != nil {
			return err
		}
	}
	return nil
}

// Encode writes the descriptor as a text file. The same values give the same bytes.
func (d *Descriptor) Encode() ([]byte, error) {
	if err := d.check(); err != nil {
		return nil, err
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s\nversion=1\nencoding=\"UTF-8\"\nCID=%08x\nparentCID=%08x\nisNativeSnapshot=\"no\"\ncreateType=\"%s\"\n",
		descriptorMagic, d.CID, d.ParentCID, d.CreateType)
	if d.ParentHint != "" {
		fmt.Fprintf(&b, "parentFileNameHint=\"%s\"\n", d.ParentHint)
	}
	b.WriteString("\n# Extent description\n")
	for _, e := range d.Extents {
		fmt.Fprintf(&b, "%s %d %s", e.Access, e.Sectors, e.Type)
		if e.File != "" {
			fmt.Fprintf(&b, " \"%s\"", e.File)
			if e.Offset > 0 || e.Type == "FLAT" {
				fmt.Fprintf(&b, " %d", e.Offset)
			}
		}
		b.WriteByte('\n')
	}
	b.WriteString("\n# The Disk Data Base\n#DDB\n\n")
	for _, e := range d.DDB {
		fmt.Fprintf(&b, "%s = \"%s\"\n", e.Key, e.Value)
	}
	if b.Len() > MaxDescriptorBytes {
		return nil, fmt.Errorf("vmdk: descriptor: %d bytes: the limit is %d", b.Len(), MaxDescriptorBytes)
	}
	return b.Bytes(), nil
}

// IsDescriptor reports whether a file that begins with head is a text descriptor.
func IsDescriptor(head []byte) bool {
	return len(head) >= len(descriptorMagic) && strings.EqualFold(string(head[:len(descriptorMagic)]), descriptorMagic)
}

// ParseDescriptor reads a text descriptor. Bytes after a NUL are ignored, as embedded descriptors are
// padded; keys it does not know are too. An error names the line.
func ParseDescriptor(p []byte) (*Descriptor, error) {
	if len(p) > MaxDescriptorBytes {
		return nil, fmt.Errorf("vmdk: descriptor: %d bytes: the limit is %d", len(p), MaxDescriptorBytes)
	}
	if !IsDescriptor(p) {
		return nil, fmt.Errorf("vmdk: descriptor: does not start with %q", descriptorMagic)
	}
	if i := bytes.IndexByte(p, 0); i >= 0 {
		p = p[:i]
	}
	d := &Descriptor{ParentCID: NoParent}
	seen := map[string]bool{}
	for i, line := range strings.Split(string(p), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		if err := d.line(line, seen); err != nil {
			return nil, fmt.Errorf("vmdk: descriptor: line %d: %w", i+1, err)
		}
	}
	if !seen["CID"] {
		return nil, errors.New("vmdk: descriptor: CID is missing")
	}
	if err := d.check(); err != nil {
		return nil, err
	}
	return d, nil
}

func (d *Descriptor) line(line string, seen map[string]bool) error {
	// Any blank ends the access, as it does for other readers: a line that is an extent for
	// one must not be a key for another.
	switch strings.Fields(line)[0] {
	case "RW", "RDONLY", "NOACCESS":
		if len(d.Extents) == maxExtents {
			return fmt.Errorf("more than %d extents", maxExtents)
		}
		e, err := parseExtent(line)
		d.Extents = append(d.Extents, e)
		return err
	}
	key, value, ok := strings.Cut(line, "=")
	if !ok {
		return fmt.Errorf("%.60q is neither an extent nor key=value", line)
	}
	key, value = strings.TrimSpace(key), strings.TrimSpace(value)
	if len(value) >= 2 && value[0] == '"' && value[len(value)-1] == '"' {
		value = strings.TrimSpace(value[1 : len(value)-1])
	}
	if strings.HasPrefix(key, "ddb.") {
		if len(d.DDB) == maxDDB {
			return fmt.Errorf("more than %d ddb entries", maxDDB)
		}
		d.DDB = append(d.DDB, Entry{key, value})
		return nil
	}
	if key != "CID" && key != "parentCID" && key != "createType" && key != "parentFileNameHint" && key != "version" {
		return nil
	}
	if seen[key] {
		return fmt.Errorf("%s is given twice", key)
	}
	seen[key] = true
	switch key {
	case "version":
		if v, err := strconv.Atoi(value); err != nil || v < 1 || v > 4 {
			return fmt.Errorf("version %.20q: 1 to 4 are known", value)
		}
	case "CID":
		return parseCID(value, &d.CID)
	case "parentCID":
		return parseCID(value, &d.ParentCID)
	case "createType":
		d.CreateType = value
	case "parentFileNameHint":
		d.ParentHint = value
	}
	return nil
}

func parseCID(v string, to *uint32) error {
	n, err := strconv.ParseUint(v, 16, 32)
	if err != nil {
		return fmt.Errorf("%.20q is not a CID of up to 8 hexadecimal digits", v)
	}
	*to = uint32(n)
	return nil
}

// parseExtent reads: ACCESS SECTORS TYPE "FILE" [OFFSET].
func parseExtent(line string) (e Extent, err error) {
	head, rest, quoted := strings.Cut(line, "\"")
	f := strings.Fields(head)
	if len(f) != 3 {
		return e, fmt.Errorf("extent %.80q is not: access, sectors, type, \"file\"", line)
	}
	e.Access, e.Type = f[0], f[2]
	if e.Sectors, err = strconv.ParseUint(f[1], 10, 64); err != nil {
		return e, fmt.Errorf("extent size %.20q is not a number of sectors", f[1])
	}
	if !quoted {
		return e, nil
	}
	name, tail, closed := strings.Cut(rest, "\"")
	if !closed {
		return e, errors.New("extent file name is not closed by a quote")
	}
	e.File = name
	// Beyond the offset, VMFS raw mappings add fields of their own.
	if t := strings.Fields(tail); len(t) > 0 {
		if e.Offset, err = strconv.ParseUint(t[0], 10, 64); err != nil {
			return e, fmt.Errorf("extent offset %.20q is not a number of sectors", t[0])
		}
	}
	return e, nil
}
