package containervm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/internal/vsphere"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/tether"
)

// Keys of a container VM's extraConfig, beside those of package tether.
const (
	keyID      = "vic.id"
	keyOwner   = "vic.owner"
	keyImage   = "vic.image"
	keyCreated = "vic.created"
)

// noStatus stands under tether.StatusKey until the guest writes its first:
// vSphere keeps no empty value, and a key that first appears while the VM runs
// is dropped at power-off.
const noStatus = "{}"

// Create makes a container VM, powered off, in one vSphere task. The same Spec
// with the same ID again opens what the first call made. A name that another
// container of the VCH has is vic.ErrConflict.
func Create(ctx context.Context, c *vic.Client, spec Spec) (*VM, error) {
	const op = "create container"
	ref := vic.Ref{Kind: "vm", Name: spec.Name}
	given := spec.ID != ""
	if err := spec.complete(); err != nil {
		return nil, fault.Wrap(op, ref, err)
	}
	cfg, err := spec.config()
	if err != nil {
		return nil, fault.Wrap(op, ref, err)
	}
	vmSpec, err := spec.vm(cfg)
	if err != nil {
		return nil, fault.Wrap(op, ref, err)
	}
	if given {
		vm, err := Open(ctx, c, spec.Owner, spec.ID)
		if err == nil || !errors.Is(err, vic.ErrNotFound) {
			return vm, err
		}
	}
	folder := object.NewFolder(c.Vim(), types.ManagedObjectReference{Type: "Folder", Value: spec.Owner.Folder.ID})
	pool := object.NewResourcePool(c.Vim(), types.ManagedObjectReference{Type: "ResourcePool", Value: spec.Owner.Pool.ID})
	t, err := folder.CreateVM(ctx, *vmSpec, pool, nil)
	if err != nil {
		return nil, fault.Wrap(op, ref, vsphere.Judge(err))
	}
	res, err := vsphere.WaitResult(ctx, c.Session(), t.Reference())
	if err != nil {
		return nil, fault.Wrap(op, ref, err)
	}
	mo, ok := res.(types.ManagedObjectReference)
	if !ok {
		return nil, fault.Wrap(op, ref, fault.Of(vic.ErrUnknownOutcome, "the task's result is a %T, no VM", res))
	}
	return &VM{c: c, ref: mo, id: spec.ID, name: spec.Name, owner: spec.Owner, view: view{fresh: make(chan struct{})}}, nil
}

// instanceUUID derives the VM's instance UUID from the container's ID, so that
// a container is found by vCenter's own index.
func instanceUUID(id string) string {
	return uuid.NewSHA1(uuid.NameSpaceOID, []byte("vic container "+id)).String()
}

func (s *Spec) vm(cfg *tether.Config) (*types.VirtualMachineConfigSpec, error) {
	doc, err := json.Marshal(cfg)
	if err != nil {
		return nil, err
	}
	if len(doc) > 60<<10 {
		return nil, fault.Of(vic.ErrInvalid, "arguments and environment take %d bytes; a guest takes at most 60 KiB by guestinfo", len(doc))
	}
	created := time.Now().UTC().Format(time.RFC3339Nano)
	extra := []types.BaseOptionValue{
		&types.OptionValue{Key: tether.ConfigKey, Value: string(doc)},
		&types.OptionValue{Key: tether.StatusKey, Value: noStatus},
		&types.OptionValue{Key: keyID, Value: s.ID},
		&types.OptionValue{Key: keyOwner, Value: s.Owner.ID},
		&types.OptionValue{Key: keyImage, Value: s.ImageName},
		&types.OptionValue{Key: keyCreated, Value: created},
	}
	devices, err := s.devices()
	if err != nil {
		return nil, err
	}
	return &types.VirtualMachineConfigSpec{
		Name:         s.Name,
		InstanceUuid: instanceUUID(s.ID),
		GuestId:      string(types.VirtualMachineGuestOsIdentifierOther3xLinux64Guest),
		Firmware:     string(types.GuestOsDescriptorFirmwareTypeBios),
		Files:        &types.VirtualMachineFileInfo{VmPathName: fmt.Sprintf("[%s]", s.Owner.Datastore.Name)},
		NumCPUs:      s.CPUs,
		MemoryMB:     s.MemoryMB,
		Annotation:   s.annotation(cfg),
		ExtraConfig:  extra,
		DeviceChange: devices,
	}, nil
}

// annotation is what an administrator reads in the vSphere client.
func (s *Spec) annotation(cfg *tether.Config) string {
	return fmt.Sprintf("Container %s of VCH %s\nimage: %s\ncommand: %.200q\nid: %s", s.Name, s.Owner.Name, s.ImageName, cfg.Process.Args, s.ID)
}

// devices are the VM's: a paravirtual SCSI controller with the root disk, a
// SATA CD with the boot ISO, vmxnet3 adapters. Nothing else is emulated.
func (s *Spec) devices() ([]types.BaseVirtualDeviceConfigSpec, error) {
	const scsiKey, sataKey = -100, -200
	cap := s.Root.Bytes
	thin, persistent := types.NewBool(true), string(types.VirtualDiskModePersistent)
	list := object.VirtualDeviceList{
		&types.ParaVirtualSCSIController{VirtualSCSIController: types.VirtualSCSIController{
			SharedBus:         types.VirtualSCSISharingNoSharing,
			VirtualController: types.VirtualController{BusNumber: 0, VirtualDevice: types.VirtualDevice{Key: scsiKey}},
		}},
		&types.VirtualDisk{
			CapacityInKB: cap / 1024, CapacityInBytes: cap,
			VirtualDevice: types.VirtualDevice{
				Key: -101, ControllerKey: scsiKey, UnitNumber: types.NewInt32(0),
				Backing: &types.VirtualDiskFlatVer2BackingInfo{
					VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{FileName: fmt.Sprintf("[%s]", s.Owner.Datastore.Name)},
					DiskMode:                     persistent,
					ThinProvisioned:              thin,
					Parent: &types.VirtualDiskFlatVer2BackingInfo{
						VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{FileName: s.Root.Path},
						DiskMode:                     persistent,
					},
				},
			},
		},
		&types.VirtualAHCIController{VirtualSATAController: types.VirtualSATAController{
			VirtualController: types.VirtualController{BusNumber: 0, VirtualDevice: types.VirtualDevice{Key: sataKey}},
		}},
		&types.VirtualCdrom{VirtualDevice: types.VirtualDevice{
			Key: -201, ControllerKey: sataKey, UnitNumber: types.NewInt32(0),
			Backing: &types.VirtualCdromIsoBackingInfo{
				VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{FileName: s.Owner.BootISO},
			},
			Connectable: &types.VirtualDeviceConnectInfo{StartConnected: true, Connected: true, AllowGuestControl: false},
		}},
	}
	for i, n := range s.NICs {
		list = append(list, &types.VirtualVmxnet3{VirtualVmxnet: types.VirtualVmxnet{VirtualEthernetCard: types.VirtualEthernetCard{
			AddressType: string(types.VirtualEthernetCardMacTypeManual), MacAddress: n.MAC,
			WakeOnLanEnabled: types.NewBool(false),
			VirtualDevice: types.VirtualDevice{
				Key: int32(-300 - i), Backing: nicBacking(n),
				Connectable: &types.VirtualDeviceConnectInfo{StartConnected: true, Connected: true, AllowGuestControl: false},
			},
		}}})
	}
	return list.ConfigSpec(types.VirtualDeviceConfigSpecOperationAdd)
}

func nicBacking(n vic.NIC) types.BaseVirtualDeviceBackingInfo {
	if n.PortGroupKey != "" {
		return &types.VirtualEthernetCardDistributedVirtualPortBackingInfo{
			Port: types.DistributedVirtualSwitchPortConnection{PortgroupKey: n.PortGroupKey, SwitchUuid: n.SwitchUUID},
		}
	}
	return &types.VirtualEthernetCardNetworkBackingInfo{
		VirtualDeviceDeviceBackingInfo: types.VirtualDeviceDeviceBackingInfo{DeviceName: n.Network.Name},
	}
}
