package vic

import (
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"strings"

	"github.com/vmware/govmomi/session"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/internal/vsphere"
)

// A Client is a session with a vCenter, in one datacenter. Its methods may be
// called by several goroutines.
type Client struct {
	s         *vsphere.Session
	ownedBy   bool
	authority crypto.Signer
	dial      func(ctx context.Context, network, address string) (net.Conn, error)
	dialHost  func(ctx context.Context, network, address string) (net.Conn, error)
	networks  []netip.Prefix
	log       *slog.Logger
}

// Connect logs in. Close logs out. A login that the server has ended meanwhile,
// because it rested or because of a restart, is made again when it is needed.
//
// A certificate that is not trusted is ErrDenied and names the thumbprint that
// the server showed; wrong credentials are ErrDenied, an endpoint that does
// not answer ErrUnavailable.
func Connect(ctx context.Context, cfg Config) (*Client, error) {
	const op = "connect"
	u, err := endpoint(cfg.URL)
	if err != nil {
		return nil, fault.Wrap(op, Ref{}, err)
	}
	ref := Ref{Kind: "vCenter", ID: u.Host}
	if cfg.User == "" {
		return nil, fault.Wrap(op, ref, fault.Of(ErrInvalid, "User is empty"))
	}
	sc := soap.NewClient(u, false)
	if len(cfg.CA) > 0 {
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(cfg.CA) {
			return nil, fault.Wrap(op, ref, fault.Of(ErrInvalid, "CA holds no certificate in PEM form"))
		}
		sc.DefaultTransport().TLSClientConfig.RootCAs = pool
	}
	if cfg.Thumbprint != "" {
		sc.SetThumbprint(u.Host, cfg.Thumbprint)
	}
	sc.UserAgent = "vic-go"
	vc, err := vim25.NewClient(ctx, sc)
	if err != nil {
		return nil, fault.Wrap(op, ref, explainTLS(ctx, u, cfg.Thumbprint, err))
	}
	login := func(ctx context.Context, rt soap.RoundTripper) error {
		req := types.Login{This: *vc.ServiceContent.SessionManager, UserName: cfg.User, Password: cfg.Password, Locale: session.Locale}
		_, err := methods.Login(ctx, rt, &req)
		return err
	}
	if err := login(ctx, vc.RoundTripper); err != nil {
		err = vsphere.Judge(err)
		if soap.IsSoapFault(err) {
			err = fault.As(ErrDenied, err)
		}
		return nil, fault.Wrap(op, ref, err)
	}
	c, err := adopt(ctx, vc, cfg, login)
	if err != nil {
		dctx, cancel := vsphere.Detached(ctx)
		defer cancel()
		_ = session.NewManager(vc).Logout(dctx)
		return nil, fault.Wrap(op, ref, err)
	}
	c.ownedBy = true
	return c, nil
}

// Adopt uses a client that is logged in already and stays its owner's: Close
// does not log it out, and does nothing but end what waits. Of cfg only Datacenter, Authority, DialGuest, DialHost,
// GuestNetworks and Logger are used; a URL or credentials beside it are refused.
func Adopt(ctx context.Context, vc *vim25.Client, cfg Config) (*Client, error) {
	if cfg.URL != "" || cfg.User != "" || cfg.Password != "" || cfg.Thumbprint != "" || len(cfg.CA) > 0 {
		return nil, fault.Wrap("adopt", Ref{}, fault.Of(ErrInvalid, "URL, User, Password, Thumbprint and CA belong to the adopted client: leave them empty"))
	}
	c, err := adopt(ctx, vc, cfg, nil)
	return c, fault.Wrap("adopt", Ref{}, err)
}

func adopt(ctx context.Context, vc *vim25.Client, cfg Config, login func(context.Context, soap.RoundTripper) error) (*Client, error) {
	if !vc.IsVC() {
		return nil, fault.Of(ErrUnsupported, "%s is no vCenter but %s", vc.URL().Host, vc.ServiceContent.About.FullName)
	}
	s, err := vsphere.NewSession(ctx, vc, vsphere.SessionOptions{Login: login, Datacenter: cfg.Datacenter})
	if err != nil {
		return nil, fmt.Errorf("Datacenter: %w", err)
	}
	c := &Client{s: s, authority: cfg.Authority, dial: cfg.DialGuest, dialHost: cfg.DialHost, networks: cfg.GuestNetworks, log: cfg.Logger}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	if c.dial == nil {
		c.dial = (&net.Dialer{}).DialContext
	}
	if c.dialHost == nil {
		c.dialHost = (&net.Dialer{}).DialContext
	}
	return c, nil
}

// Close ends the session that Connect began, and whatever still waits in it,
// with ErrState. It frees nothing in vSphere. No goroutine is left.
func (c *Client) Close(ctx context.Context) error {
	err := c.s.Watcher.Close(ctx)
	if !c.ownedBy {
		return fault.Wrap("close", Ref{}, err)
	}
	err = errors.Join(err, c.s.Logout(ctx))
	c.s.Vim.CloseIdleConnections()
	return fault.Wrap("log out", Ref{}, err)
}

// Session is for the packages of this module: what they ask and wait for in
// vSphere goes through it.
func (c *Client) Session() *vsphere.Session { return c.s }

// Vim returns govmomi's client, for what this module does not offer. Its default
// property collector is in use: wait with one of your own, as govmomi's own
// waits do.
func (c *Client) Vim() *vim25.Client { return c.s.Vim }

// Datacenter returns the datacenter that names are looked up in; its Name is
// the inventory path.
func (c *Client) Datacenter() Ref {
	ref, path := c.s.Datacenter()
	return Ref{Kind: "datacenter", ID: ref.Value, Name: path}
}

// Authority returns the key that certifies this client to guests, or nil.
func (c *Client) Authority() crypto.Signer { return c.authority }

// DialGuest connects to an address in the guests' networks.
func (c *Client) DialGuest(ctx context.Context, network, address string) (net.Conn, error) {
	return c.dial(ctx, network, address)
}

// DialHost connects to an address in the hosts' management network.
func (c *Client) DialHost(ctx context.Context, network, address string) (net.Conn, error) {
	return c.dialHost(ctx, network, address)
}

// GuestNetworks bound where guests with leases are dialled; see Config.
func (c *Client) GuestNetworks() []netip.Prefix { return c.networks }

// Logger is never nil.
func (c *Client) Logger() *slog.Logger { return c.log }

func endpoint(s string) (*url.URL, error) {
	if s == "" {
		return nil, fault.Of(ErrInvalid, "URL is empty: give the vCenter's address, such as https://vcenter.example.com/sdk")
	}
	if !strings.Contains(s, "://") {
		s = "https://" + s
	}
	u, err := url.Parse(s)
	if err != nil {
		return nil, fault.Of(ErrInvalid, "URL: %v", err)
	}
	switch {
	case u.Scheme != "https":
		return nil, fault.Of(ErrInvalid, "URL: scheme %q: only https is spoken, because the login carries a password", u.Scheme)
	case u.Host == "":
		return nil, fault.Of(ErrInvalid, "URL: %q names no host", s)
	case u.User != nil:
		return nil, fault.Of(ErrInvalid, "URL holds user info: use User and Password")
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = vim25.Path
	}
	return u, nil
}

// explainTLS turns a failed verification into an error that names the
// thumbprint the server showed.
func explainTLS(ctx context.Context, u *url.URL, want string, err error) error {
	var ve *tls.CertificateVerificationError
	if !errors.As(err, &ve) && !strings.Contains(err.Error(), "thumbprint does not match") {
		if errors.Is(err, os.ErrDeadlineExceeded) || ctx.Err() != nil {
			return errors.Join(context.Cause(ctx), err)
		}
		return vsphere.Judge(err)
	}
	host := u.Host
	if u.Port() == "" {
		host = net.JoinHostPort(u.Hostname(), "443")
	}
	d := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}} // only to read the certificate
	conn, e := d.DialContext(ctx, "tcp", host)
	if e != nil {
		return fault.As(ErrDenied, err)
	}
	defer conn.Close()
	shown := soap.ThumbprintSHA256(conn.(*tls.Conn).ConnectionState().PeerCertificates[0])
	if want != "" {
		return fault.Of(ErrDenied, "Thumbprint %s does not match: the server's certificate has %s; if that is the one you expect, set it", want, shown)
	}
	return fault.Of(ErrDenied, "the server's certificate is not trusted (%v): set CA, or Thumbprint to %s if that is the one you expect", errors.Unwrap(ve), shown)
}
