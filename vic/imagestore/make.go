package imagestore

import (
	"context"
	"errors"

	"github.com/vicsdk/vic-go/internal/vsphere"
	"github.com/vicsdk/vic-go/vic"
)

// reserve gets the right to make layers: dirs are the directories of a chain,
// of which the first n are there. It returns how far this caller is to make it
// and what to call when that is over. Where somebody else makes layer n, in
// this process or another, it waits until that is there, or nobody makes it any
// more, and returns n: look again. waits is called before it waits.
//
// That saves work and no more: two that make the same layer publish it once.
func (s *Store) reserve(ctx context.Context, dirs []string, n int, waits func()) (end int, free func(), err error) {
	s.shared.mu.Lock()
	if busy := s.shared.making[dirs[n]]; busy != nil {
		s.shared.mu.Unlock()
		waits()
		select {
		case <-busy:
			return n, nil, nil
		case <-ctx.Done():
			return n, nil, context.Cause(ctx)
		}
	}
	done := make(chan struct{})
	end = n
	for end < len(dirs) && s.shared.making[dirs[end]] == nil {
		s.shared.making[dirs[end]] = done
		end++
	}
	mine := dirs[n:end]
	s.shared.mu.Unlock()
	leave := func() {
		s.shared.mu.Lock()
		for _, d := range mine {
			delete(s.shared.making, d)
		}
		s.shared.mu.Unlock()
		close(done)
	}
	won, err := s.lockMaking(ctx, mine, waits)
	if err != nil || !won {
		leave()
		return n, nil, err
	}
	return end, func() {
		// The end of the lease tells nobody who waits for this right.
		s.unlockMaking(ctx, mine[0])
		leave()
	}, nil
}

// lockMaking gets the right to make layers among processes. The right is for the
// lowest layer, and the owner's lease then names those above that it will make
// as well: whoever lacks only those has seen the lowest published, and by then
// they were named.
func (s *Store) lockMaking(ctx context.Context, dirs []string, waits func()) (bool, error) {
	at := s.path("leases", makeLease+dirs[0])
	locked := false
	defer func() {
		if locked {
			s.unlockMaking(ctx, dirs[0])
		}
	}()
	var p poll
	for {
		owner := ""
		if !locked {
			err := s.files.Mkdir(ctx, at)
			switch {
			case err == nil:
				locked = true
				err = s.put(ctx, at+"/"+ownerFile, []byte(s.held.id))
			case errors.Is(err, vic.ErrConflict):
				// Read before the leases are: it had one when it wrote this.
				owner, err = s.maker(ctx, dirs[0])
			}
			if err != nil {
				return false, err
			}
		}
		sv, err := s.survey(ctx, s.held)
		if err != nil {
			return false, err
		}
		if err := s.clearDead(ctx, sv); err != nil {
			return false, err
		}
		var busy bool
		switch {
		case locked:
			if busy, err = s.madeElsewhere(ctx, sv, dirs[0]); err != nil {
				return false, err
			}
		case owner != "":
			busy = sv.uses[owner]
		default: // about to write its name, unless it died there
			old, there := sv.makes[dirs[0]]
			busy = there && !old
		}
		if _, err := s.readLayer(ctx, dirs[0]); err == nil {
			return false, nil
		} else if !errors.Is(err, vic.ErrNotFound) {
			return false, err
		}
		switch {
		case !locked && !busy:
			// Its owner is dead, or it is being freed at this moment.
			if err := s.bury(ctx, makeLease+dirs[0]); err != nil {
				return false, err
			}
			continue
		case locked && !busy:
			if err := s.held.makes(ctx, dirs); err != nil {
				return false, err
			}
			locked = false // the caller's now
			return true, nil
		}
		if p.d == 0 {
			waits()
		}
		if err := p.wait(ctx); err != nil {
			return false, err
		}
	}
}

// madeElsewhere tells whether another's lease names a layer among those that it
// makes.
func (s *Store) madeElsewhere(ctx context.Context, sv *survey, dir string) (bool, error) {
	for id := range sv.uses {
		d, err := s.readUse(ctx, id)
		if errors.Is(err, vic.ErrNotFound) {
			continue // ended, or not written yet: then it has yet to see our right
		}
		if errors.Is(err, vic.ErrInvalid) {
			return true, nil // being written: look again
		}
		if err != nil {
			return false, err
		}
		for _, m := range d.Makes {
			if m == dir {
				return true, nil
			}
		}
	}
	return false, nil
}

// maker reads who has the right to make a layer; empty is nobody, or one who has
// not written its name yet.
func (s *Store) maker(ctx context.Context, dir string) (string, error) {
	b, err := s.files.ReadFile(ctx, s.path("leases", makeLease+dir, ownerFile), 64)
	if errors.Is(err, vic.ErrNotFound) {
		return "", nil
	}
	return string(b), err
}

// unlockMaking gives the right back, unless it has become another's.
func (s *Store) unlockMaking(ctx context.Context, dir string) {
	dctx, cancel := vsphere.Detached(ctx)
	defer cancel()
	p := s.path("leases", makeLease+dir)
	if owner, err := s.maker(dctx, dir); err == nil && owner != s.held.id {
		return
	}
	if err := s.files.Delete(dctx, p); err != nil {
		s.c.Logger().Warn("the right to make a layer was left behind; it goes with this process's lease", "layer", dir, "reason", err)
	}
}
