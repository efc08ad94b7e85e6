package lab_test

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vicsdk/vic-go/vic/lab"
)

func (c *client) createDisk(name string, kb int64) error {
	vdm := object.NewVirtualDiskManager(c.Client.Client)
	tk, err := vdm.CreateVirtualDisk(c.t.Context(), name, c.dc, &types.FileBackedVirtualDiskSpec{
		VirtualDiskSpec: types.VirtualDiskSpec{DiskType: "thin", AdapterType: "lsiLogic"}, CapacityKb: kb})
	return done(c.t, tk, err)
}

func chainOf(d types.BaseVirtualDevice) []string {
	var out []string
	for b := d.GetVirtualDevice().Backing.(*types.VirtualDiskFlatVer2BackingInfo); b != nil; b = b.Parent {
		out = append(out, b.FileName)
	}
	return out
}

func qemuIO(t *testing.T, img string, cmds ...string) string {
	t.Helper()
	args := []string{"-f", "vmdk"}
	for _, c := range cmds {
		args = append(args, "-c", c)
	}
	b, err := exec.Command("qemu-io", append(args, img)...).CombinedOutput()
	if err != nil || strings.Contains(string(b), "failed") || strings.Contains(string(b), "error") {
		t.Fatalf("qemu-io: %v\n%s", err, b)
	}
	return string(b)
}

// TestChildDisks makes a chain through the API and reads it back with QEMU's
// tools.
func TestChildDisks(t *testing.T) {
	l := start(t, lab.Options{NoQEMU: true})
	c := login(t, l)
	ctx := t.Context()
	fm := object.NewFileManager(c.Client.Client)
	ok(t, fm.MakeDirectory(ctx, "[datastore1] images/base", c.dc, true))
	ok(t, c.createDisk("[datastore1] images/base/base.vmdk", 1<<20))
	wantFault(t, c.createDisk("[datastore1] images/base/base.vmdk", 1<<20), &types.FileAlreadyExists{})
	wantFault(t, c.createDisk("[datastore1] none/base.vmdk", 1<<20), &types.FileNotFound{})
	qemuImg(t, "info", c.path("images/base/base.vmdk"))
	qemuIO(t, c.path("images/base/base.vmdk"), "write -P 1 0 128k", "write -P 1 900M 64k")

	vm := c.mustCreate(spec("a", disk("", 0, "[datastore1] images/base/base.vmdk")))
	qemuIO(t, c.path("a/a.vmdk"), "write -P 2 64k 64k", "write -P 2 900M 512")
	free := func() int64 {
		var m mo.Datastore
		ok(t, c.ds.Properties(ctx, c.ds.Reference(), []string{"summary.freeSpace"}, &m))
		return m.Summary.FreeSpace
	}
	if n := free(); n < 1<<20 {
		t.Errorf("%d bytes free", n)
	}
	var st syscall.Statfs_t
	ok(t, syscall.Statfs(c.dir, &st))
	if d := free() - int64(st.Bavail)*st.Bsize; d > 1<<29 || d < -(1<<29) {
		t.Errorf("the free space is %d bytes off", d)
	}
	vm2 := c.mustCreate(spec("b", disk("", 0, "[datastore1] a/a.vmdk")))
	dev := object.VirtualDeviceList(c.props(vm2).Config.Hardware.Device).FindByKey(2000)
	want := []string{"[datastore1] b/b.vmdk", "[datastore1] a/a.vmdk", "[datastore1] images/base/base.vmdk"}
	if d := cmp.Diff(want, chainOf(dev)); d != "" {
		t.Error(d)
	}
	if n := dev.(*types.VirtualDisk).CapacityInBytes; n != 1<<30 {
		t.Errorf("a child's capacity is %d, not its parent's", n)
	}
	info := qemuImg(t, "info", "--backing-chain", c.path("b/b.vmdk"))
	if n := strings.Count("\n"+info, "\nimage: "); n != 3 {
		t.Errorf("QEMU sees %d disks in the chain:\n%s", n, info)
	}
	// Written all over: the grain tables are there, so nothing is lost.
	qemuIO(t, c.path("b/b.vmdk"), "write -P 3 512M 300M", "write -P 3 1023M 1M")
	qemuIO(t, c.path("b/b.vmdk"), "read -P 1 0 64k", "read -P 2 64k 64k", "read -P 2 900M 512", "read -P 3 512M 300M", "read -P 3 1023M 1M", "read -P 0 1000M 1M", "read -P 1 943718912 512")
	qemuImg(t, "check", c.path("b/b.vmdk"))
	if b, err := os.ReadFile(c.path("b/b.vmdk")); err != nil || !strings.Contains(string(b), `parentFileNameHint="../a/a.vmdk"`) {
		t.Errorf("descriptor: %v\n%s", err, b)
	}

	// A parent that changed under its child is noticed.
	qemuIO(t, c.path("a/a.vmdk"), "write -P 9 0 512")
	_, err := c.create(spec("x", disk("[datastore1] b/b.vmdk", -1, "")))
	wantFault(t, err, &types.InvalidDiskFormat{})

	// Destroying takes the parents along, as vSphere has been seen to.
	tk, err := vm.Destroy(ctx)
	ok(t, done(t, tk, err))
	if f := c.files("images/base"); len(f) != 0 {
		t.Errorf("images/base still has %v", f)
	}
	tk, err = vm2.Destroy(ctx)
	ok(t, done(t, tk, err))
	if d := cmp.Diff([]string{"images"}, c.files("")); d != "" {
		t.Error(d)
	}
}

// TestDetachKeeps shows what outlives a VM: what was detached before.
func TestDetachKeeps(t *testing.T) {
	l := start(t, lab.Options{NoQEMU: true})
	c := login(t, l)
	ctx := t.Context()
	ok(t, c.createDisk("[datastore1] volume.vmdk", 64<<10))
	ok(t, c.createDisk("[datastore1] scratch.vmdk", 64<<10))
	vm := c.mustCreate(spec("a", disk("[datastore1] volume.vmdk", -1, ""), func() *types.VirtualDisk { d := disk("[datastore1] scratch.vmdk", -1, ""); d.Key = -2; return d }()))
	_, err := c.create(spec("b", disk("[datastore1] none.vmdk", -1, "")))
	wantFault(t, err, &types.FileNotFound{})
	devs := object.VirtualDeviceList(c.props(vm).Config.Hardware.Device)
	ok(t, vm.RemoveDevice(ctx, true, devs.FindByKey(2000)))
	ok(t, vm.RemoveDevice(ctx, false, devs.FindByKey(2001)))
	if d := cmp.Diff([]string{"a", "volume-flat.vmdk", "volume.vmdk"}, c.files("")); d != "" {
		t.Error(d)
	}
	ok(t, vm.AddDevice(ctx, func() *types.VirtualDisk {
		d := disk("[datastore1] volume.vmdk", -1, "")
		d.ControllerKey = 1000
		d.CapacityInBytes = 0
		return d
	}()))
	if n := len(object.VirtualDeviceList(c.props(vm).Config.Hardware.Device).SelectByType((*types.VirtualDisk)(nil))); n != 1 {
		t.Errorf("%d disks", n)
	}
	ok(t, vm.Unregister(ctx))
	if d := cmp.Diff([]string{"a", "volume-flat.vmdk", "volume.vmdk"}, c.files("")); d != "" {
		t.Error(d)
	}
}

func TestDiskManager(t *testing.T) {
	l := start(t, lab.Options{NoQEMU: true, Datastores: []string{"datastore1", "other"}})
	c := login(t, l)
	ctx := t.Context()
	vdm := object.NewVirtualDiskManager(c.Client.Client)
	ok(t, c.createDisk("[datastore1] d.vmdk", 64<<10))
	qemuIO(t, c.path("d.vmdk"), "write -P 7 1M 1M")
	tk, err := vdm.CopyVirtualDisk(ctx, "[datastore1] d.vmdk", c.dc, "[datastore1] e.vmdk", c.dc, nil, false)
	ok(t, done(t, tk, err))
	qemuIO(t, c.path("e.vmdk"), "read -P 7 1M 1M", "read -P 0 2M 1M")
	tk, err = vdm.MoveVirtualDisk(ctx, "[datastore1] d.vmdk", c.dc, "[other] f.vmdk", c.dc, false)
	ok(t, done(t, tk, err))
	tk, err = vdm.CopyVirtualDisk(ctx, "[other] f.vmdk", c.dc, "[datastore1] e.vmdk", c.dc, nil, false)
	wantFault(t, done(t, tk, err), &types.FileAlreadyExists{})
	tk, err = vdm.ExtendVirtualDisk(ctx, "[datastore1] e.vmdk", c.dc, 128<<10, nil)
	ok(t, done(t, tk, err))
	if s := qemuImg(t, "info", c.path("e.vmdk")); !strings.Contains(s, "128 MiB") {
		t.Error(s)
	}
	qemuIO(t, c.path("e.vmdk"), "read -P 7 1M 1M", "write -P 8 127M 1M")
	tk, err = vdm.ExtendVirtualDisk(ctx, "[datastore1] e.vmdk", c.dc, 1<<10, nil)
	wantFault(t, done(t, tk, err), &types.InvalidArgument{})
	id, err := vdm.QueryVirtualDiskUuid(ctx, "[datastore1] e.vmdk", c.dc)
	if err != nil || !strings.HasPrefix(strings.ToUpper(id), "60 00 C2 9") {
		t.Errorf("uuid %q %v", id, err)
	}
	tk, err = vdm.DeleteVirtualDisk(ctx, "[datastore1] e.vmdk", c.dc)
	ok(t, done(t, tk, err))
	tk, err = vdm.DeleteVirtualDisk(ctx, "[datastore1] e.vmdk", c.dc)
	wantFault(t, done(t, tk, err), &types.FileNotFound{})
	if f := c.files(""); len(f) != 0 {
		t.Errorf("left: %v", f)
	}
}

// extend makes a disk larger that no VM has.
func (c *client) extend(file string, kib int64) error {
	tk, err := object.NewVirtualDiskManager(c.Client.Client).ExtendVirtualDisk(c.t.Context(), file, c.dc, kib, nil)
	return done(c.t, tk, err)
}

// TestLocks: the disks of a running VM cannot be used, changed or moved.
func TestLocks(t *testing.T) {
	l := start(t, lab.Options{NoQEMU: true})
	c := login(t, l)
	ctx := t.Context()
	ok(t, c.createDisk("[datastore1] base.vmdk", 64<<10))
	a := c.mustCreate(spec("a", disk("", 0, "[datastore1] base.vmdk")))
	b := c.mustCreate(spec("b", disk("[datastore1] a/a.vmdk", -1, "")))
	sib := c.mustCreate(spec("sibling", disk("", 0, "[datastore1] base.vmdk")))
	base := c.mustCreate(spec("base", disk("[datastore1] base.vmdk", -1, "")))
	on := func(vm *object.VirtualMachine) error { tk, err := vm.PowerOn(ctx); return done(t, tk, err) }
	ok(t, on(a))
	ok(t, on(sib)) // shares the parent
	wantFault(t, on(b), &types.FileLocked{})
	wantFault(t, on(base), &types.FileLocked{})
	fm := object.NewFileManager(c.Client.Client)
	for _, p := range []string{"a", "a/a.vmdk", "a/a-delta.vmdk", "base-flat.vmdk"} {
		tk, err := fm.DeleteDatastoreFile(ctx, "[datastore1] "+p, c.dc)
		wantFault(t, done(t, tk, err), &types.FileLocked{})
		tk, err = fm.MoveDatastoreFile(ctx, "[datastore1] "+p, c.dc, "[datastore1] moved", c.dc, false)
		wantFault(t, done(t, tk, err), &types.FileLocked{})
	}
	if err := c.ds.Upload(ctx, strings.NewReader("x"), "base.vmdk", nil); err == nil {
		t.Error("a locked disk was overwritten")
	}
	_, err := c.create(spec("grandchild", disk("", 0, "[datastore1] a/a.vmdk")))
	wantFault(t, err, &types.FileLocked{})
	tk, err := b.Destroy(ctx)
	wantFault(t, done(t, tk, err), &types.FileLocked{})
	// Hot-add takes the lock, hot-remove gives it back.
	ok(t, c.createDisk("[datastore1] hot.vmdk", 64<<10))
	hot := disk("[datastore1] hot.vmdk", 0, "")
	hot.ControllerKey = 1000
	ok(t, a.AddDevice(ctx, hot))
	vdm := object.NewVirtualDiskManager(c.Client.Client)
	tk, err = vdm.DeleteVirtualDisk(ctx, "[datastore1] hot.vmdk", c.dc)
	wantFault(t, done(t, tk, err), &types.FileLocked{})
	devs := object.VirtualDeviceList(c.props(a).Config.Hardware.Device)
	ok(t, a.RemoveDevice(ctx, true, devs.FindByKey(2001)))
	tk, err = vdm.DeleteVirtualDisk(ctx, "[datastore1] hot.vmdk", c.dc)
	ok(t, done(t, tk, err))

	for _, vm := range []*object.VirtualMachine{a, sib} {
		tk, err := vm.PowerOff(ctx)
		ok(t, done(t, tk, err))
	}
	ok(t, on(b))
	tk, err = b.PowerOff(ctx)
	ok(t, done(t, tk, err))
}

// TestHostileDescriptors: an uploaded descriptor leads nowhere but to its
// datastore.
func TestHostileDescriptors(t *testing.T) {
	l := start(t, lab.Options{NoQEMU: true})
	c := login(t, l)
	ok(t, c.createDisk("[datastore1] ok.vmdk", 64<<10))
	ok(t, c.ds.Upload(t.Context(), strings.NewReader("KDMV"+strings.Repeat("\x00", 508)), "kdmv-delta.vmdk", nil))
	ok(t, c.ds.Upload(t.Context(), strings.NewReader("COWD"), "cut-delta.vmdk", nil))
	head := "# Disk DescriptorFile\nversion=1\nCID=00000001\n"
	for name, text := range map[string]string{
		"absolute extent":  head + "parentCID=ffffffff\ncreateType=\"vmfs\"\nRW 8 VMFS \"/etc/passwd\"\n",
		"extent above":     head + "parentCID=ffffffff\ncreateType=\"vmfs\"\nRW 8 VMFS \"../../../lab.json\"\n",
		"blanks":           head + "parentCID=ffffffff\ncreateType=\"vmfs\"\nRW\t8 VMFS \"/etc/passwd=\"\nRW\v8 VMFS \"/etc/passwd=\"\nRW 8 VMFS \"ok-flat.vmdk\"\n",
		"read-only extent": head + "parentCID=ffffffff\ncreateType=\"vmfs\"\nRDONLY 8 VMFS \"ok-flat.vmdk\"\n",
		"KDMV as COWD":     head + "parentCID=ffffffff\ncreateType=\"vmfsSparse\"\nRW 8 VMFSSPARSE \"kdmv-delta.vmdk\"\n",
		"COWD, cut off":    head + "parentCID=ffffffff\ncreateType=\"vmfsSparse\"\nRW 8 VMFSSPARSE \"cut-delta.vmdk\"\n",
		"protocol":         head + "parentCID=ffffffff\ncreateType=\"vmfs\"\nRW 8 VMFS \"nbd:unix:x\"\n",
		"raw device":       head + "parentCID=ffffffff\ncreateType=\"vmfsRaw\"\nRW 8 VMFSRAW \"/dev/sda\"\n",
		"parent above":     head + "parentCID=00000002\ncreateType=\"vmfsSparse\"\nparentFileNameHint=\"../../../x.vmdk\"\nRW 8 VMFSSPARSE \"ok-flat.vmdk\"\n",
		"absolute parent":  head + "parentCID=00000002\ncreateType=\"vmfsSparse\"\nparentFileNameHint=\"/etc/passwd\"\nRW 8 VMFSSPARSE \"ok-flat.vmdk\"\n",
		"its own parent":   head + "parentCID=00000001\ncreateType=\"vmfsSparse\"\nparentFileNameHint=\"bad.vmdk\"\nRW 8 VMFSSPARSE \"ok-flat.vmdk\"\n",
		"no extent":        head + "parentCID=ffffffff\ncreateType=\"vmfs\"\n",
		"huge":             head + strings.Repeat("# x\n", 40000),
		"negative sectors": head + "parentCID=ffffffff\ncreateType=\"vmfs\"\nRW -8 VMFS \"ok-flat.vmdk\"\n",
		"not a descriptor": "KDMV\x01\x00\x00\x00",
		"missing extent":   head + "parentCID=ffffffff\ncreateType=\"vmfs\"\nRW 8 VMFS \"none-flat.vmdk\"\n",
	} {
		t.Run(name, func(t *testing.T) {
			ok(t, c.ds.Upload(t.Context(), strings.NewReader(text), "bad.vmdk", nil))
			if vm, err := c.create(spec("x", disk("[datastore1] bad.vmdk", -1, ""))); err == nil {
				t.Errorf("attached: %v", chainOf(object.VirtualDeviceList(c.props(vm).Config.Hardware.Device).FindByKey(2000)))
			}
			if _, err := c.create(spec("x", disk("", 0, "[datastore1] bad.vmdk"))); err == nil {
				t.Error("taken as a parent")
			}
		})
	}
	// A link out of the datastore is no extent either.
	ok(t, os.Symlink("/etc/passwd", c.path("link-flat.vmdk")))
	ok(t, c.ds.Upload(t.Context(), strings.NewReader(head+"parentCID=ffffffff\ncreateType=\"vmfs\"\nRW 8 VMFS \"link-flat.vmdk\"\n"), "bad.vmdk", nil))
	if _, err := c.create(spec("x", disk("[datastore1] bad.vmdk", -1, ""))); err == nil {
		t.Error("a symbolic link was taken as an extent")
	}
}
