package engine

import (
	"context"
	"errors"
	"maps"
	"path"
	"slices"

	"github.com/hashicorp/go-multierror"

	"github.com/vicsdk/vic-go/internal/vsphere"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/containervm"
	"github.com/vicsdk/vic-go/vic/imagestore"
	"github.com/vicsdk/vic-go/vic/volumestore"
)

// A VolumeMount is a volume of a container by its name. Where the name is not
// taken, a volume is made, as Docker does it.
type VolumeMount struct {
	// Volume by name; empty makes an anonymous one.
	Volume   string
	Target   string
	ReadOnly bool
	// Subpath and NoCopy are as in tether.Volume.
	Subpath string
	NoCopy  bool
	// Labels and Options are for a volume that has to be made; see
	// volumestore.Spec.
	Labels, Options map[string]string
}

// Volumes are the VCH's volume stores.
func (e *Engine) Volumes() *volumestore.Store { return e.volumes }

// mounts opens or makes the volumes of a container, those that its image wants
// included. made are the anonymous ones, which go if the container cannot be made.
func (e *Engine) mounts(ctx context.Context, s RunSpec, img *imagestore.Image) (out []containervm.Mount, made []string, err error) {
	want := slices.Clone(s.Volumes)
	taken := map[string]bool{}
	for _, m := range s.Container.Mounts {
		taken[path.Clean(m.Target)] = true
	}
	for i := range want {
		want[i].Target = path.Clean(want[i].Target)
		taken[want[i].Target] = true
	}
	for _, target := range slices.Sorted(maps.Keys(img.Config().Volumes)) {
		if target = path.Clean("/" + target); !taken[target] {
			want = append(want, VolumeMount{Target: target})
			taken[target] = true
		}
	}
	out = slices.Clone(s.Container.Mounts)
	for _, m := range want {
		mount, err := e.volumeMount(ctx, m)
		if err != nil {
			return nil, made, err
		}
		if m.Volume == "" {
			made = append(made, mount.Volume)
		}
		out = append(out, mount)
	}
	return out, made, nil
}

// volumeMount opens or makes a volume.
func (e *Engine) volumeMount(ctx context.Context, m VolumeMount) (containervm.Mount, error) {
	v, err := e.volumes.Create(ctx, volumestore.Spec{Name: m.Volume, Labels: m.Labels, Options: m.Options})
	if errors.Is(err, vic.ErrConflict) && m.Volume != "" && len(m.Labels)+len(m.Options) == 0 {
		v, err = e.volumes.Open(ctx, m.Volume) // made at this moment
	}
	if err != nil {
		return containervm.Mount{}, err
	}
	return containervm.Mount{
		Target: m.Target, ReadOnly: m.ReadOnly, Disk: v.Disk(), NFS: nfsOf(v), VolumeID: v.ID(),
		Volume: v.Name(), Anonymous: v.Info().Anonymous, Subpath: m.Subpath, NoCopy: m.NoCopy,
	}, nil
}

// dropVolumes deletes anonymous volumes. One that another container has stays, and
// so does one that is not anonymous by its own record, whatever else says so.
func (e *Engine) dropVolumes(ctx context.Context, names []string) error {
	var errs *multierror.Error
	for _, n := range names {
		v, err := e.volumes.Open(ctx, n)
		if err == nil && v.Info().Anonymous {
			err = e.volumes.Delete(ctx, n)
		}
		if err != nil && !errors.Is(err, vic.ErrInUse) && !errors.Is(err, vic.ErrNotFound) {
			errs = multierror.Append(errs, err)
		}
	}
	return errs.ErrorOrNil()
}

// RemoveOptions say how a container is deleted; nil is one that is off, and
// without its volumes.
type RemoveOptions struct {
	// Force deletes a container that runs, too.
	Force bool
	// Volumes deletes its anonymous volumes, as far as no other container has
	// them.
	Volumes bool
}

// Remove deletes a container. Volumes with a name stay.
func (e *Engine) Remove(ctx context.Context, vm *containervm.VM, o *RemoveOptions) error {
	if o == nil {
		o = &RemoveOptions{}
	}
	var anonymous []string
	if o.Volumes {
		info, err := vm.Inspect(ctx)
		if err != nil && !errors.Is(err, vic.ErrNotFound) {
			return err
		}
		for _, m := range info.Mounts {
			if m.Volume != nil && m.Volume.Anonymous && !slices.Contains(anonymous, m.Volume.Name) {
				anonymous = append(anonymous, m.Volume.Name)
			}
		}
	}
	if err := vm.Delete(ctx, o.Force); err != nil {
		return err
	}
	return e.dropVolumes(ctx, anonymous)
}

// undoVolumes deletes what was made for a container that could not be made.
func (e *Engine) undoVolumes(ctx context.Context, made []string, err error) error {
	if len(made) == 0 {
		return err
	}
	dctx, cancel := vsphere.Detached(ctx)
	defer cancel()
	return errors.Join(err, e.dropVolumes(dctx, made))
}
