package tether

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/crypto/ssh"
)

// clockSkew is how far the clocks of a guest and a controller may be apart: a
// guest's comes from its virtual machine's real-time clock.
const clockSkew = 10 * time.Minute

// algorithms are few and modern, so that nothing can be negotiated down.
// AES-GCM comes first: with the processor's instructions it is the faster
// cipher by far, and even where those are emulated it was 1.7 times as fast as
// ChaCha20, for which there is no assembly on x86.
func algorithms() ssh.Config {
	return ssh.Config{
		KeyExchanges: []string{ssh.KeyExchangeCurve25519},
		Ciphers:      []string{ssh.CipherAES128GCM, ssh.CipherChaCha20Poly1305},
		MACs:         []string{ssh.HMACSHA256ETM}, // Both ciphers bring their own.
	}
}

// NewControllerSigner makes a fresh key and has authority certify it for the
// container of the given ID (empty: for every container) for the time from now
// on. The key lives in memory only. Authority may be any key that SSH knows,
// its private half in a token or a remote signer as well.
func NewControllerSigner(authority crypto.Signer, id string, validity time.Duration) (ssh.Signer, error) {
	if validity <= 0 {
		return nil, fmt.Errorf("%w: validity: %v is not positive", ErrInvalid, validity)
	}
	ca, err := ssh.NewSignerFromSigner(authority)
	if err != nil {
		return nil, fmt.Errorf("authority: %w", err)
	}
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	signer, err := ssh.NewSignerFromSigner(key)
	if err != nil {
		return nil, err
	}
	if id == "" {
		id = ControllerPrincipal
	}
	now := time.Now()
	cert := &ssh.Certificate{
		Key:             signer.PublicKey(),
		CertType:        ssh.UserCert,
		KeyId:           "vic controller",
		ValidPrincipals: []string{id},
		ValidAfter:      uint64(now.Unix()),
		ValidBefore:     uint64(now.Add(validity).Unix()) + 1,
	}
	if err := cert.SignCert(rand.Reader, ca); err != nil {
		return nil, fmt.Errorf("authority: %w", err)
	}
	return ssh.NewCertSigner(cert, signer)
}

// authorityOf finds, in a connection's permissions, the key that certified its
// controller.
type authorityOf struct{}

// checkController accepts certificates of authorities that are trusted, for this
// container.
func checkController(trusted func(ssh.PublicKey) bool, id string, now func() time.Time) func(ssh.ConnMetadata, ssh.PublicKey) (*ssh.Permissions, error) {
	return func(meta ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
		cert, ok := key.(*ssh.Certificate)
		if !ok {
			return nil, errors.New("a plain key: only certificates of the controllers' authority are accepted")
		}
		if cert.CertType != ssh.UserCert {
			return nil, errors.New("not a user certificate")
		}
		// A certificate without principals would be good for any (PROTOCOL.certkeys).
		if len(cert.ValidPrincipals) == 0 {
			return nil, errors.New("the certificate names no principal")
		}
		principal := ControllerPrincipal
		for _, p := range cert.ValidPrincipals {
			if id != "" && p == id {
				principal = id
			}
		}
		checker := ssh.CertChecker{
			IsUserAuthority: trusted,
			Clock:           func() time.Time { return withinValidity(now(), cert) },
		}
		if !checker.IsUserAuthority(cert.SignatureKey) {
			return nil, errors.New("the certificate is of no authority that is trusted with controllers")
		}
		if err := checker.CheckCert(principal, cert); err != nil {
			return nil, err
		}
		return &ssh.Permissions{ExtraData: map[any]any{authorityOf{}: string(cert.SignatureKey.Marshal())}}, nil
	}
}

// withinValidity moves t into the certificate's time where it is no further
// from it than clocks may be apart.
func withinValidity(t time.Time, cert *ssh.Certificate) time.Time {
	after, before := int64(cert.ValidAfter), int64(cert.ValidBefore)
	if after < 0 || (before < 0 && cert.ValidBefore != ssh.CertTimeInfinity) {
		return t
	}
	skew, now := int64(clockSkew/time.Second), t.Unix()
	switch {
	case now < after && now+skew >= after:
		return time.Unix(after, 0)
	case cert.ValidBefore != ssh.CertTimeInfinity && now >= before && now-skew < before:
		return time.Unix(before-1, 0)
	}
	return t
}

// pinHostKey accepts the one host key that a guest published.
func pinHostKey(authorized string) (ssh.HostKeyCallback, error) {
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(authorized))
	if err != nil {
		return nil, fmt.Errorf("%w: host key: %v", ErrInvalid, err)
	}
	want := key.Marshal()
	return func(_ string, _ net.Addr, got ssh.PublicKey) error {
		if !bytes.Equal(got.Marshal(), want) {
			return fmt.Errorf("%w: it shows %s, its status says %s", ErrHostKey,
				ssh.FingerprintSHA256(got), ssh.FingerprintSHA256(key))
		}
		return nil
	}, nil
}

// Sentinels of a greeting that fails.
var (
	// ErrHostKey: the guest has another host key than it published.
	ErrHostKey = errors.New("the guest's host key is not the published one")
	// ErrRefused: the guest does not let this controller in.
	ErrRefused = errors.New("the guest refuses this controller: it trusts another authority, or the clocks are apart")
)
