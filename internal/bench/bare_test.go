package bench_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vicsdk/vic-go/bootiso"
	"github.com/vicsdk/vic-go/bootiso/kernel"
	"github.com/vicsdk/vic-go/internal/testlab"
	"github.com/vicsdk/vic-go/internal/vmdk"
	"github.com/vicsdk/vic-go/vic/imagestore"
)

// bareVM is a VM as the lab's (kernel, disk chain, adapter, memory), without
// the lab and without the tether: the least that a start can take. Its RAM
// disk holds one small program that says a word.
type bareVM struct {
	argv []string
}

func newBareVM(b *testing.B, e *testlab.Env, img *imagestore.Image) *bareVM {
	b.Helper()
	dir := b.TempDir()
	unpacked, err := kernel.ELF(kernel.Image())
	if err != nil {
		b.Fatal(err)
	}
	vmlinux, initrd := filepath.Join(dir, "vmlinux"), filepath.Join(dir, "initrd")
	write(b, vmlinux, unpacked)
	write(b, initrd, pid1Archive(b, dir))
	disk := childOf(b, dir, e.Local(b, img.Root().Path), img.Root().Bytes)
	return &bareVM{[]string{
		"-M", "q35", "-accel", "tcg,tb-size=128", "-cpu", "max", "-m", "256", "-smp", "1",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-bios", "qboot.rom",
		"-chardev", "stdio,id=con,signal=off", "-device", "isa-serial,chardev=con,index=0",
		"-device", "pvscsi,id=scsi0", "-drive", "if=none,id=d0,format=vmdk,file=" + disk, "-device", "scsi-hd,drive=d0,bus=scsi0.0",
		"-netdev", "user,id=n0", "-device", "vmxnet3,netdev=n0,romfile=",
		"-kernel", vmlinux, "-initrd", initrd, "-append", bootiso.Cmdline + " lapic_hz=1000000000 noreplace-returns rdinit=/pid1",
	}}
}

// boot tells the time from QEMU's start to PID 1's first word.
func (v *bareVM) boot(b *testing.B) time.Duration {
	b.Helper()
	d, err := v.run(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	return d
}

func (v *bareVM) run(ctx context.Context) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", v.argv...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	var seen bytes.Buffer
	p := make([]byte, 256)
	var at time.Duration
	for at == 0 {
		n, err := out.Read(p)
		seen.Write(p[:n])
		if strings.Contains(seen.String(), "@PID1") {
			at = time.Since(start)
		} else if err != nil {
			return 0, fmt.Errorf("the bare VM ended: %w: %s", err, &seen)
		}
	}
	_, _ = io.Copy(io.Discard, out)
	return at, cmd.Wait()
}

func write(b *testing.B, file string, data []byte) {
	b.Helper()
	if err := os.WriteFile(file, data, 0o600); err != nil {
		b.Fatal(err)
	}
}

// childOf makes a writable child of a disk, as the lab does.
func childOf(b *testing.B, dir, parent string, size int64) string {
	b.Helper()
	text, err := os.ReadFile(parent)
	if err != nil {
		b.Fatal(err)
	}
	d, err := vmdk.ParseDescriptor(text)
	if err != nil {
		b.Fatal(err)
	}
	desc, err := vmdk.LayerDescriptor(size, 0x1234567, d.CID, parent, "child-delta.vmdk").Encode()
	if err != nil {
		b.Fatal(err)
	}
	write(b, filepath.Join(dir, "child.vmdk"), desc)
	f, err := os.Create(filepath.Join(dir, "child-delta.vmdk"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	if err := vmdk.WriteChild(f, size); err != nil {
		b.Fatal(err)
	}
	return filepath.Join(dir, "child.vmdk")
}

// pid1 builds the program of that name.
func pid1(b *testing.B, dir string) []byte {
	b.Helper()
	bin := filepath.Join(dir, "pid1")
	cmd := exec.CommandContext(b.Context(), "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", bin, "./pid1")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("build pid1: %v\n%s", err, out)
	}
	prog, err := os.ReadFile(bin)
	if err != nil {
		b.Fatal(err)
	}
	return prog
}

// pid1Archive is a cpio archive (newc) with the program pid1.
func pid1Archive(b *testing.B, dir string) []byte {
	b.Helper()
	prog := pid1(b, dir)
	var a bytes.Buffer
	entry := func(name string, mode int, data []byte) {
		fmt.Fprintf(&a, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X", 1, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
		a.WriteString(name + "\x00")
		pad(&a)
		a.Write(data)
		pad(&a)
	}
	entry("pid1", 0o100755, prog)
	entry("TRAILER!!!", 0, nil)
	return a.Bytes()
}

func pad(b *bytes.Buffer) {
	for b.Len()%4 != 0 {
		b.WriteByte(0)
	}
}
