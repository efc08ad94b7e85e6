package lab

import (
	"context"
	"fmt"
	"path"
	"regexp"
	"slices"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// maxSnapshots is how deep snapshots may lie, as on vSphere.
const maxSnapshots = 32

// A savedSnapshot is what the lab knows of a snapshot beside its object.
type savedSnapshot struct {
	Ref      string   `json:"ref"`
	State    string   `json:"state,omitempty"` // file of the VM's memory
	Shape    shape    `json:"shape"`
	BootKeys []string `json:"bootKeys,omitempty"`
}

// snapshotDisks are the disks of a configuration that snapshots have: those that
// are not independent.
func snapshotDisks(devices []types.BaseVirtualDevice) []*types.VirtualDisk {
	var out []*types.VirtualDisk
	for _, d := range devices {
		x, ok := d.(*types.VirtualDisk)
		if !ok {
			continue
		}
		if b, ok := x.Backing.(*types.VirtualDiskFlatVer2BackingInfo); ok && b.DiskMode == string(types.VirtualDiskModeIndependent_persistent) {
			continue
		}
		out = append(out, x)
	}
	return out
}

// createSnapshot keeps the VM's configuration and disks as they are: the disks
// become parents of new ones, with which the VM goes on. A running VM stands
// still for that, and while its memory is written where that is asked for.
func (l *Lab) createSnapshot(ctx context.Context, m *machine, vm *simulator.VirtualMachine, name, text string, memory, quiesce bool) (types.AnyType, types.BaseMethodFault) {
	m.power.Lock()
	defer m.power.Unlock()
	s := l.look(vm)
	tree, current := l.snapshots(vm)
	switch {
	case name == "" || len(name) > 80:
		return nil, say(&types.InvalidName{Name: name}, "the snapshot's name %q is not 1 to 80 characters", name)
	case s.power == suspended:
		return nil, powerStateFault(poweredOn, s.power)
	case depthOf(tree, current) >= maxSnapshots:
		return nil, say(&types.TooManySnapshotLevels{}, "snapshots lie at most %d deep", maxSnapshots)
	case m.on && quiesce:
		return nil, say(&types.FilesystemQuiesceFault{}, "the lab's guests cannot quiesce their filesystems: take the snapshot without quiesce, or power the VM off")
	case m.on && memory && len(snapshotDisks(s.config.Hardware.Device)) != len(devicesOf(s.config.Hardware.Device).SelectByType((*types.VirtualDisk)(nil))):
		return nil, say(&types.MemorySnapshotOnIndependentDisk{}, "a snapshot with memory of a VM with independent disks")
	}
	keep := savedSnapshot{}
	if m.q != nil && memory {
		at, fault := l.stateFile(s, ".vmsn")
		if fault != nil {
			return nil, fault
		}
		if fault := l.saveState(ctx, m, s, at); fault != nil {
			return nil, fault
		}
		n := l.noted(m.ref)
		keep = savedSnapshot{State: at.String(), Shape: n.Shape, BootKeys: n.BootKeys}
	}
	config := s.config
	devices := copyDevices(s.config.Hardware.Device)
	if fault := l.changeDisks(ctx, m, vm, s, func() types.BaseMethodFault { return l.branch(m, devices) }); fault != nil {
		l.dropState(keep.State)
		return nil, fault
	}
	snap := &simulator.VirtualMachineSnapshot{VirtualMachineSnapshot: mo.VirtualMachineSnapshot{Config: config, Vm: m.ref}}
	l.reg.Put(snap)
	item := types.VirtualMachineSnapshotTree{
		Snapshot: snap.Self, Vm: m.ref, Name: name, Description: text, CreateTime: time.Now(),
		State: poweredOff, ReplaySupported: types.NewBool(false),
	}
	if keep.State != "" || m.on && memory {
		item.State = poweredOn
	}
	l.note(m, func(n *labState) {
		n.SnapshotID++
		item.Id = n.SnapshotID
		keep.Ref = snap.Self.Value
		n.Snapshots = append(slices.Clone(n.Snapshots), keep)
	})
	if current == nil {
		tree = append(tree, item)
	} else {
		inTree(tree, *current, func(list *[]types.VirtualMachineSnapshotTree, i int) {
			(*list)[i].ChildSnapshotList = append((*list)[i].ChildSnapshotList, item)
		})
	}
	l.setSnapshots(vm, tree, &snap.Self)
	return snap.Self, nil
}

// snapshot is what is known of one of a VM's snapshots.
func (s labState) snapshot(ref types.ManagedObjectReference) savedSnapshot {
	for _, x := range s.Snapshots {
		if x.Ref == ref.Value {
			return x
		}
	}
	return savedSnapshot{}
}

// changeDisks does what changes the files of a VM's disks, whose power state is
// held: with the disks of a running VM out, and its locks let go. The VM goes on
// with the disks that its configuration has then.
func (l *Lab) changeDisks(ctx context.Context, m *machine, vm *simulator.VirtualMachine, s vmState, change func() types.BaseMethodFault) types.BaseMethodFault {
	if !m.on {
		return l.withFiles(func() types.BaseMethodFault {
			fault := change()
			return fault
		})
	}
	hw, fault := l.hardware(s)
	if fault == nil {
		fault = hw.openDisks(l)
	}
	if fault != nil {
		return fault
	}
	if m.q != nil {
		if err := m.q.disksOut(ctx, hw); err != nil {
			fault = vmConfigFault("%v", err)
		}
	}
	var lost error
	again := l.withFiles(func() types.BaseMethodFault {
		l.locks.release(m.ref.Value, m.write, m.read)
		if fault == nil {
			fault = change()
		}
		now, bad := l.hardware(l.look(vm))
		if bad == nil {
			bad = now.openDisks(l)
		}
		if bad == nil {
			if f, by := l.locks.acquire(m.ref.Value, s.name, now.write, now.read); f != "" {
				bad = fileLocked(f, by)
			}
		}
		if bad != nil {
			m.write, m.read = nil, nil
			return bad
		}
		hw, m.write, m.read = now, now.write, now.read
		return nil
	})
	// What was done stays done: the VM goes on even if the task was cancelled.
	back, cancel := context.WithTimeout(context.WithoutCancel(ctx), startTime)
	defer cancel()
	if again == nil && m.q != nil {
		l.journal.flush() // a lab that takes the VM over puts in what it knows of
		lost = m.q.disksIn(back, hw)
	}
	if again != nil || lost != nil {
		l.log.Error("a VM's disks cannot be put in again, so it ends", "vm", s.name, "error", lost, "fault", again)
		if m.q != nil {
			m.q.kill()
		}
		return vmConfigFault("the VM's disks cannot be put in again: %v", lost)
	}
	return fault
}

var numbered = regexp.MustCompile(`-[0-9]{6}$`)

// branch gives the VM's disks, as devices has them, new children, and makes those
// the disks that the VM has. l.files is held.
func (l *Lab) branch(m *machine, devices []types.BaseVirtualDevice) types.BaseMethodFault {
	vm, ok := l.reg.Get(m.ref).(*simulator.VirtualMachine)
	if !ok {
		return &types.ManagedObjectNotFound{Obj: m.ref}
	}
	var made []location
	undo := func() {
		for _, d := range made {
			_ = l.deleteDisk(d)
		}
	}
	for _, d := range snapshotDisks(devices) {
		parent, fault := l.resolve(diskFile(d))
		var child location
		if fault == nil {
			child, fault = nextDelta(parent)
		}
		if fault == nil {
			fault = l.makeDisk(child, parent.String(), 0)
		}
		if fault == nil {
			made = append(made, child)
			fault = l.rebase(d, child)
		}
		if fault != nil {
			undo()
			return fault
		}
	}
	l.note(m, func(n *labState) {
		n.Deltas = slices.Clone(n.Deltas)
		for _, d := range made {
			n.Deltas = append(n.Deltas, d.String())
		}
	})
	l.set(vm, types.PropertyChange{Name: "config.hardware.device", Val: devices})
	return nil
}

// nextDelta names a new child beside a disk: NAME-000001.vmdk.
func nextDelta(parent location) (location, types.BaseMethodFault) {
	base := numbered.ReplaceAllString(stem(parent), "")
	for n := 1; n < 1e6; n++ {
		c := location{parent.store, path.Join(path.Dir(parent.rel), fmt.Sprintf("%s-%06d.vmdk", base, n))}
		if !c.exists() {
			return c, nil
		}
	}
	return location{}, fileExists(parent.String())
}

// rebase gives a disk device another file, with its chain as it is.
func (l *Lab) rebase(d *types.VirtualDisk, file location) types.BaseMethodFault {
	chain, fault := l.openChain(file)
	if fault != nil {
		return fault
	}
	b := backing(chain, l.stores)
	if old, ok := d.Backing.(*types.VirtualDiskFlatVer2BackingInfo); ok {
		b.DiskMode = old.DiskMode
	}
	d.Backing = b
	return nil
}

// revert makes the VM as the snapshot has it: its configuration, the disks by new
// children of the snapshot's, and its memory where the snapshot has that, else
// the VM is off. What the VM was since the last snapshot is lost.
func (l *Lab) revert(ctx context.Context, t *task, m *machine, vm *simulator.VirtualMachine, ref types.ManagedObjectReference, stayOff bool) types.BaseMethodFault {
	m.power.Lock()
	defer m.power.Unlock()
	snap, ok := l.reg.Get(ref).(*simulator.VirtualMachineSnapshot)
	if !ok {
		return &types.ManagedObjectNotFound{Obj: ref}
	}
	tree, _ := l.snapshots(vm)
	name, id := "", int32(0)
	inTree(tree, ref, func(list *[]types.VirtualMachineSnapshotTree, i int) { name, id = (*list)[i].Name, (*list)[i].Id })
	s := l.look(vm)
	if s.power != poweredOff {
		if m.q != nil {
			m.q.stop()
		}
		state := l.noted(m.ref).State
		l.note(m, func(n *labState) { n.State = "" })
		l.poweredOff(m, vm, m.q, s.name)
		l.dropState(state)
	}
	var config types.VirtualMachineConfigInfo
	var b []byte
	var err error
	lc := l.context()
	lc.WithLock(snap, func() { b, err = encodeObject(snap.Config) })
	if err == nil {
		err = decodeObject(b, &config)
	}
	if err != nil {
		return &types.SystemError{Reason: err.Error()}
	}
	// The VM stays the one that it is, wherever it is now.
	config.Name, config.Files = s.config.Name, s.config.Files
	connect(config.Hardware.Device, false)
	l.measure(config.Hardware.Device)
	if fault := l.withFiles(func() types.BaseMethodFault { return l.branch(m, config.Hardware.Device) }); fault != nil {
		return fault
	}
	saved := l.noted(m.ref).snapshot(ref)
	l.set(vm, types.PropertyChange{Name: "config", Val: &config},
		types.PropertyChange{Name: "summary.config.annotation", Val: config.Annotation},
		types.PropertyChange{Name: "summary.config.memorySizeMB", Val: config.Hardware.MemoryMB},
		types.PropertyChange{Name: "summary.config.numCpu", Val: config.Hardware.NumCPU})
	l.setSnapshots(vm, tree, &ref)
	l.journal.flush()
	fault := l.consolidate(ctx, m, vm)
	e := l.vmEvent(m.ref, l.look(vm))
	l.post(&types.EventEx{
		Event: e.Event, EventTypeId: "com.vmware.vc.vm.VmStateRevertedToSnapshot", Severity: "info",
		Message:    fmt.Sprintf("The execution state of the virtual machine %s has been reverted to the state of snapshot %s, with ID %d", s.name, name, id),
		ObjectId:   m.ref.Value,
		ObjectType: m.ref.Type, ObjectName: s.name,
		Arguments: []types.KeyAnyValue{{Key: "snapshotName", Value: name}, {Key: "snapshotId", Value: fmt.Sprint(id)}},
	})
	if fault == nil && saved.State != "" && !stayOff {
		l.note(m, func(n *labState) { n.Shape, n.BootKeys = saved.Shape, saved.BootKeys })
		fault = l.bootVM(ctx, t, m, vm, l.look(vm), saved.State)
	}
	return fault
}

// measure sets the capacities of disks that snapshots leave alone, which may have
// grown since.
func (l *Lab) measure(devices []types.BaseVirtualDevice) {
	saved := snapshotDisks(devices)
	for _, d := range devices {
		x, ok := d.(*types.VirtualDisk)
		if !ok || slices.Contains(saved, x) {
			continue
		}
		at, fault := l.resolve(diskFile(x))
		if fault != nil {
			continue // powering on will say so
		}
		if k, fault := openLink(at); fault == nil {
			x.CapacityInBytes, x.CapacityInKB = k.desc.Bytes(), k.desc.Bytes()/1024
		}
	}
}

// removeSnapshots takes snapshots out of the tree and merges what only they kept.
func (l *Lab) removeSnapshots(ctx context.Context, m *machine, vm *simulator.VirtualMachine, refs []types.ManagedObjectReference, merge bool) types.BaseMethodFault {
	m.power.Lock()
	defer m.power.Unlock()
	tree, current := l.snapshots(vm)
	saved := l.noted(m.ref)
	for _, ref := range refs {
		if current != nil && *current == ref {
			current = parentOf(tree, ref)
		}
		inTree(tree, ref, func(list *[]types.VirtualMachineSnapshotTree, i int) {
			kids := (*list)[i].ChildSnapshotList
			*list = slices.Replace(*list, i, i+1, kids...)
		}, &tree)
		l.note(m, func(n *labState) {
			n.Snapshots = slices.DeleteFunc(slices.Clone(n.Snapshots), func(x savedSnapshot) bool { return x.Ref == ref.Value })
		})
		l.reg.Remove(l.context(), ref)
	}
	l.setSnapshots(vm, tree, current)
	l.journal.flush()
	for _, ref := range refs {
		l.dropState(saved.snapshot(ref).State)
	}
	if !merge {
		return nil
	}
	return l.consolidate(ctx, m, vm)
}
