package bootiso

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"path"
	"sort"

	"github.com/vicsdk/vic-go/bootiso/modlist"
)

// buildInitrd makes the initial RAM disk. It is not compressed: where QEMU
// emulates the processor, the kernel takes 0.1 s for the plain archive of
// 6 MB, 0.2 s for LZ4, 0.3 s for fast and 0.5 s for dense Zstandard, more than
// reading less from the CD saves.
func buildInitrd(ctx context.Context, o Options) ([]byte, error) {
	var a cpio
	for _, dir := range []string{"dev", "proc", "sys", "run", "disk"} {
		a.dir(dir)
	}
	// The kernel opens /dev/console for PID 1 before anything is mounted.
	a.device("dev/console", 5, 1)
	a.device("dev/null", 1, 3)
	a.file("init", 0o755, o.Tether)
	if o.Modules != nil {
		early, late := o.Early, o.Late
		if early == nil {
			early = defaultEarly
		}
		if late == nil {
			late = defaultLate
		}
		list, files, err := selectModules(ctx, o.Modules, early, late)
		if err != nil {
			return nil, err
		}
		var text bytes.Buffer
		if err := modlist.Write(&text, list); err != nil {
			return nil, err
		}
		a.dir("lib")
		a.dir("lib/modules")
		made := map[string]bool{}
		for _, m := range list {
			a.dirs("lib/modules", path.Dir(m.File), made)
			a.file("lib/modules/"+m.File, 0o644, files[m.File])
		}
		a.file(modlist.Path[1:], 0o644, text.Bytes())
	}
	return a.finish(), nil
}

// cpio writes the kernel's "newc" archives
// (Documentation/driver-api/early-userspace/buffer-format.rst). All entries
// belong to root and have no time.
type cpio struct {
	buf bytes.Buffer
	ino uint32
}

// Bits of an entry's mode (inode(7)).
const (
	modeDir  = 0o040000
	modeChar = 0o020000
	modeFile = 0o100000
)

func (c *cpio) entry(name string, mode, links, major, minor uint32, data []byte) {
	c.ino++
	fmt.Fprintf(&c.buf, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		c.ino, mode, 0, 0, links, 0, len(data), 0, 0, major, minor, len(name)+1, 0)
	c.buf.WriteString(name)
	c.buf.WriteByte(0)
	c.pad()
	c.buf.Write(data)
	c.pad()
}

func (c *cpio) pad() {
	for c.buf.Len()%4 != 0 {
		c.buf.WriteByte(0)
	}
}

func (c *cpio) dir(name string) { c.entry(name, modeDir|0o755, 2, 0, 0, nil) }

// dirs makes the directories of p below base that are not in made.
func (c *cpio) dirs(base, p string, made map[string]bool) {
	if p == "." || made[p] {
		return
	}
	c.dirs(base, path.Dir(p), made)
	made[p] = true
	c.dir(base + "/" + p)
}

func (c *cpio) device(name string, major, minor uint32) {
	c.entry(name, modeChar|0o600, 1, major, minor, nil)
}

func (c *cpio) file(name string, perm uint32, data []byte) {
	c.entry(name, modeFile|perm, 1, 0, 0, data)
}

func (c *cpio) finish() []byte {
	c.ino = ^uint32(0)
	c.entry("TRAILER!!!", 0, 1, 0, 0, nil)
	for c.buf.Len()%512 != 0 {
		c.buf.WriteByte(0)
	}
	return c.buf.Bytes()
}

// moduleFiles lists the module files of a tree by module name.
func moduleFiles(ctx context.Context, tree fs.FS) (map[string]string, error) {
	byName := map[string]string{}
	var all []string
	err := fs.WalkDir(tree, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if d.Type().IsRegular() && moduleName(p) != "" {
			all = append(all, p)
		}
		return nil
	})
	sort.Strings(all)
	for _, p := range all {
		if name := moduleName(p); byName[name] == "" {
			byName[name] = p
		}
	}
	return byName, err
}
