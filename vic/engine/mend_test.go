package engine_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/vicsdk/vic-go/internal/testlab"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/containervm"
	"github.com/vicsdk/vic-go/vic/engine"
	"github.com/vicsdk/vic-go/vic/tether"
)

// An administrator who deletes a container VM from disk may lose the disks of its
// image with it, as vSphere deletes parents. Other containers of the image start
// all the same, with what they had written.
func TestAdministratorDeletesFromDisk(t *testing.T) {
	t.Parallel()
	e := testlab.Start(t, testlab.Options{})
	image := e.Busybox(t)
	keep, exit, err := e.Engine.Run(t.Context(), engine.RunSpec{Image: image, Container: containervm.Spec{Name: "keep",
		Args: []string{"sh", "-c", "cat /mine; echo written > /mine; sync"}}})
	if err != nil || exit.Code != 0 {
		t.Fatalf("%+v, %v", exit, err)
	}
	vm, outside := detached(t, e, image)
	if err := vm.Kill(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	if _, err := vm.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	tk, err := outside.Destroy(t.Context())
	ended(t, tk, err)
	if _, err := vm.Inspect(t.Context()); !errors.Is(err, vic.ErrNotFound) {
		t.Errorf("the deleted container: %v", err)
	}
	if err := keep.Start(t.Context()); !errors.Is(err, vic.ErrNotFound) {
		t.Fatalf("the lab has left the image's disks: start: %v", err)
	}
	if err := e.Engine.Start(t.Context(), keep, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := keep.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	err = keep.Logs(t.Context(), tether.LogOptions{}, func(l tether.LogEntry) error { out.Write(l.Data); return nil })
	if err != nil || !strings.Contains(out.String(), "written\n") {
		t.Errorf("it has lost what it wrote: %q, %v", out.String(), err)
	}
	// And the next one is as any.
	if _, exit, err := e.Engine.Run(t.Context(), engine.RunSpec{Image: image, Remove: true, Container: containervm.Spec{Args: []string{"true"}}}); err != nil || exit.Code != 0 {
		t.Errorf("a new container: %+v, %v", exit, err)
	}
}
