package containervm

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"time"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/internal/vsphere"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/tether"
)

// A VM is a container VM that exists. It holds no state of the container, only
// its identity and what waits for it; methods ask vSphere. They may be called by
// several goroutines.
type VM struct {
	c     *vic.Client
	ref   types.ManagedObjectReference
	id    string
	name  string
	owner vic.Owner

	view   view
	starts starts
}

// A State is what a container is doing.
type State string

// The states of a container.
const (
	// Created: never started.
	Created State = "created"
	// Running: powered on.
	Running State = "running"
	// Restarting: powered on; the process has ended, and the guest starts it
	// again at NextStart.
	Restarting State = "restarting"
	// Exited: powered off after it ran.
	Exited State = "exited"
	// Suspended by an administrator.
	Suspended State = "suspended"
)

// Info is what vSphere tells of a container. What comes from the guest
// (ExitCode, Started, Finished, Error, Addresses) is the guest's claim.
type Info struct {
	Ref   vic.Ref
	ID    string
	Name  string
	Image string
	// Args is the command line of the main process.
	Args []string
	TTY  bool
	// OpenStdin tells that attachers may bring the process input.
	OpenStdin bool
	// Mounts beside the root.
	Mounts  []tether.Mount
	Created time.Time
	State   State
	// Paused tells that the processes of a container that is Running are frozen.
	Paused bool
	// Started is when the process was started last, and Finished when it ended
	// last; zero where that has not happened since the VM was started.
	Started, Finished time.Time
	// ExitCode of the last run that ended. Where State is Exited it counts if
	// Known is true: the VM of a container that was powered off from outside
	// ended without one.
	ExitCode  int
	Known     bool
	OOMKilled bool
	// OOMKills counts the container's processes that the guest's kernel has ended
	// for want of memory since the VM was started.
	OOMKills int
	// Restart is the policy, Restarts how often the guest has followed it since
	// the VM was started, and NextStart when it will, where State is Restarting.
	Restart   tether.Restart
	Restarts  int
	NextStart time.Time
	// Runs are the last runs that have ended since then, oldest first, where there
	// were restarts; at most eight.
	Runs []tether.Run
	// Health is the state of the health checks, without their log (see Health of
	// a tether.Client); nil where there are none or nothing is known of them.
	Health *tether.HealthStatus
	// Stopped tells that the container was stopped by Stop or Kill and not
	// started since. It is kept only where the policy asks for it.
	Stopped bool
	// Error is why the process could not be started.
	Error string
	// IPs are the guest's addresses.
	IPs []string
	// Timeline has the stages of the guest's last start, each with its time
	// since the start of the guest's kernel.
	Timeline []tether.Stage

	status tether.Status
	stop   tether.Stop
	config string // tether.ConfigKey's document, as it was written at creation
	reach  reach
}

var infoProps = []string{"name", "runtime.powerState", "config.extraConfig", "guest.ipAddress"}

// Open looks a container up by its ID. One that is not of the owner is
// vic.ErrNotFound.
func Open(ctx context.Context, c *vic.Client, owner vic.Owner, id string) (*VM, error) {
	const op = "open container"
	ref := vic.Ref{Kind: "vm", ID: id}
	if !idRE.MatchString(id) {
		return nil, fault.Wrap(op, ref, fault.Of(vic.ErrInvalid, "a container ID has 64 hexadecimal digits"))
	}
	o, err := object.NewSearchIndex(c.Vim()).FindByUuid(ctx, nil, instanceUUID(id), true, types.NewBool(true))
	if err != nil {
		return nil, fault.Wrap(op, ref, vsphere.Judge(err))
	}
	if o == nil {
		return nil, fault.Wrap(op, ref, fault.Of(vic.ErrNotFound, "no VM has its UUID"))
	}
	vm := &VM{c: c, ref: o.Reference(), id: id, owner: owner}
	info, owned, err := vm.read(ctx)
	if err != nil {
		return nil, err
	}
	if owned != owner.ID || info.ID != id {
		return nil, fault.Wrap(op, ref, fault.Of(vic.ErrNotFound, "the VM of its UUID is not a container of VCH %s", owner.Name))
	}
	vm.name = info.Name
	return vm, nil
}

// List returns all containers of a VCH in one round trip, and what is known of
// each, in the order vSphere gives.
func List(ctx context.Context, c *vic.Client, owner vic.Owner) ([]*VM, []Info, error) {
	folder := types.ManagedObjectReference{Type: "Folder", Value: owner.Folder.ID}
	all, err := vsphere.Children[mo.VirtualMachine](ctx, c.Session(), folder, "VirtualMachine", infoProps)
	if err != nil {
		return nil, nil, fault.Wrap("list containers", owner.Folder, err)
	}
	var vms []*VM
	var infos []Info
	for i := range all {
		info, owned := describe(&all[i])
		if owned != owner.ID || info.ID == "" {
			continue
		}
		vms = append(vms, &VM{c: c, ref: all[i].Self, id: info.ID, name: info.Name, owner: owner})
		infos = append(infos, info)
	}
	return vms, infos, nil
}

// Find looks a container up by name, by ID, or by the beginning of an ID. What
// fits several containers is vic.ErrInvalid.
func Find(ctx context.Context, c *vic.Client, owner vic.Owner, name string) (*VM, Info, error) {
	ref := vic.Ref{Kind: "vm", Name: name}
	vms, infos, err := List(ctx, c, owner)
	if err != nil {
		return nil, Info{}, err
	}
	found := -1
	for i, info := range infos {
		if info.Name == name || info.ID == name {
			return vms[i], info, nil
		}
		if len(name) > 0 && strings.HasPrefix(info.ID, name) {
			if found >= 0 {
				return nil, Info{}, fault.Wrap("find container", ref, fault.Of(vic.ErrInvalid, "several IDs begin with it"))
			}
			found = i
		}
	}
	if found < 0 {
		return nil, Info{}, fault.Wrap("find container", ref, fault.Of(vic.ErrNotFound, "VCH %s has no such container", owner.Name))
	}
	return vms[found], infos[found], nil
}

// ID is the container's.
func (v *VM) ID() string { return v.id }

// Name of the container and of its VM.
func (v *VM) Name() string { return v.name }

// Ref names the VM in vSphere.
func (v *VM) Ref() vic.Ref { return vic.Ref{Kind: "vm", ID: v.ref.Value, Name: v.name} }

// Inspect reads the container's state.
func (v *VM) Inspect(ctx context.Context) (Info, error) {
	info, _, err := v.read(ctx)
	return info, err
}

func (v *VM) read(ctx context.Context) (Info, string, error) {
	var m mo.VirtualMachine
	if err := vsphere.Properties(ctx, v.c.Session(), v.ref, infoProps, &m); err != nil {
		return Info{}, "", fault.Wrap("inspect container", v.Ref(), err)
	}
	m.Self = v.ref
	info, owned := describe(&m)
	return info, owned, nil
}

// describe makes an Info of a VM's properties.
func describe(m *mo.VirtualMachine) (info Info, owner string) {
	info = Info{Ref: vic.Ref{Kind: "vm", ID: m.Self.Value, Name: m.Name}, Name: m.Name}
	if m.Config == nil {
		return info, ""
	}
	opt := map[string]string{}
	for _, o := range m.Config.ExtraConfig {
		kv := o.GetOptionValue()
		opt[kv.Key], _ = kv.Value.(string)
	}
	info.ID, owner, info.Image = opt[keyID], opt[keyOwner], opt[keyImage]
	info.Created, _ = time.Parse(time.RFC3339Nano, opt[keyCreated])
	info.status, info.reach = parseStatus(opt[tether.StatusKey]), parseReach(opt[KeyReach])
	// The guest can write over its configuration, and then it says nothing.
	if doc := opt[tether.ConfigKey]; configSum(doc) == opt[keyConfigSum] {
		info.config = doc
		var cfg tether.Config
		if json.Unmarshal([]byte(doc), &cfg) == nil {
			info.Args, info.TTY, info.OpenStdin, info.Mounts = cfg.Process.Args, cfg.Process.TTY, cfg.Process.OpenStdin, cfg.Mounts
			info.Restart, info.stop = cfg.Restart, cfg.Stop
		}
	}
	info.Stopped = info.status.Boot != "" && opt[keyStopped] == info.status.Boot
	if m.Guest != nil && m.Guest.IpAddress != "" {
		info.IPs = []string{m.Guest.IpAddress}
	}
	info.judge(m.Runtime.PowerState)
	return info, owner
}

// parseStatus reads what a guest wrote; what is no status counts as none.
func parseStatus(s string) tether.Status {
	st, err := tether.ParseStatus([]byte(s))
	if err != nil {
		return tether.Status{}
	}
	return st
}

func (i *Info) judge(power types.VirtualMachinePowerState) {
	st := i.status
	i.Started, i.Error, i.OOMKilled, i.Timeline = st.Started, st.Error, st.OOMKilled, st.Timeline
	i.Runs = st.Runs
	i.Finished, i.ExitCode, i.Restarts, i.OOMKills, i.Health = st.Finished, st.ExitCode, st.Restarts, st.OOMKills, st.Health
	switch power {
	case types.VirtualMachinePowerStatePoweredOn:
		i.State = Running
		switch st.State {
		case tether.Running:
			i.Error, i.OOMKilled, i.Paused = "", false, st.Paused
		case tether.Restarting:
			i.State, i.NextStart = Restarting, st.NextStart
		default:
			// Of a former boot, perhaps.
			i.Error, i.OOMKilled, i.Started = "", false, time.Time{}
		}
		return
	case types.VirtualMachinePowerStateSuspended:
		i.State = Suspended
		return
	}
	i.IPs = nil
	switch st.State {
	case "":
		i.State = Created
	case tether.Exited, tether.Failed:
		i.State, i.Known = Exited, true
	default:
		// Cut off while it ran, or before it ran again.
		i.State, i.ExitCode, i.Finished = Exited, 0, time.Time{}
	}
}

func isNotFound(err error) bool { return errors.Is(err, vic.ErrNotFound) }
