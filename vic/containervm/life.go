package containervm

import (
	"context"
	"errors"
	"fmt"
	"path"
	"time"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/internal/vsphere"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/tether"
)

func (v *VM) object() *object.VirtualMachine { return object.NewVirtualMachine(v.c.Vim(), v.ref) }

func (v *VM) task(ctx context.Context, op string, t *object.Task, err error) error {
	if err == nil {
		_, err = vsphere.Wait(ctx, v.c.Vim(), t.Reference(), nil)
	} else {
		err = vsphere.Judge(err)
	}
	return fault.Wrap(op, v.Ref(), err)
}

// Start powers the VM on. It returns when the VM is on, not when the process
// runs. A container that runs already is vic.ErrState.
func (v *VM) Start(ctx context.Context) error {
	t, err := v.object().PowerOn(ctx)
	err = v.task(ctx, "start container", t, err)
	if err == nil {
		v.starts.tell()
	}
	return err
}

// Kill sends a signal to the main process, or, with SIGKILL or where the guest
// cannot be reached, powers the VM off. An empty name is SIGKILL. A container
// that does not run is vic.ErrState.
func (v *VM) Kill(ctx context.Context, signal string) error {
	const op = "kill container"
	if signal == "" {
		signal = "SIGKILL"
	}
	t, err := v.Dial(ctx)
	if err != nil {
		if signal == "SIGKILL" && errors.Is(err, vic.ErrUnavailable) {
			return v.powerOff(ctx, op)
		}
		return fault.Wrap(op, v.Ref(), err)
	}
	defer t.Close()
	return fault.Wrap(op, v.Ref(), t.Signal(ctx, signal))
}

// StopOptions say how to stop; the zero value uses the container's own signal
// and grace.
type StopOptions struct {
	Signal string
	// Grace before SIGKILL.
	Grace *time.Duration
}

// slack is what a guest gets beyond the grace to write its outcome down and
// power off.
const slack = 10 * time.Second

// Stop asks the main process to end, kills it after the grace, and returns
// when the VM is off. A guest that cannot be reached, or does not power off in
// time, is powered off. A container that does not run is no error.
func (v *VM) Stop(ctx context.Context, o *StopOptions) error {
	const op = "stop container"
	if o == nil {
		o = &StopOptions{}
	}
	info, err := v.Inspect(ctx)
	if err != nil {
		return err
	}
	if info.State != Running {
		return nil
	}
	grace := time.Duration(-1) // the guest's own
	bound := 10 * time.Second
	if cfg, err := v.config(ctx); err == nil && cfg.Stop.Grace > 0 {
		bound = cfg.Stop.Grace
	}
	if o.Grace != nil {
		grace, bound = max(0, *o.Grace), max(0, *o.Grace)
	}
	wctx, cancel := context.WithTimeout(ctx, bound+slack)
	defer cancel()
	t, err := v.Dial(wctx)
	if err == nil {
		_, err = t.Stop(wctx, o.Signal, grace)
		t.Close()
	}
	if err == nil || errors.Is(err, tether.ErrNotRunning) {
		if _, err = v.Wait(wctx); err == nil {
			return nil
		}
	}
	if ctx.Err() != nil {
		return fault.Wrap(op, v.Ref(), err)
	}
	v.c.Logger().Warn("the guest does not stop by itself; powering it off", "container", v.name, "reason", err)
	return v.powerOff(ctx, op)
}

func (v *VM) powerOff(ctx context.Context, op string) error {
	t, err := v.object().PowerOff(ctx)
	err = v.task(ctx, op, t, err)
	if errors.Is(err, vic.ErrState) {
		info, e := v.Inspect(ctx)
		if e == nil && info.State != Running {
			return nil
		}
	}
	return err
}

// Wait returns when the VM is off, with what is known of the outcome then. A
// process that ended with a non-zero code is no error.
func (v *VM) Wait(ctx context.Context) (Info, error) {
	err := v.until(ctx, func(s snapshot) bool { return s.power != "" && s.power != types.VirtualMachinePowerStatePoweredOn })
	if err != nil {
		return Info{}, fault.Wrap("wait for container", v.Ref(), err)
	}
	return v.Inspect(ctx)
}

// snapshot is what until watches.
type snapshot struct {
	power  types.VirtualMachinePowerState
	status tether.Status
}

// until follows the VM's power state and the guest's status until f returns
// true.
func (v *VM) until(ctx context.Context, f func(snapshot) bool) error {
	var s snapshot
	return vsphere.Watch(ctx, v.c.Vim(), v.ref, []string{"runtime.powerState", "config.extraConfig"}, func(set []types.PropertyChange) bool {
		for _, ch := range set {
			switch val := ch.Val.(type) {
			case types.VirtualMachinePowerState:
				s.power = val
			case types.ArrayOfOptionValue:
				for _, o := range val.OptionValue {
					kv := o.GetOptionValue()
					if str, ok := kv.Value.(string); ok && kv.Key == tether.StatusKey {
						s.status = parseStatus(str)
					}
				}
			}
		}
		return f(s)
	})
}

// config reads the configuration the container was created with.
func (v *VM) config(ctx context.Context) (*tether.Config, error) {
	var m mo.VirtualMachine
	if err := vsphere.Properties(ctx, v.c.Vim(), v.ref, []string{"config.extraConfig"}, &m); err != nil {
		return nil, err
	}
	if m.Config != nil {
		for _, o := range m.Config.ExtraConfig {
			if kv := o.GetOptionValue(); kv.Key == tether.ConfigKey {
				s, _ := kv.Value.(string)
				return tether.ParseConfig([]byte(s))
			}
		}
	}
	return nil, fault.Of(vic.ErrInvalid, "the VM has no %s", tether.ConfigKey)
}

// Delete removes a container. One that runs is vic.ErrState unless force, which
// powers it off. A container that is gone already is no error.
//
// vSphere destroys a VM together with every disk attached to it, parents of
// child disks included, so the disks are detached first and the container's
// own is deleted as a file.
func (v *VM) Delete(ctx context.Context, force bool) error {
	const op = "delete container"
	var m mo.VirtualMachine
	err := vsphere.Properties(ctx, v.c.Vim(), v.ref, []string{"runtime.powerState", "config.hardware.device", "config.files.vmPathName"}, &m)
	if isNotFound(err) {
		return nil
	}
	if err != nil {
		return fault.Wrap(op, v.Ref(), err)
	}
	if m.Runtime.PowerState == types.VirtualMachinePowerStatePoweredOn {
		if !force {
			return fault.Wrap(op, v.Ref(), fault.Of(vic.ErrState, "it is running: stop it first, or force"))
		}
		if err := v.powerOff(ctx, op); err != nil && !isNotFound(err) {
			return err
		}
	}
	if err := v.detach(ctx, object.VirtualDeviceList(m.Config.Hardware.Device)); err != nil {
		if isNotFound(err) {
			return nil
		}
		return fault.Wrap(op, v.Ref(), err)
	}
	t, err := v.object().Destroy(ctx)
	if err := v.task(ctx, op, t, err); err != nil && !isNotFound(err) {
		return err
	}
	// What is left of the VM's directory is the container's own disk.
	ds, p, err := vsphere.SplitPath(m.Config.Files.VmPathName)
	if err != nil {
		return fault.Wrap(op, v.Ref(), err)
	}
	dir := path.Dir(p)
	if dir == "." || dir == "/" || ds != v.owner.Datastore.Name {
		return fault.Wrap(op, v.Ref(), fault.Of(vic.ErrInvalid, "its files lie at %s, where nothing can be deleted safely", m.Config.Files.VmPathName))
	}
	if err := v.files().Delete(ctx, dir); err != nil {
		return &fault.Error{Op: op, Ref: v.Ref(), Err: err, Left: []vic.Ref{{Kind: "file", ID: v.files().Path(dir)}}}
	}
	return nil
}

// detach takes every disk off the VM and keeps their files.
func (v *VM) detach(ctx context.Context, devices object.VirtualDeviceList) error {
	var ch []types.BaseVirtualDeviceConfigSpec
	for _, d := range devices.SelectByType((*types.VirtualDisk)(nil)) {
		ch = append(ch, &types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationRemove, Device: d})
	}
	if len(ch) == 0 {
		return nil
	}
	t, err := v.object().Reconfigure(ctx, types.VirtualMachineConfigSpec{DeviceChange: ch})
	if err != nil {
		return fmt.Errorf("detach disks: %w", vsphere.Judge(err))
	}
	if _, err := vsphere.Wait(ctx, v.c.Vim(), t.Reference(), nil); err != nil {
		return fmt.Errorf("detach disks: %w", err)
	}
	return nil
}

// files opens the datastore that the VCH keeps its containers on.
func (v *VM) files() *vsphere.Files {
	return vsphere.NewFiles(v.c.Vim(),
		types.ManagedObjectReference{Type: "Datacenter", Value: v.c.Datacenter().ID}, v.owner.Datacenter,
		types.ManagedObjectReference{Type: "Datastore", Value: v.owner.Datastore.ID}, v.owner.Datastore.Name)
}
