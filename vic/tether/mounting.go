package tether

import (
	"context"
	"fmt"
)

// A Mounter changes what is mounted in the container while its VM runs.
type Mounter interface {
	// Mount mounts m, once more where the container's process is started again. One
	// that is there as it is asked for is no error; another at its target is
	// ErrConflict. After an error nothing of it is left.
	Mount(ctx context.Context, m Mount) error
	// Unmount takes away what is mounted at a target, and has the kernel let go of a
	// disk that is mounted nowhere else. What is in use is ErrBusy, and stays; a
	// target of nothing is ErrNotFound.
	Unmount(ctx context.Context, target string) error
	// Grow looks how large the disk of a unit is and lets its filesystem have all of
	// it. A unit of which nothing is mounted is ErrNotFound.
	Grow(ctx context.Context, unit int) (VolumeSize, error)
}

// VolumeSize is what a guest sees of a volume's disk, in bytes.
type VolumeSize struct {
	Disk int64 `json:"disk"`
	// Filesystem has up to one group of blocks, 128 MiB, less than the disk.
	Filesystem int64 `json:"filesystem"`
}

type mountParams struct {
	Mount Mount `json:"mount"`
}

type unmountParams struct {
	Target string `json:"target"`
}

type growParams struct {
	Unit int `json:"unit"`
}

// Mount mounts a volume or a tmpfs in the running container, by a mount that the
// container's configuration has or will have: the guest does not write that. A disk
// must be in the VM before; one of zeroes gets a filesystem, one that has grown a
// larger one. Unlike at a container's first start, nothing is copied to an empty
// volume: what lies at the target is by now the container's, not the image's, and
// its processes may be changing it.
//
// A mount that is there already, the same in all, is no error, so that a request can
// be repeated; another at the same place, or below it, is ErrConflict. While the
// process waits for being started again the next one gets the mount. A root that is
// read-only must have the target's directory (ErrUnsupported).
func (c *Client) Mount(ctx context.Context, m Mount) error {
	return c.call(ctx, methodMount, mountParams{m}, nil)
}

// Unmount takes a mount away by its target in the configuration, whatever it was
// made by. Where it was the last of a disk, all is on that disk afterwards and the
// kernel has let go of it, so that it can be detached. One in use is ErrBusy and
// stays: to unmount it lazily would leave processes writing to a disk that goes. One
// that is not there is ErrNotFound.
func (c *Client) Unmount(ctx context.Context, target string) error {
	return c.call(ctx, methodUnmount, unmountParams{target}, nil)
}

// GrowVolume has the guest see how large the disk of a mounted volume has become,
// and gives its filesystem the whole of it, while processes go on using that.
// Nothing mounted of the unit is ErrNotFound.
func (c *Client) GrowVolume(ctx context.Context, unit int) (VolumeSize, error) {
	var s VolumeSize
	err := c.call(ctx, methodGrow, growParams{unit}, &s)
	if err == nil && (s.Disk < 0 || s.Filesystem < 0 || s.Filesystem > s.Disk) {
		err = fmt.Errorf("tether: grow: the guest tells of a filesystem of %d bytes on a disk of %d", s.Filesystem, s.Disk)
	}
	return s, err
}

// mounting answers the calls that change mounts.
func (c *serverConn) mounting(ctx context.Context, q callRequest) (any, error) {
	m, config := c.server.config.Mounter, &c.server.config.Container.config
	if m == nil {
		return nil, fmt.Errorf("%w: this guest mounts nothing while it runs", ErrUnsupported)
	}
	switch q.Method {
	case methodMount:
		var p mountParams
		if err := decode(q.Method, q.Params, &p); err != nil {
			return nil, err
		}
		if err := p.Mount.validate(); err != nil {
			return nil, fmt.Errorf("%w: mount.%w", ErrInvalid, err)
		}
		if v := p.Mount.Volume; v != nil && v.NFS == nil && v.Unit == config.Root.Unit {
			return nil, fmt.Errorf("%w: mount.volume.unit: %d is the root's", ErrInvalid, v.Unit)
		}
		return nil, m.Mount(ctx, p.Mount)
	case methodUnmount:
		var p unmountParams
		if err := decode(q.Method, q.Params, &p); err != nil {
			return nil, err
		}
		if err := CheckTarget(p.Target); err != nil {
			return nil, fmt.Errorf("%w: target: %w", ErrInvalid, err)
		}
		return nil, m.Unmount(ctx, p.Target)
	}
	var p growParams
	if err := decode(q.Method, q.Params, &p); err != nil {
		return nil, err
	}
	if err := checkUnit(p.Unit); err != nil {
		return nil, fmt.Errorf("%w: unit: %w", ErrInvalid, err)
	}
	return m.Grow(ctx, p.Unit)
}
