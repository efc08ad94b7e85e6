package engine

import (
	"context"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/containervm"
	"github.com/vicsdk/vic-go/vic/imagestore"
)

// Start powers a container on. Where disks of its image are gone, because an
// administrator deleted another container of it from disk and vSphere took the
// parents along, they are pulled again: the same layers make the same disks, and
// the container's own disk fits them.
func (e *Engine) Start(ctx context.Context, vm *containervm.VM, progress func(vic.Event)) error {
	err := vm.Start(ctx)
	if !errors.Is(err, vic.ErrNotFound) {
		return err
	}
	if e2 := e.mend(ctx, vm, progress); e2 != nil {
		return errors.Join(err, fmt.Errorf("its image cannot be mended: %w", e2))
	}
	return vm.Start(ctx)
}

// mend has what is missing of a container's image made anew.
func (e *Engine) mend(ctx context.Context, vm *containervm.VM, progress func(vic.Event)) error {
	info, err := vm.Inspect(ctx)
	if err != nil {
		return err
	}
	img, err := e.images.Find(ctx, info.Image)
	if err != nil {
		return err
	}
	_, src, err := e.source(img.Name())
	if err != nil {
		return err
	}
	_, err = e.images.Pull(ctx, pinned{src, img.Digest()}, img.Name(), &imagestore.PullOptions{Progress: progress, Verify: true})
	return err
}

// pinned finds one image under every name: a tag may have become another's.
type pinned struct {
	imagestore.Source
	digest digest.Digest
}

func (p pinned) Resolve(ctx context.Context, _ string) (ocispec.Descriptor, error) {
	return p.Source.Resolve(ctx, p.digest.String())
}
