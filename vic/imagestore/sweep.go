package imagestore

import (
	"context"
	"errors"
	"strings"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/internal/vsphere"
	"github.com/vicsdk/vic-go/vic"
)

// Sweep clears away what processes left that were killed: half-made layers and
// records, leases, and layers that were taken out to be deleted. What a process
// that lives is at work on stays: one counts as dead when it has not renewed
// its lease for three minutes by the datastore's clock. Every operation that
// changes the store does so too.
func (s *Store) Sweep(ctx context.Context) error {
	const op = "sweep image store"
	if err := s.clearHelpers(ctx); err != nil {
		return fault.Wrap(op, s.ref(), err)
	}
	es, err := s.files.List(ctx, s.path("leases"))
	if errors.Is(err, vic.ErrNotFound) || err == nil && len(es) == 0 {
		return nil
	}
	if err == nil {
		lctx, lose := context.WithCancelCause(ctx)
		defer lose(nil)
		var own *lease
		if own, err = s.take(lctx, useLease, leaseDoc{}, lose); err == nil {
			defer own.release(lctx)
			var sv *survey
			if sv, err = s.survey(lctx, own); err == nil {
				err = s.clearDead(lctx, sv)
			}
			err = why(lctx, err)
		}
	}
	return fault.Wrap(op, s.ref(), err)
}

// clearDead breaks the leases that a survey found dead, and clears away what is
// left of them and of those that were broken before.
func (s *Store) clearDead(ctx context.Context, sv *survey) error {
	broken := sv.broken
	for _, name := range sv.dead {
		dead, err := s.breakLease(ctx, name)
		if err != nil {
			return err
		}
		if dead != "" {
			broken = append(broken, dead)
		}
	}
	if sv.gcDead {
		dead, err := s.breakLease(ctx, gcLease)
		if err != nil {
			return err
		}
		if dead != "" {
			broken = append(broken, dead)
		}
	}
	// A right to make a layer stands while its owner's lease does.
	for dir, old := range sv.makes {
		if !old {
			continue
		}
		owner, err := s.maker(ctx, dir)
		if err != nil {
			return err
		}
		if owner == sv.own || sv.uses[owner] {
			continue
		}
		dead, err := s.breakLease(ctx, makeLease+dir)
		if err != nil {
			return err
		}
		if dead != "" {
			broken = append(broken, dead)
		}
	}
	return s.clear(ctx, broken)
}

// bury breaks one lease and clears it away.
func (s *Store) bury(ctx context.Context, name string) error {
	dead, err := s.breakLease(ctx, name)
	if err != nil || dead == "" {
		return err
	}
	return s.clear(ctx, []string{dead})
}

// breakLease renames a lease away and returns its new name, or nothing if it is
// gone already.
func (s *Store) breakLease(ctx context.Context, name string) (string, error) {
	dead := deadLease + vsphere.Nonce() + "-" + name
	err := s.files.Move(ctx, s.path("leases", name), s.path("leases", dead), false)
	if errors.Is(err, vic.ErrNotFound) {
		return "", nil
	}
	return dead, err
}

// clear takes away what is left of broken leases. Several may do that at the
// same time, and one that is cut off is gone on with by the next.
func (s *Store) clear(ctx context.Context, broken []string) error {
	if len(broken) == 0 {
		return nil
	}
	staged := map[string]string{} // IDs of uses, and the leases they were
	for _, dead := range broken {
		_, was, _ := strings.Cut(strings.TrimPrefix(dead, deadLease), "-")
		switch {
		case strings.HasPrefix(was, useLease):
			staged[strings.TrimPrefix(was, useLease)] = dead
		case was == gcLease:
			if err := s.putBack(ctx, dead); err != nil {
				return err
			}
		}
	}
	if len(staged) > 0 { // a helper VM has what was staged open
		if err := s.clearHelpers(ctx); err != nil {
			return err
		}
	}
	if err := s.clearStaged(ctx, staged); err != nil {
		return err
	}
	for _, dead := range broken {
		if err := s.erase(ctx, s.path("leases", dead)); err != nil {
			return err
		}
	}
	return nil
}

// clearStaged takes what was staged under broken leases, by one rename each, so
// that it cannot be published any more.
func (s *Store) clearStaged(ctx context.Context, broken map[string]string) error {
	if len(broken) == 0 {
		return nil
	}
	for _, dir := range []string{"layers", "images", "names"} {
		es, err := s.files.List(ctx, s.path(dir))
		if errors.Is(err, vic.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		for _, e := range es {
			id, ok := stagedBy(e.Name)
			dead := broken[id]
			if !ok || dead == "" {
				continue
			}
			err := s.files.Move(ctx, s.path(dir, e.Name), s.path("leases", dead, dir+e.Name), false)
			if err != nil && !errors.Is(err, vic.ErrNotFound) {
				return err
			}
		}
	}
	return nil
}

// putBack gives those layers back to the store that were taken out of it while
// a VM was being made on them. dead is the broken lease they lie in.
func (s *Store) putBack(ctx context.Context, dead string) error {
	tree, err := s.files.Tree(ctx, s.path("leases", dead))
	if errors.Is(err, vic.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	at := map[string]string{} // layer directory: where it lies
	for dir, es := range tree {
		for _, e := range es {
			if e.Name == layerFile && strings.Count(dir, "/") == 1 {
				_, name, _ := strings.Cut(dir, "/")
				at[name] = dir
			}
		}
	}
	if len(at) == 0 {
		return nil
	}
	vms, err := s.vmUse(ctx)
	if err != nil {
		return err
	}
	for name, dir := range at {
		if !vms.dirs[name] {
			continue
		}
		err := s.files.Move(ctx, s.path("leases", dead, dir), s.path("layers", name), false)
		if err != nil && !errors.Is(err, vic.ErrNotFound) && !errors.Is(err, vic.ErrConflict) {
			return err
		}
	}
	return nil
}
