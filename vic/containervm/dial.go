package containervm

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/tether"
)

const (
	// certificateLife bounds a controller's certificate. It is used at once,
	// but a guest's clock may be off.
	certificateLife = 10 * time.Minute
	dialTime        = 5 * time.Second
)

// Dial connects to the tether of a running container; the caller closes the
// client. A container that does not run is vic.ErrState; a guest that has not
// said yet where it can be reached, or does not answer there, is
// vic.ErrUnavailable.
//
// The guest must show the host key that it published by guestinfo. That key is
// a claim of the guest: it proves that the network leads to that VM, not that
// the VM is sound.
func (v *VM) Dial(ctx context.Context) (*tether.Client, error) {
	const op = "reach container"
	info, err := v.Inspect(ctx)
	if err != nil {
		return nil, err
	}
	if !info.On() {
		return nil, fault.Wrap(op, v.Ref(), fault.Of(vic.ErrState, "it is %s, not running", info.State))
	}
	t, err := v.dial(ctx, info.status)
	return t, fault.Wrap(op, v.Ref(), err)
}

func (v *VM) dial(ctx context.Context, st tether.Status) (*tether.Client, error) {
	return DialGuest(ctx, v.c, v.id, st)
}

// DialGuest connects to the tether of the VM whose configuration has an ID, by
// what the VM's status says; the caller closes the client. A guest that has not
// said yet where it can be reached, or does not answer there, is
// vic.ErrUnavailable.
func DialGuest(ctx context.Context, c *vic.Client, id string, st tether.Status) (*tether.Client, error) {
	if st.HostKey == "" || len(st.Addresses) == 0 {
		return nil, fault.Of(vic.ErrUnavailable, "the guest has not told yet where its tether can be reached")
	}
	signer, err := newSigner(c, id)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, address := range st.Addresses[:min(len(st.Addresses), 16)] {
		t, err := dialOne(ctx, c, address, tether.ClientConfig{Signer: signer, HostKey: st.HostKey, ID: id})
		if err == nil {
			return t, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", address, err))
		if ctx.Err() != nil {
			break
		}
	}
	return nil, fault.As(vic.ErrUnavailable, errors.Join(errs...))
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

func newSigner(c *vic.Client, id string) (ssh.Signer, error) {
	a := c.Authority()
	if a == nil {
		return nil, fault.Of(vic.ErrInvalid, "the client has no Authority, so no guest believes it")
	}
	return tether.NewControllerSigner(a, id, certificateLife)
}
