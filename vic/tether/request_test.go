package tether_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/vicsdk/vic-go/vic/tether"
	"golang.org/x/crypto/ssh"
)

// Requests that come by guestinfo are taken once, of trusted controllers, for this
// boot of this container.
func TestRequest(t *testing.T) {
	ctx := testContext(t)
	g := newGuest(t, nil)
	g.run(`trap 'echo signal' USR1; trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.05; done`)
	c := g.dial(ctx)
	signer := func(id string) ssh.Signer {
		t.Helper()
		s, err := tether.NewControllerSigner(g.authority, id, time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	own := signer(testID)
	seal := func(r tether.Request, by ssh.Signer) string {
		t.Helper()
		doc, err := r.Seal(by)
		if err != nil {
			t.Fatal(err)
		}
		return doc
	}
	good := tether.Request{ID: testID, Boot: "boot", At: 100, Signal: "USR1"}
	change := func(f func(*tether.Request)) tether.Request {
		r := good
		f(&r)
		return r
	}
	stranger, err := tether.NewControllerSigner(newKey(t), testID, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	// edit changes a part of a sealed document.
	edit := func(doc string, f func(map[string]any)) string {
		m := map[string]any{}
		if err := json.Unmarshal([]byte(doc), &m); err != nil {
			t.Fatal(err)
		}
		f(m)
		b, _ := json.Marshal(m)
		return string(b)
	}
	sound := seal(good, own)
	other := seal(change(func(r *tether.Request) { r.Signal = "KILL" }), own)
	for name, doc := range map[string]string{
		"nothing":              "",
		"no JSON":              "x",
		"too long":             `{"request":"` + strings.Repeat("A", 1<<17) + `"}`,
		"a stranger's":         seal(good, stranger),
		"for another":          seal(good, signer(strings.Repeat("f", 64))),
		"of another boot":      seal(change(func(r *tether.Request) { r.Boot = "older" }), own),
		"of another container": seal(change(func(r *tether.Request) { r.ID = "x" }), own),
		"another's signature":  edit(sound, func(m map[string]any) { m["signature"] = edits(t, other)["signature"] }),
		"another's words":      edit(sound, func(m map[string]any) { m["request"] = edits(t, other)["request"] }),
		"a plain key":          edit(sound, func(m map[string]any) { m["certificate"] = authorized(t, g.authority) }),
		"no signature":         edit(sound, func(m map[string]any) { delete(m, "signature") }),
	} {
		if taken, err := g.server.Take(doc); taken || err == nil {
			t.Errorf("%s: taken %v, %v", name, taken, err)
		}
	}
	if g.container.Status().Answered != nil {
		t.Error("a refused request is answered")
	}
	logs, err := c.Logs(ctx, tether.LogOptions{Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	defer logs.Close()
	line := func(want string) {
		t.Helper()
		l, err := logs.Next()
		if err != nil || string(l.Data) != want+"\n" {
			t.Fatalf("%q, %v, want %q", l.Data, err, want)
		}
	}
	line("ready")
	for i := range 3 { // Once, however often it is read.
		if taken, err := g.server.Take(sound); err != nil || taken != (i == 0) {
			t.Fatalf("taken %v, %v", taken, err)
		}
	}
	line("signal")
	if taken, err := g.server.Take(seal(change(func(r *tether.Request) { r.At, r.Signal = 101, "NONE" }), own)); err != nil || !taken {
		t.Fatalf("taken %v, %v", taken, err)
	}
	st, err := c.Status(ctx)
	if a := st.Answered; err != nil || a == nil || a.At != 101 || !errors.Is(a.Error, tether.ErrInvalid) {
		t.Errorf("%+v, %v", a, err)
	}
	if taken, err := g.server.Take(seal(change(func(r *tether.Request) { r.At, r.Signal, r.Stop, r.Grace = 102, "", true, -1 }), own)); err != nil || !taken {
		t.Fatalf("taken %v, %v", taken, err)
	}
	line("bye")
	if e, err := c.Wait(ctx); err != nil || e.Code != 3 {
		t.Errorf("%+v, %v", e, err)
	}
}

func edits(t *testing.T, doc string) map[string]any {
	t.Helper()
	m := map[string]any{}
	if err := json.Unmarshal([]byte(doc), &m); err != nil {
		t.Fatal(err)
	}
	return m
}

// FuzzRequest: whatever processes write under the key, nothing is done that no
// controller signed.
func FuzzRequest(f *testing.F) {
	g := newGuest(f, nil)
	s, err := tether.NewControllerSigner(g.authority, testID, time.Minute)
	if err != nil {
		f.Fatal(err)
	}
	doc, err := tether.Request{ID: testID, Boot: "another", At: 1, Signal: "HUP"}.Seal(s)
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range []string{doc, doc[:len(doc)/2], `{"request":"","certificate":"ssh-ed25519 AAAA","signature":"AAAAAA=="}`, "{}"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, doc string) {
		if taken, err := g.server.Take(doc); taken || err == nil {
			t.Errorf("%q is taken", doc)
		}
	})
}
