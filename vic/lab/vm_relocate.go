package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vicsdk/vic-go/internal/vmdk"
)

func (h *vmHandler) RelocateVMTask(ctx *simulator.Context, req *types.RelocateVM_Task) soap.HasFault {
	body := new(methods.RelocateVM_TaskBody)
	m, vm, fault := h.lab.machine(req.This)
	if fault == nil {
		var ref types.ManagedObjectReference
		ref, fault = h.lab.tasks.start(ctx, taskSpec{entity: req.This, kind: "relocate", vm: m, cancelable: true}, func(wctx context.Context, t *task) (types.AnyType, types.BaseMethodFault) {
			return nil, h.lab.relocate(wctx, detached(ctx), m, vm, &req.Spec)
		})
		body.Res = &types.RelocateVM_TaskResponse{Returnval: ref}
	}
	if fault != nil {
		body.Res, body.Fault_ = nil, soapFault(fault)
	}
	return body
}

// relocate moves a VM to another host, pool or folder, running or not, and one
// that is off to another datastore. All hosts are this machine, so a VM that runs
// does not notice.
func (l *Lab) relocate(ctx context.Context, sctx *simulator.Context, m *machine, vm *simulator.VirtualMachine, spec *types.VirtualMachineRelocateSpec) types.BaseMethodFault {
	m.power.Lock()
	defer m.power.Unlock()
	s := l.look(vm)
	to, fault := l.target(spec, s)
	if fault != nil {
		return fault
	}
	e := l.vmEvent(m.ref, s)
	source := types.HostEventArgument{}
	if e.Host != nil {
		source = *e.Host
	}
	from, fault := l.dir(s)
	if fault != nil {
		return fault
	}
	ds := &types.DatastoreEventArgument{EntityEventArgument: types.EntityEventArgument{Name: from.name}, Datastore: from.ref}
	if to.host != nil && m.on {
		l.post(&types.VmBeingHotMigratedEvent{VmEvent: e, DestHost: types.HostEventArgument{EntityEventArgument: types.EntityEventArgument{Name: to.host.Name}, Host: to.host.Self}})
	}
	if to.store != nil {
		if fault := l.moveFiles(ctx, m, vm, s, to.store, spec.DiskMoveType); fault != nil {
			return fault
		}
	}
	lc := l.context()
	if to.host != nil {
		l.sim.Lock()
		if old, ok := l.reg.Get(s.host).(*simulator.HostSystem); ok {
			l.reg.RemoveReference(lc, old, &old.Vm, m.ref)
		}
		l.reg.AppendReference(lc, to.host, &to.host.Vm, m.ref)
		l.sim.Unlock()
		l.set(vm, types.PropertyChange{Name: "runtime.host", Val: &to.host.Self}, types.PropertyChange{Name: "summary.runtime.host", Val: &to.host.Self})
	}
	if to.pool != nil {
		l.sim.Lock()
		if old, ok := l.reg.Get(*vm.ResourcePool).(*simulator.ResourcePool); ok {
			l.reg.RemoveReference(lc, old, &old.Vm, m.ref)
		}
		l.reg.AppendReference(lc, to.pool, &to.pool.Vm, m.ref)
		l.sim.Unlock()
		l.set(vm, types.PropertyChange{Name: "resourcePool", Val: &to.pool.Self})
	}
	if to.folder != nil {
		release, fault := l.claimName(to.folder.Self, s.name)
		if fault != nil {
			return fault
		}
		defer release()
		req := &types.MoveIntoFolder_Task{This: to.folder.Self, List: []types.ManagedObjectReference{m.ref}}
		if _, fault := l.inner(sctx, to.folder, func() soap.HasFault { return to.folder.MoveIntoFolderTask(sctx, req) }); fault != nil {
			return fault
		}
	}
	e = l.vmEvent(m.ref, l.look(vm))
	if to.store != nil {
		l.layOut(vm)
		l.post(&types.VmRelocatedEvent{VmRelocateSpecEvent: types.VmRelocateSpecEvent{VmEvent: e}, SourceHost: source, SourceDatacenter: e.Datacenter, SourceDatastore: ds})
	} else if to.host != nil {
		l.post(&types.VmMigratedEvent{VmEvent: e, SourceHost: source, SourceDatacenter: e.Datacenter, SourceDatastore: ds})
	}
	return nil
}

// A target is where a VM is to go; what stays is nil.
type target struct {
	host   *simulator.HostSystem
	pool   *simulator.ResourcePool
	folder *simulator.Folder
	store  *store
}

// target checks a specification.
func (l *Lab) target(spec *types.VirtualMachineRelocateSpec, s vmState) (target, types.BaseMethodFault) {
	var to target
	for name, bad := range map[string]bool{
		"service": spec.Service != nil, "disk": len(spec.Disk) != 0, "transform": spec.Transform != "",
		"deviceChange": len(spec.DeviceChange) != 0, "profile": len(spec.Profile) != 0, "cryptoSpec": spec.CryptoSpec != nil,
	} {
		if bad {
			return to, notSupported("relocations that change the VM on the way (spec.%s)", name)
		}
	}
	var ok bool
	if spec.Host != nil {
		if to.host, ok = l.reg.Get(*spec.Host).(*simulator.HostSystem); !ok {
			return to, invalidArgument("spec.host", "%s is no host", spec.Host.Value)
		}
		if to.host.Self == s.host {
			to.host = nil
		}
	}
	if spec.Pool != nil {
		if to.pool, ok = l.reg.Get(*spec.Pool).(*simulator.ResourcePool); !ok {
			return to, invalidArgument("spec.pool", "%s is no resource pool", spec.Pool.Value)
		}
	}
	if spec.Folder != nil && *spec.Folder != s.parent {
		if to.folder, ok = l.reg.Get(*spec.Folder).(*simulator.Folder); !ok || !slices.Contains(to.folder.ChildType, "VirtualMachine") {
			return to, invalidArgument("spec.folder", "%s is no folder of VMs", spec.Folder.Value)
		}
	}
	if spec.Datastore == nil {
		return to, nil
	}
	for _, x := range l.stores {
		if x.ref == *spec.Datastore {
			to.store = x
		}
	}
	if to.store == nil {
		return to, say(&types.InvalidDatastore{Datastore: spec.Datastore}, "spec.datastore: %s is no datastore", spec.Datastore.Value)
	}
	if dir, fault := l.dir(s); fault != nil || dir.store == to.store {
		to.store = nil
		return to, fault
	}
	switch {
	case s.power == poweredOn:
		return to, say(&types.InvalidPowerState{RequestedState: poweredOff, ExistingState: s.power}, "the lab moves the files of VMs that are off")
	case s.power == suspended:
		return to, say(&types.SuspendedRelocateNotSupported{}, "the lab moves the files of VMs that are off")
	}
	return to, nil
}

// moveFiles moves the VM's directory and disks to another datastore. A disk that
// has parents becomes one without, unless only the topmost disk is to move. The
// old files go when the inventory names the new ones.
func (l *Lab) moveFiles(ctx context.Context, m *machine, vm *simulator.VirtualMachine, s vmState, to *store, how string) types.BaseMethodFault {
	childOnly := false
	switch types.VirtualMachineRelocateDiskMoveOptions(how) {
	case "", types.VirtualMachineRelocateDiskMoveOptionsMoveAllDiskBackingsAndDisallowSharing,
		types.VirtualMachineRelocateDiskMoveOptionsMoveAllDiskBackingsAndAllowSharing,
		types.VirtualMachineRelocateDiskMoveOptionsMoveAllDiskBackingsAndConsolidate:
	case types.VirtualMachineRelocateDiskMoveOptionsMoveChildMostDiskBacking:
		childOnly = true
	default:
		return notSupported("spec.diskMoveType %q", how)
	}
	if tree, _ := l.snapshots(vm); len(tree) != 0 {
		return say(&types.SnapshotCopyNotSupported{}, "the lab does not move the files of a VM with snapshots")
	}
	old, fault := l.dir(s)
	if fault != nil {
		return fault
	}
	dir := location{to, path.Base(old.rel)}
	for n := 1; ; n++ {
		err := to.root.Mkdir(dir.rel, 0o700)
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrExist) || n == 1000 {
			return fileFault(dir.String(), err)
		}
		dir.rel = fmt.Sprintf("%s_%d", path.Base(old.rel), n)
	}
	defer l.refreshAll()
	var gone []location
	devices := copyDevices(s.config.Hardware.Device)
	fault = l.withFiles(func() types.BaseMethodFault {
		for _, d := range devices {
			disk, ok := d.(*types.VirtualDisk)
			if !ok {
				continue
			}
			src, fault := l.resolve(diskFile(disk))
			if fault != nil {
				return fault
			}
			if src.store == to {
				continue
			}
			dst, fault := freeName(dir, stem(src))
			if fault == nil {
				fault = l.moveDisk(ctx, src, dst, childOnly)
			}
			if fault == nil {
				fault = l.rebase(disk, dst)
			}
			if fault != nil {
				return fault
			}
			gone = append(gone, src)
		}
		return l.copyHome(ctx, old, dir)
	})
	if fault != nil {
		_ = to.root.RemoveAll(dir.rel)
		return fault
	}
	vmx := location{to, path.Join(dir.rel, path.Base(s.config.Files.VmPathName))}.String()
	files := s.config.Files
	files.VmPathName, files.SnapshotDirectory, files.SuspendDirectory, files.LogDirectory = vmx, dir.String(), dir.String(), dir.String()
	var stores []types.ManagedObjectReference
	for _, x := range l.stores {
		uses := x == to
		for _, d := range devices {
			at, fault := l.resolve(diskFile(d))
			uses = uses || diskFile(d) != "" && fault == nil && at.store == x
		}
		ds, ok := l.reg.Get(x.ref).(*simulator.Datastore)
		if !ok {
			continue
		}
		lc := l.context()
		l.sim.Lock()
		l.reg.RemoveReference(lc, ds, &ds.Vm, m.ref)
		if uses {
			l.reg.AppendReference(lc, ds, &ds.Vm, m.ref)
			stores = append(stores, x.ref)
		}
		l.sim.Unlock()
	}
	l.set(vm,
		types.PropertyChange{Name: "config.hardware.device", Val: devices},
		types.PropertyChange{Name: "config.files", Val: files},
		types.PropertyChange{Name: "summary.config.vmPathName", Val: vmx},
		types.PropertyChange{Name: "datastore", Val: stores},
		types.PropertyChange{Name: "layoutEx", Val: &types.VirtualMachineFileLayoutEx{}})
	l.journal.flush()
	return l.withFiles(func() types.BaseMethodFault {
		for _, d := range gone {
			if fault := l.deleteDisk(d); fault != nil {
				return fault
			}
		}
		return l.removeVMFiles(old, s)
	})
}

// freeName names a disk in a directory.
func freeName(dir location, base string) (location, types.BaseMethodFault) {
	name := base
	for n := 1; n < 1000; n++ {
		c := location{dir.store, path.Join(dir.rel, name+".vmdk")}
		if !c.exists() {
			return c, nil
		}
		name = fmt.Sprintf("%s_%d", base, n)
	}
	return dir, fileExists(dir.String())
}

// moveDisk makes at dst what is at src. l.files is held.
func (l *Lab) moveDisk(ctx context.Context, src, dst location, childOnly bool) types.BaseMethodFault {
	chain, fault := l.openChain(src)
	if fault != nil {
		return fault
	}
	k := chain[0]
	for _, f := range k.files() {
		if by := l.locks.holder(f); by != "" {
			return fileLocked(f.String(), by)
		}
	}
	if len(k.desc.Extents) != 1 {
		return notSupported("moving %s, which has several extents", src)
	}
	if len(chain) > 1 && !childOnly {
		return l.copyWhole(ctx, src, dst, k)
	}
	if len(chain) > 1 && src.native != dst.native {
		return notSupported("moving the child disk %s to a datastore with another format of child disks", src)
	}
	d := *k.desc
	e := d.Extents[0]
	e.File = extentName(dst, e.Type, 0, 1)
	d.Extents = []vmdk.Extent{e}
	if len(chain) > 1 {
		d.ParentHint = hintTo(dst, chain[1].at)
	}
	err := copyTree(ctx, k.files()[1], location{dst.store, path.Join(path.Dir(dst.rel), e.File)}, func(int32) {})
	if err == nil {
		err = writeDescriptor(dst, &d)
	}
	return moveFault(ctx, dst, err)
}

func moveFault(ctx context.Context, at location, err error) types.BaseMethodFault {
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return canceled()
	}
	return diskFault(at, err)
}

// copyWhole makes a disk without parents that has what src has with its parents.
func (l *Lab) copyWhole(ctx context.Context, src, dst location, k link) types.BaseMethodFault {
	d, err := l.openData(ctx, src)
	if err != nil {
		return badDisk(src, err)
	}
	defer d.Close()
	bytes := d.Size()
	cid, _ := newDiskID()
	desc := vmdk.FlatDescriptor(bytes, cid, stem(dst)+"-flat.vmdk")
	err = createDisk(dst, desc, uuidOf(k.desc), func(f *os.File) error {
		if err := f.Truncate(bytes); err != nil {
			return err
		}
		return copyNonZero(ctx, f, d, bytes)
	})
	return moveFault(ctx, dst, err)
}

// copyNonZero copies size bytes and leaves holes where there are zeroes.
func copyNonZero(ctx context.Context, w io.WriterAt, r io.ReaderAt, size int64) error {
	buf := make([]byte, 1<<20)
	zero := make([]byte, len(buf))
	for off := int64(0); off < size; off += int64(len(buf)) {
		if err := ctx.Err(); err != nil {
			return err
		}
		p := buf[:min(int64(len(buf)), size-off)]
		if _, err := r.ReadAt(p, off); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if bytes.Equal(p, zero[:len(p)]) {
			continue
		}
		if _, err := w.WriteAt(p, off); err != nil {
			return err
		}
	}
	return nil
}

// copyHome copies the files in a VM's directory that are no disks.
func (l *Lab) copyHome(ctx context.Context, from, to location) types.BaseMethodFault {
	ents, err := fs.ReadDir(from.root.FS(), from.rel)
	if err != nil {
		return fileFault(from.String(), err)
	}
	for _, e := range ents {
		if !e.Type().IsRegular() || strings.HasSuffix(e.Name(), ".vmdk") {
			continue
		}
		src, dst := location{from.store, path.Join(from.rel, e.Name())}, location{to.store, path.Join(to.rel, e.Name())}
		if err := copyTree(ctx, src, dst, func(int32) {}); err != nil {
			return moveFault(ctx, dst, err)
		}
	}
	return nil
}
