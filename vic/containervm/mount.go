package containervm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/internal/vsphere"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/tether"
)

// A Mount is what a container finds at a place of its own: a volume's disk, a
// directory of an NFS server, or a tmpfs. It is inert data.
type Mount struct {
	// Target is an absolute path in the container.
	Target   string
	ReadOnly bool

	// Disk is a volume's (see volumestore.Volume.Disk). vSphere gives it to one
	// running VM at a time, also where it is mounted read-only: an ext4 cannot be
	// read while another writes it. A disk may be mounted at several targets.
	Disk vic.Disk
	// NFS and Tmpfs take the place of Disk.
	NFS   *tether.NFS
	Tmpfs *tether.Tmpfs

	// Volume is the name of the volume, and Anonymous whether it goes with the
	// container; both are only told again, by Info. VolumeID is that of one on an NFS
	// server (see volumestore.Volume.ID), by which vSphere tells who has it.
	Volume    string
	VolumeID  string
	Anonymous bool
	// Subpath and NoCopy are as in tether.Volume.
	Subpath string
	NoCopy  bool
}

// maxDisks is how many volumes' disks a container has room for: its SCSI
// controller has 16 units, of which one is its own and one the root's.
const maxDisks = 14

// checkMounts checks what config and Validate of package tether do not.
func (s *Spec) checkMounts() error {
	for i, m := range s.Mounts {
		if err := m.check(); err != nil {
			return fault.Of(vic.ErrInvalid, "Mounts[%d]: %v", i, err)
		}
	}
	if n := len(s.volumeUnits()); n > maxDisks {
		return fault.Of(vic.ErrUnsupported, "Mounts: %d volumes: a VM of ours has one SCSI controller, with room for %d", n, maxDisks)
	}
	return nil
}

func (m *Mount) check() error {
	kinds := 0
	for _, is := range []bool{m.Disk.Path != "", m.NFS != nil, m.Tmpfs != nil} {
		if is {
			kinds++
		}
	}
	if kinds != 1 {
		return errors.New("want one of Disk, NFS and Tmpfs")
	}
	if m.VolumeID != "" && (m.NFS == nil || strings.ContainsAny(m.VolumeID, " \t\n")) {
		return fmt.Errorf("VolumeID %.80q: it is for NFS, and one word", m.VolumeID)
	}
	if m.Tmpfs != nil && (m.Subpath != "" || m.NoCopy || m.Volume != "") {
		return errors.New("Volume, Subpath and NoCopy are for volumes, not for a tmpfs")
	}
	if m.Disk.Path != "" {
		if _, _, err := vsphere.SplitPath(m.Disk.Path); err != nil {
			return err
		}
	}
	return nil
}

// volumeUnits gives each volume's disk its unit, in the order of the mounts.
func (s *Spec) volumeUnits() map[string]int {
	units := map[string]int{}
	next := 1
	for _, m := range s.Mounts {
		if _, have := units[m.Disk.Path]; have || m.Disk.Path == "" {
			continue
		}
		if next == 7 { // the controller's own
			next++
		}
		units[m.Disk.Path] = next
		next++
	}
	return units
}

// volumeIDs is the value of vsphere.KeyVolumes.
func (s *Spec) volumeIDs() string {
	var ids []string
	for _, m := range s.Mounts {
		if m.VolumeID != "" && !slices.Contains(ids, m.VolumeID) {
			ids = append(ids, m.VolumeID)
		}
	}
	return strings.Join(ids, " ")
}

func (m *Mount) config(units map[string]int) tether.Mount {
	out := tether.Mount{Target: m.Target, ReadOnly: m.ReadOnly, Tmpfs: m.Tmpfs}
	if m.Tmpfs == nil {
		out.Volume = &tether.Volume{
			Name: m.Volume, Anonymous: m.Anonymous, Unit: units[m.Disk.Path], NFS: m.NFS, Subpath: m.Subpath, NoCopy: m.NoCopy,
		}
	}
	return out
}

// volumeDisks are the devices of the volumes. Their mode keeps them out of
// snapshots: a volume does not go back in time with a container.
func (s *Spec) volumeDisks(controller int32) object.VirtualDeviceList {
	var out object.VirtualDeviceList
	for path, unit := range s.volumeUnits() {
		out = append(out, vsphere.ExistingDisk(int32(-400-unit), controller, int32(unit), path))
	}
	slices.SortFunc(out, func(a, b types.BaseVirtualDevice) int {
		return int(b.GetVirtualDevice().Key - a.GetVirtualDevice().Key)
	})
	return out
}

// explainLock says who has a volume, where that is why a VM cannot be powered on:
// vSphere names a file at most.
func (v *VM) explainLock(ctx context.Context, cause error) error {
	if !errors.Is(cause, vic.ErrInUse) {
		return cause
	}
	var m mo.VirtualMachine
	if err := vsphere.Properties(ctx, v.c.Session(), v.ref, []string{"config.hardware.device"}, &m); err != nil || m.Config == nil {
		return cause
	}
	var disks []string
	for _, d := range object.VirtualDeviceList(m.Config.Hardware.Device).SelectByType((*types.VirtualDisk)(nil)) {
		if chain := vsphere.BackingChain(d.GetVirtualDevice().Backing); len(chain) > 0 {
			disks = append(disks, chain[0])
		}
	}
	return v.explainUse(ctx, cause, disks...)
}

// explainUse says who has one of some disks, where that is why they cannot be had.
func (v *VM) explainUse(ctx context.Context, cause error, disks ...string) error {
	if !errors.Is(cause, vic.ErrInUse) {
		return cause
	}
	users, err := vsphere.DiskUsers(ctx, v.c.Session())
	if err != nil {
		return cause
	}
	for _, disk := range disks {
		var on []string
		for _, u := range users[disk] {
			if u.On && u.Ref != v.ref {
				on = append(on, u.Name)
			}
		}
		if len(on) > 0 {
			return fault.Of(vic.ErrInUse, "its disk %s is in use by %s, which is not off: a volume is for one running container at a time (%w)", disk, strings.Join(on, ", "), cause)
		}
	}
	return cause
}
