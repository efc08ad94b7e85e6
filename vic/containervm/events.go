package containervm

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/vmware/govmomi/event"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/internal/vsphere"
	"github.com/vicsdk/vic-go/vic"
)

// An Action is what happened to a container.
type Action string

// The actions. What happens inside of a guest that vSphere does not see is not
// among them: signals, pauses by the guest's freezer, and starts of the process
// that the guest makes by itself.
const (
	ActionCreate  Action = "create"
	ActionStart   Action = "start"
	ActionKill    Action = "kill" // powered off from outside; ActionDie follows
	ActionStop    Action = "stop" // the guest shut itself down; ActionDie follows
	ActionOOM     Action = "oom"  // the guest says so; ActionDie follows
	ActionDie     Action = "die"
	ActionSuspend Action = "suspend"
	ActionResume  Action = "resume"
	// ActionReset: the guest starts anew, with a new boot in its status.
	ActionReset  Action = "reset"
	ActionUpdate Action = "update" // the VM was reconfigured
	ActionRename Action = "rename"
	// ActionSnapshot is told of when the snapshot is begun: vSphere notes no end.
	ActionSnapshot Action = "snapshot"
	// ActionRevert: the VM is as a snapshot has it, off or running.
	ActionRevert   Action = "revert"
	ActionRelocate Action = "relocate" // to another host or datastore
	ActionDestroy  Action = "destroy"  // out of the inventory
)

// An Event is one of a container's, as vSphere tells it.
type Event struct {
	Time   time.Time `json:"time"`
	Action Action    `json:"action"`
	ID     string    `json:"id"`
	Name   string    `json:"name"`
	Image  string    `json:"image"`
	Ref    vic.Ref   `json:"ref"`
	// User is whose login caused it; empty where nobody's did.
	User string `json:"user,omitempty"`
	// Host that the VM was on.
	Host string `json:"host,omitempty"`
	// ExitCode of an ActionDie, where the guest's last word is about that end.
	ExitCode *int `json:"exitCode,omitempty"`
	// Message is vSphere's own sentence.
	Message string `json:"message,omitempty"`
}

// EventOptions say which events; nil is all from now on.
type EventOptions struct {
	// Since is the first event's time; zero is now. vSphere keeps events for
	// weeks.
	Since time.Time
	// Until is the last event's time; zero is for ever.
	Until time.Time
	// Containers by name or ID, Images by name, and Actions select events
	// where there are any.
	Containers, Images []string
	Actions            []Action
}

const (
	eventPage   = 100
	eventPause  = time.Second
	eventPause0 = 100 * time.Millisecond
	// renewEvents is after how long without an event the collector is made
	// anew, in case it is stuck.
	renewEvents = time.Minute
	// maxStrangers bounds the VMs that are known not to be ours.
	maxStrangers = 4096
)

// Events calls f with the events of a VCH's containers, oldest first, until
// o.Until, ctx's end, or an error of f, which is returned.
//
// The past is what vSphere has kept, by an EventHistoryCollector (vSphere API
// reference) of the datacenter: nothing has to have been listening. Of a
// container that is gone vSphere keeps no more than a name, so its events of the
// past are not told; its ActionDestroy is, if it was there when Events began. A
// login or collector that vCenter has lost is made again, and no event is told
// twice.
func Events(ctx context.Context, c *vic.Client, owner vic.Owner, o *EventOptions, f func(Event) error) error {
	if o == nil {
		o = &EventOptions{}
	}
	r := &eventReader{c: c, owner: owner, o: *o, f: f, known: map[types.ManagedObjectReference]*eventVM{}}
	err := r.run(ctx)
	if errors.Is(err, errUntil) {
		return nil
	}
	if r.told != nil {
		return r.told
	}
	return fault.Wrap("follow events", owner.Folder, err)
}

var errUntil = errors.New("the last event's time has come")

// An eventReader follows the events of one call.
type eventReader struct {
	c     *vic.Client
	owner vic.Owner
	o     EventOptions
	f     func(Event) error
	told  error // what f returned

	known map[types.ManagedObjectReference]*eventVM // nil values: not ours
	since time.Time                                 // time of the last event
	same  map[int32]bool                            // keys of the events of that time
}

// An eventVM is what is known of a container.
type eventVM struct {
	id, name, image string
	resuming        bool
}

func (r *eventReader) run(ctx context.Context) error {
	now, err := r.now(ctx)
	if err != nil {
		return err
	}
	r.since = r.o.Since
	if r.since.IsZero() {
		r.since = now
	}
	if !r.o.Until.IsZero() && r.o.Until.Before(r.since) {
		return fault.Of(vic.ErrInvalid, "Until %s is before Since %s", r.o.Until.Format(time.RFC3339), r.since.Format(time.RFC3339))
	}
	vms, infos, err := List(ctx, r.c, r.owner)
	if err != nil {
		return err
	}
	for i, vm := range vms {
		r.known[vm.ref] = &eventVM{id: vm.id, name: vm.name, image: infos[i].Image}
	}
	wait := eventPause0
	for {
		began := time.Now()
		err := r.collect(ctx)
		switch {
		case r.told != nil, errors.Is(err, errUntil):
			return err
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err == nil: // made anew
			wait = eventPause0
			continue
		case errors.Is(err, vic.ErrDenied), errors.Is(err, vic.ErrInvalid), errors.Is(err, vic.ErrUnsupported):
			return err
		}
		if time.Since(began) > renewEvents/2 {
			wait = eventPause0
		}
		r.c.Logger().Warn("vSphere's events cannot be read now; trying again", "reason", err, "after", wait)
		if err := pause(ctx, wait); err != nil {
			return err
		}
		wait = min(2*wait, 30*time.Second)
	}
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (r *eventReader) now(ctx context.Context) (time.Time, error) {
	t, err := methods.GetCurrentTime(ctx, r.c.Vim())
	if err != nil {
		return time.Time{}, vsphere.Judge(err)
	}
	return *t, nil
}

// collect reads pages of one collector. It returns nil when the collector should
// be made anew.
func (r *eventReader) collect(ctx context.Context) error {
	begin := r.since
	dc := types.ManagedObjectReference{Type: "Datacenter", Value: r.c.Datacenter().ID}
	m := event.NewManager(r.c.Vim())
	hc, err := m.CreateCollectorForEvents(ctx, types.EventFilterSpec{
		Entity:      &types.EventFilterSpecByEntity{Entity: dc, Recursion: types.EventFilterSpecRecursionOptionAll},
		Time:        &types.EventFilterSpecByTime{BeginTime: &begin},
		EventTypeId: eventTypes(),
	})
	if err != nil {
		return vsphere.Judge(err)
	}
	defer func() {
		dctx, cancel := vsphere.Detached(ctx)
		defer cancel()
		_ = hc.Destroy(dctx)
	}()
	// A collector begins at the oldest event that it has.
	quiet := time.Now()
	for {
		page, err := hc.ReadNextEvents(ctx, eventPage)
		if err != nil {
			return vsphere.Judge(err)
		}
		for _, e := range page {
			if err := r.take(ctx, e); err != nil {
				return err
			}
		}
		if len(page) > 0 {
			quiet = time.Now()
			continue
		}
		if !r.o.Until.IsZero() {
			now, err := r.now(ctx)
			if err != nil {
				return err
			}
			if now.After(r.o.Until) {
				return errUntil
			}
		}
		if time.Since(quiet) > renewEvents {
			return nil
		}
		if err := pause(ctx, eventPause); err != nil {
			return err
		}
	}
}

// take tells of one event of vSphere's, unless it was seen before or is nobody's.
func (r *eventReader) take(ctx context.Context, b types.BaseEvent) error {
	e := b.GetEvent()
	if r.seen(e) {
		return nil
	}
	if !r.o.Until.IsZero() && e.CreatedTime.After(r.o.Until) {
		return errUntil
	}
	if e.Vm == nil {
		return nil
	}
	vm, info, err := r.lookUp(ctx, e.Vm.Vm, actionOf(b) == ActionDie)
	if err != nil || vm == nil {
		return err
	}
	out := Event{
		Time: e.CreatedTime, ID: vm.id, Name: vm.name, Image: vm.image, User: e.UserName, Message: e.FullFormattedMessage,
		Ref: vic.Ref{Kind: "vm", ID: e.Vm.Vm.Value, Name: vm.name},
	}
	if e.Host != nil {
		out.Host = e.Host.Name
	}
	if out.Action = actionOf(b); out.Action == "" {
		return nil
	}
	switch x := b.(type) {
	case *types.VmResumingEvent:
		vm.resuming = true
		return nil
	case *types.VmPoweredOnEvent, *types.DrsVmPoweredOnEvent:
		if vm.resuming {
			out.Action, vm.resuming = ActionResume, false
		}
	case *types.VmRenamedEvent:
		vm.name = x.NewName
		out.Name, out.Ref.Name = x.NewName, x.NewName
	case *types.VmRemovedEvent:
		delete(r.known, e.Vm.Vm)
	case *types.TaskEvent:
		if x.Info.DescriptionId != "VirtualMachine.createSnapshot" {
			return nil
		}
	}
	if out.Action == ActionDie && info != nil && info.Known && about(info.Finished, e.CreatedTime) {
		out.ExitCode = &info.ExitCode
		if info.OOMKilled {
			oom := out
			oom.Action, oom.ExitCode = ActionOOM, nil
			if err := r.tell(oom); err != nil {
				return err
			}
		}
	}
	return r.tell(out)
}

// about tells whether an end that a guest told of, by its clock, is the one that
// vSphere saw.
func about(finished, off time.Time) bool {
	d := off.Sub(finished)
	return !finished.IsZero() && d > -time.Minute && d < time.Minute
}

func (r *eventReader) tell(e Event) error {
	o := &r.o
	if len(o.Containers) > 0 && !slices.Contains(o.Containers, e.ID) && !slices.Contains(o.Containers, e.Name) ||
		len(o.Images) > 0 && !slices.Contains(o.Images, e.Image) ||
		len(o.Actions) > 0 && !slices.Contains(o.Actions, e.Action) {
		return nil
	}
	r.told = r.f(e)
	return r.told
}

// seen tells whether an event was taken before, and notes it. A collector that is
// made anew begins with the time of the last event.
func (r *eventReader) seen(e *types.Event) bool {
	switch {
	case e.CreatedTime.Before(r.since):
		return true
	case e.CreatedTime.Equal(r.since):
		if r.same[e.Key] {
			return true
		}
	default:
		r.since, r.same = e.CreatedTime, map[int32]bool{}
	}
	if r.same == nil {
		r.same = map[int32]bool{}
	}
	r.same[e.Key] = true
	return false
}

// lookUp returns the container of a VM, nil where it is none of the VCH's, and
// what is known of it now where that is asked for.
func (r *eventReader) lookUp(ctx context.Context, ref types.ManagedObjectReference, fresh bool) (*eventVM, *Info, error) {
	vm, known := r.known[ref]
	if known && (vm == nil || !fresh) {
		return vm, nil, nil
	}
	x := &VM{c: r.c, ref: ref, owner: r.owner}
	info, owner, err := x.read(ctx)
	switch {
	case isNotFound(err):
		return vm, nil, nil // it is gone: its removal is an event to come
	case err != nil:
		return nil, nil, err
	case known:
		return vm, &info, nil
	case owner != r.owner.ID || info.ID == "":
		if len(r.known) > maxStrangers {
			for k, v := range r.known {
				if v == nil {
					delete(r.known, k)
				}
			}
		}
		r.known[ref] = nil
		return nil, nil, nil
	}
	vm = &eventVM{id: info.ID, name: info.Name, image: info.Image}
	r.known[ref] = vm
	return vm, &info, nil
}

// reverted is the type of the event that a VM was reverted, which has no class.
const reverted = "com.vmware.vc.vm.VmStateRevertedToSnapshot"

// eventTypes are the types of events that are read.
func eventTypes() []string {
	return []string{
		"VmCreatedEvent", "VmPoweredOnEvent", "DrsVmPoweredOnEvent", "VmStoppingEvent", "VmPoweredOffEvent", "VmGuestShutdownEvent",
		"VmSuspendedEvent", "VmResumingEvent", "VmResettingEvent", "VmGuestRebootEvent", "VmReconfiguredEvent", "VmRenamedEvent",
		"VmMigratedEvent", "DrsVmMigratedEvent", "VmRelocatedEvent", "VmRemovedEvent", "TaskEvent", reverted,
	}
}

// actionOf maps vSphere's events.
func actionOf(b types.BaseEvent) Action {
	switch x := b.(type) {
	case *types.VmCreatedEvent:
		return ActionCreate
	case *types.VmPoweredOnEvent, *types.DrsVmPoweredOnEvent:
		return ActionStart
	case *types.VmStoppingEvent:
		return ActionKill
	case *types.VmGuestShutdownEvent:
		return ActionStop
	case *types.VmPoweredOffEvent:
		return ActionDie
	case *types.VmSuspendedEvent:
		return ActionSuspend
	case *types.VmResumingEvent:
		return ActionResume
	case *types.VmResettingEvent, *types.VmGuestRebootEvent:
		return ActionReset
	case *types.VmReconfiguredEvent:
		return ActionUpdate
	case *types.VmRenamedEvent:
		return ActionRename
	case *types.VmMigratedEvent, *types.DrsVmMigratedEvent, *types.VmRelocatedEvent:
		return ActionRelocate
	case *types.VmRemovedEvent:
		return ActionDestroy
	case *types.TaskEvent:
		return ActionSnapshot
	case *types.EventEx:
		if x.EventTypeId == reverted {
			return ActionRevert
		}
	}
	return ""
}
