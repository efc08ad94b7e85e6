package tether_test

import (
	"crypto/ed25519"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/vicsdk/vic-go/vic/tether"
	"golang.org/x/crypto/ssh"
)

func authorized(t *testing.T, k ed25519.PrivateKey) string {
	t.Helper()
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(sshKey(t, k).PublicKey())))
}

// One authority takes another's place while the process runs and controllers of
// both are there.
func TestSetAuthorities(t *testing.T) {
	ctx := testContext(t)
	g := newGuest(t, nil)
	g.run("cat")
	first, second := g.authority, newKey(t)
	a, b := authorized(t, first), authorized(t, second)
	as := func(k ed25519.PrivateKey) (*tether.Client, error) {
		t.Helper()
		signer, err := tether.NewControllerSigner(k, testID, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		c, err := g.dialAs(ctx, signer, g.authorizedKey())
		if err == nil {
			t.Cleanup(func() { _ = c.Close() })
		}
		return c, err
	}
	old := g.dial(ctx)
	stdin, input := io.Pipe()
	live, err := old.Attach(ctx, tether.AttachOptions{Streams: tether.Streams{Stdin: stdin, Stdout: io.Discard}})
	if err != nil {
		t.Fatal(err)
	}

	if _, err := as(second); !errors.Is(err, tether.ErrRefused) {
		t.Fatalf("a controller of an authority that nobody named: %v", err)
	}
	many := make([]string, tether.MaxAuthorities+1)
	for i := range many {
		many[i] = authorized(t, newKey(t))
	}
	cert, err := tether.NewControllerSigner(first, testID, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string][]string{
		"none": nil, "not the asker's": {b}, "twice": {a, a}, "no key": {a, "ssh-ed25519 AAAA"}, "two in one": {a + "\n" + b},
		"too many": append([]string{a}, many...), "a certificate": {a, string(ssh.MarshalAuthorizedKey(cert.PublicKey()))},
	} {
		if err := old.SetAuthorities(ctx, bad); !errors.Is(err, tether.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := as(second); err == nil {
		t.Fatal("a refused set was taken")
	}

	for range 2 { // Again is the same.
		if err := old.SetAuthorities(ctx, []string{a, b}); err != nil {
			t.Fatal(err)
		}
	}
	fresh, err := as(second)
	if err != nil {
		t.Fatalf("the new authority: %v", err)
	}
	if _, err := as(first); err != nil {
		t.Fatalf("the old authority beside the new one: %v", err)
	}
	select {
	case <-old.Done():
		t.Fatal("a connection ended though its authority is trusted")
	default:
	}

	if err := fresh.SetAuthorities(ctx, []string{b}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-old.Done():
	case <-ctx.Done():
		t.Fatal("a connection of an authority that was dropped goes on")
	}
	if _, err := live.Wait(); err == nil {
		t.Error("its attachment tells an end")
	}
	_ = input.Close()
	if _, err := as(first); err == nil {
		t.Error("a controller of the dropped authority got in")
	}
	if _, err := fresh.Status(ctx); err != nil {
		t.Errorf("who dropped it: %v", err)
	}
}

// A document of before there could be several authorities is read as it was.
func TestTrusted(t *testing.T) {
	for doc, want := range map[string]string{
		`"authority":"a"`:                         "a",
		`"authority":"a","authorities":["b","c"]`: "a b c",
	} {
		c, err := tether.ParseConfig([]byte(`{"version":1,"process":{"args":["x"]},` + doc + `}`))
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(c.Trusted(), " "); got != want {
			t.Errorf("%s: %s", doc, got)
		}
	}
}
