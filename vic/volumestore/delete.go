package volumestore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-multierror"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/internal/vsphere"
	"github.com/vicsdk/vic-go/vic"
)

// A User is a VM that has a volume.
type User struct {
	VM vic.Ref
	// On tells that the VM is not powered off: a volume that is a disk it has for
	// itself then.
	On bool
}

// Users asks vSphere which VMs have the volume.
func (v *Volume) Users(ctx context.Context) ([]User, error) {
	all, err := v.at.users(ctx, v.s.c, v.doc.Name, v.doc.Name)
	if err != nil {
		return nil, fault.Wrap("inspect", v.Ref(), err)
	}
	var out []User
	for _, u := range all {
		out = append(out, User{VM: vic.Ref{Kind: "vm", ID: u.Ref.Value, Name: u.Name}, On: u.On})
	}
	return out, nil
}

// Delete deletes a volume with all that it holds, but for files on an NFS server,
// which stay (see Info.Directory). One that a VM has, be it off, is vic.ErrInUse;
// one that is not there is no error.
func (s *Store) Delete(ctx context.Context, name string) error {
	v, err := s.open(ctx, name)
	if errors.Is(err, vic.ErrNotFound) {
		return nil
	}
	if err == nil {
		err = v.remove(ctx)
	}
	return fault.Wrap("delete", ref(name), err)
}

// remove takes the volume out of the store, asks again who uses it, and deletes
// it. What a crash leaves a sweep completes.
func (v *Volume) remove(ctx context.Context) error {
	if err := v.at.unused(ctx, v.s.c, v.doc.Name, v.doc.Name); err != nil {
		return err
	}
	out := delPrefix + v.doc.Name + "-" + vsphere.Nonce()
	err := v.at.files.Move(ctx, v.at.path(v.doc.Name), v.at.path(out), false)
	if errors.Is(err, vic.ErrNotFound) {
		return nil // another has deleted it
	}
	if err != nil {
		return err
	}
	return v.s.bury(ctx, v.at, v.doc.Name, out)
}

// bury deletes what was taken out of a store, or puts it back, if a VM was made
// with it meanwhile.
func (s *Store) bury(ctx context.Context, p *place, name, out string) error {
	if err := p.unused(ctx, s.c, name, out); err != nil {
		dctx, cancel := vsphere.Detached(ctx)
		defer cancel()
		e := p.files.Move(dctx, p.path(out), p.path(name), false)
		switch {
		case errors.Is(e, vic.ErrConflict): // the VM's is another volume, made since
			return p.erase(dctx, p.path(out))
		case e != nil && !errors.Is(e, vic.ErrNotFound):
			return fmt.Errorf("%w (and it cannot be put back from %s: %w)", err, p.files.Path(p.path(out)), e)
		}
		return err
	}
	return p.erase(ctx, p.path(out))
}

// unused is vic.ErrInUse where a VM has the volume of a name, whose record lies in
// the directory at.
func (p *place) unused(ctx context.Context, c *vic.Client, name, at string) error {
	all, err := p.users(ctx, c, name, at)
	if err != nil {
		return err
	}
	var names []string
	for _, u := range all {
		names = append(names, u.Name)
	}
	if len(names) == 0 {
		return nil
	}
	slices.Sort(names)
	return fault.Of(vic.ErrInUse, "it is attached to %s", strings.Join(names, ", "))
}

// PruneOptions choose what Prune deletes; nil is anonymous volumes.
type PruneOptions struct {
	// All takes named volumes, too.
	All bool
	// Labels and Unlabelled are as in ListOptions.
	Labels, Unlabelled []string
}

// Prune deletes the volumes that no VM has attached, and what killed processes
// left. It returns their names, also where it ends with an error.
func (s *Store) Prune(ctx context.Context, o *PruneOptions) ([]string, error) {
	if o == nil {
		o = &PruneOptions{}
	}
	dangling := true
	all, err := s.list(ctx, &ListOptions{Labels: o.Labels, Unlabelled: o.Unlabelled, Anonymous: !o.All, Dangling: &dangling})
	if err != nil {
		return nil, fault.Wrap("prune volumes", vic.Ref{}, err)
	}
	var out []string
	var errs *multierror.Error
	for _, v := range all {
		switch err := v.remove(ctx); {
		case err == nil:
			out = append(out, v.Name())
		case errors.Is(err, vic.ErrInUse): // since it was listed
		default:
			errs = multierror.Append(errs, fault.Wrap("delete", v.Ref(), err))
		}
	}
	errs = multierror.Append(errs, s.Sweep(ctx))
	return out, errs.ErrorOrNil()
}

// sweepAge is how old a creation must be to be taken for one that was cut off. It
// takes seconds.
const sweepAge = time.Hour

// gonePrefix begins the name of a creation that a sweep deletes.
const gonePrefix = ".gone-"

var leftRE = regexp.MustCompile(`^(\.new-|\.del-|\.gone-)([A-Za-z0-9][A-Za-z0-9_.-]{0,127})-[0-9a-z]+$`)

// Sweep clears away what killed processes left: creations that began an hour ago
// by the datastore's own clock, and deletions, which are completed. Nobody who
// is at work is disturbed.
func (s *Store) Sweep(ctx context.Context) error {
	var errs *multierror.Error
	for _, p := range s.places {
		if err := s.sweep(ctx, p, sweepAge); err != nil {
			errs = multierror.Append(errs, fmt.Errorf("sweep store %q: %w", p.label, err))
		}
	}
	return errs.ErrorOrNil()
}

func (s *Store) sweep(ctx context.Context, p *place, age time.Duration) error {
	es, err := p.files.List(ctx, p.dir)
	if errors.Is(err, vic.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	var stages []string
	var errs *multierror.Error
	for _, e := range es {
		m := leftRE.FindStringSubmatch(e.Name)
		wanted, want := strings.CutPrefix(e.Name, wantPrefix)
		switch {
		case !e.Dir:
		case want && nameRE.MatchString(wanted):
			stages = append(stages, e.Name)
		case m == nil:
		case m[1] == newPrefix:
			stages = append(stages, e.Name)
		case m[1] == gonePrefix:
			errs = multierror.Append(errs, p.erase(ctx, p.path(e.Name)))
		default:
			// Whoever deletes it may be at it still: both do the same.
			if err := s.bury(ctx, p, m[2], e.Name); err != nil && !errors.Is(err, vic.ErrInUse) {
				errs = multierror.Append(errs, err)
			}
		}
	}
	if len(stages) > 0 {
		errs = multierror.Append(errs, s.sweepStages(ctx, p, stages, age))
	}
	return errs.ErrorOrNil()
}

// sweepStages deletes the creations that are older than age: their records, or
// they themselves, against the record of a creation of this moment.
func (s *Store) sweepStages(ctx context.Context, p *place, stages []string, age time.Duration) error {
	mine := newPrefix + "sweep-" + vsphere.Nonce()
	b, _ := json.Marshal(document{}) // never fails
	if err := p.files.MkdirAll(ctx, p.path(mine)); err != nil {
		return err
	}
	defer func() {
		dctx, cancel := vsphere.Detached(ctx)
		defer cancel()
		_ = p.files.Delete(dctx, p.path(mine))
	}()
	if err := p.files.Put(ctx, p.path(mine, recordFile), strings.NewReader(string(b)), int64(len(b))); err != nil {
		return err
	}
	now, err := p.began(ctx, mine)
	if err != nil {
		return err
	}
	var errs *multierror.Error
	for _, stage := range stages {
		t, err := p.began(ctx, stage)
		switch {
		case errors.Is(err, vic.ErrNotFound):
			continue
		case err != nil:
			errs = multierror.Append(errs, err)
			continue
		case t.IsZero() || now.IsZero() || now.Sub(t) < age:
			continue
		}
		// Its creator, should it live, can publish it no more.
		out := gonePrefix + strings.TrimPrefix(stage, newPrefix)
		if name, want := strings.CutPrefix(stage, wantPrefix); want {
			out = gonePrefix + name + "-" + vsphere.Nonce()
		}
		if err := p.files.Move(ctx, p.path(stage), p.path(out), false); err != nil {
			if !errors.Is(err, vic.ErrNotFound) {
				errs = multierror.Append(errs, err)
			}
			continue
		}
		errs = multierror.Append(errs, p.erase(ctx, p.path(out)))
	}
	return errs.ErrorOrNil()
}

// began is when the record of a stage was written, or, where it has none, when
// the datastore says that its directory was; zero where it does not say.
func (p *place) began(ctx context.Context, stage string) (time.Time, error) {
	es, err := p.files.List(ctx, p.path(stage))
	if err != nil {
		return time.Time{}, err
	}
	for _, e := range es {
		if e.Name == recordFile {
			return e.Modified, nil
		}
	}
	all, err := p.files.List(ctx, p.dir)
	if err != nil {
		return time.Time{}, err
	}
	for _, e := range all {
		if e.Name == stage {
			return e.Modified, nil
		}
	}
	return time.Time{}, fault.Of(vic.ErrNotFound, "%s is gone", stage)
}
