package registry

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/vic"
)

// trust is what TLS connections for one registry go by.
type trust struct {
	roots        *x509.CertPool // nil for the system's
	certificates []tls.Certificate
}

// newTrust gathers the authorities and client certificates for a registry out
// of options and certs.d, where dirs are the names that it goes by.
func newTrust(o *Options, own bool, dirs ...string) (*trust, error) {
	t := &trust{}
	if len(o.CA) > 0 {
		if err := t.addRoots(o.CA); err != nil {
			return nil, fault.Of(vic.ErrInvalid, "option CA %w", err)
		}
	}
	if len(o.ClientCert) > 0 || len(o.ClientKey) > 0 {
		c, err := tls.X509KeyPair(o.ClientCert, o.ClientKey)
		if err != nil {
			return nil, fault.Of(vic.ErrInvalid, "options ClientCert and ClientKey: %w", err)
		}
		if own {
			t.certificates = append(t.certificates, c)
		}
	}
	if o.CertsDir == "" {
		return t, nil
	}
	for _, d := range dirs {
		if err := t.addDir(filepath.Join(o.CertsDir, d)); err != nil {
			return nil, err
		}
	}
	return t, nil
}

func (t *trust) addRoots(pem []byte) error {
	if t.roots == nil {
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		t.roots = pool
	}
	if !t.roots.AppendCertsFromPEM(pem) {
		return errors.New("holds no certificate in PEM form")
	}
	return nil
}

// addDir reads one registry's directory of Docker's certs.d.
func (t *trust) addDir(dir string) error {
	bad := func(format string, args ...any) error {
		return fault.Of(vic.ErrInvalid, "option CertsDir: %w", fmt.Errorf(format, args...))
	}
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return bad("%w", err)
	}
	have := map[string]bool{}
	for _, e := range entries {
		have[e.Name()] = true
	}
	for _, e := range entries {
		file := filepath.Join(dir, e.Name())
		switch ext := filepath.Ext(e.Name()); ext {
		case ".crt":
			pem, err := os.ReadFile(file)
			if err != nil {
				return bad("%w", err)
			}
			if err := t.addRoots(pem); err != nil {
				return bad("%s %w", file, err)
			}
		case ".cert":
			key := strings.TrimSuffix(e.Name(), ext) + ".key"
			if !have[key] {
				return bad("%s has no %s beside it", file, key)
			}
			c, err := tls.LoadX509KeyPair(file, filepath.Join(dir, key))
			if err != nil {
				return bad("%s: %w", file, err)
			}
			t.certificates = append(t.certificates, c)
		case ".key":
			if cert := strings.TrimSuffix(e.Name(), ext) + ".cert"; !have[cert] {
				return bad("%s has no %s beside it; authorities are called *.crt, client certificates *.cert", file, cert)
			}
		}
	}
	return nil
}

// config makes what a connection is made with. asked is told when a registry
// asks for a client's certificate and there is none.
func (t *trust) config(insecure, own bool, asked func()) *tls.Config {
	c := &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: t.roots, InsecureSkipVerify: insecure}
	switch {
	case !own:
	case len(t.certificates) > 0:
		c.Certificates = t.certificates
	default:
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			asked()
			return &tls.Certificate{}, nil
		}
	}
	return c
}
