package volumestore

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/internal/vsphere"
	"github.com/vicsdk/vic-go/vic"
)

// Create makes a volume. One of the name that is what spec asks for is opened: as
// far as the spec says, its store, size and labels are the same. Another of the
// name is vic.ErrConflict. Of several creators of one name one wins, and the
// others get what it made.
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
	if d.Bytes == 0 {
		d.Bytes = DefaultBytes
	}
	err = s.publish(ctx, p, &d)
	if errors.Is(err, vic.ErrConflict) {
		v, err := s.read(ctx, p, w.name)
		if errors.Is(err, vic.ErrNotFound) {
			return nil, fault.Of(vic.ErrConflict, "%s is taken, and holds no volume", p.files.Path(p.path(w.name)))
		}
		if err != nil {
			return nil, err
		}
		return v, w.fits(v)
	}
	if err != nil {
		return nil, err
	}
	v := &Volume{s: s, at: p, doc: d}
	return v, s.settle(ctx, v)
}

// fits tells how a volume differs from what is asked for.
func (w *want) fits(v *Volume) error {
	differs := func(what string, have, want any) error {
		return fault.Of(vic.ErrConflict, "the name is taken by a volume whose %s is %v, not %v", what, have, want)
	}
	switch {
	case w.store != "" && w.store != v.at.label:
		return differs("store", v.at.label, w.store)
	case w.bytes != 0 && w.bytes != v.doc.Bytes:
		return differs("size in bytes", v.doc.Bytes, w.bytes)
	case len(w.labels) > 0 && !maps.Equal(w.labels, v.doc.Labels):
		return differs("label list", v.doc.Labels, w.labels)
	}
	return nil
}

// publish makes a volume under a name that nobody looks at and renames it. A name
// that is taken is vic.ErrConflict.
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
		if err := p.files.CreateThinDisk(ctx, stage+"/"+diskFile, d.Bytes); err != nil {
			return err
		}
		return p.files.Move(ctx, stage, p.path(d.Name), false)
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

// settle decides between two stores in which a volume of one name was made at the
// same time: each creator looks after it has published, so at least one sees the
// other's, and the one of the later label gives way. A third creator may have been
// told of that one as being there: names are to be given to different stores by one
// creator at a time.
func (s *Store) settle(ctx context.Context, v *Volume) error {
	for _, p := range s.places {
		if p == v.at || v.doc.Anonymous {
			continue
		}
		_, err := s.read(ctx, p, v.doc.Name)
		if errors.Is(err, vic.ErrNotFound) || err == nil && p.label > v.at.label {
			continue
		}
		if err != nil {
			return err
		}
		if err := v.remove(ctx); err != nil {
			return fmt.Errorf("store %q has a volume of this name, too: %w", p.label, err)
		}
		return fault.Of(vic.ErrConflict, "the name has just been taken in store %q", p.label)
	}
	return nil
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
