package engine

import (
	"context"
	"crypto"
	"encoding/json"
	"fmt"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/containervm"
	"github.com/vicsdk/vic-go/vic/imagestore"
	"github.com/vicsdk/vic-go/vic/tether"
)

// Helper says how the helper VMs of a VCH are made, which write image layers to
// datastores that take no uploaded disks: in the VCH's pool and folder, from its
// ISO and on the network of its containers. Engines use it by themselves; those
// who open an image store of a VCH give it as imagestore.Options.Helper.
func Helper(c *vic.Client, o vic.Owner) *imagestore.HelperSpec {
	return &imagestore.HelperSpec{
		BootISO: o.BootISO, Pool: o.Pool, Folder: o.Folder, NIC: o.NIC,
		Guest: helperGuest{c: c},
	}
}

// withHelper adds the VCH's helper to options that name none.
func withHelper(c *vic.Client, o vic.Owner, images *imagestore.Options) *imagestore.Options {
	var out imagestore.Options
	if images != nil {
		out = *images
	}
	if out.Helper == nil {
		out.Helper = Helper(c, o)
	}
	return &out
}

// helperGuest is the tether of helper VMs. They serve the process that made them,
// so they trust its authority and no other.
type helperGuest struct {
	c *vic.Client
}

// Options implements imagestore.Guest.
func (g helperGuest) Options(id string, nic vic.NIC) (map[string]string, error) {
	if g.c.Authority() == nil {
		return nil, fault.Of(vic.ErrInvalid, "the client has no Authority: its helper VM would not let it in")
	}
	authorities, err := authorizedKeys([]crypto.PublicKey{g.c.Authority().Public()})
	if err != nil {
		return nil, err
	}
	cfg := tether.Config{
		Version: 1, ID: id, Authority: authorities[0], Hostname: "helper", Apply: &tether.Apply{},
		NICs: []tether.NIC{{MAC: nic.MAC, Address: nic.Address, Gateway: nic.Gateway}}, DNS: nic.DNS,
	}
	if err := cfg.Validate(); err != nil {
		return nil, fault.As(vic.ErrInvalid, err)
	}
	doc, err := json.Marshal(cfg)
	if err != nil {
		return nil, err
	}
	// A key without a value is kept by nobody.
	return map[string]string{
		tether.ConfigKey: string(doc), tether.StatusKey: "{}", containervm.KeyReach: containervm.Reach([]vic.NIC{nic}, false),
	}, nil
}

// Connect implements imagestore.Guest.
func (g helperGuest) Connect(ctx context.Context, id string, options map[string]string) (imagestore.GuestConn, error) {
	st, err := tether.ParseStatus([]byte(options[tether.StatusKey]))
	if err != nil {
		return nil, fault.As(vic.ErrUnavailable, fmt.Errorf("its status: %w", err))
	}
	if st.State == tether.Failed {
		return nil, fault.Of(vic.ErrState, "its guest says: %s", st.Error)
	}
	// Not returned as it is: a nil client is no nil interface.
	t, err := containervm.DialGuest(ctx, g.c, id, options)
	if err != nil {
		return nil, err
	}
	return t, nil
}
