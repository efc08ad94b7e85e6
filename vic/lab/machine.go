package lab

import (
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
	"github.com/vmware/govmomi/vim25/xml"
)

// A machine is what the lab knows of a VM beside its inventory object.
type machine struct {
	ref types.ManagedObjectReference

	mu   sync.Mutex
	busy bool
	task types.ManagedObjectReference // the one that makes it busy

	noted labState // see Lab.note

	readings readings

	// What follows belongs to whoever holds power.
	power sync.Mutex
	on    bool
	q     *qemu      // nil where the lab boots nothing
	write []location // files locked for the running VM
	read  []location
}

// readings are what a VM's QEMU has used by times of the last seconds, oldest first.
type readings struct {
	mu  sync.Mutex
	pid int
	all []reading
}

// take makes the machine busy with a task.
func (m *machine) take(string) (by types.ManagedObjectReference, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.busy {
		return m.task, false
	}
	m.busy = true
	return m.task, true
}

func (m *machine) setTask(ref types.ManagedObjectReference) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.task = ref
}

func (m *machine) give() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.busy = false
}

// machine returns the machine of a VM that is in the inventory.
func (l *Lab) machine(ref types.ManagedObjectReference) (*machine, *simulator.VirtualMachine, types.BaseMethodFault) {
	vm, ok := l.reg.Get(ref).(*simulator.VirtualMachine)
	if !ok {
		return nil, nil, &types.ManagedObjectNotFound{Obj: ref}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	m := l.machines[ref]
	if m == nil {
		m = &machine{ref: ref}
		l.machines[ref] = m
	}
	return m, vm, nil
}

func (l *Lab) dropMachine(ref types.ManagedObjectReference) {
	l.locks.forget(ref.Value)
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.machines, ref)
}

// A vmState is a copy of the parts of a VM that its operations look at, taken
// under the VM's lock.
type vmState struct {
	name   string
	power  types.VirtualMachinePowerState
	config types.VirtualMachineConfigInfo
	parent types.ManagedObjectReference
	host   types.ManagedObjectReference
}

func (l *Lab) look(vm *simulator.VirtualMachine) vmState {
	lc := l.context()
	var s vmState
	lc.WithLock(vm, func() {
		s.name = vm.Name
		s.power = vm.Runtime.PowerState
		s.config = *vm.Config
		s.config.ExtraConfig = slices.Clone(vm.Config.ExtraConfig)
		s.config.Hardware.Device = copyDevices(vm.Config.Hardware.Device)
		s.parent = *vm.Parent
		if vm.Runtime.Host != nil {
			s.host = *vm.Runtime.Host
		}
	})
	return s
}

// dir is the VM's directory.
func (l *Lab) dir(s vmState) (location, types.BaseMethodFault) {
	p, fault := l.resolve(s.config.Files.VmPathName)
	if fault != nil {
		return p, fault
	}
	return p.parent(), nil
}

// copyDevices copies devices by way of their wire form, as a client would get
// them.
func copyDevices(list []types.BaseVirtualDevice) []types.BaseVirtualDevice {
	src, dst := types.ArrayOfVirtualDevice{VirtualDevice: list}, types.ArrayOfVirtualDevice{}
	b, err := xml.Marshal(src)
	if err != nil {
		panic(err) // the simulator encodes the same value for every reader
	}
	d := xml.NewDecoder(strings.NewReader(string(b)))
	d.TypeFunc = types.TypeFunc()
	if err := d.Decode(&dst); err != nil {
		panic(err)
	}
	return dst.VirtualDevice
}

// options returns a VM's extraConfig as a map.
func options(list []types.BaseOptionValue) map[string]string {
	out := map[string]string{}
	for _, o := range list {
		v := o.GetOptionValue()
		if s, ok := v.Value.(string); ok {
			out[v.Key] = s
		}
	}
	return out
}

// set changes properties of an object under its lock.
func (l *Lab) set(obj mo.Reference, c ...types.PropertyChange) {
	lc := l.context()
	lc.Map.AtomicUpdate(lc, obj, c)
}

// post adds events to the inventory's history.
func (l *Lab) post(events ...types.BaseEvent) {
	lc := l.context()
	em := l.reg.EventManager()
	lc.WithLock(em, func() {
		for _, e := range events {
			_ = em.PostEvent(lc, &types.PostEvent{EventToPost: e})
		}
	})
}

// vmEvent fills in what events of a VM have in common.
func (l *Lab) vmEvent(ref types.ManagedObjectReference, s vmState) types.VmEvent {
	e := types.VmEvent{Event: types.Event{
		CreatedTime: time.Now(),
		Vm:          &types.VmEventArgument{EntityEventArgument: types.EntityEventArgument{Name: s.name}, Vm: ref},
	}}
	if dc := l.dc; dc.Value != "" {
		e.Datacenter = &types.DatacenterEventArgument{EntityEventArgument: types.EntityEventArgument{Name: datacenterName}, Datacenter: dc}
	}
	if dir, fault := l.dir(s); fault == nil {
		e.Ds = &types.DatastoreEventArgument{EntityEventArgument: types.EntityEventArgument{Name: dir.name}, Datastore: dir.ref}
	}
	if h, ok := l.reg.Get(s.host).(*simulator.HostSystem); ok {
		e.Host = &types.HostEventArgument{EntityEventArgument: types.EntityEventArgument{Name: h.Name}, Host: s.host}
		e.ComputeResource = &types.ComputeResourceEventArgument{EntityEventArgument: types.EntityEventArgument{Name: clusterName}, ComputeResource: *h.Parent}
	}
	return e
}

// sibling finds a folder's child by its name.
func (l *Lab) sibling(folder types.ManagedObjectReference, name string) (types.ManagedObjectReference, bool) {
	f, ok := l.reg.Get(folder).(*simulator.Folder)
	if !ok {
		return types.ManagedObjectReference{}, false
	}
	var kids []types.ManagedObjectReference
	lc := l.context()
	lc.WithLock(f, func() { kids = slices.Clone(f.ChildEntity) })
	for _, k := range kids {
		e, ok := l.reg.Get(k).(mo.Entity)
		if !ok {
			continue
		}
		var n string
		lc.WithLock(k, func() { n = e.Entity().Name })
		if n == name {
			return k, true
		}
	}
	return types.ManagedObjectReference{}, false
}

func devicesOf(list []types.BaseVirtualDevice) object.VirtualDeviceList {
	return object.VirtualDeviceList(list)
}
