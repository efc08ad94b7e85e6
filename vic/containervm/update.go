package containervm

import (
	"context"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/vic"
)

// Rename gives the container and its VM another name, in any state. One that
// another container of the VCH has is vic.ErrConflict. The guest's host name and
// the VM's directory stay as they are, and this value keeps the name it was
// opened with.
func (v *VM) Rename(ctx context.Context, name string) error {
	const op = "rename container"
	if !nameRE.MatchString(name) {
		return fault.Wrap(op, v.Ref(), invalidName(name))
	}
	return v.task(ctx, op, func(ctx context.Context) (*object.Task, error) { return v.object().Rename(ctx, name) })
}

// A Hardware says what a container VM's hardware is to be; zero leaves a part as
// it is.
type Hardware struct {
	CPUs     int32 // 1 to 128
	MemoryMB int64 // at least 64, a multiple of 4
}

// Update changes the VM's hardware. Container VMs are made without hot-add, which
// costs a guest more than most would gain: one that runs is vic.ErrState.
func (v *VM) Update(ctx context.Context, h Hardware) error {
	const op = "update container"
	switch {
	case h == Hardware{}:
		return fault.Wrap(op, v.Ref(), fault.Of(vic.ErrInvalid, "nothing is to change: give CPUs or MemoryMB"))
	case h.CPUs != 0:
		if err := checkCPUs(h.CPUs); err != nil {
			return fault.Wrap(op, v.Ref(), err)
		}
	}
	if h.MemoryMB != 0 {
		if err := checkMemory(h.MemoryMB); err != nil {
			return fault.Wrap(op, v.Ref(), err)
		}
	}
	info, err := v.Inspect(ctx)
	if err != nil {
		return err
	}
	if info.State == Running || info.State == Suspended {
		return fault.Wrap(op, v.Ref(), fault.Of(vic.ErrState, "it is %s, and its VM takes no processors or memory meanwhile: stop it first", info.State))
	}
	return v.task(ctx, op, func(ctx context.Context) (*object.Task, error) {
		return v.object().Reconfigure(ctx, types.VirtualMachineConfigSpec{NumCPUs: h.CPUs, MemoryMB: h.MemoryMB})
	})
}
