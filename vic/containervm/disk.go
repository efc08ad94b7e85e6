package containervm

import (
	"context"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/internal/vsphere"
	"github.com/vicsdk/vic-go/vic"
)

// RestingDisk returns the root disk of a container that is off, for who reads or
// changes its files from outside. One that runs or is suspended is vic.ErrState:
// its guest has the disk.
func (v *VM) RestingDisk(ctx context.Context) (vic.Disk, error) {
	const op = "open disk of container"
	var m mo.VirtualMachine
	if err := vsphere.Properties(ctx, v.c.Session(), v.ref, []string{"runtime.powerState", "config.hardware.device"}, &m); err != nil {
		return vic.Disk{}, fault.Wrap(op, v.Ref(), err)
	}
	if m.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOff {
		return vic.Disk{}, fault.Wrap(op, v.Ref(), fault.Of(vic.ErrState, "its VM is not off, and its files cannot be reached from outside then: stop the container first"))
	}
	d, err := rootDisk(&m)
	return d, fault.Wrap(op, v.Ref(), err)
}

// rootDisk finds a VM's root disk.
func rootDisk(m *mo.VirtualMachine) (vic.Disk, error) {
	d, err := rootDevice(m)
	if err != nil {
		return vic.Disk{}, err
	}
	b := d.Backing.(types.BaseVirtualDeviceFileBackingInfo)
	return vic.Disk{Path: b.GetVirtualDeviceFileBackingInfo().FileName, Bytes: d.CapacityInBytes}, nil
}

// rootDevice finds the first disk of a VM's first adapter, which is backed by a
// file.
func rootDevice(m *mo.VirtualMachine) (*types.VirtualDisk, error) {
	if m.Config == nil {
		return nil, fault.Of(vic.ErrState, "vSphere does not know its configuration now")
	}
	for _, d := range object.VirtualDeviceList(m.Config.Hardware.Device).SelectByType((*types.VirtualDisk)(nil)) {
		disk := d.(*types.VirtualDisk)
		_, ok := disk.Backing.(types.BaseVirtualDeviceFileBackingInfo)
		if ok && disk.UnitNumber != nil && *disk.UnitNumber == 0 {
			return disk, nil
		}
	}
	return nil, fault.Of(vic.ErrNotFound, "the VM has no root disk")
}
