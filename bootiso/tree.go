package bootiso

import (
	"fmt"
	"io/fs"
	"os"
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
