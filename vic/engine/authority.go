package engine

import (
	"context"
	"crypto"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/containervm"
	"github.com/vicsdk/vic-go/vic/tether"
)

// trustsAtOnce bounds the containers that RotateAuthority speaks to at a time.
const trustsAtOnce = 8

// Authorities are the public keys, in authorized_keys form, of the authorities
// whose controllers the guests of new containers let in.
func (e *Engine) Authorities() []string {
	o := e.host.Owner()
	return append([]string{o.Authority}, o.Authorities...)
}

// RotateOptions say more of a rotation; nil is the zero value.
type RotateOptions struct {
	// Lost is for a VCH of whose authorities nobody has a key any more: a client of
	// another may set new ones then, by its rights in vSphere. Guests that run refuse
	// it still, which is an error (vic.ErrDenied) by container, and take the new ones
	// when they are started again.
	Lost bool
}

// RotateAuthority makes the guests of all containers of the VCH, those that are
// there and those to come, trust controllers of these authorities and no others.
// Containers that run are not disturbed; connections that controllers of other
// authorities have to them end. One key takes another's place in three steps:
//
//   - a client of the old key names both;
//   - all controllers go over to the new one (vic.Config.Authority);
//   - a client of the new key names that alone.
//
// The client's own authority must be among the keys, so that in each state that a
// kill leaves it reaches every container; otherwise the error is vic.ErrInvalid and
// nothing changes. One that the VCH does not trust so far is vic.ErrDenied (but see
// RotateOptions). Guests of a release that knew one authority take the first key.
//
// It returns the names of the containers that trust the keys now, also with an
// error, which tells by container why others do not: their guests do not answer,
// or they are suspended. What is done already is not done again, so it is called
// until there is none. Other engines that are open make containers as they know
// the VCH: open them anew, and call it once more.
func (e *Engine) RotateAuthority(ctx context.Context, keys []crypto.PublicKey, o *RotateOptions) ([]string, error) {
	const op = "rotate authority"
	if o == nil {
		o = &RotateOptions{}
	}
	authorized, err := authorizedKeys(keys)
	if err == nil {
		err = e.mayRotate(keys)
	}
	if err != nil {
		return nil, fault.Wrap(op, e.host.Ref(), err)
	}
	// The record first: no container is made from then on that the list lacks.
	if err := e.host.SetAuthorities(ctx, authorized, o.Lost); err != nil {
		return nil, err
	}
	vms, _, err := e.List(ctx)
	if err != nil {
		return nil, err
	}
	return each(ctx, vms, trustsAtOnce, func(vm *containervm.VM) (bool, error) {
		return true, vm.Trust(ctx, authorized)
	})
}

// mayRotate refuses keys of which the client has none.
func (e *Engine) mayRotate(keys []crypto.PublicKey) error {
	own := e.c.Authority()
	if own == nil {
		return fault.Of(vic.ErrInvalid, "the client has no Authority, so no guest believes it")
	}
	for _, k := range keys {
		if eq, ok := k.(interface{ Equal(crypto.PublicKey) bool }); ok && eq.Equal(own.Public()) {
			return nil
		}
	}
	return fault.Of(vic.ErrInvalid, "the client's own authority is not among the keys: let a client that has one of them drop it")
}

// authorizedKeys gives keys the form that guests read.
func authorizedKeys(keys []crypto.PublicKey) ([]string, error) {
	var out []string
	for i, k := range keys {
		pub, err := ssh.NewPublicKey(k)
		if err != nil {
			return nil, fault.Of(vic.ErrInvalid, "keys[%d]: %v", i, err)
		}
		out = append(out, strings.TrimSpace(string(ssh.MarshalAuthorizedKey(pub))))
	}
	if _, err := tether.ParseAuthorities(out); err != nil {
		return nil, fault.As(vic.ErrInvalid, err)
	}
	return out, nil
}
