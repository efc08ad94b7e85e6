package volumestore

import (
	"context"
	"encoding/json"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/vic"
)

// Grow makes a volume larger: its disk at once, and the filesystem on it when a
// container mounts it next. bytes are rounded up to a multiple of Granule; as many
// as it has are no error, fewer are vic.ErrInvalid. A volume that a running VM has
// is vic.ErrInUse: vSphere takes that as a change of the VM, which an engine's
// GrowVolume makes.
func (s *Store) Grow(ctx context.Context, name string, bytes int64) (*Volume, error) {
	return s.GrowWith(ctx, name, bytes, nil)
}

// GrowWith is Grow of a volume whose disk grows by a way of its own: extend makes
// the disk at a path as large as it says, and does nothing where it is so. It is
// called before the volume's record tells of the size.
func (s *Store) GrowWith(ctx context.Context, name string, bytes int64, extend func(context.Context, vic.Disk) error) (*Volume, error) {
	const op = "grow"
	v, err := s.open(ctx, name)
	if err == nil {
		err = v.grow(ctx, bytes, extend)
	}
	if err != nil {
		return nil, fault.Wrap(op, ref(name), err)
	}
	return v, nil
}

func (v *Volume) grow(ctx context.Context, bytes int64, extend func(context.Context, vic.Disk) error) error {
	if bytes <= 0 || bytes > MaxBytes {
		return fault.Of(vic.ErrInvalid, "%d bytes: want up to 1 TiB", bytes)
	}
	if v.at.nfs != nil {
		return fault.Of(vic.ErrUnsupported, "it is a directory of an NFS server, which has no size of its own")
	}
	bytes = (bytes + Granule - 1) / Granule * Granule
	if bytes < v.doc.Bytes {
		return fault.Of(vic.ErrInvalid, "%d bytes are less than the %d it has: volumes do not shrink", bytes, v.doc.Bytes)
	}
	// The record comes second: where it lags behind, growing again corrects it.
	var err error
	if extend != nil {
		err = extend(ctx, vic.Disk{Path: v.Disk().Path, Bytes: bytes})
	} else {
		err = v.at.files.ExtendDisk(ctx, v.at.path(v.doc.Name, diskFile), bytes)
	}
	if err != nil {
		return err
	}
	v.doc.Bytes = bytes
	b, err := json.MarshalIndent(&v.doc, "", "  ")
	if err != nil {
		return err
	}
	return v.at.files.WriteFile(ctx, v.at.path(v.doc.Name, recordFile), b)
}
