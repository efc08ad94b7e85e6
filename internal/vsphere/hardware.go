package vsphere

import (
	"fmt"

	"github.com/vmware/govmomi/vim25/types"
)

// The devices of the VMs that this module makes. Nothing else is emulated.

// SCSIController is a paravirtual one, the VM's first.
func SCSIController(key int32) *types.ParaVirtualSCSIController {
	return &types.ParaVirtualSCSIController{VirtualSCSIController: types.VirtualSCSIController{
		SharedBus:         types.VirtualSCSISharingNoSharing,
		VirtualController: types.VirtualController{BusNumber: 0, VirtualDevice: types.VirtualDevice{Key: key}},
	}}
}

// Disk is a thin disk of the given size in bytes. file is its datastore path,
// or "[datastore]" for one that vSphere names; parent is the disk that it is a
// child of, or empty.
func Disk(key, controller, unit int32, file, parent string, bytes int64) *types.VirtualDisk {
	const persistent = string(types.VirtualDiskModePersistent)
	b := &types.VirtualDiskFlatVer2BackingInfo{
		VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{FileName: file},
		DiskMode:                     persistent,
		ThinProvisioned:              types.NewBool(true),
	}
	if parent != "" {
		b.Parent = &types.VirtualDiskFlatVer2BackingInfo{
			VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{FileName: parent},
			DiskMode:                     persistent,
		}
	}
	return &types.VirtualDisk{
		CapacityInKB: bytes / 1024, CapacityInBytes: bytes,
		VirtualDevice: types.VirtualDevice{Key: key, ControllerKey: controller, UnitNumber: &unit, Backing: b},
	}
}

// ExistingDisk is a disk that is there already, at a datastore path, and that
// snapshots of the VM leave alone. It has no capacity here: by that
// object.VirtualDeviceList.ConfigSpec knows that none is to be made.
func ExistingDisk(key, controller, unit int32, file string) *types.VirtualDisk {
	return &types.VirtualDisk{VirtualDevice: types.VirtualDevice{
		Key: key, ControllerKey: controller, UnitNumber: &unit,
		Backing: &types.VirtualDiskFlatVer2BackingInfo{
			VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{FileName: file},
			DiskMode:                     string(types.VirtualDiskModeIndependent_persistent),
		},
	}}
}

// SATAController is the VM's first.
func SATAController(key int32) *types.VirtualAHCIController {
	return &types.VirtualAHCIController{VirtualSATAController: types.VirtualSATAController{
		VirtualController: types.VirtualController{BusNumber: 0, VirtualDevice: types.VirtualDevice{Key: key}},
	}}
}

// CD is a drive with an image, of a datastore path, that the VM boots from.
func CD(key, controller int32, iso string) *types.VirtualCdrom {
	return &types.VirtualCdrom{VirtualDevice: types.VirtualDevice{
		Key: key, ControllerKey: controller, UnitNumber: types.NewInt32(0),
		Backing:     &types.VirtualCdromIsoBackingInfo{VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{FileName: iso}},
		Connectable: connected(),
	}}
}

// A Port says where an adapter is connected: the name of a standard port group,
// or key and switch of a distributed one.
type Port struct{ Name, Key, Switch string }

// Adapter is a vmxnet3.
func Adapter(key int32, mac string, p Port) *types.VirtualVmxnet3 {
	var b types.BaseVirtualDeviceBackingInfo = &types.VirtualEthernetCardNetworkBackingInfo{
		VirtualDeviceDeviceBackingInfo: types.VirtualDeviceDeviceBackingInfo{DeviceName: p.Name},
	}
	if p.Key != "" {
		b = &types.VirtualEthernetCardDistributedVirtualPortBackingInfo{
			Port: types.DistributedVirtualSwitchPortConnection{PortgroupKey: p.Key, SwitchUuid: p.Switch},
		}
	}
	return &types.VirtualVmxnet3{VirtualVmxnet: types.VirtualVmxnet{VirtualEthernetCard: types.VirtualEthernetCard{
		AddressType: string(types.VirtualEthernetCardMacTypeManual), MacAddress: mac,
		WakeOnLanEnabled: types.NewBool(false),
		VirtualDevice:    types.VirtualDevice{Key: key, Backing: b, Connectable: connected()},
	}}}
}

// SerialPort is a network serial port on which the VM listens, at its host. One
// that is not plugged leads nowhere until an administrator connects it.
func SerialPort(key, unit int32, port int, plugged bool) *types.VirtualSerialPort {
	const sio = 400 // the controller that every VM has
	return &types.VirtualSerialPort{
		YieldOnPoll: true,
		VirtualDevice: types.VirtualDevice{
			Key: key, ControllerKey: sio, UnitNumber: &unit,
			Backing: &types.VirtualSerialPortURIBackingInfo{VirtualDeviceURIBackingInfo: types.VirtualDeviceURIBackingInfo{
				ServiceURI: fmt.Sprintf("tcp://:%d", port), Direction: string(types.VirtualDeviceURIBackingOptionDirectionServer),
			}},
			Connectable: &types.VirtualDeviceConnectInfo{StartConnected: plugged, Connected: plugged, AllowGuestControl: false},
		},
	}
}

func connected() *types.VirtualDeviceConnectInfo {
	return &types.VirtualDeviceConnectInfo{StartConnected: true, Connected: true, AllowGuestControl: false}
}
