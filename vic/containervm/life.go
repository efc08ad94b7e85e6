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

func (v *VM) task(ctx context.Context, op string, request func(context.Context) (*object.Task, error)) error {
	return fault.Wrap(op, v.Ref(), vsphere.Do(ctx, v.c.Session(), request))
}

// Start powers the VM on. It returns when the VM is on, not when the process
// runs. A container that runs already is vic.ErrState; one of which a running
// VM has a volume is vic.ErrInUse.
func (v *VM) Start(ctx context.Context) error {
	err := v.powerOn(ctx)
	if err == nil {
		v.starts.tell()
	} else {
		err = v.explainLock(ctx, err)
	}
	return fault.Wrap("start container", v.Ref(), err)
}

// Kill sends a signal to the main process. Where the guest cannot be reached,
// SIGKILL powers the VM off, and others are vic.ErrUnavailable. An empty name is
// SIGKILL. A container that does not run is vic.ErrState. Signals that mean that the
// container is to stop (see tether.Container.Signal) end its restarting, too. Where
// another process has the only way to the guest, a serial line, it is asked by
// guestinfo, within some ten seconds (see tether.Request).
func (v *VM) Kill(ctx context.Context, signal string) error {
	const op = "kill container"
	if signal == "" {
		signal = "SIGKILL"
	}
	info, err := v.Inspect(ctx)
	if err != nil {
		return err
	}
	if !info.On() {
		return fault.Wrap(op, v.Ref(), fault.Of(vic.ErrState, "it is %s, not running", info.State))
	}
	n, err := tether.SignalNumber(signal)
	if err != nil {
		return fault.Wrap(op, v.Ref(), fault.As(vic.ErrInvalid, err))
	}
	if info.stop.IsMeantBy(n) {
		if err := v.noteStop(ctx, info); err != nil {
			return fault.Wrap(op, v.Ref(), err)
		}
	}
	direct := func(t *tether.Client) error { return t.Signal(ctx, signal) }
	dial := v.dial
	if n == 9 {
		dial = v.dialNow // vSphere kills as well
	}
	err = v.instruct(ctx, info, dial, direct, tether.Request{Signal: signal})
	if n == 9 && (errors.Is(err, vic.ErrUnavailable) || errors.Is(err, tether.ErrRefused)) {
		return v.powerOff(ctx, op)
	}
	return fault.Wrap(op, v.Ref(), guestError(err))
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
// when the VM is off. The guest does not start the process again. A guest that
// cannot be reached, or does not power off in time, is powered off, and so is a VM
// that is suspended. A container that does not run is no error. Where another
// process has the only way to the guest, a serial line, the guest is asked by
// guestinfo instead, which takes some ten seconds more (see tether.Request).
func (v *VM) Stop(ctx context.Context, o *StopOptions) error {
	const op = "stop container"
	info, err := v.Inspect(ctx)
	if err != nil {
		return err
	}
	if !info.On() && info.State != Suspended {
		return nil
	}
	if err := v.noteStop(ctx, info); err != nil {
		return fault.Wrap(op, v.Ref(), err)
	}
	if info.State == Suspended {
		return v.powerOff(ctx, op) // There is no guest to ask.
	}
	end, err := v.stop(ctx, op, info, o)
	if err == nil && end.status.Boot != info.status.Boot {
		err = fault.Wrap(op, v.Ref(), v.noteStop(ctx, end)) // It was just booting.
	}
	return err
}

// stop is Stop without a note of it, of a VM that may be off. It returns what
// was known at the end.
func (v *VM) stop(ctx context.Context, op string, info Info, o *StopOptions) (Info, error) {
	if !info.On() {
		return info, nil
	}
	if o == nil {
		o = &StopOptions{}
	}
	grace := time.Duration(-1) // the guest's own
	bound := 10 * time.Second
	if info.stop.Grace > 0 {
		bound = info.stop.Grace
	}
	if o.Grace != nil {
		grace, bound = max(0, *o.Grace), max(0, *o.Grace)
	}
	if info.reach.serial {
		bound += lineWait + requestWait
	}
	wctx, cancel := context.WithTimeout(ctx, bound+slack)
	defer cancel()
	err := v.instruct(wctx, info, v.dial, func(t *tether.Client) error {
		_, err := t.Stop(wctx, o.Signal, grace)
		return err
	}, tether.Request{Stop: true, Signal: o.Signal, Grace: grace})
	if err == nil || errors.Is(err, tether.ErrNotRunning) {
		var end Info
		if end, err = v.Wait(wctx); err == nil {
			return end, nil
		}
	}
	if ctx.Err() != nil {
		return info, fault.Wrap(op, v.Ref(), err)
	}
	v.c.Logger().Warn("the guest does not stop by itself; powering it off", "container", v.name, "reason", err)
	return info, v.powerOff(ctx, op)
}

func (v *VM) powerOff(ctx context.Context, op string) error {
	err := v.task(ctx, op, v.object().PowerOff)
	if errors.Is(err, vic.ErrState) {
		info, e := v.Inspect(ctx)
		if e == nil && !info.On() {
			return nil
		}
	}
	return err
}

// Delete removes a container. One that runs is vic.ErrState unless force, which
// powers it off. A container that is gone already is no error.
//
// vSphere destroys a VM together with every disk attached to it, parents of
// child disks included. So the VM is taken out of the inventory, and its own
// directory, which has the container's disk, is deleted as files. Disks of other
// places are detached first, so that vSphere knows that nobody uses them.
func (v *VM) Delete(ctx context.Context, force bool) error {
	const op = "delete container"
	var m mo.VirtualMachine
	err := vsphere.Properties(ctx, v.c.Session(), v.ref, []string{"runtime.powerState", "config.hardware.device", "config.files.vmPathName"}, &m)
	if isNotFound(err) {
		return nil
	}
	if err != nil {
		return fault.Wrap(op, v.Ref(), err)
	}
	if m.Config == nil {
		return fault.Wrap(op, v.Ref(), fault.Of(vic.ErrState, "vSphere does not know its configuration now"))
	}
	ds, p, err := vsphere.SplitPath(m.Config.Files.VmPathName)
	if err != nil {
		return fault.Wrap(op, v.Ref(), err)
	}
	dir := path.Dir(p)
	if dir == "." || dir == "/" || ds != v.owner.Datastore.Name && hasVolumes(m.Config.Hardware.Device, path.Dir(m.Config.Files.VmPathName)) {
		return fault.Wrap(op, v.Ref(), fault.Of(vic.ErrInvalid, "its files lie at %s, where nothing can be deleted safely", m.Config.Files.VmPathName))
	}
	files, err := v.filesOn(ctx, ds)
	if err != nil {
		return fault.Wrap(op, v.Ref(), err)
	}
	if m.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOff {
		if !force {
			return fault.Wrap(op, v.Ref(), fault.Of(vic.ErrState, "it is running or suspended: stop it first, or force"))
		}
		if err := v.powerOff(ctx, op); err != nil && !isNotFound(err) {
			return err
		}
	}
	err = v.detach(ctx, m.Config.Hardware.Device, files.Path(dir))
	var notes *vsphere.Files
	var note string
	if err == nil {
		notes, note, err = v.noteDeletion(ctx, files.Path(dir))
	}
	if err == nil {
		err = v.unregister(ctx)
	}
	if err != nil {
		if isNotFound(err) {
			return nil
		}
		return fault.Wrap(op, v.Ref(), err)
	}
	// The container is gone. What is left is done even if ctx ends.
	octx, cancel := vsphere.Outlive(ctx)
	defer cancel()
	v.deleteDisks(octx, files, disksIn(m.Config.Hardware.Device, files.Path(dir)))
	err = files.Delete(octx, dir)
	if err == nil {
		err = notes.Delete(octx, note)
	}
	if err != nil {
		return &fault.Error{Op: op, Ref: v.Ref(), Err: err, Left: []vic.Ref{{Kind: "file", ID: files.Path(dir)}}}
	}
	return nil
}

// unregister takes the VM out of the inventory. It is heard of to its end.
func (v *VM) unregister(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	octx, cancel := vsphere.Outlive(ctx)
	defer cancel()
	return vsphere.Judge(v.object().Unregister(octx))
}

// disksIn are the VM's disks that lie in a directory, which is a datastore path;
// they are paths within the datastore.
func disksIn(devices object.VirtualDeviceList, dir string) (paths []string) {
	for _, d := range devices.SelectByType((*types.VirtualDisk)(nil)) {
		b, ok := d.GetVirtualDevice().Backing.(types.BaseVirtualDeviceFileBackingInfo)
		if !ok {
			continue
		}
		file := b.GetVirtualDeviceFileBackingInfo().FileName
		if _, p, err := vsphere.SplitPath(file); err == nil && path.Dir(file) == dir {
			paths = append(paths, p)
		}
	}
	return paths
}

// deleteDisks deletes disks in the container's own directory as disks, on
// datastores that may keep their data elsewhere (vSAN): deleting the directory
// would leave that. What cannot be deleted so goes with the directory.
func (v *VM) deleteDisks(ctx context.Context, files *vsphere.Files, disks []string) {
	ref, name := files.Datastore()
	d, err := v.c.Session().Datastore(ctx, name, func(d vsphere.Datastore) bool { return d.Ref == ref })
	if err == nil && d.SparseDisks {
		return
	}
	for _, p := range disks {
		if err := files.DeleteDisk(ctx, p); err != nil && !isNotFound(err) {
			v.c.Logger().Warn("a disk is deleted as a file, because it cannot be as a disk", "disk", files.Path(p), "reason", err)
		}
	}
}

// detach takes the disks off the VM that lie outside of its directory, and keeps
// their files.
func (v *VM) detach(ctx context.Context, devices object.VirtualDeviceList, dir string) error {
	var ch []types.BaseVirtualDeviceConfigSpec
	for _, d := range devices.SelectByType((*types.VirtualDisk)(nil)) {
		b, ok := d.GetVirtualDevice().Backing.(types.BaseVirtualDeviceFileBackingInfo)
		if ok && path.Dir(b.GetVirtualDeviceFileBackingInfo().FileName) == dir {
			continue
		}
		ch = append(ch, &types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationRemove, Device: d})
	}
	if len(ch) == 0 {
		return nil
	}
	err := vsphere.Do(ctx, v.c.Session(), func(ctx context.Context) (*object.Task, error) {
		return v.object().Reconfigure(ctx, types.VirtualMachineConfigSpec{DeviceChange: ch})
	})
	if err != nil {
		return fmt.Errorf("detach disks: %w", err)
	}
	return nil
}

// hasVolumes tells whether disks other than the root disk lie in the VM's own
// directory: vSphere takes them there when it moves a VM to another datastore.
func hasVolumes(devices object.VirtualDeviceList, dir string) bool {
	return len(disksIn(devices, dir)) > 1
}

// filesOn opens the datastore of a name: the VCH's own, where containers are made,
// or another one of the datacenter, where an administrator has moved the VM.
func (v *VM) filesOn(ctx context.Context, name string) (*vsphere.Files, error) {
	ref := types.ManagedObjectReference{Type: "Datastore", Value: v.owner.Datastore.ID}
	if name != v.owner.Datastore.Name {
		d, err := v.c.Session().Datastore(ctx, name, func(d vsphere.Datastore) bool { return d.Name == name })
		if err != nil {
			return nil, err
		}
		ref = d.Ref
	}
	return v.c.Session().Files(ref, name), nil
}
