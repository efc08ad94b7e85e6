package lab

import (
	"context"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// snapshotHandler answers the methods of VirtualMachineSnapshot.
type snapshotHandler struct{ base }

// snapshotTask starts a task of a VM that has to do with its snapshots.
func (l *Lab) snapshotTask(ctx *simulator.Context, ref types.ManagedObjectReference, kind string, f func(context.Context, *task, *machine, *simulator.VirtualMachine) (types.AnyType, types.BaseMethodFault)) (types.ManagedObjectReference, types.BaseMethodFault) {
	m, vm, fault := l.machine(ref)
	if fault != nil {
		return types.ManagedObjectReference{}, fault
	}
	return l.tasks.start(ctx, taskSpec{entity: ref, kind: kind, vm: m}, func(wctx context.Context, t *task) (types.AnyType, types.BaseMethodFault) {
		res, fault := f(wctx, t, m, vm)
		l.layOut(vm)
		return res, fault
	})
}

func (h *vmHandler) CreateSnapshotTask(ctx *simulator.Context, req *types.CreateSnapshot_Task) soap.HasFault {
	body := new(methods.CreateSnapshot_TaskBody)
	ref, fault := h.lab.snapshotTask(ctx, req.This, "createSnapshot", func(wctx context.Context, _ *task, m *machine, vm *simulator.VirtualMachine) (types.AnyType, types.BaseMethodFault) {
		return h.lab.createSnapshot(wctx, m, vm, req.Name, req.Description, req.Memory, req.Quiesce)
	})
	if fault != nil {
		body.Fault_ = soapFault(fault)
		return body
	}
	body.Res = &types.CreateSnapshot_TaskResponse{Returnval: ref}
	return body
}

func (h *vmHandler) RevertToCurrentSnapshotTask(ctx *simulator.Context, req *types.RevertToCurrentSnapshot_Task) soap.HasFault {
	body := new(methods.RevertToCurrentSnapshot_TaskBody)
	ref, fault := h.lab.snapshotTask(ctx, req.This, "revertToCurrentSnapshot", func(wctx context.Context, t *task, m *machine, vm *simulator.VirtualMachine) (types.AnyType, types.BaseMethodFault) {
		_, current := h.lab.snapshots(vm)
		if current == nil {
			return nil, say(&types.NotFound{}, "the VM has no current snapshot")
		}
		return nil, h.lab.revert(wctx, t, m, vm, *current, isTrue(req.SuppressPowerOn))
	})
	if fault != nil {
		body.Fault_ = soapFault(fault)
		return body
	}
	body.Res = &types.RevertToCurrentSnapshot_TaskResponse{Returnval: ref}
	return body
}

func (h *vmHandler) RemoveAllSnapshotsTask(ctx *simulator.Context, req *types.RemoveAllSnapshots_Task) soap.HasFault {
	body := new(methods.RemoveAllSnapshots_TaskBody)
	ref, fault := h.lab.snapshotTask(ctx, req.This, "removeAllSnapshots", func(wctx context.Context, _ *task, m *machine, vm *simulator.VirtualMachine) (types.AnyType, types.BaseMethodFault) {
		tree, _ := h.lab.snapshots(vm)
		var all []types.ManagedObjectReference
		for _, root := range tree {
			all = append(all, below(tree, root.Snapshot)...)
		}
		return nil, h.lab.removeSnapshots(wctx, m, vm, all, req.Consolidate == nil || *req.Consolidate)
	})
	if fault != nil {
		body.Fault_ = soapFault(fault)
		return body
	}
	body.Res = &types.RemoveAllSnapshots_TaskResponse{Returnval: ref}
	return body
}

// vmOf returns the VM of a snapshot.
func (h *snapshotHandler) vmOf(ref types.ManagedObjectReference) (types.ManagedObjectReference, types.BaseMethodFault) {
	s, ok := h.lab.reg.Get(ref).(*simulator.VirtualMachineSnapshot)
	if !ok {
		return ref, &types.ManagedObjectNotFound{Obj: ref}
	}
	return s.Vm, nil
}

func (h *snapshotHandler) RevertToSnapshotTask(ctx *simulator.Context, req *types.RevertToSnapshot_Task) soap.HasFault {
	body := new(methods.RevertToSnapshot_TaskBody)
	vm, fault := h.vmOf(req.This)
	var ref types.ManagedObjectReference
	if fault == nil && req.Host != nil {
		fault = notSupported("choosing a host for a revert (host)")
	}
	if fault == nil {
		ref, fault = h.lab.snapshotTask(ctx, vm, "revertToSnapshot", func(wctx context.Context, t *task, m *machine, vm *simulator.VirtualMachine) (types.AnyType, types.BaseMethodFault) {
			return nil, h.lab.revert(wctx, t, m, vm, req.This, isTrue(req.SuppressPowerOn))
		})
	}
	if fault != nil {
		body.Fault_ = soapFault(fault)
		return body
	}
	body.Res = &types.RevertToSnapshot_TaskResponse{Returnval: ref}
	return body
}

func (h *snapshotHandler) RemoveSnapshotTask(ctx *simulator.Context, req *types.RemoveSnapshot_Task) soap.HasFault {
	body := new(methods.RemoveSnapshot_TaskBody)
	vm, fault := h.vmOf(req.This)
	var ref types.ManagedObjectReference
	if fault == nil {
		ref, fault = h.lab.snapshotTask(ctx, vm, "removeSnapshot", func(wctx context.Context, _ *task, m *machine, vm *simulator.VirtualMachine) (types.AnyType, types.BaseMethodFault) {
			refs := []types.ManagedObjectReference{req.This}
			if req.RemoveChildren {
				tree, _ := h.lab.snapshots(vm)
				refs = below(tree, req.This)
			}
			return nil, h.lab.removeSnapshots(wctx, m, vm, refs, req.Consolidate == nil || *req.Consolidate)
		})
	}
	if fault != nil {
		body.Fault_ = soapFault(fault)
		return body
	}
	body.Res = &types.RemoveSnapshot_TaskResponse{Returnval: ref}
	return body
}

func (h *snapshotHandler) RenameSnapshot(_ *simulator.Context, req *types.RenameSnapshot) soap.HasFault {
	body := new(methods.RenameSnapshotBody)
	ref, fault := h.vmOf(req.This)
	var vm *simulator.VirtualMachine
	if fault == nil {
		_, vm, fault = h.lab.machine(ref)
	}
	if fault == nil && len(req.Name) > 80 {
		fault = say(&types.InvalidName{Name: req.Name}, "the snapshot's name is not up to 80 characters")
	}
	if fault != nil {
		body.Fault_ = soapFault(fault)
		return body
	}
	tree, current := h.lab.snapshots(vm)
	inTree(tree, req.This, func(list *[]types.VirtualMachineSnapshotTree, i int) {
		if req.Name != "" {
			(*list)[i].Name = req.Name
		}
		if req.Description != "" {
			(*list)[i].Description = req.Description
		}
	})
	h.lab.setSnapshots(vm, tree, current)
	body.Res = new(types.RenameSnapshotResponse)
	return body
}

// layOut tells of the files that a VM has now: those of its disks with all their
// parents, of its directory, and which each snapshot needs.
func (l *Lab) layOut(vm *simulator.VirtualMachine) {
	m, _, fault := l.machine(vm.Self)
	if fault != nil {
		return
	}
	lc := l.context()
	l.sim.RLock()
	lc.WithLock(vm, func() { vm.RefreshStorageInfo(lc, &types.RefreshStorageInfo{This: vm.Self}) })
	l.sim.RUnlock()
	users := l.diskUsers(m, vm)
	saved := l.noted(m.ref)
	tree, _ := l.snapshots(vm)
	lc.WithLock(vm, func() {
		ex := *vm.LayoutEx
		next := int32(0)
		keys := map[string]int32{}
		for _, f := range ex.File {
			keys[f.Name], next = f.Key, max(next, f.Key+1)
		}
		file := func(name string, kind types.VirtualMachineFileLayoutExFileType) int32 {
			if k, ok := keys[name]; ok {
				return k
			}
			var size int64
			if at, fault := l.resolve(name); fault == nil {
				if st, err := at.stat(); err == nil {
					size = st.Size()
				}
			}
			ex.File = append(ex.File, types.VirtualMachineFileLayoutExFileInfo{Key: next, Name: name, Type: string(kind), Size: size, UniqueSize: size, Accessible: types.NewBool(true)})
			keys[name] = next
			next++
			return next - 1
		}
		ex.Snapshot = nil
		eachSnapshot(tree, func(s *types.VirtualMachineSnapshotTree) {
			out := types.VirtualMachineFileLayoutExSnapshotLayout{Key: s.Snapshot, DataKey: -1, MemoryKey: -1}
			if state := saved.snapshot(s.Snapshot).State; state != "" {
				out.DataKey = file(state, types.VirtualMachineFileLayoutExFileTypeSnapshotData)
				out.MemoryKey = out.DataKey
			}
			for _, d := range snapshotDisks(users[s.Snapshot]) {
				b, _ := d.Backing.(*types.VirtualDiskFlatVer2BackingInfo)
				disk := types.VirtualMachineFileLayoutExDiskLayout{Key: d.Key}
				var chain []types.VirtualMachineFileLayoutExDiskUnit
				for ; b != nil; b = b.Parent {
					chain = append([]types.VirtualMachineFileLayoutExDiskUnit{{FileKey: []int32{file(b.FileName, types.VirtualMachineFileLayoutExFileTypeDiskDescriptor)}}}, chain...)
				}
				disk.Chain = chain
				out.Disk = append(out.Disk, disk)
			}
			ex.Snapshot = append(ex.Snapshot, out)
		})
		lc.Update(vm, []types.PropertyChange{{Name: "layoutEx", Val: &ex}, {Name: "layout", Val: vm.Layout}, {Name: "storage", Val: vm.Storage}})
	})
}
