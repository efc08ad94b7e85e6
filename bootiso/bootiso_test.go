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
	"github.com/klauspost/compress/zstd"
	"github.com/vicsdk/vic-go/bootiso"
)

// fakeKernel has what Build looks for in a bzImage, and nothing to run.
func fakeKernel(n int) []byte {
	b := bytes.Repeat([]byte("kernel"), n)
	b[0x1fe], b[0x1ff] = 0x55, 0xaa
	copy(b[0x202:], "HdrS")
	return b
}

func fakeOptions(t testing.TB, out string) bootiso.Options {
	t.Helper()
	return bootiso.Options{
		Kernel: fakeKernel(1000), Tether: []byte("\x7fELF tether"),
		Loader: &bootiso.Loader{Isolinux: bytes.Repeat([]byte("boot"), 600), Ldlinux: []byte("c32")}, Out: out,
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
	d, err := zstd.NewReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	archive, err := d.DecodeAll(initrd, nil)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("cpio", "-t", "--quiet")
	cmd.Stdin = bytes.NewReader(archive)
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
	for name, want := range map[string][]byte{"BOOT/VMLINUZ": o.Kernel, "ISOLINUX/LDLINUX.C32": o.Loader.Ldlinux} {
		got, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
	loader, err := os.ReadFile(filepath.Join(dir, "ISOLINUX/ISOLINUX.BIN"))
	if err != nil {
		t.Fatal(err)
	}
	at := binary.LittleEndian.Uint32(loader[12:])
	if !bytes.Equal(image[at*2048:][:len(loader)], loader) || binary.LittleEndian.Uint32(loader[8:]) != 16 ||
		binary.LittleEndian.Uint32(loader[16:]) != uint32(len(loader)) {
		t.Errorf("boot information table: % x", loader[8:24])
	}
	for _, want := range []string{"El Torito boot img :   1  BIOS  y   none", "/ISOLINUX/ISOLINUX.BIN"} {
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
		{"tether", func(o *bootiso.Options) { o.Tether = []byte("#!/bin/sh") }, "tether: not an ELF program"},
		{"loader", func(o *bootiso.Options) { o.Loader = nil }, "loader: missing"},
		{"short loader", func(o *bootiso.Options) { o.Loader = &bootiso.Loader{Isolinux: []byte("x"), Ldlinux: []byte("x")} }, "isolinux.bin: 1 bytes are too few"},
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

func TestExtractRefuses(t *testing.T) {
	good := build(t, fakeOptions(t, filepath.Join(t.TempDir(), "a.iso")))
	for _, tt := range []struct {
		name  string
		image []byte
		want  string
	}{
		{"empty", nil, "not an ISO 9660 image"},
		{"zeroes", make([]byte, 1<<20), "not an ISO 9660 image"},
		{"cut off", good[:len(good)-2048], "/boot/initrd: unexpected EOF"},
		{"no config", bytes.Replace(good, []byte("ISOLINUX.CFG"), []byte("ISOLINUX.CFX"), 1), "/isolinux/isolinux.cfg: no such file"},
		{"no kernel", bytes.Replace(good, []byte("KERNEL /boot"), []byte("KARNEL /boot"), 1), "no KERNEL"},
		{"no label", bytes.Replace(good, []byte("LABEL vic"), []byte("LABUL vic"), 1), "no LABEL"},
		{"default", bytes.Replace(good, []byte("DEFAULT vic"), []byte("DEFAULT vik"), 1), `DEFAULT "vik" is no LABEL`},
		{"menu", bytes.Replace(good, []byte("PROMPT 0"), []byte("UI m.c32"), 1), `UI "m.c32"`},
		{"kernel is a module", bytes.Replace(good, []byte("KERNEL /boot/vmlinuz"), []byte("KERNEL /boot/initrd "), 1), "not an x86 bzImage"},
		{"kernel elsewhere", bytes.Replace(good, []byte("KERNEL /boot/vmlinuz"), []byte("KERNEL /../etc/passw"), 1), "no such file"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := bootiso.Extract(bytes.NewReader(tt.image))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %q", err, tt.want)
			}
		})
	}
	// A size that is a lie must not be believed.
	lie := bytes.Clone(good)
	i := bytes.Index(lie, []byte("INITRD.;1"))
	binary.LittleEndian.PutUint32(lie[i-33+10:], 0x7fffffff)
	if _, err := bootiso.Extract(bytes.NewReader(lie)); err == nil {
		t.Error("a file of 2 GiB was read")
	}
}

// The configuration is what isolinux makes of it, not only what Build writes.
func TestExtractConfig(t *testing.T) {
	o := fakeOptions(t, filepath.Join(t.TempDir(), "a.iso"))
	o.Cmdline = strings.Repeat("x", 200) // room for another text
	good := build(t, o)
	at := bytes.Index(good, []byte("DEFAULT vic\n"))
	for _, tt := range []struct{ name, config, want string }{
		{"DEFAULT", "DEFAULT b\nLABEL a\nKERNEL /none\nINITRD /none\nLABEL b\nKERNEL /boot/vmlinuz\nINITRD /boot/initrd\nAPPEND b\n", "b"},
		{"first", "label a\n linux /boot/vmlinuz\n initrd /boot/initrd\n append a  1\nlabel b\nkernel /none\n", "a  1"},
		{"initrd= in APPEND", "LABEL a\nLINUX /boot/vmlinuz\nAPPEND q initrd=/boot/initrd z\n", "q z"},
		{"several", "LABEL a\nLINUX /boot/vmlinuz\nAPPEND initrd=/boot/initrd,/boot/initrd\n", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			image := bytes.Clone(good)
			end := at + bytes.IndexByte(image[at:], 0)
			if n := copy(image[at:end], tt.config); n < len(tt.config) {
				t.Fatal("no room")
			}
			for i := at + len(tt.config); i < end; i++ {
				image[i] = '\n'
			}
			p, err := bootiso.Extract(bytes.NewReader(image))
			if tt.want == "" {
				if err == nil || !strings.Contains(err.Error(), "several RAM disks") {
					t.Errorf("%v", err)
				}
				return
			}
			if err != nil || p.Cmdline != tt.want || !bytes.Equal(p.Kernel, o.Kernel) {
				t.Errorf("%+v, %v", p, err)
			}
		})
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

func TestBuildTether(t *testing.T) {
	if testing.Short() {
		t.Skip("compiles twice (-short)")
	}
	var all [][]byte
	for range 2 {
		out := filepath.Join(t.TempDir(), "tether")
		if err := bootiso.BuildTether(context.Background(), "", out); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, b)
	}
	if !bytes.Equal(all[0], all[1]) {
		t.Error("two builds differ")
	}
	t.Logf("tether: %d bytes", len(all[0]))
	if len(all[0]) > 12<<20 {
		t.Errorf("tether has %d bytes, more than 12 MiB", len(all[0]))
	}
	if err := bootiso.BuildTether(context.Background(), filepath.Join(t.TempDir(), "no-go"), "x"); err == nil {
		t.Error("built without a compiler")
	}
}
