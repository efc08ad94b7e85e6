package bootiso

import (
	"bytes"
	"compress/gzip"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
	"github.com/vicsdk/vic-go/bootiso/modlist"
)

const maxModule = 64 << 20 // a module file, unpacked

// moduleName is the name of a module file, with underscores as the kernel has
// it, or "".
func moduleName(file string) string {
	name := path.Base(file)
	for _, packed := range []string{".gz", ".xz", ".zst"} {
		name = strings.TrimSuffix(name, packed)
	}
	name, ok := strings.CutSuffix(name, ".ko")
	if !ok {
		return ""
	}
	return strings.ReplaceAll(name, "-", "_")
}

// selectModules finds modules and those that they need, in an order in which
// they can be loaded. What depends on what is read from the modules
// themselves, since a package's tree has no modules.dep before it is installed.
func selectModules(ctx context.Context, tree fs.FS, early, late []string) ([]modlist.Module, map[string][]byte, error) {
	files, err := moduleFiles(ctx, tree)
	if err != nil {
		return nil, nil, fmt.Errorf("modules: %w", err)
	}
	builtin, err := builtinModules(tree)
	if err != nil {
		return nil, nil, fmt.Errorf("modules: %w", err)
	}
	var (
		list  []modlist.Module
		data  = map[string][]byte{}
		place = map[string]string{} // file in the RAM disk, by name; "" while on the way
		add   func(name, by string, late bool) (string, error)
	)
	add = func(name, by string, isLate bool) (string, error) {
		name = strings.ReplaceAll(name, "-", "_")
		if file, ok := place[name]; ok {
			if file == "" {
				return "", fmt.Errorf("modules: %s needs itself", name)
			}
			return file, nil
		}
		from, ok := files[name]
		if !ok && builtin[name] {
			return "", nil
		}
		if !ok {
			return "", fmt.Errorf("modules: %s%s: neither a file of the tree nor built in", name, by)
		}
		b, err := readModule(tree, from)
		if err != nil {
			return "", fmt.Errorf("modules: %s: %w", from, err)
		}
		place[name] = ""
		needs, err := moduleNeeds(b)
		if err != nil {
			return "", fmt.Errorf("modules: %s: %w", from, err)
		}
		m := modlist.Module{File: strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(from, ".gz"), ".xz"), ".zst"), Late: isLate}
		for _, need := range needs {
			file, err := add(need, " (needed by "+name+")", isLate)
			if err != nil {
				return "", err
			}
			if file != "" {
				m.Needs = append(m.Needs, file)
			}
		}
		if name == "scsi_mod" {
			// The kernel's command line does not reach modules that are loaded
			// without modprobe.
			m.Parameters = "scan=manual"
		}
		list = append(list, m)
		data[m.File], place[name] = unsigned(b), m.File
		return m.File, nil
	}
	for _, name := range early {
		if _, err := add(name, "", false); err != nil {
			return nil, nil, err
		}
	}
	for _, name := range late {
		if _, err := add(name, "", true); err != nil {
			return nil, nil, err
		}
	}
	return list, data, nil
}

// builtinModules reads modules.builtin: a path of each module that is in the
// kernel itself.
func builtinModules(tree fs.FS) (map[string]bool, error) {
	b, err := fs.ReadFile(tree, "modules.builtin")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	all := map[string]bool{}
	for line := range strings.Lines(string(b)) {
		if name := moduleName(strings.TrimSpace(line)); name != "" {
			all[name] = true
		}
	}
	return all, err
}

// readModule reads a module file, unpacked.
func readModule(tree fs.FS, name string) ([]byte, error) {
	f, err := tree.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var r io.Reader = f
	switch path.Ext(name) {
	case ".gz":
		r, err = gzip.NewReader(f)
	case ".xz":
		r, err = xz.NewReader(f)
	case ".zst":
		var d *zstd.Decoder
		if d, err = zstd.NewReader(f, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxModule)); err == nil {
			defer d.Close()
			r = d
		}
	}
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(r, maxModule+1))
	if err == nil && len(b) > maxModule {
		err = fmt.Errorf("more than %d bytes", maxModule)
	}
	return b, err
}

// moduleNeeds reads "depends" of a module's
// .modinfo section (kernel/module, include/linux/module.h).
func moduleNeeds(b []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	s := f.Section(".modinfo")
	if s == nil {
		return nil, errors.New("not a kernel module: no section .modinfo")
	}
	info, err := s.Data()
	if err != nil {
		return nil, err
	}
	var needs []string
	for field := range strings.SplitSeq(string(info), "\x00") {
		if v, ok := strings.CutPrefix(field, "depends="); ok && v != "" {
			needs = append(needs, strings.Split(v, ",")...)
		}
	}
	return needs, nil
}

// unsigned takes a signature off a module (kernel/module_signature.c): the
// image is trusted as a whole or not at all, and checking signatures takes a
// good part of a start. A kernel that insists on signatures does so under
// Secure Boot only, which these images do not use.
func unsigned(b []byte) []byte {
	const magic, info = "~Module signature appended~\n", 12
	rest, ok := bytes.CutSuffix(b, []byte(magic))
	if !ok || len(rest) < info {
		return b
	}
	n := int64(binary.BigEndian.Uint32(rest[len(rest)-4:]))
	if n > int64(len(rest)-info) {
		return b
	}
	return rest[:int64(len(rest)-info)-n]
}
