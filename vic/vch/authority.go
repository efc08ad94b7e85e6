package vch

import (
	"context"
	"slices"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/vic"
)

// SetAuthorities replaces the authorities that containers trust which are made
// from now on, public keys in authorized_keys form; package engine, whose
// RotateAuthority has the containers that there are trust them, checks them.
// Other VCH values that are open make containers as they knew it.
//
// A client of an authority that the VCH does not trust is vic.ErrDenied, unless
// lost tells that nobody has the key of one that it does.
func (h *VCH) SetAuthorities(ctx context.Context, authorized []string, lost bool) error {
	const op = "set authorities"
	if len(authorized) == 0 {
		return fault.Wrap(op, h.Ref(), fault.Of(vic.ErrInvalid, "no authority is named, so no controller could speak to the containers"))
	}
	own, err := publicKey(h.c)
	if err != nil {
		return fault.Wrap(op, h.Ref(), err)
	}
	old := h.record()
	// What is written is what there is now, and not what was read long ago.
	r, err := readRecord(ctx, h.at, old.Owner.Name)
	switch {
	case err != nil:
		return fault.Wrap(op, h.Ref(), err)
	case r.Owner.ID != old.Owner.ID:
		return fault.Wrap(op, h.Ref(), fault.Of(vic.ErrNotFound, "its name is another VCH's now"))
	case r.State != ready:
		return fault.Wrap(op, h.Ref(), r.State.explain())
	case own != r.Owner.Authority && !slices.Contains(r.Owner.Authorities, own) && !lost:
		return fault.Wrap(op, h.Ref(), fault.Of(vic.ErrDenied, "the VCH does not trust the client's authority: let a client do this whose it does"))
	}
	same := r.Owner.Authority == authorized[0] && slices.Equal(r.Owner.Authorities, authorized[1:])
	r.Owner.Authority, r.Owner.Authorities = authorized[0], slices.Clone(authorized[1:])
	if !same {
		if err := r.write(ctx, h.at); err != nil {
			return fault.Wrap(op, h.Ref(), err)
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.rec = r
	return nil
}
