package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/vmware/govmomi/vim25/types"

	"github.com/vicsdk/vic-go/internal/vmdk"
)

// maxChain bounds a disk's chain of parents. vSphere's own limit is half of it.
const maxChain = 64

// A link is one disk of a chain.
type link struct {
	at   location
	desc *vmdk.Descriptor
}

// files returns the link's descriptor and extents.
func (k link) files() []location {
	out := []location{k.at}
	for _, e := range k.desc.Extents {
		out = append(out, location{k.at.store, path.Join(path.Dir(k.at.rel), e.File)})
	}
	return out
}

// openLink reads the descriptor at p and sees that its extents are there.
func openLink(p location) (link, types.BaseMethodFault) {
	b, err := p.read(vmdk.MaxDescriptorBytes)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return link{}, fileNotFound(p.String())
		}
		return link{}, badDisk(p, err)
	}
	d, err := parseDisk(b)
	if err != nil {
		return link{}, badDisk(p, err)
	}
	if p.native && d.CreateType == vmdk.TypeVMFSSparse && !isNative(d) {
		return link{}, badDisk(p, errors.New("a vmfsSparse disk that the API has not made: this datastore has another format"))
	}
	k := link{p, d}
	for i, f := range k.files()[1:] {
		if !f.exists() {
			return link{}, fileNotFound(f.String())
		}
		if err := checkExtent(f, d.Extents[i].Type); err != nil {
			return link{}, badDisk(f, err)
		}
	}
	return k, nil
}

func badDisk(p location, err error) types.BaseMethodFault {
	return say(&types.InvalidDiskFormat{}, "%s cannot be used as a disk: %v", p, err)
}

// openChain reads a disk and its parents, the disk first.
func (l *Lab) openChain(p location) ([]link, types.BaseMethodFault) {
	var chain []link
	seen := map[string]bool{}
	for {
		if seen[p.String()] {
			return nil, badDisk(p, errors.New("it is its own ancestor"))
		}
		seen[p.String()] = true
		k, fault := openLink(p)
		if fault != nil {
			return nil, fault
		}
		if n := len(chain); n != 0 {
			child := chain[n-1]
			if child.desc.ParentCID != k.desc.CID {
				return nil, badDisk(child.at, fmt.Errorf("its parent %s was changed: content ID %08x, not %08x", p, k.desc.CID, child.desc.ParentCID))
			}
			if child.desc.Bytes() != k.desc.Bytes() {
				return nil, badDisk(child.at, fmt.Errorf("its parent %s has another capacity", p))
			}
		}
		chain = append(chain, k)
		if k.desc.ParentCID == vmdk.NoParent {
			return chain, nil
		}
		if len(chain) == maxChain {
			return nil, badDisk(p, fmt.Errorf("more than %d disks in a chain", maxChain))
		}
		if p, fault = l.parentOf(k); fault != nil {
			return nil, fault
		}
	}
}

// parentOf follows parentFileNameHint: relative to the child's directory, or
// absolute as ESXi spells it, /vmfs/volumes/DATASTORE/path.
func (l *Lab) parentOf(k link) (location, types.BaseMethodFault) {
	hint := k.desc.ParentHint
	if rest, ok := strings.CutPrefix(hint, "/vmfs/volumes/"); ok {
		ds, rel, _ := strings.Cut(rest, "/")
		s := l.stores[ds]
		if s == nil {
			return location{}, badDisk(k.at, fmt.Errorf("its parent is on datastore %q, which does not exist", ds))
		}
		c, err := cleanPath(rel)
		if err != nil {
			return location{}, badDisk(k.at, err)
		}
		return location{s, c}, nil
	}
	if path.IsAbs(hint) {
		return location{}, badDisk(k.at, fmt.Errorf("parentFileNameHint %q leaves the datastores", hint))
	}
	p, err := k.at.parent().join(hint)
	if err != nil {
		return location{}, badDisk(k.at, fmt.Errorf("parentFileNameHint %q leaves the datastore", hint))
	}
	return p, nil
}

// hintTo spells the way from a child to its parent: as ESXi does, by its whole
// path, where that is on another datastore, or where the child is of a native
// one and the parent in another directory.
func hintTo(child, parent location) string {
	if child.store != parent.store || child.native && path.Dir(child.rel) != path.Dir(parent.rel) {
		return "/vmfs/volumes/" + parent.name + "/" + parent.rel
	}
	from, to := strings.Split(path.Dir(child.rel), "/"), strings.Split(parent.rel, "/")
	if from[0] == "." {
		from = nil
	}
	for len(from) > 0 && len(to) > 1 && from[0] == to[0] {
		from, to = from[1:], to[1:]
	}
	return strings.Repeat("../", len(from)) + strings.Join(to, "/")
}

// makeDisk makes a disk at p: a child of the disk at parent, or a base of the
// given capacity where parent is empty.
func (l *Lab) makeDisk(p location, parent string, bytes int64) types.BaseMethodFault {
	if !strings.HasSuffix(p.rel, ".vmdk") {
		return invalidArgument("fileName", "%s does not end in .vmdk", p)
	}
	if parent == "" {
		if err := createBase(p, bytes); err != nil {
			return diskFault(p, err)
		}
		return nil
	}
	pp, fault := l.resolve(parent)
	if fault != nil {
		return fault
	}
	chain, fault := l.openChain(pp)
	if fault != nil {
		return fault
	}
	if len(chain) == maxChain {
		return badDisk(pp, fmt.Errorf("a chain of %d disks takes no further child", maxChain))
	}
	// A disk that is being written has no content ID that a child could name.
	if by := l.locks.writer(pp); by != "" {
		return fileLocked(pp.String(), by)
	}
	if err := createChild(p, chain[0].desc, hintTo(p, pp)); err != nil {
		return diskFault(p, err)
	}
	if p.native {
		return keepParent(chain[0])
	}
	return nil
}

// keepParent marks a disk that has children, as ESXi does: VirtualDiskManager
// does not delete it then, not even when they are gone.
func keepParent(k link) types.BaseMethodFault {
	if !isDeletable(k.desc) {
		return nil
	}
	d := *k.desc
	d.DDB = append(slices.Clone(d.DDB), vmdk.Entry{Key: deletableKey, Value: "false"})
	return replaceDescriptor(k.at, &d)
}

func diskFault(p location, err error) types.BaseMethodFault {
	var pe *fs.PathError
	if errors.As(err, &pe) || errors.Is(err, fs.ErrExist) || errors.Is(err, fs.ErrNotExist) {
		return fileFault(p.String(), err)
	}
	return say(&types.CannotCreateFile{FileFault: types.FileFault{File: p.String()}}, "cannot make the disk %s: %v", p, err)
}

// deleteDisk removes a disk's descriptor and extents, not its parents. The
// descriptor goes first: what is left of an interrupted deletion is no disk.
func (l *Lab) deleteDisk(p location) types.BaseMethodFault {
	k, fault := openLink(p)
	if fault != nil {
		// A disk whose extent is gone, or that no one can read, can still be
		// cleaned away by its name.
		if !p.exists() {
			return fault
		}
		k = link{p, &vmdk.Descriptor{}}
		for _, s := range []string{"-flat.vmdk", "-delta.vmdk", "-sesparse.vmdk"} {
			f := location{p.store, path.Join(path.Dir(p.rel), stem(p)+s)}
			if f.exists() {
				k.desc.Extents = append(k.desc.Extents, vmdk.Extent{File: path.Base(f.rel)})
			}
		}
	}
	for _, f := range k.files() {
		if by := l.locks.holder(f); by != "" {
			return fileLocked(f.String(), by)
		}
	}
	for _, f := range k.files() {
		if err := f.root.Remove(f.rel); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fileFault(f.String(), err)
		}
	}
	return nil
}

// backing describes a chain as the API does: each disk with its Parent.
func backing(chain []link, ds map[string]*store) *types.VirtualDiskFlatVer2BackingInfo {
	var out *types.VirtualDiskFlatVer2BackingInfo
	for i := len(chain) - 1; i >= 0; i-- {
		k := chain[i]
		ref := k.at.ref
		out = &types.VirtualDiskFlatVer2BackingInfo{
			VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{FileName: k.at.String(), Datastore: &ref},
			DiskMode:                     string(types.VirtualDiskModePersistent),
			ThinProvisioned:              types.NewBool(true),
			Uuid:                         canonicalUUID(uuidOf(k.desc)),
			ContentId:                    fmt.Sprintf("%08x", k.desc.CID),
			Parent:                       out,
		}
		if k.at.native && out.Parent != nil {
			out.DeltaDiskFormat = string(types.VirtualDiskDeltaDiskFormatSeSparseFormat)
		}
	}
	return out
}
