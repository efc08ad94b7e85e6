package registry

import (
	"context"
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/credentials"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/vic"
)

// helperTimeout bounds a credential helper, which may ask a person.
const helperTimeout = 2 * time.Minute

// DockerConfigPath is where docker keeps its configuration: config.json below
// $DOCKER_CONFIG or else ~/.docker
// (docs.docker.com/reference/cli/docker/#configuration-files). It is empty
// where there is no home directory.
func DockerConfigPath() string {
	dir := os.Getenv("DOCKER_CONFIG")
	if dir == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return ""
		}
		dir = filepath.Join(home, ".docker")
	}
	return filepath.Join(dir, "config.json")
}

// logins finds the credentials for one host.
type logins struct {
	static auth.Credential
	config string
	keys   []string // names of the host in docker's configuration
	store  credentials.Store

	mu    sync.Mutex
	last  auth.Credential // that find has found
	known map[string]bool // secrets, to keep them out of texts
}

func newLogins(o *Options, host string, own bool) (*logins, error) {
	l := &logins{config: o.DockerConfig, keys: []string{host}}
	if own {
		l.static = auth.Credential{Username: o.User, Password: o.Password, RefreshToken: o.IdentityToken, AccessToken: o.RegistryToken}
	}
	switch {
	case (o.User == "") != (o.Password == "") && o.IdentityToken == "":
		return nil, fault.Of(vic.ErrInvalid, "options User and Password: give both or none")
	case strings.Contains(o.User, ":"):
		return nil, fault.Of(vic.ErrInvalid, "option User must not hold a colon")
	}
	l.learn(l.static)
	if host == hubHost {
		l.keys = []string{credentials.ServerAddressFromHostname(host), hub}
	}
	if o.DockerConfig == "" || l.static != auth.EmptyCredential {
		return l, nil
	}
	var err error
	if l.store, err = credentials.NewStore(o.DockerConfig, credentials.StoreOptions{}); err != nil {
		// The error may quote the file.
		return nil, fault.Of(vic.ErrInvalid, "option DockerConfig: %s cannot be read or is no docker config.json", o.DockerConfig)
	}
	return l, nil
}

// find returns what to log in with, or auth.EmptyCredential.
func (l *logins) find(ctx context.Context) (auth.Credential, error) {
	if l.static != auth.EmptyCredential || l.store == nil {
		return l.static, nil
	}
	ctx, cancel := context.WithTimeout(ctx, helperTimeout)
	defer cancel()
	for _, k := range l.keys {
		c, err := l.store.Get(ctx, k)
		switch {
		case ctx.Err() != nil:
			return c, fault.As(vic.ErrUnavailable, context.Cause(ctx))
		case errors.Is(err, os.ErrNotExist) || err != nil && strings.Contains(err.Error(), "executable file not found"):
			return c, fault.Of(vic.ErrDenied, "the credential helper that %s names for %s is not installed", l.config, k)
		case err != nil:
			// oras-go's and the helper's own texts may hold what is secret.
			return c, fault.Of(vic.ErrDenied, "the credentials of %s cannot be had: its entry in %s is malformed or its credential helper fails; try docker login", k, l.config)
		}
		if c != auth.EmptyCredential {
			l.mu.Lock()
			l.last = c
			l.mu.Unlock()
			l.learn(c)
			return c, nil
		}
	}
	return auth.EmptyCredential, nil
}

// used is what has been logged in with.
func (l *logins) used() auth.Credential {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.last == auth.EmptyCredential {
		return l.static
	}
	return l.last
}

// learn remembers secrets.
func (l *logins) learn(c auth.Credential) {
	l.hide(c.Password, c.RefreshToken, c.AccessToken)
	if c.Password != "" {
		l.hide(base64.StdEncoding.EncodeToString([]byte(c.Username + ":" + c.Password)))
	}
}

const maxSecrets = 64

func (l *logins) hide(secrets ...string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.known == nil || len(l.known) > maxSecrets {
		// Short-lived tokens come and go.
		l.known = map[string]bool{}
		for _, c := range []auth.Credential{l.static, l.last} {
			secrets = append(secrets, c.Password, c.RefreshToken, c.AccessToken)
		}
	}
	for _, s := range secrets {
		l.known[s] = true
	}
	delete(l.known, "")
}

// scrub puts stars in the place of secrets in a foreign text.
func (l *logins) scrub(s string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	for secret := range l.known {
		if len(secret) < 3 {
			continue // it would be found everywhere
		}
		s = strings.ReplaceAll(s, secret, "***")
	}
	return s
}
