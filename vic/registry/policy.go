package registry

import (
	"net/netip"
	"strings"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/vic"
)

// A pattern is one entry of a list of hosts: a name or a network.
type pattern struct {
	host    string // lower case, without brackets; "" for any
	below   bool   // the names below host, not host itself
	port    string // "" for 443 and 80, "*" for any
	network netip.Prefix
}

// parsePatterns reads the list that is called field in Options.
func parsePatterns(field string, list []string) ([]pattern, error) {
	var out []pattern
	for _, s := range list {
		p, why := parsePattern(strings.ToLower(strings.TrimSpace(s)))
		if why != "" {
			return nil, fault.Of(vic.ErrInvalid, "option %s: %.100q %s; take host, host:port, host:*, *.domain, * or a network such as 10.0.0.0/8", field, s, why)
		}
		out = append(out, p)
	}
	return out, nil
}

func parsePattern(s string) (p pattern, why string) {
	if strings.Contains(s, "/") {
		n, err := netip.ParsePrefix(s)
		if err != nil {
			return p, "is no network"
		}
		return pattern{network: n.Masked()}, ""
	}
	if s == "*" {
		return pattern{port: "*"}, ""
	}
	if host, ok := strings.CutSuffix(s, ":*"); ok {
		s, p.port = host, "*"
	}
	if rest, ok := strings.CutPrefix(s, "*."); ok {
		s, p.below = rest, true
	}
	if a, err := netip.ParseAddr(s); err == nil && a.Is6() {
		s = "[" + s + "]" // Docker's lists have them bare
	}
	if bad := checkHost(s); bad != "" {
		return p, "is " + bad
	}
	host, port, _ := splitHost(s)
	if p.port == "" {
		p.port = port
	} else if port != "" {
		return p, "has two ports"
	}
	p.host = canonicalHost(host)
	return p, ""
}

// canonicalHost is a host without brackets, in lower case and without the
// root's dot; addresses in their shortest form.
func canonicalHost(h string) string {
	h = strings.ToLower(strings.TrimSuffix(strings.Trim(h, "[]"), "."))
	if a, err := netip.ParseAddr(h); err == nil {
		return a.Unmap().String()
	}
	return h
}

func (p pattern) matchesName(host, port string) bool {
	switch {
	case p.network.IsValid():
		a, err := netip.ParseAddr(host)
		return err == nil && p.network.Contains(a)
	case p.port == "" && port != "443" && port != "80":
		return false
	case p.port != "" && p.port != "*" && p.port != port:
		return false
	case p.below:
		return strings.HasSuffix(host, "."+p.host)
	}
	return p.host == "" || p.host == host
}

func anyName(list []pattern, host, port string) bool {
	for _, p := range list {
		if p.matchesName(host, port) {
			return true
		}
	}
	return false
}

func anyNetwork(list []pattern, a netip.Addr) bool {
	for _, p := range list {
		if p.network.IsValid() && p.network.Contains(a) {
			return true
		}
	}
	return false
}

func hasNetworks(list []pattern) bool {
	for _, p := range list {
		if p.network.IsValid() {
			return true
		}
	}
	return false
}

// A policy says which hosts may be spoken to.
type policy struct {
	allow, deny, redirects, insecure []pattern
	allowAll                         bool
}

func newPolicy(o *Options) (*policy, error) {
	p := &policy{allowAll: o.Allow == nil}
	for _, l := range []struct {
		field string
		from  []string
		to    *[]pattern
	}{
		{"Allow", o.Allow, &p.allow},
		{"Deny", o.Deny, &p.deny},
		{"Redirects", o.Redirects, &p.redirects},
		{"InsecureRegistries", o.InsecureRegistries, &p.insecure},
	} {
		var err error
		if *l.to, err = parsePatterns(l.field, l.from); err != nil {
			return nil, err
		}
	}
	// Docker's registry has its parts under two domains.
	for _, h := range []pattern{{host: hub}, {host: hubHost}} {
		if anyName(p.allow, h.host, "443") {
			p.allow = append(p.allow, pattern{host: hub}, pattern{host: hub, below: true}, pattern{host: "docker.com", below: true})
		}
		if anyName(p.deny, h.host, "443") {
			p.deny = append(p.deny, pattern{host: hub, port: "*"}, pattern{host: hub, below: true, port: "*"})
		}
	}
	return p, nil
}

// A verdict is what can be said of a host by its name alone.
type verdict int

const (
	refused verdict = iota
	open            // whatever its address, but for Deny and the reach of redirects
	byAddress
)

// judge says by its name whether a host may be spoken to: as a registry or
// mirror, or as one that a registry sent us to.
func (p *policy) judge(host, port string, own bool) (verdict, error) {
	host = canonicalHost(host)
	if anyName(p.deny, host, port) {
		return refused, fault.Of(vic.ErrDenied, "host %s:%s is denied by option Deny", host, port)
	}
	if anyName(p.allow, host, port) || !own && anyName(p.redirects, host, port) {
		return open, nil
	}
	if p.allowAll {
		if own {
			return open, nil
		}
		return byAddress, nil
	}
	if _, err := netip.ParseAddr(host); err != nil && (hasNetworks(p.allow) || !own && hasNetworks(p.redirects)) {
		return byAddress, nil
	}
	return refused, p.refusal(host, port, own)
}

func (p *policy) refusal(host, port string, own bool) error {
	if own {
		return fault.Of(vic.ErrDenied, "registry %s:%s is not allowed: option Allow does not name it", host, port)
	}
	return fault.Of(vic.ErrDenied, "the registry sends us to %s:%s, which neither option Allow nor Redirects names", host, port)
}

// judgeAddress says whether a connection to a host may be made to an address.
// reach is how near the registry itself is.
func (p *policy) judgeAddress(host, port string, own bool, a netip.Addr, reach reach) error {
	a = a.Unmap().WithZone("")
	if anyNetwork(p.deny, a) {
		return fault.Of(vic.ErrDenied, "host %s:%s has the address %s, which is denied by option Deny", host, port, a)
	}
	v, err := p.judge(host, port, own)
	if v == open || err != nil {
		return err
	}
	if anyNetwork(p.allow, a) || !own && anyNetwork(p.redirects, a) {
		return nil
	}
	if !p.allowAll {
		return fault.Of(vic.ErrDenied, "%w (its address is %s)", p.refusal(host, port, own), a)
	}
	if r := reachOf(a); r > reach {
		return fault.Of(vic.ErrDenied, "the registry, which has a %s address, sends us to %s:%s at the %s address %s: name it in option Redirects if that is meant", reach, host, port, r, a)
	}
	return nil
}

// reach is how near an address is: what is nearer must not be reached through
// what is farther.
type reach int

const (
	public reach = iota
	private
	local
)

func (r reach) String() string { return [...]string{"public", "private", "local"}[r] }

var sharedNetwork = netip.MustParsePrefix("100.64.0.0/10") // RFC 6598

func reachOf(a netip.Addr) reach {
	a = a.Unmap()
	switch {
	case a.IsLoopback(), a.IsUnspecified(), a.IsLinkLocalUnicast(), a.IsMulticast():
		return local
	case a.IsPrivate(), sharedNetwork.Contains(a):
		return private
	}
	return public
}
