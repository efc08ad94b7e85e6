package vic

import (
	"context"
	"crypto"
	"log/slog"
	"net"
	"net/netip"
)

// Config says which vCenter to speak to and how guests are reached.
type Config struct {
	// URL of the SDK endpoint, such as https://vcenter.example.com/sdk. A bare
	// host name is taken as such a URL. User info in it is refused: it would
	// end up in logs.
	URL string
	// User and Password of the login. They are kept in memory while the client
	// lives, to log in again, and written nowhere.
	User, Password string
	// Thumbprint of the server's certificate, SHA-256 or SHA-1 in upper-case
	// hexadecimal pairs with colons. It is tried when the certificate is not
	// signed by CA or, without CA, by the system's authorities.
	Thumbprint string
	// CA holds certificates in PEM form that may sign the server's.
	CA []byte
	// Datacenter by name or inventory path; empty where there is only one.
	Datacenter string

	// Authority is the private key that certifies controllers to the guests of
	// the VCHs created with it (ed25519 is fast under every CPU), or told of it
	// since (package engine, RotateAuthority). Keep it as you keep a CA's key.
	// Without it no guest can be attached to.
	Authority crypto.Signer
	// DialGuest connects to an address in the guests' networks. Nil dials
	// directly; use it where those networks are reached through a bastion or
	// a proxy (see ProxyDialer).
	DialGuest func(ctx context.Context, network, address string) (net.Conn, error)
	// DialHost connects to an address in the hosts' management network, for the
	// network serial ports of VMs. Nil dials directly.
	DialHost func(ctx context.Context, network, address string) (net.Conn, error)
	// GuestNetworks bound where guests with leases are dialled: a guest's own
	// word is all that tells its lease. Empty, any address may be one that is no
	// special one and not this machine's own. Fixed addresses need no bound.
	GuestNetworks []netip.Prefix
	// Logger, or nil for silence.
	Logger *slog.Logger
}
