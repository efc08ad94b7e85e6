package testimage

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestCached(t *testing.T) {
	dir := t.TempDir()
	var builds atomic.Int32
	build := func(_ context.Context, work, out string) error {
		builds.Add(1)
		if err := os.WriteFile(filepath.Join(work, "scratch"), nil, 0o600); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(out, "made"), nil, 0o600)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	paths := map[string]int{}
	for range 8 {
		wg.Go(func() {
			p, err := cached(t.Context(), dir, recipe{name: "n", args: []string{"a"}}, build)
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			paths[p]++
		})
	}
	wg.Wait()
	if builds.Load() != 1 || len(paths) != 1 {
		t.Errorf("%d builds, paths %v, want one of each", builds.Load(), paths)
	}
	for p := range paths {
		if _, err := os.Stat(filepath.Join(p, "made")); err != nil {
			t.Error(err)
		}
	}
	other, err := cached(t.Context(), dir, recipe{name: "n", args: []string{"b"}}, build)
	if err != nil {
		t.Fatal(err)
	}
	if builds.Load() != 2 || paths[other] != 0 {
		t.Errorf("another recipe was served from the cache: %s", other)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".*.work")); len(left) > 0 {
		t.Errorf("left over: %q", left)
	}
}

func TestCachedFailure(t *testing.T) {
	dir := t.TempDir()
	broken := errors.New("broken")
	_, err := cached(t.Context(), dir, recipe{name: "n"}, func(_ context.Context, _, out string) error {
		return errors.Join(os.WriteFile(filepath.Join(out, "half"), nil, 0o600), broken)
	})
	if !errors.Is(err, broken) {
		t.Fatalf("error %v, want %v", err, broken)
	}
	p, err := cached(t.Context(), dir, recipe{name: "n"}, func(_ context.Context, work, out string) error {
		return os.WriteFile(filepath.Join(work, "left-by-a-killed-process"), nil, 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
	if names, err := os.ReadDir(p); err != nil || len(names) > 0 {
		t.Errorf("what a failed build made was kept: %v, %v", names, err)
	}
}

func TestCachedAfterKill(t *testing.T) {
	dir := t.TempDir()
	key, err := recipe{name: "n"}.key()
	if err != nil {
		t.Fatal(err)
	}
	half := filepath.Join(dir, "."+key+".work", "out", "half")
	if err := os.MkdirAll(half, 0o755); err != nil {
		t.Fatal(err)
	}
	p, err := cached(t.Context(), dir, recipe{name: "n"}, func(context.Context, string, string) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	if names, err := os.ReadDir(p); err != nil || len(names) > 0 {
		t.Errorf("what a killed build made was kept: %v, %v", names, err)
	}
}

func TestLockWaitsNoLongerThanContext(t *testing.T) {
	name := filepath.Join(t.TempDir(), "lock")
	unlock, err := lock(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := lock(ctx, name); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("second lock: %v, want %v", err, context.DeadlineExceeded)
	}
	unlock()
	unlock, err = lock(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	unlock()
}

func TestCacheDir(t *testing.T) {
	t.Setenv("VIC_CACHE", "/somewhere")
	if got, err := CacheDir(); err != nil || got != "/somewhere" {
		t.Errorf("CacheDir: %q, %v", got, err)
	}
	for env, want := range map[string]string{"": ".cache", "sub/dir": "sub/dir"} {
		t.Setenv("VIC_CACHE", env)
		root, err := filepath.Abs("../..")
		if err != nil {
			t.Fatal(err)
		}
		if got, err := CacheDir(); err != nil || got != filepath.Join(root, want) {
			t.Errorf("VIC_CACHE=%q: %q, %v", env, got, err)
		}
	}
	t.Chdir(t.TempDir())
	if _, err := CacheDir(); err == nil || !strings.Contains(err.Error(), "VIC_CACHE") {
		t.Errorf("outside of a module: %v", err)
	}
}
