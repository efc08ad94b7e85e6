package lab

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// Where the numbers of references begin, so that what Options make has the same
// references on every start, whatever else Options make.
const (
	hostNumbers      = 100 // 30 for each
	datastoreNumbers = 3000
	networkNumbers   = 6000
	ownNumbers       = 10000 // of what clients make
)

// A places is what names the objects that Options make have had: their places in
// these lists decide their references.
type places struct {
	Datastores, Networks []string
}

// place gives a new name the next free place.
func place(list *[]string, name string) {
	if !slices.Contains(*list, name) {
		*list = append(*list, name)
	}
}

// align makes n the number of the next reference, unless it is past it.
func (l *Lab) align(n int64) {
	for {
		// An entity that gets a reference and is not put anywhere.
		f := l.reg.NewEntity(new(simulator.Folder))
		if numberOf(f.Reference()) >= n-1 {
			return
		}
	}
}

// openJournal reads what decides the references of the objects to build.
func (l *Lab) openJournal() error {
	j := l.journal
	j.dir = filepath.Join(l.opts.Dir, inventoryDir)
	if err := os.MkdirAll(j.dir, 0o700); err != nil {
		return err
	}
	if err := removeUnfinished(j.dir); err != nil {
		return err
	}
	if _, err := j.read("places", &l.places); err != nil {
		return err
	}
	had := places{slices.Clone(l.places.Datastores), slices.Clone(l.places.Networks)}
	for _, n := range l.opts.Datastores {
		place(&l.places.Datastores, n)
	}
	for _, n := range l.opts.Networks {
		place(&l.places.Networks, n.Name)
	}
	if len(l.places.Datastores) > (networkNumbers-datastoreNumbers)/2 || len(l.places.Networks) > ownNumbers-networkNumbers {
		return fmt.Errorf("inventory: %s has had too many names of datastores or networks", j.dir)
	}
	if slices.Equal(had.Datastores, l.places.Datastores) && slices.Equal(had.Networks, l.places.Networks) {
		return nil
	}
	return j.write("places", l.places)
}

// removeUnfinished removes the files that a killed lab was writing.
func removeUnfinished(dir string) error {
	left, err := filepath.Glob(filepath.Join(dir, ".new-*"))
	if err != nil {
		return err
	}
	for _, f := range left {
		if err := os.Remove(f); err != nil {
			return err
		}
	}
	return nil
}

// restoreInventory puts what the journal has into the inventory that build has made, and
// begins to note changes. It returns the VMs that were on. Nobody else uses the
// inventory yet.
func (l *Lab) restoreInventory() (running []*simulator.VirtualMachine, err error) {
	j := l.journal
	j.built = map[types.ManagedObjectReference]bool{}
	for _, o := range l.reg.AllReference("") {
		j.built[o.Reference()] = true
	}
	if _, err := j.read("last", &j.kept); err != nil {
		return nil, err
	}
	j.last = j.kept
	ents, err := os.ReadDir(j.dir)
	if err != nil {
		return nil, err
	}
	var folders []mo.Folder
	var pools []mo.ResourcePool
	var vms []savedVM
	var snapshots []mo.VirtualMachineSnapshot
	for _, e := range ents {
		switch kind, _, _ := strings.Cut(e.Name(), "-"); kind {
		case "group":
			err = load(j, e.Name(), &folders)
		case "resgroup":
			err = load(j, e.Name(), &pools)
		case "vm":
			err = load(j, e.Name(), &vms)
		case "snapshot":
			err = load(j, e.Name(), &snapshots)
		}
		if err != nil {
			return nil, err
		}
	}
	for _, f := range byNumber(folders) {
		if err := l.restoreFolder(f); err != nil {
			return nil, err
		}
	}
	for _, p := range byNumber(pools) {
		if err := l.restorePool(p); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(vms, func(a, b savedVM) int { return cmp.Compare(numberOf(a.VM.Self), numberOf(b.VM.Self)) })
	for _, v := range vms {
		vm, err := l.restoreVM(v)
		if err != nil {
			return nil, err
		}
		if vm.Runtime.PowerState == poweredOn {
			running = append(running, vm)
		}
	}
	for _, s := range snapshots {
		if l.reg.Get(s.Vm) == nil {
			continue // its VM's file went first
		}
		l.reg.Put(&simulator.VirtualMachineSnapshot{VirtualMachineSnapshot: s})
		j.last = max(j.last, numberOf(s.Self))
	}
	if err := l.restoreCustomFields(); err != nil {
		return nil, err
	}
	if err := l.restoreLeases(); err != nil {
		return nil, err
	}
	l.align(max(ownNumbers, j.last+1))
	j.ready = true
	return running, nil
}

// load reads one object's file.
func load[T any](j *journal, name string, into *[]T) error {
	b, err := os.ReadFile(filepath.Join(j.dir, name))
	if err != nil {
		return err
	}
	var v T
	if err := decodeObject(b, &v); err != nil {
		return fmt.Errorf("inventory: %s cannot be read: %w: without the file its object is forgotten", filepath.Join(j.dir, name), err)
	}
	*into = append(*into, v)
	return nil
}

// byNumber sorts objects by age, in which parents come before those that were
// made in them, but for what was moved.
func byNumber[T mo.Reference](list []T) []T {
	slices.SortFunc(list, func(a, b T) int { return cmp.Compare(numberOf(a.Reference()), numberOf(b.Reference())) })
	return list
}

func (l *Lab) restoreFolder(f mo.Folder) error {
	o := &simulator.Folder{Folder: f}
	o.ChildEntity, o.RecentTask = nil, nil
	if have, ok := l.reg.Get(f.Self).(*simulator.Folder); ok {
		o.ChildEntity = have.ChildEntity // from a child that was there first
	}
	l.reg.Put(o)
	return l.childOf(f.Self, f.Parent)
}

// childOf notes an object in its folder. A folder that is still to come is put
// for it.
func (l *Lab) childOf(ref types.ManagedObjectReference, parent *types.ManagedObjectReference) error {
	l.journal.last = max(l.journal.last, numberOf(ref))
	if parent == nil || parent.Type != "Folder" {
		return fmt.Errorf("inventory: %s has no folder", ref.Value)
	}
	p, ok := l.reg.Get(*parent).(*simulator.Folder)
	if !ok {
		p = new(simulator.Folder)
		p.Self = *parent
		l.reg.Put(p)
	}
	p.ChildEntity = append(p.ChildEntity, ref)
	return nil
}

func (l *Lab) restorePool(p mo.ResourcePool) error {
	o := &simulator.ResourcePool{ResourcePool: p}
	o.Vm, o.ResourcePool.ResourcePool, o.RecentTask = nil, nil, nil
	l.reg.Put(o)
	l.journal.last = max(l.journal.last, numberOf(p.Self))
	if p.Parent == nil {
		return fmt.Errorf("inventory: %s has no parent", p.Self.Value)
	}
	parent, ok := l.reg.Get(*p.Parent).(*simulator.ResourcePool)
	if !ok {
		return fmt.Errorf("inventory: %s is in %s, which is not there", p.Self.Value, p.Parent.Value)
	}
	parent.ResourcePool.ResourcePool = append(parent.ResourcePool.ResourcePool, p.Self)
	return nil
}

func (l *Lab) restoreVM(v savedVM) (*simulator.VirtualMachine, error) {
	vm := &simulator.VirtualMachine{VirtualMachine: v.VM, DataSets: map[string]*simulator.DataSet{}}
	vm.RecentTask = nil
	pool, ok := l.reg.Get(*vm.ResourcePool).(*simulator.ResourcePool)
	if !ok {
		return nil, fmt.Errorf("inventory: VM %s is in %s, which is not there", vm.Name, vm.ResourcePool.Value)
	}
	host, ok := l.reg.Get(*vm.Runtime.Host).(*simulator.HostSystem)
	if !ok {
		// There are fewer hosts than there were.
		host = l.reg.Any("HostSystem").(*simulator.HostSystem)
		self := host.Self
		vm.Runtime.Host, vm.Summary.Runtime.Host = &self, &self
	}
	for _, ref := range vm.Datastore {
		ds, ok := l.reg.Get(ref).(*simulator.Datastore)
		if !ok {
			return nil, fmt.Errorf("Options.Datastores: VM %s is on a datastore that is not among them", vm.Name)
		}
		ds.Vm = append(ds.Vm, vm.Self)
	}
	for _, d := range vm.Config.Hardware.Device {
		c, ok := d.(types.BaseVirtualEthernetCard)
		if !ok {
			continue
		}
		if b, ok := c.GetVirtualEthernetCard().Backing.(*types.VirtualEthernetCardNetworkBackingInfo); ok && l.nets[b.DeviceName] == nil {
			return nil, fmt.Errorf("Options.Networks: VM %s is on %q, which is not among them", vm.Name, b.DeviceName)
		}
		l.macs[c.GetVirtualEthernetCard().MacAddress] = true
	}
	for _, ref := range vm.Network {
		if n, ok := l.reg.Get(ref).(*mo.Network); ok {
			n.Vm = append(n.Vm, vm.Self)
		}
	}
	pool.Vm = append(pool.Vm, vm.Self)
	host.Vm = append(host.Vm, vm.Self)
	l.reg.Put(vm)
	l.machines[vm.Self] = &machine{ref: vm.Self, noted: v.Lab}
	return vm, l.childOf(vm.Self, vm.Parent)
}

func (l *Lab) restoreCustomFields() error {
	var s savedFields
	if ok, err := l.journal.read("custom", &s); err != nil || !ok {
		return err
	}
	// Keys are given out in order.
	lc := l.context()
	cfm := l.reg.CustomFieldsManager()
	var last int32 = -1
	for _, d := range s.Defs {
		last = max(last, d.Key)
	}
	for range last + 1 {
		cfm.AddCustomFieldDef(lc, &types.AddCustomFieldDef{Name: randomText()})
	}
	cfm.Field = s.Defs
	for _, e := range l.reg.All("") {
		x := e.Entity()
		x.Value, x.CustomValue, x.AvailableField = nil, nil, nil
		for _, d := range s.Defs {
			if d.ManagedObjectType == "" || d.ManagedObjectType == x.Self.Type {
				x.AvailableField = append(x.AvailableField, d)
			}
		}
	}
	for _, v := range s.Values {
		e, ok := l.reg.Get(v.Entity).(mo.Entity)
		if !ok {
			continue
		}
		f := &types.CustomFieldStringValue{CustomFieldValue: types.CustomFieldValue{Key: v.Key}, Value: v.Value}
		x := e.Entity()
		x.Value, x.CustomValue = append(x.Value, f), append(x.CustomValue, f)
	}
	return nil
}

// restoreLeases gives the guests that go on running the addresses that they have.
// Leases of adapters that are gone are forgotten.
func (l *Lab) restoreLeases() error {
	var s map[string]map[string]string
	if _, err := l.journal.read("leases", &s); err != nil {
		return err
	}
	for name, leases := range s {
		n := l.nets[name]
		if n == nil {
			continue
		}
		for ip, mac := range leases {
			if a, err := netip.ParseAddr(ip); err == nil && n.subnet.Contains(a) && l.macs[mac] {
				n.pool.Reserve(a.AsSlice(), mac)
			}
		}
		l.journal.leases = maps.Clone(s)
	}
	return nil
}
