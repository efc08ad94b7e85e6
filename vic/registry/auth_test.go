package registry_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vicsdk/vic-go/internal/testregistry"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/registry"
)

const (
	user     = "gordon"
	password = "hush-hush-password"
	identity = "hush-hush-identity"
)

// secretsIn reports the secrets that a text shows.
func secretsIn(t *testing.T, s string) {
	t.Helper()
	for _, secret := range []string{"hush-hush", base64.StdEncoding.EncodeToString([]byte(user + ":" + password)), "eyJ"} {
		if strings.Contains(s, secret) {
			t.Errorf("a secret is shown: %s", s)
		}
	}
}

// push puts a manifest of its own into a repository of a real registry.
func push(t *testing.T, r *registry.Repository, note string) []byte {
	t.Helper()
	m := image(note)
	config := []byte("{}")
	for _, b := range [][]byte{config} {
		if err := r.Push(t.Context(), blobOf(b), bytes.NewReader(b)); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Push(t.Context(), manifestOf(m), bytes.NewReader(m)); err != nil {
		t.Fatal(err)
	}
	if err := r.Tag(t.Context(), manifestOf(m), "v1"); err != nil {
		t.Fatal(err)
	}
	return m
}

func pull(t *testing.T, r *registry.Repository) error {
	t.Helper()
	d, err := r.Resolve(t.Context(), "v1")
	if err != nil {
		return err
	}
	_, err = read(t.Context(), r, d)
	return err
}

func TestBasic(t *testing.T) {
	reg := testregistry.ForTest(t, &testregistry.Options{Username: user, Password: password})
	login := quick(registry.Options{PlainHTTP: true, User: user, Password: password})
	push(t, open(t, reg.Addr(), "a", login), "basic")
	for _, tc := range []struct {
		name string
		o    registry.Options
		want string
	}{
		{"password", registry.Options{User: user, Password: password}, ""},
		{"wrong", registry.Options{User: user, Password: "hush-hush-wrong"}, `user "gordon" does not suffice`},
		{"nobody", registry.Options{}, "nobody is logged in"},
		{"identity token only", registry.Options{IdentityToken: identity}, "does not suffice"},
	} {
		tc.o.PlainHTTP = true
		err := pull(t, open(t, reg.Addr(), "a", quick(tc.o)))
		if tc.want == "" && err != nil || tc.want != "" && (!errors.Is(err, vic.ErrDenied) || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
		secretsIn(t, fmt.Sprintf("%v %+v", err, err))
	}
}

func TestTokens(t *testing.T) {
	tokens := testregistry.TokensForTest(t, testregistry.TokenOptions{Username: user, Password: password, IdentityToken: identity, Anonymous: true})
	reg := testregistry.ForTest(t, &testregistry.Options{Tokens: tokens})
	login := quick(registry.Options{PlainHTTP: true, User: user, Password: password})
	r := open(t, reg.Addr(), "a/b", login)
	push(t, r, "token")
	for i, line := range tokens.Requests() {
		if want := fmt.Sprintf("GET %q repository:a/b:pull,push", user); line != want {
			t.Errorf("token request %d: %s, want %s", i, line, want)
		}
	}
	if n := len(tokens.Requests()); n != 1 {
		t.Errorf("a push took %d tokens, want 1", n)
	}
	for _, tc := range []struct {
		name  string
		o     registry.Options
		asked string // of the token server
		want  string
	}{
		{"anonymous", registry.Options{}, `GET "" repository:a/b:pull`, ""},
		{"password", registry.Options{User: user, Password: password}, `GET "gordon" repository:a/b:pull`, ""},
		{"wrong password", registry.Options{User: user, Password: "hush-hush-wrong"}, `GET "gordon" repository:a/b:pull`, `it refuses the login of user "gordon"`},
		{"identity token", registry.Options{IdentityToken: identity}, `POST "gordon" repository:a/b:pull`, ""},
		{"wrong identity token", registry.Options{IdentityToken: "hush-hush-wrong"}, `POST "gordon" repository:a/b:pull`, "it refuses the login of a token"},
		{"registry token", registry.Options{RegistryToken: "hush-hush-token"}, "", "the login of a token does not suffice"},
	} {
		before := len(tokens.Requests())
		tc.o.PlainHTTP = true
		err := pull(t, open(t, reg.Addr(), "a/b", quick(tc.o)))
		if tc.want == "" && err != nil || tc.want != "" && (!errors.Is(err, vic.ErrDenied) || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.want)
		}
		secretsIn(t, fmt.Sprintf("%v %+v", err, err))
		want := []string{}
		if tc.asked != "" {
			want = []string{tc.asked}
		}
		if diff := cmp.Diff(want, tokens.Requests()[before:]); diff != "" {
			t.Errorf("%s: requests for tokens (-want +got):\n%s", tc.name, diff)
		}
	}
	anonymous := open(t, reg.Addr(), "a/b", plain())
	if err := anonymous.Push(t.Context(), blobOf([]byte("x")), strings.NewReader("x")); !errors.Is(err, vic.ErrDenied) {
		t.Errorf("anybody may push: %v", err)
	}
	if ok, err := open(t, reg.Addr(), "c", login).Mount(t.Context(), blobOf([]byte("{}")), "a/b"); err != nil || !ok {
		t.Errorf("mount with tokens: %t, %v", ok, err)
	}
}

// TestTokenExpires makes the token of a client worthless while it pulls, and
// then all tokens.
func TestTokenExpires(t *testing.T) {
	tokens := testregistry.TokensForTest(t, testregistry.TokenOptions{Username: user, Password: password})
	reg := testregistry.ForTest(t, &testregistry.Options{Tokens: tokens})
	o := quick(registry.Options{PlainHTTP: true, User: user, Password: password, UploadChunk: 1 << 20})
	r := open(t, reg.Addr(), "a", o)
	data := random(32 << 20)
	if err := r.Push(t.Context(), blobOf(data), bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	rc, err := r.Fetch(t.Context(), blobOf(data))
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	if err := reg.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := tokens.Rotate(); err != nil {
		t.Fatal(err)
	}
	if err := reg.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	if _, err := got.ReadFrom(rc); err != nil || !bytes.Equal(got.Bytes(), data) {
		t.Errorf("%d bytes, %v", got.Len(), err)
	}
	if n := len(tokens.Requests()); n != 2 && n != 3 {
		t.Errorf("%d tokens were fetched: %v", n, tokens.Requests())
	}
	tokens.SetLifetime(-3600e9)
	err = pull(t, open(t, reg.Addr(), "a", o))
	if !errors.Is(err, vic.ErrDenied) {
		t.Errorf("with tokens that are expired when they come: %v", err)
	}
	secretsIn(t, fmt.Sprint(err))
}

// helper writes a credential helper: a shell script that knows one host.
func helper(t *testing.T, dir, name, script string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, "docker-credential-"+name), []byte("#!/bin/sh\n"+script), 0o700); err != nil {
		t.Fatal(err)
	}
}

func TestDockerConfig(t *testing.T) {
	tokens := testregistry.TokensForTest(t, testregistry.TokenOptions{Username: user, Password: password, IdentityToken: identity})
	reg := testregistry.ForTest(t, &testregistry.Options{Tokens: tokens})
	push(t, open(t, reg.Addr(), "a", quick(registry.Options{PlainHTTP: true, User: user, Password: password})), "config")
	bin := t.TempDir()
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	answer := func(name, secret string) string {
		return fmt.Sprintf(`[ "$1" = get ] || exit 9
read host
echo "$host" >> %q
[ "$host" = %q ] || { echo "credentials not found in native keychain"; exit 1; }
printf '{"ServerURL":"%%s","Username":"%s","Secret":"%s"}' "$host"
`, filepath.Join(bin, "asked"), reg.Addr(), name, secret)
	}
	helper(t, bin, "good", answer(user, password))
	helper(t, bin, "token", answer("<token>", identity))
	helper(t, bin, "wrong", answer(user, "hush-hush-wrong"))
	helper(t, bin, "fails", "echo 'hush-hush: cannot open the keychain'; exit 1\n")
	helper(t, bin, "junk", "echo 'hush-hush'\n")
	encoded := base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
	type m = map[string]any
	for _, tc := range []struct {
		name   string
		config any
		o      registry.Options
		want   string
	}{
		{"auths", m{"auths": m{reg.Addr(): m{"auth": encoded}}}, registry.Options{}, ""},
		{"auths with a scheme", m{"auths": m{"https://" + reg.Addr() + "/v1/": m{"auth": encoded}}}, registry.Options{}, ""},
		{"identity token", m{"auths": m{reg.Addr(): m{"auth": base64.StdEncoding.EncodeToString([]byte(user + ":")), "identitytoken": identity}}}, registry.Options{}, ""},
		{"helper", m{"credHelpers": m{reg.Addr(): "good"}}, registry.Options{}, ""},
		{"helper's token", m{"credHelpers": m{reg.Addr(): "token"}}, registry.Options{}, ""},
		{"store", m{"credsStore": "good"}, registry.Options{}, ""},
		{"helper before store", m{"credsStore": "wrong", "credHelpers": m{reg.Addr(): "good"}}, registry.Options{}, ""},
		{"options before config", m{"credsStore": "fails"}, registry.Options{User: user, Password: password}, ""},
		{"wrong password", m{"credsStore": "wrong"}, registry.Options{}, `it refuses the login of user "gordon"`},
		{"another host's", m{"auths": m{"r.example": m{"auth": encoded}}}, registry.Options{}, "nobody is logged in"},
		{"helper fails", m{"credsStore": "fails"}, registry.Options{}, "credential helper fails"},
		{"helper talks junk", m{"credsStore": "junk"}, registry.Options{}, "credential helper fails"},
		{"no helper", m{"credsStore": "none"}, registry.Options{}, "not installed"},
		{"bad entry", m{"auths": m{reg.Addr(): m{"auth": base64.StdEncoding.EncodeToString([]byte("hush-hush"))}}}, registry.Options{}, "malformed"},
		{"bad file", "hush-hush", registry.Options{}, "option DockerConfig"},
		{"empty", m{}, registry.Options{}, "nobody is logged in"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Setenv("DOCKER_CONFIG", t.TempDir())
			text, err := json.Marshal(tc.config)
			if err != nil {
				t.Fatal(err)
			}
			tc.o.PlainHTTP, tc.o.DockerConfig = true, registry.DockerConfigPath()
			if err := os.WriteFile(tc.o.DockerConfig, text, 0o600); err != nil {
				t.Fatal(err)
			}
			r, err := registry.Open(registry.Name{Registry: reg.Addr(), Repository: "a"}, quick(tc.o))
			if err == nil {
				err = pull(t, r)
			}
			if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("%v, want %q", err, tc.want)
			}
			secretsIn(t, fmt.Sprintf("%v %+v", err, err))
		})
	}
	t.Setenv("DOCKER_CONFIG", "")
	t.Setenv("HOME", t.TempDir())
	if want := filepath.Join(os.Getenv("HOME"), ".docker", "config.json"); registry.DockerConfigPath() != want {
		t.Errorf("path %s, want %s", registry.DockerConfigPath(), want)
	}
	o := quick(registry.Options{PlainHTTP: true, DockerConfig: registry.DockerConfigPath()})
	if err := pull(t, open(t, reg.Addr(), "a", o)); err == nil || !strings.Contains(err.Error(), "nobody is logged in") {
		t.Errorf("without a file: %v", err)
	}
}

// TestHostileChallenges: what a registry may not do with what it is sent.
func TestHostileChallenges(t *testing.T) {
	other := newFake(t, func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") != "" {
			t.Errorf("credentials were sent to another host: %s %s", r.Method, r.URL)
		}
		w.WriteHeader(http.StatusUnauthorized)
		w.Header().Set("Www-Authenticate", `Basic realm="x"`)
		return true
	})
	_, port, _ := strings.Cut(other.host(), ":")
	elsewhere := "http://localhost:" + port
	login := registry.Options{PlainHTTP: true, User: user, Password: password}
	for _, tc := range []struct {
		name      string
		challenge string
		token     func(w http.ResponseWriter, r *http.Request)
		o         func(*registry.Options)
		kind      error
		want      string
	}{
		{"no challenge", "", nil, nil, vic.ErrDenied, "401"},
		{"unknown scheme", "Negotiate", nil, nil, vic.ErrDenied, "401"},
		{"no realm", "Bearer service=x", nil, nil, vic.ErrDenied, "401"},
		{"file", `Bearer realm="file:///etc/passwd"`, nil, nil, vic.ErrInvalid, `scheme "file"`},
		{"no URL", `Bearer realm="http://[::1"`, nil, nil, vic.ErrInvalid, "no valid URL"},
		{"credentials in it", `Bearer realm="http://a:b@r.example/"`, nil, nil, vic.ErrInvalid, "credentials"},
		{"denied host", `Bearer realm="` + elsewhere + `/token"`, nil, func(o *registry.Options) { o.Deny = []string{"localhost:*"} }, vic.ErrDenied, "option Deny"},
		{"unlisted host", `Bearer realm="` + elsewhere + `/token"`, nil, func(o *registry.Options) { o.Allow = []string{"127.0.0.1:*"} }, vic.ErrDenied, "Redirects"},
		{"token server redirects", `Bearer realm="http://HOST/token"`, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere+"/token", http.StatusTemporaryRedirect)
		}, nil, vic.ErrDenied, "token server"},
		{"identity token is redirected", `Bearer realm="http://HOST/token"`, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere+"/token", http.StatusTemporaryRedirect)
		}, func(o *registry.Options) { o.User, o.Password, o.IdentityToken = "", "", identity }, vic.ErrInvalid, "with a body"},
		{"no token", `Bearer realm="http://HOST/token"`, func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(`{}`))
		}, nil, vic.ErrInvalid, "gives no token"},
		{"header in a token", `Bearer realm="http://HOST/token"`, func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(`{"token":"a\r\nX: y"}`))
		}, nil, vic.ErrInvalid, "gives no token"},
		{"large token", `Bearer realm="http://HOST/token"`, func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(`{"token":"` + strings.Repeat("x", 1<<20) + `"}`))
		}, nil, vic.ErrInvalid, "no JSON of at most"},
		{"token server limits", `Bearer realm="http://HOST/token"`, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "600")
			w.WriteHeader(http.StatusTooManyRequests)
		}, nil, vic.ErrUnavailable, "try again in 10m"},
		{"token not taken", `Bearer realm="http://HOST/token"`, func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(`{"token":"hush-hush-token"}`))
		}, nil, vic.ErrDenied, "401"},
		{"basic for ever", `Basic realm="x"`, nil, nil, vic.ErrDenied, "does not suffice"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var f *fake
			f = newFake(t, func(w http.ResponseWriter, r *http.Request) bool {
				if r.URL.Path == "/token" {
					tc.token(w, r)
					return true
				}
				if tc.challenge != "" {
					w.Header().Set("Www-Authenticate", strings.ReplaceAll(tc.challenge, "HOST", f.host()))
				}
				w.WriteHeader(http.StatusUnauthorized)
				// Such a registry shows what it was sent.
				_, _ = fmt.Fprintf(w, "you sent %s", r.Header.Get("Authorization"))
				return true
			})
			o := login
			if tc.o != nil {
				tc.o(&o)
			}
			_, err := open(t, f.host(), "a", quick(o)).Resolve(t.Context(), "v1")
			if err == nil || !errors.Is(err, tc.kind) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v, want %q", err, tc.want)
			}
			_, err2 := read(t.Context(), open(t, f.host(), "a", quick(o)), blobOf([]byte("x")))
			secretsIn(t, fmt.Sprintf("%v %+v %v", err, err, err2))
			if n := len(f.seen()); n > 12 {
				t.Errorf("%d requests", n)
			}
		})
	}
}

// TestTokenServerElsewhere: a private registry with its token server at
// another private host, behind a gateway that offers more than one scheme.
func TestTokenServerElsewhere(t *testing.T) {
	m := image("x")
	given := newFake(t, func(w http.ResponseWriter, r *http.Request) bool {
		if name, pass, _ := r.BasicAuth(); name != user || pass != password {
			w.WriteHeader(http.StatusUnauthorized)
		}
		_, _ = w.Write([]byte(`{"access_token":"good"}`))
		return true
	})
	_, port, _ := strings.Cut(given.host(), ":")
	f := newFake(t, func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") == "Bearer good" {
			return false
		}
		w.Header().Add("Www-Authenticate", "Negotiate")
		w.Header().Add("Www-Authenticate", `Basic realm="gateway", Bearer realm="http://localhost:`+port+`/jwt",service=x`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	f.add(m, "v1")
	if err := pull(t, open(t, f.host(), "a", quick(registry.Options{PlainHTTP: true, User: user, Password: password}))); err != nil {
		t.Error(err)
	}
}

// TestParallel reads many blobs at once with one token.
func TestParallel(t *testing.T) {
	tokens := testregistry.TokensForTest(t, testregistry.TokenOptions{Username: user, Password: password})
	reg := testregistry.ForTest(t, &testregistry.Options{Tokens: tokens})
	o := quick(registry.Options{PlainHTTP: true, User: user, Password: password})
	r := open(t, reg.Addr(), "a", o)
	var blobs [][]byte
	for i := range 16 {
		b := bytes.Repeat([]byte{byte(i)}, 300000+i)
		blobs = append(blobs, b)
		if err := r.Push(t.Context(), blobOf(b), bytes.NewReader(b)); err != nil {
			t.Fatal(err)
		}
	}
	before := len(tokens.Requests())
	r = open(t, reg.Addr(), "a", o)
	done := make(chan error)
	for _, b := range blobs {
		go func() { _, err := read(t.Context(), r, blobOf(b)); done <- err }()
	}
	for range blobs {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if n := len(tokens.Requests()) - before; n > 4 {
		t.Errorf("%d tokens for 16 blobs", n)
	}
}
