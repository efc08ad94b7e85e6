package lab

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// identity is the lab's certificate authority and server certificate.
type identity struct {
	tls tls.Certificate
	ca  []byte // PEM
}

// loadIdentity returns the identity kept in dir, or makes one that is good for
// two years.
func loadIdentity(dir string) (*identity, error) {
	ca, err1 := os.ReadFile(filepath.Join(dir, "ca.pem"))
	pair, err2 := os.ReadFile(filepath.Join(dir, "server.pem"))
	if err := errors.Join(err1, err2); err == nil {
		c, err := tls.X509KeyPair(pair, pair)
		if err == nil && time.Until(c.Leaf.NotAfter) > 24*time.Hour {
			return &identity{c, ca}, nil
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	return makeIdentity(dir)
}

func makeIdentity(dir string) (*identity, error) {
	now := time.Now()
	serial := func() *big.Int {
		n, _ := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
		return n
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	caT := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "vic lab CA"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(2, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	caDER, err := x509.CreateCertificate(rand.Reader, caT, caT, caKey.Public(), caKey)
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	t := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "localhost"},
		NotBefore: caT.NotBefore, NotAfter: caT.NotAfter,
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, t, caT, key.Public(), caKey)
	if err != nil {
		return nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER})
	var pair bytes.Buffer
	_ = pem.Encode(&pair, &pem.Block{Type: "CERTIFICATE", Bytes: der})
	_ = pem.Encode(&pair, &pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	if err := writeFile(filepath.Join(dir, "ca.pem"), ca); err != nil {
		return nil, err
	}
	if err := writeFile(filepath.Join(dir, "server.pem"), pair.Bytes()); err != nil {
		return nil, err
	}
	c, err := tls.X509KeyPair(pair.Bytes(), pair.Bytes())
	if err != nil {
		return nil, err
	}
	return &identity{c, ca}, nil
}

func (id *identity) sha1() string {
	h := sha1.Sum(id.tls.Certificate[0])
	return colons(h[:])
}

func (id *identity) sha256() string {
	h := sha256.Sum256(id.tls.Certificate[0])
	return colons(h[:])
}

func colons(b []byte) string {
	s := make([]string, len(b))
	for i := range b {
		s[i] = fmt.Sprintf("%02X", b[i])
	}
	return strings.Join(s, ":")
}

// writeFile replaces a file of mode 0600 by one rename.
func writeFile(name string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(name), ".new-*")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}
