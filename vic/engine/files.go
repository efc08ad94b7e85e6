package engine

import (
	"context"
	"errors"
	"io"
	slashpath "path"
	"strings"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/imagestore"
)

// The files of containers that do not run. One that runs is vic.ErrState.

// restingDisk finds the disk of a container by name, ID or the beginning of an
// ID. What a mount has at a path is not on that disk: a path at or below one is
// vic.ErrUnsupported.
func (e *Engine) restingDisk(ctx context.Context, container, path string) (vic.Disk, error) {
	vm, info, err := e.Find(ctx, container)
	if err != nil {
		return vic.Disk{}, err
	}
	path = slashpath.Clean("/" + path)
	for _, m := range info.Mounts {
		if path == m.Target || strings.HasPrefix(path, m.Target+"/") {
			return vic.Disk{}, fault.Wrap("open files", vm.Ref(), fault.Of(vic.ErrUnsupported, "%s is in the mount %s, which is not on the container's disk: use a running container that has it", path, m.Target))
		}
	}
	return vm.RestingDisk(ctx)
}

// withFS calls f with the file tree of a container, for something at path.
func (e *Engine) withFS(ctx context.Context, container, path string, f func(*imagestore.FS) error) error {
	d, err := e.restingDisk(ctx, container, path)
	if err != nil {
		return err
	}
	tree, err := e.images.OpenFS(ctx, d)
	if err != nil {
		return err
	}
	return errors.Join(f(tree), tree.Close())
}

// StatPath describes a file of a container; a symlink itself.
func (e *Engine) StatPath(ctx context.Context, container, path string) (info imagestore.FileInfo, err error) {
	err = e.withFS(ctx, container, path, func(t *imagestore.FS) error {
		info, err = t.Lstat(path)
		return err
	})
	return info, err
}

// CopyOut writes a file or directory of a container as a tar whose first entry
// has the path's last name. started, where it is not nil, hears of the path
// before anything is written.
func (e *Engine) CopyOut(ctx context.Context, container, path string, w io.Writer, started func(imagestore.FileInfo) error) error {
	return e.withFS(ctx, container, path, func(t *imagestore.FS) error {
		info, err := t.Lstat(path)
		if err != nil {
			return err
		}
		if started != nil {
			if err := started(info); err != nil {
				return err
			}
		}
		return t.TarOut(w, path, nil)
	})
}

// CopyIn unpacks a tar into a directory of a container, which must exist: all of
// it or, with an error, nothing (see imagestore.Store.TarIn).
func (e *Engine) CopyIn(ctx context.Context, container, dir string, r io.Reader, o *imagestore.TarInOptions) error {
	d, err := e.restingDisk(ctx, container, dir)
	if err != nil {
		return err
	}
	return e.images.TarIn(ctx, d, dir, r, o)
}

// Changes lists what a container changed in its image's file tree.
func (e *Engine) Changes(ctx context.Context, container string) (out []imagestore.Change, err error) {
	err = e.withFS(ctx, container, "/", func(t *imagestore.FS) error {
		out, err = t.Changes()
		return err
	})
	return out, err
}
