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

	"github.com/vicsdk/vic-go/bootiso"
	"github.com/vicsdk/vic-go/vic/lab"
)

// bootISO makes a CD whose PID 1 is the guest program in place of the tether,
// and puts it on the datastore as boot.iso.
func (c *client) bootISO() {
	t := c.t
	t.Helper()
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		unless(t, "QEMU is not installed")
	}
	dir := t.TempDir()
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "init"), "./testdata/guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	if b, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the guest: %v\n%s", err, b)
	}
	ok(t, bootiso.Build(t.Context(), bootiso.Options{
		Tether: must(os.ReadFile(filepath.Join(dir, "init")))(t), Out: filepath.Join(dir, "boot.iso"),
	}))
	f := must(os.Open(filepath.Join(dir, "boot.iso")))(t)
	defer f.Close()
	ok(t, c.ds.Upload(t.Context(), f, "boot.iso", nil))
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
	// What a lab leaves that is killed while it extends a disk: QEMU has it by its
	// descriptor, as those of earlier labs have every disk.
	ok(t, c.createDisk("[datastore1] half.vmdk", 32<<10))
	ok(t, os.Truncate(c.path("half-flat.vmdk"), 40<<20))
	s := bootSpec("g", disk("", 0, "[datastore1] base.vmdk"), disk("[datastore1] half.vmdk", -1, ""), nic("VM Network"))
	s.ExtraConfig = []types.BaseOptionValue{&types.OptionValue{Key: "guestinfo.kept", Value: "old"}}
	g := c.boot(s)

	g.want("sda=131072 sdb=65536", "disks")
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
	const three = "sda=131072 sdb=65536 sdc=65536"
	if a := g.do("disks"); a != three {
		g.do("scan")
		g.want(three, "disks")
	}
	g.want("", "write sdc hot")

	// Disks grow in the running VM, but those with a parent.
	ok(t, g.grow(2002, 64))
	ok(t, g.grow(2001, 48))
	ok(t, g.grow(2001, 56)) // QEMU has it by its extent now
	wantFault(t, g.grow(2000, 128), &types.InvalidDeviceOperation{})
	wantFault(t, g.grow(2002, 48), &types.InvalidDeviceSpec{})
	wantFault(t, c.extend("[datastore1] hot.vmdk", 128<<10), &types.FileLocked{})
	if d := object.VirtualDeviceList(c.props(g.vm).Config.Hardware.Device).FindByKey(2002).(*types.VirtualDisk); d.CapacityInBytes != 64<<20 {
		t.Errorf("the grown disk is told to have %d bytes", d.CapacityInBytes)
	}
	g.want("", "rescan sdb")
	g.want("", "rescan sdc")
	g.want("sda=131072 sdb=114688 sdc=131072", "disks")
	g.want("", "writelast sdb end")
	g.want("", "writelast sdc end")
	g.want("hot", "read sdc")

	devs = object.VirtualDeviceList(c.props(g.vm).Config.Hardware.Device)
	ok(t, g.vm.RemoveDevice(ctx, true, devs.FindByKey(2002)))
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
	for file, size := range map[string]int64{"hot.vmdk": 64 << 20, "half.vmdk": 56 << 20} {
		if s := qemuIO(t, c.path(file), fmt.Sprintf("read -v %d 512", size-512)); !strings.Contains(s, "end") {
			t.Errorf("the end of %s:\n%s", file, s)
		}
		if s := qemuImg(t, "info", c.path(file)); !strings.Contains(s, fmt.Sprintf("(%d bytes)", size)) {
			t.Errorf("%s", s)
		}
	}
	if b, err := os.ReadFile(c.path("g/console.log")); err != nil || !bytes.Contains(b, []byte("guest: up")) {
		t.Errorf("console.log: %v\n%s", err, b)
	}
	if n := qemus(l.Dir()); n != 0 {
		t.Errorf("%d QEMUs left", n)
	}
}

// grow makes a disk of the VM larger.
func (g *guest) grow(key int32, mib int64) error {
	g.t.Helper()
	d := object.VirtualDeviceList(g.props(g.vm).Config.Hardware.Device).FindByKey(key).(*types.VirtualDisk)
	d.CapacityInBytes, d.CapacityInKB = mib<<20, mib<<10
	tk, err := g.vm.Reconfigure(g.t.Context(), types.VirtualMachineConfigSpec{DeviceChange: []types.BaseVirtualDeviceConfigSpec{
		&types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationEdit, Device: d},
	}})
	return done(g.t, tk, err)
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

// TestBootByBIOS boots the CD as vSphere does.
func TestBootByBIOS(t *testing.T) {
	l := start(t, lab.Options{BootCD: true})
	c := login(t, l)
	c.bootISO()
	g := c.boot(bootSpec("g", disk("", 32<<20, "")))
	g.want("sda=65536", "disks")
	tk, err := g.vm.PowerOff(t.Context())
	ok(t, done(t, tk, err))
	if n := qemus(l.Dir()); n != 0 {
		t.Errorf("%d QEMUs left", n)
	}
}

// TestReset: a reset and a reboot by the guest start the guest anew within a
// powered-on VM.
func TestReset(t *testing.T) {
	l := start(t, lab.Options{})
	c := login(t, l)
	c.bootISO()
	s := bootSpec("g")
	s.ExtraConfig = []types.BaseOptionValue{&types.OptionValue{Key: "guestinfo.boot", Value: "0"}}
	g := c.boot(s)
	wantFault(t, g.vm.ShutdownGuest(t.Context()), &types.ToolsUnavailable{})
	g.want("", "call tools.set.version 12345")
	if r := c.props(g.vm).Guest; r.ToolsRunningStatus != "guestToolsRunning" || r.ToolsVersion != "12345" {
		t.Errorf("tools %+v", r)
	}
	ok(t, g.vm.ShutdownGuest(t.Context())) // the test guest does not heed the button
	again := func(how func()) {
		t.Helper()
		g.want("", "set guestinfo.ready no")
		how()
		ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
		defer cancel()
		ok(t, property.Wait(ctx, property.DefaultCollector(c.Client.Client), g.vm.Reference(), []string{"config.extraConfig"}, func([]types.PropertyChange) bool {
			return c.guestinfo(g.vm)["guestinfo.ready"] == "yes"
		}))
		if p := c.props(g.vm); p.Runtime.PowerState != "poweredOn" || p.Guest.ToolsRunningStatus != "guestToolsNotRunning" {
			t.Errorf("%s, tools %s", p.Runtime.PowerState, p.Guest.ToolsRunningStatus)
		}
		g.n = 0 // the guest reads its orders from the first again
	}
	again(func() {
		g.clear()
		tk, err := g.vm.Reset(t.Context())
		ok(t, done(t, tk, err))
	})
	g.want("0", "get guestinfo.boot")
	again(func() {
		// The order itself must be gone when the guest comes back.
		n := g.n + 1
		g.order("rebootlater")
		g.await(fmt.Sprintf("guestinfo.out.%d", n))
		g.clear()
	})
	if n := qemus(l.Dir()); n != 1 {
		t.Errorf("%d QEMUs, want 1", n)
	}
}
