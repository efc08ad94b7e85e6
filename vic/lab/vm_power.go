package lab

import (
	"context"
	"slices"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

const (
	poweredOn  = types.VirtualMachinePowerStatePoweredOn
	poweredOff = types.VirtualMachinePowerStatePoweredOff
)

func (h *vmHandler) PowerOnVMTask(ctx *simulator.Context, req *types.PowerOnVM_Task) soap.HasFault {
	body := new(methods.PowerOnVM_TaskBody)
	ref, fault := h.lab.powerOnTask(ctx, req.This)
	if fault != nil {
		body.Fault_ = soapFault(fault)
		return body
	}
	body.Res = &types.PowerOnVM_TaskResponse{Returnval: ref}
	return body
}

func (l *Lab) powerOnTask(ctx *simulator.Context, ref types.ManagedObjectReference) (types.ManagedObjectReference, types.BaseMethodFault) {
	m, vm, fault := l.machine(ref)
	if fault != nil {
		return types.ManagedObjectReference{}, fault
	}
	return l.tasks.start(ctx, taskSpec{entity: ref, kind: "powerOn", vm: m, cancelable: true}, func(wctx context.Context, t *task) (types.AnyType, types.BaseMethodFault) {
		return nil, l.powerOn(wctx, t, m, vm)
	})
}

func (l *Lab) powerOn(ctx context.Context, t *task, m *machine, vm *simulator.VirtualMachine) types.BaseMethodFault {
	m.power.Lock()
	defer m.power.Unlock()
	s := l.look(vm)
	if s.power == poweredOn {
		return powerStateFault(poweredOff, s.power)
	}
	n := l.noted(m.ref)
	return l.bootVM(ctx, t, m, vm, s, n.State)
}

// bootVM powers a VM on, from a saved state where one is named. m.power is held.
func (l *Lab) bootVM(ctx context.Context, t *task, m *machine, vm *simulator.VirtualMachine, s vmState, state string) types.BaseMethodFault {
	hw, fault := l.hardware(s)
	if fault != nil {
		return fault
	}
	resumed := state != "" || s.power == suspended && l.opts.NoQEMU
	fault = l.withFiles(func() types.BaseMethodFault {
		if fault := hw.openDisks(l); fault != nil {
			return fault
		}
		if f, by := l.locks.acquire(m.ref.Value, s.name, hw.write, hw.read); f != "" {
			return fileLocked(f, by)
		}
		for _, u := range hw.disks {
			if fault := l.written(u); fault != nil {
				l.locks.release(m.ref.Value, hw.write, hw.read)
				return fault
			}
		}
		return nil
	})
	if fault != nil {
		return fault
	}
	t.progress(10)
	m.write, m.read = hw.write, hw.read
	if !resumed {
		shape := shape{KVM: !l.opts.NoQEMU && l.useKVM(ctx), RootPorts: rootPorts(len(hw.nics))}
		l.note(m, func(n *labState) { n.BootKeys, n.Shape = sortedKeys(options(s.config.ExtraConfig)), shape })
	}
	hw.shape = l.noted(m.ref).Shape
	if state != "" {
		if fault := hw.openState(l, state); fault != nil {
			l.locks.release(m.ref.Value, m.write, m.read)
			return fault
		}
		defer hw.state.Close()
	}
	if !l.opts.NoQEMU {
		q, err := l.startQEMU(ctx, m, vm, s, hw)
		if err != nil {
			l.locks.release(m.ref.Value, m.write, m.read)
			if ctx.Err() != nil {
				return canceled()
			}
			l.logVM(hw.dir, "power on failed: %v", err)
			return vmConfigFault("%v", err)
		}
		m.q = q
	}
	m.on = true
	t.progress(90)
	e := l.vmEvent(m.ref, s)
	c := []types.PropertyChange{{Name: "config.hardware.device", Val: connect(s.config.Hardware.Device, true)}}
	var first types.BaseEvent = &types.VmResumingEvent{VmEvent: e}
	if !resumed {
		now := time.Now()
		c = append(c, types.PropertyChange{Name: "runtime.bootTime", Val: now}, types.PropertyChange{Name: "summary.runtime.bootTime", Val: now})
		first = &types.VmStartingEvent{VmEvent: e}
	}
	l.set(vm, append(c,
		types.PropertyChange{Name: "summary.runtime.powerState", Val: poweredOn},
		types.PropertyChange{Name: "runtime.powerState", Val: poweredOn})...)
	l.post(first, &types.VmPoweredOnEvent{VmEvent: e})
	if old := l.noted(m.ref).State; old != "" {
		// A lab that is killed from here on leaves a VM that runs.
		l.note(m, func(n *labState) { n.State = "" })
		l.journal.flush()
		l.dropState(old)
	}
	if q := m.q; q != nil {
		l.goDo(func() { l.watch(m, vm, q, s.name) })
	}
	return nil
}

// connect returns the devices with their connection as it is after power-on or
// power-off.
func connect(list []types.BaseVirtualDevice, on bool) []types.BaseVirtualDevice {
	for _, d := range list {
		if c := d.GetVirtualDevice().Connectable; c != nil {
			c.Connected = on && c.StartConnected
		}
	}
	return list
}

// watch sees a VM's QEMU end. When that was not asked for, the guest has
// powered itself off, or QEMU has failed.
func (l *Lab) watch(m *machine, vm *simulator.VirtualMachine, q *qemu, name string) {
	<-q.done
	m.power.Lock()
	defer m.power.Unlock()
	if m.q == q {
		l.poweredOff(m, vm, q, name)
	}
}

// poweredOff puts the inventory right after a VM's end. m.power is held.
func (l *Lab) poweredOff(m *machine, vm *simulator.VirtualMachine, q *qemu, name string) {
	l.stopped(m, vm, q, name, poweredOff,
		types.PropertyChange{Name: "runtime.bootTime", Val: nil},
		types.PropertyChange{Name: "summary.runtime.bootTime", Val: nil})
}

// stopped puts the inventory right when a VM is off or suspended; what else
// changes goes along. m.power is held.
func (l *Lab) stopped(m *machine, vm *simulator.VirtualMachine, q *qemu, name string, power types.VirtualMachinePowerState, more ...types.PropertyChange) {
	if q != nil {
		q.close()
	}
	m.q, m.on = nil, false
	l.locks.release(m.ref.Value, m.write, m.read)
	m.write, m.read = nil, nil
	s := l.look(vm)
	bootKeys := l.noted(m.ref).BootKeys
	lc := l.context()
	lc.WithLock(vm, func() {
		var keep []types.BaseOptionValue
		for _, o := range vm.Config.ExtraConfig {
			if power == suspended || slices.Contains(bootKeys, o.GetOptionValue().Key) {
				keep = append(keep, o)
			}
		}
		guest := *vm.Guest
		guest.IpAddress = ""
		guest.ToolsRunningStatus = string(types.VirtualMachineToolsRunningStatusGuestToolsNotRunning)
		if guest.ToolsStatus == types.VirtualMachineToolsStatusToolsOk {
			guest.ToolsStatus = types.VirtualMachineToolsStatusToolsNotRunning
		}
		guest.Net = append([]types.GuestNicInfo(nil), guest.Net...)
		for i := range guest.Net {
			guest.Net[i].IpAddress, guest.Net[i].Connected = nil, false
		}
		sum := *vm.Summary.Guest
		sum.IpAddress, sum.ToolsRunningStatus, sum.ToolsStatus = "", guest.ToolsRunningStatus, guest.ToolsStatus
		lc.Update(vm, append(more,
			types.PropertyChange{Name: "config.extraConfig", Val: keep},
			types.PropertyChange{Name: "config.hardware.device", Val: connect(s.config.Hardware.Device, false)},
			types.PropertyChange{Name: "guest", Val: &guest},
			types.PropertyChange{Name: "summary.guest", Val: &sum},
			types.PropertyChange{Name: "summary.runtime.powerState", Val: power},
			types.PropertyChange{Name: "runtime.powerState", Val: power}))
	})
	e := l.vmEvent(m.ref, s)
	if dir, fault := l.dir(s); fault == nil {
		l.logVM(dir, "%s", power)
	}
	if power == suspended {
		l.post(&types.VmSuspendedEvent{VmEvent: e})
		return
	}
	switch {
	case q != nil && q.byGuest.Load():
		l.post(&types.VmGuestShutdownEvent{VmEvent: e})
	case q != nil && q.failure() != "":
		e.FullFormattedMessage = "QEMU failed: " + q.failure()
		l.log.Warn("QEMU failed", "vm", name, "why", q.failure())
	}
	l.post(&types.VmPoweredOffEvent{VmEvent: e})
}

func (h *vmHandler) PowerOffVMTask(ctx *simulator.Context, req *types.PowerOffVM_Task) soap.HasFault {
	body := new(methods.PowerOffVM_TaskBody)
	m, vm, fault := h.lab.machine(req.This)
	if fault == nil {
		var ref types.ManagedObjectReference
		ref, fault = h.lab.tasks.start(ctx, taskSpec{entity: req.This, kind: "powerOff", vm: m}, func(context.Context, *task) (types.AnyType, types.BaseMethodFault) {
			m.power.Lock()
			defer m.power.Unlock()
			s := h.lab.look(vm)
			if s.power == poweredOff {
				return nil, powerStateFault(poweredOn, poweredOff)
			}
			if state := h.lab.noted(m.ref).State; state != "" {
				// The memory of a suspended VM is lost.
				h.lab.note(m, func(n *labState) { n.State = "" })
				defer h.lab.dropState(state)
			}
			h.lab.post(&types.VmStoppingEvent{VmEvent: h.lab.vmEvent(m.ref, s)})
			if m.q != nil {
				m.q.stop()
			}
			h.lab.poweredOff(m, vm, m.q, s.name)
			return nil, nil
		})
		body.Res = &types.PowerOffVM_TaskResponse{Returnval: ref}
	}
	if fault != nil {
		body.Res, body.Fault_ = nil, soapFault(fault)
	}
	return body
}

func (h *vmHandler) ResetVMTask(ctx *simulator.Context, req *types.ResetVM_Task) soap.HasFault {
	body := new(methods.ResetVM_TaskBody)
	m, vm, fault := h.lab.machine(req.This)
	if fault == nil {
		var ref types.ManagedObjectReference
		ref, fault = h.lab.tasks.start(ctx, taskSpec{entity: req.This, kind: "reset", vm: m}, func(wctx context.Context, _ *task) (types.AnyType, types.BaseMethodFault) {
			return nil, h.lab.running(m, vm, func(q *qemu) error {
				h.lab.post(&types.VmResettingEvent{VmEvent: h.lab.vmEvent(m.ref, h.lab.look(vm))})
				if q == nil {
					return nil
				}
				_, err := q.qmp.do(wctx, "system_reset", nil)
				return err
			})
		})
		body.Res = &types.ResetVM_TaskResponse{Returnval: ref}
	}
	if fault != nil {
		body.Res, body.Fault_ = nil, soapFault(fault)
	}
	return body
}

// running calls f with a running VM's QEMU, nil where the lab boots nothing.
func (l *Lab) running(m *machine, vm *simulator.VirtualMachine, f func(*qemu) error) types.BaseMethodFault {
	m.power.Lock()
	defer m.power.Unlock()
	if !m.on {
		return powerStateFault(poweredOn, l.look(vm).power)
	}
	if err := f(m.q); err != nil {
		return vmConfigFault("%v", err)
	}
	return nil
}

// soft asks the guest for something, which takes VMware Tools in it, as on
// vSphere.
func (h *vmHandler) soft(ref types.ManagedObjectReference, f func(*qemu) error) types.BaseMethodFault {
	m, vm, fault := h.lab.machine(ref)
	if fault != nil {
		return fault
	}
	tools := false
	lc := h.lab.context()
	lc.WithLock(vm, func() {
		tools = vm.Guest.ToolsRunningStatus == string(types.VirtualMachineToolsRunningStatusGuestToolsRunning)
	})
	m.power.Lock()
	defer m.power.Unlock()
	switch {
	case !m.on:
		return powerStateFault(poweredOn, h.lab.look(vm).power)
	case !tools || m.q == nil:
		return say(&types.ToolsUnavailable{}, "VMware Tools do not run in the guest")
	}
	if err := f(m.q); err != nil {
		return vmConfigFault("%v", err)
	}
	return nil
}

// ShutdownGuest presses the power button.
func (h *vmHandler) ShutdownGuest(ctx *simulator.Context, req *types.ShutdownGuest) soap.HasFault {
	body := new(methods.ShutdownGuestBody)
	if fault := h.soft(req.This, func(q *qemu) error {
		_, err := q.qmp.do(ctx, "system_powerdown", nil)
		return err
	}); fault != nil {
		body.Fault_ = soapFault(fault)
		return body
	}
	body.Res = new(types.ShutdownGuestResponse)
	return body
}

// RebootGuest presses Ctrl-Alt-Delete.
func (h *vmHandler) RebootGuest(ctx *simulator.Context, req *types.RebootGuest) soap.HasFault {
	body := new(methods.RebootGuestBody)
	if fault := h.soft(req.This, func(q *qemu) error {
		var keys []fields
		for _, k := range []string{"ctrl", "alt", "delete"} {
			keys = append(keys, fields{"type": "qcode", "data": k})
		}
		_, err := q.qmp.do(ctx, "send-key", fields{"keys": keys})
		return err
	}); fault != nil {
		body.Fault_ = soapFault(fault)
		return body
	}
	body.Res = new(types.RebootGuestResponse)
	return body
}

// datacenterHandler answers the methods of Datacenter.
type datacenterHandler struct{ base }

func (h *datacenterHandler) PowerOnMultiVMTask(ctx *simulator.Context, req *types.PowerOnMultiVM_Task) soap.HasFault {
	body := new(methods.PowerOnMultiVM_TaskBody)
	c := detached(ctx)
	ref, fault := h.lab.tasks.start(ctx, taskSpec{entity: req.This, kind: "powerOnMultiVm"}, func(context.Context, *task) (types.AnyType, types.BaseMethodFault) {
		var r types.ClusterPowerOnVmResult
		for _, vm := range req.Vm {
			t, fault := h.lab.powerOnTask(c, vm)
			if fault != nil {
				r.NotAttempted = append(r.NotAttempted, types.ClusterNotAttemptedVmInfo{
					Vm: vm, Fault: types.LocalizedMethodFault{Fault: fault, LocalizedMessage: words(fault)},
				})
				continue
			}
			r.Attempted = append(r.Attempted, types.ClusterAttemptedVmInfo{Vm: vm, Task: &t})
		}
		return r, nil
	})
	if fault != nil {
		body.Fault_ = soapFault(fault)
		return body
	}
	body.Res = &types.PowerOnMultiVM_TaskResponse{Returnval: ref}
	return body
}
