package vic

import (
	"bufio"
	"context"
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/vicsdk/vic-go/internal/fault"
)

// ProxyDialer returns a function for Config.DialGuest that connects through an
// HTTP proxy by the CONNECT method (RFC 9110, section 9.3.6). The URL's scheme
// is http, its user info, if any, is sent as basic authorization.
func ProxyDialer(proxy *url.URL) (func(ctx context.Context, network, address string) (net.Conn, error), error) {
	if proxy.Scheme != "http" || proxy.Host == "" {
		return nil, fault.Of(ErrInvalid, "guest proxy %q: want http://[user:password@]host:port", proxy.Redacted())
	}
	host, auth := proxy.Host, ""
	if proxy.Port() == "" {
		host = net.JoinHostPort(proxy.Hostname(), "80")
	}
	if u := proxy.User; u != nil {
		pw, _ := u.Password()
		auth = "Basic " + base64.StdEncoding.EncodeToString([]byte(u.Username()+":"+pw))
	}
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := (&net.Dialer{}).DialContext(ctx, network, host)
		if err != nil {
			return nil, fmt.Errorf("guest proxy: %w", err)
		}
		if err := connect(ctx, c, address, auth); err != nil {
			c.Close()
			return nil, fmt.Errorf("guest proxy %s: %w", host, err)
		}
		return c, nil
	}, nil
}

func connect(ctx context.Context, c net.Conn, address, auth string) error {
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	req := &http.Request{Method: http.MethodConnect, URL: &url.URL{Opaque: address}, Host: address, Header: http.Header{}}
	if auth != "" {
		req.Header.Set("Proxy-Authorization", auth)
	}
	if err := req.Write(c); err != nil {
		return err
	}
	// The far end speaks only after us (SSH clients send their version first
	// or wait for none), yet a byte read beyond the answer would be lost:
	// read the head byte by byte.
	res, err := http.ReadResponse(bufio.NewReaderSize(oneByte{c}, 16), req)
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return err
	}
	if res.StatusCode/100 != 2 {
		kind := ErrUnavailable
		if res.StatusCode == http.StatusProxyAuthRequired || res.StatusCode == http.StatusForbidden {
			kind = ErrDenied
		}
		return fault.Of(kind, "CONNECT %s: %s", address, res.Status)
	}
	if !stop() {
		return ctx.Err()
	}
	return nil
}

// oneByte reads a byte at a time, so that nothing beyond a delimiter is taken.
type oneByte struct{ net.Conn }

func (o oneByte) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	return o.Conn.Read(p[:1])
}
