//go:build linux && amd64

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vicsdk/vic-go/vic/tether"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	nicWait  = 30 * time.Second // for an adapter to appear
	linkWait = 5 * time.Second  // for its link
)

// network is what the NICs came to.
type network struct {
	mu        sync.Mutex
	addresses []netip.Addr // one per NIC that has one
	dns       []netip.Addr
	search    []string
	settings  tether.Settings
	changed   func() // after a lease brought something else; may be nil
}

func loopback() error {
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("lo: %w", err)
	}
	return nil
}

// bringUp configures all NICs at the same time and returns when each has its
// address. Leases are renewed until ctx ends.
func bringUp(ctx context.Context, u *uevents, c *tether.Config, log *slog.Logger) (*network, error) {
	n := &network{
		addresses: make([]netip.Addr, len(c.NICs)),
		dns:       append([]netip.Addr(nil), c.DNS...), search: append([]string(nil), c.Search...),
		settings: c.Settings,
	}
	links, err := findNICs(ctx, u, c.NICs)
	if err != nil {
		return nil, err
	}
	if err := nameNICs(links); err != nil {
		return nil, err
	}
	errs := make([]error, len(links))
	var wg sync.WaitGroup
	for i, link := range links {
		wg.Go(func() {
			if err := n.configure(ctx, i, link, c, log); err != nil {
				errs[i] = fmt.Errorf("nics[%d] (%s): %w", i, c.NICs[i].MAC, err)
			}
		})
	}
	wg.Wait()
	return n, errors.Join(errs...)
}

// findNICs waits for the adapters, by their MAC.
func findNICs(ctx context.Context, u *uevents, nics []tether.NIC) ([]netlink.Link, error) {
	found := make([]netlink.Link, len(nics))
	macs := make([]net.HardwareAddr, len(nics))
	for i, nic := range nics {
		mac, err := net.ParseMAC(nic.MAC)
		if err != nil {
			return nil, fmt.Errorf("nics[%d].mac: %w", i, err)
		}
		macs[i] = mac
	}
	ctx, cancel := context.WithTimeout(ctx, nicWait)
	defer cancel()
	err := u.wait(ctx, func() bool {
		all, err := netlink.LinkList()
		if err != nil {
			return false
		}
		missing := false
		for i, mac := range macs {
			for _, l := range all {
				if bytes.Equal(l.Attrs().HardwareAddr, mac) {
					found[i] = l
				}
			}
			missing = missing || found[i] == nil
		}
		return !missing
	})
	if err != nil {
		for i, l := range found {
			if l == nil {
				return nil, fmt.Errorf("nics[%d].mac: no adapter %s within %v", i, nics[i].MAC, nicWait)
			}
		}
	}
	return found, err
}

// nameNICs names the adapters eth0, eth1, … in the configuration's order.
func nameNICs(links []netlink.Link) error {
	right := true
	for i, l := range links {
		right = right && l.Attrs().Name == fmt.Sprintf("eth%d", i)
	}
	if right {
		return nil
	}
	// Through names that nothing has, as the right ones may be in use.
	for _, prefix := range []string{"vicnic", "eth"} {
		for i, l := range links {
			if err := netlink.LinkSetName(l, fmt.Sprintf("%s%d", prefix, i)); err != nil {
				return fmt.Errorf("nics[%d]: name: %w", i, err)
			}
		}
	}
	for i, l := range links {
		l.Attrs().Name = fmt.Sprintf("eth%d", i)
	}
	return nil
}

func (n *network) configure(ctx context.Context, i int, link netlink.Link, c *tether.Config, log *slog.Logger) error {
	nic := c.NICs[i]
	if nic.Address.IsValid() {
		// Before the link is up, so that nothing is sent from another address.
		if err := setAddress(link, nic.Address, 0); err != nil {
			return err
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("link up: %w", err)
	}
	if !nic.Address.IsValid() {
		if err := linkReady(ctx, link); err != nil {
			return err
		}
		return n.dhcp(ctx, i, link, hostname(c), log)
	}
	if err := announce(link, nic.Address.Addr()); err != nil {
		log.Warn("address not announced", "nic", i, "error", err)
	}
	n.set(i, nic.Address.Addr())
	if nic.Gateway.IsValid() {
		return setGateway(link, nic.Gateway)
	}
	return nil
}

func (n *network) set(i int, a netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.addresses[i] = a
}

// setAddress gives a link an address, for the given seconds or for ever.
func setAddress(link netlink.Link, p netip.Prefix, seconds int) error {
	a := &netlink.Addr{
		IPNet:    &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())},
		ValidLft: seconds, PreferedLft: seconds,
	}
	if p.Addr().Is6() {
		// It was given, so nobody else has it: usable at once.
		a.Flags = unix.IFA_F_NODAD
	}
	if err := netlink.AddrReplace(link, a); err != nil {
		return fmt.Errorf("address %v: %w", p, err)
	}
	return nil
}

// setGateway sets the default route. The gateway may be outside the link's
// prefix.
func setGateway(link netlink.Link, gateway netip.Addr) error {
	family := netlink.FAMILY_V4
	all := &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}
	if gateway.Is6() {
		family = netlink.FAMILY_V6
		all = &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
	}
	r := &netlink.Route{
		LinkIndex: link.Attrs().Index, Gw: gateway.AsSlice(), Dst: all, Family: family,
		Flags: int(netlink.FLAG_ONLINK),
		// The first NIC's gateway counts, the others stand by.
		Priority: 100 + link.Attrs().Index,
	}
	if err := netlink.RouteReplace(r); err != nil {
		return fmt.Errorf("gateway %v: %w", gateway, err)
	}
	return nil
}

// linkReady waits, not for long, until the link carries frames.
func linkReady(ctx context.Context, link netlink.Link) error {
	updates, done := make(chan netlink.LinkUpdate, 16), make(chan struct{})
	defer close(done)
	if err := netlink.LinkSubscribe(updates, done); err != nil {
		return fmt.Errorf("link: %w", err)
	}
	ready := func(l netlink.Link) bool { return l.Attrs().RawFlags&unix.IFF_LOWER_UP != 0 }
	if l, err := netlink.LinkByIndex(link.Attrs().Index); err == nil && ready(l) {
		return nil
	}
	t := time.NewTimer(linkWait)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
			return nil // DHCP will tell whether it matters.
		case up, open := <-updates:
			if !open || (int(up.Index) == link.Attrs().Index && up.IfInfomsg.Flags&unix.IFF_LOWER_UP != 0) {
				return nil
			}
		}
	}
}

// hosts are the addresses of the NICs.
func (n *network) hosts() []netip.Addr {
	n.mu.Lock()
	defer n.mu.Unlock()
	var all []netip.Addr
	for _, a := range n.addresses {
		if a.IsValid() {
			all = append(all, a)
		}
	}
	return all
}

// resolv is the container's /etc/resolv.conf (resolv.conf(5)).
func (n *network) resolv() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var b strings.Builder
	search, dns := n.search, n.dns
	if s := n.settings.DNSSearch; len(s) > 0 {
		search = slices.DeleteFunc(slices.Clone(s), func(d string) bool { return d == "." })
	}
	if s := n.settings.DNS; len(s) > 0 {
		dns = s
	}
	if len(search) > 0 {
		b.WriteString("search " + strings.Join(search, " ") + "\n")
	}
	for _, a := range dns {
		b.WriteString("nameserver " + a.String() + "\n")
	}
	if o := n.settings.DNSOptions; len(o) > 0 {
		b.WriteString("options " + strings.Join(o, " ") + "\n")
	}
	return b.String()
}

// refuseLocal drops connections from the VM itself, so that the container's
// processes cannot occupy the tether.
type refuseLocal struct{ net.Listener }

// Accept implements net.Listener.
func (l refuseLocal) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		from, ok1 := c.RemoteAddr().(*net.TCPAddr)
		to, ok2 := c.LocalAddr().(*net.TCPAddr)
		if ok1 && ok2 && (from.IP.IsLoopback() || from.IP.Equal(to.IP)) {
			_ = c.Close()
			continue
		}
		return c, nil
	}
}
