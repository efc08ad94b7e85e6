package engine_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vicsdk/vic-go/internal/testlab"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/containervm"
	"github.com/vicsdk/vic-go/vic/engine"
)

// detached starts a container without a guest.
func detached(t *testing.T, e *testlab.Env, image string) (*containervm.VM, *object.VirtualMachine) {
	t.Helper()
	vm, _, err := e.Engine.Run(t.Context(), engine.RunSpec{Image: image, Detach: true, Container: containervm.Spec{Args: []string{"true"}}})
	if err != nil {
		t.Fatal(err)
	}
	return vm, object.NewVirtualMachine(e.Client.Vim(), types.ManagedObjectReference{Type: "VirtualMachine", Value: vm.Ref().ID})
}

func ended(t *testing.T, tk *object.Task, err error) {
	t.Helper()
	if err == nil {
		err = tk.Wait(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestOffBeforeTheGuestWrote: a VM that was powered off from outside before its
// guest wrote a word has ended, and nobody knows how.
func TestOffBeforeTheGuestWrote(t *testing.T) {
	e := testlab.Start(t, testlab.Options{NoBoot: true})
	image := e.Busybox(t)
	vm, outside := detached(t, e, image)
	time.AfterFunc(50*time.Millisecond, func() {
		if _, err := outside.PowerOff(t.Context()); err != nil {
			t.Error(err)
		}
	})
	info, err := vm.Wait(t.Context())
	if err != nil || info.State != containervm.Exited || info.Known || info.Name != vm.Name() || info.ID != vm.ID() || info.Image == "" {
		t.Errorf("%+v, %v", info, err)
	}
	if info, err = vm.Wait(t.Context()); err != nil || info.State != containervm.Exited {
		t.Errorf("again: %+v, %v", info, err)
	}
}

// TestDeleteKeepsOtherDisks: of the disks of a VM only the container's own goes.
func TestDeleteKeepsOtherDisks(t *testing.T) {
	e := testlab.Start(t, testlab.Options{NoBoot: true})
	image := e.Busybox(t)
	vm, outside := detached(t, e, image)
	tk, err := outside.PowerOff(t.Context())
	ended(t, tk, err)
	dc := object.NewDatacenter(e.Client.Vim(), types.ManagedObjectReference{Type: "Datacenter", Value: e.Client.Datacenter().ID})
	tk, err = object.NewVirtualDiskManager(e.Client.Vim()).CreateVirtualDisk(t.Context(), "[datastore1] volume.vmdk", dc, &types.FileBackedVirtualDiskSpec{
		VirtualDiskSpec: types.VirtualDiskSpec{DiskType: "thin", AdapterType: "lsiLogic"}, CapacityKb: 1024,
	})
	ended(t, tk, err)
	before := e.Files(t)
	devices, err := outside.Device(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	controller, err := devices.FindDiskController("")
	if err != nil {
		t.Fatal(err)
	}
	disk := devices.CreateDisk(controller, types.ManagedObjectReference{}, "[datastore1] volume.vmdk")
	if err := outside.AddDevice(t.Context(), disk); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := vm.Delete(t.Context(), false); err != nil {
			t.Fatal(err)
		}
	}
	after := e.Files(t)
	if _, err := os.Stat(filepath.Join(e.Datastore(), "volume.vmdk")); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(e.Datastore(), vm.Name())); !errors.Is(err, os.ErrNotExist) || len(after) >= len(before) {
		t.Errorf("left of the container: %v, files %v", err, after)
	}
	if _, err := e.Engine.DeleteImage(t.Context(), image, nil); err != nil {
		t.Errorf("the image is still in use: %v", err)
	}
}

// TestImageDeletedBeside: a name that was read before its image went is no
// reason to fail.
func TestImageDeletedBeside(t *testing.T) {
	e := testlab.Start(t, testlab.Options{NoBoot: true})
	image := e.Busybox(t)
	img, err := e.Engine.Pull(t.Context(), image, nil)
	if err != nil {
		t.Fatal(err)
	}
	names, err := filepath.Glob(filepath.Join(e.Datastore(), "vic/images/names/*.json"))
	if err != nil || len(names) != 1 {
		t.Fatal(names, err)
	}
	doc, err := os.ReadFile(names[0])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Engine.DeleteImage(t.Context(), image, nil); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(names[0], doc, 0o600); err != nil {
		t.Fatal(err)
	}
	vm, _ := detached(t, e, image)
	if whole, err := e.Engine.Images().Has(t.Context(), img); err != nil || !whole {
		t.Errorf("whole: %v, %v", whole, err)
	}
	if err := vm.Delete(t.Context(), true); err != nil {
		t.Error(err)
	}
	// An older record names the image's only; a newer one nobody can know.
	old := []byte(`{"version":1,"name":"` + img.Name() + `","manifest":"` + img.Digest().String() + `"}`)
	if err := os.WriteFile(names[0], old, 0o600); err != nil {
		t.Fatal(err)
	}
	if same, err := e.Engine.Image(t.Context(), image); err != nil || same.Root() != img.Root() {
		t.Errorf("an older record: %+v, %v", same, err)
	}
	if err := os.WriteFile(names[0], bytes.Replace(old, []byte(":1,"), []byte(":3,"), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Engine.Image(t.Context(), image); !errors.Is(err, vic.ErrUnsupported) {
		t.Errorf("a newer record: %v", err)
	}
}

// Until a guest that starts again tells where it is reached, vSphere tells what it
// told in its last start. Who asks for it meanwhile waits and gets it.
func TestReachedWhileItStartsAgain(t *testing.T) {
	e := testlab.Start(t, testlab.Options{})
	vm, _, err := e.Engine.Run(t.Context(), engine.RunSpec{Image: e.Busybox(t), Detach: true, Container: containervm.Spec{Args: []string{"sleep", "1000"}}})
	if err != nil {
		t.Fatal(err)
	}
	outside := object.NewVirtualMachine(e.Client.Vim(), types.ManagedObjectReference{Type: "VirtualMachine", Value: vm.Ref().ID})
	waitRunning := func() {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		c, err := vm.Dial(ctx)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Ping(ctx); err != nil {
			t.Fatal(err)
		}
	}
	waitRunning()
	// Cut off: the last status says that it runs.
	tk, err := outside.PowerOff(t.Context())
	ended(t, tk, err)
	tk, err = outside.PowerOn(t.Context())
	ended(t, tk, err)
	waitRunning()
}
