package bootiso

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// DefaultOptions change where [Default] works; nil and zero values are the
// defaults.
type DefaultOptions struct {
	// Dir keeps the images. It is made where it is missing. The default is the
	// directory bootiso in $VIC_CACHE or, where that is not set, vic-go/bootiso
	// in the user's cache directory (os.UserCacheDir).
	Dir string
	// Go is the go command: the one in PATH.
	Go string
}

// Times after which Default removes what it finds in its directory.
const (
	keepImage = 14 * 24 * time.Hour // since it was last asked for
	keepPart  = 24 * time.Hour      // what a process left that was killed
)

// Default returns the file of an image with the kernel of package kernel and
// the tether of this module, and makes it where it is not there yet: the
// first call takes as long as the compiler does, the others milliseconds.
//
// The tether is the one that a program built with the tag vic_release carries
// in itself. Otherwise it is compiled by the go command from the source of
// this module, which is looked for where this package was compiled from, then
// in the module cache, then from the working directory's module on; where the
// cache lacks it or what the tether imports, the go command downloads that.
//
// An image is kept under a name that changes with the tether's source, the go
// command's version, the kernel and all else that goes into it. Any number of
// processes may call Default at once; the file is whole when it can be seen.
// It is removed when nobody has asked for it for two weeks.
func Default(ctx context.Context, o *DefaultOptions) (string, error) {
	if o == nil {
		o = new(DefaultOptions)
	}
	name, err := defaultImage(ctx, *o)
	if err != nil {
		return "", fmt.Errorf("bootiso: default image: %w", err)
	}
	return name, nil
}

func defaultImage(ctx context.Context, o DefaultOptions) (string, error) {
	dir, err := cacheDir(o.Dir)
	if err != nil {
		return "", err
	}
	key := sha256.New()
	// All but the tether: an image with another program in its place.
	if err := write(ctx, Options{Tether: []byte("\x7fELF")}, key); err != nil {
		return "", err
	}
	bin := embeddedTether()
	var src *source
	if bin != nil {
		_, _ = key.Write(bin)
	} else {
		if src, err = findSource(ctx, o.Go); err != nil {
			return "", err
		}
		if err := src.hash(key); err != nil {
			return "", err
		}
	}
	image := filepath.Join(dir, hex.EncodeToString(key.Sum(nil)[:16])+".iso")
	now := time.Now()
	if st, err := os.Stat(image); err == nil && st.Mode().IsRegular() {
		// Not that important: an old one would be made again.
		_ = os.Chtimes(image, now, now)
		return image, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	if bin == nil {
		if bin, err = src.compile(ctx, dir); err != nil {
			return "", err
		}
	}
	if err := Build(ctx, Options{Tether: bin, Out: image}); err != nil {
		return "", err
	}
	sweep(dir, now)
	return image, nil
}

func cacheDir(dir string) (string, error) {
	if dir == "" {
		if dir = os.Getenv("VIC_CACHE"); dir == "" {
			user, err := os.UserCacheDir()
			if err != nil {
				return "", fmt.Errorf("no cache directory: %w: set VIC_CACHE", err)
			}
			dir = filepath.Join(user, "vic-go")
		}
		dir = filepath.Join(dir, "bootiso")
	}
	return filepath.Abs(dir)
}

// sweep removes what nobody wants any more. It fails in silence: what it
// leaves, the next one takes.
func sweep(dir string, now time.Time) {
	all, _ := os.ReadDir(dir)
	for _, e := range all {
		st, err := e.Info()
		if err != nil {
			continue
		}
		age := now.Sub(st.ModTime())
		image := strings.HasSuffix(e.Name(), ".iso") && !strings.HasPrefix(e.Name(), ".")
		if image && age > keepImage || strings.HasPrefix(e.Name(), ".") && age > keepPart {
			_ = os.RemoveAll(filepath.Join(dir, e.Name()))
		}
	}
}

// hash writes all that decides about a compiled tether: its packages' files,
// the versions of what it imports, and the go command.
func (s *source) hash(w io.Writer) error {
	fmt.Fprintf(w, "%s\x00%s\x00", s.toolchain, os.Getenv("GOTOOLCHAIN"))
	names := []string{"go.mod", "go.sum"}
	for _, dir := range tetherPackages() {
		all, err := os.ReadDir(filepath.Join(s.dir, dir))
		if err != nil {
			return err
		}
		for _, e := range all {
			if n := e.Name(); strings.HasSuffix(n, ".go") && !strings.HasSuffix(n, "_test.go") {
				names = append(names, filepath.Join(dir, n))
			}
		}
	}
	for _, name := range names {
		b, err := os.ReadFile(filepath.Join(s.dir, name))
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "%s\x00%d\x00%s", filepath.ToSlash(name), len(b), b)
	}
	return nil
}
