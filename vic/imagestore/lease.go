package imagestore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/internal/vsphere"
	"github.com/vicsdk/vic-go/vic"
)

// Leases say who is at work in a store, whatever process on whatever machine.
// They are directories, because what a datastore does at once is to make and to
// rename one:
//
//	leases/use-ID/lease.json      an operation: the layers that it counts on
//	leases/make-DIR/owner         the ID of the one that makes layer DIR
//	leases/gc/ID/lease.json       the one that may delete
//	leases/gc/ID/…                what it has taken out of the store
//	leases/dead-…                 a lease that was broken, being cleared away
//
// A lease lives as long as lease.json is written again. Its age is the
// difference of two times that the datastore gives in one listing, that of the
// lease and that of the observer's own, so that no two clocks have to agree.
//
// What a lease guards does not rest on its owner knowing that it still has it:
// a process may sleep at any point and wake up long after others have broken
// its lease. A lease is broken by renaming its directory away, and
//
//   - what is published comes, by one rename, from a name that only the lease's
//     owner uses and that was seen beside a lease that stood; who breaks the lease
//     takes such names away after it;
//   - what is deleted goes, by one rename, into the lease's directory.
//
// So one whose lease was broken can do neither. A use is written before its owner
// looks for layers, and then it waits for the end of a gc that it sees; a gc
// exists before its owner looks for uses. So one of the two sees the other.
const (
	leaseFile = "lease.json"
	ownerFile = "owner"
	gcLease   = "gc"
	useLease  = "use-"
	makeLease = "make-"
	deadLease = "dead-"
	staging   = ".new-"
)

// leaseTime is how long a lease stands that nobody renews.
const leaseTime = 3 * time.Minute

// errLost is the cause that ends an operation whose lease was broken.
var errLost = fault.Of(vic.ErrConflict, "this process did not renew its lease on the image store in time, and another one took it for dead")

// leaseDoc is what lease.json says.
type leaseDoc struct {
	Version int `json:"version"`
	// Wants are layer directories, and Image the image, that must stay.
	Wants []string      `json:"wants,omitempty"`
	Image digest.Digest `json:"image,omitempty"`
	// Makes are the layer directories that the owner is making.
	Makes []string `json:"makes,omitempty"`
}

// A lease that this process has. It is renewed until it is released.
type lease struct {
	s    *Store
	id   string
	dir  string // below leases/
	lose context.CancelCauseFunc
	stop context.CancelFunc
	done chan struct{}
	n    atomic.Int64

	mu  sync.Mutex
	doc leaseDoc

	helping helping
}

// take makes a lease in a directory of its own, and renews it. lose is told
// when it turns out to be broken.
func (s *Store) take(ctx context.Context, prefix string, doc leaseDoc, lose context.CancelCauseFunc) (*lease, error) {
	doc.Version = 1
	id := vsphere.Nonce()
	l := &lease{s: s, id: id, dir: prefix + id, doc: doc, lose: lose, done: make(chan struct{})}
	if err := s.files.MkdirAll(ctx, l.path()); err != nil {
		return nil, err
	}
	bctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	l.stop = stop
	if err := l.renew(ctx); err != nil {
		stop()
		close(l.done)
		l.release(ctx)
		return nil, err
	}
	go l.run(bctx)
	return l, nil
}

func (l *lease) path(elem ...string) string {
	return l.s.path(append([]string{"leases", l.dir}, elem...)...)
}

// renew writes the lease again. The directory is never made again, so a lease
// that was broken stays so.
func (l *lease) renew(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	b, err := json.Marshal(l.doc)
	if err != nil {
		return err
	}
	return l.s.put(ctx, l.path(leaseFile), b)
}

func (l *lease) run(ctx context.Context) {
	defer close(l.done)
	t := time.NewTicker(l.s.leaseTime / 6)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		rctx, cancel := context.WithTimeout(ctx, l.s.leaseTime/2)
		err := l.renew(rctx)
		cancel()
		if errors.Is(err, vic.ErrNotFound) {
			l.lose(errLost)
			return
		}
		if err != nil && ctx.Err() == nil {
			l.s.c.Logger().Warn("a lease on the image store was not renewed", "store", l.s.files.Path(l.s.dir), "reason", err)
		}
	}
}

// makes says which layers the owner makes from now on.
func (l *lease) makes(ctx context.Context, dirs []string) error {
	l.mu.Lock()
	l.doc.Makes = dirs
	l.mu.Unlock()
	return l.lost(l.renew(ctx))
}

// check fails if the lease was broken.
func (l *lease) check(ctx context.Context) error {
	_, err := l.s.files.Stat(ctx, l.path(leaseFile))
	return l.lost(err)
}

func (l *lease) lost(err error) error {
	if errors.Is(err, vic.ErrNotFound) {
		l.lose(errLost)
		return errLost
	}
	return err
}

// end stops renewing.
func (l *lease) end() {
	l.stop()
	<-l.done
}

// release ends the lease and takes it away.
func (l *lease) release(ctx context.Context) {
	l.end()
	dctx, cancel := vsphere.Detached(ctx)
	defer cancel()
	if err := l.s.files.Delete(dctx, l.path()); err != nil {
		l.s.c.Logger().Warn("a lease on the image store was left behind; it goes when its time is over", "lease", l.s.files.Path(l.path()), "reason", err)
	}
}

// stage gives a name in a directory of the store that nobody else uses, for
// what is to be published from there. fill makes what gets the name; only
// then is the lease looked at, so that who breaks it finds the name.
func (l *lease) stage(ctx context.Context, dir string, fill func(tmp string) error) (string, error) {
	tmp := l.s.path(dir, fmt.Sprintf("%s%s-%d", staging, l.id, l.n.Add(1)))
	if err := fill(tmp); err != nil {
		return tmp, err
	}
	return tmp, l.check(ctx)
}

// stagedBy tells whose lease a name was staged under.
func stagedBy(name string) (id string, ok bool) {
	rest, ok := strings.CutPrefix(name, staging)
	if !ok {
		return "", false
	}
	id, n, ok := strings.Cut(rest, "-")
	return id, ok && len(id) == 16 && n != "" && strings.Trim(n, "0123456789") == "" && strings.Trim(id, "0123456789abcdef") == ""
}

// survey is what the leases look like at one moment.
type survey struct {
	own string // the observer's ID
	// uses are those of others that live, by their IDs.
	uses map[string]bool
	// makes are the rights to make a layer, and whether one is old.
	makes map[string]bool
	// gc is somebody's; it may be dead.
	gc, gcDead bool
	// dead are the uses that nobody renews, and broken what is left of leases.
	dead, broken []string
}

// survey lists the leases. Their age is measured by own, which is written anew
// for that if there are others.
func (s *Store) survey(ctx context.Context, own *lease) (*survey, error) {
	tree, err := s.files.Tree(ctx, s.path("leases"))
	if err != nil {
		return nil, own.lost(err)
	}
	if len(tree[""]) > 1 { // others than own
		if err := own.renew(ctx); err != nil {
			return nil, own.lost(err)
		}
		if tree, err = s.files.Tree(ctx, s.path("leases")); err != nil {
			return nil, own.lost(err)
		}
	}
	beat := func(dir string) time.Time {
		for _, e := range tree[dir] {
			if e.Name == leaseFile {
				return e.Modified
			}
		}
		return time.Time{}
	}
	now := beat(own.dir)
	if now.IsZero() {
		return nil, own.lost(fault.Of(vic.ErrNotFound, "no lease"))
	}
	sv := &survey{own: own.id, uses: map[string]bool{}, makes: map[string]bool{}}
	for _, e := range tree[""] {
		if !e.Dir || e.Name == own.dir {
			continue
		}
		at := later(e.Modified, beat(e.Name))
		switch {
		case e.Name == gcLease:
			for _, in := range tree[gcLease] {
				at = later(at, later(in.Modified, beat(path.Join(gcLease, in.Name))))
			}
			sv.gc, sv.gcDead = true, s.old(e.Name, at, now)
		case strings.HasPrefix(e.Name, useLease):
			if s.old(e.Name, at, now) {
				sv.dead = append(sv.dead, e.Name)
			} else {
				sv.uses[strings.TrimPrefix(e.Name, useLease)] = true
			}
		case strings.HasPrefix(e.Name, makeLease):
			sv.makes[strings.TrimPrefix(e.Name, makeLease)] = s.old(e.Name, at, now)
		case strings.HasPrefix(e.Name, deadLease):
			sv.broken = append(sv.broken, e.Name)
		}
	}
	return sv, nil
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// old tells whether a lease was not renewed in time. One that has been seen
// unchanged for twice the time is old too, whatever the datastore's times say:
// its clock may have been set back.
func (s *Store) old(name string, at, now time.Time) bool {
	s.shared.mu.Lock()
	defer s.shared.mu.Unlock()
	if seen, ok := s.shared.seen[name]; !ok || !seen.beat.Equal(at) {
		if len(s.shared.seen) > 10000 {
			clear(s.shared.seen)
		}
		s.shared.seen[name] = sighting{beat: at, first: time.Now()}
	} else if time.Since(seen.first) > 2*s.leaseTime {
		return true
	}
	return !at.IsZero() && now.Sub(at) > s.leaseTime
}

// readUse reads what somebody's use says. One that is gone, or whose record is
// not there yet, is vic.ErrNotFound.
func (s *Store) readUse(ctx context.Context, id string) (leaseDoc, error) {
	var d leaseDoc
	err := s.readJSON(ctx, &d, "leases", useLease+id, leaseFile)
	if err == nil && d.Version != 1 {
		err = fault.Of(vic.ErrUnsupported, "lease %s is of version %d, which a newer release wrote; this one knows 1", id, d.Version)
	}
	return d, err
}

// shared is what all views of an open store have together.
type shared struct {
	mu     sync.Mutex
	making map[string]chan struct{} // layer directories that are being made
	seen   map[string]sighting
	gc     chan struct{} // holds a value while a gc of this store is at work
}

type sighting struct {
	beat  time.Time
	first time.Time
}

func newShared() *shared {
	return &shared{making: map[string]chan struct{}{}, seen: map[string]sighting{}, gc: make(chan struct{}, 1)}
}

// poll waits a little longer each time, up to 300 ms.
type poll struct{ d time.Duration }

func (p *poll) wait(ctx context.Context) error {
	p.d = min(max(2*p.d, 20*time.Millisecond), 300*time.Millisecond)
	t := time.NewTimer(p.d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}

// using runs f with a use of the store: from its start to its end, nothing of
// what doc names is deleted. f gets a view of the store, by which it publishes;
// its context ends with errLost if the lease was broken.
func (s *Store) using(ctx context.Context, doc leaseDoc, f func(ctx context.Context, s *Store) error) error {
	ctx, lose := context.WithCancelCause(ctx)
	defer lose(nil)
	l, err := s.take(ctx, useLease, doc, lose)
	if err != nil {
		return err
	}
	defer l.release(ctx)
	defer l.helping.close(ctx)
	if err := s.awaitGC(ctx, l); err != nil {
		return why(ctx, err)
	}
	view := *s
	view.held = l
	if err := f(ctx, &view); err != nil {
		if errors.Is(context.Cause(ctx), errLost) {
			return errLost
		}
		return err
	}
	return nil
}

// awaitGC waits until nobody deletes who does not know of the lease, and clears
// away the leases of dead processes.
func (s *Store) awaitGC(ctx context.Context, own *lease) error {
	var p poll
	for {
		sv, err := s.survey(ctx, own)
		if err != nil {
			return err
		}
		if err := s.clearDead(ctx, sv); err != nil {
			return err
		}
		if !sv.gc || sv.gcDead {
			return nil
		}
		if err := p.wait(ctx); err != nil {
			return err
		}
	}
}

// exclusive runs f as the only one that may delete. Other pulls go on, but
// none begins.
func (s *Store) exclusive(ctx context.Context, f func(ctx context.Context, s *Store) error) error {
	select {
	case s.shared.gc <- struct{}{}:
		defer func() { <-s.shared.gc }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	ctx, lose := context.WithCancelCause(ctx)
	defer lose(nil)
	l, err := s.takeGC(ctx, lose)
	if err != nil {
		return why(ctx, err)
	}
	view := *s
	view.held = l
	err = f(ctx, &view)
	l.end()
	if errors.Is(context.Cause(ctx), errLost) {
		return errLost // who broke the lease clears it away
	}
	// The whole turn is renamed before it is cleared, so that one that has become
	// another's meanwhile is broken and not lost.
	cctx := ctx
	if ctx.Err() != nil {
		var cancel context.CancelFunc
		cctx, cancel = vsphere.Detached(ctx)
		defer cancel()
	}
	if e := s.bury(cctx, gcLease); e != nil && err == nil {
		err = e
	}
	return err
}

// takeGC waits for its turn to delete.
func (s *Store) takeGC(ctx context.Context, lose context.CancelCauseFunc) (*lease, error) {
	turn := s.path("leases", gcLease)
	if err := s.files.MkdirAll(ctx, path.Dir(turn)); err != nil {
		return nil, err
	}
	err := s.files.Mkdir(ctx, turn)
	if errors.Is(err, vic.ErrConflict) {
		// Whether its owner is dead is measured by a lease of our own.
		err = func() error {
			own, err := s.take(ctx, useLease, leaseDoc{}, lose)
			if err != nil {
				return err
			}
			defer own.release(ctx)
			for {
				if err := s.awaitGC(ctx, own); err != nil {
					return err
				}
				if err := s.files.Mkdir(ctx, turn); !errors.Is(err, vic.ErrConflict) {
					return err
				}
			}
		}()
	}
	if err != nil {
		return nil, err
	}
	l, err := s.take(ctx, gcLease+"/", leaseDoc{}, lose)
	if err != nil {
		dctx, cancel := vsphere.Detached(ctx)
		defer cancel()
		_ = s.files.Delete(dctx, turn)
	}
	return l, err
}

// discard takes something out of the store: at one stroke, and only if the
// lease to delete stands. What is gone already is no error.
func (s *Store) discard(ctx context.Context, dir, name string) error {
	err := s.files.Move(ctx, s.path(dir, name), s.held.path(name), false)
	if errors.Is(err, vic.ErrNotFound) {
		return s.held.check(ctx)
	}
	return err
}
