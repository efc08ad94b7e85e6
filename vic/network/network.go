// Package network opens port groups and makes the NIC values that container
// VMs are created with.
package network

import (
	"context"
	"fmt"
	"net"
	"net/netip"

	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/internal/vsphere"
	"github.com/vicsdk/vic-go/vic"
)

// A PortGroup is a standard or distributed port group.
type PortGroup struct {
	nic vic.NIC
}

// Open looks a port group up by name or inventory path. A name that several
// port groups have is vic.ErrInvalid: use the path.
func Open(ctx context.Context, c *vic.Client, name string) (*PortGroup, error) {
	ref := vic.Ref{Kind: "network", Name: name}
	if name == "" {
		return nil, fault.Wrap("open", ref, fault.Of(vic.ErrInvalid, "no port group is named"))
	}
	dc := object.NewDatacenter(c.Vim(), types.ManagedObjectReference{Type: "Datacenter", Value: c.Datacenter().ID})
	dc.InventoryPath = c.Datacenter().Name
	n, err := find.NewFinder(c.Vim(), false).SetDatacenter(dc).Network(ctx, name)
	if err != nil {
		return nil, fault.Wrap("open", ref, vsphere.Judge(err))
	}
	ref.ID = n.Reference().Value
	b, err := n.EthernetCardBackingInfo(ctx)
	if err != nil {
		return nil, fault.Wrap("open", ref, vsphere.Judge(err))
	}
	p := &PortGroup{}
	switch b := b.(type) {
	case *types.VirtualEthernetCardNetworkBackingInfo:
		ref.Name = b.DeviceName
	case *types.VirtualEthernetCardDistributedVirtualPortBackingInfo:
		p.nic.PortGroupKey, p.nic.SwitchUUID = b.Port.PortgroupKey, b.Port.SwitchUuid
	default:
		return nil, fault.Wrap("open", ref, fault.Of(vic.ErrUnsupported, "a %T is neither a standard nor a distributed port group", n))
	}
	p.nic.Network = ref
	return p, nil
}

// Ref names the port group.
func (p *PortGroup) Ref() vic.Ref { return p.nic.Network }

// NICOptions say how a NIC on a port group is set up. The zero value draws a
// MAC and asks DHCP.
type NICOptions struct {
	MAC     string
	Address netip.Prefix
	Gateway netip.Addr
	DNS     []netip.Addr
}

// NIC makes a NIC value. A MAC or an address that cannot be right is
// vic.ErrInvalid.
func (p *PortGroup) NIC(o NICOptions) (vic.NIC, error) {
	n := p.nic
	if o.MAC != "" {
		hw, err := net.ParseMAC(o.MAC)
		if err != nil || len(hw) != 6 || hw[0]&1 != 0 {
			return n, fault.Of(vic.ErrInvalid, "MAC %q is no unicast Ethernet address", o.MAC)
		}
		n.MAC = hw.String()
	}
	switch {
	case o.Gateway.IsValid() && !o.Address.IsValid():
		return n, fault.Of(vic.ErrInvalid, "Gateway %v is given without an Address", o.Gateway)
	case o.Gateway.IsValid() && !o.Address.Contains(o.Gateway):
		return n, fault.Of(vic.ErrInvalid, "Gateway %v is not within %v", o.Gateway, o.Address.Masked())
	}
	n.Address, n.Gateway, n.DNS = o.Address, o.Gateway, o.DNS
	return n, nil
}

// String names the port group for people.
func (p *PortGroup) String() string { return fmt.Sprint(p.nic.Network) }
