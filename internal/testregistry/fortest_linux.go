package testregistry

import (
	"context"
	"errors"
	"os"
)

// TB is the part of testing.TB that [ForTest] needs.
type TB interface {
	Helper()
	Cleanup(func())
	Context() context.Context
	Skipf(format string, args ...any)
	Fatalf(format string, args ...any)
	Errorf(format string, args ...any)
}

// ForTest starts a registry that ends with the test. Where docker-registry
// is not installed the test is skipped, but fails if the environment says
// CI=true.
func ForTest(tb TB, opts *Options) *Registry {
	tb.Helper()
	r, err := Start(tb.Context(), opts)
	switch {
	case errors.Is(err, ErrMissing) && os.Getenv("CI") != "true":
		tb.Skipf("%v", err)
	case err != nil:
		tb.Fatalf("start a registry: %v", err)
	}
	tb.Cleanup(func() {
		if err := r.Close(); err != nil {
			tb.Errorf("close the registry: %v", err)
		}
	})
	return r
}
