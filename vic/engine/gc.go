package engine

import (
	"context"
	"errors"

	"github.com/vicsdk/vic-go/vic/containervm"
	"github.com/vicsdk/vic-go/vic/imagestore"
)

// GC deletes what the VCH's stores have and nothing needs, and what killed
// processes left: layers, half-made volumes, files of deleted containers.
func (e *Engine) GC(ctx context.Context) (*imagestore.Deleted, error) {
	err := containervm.Sweep(ctx, e.c, e.host.Owner())
	err = errors.Join(err, e.volumes.Sweep(ctx))
	d, e2 := e.images.GC(ctx)
	return d, errors.Join(err, e2)
}
