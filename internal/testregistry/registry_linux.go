// Package testregistry runs a real registry for tests: Debian's
// docker-registry, a program that shares no code with this project, on a
// loopback port of its own with a directory of its own.
//
// Only tests use this package.
package testregistry

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/crypto/bcrypt"
)

// ErrMissing says that a program the package needs is not installed.
var ErrMissing = errors.New("not installed; run scripts/setup")

const (
	program      = "docker-registry"
	startTimeout = 30 * time.Second
	stopTimeout  = 10 * time.Second
)

// Options are what [Start] may be asked for. A nil *Options and the zero
// value give a registry that speaks plain HTTP and asks for no password.
type Options struct {
	// TLS makes the registry speak HTTPS with a certificate of its own,
	// which [Registry.CA] returns.
	TLS bool
	// Username and Password, if not empty, are what the registry asks for.
	Username, Password string
	// Tokens, if not nil, makes the registry want the bearer tokens of this
	// server instead of a password. The server must outlive the registry.
	Tokens *Tokens
	// ClientCA, in PEM, makes the registry want a client's certificate that
	// it signed. It needs TLS.
	ClientCA []byte
	// ProxyOf makes the registry a pull-through cache of the one at this URL;
	// nothing can be pushed to it.
	ProxyOf string
	// Logger gets the registry's own log at debug level; nil discards it.
	Logger *slog.Logger
}

// Registry is a running registry.
type Registry struct {
	opts Options
	dir  string
	addr string
	ca   []byte

	config string // file
	cmd    *exec.Cmd
	exited chan struct{}
	logged chan struct{} // closed when the log has been read to its end
	tail   *tail

	closeOnce sync.Once
	closeErr  error
}

// Start starts an empty registry and returns when it answers. The caller
// must Close it. The error is [ErrMissing] where docker-registry is not
// installed. ctx bounds the start only.
func Start(ctx context.Context, opts *Options) (_ *Registry, err error) {
	r := &Registry{tail: &tail{}}
	if opts != nil {
		r.opts = *opts
	}
	if (r.opts.Username == "") != (r.opts.Password == "") {
		return nil, errors.New("options Username and Password: give both or none")
	}
	if r.opts.Tokens != nil && r.opts.Username != "" {
		return nil, errors.New("options Tokens and Username exclude each other")
	}
	if r.opts.ClientCA != nil && !r.opts.TLS {
		return nil, errors.New("option ClientCA needs TLS")
	}
	if r.opts.Logger == nil {
		r.opts.Logger = slog.New(slog.DiscardHandler)
	}
	path, err := exec.LookPath(program)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", program, ErrMissing)
	}
	if r.dir, err = os.MkdirTemp("", "testregistry-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.Close())
		}
	}()
	if err := r.configure("127.0.0.1:0"); err != nil {
		return nil, err
	}
	return r, r.start(ctx, path)
}

func (r *Registry) start(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	r.exited, r.logged = make(chan struct{}), make(chan struct{})
	if err := r.run(ctx, path, r.config); err != nil {
		return err
	}
	return r.probe(ctx)
}

// Stop ends the program, at once and with all its connections, and keeps what
// it stores for Restart.
func (r *Registry) Stop() error {
	if r.cmd == nil {
		return nil
	}
	err := r.stop()
	<-r.logged
	r.cmd = nil
	return err
}

// Restart starts a registry that Stop has ended, at its old address.
func (r *Registry) Restart(ctx context.Context) error {
	path, err := exec.LookPath(program)
	if err != nil {
		return fmt.Errorf("%s: %w", program, ErrMissing)
	}
	if err := r.configure(r.addr); err != nil {
		return err
	}
	return r.start(ctx, path)
}

// configure writes the registry's configuration: "Configuring a registry" of
// distribution 2.8. JSON is YAML.
func (r *Registry) configure(addr string) error {
	type m = map[string]any
	http := m{"addr": addr, "secret": "testregistry"}
	config := m{
		"version": "0.1",
		"log":     m{"level": "info", "formatter": "json", "accesslog": m{"disabled": true}},
		"storage": m{
			"filesystem": m{"rootdirectory": filepath.Join(r.dir, "data")},
			"delete":     m{"enabled": true},
		},
		"http": http,
	}
	if r.opts.TLS {
		certFile, keyFile := filepath.Join(r.dir, "tls.crt"), filepath.Join(r.dir, "tls.key")
		if r.ca == nil {
			cert, key, err := newCertificate()
			if err != nil {
				return err
			}
			r.ca = cert
			if err := errors.Join(os.WriteFile(certFile, cert, 0o600), os.WriteFile(keyFile, key, 0o600)); err != nil {
				return err
			}
		}
		tls := m{"certificate": certFile, "key": keyFile}
		if r.opts.ClientCA != nil {
			file := filepath.Join(r.dir, "clients.crt")
			if err := os.WriteFile(file, r.opts.ClientCA, 0o600); err != nil {
				return err
			}
			tls["clientcas"] = []string{file}
		}
		http["tls"] = tls
	}
	if r.opts.Username != "" {
		hash, err := bcrypt.GenerateFromPassword([]byte(r.opts.Password), bcrypt.MinCost)
		if err != nil {
			return fmt.Errorf("option Password: %w", err)
		}
		file := filepath.Join(r.dir, "htpasswd")
		if err := os.WriteFile(file, fmt.Appendf(nil, "%s:%s\n", r.opts.Username, hash), 0o600); err != nil {
			return err
		}
		config["auth"] = m{"htpasswd": m{"realm": "testregistry", "path": file}}
	}
	if t := r.opts.Tokens; t != nil {
		file := filepath.Join(r.dir, "tokens.crt")
		if err := os.WriteFile(file, t.bundle(), 0o600); err != nil {
			return err
		}
		config["auth"] = m{"token": m{"realm": t.URL() + "/token", "service": tokenService, "issuer": tokenIssuer, "rootcertbundle": file}}
	}
	if r.opts.ProxyOf != "" {
		config["proxy"] = m{"remoteurl": r.opts.ProxyOf}
	}
	text, err := json.Marshal(config)
	if err != nil {
		return err
	}
	r.config = filepath.Join(r.dir, "config.yml")
	return os.WriteFile(r.config, text, 0o600)
}

// run starts the program and waits for the address in its log. The registry
// chooses its port by itself, so nobody can take it in between.
func (r *Registry) run(ctx context.Context, path, config string) error {
	logs, w, err := os.Pipe()
	if err != nil {
		return err
	}
	r.cmd = exec.Command(path, "serve", config)
	r.cmd.Dir = r.dir
	r.cmd.Stdout, r.cmd.Stderr = w, w
	// Variables of the kind REGISTRY_HTTP_ADDR would override the file.
	r.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + r.dir, "OTEL_TRACES_EXPORTER=none"}
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error, 1)
	go func() {
		// The kernel sends the signal when the thread that started the
		// process ends, so that thread is kept until then.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := r.cmd.Start()
		w.Close()
		started <- err
		if err == nil {
			// Its exit status does not matter: Close ends it by a signal.
			_ = r.cmd.Wait()
		}
		close(r.exited)
	}()
	if err := <-started; err != nil {
		r.cmd = nil
		return errors.Join(err, logs.Close())
	}
	addr := make(chan string, 1)
	go r.readLog(logs, addr)
	select {
	case r.addr = <-addr:
		return nil
	case <-r.exited:
		return fmt.Errorf("%s ended at its start: %s", program, r.tail)
	case <-ctx.Done():
		return fmt.Errorf("wait for %s to listen: %w: %s", program, ctx.Err(), r.tail)
	}
}

// readLog reads the log to its end and sends the address that it names.
func (r *Registry) readLog(logs io.ReadCloser, addr chan<- string) {
	defer close(r.logged)
	defer logs.Close()
	br := bufio.NewReaderSize(logs, 64<<10)
	for {
		line, err := br.ReadSlice('\n')
		if len(line) > 0 {
			r.tail.add(line)
			r.opts.Logger.Debug("docker-registry", "line", strings.TrimSpace(string(line)))
			var l struct {
				Msg string `json:"msg"`
			}
			if json.Unmarshal(line, &l) == nil {
				if rest, ok := strings.CutPrefix(l.Msg, "listening on "); ok {
					rest, _, _ = strings.Cut(rest, ",") // ", tls"
					select {
					case addr <- rest:
					default:
					}
				}
			}
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
	}
}

// probe asks the registry for its version of the API.
func (r *Registry) probe(ctx context.Context) error {
	if host, _, err := net.SplitHostPort(r.addr); err != nil || host != "127.0.0.1" {
		return fmt.Errorf("%s listens on %q, want a port of 127.0.0.1", program, r.addr)
	}
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	if r.opts.TLS {
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(r.ca)
		transport.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.URL()+"/v2/", nil)
	if err != nil {
		return err
	}
	want := http.StatusOK
	if r.opts.Username != "" || r.opts.Tokens != nil {
		want = http.StatusUnauthorized
	}
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil && r.opts.ClientCA != nil && strings.Contains(err.Error(), "tls: ") {
		return nil // it asks for a certificate that we do not have
	}
	if err != nil {
		return fmt.Errorf("ask %s: %w: %s", program, err, r.tail)
	}
	resp.Body.Close()
	if resp.StatusCode != want {
		return fmt.Errorf("ask %s: %s, want %d", program, resp.Status, want)
	}
	return nil
}

// Addr is where the registry listens, "127.0.0.1:port", and what names of
// images in it begin with.
func (r *Registry) Addr() string { return r.addr }

// URL is the registry's address with its scheme.
func (r *Registry) URL() string {
	if r.opts.TLS {
		return "https://" + r.addr
	}
	return "http://" + r.addr
}

// CA returns the certificate to trust, in PEM, or nil without TLS.
func (r *Registry) CA() []byte { return r.ca }

// Dir is where the registry keeps its data, for tests that damage it:
// blobs are in docker/registry/v2/blobs/sha256/xx/<hex>/data below it.
func (r *Registry) Dir() string { return filepath.Join(r.dir, "data") }

// Close ends the registry and removes all that it stored. It may be called
// more than once.
func (r *Registry) Close() error {
	r.closeOnce.Do(func() {
		r.closeErr = r.Stop()
		r.closeErr = errors.Join(r.closeErr, os.RemoveAll(r.dir))
	})
	return r.closeErr
}

func (r *Registry) stop() error {
	// The registry ends at once on SIGTERM; it has nothing to save.
	if err := r.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	timer := time.NewTimer(stopTimeout)
	defer timer.Stop()
	select {
	case <-r.exited:
		return nil
	case <-timer.C:
	}
	if err := r.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-r.exited
	return nil
}

// tail keeps the end of the log for errors.
type tail struct {
	mu   sync.Mutex
	text []byte
}

func (t *tail) add(line []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, line...)
	if over := len(t.text) - 4096; over > 0 {
		t.text = append(t.text[:0], t.text[over:]...)
	}
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.text))
}
