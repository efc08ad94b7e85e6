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
	keyStopped = "vic.stopped"
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
	if given {
		vm, err := Open(ctx, c, spec.Owner, spec.ID)
		if err == nil || !errors.Is(err, vic.ErrNotFound) {
			return vm, err
		}
	}
	if spec.Serial {
		if spec.serialPort, err = freePort(ctx, c, spec.Owner); err != nil {
			return nil, fault.Wrap(op, ref, err)
		}
	}
	vmSpec, err := spec.vm(cfg)
	if err != nil {
		return nil, fault.Wrap(op, ref, err)
	}
	folder := object.NewFolder(c.Vim(), types.ManagedObjectReference{Type: "Folder", Value: spec.Owner.Folder.ID})
	pool := object.NewResourcePool(c.Vim(), types.ManagedObjectReference{Type: "ResourcePool", Value: spec.Owner.Pool.ID})
	t, err := vsphere.Begin(ctx, func(ctx context.Context) (*object.Task, error) { return folder.CreateVM(ctx, *vmSpec, pool, nil) })
	if err != nil {
		return nil, fault.Wrap(op, ref, err)
	}
	res, err := vsphere.WaitResult(ctx, c.Session(), t)
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
	extra, err := configOptions(doc)
	if err != nil {
		return nil, err
	}
	created := time.Now().UTC().Format(time.RFC3339Nano)
	extra = append(extra,
		&types.OptionValue{Key: tether.StatusKey, Value: noStatus},
		&types.OptionValue{Key: KeyReach, Value: Reach(s.NICs, s.Serial)},
		&types.OptionValue{Key: keyID, Value: s.ID},
		&types.OptionValue{Key: keyOwner, Value: s.Owner.ID},
		&types.OptionValue{Key: keyImage, Value: s.ImageName},
		&types.OptionValue{Key: keyCreated, Value: created},
		&types.OptionValue{Key: keyStopped, Value: notStopped},
	)
	if ids := s.volumeIDs(); ids != "" {
		extra = append(extra, &types.OptionValue{Key: vsphere.KeyVolumes, Value: ids})
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

// devices are the VM's: a paravirtual SCSI controller with the root disk and
// the volumes', a SATA CD with the boot ISO, vmxnet3 adapters, serial ports where
// they are asked for. Nothing else is emulated.
func (s *Spec) devices() ([]types.BaseVirtualDeviceConfigSpec, error) {
	const scsiKey, sataKey = -100, -200
	list := object.VirtualDeviceList{
		vsphere.SCSIController(scsiKey),
		vsphere.Disk(-101, scsiKey, 0, fmt.Sprintf("[%s]", s.Owner.Datastore.Name), s.Root.Path, s.Root.Bytes),
		vsphere.SATAController(sataKey),
		vsphere.CD(-201, sataKey, s.Owner.BootISO),
	}
	list = append(list, s.volumeDisks(scsiKey)...)
	for i, n := range s.NICs {
		list = append(list, vsphere.Adapter(int32(-300-i), n.MAC, vsphere.Port{Name: n.Network.Name, Key: n.PortGroupKey, Switch: n.SwitchUUID}))
	}
	if s.Serial {
		// COM1 is the kernel's console. It leads nowhere; whoever wants to watch
		// it connects it.
		list = append(list, vsphere.SerialPort(-400, 0, s.serialPort+1, false), vsphere.SerialPort(-401, serialCOM-1, s.serialPort, true))
	}
	return list.ConfigSpec(types.VirtualDeviceConfigSpecOperationAdd)
}
