package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vicsdk/vic-go/vic"
)

// retrier makes requests more than once.
type retrier struct {
	attempts       int
	delay, longest time.Duration // first pause; longest Retry-After
	debug          func(ctx context.Context, msg string, args ...any)
}

// pause is the time before attempt n+1: exponential, with full jitter in its
// upper half.
func (r *retrier) pause(n int) time.Duration {
	d := r.delay << min(n-1, 20)
	if d > maxRetryDelay || d <= 0 {
		d = max(maxRetryDelay, r.delay)
	}
	return d/2 + rand.N(d/2+1)
}

// do calls round until it gives an answer that stands or has been called
// often enough. The request's body, if any, must be rewindable for a second
// time. What it returns is an answer that is no rate limit, or an error.
func (r *retrier) do(req *http.Request, round func(*http.Request) (*http.Response, error)) (*http.Response, error) {
	ctx := req.Context()
	for n := 1; ; n++ {
		resp, err := round(req)
		if ctx.Err() != nil || !worthRetrying(resp, err) {
			return resp, err
		}
		wait := r.pause(n)
		last := n >= r.attempts || req.Body != nil && req.Body != http.NoBody && req.GetBody == nil
		if err == nil {
			asked := retryAfter(resp, time.Now())
			if resp.StatusCode == http.StatusTooManyRequests {
				limit := rateLimit(resp, asked)
				last = last || asked > r.longest || asked == 0 && limit.Remaining == 0
				if last {
					limit.Message = strings.TrimPrefix(rateMessage(readAnswer(resp)), "; ")
					return nil, limit
				}
			}
			last = last || asked > r.longest
			if last {
				return resp, nil
			}
			if asked > 0 {
				wait = asked
			}
			drain(resp.Body)
		} else if last {
			return nil, err
		}
		r.debug(ctx, "registry request is tried again", "host", req.URL.Host, "method", req.Method, "attempt", n, "in", wait, "why", whyText(resp, err))
		if err := sleep(ctx, wait); err != nil {
			return nil, err
		}
		if req.GetBody != nil {
			body, err := req.GetBody()
			if err != nil {
				return nil, err
			}
			req.Body = body
		}
	}
}

func whyText(resp *http.Response, err error) string {
	if err != nil {
		return redactText(err.Error())
	}
	return resp.Status
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}

// drain reads the little that is left so that the connection can be used
// again, and closes.
func drain(body io.ReadCloser) {
	_, _ = io.CopyN(io.Discard, body, 4<<10)
	_ = body.Close()
}

func worthRetrying(resp *http.Response, err error) bool {
	if err != nil {
		if errors.Is(err, vic.ErrDenied) || errors.Is(err, context.Canceled) {
			return false
		}
		return broken(err)
	}
	switch resp.StatusCode {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusBadGateway,
		http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return resp.StatusCode > 511 // proxies' own: 520 to 530
}

// broken says of an error that the network failed, which may pass.
func broken(err error) bool {
	var dns *net.DNSError
	if errors.As(err, &dns) {
		return !dns.IsNotFound
	}
	for _, e := range []error{io.EOF, io.ErrUnexpectedEOF, syscall.ECONNRESET, syscall.ECONNREFUSED, syscall.EPIPE, syscall.EHOSTUNREACH,
		syscall.ENETUNREACH, syscall.ETIMEDOUT, syscall.ECONNABORTED, net.ErrClosed, errStalled} {
		if errors.Is(err, e) {
			return true
		}
	}
	var network net.Error
	if errors.As(err, &network) && network.Timeout() {
		return true
	}
	// Errors of net/http that have no type.
	text := err.Error()
	return strings.Contains(text, "server closed idle connection") || strings.Contains(text, "http2: ") && !strings.Contains(text, "header list") ||
		strings.Contains(text, "stream error: ") || strings.Contains(text, "GOAWAY") || strings.Contains(text, "timeout awaiting response headers")
}

// retryAfter is what an answer asks to wait (RFC 9110, section 10.2.3):
// seconds or a date. It is zero where it does not say, and at most a week.
func retryAfter(resp *http.Response, now time.Time) time.Duration {
	v := strings.TrimSpace(resp.Header.Get("Retry-After"))
	if v == "" {
		return 0
	}
	const most = 7 * 24 * time.Hour
	var d time.Duration
	if n, err := strconv.ParseUint(v, 10, 32); err == nil {
		d = time.Duration(n) * time.Second
	} else if t, err := http.ParseTime(v); err == nil {
		d = t.Sub(now)
	}
	return min(max(d, 0), most)
}

// rateLimit reads Docker Hub's headers
// (docs.docker.com/docker-hub/usage/pulls): ratelimit-limit and
// ratelimit-remaining are "100;w=21600", a number and a window in seconds.
func rateLimit(resp *http.Response, asked time.Duration) *RateLimitError {
	e := &RateLimitError{Registry: resp.Request.URL.Host, RetryAfter: asked, Remaining: -1}
	if n, w, ok := parseRate(resp.Header.Get("Ratelimit-Limit")); ok {
		e.Limit, e.Window = n, w
	}
	if n, w, ok := parseRate(resp.Header.Get("Ratelimit-Remaining")); ok {
		e.Remaining = n
		e.Window = max(e.Window, w)
	}
	return e
}

// parseRate reads a number and the window behind it.
func parseRate(s string) (n int, window time.Duration, ok bool) {
	num, params, _ := strings.Cut(s, ";")
	v, err := strconv.ParseUint(strings.TrimSpace(num), 10, 31)
	if err != nil {
		return 0, 0, false
	}
	for p := range strings.SplitSeq(params, ";") {
		if sec, isW := strings.CutPrefix(strings.TrimSpace(p), "w="); isW {
			if w, err := strconv.ParseUint(sec, 10, 31); err == nil {
				window = time.Duration(w) * time.Second
			}
		}
	}
	return int(v), window, true
}

// rateMessage is the registry's own text of a refusal.
func rateMessage(a *answer) string {
	var out string
	for _, c := range a.codes[:min(len(a.codes), 2)] {
		out += fmt.Sprintf("; %s %s", c.Code, c.Message)
	}
	return clean(out)
}
