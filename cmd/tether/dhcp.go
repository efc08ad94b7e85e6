//go:build linux && amd64

package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/mdlayher/packet"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	dhcpTry   = 2 * time.Second // for one answer
	dhcpTries = 10
	minLease  = 30 * time.Second // shorter leases are renewed as if they were this long
)

// dhcp asks for a lease (RFC 2131), applies it and keeps it until ctx ends.
func (n *network) dhcp(ctx context.Context, i int, link netlink.Link, host string, log *slog.Logger) error {
	// By its index: to look the adapter up by name takes a list of all.
	at := link.Attrs()
	conn, err := packet.Listen(&net.Interface{Index: at.Index, Name: at.Name, HardwareAddr: at.HardwareAddr},
		packet.Datagram, unix.ETH_P_IP, nil)
	if err != nil {
		return fmt.Errorf("DHCP: %w", err)
	}
	client, err := nclient4.NewWithConn(nclient4.NewBroadcastUDPConn(conn, &net.UDPAddr{Port: nclient4.ClientPort}),
		at.HardwareAddr, nclient4.WithTimeout(dhcpTry), nclient4.WithRetry(dhcpTries))
	if err != nil {
		_ = conn.Close()
		return fmt.Errorf("DHCP: %w", err)
	}
	lease, err := client.Request(ctx, dhcpv4.WithOption(dhcpv4.OptHostName(host)))
	if err != nil {
		_ = client.Close()
		return fmt.Errorf("DHCP: no lease within %v: %w", dhcpTry*dhcpTries, err)
	}
	if _, err := n.apply(i, link, lease.ACK); err != nil {
		_ = client.Close()
		return fmt.Errorf("DHCP: %w", err)
	}
	if addr, ok := netip.AddrFromSlice(lease.ACK.YourIPAddr.To4()); ok {
		if err := announce(link, addr); err != nil {
			log.Warn("address not announced", "nic", i, "error", err)
		}
	}
	go func() {
		defer client.Close()
		n.renew(ctx, i, link, client, lease, host, log)
	}()
	return nil
}

// renew asks again at half of each lease's time, and for a new lease once one
// has run out.
func (n *network) renew(ctx context.Context, i int, link netlink.Link, client *nclient4.Client, lease *nclient4.Lease, host string, log *slog.Logger) {
	expires := time.Now().Add(leaseTime(lease.ACK))
	wait := leaseTime(lease.ACK) / 2
	for {
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
		var (
			next *nclient4.Lease
			err  error
		)
		if time.Now().Before(expires) {
			next, err = client.Renew(ctx, lease)
		} else {
			next, err = client.Request(ctx, dhcpv4.WithOption(dhcpv4.OptHostName(host)))
		}
		var other bool
		if err == nil {
			other, err = n.apply(i, link, next.ACK)
		}
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			log.Warn("DHCP lease not renewed", "nic", i, "error", err)
			// RFC 2131 section 4.4.5: half of what is left, at least a minute.
			wait = max(time.Until(expires)/2, minLease)
			continue
		}
		lease = next
		expires, wait = time.Now().Add(leaseTime(lease.ACK)), leaseTime(lease.ACK)/2
		if other && n.changed != nil {
			n.changed()
		}
	}
}

func leaseTime(ack *dhcpv4.DHCPv4) time.Duration {
	return max(ack.IPAddressLeaseTime(time.Hour), minLease)
}

// apply configures what a lease says and tells whether it is other than
// before.
func (n *network) apply(i int, link netlink.Link, ack *dhcpv4.DHCPv4) (other bool, err error) {
	addr, ok := netip.AddrFromSlice(ack.YourIPAddr.To4())
	if !ok || addr.IsUnspecified() {
		return false, fmt.Errorf("the answer holds no address")
	}
	bits := 24
	if mask := ack.SubnetMask(); mask != nil {
		if ones, size := mask.Size(); size == 32 {
			bits = ones
		}
	}
	if err := setAddress(link, netip.PrefixFrom(addr, bits), int(leaseTime(ack)/time.Second)); err != nil {
		return false, err
	}
	if routers := ack.Router(); len(routers) > 0 {
		if gw, ok := netip.AddrFromSlice(routers[0].To4()); ok {
			if err := setGateway(link, gw); err != nil {
				return false, err
			}
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if old := n.addresses[i]; old != addr {
		other = true
		if old.IsValid() {
			_ = netlink.AddrDel(link, &netlink.Addr{IPNet: &net.IPNet{IP: old.AsSlice(), Mask: net.CIDRMask(bits, 32)}})
		}
		n.addresses[i] = addr
	}
	for _, ip := range ack.DNS() {
		if a, ok := netip.AddrFromSlice(ip.To4()); ok && !slices.Contains(n.dns, a) {
			n.dns, other = append(n.dns, a), true
		}
	}
	if s := ack.DomainSearch(); s != nil {
		for _, name := range s.Labels {
			if !slices.Contains(n.search, name) {
				n.search, other = append(n.search, name), true
			}
		}
	} else if name := ack.DomainName(); name != "" && len(n.search) == 0 {
		n.search, other = []string{name}, true
	}
	return other, nil
}
