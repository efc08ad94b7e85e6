package registry

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"time"
)

// Options say how a registry is reached; nil is TLS with the system's
// authorities, no login, and the proxies of the environment (HTTP_PROXY,
// HTTPS_PROXY, NO_PROXY). Printed or logged they show no secret.
//
// Lists of hosts hold patterns: "host" (on ports 443 and 80), "host:5000",
// "host:*" (any port), "*.example.com" (with a port as before; not example.com
// itself), "*" (everything), and networks such as "10.0.0.0/8", which match
// the addresses that a host really has.
type Options struct {
	// PlainHTTP speaks HTTP without TLS to the registry.
	PlainHTTP bool
	// Insecure accepts any certificate of the registry.
	Insecure bool
	// InsecureRegistries are hosts (registries and mirrors) that TLS is tried
	// with, without looking at certificates, and then HTTP without TLS, as
	// with Docker's insecure-registries. A network means hosts all of whose
	// addresses lie in it; connections to them are then made to nowhere else.
	InsecureRegistries []string
	// CA holds further certificates in PEM form that may sign a registry's,
	// a mirror's or a token server's.
	CA []byte
	// ClientCert and ClientKey, in PEM form, are shown to the registry only.
	ClientCert, ClientKey []byte
	// CertsDir is a directory laid out as Docker's /etc/docker/certs.d: below
	// HOST or HOST:PORT, *.crt are further authorities and NAME.cert with
	// NAME.key client certificates
	// (docs.docker.com/engine/security/certificates). Empty: none.
	CertsDir string

	// User and Password for basic or bearer authentication at the registry.
	User, Password string
	// IdentityToken is what a token server gave for a password at login; it
	// takes the password's place.
	IdentityToken string
	// RegistryToken is sent to the registry as it is.
	RegistryToken string
	// DockerConfig is the path of a docker config.json with auths,
	// credHelpers and credsStore, such as DockerConfigPath returns. It is
	// asked for hosts that the fields above do not log in to; its helpers are
	// started as processes (docker-credential-NAME). A file that does not
	// exist is as one that is empty. Empty: none.
	DockerConfig string

	// Mirrors are tried in order before the registry when reading:
	// host[:port][/prefix], with "http://" before it if it speaks no TLS. The
	// next one, and at last the registry, is asked when one does not have what
	// is wanted, denies it or cannot be reached; not when it sends something
	// that contradicts a digest. Mirrors must be allowed as registries are.
	Mirrors []string

	// Allow lists the only registries that may be used; nil allows all. To
	// allow docker.io allows the hosts below docker.io and docker.com, too.
	Allow []string
	// Deny lists hosts that no connection is made to, registries or others.
	// It comes before Allow.
	Deny []string
	// Redirects lists further hosts that a registry may send requests to:
	// blob storage, token servers. See the package's documentation.
	Redirects []string

	// Proxy for all requests, instead of those of the environment:
	// http://, https:// or socks5://[user:password@]host:port. NoProxy lists
	// exceptions in the form of the environment's NO_PROXY, separated by
	// commas.
	Proxy   *url.URL
	NoProxy string

	// Attempts is how often a request is made before its failure counts;
	// zero means 5.
	Attempts int
	// RetryDelay is the pause before the second attempt, doubled for each
	// further one up to 5 seconds, each with jitter; zero means 200 ms.
	RetryDelay time.Duration
	// MaxRetryAfter is how long a Retry-After may be to be waited for; zero
	// means 10 seconds. Longer ones are reported as a RateLimitError.
	MaxRetryAfter time.Duration
	// StallTimeout is how long a connection may bring or take no byte before
	// it counts as broken; zero means 30 seconds.
	StallTimeout time.Duration
	// UploadChunk, in bytes, makes blobs larger than it be pushed in pieces of
	// that size, which are kept in memory so that an upload goes on where it
	// broke. Zero pushes each blob in one request, which every registry takes.
	UploadChunk int

	// Logger hears of retries, fallbacks and redirects at debug level; nil
	// discards them.
	Logger *slog.Logger
}

const (
	defaultAttempts      = 5
	defaultRetryDelay    = 200 * time.Millisecond
	maxRetryDelay        = 5 * time.Second
	defaultMaxRetryAfter = 10 * time.Second
	defaultStall         = 30 * time.Second
)

// withDefaults returns a copy in which nothing is left to chance.
func (o *Options) withDefaults() Options {
	var c Options
	if o != nil {
		c = *o
	}
	if c.Attempts == 0 {
		c.Attempts = defaultAttempts
	}
	if c.RetryDelay == 0 {
		c.RetryDelay = defaultRetryDelay
	}
	if c.MaxRetryAfter == 0 {
		c.MaxRetryAfter = defaultMaxRetryAfter
	}
	if c.StallTimeout == 0 {
		c.StallTimeout = defaultStall
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// Format prints the options without their secrets, for every verb.
func (o Options) Format(f fmt.State, _ rune) {
	type printed Options // without this method
	star := func(s *string) {
		if *s != "" {
			*s = "***"
		}
	}
	star(&o.Password)
	star(&o.IdentityToken)
	star(&o.RegistryToken)
	proxy := ""
	if o.Proxy != nil {
		proxy = redactURL(o.Proxy)
	}
	key := len(o.ClientKey) > 0
	o.CA, o.ClientCert, o.ClientKey, o.Proxy, o.Logger = nil, nil, nil, nil, nil
	fmt.Fprintf(f, "%+v with a proxy %q and a client key: %t", printed(o), proxy, key)
}

// LogValue is what a log shows: no secret.
func (o Options) LogValue() slog.Value { return slog.StringValue(fmt.Sprintf("%v", o)) }

// debug logs what people look for when something is slow or odd.
func (o *Options) debug(ctx context.Context, msg string, args ...any) {
	o.Logger.DebugContext(ctx, msg, args...)
}
