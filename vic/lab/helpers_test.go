package lab_test

import (
	"context"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vmware/govmomi"
	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/session"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vicsdk/vic-go/vic/lab"
)

func newVim(ctx context.Context, sc *soap.Client) (*vim25.Client, error) {
	return vim25.NewClient(ctx, sc)
}

func newSessions(c *vim25.Client) *session.Manager { return session.NewManager(c) }

func sortStrings(less func(a, b string) bool) cmp.Option { return cmpopts.SortSlices(less) }

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// A client is a login to a lab with what most tests use.
type client struct {
	*govmomi.Client
	t    testing.TB
	lab  *lab.Lab // nil where it is another process
	dir  string
	f    *find.Finder
	ds   *object.Datastore
	pool *object.ResourcePool
	vms  *object.Folder
	dc   *object.Datacenter
}

func start(t testing.TB, o lab.Options) *lab.Lab {
	t.Helper()
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	l, err := lab.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func login(t testing.TB, l *lab.Lab) *client {
	t.Helper()
	c := loginTo(t, l.Endpoint(), l.Dir())
	c.lab = l
	return c
}

func loginTo(t testing.TB, e lab.Endpoint, dir string) *client {
	t.Helper()
	ctx := t.Context()
	sc := soap.NewClient(e.LoginURL(), false)
	if err := sc.SetRootCAs(writeTemp(t, "ca.pem", e.CA)); err != nil {
		t.Fatal(err)
	}
	c, err := govmomiClient(ctx, sc, e)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Logout(context.WithoutCancel(ctx)) })
	x := &client{Client: c, t: t, dir: dir, f: find.NewFinder(c.Client)}
	x.dc = must(x.f.Datacenter(ctx, "dc1"))(t)
	x.f.SetDatacenter(x.dc)
	x.ds = must(x.f.Datastore(ctx, "datastore1"))(t)
	x.pool = must(x.f.ResourcePool(ctx, "/dc1/host/cluster1/Resources"))(t)
	x.vms = must(x.dc.Folders(ctx))(t).VmFolder
	return x
}

func govmomiClient(ctx context.Context, sc *soap.Client, e lab.Endpoint) (*govmomi.Client, error) {
	vc, err := newVim(ctx, sc)
	if err != nil {
		return nil, err
	}
	c := &govmomi.Client{Client: vc, SessionManager: newSessions(vc)}
	return c, c.Login(ctx, url.UserPassword(e.User, e.Password))
}

func must[T any](v T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func writeTemp(t testing.TB, name string, b []byte) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(p, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

// spec is a VM with a pvscsi controller and the given devices.
func spec(name string, devs ...types.BaseVirtualDevice) types.VirtualMachineConfigSpec {
	s := types.VirtualMachineConfigSpec{
		Name: name, NumCPUs: 1, MemoryMB: 128, GuestId: "otherLinux64Guest",
		Files: &types.VirtualMachineFileInfo{VmPathName: "[datastore1]"},
	}
	ctl := new(types.ParaVirtualSCSIController)
	ctl.Key = -100
	for _, d := range append([]types.BaseVirtualDevice{ctl}, devs...) {
		c := &types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationAdd, Device: d}
		if disk, ok := d.(*types.VirtualDisk); ok && disk.CapacityInBytes >= 0 {
			c.FileOperation = types.VirtualDeviceConfigSpecFileOperationCreate
		} else if ok {
			disk.CapacityInBytes = 0
		}
		s.DeviceChange = append(s.DeviceChange, c)
	}
	return s
}

// disk is a new disk, or with bytes -1 an existing one.
func disk(file string, bytes int64, parent string) *types.VirtualDisk {
	b := &types.VirtualDiskFlatVer2BackingInfo{}
	b.FileName = file
	if parent != "" {
		b.Parent = &types.VirtualDiskFlatVer2BackingInfo{}
		b.Parent.FileName = parent
	}
	d := &types.VirtualDisk{CapacityInBytes: bytes}
	d.Key, d.ControllerKey, d.Backing = -1, -100, b
	return d
}

func nic(network string) *types.VirtualVmxnet3 {
	n := new(types.VirtualVmxnet3)
	n.Key = -200
	b := &types.VirtualEthernetCardNetworkBackingInfo{}
	b.DeviceName = network
	n.Backing = b
	return n
}

func (c *client) create(s types.VirtualMachineConfigSpec) (*object.VirtualMachine, error) {
	ctx := c.t.Context()
	t, err := c.vms.CreateVM(ctx, s, c.pool, nil)
	if err != nil {
		return nil, err
	}
	i, err := t.WaitForResult(ctx)
	if err != nil {
		return nil, err
	}
	return object.NewVirtualMachine(c.Client.Client, i.Result.(types.ManagedObjectReference)), nil
}

func (c *client) mustCreate(s types.VirtualMachineConfigSpec) *object.VirtualMachine {
	c.t.Helper()
	return must(c.create(s))(c.t)
}

func (c *client) props(vm *object.VirtualMachine) mo.VirtualMachine {
	c.t.Helper()
	var m mo.VirtualMachine
	if err := vm.Properties(c.t.Context(), vm.Reference(), nil, &m); err != nil {
		c.t.Fatal(err)
	}
	return m
}

// done waits for a task that a call returned.
func done(t testing.TB, task *object.Task, err error) error {
	if err != nil {
		return err
	}
	return task.Wait(t.Context())
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantFault(t testing.TB, err error, want types.BaseMethodFault) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want %T", want)
	}
	if !fault.Is(err, want) {
		t.Fatalf("error %v (%T), want %T", err, err, want)
	}
}

func (c *client) path(rel string) string {
	return filepath.Join(c.dir, "datastores", "datastore1", rel)
}

func (c *client) files(rel string) []string {
	var out []string
	ents, _ := os.ReadDir(c.path(rel))
	for _, e := range ents {
		if e.Name() != ".lab" {
			out = append(out, e.Name())
		}
	}
	return out
}

func qemuImg(t testing.TB, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath("qemu-img"); err != nil {
		unless(t, "qemu-img is not installed")
	}
	b, err := exec.Command("qemu-img", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("qemu-img %v: %v\n%s", args, err, b)
	}
	return string(b)
}

// unless skips for want of a tool, which is a failure where CI runs the tests.
func unless(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(why)
	}
	t.Skip(why)
}
