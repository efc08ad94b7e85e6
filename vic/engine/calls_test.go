package engine_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vicsdk/vic-go/internal/testlab"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/containervm"
	"github.com/vicsdk/vic-go/vic/engine"
	"github.com/vicsdk/vic-go/vic/tether"
)

// TestCalls counts what a new process asks of vSphere to start a container of an
// image that is there, and to delete it.
func TestCalls(t *testing.T) {
	e := testlab.Start(t, testlab.Options{NoBoot: true})
	image := e.Busybox(t)
	if _, err := e.Engine.Pull(t.Context(), image, nil); err != nil {
		t.Fatal(err)
	}
	cfg, err := e.Lab.Config()
	if err != nil {
		t.Fatal(err)
	}
	e.Lab.ResetCounters()
	c, err := vic.Connect(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	eng := e.Open(t, c, nil)
	vm, _, err := eng.Run(t.Context(), engine.RunSpec{Image: image, Detach: true, Container: containervm.Spec{Args: []string{"sleep", "1000"}}})
	if err != nil {
		t.Fatal(err)
	}
	// Who waits and attaches next finds the VM watched already.
	att, err := vm.Attach(t.Context(), tether.Streams{})
	if err != nil {
		t.Fatal(err)
	}
	att.Detach()
	if err := c.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := e.Lab.ResetCounters()
	polls := got.Requests["WaitForUpdatesEx"]
	delete(got.Requests, "WaitForUpdatesEx")
	if d := cmp.Diff(map[string]int{
		"RetrieveServiceContent": 1, "Login": 1, "RetrievePropertiesEx": 1,
		"CreateVM_Task": 1, "PowerOnVM_Task": 1, "CreateFilter": 2, "Logout": 1,
	}, got.Requests); d != "" {
		t.Errorf("requests (-want +got):\n%s", d)
	}
	if d := cmp.Diff(map[string]int{"GET": 2}, got.Files); d != "" {
		t.Errorf("requests for files (-want +got):\n%s", d)
	}
	if d := cmp.Diff(map[string]int{"createVm": 1, "powerOn": 1}, got.Tasks); d != "" {
		t.Errorf("tasks (-want +got):\n%s", d)
	}
	if polls > 8 {
		t.Errorf("%d waits", polls)
	}

	again, _, err := e.Engine.Find(t.Context(), vm.Name())
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Kill(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	e.Lab.ResetCounters()
	if err := again.Delete(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	got = e.Lab.ResetCounters()
	for _, n := range []string{"WaitForUpdatesEx", "DestroyPropertyFilter"} { // when they come is a matter of time
		delete(got.Requests, n)
	}
	// The VCH's first deletion finds no place for its note.
	if d := cmp.Diff(map[string]int{"RetrievePropertiesEx": 1, "MakeDirectory": 1, "UnregisterVM": 1, "DeleteDatastoreFile_Task": 2, "CreateFilter": 2}, got.Requests); d != "" {
		t.Errorf("requests of a deletion (-want +got):\n%s", d)
	}
	if d := cmp.Diff(map[string]int{"PUT": 2}, got.Files); d != "" {
		t.Errorf("requests for files (-want +got):\n%s", d)
	}
	if d := cmp.Diff(map[string]int{"deleteDatastoreFile": 2}, got.Tasks); d != "" {
		t.Errorf("tasks of a deletion (-want +got):\n%s", d)
	}
}
