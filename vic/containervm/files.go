package containervm

import (
	"context"
	"io"

	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/internal/vsphere"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/tether"
)

// LstatFile describes a file of a running container; a symlink itself, unless the
// path ends in "/.". What does not exist is vic.ErrNotFound; a container that does
// not run is vic.ErrState, and its files are read from its RestingDisk.
func (v *VM) LstatFile(ctx context.Context, path string) (i tether.FileInfo, err error) {
	err = v.ask(ctx, "stat file of container", func(t *tether.Client) error {
		i, err = t.LstatFile(ctx, path)
		return err
	})
	return i, err
}

// TarOut writes a file or directory of a running container as a tar (see
// tether.Client.TarOut).
func (v *VM) TarOut(ctx context.Context, path string, w io.Writer, started func(tether.FileInfo) error) error {
	return v.ask(ctx, "read files of container", func(t *tether.Client) error { return t.TarOut(ctx, path, w, started) })
}

// TarIn unpacks a tar into a directory of a running container (see
// tether.Client.TarIn): what was unpacked before an error stays.
func (v *VM) TarIn(ctx context.Context, dir string, r io.Reader, o tether.TarInOptions) error {
	return v.ask(ctx, "write files of container", func(t *tether.Client) error { return t.TarIn(ctx, dir, r, o) })
}

// Tree lists the root filesystem of a running container (see tether.Client.Tree).
func (v *VM) Tree(ctx context.Context, each func(tether.TreeEntry) error) error {
	return v.ask(ctx, "list files of container", func(t *tether.Client) error { return t.Tree(ctx, each) })
}

// Parents are the disks below a container's root disk, from the top: disks of the
// image, and before them what snapshots left.
func (v *VM) Parents(ctx context.Context) ([]vic.Disk, error) {
	const op = "find image of container"
	var m mo.VirtualMachine
	if err := vsphere.Properties(ctx, v.c.Session(), v.ref, []string{"config.hardware.device"}, &m); err != nil {
		return nil, fault.Wrap(op, v.Ref(), err)
	}
	disk, err := rootDevice(&m)
	if err != nil {
		return nil, fault.Wrap(op, v.Ref(), err)
	}
	var all []vic.Disk
	for b := parentOf(disk.Backing); b != nil && len(all) < maxParents; b = parentOf(b) {
		all = append(all, vic.Disk{Path: b.(types.BaseVirtualDeviceFileBackingInfo).GetVirtualDeviceFileBackingInfo().FileName, Bytes: disk.CapacityInBytes})
	}
	return all, nil
}

// maxParents is more than vSphere takes.
const maxParents = 1024

// parentOf returns the backing of the parent of a disk's, or nil.
func parentOf(b types.BaseVirtualDeviceBackingInfo) types.BaseVirtualDeviceBackingInfo {
	switch b := b.(type) {
	case *types.VirtualDiskFlatVer2BackingInfo:
		if b.Parent != nil {
			return b.Parent
		}
	case *types.VirtualDiskSparseVer2BackingInfo:
		if b.Parent != nil {
			return b.Parent
		}
	case *types.VirtualDiskSeSparseBackingInfo:
		if b.Parent != nil {
			return b.Parent
		}
	}
	return nil
}
