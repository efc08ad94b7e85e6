package lab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"

	"github.com/vicsdk/vic-go/vic"
)

// authorityFile, below the lab's directory, is the key that certifies
// controllers to the guests of the lab's VCHs.
const authorityFile = "authority.pem"

// Config is what vic.Connect needs to use the lab. The authority's key is kept
// in the lab's directory and made there when it is first asked for.
func (l *Lab) Config() (vic.Config, error) {
	e := l.Endpoint()
	a, err := vic.OpenAuthority(filepath.Join(l.Dir(), authorityFile))
	return vic.Config{
		URL: e.URL.String(), User: e.User, Password: e.Password, CA: e.CA, Authority: a, GuestNetworks: l.subnets(),
		DialGuest: func(ctx context.Context, network, address string) (net.Conn, error) {
			if network != "tcp" {
				return nil, fmt.Errorf("lab: guests are dialled by tcp, not by %q", network)
			}
			return l.DialGuest(ctx, "", address)
		},
		DialHost: func(ctx context.Context, _, address string) (net.Conn, error) { return l.DialHost(ctx, address) },
	}, err
}

// Config is what vic.Connect needs to use the lab from another process; guests
// and hosts are reached through the lab's proxy.
func (s State) Config() (vic.Config, error) {
	proxy, err := url.Parse(s.GuestProxy)
	if err != nil {
		return vic.Config{}, fmt.Errorf("lab: guest proxy: %w", err)
	}
	proxy.User = url.UserPassword(s.User, s.Password)
	dial, err := vic.ProxyDialer(proxy)
	if err != nil {
		return vic.Config{}, err
	}
	a, err := vic.OpenAuthority(filepath.Join(s.Dir, authorityFile))
	return vic.Config{URL: s.URL, User: s.User, Password: s.Password, CA: []byte(s.CA), Authority: a, DialGuest: dial, DialHost: dial, GuestNetworks: s.GuestNetworks}, err
}

// subnets of the port groups.
func (l *Lab) subnets() []netip.Prefix {
	var all []netip.Prefix
	for _, n := range l.nets {
		all = append(all, n.subnet)
	}
	return all
}
