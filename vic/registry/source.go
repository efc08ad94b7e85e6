package registry

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"time"

	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/retry"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/vic"
)

// Options say how registries are reached; nil is TLS with the system's
// authorities and no login.
type Options struct {
	// PlainHTTP speaks HTTP without TLS.
	PlainHTTP bool
	// CA holds further certificates in PEM form that may sign a registry's.
	CA []byte
	// User and Password for basic or bearer authentication.
	User, Password string
}

// Open opens the repository of a name. It makes no request. What it returns
// is an imagestore.Source.
func Open(n Name, o *Options) (*remote.Repository, error) {
	if o == nil {
		o = &Options{}
	}
	ref := vic.Ref{Kind: "repository", Name: n.Registry + "/" + n.Repository}
	r, err := remote.NewRepository(ref.Name)
	if err != nil {
		return nil, fault.Wrap("open", ref, fault.As(vic.ErrInvalid, err))
	}
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	t.DialContext = (&net.Dialer{Timeout: 15 * time.Second, KeepAlive: 15 * time.Second}).DialContext
	t.ResponseHeaderTimeout = time.Minute
	if len(o.CA) > 0 {
		if o.PlainHTTP {
			return nil, fault.Wrap("open", ref, fault.Of(vic.ErrInvalid, "CA and PlainHTTP exclude each other"))
		}
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		if !pool.AppendCertsFromPEM(o.CA) {
			return nil, fault.Wrap("open", ref, fault.Of(vic.ErrInvalid, "CA holds no certificate in PEM form"))
		}
		t.TLSClientConfig.RootCAs = pool
	}
	r.PlainHTTP = o.PlainHTTP
	c := &auth.Client{Client: &http.Client{Transport: retry.NewTransport(t)}, Cache: auth.NewCache()}
	c.SetUserAgent("vic-go")
	if o.User != "" {
		c.Credential = auth.StaticCredential(n.Registry, auth.Credential{Username: o.User, Password: o.Password})
	}
	r.Client = c
	return r, nil
}
