package tether_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vicsdk/vic-go/vic/tether"
)

func TestAttach(t *testing.T) {
	g := newGuest(t, nil)
	g.run("echo out; echo err >&2; exit 7")
	e, stdout, stderr := result(t, testContext(t), g.dial(testContext(t)), nil)
	if diff := cmp.Diff([]any{tether.Exit{Code: 7}, "out\n", "err\n"}, []any{e, stdout, stderr}); diff != "" {
		t.Error(diff)
	}
}
