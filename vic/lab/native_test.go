package lab_test

import (
	"bytes"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vicsdk/vic-go/internal/vmdk"
	"github.com/vicsdk/vic-go/vic/lab"
)

// A datastore of the other kind takes files, and child disks from the API only.
func TestNativeDatastore(t *testing.T) {
	l := start(t, lab.Options{NoQEMU: true, NativeDatastores: []string{"datastore1"}})
	c := login(t, l)
	ctx := t.Context()
	var m mo.Datastore
	ok(t, c.ds.Properties(ctx, c.ds.Reference(), []string{"capability"}, &m))
	if v := m.Capability.VmfsSparseSupported; v == nil || *v {
		t.Errorf("vmfsSparseSupported: %v", v)
	}
	ok(t, c.createDisk("[datastore1] base.vmdk", 4<<10))
	fm := object.NewFileManager(c.Client.Client)
	ok(t, fm.MakeDirectory(ctx, "[datastore1] up", c.dc, false))
	put := func(name string, b []byte) error {
		return c.ds.Upload(ctx, bytes.NewReader(b), name, &soap.DefaultUpload)
	}
	ok(t, put("up/plain", []byte("COW")))

	// What the API makes can be used.
	a := c.mustCreate(spec("a", disk("", 0, "[datastore1] base.vmdk")))
	dev := object.VirtualDeviceList(c.props(a).Config.Hardware.Device).FindByKey(2000)
	b := dev.GetVirtualDevice().Backing.(*types.VirtualDiskFlatVer2BackingInfo)
	if b.DeltaDiskFormat != "seSparseFormat" || b.Parent == nil || b.Parent.DeltaDiskFormat != "" {
		t.Errorf("backing %+v", b)
	}
	if _, err := os.Stat(c.path("a/a-sesparse.vmdk")); err != nil {
		t.Error(err)
	}
	desc, err := os.ReadFile(c.path("a/a.vmdk"))
	ok(t, err)
	if !strings.Contains(string(desc), `parentFileNameHint="/vmfs/volumes/datastore1/base.vmdk"`) {
		t.Errorf("the descriptor:\n%s", desc)
	}
	// It stays usable when QEMU has changed its content ID.
	ok(t, os.WriteFile(c.path("a/a.vmdk"), regexp.MustCompile(`(?m)^CID=.*$`).ReplaceAll(desc, []byte("CID=00abcdef")), 0o600))
	c.mustCreate(spec("b", disk("", 0, "[datastore1] a/a.vmdk")))

	extent, err := os.ReadFile(c.path("a/a-sesparse.vmdk"))
	ok(t, err)
	if err := put("up/up-delta.vmdk", extent); err == nil {
		t.Error("an upload of an extent was taken")
	}
	// However it came there, a child without the mark is none.
	ok(t, os.WriteFile(c.path("up/up-delta.vmdk"), extent, 0o600))
	base, err := os.ReadFile(c.path("base.vmdk"))
	ok(t, err)
	d, err := vmdk.ParseDescriptor(base)
	ok(t, err)
	desc, err = vmdk.LayerDescriptor(d.Bytes(), 7, d.CID, "../base.vmdk", "up-delta.vmdk").Encode()
	ok(t, err)
	ok(t, put("up/up.vmdk", desc))
	if _, err := c.create(spec("x", disk("", 0, "[datastore1] up/up.vmdk"))); err == nil || !strings.Contains(err.Error(), "the API has not made") {
		t.Errorf("an uploaded disk is a parent: %v", err)
	}
	// What has children is not deleted as a disk.
	vdm := object.NewVirtualDiskManager(c.Client.Client)
	tk, err := vdm.DeleteVirtualDisk(ctx, "[datastore1] base.vmdk", c.dc)
	wantFault(t, done(t, tk, err), &types.CannotDeleteFile{})
	// The API moves a child, and it stays one.
	tk, err = vdm.MoveVirtualDisk(ctx, "[datastore1] a/a.vmdk", c.dc, "[datastore1] up/moved.vmdk", c.dc, false)
	ok(t, done(t, tk, err))
	if _, err := os.Stat(c.path("up/moved-sesparse.vmdk")); err != nil {
		t.Error(err)
	}
}
