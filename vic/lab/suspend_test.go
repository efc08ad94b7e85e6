package lab_test

import (
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"
)

// TestSuspend: a suspended VM is off the host and goes on where it was, also when
// another lab process wakes it.
func TestSuspend(t *testing.T) {
	dir := must(filepath.EvalSymlinks(t.TempDir()))(t)
	s := up(t, dir)
	c := login2(t, s)
	c.bootISO()
	g := c.boot(bootSpec("it's g", disk("", 32<<20, ""), nic("VM Network")))
	ctx := t.Context()
	wantFault(t, func() error { tk, err := c.mustCreate(spec("off")).Suspend(ctx); return done(t, tk, err) }(), &types.InvalidPowerState{})
	mac := g.do("nics")
	g.want("", "addr %s 192.168.127.20/24 192.168.127.1", mac)
	g.want("", "listen :7")
	g.want("", "write sda before")
	g.want("", "set guestinfo.fresh x")
	ok(t, g.vm.AddDevice(ctx, nic("VM Network"))) // another shape than at power-on
	hot := disk("[datastore1] hot.vmdk", 32<<20, "")
	hot.ControllerKey = 1000
	ok(t, g.vm.AddDevice(ctx, hot))
	state := func() string {
		t.Helper()
		f := must(filepath.Glob(c.path("it's g/*.vmss")))(t)
		if len(f) > 1 {
			t.Fatal(f)
		}
		return strings.Join(f, "")
	}
	suspend := func() {
		t.Helper()
		tk, err := g.vm.Suspend(ctx)
		ok(t, done(t, tk, err))
		p := c.props(g.vm)
		if p.Runtime.PowerState != "suspended" || p.Summary.Runtime.PowerState != "suspended" || p.Runtime.SuspendTime == nil || p.Guest.ToolsRunningStatus != "guestToolsNotRunning" {
			t.Errorf("runtime %+v, guest %+v", p.Runtime, p.Guest)
		}
		if n := qemus(dir); n != 0 || state() == "" {
			t.Errorf("%d QEMUs of a suspended VM, state %q", n, state())
		}
	}
	resume := func() {
		t.Helper()
		tk, err := g.vm.PowerOn(ctx)
		ok(t, done(t, tk, err))
		if p := c.props(g.vm); p.Runtime.PowerState != "poweredOn" || state() != "" {
			t.Errorf("%s, state %q", p.Runtime.PowerState, state())
		}
		g.want("x", "get guestinfo.fresh")
		g.want("before", "read sda")
		if !strings.Contains(g.do("disks"), "sdb=65536") {
			g.do("scan")
			g.want("sda=65536 sdb=65536", "disks")
		}
	}
	suspend()
	qemuImg(t, "check", c.path("it's g/it's g.vmdk"))
	tk, err := g.vm.Reset(ctx)
	wantFault(t, done(t, tk, err), &types.InvalidPowerState{})
	tk, err = g.vm.Destroy(ctx)
	wantFault(t, done(t, tk, err), &types.InvalidPowerState{})
	wantFault(t, g.vm.AddDevice(ctx, nic("VM Network")), &types.InvalidPowerState{})
	resume()
	suspend()
	again := func() {
		ok(t, syscall.Kill(s.PID, syscall.SIGKILL))
		waitGone(t, s)
		s = up(t, dir)
		c = login2(t, s)
		g.client, g.vm = c, object.NewVirtualMachine(c.Client.Client, g.vm.Reference())
	}
	again()
	if p := c.props(g.vm); p.Runtime.PowerState != "suspended" {
		t.Fatalf("after a restart it is %s", p.Runtime.PowerState)
	}
	resume()
	cfg := must(s.Config())(t)
	k, err := cfg.DialGuest(ctx, "tcp", "192.168.127.20:7")
	ok(t, err)
	if a := talk(t, k, "awake"); a != "awake" {
		t.Errorf("echo %q", a)
	}
	again() // a VM that was resumed can be taken over, too
	g.want("before", "read sda")
	suspend()
	tk, err = g.vm.PowerOff(ctx)
	ok(t, done(t, tk, err))
	if p := c.props(g.vm); p.Runtime.PowerState != "poweredOff" || state() != "" || len(c.guestinfo(g.vm)) != 0 {
		t.Errorf("%s, state %q, guestinfo %v", p.Runtime.PowerState, state(), c.guestinfo(g.vm))
	}
	for _, e := range []string{"VmSuspendingEvent", "VmSuspendedEvent", "VmPoweredOffEvent"} {
		if !has(c.events(g.vm), e) {
			t.Errorf("no %s in %v", e, c.events(g.vm))
		}
	}
	tk, err = g.vm.Destroy(ctx)
	ok(t, done(t, tk, err))
}
