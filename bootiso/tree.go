package bootiso

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
)

// KernelTree reads an unpacked kernel package, a directory with
// boot/vmlinuz-VERSION and lib/modules/VERSION (or usr/lib/modules/VERSION). It
// must hold exactly one kernel.
func KernelTree(dir string) (kernel []byte, modules fs.FS, err error) {
	names, err := filepath.Glob(filepath.Join(dir, "boot", "vmlinuz-*"))
	if err != nil {
		return nil, nil, fmt.Errorf("bootiso: kernel tree: %w", err)
	}
	if len(names) != 1 {
		return nil, nil, fmt.Errorf("bootiso: kernel tree %s: %d files boot/vmlinuz-*, need one", dir, len(names))
	}
	kernel, err = os.ReadFile(names[0])
	if err != nil {
		return nil, nil, fmt.Errorf("bootiso: kernel tree: %w", err)
	}
	version := filepath.Base(names[0])[len("vmlinuz-"):]
	for _, lib := range []string{"lib", "usr/lib"} {
		m := filepath.Join(dir, lib, "modules", version)
		if st, err := os.Stat(m); err == nil && st.IsDir() {
			return kernel, os.DirFS(m), nil
		}
	}
	return nil, nil, fmt.Errorf("bootiso: kernel tree %s: no lib/modules/%s", dir, version)
}

// Loader is the boot loader of an image, Syslinux 6.
type Loader struct {
	Isolinux []byte // isolinux.bin
	Ldlinux  []byte // ldlinux.c32
}

// OpenLoader reads isolinux.bin and ldlinux.c32 in the first of the given
// directories that has each; where none are given, where Debian's packages
// isolinux and syslinux-common put them.
func OpenLoader(dirs ...string) (*Loader, error) {
	if len(dirs) == 0 {
		dirs = []string{"/usr/lib/ISOLINUX", "/usr/lib/syslinux/modules/bios"}
	}
	read := func(name string) ([]byte, error) {
		for _, dir := range dirs {
			b, err := os.ReadFile(filepath.Join(dir, name))
			if err == nil || !errors.Is(err, fs.ErrNotExist) {
				return b, err
			}
		}
		return nil, fmt.Errorf("%s: in none of %v: install isolinux and syslinux-common", name, dirs)
	}
	isolinux, err := read("isolinux.bin")
	if err != nil {
		return nil, fmt.Errorf("bootiso: loader: %w", err)
	}
	ldlinux, err := read("ldlinux.c32")
	if err != nil {
		return nil, fmt.Errorf("bootiso: loader: %w", err)
	}
	return &Loader{isolinux, ldlinux}, nil
}

// BuildTether compiles cmd/tether for container VMs to the file out, with the
// go command goTool (empty: the one in PATH), in the module that the working
// directory is in. The same sources and tool chain give the same bytes.
func BuildTether(ctx context.Context, goTool, out string) error {
	if goTool == "" {
		goTool = "go"
	}
	cmd := exec.CommandContext(ctx, goTool, "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=",
		"-o", out, "github.com/vicsdk/vic-go/cmd/tether")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64", "GOAMD64=v1", "GOFLAGS=")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("bootiso: build tether: %w", errors.Join(err, errors.New(stderr.String())))
	}
	return nil
}
