package testimage

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// source is this package's own code. Whatever changes in it makes another
// recipe, so a cache never serves what an older recipe made.
//
//go:embed layer.go tree.go image.go layout.go apt_linux.go busybox_linux.go zoo.go demo_linux.go debian_linux.go real_linux.go
var source embed.FS

// CacheDir returns the directory for what is fetched or built once:
// VIC_CACHE from the environment, or .cache at the root of the module that
// holds the working directory. A relative VIC_CACHE is taken from that root
// as well. The directory need not exist.
func CacheDir() (string, error) {
	dir := os.Getenv("VIC_CACHE")
	if filepath.IsAbs(dir) {
		return dir, nil
	}
	if dir == "" {
		dir = ".cache"
	}
	at, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for root := at; ; root = filepath.Dir(root) {
		if _, err := os.Stat(filepath.Join(root, "go.mod")); err == nil {
			return filepath.Join(root, dir), nil
		}
		if root == filepath.Dir(root) {
			return "", fmt.Errorf("no cache directory: %s is in no Go module; set VIC_CACHE to an absolute path", at)
		}
	}
}

// recipe is what an image is made from.
type recipe struct {
	name string
	code []string // names of this package's files, beside the shared ones
	args []string
}

// sharedCode is what every recipe uses.
func sharedCode() []string {
	return []string{"layer.go", "tree.go", "image.go", "layout.go", "apt_linux.go"}
}

// cached returns the directory that build has made for a recipe, and calls
// build if there is none yet. build fills the directory out and may use work
// for its own files. Of several processes one builds while the others wait.
func cached(ctx context.Context, dir string, r recipe, build func(ctx context.Context, work, out string) error) (string, error) {
	if dir == "" {
		c, err := CacheDir()
		if err != nil {
			return "", err
		}
		dir = filepath.Join(c, "images")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	key, err := r.key()
	if err != nil {
		return "", err
	}
	final := filepath.Join(dir, key)
	if _, err := os.Stat(final); err == nil {
		return final, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	unlock, err := lock(ctx, filepath.Join(dir, "."+key+".lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(final); err == nil {
		return final, nil
	}
	// The name is the same each time, so that what a killed process left is
	// found and removed.
	work := filepath.Join(dir, "."+key+".work")
	if err := os.RemoveAll(work); err != nil {
		return "", err
	}
	out := filepath.Join(work, "out")
	if err := os.MkdirAll(out, 0o755); err != nil {
		return "", err
	}
	err = build(ctx, work, out)
	if err == nil {
		err = os.Rename(out, final)
	}
	if err = errors.Join(err, os.RemoveAll(work)); err != nil {
		return "", fmt.Errorf("build test image %s: %w", r.name, err)
	}
	return final, nil
}

func (r recipe) key() (string, error) {
	h := sha256.New()
	if err := json.NewEncoder(h).Encode(r.args); err != nil {
		return "", err
	}
	for _, name := range append(sharedCode(), r.code...) {
		text, err := source.ReadFile(name)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(h, "%s %d\n", name, len(text))
		h.Write(text)
	}
	return r.name + "-" + hex.EncodeToString(h.Sum(nil)[:6]), nil
}

// lock takes an exclusive lock on a file, which the kernel gives back if
// this process dies.
func lock(ctx context.Context, name string) (unlock func(), err error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	// A blocking flock could not be ended by ctx.
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, &os.PathError{Op: "flock", Path: name, Err: err}
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("wait for %s: %w", name, ctx.Err())
		case <-tick.C:
		}
	}
}
