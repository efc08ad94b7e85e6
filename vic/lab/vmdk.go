package lab

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/vicsdk/vic-go/internal/vmdk"
)

// What the lab takes for a disk, and how it makes one. The format itself is
// that of package vmdk.

const (
	maxDisk    = 62 << 40 // bytes, vSphere's limit
	vmfsSparse = "VMFSSPARSE"
	uuidKey    = "ddb.uuid"
	nativeKey  = "ddb.lab.native"

	deletableKey = "ddb.deletable"
)

// parseDisk reads a descriptor and refuses what vSphere would not run and what
// names files outside the descriptor's directory.
func parseDisk(b []byte) (*vmdk.Descriptor, error) {
	d, err := vmdk.ParseDescriptor(b)
	if err != nil {
		return nil, err
	}
	sparse := false
	switch d.CreateType {
	case vmdk.TypeVMFS, vmdk.TypeMonolithicFlat:
		if d.ParentCID != vmdk.NoParent {
			return nil, fmt.Errorf("createType %q has a parent", d.CreateType)
		}
	case vmdk.TypeVMFSSparse:
		sparse = true
	default:
		return nil, fmt.Errorf("createType %q: a datastore's disks are vmfs or vmfsSparse", d.CreateType)
	}
	for _, e := range d.Extents {
		switch e.Type {
		case "VMFS", "FLAT", vmfsSparse:
		default:
			return nil, fmt.Errorf("extent type %q: a datastore's extents are VMFS, FLAT or VMFSSPARSE", e.Type)
		}
		switch {
		case (e.Type == vmfsSparse) != sparse:
			return nil, fmt.Errorf("extent of type %s in a disk of createType %q", e.Type, d.CreateType)
		case e.Access != "RW": // QEMU leaves others out without a word
			return nil, fmt.Errorf("extent %q with access %s: only RW is known", e.File, e.Access)
		case e.Offset != 0:
			return nil, fmt.Errorf("extent %q at sector %d of its file: only offset 0 is known", e.File, e.Offset)
		case e.File == "." || e.File == ".." || strings.ContainsAny(e.File, "/\\:"):
			return nil, fmt.Errorf("extent file %q is not a plain name in the descriptor's directory", e.File)
		}
	}
	return d, nil
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

// uuidOf returns ddb.uuid as it stands, or "".
func uuidOf(d *vmdk.Descriptor) string { return entry(d, uuidKey) }

func entry(d *vmdk.Descriptor, key string) string {
	for _, e := range d.DDB {
		if e.Key == key {
			return e.Value
		}
	}
	return ""
}

// withIdentity returns a parentless d with another capacity, content ID and
// UUID, and the disk data base that goes with them.
func withIdentity(d *vmdk.Descriptor, extents []vmdk.Extent, cid uint32, uuid string) *vmdk.Descriptor {
	out := *d
	out.CID, out.Extents = cid, extents
	out.DDB = vmdk.FlatDescriptor(out.Bytes(), cid, "").DDB
	if uuid != "" {
		out.DDB = append(out.DDB, vmdk.Entry{Key: uuidKey, Value: uuid})
	}
	return &out
}

// canonicalUUID turns ddb.uuid into the form that the API reports.
func canonicalUUID(ddb string) string {
	h := strings.NewReplacer(" ", "", "-", "").Replace(ddb)
	if len(h) != 32 {
		return ""
	}
	return strings.ToUpper(h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:])
}

// checkCapacity looks at what a disk is to hold.
func checkCapacity(bytes int64) error {
	if bytes <= 0 || bytes%vmdk.SectorSize != 0 || bytes > maxDisk {
		return fmt.Errorf("capacity of %d bytes is not a multiple of 512 up to 62 TiB", bytes)
	}
	return nil
}

// createBase makes a thin disk: a descriptor and a flat extent that is a hole.
func createBase(p location, bytes int64) error {
	if err := checkCapacity(bytes); err != nil {
		return err
	}
	cid, id := newDiskID()
	d := vmdk.FlatDescriptor(bytes, cid, stem(p)+"-flat.vmdk")
	return createDisk(p, d, id, func(f *os.File) error { return f.Truncate(bytes) })
}

// createChild makes an empty child of the given parent. hint is the parent's
// path relative to the child's directory.
func createChild(p location, parent *vmdk.Descriptor, hint string) error {
	cid, id := newDiskID()
	d := vmdk.LayerDescriptor(parent.Bytes(), cid, parent.CID, hint, stem(p)+deltaSuffix(p)+".vmdk")
	if p.native {
		d.DDB = append(d.DDB, vmdk.Entry{Key: nativeKey, Value: "1"})
	}
	return createDisk(p, d, id, func(f *os.File) error { return vmdk.WriteChild(f, parent.Bytes()) })
}

// deltaSuffix is what the name of a child's extent has behind the disk's.
func deltaSuffix(p location) string {
	if p.native {
		return "-sesparse"
	}
	return "-delta"
}

// isNative tells whether the API has made a child disk on a datastore where
// only it may.
func isNative(d *vmdk.Descriptor) bool { return entry(d, nativeKey) != "" }

// isDeletable tells whether VirtualDiskManager may delete a disk.
func isDeletable(d *vmdk.Descriptor) bool { return entry(d, deletableKey) != "false" }

// createDisk makes the extent first: a descriptor never names what is not there.
func createDisk(p location, d *vmdk.Descriptor, uuid string, fill func(*os.File) error) error {
	d.DDB = append(d.DDB, vmdk.Entry{Key: uuidKey, Value: uuid})
	if p.exists() {
		return os.ErrExist
	}
	ext, err := p.parent().join(d.Extents[0].File)
	if err != nil {
		return err
	}
	if err := ext.create(fill); err != nil {
		return err
	}
	if err := writeDescriptor(p, d); err != nil {
		return errors.Join(err, ext.root.Remove(ext.rel))
	}
	return nil
}

// writeDescriptor makes the file p, which must not exist yet.
func writeDescriptor(p location, d *vmdk.Descriptor) error {
	b, err := d.Encode()
	if err != nil {
		return err
	}
	return p.create(func(f *os.File) error {
		_, err := f.Write(b)
		return err
	})
}

// checkExtent looks into an extent before QEMU does: QEMU goes by its magic
// number, and what should be COWD but is another format may name files of its
// own.
func checkExtent(p location, kind string) error {
	st, err := p.root.Lstat(p.rel)
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return errors.New("not a regular file")
	}
	if kind != vmfsSparse {
		return nil
	}
	f, err := p.root.Open(p.rel)
	if err != nil {
		return err
	}
	defer f.Close()
	head := make([]byte, 32)
	if _, err := io.ReadFull(f, head); err != nil {
		return fmt.Errorf("not a vmfsSparse extent: %w", err)
	}
	if k := vmdk.Kind(head); k != vmdk.TypeVMFSSparse {
		return errors.New("not a vmfsSparse extent: magic number is not COWD")
	}
	return nil
}

// stem is the name of a disk's descriptor without ".vmdk".
func stem(p location) string {
	return strings.TrimSuffix(p.rel[strings.LastIndexByte(p.rel, '/')+1:], ".vmdk")
}
