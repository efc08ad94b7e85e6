package volumestore

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"time"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/internal/vsphere"
	"github.com/vicsdk/vic-go/vic"
)

// Create makes a volume. One of the name that is what spec asks for is opened: as
// far as the spec says, its store, size and labels are the same. Another of the
// name is vic.ErrConflict. Of several creators of one name one wins; the others
// get what it made, or vic.ErrConflict where they asked for another store.
func (s *Store) Create(ctx context.Context, spec Spec) (*Volume, error) {
	const op = "create"
	w, err := spec.check()
	if err != nil {
		return nil, fault.Wrap(op, ref(spec.Name), err)
	}
	v, err := s.create(ctx, w)
	return v, fault.Wrap(op, ref(w.name), err)
}

func (s *Store) create(ctx context.Context, w want) (*Volume, error) {
	if !w.anonymous {
		v, err := s.open(ctx, w.name)
		if err == nil {
			return v, w.fits(v)
		}
		if !errors.Is(err, vic.ErrNotFound) {
			return nil, err
		}
	}
	p, err := s.place(w.store)
	if err != nil {
		return nil, err
	}
	d := document{
		Version: 1, Name: w.name, Bytes: w.bytes, Created: time.Now().UTC(),
		Anonymous: w.anonymous, Labels: maps.Clone(w.labels), Options: maps.Clone(w.options),
	}
	if err := p.sized(&w); err != nil {
		return nil, err
	}
	switch {
	case p.nfs != nil:
		d.ID = newID()
	case d.Bytes == 0:
		d.Bytes = DefaultBytes
	}
	err = s.publish(ctx, p, &d)
	if errors.Is(err, vic.ErrConflict) || err == nil && s.wants(&d) {
		v, e := s.read(ctx, p, w.name)
		if errors.Is(e, vic.ErrNotFound) {
			return nil, errors.Join(err, e)
		}
		if e != nil {
			return nil, e
		}
		return v, w.fits(v)
	}
	if err != nil {
		return nil, err
	}
	return &Volume{s: s, at: p, doc: d}, nil
}

// fits tells how a volume differs from what is asked for.
func (w *want) fits(v *Volume) error {
	differs := func(what string, have, want any) error {
		return fault.Of(vic.ErrConflict, "the name is taken by a volume whose %s is %v, not %v", what, have, want)
	}
	switch {
	case w.store != "" && w.store != v.at.label:
		return differs("store", v.at.label, w.store)
	case v.at.sized(w) != nil:
		return v.at.sized(w)
	case w.bytes != 0 && w.bytes != v.doc.Bytes:
		return differs("size in bytes", v.doc.Bytes, w.bytes)
	case len(w.labels) > 0 && !maps.Equal(w.labels, v.doc.Labels):
		return differs("label list", v.doc.Labels, w.labels)
	}
	return nil
}

// publish makes a volume under a name that nobody looks at and renames it. A name
// that is taken, in this store or in another, is vic.ErrConflict.
func (s *Store) publish(ctx context.Context, p *place, d *document) error {
	stage := p.path(newPrefix + d.Name + "-" + vsphere.Nonce())
	err := func() error {
		b, err := json.MarshalIndent(d, "", "  ")
		if err != nil {
			return err
		}
		if err := p.files.MkdirAll(ctx, stage); err != nil {
			return err
		}
		// The record comes first: its age tells a sweep how old the stage is.
		if err := p.files.Put(ctx, stage+"/"+recordFile, bytes.NewReader(b), int64(len(b))); err != nil {
			return err
		}
		if p.nfs == nil {
			if err := p.files.CreateThinDisk(ctx, stage+"/"+diskFile, d.Bytes); err != nil {
				return err
			}
		}
		if !s.wants(d) {
			return p.files.Move(ctx, stage, p.path(d.Name), false)
		}
		err = p.files.Move(ctx, stage, p.path(wantPrefix+d.Name), false)
		if err != nil && !errors.Is(err, vic.ErrConflict) {
			return err
		}
		// In its place is what another creator in this store wants: it is settled
		// for that one, who may be dead.
		return errors.Join(err, s.settle(ctx, p, d.Name))
	}()
	if err == nil {
		return nil
	}
	dctx, cancel := vsphere.Detached(ctx)
	defer cancel()
	if e := p.erase(dctx, stage); e != nil {
		return &fault.Error{Op: "create", Ref: ref(d.Name), Err: err, Left: []vic.Ref{{Kind: "file", ID: p.files.Path(stage)}}}
	}
	return err
}

// wants tells whether a volume wants its name before it gets it: another store may
// have it.
func (s *Store) wants(d *document) bool { return len(s.places) > 1 && !d.Anonymous }

// settle gives a volume its name that is wanted in a store of several, unless
// another store has the name, or wants it and comes first by its label. Anybody
// may do it for whoever wants it. Of two that want a name, each looks when its want
// is seen, so one sees the other's at least; and a want goes by one rename, to its
// name or away, so what has its name keeps it.
func (s *Store) settle(ctx context.Context, p *place, name string) error {
	for _, q := range s.places {
		if q == p {
			continue
		}
		if err := s.yields(ctx, p, q, name); err != nil {
			return errors.Join(err, p.drop(ctx, name))
		}
	}
	err := p.files.Move(ctx, p.path(wantPrefix+name), p.path(name), false)
	if errors.Is(err, vic.ErrConflict) { // it is there since
		return errors.Join(err, p.drop(ctx, name))
	}
	if !errors.Is(err, vic.ErrNotFound) {
		return err
	}
	// Another has settled it, or taken it away.
	if _, err := s.read(ctx, p, name); !errors.Is(err, vic.ErrNotFound) {
		return err
	}
	return taken(p)
}

func taken(by *place) error {
	return fault.Of(vic.ErrConflict, "the name has just been asked for in store %q", by.label)
}

// yields tells whether store q leaves a name that p wants: it has no volume of the
// name, and where it wants one, that is taken from it, if p comes first.
func (s *Store) yields(ctx context.Context, p, q *place, name string) error {
	// The want is looked for first: it may become the volume meanwhile.
	_, err := q.files.Stat(ctx, q.path(wantPrefix+name, recordFile))
	if err != nil && !errors.Is(err, vic.ErrNotFound) {
		return err
	}
	if err == nil {
		if q.label < p.label {
			return taken(q)
		}
		if err := q.drop(ctx, name); err != nil {
			return err
		}
	}
	_, err = s.read(ctx, q, name)
	if errors.Is(err, vic.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return fault.Of(vic.ErrConflict, "store %q has a volume of this name", q.label)
}

// drop takes a want away. One that is gone, perhaps to its name, is no error.
func (p *place) drop(ctx context.Context, name string) error {
	out := gonePrefix + name + "-" + vsphere.Nonce()
	err := p.files.Move(ctx, p.path(wantPrefix+name), p.path(out), false)
	if errors.Is(err, vic.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return p.erase(ctx, p.path(out))
}

// erase deletes the directory of a volume that is not in the store, its disk as a
// disk first: on vSAN its data is no file beside its descriptor.
func (p *place) erase(ctx context.Context, dir string) error {
	err := p.files.DeleteDisk(ctx, dir+"/"+diskFile)
	if err != nil && !errors.Is(err, vic.ErrNotFound) {
		if errors.Is(err, vic.ErrInUse) {
			return err
		}
		return p.erasePlain(ctx, dir, err)
	}
	return p.files.Delete(ctx, dir)
}

// erasePlain deletes what is no disk: a creation may have been cut off when only
// a part of it was written.
func (p *place) erasePlain(ctx context.Context, dir string, why error) error {
	if err := p.files.Delete(ctx, dir); err != nil {
		return errors.Join(why, err)
	}
	return nil
}
