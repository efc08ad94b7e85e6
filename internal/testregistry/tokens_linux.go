package testregistry

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	tokenService = "testregistry"
	tokenIssuer  = "testregistry tokens"
)

// Tokens is a token server (distribution's "Token Authentication
// Specification" and its OAuth2 form) that real registries trust: it signs
// JSON web tokens (RFC 7515, RFC 7519) with a key of its own.
type Tokens struct {
	opts   TokenOptions
	key    *ecdsa.PrivateKey
	cert   []byte // PEM
	x5c    string
	server *http.Server
	addr   string

	mu       sync.Mutex
	requests []string
	lifetime time.Duration
}

// TokenOptions are what [StartTokens] may be asked for.
type TokenOptions struct {
	// Username and Password may do everything; nobody else may do more than
	// pull, and without a login only what Anonymous says.
	Username, Password string
	// IdentityToken is taken in the place of the password by OAuth2; empty
	// takes none.
	IdentityToken string
	// Anonymous lets everybody pull.
	Anonymous bool
}

// StartTokens starts a token server on a loopback port; the caller closes it.
func StartTokens(o TokenOptions) (*Tokens, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	t := &Tokens{opts: o, addr: l.Addr().String(), lifetime: time.Hour}
	if err := t.Rotate(); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	t.server = &http.Server{Handler: t, ReadHeaderTimeout: time.Minute}
	go func() { _ = t.server.Serve(l) }() // until Close
	return t, nil
}

// Rotate takes a new key: what was signed before is worth nothing to
// registries that are started from now on.
func (t *Tokens) Rotate() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: tokenIssuer},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.key, t.cert = key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	t.x5c = base64.StdEncoding.EncodeToString(der)
	return nil
}

func (t *Tokens) bundle() []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.cert
}

// URL of the server; tokens are given at /token.
func (t *Tokens) URL() string { return "http://" + t.addr }

// Close ends the server.
func (t *Tokens) Close() error { return t.server.Close() }

// SetLifetime says how long tokens that are given from now on are good for;
// registries allow a minute more, so a negative one makes expired tokens.
func (t *Tokens) SetLifetime(d time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lifetime = d
}

// Requests lists the requests so far: method, login and scopes.
func (t *Tokens) Requests() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.requests)
}

// ServeHTTP answers requests for tokens.
func (t *Tokens) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil {
		http.Error(w, "bad form", http.StatusBadRequest)
		return
	}
	user, scopes, ok := "", r.Form["scope"], true
	if r.Method == http.MethodPost {
		scopes = strings.Fields(r.Form.Get("scope"))
		switch r.Form.Get("grant_type") {
		case "refresh_token":
			ok = t.opts.IdentityToken != "" && r.Form.Get("refresh_token") == t.opts.IdentityToken
		case "password":
			ok = r.Form.Get("username") == t.opts.Username && r.Form.Get("password") == t.opts.Password
		default:
			ok = false
		}
		user = t.opts.Username
	} else if name, password, has := r.BasicAuth(); has {
		user, ok = name, name == t.opts.Username && password == t.opts.Password
	}
	t.mu.Lock()
	t.requests = append(t.requests, fmt.Sprintf("%s %q %s", r.Method, user, strings.Join(scopes, " ")))
	lifetime := t.lifetime
	t.mu.Unlock()
	if !ok || r.Form.Get("service") != tokenService {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = w.Write([]byte(`{"errors":[{"code":"UNAUTHORIZED","message":"incorrect username or password"}]}`))
		return
	}
	token, err := t.sign(user, scopes, lifetime)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"token": token, "access_token": token, "expires_in": int(lifetime.Seconds())})
}

// sign makes a token as distribution's "Docker Registry v2 Bearer token
// specification" says.
func (t *Tokens) sign(user string, scopes []string, lifetime time.Duration) (string, error) {
	t.mu.Lock()
	key, x5c := t.key, t.x5c
	t.mu.Unlock()
	type access struct {
		Type    string   `json:"type"`
		Name    string   `json:"name"`
		Actions []string `json:"actions"`
	}
	grants := []access{}
	for _, s := range scopes {
		parts := strings.SplitN(s, ":", 3)
		if len(parts) != 3 {
			continue
		}
		var actions []string
		for _, a := range strings.Split(parts[2], ",") {
			if user == t.opts.Username && user != "" || a == "pull" && t.opts.Anonymous {
				actions = append(actions, a)
			}
		}
		grants = append(grants, access{parts[0], parts[1], actions})
	}
	now := time.Now()
	id := make([]byte, 16)
	if _, err := rand.Read(id); err != nil {
		return "", err
	}
	header, err := json.Marshal(map[string]any{"typ": "JWT", "alg": "ES256", "x5c": []string{x5c}})
	if err != nil {
		return "", err
	}
	claims, err := json.Marshal(map[string]any{
		"iss": tokenIssuer, "sub": user, "aud": tokenService, "exp": now.Add(lifetime).Unix(), "nbf": now.Add(-2 * time.Hour).Unix(),
		"iat": now.Unix(), "jti": fmt.Sprintf("%x", id), "access": grants,
	})
	if err != nil {
		return "", err
	}
	text := base64.RawURLEncoding.EncodeToString(header) + "." + base64.RawURLEncoding.EncodeToString(claims)
	sum := sha256.Sum256([]byte(text))
	r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
	if err != nil {
		return "", err
	}
	sig := make([]byte, 64) // RFC 7518, section 3.4
	r.FillBytes(sig[:32])
	s.FillBytes(sig[32:])
	return text + "." + base64.RawURLEncoding.EncodeToString(sig), nil
}

// TokensForTest starts a token server that ends with the test.
func TokensForTest(tb TB, o TokenOptions) *Tokens {
	tb.Helper()
	t, err := StartTokens(o)
	if err != nil {
		tb.Fatalf("start a token server: %v", err)
	}
	tb.Cleanup(func() {
		if err := t.Close(); err != nil && !errors.Is(err, context.Canceled) {
			tb.Errorf("close the token server: %v", err)
		}
	})
	return t
}
