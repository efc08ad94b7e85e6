package bootiso

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// Cmdline is the kernel command line of every image, before Options.Cmdline.
// It carries no configuration of a container.
//
//   - panic=-1: a VM whose kernel or tether died powers off or restarts at
//     once instead of hanging.
//   - random.trust_cpu=on: the guest's host key needs entropy at once.
//   - scsi_mod.scan=manual: the tether asks for the disks it was told of;
//     scanning 64 targets is slower than the rest of the start.
//   - rcupdate.rcu_expedited=1: many short waits on one or two processors.
//   - 8250.nr_uarts=4: COM1 is the console, COM4 may carry guestinfo.
const Cmdline = "console=ttyS0,115200 quiet loglevel=3 panic=-1 random.trust_cpu=on scsi_mod.scan=manual " +
	"rcupdate.rcu_expedited=1 8250.nr_uarts=4 tsc=reliable no_timer_check noreplace-smp cryptomgr.notests"

// Options are what an image is made of.
type Options struct {
	// Kernel is a bzImage.
	Kernel []byte
	// Modules is the tree lib/modules/VERSION of the kernel; nil where
	// everything is built in.
	Modules fs.FS
	// Tether is the program cmd/tether; see BuildTether.
	Tether []byte
	// Loader is isolinux; see OpenLoader.
	Loader *Loader
	// Cmdline is appended to the constant Cmdline.
	Cmdline string
	// Early names the modules that the root disk and the NICs need, Late
	// those that are loaded while the container runs. Nil means the
	// defaults. A module that is built into the kernel may be named; what
	// they need comes by itself.
	Early, Late []string
	// Out is the file to write. It appears whole or not at all.
	Out string
}

// The default modules: VMware's paravirtual disk and network adapters, and the
// power button.
var (
	defaultEarly = []string{"vmw_pvscsi", "sd_mod", "vmxnet3"}
	defaultLate  = []string{"button", "overlay"}
)

// Places in the image.
const (
	pathKernel = "/boot/vmlinuz"
	pathInitrd = "/boot/initrd"
	pathConfig = "/isolinux/isolinux.cfg"
	pathLoader = "/isolinux/isolinux.bin"
	pathModule = "/isolinux/ldlinux.c32"
)

// Build writes an image. Errors name the option at fault.
func Build(ctx context.Context, o Options) error {
	if err := checkKernel(o.Kernel); err != nil {
		return fmt.Errorf("bootiso: kernel: %w", err)
	}
	if !bytes.HasPrefix(o.Tether, []byte("\x7fELF")) {
		return errors.New("bootiso: tether: not an ELF program")
	}
	if o.Loader == nil || len(o.Loader.Isolinux) == 0 || len(o.Loader.Ldlinux) == 0 {
		return errors.New("bootiso: loader: missing: need isolinux.bin and ldlinux.c32 of Syslinux 6")
	}
	cmdline := strings.TrimSpace(Cmdline + " " + o.Cmdline)
	if strings.ContainsAny(cmdline, "\n\r\x00") || len(cmdline) > maxCmdline {
		return fmt.Errorf("bootiso: cmdline: not one line of at most %d bytes", maxCmdline)
	}
	initrd, err := buildInitrd(ctx, o)
	if err != nil {
		return fmt.Errorf("bootiso: %w", err)
	}
	config := "DEFAULT vic\nPROMPT 0\nTIMEOUT 0\nNOESCAPE 1\nLABEL vic\n  KERNEL " + pathKernel + "\n  INITRD " + pathInitrd +
		"\n  APPEND " + cmdline + "\n"
	files := []isoFile{
		{pathLoader, o.Loader.Isolinux}, {pathConfig, []byte(config)}, {pathModule, o.Loader.Ldlinux},
		{pathKernel, o.Kernel}, {pathInitrd, initrd},
	}
	return writeWhole(ctx, o.Out, func(w io.Writer) error { return writeISO(w, files) })
}

// writeWhole writes a file under a temporary name and renames it.
func writeWhole(ctx context.Context, name string, write func(io.Writer) error) (err error) {
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*")
	if err != nil {
		return fmt.Errorf("bootiso: out: %w", err)
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
	}()
	if err := write(f); err != nil {
		return fmt.Errorf("bootiso: out: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("bootiso: %w", err)
	}
	if err := errors.Join(f.Chmod(0o644), f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("bootiso: out: %w", err)
	}
	if err := os.Rename(f.Name(), name); err != nil {
		return fmt.Errorf("bootiso: out: %w", err)
	}
	return nil
}

// checkKernel looks for the boot sector's signature and the "HdrS" of the
// Linux boot protocol (Documentation/x86/boot.rst).
func checkKernel(b []byte) error {
	if len(b) < 0x264 || b[0x1fe] != 0x55 || b[0x1ff] != 0xaa || string(b[0x202:0x206]) != "HdrS" {
		return errors.New("not an x86 bzImage")
	}
	return nil
}

// compress packs the initial RAM disk. One worker, so that the bytes depend on
// the input alone.
func compress(b []byte) ([]byte, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedBestCompression),
		zstd.WithWindowSize(1<<20))
	if err != nil {
		return nil, err
	}
	defer enc.Close()
	return enc.EncodeAll(b, nil), nil
}
