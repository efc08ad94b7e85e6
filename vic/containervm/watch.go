package containervm

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/internal/vsphere"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/tether"
)

// A view is what a VM value sees of its VM: one watch, which all that wait on
// the value share.
type view struct {
	// fresh is closed when the first Start begins of a VM that the value made;
	// nil where it did not make it.
	fresh chan struct{}

	mu   sync.Mutex
	w    *vsphere.Watch
	busy chan struct{} // closed when the one who opens a watch is done
	ran  bool          // Start of this value has powered the VM on

	boot, hostKey string // of the guest that was dialled last
}

// pin refuses a host key that is another than the same boot of the guest had
// before: a boot has one, so somebody in the guest has written over it.
func (w *view) pin(st tether.Status) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if st.HostKey == "" {
		return nil
	}
	if w.boot == st.Boot && w.hostKey != st.HostKey {
		return fault.As(vic.ErrDenied, fmt.Errorf("%w: its status named another one earlier in this boot", tether.ErrHostKey))
	}
	w.boot, w.hostKey = st.Boot, st.HostKey
	return nil
}

// watchProps are what is watched of a VM: what tells its state. What changes
// beside it would only wake those who wait.
func watchProps() []string { return []string{"name", "runtime.powerState", "config.extraConfig"} }

// lead waits for its turn to open a watch, and returns false where there is one
// already, on which the caller has a hold then. done must be called with the new
// watch or nil.
func (w *view) lead(ctx context.Context) (have *vsphere.Watch, done func(*vsphere.Watch), err error) {
	for {
		w.mu.Lock()
		if w.w != nil && w.w.Hold() {
			defer w.mu.Unlock()
			return w.w, nil, nil
		}
		busy := w.busy
		if busy == nil {
			mine := make(chan struct{})
			w.busy = mine
			w.mu.Unlock()
			return nil, func(x *vsphere.Watch) {
				w.mu.Lock()
				defer w.mu.Unlock()
				w.w, w.busy = x, nil
				close(mine)
			}, nil
		}
		w.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
	}
}

// hold takes a hold on the VM's watch, opened where there is none.
func (v *VM) hold(ctx context.Context) (*vsphere.Watch, error) {
	x, done, err := v.view.lead(ctx)
	if x != nil || err != nil {
		return x, err
	}
	x, err = v.c.Session().Watcher.Open(ctx, vsphere.One(v.ref, watchProps()...))
	done(x)
	return x, err
}

// powerOn starts the VM. Where nobody watches it yet, one filter follows the task
// and the VM, and stays for those who wait for the VM next.
func (v *VM) powerOn(ctx context.Context) error {
	x, done, err := v.view.lead(ctx)
	if err != nil {
		return err
	}
	v.view.begin()
	if x != nil {
		defer x.Release()
	}
	t, err := vsphere.Begin(ctx, v.object().PowerOn)
	if err != nil {
		if done != nil {
			done(nil)
		}
		return err
	}
	if done == nil {
		_, err = vsphere.Wait(ctx, v.c.Session(), t, nil)
	} else {
		spec := vsphere.One(v.ref, watchProps()...)
		spec.ObjectSet = append(spec.ObjectSet, types.ObjectSpec{Obj: t})
		spec.PropSet = append(spec.PropSet, types.PropertySpec{Type: "Task", PathSet: vsphere.TaskProperties()})
		x, err = v.c.Session().Watcher.Open(ctx, spec)
		done(x)
		if err == nil {
			_, err = vsphere.WaitIn(ctx, v.c.Session(), x, t)
			defer x.Release()
		} else {
			_, err = vsphere.Wait(ctx, v.c.Session(), t, nil)
		}
	}
	if err == nil {
		v.view.mu.Lock()
		v.view.ran = true
		v.view.mu.Unlock()
	}
	return err
}

// begin notes that a start begins.
func (w *view) begin() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fresh != nil {
		select {
		case <-w.fresh:
		default:
			close(w.fresh)
		}
	}
}

// unstarted tells whether the VM was made by this value, which has not started
// it. Nobody else may have, but hardly.
func (w *view) unstarted() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fresh == nil {
		return false
	}
	select {
	case <-w.fresh:
		return false
	default:
		return true
	}
}

// startTime is how long one who attaches to a new VM leaves it to the start that
// is to follow to watch the VM.
const startTime = time.Second

// awaitStart returns when the first start of a new VM begins, or has not for
// startTime.
func (w *view) awaitStart(ctx context.Context) {
	if w.fresh == nil {
		return
	}
	t := time.NewTimer(startTime)
	defer t.Stop()
	select {
	case <-w.fresh:
	case <-t.C:
	case <-ctx.Done():
	}
}

// info makes an Info of what is watched; known is false where the power state is
// not.
func (v *VM) info(s vsphere.State) (info Info, power types.VirtualMachinePowerState) {
	power, _ = s.Get(v.ref, "runtime.powerState").(types.VirtualMachinePowerState)
	m := mo.VirtualMachine{Runtime: types.VirtualMachineRuntimeInfo{PowerState: power}}
	m.Self = v.ref
	m.Name, _ = s.Get(v.ref, "name").(string)
	if x, ok := s.Get(v.ref, "config.extraConfig").(types.ArrayOfOptionValue); ok {
		m.Config = &types.VirtualMachineConfigInfo{ExtraConfig: x.OptionValue}
	}
	info, _ = describe(&m)
	return info, power
}

// look returns what is watched of the VM.
func (v *VM) look(ctx context.Context) (Info, error) {
	x, err := v.hold(ctx)
	if err != nil {
		return Info{}, err
	}
	defer x.Release()
	var info Info
	err = x.Wait(ctx, func(s vsphere.State) (bool, error) {
		var power types.VirtualMachinePowerState
		info, power = v.info(s)
		if err := s.Err(v.ref); err != nil {
			return false, err
		}
		return power != "", nil
	})
	return info, err
}

// lastWords is how long a guest's outcome may take to be told of after its VM's
// end: vCenter gathers the two by different ways.
const lastWords = time.Second

// Wait returns when the VM is off, with what is known of the outcome then. A
// process that ended with a non-zero code is no error.
func (v *VM) Wait(ctx context.Context) (Info, error) {
	x, err := v.hold(ctx)
	if err == nil {
		var info Info
		if info, err = v.outcome(ctx, x.LastWait, false); err == nil {
			return info, nil
		}
	}
	return Info{}, fault.Wrap("wait for container", v.Ref(), err)
}

// ended returns what is known of the outcome of a VM that was off. It may be on
// again.
func (v *VM) ended(ctx context.Context) (Info, error) {
	x, err := v.hold(ctx)
	if err != nil {
		return Info{}, err
	}
	defer x.Release()
	return v.outcome(ctx, x.Wait, true)
}

type waitFunc func(context.Context, func(vsphere.State) (bool, error)) error

// outcome waits until the VM is off, unless it has been, and a moment longer
// where the guest has not told of its end.
func (v *VM) outcome(ctx context.Context, wait waitFunc, hasBeen bool) (Info, error) {
	v.view.mu.Lock()
	ran := v.view.ran
	v.view.mu.Unlock()
	wctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var off Info
	var late *time.Timer
	err := wait(wctx, func(s vsphere.State) (bool, error) {
		if err := s.Err(v.ref); err != nil {
			return false, err
		}
		info, power := v.info(s)
		switch power {
		case "":
			return false, nil
		case types.VirtualMachinePowerStatePoweredOn:
			if hasBeen {
				off = info
				return true, nil
			}
			ran = true
			if late != nil {
				late.Stop()
				late = nil
			}
			return false, nil
		case types.VirtualMachinePowerStateSuspended:
			ran = true
			off = info
			return hasBeen, nil
		}
		if info.State == Created && ran {
			info.State = Exited // before the guest could write a word
		}
		off = info
		if info.State != Exited || info.Known {
			return true, nil
		}
		if late == nil {
			late = time.AfterFunc(lastWords, cancel)
		}
		return false, nil
	})
	if late != nil {
		late.Stop()
	}
	if err != nil && ctx.Err() == nil && wctx.Err() != nil {
		err = nil // it was off, and no more was told
	}
	return off, err
}
