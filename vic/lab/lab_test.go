package lab_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vicsdk/vic-go/vic/lab"
)

func TestLogin(t *testing.T) {
	l := start(t, lab.Options{NoQEMU: true, User: "alice", Password: "secret"})
	e := l.Endpoint()
	ctx := t.Context()
	for _, c := range []struct{ user, password string }{{"alice", "wrong"}, {"bob", "secret"}, {"alice", ""}, {"", ""}} {
		sc := soap.NewClient(e.URL, true)
		vc := must(newVim(ctx, sc))(t)
		err := newSessions(vc).Login(ctx, url.UserPassword(c.user, c.password))
		wantFault(t, err, &types.InvalidLogin{})
	}
	vc := must(newVim(ctx, soap.NewClient(e.URL, true)))(t)
	_, err := find.NewFinder(vc).DefaultDatacenter(ctx)
	wantFault(t, err, &types.NotAuthenticated{})
	c := login(t, l)
	if n := l.Counters().Logins; n != 1 {
		t.Errorf("%d logins counted, want 1", n)
	}
	_, err = c.f.DefaultDatacenter(ctx)
	ok(t, err)
	// The thumbprints are those of the certificate that the server shows.
	tp := soap.NewClient(e.URL, false)
	tp.SetThumbprint(e.URL.Host, e.SHA256)
	if _, err := newVim(ctx, tp); err != nil {
		t.Errorf("SHA-256 thumbprint: %v", err)
	}
	bad := soap.NewClient(e.URL, false)
	if _, err := newVim(ctx, bad); err == nil {
		t.Error("a client that does not know the CA got through")
	}
}

func TestInventory(t *testing.T) {
	l := start(t, lab.Options{NoQEMU: true, Hosts: 3, Datastores: []string{"datastore1", "ssd"}, Networks: []lab.Network{{Name: "bridge"}, {Name: "public", Isolated: true}}})
	c := login(t, l)
	ctx := t.Context()
	var got []string
	for _, p := range []string{"/*", "/dc1/host/*", "/dc1/host/*/*", "/dc1/datastore/*", "/dc1/network/*", "/dc1/vm/*"} {
		es, err := c.f.ManagedObjectListChildren(ctx, p)
		if err != nil && !errors.As(err, new(*find.NotFoundError)) {
			t.Fatal(p, err)
		}
		_ = es
		l, err := c.f.ManagedObjectList(ctx, p)
		ok(t, err)
		for _, e := range l {
			got = append(got, e.Path)
		}
	}
	want := []string{"/dc1", "/dc1/host/cluster1", "/dc1/host/cluster1/host1", "/dc1/host/cluster1/host2", "/dc1/host/cluster1/host3", "/dc1/host/cluster1/Resources",
		"/dc1/host/cluster1/bridge", "/dc1/host/cluster1/public", // a cluster lists its networks
		"/dc1/datastore/datastore1", "/dc1/datastore/ssd", "/dc1/network/bridge", "/dc1/network/public"}
	less := func(a, b string) bool { return a < b }
	if d := cmp.Diff(want, got, sortStrings(less)); d != "" {
		t.Error(d)
	}
	var ds mo.Datastore
	ok(t, c.ds.Properties(ctx, c.ds.Reference(), []string{"summary", "capability", "host"}, &ds))
	if ds.Capability.VmfsSparseSupported == nil || !*ds.Capability.VmfsSparseSupported {
		t.Error("vmfsSparseSupported is not true")
	}
	if s := ds.Summary; s.FreeSpace <= 0 || s.FreeSpace > s.Capacity || s.MultipleHostAccess == nil || !*s.MultipleHostAccess || len(ds.Host) != 3 {
		t.Errorf("summary %+v on %d hosts", s, len(ds.Host))
	}
}

func TestRefusals(t *testing.T) {
	l := start(t, lab.Options{NoQEMU: true})
	c := login(t, l)
	vm := c.mustCreate(spec("a"))
	ctx := t.Context()
	_, err := vm.Clone(ctx, c.vms, "b", types.VirtualMachineCloneSpec{})
	wantFault(t, err, &types.NotSupported{})
	_, err = vm.InstantClone(ctx, types.VirtualMachineInstantCloneSpec{Name: "b"})
	wantFault(t, err, &types.NotSupported{})
	wantFault(t, vm.StandbyGuest(ctx), &types.NotSupported{})

	for name, s := range map[string]types.VirtualMachineConfigSpec{
		"a program on the lab's machine": {ExtraConfig: []types.BaseOptionValue{&types.OptionValue{Key: "RUN.container", Value: "x"}}},
		"a pretended property":           {ExtraConfig: []types.BaseOptionValue{&types.OptionValue{Key: "SET.guest.ipAddress", Value: "x"}}},
	} {
		t.Run(name, func(t *testing.T) {
			tk, err := vm.Reconfigure(ctx, s)
			wantFault(t, done(t, tk, err), &types.InvalidArgument{})
		})
	}
	for name, s := range map[string]types.VirtualMachineConfigSpec{
		"a path out of the datastore": {Name: "x", Files: &types.VirtualMachineFileInfo{VmPathName: "[datastore1] ../x/x.vmx"}},
		"another datastore":           {Name: "x", Files: &types.VirtualMachineFileInfo{VmPathName: "[nowhere]"}},
		"no name":                     {Files: &types.VirtualMachineFileInfo{VmPathName: "[datastore1]"}},
		"no files":                    {Name: "x"},
		"EFI":                         {Name: "x", Firmware: "efi", Files: &types.VirtualMachineFileInfo{VmPathName: "[datastore1]"}},
		"no device":                   {Name: "x", Files: &types.VirtualMachineFileInfo{VmPathName: "[datastore1]"}, DeviceChange: []types.BaseVirtualDeviceConfigSpec{&types.VirtualDeviceConfigSpec{Operation: "add"}}},
		"no such network":             spec("x", nic("nowhere")),
		"a disk without a capacity":   spec("x", disk("", 0, "")),
		"an odd capacity":             spec("x", disk("", 1000, "")),
		"a parent that is not there":  spec("x", disk("", 0, "[datastore1] no.vmdk")),
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := c.create(s); err == nil {
				t.Error("accepted")
			}
			if d := cmp.Diff([]string{"a"}, c.files("")); d != "" {
				t.Error("left behind:", d)
			}
		})
	}
}

func TestVMLifecycle(t *testing.T) {
	l := start(t, lab.Options{NoQEMU: true})
	c := login(t, l)
	ctx := t.Context()
	s := spec("web", disk("", 64<<20, ""), nic("VM Network"), nic("VM Network"))
	s.DeviceChange[3].GetVirtualDeviceConfigSpec().Device.GetVirtualDevice().Key = -201
	s.ExtraConfig = []types.BaseOptionValue{&types.OptionValue{Key: "guestinfo.a", Value: "1"}, &types.OptionValue{Key: "guestinfo.gone", Value: "x"}}
	vm := c.mustCreate(s)
	_, err := c.create(spec("web"))
	wantFault(t, err, &types.DuplicateName{})

	p := c.props(vm)
	if p.Config.Files.VmPathName != "[datastore1] web/web.vmx" {
		t.Errorf("vmPathName %q", p.Config.Files.VmPathName)
	}
	devs := object.VirtualDeviceList(p.Config.Hardware.Device)
	macs := map[string]bool{}
	for _, d := range devs.SelectByType((*types.VirtualVmxnet3)(nil)) {
		n := d.(*types.VirtualVmxnet3)
		macs[n.MacAddress] = true
		if !strings.HasPrefix(n.MacAddress, "00:50:56:") || n.Connectable.Connected {
			t.Errorf("NIC %d: %s connected %v", n.Key, n.MacAddress, n.Connectable.Connected)
		}
	}
	if len(macs) != 2 {
		t.Errorf("MAC addresses %v, want two", macs)
	}
	d := devs.FindByKey(2000).(*types.VirtualDisk)
	if d.CapacityInBytes != 64<<20 || *d.UnitNumber != 0 || d.ControllerKey != 1000 {
		t.Errorf("disk %+v", d)
	}
	qemuImg(t, "info", c.path("web/web.vmdk"))

	tk, err := vm.PowerOn(ctx)
	ok(t, done(t, tk, err))
	tk, err = vm.PowerOn(ctx)
	wantFault(t, done(t, tk, err), &types.InvalidPowerState{})
	tk, err = vm.Destroy(ctx)
	wantFault(t, done(t, tk, err), &types.InvalidPowerState{})
	wantFault(t, vm.Unregister(ctx), &types.InvalidPowerState{})

	// A key that appears while the VM runs is gone afterwards; one that was
	// there keeps its new value.
	tk, err = vm.Reconfigure(ctx, types.VirtualMachineConfigSpec{ExtraConfig: []types.BaseOptionValue{
		&types.OptionValue{Key: "guestinfo.a", Value: "2"}, &types.OptionValue{Key: "guestinfo.new", Value: "3"}, &types.OptionValue{Key: "guestinfo.gone", Value: ""}}})
	ok(t, done(t, tk, err))
	if d := cmp.Diff(map[string]string{"guestinfo.a": "2", "guestinfo.new": "3"}, c.guestinfo(vm)); d != "" {
		t.Error(d)
	}
	if p := c.props(vm); p.Runtime.PowerState != "poweredOn" || p.Summary.Runtime.PowerState != "poweredOn" || p.Runtime.BootTime == nil {
		t.Errorf("runtime %+v", p.Runtime)
	}
	tk, err = vm.PowerOff(ctx)
	ok(t, done(t, tk, err))
	tk, err = vm.PowerOff(ctx)
	wantFault(t, done(t, tk, err), &types.InvalidPowerState{})
	if d := cmp.Diff(map[string]string{"guestinfo.a": "2"}, c.guestinfo(vm)); d != "" {
		t.Error(d)
	}
	tk, err = vm.Rename(ctx, "www")
	ok(t, done(t, tk, err))
	if _, err := c.f.VirtualMachine(ctx, "www"); err != nil {
		t.Error(err)
	}
	tk, err = vm.Destroy(ctx)
	ok(t, done(t, tk, err))
	if f := c.files(""); len(f) != 0 {
		t.Errorf("left on the datastore: %v", f)
	}
	if _, err := c.f.VirtualMachine(ctx, "www"); err == nil {
		t.Error("the VM is still there")
	}
}

func (c *client) guestinfo(vm *object.VirtualMachine) map[string]string {
	out := map[string]string{}
	for _, o := range c.props(vm).Config.ExtraConfig {
		if v := o.GetOptionValue(); strings.HasPrefix(v.Key, "guestinfo.") {
			out[v.Key] = fmt.Sprint(v.Value)
		}
	}
	return out
}

func TestFolderHTTP(t *testing.T) {
	l := start(t, lab.Options{NoQEMU: true})
	c := login(t, l)
	ctx := t.Context()
	fm := object.NewFileManager(c.Client.Client)
	ok(t, fm.MakeDirectory(ctx, "[datastore1] dir", c.dc, false))
	up := soap.DefaultUpload
	ok(t, c.ds.Upload(ctx, strings.NewReader("hello world"), "dir/a b%41.txt", &up))
	b, err := os.ReadFile(c.path("dir/a b%41.txt"))
	if string(b) != "hello world" {
		t.Fatalf("uploaded %q, %v", b, err)
	}
	if err := c.ds.Upload(ctx, strings.NewReader("x"), "missing/a.txt", &up); err == nil {
		t.Error("an upload made its parent directory")
	}
	e := l.Endpoint()
	h := &http.Client{Transport: &http.Transport{TLSClientConfig: c.Client.Client.Client.DefaultTransport().TLSClientConfig}}
	defer h.CloseIdleConnections()
	do := func(method, path string, auth bool, hdr ...string) (int, string) {
		t.Helper()
		u := *e.URL
		r, _ := http.NewRequestWithContext(ctx, method, "https://"+u.Host+"/folder/"+path+"?dcPath=dc1&dsName=datastore1", nil)
		if auth {
			r.SetBasicAuth(e.User, e.Password)
		}
		for i := 0; i < len(hdr); i += 2 {
			r.Header.Set(hdr[i], hdr[i+1])
		}
		res, err := h.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, _ := io.ReadAll(res.Body)
		return res.StatusCode, string(b)
	}
	for _, x := range []struct {
		method, path string
		auth         bool
		hdr          []string
		code         int
		body         string
	}{
		{"GET", "dir/a%20b%2541.txt", true, nil, 200, "hello world"},
		{"HEAD", "dir/a%20b%2541.txt", true, nil, 200, ""},
		{"GET", "dir/a%20b%2541.txt", true, []string{"Range", "bytes=6-8"}, 206, "wor"},
		{"GET", "dir/a%20b%2541.txt", false, nil, 401, ""},
		{"DELETE", "dir/a%20b%2541.txt", false, nil, 401, ""},
		{"GET", "dir/none", true, nil, 404, ""},
		{"GET", "%2e%2e/%2e%2e/lab.json", true, nil, 400, ""},
		{"GET", "dir/..%2f..%2f..%2fserver.pem", true, nil, 400, ""},
		{"GET", ".lab/x", true, nil, 400, ""},
		{"GET", "dir", true, nil, 403, ""},
		{"POST", "dir/x", true, nil, 405, ""},
		{"DELETE", "dir/a%20b%2541.txt", true, nil, 204, ""},
		{"DELETE", "dir/a%20b%2541.txt", true, nil, 404, ""},
	} {
		code, body := do(x.method, x.path, x.auth, x.hdr...)
		if code != x.code || x.body != "" && body != x.body {
			t.Errorf("%s %s: %d %q, want %d %q", x.method, x.path, code, body, x.code, x.body)
		}
	}
	// A session's cookie is good until its logout.
	ok(t, c.ds.Upload(ctx, strings.NewReader("x"), "dir/x", nil))
	cookie := ""
	for _, k := range c.Client.Client.Client.Jar.Cookies(e.URL) {
		cookie = k.Name + "=" + k.Value
	}
	if code, _ := do("GET", "dir/x", false, "Cookie", cookie); code != 200 {
		t.Errorf("with a session's cookie: %d", code)
	}
	ok(t, c.Logout(ctx))
	if code, _ := do("GET", "dir/x", false, "Cookie", cookie); code != 401 {
		t.Errorf("after the logout: %d", code)
	}
	// A symbolic link that somebody put on the datastore leads nowhere.
	ok(t, os.Symlink("/etc", c.path("etc")))
	if code, _ := do("GET", "etc/passwd", true); code == 200 {
		t.Error("a symbolic link led out of the datastore")
	}
}

func TestUploadIsWholeOrNothing(t *testing.T) {
	l := start(t, lab.Options{NoQEMU: true})
	c := login(t, l)
	ctx, cancel := context.WithCancel(t.Context())
	pr, pw := io.Pipe()
	up := soap.DefaultUpload
	up.ContentLength = 1 << 20
	errc := make(chan error, 1)
	go func() { errc <- c.ds.Upload(ctx, pr, "half.bin", &up) }()
	_, err := pw.Write(make([]byte, 512<<10))
	ok(t, err)
	if f := c.files(""); len(f) != 0 {
		t.Errorf("visible while uploading: %v", f)
	}
	cancel()
	pw.CloseWithError(io.ErrUnexpectedEOF)
	if err := <-errc; err == nil {
		t.Fatal("no error")
	}
	if f := c.files(""); len(f) != 0 {
		t.Errorf("visible after a broken upload: %v", f)
	}
}

func TestFiles(t *testing.T) {
	l := start(t, lab.Options{NoQEMU: true, Datastores: []string{"datastore1", "other"}})
	c := login(t, l)
	ctx := t.Context()
	fm := object.NewFileManager(c.Client.Client)
	up := soap.DefaultUpload
	ok(t, fm.MakeDirectory(ctx, "[datastore1] a/b", c.dc, true))
	wantFault(t, fm.MakeDirectory(ctx, "[datastore1] a/b", c.dc, true), &types.FileAlreadyExists{})
	wantFault(t, fm.MakeDirectory(ctx, "[datastore1] x/y", c.dc, false), &types.FileNotFound{})
	ok(t, c.ds.Upload(ctx, strings.NewReader("1"), "a/b/f", &up))
	ok(t, fm.MakeDirectory(ctx, "[datastore1] c", c.dc, true))

	move := func(from, to string, force bool) error {
		tk, err := fm.MoveDatastoreFile(ctx, from, c.dc, to, c.dc, force)
		return done(t, tk, err)
	}
	wantFault(t, move("[datastore1] a", "[datastore1] c", false), &types.FileAlreadyExists{})
	wantFault(t, move("[datastore1] none", "[datastore1] d", false), &types.FileNotFound{})
	wantFault(t, move("[datastore1] a", "[datastore1] ../../d", false), &types.InvalidDatastorePath{})
	wantFault(t, move("[datastore1] a", "[nowhere] d", false), &types.InvalidDatastore{})
	wantFault(t, move("[datastore1] a", "[datastore1] p/d", false), &types.FileNotFound{})
	ok(t, move("[datastore1] a", "[datastore1] c", true))
	ok(t, move("[datastore1] c", "[other] c", false))
	if _, err := os.Stat(filepath.Join(l.Dir(), "datastores/other/c/b/f")); err != nil {
		t.Error(err)
	}
	tk, err := fm.CopyDatastoreFile(ctx, "[other] c", c.dc, "[datastore1] copy", c.dc, false)
	ok(t, done(t, tk, err))
	tk, err = fm.DeleteDatastoreFile(ctx, "[datastore1] copy", c.dc)
	ok(t, done(t, tk, err))
	tk, err = fm.DeleteDatastoreFile(ctx, "[datastore1] copy", c.dc)
	wantFault(t, done(t, tk, err), &types.FileNotFound{})
	tk, err = fm.DeleteDatastoreFile(ctx, "[datastore1] ", c.dc)
	wantFault(t, done(t, tk, err), &types.InvalidArgument{})

	other := must(c.f.Datastore(ctx, "other"))(t)
	b := must(other.Browser(ctx))(t)
	tk, err = b.SearchDatastoreSubFolders(ctx, "[other] c", &types.HostDatastoreBrowserSearchSpec{MatchPattern: []string{"*"}, Details: &types.FileQueryFlags{FileSize: true}})
	ok(t, err)
	i, err := tk.WaitForResult(ctx)
	ok(t, err)
	var got []string
	for _, r := range i.Result.(types.ArrayOfHostDatastoreBrowserSearchResults).HostDatastoreBrowserSearchResults {
		for _, f := range r.File {
			got = append(got, fmt.Sprintf("%s%s %d", r.FolderPath, f.GetFileInfo().Path, min(f.GetFileInfo().FileSize, 1)))
		}
	}
	if d := cmp.Diff([]string{"[other] c/b 1", "[other] c/b/f 1"}, got); d != "" {
		t.Error(d)
	}
	tk, err = b.SearchDatastore(ctx, "[other] none", nil)
	wantFault(t, done(t, tk, err), &types.FileNotFound{})
}

// Labs can be started beside each other in a process.
func TestLabsAtOnce(t *testing.T) {
	for i := range 4 {
		t.Run(strconv.Itoa(i), func(t *testing.T) {
			t.Parallel()
			testPools(t)
		})
	}
}

// testPools starts a lab and makes pools in one another, which stay apart.
func testPools(t *testing.T) {
	ctx := t.Context()
	l := start(t, lab.Options{NoQEMU: true})
	c := login(t, l)
	spec := types.DefaultResourceConfigSpec()
	spec.CpuAllocation.Limit = types.NewInt64(1234)
	outer := must(c.pool.Create(ctx, "outer", spec))(t)
	inner := must(outer.Create(ctx, "inner", types.DefaultResourceConfigSpec()))(t)
	for ref, want := range map[types.ManagedObjectReference][2]any{
		outer.Reference(): {"outer", int64(1234)}, inner.Reference(): {"inner", int64(-1)},
	} {
		var p mo.ResourcePool
		ok(t, property.DefaultCollector(c.Client.Client).RetrieveOne(ctx, ref, []string{"name", "summary", "config"}, &p))
		got := [2]any{p.Summary.GetResourcePoolSummary().Name, *p.Config.CpuAllocation.Limit}
		if diff := cmp.Diff(want, got); diff != "" || p.Name != want[0] {
			t.Errorf("pool %s: %s", p.Name, diff)
		}
	}
	_, err := c.pool.Create(ctx, "outer", spec)
	wantFault(t, err, &types.DuplicateName{})
	spec.MemoryAllocation.Shares = nil
	_, err = c.pool.Create(ctx, "half", spec)
	wantFault(t, err, &types.InvalidArgument{})
	ok(t, l.Close())
}
