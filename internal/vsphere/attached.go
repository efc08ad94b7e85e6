package vsphere

import (
	"context"
	"strings"

	"github.com/vmware/govmomi/view"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vicsdk/vic-go/internal/fault"
)

// VMs reads properties of all VMs of the session's datacenter.
func VMs(ctx context.Context, s *Session, props ...string) ([]mo.VirtualMachine, error) {
	dc, _ := s.Datacenter()
	v, err := view.NewManager(s.Vim).CreateContainerView(ctx, dc, []string{"VirtualMachine"}, true)
	if err != nil {
		return nil, Judge(err)
	}
	defer func() {
		dctx, cancel := Detached(ctx)
		defer cancel()
		_ = v.Destroy(dctx)
	}()
	var vms []mo.VirtualMachine
	err = v.Retrieve(ctx, []string{"VirtualMachine"}, props, &vms)
	return vms, Judge(err)
}

// A DiskUser is a VM that has a disk attached.
type DiskUser struct {
	Ref  types.ManagedObjectReference
	Name string
	// On tells that it is not powered off: it has the disk locked.
	On bool
}

// DiskUsers tells which VMs of the datacenter have which disks attached, by the
// datastore paths of the disks, parents left out. A VM that vSphere does not
// tell about now is fault.ErrUnavailable: nothing can be deleted safely then.
func DiskUsers(ctx context.Context, s *Session) (map[string][]DiskUser, error) {
	vms, err := VMs(ctx, s, "name", "runtime.powerState", "config.hardware.device")
	if err != nil {
		return nil, err
	}
	out := map[string][]DiskUser{}
	for _, m := range vms {
		if m.Config == nil {
			return nil, fault.Of(fault.ErrUnavailable, "vSphere does not tell now which disks VM %q has", m.Name)
		}
		for _, d := range m.Config.Hardware.Device {
			disk, ok := d.(*types.VirtualDisk)
			if !ok {
				continue
			}
			if chain := BackingChain(disk.Backing); len(chain) > 0 {
				out[chain[0]] = append(out[chain[0]], DiskUser{m.Self, m.Name, m.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOff})
			}
		}
	}
	return out, nil
}

// KeyVolumes is the key of a VM's extraConfig under which the IDs of those of its
// volumes stand that are directories of NFS servers, with blanks between them: no
// device of the VM tells of them, and this key, unlike those that begin with
// "guestinfo.", no guest can write.
const KeyVolumes = "vic.volumes"

// VolumeUsers tells which VMs of the datacenter have which volumes by their IDs, as
// KeyVolumes says.
func VolumeUsers(ctx context.Context, s *Session) (map[string][]DiskUser, error) {
	vms, err := VMs(ctx, s, "name", "runtime.powerState", "config.extraConfig")
	if err != nil {
		return nil, err
	}
	out := map[string][]DiskUser{}
	for _, m := range vms {
		if m.Config == nil {
			return nil, fault.Of(fault.ErrUnavailable, "vSphere does not tell now which volumes VM %q has", m.Name)
		}
		for _, o := range m.Config.ExtraConfig {
			kv := o.GetOptionValue()
			value, _ := kv.Value.(string)
			if kv.Key != KeyVolumes {
				continue
			}
			for _, word := range strings.Fields(value) {
				out[word] = append(out[word], DiskUser{m.Self, m.Name, m.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOff})
			}
		}
	}
	return out, nil
}

// BackingChain lists a disk's file and those of its parents.
func BackingChain(b types.BaseVirtualDeviceBackingInfo) []string {
	var out []string
	for len(out) < 256 {
		switch x := b.(type) {
		case *types.VirtualDiskFlatVer2BackingInfo:
			if x == nil {
				return out
			}
			out = append(out, x.FileName)
			b = x.Parent
		case *types.VirtualDiskSparseVer2BackingInfo:
			if x == nil {
				return out
			}
			out = append(out, x.FileName)
			b = x.Parent
		case *types.VirtualDiskSeSparseBackingInfo:
			if x == nil {
				return out
			}
			out = append(out, x.FileName)
			b = x.Parent
		default:
			return out
		}
	}
	return out
}
