package imagestore

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"sync"
	"time"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/internal/vsphere"
	"github.com/vicsdk/vic-go/vic"
)

// A HelperSpec says what VM writes the disks of layers where they cannot be
// uploaded: one that boots the bootstrap ISO, has no disk of its own, and gets
// those of layers attached while it runs. An operation that makes layers makes
// one when it needs it, for all of its layers, and deletes it in the end. What a
// killed process left is deleted by Sweep, GC and whoever breaks its lease; it
// powers itself off before that, when nobody speaks to it.
type HelperSpec struct {
	// BootISO is the datastore path of the ISO that container VMs boot.
	BootISO string
	// Pool is the resource pool, and Folder the VM folder.
	Pool, Folder vic.Ref
	// NIC connects it to a network where this process reaches guests (see
	// vic.Config.DialGuest). A fixed Address serves one helper at a time.
	NIC vic.NIC
	// CPUs and MemoryMB; zero is one CPU and 256 MB.
	CPUs     int32
	MemoryMB int64
	// Guest speaks with what runs in it.
	Guest Guest
}

// A Guest configures and reaches the program that runs in helper VMs. Package
// engine has one.
type Guest interface {
	// Options gives the guest's part of a helper's extraConfig: with every key
	// that the guest will write. id, 64 hexadecimal digits, is the helper's, and
	// nic its adapter, which has a MAC.
	Options(id string, nic vic.NIC) (map[string]string, error)
	// Connect connects to a helper by what its extraConfig says now. A guest
	// that cannot be reached yet is vic.ErrUnavailable.
	Connect(ctx context.Context, id string, options map[string]string) (GuestConn, error)
}

// A GuestConn is a connection to a helper VM.
type GuestConn interface {
	// Apply writes to the disk at a unit of the first SCSI controller, which
	// must have the given size in bytes, what runs writes, and returns how many
	// bytes it wrote when all of them are on the disk and are those that were
	// given. The guest has let go of the disk then.
	Apply(ctx context.Context, unit int, bytes int64, runs func(w io.WriterAt) error) (int64, error)
	// PowerOff has the guest power off.
	PowerOff(ctx context.Context) error
	Close() error
}

func (h *HelperSpec) check() error {
	switch {
	case h == nil:
		return errors.New("Helper: missing")
	case h.BootISO == "":
		return errors.New("Helper.BootISO: empty")
	case h.Pool.ID == "":
		return errors.New("Helper.Pool: names no resource pool")
	case h.Folder.ID == "":
		return errors.New("Helper.Folder: names no folder")
	case h.NIC.Network.ID == "":
		return errors.New("Helper.NIC: names no port group")
	case h.Guest == nil:
		return errors.New("Helper.Guest: missing")
	case h.CPUs < 0 || h.MemoryMB < 0 || h.MemoryMB%4 != 0:
		return fmt.Errorf("Helper: %d CPUs and %d MB: vSphere wants a multiple of 4 MB", h.CPUs, h.MemoryMB)
	}
	return nil
}

// Keys of a helper VM's extraConfig: the store and the lease that it is for.
const (
	keyHelperStore = "vic.helper.store"
	keyHelperLease = "vic.helper.lease"
)

const (
	// helperBoot is how long a helper may take from its power-on until it is
	// reached.
	helperBoot = 5 * time.Minute
	// farewell is how long it may take to hear that it is to power off.
	farewell = 2 * time.Second
	// scsiUnits of a controller; number 7 is its own.
	scsiUnits, scsiSelf = 64, 7
)

// A helper is a helper VM that runs.
type helper struct {
	s    *Store
	vm   *object.VirtualMachine
	id   string
	conn GuestConn
	ctl  int32 // key of its SCSI controller
	next int32 // unit
}

// helping is a lease's helper.
type helping struct {
	mu sync.Mutex
	h  *helper
}

// write has the lease's helper, which is made if there is none, write to a disk;
// parent is empty for one that exists. One disk is written at a time. After an
// error the helper is gone, and with it whatever had the disk open.
func (l *lease) write(ctx context.Context, s *Store, spec *HelperSpec, file, parent string, bytes int64, runs func(io.WriterAt) error) (n int64, err error) {
	l.helping.mu.Lock()
	defer l.helping.mu.Unlock()
	if l.helping.h == nil {
		h, err := s.startHelper(ctx, spec, l)
		if err != nil {
			return 0, fmt.Errorf("helper VM: %w", err)
		}
		l.helping.h = h
	}
	h := l.helping.h
	n, err = h.write(ctx, file, parent, bytes, runs)
	if err != nil {
		l.helping.h = nil
		h.close(ctx)
		return 0, fmt.Errorf("helper VM: %w", err)
	}
	return n, nil
}

// close ends the helper, if there is one.
func (g *helping) close(ctx context.Context) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.h != nil {
		g.h.close(ctx)
		g.h = nil
	}
}

// helperName begins the names of the store's helper VMs, and of their
// directories.
func (s *Store) helperName() string {
	return fmt.Sprintf("vic-helper-%08x-", contentID(s.files.Path(s.dir)))
}

func (s *Store) startHelper(ctx context.Context, spec *HelperSpec, l *lease) (*helper, error) {
	id, mac := make([]byte, 32), make([]byte, 6)
	_, _ = rand.Read(id) // never fails
	_, _ = rand.Read(mac)
	h := &helper{s: s, id: hex.EncodeToString(id)}
	nic := spec.NIC
	if nic.MAC == "" {
		// Locally administered, as those of containers.
		nic.MAC = fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", mac[0]&^1|2, mac[1], mac[2], mac[3], mac[4], mac[5])
	}
	cfg, err := s.helperConfig(spec, h.id, nic, l)
	if err != nil {
		return nil, err
	}
	folder := object.NewFolder(s.c.Vim(), types.ManagedObjectReference{Type: "Folder", Value: spec.Folder.ID})
	pool := object.NewResourcePool(s.c.Vim(), types.ManagedObjectReference{Type: "ResourcePool", Value: spec.Pool.ID})
	t, err := vsphere.Begin(ctx, func(ctx context.Context) (*object.Task, error) { return folder.CreateVM(ctx, *cfg, pool, nil) })
	if err != nil {
		return nil, err
	}
	res, err := vsphere.WaitResult(ctx, s.c.Session(), t)
	if err != nil {
		return nil, err
	}
	ref, ok := res.(types.ManagedObjectReference)
	if !ok {
		return nil, fault.Of(vic.ErrUnknownOutcome, "the task's result is a %T, no VM", res)
	}
	h.vm = object.NewVirtualMachine(s.c.Vim(), ref)
	err = h.boot(ctx, spec.Guest)
	if err != nil {
		h.close(ctx)
		return nil, err
	}
	return h, nil
}

func (s *Store) helperConfig(spec *HelperSpec, id string, nic vic.NIC, l *lease) (*types.VirtualMachineConfigSpec, error) {
	options, err := spec.Guest.Options(id, nic)
	if err != nil {
		return nil, err
	}
	store := s.files.Path(s.dir)
	extra := []types.BaseOptionValue{
		&types.OptionValue{Key: keyHelperStore, Value: store},
		&types.OptionValue{Key: keyHelperLease, Value: l.id},
	}
	for _, k := range slices.Sorted(maps.Keys(options)) {
		extra = append(extra, &types.OptionValue{Key: k, Value: options[k]})
	}
	const scsiKey, sataKey = -100, -200
	devices, err := object.VirtualDeviceList{
		vsphere.SCSIController(scsiKey), vsphere.SATAController(sataKey), vsphere.CD(-201, sataKey, spec.BootISO),
		vsphere.Adapter(-300, nic.MAC, vsphere.Port{Name: nic.Network.Name, Key: nic.PortGroupKey, Switch: nic.SwitchUUID}),
	}.ConfigSpec(types.VirtualDeviceConfigSpecOperationAdd)
	if err != nil {
		return nil, err
	}
	_, ds := s.files.Datastore()
	c := &types.VirtualMachineConfigSpec{
		Name:         fmt.Sprintf("%s%s-%d", s.helperName(), l.id, l.n.Add(1)),
		GuestId:      string(types.VirtualMachineGuestOsIdentifierOther3xLinux64Guest),
		Firmware:     string(types.GuestOsDescriptorFirmwareTypeBios),
		Files:        &types.VirtualMachineFileInfo{VmPathName: fmt.Sprintf("[%s]", ds)},
		NumCPUs:      spec.CPUs,
		MemoryMB:     spec.MemoryMB,
		Annotation:   fmt.Sprintf("Writes layers of images to %s.\nIt is deleted when that is done. Do not destroy it: vSphere would delete the images' disks that are attached to it.", store),
		ExtraConfig:  extra,
		DeviceChange: devices,
	}
	if c.NumCPUs == 0 {
		c.NumCPUs = 1
	}
	if c.MemoryMB == 0 {
		c.MemoryMB = 256
	}
	return c, nil
}

// boot starts the VM and connects to its guest.
func (h *helper) boot(ctx context.Context, g Guest) error {
	ses := h.s.c.Session()
	devices, err := h.devices(ctx)
	if err != nil {
		return err
	}
	ctl := devices.SelectByType((*types.ParaVirtualSCSIController)(nil))
	if len(ctl) != 1 {
		return fault.Of(vic.ErrInvalid, "it has %d SCSI controllers", len(ctl))
	}
	h.ctl = ctl[0].GetVirtualDevice().Key
	if err := vsphere.Do(ctx, ses, h.vm.PowerOn); err != nil {
		return err
	}
	bctx, cancel := context.WithTimeoutCause(ctx, helperBoot, fault.Of(vic.ErrUnavailable, "it was not reached within %v", helperBoot))
	defer cancel()
	ref := h.vm.Reference()
	x, err := ses.Watcher.Open(bctx, vsphere.One(ref, "runtime.powerState", "config.extraConfig"))
	if err != nil {
		return why(bctx, err)
	}
	defer x.Release()
	var told map[string]string // what the guest was last asked with
	for {
		// A guest that does not answer yet is asked again, after some time too.
		wctx, cancel := context.WithTimeout(bctx, 500*time.Millisecond)
		var now map[string]string
		off := false
		err := x.Wait(wctx, func(st vsphere.State) (bool, error) {
			if err := st.Err(ref); err != nil {
				return false, err
			}
			o, ok := st.Get(ref, "config.extraConfig").(types.ArrayOfOptionValue)
			if ok {
				now = options(o.OptionValue)
			}
			off = st.Get(ref, "runtime.powerState") == types.VirtualMachinePowerStatePoweredOff
			return off || ok && !maps.Equal(now, told), nil
		})
		again := err != nil && wctx.Err() != nil
		cancel()
		if err != nil && !again || bctx.Err() != nil {
			return why(bctx, err)
		}
		if now == nil {
			continue
		}
		told = now
		h.conn, err = g.Connect(bctx, h.id, now)
		if err == nil {
			return nil
		}
		if off {
			return fault.Of(vic.ErrUnavailable, "it has ended: %w", err)
		}
		if !errors.Is(err, vic.ErrUnavailable) {
			return err
		}
	}
}

func options(list []types.BaseOptionValue) map[string]string {
	out := map[string]string{}
	for _, o := range list {
		kv := o.GetOptionValue()
		if s, ok := kv.Value.(string); ok {
			out[kv.Key] = s
		}
	}
	return out
}

func (h *helper) devices(ctx context.Context) (object.VirtualDeviceList, error) {
	var m mo.VirtualMachine
	err := vsphere.Properties(ctx, h.s.c.Session(), h.vm.Reference(), []string{"config.hardware.device"}, &m)
	if err != nil {
		return nil, err
	}
	if m.Config == nil {
		return nil, fault.Of(vic.ErrUnavailable, "vSphere does not tell its devices now")
	}
	return m.Config.Hardware.Device, nil
}

// write attaches a disk, which is made as a child of parent where that is not
// empty, has the guest write to it, and detaches it.
func (h *helper) write(ctx context.Context, file, parent string, bytes int64, runs func(io.WriterAt) error) (int64, error) {
	if h.next == scsiSelf {
		h.next++
	}
	unit := h.next
	// Each disk has a unit of its own for as long as possible, so that none is
	// taken for the one before.
	h.next = (h.next + 1) % scsiUnits
	add := &types.VirtualDeviceConfigSpec{
		Operation: types.VirtualDeviceConfigSpecOperationAdd,
		Device:    vsphere.Disk(-400, h.ctl, unit, file, parent, bytes),
	}
	if parent != "" {
		add.FileOperation = types.VirtualDeviceConfigSpecFileOperationCreate
	}
	if err := h.reconfigure(ctx, add); err != nil {
		return 0, fmt.Errorf("attach %s: %w", file, err)
	}
	n, err := h.conn.Apply(ctx, int(unit), bytes, runs)
	if err != nil {
		return 0, fmt.Errorf("write %s: %w", file, err)
	}
	devices, err := h.devices(ctx)
	if err == nil {
		err = h.detach(ctx, devices)
	}
	if err != nil {
		return 0, fmt.Errorf("detach %s: %w", file, err)
	}
	return n, nil
}

func (h *helper) reconfigure(ctx context.Context, changes ...types.BaseVirtualDeviceConfigSpec) error {
	return vsphere.Do(ctx, h.s.c.Session(), func(ctx context.Context) (*object.Task, error) {
		return h.vm.Reconfigure(ctx, types.VirtualMachineConfigSpec{DeviceChange: changes})
	})
}

// detach takes all disks off the VM and keeps their files.
func (h *helper) detach(ctx context.Context, devices object.VirtualDeviceList) error {
	var ch []types.BaseVirtualDeviceConfigSpec
	for _, d := range devices.SelectByType((*types.VirtualDisk)(nil)) {
		ch = append(ch, &types.VirtualDeviceConfigSpec{Operation: types.VirtualDeviceConfigSpecOperationRemove, Device: d})
	}
	if len(ch) == 0 {
		return nil
	}
	return h.reconfigure(ctx, ch...)
}

// close ends the connection and deletes the VM, not the disks.
func (h *helper) close(ctx context.Context) {
	dctx, cancel := vsphere.Detached(ctx)
	defer cancel()
	if h.conn != nil {
		fctx, cancel := context.WithTimeout(dctx, farewell)
		_ = h.conn.PowerOff(fctx) // vSphere is asked too
		cancel()
		_ = h.conn.Close()
	}
	if err := h.remove(dctx); err != nil {
		h.s.c.Logger().Warn("a helper VM was left behind; it goes when the store is swept", "vm", h.vm.Reference().Value, "reason", err)
	}
}

// remove deletes a helper VM, whoever made it. Others may do so at the same
// time. The VM is never destroyed: vSphere would delete the disks that somebody
// attaches to it at that moment, and their parents.
func (h *helper) remove(ctx context.Context) error {
	var p poll
	var last error
	for {
		err := h.tryRemove(ctx)
		switch {
		case err == nil, errors.Is(err, vic.ErrNotFound):
			return nil
		case errors.Is(err, vic.ErrConflict), errors.Is(err, vic.ErrState), errors.Is(err, vic.ErrInUse): // another task, or its own power-off
			last = err
			if e := p.wait(ctx); e != nil {
				return err
			}
		case last != nil && ctx.Err() != nil:
			return fmt.Errorf("%w, and until then: %w", err, last)
		default:
			return err
		}
	}
}

func (h *helper) tryRemove(ctx context.Context) error {
	s := h.s
	var m mo.VirtualMachine
	err := vsphere.Properties(ctx, s.c.Session(), h.vm.Reference(), []string{"runtime.powerState", "config.hardware.device", "config.files.vmPathName"}, &m)
	if err != nil {
		return err
	}
	if m.Config == nil {
		return fault.Of(vic.ErrUnavailable, "vSphere does not know its configuration now")
	}
	dir, ok := s.helperDir(m.Config.Files.VmPathName)
	if !ok {
		return fault.Of(vic.ErrInvalid, "its files lie at %s, where nothing can be deleted safely", m.Config.Files.VmPathName)
	}
	if m.Runtime.PowerState != types.VirtualMachinePowerStatePoweredOff {
		if err := vsphere.Do(ctx, s.c.Session(), h.vm.PowerOff); err != nil {
			return fmt.Errorf("power off: %w", err)
		}
	}
	if err := h.detach(ctx, m.Config.Hardware.Device); err != nil {
		return fmt.Errorf("detach disks: %w", err)
	}
	if err := h.vm.Unregister(ctx); err != nil {
		return fmt.Errorf("unregister: %w", vsphere.Judge(err))
	}
	return s.files.Delete(ctx, dir)
}

// helperDir gives the directory of a helper VM of this store by the place of its
// configuration.
func (s *Store) helperDir(vmx string) (string, bool) {
	_, own := s.files.Datastore()
	ds, p, err := vsphere.SplitPath(vmx)
	dir := path.Dir(p)
	return dir, err == nil && ds == own && s.helperLease(dir) != ""
}

// helperLease gives the ID of the lease that the name of a helper VM's directory
// ends in, or nothing. vSphere adds a number where the name is taken.
func (s *Store) helperLease(dir string) string {
	prefix := s.helperName()
	if len(dir) < len(prefix)+16 || dir[:len(prefix)] != prefix {
		return ""
	}
	id := dir[len(prefix):][:16]
	if _, ok := stagedBy(staging + id + "-0"); !ok {
		return ""
	}
	return id
}

// clearHelpers deletes the helper VMs of this store whose leases are gone. A VM
// is made after its lease, and goes before it.
func (s *Store) clearHelpers(ctx context.Context) error {
	if _, ok := s.publisher.(applies); !ok {
		return nil
	}
	es, err := s.files.List(ctx, "")
	if err != nil {
		return err
	}
	var left []string // directories
	for _, e := range es {
		if e.Dir && s.helperLease(e.Name) != "" {
			left = append(left, e.Name)
		}
	}
	if len(left) == 0 {
		return nil
	}
	vms, err := vsphere.VMs(ctx, s.c.Session(), "config.files.vmPathName")
	if err != nil {
		return err
	}
	of := map[string][]types.ManagedObjectReference{}
	for _, m := range vms {
		if m.Config == nil {
			continue
		}
		if dir, ok := s.helperDir(m.Config.Files.VmPathName); ok {
			of[dir] = append(of[dir], m.Self)
		}
	}
	for _, dir := range left {
		_, err := s.files.Stat(ctx, s.path("leases", useLease+s.helperLease(dir), leaseFile))
		if err == nil {
			continue
		}
		if !errors.Is(err, vic.ErrNotFound) {
			return err
		}
		if err := s.clearHelper(ctx, dir, of[dir]); err != nil {
			return fmt.Errorf("helper VM in %s: %w", s.files.Path(dir), err)
		}
	}
	return nil
}

func (s *Store) clearHelper(ctx context.Context, dir string, vms []types.ManagedObjectReference) error {
	for _, ref := range vms {
		var m mo.VirtualMachine
		err := vsphere.Properties(ctx, s.c.Session(), ref, []string{"config.extraConfig"}, &m)
		if errors.Is(err, vic.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		if m.Config == nil || options(m.Config.ExtraConfig)[keyHelperStore] != s.files.Path(s.dir) {
			return fault.Of(vic.ErrInvalid, "VM %s lies there and is not a helper of this store", ref.Value)
		}
		h := &helper{s: s, vm: object.NewVirtualMachine(s.c.Vim(), ref)}
		if err := h.remove(ctx); err != nil {
			return err
		}
	}
	return s.files.Delete(ctx, dir)
}
