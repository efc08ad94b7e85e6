package engine

import (
	"context"
	"errors"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/internal/vsphere"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/containervm"
	"github.com/vicsdk/vic-go/vic/tether"
	"github.com/vicsdk/vic-go/vic/volumestore"
)

// nfsOf is how a guest mounts a volume that is on an NFS server, or nil.
func nfsOf(v *volumestore.Volume) *tether.NFS {
	n, ok := v.NFS()
	if !ok {
		return nil
	}
	return &tether.NFS{
		Server: n.Server, Path: n.Path, Version: n.Version, Port: n.Port, MountPort: n.MountPort,
		Dir: n.Dir, UID: n.UID, GID: n.GID,
	}
}

// confirm looks whether the volumes on NFS servers are still there, now that vSphere
// tells that the container has them: their deleters could not see that before, and
// the guest would make them anew. Else it deletes the container.
func (e *Engine) confirm(ctx context.Context, vm *containervm.VM, mounts []containervm.Mount) error {
	for _, m := range mounts {
		if err := e.stands(ctx, m); err != nil {
			dctx, cancel := vsphere.Detached(ctx)
			defer cancel()
			return errors.Join(err, vm.Delete(dctx, false))
		}
	}
	return nil
}

// stands tells that the volume of a mount is still the one that was found.
func (e *Engine) stands(ctx context.Context, m containervm.Mount) error {
	if m.VolumeID == "" {
		return nil
	}
	v, err := e.volumes.Open(ctx, m.Volume)
	if err == nil && v.ID() != m.VolumeID {
		err = fault.Of(vic.ErrConflict, "volume %q has just been deleted, and another made of its name", m.Volume)
	}
	return err
}
