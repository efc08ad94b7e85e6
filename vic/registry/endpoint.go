package registry

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"oras.land/oras-go/v2/registry"
	"oras.land/oras-go/v2/registry/remote"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/vic"
)

const (
	dialTimeout   = 15 * time.Second
	maxRedirects  = 10
	maxHeader     = 256 << 10
	metadataLimit = manifestLimit
	maxPages      = 1000
	commitTimeout = 15 * time.Minute // a registry hashes and moves a blob before it answers
)

// An endpoint is one place that serves a repository: the registry itself or
// a mirror.
type endpoint struct {
	ref    registry.Reference // without a tag or digest
	host   string             // and port, as requests name it
	mirror bool
	o      *Options
	policy *policy
	trust  *trust
	proxy  func(*http.Request) (*url.URL, error)
	auth   *authorizer
	retry  *retrier

	rounds struct { // one per kind of trust, made when needed
		sync.Mutex
		of map[roundKind]*http.Transport
	}
	proxies sync.Map     // host:port of proxies in use
	near    atomic.Int32 // the registry's own reach, once known
	asked   atomic.Bool  // for a client's certificate, which it did not get
	down    atomic.Int64 // when it last could not be reached, Unix ns

	mode struct { // how to speak, found out once
		sync.Mutex
		known, plain bool
		insecure     bool
		pinned       []pattern // networks its addresses must lie in
		repo         *remote.Repository
	}
}

// roundKind tells apart the transports: what is trusted differs.
type roundKind struct{ own, upload, insecure bool }

// newEndpoint opens a repository at a registry (its name, which may differ
// from its host's) or mirror.
func newEndpoint(o *Options, p *policy, name, repository string, mirror, plain bool) (*endpoint, error) {
	e := &endpoint{o: o, policy: p, mirror: mirror, ref: registry.Reference{Registry: name, Repository: repository}, host: apiHost(name)}
	if err := e.ref.ValidateRepository(); err != nil {
		return nil, fault.As(vic.ErrInvalid, err)
	}
	e.mode.plain, e.mode.known = plain, plain
	if !mirror && o.Insecure {
		e.mode.insecure = true
	}
	host, port := e.hostPort()
	if _, err := p.judge(host, port, true); err != nil {
		return nil, err
	}
	dirs := []string{e.host}
	if name != e.host {
		dirs = append(dirs, name)
	}
	var err error
	if e.trust, err = newTrust(o, !mirror, dirs...); err != nil {
		return nil, err
	}
	if e.proxy, err = proxyFunc(o); err != nil {
		return nil, err
	}
	attempts := o.Attempts
	if mirror {
		attempts = min(attempts, 2) // somebody else can be asked
	}
	e.retry = &retrier{attempts: attempts, delay: o.RetryDelay, longest: o.MaxRetryAfter, debug: o.debug}
	e.auth, err = newAuthorizer(e)
	return e, err
}

// hostPort parts the registry's host and port, which is the scheme's own
// where it is not given.
func (e *endpoint) hostPort() (host, port string) {
	return urlHostPort(&url.URL{Scheme: e.scheme(), Host: e.host})
}

func (e *endpoint) scheme() string {
	if e.mode.plain {
		return "http"
	}
	return "https"
}

func urlHostPort(u *url.URL) (host, port string) {
	if port = u.Port(); port == "" {
		port = "443"
		if u.Scheme == "http" {
			port = "80"
		}
	}
	return canonicalHost(u.Hostname()), port
}

func (e *endpoint) isOwn(u *url.URL) bool {
	host, port := urlHostPort(u)
	h, p := e.hostPort()
	return host == h && port == p
}

// prepare finds out how the registry is spoken to, where it is on the list of
// insecure ones, and returns the repository to do it with.
func (e *endpoint) prepare(ctx context.Context) (*remote.Repository, error) {
	e.mode.Lock()
	defer e.mode.Unlock()
	if e.mode.repo != nil {
		return e.mode.repo, nil
	}
	if !e.mode.known {
		if err := e.findMode(ctx); err != nil {
			return nil, err
		}
	}
	e.mode.repo = &remote.Repository{
		Reference: e.ref, PlainHTTP: e.mode.plain, Client: e.auth, ManifestMediaTypes: manifestTypes,
		MaxMetadataBytes: metadataLimit, TagListMaxPages: maxPages, ReferrerListMaxPages: maxPages, SkipReferrersGC: true,
	}
	return e.mode.repo, nil
}

func (e *endpoint) findMode(ctx context.Context) error {
	host, port := e.hostPort()
	listed := anyName(e.policy.insecure, host, port)
	if !listed && hasNetworks(e.policy.insecure) {
		addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		listed = err == nil && len(addrs) > 0
		for _, a := range addrs {
			listed = listed && anyNetwork(e.policy.insecure, a.Unmap())
		}
		if listed {
			e.mode.pinned = e.policy.insecure
		}
	}
	if !listed {
		e.mode.known = true
		return nil
	}
	e.mode.insecure = true
	ask := func(scheme string) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+e.host+"/v2/", nil)
		if err != nil {
			return err
		}
		resp, err := e.transport(roundKind{own: true, insecure: true}).RoundTrip(req)
		if err == nil {
			drain(resp.Body)
		}
		return err
	}
	err := ask("https")
	if err != nil && ctx.Err() == nil && !errors.Is(err, vic.ErrDenied) {
		if e.mode.plain = true; ask("http") != nil {
			e.mode.plain = false
		} else {
			err = nil
			e.o.debug(ctx, "registry speaks no TLS and is listed as insecure", "host", e.host)
		}
	}
	if err == nil {
		e.mode.known = true
	}
	return err
}

// RoundTrip makes one request with the transport that the host is trusted by.
func (e *endpoint) RoundTrip(req *http.Request) (*http.Response, error) {
	k := roundKind{own: e.isOwn(req.URL), upload: req.Method == http.MethodPut || req.Method == http.MethodPatch}
	host, port := urlHostPort(req.URL)
	k.insecure = k.own && e.mode.insecure || anyName(e.policy.insecure, host, port)
	return e.transport(k).RoundTrip(req)
}

func (e *endpoint) transport(k roundKind) *http.Transport {
	e.rounds.Lock()
	defer e.rounds.Unlock()
	if t := e.rounds.of[k]; t != nil {
		return t
	}
	t := &http.Transport{
		Proxy:                  e.proxyFor,
		DialContext:            e.dial,
		TLSClientConfig:        e.trust.config(k.insecure, k.own, func() { e.asked.Store(true) }),
		TLSHandshakeTimeout:    dialTimeout,
		ResponseHeaderTimeout:  e.o.StallTimeout,
		MaxResponseHeaderBytes: maxHeader,
		MaxIdleConnsPerHost:    8,
		IdleConnTimeout:        15 * time.Second,
		ForceAttemptHTTP2:      true,
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: dialTimeout, PingTimeout: dialTimeout},
		DisableCompression:     true, // digests are of the bytes as they are; and no bombs
		OnProxyConnectResponse: proxyAnswer,
	}
	if k.upload {
		t.ResponseHeaderTimeout = commitTimeout
	}
	if e.rounds.of == nil {
		e.rounds.of = map[roundKind]*http.Transport{}
	}
	e.rounds.of[k] = t
	return t
}

func (e *endpoint) reach() reach {
	host, _ := e.hostPort()
	if a, err := netip.ParseAddr(host); err == nil {
		return reachOf(a)
	}
	return reach(e.near.Load())
}

// dial connects, and looks at the address that it really connects to.
func (e *endpoint) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	d := net.Dialer{Timeout: dialTimeout, KeepAlive: dialTimeout}
	if _, isProxy := e.proxies.Load(addr); isProxy {
		return d.DialContext(ctx, network, addr)
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	h, p := e.hostPort()
	own := canonicalHost(host) == h && port == p
	d.ControlContext = func(_ context.Context, _, address string, _ syscall.RawConn) error {
		ap, err := netip.ParseAddrPort(address)
		if err != nil {
			return err
		}
		a := ap.Addr().Unmap()
		if own && e.mode.pinned != nil && !anyNetwork(e.mode.pinned, a) {
			return fault.Of(vic.ErrDenied, "%s has now the address %s, outside the networks of InsecureRegistries that it was in", host, a)
		}
		return e.policy.judgeAddress(host, port, own, a, e.reach())
	}
	c, err := d.DialContext(ctx, network, addr)
	if err == nil && own {
		if ap, err := netip.ParseAddrPort(c.RemoteAddr().String()); err == nil {
			e.near.Store(int32(reachOf(ap.Addr())))
		}
	}
	return c, err
}

// checkRedirect bounds where a registry may send a request.
func (e *endpoint) checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) >= maxRedirects {
		return contradiction("the registry redirects more than %d times", maxRedirects)
	}
	if err := e.checkElsewhere(req.URL, via[0].URL.Scheme == "https"); err != nil {
		return fmt.Errorf("redirect: %w", err)
	}
	// Headers are copied from the first request at each hop; what is secret
	// is for its origin only (scheme, host and port).
	for _, r := range append(via[1:len(via):len(via)], req) {
		if !sameOrigin(via[0].URL, r.URL) {
			req.Header.Del("Authorization")
			req.Header.Del("Referer")
			if req.Body != nil && req.Body != http.NoBody {
				return contradiction("the registry redirects a %s request with a body to another host, %s", req.Method, req.URL.Host)
			}
		}
	}
	if !sameOrigin(via[0].URL, req.URL) {
		e.o.debug(req.Context(), "registry redirects", "from", e.host, "to", req.URL.Host)
	}
	return nil
}

// checkElsewhere says whether a request may go to a URL that a registry named.
func (e *endpoint) checkElsewhere(u *url.URL, fromTLS bool) error {
	switch {
	case u.Scheme != "https" && u.Scheme != "http":
		return contradiction("the registry sends us to a URL of the scheme %q", clean(u.Scheme))
	case u.Scheme == "http" && fromTLS && !e.mode.insecure:
		return fault.Of(vic.ErrDenied, "the registry sends us from TLS to plain HTTP at %s", u.Host)
	case u.User != nil || u.Host == "":
		return contradiction("the registry sends us to a URL with credentials or without a host")
	}
	host, port := urlHostPort(u)
	own := e.isOwn(u)
	if a, err := netip.ParseAddr(host); err == nil {
		return e.policy.judgeAddress(host, port, own, a, e.reach())
	}
	_, err := e.policy.judge(host, port, own)
	return err
}

func sameOrigin(a, b *url.URL) bool {
	ah, ap := urlHostPort(a)
	bh, bp := urlHostPort(b)
	return strings.EqualFold(a.Scheme, b.Scheme) && ah == bh && ap == bp
}

// hint adds to a broken connection that it may be the registry's answer to a
// missing client's certificate: in TLS 1.3 its alert often comes too late to
// be seen.
func (e *endpoint) hint(err error) error {
	var f *failure
	if e.asked.Load() && errors.As(err, &f) && errors.Is(err, vic.ErrUnavailable) {
		return &failure{text: f.text + "; it has asked for a client's certificate: options ClientCert and ClientKey or CertsDir", errs: f.errs}
	}
	return err
}

func (e *endpoint) close() {
	e.rounds.Lock()
	defer e.rounds.Unlock()
	for _, t := range e.rounds.of {
		t.CloseIdleConnections()
	}
}
