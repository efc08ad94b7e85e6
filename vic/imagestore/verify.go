package imagestore

import (
	"context"
	"errors"

	"github.com/vicsdk/vic-go/vic"
)

// intact takes those layers of a chain out of the store whose disks are gone:
// who deletes a VM from disk in vSphere may delete its disks' parents, too. It
// returns how many of the lowest layers it leaves; those above the first that it
// took are to be made again up to the top, where what is there stays. The base it
// makes itself.
func (s *Store) intact(ctx context.Context, dirs []string) (int, error) {
	n := len(dirs)
	for i := len(dirs) - 1; i >= -1; i-- {
		dir := s.baseDir()
		if i >= 0 {
			dir = dirs[i]
		}
		ok, err := s.hasDisk(ctx, dir)
		if err != nil {
			return 0, err
		}
		if ok {
			continue
		}
		if err := s.discard(ctx, "layers", dir); err != nil {
			return 0, err
		}
		if i >= 0 {
			n = i
			continue
		}
		if _, err := s.base(ctx); err != nil {
			return 0, err
		}
	}
	return n, nil
}

// hasDisk tells whether a layer's disk is there, or the layer is not, or has no
// disk of its own.
func (s *Store) hasDisk(ctx context.Context, dir string) (bool, error) {
	l, err := s.readLayer(ctx, dir)
	if errors.Is(err, vic.ErrNotFound) || err == nil && l.Dir != dir {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	es, err := s.files.List(ctx, s.path("layers", dir))
	if errors.Is(err, vic.ErrNotFound) {
		return true, nil // deleted meanwhile
	}
	if err != nil {
		return false, err
	}
	disk, extent := false, false
	for _, e := range es {
		switch e.Name {
		case layerFile, indexFile, recordFile:
		case diskFile:
			disk = true
		default: // named by whoever made the disk
			extent = true
		}
	}
	_, objects := s.publisher.(applies) // on vSAN the extent is no file
	return disk && (extent || objects), nil
}
