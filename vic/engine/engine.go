// Package engine composes the packages of this module into whole operations:
// a VCH by the names of things, an image by its name, a container pulled for,
// made, attached to, waited for and removed in one call.
package engine

import (
	"context"
	"errors"
	"strings"

	"github.com/hashicorp/go-multierror"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/containervm"
	"github.com/vicsdk/vic-go/vic/imagestore"
	"github.com/vicsdk/vic-go/vic/network"
	"github.com/vicsdk/vic-go/vic/registry"
	"github.com/vicsdk/vic-go/vic/vch"
	"github.com/vicsdk/vic-go/vic/volumestore"
)

// An Engine runs containers in one VCH. Its methods may be called by several
// goroutines. It holds nothing that must be closed.
type Engine struct {
	c       *vic.Client
	host    *vch.VCH
	images  *imagestore.Store
	volumes *volumestore.Store
	reg     func(registry.Name) *registry.Options
}

// Options of an engine; nil means all defaults.
type Options struct {
	// Registry gives the way to a registry, or nil for the default way.
	Registry func(registry.Name) *registry.Options
	// Images are the image store's options. Where they name no Helper, it is the
	// VCH's own (see Helper).
	Images *imagestore.Options
}

// VCHSpec is a vch.Spec with a port group by its name.
type VCHSpec struct {
	vch.Spec
	// Network is the port group of the containers, by name or inventory path.
	Network string
}

// CreateVCH makes a VCH whose containers are on a port group that is named.
func CreateVCH(ctx context.Context, c *vic.Client, s VCHSpec, o vch.Options) (*vch.VCH, error) {
	pg, err := network.Open(ctx, c, s.Network)
	if err != nil {
		return nil, err
	}
	s.NIC, err = pg.NIC(network.NICOptions{})
	if err != nil {
		return nil, err
	}
	return vch.Create(ctx, c, s.Spec, o)
}

// DeleteOptions say what goes with a VCH; the zero value is nothing.
type DeleteOptions struct {
	// Force deletes the VCH's containers first, running ones too. Without it
	// a VCH that has some is vic.ErrInUse.
	Force bool
	// Images deletes the images of the VCH's store first. One that another
	// VCH's container uses is vic.ErrInUse.
	Images bool
	// Volumes deletes the volumes of the VCH's stores first. One that a VM has
	// is vic.ErrInUse.
	Volumes bool
}

// DeleteVCH deletes a VCH. One that is not there is no error.
func DeleteVCH(ctx context.Context, c *vic.Client, name string, o DeleteOptions) error {
	host, err := vch.Open(ctx, c, name)
	switch {
	case errors.Is(err, vic.ErrNotFound):
		return nil
	case errors.Is(err, vic.ErrState): // half-made or half-deleted: nothing runs in it
	case err != nil:
		return err
	default:
		if err := empty(ctx, c, host, o); err != nil {
			return err
		}
		if err := containervm.SweepAll(ctx, c, host.Owner()); err != nil {
			return err
		}
	}
	return vch.Delete(ctx, c, name)
}

func empty(ctx context.Context, c *vic.Client, host *vch.VCH, o DeleteOptions) error {
	if o.Force {
		if err := deleteContainers(ctx, c, host.Owner()); err != nil {
			return err
		}
	}
	if o.Volumes {
		if err := deleteVolumes(ctx, c, host); err != nil {
			return err
		}
	}
	if !o.Images {
		return nil
	}
	s, err := imagestore.Open(ctx, c, host.Images(), withHelper(c, host.Owner(), nil))
	if err != nil {
		return err
	}
	all, err := s.List(ctx)
	if err != nil {
		return err
	}
	var errs *multierror.Error
	for _, i := range all {
		_, err := s.Delete(ctx, i.Name(), nil)
		errs = multierror.Append(errs, err)
	}
	if errs.ErrorOrNil() == nil {
		_, err = s.Prune(ctx, nil) // those without a name
	}
	return errors.Join(errs.ErrorOrNil(), err)
}

func deleteVolumes(ctx context.Context, c *vic.Client, host *vch.VCH) error {
	s, err := volumestore.Open(c, host.Volumes())
	if err != nil {
		return err
	}
	all, err := s.List(ctx, nil)
	if err != nil {
		return err
	}
	var errs *multierror.Error
	for _, v := range all {
		errs = multierror.Append(errs, s.Delete(ctx, v.Name()))
	}
	errs = multierror.Append(errs, s.Sweep(ctx))
	return errs.ErrorOrNil()
}

func deleteContainers(ctx context.Context, c *vic.Client, o vic.Owner) error {
	vms, _, err := containervm.List(ctx, c, o)
	if err != nil {
		return err
	}
	var errs *multierror.Error
	for _, vm := range vms {
		errs = multierror.Append(errs, vm.Delete(ctx, true))
	}
	return errs.ErrorOrNil()
}

// Open opens the VCH of a name; an empty name means the only one there is.
func Open(ctx context.Context, c *vic.Client, name string, o *Options) (*Engine, error) {
	if o == nil {
		o = &Options{}
	}
	if name == "" {
		all, err := vch.List(ctx, c)
		if err != nil {
			return nil, err
		}
		if len(all) != 1 {
			return nil, fault.Wrap("open", vic.Ref{Kind: "VCH"}, fault.Of(vic.ErrInvalid, "there are %d VCHs: name one", len(all)))
		}
		name = all[0].Name
	}
	host, err := vch.Open(ctx, c, name)
	if err != nil {
		return nil, err
	}
	images, err := imagestore.Open(ctx, c, host.Images(), withHelper(c, host.Owner(), o.Images))
	if err != nil {
		return nil, err
	}
	volumes, err := volumestore.Open(c, host.Volumes())
	if err != nil {
		return nil, err
	}
	return &Engine{c: c, host: host, images: images, volumes: volumes, reg: o.Registry}, nil
}

// VCH that the engine runs containers in.
func (e *Engine) VCH() *vch.VCH { return e.host }

// Images is the VCH's image store.
func (e *Engine) Images() *imagestore.Store { return e.images }

// Pull brings an image into the VCH's store.
func (e *Engine) Pull(ctx context.Context, name string, progress func(vic.Event)) (*imagestore.Image, error) {
	return e.PullWith(ctx, name, &imagestore.PullOptions{Progress: progress})
}

// PullWith is Pull with all of a pull's options.
func (e *Engine) PullWith(ctx context.Context, name string, po *imagestore.PullOptions) (*imagestore.Image, error) {
	n, src, err := e.source(name)
	if err != nil {
		return nil, err
	}
	return e.images.Pull(ctx, src, n.String(), po)
}

// source opens the registry that a name is of.
func (e *Engine) source(name string) (registry.Name, *registry.Repository, error) {
	n, err := registry.ParseName(name)
	if err != nil {
		return n, nil, err
	}
	var o *registry.Options
	if e.reg != nil {
		o = e.reg(n)
	}
	src, err := registry.Open(n, o)
	return n, src, err
}

// Image opens an image of the VCH's store by the name people use.
func (e *Engine) Image(ctx context.Context, name string) (*imagestore.Image, error) {
	n, err := registry.ParseName(name)
	if err != nil {
		return nil, err
	}
	return e.images.Image(ctx, n.String())
}

// FindImage opens an image of the VCH's store by the name people use, by its
// digest, or by the beginning of that (see imagestore.Store.Find).
func (e *Engine) FindImage(ctx context.Context, name string) (*imagestore.Image, error) {
	img, err := e.Image(ctx, name)
	if err == nil {
		return img, nil
	}
	if !errors.Is(err, vic.ErrNotFound) && !errors.Is(err, vic.ErrInvalid) {
		return nil, err
	}
	// A repository in front of a digest is called by its whole name.
	id := name
	if n, e := registry.ParseName(name); e == nil && strings.Contains(name, "@") {
		id = n.String()
	}
	img, e2 := e.images.Find(ctx, id)
	if errors.Is(e2, vic.ErrNotFound) {
		return nil, err
	}
	return img, e2
}

// DeleteImage takes a name from the VCH's store, and the image with its last
// name; or it deletes the image of a digest, or of the beginning of one. What
// is not there is no error.
func (e *Engine) DeleteImage(ctx context.Context, name string, o *imagestore.DeleteOptions) (*imagestore.Deleted, error) {
	img, err := e.FindImage(ctx, name)
	if errors.Is(err, vic.ErrNotFound) {
		return &imagestore.Deleted{}, nil
	}
	if err != nil {
		return nil, err
	}
	// One that was found by name goes by name.
	if n, err := registry.ParseName(name); err == nil && n.String() == img.Name() {
		return e.images.Delete(ctx, img.Name(), o)
	}
	return e.images.Delete(ctx, img.Digest().String(), o)
}

// List returns the VCH's containers and what is known of each.
func (e *Engine) List(ctx context.Context) ([]*containervm.VM, []containervm.Info, error) {
	return containervm.List(ctx, e.c, e.host.Owner())
}

// Find looks a container up by name, ID or the beginning of an ID.
func (e *Engine) Find(ctx context.Context, name string) (*containervm.VM, containervm.Info, error) {
	return containervm.Find(ctx, e.c, e.host.Owner(), name)
}
