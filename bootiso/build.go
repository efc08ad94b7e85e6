package bootiso

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/vicsdk/vic-go/bootiso/kernel"
	"github.com/vicsdk/vic-go/bootiso/loader"
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
//   - percpu_alloc=page: 4 MB less memory, because what the kernel notes of each
//     per-CPU chunk grows with the chunk's size, which is 2 MB otherwise.
//   - initcall_blacklist=ahci_pci_driver_init: once the kernel is up nothing
//     needs the CD, and PID 1 would have to wait 0.3 s until every SATA port has
//     been reset. Options.SATA leaves this one out.
const Cmdline = "console=ttyS0,115200 quiet loglevel=3 panic=-1 random.trust_cpu=on scsi_mod.scan=manual " +
	"rcupdate.rcu_expedited=1 8250.nr_uarts=4 tsc=reliable no_timer_check noreplace-smp cryptomgr.notests percpu_alloc=page" + noSATA

const noSATA = " initcall_blacklist=ahci_pci_driver_init"

// Options are what an image is made of.
type Options struct {
	// Kernel is a bzImage; nil means the one of package kernel.
	Kernel []byte
	// Modules is the tree lib/modules/VERSION of the kernel; nil where
	// everything is built in, as in package kernel's.
	Modules fs.FS
	// Tether is the program cmd/tether; nil means what [Tether] returns, which
	// may take as long as the compiler.
	Tether []byte
	// Cmdline is appended to the constant Cmdline.
	Cmdline string
	// SATA lets the kernel use the SATA controller, for containers that read
	// a CD or a SATA disk. Each start then takes longer.
	SATA bool
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

// Places in the image. The loader does not look for them; they are for people.
const (
	pathLoader  = "/boot/loader.bin"
	pathKernel  = "/boot/vmlinuz"
	pathInitrd  = "/boot/initrd"
	pathCmdline = "/boot/cmdline"
)

// Build writes an image. Errors name the option at fault.
func Build(ctx context.Context, o Options) error {
	var image bytes.Buffer
	if err := write(ctx, o, &image); err != nil {
		return fmt.Errorf("bootiso: %w", err)
	}
	if err := writeWhole(ctx, o.Out, image.Bytes()); err != nil {
		return fmt.Errorf("bootiso: out: %w", err)
	}
	return nil
}

// write writes an image to w.
func write(ctx context.Context, o Options, w io.Writer) error {
	if o.Kernel == nil {
		if o.Modules != nil {
			return errors.New("kernel: missing: modules belong to a kernel of their own")
		}
		o.Kernel = kernel.Image()
	}
	if err := checkKernel(o.Kernel); err != nil {
		return fmt.Errorf("kernel: %w", err)
	}
	if o.Tether == nil {
		var err error
		if o.Tether, err = tetherOf(ctx, ""); err != nil {
			return err
		}
	}
	if !bytes.HasPrefix(o.Tether, []byte("\x7fELF")) {
		return errors.New("tether: not an ELF program")
	}
	cmdline := Cmdline
	if o.SATA {
		cmdline = strings.Replace(cmdline, noSATA, "", 1)
	}
	cmdline = strings.TrimSpace(cmdline + " " + o.Cmdline)
	if strings.ContainsAny(cmdline, "\n\r\x00") || len(cmdline) > loader.MaxCmdline {
		return fmt.Errorf("cmdline: not one line of at most %d bytes", loader.MaxCmdline)
	}
	initrd, err := buildInitrd(ctx, o)
	if err != nil {
		return err
	}
	files := []isoFile{
		{pathLoader, make([]byte, loader.Size)}, {pathCmdline, []byte(cmdline + "\n")},
		{pathKernel, o.Kernel}, {pathInitrd, initrd},
	}
	return writeISO(w, files, func(at map[string]loader.Extent) []byte {
		line := at[pathCmdline]
		line.Size-- // without the line feed
		return loader.Image(loader.Params{Kernel: at[pathKernel], Initrd: at[pathInitrd], Cmdline: line})
	})
}

// writeWhole writes a file under a temporary name and renames it.
func writeWhole(ctx context.Context, name string, data []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
	}()
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := errors.Join(f.Chmod(0o644), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}

// checkKernel looks for the header of the Linux boot protocol and for what the
// loader needs of it (Documentation/x86/boot.rst, "The Real-Mode Kernel
// Header").
func checkKernel(b []byte) error {
	if len(b) < 0x264 || b[0x1fe] != 0x55 || b[0x1ff] != 0xaa || string(b[0x202:0x206]) != "HdrS" {
		return errors.New("not an x86 bzImage")
	}
	if v := binary.LittleEndian.Uint16(b[0x206:]); v < 0x20a {
		return fmt.Errorf("boot protocol %d.%02d, need 2.10 (Linux 2.6.31)", v>>8, v&0xff)
	}
	setup := (int(b[0x1f1]) + 1) * 512 // setup_sects and the boot sector
	if b[0x1f1] == 0 {
		setup = 5 * 512
	}
	if b[0x211]&1 == 0 || setup > 32<<10 || setup >= len(b) {
		return errors.New("not a bzImage that is loaded high, with up to 32 KiB of real-mode code")
	}
	return nil
}
