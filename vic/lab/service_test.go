package lab_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vmware/govmomi/event"
	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/lab"
)

// serveEnv makes the test binary serve a lab instead of running tests.
const serveEnv = "VIC_TEST_SERVE_LAB"

func serveInstead() {
	dir := os.Getenv(serveEnv)
	if dir == "" {
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := lab.Serve(ctx, lab.Options{Dir: dir, NoQEMU: os.Getenv("NOQEMU") != ""}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func up(t *testing.T, dir string, env ...string) lab.State {
	t.Helper()
	exe := must(os.Executable())(t)
	s, err := lab.Up(t.Context(), lab.UpOptions{Dir: dir, Argv: []string{exe}, Env: append(append(os.Environ(), serveEnv+"="+dir), env...)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = lab.Down(context.Background(), dir) })
	return s
}

func TestBackground(t *testing.T) {
	dir := t.TempDir()
	if _, err := lab.Status(dir); !errors.Is(err, lab.ErrNotRunning) {
		t.Fatalf("status of nothing: %v", err)
	}
	ok(t, lab.Down(t.Context(), dir))
	s := up(t, dir, "NOQEMU=1")
	if again := up(t, dir, "NOQEMU=1"); !reflect.DeepEqual(again, s) {
		t.Errorf("a second Up started another lab: %+v, %+v", s, again)
	}
	if st, err := os.Stat(filepath.Join(dir, "lab.json")); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("lab.json: %v %v", st, err)
	}
	_, err := lab.Start(t.Context(), lab.Options{Dir: dir, NoQEMU: true})
	if err == nil || !strings.Contains(err.Error(), "another lab") {
		t.Errorf("a second lab on the directory: %v", err)
	}
	cfg := must(s.Config())(t)
	if cfg.URL != s.URL || cfg.User != s.User {
		t.Errorf("config %+v", cfg)
	}
	vc := login2(t, s)
	_ = vc

	// The guest proxy: wrong password, no such guest, nothing but guests.
	u := must(url.Parse(s.GuestProxy))(t)
	for name, c := range map[string]struct {
		user *url.Userinfo
		addr string
		want error
	}{
		"wrong password": {url.UserPassword(s.User, "x"), "192.168.127.9:22", vic.ErrDenied},
		"no login":       {nil, "192.168.127.9:22", vic.ErrDenied},
		"this machine":   {url.UserPassword(s.User, s.Password), "127.0.0.1:22", vic.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			p := *u
			p.User = c.user
			dial := must(vic.ProxyDialer(&p))(t)
			if k, err := dial(t.Context(), "tcp", c.addr); !errors.Is(err, c.want) {
				t.Errorf("connected %v, error %v, want %v", k != nil, err, c.want)
			}
		})
	}

	ok(t, lab.Down(t.Context(), dir))
	if _, err := lab.Status(dir); !errors.Is(err, lab.ErrNotRunning) {
		t.Errorf("status after Down: %v", err)
	}
	s2 := up(t, dir, "NOQEMU=1")
	if s2.Password != s.Password || s2.Thumbprint != s.Thumbprint {
		t.Error("login or certificate changed with a restart")
	}
}

// login2 logs in as vic.Config says.
func login2(t testing.TB, s lab.State) *client {
	t.Helper()
	return loginTo(t, lab.Endpoint{URL: must(url.Parse(s.URL))(t), User: s.User, Password: s.Password, CA: []byte(s.CA)}, s.Dir)
}

// TestKill kills a lab that runs VMs and sees that the next one on its directory
// takes them over: they have run on, and the lab has them in hand again.
func TestKill(t *testing.T) {
	dir := must(filepath.EvalSymlinks(t.TempDir()))(t)
	s := up(t, dir)
	c := login2(t, s)
	c.bootISO()
	sp := bootSpec("g", disk("", 32<<20, ""), nic("VM Network"))
	sp.ExtraConfig = []types.BaseOptionValue{&types.OptionValue{Key: "guestinfo.kept", Value: "old"}}
	g := c.boot(sp)
	g.want("", "write sda kept")
	g.want("", "set guestinfo.kept new")
	mac := g.do("nics")
	g.want("", "addr %s 192.168.127.20/24 192.168.127.1", mac)
	g.want("", "listen :7")
	ok(t, g.vm.AddDevice(t.Context(), nic("VM Network"))) // one that QEMU made its socket for
	hot := disk("[datastore1] hot.vmdk", 32<<20, "")
	hot.ControllerKey = 1000
	ok(t, g.vm.AddDevice(t.Context(), hot))
	second := c.boot(bootSpec("second"))
	cfg := must(s.Config())(t)
	k, err := cfg.DialGuest(t.Context(), "tcp", "192.168.127.20:7")
	ok(t, err)
	if a := talk(t, k, "by proxy"); a != "by proxy" {
		t.Errorf("echo %q", a)
	}
	before := c.props(g.vm)
	ok(t, syscall.Kill(s.PID, syscall.SIGKILL))
	waitGone(t, s)
	if n := qemus(dir); n != 2 {
		t.Fatalf("%d QEMUs after the lab was killed, want 2", n)
	}
	killQEMU(t, dir, second.vm.Reference().Value)

	s = up(t, dir)
	c = login2(t, s)
	if n := qemus(dir); n != 1 {
		t.Errorf("%d QEMUs after the next start, want 1", n)
	}
	g.client, second.client = c, c
	g.vm, second.vm = object.NewVirtualMachine(c.Client.Client, g.vm.Reference()), object.NewVirtualMachine(c.Client.Client, second.vm.Reference())
	after := c.props(g.vm)
	for _, p := range []*mo.VirtualMachine{&before, &after} {
		p.RecentTask = nil
	}
	if d := cmp.Diff(before, after, cmpopts.EquateEmpty()); d != "" {
		t.Errorf("the VM after the restart (-before +after):\n%s", d)
	}
	if p := c.props(second.vm); p.Runtime.PowerState != "poweredOff" || !has(c.events(second.vm), "VmPoweredOffEvent") {
		t.Errorf("a VM that ended while no lab was up is %s, events %v", p.Runtime.PowerState, c.events(second.vm))
	}
	g.want("new", "get guestinfo.kept")
	g.want("kept", "read sda")
	cfg = must(s.Config())(t)
	if k, err = cfg.DialGuest(t.Context(), "tcp", "192.168.127.20:7"); err != nil {
		t.Error(err)
	} else if a := talk(t, k, "again"); a != "again" {
		t.Errorf("echo %q", a)
	}
	// Everything can be done with it.
	ok(t, g.grow(2000, 64))
	g.want("", "rescan sda")
	if a := g.do("disks"); !strings.Contains(a, "sda=131072") {
		t.Errorf("a disk grown by a lab that took the VM over: %s", a)
	}
	devs := object.VirtualDeviceList(after.Config.Hardware.Device)
	ok(t, g.vm.RemoveDevice(t.Context(), true, devs.FindByKey(2001)))
	ok(t, g.vm.RemoveDevice(t.Context(), true, devs.FindByKey(4001)))
	g.order("poweroff")
	g.awaitOff()
	if gi := c.guestinfo(g.vm); len(gi) != 1 || gi["guestinfo.kept"] != "new" {
		t.Errorf("guestinfo after power-off: %v", gi)
	}
	if n := qemus(dir); n != 0 {
		t.Errorf("%d QEMUs left", n)
	}
	ok(t, lab.Down(t.Context(), dir))
	// A name is not given twice by labs, and a new VM is not an old one.
	l := start(t, lab.Options{Dir: dir})
	c = login(t, l)
	vm := c.mustCreate(spec("third"))
	if r := vm.Reference(); r == g.vm.Reference() || r == second.vm.Reference() {
		t.Errorf("%s is another VM's reference", r)
	}
	_, err = c.create(spec("g"))
	wantFault(t, err, &types.DuplicateName{})
	if s := qemuIO(t, c.path("g/g.vmdk"), "read -v 0 16"); !strings.Contains(s, "kept") {
		t.Error(s)
	}
}

// killQEMU ends the QEMU of a VM, and waits for its end.
func killQEMU(t *testing.T, dir, vm string) {
	t.Helper()
	pids := must(filepath.Glob("/proc/[0-9]*/cmdline"))(t)
	for _, f := range pids {
		b, err := os.ReadFile(f)
		if err != nil || !bytes.Contains(b, []byte("\x00-D\x00"+dir+"/run/"+vm+".qemu.log")) {
			continue
		}
		pid := must(strconv.Atoi(strings.Split(f, "/")[2]))(t)
		ok(t, syscall.Kill(pid, syscall.SIGKILL))
		for range 1000 {
			if b, err := os.ReadFile(f); err != nil || len(b) == 0 {
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	t.Fatalf("no QEMU of %s ended", vm)
}

func has(list []string, s string) bool { return slices.Contains(list, s) }

// events are the types of a VM's events, oldest first.
func (c *client) events(vm *object.VirtualMachine) []string {
	c.t.Helper()
	list, err := event.NewManager(c.Client.Client).QueryEvents(c.t.Context(), types.EventFilterSpec{
		Entity:   &types.EventFilterSpecByEntity{Entity: vm.Reference(), Recursion: types.EventFilterSpecRecursionOptionSelf},
		MaxCount: 1000,
	})
	ok(c.t, err)
	var out []string
	for _, e := range list {
		out = append(out, reflect.TypeOf(e).Elem().Name())
	}
	slices.Reverse(out)
	return out
}

func waitGone(t *testing.T, s lab.State) {
	t.Helper()
	for range 1000 {
		if _, err := lab.Status(s.Dir); errors.Is(err, lab.ErrNotRunning) {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatal("the lab does not end")
}

// TestGovc uses VMware's own command line as a witness.
func TestGovc(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "govc")
	if b, err := exec.Command("go", "build", "-buildvcs=false", "-o", bin, "../../internal/govc").CombinedOutput(); err != nil {
		t.Fatalf("build govc: %v\n%s", err, b)
	}
	l := start(t, lab.Options{})
	c := login(t, l)
	c.bootISO()
	e := l.Endpoint()
	home := t.TempDir()
	run := func(args ...string) (string, error) {
		cmd := exec.Command(bin, args...)
		cmd.Env = append(os.Environ(), "HOME="+home, "GOVC_URL="+e.URL.String(), "GOVC_USERNAME="+e.User, "GOVC_PASSWORD="+e.Password,
			"GOVC_TLS_CA_CERTS="+writeTemp(t, "ca.pem", e.CA), "GOVC_DATASTORE=datastore1", "GOVMOMI_HOME="+home)
		b, err := cmd.CombinedOutput()
		return string(b), err
	}
	govc := func(args ...string) string {
		t.Helper()
		out, err := run(args...)
		if err != nil {
			t.Fatalf("govc %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return out
	}
	contains := func(out string, want ...string) {
		t.Helper()
		for _, w := range want {
			if !strings.Contains(out, w) {
				t.Errorf("no %q in\n%s", w, out)
			}
		}
	}
	contains(govc("about"), "VMware vCenter Server")
	contains(govc("ls", "/dc1/host/cluster1"), "host1", "Resources")
	govc("folder.create", "/dc1/vm/demo")
	govc("pool.create", "/dc1/host/cluster1/Resources/demo")
	govc("vm.create", "-on=false", "-folder", "/dc1/vm/demo", "-pool", "/dc1/host/cluster1/Resources/demo", "-g", "otherLinux64Guest",
		"-c", "2", "-m", "128", "-disk.controller", "pvscsi", "-disk", "64M", "-net", "VM Network", "-net.adapter", "vmxnet3", "-iso", "boot.iso", "gv")
	contains(govc("device.ls", "-vm", "gv"), "pvscsi-1000", "disk-1000-0", "ethernet-0", "cdrom-")
	contains(govc("datastore.ls", "gv"), "gv.vmdk", "gv.vmx")
	govc("vm.power", "-on", "gv")
	contains(govc("vm.info", "gv"), "poweredOn", "2 vCPU")
	if n := qemus(l.Dir()); n != 1 {
		t.Errorf("%d QEMUs, want 1", n)
	}
	govc("snapshot.create", "-vm", "gv", "first")
	govc("snapshot.create", "-vm", "gv", "-m=false", "second")
	contains(govc("snapshot.tree", "-vm", "gv"), "first", "second", ".")
	if out, err := run("snapshot.create", "-vm", "gv", "-q", "s"); err == nil || !strings.Contains(out, "quiesce") {
		t.Errorf("a quiesced snapshot: %v %s", err, out)
	}
	contains(govc("device.info", "-vm", "gv", "disk-1000-0"), "gv-000002.vmdk")
	govc("vm.power", "-suspend", "gv")
	contains(govc("vm.info", "gv"), "suspended")
	govc("vm.power", "-on", "gv")
	govc("snapshot.revert", "-vm", "gv", "first")
	contains(govc("vm.info", "gv"), "poweredOn")
	govc("snapshot.remove", "-vm", "gv", "*")
	contains(govc("device.info", "-vm", "gv", "disk-1000-0"), "gv.vmdk")
	if n := qemus(l.Dir()); n != 1 {
		t.Errorf("%d QEMUs, want 1", n)
	}
	govc("vm.power", "-off", "gv")
	if n := qemus(l.Dir()); n != 0 {
		t.Errorf("%d QEMUs after power-off", n)
	}
	contains(govc("events", "/dc1/vm/demo/gv"), "powered on", "powered off")
	govc("vm.destroy", "gv")
	if out := govc("datastore.ls"); strings.Contains(out, "gv") {
		t.Errorf("left: %s", out)
	}
	govc("object.destroy", "/dc1/vm/demo")
	govc("datastore.mkdir", "d")
	f := writeTemp(t, "f", []byte("content"))
	govc("datastore.upload", f, "d/f")
	govc("datastore.mv", "d/f", "d/g")
	contains(govc("datastore.tail", "d/g"), "content")
	govc("datastore.rm", "d")
}

// TestOneTaskPerVM: operations on one VM do not mix.
func TestOneTaskPerVM(t *testing.T) {
	l := start(t, lab.Options{NoQEMU: true})
	c := login(t, l)
	ctx := t.Context()
	vm := c.mustCreate(spec("a"))
	var wg sync.WaitGroup
	var mu sync.Mutex
	bad := []error{}
	for i := range 16 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for j := range 10 {
				tk, err := vm.Reconfigure(ctx, types.VirtualMachineConfigSpec{ExtraConfig: []types.BaseOptionValue{&types.OptionValue{Key: fmt.Sprintf("k%d.%d", i, j), Value: "v"}}})
				if err == nil {
					err = tk.Wait(ctx)
				}
				if err != nil && !fault.Is(err, &types.TaskInProgress{}) {
					mu.Lock()
					bad = append(bad, err)
					mu.Unlock()
				}
			}
		}()
	}
	wg.Wait()
	if len(bad) > 0 {
		t.Errorf("%d errors, the first: %v", len(bad), bad[0])
	}
}

// TestConcurrentCreations: one name is made once, and many VMs at once are fine.
func TestConcurrentCreations(t *testing.T) {
	l := start(t, lab.Options{NoQEMU: true})
	c := login(t, l)
	// Whoever looks meanwhile sees whole VMs.
	looking := make(chan struct{})
	stop, over := context.WithCancel(t.Context())
	reader := login(t, l)
	go func() {
		defer close(looking)
		for stop.Err() == nil {
			vms, err := reader.f.VirtualMachineList(t.Context(), "*")
			if err != nil && !errors.As(err, new(*find.NotFoundError)) {
				t.Error(err)
				return
			}
			for _, vm := range vms {
				if p := reader.props(vm); p.Config == nil || p.Config.Uuid == "" {
					t.Errorf("%s is seen in the making", vm.InventoryPath)
				}
			}
		}
	}()
	var wg sync.WaitGroup
	var mu sync.Mutex
	made, dup := 0, 0
	for i := range 40 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			_, err := c.create(spec("n"+strconv.Itoa(i/2), disk("", 1<<20, ""), nic("VM Network")))
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				made++
			case fault.Is(err, &types.DuplicateName{}):
				dup++
			default:
				t.Error(err)
			}
		}()
	}
	wg.Wait()
	over()
	<-looking
	if made != 20 || dup != 20 {
		t.Errorf("%d made and %d duplicates of 20 names asked for twice", made, dup)
	}
	if n := len(c.files("")); n != 20 {
		t.Errorf("%d directories", n)
	}
	macs := map[string]bool{}
	for _, vm := range must(c.f.VirtualMachineList(t.Context(), "*"))(t) {
		devs := object.VirtualDeviceList(c.props(vm).Config.Hardware.Device)
		macs[devs.FindByKey(4000).(*types.VirtualVmxnet3).MacAddress] = true
	}
	if len(macs) != 20 {
		t.Errorf("%d MAC addresses for 20 VMs", len(macs))
	}
	// A folder takes its VMs along.
	f := must(c.vms.CreateFolder(t.Context(), "f"))(t)
	var refs []types.ManagedObjectReference
	for _, vm := range must(c.f.VirtualMachineList(t.Context(), "*"))(t) {
		refs = append(refs, vm.Reference())
	}
	tk, err := f.MoveInto(t.Context(), refs)
	ok(t, done(t, tk, err))
	tk, err = f.Destroy(t.Context())
	ok(t, done(t, tk, err))
	if n := len(c.files("")); n != 0 {
		t.Errorf("%d directories left after the folder", n)
	}
}

func TestCounters(t *testing.T) {
	l := start(t, lab.Options{NoQEMU: true})
	c := login(t, l)
	l.ResetCounters()
	vm := c.mustCreate(spec("a"))
	tk, err := vm.PowerOn(t.Context())
	ok(t, done(t, tk, err))
	ok(t, c.ds.Upload(t.Context(), strings.NewReader("x"), "x", nil))
	got := l.Counters()
	if got.Tasks["createVm"] != 1 || got.Tasks["powerOn"] != 1 || got.Requests["PowerOnVM_Task"] != 1 || got.Files["PUT"] != 1 || got.LongPolls == 0 || got.LongPolls != got.Requests["WaitForUpdatesEx"] || got.Total() < 5 {
		t.Errorf("%+v", got)
	}
	if l.ResetCounters(); l.Counters().Total() != 0 {
		t.Error("not reset")
	}
}

// TestTasksAreForgotten: the inventory does not grow with every task.
func TestTasksAreForgotten(t *testing.T) {
	l := start(t, lab.Options{NoQEMU: true})
	c := login(t, l)
	ctx := t.Context()
	vdm := object.NewVirtualDiskManager(c.Client.Client)
	var first, last *object.Task
	for i := range 1100 {
		tk, err := vdm.DeleteVirtualDisk(ctx, "[datastore1] none.vmdk", c.dc)
		ok(t, err)
		if i == 0 {
			first = tk
		}
		last = tk
	}
	wantFault(t, last.Wait(ctx), &types.FileNotFound{})
	var m mo.Task
	if err := first.Properties(ctx, first.Reference(), []string{"info"}, &m); !fault.Is(err, &types.ManagedObjectNotFound{}) {
		t.Errorf("the first of 1,100 tasks is still there: %v", err)
	}
	_, err := methods.CancelTask(ctx, c.Client.Client, &types.CancelTask{This: last.Reference()})
	wantFault(t, err, &types.InvalidState{})
}

// TestCloseEndsWaits: nothing that a client waits for holds up the end, and a
// wait whose client has gone ends.
func TestCloseEndsWaits(t *testing.T) {
	l, err := lab.Start(t.Context(), lab.Options{Dir: t.TempDir(), NoQEMU: true})
	ok(t, err)
	c := login(t, l)
	vm := c.mustCreate(spec("a"))
	wait := func(ctx context.Context) error {
		return property.Wait(ctx, property.DefaultCollector(c.Client.Client), vm.Reference(), []string{"name"}, func([]types.PropertyChange) bool { return false })
	}
	gone, cancel := context.WithCancel(t.Context())
	errc := make(chan error, 2)
	go func() { errc <- wait(gone) }()
	go func() { errc <- wait(context.Background()) }()
	for l.Counters().LongPolls < 3 {
		time.Sleep(time.Millisecond)
	}
	cancel()
	<-errc
	closed := make(chan struct{})
	go func() { _ = l.Close(); close(closed) }()
	select {
	case <-closed:
	case <-time.After(20 * time.Second):
		t.Fatal("Close hangs")
	}
	if err := <-errc; err == nil {
		t.Error("a wait came to a good end")
	}
	ok(t, l.Close())
}

// TestQEMUFails: the fault has QEMU's own words, and nothing stays behind.
func TestQEMUFails(t *testing.T) {
	dir := t.TempDir()
	fake := filepath.Join(dir, "qemu")
	ok(t, os.WriteFile(fake, []byte("#!/bin/sh\necho 'the machine is on fire' >&2\nexit 1\n"), 0o755))
	l := start(t, lab.Options{QEMU: fake, Dir: filepath.Join(dir, "lab")})
	c := login(t, l)
	vm := c.mustCreate(spec("a", disk("", 1<<20, ""), nic("VM Network")))
	for range 2 {
		tk, err := vm.PowerOn(t.Context())
		err = done(t, tk, err)
		wantFault(t, err, &types.GenericVmConfigFault{})
		if !strings.Contains(err.Error(), "on fire") {
			t.Errorf("error %v", err)
		}
	}
	if s := c.props(vm).Runtime.PowerState; s != "poweredOff" {
		t.Errorf("power state %s", s)
	}
	tk, err := vm.Destroy(t.Context())
	ok(t, done(t, tk, err))
}

func TestOptions(t *testing.T) {
	for name, o := range map[string]lab.Options{
		"Dir":          {NoQEMU: true},
		"Listen":       {Dir: "x", NoQEMU: true, Listen: "0.0.0.0:0"},
		"Hosts":        {Dir: "x", NoQEMU: true, Hosts: 100},
		"Accel":        {Dir: "x", NoQEMU: true, Accel: "magic"},
		"Datastores":   {Dir: "x", NoQEMU: true, Datastores: []string{"../x"}},
		"QEMU":         {Dir: "x", QEMU: "no-such-program"},
		"Networks[1]":  {Dir: "x", NoQEMU: true, Networks: []lab.Network{{Name: "a"}, {Name: "a"}}},
		"Networks[0]":  {Dir: "x", NoQEMU: true, Networks: []lab.Network{{Name: "a/b"}}},
		"Networks[1].": {Dir: "x", NoQEMU: true, Networks: []lab.Network{{Name: "a", Subnet: prefix("10.0.0.0/24")}, {Name: "b", Subnet: prefix("10.0.0.0/23")}}},
	} {
		_, err := lab.Start(t.Context(), o)
		if err == nil || !strings.Contains(err.Error(), "Options."+name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestBigRequest: a request's memory is bounded.
func TestBigRequest(t *testing.T) {
	l := start(t, lab.Options{NoQEMU: true})
	c := login(t, l)
	h := &http.Client{Transport: &http.Transport{TLSClientConfig: c.Client.Client.Client.DefaultTransport().TLSClientConfig}}
	defer h.CloseIdleConnections()
	r, _ := http.NewRequestWithContext(t.Context(), "POST", l.Endpoint().URL.String(), io.LimitReader(zeros{}, 64<<20))
	res, err := h.Do(r)
	if err == nil {
		res.Body.Close()
		if res.StatusCode == 200 {
			t.Error("64 MiB of zeros were answered")
		}
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }
