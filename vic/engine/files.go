package engine

import (
	"context"
	"errors"
	"io"
	slashpath "path"
	"strings"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/containervm"
	"github.com/vicsdk/vic-go/vic/imagestore"
	"github.com/vicsdk/vic-go/vic/tether"
)

// The files of containers: of one that runs, its guest is asked; of another, its
// disk is read or changed.

// restingDisk finds the disk of a container that does not run. What a mount has
// at a path is not on that disk: a path at or below one is vic.ErrUnsupported.
func restingDisk(ctx context.Context, vm *containervm.VM, info containervm.Info, path string) (vic.Disk, error) {
	path = slashpath.Clean("/" + path)
	for _, m := range info.Mounts {
		if path == m.Target || strings.HasPrefix(path, m.Target+"/") {
			return vic.Disk{}, fault.Wrap("open files", vm.Ref(), fault.Of(vic.ErrUnsupported, "%s is in the mount %s, which is not on the container's disk: use a running container that has it", path, m.Target))
		}
	}
	return vm.RestingDisk(ctx)
}

// withFS calls f with the file tree of a container that does not run, for
// something at path.
func (e *Engine) withFS(ctx context.Context, vm *containervm.VM, info containervm.Info, path string, f func(*imagestore.FS) error) error {
	d, err := restingDisk(ctx, vm, info, path)
	if err != nil {
		return err
	}
	tree, err := e.images.OpenFS(ctx, d)
	if err != nil {
		return err
	}
	return errors.Join(f(tree), tree.Close())
}

// StatPath describes a file of a container by name, ID or the beginning of an ID;
// a symlink itself.
func (e *Engine) StatPath(ctx context.Context, container, path string) (info imagestore.FileInfo, err error) {
	vm, state, err := e.Find(ctx, container)
	if err != nil {
		return info, err
	}
	if state.State == containervm.Running {
		i, err := vm.LstatFile(ctx, path)
		return fileInfo(i), err
	}
	err = e.withFS(ctx, vm, state, path, func(t *imagestore.FS) error {
		info, err = t.Lstat(path)
		return err
	})
	return info, err
}

func fileInfo(i tether.FileInfo) imagestore.FileInfo {
	return imagestore.FileInfo{
		Name: i.Name, Mode: i.Mode, UID: i.UID, GID: i.GID, Size: i.Size, Links: i.Links, Modified: i.Modified,
		Accessed: i.Accessed, Changed: i.Changed, Major: i.Major, Minor: i.Minor, Link: i.Link,
	}
}

// CopyOut writes a file or directory of a container as a tar whose first entry
// has the path's last name. started, where it is not nil, hears of the path
// before anything is written.
func (e *Engine) CopyOut(ctx context.Context, container, path string, w io.Writer, started func(imagestore.FileInfo) error) error {
	vm, state, err := e.Find(ctx, container)
	if err != nil {
		return err
	}
	if started == nil {
		started = func(imagestore.FileInfo) error { return nil }
	}
	if state.State == containervm.Running {
		return vm.TarOut(ctx, path, w, func(i tether.FileInfo) error { return started(fileInfo(i)) })
	}
	return e.withFS(ctx, vm, state, path, func(t *imagestore.FS) error {
		info, err := t.Lstat(path)
		if err == nil {
			err = started(info)
		}
		if err != nil {
			return err
		}
		return t.TarOut(w, path, nil)
	})
}

// CopyIn unpacks a tar into a directory of a container, which must exist. Of one
// that does not run it is all of it or, with an error, nothing (see
// imagestore.Store.TarIn); of one that runs, what was unpacked before an error
// stays.
func (e *Engine) CopyIn(ctx context.Context, container, dir string, r io.Reader, o *imagestore.TarInOptions) error {
	vm, state, err := e.Find(ctx, container)
	if err != nil {
		return err
	}
	if state.State == containervm.Running {
		return vm.TarIn(ctx, dir, r, tether.TarInOptions{KeepTypes: o != nil && o.KeepTypes})
	}
	d, err := restingDisk(ctx, vm, state, dir)
	if err != nil {
		return err
	}
	return e.images.TarIn(ctx, d, dir, r, o)
}

// Changes lists what a container changed in its image's file tree. One that runs
// is vic.ErrState: its disk is its VM's alone.
func (e *Engine) Changes(ctx context.Context, container string) (out []imagestore.Change, err error) {
	vm, state, err := e.Find(ctx, container)
	if err != nil {
		return nil, err
	}
	err = e.withFS(ctx, vm, state, "/", func(t *imagestore.FS) error {
		out, err = t.Changes()
		return err
	})
	return out, err
}
