package lab_test

import (
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vicsdk/vic-go/vic/lab"
)

// snapshot takes one and returns its name's reference.
func (c *client) snapshot(vm *object.VirtualMachine, name string, memory bool) types.ManagedObjectReference {
	c.t.Helper()
	tk, err := vm.CreateSnapshot(c.t.Context(), name, "about "+name, memory, false)
	ok(c.t, err)
	info, err := tk.WaitForResult(c.t.Context())
	ok(c.t, err)
	return info.Result.(types.ManagedObjectReference)
}

// disksOf are the files of a VM's disks.
func (c *client) disksOf(vm *object.VirtualMachine) (out []string) {
	c.t.Helper()
	for _, d := range object.VirtualDeviceList(c.props(vm).Config.Hardware.Device).SelectByType((*types.VirtualDisk)(nil)) {
		out = append(out, strings.TrimPrefix(d.GetVirtualDevice().Backing.(*types.VirtualDiskFlatVer2BackingInfo).FileName, "[datastore1] "))
	}
	return out
}

func (c *client) vmdks(dir string) (out []string) {
	for _, f := range c.files(dir) {
		if strings.HasSuffix(f, ".vmdk") && !strings.Contains(f, "-delta") && !strings.Contains(f, "-flat") {
			out = append(out, f)
		}
	}
	return out
}

func wantList(t testing.TB, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

// TestSnapshots takes, reverts and removes snapshots of a running VM and looks at
// what its guest sees and what lies on the disks.
func TestSnapshots(t *testing.T) {
	dir := must(filepath.EvalSymlinks(t.TempDir()))(t)
	s := up(t, dir)
	c := login2(t, s)
	c.bootISO()
	ctx := t.Context()
	ok(t, c.createDisk("[datastore1] base.vmdk", 32<<10))
	sp := bootSpec("g", disk("", 0, "[datastore1] base.vmdk"), nic("VM Network"))
	sp.ExtraConfig = []types.BaseOptionValue{&types.OptionValue{Key: "guestinfo.kept", Value: "0"}}
	g := c.boot(sp)
	g.want("", "write sda one")
	g.want("", "set guestinfo.kept 1")
	first := c.snapshot(g.vm, "first", false)
	wantList(t, "disks", c.disksOf(g.vm), "g/g-000001.vmdk")
	g.want("", "write sda two")
	g.want("", "set guestinfo.kept 2")
	second := c.snapshot(g.vm, "second", true)
	wantList(t, "disks", c.disksOf(g.vm), "g/g-000002.vmdk")
	g.want("", "write sda three")
	g.want("", "set guestinfo.kept 3")
	p := c.props(g.vm)
	tree := p.Snapshot.RootSnapshotList
	if len(tree) != 1 || tree[0].Name != "first" || tree[0].State != "poweredOff" || len(tree[0].ChildSnapshotList) != 1 ||
		tree[0].ChildSnapshotList[0].State != "poweredOn" || *p.Snapshot.CurrentSnapshot != second || p.RootSnapshot[0] != first || len(p.LayoutEx.Snapshot) != 2 || len(p.LayoutEx.Snapshot[1].Disk[0].Chain) != 3 {
		t.Errorf("snapshots %+v, layout %+v", p.Snapshot, p.LayoutEx.Snapshot)
	}
	tk, err := g.vm.CreateSnapshot(ctx, "q", "", false, true)
	wantFault(t, done(t, tk, err), &types.FilesystemQuiesceFault{})

	// The lab is killed, and all goes on.
	ok(t, syscall.Kill(s.PID, syscall.SIGKILL))
	waitGone(t, s)
	s = up(t, dir)
	c = login2(t, s)
	g.client, g.vm = c, object.NewVirtualMachine(c.Client.Client, g.vm.Reference())
	g.want("three", "read sda")

	// Back to the second: its memory, its disk, and it runs.
	n := g.n
	tk, err = g.vm.RevertToSnapshot(ctx, "second", false)
	ok(t, done(t, tk, err))
	if p := c.props(g.vm); p.Runtime.PowerState != "poweredOn" {
		t.Fatalf("after a revert to a snapshot with memory it is %s", p.Runtime.PowerState)
	}
	if v := c.guestinfo(g.vm)["guestinfo.kept"]; v != "2" {
		t.Errorf("guestinfo is %q", v)
	}
	g.n = 4 // what the guest had been told when the snapshot was taken
	if n < g.n {
		t.Fatal("the test counts wrong")
	}
	g.want("two", "read sda")
	g.want("", "write sda four")
	wantList(t, "after the revert", c.vmdks("g"), "g-000001.vmdk", "g-000003.vmdk", "g.vmdk")
	if !slices.Contains(c.events(g.vm), "EventEx") {
		t.Errorf("events %v", c.events(g.vm))
	}

	// Removing the first merges the second's disk into it, under a running VM.
	tk, err = g.vm.RemoveSnapshot(ctx, "first", false, nil)
	ok(t, done(t, tk, err))
	wantList(t, "without the first", c.vmdks("g"), "g-000003.vmdk", "g.vmdk")
	g.want("four", "read sda")
	tk, err = g.vm.RevertToCurrentSnapshot(ctx, true)
	ok(t, done(t, tk, err))
	if p := c.props(g.vm); p.Runtime.PowerState != "poweredOff" || p.Snapshot.RootSnapshotList[0].Name != "second" {
		t.Errorf("%s, %+v", p.Runtime.PowerState, p.Snapshot)
	}
	top := c.disksOf(g.vm)[0]
	qemuImg(t, "check", c.path(top))
	if s := qemuIO(t, c.path(top), "read -v 0 16"); !strings.Contains(s, "two") {
		t.Errorf("the second's disk:\n%s", s)
	}
	// A branch: a third beside what follows the second.
	third := c.snapshot(g.vm, "third", true)
	if st := c.props(g.vm).Snapshot.RootSnapshotList[0].ChildSnapshotList[0]; st.State != "poweredOff" || st.Snapshot != third {
		t.Errorf("%+v", st)
	}
	tk, err = g.vm.RevertToSnapshot(ctx, "second", true)
	ok(t, done(t, tk, err))
	c.snapshot(g.vm, "fourth", false)
	tk, err = g.vm.RemoveSnapshot(ctx, "second", false, nil)
	ok(t, done(t, tk, err))
	if n := len(c.props(g.vm).Snapshot.RootSnapshotList); n != 2 {
		t.Errorf("%d roots, want 2", n)
	}
	tk, err = g.vm.RemoveAllSnapshot(ctx, nil)
	ok(t, done(t, tk, err))
	wantList(t, "without snapshots", c.vmdks("g"), "g.vmdk")
	wantList(t, "disks", c.disksOf(g.vm), "g/g.vmdk")
	if p := c.props(g.vm); p.Snapshot != nil || p.RootSnapshot != nil || len(p.LayoutEx.Snapshot) != 0 {
		t.Errorf("snapshots %+v", p.Snapshot)
	}
	if f := must(filepath.Glob(c.path("g/*.vmsn")))(t); len(f) != 0 {
		t.Errorf("left %v", f)
	}
	if s := qemuIO(t, c.path("g/g.vmdk"), "read -v 0 16"); !strings.Contains(s, "two") {
		t.Errorf("after all merges:\n%s", s)
	}
	qemuImg(t, "check", c.path("g/g.vmdk"))
	c.snapshot(g.vm, "last", false)
	tk, err = g.vm.Destroy(ctx)
	ok(t, done(t, tk, err))
	if f := c.files("g"); len(f) != 0 {
		t.Errorf("left %v", f)
	}
}

// TestSnapshotFlat merges into a disk without a parent, and refuses what cannot be.
func TestSnapshotFlat(t *testing.T) {
	l := start(t, lab.Options{NoQEMU: true})
	c := login(t, l)
	ctx := t.Context()
	vm := c.mustCreate(spec("a", disk("", 32<<20, "")))
	qemuIO(t, c.path("a/a.vmdk"), "write -P 0x41 0 64k")
	c.snapshot(vm, "s", false)
	qemuIO(t, c.path("a/a-000001.vmdk"), "write -P 0x42 512 1k")
	tk, err := vm.RemoveAllSnapshot(ctx, nil)
	ok(t, done(t, tk, err))
	for _, x := range []string{"read -P 0x41 0 512", "read -P 0x42 512 1k", "read -P 0x41 1536 512", "read -P 0 64k 64k"} {
		if s := qemuIO(t, c.path("a/a.vmdk"), x); strings.Contains(s, "failed") {
			t.Errorf("%s: %s", x, s)
		}
	}
	wantList(t, "disks", c.vmdks("a"), "a.vmdk")
	tk, err = vm.CreateSnapshot(ctx, "", "", false, false)
	wantFault(t, done(t, tk, err), &types.InvalidName{})
	tk, err = vm.RevertToCurrentSnapshot(ctx, false)
	wantFault(t, done(t, tk, err), &types.NotFound{})
	for range 32 {
		c.snapshot(vm, "deep", false)
	}
	tk, err = vm.CreateSnapshot(ctx, "deeper", "", false, false)
	wantFault(t, done(t, tk, err), &types.TooManySnapshotLevels{})
	tk, err = vm.RemoveAllSnapshot(ctx, nil)
	ok(t, done(t, tk, err))
	wantList(t, "disks", c.vmdks("a"), "a.vmdk")
}
