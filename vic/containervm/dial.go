package containervm

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/vmware/govmomi/vim25/types"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/internal/vsphere"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/tether"
)

const (
	// certificateLife bounds a controller's certificate. It is used at once,
	// but a guest's clock may be off.
	certificateLife = 10 * time.Minute
	dialTime        = 5 * time.Second
	dialSerialTime  = 20 * time.Second // another controller may have the line
	dialAllTime     = 20 * time.Second // for all addresses of a guest
)

// Dial connects to the tether of a running container; the caller closes the
// client. A container that does not run is vic.ErrState; a guest that has not
// said yet where it can be reached, or does not answer there, is
// vic.ErrUnavailable; one that says that it is reached where no guest may be, or
// does not trust the client's authority, is vic.ErrDenied.
//
// The guest must show the host key that it published by guestinfo. That key is
// a claim of the guest: it proves that the network leads to that VM, not that
// the VM is sound. A VM value that has dialled a boot of the guest takes no other
// key of that boot.
func (v *VM) Dial(ctx context.Context) (*tether.Client, error) {
	const op = "reach container"
	info, err := v.Inspect(ctx)
	if err != nil {
		return nil, err
	}
	if !info.On() {
		return nil, fault.Wrap(op, v.Ref(), fault.Of(vic.ErrState, "it is %s, not running", info.State))
	}
	t, err := v.dial(ctx, info)
	return t, fault.Wrap(op, v.Ref(), err)
}

// bootPatience is how long a guest is waited for that may be starting: until it
// tells where it is reached, vSphere tells what it told in its last start.
const bootPatience = 15 * time.Second

// dial connects to the guest that info tells of, or, where that one does not
// answer, to the one of whatever is told next.
func (v *VM) dial(ctx context.Context, info Info) (*tether.Client, error) {
	t, err := v.dialNow(ctx, info)
	if !errors.Is(err, vic.ErrUnavailable) || ctx.Err() != nil {
		return t, err
	}
	wctx, cancel := context.WithTimeout(ctx, bootPatience)
	defer cancel()
	next, e := v.retold(wctx, info)
	if e != nil {
		return nil, err
	}
	return v.dialNow(ctx, next)
}

// retold waits until the guest of a VM that is on tells another way to it than in
// info.
func (v *VM) retold(ctx context.Context, info Info) (next Info, err error) {
	x, err := v.hold(ctx)
	if err != nil {
		return next, err
	}
	defer x.Release()
	err = x.Wait(ctx, func(s vsphere.State) (bool, error) {
		var power types.VirtualMachinePowerState
		next, power = v.info(s)
		switch {
		case s.Err(v.ref) != nil:
			return false, s.Err(v.ref)
		case power != "" && power != types.VirtualMachinePowerStatePoweredOn:
			return false, fault.Of(vic.ErrState, "it is off")
		}
		return next.status.HostKey != "" && next.status.HostKey != info.status.HostKey && next.reach.knows(next.status), nil
	})
	return next, err
}

// dialNow connects to the guest that info tells of.
func (v *VM) dialNow(ctx context.Context, info Info) (*tether.Client, error) {
	if err := v.view.pin(info.status); err != nil {
		return nil, err
	}
	st, r := info.status, info.reach
	if !r.knows(st) {
		return nil, errNotToldYet()
	}
	t, err := dial(ctx, v.c, v.id, st, r)
	if err == nil || !r.serial || errors.Is(err, tether.ErrRefused) || ctx.Err() != nil {
		return t, err
	}
	signer, e := newSigner(v.c, v.id)
	if e != nil {
		return nil, e
	}
	t, e = dialSerial(ctx, v.c, v.ref, tether.ClientConfig{Signer: signer, HostKey: st.HostKey, ID: v.id})
	if e == nil {
		return t, nil
	}
	kind := vic.ErrUnavailable
	if errors.Is(e, tether.ErrRefused) {
		kind = vic.ErrDenied
	}
	e = fmt.Errorf("serial port: %w", e)
	if len(st.Addresses) > 0 {
		e = errors.Join(err, e)
	}
	return nil, fault.As(kind, e)
}

func errNotToldYet() error {
	return fault.Of(vic.ErrUnavailable, "the guest has not told yet where its tether can be reached")
}

// DialGuest connects to the tether of the VM whose configuration has an ID, by
// what the VM's extraConfig says, that is tether.StatusKey and KeyReach; the
// caller closes the client. It dials the VM's NICs. A guest that has not said yet
// where it can be reached, or does not answer there, is vic.ErrUnavailable.
func DialGuest(ctx context.Context, c *vic.Client, id string, options map[string]string) (*tether.Client, error) {
	return dial(ctx, c, id, parseStatus(options[tether.StatusKey]), parseReach(options[KeyReach]))
}

// dial connects to one of the addresses that a guest names.
func dial(ctx context.Context, c *vic.Client, id string, st tether.Status, r reach) (*tether.Client, error) {
	if st.HostKey == "" || len(st.Addresses) == 0 {
		return nil, errNotToldYet()
	}
	signer, err := newSigner(c, id)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, dialAllTime)
	defer cancel()
	addresses, errs := r.targets(c, st.Addresses)
	for _, address := range addresses {
		t, err := dialOne(ctx, c, address, tether.ClientConfig{Signer: signer, HostKey: st.HostKey, ID: id})
		if err == nil {
			return t, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", address, err))
		if ctx.Err() != nil {
			break
		}
	}
	err = errors.Join(errs...)
	switch {
	case errors.Is(err, tether.ErrRefused): // It is the guest, and it will not think better of it.
		err = fault.As(vic.ErrDenied, err)
	case len(addresses) > 0:
		err = fault.As(vic.ErrUnavailable, err)
	}
	return nil, err
}

func dialOne(ctx context.Context, c *vic.Client, address string, cfg tether.ClientConfig) (*tether.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	conn, err := c.DialGuest(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	return tether.NewClient(ctx, conn, cfg)
}

func errNoAuthority() error {
	return fault.Of(vic.ErrInvalid, "the client has no Authority, so no guest believes it")
}

func newSigner(c *vic.Client, id string) (ssh.Signer, error) {
	a := c.Authority()
	if a == nil {
		return nil, errNoAuthority()
	}
	return tether.NewControllerSigner(a, id, certificateLife)
}
