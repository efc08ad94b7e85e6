package bootiso

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"path"
	"sort"
	"strings"

	"github.com/vicsdk/vic-go/bootiso/loader"
)

// isoFile is a file of an image, by its absolute path in lower case. Its
// directory is below the root.
type isoFile struct {
	name string
	data []byte
}

const (
	sector           = 2048
	sectorPVD        = 16
	sectorBootRecord = 17 // "El Torito" 1.0, section 2.0
)

// isoNode is a directory record on its way.
type isoNode struct {
	id    string // identifier in the image
	name  string // path
	data  []byte // of a file
	dir   bool
	at    uint32 // first sector
	size  uint32
	below []*isoNode
}

// writeISO writes an ISO 9660 image (ECMA-119, level 1) that a BIOS boots as a
// CD without emulation ("El Torito" 1.0), by the first file, whose content boot
// makes once the places of all files are known. All dates are left open, so
// that equal files make equal images.
func writeISO(w io.Writer, files []isoFile, boot func(at map[string]loader.Extent) []byte) error {
	root := &isoNode{id: "\x00", name: "/", dir: true}
	var ordered []*isoNode // files, in the order given
	for _, f := range files {
		if len(f.data) > math.MaxInt32 {
			return fmt.Errorf("%s: %d bytes are too many for ISO 9660", f.name, len(f.data))
		}
		n := &isoNode{id: isoID(path.Base(f.name)), name: f.name, data: f.data, size: uint32(len(f.data))}
		d := root.child(path.Base(path.Dir(f.name)))
		d.below = append(d.below, n)
		ordered = append(ordered, n)
	}
	dirs := append([]*isoNode{root}, root.below...)
	sort.Slice(dirs[1:], func(i, j int) bool { return dirs[1+i].id < dirs[1+j].id })
	next := uint32(sectorPVD + 3)
	tableL, tableM := next, next+1
	next += 2
	for _, d := range dirs {
		sort.Slice(d.below, func(i, j int) bool { return d.below[i].id < d.below[j].id })
		d.at, d.size = next, sector
		next++
	}
	catalog := next
	next++
	for _, f := range ordered {
		f.at = next
		next += (f.size + sector - 1) / sector
	}
	places := map[string]loader.Extent{}
	for _, f := range ordered {
		places[f.name] = loader.Extent{LBA: f.at, Size: f.size}
	}
	first := ordered[0]
	if first.data = boot(places); len(first.data) != int(first.size) {
		return fmt.Errorf("%s: %d bytes, not %d", first.name, len(first.data), first.size)
	}

	var b bytes.Buffer
	b.Write(make([]byte, sectorPVD*sector))
	table := func(order binary.AppendByteOrder) []byte { return pathTable(dirs, order) }
	for _, s := range [][]byte{
		primary(root, next, tableL, tableM, len(table(binary.LittleEndian))),
		bootRecord(catalog),
		append([]byte{255}, "CD001\x01"...),
		table(binary.LittleEndian),
		table(binary.BigEndian),
	} {
		pad(&b, s)
	}
	for _, d := range dirs {
		s, err := directory(d, root)
		if err != nil {
			return err
		}
		pad(&b, s)
	}
	pad(&b, bootCatalog(ordered[0].at))
	for _, f := range ordered {
		pad(&b, f.data)
	}
	_, err := w.Write(b.Bytes())
	return err
}

// child returns the directory of a name, made where it is missing.
func (n *isoNode) child(name string) *isoNode {
	id := strings.ToUpper(name)
	for _, c := range n.below {
		if c.id == id {
			return c
		}
	}
	c := &isoNode{id: id, name: "/" + name, dir: true}
	n.below = append(n.below, c)
	return c
}

// isoID is a file's identifier: upper case, with a dot and a version.
func isoID(name string) string {
	id := strings.ToUpper(name)
	if !strings.Contains(id, ".") {
		id += "."
	}
	return id + ";1"
}

func pad(b *bytes.Buffer, s []byte) {
	b.Write(s)
	if n := len(s) % sector; n != 0 {
		b.Write(make([]byte, sector-n))
	}
}

// both16 and both32 append a number in both byte orders (ECMA-119 sections
// 7.2.3 and 7.3.3).
func both16(b []byte, v uint16) []byte {
	return binary.BigEndian.AppendUint16(binary.LittleEndian.AppendUint16(b, v), v)
}

func both32(b []byte, v uint32) []byte {
	return binary.BigEndian.AppendUint32(binary.LittleEndian.AppendUint32(b, v), v)
}

// record appends a directory record (section 9.1).
func record(b []byte, id string, at, size uint32, dir bool) []byte {
	n := 33 + len(id)
	if n%2 != 0 {
		n++
	}
	start := len(b)
	b = append(b, byte(n), 0)
	b = both32(b, at)
	b = both32(b, size)
	b = append(b, make([]byte, 7)...) // recording date: not specified
	flags := byte(0)
	if dir {
		flags = 2
	}
	b = append(b, flags, 0, 0)
	b = both16(b, 1)
	b = append(b, byte(len(id)))
	b = append(b, id...)
	return append(b, make([]byte, n-(len(b)-start))...)
}

func directory(d, root *isoNode) ([]byte, error) {
	b := record(nil, "\x00", d.at, d.size, true)
	b = record(b, "\x01", root.at, root.size, true)
	for _, n := range d.below {
		b = record(b, n.id, n.at, n.size, n.dir)
	}
	if len(b) > sector {
		return nil, fmt.Errorf("%s: too many files for one sector", d.name)
	}
	return b, nil
}

// pathTable lists the directories (section 9.4).
func pathTable(dirs []*isoNode, order binary.AppendByteOrder) []byte {
	var b []byte
	for _, d := range dirs {
		b = append(b, byte(len(d.id)), 0)
		b = order.AppendUint32(b, d.at)
		b = order.AppendUint16(b, 1) // All parents are the root.
		b = append(b, d.id...)
		if len(d.id)%2 != 0 {
			b = append(b, 0)
		}
	}
	return b
}

// primary is the primary volume descriptor (section 8.4).
func primary(root *isoNode, sectors, tableL, tableM uint32, tableSize int) []byte {
	text := func(b []byte, s string, n int) []byte {
		return append(b, s+strings.Repeat(" ", n-len(s))...)
	}
	b := append([]byte{1}, "CD001\x01\x00"...)
	b = text(b, "LINUX", 32)
	b = text(b, "VIC", 32)
	b = append(b, make([]byte, 8)...)
	b = both32(b, sectors)
	b = append(b, make([]byte, 32)...)
	b = both16(b, 1)
	b = both16(b, 1)
	b = both16(b, sector)
	b = both32(b, uint32(tableSize))
	b = binary.LittleEndian.AppendUint32(b, tableL)
	b = append(b, 0, 0, 0, 0)
	b = binary.BigEndian.AppendUint32(b, tableM)
	b = append(b, 0, 0, 0, 0)
	b = record(b, "\x00", root.at, root.size, true)
	for _, n := range []int{128, 128, 128, 128, 37, 37, 37} {
		b = text(b, "", n)
	}
	for range 4 {
		b = append(b, "0000000000000000\x00"...) // dates: not specified
	}
	return append(b, 1)
}

const elTorito = "EL TORITO SPECIFICATION"

// bootRecord is El Torito's volume descriptor (figure 7).
func bootRecord(catalog uint32) []byte {
	b := append([]byte{0}, "CD001\x01"+elTorito...)
	b = append(b, make([]byte, 71-len(b))...)
	return binary.LittleEndian.AppendUint32(b, catalog)
}

// bootCatalog has the validation entry and the default entry (figures 2 and
// 3): an x86 image, no emulation, four 512-byte sectors to load.
func bootCatalog(image uint32) []byte {
	b := make([]byte, 28)
	b[0] = 1
	b = append(b, 0, 0, 0x55, 0xaa)
	var sum uint16
	for i := 0; i < 32; i += 2 {
		sum += binary.LittleEndian.Uint16(b[i:])
	}
	binary.LittleEndian.PutUint16(b[28:], -sum)
	b = append(b, 0x88, 0, 0, 0, 0, 0, 4, 0)
	b = binary.LittleEndian.AppendUint32(b, image)
	return append(b, make([]byte, 20)...)
}
