package vic

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/crypto/ssh"

	"github.com/vicsdk/vic-go/internal/fault"
)

// OpenAuthority reads a controller authority's key for Config.Authority from a
// file: PKCS #8 in PEM form (RFC 5958, RFC 7468). A file that does not exist
// is made, with a new ed25519 key, readable by its owner only.
//
// Whoever has the file can enter every container of the VCHs that were made
// with it.
func OpenAuthority(file string) (crypto.Signer, error) {
	ref := Ref{Kind: "file", ID: file}
	b, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		if err = makeAuthority(file); err == nil {
			b, err = os.ReadFile(file)
		}
	}
	if err != nil {
		return nil, fault.Wrap("open authority", ref, err)
	}
	p, _ := pem.Decode(b)
	if p == nil || p.Type != "PRIVATE KEY" {
		return nil, fault.Wrap("open authority", ref, fault.Of(ErrInvalid, "it holds no PEM block \"PRIVATE KEY\""))
	}
	k, err := x509.ParsePKCS8PrivateKey(p.Bytes)
	if err != nil {
		return nil, fault.Wrap("open authority", ref, fault.As(ErrInvalid, err))
	}
	s, ok := k.(crypto.Signer)
	if !ok {
		return nil, fault.Wrap("open authority", ref, fault.Of(ErrInvalid, "a %T cannot sign", k))
	}
	return s, nil
}

// ReadAuthority reads the public key of an authority from a file that exists: the
// private key's, as OpenAuthority takes it, or one with the public key alone, a
// line in authorized_keys form (sshd(8)).
func ReadAuthority(file string) (crypto.PublicKey, error) {
	ref := Ref{Kind: "file", ID: file}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fault.Wrap("read authority", ref, err)
	}
	if bytes.HasPrefix(bytes.TrimSpace(b), []byte("-----BEGIN ")) {
		s, err := OpenAuthority(file)
		if err != nil {
			return nil, err
		}
		return s.Public(), nil
	}
	key, _, _, rest, err := ssh.ParseAuthorizedKey(b)
	if err != nil || len(bytes.TrimSpace(rest)) > 0 {
		return nil, fault.Wrap("read authority", ref, fault.Of(ErrInvalid, "it holds neither a PEM block nor one public key in authorized_keys form"))
	}
	public, ok := key.(ssh.CryptoPublicKey)
	if !ok {
		return nil, fault.Wrap("read authority", ref, fault.Of(ErrInvalid, "a %s is no plain key", key.Type()))
	}
	return public.CryptoPublicKey(), nil
}

// makeAuthority writes a new key; of two makers at once one key stays.
func makeAuthority(file string) error {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(file), ".authority-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	err = pem.Encode(f, &pem.Block{Type: "PRIVATE KEY", Bytes: der})
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err != nil {
		return err
	}
	if err := os.Link(f.Name(), file); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make authority: %w", err)
	}
	return nil
}
