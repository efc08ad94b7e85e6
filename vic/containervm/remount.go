package containervm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/internal/vsphere"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/tether"
)

// AttachMount gives a container a further mount, in any state but suspended. One
// task adds the volume's disk to the VM and the mount to its configuration, so that
// every start from then on has it; the guest of a container that runs is asked next
// to mount it, inside the container. Where it refuses, the task is undone and the
// error says why. A controller that is killed between leaves a mount that is there
// from the next start on; the same AttachMount again completes it, DetachMount takes
// it back.
//
// A target that another mount has, or on a running container one that would hide
// another, is vic.ErrConflict; the same mount again is no error. A disk that a
// running VM has is vic.ErrInUse, and says which. An empty volume stays empty where
// the container has run already (see tether.Client.Mount); of one that was never
// started it is filled at that start. A guest whose tether is older than this is
// vic.ErrUnsupported, one that cannot be reached vic.ErrUnavailable, before anything
// is changed.
func (v *VM) AttachMount(ctx context.Context, m Mount) error {
	return fault.Wrap("attach mount to container", v.Ref(), v.attachMount(ctx, m))
}

func (v *VM) attachMount(ctx context.Context, m Mount) error {
	if err := m.check(); err != nil {
		return fault.Of(vic.ErrInvalid, "mount: %v", err)
	}
	t, err := v.guest(ctx, v.dial)
	if err != nil {
		return err
	}
	if t != nil {
		defer func() { _ = t.Close() }()
	}
	var mount tether.Mount
	changed := false
	err = v.change(ctx, func(st *hardware) (spec *types.VirtualMachineConfigSpec, err error) {
		mount, spec, err = st.attach(&m)
		changed = spec != nil
		return spec, err
	})
	if err != nil {
		return v.explainUse(ctx, err, m.Disk.Path)
	}
	if t == nil {
		// It was off, and somebody may have started it.
		if t, err = v.guest(ctx, v.dial); t == nil && err == nil {
			return nil
		}
		if t != nil {
			defer func() { _ = t.Close() }()
		}
	}
	if err == nil {
		err = t.Mount(ctx, mount)
	}
	if err == nil || errors.Is(err, tether.ErrNotRunning) {
		return nil // What is ending finds it at its next start.
	}
	var answer *tether.RemoteError
	dctx, cancel := vsphere.Detached(ctx)
	defer cancel()
	if info, e := v.Inspect(dctx); !errors.As(err, &answer) && e == nil && info.State != Suspended && !info.On() {
		return nil // It ended meanwhile.
	}
	err = guestError(err)
	if !changed {
		return err
	}
	if e := v.detachMount(dctx, m.Target, v.dialNow); e != nil {
		return fmt.Errorf("%w (and it is mounted at the container's next start, because it could not be detached: %w)", err, e)
	}
	return err
}

// DetachMount takes a mount away by its target, in any state but suspended, whether
// AttachMount or the container's Spec has made it. The guest of a container that runs
// unmounts it first, which writes all of a volume to its disk; then one task takes
// it out of the configuration, and the disk, where no other mount is of it, off the
// VM. Another container can have the volume when DetachMount returns.
//
// A mount in use is vic.ErrInUse, and naming who uses it, stays: there is no lazy
// unmounting, which would leave processes that write to a disk that is gone. A target
// of nothing is vic.ErrNotFound. A controller that is killed between leaves a
// container without the mount that has it again from its next start on; DetachMount
// again completes it.
func (v *VM) DetachMount(ctx context.Context, target string) error {
	return fault.Wrap("detach mount of container", v.Ref(), v.detachMount(ctx, target, v.dial))
}

func (v *VM) detachMount(ctx context.Context, target string, dial dialFunc) error {
	st, err := v.hardware(ctx)
	if err != nil {
		return err
	}
	i := st.mountAt(target)
	if i < 0 {
		return fault.Of(vic.ErrNotFound, "nothing of its configuration is mounted at %.200q", target)
	}
	mount := st.config.Mounts[i]
	t, err := v.guest(ctx, dial)
	if err != nil {
		return err
	}
	if t != nil {
		defer t.Close()
		err := t.Unmount(ctx, target)
		if err != nil && !errors.Is(err, tether.ErrNotFound) {
			var answer *tether.RemoteError
			if info, e := v.Inspect(ctx); errors.As(err, &answer) || e != nil || info.On() || info.State == Suspended {
				return guestError(err)
			}
		}
	}
	err = v.change(ctx, func(now *hardware) (*types.VirtualMachineConfigSpec, error) {
		if now.info.On() && t == nil {
			return nil, fault.Of(vic.ErrState, "it was started meanwhile: try again")
		}
		return now.detach(target)
	})
	if err != nil && t != nil {
		dctx, cancel := vsphere.Detached(ctx)
		defer cancel()
		if e := t.Mount(dctx, mount); e != nil {
			err = fmt.Errorf("%w (and the container has no mount at %s until it is started again: %w)", err, target, e)
		}
	}
	return err
}

// ExtendDisk makes a disk that the VM has attached larger, to d.Bytes, by a
// reconfiguration: that is how vSphere takes it of a VM that runs, also of one that
// does not. As many bytes as it has are no error, fewer are vic.ErrInvalid; a disk
// with a parent, or with snapshots, does not grow. A VM that is suspended is
// vic.ErrState, a disk that it does not have vic.ErrNotFound. The guest learns of it
// by GrowFilesystem, or at its next start.
func (v *VM) ExtendDisk(ctx context.Context, d vic.Disk) error {
	return fault.Wrap("extend disk of container", v.Ref(), v.change(ctx, func(st *hardware) (*types.VirtualMachineConfigSpec, error) {
		have, err := st.disk(d.Path)
		if err != nil {
			return nil, err
		}
		switch {
		case have.CapacityInBytes == d.Bytes:
			return nil, nil
		case have.CapacityInBytes > d.Bytes:
			return nil, fault.Of(vic.ErrInvalid, "%s has %d bytes already, more than %d: disks do not shrink", d.Path, have.CapacityInBytes, d.Bytes)
		}
		larger := *have
		larger.CapacityInBytes, larger.CapacityInKB = d.Bytes, d.Bytes/1024
		return &types.VirtualMachineConfigSpec{DeviceChange: []types.BaseVirtualDeviceConfigSpec{
			&types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationEdit, Device: &larger},
		}}, nil
	}))
}

// GrowFilesystem has the guest of a running container give the filesystem of a
// volume, by the path of its disk, all of the disk, and tells what it has then. A
// container that does not run is vic.ErrState: its next start does the same.
func (v *VM) GrowFilesystem(ctx context.Context, disk string) (s tether.VolumeSize, err error) {
	const op = "grow volume of container"
	st, err := v.hardware(ctx)
	if err != nil {
		return s, fault.Wrap(op, v.Ref(), err)
	}
	d, err := st.disk(disk)
	if err != nil {
		return s, fault.Wrap(op, v.Ref(), err)
	}
	err = v.ask(ctx, op, func(t *tether.Client) error {
		s, err = t.GrowVolume(ctx, int(*d.UnitNumber))
		return err
	})
	return s, err
}

// guest dials the guest of a container that is on; nil is one that is off. A
// suspended one is vic.ErrState.
func (v *VM) guest(ctx context.Context, dial dialFunc) (*tether.Client, error) {
	info, err := v.Inspect(ctx)
	switch {
	case err != nil:
		return nil, err
	case info.State == Suspended:
		return nil, errSuspended()
	case !info.On():
		return nil, nil
	}
	return dial(ctx, info)
}

func errSuspended() error {
	return fault.Of(vic.ErrState, "its VM is suspended, and vSphere changes no hardware of it: resume or stop it first")
}

// hardware is what a change of a VM's disks and mounts starts from.
type hardware struct {
	info       Info
	config     tether.Config
	devices    object.VirtualDeviceList
	controller int32    // of the disks
	volumes    []string // see vsphere.KeyVolumes
}

var hardwareProps = append(slices.Clone(infoProps), "config.hardware.device")

func (v *VM) hardware(ctx context.Context) (*hardware, error) {
	m := mo.VirtualMachine{}
	if err := vsphere.Properties(ctx, v.c.Session(), v.ref, hardwareProps, &m); err != nil {
		return nil, err
	}
	m.Self = v.ref
	return hardwareOf(&m)
}

func hardwareOf(m *mo.VirtualMachine) (*hardware, error) {
	root, err := rootDevice(m)
	if err != nil {
		return nil, err
	}
	st := &hardware{devices: m.Config.Hardware.Device, controller: root.ControllerKey}
	if st.info, _ = describe(m); st.info.config == "" || json.Unmarshal([]byte(st.info.config), &st.config) != nil {
		return nil, errForged
	}
	for _, o := range m.Config.ExtraConfig {
		if kv := o.GetOptionValue(); kv.Key == vsphere.KeyVolumes {
			s, _ := kv.Value.(string)
			st.volumes = strings.Fields(s)
		}
	}
	return st, nil
}

// change is edit by what plan makes of the VM's hardware. One that is suspended is
// vic.ErrState.
func (v *VM) change(ctx context.Context, plan func(*hardware) (*types.VirtualMachineConfigSpec, error)) error {
	return v.edit(ctx, hardwareProps, func(m *mo.VirtualMachine) (*types.VirtualMachineConfigSpec, error) {
		st, err := hardwareOf(m)
		if err != nil {
			return nil, err
		}
		if st.info.State == Suspended {
			return nil, errSuspended()
		}
		return plan(st)
	})
}

// disk finds an attached disk by its path.
func (st *hardware) disk(path string) (*types.VirtualDisk, error) {
	for _, d := range st.devices.SelectByType((*types.VirtualDisk)(nil)) {
		disk := d.(*types.VirtualDisk)
		if chain := vsphere.BackingChain(disk.Backing); len(chain) > 0 && chain[0] == path && disk.UnitNumber != nil {
			return disk, nil
		}
	}
	return nil, fault.Of(vic.ErrNotFound, "the VM does not have the disk %s", path)
}

func (st *hardware) mountAt(target string) int {
	return slices.IndexFunc(st.config.Mounts, func(m tether.Mount) bool { return m.Target == target })
}

// freeUnit is one for a further disk of a volume.
func (st *hardware) freeUnit() (int, error) {
	taken := map[int]bool{7: true} // the controller's own
	for _, d := range st.devices {
		if x := d.GetVirtualDevice(); x.ControllerKey == st.controller && x.UnitNumber != nil {
			taken[int(*x.UnitNumber)] = true
		}
	}
	for n := 1; n <= tether.MaxVolumeUnit; n++ {
		if !taken[n] {
			return n, nil
		}
	}
	return 0, fault.Of(vic.ErrUnsupported, "it has %d volumes, and its VM has room for no more: detach one first", maxDisks)
}

// attach plans a further mount; no spec where it is there already.
func (st *hardware) attach(m *Mount) (tether.Mount, *types.VirtualMachineConfigSpec, error) {
	units := map[string]int{}
	var add []types.BaseVirtualDeviceConfigSpec
	if path := m.Disk.Path; path != "" {
		if have, err := st.disk(path); err == nil {
			units[path] = int(*have.UnitNumber)
		} else {
			n, err := st.freeUnit()
			if err != nil {
				return tether.Mount{}, nil, err
			}
			units[path] = n
			list := object.VirtualDeviceList{vsphere.ExistingDisk(-1, st.controller, int32(n), path)}
			if add, err = list.ConfigSpec(types.VirtualDeviceConfigSpecOperationAdd); err != nil {
				return tether.Mount{}, nil, err
			}
		}
	}
	mount := m.config(units)
	if i := st.mountAt(m.Target); i >= 0 {
		if len(add) == 0 && reflect.DeepEqual(st.config.Mounts[i], mount) {
			return mount, nil, nil
		}
		return mount, nil, fault.Of(vic.ErrConflict, "%s is the target of another mount: detach that first", m.Target)
	}
	spec, err := st.withMounts(append(slices.Clone(st.config.Mounts), mount))
	if err != nil {
		return mount, nil, err
	}
	spec.DeviceChange = add
	if id := m.VolumeID; id != "" && !slices.Contains(st.volumes, id) {
		spec.ExtraConfig = append(spec.ExtraConfig, volumesOption(append(slices.Clone(st.volumes), id)))
	}
	return mount, spec, nil
}

// detach plans a mount's end; no spec where it is not there any more.
func (st *hardware) detach(target string) (*types.VirtualMachineConfigSpec, error) {
	i := st.mountAt(target)
	if i < 0 {
		return nil, nil
	}
	gone := st.config.Mounts[i].Volume
	left := slices.Delete(slices.Clone(st.config.Mounts), i, i+1)
	spec, err := st.withMounts(left)
	if err != nil || gone == nil {
		return spec, err
	}
	if gone.NFS != nil {
		// The ID is the end of the directory's name.
		is := func(id string) bool { return strings.HasSuffix(gone.NFS.Dir, "-"+id) }
		if slices.ContainsFunc(st.volumes, is) && !slices.ContainsFunc(left, func(m tether.Mount) bool {
			return m.Volume != nil && m.Volume.NFS != nil && m.Volume.NFS.Dir == gone.NFS.Dir
		}) {
			spec.ExtraConfig = append(spec.ExtraConfig, volumesOption(slices.DeleteFunc(slices.Clone(st.volumes), is)))
		}
		return spec, nil
	}
	if slices.ContainsFunc(left, func(m tether.Mount) bool {
		return m.Volume != nil && m.Volume.NFS == nil && m.Volume.Unit == gone.Unit
	}) {
		return spec, nil
	}
	for _, d := range st.devices.SelectByType((*types.VirtualDisk)(nil)) {
		if x := d.GetVirtualDevice(); x.ControllerKey == st.controller && x.UnitNumber != nil && int(*x.UnitNumber) == gone.Unit {
			spec.DeviceChange = append(spec.DeviceChange, &types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationRemove, Device: d})
		}
	}
	return spec, nil
}

func volumesOption(ids []string) *types.OptionValue {
	return &types.OptionValue{Key: vsphere.KeyVolumes, Value: strings.Join(ids, " ")}
}

// withMounts is the configuration with other mounts.
func (st *hardware) withMounts(mounts []tether.Mount) (*types.VirtualMachineConfigSpec, error) {
	fields, err := st.info.configFields()
	if err != nil {
		return nil, err
	}
	delete(fields, "mounts")
	if len(mounts) > 0 {
		b, err := json.Marshal(mounts)
		if err != nil {
			return nil, err
		}
		fields["mounts"] = b
	}
	return editedConfig(fields)
}
