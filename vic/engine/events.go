package engine

import (
	"context"

	"github.com/vicsdk/vic-go/vic/containervm"
)

// Events calls f with the events of the VCH's containers: see containervm.Events.
func (e *Engine) Events(ctx context.Context, o *containervm.EventOptions, f func(containervm.Event) error) error {
	return containervm.Events(ctx, e.c, e.host.Owner(), o, f)
}
