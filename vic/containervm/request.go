package containervm

import (
	"context"
	"errors"
	"time"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/internal/vsphere"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/tether"
)

const (
	// lineWait is how long a serial line that another process has is waited for
	// before the guest is asked by guestinfo.
	lineWait = 5 * time.Second
	// requestWait is how long the guest has to take a request; it looks every two
	// seconds.
	requestWait = 10 * time.Second
)

// instruct has the guest do what direct asks it for over a connection. Where another
// process has the VM's serial line, and there is no other way, the request is
// written to the VM's guestinfo instead, where the guest finds it, and its answer is
// read from there.
func (v *VM) instruct(ctx context.Context, info Info, dial dialFunc, direct func(*tether.Client) error, r tether.Request) error {
	if !info.reach.serial || !info.reach.knows(info.status) {
		return v.instructDirectly(ctx, info, dial, direct)
	}
	lctx, cancel := context.WithTimeout(ctx, lineWait)
	t, err := v.dialNow(lctx, info)
	cancel()
	if err == nil {
		defer t.Close()
		return direct(t)
	}
	if ctx.Err() != nil || errors.Is(err, tether.ErrRefused) {
		return err
	}
	e := v.request(ctx, info, r)
	if e == nil || errors.As(e, new(*tether.RemoteError)) {
		return e
	}
	v.c.Logger().Debug("the guest takes no request by guestinfo", "container", v.name, "reason", e)
	now, e := v.Inspect(ctx)
	if e == nil && now.On() && now.status.Boot != info.status.Boot {
		return v.instructDirectly(ctx, now, dial, direct) // It was just booting.
	}
	return err
}

type dialFunc func(context.Context, Info) (*tether.Client, error)

func (v *VM) instructDirectly(ctx context.Context, info Info, dial dialFunc, direct func(*tether.Client) error) error {
	t, err := dial(ctx, info)
	if err != nil {
		return err
	}
	defer t.Close()
	return direct(t)
}

// request writes a request for the guest of info's boot and returns its answer. A VM
// that is off meanwhile has taken it, or needs it no more.
func (v *VM) request(ctx context.Context, info Info, r tether.Request) error {
	signer, err := newSigner(v.c, v.id)
	if err != nil {
		return err
	}
	r.ID, r.Boot, r.At = v.id, info.status.Boot, time.Now().UnixNano()
	if a := info.status.Answered; a != nil {
		r.At = max(r.At, a.At+1) // The clocks of controllers may be apart.
	}
	doc, err := r.Seal(signer)
	if err != nil {
		return err
	}
	err = vsphere.Do(ctx, v.c.Session(), func(ctx context.Context) (*object.Task, error) {
		return v.object().Reconfigure(ctx, types.VirtualMachineConfigSpec{
			ExtraConfig: []types.BaseOptionValue{&types.OptionValue{Key: tether.RequestKey, Value: doc}},
		})
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, requestWait)
	defer cancel()
	x, err := v.hold(ctx)
	if err != nil {
		return err
	}
	defer x.Release()
	var answer *tether.Answer
	err = x.Wait(ctx, func(s vsphere.State) (bool, error) {
		if err := s.Err(v.ref); err != nil {
			return false, err
		}
		now, power := v.info(s)
		switch {
		case power != "" && power != types.VirtualMachinePowerStatePoweredOn:
			return true, nil
		case now.status.Boot != r.Boot:
			return false, fault.Of(vic.ErrUnavailable, "the guest has started anew")
		}
		answer = now.status.Answered
		return answer != nil && answer.At == r.At, nil
	})
	if err == nil && answer != nil && answer.At == r.At && answer.Error != nil {
		return answer.Error
	}
	return err
}
