package lab

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// bootFiles are what a boot CD's loader would have loaded.
type bootFiles struct {
	kernel, initrd string // paths on this machine
	append         string
}

// maxBootFile bounds a kernel or initrd.
const maxBootFile = 1 << 30

// bootFilesOf takes the kernel out of the first CD of a VM. It is nil where the
// VM is to boot by itself: there is no CD, its loader is not isolinux, or
// Options.BootCD is set.
func (l *Lab) bootFilesOf(hw *hardware) (*bootFiles, error) {
	if l.opts.BootCD || len(hw.cds) == 0 || hw.cds[0].rel == "" {
		return nil, nil
	}
	cd := hw.cds[0]
	f, err := cd.root.Open(cd.rel)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", cd, err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	c, err := openISO(f, st.Size())
	if err != nil {
		return nil, nil // not for us to judge: the BIOS will
	}
	cfg, ok := isolinux(c)
	if !ok {
		return nil, nil
	}
	l.boot.Lock()
	defer l.boot.Unlock()
	// The files are kept by the image's identity, so that each is taken out once.
	ino := uint64(0)
	if s, ok := st.Sys().(*syscall.Stat_t); ok {
		ino = s.Ino
	}
	dir := filepath.Join(l.run.Name(), fmt.Sprintf("boot-%s-%d-%d-%d", cd.name, ino, st.Size(), st.ModTime().UnixNano()))
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	b := &bootFiles{append: cfg.append}
	if b.kernel, err = takeOut(c, cfg.kernel, filepath.Join(dir, "kernel")); err == nil && cfg.initrd != "" {
		b.initrd, err = takeOut(c, cfg.initrd, filepath.Join(dir, "initrd"))
	}
	if err != nil {
		return nil, fmt.Errorf("boot CD %s: %w", cd, err)
	}
	return b, nil
}

func takeOut(c *iso, name, to string) (string, error) {
	if _, err := os.Stat(to); err == nil {
		return to, nil
	}
	r, err := c.open(name)
	if err != nil {
		return "", err
	}
	if r.Size() > maxBootFile {
		return "", fmt.Errorf("%s has more than 1 GiB", name)
	}
	tmp := to + ".new"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return "", err
	}
	_, err = io.Copy(f, r)
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(tmp, to)
	}
	if err != nil {
		_ = os.Remove(tmp)
	}
	return to, err
}

type isolinuxEntry struct{ kernel, initrd, append string }

// isolinux reads the default entry of a CD's isolinux.cfg (SYSLINUX,
// doc/syslinux.txt): DEFAULT, LABEL, KERNEL or LINUX, INITRD, APPEND.
func isolinux(c *iso) (isolinuxEntry, bool) {
	var r *io.SectionReader
	for _, p := range []string{"isolinux/isolinux.cfg", "boot/isolinux/isolinux.cfg", "isolinux.cfg", "syslinux.cfg"} {
		var err error
		if r, err = c.open(p); err == nil {
			break
		}
	}
	if r == nil || r.Size() > 1<<20 {
		return isolinuxEntry{}, false
	}
	b, err := io.ReadAll(r)
	if err != nil {
		return isolinuxEntry{}, false
	}
	return parseIsolinux(string(b))
}

func parseIsolinux(text string) (isolinuxEntry, bool) {
	entries := map[string]*isolinuxEntry{}
	var first, want string
	cur := new(isolinuxEntry)
	for line := range strings.Lines(text) {
		verb, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		rest = strings.TrimSpace(rest)
		switch strings.ToLower(verb) {
		case "default":
			want = rest
		case "label":
			cur = new(isolinuxEntry)
			entries[rest] = cur
			if first == "" {
				first = rest
			}
		case "kernel", "linux":
			cur.kernel = rest
		case "initrd":
			cur.initrd = rest
		case "append":
			cur.append = rest
		}
	}
	e := entries[want]
	if e == nil {
		e = entries[first]
	}
	if e == nil || e.kernel == "" || strings.HasSuffix(e.kernel, ".c32") {
		return isolinuxEntry{}, false
	}
	var args []string
	for _, a := range strings.Fields(e.append) {
		if v, ok := strings.CutPrefix(a, "initrd="); ok {
			e.initrd = v
			continue
		}
		args = append(args, a)
	}
	e.append = strings.Join(args, " ")
	if strings.Contains(e.initrd, ",") {
		return isolinuxEntry{}, false // several initrds: the BIOS boots them
	}
	return *e, true
}
