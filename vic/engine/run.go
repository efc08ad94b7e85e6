package engine

import (
	"context"
	"errors"
	"time"

	"github.com/vicsdk/vic-go/internal/vsphere"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/containervm"
	"github.com/vicsdk/vic-go/vic/imagestore"
	"github.com/vicsdk/vic-go/vic/tether"
)

// A RunSpec says what to run. It is inert data but for its streams and
// functions.
type RunSpec struct {
	// Image by the name people use; it is pulled where the store lacks it.
	Image string
	// Container holds what the container is to be. Owner, Root, Image and
	// ImageName are filled in by the engine, and so is a Health that is nil; an
	// empty Name is drawn.
	Container containervm.Spec
	// Volumes by their names, beside Container.Mounts and those that the image
	// wants at targets where nothing else is mounted.
	Volumes []VolumeMount
	// Health changes the image's health check.
	Health HealthSpec
	// Streams of the main process; not used where Detach is set.
	Streams tether.Streams
	// Detach returns when the VM is on.
	Detach bool
	// Remove deletes the container after its end, and its anonymous volumes; it
	// excludes Detach.
	Remove bool
	// Progress, or nil.
	Progress func(vic.Event)
	// Started is called, where it is not nil, when the VM is on, so that the
	// caller can pass on signals and window sizes. The attachment is nil where
	// Detach is set.
	Started func(*containervm.VM, *containervm.Attachment)
}

// attachTime is how long a guest keeps a short process's output for whoever
// attaches.
const attachTime = 10 * time.Second

// Create makes the container of a RunSpec and does not start it.
func (e *Engine) Create(ctx context.Context, s RunSpec) (*containervm.VM, error) {
	img, err := e.Image(ctx, s.Image)
	pulled := errors.Is(err, vic.ErrNotFound)
	if pulled {
		img, err = e.Pull(ctx, s.Image, s.Progress)
	}
	if err != nil {
		return nil, err
	}
	vm, err := e.create(ctx, s, img)
	if !errors.Is(err, vic.ErrNotFound) || pulled {
		return vm, err
	}
	// A file is missing. The image's layers may have been deleted beside us.
	if whole, e := e.images.Has(ctx, img); whole || e != nil {
		return nil, err
	}
	if img, err = e.Pull(ctx, s.Image, s.Progress); err != nil {
		return nil, err
	}
	return e.create(ctx, s, img)
}

func (e *Engine) create(ctx context.Context, s RunSpec, img *imagestore.Image) (*containervm.VM, error) {
	if id := s.Container.ID; id != "" {
		// Volumes are not made again for a container that is there.
		if vm, err := containervm.Open(ctx, e.c, e.host.Owner(), id); err == nil || !errors.Is(err, vic.ErrNotFound) {
			return vm, err
		}
	}
	mounts, made, err := e.mounts(ctx, s, img)
	if err == nil {
		s.Container.Mounts = mounts
		var vm *containervm.VM
		if vm, err = e.createVM(ctx, s, img); err == nil {
			if err = e.confirm(ctx, vm, mounts); err == nil {
				return vm, nil
			}
		}
	}
	return nil, e.undoVolumes(ctx, made, err)
}

func (e *Engine) createVM(ctx context.Context, s RunSpec, img *imagestore.Image) (*containervm.VM, error) {
	c := s.Container
	c.Owner, c.Root, c.Image, c.ImageName = e.host.Owner(), img.Root(), img.Config(), img.Name()
	if c.Health != nil && !s.Health.isZero() {
		return nil, invalid("Health and Container.Health exclude each other: the one changes the image's check, the other takes its place")
	}
	if c.Health == nil {
		var err error
		if c.Health, err = healthOf(img.Docker(), s.Health); err != nil {
			return nil, err
		}
	}
	if !s.Detach {
		c.AwaitAttach = attachTime
	}
	if c.Name != "" {
		return containervm.Create(ctx, e.c, c)
	}
	for try := 0; ; try++ {
		c.Name = drawName()
		vm, err := containervm.Create(ctx, e.c, c)
		if err == nil || !errors.Is(err, vic.ErrConflict) || try == 9 {
			return vm, err
		}
	}
}

// Run creates a container, attaches to it, starts it, waits for its end and,
// where asked to, removes it. A process that ends with a non-zero code, or that
// could not be started in the guest (Exit.Error, code 125 to 127), is no error.
//
// With a restart policy that means the process's first end.
//
// Where ctx ends while the process runs, the container goes on, unless Remove
// is set: then it is killed and deleted.
func (e *Engine) Run(ctx context.Context, s RunSpec) (*containervm.VM, tether.Exit, error) {
	if s.Detach && s.Remove {
		return nil, tether.Exit{}, invalid("Detach and Remove exclude each other: nobody would be there to remove the container")
	}
	if p := s.Container.Restart.Policy; s.Remove && p != "" && p != tether.RestartNo {
		return nil, tether.Exit{}, invalid("Remove and a restart policy exclude each other")
	}
	vm, err := e.Create(ctx, s)
	if err != nil {
		return nil, tether.Exit{}, err
	}
	exit, err := e.run(ctx, vm, s)
	if s.Remove {
		dctx, cancel := vsphere.Detached(ctx)
		defer cancel()
		if e := e.Remove(dctx, vm, &RemoveOptions{Force: true, Volumes: true}); e != nil {
			err = errors.Join(err, e)
		}
	}
	return vm, exit, err
}

func (e *Engine) run(ctx context.Context, vm *containervm.VM, s RunSpec) (tether.Exit, error) {
	if s.Detach {
		err := vm.Start(ctx)
		if err == nil && s.Started != nil {
			s.Started(vm, nil)
		}
		return tether.Exit{}, err
	}
	att, err := vm.Attach(ctx, s.Streams)
	if err != nil {
		return tether.Exit{}, err
	}
	defer att.Detach()
	if err := vm.Start(ctx); err != nil {
		return tether.Exit{}, err
	}
	if s.Started != nil {
		s.Started(vm, att)
	}
	select {
	case <-att.Done():
	case <-ctx.Done():
		return tether.Exit{}, context.Cause(ctx)
	}
	exit, err := att.Wait()
	if err != nil || exit.Restarts {
		return exit, err
	}
	// The guest powers off by itself; a caller finds the container stopped.
	wctx, cancel := context.WithTimeout(ctx, powerOffTime)
	defer cancel()
	if _, err := vm.Wait(wctx); err != nil && ctx.Err() == nil {
		e.c.Logger().Warn("the process has ended but its VM is still on", "container", vm.Name(), "reason", err)
	}
	return exit, nil
}

const powerOffTime = 15 * time.Second
