package imagestore

import (
	"context"
	"errors"
	"fmt"

	"github.com/vicsdk/vic-go/internal/ext4"
	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/vic"
)

// rebuild makes the index of a layer anew from the layer's disk, and puts it
// where it was. cause is why it is needed.
func (s *Store) rebuild(ctx context.Context, l *layer, cause error) (*ext4.FS, error) {
	log := s.c.Logger().With("layer", s.files.Path(s.path("layers", l.Dir)))
	log.Warn("the index of a layer is made anew from its disk", "reason", cause)
	fs, err := s.readModel(ctx, l)
	if err != nil {
		return nil, fmt.Errorf("%w, and it cannot be made from the disk: %w", cause, err)
	}
	b, err := fs.MarshalBinary()
	if err != nil {
		return nil, err
	}
	if err := s.replaceIndex(ctx, l, b); err != nil {
		if errors.Is(err, errLost) {
			return nil, err
		}
		log.Warn("the new index was not kept", "reason", err)
	}
	return fs, nil
}

func (s *Store) readModel(ctx context.Context, l *layer) (*ext4.FS, error) {
	d, err := s.openDisk(ctx, s.disk(l).Path, nil)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	r, err := ext4.Open(d, d.Size())
	if err != nil {
		return nil, fault.As(vic.ErrInvalid, err)
	}
	fs, err := ext4.Rebuild(r)
	return fs, fault.As(vic.ErrInvalid, err)
}

// replaceIndex puts an index in its place whole. It belongs to a layer that is
// published, so it is the lease that keeps the layer from being deleted.
func (s *Store) replaceIndex(ctx context.Context, l *layer, b []byte) error {
	if s.held == nil {
		return s.using(ctx, leaseDoc{Wants: []string{l.Dir}}, func(ctx context.Context, s *Store) error { return s.replaceIndex(ctx, l, b) })
	}
	tmp, err := s.held.stage(ctx, "layers", func(tmp string) error { return s.put(ctx, tmp, b) })
	if err == nil {
		err = s.files.Move(ctx, tmp, s.path("layers", l.Dir, indexFile), true)
	}
	return s.unstage(ctx, tmp, err)
}
