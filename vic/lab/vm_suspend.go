package lab

import (
	"context"
	"fmt"
	"os"
	"path"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

const suspended = types.VirtualMachinePowerStateSuspended

func (h *vmHandler) SuspendVMTask(ctx *simulator.Context, req *types.SuspendVM_Task) soap.HasFault {
	body := new(methods.SuspendVM_TaskBody)
	m, vm, fault := h.lab.machine(req.This)
	if fault == nil {
		var ref types.ManagedObjectReference
		ref, fault = h.lab.tasks.start(ctx, taskSpec{entity: req.This, kind: "suspend", vm: m}, func(wctx context.Context, t *task) (types.AnyType, types.BaseMethodFault) {
			return nil, h.lab.suspend(wctx, m, vm)
		})
		body.Res = &types.SuspendVM_TaskResponse{Returnval: ref}
	}
	if fault != nil {
		body.Res, body.Fault_ = nil, soapFault(fault)
	}
	return body
}

// suspend writes the VM's memory and devices to a file in its directory and ends
// its QEMU: the VM is off the host, and goes on where it was at the next power-on,
// also of another lab process.
func (l *Lab) suspend(ctx context.Context, m *machine, vm *simulator.VirtualMachine) types.BaseMethodFault {
	m.power.Lock()
	defer m.power.Unlock()
	s := l.look(vm)
	if !m.on {
		return powerStateFault(poweredOn, s.power)
	}
	l.post(&types.VmSuspendingEvent{VmEvent: l.vmEvent(m.ref, s)})
	if q := m.q; q != nil {
		at, fault := l.stateFile(s, ".vmss")
		if fault != nil {
			return fault
		}
		if fault := l.saveState(ctx, m, s, at); fault != nil {
			return fault
		}
		// A lab that is killed from here on leaves a VM that is suspended.
		l.note(m, func(n *labState) { n.State = at.String() })
		l.journal.flush()
		q.stop()
	}
	now := time.Now()
	l.stopped(m, vm, m.q, s.name, suspended,
		types.PropertyChange{Name: "runtime.suspendTime", Val: now},
		types.PropertyChange{Name: "summary.runtime.suspendTime", Val: now})
	return nil
}

// stateFile names a new file for a VM's state in its directory.
func (l *Lab) stateFile(s vmState, suffix string) (location, types.BaseMethodFault) {
	dir, fault := l.dir(s)
	if fault != nil {
		return dir, fault
	}
	base := stemOf(path.Base(s.config.Files.VmPathName))
	return location{dir.store, path.Join(dir.rel, fmt.Sprintf("%s-%.8s%s", base, randomText(), suffix))}, nil
}

// stemOf is a file's name without its last suffix.
func stemOf(name string) string { return name[:len(name)-len(path.Ext(name))] }

// saveState stops a VM and writes its state to a file. Its disks are out then.
// Where that fails the VM goes on and the file is gone. m.power is held.
func (l *Lab) saveState(ctx context.Context, m *machine, s vmState, at location) types.BaseMethodFault {
	hw, fault := l.hardware(s)
	if fault == nil {
		fault = hw.openDisks(l)
	}
	if fault != nil {
		return fault
	}
	f, err := at.root.OpenFile(at.rel, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fileFault(at.String(), err)
	}
	err = m.q.disksOut(ctx, hw)
	if err == nil {
		err = m.q.save(ctx, f)
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		return nil
	}
	_ = at.root.Remove(at.rel)
	back, cancel := context.WithTimeout(context.WithoutCancel(ctx), startTime)
	defer cancel()
	if e := m.q.disksIn(back, hw); e != nil {
		// Nothing can be done with it any more: it ends, which watch tells of.
		l.log.Error("a VM that could not be saved cannot go on", "vm", s.name, "error", e)
		m.q.kill()
	}
	return vmConfigFault("the VM's state cannot be saved: %v", err)
}

// dropState deletes the file of a state that nobody needs any more.
func (l *Lab) dropState(state string) {
	if state == "" {
		return
	}
	if at, fault := l.resolve(state); fault == nil {
		_ = at.root.Remove(at.rel)
	}
}
