package imagestore

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/vic"
)

// Deleted is what an operation took out of a store.
type Deleted struct {
	// Untagged are the names that are gone, in order.
	Untagged []string `json:"untagged,omitempty"`
	// Images are the digests of the images that are gone.
	Images []digest.Digest `json:"images,omitempty"`
	// Layers are the directories of the layers that are gone.
	Layers []string `json:"layers,omitempty"`
	// Bytes is the room that the layers took, after their records.
	Bytes int64 `json:"bytes"`
}

// GC deletes the layers that nobody needs: no image of the store, named or
// dangling, no VM's disk, of whichever VCH, no pull that is under way. It also
// clears away what killed processes left. Pulls, of this process or another, may
// run beside it. The disks of VMs that the login cannot see are not known to
// it; those of VMs that run are spared all the same, because vSphere locks them.
func (s *Store) GC(ctx context.Context) (*Deleted, error) {
	d, err := s.collect(ctx, func(*state) (*plan, error) { return &plan{all: true}, nil })
	return d, fault.Wrap("collect garbage", s.ref(), err)
}

// plan is what is to be deleted.
type plan struct {
	names  []string // whole
	images map[digest.Digest]bool
	// all are all layers that nobody needs; otherwise those that images need.
	all bool
}

// state is a store as one who may delete finds it.
type state struct {
	s *Store
	// wants and pulls are what others are at work on.
	wants  map[string]bool
	pulls  map[digest.Digest]bool
	names  map[string]*nameDoc // by name
	images map[digest.Digest]*imageDoc
	layers map[string]*layer // by directory; nil where there is no record
	vms    *vmUse
}

// namesOf lists an image's names.
func (st *state) namesOf(d digest.Digest) []string {
	var out []string
	for name, n := range st.names {
		if n.Manifest == d {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// containers lists the VMs that were made from an image, or from one with the
// same disk.
func (st *state) containers(d digest.Digest) []string {
	if doc := st.images[d]; doc != nil {
		return st.vms.tops[doc.Dir]
	}
	return nil
}

// reach adds directories and all that they need to a set.
func (st *state) reach(set map[string]bool, dirs ...string) {
	for len(dirs) > 0 {
		d := dirs[len(dirs)-1]
		dirs = dirs[:len(dirs)-1]
		if set[d] {
			continue
		}
		set[d] = true
		if l := st.layers[d]; l != nil {
			dirs = append(dirs, l.needs(d)...)
		}
	}
}

// ofImage lists the directories that an image stands on.
func (st *state) ofImage(doc *imageDoc) []string {
	out := []string{doc.Dir}
	// The chain's top may be the record of a layer that changes nothing, beside
	// the one that has the disk.
	format := 0
	if l := st.layers[doc.Dir]; l != nil {
		format = l.Format
	}
	for _, c := range chainIDs(doc.Config.RootFS.DiffIDs) {
		out = append(out, layerName(c.Encoded(), doc.Bytes, format))
	}
	return out
}

// collect deletes what choose says, and what nobody needs then. The order is
// names, images, layers from the top of each chain down, so that wherever it is
// cut off no name is without its image, and no layer without its parent.
func (s *Store) collect(ctx context.Context, choose func(*state) (*plan, error)) (*Deleted, error) {
	out := &Deleted{}
	err := s.exclusive(ctx, func(ctx context.Context, s *Store) error {
		st, err := s.load(ctx)
		if err != nil {
			return err
		}
		p, err := choose(st)
		if err != nil || p == nil {
			return err
		}
		return s.remove(ctx, st, p, out)
	})
	return out, err
}

// load reads the store. Leases come first: a pull whose lease is gone by then
// has written its name, which is read after; one that begins later waits.
func (s *Store) load(ctx context.Context) (*state, error) {
	if err := s.clearHelpers(ctx); err != nil {
		return nil, err
	}
	if err := s.clearOrphans(ctx); err != nil {
		return nil, err
	}
	st := &state{s: s, wants: map[string]bool{}, pulls: map[digest.Digest]bool{}}
	if err := s.loadLeases(ctx, st); err != nil {
		return nil, err
	}
	if err := s.loadRecords(ctx, st); err != nil {
		return nil, err
	}
	if err := s.loadLayers(ctx, st); err != nil {
		return nil, err
	}
	var err error
	st.vms, err = s.vmUse(ctx)
	return st, err
}

// loadLeases breaks the leases of the dead, and reads those of the living.
func (s *Store) loadLeases(ctx context.Context, st *state) error {
	var p poll
	for try := 0; ; try++ {
		sv, err := s.survey(ctx, s.held)
		if err != nil {
			return err
		}
		if err := s.clearDead(ctx, sv); err != nil {
			return err
		}
		again := false
		for id := range sv.uses {
			d, err := s.readUse(ctx, id)
			switch {
			case errors.Is(err, vic.ErrNotFound), errors.Is(err, vic.ErrInvalid):
				again = true // just made, being written, or over
			case err != nil:
				return err
			}
			for _, w := range d.Wants {
				st.wants[w] = true
			}
			st.pulls[d.Image] = true
		}
		if !again {
			return nil
		}
		if try == 20 {
			return fault.Of(vic.ErrUnavailable, "a lease of the store could not be read")
		}
		if err := p.wait(ctx); err != nil {
			return err
		}
	}
}

// each calls f for what a directory has, a few at a time.
func (s *Store) each(ctx context.Context, dir string, f func(ctx context.Context, e string) error) error {
	es, err := s.files.List(ctx, s.path(dir))
	if errors.Is(err, vic.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for _, e := range es {
		if strings.HasPrefix(e.Name, ".") || e.Dir != (dir == "layers") || !e.Dir && !strings.HasSuffix(e.Name, ".json") {
			continue
		}
		g.Go(func() error { return f(ctx, e.Name) })
	}
	return g.Wait()
}

// loadRecords reads names and images. Nothing may be deleted while one of them
// cannot be understood: nobody knows what it needs.
func (s *Store) loadRecords(ctx context.Context, st *state) error {
	var mu sync.Mutex
	st.names, st.images = map[string]*nameDoc{}, map[digest.Digest]*imageDoc{}
	err := s.each(ctx, "names", func(ctx context.Context, e string) error {
		n := &nameDoc{}
		err := s.readJSON(ctx, n, "names", e)
		if err == nil {
			_, err = s.open(ctx, *n)
		}
		if errors.Is(err, vic.ErrNotFound) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", s.files.Path(s.path("names", e)), err)
		}
		mu.Lock()
		defer mu.Unlock()
		st.names[n.Name] = n
		return nil
	})
	if err != nil {
		return err
	}
	err = s.each(ctx, "images", func(ctx context.Context, e string) error {
		doc := &imageDoc{}
		err := s.readJSON(ctx, doc, "images", e)
		if errors.Is(err, vic.ErrNotFound) {
			return nil
		}
		if err == nil {
			err = doc.check()
		}
		if err == nil && imageFile(doc.Manifest) != e {
			err = fault.Of(vic.ErrInvalid, "it is the record of image %s", doc.Manifest)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", s.files.Path(s.path("images", e)), err)
		}
		mu.Lock()
		defer mu.Unlock()
		st.images[doc.Manifest] = doc
		return nil
	})
	if err != nil {
		return err
	}
	// An image of a name counts even where its own record is gone.
	for _, n := range st.names {
		if st.images[n.Manifest] == nil && n.Image != nil {
			st.images[n.Manifest] = n.Image
		}
	}
	return nil
}

func (s *Store) loadLayers(ctx context.Context, st *state) error {
	var mu sync.Mutex
	st.layers = map[string]*layer{}
	return s.each(ctx, "layers", func(ctx context.Context, dir string) error {
		l, err := s.readLayer(ctx, dir)
		if err != nil && !errors.Is(err, vic.ErrNotFound) {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		st.layers[dir] = l
		return nil
	})
}

// remove carries a plan out.
func (s *Store) remove(ctx context.Context, st *state, p *plan, out *Deleted) error {
	for _, name := range p.names {
		if err := s.discard(ctx, "names", nameFile(name)); err != nil {
			return err
		}
		delete(st.names, name)
		out.Untagged = append(out.Untagged, name)
	}
	doomed := map[string]bool{}
	for d := range p.images {
		if st.pulls[d] {
			continue // it is being pulled again
		}
		st.reach(doomed, st.ofImage(st.images[d])...)
		if err := s.discard(ctx, "images", imageFile(d)); err != nil {
			return err
		}
		delete(st.images, d)
		out.Images = append(out.Images, d)
	}
	slices.Sort(out.Images)
	if p.all {
		for d := range st.layers {
			doomed[d] = true
		}
	}

	keep := map[string]bool{}
	for _, doc := range st.images {
		st.reach(keep, st.ofImage(doc)...)
	}
	st.reach(keep, slices.Collect(maps.Keys(st.vms.dirs))...)
	st.reach(keep, slices.Collect(maps.Keys(st.wants))...)
	for d := range doomed {
		if _, there := st.layers[d]; keep[d] || !there {
			delete(doomed, d)
		}
	}
	return s.removeLayers(ctx, st, doomed, out)
}

// removeLayers takes layers out of the store, each after all that need it. One
// that is locked, or needed by another that stays, stays.
func (s *Store) removeLayers(ctx context.Context, st *state, doomed map[string]bool, out *Deleted) error {
	needed := map[string]int{}
	for d, l := range st.layers {
		if l == nil {
			continue
		}
		for _, n := range l.needs(d) {
			needed[n]++
		}
	}
	var ready []string
	for d := range doomed {
		if needed[d] == 0 {
			ready = append(ready, d)
		}
	}
	slices.Sort(ready)
	for len(ready) > 0 {
		d := ready[0]
		ready = ready[1:]
		if err := s.discard(ctx, "layers", d); errors.Is(err, vic.ErrInUse) {
			continue
		} else if err != nil {
			return err
		}
		out.Layers = append(out.Layers, d)
		l := st.layers[d]
		if l == nil {
			continue
		}
		out.Bytes += l.bytes(d)
		for _, n := range l.needs(d) {
			if needed[n]--; needed[n] == 0 && doomed[n] {
				ready = append(ready, n)
			}
		}
	}
	return nil
}

// bytes is what a layer's files take, as its record says.
func (l *layer) bytes(name string) int64 {
	if l.Dir != name {
		return 0
	}
	return l.Extent + l.Index
}

// oldStaging is how long a temporary name stands that no lease guards.
const oldStaging = 24 * time.Hour

// clearOrphans deletes what was staged and has no lease. What is staged under a
// lease is younger than that, so a listing of leases that comes later has it.
func (s *Store) clearOrphans(ctx context.Context) error {
	type found struct {
		path, id string
		at       time.Time
	}
	var all []found
	for _, dir := range []string{"layers", "images", "names"} {
		es, err := s.files.List(ctx, s.path(dir))
		if errors.Is(err, vic.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		for _, e := range es {
			if strings.HasPrefix(e.Name, staging) {
				id, ok := stagedBy(e.Name)
				if !ok {
					id = ""
				}
				all = append(all, found{s.path(dir, e.Name), id, e.Modified})
			}
		}
	}
	if len(all) == 0 {
		return nil
	}
	tree, err := s.files.Tree(ctx, s.path("leases"))
	if err != nil {
		return s.held.lost(err)
	}
	var now time.Time
	for _, e := range tree[s.held.dir] {
		now = later(now, e.Modified)
	}
	held := map[string]bool{}
	for _, e := range tree[""] {
		// A broken one's is cleared with it.
		if i := strings.LastIndex(e.Name, useLease); i >= 0 {
			held[e.Name[i+len(useLease):]] = true
		}
	}
	for _, f := range all {
		if f.id != "" && held[f.id] || f.id == "" && now.Sub(f.at) < oldStaging {
			continue
		}
		if err := s.erase(ctx, f.path); err != nil {
			return err
		}
	}
	return nil
}
