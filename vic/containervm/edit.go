package containervm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/internal/vsphere"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/tether"
)

// editTime is how long an edit is tried again that others get in the way of.
const editTime = 5 * time.Second

// edit reconfigures the VM by what plan makes of its properties, nil being nothing.
// What another controller changes at the same time is kept: vSphere refuses a change
// of a configuration that is not the one it was made from
// (VirtualMachineConfigSpec.changeVersion), and then plan is asked again.
func (v *VM) edit(ctx context.Context, props []string, plan func(*mo.VirtualMachine) (*types.VirtualMachineConfigSpec, error)) error {
	props = append(slices.Clone(props), "config.changeVersion")
	late := time.Now().Add(editTime)
	for wait := 50 * time.Millisecond; ; wait *= 2 {
		var m mo.VirtualMachine
		if err := vsphere.Properties(ctx, v.c.Session(), v.ref, props, &m); err != nil {
			return err
		}
		if m.Config == nil {
			return fault.Of(vic.ErrState, "vSphere does not know its configuration now")
		}
		m.Self = v.ref
		spec, err := plan(&m)
		if err != nil || spec == nil {
			return err
		}
		spec.ChangeVersion = m.Config.ChangeVersion
		err = vsphere.Do(ctx, v.c.Session(), func(ctx context.Context) (*object.Task, error) {
			return v.object().Reconfigure(ctx, *spec)
		})
		if !errors.Is(err, vic.ErrConflict) || time.Now().After(late) {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(wait):
		}
	}
}

// errForged: what stands under tether.ConfigKey is not what was written there.
var errForged = fault.Of(vic.ErrDenied, "its guest has written over its configuration, so none can be made for its next start: delete it")

// configFields are the members of a container's configuration, for writing it again
// with all that a newer release may have written into it.
func (i *Info) configFields() (map[string]json.RawMessage, error) {
	fields := map[string]json.RawMessage{}
	if i.config == "" || json.Unmarshal([]byte(i.config), &fields) != nil {
		return nil, errForged
	}
	return fields, nil
}

// editedConfig is the spec that writes a configuration again.
func editedConfig(fields map[string]json.RawMessage) (*types.VirtualMachineConfigSpec, error) {
	doc, err := json.Marshal(fields)
	if err != nil {
		return nil, err
	}
	if _, err := tether.ParseConfig(doc); err != nil {
		return nil, fault.As(vic.ErrInvalid, fmt.Errorf("container configuration: %w", err))
	}
	options, err := configOptions(doc)
	if err != nil {
		return nil, err
	}
	return &types.VirtualMachineConfigSpec{ExtraConfig: options}, nil
}

// configOptions write a configuration, and by what it is told from what a guest has
// written in its place.
func configOptions(doc []byte) ([]types.BaseOptionValue, error) {
	if len(doc) > 60<<10 {
		return nil, fault.Of(vic.ErrInvalid, "arguments, environment and mounts take %d bytes; a guest takes at most 60 KiB by guestinfo", len(doc))
	}
	return []types.BaseOptionValue{
		&types.OptionValue{Key: tether.ConfigKey, Value: string(doc)},
		&types.OptionValue{Key: keyConfigSum, Value: configSum(string(doc))},
	}, nil
}
