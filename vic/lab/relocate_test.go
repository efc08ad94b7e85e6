package lab_test

import (
	"strings"
	"testing"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vicsdk/vic-go/vic/lab"
)

// TestRelocate moves VMs between hosts, pools, folders and datastores.
func TestRelocate(t *testing.T) {
	l := start(t, lab.Options{NoQEMU: true, Hosts: 2, Datastores: []string{"datastore1", "datastore2"}})
	c := login(t, l)
	ctx := t.Context()
	ok(t, c.createDisk("[datastore1] base.vmdk", 8<<10))
	qemuIO(t, c.path("base.vmdk"), "write -P 0x41 0 64k")
	vm := c.mustCreate(spec("a", disk("", 0, "[datastore1] base.vmdk"), nic("VM Network")))
	qemuIO(t, c.path("a/a.vmdk"), "write -P 0x42 512 512")
	hosts := must(c.f.HostSystemList(ctx, "*"))(t)
	other := hosts[0].Reference()
	if *c.props(vm).Runtime.Host == other {
		other = hosts[1].Reference()
	}
	move := func(s types.VirtualMachineRelocateSpec) error {
		tk, err := vm.Relocate(ctx, s, types.VirtualMachineMovePriorityDefaultPriority)
		return done(t, tk, err)
	}
	tk, err := vm.PowerOn(ctx)
	ok(t, done(t, tk, err))
	pool := must(c.pool.Create(ctx, "p", types.DefaultResourceConfigSpec()))(t).Reference()
	folder := must(c.vms.CreateFolder(ctx, "f"))(t).Reference()
	ok(t, move(types.VirtualMachineRelocateSpec{Host: &other, Pool: &pool, Folder: &folder}))
	p := c.props(vm)
	if *p.Runtime.Host != other || *p.Summary.Runtime.Host != other || *p.ResourcePool != pool || *p.Parent != folder || p.Runtime.PowerState != "poweredOn" {
		t.Errorf("host %v, pool %v, folder %v, %s", p.Runtime.Host, p.ResourcePool, p.Parent, p.Runtime.PowerState)
	}
	if ev := c.events(vm); !has(ev, "VmBeingHotMigratedEvent") || !has(ev, "VmMigratedEvent") {
		t.Errorf("events %v", ev)
	}
	ds2 := must(c.f.Datastore(ctx, "datastore2"))(t).Reference()
	ds1 := c.ds.Reference()
	wantFault(t, move(types.VirtualMachineRelocateSpec{Datastore: &ds2}), &types.InvalidPowerState{})
	tk, err = vm.PowerOff(ctx)
	ok(t, done(t, tk, err))
	wantFault(t, move(types.VirtualMachineRelocateSpec{Datastore: &ds2, DiskMoveType: "createNewChildDiskBacking"}), &types.NotSupported{})
	wantFault(t, move(types.VirtualMachineRelocateSpec{Datastore: &types.ManagedObjectReference{Type: "Datastore", Value: "x"}}), &types.InvalidDatastore{})
	c.snapshot(vm, "s", false)
	wantFault(t, move(types.VirtualMachineRelocateSpec{Datastore: &ds2}), &types.SnapshotCopyNotSupported{})
	tk, err = vm.RemoveAllSnapshot(ctx, nil)
	ok(t, done(t, tk, err))

	look := func(dir string, parents int) {
		t.Helper()
		d := object.VirtualDeviceList(c.props(vm).Config.Hardware.Device).SelectByType((*types.VirtualDisk)(nil))[0]
		b := d.GetVirtualDevice().Backing.(*types.VirtualDiskFlatVer2BackingInfo)
		n := 0
		for x := b.Parent; x != nil; x = x.Parent {
			n++
		}
		file := strings.NewReplacer("[datastore1] ", c.dir+"/datastores/datastore1/", "[datastore2] ", c.dir+"/datastores/datastore2/").Replace(b.FileName)
		if n != parents || !strings.HasPrefix(b.FileName, dir) || !strings.HasPrefix(c.props(vm).Config.Files.VmPathName, dir) {
			t.Errorf("%s with %d parents, %s", b.FileName, n, c.props(vm).Config.Files.VmPathName)
		}
		if parents == 0 {
			for _, x := range []string{"read -P 0x41 0 512", "read -P 0x42 512 512", "read -P 0x41 1k 1k", "read -P 0 64k 1k"} {
				if s := qemuIO(t, file, x); strings.Contains(s, "failed") {
					t.Errorf("%s: %s", x, s)
				}
			}
		}
	}
	// Only the child, which keeps its parent on the first datastore; it is back
	// with the next move.
	ok(t, move(types.VirtualMachineRelocateSpec{Datastore: &ds2, DiskMoveType: "moveChildMostDiskBacking"}))
	look("[datastore2] a/", 1)
	if f := c.files("a"); len(f) != 0 {
		t.Errorf("left %v", f)
	}
	ok(t, move(types.VirtualMachineRelocateSpec{Datastore: &ds1, DiskMoveType: "moveChildMostDiskBacking"}))
	look("[datastore1] a/", 1)
	ok(t, move(types.VirtualMachineRelocateSpec{Datastore: &ds2}))
	look("[datastore2] a/", 0)
	if !has(c.events(vm), "VmRelocatedEvent") {
		t.Errorf("events %v", c.events(vm))
	}
	tk, err = vm.PowerOn(ctx)
	ok(t, done(t, tk, err))
	tk, err = vm.PowerOff(ctx)
	ok(t, done(t, tk, err))
	tk, err = vm.Destroy(ctx)
	ok(t, done(t, tk, err))
	wantList(t, "disks", c.vmdks(""), "base.vmdk")
}
