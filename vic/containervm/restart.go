package containervm

import (
	"context"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/internal/vsphere"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/tether"
)

// notStopped stands under keyStopped until the first stop: vSphere keeps no
// empty value, and a key that first appears while the VM runs is dropped at
// power-off.
const notStopped = "-"

// On tells that the VM is powered on.
func (i Info) On() bool { return i.State == Running || i.State == Restarting }

// ShouldRun tells that a container whose VM is off would be started by Docker's
// daemon when that starts: "always", whatever became of it, and "unless-stopped"
// where nobody asked us to stop it. An administrator's power-off or shutdown, a
// host that failed and a guest that crashed are to a VM what the end of the
// machine is to Docker's containers, and not the user's wish. "on-failure" is
// for processes that fail, and Docker's manual says that it does not outlive the
// daemon. A container that never ran waits for its first start.
func (i Info) ShouldRun() bool {
	if i.State != Exited {
		return false
	}
	switch i.Restart.Policy {
	case tether.RestartAlways:
		return true
	case tether.RestartUnlessStopped:
		return !i.Stopped
	}
	return false
}

// noteStop writes down in vSphere that the user wants the container stopped,
// where that will be asked for: the guest forgets it with its power, and no
// process of ours remembers. What is written is the boot that is to end, so that
// the next start makes it void without a request of its own. It is written
// before the stop, so that a controller that dies on the way leaves no container
// that was stopped and comes back; one that dies between leaves a container that
// runs on, and counts as stopped once it is off.
func (v *VM) noteStop(ctx context.Context, info Info) error {
	if info.Restart.Policy != tether.RestartUnlessStopped || info.Stopped || info.status.Boot == "" {
		return nil
	}
	return vsphere.Do(ctx, v.c.Session(), func(ctx context.Context) (*object.Task, error) {
		return v.object().Reconfigure(ctx, types.VirtualMachineConfigSpec{
			ExtraConfig: []types.BaseOptionValue{&types.OptionValue{Key: keyStopped, Value: info.status.Boot}},
		})
	})
}

// A WaitCondition is what WaitFor waits for, as Docker's wait has it.
type WaitCondition string

// The conditions.
const (
	// NotRunning: the container does not run now, or its process ends next; a
	// process that is to be started again has ended, too.
	NotRunning WaitCondition = "not-running"
	// NextExit: the process ends, even where it does not run now.
	NextExit WaitCondition = "next-exit"
	// Removed: the container is deleted.
	Removed WaitCondition = "removed"
)

// WaitFor returns when a condition holds, with what is known of the container
// then; after Removed nothing is. A process that ended with a non-zero code is no
// error. Ends that follow each other faster than vSphere tells of them count as
// one.
func (v *VM) WaitFor(ctx context.Context, condition WaitCondition) (Info, error) {
	const op = "wait for container"
	var info Info
	var err error
	switch condition {
	case Removed:
		info, err = Info{}, v.awaitRemoval(ctx)
	case NotRunning, NextExit:
		info, err = v.awaitExit(ctx, condition == NotRunning)
	default:
		err = fault.Of(vic.ErrInvalid, "condition %.40q: want %s, %s or %s", condition, NotRunning, NextExit, Removed)
	}
	return info, fault.Wrap(op, v.Ref(), err)
}

func (v *VM) awaitRemoval(ctx context.Context) error {
	x, err := v.hold(ctx)
	if err == nil {
		defer x.Release()
		err = x.Wait(ctx, func(s vsphere.State) (bool, error) { return false, s.Err(v.ref) })
	}
	if isNotFound(err) {
		return nil
	}
	return err
}

// ends counts how often the process has ended in a boot.
func (i Info) ends() int {
	n := i.Restarts
	if i.status.State == tether.Exited || i.status.State == tether.Failed {
		n++
	}
	return n
}

// awaitExit waits for the next end of the process. With now, a VM that is off is
// an end.
func (v *VM) awaitExit(ctx context.Context, now bool) (Info, error) {
	x, err := v.hold(ctx)
	if err != nil {
		return Info{}, err
	}
	defer x.Release()
	var (
		info  Info
		first = true
		boot  string
		ends  int
		off   bool
	)
	err = x.Wait(ctx, func(s vsphere.State) (bool, error) {
		if err := s.Err(v.ref); err != nil {
			return false, err
		}
		var power types.VirtualMachinePowerState
		if info, power = v.info(s); power == "" {
			return false, nil
		}
		if first {
			first, boot, ends = false, info.status.Boot, info.ends()
			off = !info.On()
			return off && now, nil
		}
		if info.status.Boot != boot {
			boot, ends, off = info.status.Boot, 0, false
		}
		if info.On() {
			off = false
			return info.ends() > ends, nil
		}
		return !off, nil
	})
	if err == nil && info.State == Exited && !info.Known && !off {
		// Off, and the guest's last word may be on its way.
		return v.outcome(ctx, x.Wait, true)
	}
	return info, err
}

// Restart stops a container that runs, as Stop does, and starts it.
func (v *VM) Restart(ctx context.Context, o *StopOptions) error {
	const op = "restart container"
	info, err := v.Inspect(ctx)
	if err == nil {
		_, err = v.stop(ctx, op, info, o)
	}
	if err != nil {
		return err
	}
	return v.Start(ctx)
}
