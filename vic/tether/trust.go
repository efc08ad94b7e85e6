package tether

import (
	"context"
	"fmt"
	"net"

	"golang.org/x/crypto/ssh"
)

// MaxAuthorities bounds the authorities that a guest trusts at a time.
const MaxAuthorities = 8

// ParseAuthorities reads public keys in authorized_keys form (sshd(8)): at least
// one, each once. The error names the one that is wrong.
func ParseAuthorities(authorized []string) ([]ssh.PublicKey, error) {
	if len(authorized) == 0 || len(authorized) > MaxAuthorities {
		return nil, fmt.Errorf("%w: authorities: %d keys: want 1 to %d", ErrInvalid, len(authorized), MaxAuthorities)
	}
	var keys []ssh.PublicKey
	seen := map[string]bool{}
	for i, a := range authorized {
		key, _, _, rest, err := ssh.ParseAuthorizedKey([]byte(a))
		if err != nil || len(rest) > 0 {
			return nil, fmt.Errorf("%w: authorities[%d]: %.80q is no public key in authorized_keys form", ErrInvalid, i, a)
		}
		if _, ok := key.(*ssh.Certificate); ok {
			return nil, fmt.Errorf("%w: authorities[%d]: a certificate, not a plain key: authorities are not certified by others", ErrInvalid, i)
		}
		id := string(key.Marshal())
		if seen[id] {
			return nil, fmt.Errorf("%w: authorities[%d]: %s is there twice", ErrInvalid, i, ssh.FingerprintSHA256(key))
		}
		seen[id] = true
		keys = append(keys, key)
	}
	return keys, nil
}

// trust replaces the server's authorities.
func (s *Server) trust(keys []ssh.PublicKey) {
	trusted := map[string]bool{}
	for _, k := range keys {
		trusted[string(k.Marshal())] = true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trusted = trusted
	for conn, authority := range s.conns {
		if !trusted[authority] {
			s.log.Info("a connection ends, whose authority is trusted no more", "from", conn.RemoteAddr())
			closeSoon(conn)
		}
	}
}

// closeSoon closes a connection. It does not wait for what is under way on it.
func closeSoon(conn net.Conn) { go func() { _ = conn.Close() }() }

// trusts tells whether a key is one of the authorities.
func (s *Server) trusts(key ssh.PublicKey) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.trusted[string(key.Marshal())]
}

type authoritiesParams struct {
	Authorities []string `json:"authorities"`
}

// setAuthorities answers methodAuthorities. Whoever asks stays trusted, so that
// no set is taken of which nobody has a key.
func (c *serverConn) setAuthorities(q callRequest) error {
	var p authoritiesParams
	if err := decode("authorities", q.Params, &p); err != nil {
		return err
	}
	keys, err := ParseAuthorities(p.Authorities)
	if err != nil {
		return err
	}
	for _, k := range keys {
		if string(k.Marshal()) == c.authority {
			c.server.trust(keys)
			return nil
		}
	}
	return fmt.Errorf("%w: authorities: the one that certified this controller is not among them: "+
		"let a controller that one of them certified drop it", ErrInvalid)
}

// SetAuthorities replaces the authorities whose controllers the guest lets in,
// public keys in authorized_keys form, until its power-off; what its next start
// trusts stands in its Config. Connections of controllers that another authority
// certified are ended. The authority that certified this client must be among
// them, else it is ErrInvalid; a guest of a release that has one authority for
// good is ErrUnsupported.
func (c *Client) SetAuthorities(ctx context.Context, authorized []string) error {
	if _, err := ParseAuthorities(authorized); err != nil {
		return fmt.Errorf("tether: %s: %w", methodAuthorities, err)
	}
	return c.call(ctx, methodAuthorities, authoritiesParams{authorized}, nil)
}
