package tether

import (
	"context"
	"fmt"
)

// A Freezer stops all of a container's processes, and lets them go on.
type Freezer interface {
	// Freeze returns when nothing in the container runs.
	Freeze(ctx context.Context) error
	Thaw() error
}

// Pause freezes the container's processes. One that is paused already stays so;
// one that does not run is ErrNotRunning.
func (c *Container) Pause(ctx context.Context, f Freezer) error {
	c.pausing.Lock()
	defer c.pausing.Unlock()
	if _, err := c.running(); err != nil {
		return err
	}
	if f == nil {
		return fmt.Errorf("%w: this guest cannot freeze processes", ErrUnsupported)
	}
	if err := f.Freeze(ctx); err != nil {
		// Half frozen is not paused.
		_ = f.Thaw()
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.freezer, c.status.Paused = f, c.run.process != nil
	return nil
}

// Unpause lets the container's processes go on. One that is not paused is left
// as it is; one that does not run is ErrNotRunning.
func (c *Container) Unpause() error {
	c.pausing.Lock()
	defer c.pausing.Unlock()
	if _, err := c.running(); err != nil {
		return err
	}
	return c.thaw()
}

// thaw lets paused processes go on; pausing is locked.
func (c *Container) thaw() error {
	c.mu.Lock()
	f := c.freezer
	c.freezer, c.status.Paused = nil, false
	c.mu.Unlock()
	if f == nil {
		return nil
	}
	return f.Thaw()
}

func (c *Container) paused() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.status.Paused
}

// canExec tells why nothing can be run in the container now.
func (c *Container) canExec() error {
	if _, err := c.running(); err != nil {
		return err
	}
	if c.paused() {
		return ErrPaused
	}
	return nil
}

// Pause freezes the container's processes (Docker's pause). The guest answers on.
// One that is paused already stays so; one that does not run is ErrNotRunning.
func (c *Client) Pause(ctx context.Context) error {
	return c.call(ctx, methodPause, struct{}{}, nil)
}

// Unpause lets the container's processes go on.
func (c *Client) Unpause(ctx context.Context) error {
	return c.call(ctx, methodUnpause, struct{}{}, nil)
}
