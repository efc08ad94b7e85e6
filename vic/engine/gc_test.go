package engine_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vicsdk/vic-go/internal/testlab"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/containervm"
	"github.com/vicsdk/vic-go/vic/engine"
)

// What a deletion leaves that is cut off after the VM has left the inventory is
// found again, and nothing else is taken for it.
func TestSweepOfDeletions(t *testing.T) {
	e := testlab.Start(t, testlab.Options{NoBoot: true})
	image := e.Busybox(t)
	owner := e.Engine.VCH().Owner()
	notes := filepath.Join(e.Datastore(), "vic", "deleting", owner.ID)
	if err := os.MkdirAll(notes, 0o700); err != nil {
		t.Fatal(err)
	}
	note := func(vm *containervm.VM, text string) string {
		t.Helper()
		f := filepath.Join(notes, vm.ID())
		if err := os.WriteFile(f, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return f
	}
	there := func(f string) bool { _, err := os.Stat(f); return err == nil }
	create := func(name string) *containervm.VM {
		t.Helper()
		vm, err := e.Engine.Create(t.Context(), engine.RunSpec{Image: image, Container: containervm.Spec{Name: name, Args: []string{"true"}}})
		if err != nil {
			t.Fatal(err)
		}
		return vm
	}
	cut, whole, odd := create("cut"), create("whole"), create("odd")
	ref := types.ManagedObjectReference{Type: "VirtualMachine", Value: cut.Ref().ID}
	if err := object.NewVirtualMachine(e.Client.Vim(), ref).Unregister(t.Context()); err != nil {
		t.Fatal(err)
	}
	cutNote, wholeNote := note(cut, "[datastore1] cut"), note(whole, "[datastore1] whole")
	for _, text := range []string{"", "[datastore1] vic", "[datastore1] ", "[datastore1] ..", "[datastore1] vic/images", "[elsewhere] x", "/etc"} {
		oddNote := note(odd, text)
		if err := containervm.Sweep(t.Context(), e.Client, owner); err == nil {
			t.Errorf("a note %q is followed", text)
		} else if text != "[elsewhere] x" && !errors.Is(err, vic.ErrInvalid) {
			t.Errorf("a note %q: %v", text, err)
		}
		if !there(oddNote) || !there(filepath.Join(e.Datastore(), "vic", "images")) {
			t.Fatalf("a note %q has had something deleted", text)
		}
	}
	if there(filepath.Join(e.Datastore(), "cut")) || there(cutNote) {
		t.Error("the files of a deletion that was cut off, or its note, are left")
	}
	if !there(filepath.Join(e.Datastore(), "whole")) || there(wholeNote) {
		t.Error("a container that was not deleted after all has lost its files, or the note is left")
	}
	if err := os.Remove(note(odd, "")); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Engine.GC(t.Context()); err != nil {
		t.Error(err)
	}
	for _, vm := range []*containervm.VM{whole, odd} {
		if err := vm.Delete(t.Context(), false); err != nil {
			t.Error(err)
		}
	}
	if left, err := os.ReadDir(notes); err != nil || len(left) > 0 {
		t.Errorf("notes are left: %v, %v", left, err)
	}
}
