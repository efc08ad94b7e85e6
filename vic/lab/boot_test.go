package lab_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vicsdk/vic-go/vic/lab"
)

// bootISO makes a CD of the test kernel and the guest program, and puts it on
// the datastore as boot.iso. VIC_TEST_KERNEL names the kernel; modules are
// taken from ../lib/modules beside it, if they are there.
func (c *client) bootISO() {
	t := c.t
	t.Helper()
	kernel := os.Getenv("VIC_TEST_KERNEL")
	if kernel == "" {
		unless(t, "VIC_TEST_KERNEL names no kernel to boot")
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		unless(t, "QEMU is not installed")
	}
	if _, err := exec.LookPath("xorriso"); err != nil {
		unless(t, "xorriso is not installed")
	}
	dir := t.TempDir()
	root := filepath.Join(dir, "cd/isolinux")
	ok(t, os.MkdirAll(root, 0o755))
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "init"), "./testdata/guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	if b, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the guest: %v\n%s", err, b)
	}
	var cpio bytes.Buffer
	add := func(name string, mode int, b []byte) {
		fmt.Fprintf(&cpio, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00", 0, mode, 0, 0, 1, 0, len(b), 0, 0, 0, 0, len(name)+1, 0, name)
		pad(&cpio)
		cpio.Write(b)
		pad(&cpio)
	}
	add("init", 0o100755, must(os.ReadFile(filepath.Join(dir, "init")))(t))
	add("modules", 0o40755, nil)
	for _, m := range []string{"scsi_common", "scsi_mod", "sd_mod", "vmw_pvscsi", "vmxnet3", "crc-t10dif", "crct10dif_common", "t10-pi", "crc64-rocksoft", "crc64-rocksoft_common", "crc64", "crc64-rocksoft_generic"} {
		found, _ := filepath.Glob(filepath.Join(filepath.Dir(kernel), "../lib/modules/*/kernel/*"))
		for _, top := range found {
			_ = filepath.WalkDir(top, func(p string, d os.DirEntry, err error) error {
				if err == nil && filepath.Base(p) == m+".ko" {
					add("modules/"+m+".ko", 0o100644, must(os.ReadFile(p))(t))
				}
				return nil
			})
		}
	}
	add("TRAILER!!!", 0, nil)
	ok(t, os.WriteFile(filepath.Join(root, "initrd"), cpio.Bytes(), 0o644))
	ok(t, os.WriteFile(filepath.Join(root, "vmlinuz"), must(os.ReadFile(kernel))(t), 0o644))
	ok(t, os.WriteFile(filepath.Join(root, "isolinux.cfg"), []byte("DEFAULT vic\nPROMPT 0\nTIMEOUT 1\nLABEL vic\n  KERNEL /isolinux/vmlinuz\n  APPEND initrd=/isolinux/initrd console=ttyS0 quiet panic=-1\n"), 0o644))
	args := []string{"-as", "mkisofs", "-quiet", "-R", "-o", filepath.Join(dir, "boot.iso")}
	for name, from := range map[string]string{"isolinux.bin": "/usr/lib/ISOLINUX/isolinux.bin", "ldlinux.c32": "/usr/lib/syslinux/modules/bios/ldlinux.c32"} {
		b, err := os.ReadFile(from)
		if err != nil {
			unless(t, "isolinux is not installed")
		}
		ok(t, os.WriteFile(filepath.Join(root, name), b, 0o644))
	}
	args = append(args, "-b", "isolinux/isolinux.bin", "-c", "isolinux/boot.cat", "-no-emul-boot", "-boot-load-size", "4", "-boot-info-table", filepath.Join(dir, "cd"))
	if b, err := exec.Command("xorriso", args...).CombinedOutput(); err != nil {
		t.Fatalf("xorriso: %v\n%s", err, b)
	}
	f := must(os.Open(filepath.Join(dir, "boot.iso")))(t)
	defer f.Close()
	ok(t, c.ds.Upload(t.Context(), f, "boot.iso", nil))
}

func pad(b *bytes.Buffer) {
	for b.Len()%4 != 0 {
		b.WriteByte(0)
	}
}

// bootSpec is a VM that boots boot.iso.
func bootSpec(name string, devs ...types.BaseVirtualDevice) types.VirtualMachineConfigSpec {
	ahci := new(types.VirtualAHCIController)
	ahci.Key = -300
	cd := new(types.VirtualCdrom)
	cd.Key, cd.ControllerKey = -301, -300
	b := new(types.VirtualCdromIsoBackingInfo)
	b.FileName = "[datastore1] boot.iso"
	cd.Backing = b
	cd.Connectable = &types.VirtualDeviceConnectInfo{StartConnected: true}
	return spec(name, append([]types.BaseVirtualDevice{ahci, cd}, devs...)...)
}

// A guest is a VM that was booted with the guest program.
type guest struct {
	*client
	vm *object.VirtualMachine
	n  int
}

func (c *client) boot(s types.VirtualMachineConfigSpec) *guest {
	c.t.Helper()
	g := &guest{client: c, vm: c.mustCreate(s)}
	g.on()
	return g
}

func (g *guest) on() {
	g.t.Helper()
	g.n = 0
	start := time.Now()
	tk, err := g.vm.PowerOn(g.t.Context())
	ok(g.t, done(g.t, tk, err))
	up := time.Since(start)
	if v := g.await("guestinfo.ready"); v != "yes" {
		g.t.Fatalf("ready is %q", v)
	}
	g.t.Logf("power-on task %v, guest program talking after %v", up.Round(time.Millisecond), time.Since(start).Round(time.Millisecond))
}

// await waits until the guest has set a key, as property changes tell.
func (g *guest) await(key string) string {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(g.t.Context(), 90*time.Second)
	defer cancel()
	var got string
	err := property.Wait(ctx, property.DefaultCollector(g.Client.Client), g.vm.Reference(), []string{"config.extraConfig"}, func(pc []types.PropertyChange) bool {
		for _, p := range pc {
			list, _ := p.Val.(types.ArrayOfOptionValue)
			for _, o := range list.OptionValue {
				if v := o.GetOptionValue(); v.Key == key {
					got = fmt.Sprint(v.Value)
					return true
				}
			}
		}
		return false
	})
	if err != nil {
		b, _ := os.ReadFile(g.path(g.name() + "/console.log"))
		g.t.Fatalf("waiting for %s: %v\nconsole:\n%s", key, err, b)
	}
	return got
}

func (g *guest) name() string { return g.props(g.vm).Name }

func (g *guest) order(cmd string) {
	g.t.Helper()
	g.n++
	tk, err := g.vm.Reconfigure(g.t.Context(), types.VirtualMachineConfigSpec{ExtraConfig: []types.BaseOptionValue{
		&types.OptionValue{Key: fmt.Sprintf("guestinfo.cmd.%d", g.n), Value: cmd}}})
	ok(g.t, done(g.t, tk, err))
}

func (g *guest) do(format string, args ...any) string {
	g.t.Helper()
	g.order(fmt.Sprintf(format, args...))
	return g.await(fmt.Sprintf("guestinfo.out.%d", g.n))
}

func (g *guest) want(answer, format string, args ...any) {
	g.t.Helper()
	if got := g.do(format, args...); got != answer {
		g.t.Errorf(format+": %q, want %q", append(args, got, answer)...)
	}
}

func (g *guest) awaitOff() {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(g.t.Context(), 60*time.Second)
	defer cancel()
	ok(g.t, g.vm.WaitForPowerState(ctx, types.VirtualMachinePowerStatePoweredOff))
}

// clear takes back all orders, for a guest that is about to start anew.
func (g *guest) clear() {
	g.t.Helper()
	var o []types.BaseOptionValue
	for k := range g.guestinfo(g.vm) {
		if strings.HasPrefix(k, "guestinfo.cmd.") || strings.HasPrefix(k, "guestinfo.out.") {
			o = append(o, &types.OptionValue{Key: k, Value: ""})
		}
	}
	tk, err := g.vm.Reconfigure(g.t.Context(), types.VirtualMachineConfigSpec{ExtraConfig: o})
	ok(g.t, done(g.t, tk, err))
}

// TestBoot boots a VM with everything: disks in a chain, a NIC, guestinfo, hot
// plug, reset, power-off by the guest.
func TestBoot(t *testing.T) {
	l := start(t, lab.Options{Networks: []lab.Network{{Name: "VM Network"}, {Name: "second"}}})
	c := login(t, l)
	ctx := t.Context()
	c.bootISO()
	ok(t, c.createDisk("[datastore1] base.vmdk", 64<<10))
	qemuIO(t, c.path("base.vmdk"), "write -P 0x41 0 3")
	s := bootSpec("g", disk("", 0, "[datastore1] base.vmdk"), nic("VM Network"))
	s.ExtraConfig = []types.BaseOptionValue{&types.OptionValue{Key: "guestinfo.kept", Value: "old"}}
	g := c.boot(s)

	g.want("sda=131072", "disks")
	g.want("AAA", "read sda")
	g.want("", "write sda hello")
	g.want("old", "get guestinfo.kept")
	g.want("", "set guestinfo.kept new")
	g.want("", "set guestinfo.fresh x")
	if a := g.do("get config.name"); !strings.Contains(a, "denied") {
		t.Errorf("get config.name: %q", a)
	}
	if a := g.do("flood"); !strings.Contains(a, "64 KiB") {
		t.Errorf("a value of 65 KiB: %q", a)
	}
	mac := g.do("nics")
	devs := object.VirtualDeviceList(c.props(g.vm).Config.Hardware.Device)
	if want := devs.FindByKey(4000).(*types.VirtualVmxnet3).MacAddress; mac != want {
		t.Errorf("the guest's MAC address is %q, not %q", mac, want)
	}

	// The network: from the gateway into the guest and back out.
	g.want("", "addr %s 192.168.127.20/24 192.168.127.1", mac)
	g.want("", "listen :7")
	if s := echo(t, l, "192.168.127.20:7", "ping"); s != "ping" {
		t.Errorf("echo: %q", s)
	}
	outside := echoServer(t)
	g.want("pong", "dial 192.168.127.254:%d pong", outside)
	g.want("", "set guestinfo.ip 192.168.127.20")
	p := c.props(g.vm)
	if p.Guest.IpAddress != "192.168.127.20" || p.Guest.ToolsRunningStatus != "guestToolsRunning" || p.Guest.Net[0].IpAddress[0] != "192.168.127.20" || p.Summary.Guest.IpAddress != "192.168.127.20" {
		t.Errorf("guest %+v", p.Guest)
	}

	// Hot plug.
	hot := disk("[datastore1] hot.vmdk", 32<<20, "")
	hot.ControllerKey = 1000
	ok(t, g.vm.AddDevice(ctx, hot))
	if a := g.do("disks"); a != "sda=131072 sdb=65536" {
		g.do("scan")
		g.want("sda=131072 sdb=65536", "disks")
	}
	g.want("", "write sdb hot")
	devs = object.VirtualDeviceList(c.props(g.vm).Config.Hardware.Device)
	ok(t, g.vm.RemoveDevice(ctx, true, devs.FindByKey(2001)))
	ok(t, g.vm.AddDevice(ctx, nic("second")))
	devs = object.VirtualDeviceList(c.props(g.vm).Config.Hardware.Device)
	n2 := devs.FindByKey(4001).(*types.VirtualVmxnet3)
	g.awaitNIC(n2.MacAddress)
	g.want("", "addr %s 192.168.128.20/24 -", n2.MacAddress)
	if s := echo(t, l, "192.168.128.20:7", "second"); s != "second" {
		t.Errorf("echo through the hot NIC: %q", s)
	}
	// A NIC that moves to another port group leaves the first.
	n2.Backing.(*types.VirtualEthernetCardNetworkBackingInfo).DeviceName = "VM Network"
	ok(t, g.vm.EditDevice(ctx, n2))
	short, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	if k, err := l.DialGuest(short, "second", "192.168.128.20:7"); err == nil {
		k.Close()
		t.Error("the NIC still answers on the port group that it left")
	}
	cancel()
	ok(t, g.vm.RemoveDevice(ctx, false, n2))
	g.want(mac, "nics")

	// A failing hot plug changes nothing.
	before := len(c.props(g.vm).Config.Hardware.Device)
	bad := disk("[datastore1] base.vmdk", -1, "")
	bad.ControllerKey, bad.CapacityInBytes = 1000, 0
	if err := g.vm.AddDevice(ctx, bad); err == nil {
		t.Error("a parent in use was attached for writing")
	}
	if n := len(c.props(g.vm).Config.Hardware.Device); n != before {
		t.Errorf("%d devices after a failed hot-add, %d before", n, before)
	}

	// The guest powers itself off.
	g.order("poweroff")
	g.awaitOff()
	p = c.props(g.vm)
	if p.Guest.IpAddress != "" || p.Guest.ToolsRunningStatus != "guestToolsNotRunning" {
		t.Errorf("guest after power-off %+v", p.Guest)
	}
	if gi := c.guestinfo(g.vm); len(gi) != 1 || gi["guestinfo.kept"] != "new" {
		t.Errorf("guestinfo after power-off: %v", gi)
	}
	qemuImg(t, "check", c.path("g/g.vmdk"))
	if s := qemuIO(t, c.path("g/g.vmdk"), "read -v 0 16"); !strings.Contains(s, "hello") {
		t.Errorf("the guest's write is not on the disk:\n%s", s)
	}
	if s := qemuIO(t, c.path("hot.vmdk"), "read -v 0 16"); !strings.Contains(s, "hot") {
		t.Errorf("the guest's write is not on the hot disk:\n%s", s)
	}
	if b, err := os.ReadFile(c.path("g/console.log")); err != nil || !bytes.Contains(b, []byte("guest: up")) {
		t.Errorf("console.log: %v\n%s", err, b)
	}
	if n := qemus(l.Dir()); n != 0 {
		t.Errorf("%d QEMUs left", n)
	}
}

func (g *guest) awaitNIC(mac string) {
	g.t.Helper()
	for range 50 {
		if strings.Contains(g.do("nics"), mac) {
			return
		}
	}
	g.t.Fatalf("the guest does not see %s", mac)
}

// qemus counts the QEMU processes of a lab.
func qemus(dir string) int {
	n := 0
	ents, _ := os.ReadDir("/proc")
	for _, e := range ents {
		b, _ := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		if bytes.Contains(b, []byte("\x00-D\x00"+dir+"/run/")) {
			n++
		}
	}
	return n
}
