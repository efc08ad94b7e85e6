package engine_test

import (
	"errors"
	"testing"

	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vicsdk/vic-go/internal/testlab"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/containervm"
	"github.com/vicsdk/vic-go/vic/engine"
)

func TestRenameAndUpdate(t *testing.T) {
	e := testlab.Start(t, testlab.Options{NoBoot: true})
	image := e.Busybox(t)
	var vms []*containervm.VM
	for _, name := range []string{"one", "two"} {
		vm, err := e.Engine.Create(t.Context(), engine.RunSpec{Image: image, Container: containervm.Spec{Name: name, Args: []string{"true"}}})
		if err != nil {
			t.Fatal(err)
		}
		vms = append(vms, vm)
	}
	one := vms[0]
	if err := one.Rename(t.Context(), "two"); !errors.Is(err, vic.ErrConflict) {
		t.Errorf("a name that is taken: %v", err)
	}
	if err := one.Rename(t.Context(), "a b"); !errors.Is(err, vic.ErrInvalid) {
		t.Errorf("no name: %v", err)
	}
	if err := one.Rename(t.Context(), "first"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := e.Engine.Find(t.Context(), "one"); !errors.Is(err, vic.ErrNotFound) {
		t.Errorf("by its old name: %v", err)
	}
	if _, info, err := e.Engine.Find(t.Context(), "first"); err != nil || info.ID != one.ID() {
		t.Errorf("by its new name: %+v, %v", info, err)
	}
	// The old name is free, though the VM's directory has it still.
	again, err := e.Engine.Create(t.Context(), engine.RunSpec{Image: image, Container: containervm.Spec{Name: "one", Args: []string{"true"}}})
	if err != nil {
		t.Fatal(err)
	}

	for _, c := range []struct {
		h    containervm.Hardware
		want error
	}{
		{containervm.Hardware{}, vic.ErrInvalid},
		{containervm.Hardware{CPUs: 129}, vic.ErrInvalid},
		{containervm.Hardware{MemoryMB: 130}, vic.ErrInvalid},
		{containervm.Hardware{CPUs: 2, MemoryMB: 512}, nil},
	} {
		if err := one.Update(t.Context(), c.h); !errors.Is(err, c.want) {
			t.Errorf("%+v: %v, want %v", c.h, err, c.want)
		}
	}
	hw := hardware(t, e, one)
	if hw.NumCPU != 2 || hw.MemoryMB != 512 {
		t.Errorf("the VM has %d CPUs and %d MB", hw.NumCPU, hw.MemoryMB)
	}
	if err := one.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := one.Update(t.Context(), containervm.Hardware{CPUs: 1}); !errors.Is(err, vic.ErrState) {
		t.Errorf("while it runs: %v", err)
	}
	if err := one.Rename(t.Context(), "running"); err != nil {
		t.Errorf("while it runs: %v", err)
	}
	for _, vm := range []*containervm.VM{one, vms[1], again} {
		if err := vm.Delete(t.Context(), true); err != nil {
			t.Error(err)
		}
	}
	for _, f := range e.Files(t) {
		for _, name := range []string{"one/", "two/", "first/", "one_1/"} {
			if len(f) > len(name) && f[:len(name)] == name {
				t.Errorf("left: %s", f)
			}
		}
	}
}

func hardware(t *testing.T, e *testlab.Env, vm *containervm.VM) types.VirtualHardware {
	t.Helper()
	var m mo.VirtualMachine
	ref := types.ManagedObjectReference{Type: "VirtualMachine", Value: vm.Ref().ID}
	if err := property.DefaultCollector(e.Client.Vim()).RetrieveOne(t.Context(), ref, []string{"config.hardware"}, &m); err != nil {
		t.Fatal(err)
	}
	return m.Config.Hardware
}
