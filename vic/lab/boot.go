package lab

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/vicsdk/vic-go/bootiso"
	"github.com/vicsdk/vic-go/bootiso/kernel"
)

// bootFiles are what a boot CD's loader would have loaded.
type bootFiles struct {
	kernel, initrd string // paths on this machine
	append         string
	// elf tells that the kernel is unpacked and starts by its PVH entry, which
	// takes no more than QEMU's smallest firmware.
	elf bool
}

// bootFilesOf takes the kernel out of the first CD of a VM. It is nil where the
// VM is to boot by itself: there is no CD, it is not one that starts Linux by
// our boot loader, or Options.BootCD is set.
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
	// The files are kept by the image's identity, so that each is taken out once.
	ino := uint64(0)
	if s, ok := st.Sys().(*syscall.Stat_t); ok {
		ino = s.Ino
	}
	dir := filepath.Join(l.run.Name(), fmt.Sprintf("boot-%s-%d-%d-%d", cd.name, ino, st.Size(), st.ModTime().UnixNano()))
	l.boot.Lock()
	defer l.boot.Unlock()
	if b, err := keptBoot(dir); err == nil || !errors.Is(err, os.ErrNotExist) {
		return b, err
	}
	parts, err := bootiso.Extract(f)
	if err != nil {
		// Not for us to judge: the BIOS will.
		l.logVM(hw.dir, "the BIOS boots %s: %v", cd, err)
		return nil, nil
	}
	if err := keepBoot(dir, parts); err != nil {
		return nil, fmt.Errorf("boot CD %s: %w", cd, err)
	}
	return keptBoot(dir)
}

// Names in the directory of a boot CD's parts.
const (
	bootKernel  = "kernel"  // as it is on the CD
	bootELF     = "vmlinux" // in its place, unpacked
	bootInitrd  = "initrd"
	bootCmdline = "cmdline"
)

// keptBoot returns what keepBoot has put into dir, or an os.ErrNotExist.
func keptBoot(dir string) (*bootFiles, error) {
	cmdline, err := os.ReadFile(filepath.Join(dir, bootCmdline))
	if err != nil {
		return nil, err
	}
	b := &bootFiles{filepath.Join(dir, bootELF), filepath.Join(dir, bootInitrd), string(cmdline), true}
	if _, err := os.Stat(b.kernel); err != nil {
		b.kernel, b.elf = filepath.Join(dir, bootKernel), false
	}
	return b, nil
}

// startsByPVH tells whether an ELF file has the note that QEMU's -kernel looks
// for (Xen, public/elfnote.h: XEN_ELFNOTE_PHYS32_ENTRY).
func startsByPVH(image []byte) bool {
	const physEntry = 18
	f, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		return false
	}
	for _, p := range f.Progs {
		if p.Type != elf.PT_NOTE || p.Filesz > uint64(len(image)) {
			continue
		}
		b := make([]byte, p.Filesz)
		if _, err := p.ReadAt(b, 0); err != nil {
			return false
		}
		for len(b) >= 12 {
			le := binary.LittleEndian
			name, desc := uint64(le.Uint32(b)), uint64(le.Uint32(b[4:]))
			kind := le.Uint32(b[8:])
			next := 12 + (name+3)&^3 + (desc+3)&^3
			if next > uint64(len(b)) {
				break
			}
			if kind == physEntry && string(b[12:12+name]) == "Xen\x00" {
				return true
			}
			b = b[next:]
		}
	}
	return false
}

// keepBoot makes dir with all parts in it, or does not make it.
func keepBoot(dir string, p *bootiso.Parts) error {
	tmp, err := os.MkdirTemp(filepath.Dir(dir), "boot-new-")
	if err != nil {
		return err
	}
	name, image := bootKernel, p.Kernel
	if unpacked, e := kernel.ELF(p.Kernel); e == nil && startsByPVH(unpacked) {
		name, image = bootELF, unpacked
	}
	for name, b := range map[string][]byte{name: image, bootInitrd: p.Initrd, bootCmdline: []byte(p.Cmdline)} {
		err = errors.Join(err, os.WriteFile(filepath.Join(tmp, name), b, 0o600))
	}
	if err == nil {
		err = os.Rename(tmp, dir)
	}
	if err != nil {
		_ = os.RemoveAll(tmp)
	}
	return err
}
