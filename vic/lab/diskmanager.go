package lab

import (
	"context"
	"os"
	"path"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vicsdk/vic-go/internal/vmdk"
)

// diskHandler answers the methods of VirtualDiskManager.
type diskHandler struct{ base }

func (h *diskHandler) CreateVirtualDiskTask(ctx *simulator.Context, req *types.CreateVirtualDisk_Task) soap.HasFault {
	body := new(methods.CreateVirtualDisk_TaskBody)
	ref, fault := h.lab.tasks.start(ctx, taskSpec{entity: req.This, kind: "createVirtualDisk"}, func(context.Context, *task) (types.AnyType, types.BaseMethodFault) {
		s, ok := req.Spec.(*types.FileBackedVirtualDiskSpec)
		if !ok {
			return nil, notSupported("disks other than file-backed ones (spec %T)", req.Spec)
		}
		if s.Crypto != nil {
			return nil, notSupported("encrypted disks")
		}
		p, fault := h.lab.resolve(req.Name)
		if fault != nil {
			return nil, fault
		}
		if s.DiskType != "" && s.DiskType != string(types.VirtualDiskTypeThin) {
			return nil, notSupported("disks of type %q: disks are thin", s.DiskType)
		}
		h.lab.files.Lock()
		defer h.lab.files.Unlock()
		return req.Name, h.lab.makeDisk(p, "", s.CapacityKb*1024)
	})
	if fault != nil {
		body.Fault_ = soapFault(fault)
		return body
	}
	body.Res = &types.CreateVirtualDisk_TaskResponse{Returnval: ref}
	return body
}

func (h *diskHandler) DeleteVirtualDiskTask(ctx *simulator.Context, req *types.DeleteVirtualDisk_Task) soap.HasFault {
	body := new(methods.DeleteVirtualDisk_TaskBody)
	ref, fault := h.lab.tasks.start(ctx, taskSpec{entity: req.This, kind: "deleteVirtualDisk"}, func(context.Context, *task) (types.AnyType, types.BaseMethodFault) {
		p, fault := h.lab.resolve(req.Name)
		if fault != nil {
			return nil, fault
		}
		h.lab.files.Lock()
		defer h.lab.files.Unlock()
		if k, fault := openLink(p); fault == nil && !isDeletable(k.desc) {
			return nil, say(&types.CannotDeleteFile{FileFault: types.FileFault{File: req.Name}}, "%s has had children: its descriptor says that it is not to be deleted", p)
		}
		return nil, h.lab.deleteDisk(p)
	})
	if fault != nil {
		body.Fault_ = soapFault(fault)
		return body
	}
	body.Res = &types.DeleteVirtualDisk_TaskResponse{Returnval: ref}
	return body
}

func (h *diskHandler) MoveVirtualDiskTask(ctx *simulator.Context, req *types.MoveVirtualDisk_Task) soap.HasFault {
	body := new(methods.MoveVirtualDisk_TaskBody)
	ref, fault := h.lab.tasks.start(ctx, taskSpec{entity: req.This, kind: "moveVirtualDisk"}, func(wctx context.Context, t *task) (types.AnyType, types.BaseMethodFault) {
		if fault := h.lab.copyDisk(wctx, req.SourceName, req.DestName, isTrue(req.Force), true, t.progress); fault != nil {
			return nil, fault
		}
		return req.DestName, nil
	})
	if fault != nil {
		body.Fault_ = soapFault(fault)
		return body
	}
	body.Res = &types.MoveVirtualDisk_TaskResponse{Returnval: ref}
	return body
}

func (h *diskHandler) CopyVirtualDiskTask(ctx *simulator.Context, req *types.CopyVirtualDisk_Task) soap.HasFault {
	body := new(methods.CopyVirtualDisk_TaskBody)
	ref, fault := h.lab.tasks.start(ctx, taskSpec{entity: req.This, kind: "copyVirtualDisk", cancelable: true}, func(wctx context.Context, t *task) (types.AnyType, types.BaseMethodFault) {
		if req.DestSpec != nil {
			s := req.DestSpec.GetVirtualDiskSpec()
			if s.DiskType != "" && s.DiskType != string(types.VirtualDiskTypeThin) {
				return nil, notSupported("copies to disks of type %q: disks are thin", s.DiskType)
			}
		}
		if fault := h.lab.copyDisk(wctx, req.SourceName, req.DestName, isTrue(req.Force), false, t.progress); fault != nil {
			return nil, fault
		}
		return req.DestName, nil
	})
	if fault != nil {
		body.Fault_ = soapFault(fault)
		return body
	}
	body.Res = &types.CopyVirtualDisk_TaskResponse{Returnval: ref}
	return body
}

// copyDisk copies or moves a disk without parents, or moves a child disk within
// its datastore: its extents, and a descriptor that names them anew.
func (l *Lab) copyDisk(ctx context.Context, from, to string, force, move bool, progress func(int32)) types.BaseMethodFault {
	src, dst, fault := l.ends(from, to)
	if fault != nil {
		return fault
	}
	l.files.Lock()
	defer l.files.Unlock()
	chain, fault := l.openChain(src)
	if fault != nil {
		return fault
	}
	if !move && len(chain) > 1 {
		return notSupported("copying %s, which has a parent: its chain would have to be merged", src)
	}
	k := chain[0]
	for _, f := range k.files() {
		if by := l.locks.holder(f); by != "" {
			return fileLocked(f.String(), by)
		}
	}
	if dst.exists() {
		if !force {
			return fileExists(to)
		}
		if fault := l.deleteDisk(dst); fault != nil {
			return fault
		}
	}
	var extents []vmdk.Extent
	var made []location
	undo := func() {
		for _, f := range made {
			_ = f.root.Remove(f.rel)
		}
	}
	for i, f := range k.files()[1:] {
		e := k.desc.Extents[i]
		e.File = extentName(dst, e.Type, i, len(k.desc.Extents))
		out := location{dst.store, path.Join(path.Dir(dst.rel), e.File)}
		if err := copyTree(ctx, f, out, progress); err != nil {
			undo()
			if ctx.Err() != nil {
				return canceled()
			}
			return fileFault(to, err)
		}
		made = append(made, out)
		extents = append(extents, e)
	}
	d := *k.desc
	d.Extents = extents
	if len(chain) > 1 {
		d.ParentHint = hintTo(dst, chain[1].at)
	}
	if !move {
		cid, id := newDiskID()
		d = *withIdentity(&d, extents, cid, id)
	}
	if err := writeDescriptor(dst, &d); err != nil {
		undo()
		return fileFault(to, err)
	}
	if move {
		return l.deleteDisk(src)
	}
	return nil
}

func extentName(p location, kind string, i, n int) string {
	suffix := "-flat"
	if kind == vmfsSparse {
		suffix = deltaSuffix(p)
	}
	if n > 1 {
		suffix += "-" + string(rune('a'+i%26))
		if i >= 26 {
			suffix += string(rune('a' + i/26))
		}
	}
	return stem(p) + suffix + ".vmdk"
}

func (h *diskHandler) ExtendVirtualDiskTask(ctx *simulator.Context, req *types.ExtendVirtualDisk_Task) soap.HasFault {
	body := new(methods.ExtendVirtualDisk_TaskBody)
	ref, fault := h.lab.tasks.start(ctx, taskSpec{entity: req.This, kind: "extendVirtualDisk"}, func(context.Context, *task) (types.AnyType, types.BaseMethodFault) {
		p, fault := h.lab.resolve(req.Name)
		if fault != nil {
			return nil, fault
		}
		h.lab.files.Lock()
		defer h.lab.files.Unlock()
		return nil, h.lab.extendDisk(p, req.NewCapacityKb*1024, "")
	})
	if fault != nil {
		body.Fault_ = soapFault(fault)
		return body
	}
	body.Res = &types.ExtendVirtualDisk_TaskResponse{Returnval: ref}
	return body
}

// extendable reads a disk that is to grow to a number of bytes, which only thin
// disks without parents do.
func (l *Lab) extendable(p location, bytes int64) (link, types.BaseMethodFault) {
	chain, fault := l.openChain(p)
	if fault != nil {
		return link{}, fault
	}
	k := chain[0]
	switch {
	case len(chain) > 1 || len(k.desc.Extents) != 1:
		return k, notSupported("extending %s: it is a child disk or has several extents", p)
	case bytes < k.desc.Bytes():
		return k, invalidArgument("newCapacityKb", "%d bytes are less than the disk's %d: disks do not shrink", bytes, k.desc.Bytes())
	}
	if err := checkCapacity(bytes); err != nil {
		return k, invalidArgument("newCapacityKb", "%v", err)
	}
	return k, nil
}

// extendDisk makes a disk larger: its extent, and then the descriptor, so that a lab
// that is killed between has a disk of the old size that can be extended again. Only
// the VM of the reference may be using it. l.files is held.
func (l *Lab) extendDisk(p location, bytes int64, vm string) types.BaseMethodFault {
	k, fault := l.extendable(p, bytes)
	if fault != nil {
		return fault
	}
	flat := k.files()[1]
	if by := l.locks.other(flat, vm); by != "" {
		return fileLocked(p.String(), by)
	}
	f, err := flat.root.OpenFile(flat.rel, os.O_RDWR, 0)
	if err == nil {
		err = f.Truncate(bytes)
		if cerr := f.Close(); err == nil {
			err = cerr
		}
	}
	if err != nil {
		return fileFault(p.String(), err)
	}
	e := k.desc.Extents[0]
	e.Sectors = uint64(bytes / vmdk.SectorSize)
	d := withIdentity(k.desc, []vmdk.Extent{e}, k.desc.CID, uuidOf(k.desc))
	return replaceDescriptor(p, d)
}

func (h *diskHandler) QueryVirtualDiskUuid(_ *simulator.Context, req *types.QueryVirtualDiskUuid) soap.HasFault {
	body := new(methods.QueryVirtualDiskUuidBody)
	p, fault := h.lab.resolve(req.Name)
	if fault == nil {
		var k link
		if k, fault = openLink(p); fault == nil {
			body.Res = &types.QueryVirtualDiskUuidResponse{Returnval: uuidOf(k.desc)}
			return body
		}
	}
	body.Fault_ = soapFault(fault)
	return body
}
