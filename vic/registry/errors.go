package registry

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"
	"unicode"

	"oras.land/oras-go/v2/errdef"
	"oras.land/oras-go/v2/registry/remote/errcode"

	"github.com/vicsdk/vic-go/vic"
)

// A RateLimitError says that a registry answers no more for now (429). It is
// of the kind vic.ErrUnavailable.
type RateLimitError struct {
	// Registry is the host that said so.
	Registry string
	// RetryAfter is how long it asks to wait; zero if it does not say.
	RetryAfter time.Duration
	// Limit is how many requests it allows in a Window, and Remaining how
	// many are left (Docker Hub's headers ratelimit-limit and
	// ratelimit-remaining); zero and -1 if it does not say.
	Limit, Remaining int
	Window           time.Duration
	// Message is the registry's own.
	Message string
}

func (e *RateLimitError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "registry %s limits the rate of requests", e.Registry)
	if e.Limit > 0 {
		fmt.Fprintf(&b, " (%d", e.Limit)
		if e.Window > 0 {
			fmt.Fprintf(&b, " in %s", e.Window)
		}
		if e.Remaining >= 0 {
			fmt.Fprintf(&b, ", %d left", e.Remaining)
		}
		b.WriteString(")")
	}
	switch {
	case e.RetryAfter > 0:
		fmt.Fprintf(&b, ": try again in %s", e.RetryAfter.Round(time.Second))
	case e.Window > 0:
		fmt.Fprintf(&b, ": try again within %s", e.Window)
	default:
		b.WriteString(": try again later")
	}
	b.WriteString("; a login or a mirror may allow more")
	if e.Message != "" {
		b.WriteString(": " + e.Message)
	}
	return b.String()
}

func (e *RateLimitError) Unwrap() error { return vic.ErrUnavailable }

// An answer is a registry's refusal.
type answer struct {
	status int
	codes  errcode.Errors
	text   string
	kind   error
	pause  time.Duration // what it asks to wait
}

func (a *answer) Error() string { return a.text }
func (a *answer) Unwrap() error { return a.kind }

func (a *answer) has(code string) bool {
	for _, c := range a.codes {
		if c.Code == code {
			return true
		}
	}
	return false
}

const errorBodyLimit = 8 << 10

// readAnswer makes an error of an answer with an error's status, and closes
// it. The errors' form is that of the distribution specification, section
// "Error Codes".
func readAnswer(resp *http.Response) *answer {
	defer resp.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, errorBodyLimit))
	a := &answer{status: resp.StatusCode, kind: vic.ErrInvalid}
	var doc struct {
		Errors errcode.Errors `json:"errors"`
	}
	said := ""
	if json.Unmarshal(body, &doc) == nil && len(doc.Errors) > 0 {
		a.codes = doc.Errors
		for _, c := range a.codes[:min(len(a.codes), 3)] {
			said += "; " + c.Code + " " + c.Message
		}
	} else if s := strings.TrimSpace(string(body)); s != "" && s[0] != '<' && s[0] != '{' {
		said = "; " + s
	}
	switch s := resp.StatusCode; {
	case s == http.StatusUnauthorized, s == http.StatusForbidden, s == http.StatusProxyAuthRequired, a.has(errcode.ErrorCodeDenied), a.has(errcode.ErrorCodeUnauthorized):
		a.kind = vic.ErrDenied
	case s == http.StatusNotFound:
		a.kind = vic.ErrNotFound
	case s == http.StatusMethodNotAllowed, s == http.StatusNotImplemented, s == http.StatusUnsupportedMediaType, a.has(errcode.ErrorCodeUnsupported):
		a.kind = vic.ErrUnsupported
	case s == http.StatusInsufficientStorage:
		a.kind = vic.ErrNoSpace
	case s == http.StatusConflict:
		a.kind = vic.ErrConflict
	case s == http.StatusRequestTimeout, s == http.StatusTooManyRequests, s >= 500:
		a.kind = vic.ErrUnavailable
	}
	a.text = fmt.Sprintf("%s answers %d %s to %s %s%s", resp.Request.URL.Host, resp.StatusCode, http.StatusText(resp.StatusCode),
		resp.Request.Method, resp.Request.URL.Path, clean(said))
	if a.pause = retryAfter(resp, time.Now()); a.pause > 0 {
		a.text += fmt.Sprintf(": it asks to wait %s", a.pause)
	}
	if resp.Request.URL.Scheme == "http" && a.status == http.StatusBadRequest && strings.Contains(said, "HTTPS") {
		a.text = fmt.Sprintf("%s speaks TLS: leave out option PlainHTTP", resp.Request.URL.Host)
	}
	return a
}

// clean makes a foreign text fit for one line of an error.
func clean(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > 400 {
		s = strings.ToValidUTF8(s[:400], "") + "..."
	}
	return s
}

// contradiction is an error of a registry whose answer is not what a digest
// or descriptor says; nobody else is asked then.
func contradiction(format string, args ...any) error {
	return &contradictory{fmt.Sprintf(format, args...)}
}

type contradictory struct{ text string }

func (c *contradictory) Error() string { return c.text }
func (c *contradictory) Unwrap() error { return vic.ErrInvalid }

var (
	queryRE    = regexp.MustCompile(`([a-z0-9+]+://[^\s"'?#]*)[?#][^\s"']*`)
	userinfoRE = regexp.MustCompile(`([a-z0-9+]+://)[^\s"'/@]*@`)
)

// redactText takes queries, which hold the signatures of blob storage, and
// user names and passwords out of the URLs in a text.
func redactText(s string) string {
	return userinfoRE.ReplaceAllString(queryRE.ReplaceAllString(s, "$1"), "$1")
}

func redactURL(u *url.URL) string {
	return redactText((&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String())
}

// explain gives an error of a request to a host its kind, and says what to do.
func explain(host string, err error) error {
	var a *answer
	var limit *RateLimitError
	var c *contradictory
	var f *failure
	if err == nil || errors.As(err, &a) || errors.As(err, &limit) || errors.As(err, &c) || errors.As(err, &f) {
		return err
	}
	if u := (*url.Error)(nil); errors.As(err, &u) {
		err = u.Err // without the URL
		if at, perr := url.Parse(u.URL); perr == nil && at.Host != "" && at.Host != host {
			host = at.Host + " (where " + host + " sends us)"
		}
	}
	text := redactText(err.Error())
	fail := func(kind error, format string, args ...any) error {
		return &failure{text: fmt.Sprintf(format, args...), errs: []error{kind, err}}
	}
	var (
		dns      *net.DNSError
		network  net.Error
		verify   *tls.CertificateVerificationError
		unknown  x509.UnknownAuthorityError
		name     x509.HostnameError
		response *errcode.ErrorResponse
	)
	switch {
	case errors.Is(err, context.Canceled), innermost(err) == context.DeadlineExceeded:
		return &failure{text: host + ": " + text, errs: []error{err}}
	case errors.Is(err, vic.ErrDenied), errors.Is(err, vic.ErrInvalid), errors.Is(err, vic.ErrUnsupported), errors.Is(err, vic.ErrUnavailable), errors.Is(err, vic.ErrNotFound):
		return &failure{text: host + ": " + text, errs: []error{err}}
	case errors.As(err, &unknown):
		return fail(vic.ErrDenied, "the certificate of %s is not trusted (%s): give the certificate of its authority in option CA or CertsDir, or set Insecure", host, text)
	case errors.As(err, &name):
		return fail(vic.ErrDenied, "the certificate of %s is for another name (%s): use a name that it has, or set option Insecure", host, text)
	case errors.As(err, &verify):
		return fail(vic.ErrDenied, "the certificate of %s is refused (%s): renew it, or set option Insecure", host, text)
	case strings.Contains(text, "remote error: tls:"):
		return fail(vic.ErrDenied, "%s refuses the TLS connection (%s): it may want a client's certificate, options ClientCert and ClientKey or CertsDir", host, text)
	case strings.Contains(text, "server gave HTTP response to HTTPS client"):
		return fail(vic.ErrInvalid, "%s speaks HTTP without TLS: set option PlainHTTP, or name it in InsecureRegistries, if that is meant", host)
	case strings.Contains(text, `malformed HTTP response "\x15\x03`):
		return fail(vic.ErrInvalid, "%s speaks TLS: leave out option PlainHTTP", host)
	case errors.Is(err, errdef.ErrNotFound):
		return fail(vic.ErrNotFound, "%s: %s", host, text)
	case errors.Is(err, errdef.ErrUnsupported):
		return fail(vic.ErrUnsupported, "%s: %s", host, text)
	case errors.As(err, &response) && response.StatusCode == http.StatusNotFound:
		return &failure{text: fmt.Sprintf("%s: not found: %s", host, clean(response.Errors.Error())), errs: []error{vic.ErrNotFound}}
	case errors.As(err, &dns) && dns.IsNotFound:
		return fail(vic.ErrUnavailable, "%s cannot be reached: no such host", host)
	case strings.HasPrefix(text, "the connection broke"):
		return fail(vic.ErrUnavailable, "%s: %s", host, text)
	case errors.As(err, &network), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), broken(err):
		return fail(vic.ErrUnavailable, "%s cannot be reached: %s", host, text)
	}
	return fail(vic.ErrInvalid, "%s: %s", host, text)
}

// innermost follows the first of the errors that each error wraps. It tells
// the caller's deadline from timeouts that only say that they are like it.
func innermost(err error) error {
	for {
		next := errors.Unwrap(err)
		if next == nil {
			return err
		}
		err = next
	}
}

// A failure has a text of its own for errors whose text may say too much.
type failure struct {
	text string
	errs []error
}

func (f *failure) Error() string   { return f.text }
func (f *failure) Unwrap() []error { return f.errs }
