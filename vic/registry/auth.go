package registry

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"oras.land/oras-go/v2/registry/remote/auth"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/vic"
)

const (
	userAgent  = "vic-go"
	clientID   = "vic-go"
	tokenLimit = 128 << 10
)

// An authorizer makes an endpoint's requests, with the authorization that it
// asks for (distribution's "Token Authentication Specification"). It is a
// remote.Client of oras-go, whose scopes and token cache it uses; oras-go's
// own client sends no credentials to token servers at private addresses,
// which is where most of vSphere's users have theirs.
type authorizer struct {
	e      *endpoint
	http   *http.Client
	cache  auth.Cache
	logins *logins
}

func newAuthorizer(e *endpoint) (*authorizer, error) {
	l, err := newLogins(e.o, e.host, !e.mirror)
	if err != nil {
		return nil, err
	}
	return &authorizer{e: e, http: &http.Client{Transport: e, CheckRedirect: e.checkRedirect}, cache: auth.NewCache(), logins: l}, nil
}

// Do makes a request, several times if need be. Answers with an error's
// status are returned as errors, but 404. The answer's body fails when it
// brings no byte for the StallTimeout.
func (a *authorizer) Do(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(req.Context())
	resp, err := a.authorized(req.WithContext(ctx))
	if err == nil && resp.StatusCode >= 400 && resp.StatusCode != http.StatusNotFound {
		resp.Body = watch(ctx, cancel, resp.Body, a.e.o.StallTimeout)
		err = a.denied(readAnswer(resp))
	}
	if err != nil {
		cancel(nil)
		return nil, a.safe(a.e.hint(explain(a.e.host, err)))
	}
	resp.Body = watch(ctx, cancel, resp.Body, a.e.o.StallTimeout)
	return resp, nil
}

// denied says what an answer means to who is not let in.
func (a *authorizer) denied(ans *answer) error {
	if ans.status == http.StatusUnauthorized || ans.status == http.StatusForbidden {
		who := "nobody is logged in there: give a login in options User and Password or DockerConfig"
		if c := a.logins.used(); c != auth.EmptyCredential {
			who = "the login of " + nameOf(c) + " does not suffice"
		}
		ans.text += fmt.Sprintf(" (%s, or the repository does not exist)", who)
	}
	return ans
}

func nameOf(c auth.Credential) string {
	if c.Username != "" {
		return fmt.Sprintf("user %.60q", c.Username)
	}
	return "a token"
}

// safe takes secrets out of an error's text.
func (a *authorizer) safe(err error) error {
	text := err.Error()
	if scrubbed := a.logins.scrub(text); scrubbed != text {
		f := &failure{text: scrubbed}
		for _, kind := range []error{vic.ErrDenied, vic.ErrNotFound, vic.ErrUnavailable, vic.ErrInvalid, vic.ErrUnsupported, vic.ErrConflict, vic.ErrNoSpace} {
			if errors.Is(err, kind) {
				f.errs = append(f.errs, kind)
			}
		}
		if limit := (*RateLimitError)(nil); errors.As(err, &limit) {
			limit.Message = a.logins.scrub(limit.Message)
			return limit
		}
		if ans := (*answer)(nil); errors.As(err, &ans) {
			for i := range ans.codes {
				ans.codes[i].Message, ans.codes[i].Detail = "", nil
			}
			ans.text = scrubbed
			return ans
		}
		return f
	}
	return err
}

// send makes a request, again where that is worth while.
func (a *authorizer) send(req *http.Request) (*http.Response, error) {
	req.Header.Set("User-Agent", userAgent)
	return a.e.retry.do(req, a.http.Do)
}

func (a *authorizer) authorized(orig *http.Request) (*http.Response, error) {
	ctx := orig.Context()
	req := orig.Clone(ctx)
	if orig.Header.Get("Authorization") != "" || !a.e.isOwn(orig.URL) {
		return a.send(req)
	}
	host := orig.URL.Host
	scopes := auth.GetAllScopesForHost(ctx, host)
	if t := a.cached(ctx, host, scopes); t != "" {
		req.Header.Set("Authorization", t)
	}
	resp, err := a.send(req)
	if err != nil || resp.StatusCode != http.StatusUnauthorized || !sameOrigin(orig.URL, resp.Request.URL) {
		return resp, err
	}
	c, ok := choose(parseChallenges(resp.Header.Values("Www-Authenticate")))
	if !ok {
		return resp, nil
	}
	value, err := a.answer(ctx, orig.URL, c, scopes, req.Header.Get("Authorization"))
	if err != nil {
		drain(resp.Body)
		return nil, err
	}
	if value == "" { // no login: the registry's own answer says more
		return resp, nil
	}
	again := orig.Clone(ctx)
	if orig.Body != nil && orig.Body != http.NoBody {
		if orig.GetBody == nil {
			return resp, nil
		}
		if again.Body, err = orig.GetBody(); err != nil {
			drain(resp.Body)
			return nil, err
		}
	}
	drain(resp.Body)
	again.Header.Set("Authorization", value)
	return a.send(again)
}

// cached returns the header for requests to a host, if one is known.
func (a *authorizer) cached(ctx context.Context, host string, scopes []string) string {
	scheme, err := a.cache.GetScheme(ctx, host)
	if err != nil {
		return ""
	}
	key := ""
	if scheme == auth.SchemeBearer {
		key = strings.Join(scopes, " ")
	}
	t, err := a.cache.GetToken(ctx, host, scheme, key)
	if err != nil {
		return ""
	}
	return scheme.String() + " " + t
}

// choose takes the best challenge that can be answered: a bearer's before
// basic, whatever else a registry or a gateway before it offers.
func choose(all []challenge) (challenge, bool) {
	for _, scheme := range []string{"bearer", "basic"} {
		for _, c := range all {
			if c.scheme == scheme && (scheme == "basic" || c.params["realm"] != "") {
				return c, true
			}
		}
	}
	return challenge{}, false
}

// answer returns the header that a challenge wants, or "" if there is no
// login for a basic one. used is the header that was refused.
func (a *authorizer) answer(ctx context.Context, from *url.URL, c challenge, scopes []string, used string) (string, error) {
	host := from.Host
	if c.scheme == "basic" {
		cred, err := a.logins.find(ctx)
		if err != nil || cred.Username == "" || cred.Password == "" {
			return "", err
		}
		t := base64.StdEncoding.EncodeToString([]byte(cred.Username + ":" + cred.Password))
		if used == "Basic "+t {
			return "", nil
		}
		_, err = a.cache.Set(ctx, host, auth.SchemeBasic, "", func(context.Context) (string, error) { return t, nil })
		return "Basic " + t, err
	}
	key := strings.Join(scopes, " ")
	if s := c.params["scope"]; s != "" {
		scopes = auth.CleanScopes(append(slices.Clone(scopes), strings.Fields(s)...))
	}
	all := strings.Join(scopes, " ")
	t, err := a.cache.GetToken(ctx, host, auth.SchemeBearer, all)
	if err != nil || used == "Bearer "+t { // no other request has got one meanwhile
		t, err = a.cache.Set(ctx, host, auth.SchemeBearer, all, func(ctx context.Context) (string, error) {
			return a.token(ctx, from, c, scopes)
		})
	}
	if err != nil {
		return "", err
	}
	if all != key { // what the next request will look for
		_, err = a.cache.Set(ctx, host, auth.SchemeBearer, key, func(context.Context) (string, error) { return t, nil })
	}
	return "Bearer " + t, err
}

// token fetches a bearer token: with an identity token by OAuth2, else as
// distribution specifies ("docs/spec/auth/token.md", "oauth.md").
func (a *authorizer) token(ctx context.Context, from *url.URL, c challenge, scopes []string) (string, error) {
	realm, err := url.Parse(c.params["realm"])
	if err != nil {
		return "", contradiction("the registry's token server has no valid URL")
	}
	if err := a.e.checkElsewhere(realm, from.Scheme == "https"); err != nil {
		return "", fmt.Errorf("token server: %w", err)
	}
	cred, err := a.logins.find(ctx)
	if err != nil {
		return "", err
	}
	if cred.AccessToken != "" {
		return cred.AccessToken, nil
	}
	req, err := tokenRequest(ctx, realm, c.params["service"], scopes, cred)
	if err != nil {
		return "", err
	}
	resp, err := a.send(req)
	if err != nil {
		return "", fmt.Errorf("token server: %w", explain(realm.Host, err))
	}
	if resp.StatusCode != http.StatusOK {
		ans := readAnswer(resp)
		if ans.kind == vic.ErrInvalid && ans.status == http.StatusBadRequest { // OAuth2's invalid_grant
			ans.kind = vic.ErrDenied
		}
		ans.text = "token server " + ans.text
		if ans.kind == vic.ErrDenied && cred != auth.EmptyCredential {
			ans.text += " (it refuses the login of " + nameOf(cred) + ")"
		}
		return "", ans
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, tokenLimit+1))
	if err != nil {
		return "", err
	}
	var t struct {
		Token       string `json:"token"`
		AccessToken string `json:"access_token"`
	}
	if len(body) > tokenLimit || json.Unmarshal(body, &t) != nil {
		return "", contradiction("token server %s answers no JSON of at most %d bytes", realm.Host, tokenLimit)
	}
	if t.Token == "" {
		t.Token = t.AccessToken
	}
	if t.Token == "" || strings.ContainsFunc(t.Token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", contradiction("token server %s gives no token", realm.Host)
	}
	a.logins.hide(t.Token)
	return t.Token, nil
}

func tokenRequest(ctx context.Context, realm *url.URL, service string, scopes []string, cred auth.Credential) (*http.Request, error) {
	if cred.RefreshToken != "" {
		form := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {cred.RefreshToken}, "service": {service}, "client_id": {clientID}}
		if len(scopes) > 0 {
			form.Set("scope", strings.Join(scopes, " "))
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, realm.String(), strings.NewReader(form.Encode()))
		if err != nil {
			return nil, fault.As(vic.ErrInvalid, err)
		}
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		return req, nil
	}
	u := *realm
	q := u.Query()
	if service != "" {
		q.Set("service", service)
	}
	for _, s := range scopes {
		q.Add("scope", s)
	}
	u.RawQuery = q.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, fault.As(vic.ErrInvalid, err)
	}
	if cred.Username != "" {
		req.SetBasicAuth(cred.Username, cred.Password)
	}
	return req, nil
}
