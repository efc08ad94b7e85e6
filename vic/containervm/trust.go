package containervm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/crypto/ssh"

	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/tether"
)

// Trust replaces the authorities whose controllers the container's guest lets in,
// public keys in authorized_keys form, of which the client's own must be one.
// The container runs on; connections of other authorities' controllers end. What
// trusts them already stays as it is, so whoever was ended half-way, or finds a
// guest that does not answer (vic.ErrUnavailable), calls it again.
//
// The VM's configuration comes first and then the guest, if the VM is on: one that
// starts between the two reads what is written, and in whatever is left by a kill
// both trust the client's authority. A container that is suspended is vic.ErrState:
// its guest would wake up with the authorities that it had. A guest of a release
// that has one authority for good is vic.ErrUnsupported and takes the first after
// its next start.
func (v *VM) Trust(ctx context.Context, authorized []string) error {
	const op = "set the container's authorities"
	if err := v.trust(ctx, authorized); err != nil {
		if isNotFound(err) {
			return err
		}
		return fault.Wrap(op, v.Ref(), err)
	}
	return nil
}

func (v *VM) trust(ctx context.Context, authorized []string) error {
	keys, err := tether.ParseAuthorities(authorized)
	if err != nil {
		return fault.As(vic.ErrInvalid, err)
	}
	if v.c.Authority() == nil {
		return errNoAuthority()
	}
	own, err := ssh.NewPublicKey(v.c.Authority().Public())
	if err != nil {
		return fault.As(vic.ErrInvalid, fmt.Errorf("Authority: %w", err))
	}
	if !slices.ContainsFunc(keys, func(k ssh.PublicKey) bool { return bytes.Equal(k.Marshal(), own.Marshal()) }) {
		return fault.Of(vic.ErrInvalid, "the client's own authority is not among them: let a client that has one of them drop it")
	}
	forged := v.edit(ctx, []string{"config.extraConfig"}, func(m *mo.VirtualMachine) (*types.VirtualMachineConfigSpec, error) {
		info, _ := describe(m)
		doc, err := info.configFields()
		if err != nil {
			return nil, err
		}
		if changed, err := setAuthorities(doc, authorized); err != nil || !changed {
			return nil, err
		}
		return editedConfig(doc)
	})
	if forged != nil && !errors.Is(forged, errForged) {
		return forged
	}
	info, err := v.Inspect(ctx)
	if err == nil && info.State == Suspended {
		err = fault.Of(vic.ErrState, "it is suspended, and its guest keeps the authorities that it had: resume it, and do this again")
	}
	if err == nil && info.On() {
		err = v.tellAuthorities(ctx, info, authorized)
	}
	return errors.Join(forged, err)
}

func (v *VM) tellAuthorities(ctx context.Context, info Info, authorized []string) error {
	t, err := v.dial(ctx, info)
	if err == nil {
		defer t.Close()
		err = guestError(t.SetAuthorities(ctx, authorized))
	}
	if err == nil || ctx.Err() != nil {
		return err
	}
	// It may have ended meanwhile.
	if now, e := v.Inspect(ctx); e == nil && !now.On() && now.State != Suspended {
		return nil
	}
	if errors.Is(err, vic.ErrUnsupported) {
		err = fault.As(vic.ErrUnsupported, errors.Join(errors.New("its guest trusts one authority until its next start: restart it"), err))
	}
	return err
}

// setAuthorities writes keys into a tether.Config and tells whether it had others.
func setAuthorities(doc map[string]json.RawMessage, authorized []string) (changed bool, err error) {
	first, err := json.Marshal(authorized[0])
	if err != nil {
		return false, err
	}
	var more json.RawMessage
	if len(authorized) > 1 {
		if more, err = json.Marshal(authorized[1:]); err != nil {
			return false, err
		}
	}
	if bytes.Equal(doc["authority"], first) && bytes.Equal(doc["authorities"], more) {
		return false, nil
	}
	doc["authority"], doc["authorities"] = first, more
	if more == nil {
		delete(doc, "authorities")
	}
	return true, nil
}
