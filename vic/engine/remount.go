package engine

import (
	"context"
	"errors"
	"fmt"
	"path"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/internal/vsphere"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/containervm"
	"github.com/vicsdk/vic-go/vic/volumestore"
)

// AttachVolume gives a container a volume, found or made by its name as at creation,
// also while the container runs: see containervm.VM.AttachMount. Where that fails, an
// anonymous volume that was made for it goes again; one with a name stays.
func (e *Engine) AttachVolume(ctx context.Context, vm *containervm.VM, m VolumeMount) error {
	m.Target = path.Clean(m.Target)
	mount, err := e.volumeMount(ctx, m)
	if err != nil {
		return err
	}
	if err = vm.AttachMount(ctx, mount); err == nil {
		if err = e.stands(ctx, mount); err != nil {
			dctx, cancel := vsphere.Detached(ctx)
			defer cancel()
			err = errors.Join(err, vm.DetachMount(dctx, mount.Target))
		}
	}
	if err != nil && m.Volume == "" {
		return e.undoVolumes(ctx, []string{mount.Volume}, err)
	}
	return err
}

// DetachVolume takes the mount at a target away from a container, also while that
// runs: see containervm.VM.DetachMount. The volume stays, anonymous ones too.
func (e *Engine) DetachVolume(ctx context.Context, vm *containervm.VM, target string) error {
	return vm.DetachMount(ctx, path.Clean(target))
}

// GrowVolume makes a volume larger, to a number of bytes rounded up to a multiple of
// volumestore.Granule, also while a container of the VCH that runs has it: its VM's
// disk is extended, the volume's record written, and the guest asked to let the
// filesystem have the disk, with processes writing to it all the while. Whatever
// ends on the way, the same call again completes it; so does, for the filesystem,
// whoever mounts the volume next. As many bytes as it has are no error, fewer are
// vic.ErrInvalid. A VM that is on and none of the VCH's containers is vic.ErrInUse, a
// suspended one vic.ErrState.
func (e *Engine) GrowVolume(ctx context.Context, name string, bytes int64) (*volumestore.Volume, error) {
	for try := 0; ; try++ {
		vm, err := e.runningUser(ctx, name)
		if err != nil {
			return nil, err
		}
		var extend func(context.Context, vic.Disk) error
		if vm != nil {
			extend = vm.ExtendDisk
		}
		v, err := e.volumes.GrowWith(ctx, name, bytes, extend)
		switch {
		case errors.Is(err, vic.ErrInUse) && try < 3:
			continue // a container that has it was started, or ended, meanwhile
		case err != nil || vm == nil:
			return v, err
		}
		s, err := vm.GrowFilesystem(ctx, v.Disk().Path)
		if err == nil && s.Disk < v.Disk().Bytes {
			err = fault.Of(vic.ErrUnavailable, "the guest sees a disk of %d bytes", s.Disk)
		}
		if err == nil {
			return v, nil
		}
		if info, e := vm.Inspect(ctx); e == nil && !info.On() && info.State != containervm.Suspended {
			return v, nil // Its next start does it.
		}
		return nil, fmt.Errorf("volume %s has a disk of %d bytes now, but its filesystem grows when this is repeated, or a container is started with it: %w", name, v.Disk().Bytes, err)
	}
}

// runningUser is the container that has a volume and is not off, or nil.
func (e *Engine) runningUser(ctx context.Context, name string) (*containervm.VM, error) {
	v, err := e.volumes.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	users, err := v.Users(ctx)
	if err != nil {
		return nil, err
	}
	for _, u := range users {
		if !u.On {
			continue
		}
		vms, _, err := containervm.List(ctx, e.c, e.host.Owner())
		if err != nil {
			return nil, err
		}
		for _, vm := range vms {
			if vm.Ref().ID == u.VM.ID {
				return vm, nil
			}
		}
		return nil, fault.Wrap("grow", v.Ref(), fault.Of(vic.ErrInUse, "%s, which is no container of this VCH, has it and is not off: power that off first", u.VM.Name))
	}
	return nil, nil
}
