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

// RootDisk is the top disk of the container's root filesystem. Only while the
// VM is off does it make sense to read it.
func (v *VM) RootDisk(ctx context.Context) (vic.Disk, error) {
	const op = "find root disk of container"
	var m mo.VirtualMachine
	if err := vsphere.Properties(ctx, v.c.Session(), v.ref, []string{"config.hardware.device"}, &m); err != nil {
		return vic.Disk{}, fault.Wrap(op, v.Ref(), err)
	}
	if m.Config != nil {
		for _, d := range object.VirtualDeviceList(m.Config.Hardware.Device).SelectByType((*types.VirtualDisk)(nil)) {
			disk := d.(*types.VirtualDisk)
			b, ok := disk.Backing.(types.BaseVirtualDeviceFileBackingInfo)
			if disk.UnitNumber != nil && *disk.UnitNumber == 0 && ok {
				return vic.Disk{Path: b.GetVirtualDeviceFileBackingInfo().FileName, Bytes: disk.CapacityInBytes}, nil
			}
		}
	}
	return vic.Disk{}, fault.Wrap(op, v.Ref(), fault.Of(vic.ErrNotFound, "the VM has no root disk"))
}
