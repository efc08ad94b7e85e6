package lab

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"strings"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// vmHandler answers the methods of VirtualMachine.
type vmHandler struct{ base }

func (h *vmHandler) DestroyTask(ctx *simulator.Context, req *types.Destroy_Task) soap.HasFault {
	body := new(methods.Destroy_TaskBody)
	m, vm, fault := h.lab.machine(req.This)
	if fault == nil {
		var ref types.ManagedObjectReference
		ref, fault = h.lab.tasks.start(ctx, taskSpec{entity: req.This, kind: "destroy", vm: m}, func(context.Context, *task) (types.AnyType, types.BaseMethodFault) {
			return nil, h.lab.destroyVM(detached(ctx), m, vm)
		})
		body.Res = &types.Destroy_TaskResponse{Returnval: ref}
	}
	if fault != nil {
		body.Res, body.Fault_ = nil, soapFault(fault)
	}
	return body
}

// destroyVM deletes a VM with all its disks, their parents and its directory's
// files, as vSphere does. The inventory goes first: files that are left are
// garbage, a VM without its files is a trap.
func (l *Lab) destroyVM(ctx *simulator.Context, m *machine, vm *simulator.VirtualMachine) types.BaseMethodFault {
	s := l.look(vm)
	if s.power != poweredOff {
		return powerStateFault(poweredOff, s.power)
	}
	dir, fault := l.dir(s)
	if fault != nil {
		return fault
	}
	var disks []location
	l.files.Lock()
	defer l.files.Unlock()
	for _, d := range devicesOf(s.config.Hardware.Device).SelectByType((*types.VirtualDisk)(nil)) {
		at, fault := l.resolve(diskFile(d))
		if fault != nil {
			return fault
		}
		chain, fault := l.openChain(at)
		if fault != nil {
			chain = []link{{at: at}} // a broken chain is no reason to keep the VM
		}
		for _, k := range chain {
			if by := l.locks.holder(k.at); by != "" {
				return fileLocked(k.at.String(), by)
			}
			if !slices.Contains(disks, k.at) {
				disks = append(disks, k.at)
			}
		}
	}
	kept := l.noted(m.ref)
	for _, d := range kept.Deltas {
		if at, fault := l.resolve(d); fault == nil && !slices.Contains(disks, at) {
			disks = append(disks, at)
		}
	}
	if fault := l.unregister(ctx, m, vm); fault != nil {
		return fault
	}
	for _, x := range kept.Snapshots {
		l.dropState(x.State)
	}
	defer l.refreshAll()
	for _, d := range disks {
		if fault := l.deleteDisk(d); fault != nil {
			if _, gone := fault.(*types.FileNotFound); !gone {
				return fault
			}
		}
	}
	return l.removeVMFiles(dir, s)
}

// removeVMFiles deletes what a VM itself leaves in its directory, and the
// directory if nothing else is in it.
func (l *Lab) removeVMFiles(dir location, s vmState) types.BaseMethodFault {
	ents, err := fs.ReadDir(dir.root.FS(), dir.rel)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return fileFault(dir.String(), err)
	}
	for _, e := range ents {
		n := e.Name()
		own := strings.HasSuffix(n, ".vmx") || strings.HasSuffix(n, ".nvram") || strings.HasSuffix(n, ".log")
		if e.Type().IsRegular() && own {
			p, _ := dir.join(n)
			_ = p.root.Remove(p.rel)
		}
	}
	if err := dir.root.Remove(dir.rel); err != nil && !errors.Is(err, fs.ErrNotExist) {
		l.log.Info("the VM's directory keeps what is not the VM's", "vm", s.name, "directory", dir.String())
	}
	return nil
}

// unregister takes a VM out of the inventory. Its files stay.
func (l *Lab) unregister(ctx *simulator.Context, m *machine, vm *simulator.VirtualMachine) types.BaseMethodFault {
	s := l.look(vm)
	if s.power != types.VirtualMachinePowerStatePoweredOff {
		return powerStateFault(types.VirtualMachinePowerStatePoweredOff, s.power)
	}
	b := vm.UnregisterVM(ctx, &types.UnregisterVM{This: vm.Self})
	if f := b.Fault(); f != nil {
		return f.VimFault().(types.BaseMethodFault)
	}
	for _, o := range l.reg.AllReference("VirtualMachineSnapshot") {
		if x, ok := o.(*simulator.VirtualMachineSnapshot); ok && x.Vm == m.ref {
			l.reg.Remove(l.context(), x.Self)
		}
	}
	for _, d := range s.config.Hardware.Device {
		if c, ok := d.(types.BaseVirtualEthernetCard); ok {
			l.freeMAC(c.GetVirtualEthernetCard())
		}
	}
	l.dropMachine(m.ref)
	return nil
}

func (l *Lab) freeMAC(c *types.VirtualEthernetCard) {
	if b, ok := c.Backing.(*types.VirtualEthernetCardNetworkBackingInfo); ok {
		if n := l.nets[b.DeviceName]; n != nil {
			n.release(c.MacAddress)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.macs, c.MacAddress)
}

func (h *vmHandler) UnregisterVM(ctx *simulator.Context, req *types.UnregisterVM) soap.HasFault {
	body := new(methods.UnregisterVMBody)
	m, vm, fault := h.lab.machine(req.This)
	if fault == nil {
		if by, ok := m.take("unregister"); !ok {
			fault = say(&types.TaskInProgress{Task: by}, "the VM is busy with another task")
		} else {
			fault = h.lab.unregister(detached(ctx), m, vm)
			m.give()
		}
	}
	if fault != nil {
		body.Fault_ = soapFault(fault)
		return body
	}
	body.Res = new(types.UnregisterVMResponse)
	return body
}

// DestroyTask of a folder destroys what is in it, VMs too.
func (h *folderHandler) DestroyTask(ctx *simulator.Context, req *types.Destroy_Task) soap.HasFault {
	body := new(methods.Destroy_TaskBody)
	ref, fault := h.lab.tasks.start(ctx, taskSpec{entity: req.This, kind: "destroy"}, func(context.Context, *task) (types.AnyType, types.BaseMethodFault) {
		f, ok := h.lab.reg.Get(req.This).(*simulator.Folder)
		if !ok {
			return nil, &types.ManagedObjectNotFound{Obj: req.This}
		}
		if p, ok := h.lab.reg.Get(*f.Parent).(*simulator.Folder); f.Parent == nil || !ok || !slices.Contains(p.ChildType, "VirtualMachine") {
			return nil, notSupported("destroying a folder that every datacenter has")
		}
		return nil, h.lab.destroyFolder(detached(ctx), f)
	})
	if fault != nil {
		body.Fault_ = soapFault(fault)
		return body
	}
	body.Res = &types.Destroy_TaskResponse{Returnval: ref}
	return body
}

func (l *Lab) destroyFolder(ctx *simulator.Context, f *simulator.Folder) types.BaseMethodFault {
	var kids []types.ManagedObjectReference
	lc := l.context()
	lc.WithLock(f, func() { kids = slices.Clone(f.ChildEntity) })
	for _, k := range kids {
		switch o := l.reg.Get(k).(type) {
		case *simulator.VirtualMachine:
			m, vm, fault := l.machine(k)
			if fault != nil {
				continue // gone meanwhile
			}
			by, ok := m.take("destroy")
			if !ok {
				return say(&types.TaskInProgress{Task: by}, "the VM %s is busy with another task", vm.Name)
			}
			fault = l.destroyVM(ctx, m, vm)
			m.give()
			if fault != nil {
				return fault
			}
		case *simulator.Folder:
			if fault := l.destroyFolder(ctx, o); fault != nil {
				return fault
			}
		}
	}
	c := detached(ctx)
	// It is empty now: the simulator only has to take it out.
	_, fault := l.inner(c, f, func() soap.HasFault { return f.DestroyTask(c, &types.Destroy_Task{This: f.Self}) })
	return fault
}

func (h *vmHandler) RenameTask(ctx *simulator.Context, req *types.Rename_Task) soap.HasFault {
	body := new(methods.Rename_TaskBody)
	m, vm, fault := h.lab.machine(req.This)
	if fault == nil {
		var ref types.ManagedObjectReference
		ref, fault = h.lab.tasks.start(ctx, taskSpec{entity: req.This, kind: "rename", vm: m}, func(context.Context, *task) (types.AnyType, types.BaseMethodFault) {
			return nil, h.lab.renameVM(vm, req.NewName)
		})
		body.Res = &types.Rename_TaskResponse{Returnval: ref}
	}
	if fault != nil {
		body.Res, body.Fault_ = nil, soapFault(fault)
	}
	return body
}

func (l *Lab) renameVM(vm *simulator.VirtualMachine, name string) types.BaseMethodFault {
	if name == "" || len(name) > 80 || strings.ContainsAny(name, "/\\%\x00\n") {
		return say(&types.InvalidName{Name: name}, "newName %q is not 1 to 80 characters without / \\ %%", name)
	}
	s := l.look(vm)
	if s.name == name {
		return nil
	}
	release, fault := l.claimName(s.parent, name)
	if fault != nil {
		return fault
	}
	defer release()
	l.locks.rename(vm.Self.Value, name)
	l.set(vm, types.PropertyChange{Name: "name", Val: name},
		types.PropertyChange{Name: "config.name", Val: name},
		types.PropertyChange{Name: "summary.config.name", Val: name})
	l.post(&types.VmRenamedEvent{VmEvent: l.vmEvent(vm.Self, l.look(vm)), OldName: s.name, NewName: name})
	return nil
}

var _ mo.Reference = (*vmHandler)(nil)
