package containervm

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/tether"
)

// Any process of a guest can write every key that begins with "guestinfo.", and
// no other (VMware's guest RPC). What bounds a guest's claims stands under keys
// of other names.
const (
	// KeyReach says how controllers may reach the guest; see Reach.
	KeyReach = "vic.reach"
	// keyConfigSum is the SHA-256 of what was written under tether.ConfigKey.
	keyConfigSum = "vic.config.sha256"

	reachLease  = "lease"
	reachSerial = "serial"
)

// Reach makes the value of KeyReach for a VM with adapters: the addresses that
// they have for good, "lease" where one asks DHCP, and "serial" where it has a
// serial port for controllers.
func Reach(nics []vic.NIC, serial bool) string {
	var words []string
	lease := false
	for _, n := range nics {
		if n.Address.IsValid() {
			words = append(words, n.Address.Addr().String())
		} else {
			lease = true
		}
	}
	if lease {
		words = append(words, reachLease)
	}
	if serial {
		words = append(words, reachSerial)
	}
	return strings.Join(words, " ")
}

// reach is KeyReach's value, taken apart.
type reach struct {
	fixed  []netip.Addr
	lease  bool
	serial bool
}

func parseReach(s string) reach {
	var r reach
	for _, w := range strings.Fields(s) {
		if a, err := netip.ParseAddr(w); err == nil {
			r.fixed = append(r.fixed, a)
			continue
		}
		r.lease, r.serial = r.lease || w == reachLease, r.serial || w == reachSerial
	}
	return r
}

// check judges an address that a guest says it is reached at. A controller that
// dialled whatever guests say would be their tool to reach what they cannot. So
// it dials the tether's port only, an address and no name, and of that: what the
// VM's adapters were given; or, where one of them has a lease, what may be one:
// an address of networks, or where there are none, any that is not this
// machine's, nor of the kinds that never are a guest's.
func (r reach) check(address string, networks []netip.Prefix, own func() ([]net.Addr, error)) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("it is no address with a port")
	}
	a := ap.Addr().Unmap()
	if ap.Port() != tether.Port {
		return fmt.Errorf("its port is not the tether's, %d", tether.Port)
	}
	if a.Zone() != "" {
		return fmt.Errorf("it has a zone")
	}
	for _, f := range r.fixed {
		if f == a {
			return nil
		}
	}
	switch {
	case !r.lease:
		return fmt.Errorf("it is none of the VM's addresses")
	case !a.IsGlobalUnicast(), a.Is4() && (a.As4()[0] == 0 || a.As4()[0] >= 240):
		// Loopback, link-local, multicast, unspecified, reserved.
		return fmt.Errorf("no guest is reached at such an address")
	}
	if len(networks) > 0 {
		for _, p := range networks {
			if p.Contains(a) {
				return nil
			}
		}
		return fmt.Errorf("it is in none of the guests' networks")
	}
	mine, err := own()
	if err != nil {
		return fmt.Errorf("this machine's own addresses: %w", err)
	}
	for _, m := range mine {
		if p, err := netip.ParsePrefix(m.String()); err == nil && p.Addr().Unmap() == a {
			return fmt.Errorf("it is this machine's own")
		}
	}
	return nil
}

// knows tells whether a status says enough to reach its guest.
func (r reach) knows(st tether.Status) bool {
	return st.HostKey != "" && (len(st.Addresses) > 0 || r.serial)
}

// targets are those of a guest's addresses that may be dialled, each once, and
// why the others may not.
func (r reach) targets(c *vic.Client, addresses []string) (may []string, errs []error) {
	seen := map[string]bool{}
	for _, a := range addresses {
		if seen[a] {
			continue
		}
		seen[a] = true
		if err := r.check(a, c.GuestNetworks(), net.InterfaceAddrs); err != nil {
			errs = append(errs, fault.Of(vic.ErrDenied, "%.60q, which the guest names, is not dialled: %v", a, err))
			continue
		}
		may = append(may, a)
	}
	return may, errs
}

func configSum(doc string) string {
	sum := sha256.Sum256([]byte(doc))
	return hex.EncodeToString(sum[:])
}
