package lab

import (
	"iter"
	"maps"
	"slices"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

const (
	maxNICs   = 10
	maxSerial = 3
	maxCDs    = 4
)

func (p *plan) remove(i int, s *types.VirtualDeviceConfigSpec) types.BaseMethodFault {
	have := p.devices.FindByKey(s.Device.GetVirtualDevice().Key)
	if have == nil {
		return deviceFault(i, "there is no device with the key %d", s.Device.GetVirtualDevice().Key)
	}
	v := have.GetVirtualDevice()
	switch have.(type) {
	case *types.VirtualDisk, *types.VirtualVmxnet3:
	case *types.VirtualCdrom, *types.VirtualSerialPort, *types.ParaVirtualSCSIController, *types.VirtualAHCIController:
		if p.running {
			return deviceFault(i, "a %T cannot be removed while the VM runs", have)
		}
	default:
		return deviceFault(i, "a %T cannot be removed", have)
	}
	if _, ok := have.(types.BaseVirtualController); ok {
		for _, o := range p.devices {
			if o.GetVirtualDevice().ControllerKey == v.Key {
				return deviceFault(i, "controller %d is in use by device %d", v.Key, o.GetVirtualDevice().Key)
			}
		}
	}
	switch {
	case s.FileOperation == "":
	case s.FileOperation == types.VirtualDeviceConfigSpecFileOperationDestroy && diskFile(have) != "":
		if _, ok := have.(*types.VirtualDisk); !ok {
			return deviceFault(i, "fileOperation destroy is for disks")
		}
		at, fault := p.lab.resolve(diskFile(have))
		if fault != nil {
			return fault
		}
		p.destroy = append(p.destroy, at)
	default:
		return deviceFault(i, "fileOperation %q of a removal", s.FileOperation)
	}
	p.devices = slices.DeleteFunc(slices.Clone(p.devices), func(d types.BaseVirtualDevice) bool {
		return d.GetVirtualDevice().Key == v.Key
	})
	// The simulator looks at the request's device; a client may send no more
	// than its key.
	p.changes = append(p.changes, &types.VirtualDeviceConfigSpec{Operation: s.Operation, Device: have})
	if p.running {
		p.hot = append(p.hot, hotChange{op: s.Operation, dev: have})
	}
	return nil
}

func (p *plan) edit(i int, s *types.VirtualDeviceConfigSpec) types.BaseMethodFault {
	d := s.Device.GetVirtualDevice()
	have := p.devices.FindByKey(d.Key)
	if have == nil {
		return deviceFault(i, "there is no device with the key %d", d.Key)
	}
	if s.FileOperation != "" {
		return deviceFault(i, "fileOperation %q of an edit", s.FileOperation)
	}
	h := have.GetVirtualDevice()
	d.ControllerKey, d.UnitNumber = h.ControllerKey, h.UnitNumber
	if d.Backing == nil {
		d.Backing = h.Backing
	}
	if d.Connectable == nil {
		d.Connectable = h.Connectable
	}
	var fault types.BaseMethodFault
	var grow int64
	switch x := s.Device.(type) {
	case *types.VirtualVmxnet3:
		old, ok := have.(*types.VirtualVmxnet3)
		if !ok {
			return deviceFault(i, "device %d is a %T", d.Key, have)
		}
		fault = p.editNIC(i, x, old)
	case *types.VirtualDisk:
		old, ok := have.(*types.VirtualDisk)
		if !ok {
			return deviceFault(i, "device %d is a %T", d.Key, have)
		}
		grow, fault = p.editDisk(i, x, old)
	case *types.VirtualCdrom:
		if _, ok := have.(*types.VirtualCdrom); !ok || p.running {
			return deviceFault(i, "device %d is a %T, and CD-ROM drives are edited while the VM is off", d.Key, have)
		}
		fault = p.cdBacking(i, x)
	default:
		fault = deviceFault(i, "a %T cannot be edited", have)
	}
	if fault != nil {
		return fault
	}
	p.devices = slices.Clone(p.devices)
	p.devices[slices.IndexFunc(p.devices, func(o types.BaseVirtualDevice) bool { return o.GetVirtualDevice().Key == d.Key })] = s.Device
	p.changes = append(p.changes, s)
	if p.running {
		p.hot = append(p.hot, hotChange{op: s.Operation, dev: s.Device, old: have, grow: grow})
	}
	return nil
}

func (p *plan) editNIC(i int, n, old *types.VirtualVmxnet3) types.BaseMethodFault {
	if n.MacAddress == "" {
		n.MacAddress, n.AddressType = old.MacAddress, old.AddressType
	}
	if n.MacAddress != old.MacAddress {
		if p.running {
			return deviceFault(i, "macAddress cannot be changed while the VM runs")
		}
		if _, fault := p.lab.macFor(i, &n.VirtualEthernetCard); fault != nil {
			return fault
		}
	}
	return p.nicBacking(i, &n.VirtualEthernetCard)
}

// editDisk checks an edit of a disk, and tells to how many bytes it grows; 0 is
// not at all. Those of a VM that is off grow with the plan, those of a running one
// in it.
func (p *plan) editDisk(i int, n, old *types.VirtualDisk) (grow int64, fault types.BaseMethodFault) {
	if diskFile(n) != diskFile(old) {
		return 0, deviceFault(i, "backing.fileName cannot be edited: remove the disk and add the other one")
	}
	n.Backing = old.Backing
	bytes := n.CapacityInBytes
	if bytes == 0 || bytes == old.CapacityInBytes && n.CapacityInKB != old.CapacityInKB {
		bytes = n.CapacityInKB * 1024
	}
	if bytes == 0 {
		bytes = old.CapacityInBytes
	}
	if bytes != old.CapacityInBytes {
		if bytes < old.CapacityInBytes {
			return 0, deviceFault(i, "capacity %d is below %d: disks do not shrink", bytes, old.CapacityInBytes)
		}
		if b, ok := old.Backing.(*types.VirtualDiskFlatVer2BackingInfo); ok && b.Parent != nil {
			return 0, say(&types.InvalidDeviceOperation{
				InvalidDeviceSpec: types.InvalidDeviceSpec{InvalidVmConfig: types.InvalidVmConfig{Property: "capacityInBytes"}, DeviceIndex: int32(i)},
				BadOp:             types.VirtualDeviceConfigSpecOperationEdit,
			}, "deviceChange[%d]: %s is a child disk, or has snapshots, and does not grow", i, diskFile(old))
		}
		if grow = bytes; !p.running {
			if p.extend == nil {
				p.extend = map[string]int64{}
			}
			p.extend[diskFile(old)] = bytes
		}
	}
	n.CapacityInBytes, n.CapacityInKB = bytes, bytes/1024
	return grow, nil
}

// macsOf yields the MAC addresses of a VM, whose lock is held.
func macsOf(e mo.Entity) iter.Seq[string] {
	return func(yield func(string) bool) {
		vm, ok := e.(*simulator.VirtualMachine)
		if !ok || vm.Config == nil {
			return
		}
		for _, d := range vm.Config.Hardware.Device {
			if c, ok := d.(types.BaseVirtualEthernetCard); ok && !yield(c.GetVirtualEthernetCard().MacAddress) {
				return
			}
		}
	}
}

// claimMAC notes a drawn address, so that two VMs that are made at once do not
// get the same one.
func (l *Lab) claimMAC(mac string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.macs[mac] {
		return false
	}
	l.macs[mac] = true
	return true
}

// checkConfig refuses what of a VM's configuration the lab would ignore.
func (l *Lab) checkConfig(c *types.VirtualMachineConfigSpec) types.BaseMethodFault {
	switch {
	case c.Crypto != nil:
		return notSupported("encrypted VMs (configSpec.crypto)")
	case len(c.TagSpecs) != 0:
		return notSupported("tags (configSpec.tagSpecs)")
	case c.VAppConfig != nil:
		return notSupported("vApp properties (configSpec.vAppConfig)")
	case len(c.VmProfile) != 0:
		return notSupported("storage policies (configSpec.vmProfile)")
	case c.Firmware != "" && c.Firmware != string(types.GuestOsDescriptorFirmwareTypeBios):
		return notSupported("firmware %q: VMs boot by BIOS", c.Firmware)
	case c.NumCPUs < 0 || c.NumCPUs > 64:
		return invalidArgument("configSpec.numCPUs", "%d is not 1 to 64", c.NumCPUs)
	case c.MemoryMB < 0 || c.MemoryMB > 1<<20 || c.MemoryMB%4 != 0:
		return invalidArgument("configSpec.memoryMB", "%d is not a multiple of 4 up to 1 TiB", c.MemoryMB)
	}
	for _, o := range c.ExtraConfig {
		if o == nil || o.GetOptionValue() == nil {
			return invalidArgument("configSpec.extraConfig", "there is an empty option")
		}
		v := o.GetOptionValue()
		s, ok := v.Value.(string)
		if !ok {
			return invalidArgument("configSpec.extraConfig", "the value of %q is a %T, not a string", v.Key, v.Value)
		}
		if why := badOption(v.Key, s); why != "" {
			return invalidArgument("configSpec.extraConfig", "%q: %s", v.Key, why)
		}
	}
	return nil
}

// sortedKeys returns a map's keys in order.
func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
