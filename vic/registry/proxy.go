package registry

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/vic"
)

// proxyFunc chooses the proxy of a request: the environment's, as all of Go
// does, or the one of the options.
func proxyFunc(o *Options) (func(*http.Request) (*url.URL, error), error) {
	if o.Proxy == nil {
		if o.NoProxy != "" {
			return nil, fault.Of(vic.ErrInvalid, "option NoProxy is given without Proxy; the environment's proxies have NO_PROXY")
		}
		return http.ProxyFromEnvironment, nil
	}
	switch o.Proxy.Scheme {
	case "http", "https", "socks5", "socks5h":
	default:
		return nil, fault.Of(vic.ErrInvalid, "option Proxy: scheme %q; take http, https or socks5", o.Proxy.Scheme)
	}
	if o.Proxy.Host == "" {
		return nil, fault.Of(vic.ErrInvalid, "option Proxy names no host")
	}
	u := *o.Proxy
	list := strings.Split(o.NoProxy, ",")
	return func(req *http.Request) (*url.URL, error) {
		host, port := urlHostPort(req.URL)
		for _, s := range list {
			if exempt(s, host, port) {
				return nil, nil
			}
		}
		return &u, nil
	}, nil
}

// exempt matches an entry of NO_PROXY as golang.org/x/net/http/httpproxy
// documents them: an address, a network, a domain with all below it, ".domain"
// or "*.domain" for those below only, each but networks with or without a
// port, or "*".
func exempt(entry, host, port string) bool {
	entry = strings.ToLower(strings.TrimSpace(entry))
	switch entry {
	case "":
		return false
	case "*":
		return true
	}
	a, isAddr := netip.ParseAddr(host)
	if n, err := netip.ParsePrefix(entry); err == nil {
		return isAddr == nil && n.Contains(a)
	}
	if h, p, ok := splitHost(entry); ok && p != "" && strings.Count(entry, ":") == 1 || strings.HasPrefix(entry, "[") {
		if p != "" && p != port {
			return false
		}
		entry = h
	}
	below := strings.HasPrefix(entry, ".") || strings.HasPrefix(entry, "*.")
	entry = canonicalHost(strings.TrimPrefix(strings.TrimPrefix(entry, "*"), "."))
	if host == entry {
		return !below
	}
	return isAddr != nil && strings.HasSuffix(host, "."+entry)
}

// proxyAnswer explains a proxy that refuses to connect.
func proxyAnswer(_ context.Context, proxy *url.URL, _ *http.Request, resp *http.Response) error {
	switch resp.StatusCode {
	case http.StatusOK:
		return nil
	case http.StatusProxyAuthRequired:
		return fault.Of(vic.ErrDenied, "the proxy %s wants a login: give user and password in option Proxy or HTTPS_PROXY", proxy.Host)
	case http.StatusForbidden, http.StatusMethodNotAllowed:
		return fault.Of(vic.ErrDenied, "the proxy %s refuses: %s", proxy.Host, clean(resp.Status))
	}
	return fault.Of(vic.ErrUnavailable, "the proxy %s answers %s", proxy.Host, clean(resp.Status))
}

// proxyFor chooses a proxy and checks what can be checked of a host that is
// spoken to through one.
func (e *endpoint) proxyFor(req *http.Request) (*url.URL, error) {
	u, err := e.proxy(req)
	if err != nil {
		// Its text would show the proxy's URL.
		return nil, fault.Of(vic.ErrInvalid, "the environment's HTTP_PROXY or HTTPS_PROXY is no URL")
	}
	if u == nil {
		return nil, nil
	}
	host, port := urlHostPort(req.URL)
	own := e.isOwn(req.URL)
	if a, err := netip.ParseAddr(host); err == nil {
		if err := e.policy.judgeAddress(host, port, own, a, e.reach()); err != nil {
			return nil, err
		}
	} else if v, err := e.policy.judge(host, port, own); err != nil {
		return nil, err
	} else if v == byAddress && !e.policy.allowAll {
		return nil, fault.Of(vic.ErrDenied, "%s is allowed by its address only, which cannot be seen through the proxy %s: allow it by name, or name it in NO_PROXY", host, u.Host)
	}
	port = u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
		if port == "" {
			port = "1080"
		}
	}
	e.proxies.Store(net.JoinHostPort(u.Hostname(), port), true)
	return u, nil
}
