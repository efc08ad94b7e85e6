package engine

import (
	"context"
	"io"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/containervm"
	"github.com/vicsdk/vic-go/vic/imagestore"
	"github.com/vicsdk/vic-go/vic/registry"
)

// repository opens the repository of a name the way that Options.Registry says.
func (e *Engine) repository(n registry.Name) (*registry.Repository, error) {
	var o *registry.Options
	if e.reg != nil {
		o = e.reg(n)
	}
	return registry.Open(n, o)
}

// storeName is the name in full by which the store knows an image.
func storeName(name string) (string, error) {
	n, err := registry.ParseName(name)
	return n.String(), err
}

// stopped makes sure that a container's disk does not change: it returns the
// disk, and a function that tells whether it is still the same container at the
// same end.
func stopped(ctx context.Context, vm *containervm.VM, what string) (vic.Disk, func(context.Context) error, error) {
	first, err := vm.Inspect(ctx)
	if err != nil {
		return vic.Disk{}, nil, err
	}
	fail := func(format string, args ...any) error {
		return fault.Wrap(what+" container", vm.Ref(), fault.Of(vic.ErrInUse, format, args...))
	}
	switch first.State {
	case containervm.Created, containervm.Exited:
	default:
		return vic.Disk{}, nil, fail("it is %s and writes to its disk: stop it first", first.State)
	}
	d, err := vm.RestingDisk(ctx)
	check := func(ctx context.Context) error {
		now, err := vm.Inspect(ctx)
		if err == nil && (now.State != first.State || !now.Started.Equal(first.Started)) {
			err = fail("it was started while its disk was read: stop it and do it again")
		}
		return err
	}
	return d, check, err
}

// Commit makes an image of a container that does not run, under a name that
// people use: the container's image with what it changed in its tree, and the
// configuration that o changes. The container's own settings, such as its
// command, are not taken over. A container that runs is vic.ErrInUse.
func (e *Engine) Commit(ctx context.Context, vm *containervm.VM, name string, o *imagestore.CommitOptions) (*imagestore.Image, error) {
	full, err := storeName(name)
	if err != nil {
		return nil, err
	}
	var c imagestore.CommitOptions
	if o != nil {
		c = *o
	}
	disk, check, err := stopped(ctx, vm, "commit")
	if err != nil {
		return nil, err
	}
	info, err := vm.Inspect(ctx)
	if err != nil {
		return nil, err
	}
	if c.Base == "" {
		c.Base = info.Image
	} else if c.Base, err = storeName(c.Base); err != nil {
		return nil, err
	}
	if c.CreatedBy == "" {
		c.CreatedBy = strings.Join(info.Args, " ")
	}
	own := c.Check
	c.Check = func(ctx context.Context) error {
		if err := check(ctx); err != nil || own == nil {
			return err
		}
		return own(ctx)
	}
	return e.images.Commit(ctx, disk, full, &c)
}

// Export writes the tree of a container that does not run as a tar. One that
// runs is vic.ErrInUse; what was written before it was started meanwhile is of no
// worth.
func (e *Engine) Export(ctx context.Context, vm *containervm.VM, w io.Writer, o *imagestore.ExportOptions) error {
	disk, check, err := stopped(ctx, vm, "export")
	if err != nil {
		return err
	}
	if err := e.images.Export(ctx, disk, w, o); err != nil {
		return err
	}
	return check(ctx)
}

// Push sends an image of the VCH's store to the registry that its name says,
// or o.Name, by the names that people use.
func (e *Engine) Push(ctx context.Context, name string, o *imagestore.PushOptions) (ocispec.Descriptor, error) {
	from, err := registry.ParseName(name)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	var p imagestore.PushOptions
	if o != nil {
		p = *o
	}
	to := from
	if p.Name != "" {
		if to, err = registry.ParseName(p.Name); err != nil {
			return ocispec.Descriptor{}, err
		}
	}
	p.Name = to.String()
	dst, err := e.repository(to)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer dst.Close()
	return e.images.Push(ctx, dst, from.String(), &p)
}

// Copy is Push of an image to another name with what refers to it: all comes
// to the byte from the registry that the image's name says, where the
// destination does not have it.
func (e *Engine) Copy(ctx context.Context, name, to string, progress func(vic.Event)) (ocispec.Descriptor, error) {
	n, err := registry.ParseName(name)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	src, err := e.repository(n)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer src.Close()
	return e.Push(ctx, name, &imagestore.PushOptions{Name: to, From: src, Progress: progress})
}

// Tag gives an image of the VCH's store a further name.
func (e *Engine) Tag(ctx context.Context, name, newName string) error {
	from, err := storeName(name)
	if err != nil {
		return err
	}
	to, err := storeName(newName)
	if err != nil {
		return err
	}
	return e.images.Tag(ctx, from, to)
}

// Import makes an image out of a tar, under a name that people use.
func (e *Engine) Import(ctx context.Context, r io.Reader, name string, o *imagestore.ImportOptions) (*imagestore.Image, error) {
	full, err := storeName(name)
	if err != nil {
		return nil, err
	}
	return e.images.Import(ctx, r, full, o)
}

// History tells how an image of the VCH's store was made.
func (e *Engine) History(ctx context.Context, name string) ([]imagestore.HistoryEntry, error) {
	img, err := e.Image(ctx, name)
	if err != nil {
		return nil, err
	}
	return e.images.History(ctx, img)
}

// Save writes images of the VCH's store, by the names that people use, as one
// archive.
func (e *Engine) Save(ctx context.Context, w io.Writer, names []string, o *imagestore.SaveOptions) error {
	var full []string
	for _, name := range names {
		n, err := storeName(name)
		if err != nil {
			return err
		}
		full = append(full, n)
	}
	return e.images.Save(ctx, w, full, o)
}

// Load brings the images of an archive into the VCH's store. Names in the
// archive are read as people write them, unless o.ParseName is set.
func (e *Engine) Load(ctx context.Context, r io.Reader, o *imagestore.LoadOptions) ([]*imagestore.Image, error) {
	var l imagestore.LoadOptions
	if o != nil {
		l = *o
	}
	if l.ParseName == nil {
		l.ParseName = storeName
	}
	if l.Name != "" {
		var err error
		if l.Name, err = storeName(l.Name); err != nil {
			return nil, err
		}
	}
	return e.images.Load(ctx, r, &l)
}
