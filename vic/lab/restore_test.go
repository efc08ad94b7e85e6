package lab_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/view"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vicsdk/vic-go/vic/lab"
)

// inventory is what a client sees of all entities.
func (c *client) inventory() map[string]any {
	c.t.Helper()
	ctx := c.t.Context()
	v := must(view.NewManager(c.Client.Client).CreateContainerView(ctx, c.Client.ServiceContent.RootFolder, nil, true))(c.t)
	defer func() { _ = v.Destroy(context.Background()) }()
	out := map[string]any{}
	var entities []mo.ManagedEntity
	ok(c.t, v.Retrieve(ctx, []string{"ManagedEntity"}, []string{"name", "parent", "customValue", "availableField"}, &entities))
	for _, e := range entities {
		out[e.Self.Value] = e
	}
	var pools []mo.ResourcePool
	ok(c.t, v.Retrieve(ctx, []string{"ResourcePool"}, []string{"config", "owner", "vm"}, &pools))
	for _, p := range pools {
		p.Config.LastModified = nil
		out[p.Self.Value+" pool"] = p
	}
	var vms []mo.VirtualMachine
	ok(c.t, v.Retrieve(ctx, []string{"VirtualMachine"}, nil, &vms))
	for _, vm := range vms {
		vm.RecentTask = nil
		out[vm.Self.Value+" vm"] = vm
	}
	var hosts []mo.HostSystem
	ok(c.t, v.Retrieve(ctx, []string{"HostSystem"}, []string{"vm", "datastore", "network"}, &hosts))
	for _, h := range hosts {
		out[h.Self.Value+" host"] = h
	}
	var stores []mo.Datastore
	ok(c.t, v.Retrieve(ctx, []string{"Datastore"}, []string{"vm", "host"}, &stores))
	for _, d := range stores {
		out[d.Self.Value+" datastore"] = d
	}
	var cfm mo.CustomFieldsManager
	ok(c.t, property.DefaultCollector(c.Client.Client).RetrieveOne(ctx, *c.Client.ServiceContent.CustomFieldsManager, nil, &cfm))
	out["fields"] = cfm.Field
	return out
}

// TestInventorySurvives: whatever clients made is there after a kill, as they
// made it.
func TestInventorySurvives(t *testing.T) {
	dir := must(filepath.EvalSymlinks(t.TempDir()))(t)
	s := up(t, dir, "NOQEMU=1")
	c := login2(t, s)
	ctx := t.Context()
	a := must(c.vms.CreateFolder(ctx, "a"))(t)
	b := must(c.vms.CreateFolder(ctx, "b"))(t)
	inner := must(a.CreateFolder(ctx, "inner"))(t)
	tk, err := b.MoveInto(ctx, []types.ManagedObjectReference{a.Reference()}) // younger folders have older ones
	ok(t, done(t, tk, err))
	pool := must(c.pool.Create(ctx, "p", types.DefaultResourceConfigSpec()))(t)
	cfg := types.DefaultResourceConfigSpec()
	cfg.CpuAllocation.Limit = types.NewInt64(1234)
	ok(t, pool.UpdateConfig(ctx, "renamed", &cfg))
	sp := spec("one", disk("", 1<<20, ""), nic("VM Network"))
	sp.Annotation = "a <note> & more\nlines"
	sp.ExtraConfig = []types.BaseOptionValue{&types.OptionValue{Key: "k", Value: "v ü"}}
	one := c.mustCreate(sp)
	tk, err = inner.CreateVM(ctx, spec("deep", disk("", 0, "[datastore1] one/one.vmdk")), pool, nil)
	ok(t, done(t, tk, err))
	gone := c.mustCreate(spec("gone"))
	fields := must(object.GetCustomFieldsManager(c.Client.Client))(t)
	dropped := must(fields.Add(ctx, "dropped", "VirtualMachine", nil, nil))(t)
	image := must(fields.Add(ctx, "image", "VirtualMachine", nil, nil))(t)
	ok(t, fields.Set(ctx, one.Reference(), image.Key, "busybox"))
	ok(t, fields.Remove(ctx, dropped.Key))
	tk, err = gone.Destroy(ctx)
	ok(t, done(t, tk, err))
	tk, err = one.Rename(ctx, "uno")
	ok(t, done(t, tk, err))

	again := func(env ...string) {
		t.Helper()
		want := c.inventory()
		ok(t, syscall.Kill(s.PID, syscall.SIGKILL))
		waitGone(t, s)
		s = up(t, dir, append(env, "NOQEMU=1")...)
		c = login2(t, s)
		ignore := cmpopts.IgnoreFields(types.VirtualMachineFileLayoutEx{}, "Timestamp")
		if d := cmp.Diff(want, c.inventory(), cmpopts.EquateEmpty(), ignore); d != "" {
			t.Errorf("the inventory after a restart (-before +after):\n%s", d)
		}
	}
	again()
	again()
	// What is new is not what was.
	two := c.mustCreate(spec("two"))
	if two.Reference() == gone.Reference() {
		t.Errorf("%s is the reference of a VM that is gone", two.Reference())
	}
	if f := must(must(object.GetCustomFieldsManager(c.Client.Client))(t).Add(t.Context(), "next", "VirtualMachine", nil, nil))(t); f.Key <= image.Key {
		t.Errorf("the key %d of a field is another's", f.Key)
	}
	tk, err = two.PowerOn(ctx)
	ok(t, done(t, tk, err))
	ok(t, syscall.Kill(s.PID, syscall.SIGKILL))
	waitGone(t, s)

	// The places of further datastores and networks are others.
	refs := func(l *lab.Lab) map[string]string {
		c := login(t, l)
		out := map[string]string{}
		for _, d := range must(c.f.DatastoreList(t.Context(), "*"))(t) {
			out["datastore "+d.Name()] = d.Reference().Value
		}
		for _, n := range must(c.f.NetworkList(t.Context(), "*"))(t) {
			out["network "+n.GetInventoryPath()] = n.Reference().Value
		}
		for _, h := range must(c.f.HostSystemList(t.Context(), "*"))(t) {
			out["host "+h.Name()] = h.Reference().Value
		}
		return out
	}
	o := lab.Options{Dir: dir, NoQEMU: true}
	more := lab.Options{Dir: dir, NoQEMU: true, Hosts: 2, Datastores: []string{"new", "datastore1"}, Networks: []lab.Network{{Name: "new"}, {Name: "VM Network"}}}
	l := must(lab.Start(ctx, o))(t)
	before := refs(l)
	c = login(t, l)
	if p := c.props(object.NewVirtualMachine(c.Client.Client, two.Reference())); p.Runtime.PowerState != "poweredOff" {
		t.Errorf("a VM of a lab without QEMU is %s after the lab's end", p.Runtime.PowerState)
	}
	ok(t, l.Close())
	l = must(lab.Start(ctx, more))(t)
	after := refs(l)
	for k, v := range before {
		if after[k] != v {
			t.Errorf("%s was %s and is %s", k, v, after[k])
		}
	}
	ok(t, l.Close())
	for name, o := range map[string]lab.Options{
		"Options.Datastores": {Dir: dir, NoQEMU: true, Datastores: []string{"new"}},
		"Options.Networks":   {Dir: dir, NoQEMU: true, Networks: []lab.Network{{Name: "new"}}},
	} {
		if _, err := lab.Start(ctx, o); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("without what VMs are on: %v", err)
		}
	}
	ok(t, os.WriteFile(filepath.Join(dir, "inventory", two.Reference().Value+".json"), []byte(`{"vm`), 0o600))
	if _, err := lab.Start(ctx, o); err == nil || !strings.Contains(err.Error(), two.Reference().Value) {
		t.Errorf("with a broken file: %v", err)
	}
}
