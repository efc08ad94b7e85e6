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

// rootDisk finds a VM's root disk, the first of its first adapter.
func rootDisk(m *mo.VirtualMachine) (vic.Disk, error) {
	if m.Config == nil {
		return vic.Disk{}, fault.Of(vic.ErrState, "vSphere does not know its configuration now")
	}
	for _, d := range object.VirtualDeviceList(m.Config.Hardware.Device).SelectByType((*types.VirtualDisk)(nil)) {
		disk := d.(*types.VirtualDisk)
		b, ok := disk.Backing.(types.BaseVirtualDeviceFileBackingInfo)
		if ok && disk.UnitNumber != nil && *disk.UnitNumber == 0 {
			return vic.Disk{Path: b.GetVirtualDeviceFileBackingInfo().FileName, Bytes: disk.CapacityInBytes}, nil
		}
	}
	return vic.Disk{}, fault.Of(vic.ErrNotFound, "the VM has no root disk")
}
