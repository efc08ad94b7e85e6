package bootiso_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
	"github.com/vicsdk/vic-go/bootiso"
	"github.com/vicsdk/vic-go/bootiso/loader"
)

// fakeKernel has what Build looks for in a bzImage, and nothing to run.
func fakeKernel(n int) []byte {
	b := bytes.Repeat([]byte("kernel"), n)
	b[0x1fe], b[0x1ff] = 0x55, 0xaa
	copy(b[0x202:], "HdrS")
	b[0x206], b[0x207], b[0x211], b[0x1f1] = 15, 2, 1, 1
	return b
}

func fakeOptions(t testing.TB, out string) bootiso.Options {
	t.Helper()
	return bootiso.Options{
		Kernel: fakeKernel(1000), Tether: []byte("\x7fELF tether"), Out: out,
	}
}

func build(t testing.TB, o bootiso.Options) []byte {
	t.Helper()
	if err := bootiso.Build(context.Background(), o); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(o.Out)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// kernelTree is a real, unpacked kernel package.
func kernelTree(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("VIC_TEST_KERNEL_TREE")
	if dir == "" {
		if os.Getenv("CI") == "true" {
			t.Fatal("VIC_TEST_KERNEL_TREE is not set")
		}
		t.Skip("VIC_TEST_KERNEL_TREE, an unpacked kernel package, is not set")
	}
	return dir
}

func TestBuildAndExtract(t *testing.T) {
	o := fakeOptions(t, filepath.Join(t.TempDir(), "a.iso"))
	o.Cmdline = "extra=1"
	image := build(t, o)
	p, err := bootiso.Extract(bytes.NewReader(image))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(p.Kernel, o.Kernel) || p.Cmdline != bootiso.Cmdline+" extra=1" {
		t.Errorf("kernel of %d bytes, cmdline %q", len(p.Kernel), p.Cmdline)
	}
	if !strings.Contains(p.Cmdline, "panic=-1") || !strings.Contains(p.Cmdline, "console=ttyS0") {
		t.Errorf("cmdline %q", p.Cmdline)
	}
	sata := o
	sata.SATA, sata.Out = true, o.Out+"-sata"
	if p, err := bootiso.Extract(bytes.NewReader(build(t, sata))); err != nil || strings.Contains(p.Cmdline, "ahci") || !strings.HasSuffix(p.Cmdline, " extra=1") {
		t.Errorf("with SATA: cmdline %q, %v", p.Cmdline, err)
	}
	names := cpioNames(t, p.Initrd)
	if diff := cmp.Diff([]string{"dev", "dev/console", "dev/null", "disk", "init", "proc", "run", "sys"}, names); diff != "" {
		t.Error(diff)
	}
	again := build(t, func() bootiso.Options { o.Out += "2"; return o }())
	if !bytes.Equal(image, again) {
		t.Error("the same inputs made other bytes")
	}
}

// cpioNames has the cpio program read an initial RAM disk.
func cpioNames(t *testing.T, initrd []byte) []string {
	t.Helper()
	cmd := exec.Command("cpio", "-t", "--quiet")
	cmd.Stdin = bytes.NewReader(initrd)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("cpio: %v", err)
	}
	names := strings.Fields(string(out))
	sort.Strings(names)
	return names
}

// A program of another maker reads what we write: the files, in the plain
// names of ISO 9660, and the boot catalog.
func TestImageReadByXorriso(t *testing.T) {
	if _, err := exec.LookPath("xorriso"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip("no xorriso")
	}
	o := fakeOptions(t, filepath.Join(t.TempDir(), "a.iso"))
	image := build(t, o)
	dir := t.TempDir()
	out, err := exec.Command("xorriso", "-osirrox", "on", "-indev", o.Out, "-report_el_torito", "plain", "-extract", "/", dir).CombinedOutput()
	if err != nil {
		t.Fatalf("xorriso: %v\n%s", err, out)
	}
	p, err := bootiso.Extract(bytes.NewReader(image))
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{"BOOT/VMLINUZ": p.Kernel, "BOOT/INITRD": p.Initrd, "BOOT/CMDLINE": []byte(p.Cmdline + "\n")}
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	program, err := os.ReadFile(filepath.Join(dir, "BOOT/LOADER.BIN"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := loader.Parse(program); err != nil {
		t.Error(err)
	}
	for _, want := range []string{"El Torito boot img :   1  BIOS  y   none", "/BOOT/LOADER.BIN"} {
		if !strings.Contains(strings.ToUpper(string(out)), strings.ToUpper(want)) {
			t.Errorf("xorriso says nothing of %q:\n%s", want, out)
		}
	}
}

func TestRealModules(t *testing.T) {
	kernel, modules, err := bootiso.KernelTree(kernelTree(t))
	if err != nil {
		t.Fatal(err)
	}
	o := fakeOptions(t, filepath.Join(t.TempDir(), "a.iso"))
	o.Kernel, o.Modules = kernel, modules
	image := build(t, o)
	p, err := bootiso.Extract(bytes.NewReader(image))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(p.Kernel, kernel) {
		t.Error("another kernel")
	}
	all := strings.Join(cpioNames(t, p.Initrd), "\n")
	for _, name := range []string{"scsi_common.ko", "scsi_mod.ko", "vmw_pvscsi.ko", "sd_mod.ko", "vmxnet3.ko", "lib/modules/vic.list"} {
		if !strings.Contains(all, name) {
			t.Errorf("no %s in\n%s", name, all)
		}
	}
	t.Logf("image %d bytes, initrd without tether %d bytes", len(image), len(p.Initrd))
	if !bytes.Equal(image, build(t, func() bootiso.Options { o.Out += "2"; return o }())) {
		t.Error("the same inputs made other bytes")
	}
}

func TestBuildRefuses(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*bootiso.Options)
		want   string
	}{
		{"kernel", func(o *bootiso.Options) { o.Kernel = []byte("\x7fELF") }, "kernel: not an x86 bzImage"},
		{"old kernel", func(o *bootiso.Options) { o.Kernel[0x206] = 9 }, "kernel: boot protocol 2.09, need 2.10"},
		{"low kernel", func(o *bootiso.Options) { o.Kernel[0x211] = 0 }, "kernel: not a bzImage that is loaded high"},
		{"large setup", func(o *bootiso.Options) { o.Kernel[0x1f1] = 64 }, "kernel: not a bzImage that is loaded high"},
		{"tether", func(o *bootiso.Options) { o.Tether = []byte("#!/bin/sh") }, "tether: not an ELF program"},
		{"cmdline", func(o *bootiso.Options) { o.Cmdline = "a\nAPPEND b" }, "cmdline: not one line"},
		{"long cmdline", func(o *bootiso.Options) { o.Cmdline = strings.Repeat("x", 3000) }, "cmdline: not one line of at most 2047"},
		{"modules", func(o *bootiso.Options) { o.Modules = fstest.MapFS{} }, "modules: vmw_pvscsi: neither a file of the tree nor built in"},
		{"not a module", func(o *bootiso.Options) {
			o.Modules = fstest.MapFS{"kernel/vmw-pvscsi.ko": &fstest.MapFile{Data: []byte("text")}}
		}, "kernel/vmw-pvscsi.ko"},
		{"out", func(o *bootiso.Options) { o.Out = filepath.Join(o.Out, "no", "such") }, "out:"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := fakeOptions(t, filepath.Join(t.TempDir(), "a.iso"))
			tt.change(&o)
			err := bootiso.Build(context.Background(), o)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
			if _, err := os.Stat(o.Out); err == nil {
				t.Error("a file appeared")
			}
		})
	}
}

// Built-in modules need no file.
func TestBuiltinModules(t *testing.T) {
	o := fakeOptions(t, filepath.Join(t.TempDir(), "a.iso"))
	o.Modules = fstest.MapFS{"modules.builtin": &fstest.MapFile{Data: []byte(
		"kernel/vmw_pvscsi.ko\nkernel/sd_mod.ko\nkernel/vmxnet3.ko\nkernel/button.ko\nkernel/overlay.ko\n")}}
	build(t, o)
}

// at finds the places in an image that tests spoil.
func at(t testing.TB, image []byte) (catalog, program int) {
	t.Helper()
	catalog = 2048 * int(binary.LittleEndian.Uint32(image[17*2048+71:]))
	return catalog, 2048 * int(binary.LittleEndian.Uint32(image[catalog+40:]))
}

func TestExtractRefuses(t *testing.T) {
	good := build(t, fakeOptions(t, filepath.Join(t.TempDir(), "a.iso")))
	catalog, program := at(t, good)
	params, err := loader.Parse(good[program:])
	if err != nil {
		t.Fatal(err)
	}
	// with returns the image with other parameters.
	with := func(change func(*loader.Params)) []byte {
		p, b := params, bytes.Clone(good)
		change(&p)
		copy(b[program:], loader.Image(p))
		return b
	}
	put := func(at int, data ...byte) []byte {
		b := bytes.Clone(good)
		copy(b[at:], data)
		return b
	}
	efi := put(catalog+1, 0xef)
	efi[catalog+29] -= 0xef // the checksum
	kernel := int(params.Kernel.LBA) * 2048
	line := int(params.Cmdline.LBA) * 2048
	for _, tt := range []struct {
		name  string
		image []byte
		want  string
	}{
		{"empty", nil, "not an ISO 9660 image"},
		{"zeroes", make([]byte, 1<<20), "not an ISO 9660 image"},
		{"cut off", good[:len(good)-2048], "initrd: at sector"},
		{"cut off early", good[:program+2047], "boot loader: at sector"},
		{"no boot record", put(17*2048, 255), "no boot record"},
		{"another boot record", put(17*2048+7, 'X'), "no boot record"},
		{"catalog elsewhere", put(17*2048+71, 0xff, 0xff, 0xff, 0xff), "boot catalog: EOF"},
		{"checksum", put(catalog+28, 1), "boot catalog: bad validation entry"},
		{"EFI", efi, "boot catalog: platform 239, not 80x86"},
		{"not bootable", put(catalog+32, 0), "boot catalog: the default entry is not bootable"},
		{"floppy emulation", put(catalog+33, 2), "boot catalog: not vic's own boot loader"},
		{"load segment", put(catalog+34, 0, 0x20), "boot catalog: not vic's own boot loader"},
		{"one sector", put(catalog+38, 1), "boot catalog: not vic's own boot loader"},
		{"another loader", put(program+64, 'X'), "boot loader: not vic's own"},
		{"another version", put(program+72, 2), "boot loader: parameters of version 2"},
		{"long command line", with(func(p *loader.Params) { p.Cmdline.Size = 2048 }), "boot loader: a command line of 2048 bytes"},
		{"two lines", put(line+3, '\n'), "command line: not one line"},
		{"no command line", with(func(p *loader.Params) { p.Cmdline.LBA = 1 << 31 }), "command line: at sector"},
		{"no kernel", put(kernel+0x202, 'X'), "kernel: not an x86 bzImage"},
		{"kernel elsewhere", with(func(p *loader.Params) { p.Kernel.LBA = 0xffffffff }), "kernel: at sector 4294967295"},
		{"large kernel", with(func(p *loader.Params) { p.Kernel.Size = 1 << 30 }), "kernel: 1073741824 bytes, more than"},
		{"large initrd", with(func(p *loader.Params) { p.Initrd.Size = 1 << 29 }), "initrd: at sector"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := bootiso.Extract(bytes.NewReader(tt.image))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
}

// What is booted is what the loader's parameters name, not what the
// directories do.
func TestExtractFollowsLoader(t *testing.T) {
	image := build(t, fakeOptions(t, filepath.Join(t.TempDir(), "a.iso")))
	_, program := at(t, image)
	params, err := loader.Parse(image[program:])
	if err != nil {
		t.Fatal(err)
	}
	params.Cmdline.Size, params.Initrd = 7, params.Cmdline
	copy(image[program:], loader.Image(params))
	image = bytes.ReplaceAll(image, []byte("VMLINUZ"), []byte("VMLINUX"))
	p, err := bootiso.Extract(bytes.NewReader(image))
	if err != nil || p.Cmdline != "console" || string(p.Initrd) != bootiso.Cmdline {
		t.Errorf("%+v, %v", p, err)
	}
}

func FuzzExtract(f *testing.F) {
	f.Add(build(f, fakeOptions(f, filepath.Join(f.TempDir(), "a.iso"))))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := bootiso.Extract(bytes.NewReader(b))
		if err != nil {
			return
		}
		if len(p.Kernel) > len(b) || len(p.Initrd) > len(b) || len(p.Cmdline) > 2047 {
			t.Fatalf("parts larger than the image: %d, %d, %d", len(p.Kernel), len(p.Initrd), len(p.Cmdline))
		}
	})
}

func TestTether(t *testing.T) {
	if testing.Short() {
		t.Skip("compiles twice (-short)")
	}
	one, err := bootiso.Tether(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	if two, err := bootiso.Tether(t.Context(), "go"); err != nil || !bytes.Equal(one, two) {
		t.Errorf("two builds differ: %d and %d bytes, %v", len(one), len(two), err)
	}
	o := bootiso.Options{Tether: one, Out: filepath.Join(t.TempDir(), "a.iso")}
	image := build(t, o)
	p, err := bootiso.Extract(bytes.NewReader(image))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("tether %d bytes, initrd %d, kernel %d, image %d", len(one), len(p.Initrd), len(p.Kernel), len(image))
	if len(one) > 12<<20 || len(p.Initrd) > 16<<20 {
		t.Error("more than 12 MiB of tether or 16 MiB of initrd")
	}
}
