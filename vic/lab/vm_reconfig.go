package lab

import (
	"context"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

func (h *vmHandler) ReconfigVMTask(ctx *simulator.Context, req *types.ReconfigVM_Task) soap.HasFault {
	body := new(methods.ReconfigVM_TaskBody)
	m, vm, fault := h.lab.machine(req.This)
	if fault == nil {
		var ref types.ManagedObjectReference
		ref, fault = h.lab.tasks.start(ctx, taskSpec{entity: req.This, kind: "reconfigVm", vm: m}, func(wctx context.Context, t *task) (types.AnyType, types.BaseMethodFault) {
			return nil, h.lab.reconfigVM(wctx, detached(ctx), m, vm, req)
		})
		body.Res = &types.ReconfigVM_TaskResponse{Returnval: ref}
	}
	if fault != nil {
		body.Res, body.Fault_ = nil, soapFault(fault)
	}
	return body
}

func (l *Lab) reconfigVM(ctx context.Context, sctx *simulator.Context, m *machine, vm *simulator.VirtualMachine, req *types.ReconfigVM_Task) (failed types.BaseMethodFault) {
	c := &req.Spec
	s := l.look(vm)
	if fault := l.checkConfig(c); fault != nil {
		return fault
	}
	if c.ChangeVersion != "" && c.ChangeVersion != s.config.ChangeVersion {
		return say(&types.ConcurrentAccess{}, "the VM's configuration is not the one of changeVersion %s any more", c.ChangeVersion)
	}
	if c.Files != nil {
		return notSupported("moving a VM's files (configSpec.files)")
	}
	if s.power == suspended && (len(c.DeviceChange) != 0 || c.MemoryMB != 0 || c.NumCPUs != 0) {
		return powerStateFault(poweredOff, s.power)
	}
	running := s.power == types.VirtualMachinePowerStatePoweredOn
	if running {
		switch {
		case c.MemoryMB != 0 && c.MemoryMB != int64(s.config.Hardware.MemoryMB):
			return say(&types.MemoryHotPlugNotSupported{}, "memory cannot be changed while the VM runs")
		case c.NumCPUs != 0 && c.NumCPUs != s.config.Hardware.NumCPU:
			return say(&types.CpuHotPlugNotSupported{}, "the number of CPUs cannot be changed while the VM runs")
		}
	}
	dir, fault := l.dir(s)
	if fault != nil {
		return fault
	}
	if c.Name != "" && c.Name != s.name {
		if fault := l.renameVM(vm, c.Name); fault != nil {
			return fault
		}
		defer func() {
			if failed != nil {
				_ = l.renameVM(vm, s.name)
			}
		}()
	}
	p := &plan{lab: l, name: s.name, dir: dir, running: running, keys: map[int32]int32{}, devices: devicesOf(s.config.Hardware.Device)}
	fault = l.withFiles(func() types.BaseMethodFault {
		if fault := p.apply(c.DeviceChange); fault != nil {
			return fault
		}
		for _, f := range sortedKeys(p.extend) {
			at, fault := l.resolve(f)
			if fault == nil {
				fault = l.extendDisk(at, p.extend[f])
			}
			if fault != nil {
				return fault
			}
		}
		return nil
	})
	if fault != nil {
		p.undo()
		return fault
	}
	c.DeviceChange = p.changes

	m.power.Lock()
	defer m.power.Unlock()
	if running && !m.on { // the guest has powered itself off meanwhile
		p.undo()
		return powerStateFault(types.VirtualMachinePowerStatePoweredOn, types.VirtualMachinePowerStatePoweredOff)
	}
	var undo []func()
	fail := func(f types.BaseMethodFault) types.BaseMethodFault {
		for i := len(undo) - 1; i >= 0; i-- {
			undo[i]()
		}
		p.undo()
		return f
	}
	for _, hc := range p.hot {
		back, fault := l.hotPlug(ctx, m, s.name, hc)
		if fault != nil {
			return fail(fault)
		}
		undo = append(undo, back)
	}
	before := sctx.Checkpoint(vm).(*mo.VirtualMachine)
	if _, fault := l.inner(sctx, vm, func() soap.HasFault { return vm.ReconfigVMTask(sctx, req) }); fault != nil {
		l.restore(vm, before)
		return fail(fault)
	}
	defer l.refreshAll()
	return l.withFiles(func() types.BaseMethodFault {
		for _, d := range p.destroy {
			if fault := l.deleteDisk(d); fault != nil {
				return fault
			}
		}
		return nil
	})
}

// restore puts back what the simulator changed before it failed.
func (l *Lab) restore(vm *simulator.VirtualMachine, before *mo.VirtualMachine) {
	l.set(vm,
		types.PropertyChange{Name: "config", Val: before.Config},
		types.PropertyChange{Name: "summary", Val: before.Summary},
		types.PropertyChange{Name: "guest", Val: before.Guest},
		types.PropertyChange{Name: "network", Val: before.Network},
		types.PropertyChange{Name: "layout", Val: before.Layout},
		types.PropertyChange{Name: "layoutEx", Val: before.LayoutEx})
}
