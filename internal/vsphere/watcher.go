package vsphere

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vicsdk/vic-go/internal/fault"
)

// timing of a Watcher.
type timing struct {
	// poll is MaxWaitSeconds of a wait; an answer that is late by more than
	// slack counts as a lost connection.
	poll, slack time.Duration
	// rest is how long a wait goes on without a watch, in case one comes.
	rest time.Duration
	// linger is how long a released watch is kept up to date.
	linger time.Duration
	// grace is after how long filters are destroyed that nobody needs, once one
	// of them has told of something.
	grace time.Duration
	// nudge is after how long a wait is begun anew that has not told of a
	// filter made beside it; after four times that it is asked whether the
	// filter's objects exist.
	nudge time.Duration
	// retry is the first pause after a failure; it doubles.
	retry time.Duration
	// tries is how many failures in a row are borne.
	tries int
}

func defaultTiming() timing {
	return timing{
		poll: time.Minute, slack: 30 * time.Second, rest: 5 * time.Second, linger: 5 * time.Second,
		grace: 5 * time.Second, nudge: 2 * time.Second, retry: 100 * time.Millisecond, tries: 8,
	}
}

// tooMany filters that nobody needs are destroyed in any case.
const tooMany = 32

// A Watcher tells all who wait in one client of changes in vSphere. It has one
// property collector, on which one goroutine waits while anything is watched.
//
// A filter costs a request to make and one to destroy. Those that nobody needs
// any more, most of tasks that have ended, cost nothing while they are quiet: they
// are destroyed when they disturb or are many, or never where the client logs
// out first, which drops them.
type Watcher struct {
	c       *vim25.Client
	renewal *renewal // nil where the session is somebody else's
	timing  timing

	ctx  context.Context // ends with Close
	end  context.CancelFunc
	wg   sync.WaitGroup
	mu   sync.Mutex
	shut bool

	pc      types.ManagedObjectReference // the zero value where it has to be made
	making  chan struct{}                // somebody makes it
	version string
	epoch   int  // of the login that pc and the filters belong to
	broken  bool // the filters have to be made anew

	watches map[*Watch]struct{}
	filters map[types.ManagedObjectReference]*Watch
	opening int                                                           // filters that are being made
	early   map[types.ManagedObjectReference][]types.PropertyFilterUpdate // what was told of them before their makers knew
	touched map[*Watch]struct{}                                           // told of in a set that is not complete
	partial bool                                                          // the last set was not complete

	polling bool
	round   int                // counts waits
	abort   context.CancelFunc // ends the wait under way
	idle    *time.Timer

	dead  []types.ManagedObjectReference
	sweep *time.Timer
}

func newWatcher(c *vim25.Client, r *renewal) *Watcher {
	w := &Watcher{
		c: c, renewal: r, timing: defaultTiming(),
		watches: map[*Watch]struct{}{}, filters: map[types.ManagedObjectReference]*Watch{}, touched: map[*Watch]struct{}{},
	}
	w.ctx, w.end = context.WithCancel(context.Background())
	w.epoch = r.epoch()
	return w
}

// Close ends all watches and returns when nothing of the Watcher runs any more.
// A collector of its own is destroyed; what a session of ours has is dropped by
// the logout that is to follow.
func (w *Watcher) Close(ctx context.Context) error {
	w.mu.Lock()
	first := !w.shut
	w.shut = true
	w.failAll(errClosed())
	for _, t := range []*time.Timer{w.idle, w.sweep} {
		if t != nil {
			t.Stop()
		}
	}
	pc := w.pc
	w.mu.Unlock()
	w.end()
	w.wg.Wait()
	if !first || w.renewal != nil || pc.Value == "" {
		return nil
	}
	_, err := methods.DestroyPropertyCollector(ctx, w.c, &types.DestroyPropertyCollector{This: pc})
	if isFault[types.ManagedObjectNotFound](err) {
		err = nil
	}
	return Judge(err)
}

func errClosed() error { return fault.Of(fault.ErrState, "the client is closed") }

// failAll ends all watches with an error. The caller has locked w.
func (w *Watcher) failAll(err error) {
	for x := range w.watches {
		x.fail(err)
	}
}

// collector returns the property collector, made where there is none.
func (w *Watcher) collector(ctx context.Context) (types.ManagedObjectReference, error) {
	if w.renewal != nil {
		return w.c.ServiceContent.PropertyCollector, nil
	}
	w.mu.Lock()
	for w.making != nil {
		ch := w.making
		w.mu.Unlock()
		select {
		case <-ch:
		case <-ctx.Done():
			return types.ManagedObjectReference{}, ctx.Err()
		}
		w.mu.Lock()
	}
	if pc := w.pc; pc.Value != "" {
		w.mu.Unlock()
		return pc, nil
	}
	w.making = make(chan struct{})
	w.mu.Unlock()
	res, err := methods.CreatePropertyCollector(ctx, w.c, &types.CreatePropertyCollector{This: w.c.ServiceContent.PropertyCollector})
	w.mu.Lock()
	defer w.mu.Unlock()
	close(w.making)
	w.making = nil
	if err != nil {
		return types.ManagedObjectReference{}, err
	}
	w.pc, w.version = res.Returnval, ""
	return w.pc, nil
}

// Open begins to watch what a filter selects. It returns when the filter is
// made; the watch's state comes after that. The caller has a hold on it, and
// gives it back by Release or a last wait. An object that does not exist is
// fault.ErrNotFound.
//
// ctx bounds the call.
func (w *Watcher) Open(ctx context.Context, spec types.PropertyFilterSpec) (*Watch, error) {
	x := &Watch{w: w, spec: spec, holds: 1, objects: map[types.ManagedObjectReference]*watched{}}
	w.mu.Lock()
	if w.shut {
		w.mu.Unlock()
		return nil, errClosed()
	}
	if err := ctx.Err(); err != nil {
		w.mu.Unlock()
		return nil, err
	}
	w.opening++
	w.wg.Add(1)
	w.mu.Unlock()
	// A request that is given up may be carried out all the same, and the
	// filter would stay: it is seen through, and the filter dropped.
	mctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), CleanupTime)
	stop := context.AfterFunc(w.ctx, cancel)
	made := make(chan error, 1)
	go func() {
		defer w.wg.Done()
		defer cancel()
		defer stop()
		made <- w.make(mctx, x)
	}()
	select {
	case err := <-made:
		if err != nil {
			return nil, Judge(err)
		}
		return x, nil
	case <-ctx.Done():
		x.release(0)
		return nil, ctx.Err()
	}
}

// make makes a watch's filter and enters it.
func (w *Watcher) make(ctx context.Context, x *Watch) error {
	for try := 0; ; try++ {
		n := w.renewal.epoch()
		pc, err := w.collector(ctx)
		var ref types.ManagedObjectReference
		if err == nil {
			ref, err = createFilter(ctx, w.c, pc, &x.spec)
		}
		w.mu.Lock()
		if err != nil && try == 0 && collectorGone(err, pc) && !w.shut {
			w.lost(pc)
			w.mu.Unlock()
			continue
		}
		if err == nil && (n != w.renewal.epoch() || w.renewal == nil && w.pc != pc) && try < 3 {
			w.bury(ref) // of which login it is nobody knows
			w.mu.Unlock()
			continue
		}
		w.opening--
		switch {
		case err != nil:
		case w.shut:
			err = errClosed()
		case x.holds == 0:
			w.bury(ref)
		default:
			if len(w.watches) == 0 && n != w.epoch {
				w.epoch, w.version, w.broken, w.dead = n, "", false, nil
			}
			w.enter(x, ref)
		}
		if w.opening == 0 {
			w.early = nil
		}
		w.mu.Unlock()
		return err
	}
}

// collectorGone tells whether err says that a collector does not exist.
func collectorGone(err error, pc types.ManagedObjectReference) bool {
	o, ok := goneObject(err)
	return ok && o == pc
}

// lost notes that a collector does not exist any more. The caller has locked w.
func (w *Watcher) lost(pc types.ManagedObjectReference) {
	if w.pc == pc {
		w.pc = types.ManagedObjectReference{}
	}
	w.version, w.broken = "", true
}

// enter begins to follow a filter. The caller has locked w.
func (w *Watcher) enter(x *Watch, ref types.ManagedObjectReference) {
	x.filter = ref
	w.watches[x] = struct{}{}
	w.filters[ref] = x
	for _, u := range w.early[ref] {
		x.apply(u)
		w.touched[x] = struct{}{}
	}
	if len(w.early[ref]) > 0 {
		delete(w.early, ref)
		if !w.partial {
			w.settle()
		}
	}
	if !x.ready {
		round := w.round
		x.due = time.AfterFunc(w.timing.nudge, func() { w.nudge(x, round) })
	}
	w.start()
}

// start sees to it that somebody waits. The caller has locked w.
func (w *Watcher) start() {
	if w.idle != nil {
		w.idle.Stop()
		w.idle = nil
	}
	if !w.polling && !w.shut && len(w.watches) > 0 {
		w.polling = true
		w.wg.Add(1)
		go w.run()
	}
}

// nudge looks after a watch of which nothing is told. The API's reference does
// not say that a wait under way takes a new filter into account, so the wait is
// begun anew if it is still the one in which the filter was made.
func (w *Watcher) nudge(x *Watch, round int) {
	w.mu.Lock()
	if x.ready || x.err != nil || w.shut {
		w.mu.Unlock()
		return
	}
	x.due = time.AfterFunc(4*w.timing.nudge, func() { w.verify(x) })
	pc := w.waitingOn()
	overlooked := w.abort != nil && w.round == round
	w.wg.Add(1)
	w.mu.Unlock()
	defer w.wg.Done()
	if overlooked {
		ctx, cancel := context.WithTimeout(w.ctx, CleanupTime)
		defer cancel()
		_, _ = methods.CancelWaitForUpdates(ctx, w.c, &types.CancelWaitForUpdates{This: pc})
	}
}

// verify asks whether a watch's objects exist. Where they went between the
// making of the filter and the first wait there is nothing to be told; a further
// filter of them is refused.
func (w *Watcher) verify(x *Watch) {
	w.mu.Lock()
	if x.ready || x.err != nil || w.shut {
		w.mu.Unlock()
		return
	}
	pc, spec := w.waitingOn(), x.spec
	w.wg.Add(1)
	w.mu.Unlock()
	defer w.wg.Done()
	ctx, cancel := context.WithTimeout(w.ctx, CleanupTime)
	defer cancel()
	ref, err := createFilter(ctx, w.c, pc, &spec)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.bury(ref)
	if o, missing := goneObject(err); missing && o != pc && x.err == nil {
		x.drop(o)
	}
}

func (w *Watcher) waitingOn() types.ManagedObjectReference {
	if w.renewal != nil {
		return w.c.ServiceContent.PropertyCollector
	}
	return w.pc
}

// leave stops following a watch. The caller has locked w.
func (w *Watcher) leave(x *Watch) {
	if _, ok := w.watches[x]; !ok {
		return
	}
	delete(w.watches, x)
	delete(w.touched, x)
	delete(w.filters, x.filter)
	w.bury(x.filter)
	if len(w.watches) == 0 && w.abort != nil && !w.shut {
		if w.idle != nil {
			w.idle.Stop()
		}
		w.idle = time.AfterFunc(w.timing.rest, func() {
			w.mu.Lock()
			defer w.mu.Unlock()
			if len(w.watches) == 0 && w.abort != nil {
				w.abort()
			}
		})
	}
}

// bury notes a filter that nobody needs any more. The caller has locked w.
func (w *Watcher) bury(ref types.ManagedObjectReference) {
	if w.shut || ref.Value == "" {
		return
	}
	w.dead = append(w.dead, ref)
	if len(w.dead) >= tooMany {
		w.sweepIn(0)
	}
}

// sweepIn has the filters destroyed that nobody needs. The caller has locked w.
func (w *Watcher) sweepIn(d time.Duration) {
	if w.sweep == nil && !w.shut {
		w.sweep = time.AfterFunc(d, w.destroyDead)
	}
}

func (w *Watcher) destroyDead() {
	w.mu.Lock()
	dead := w.dead
	w.dead, w.sweep = nil, nil
	if w.shut {
		w.mu.Unlock()
		return
	}
	w.wg.Add(1)
	w.mu.Unlock()
	defer w.wg.Done()
	ctx, cancel := context.WithTimeout(w.ctx, CleanupTime)
	defer cancel()
	for _, ref := range dead {
		// One that is gone is no matter; another that stays costs little, and
		// goes with the session.
		if _, err := methods.DestroyPropertyFilter(ctx, w.c, &types.DestroyPropertyFilter{This: ref}); err != nil && ctx.Err() != nil {
			return
		}
	}
}

func createFilter(ctx context.Context, c *vim25.Client, pc types.ManagedObjectReference, spec *types.PropertyFilterSpec) (types.ManagedObjectReference, error) {
	res, err := methods.CreateFilter(ctx, c, &types.CreateFilter{This: pc, Spec: *spec})
	if err != nil {
		return types.ManagedObjectReference{}, err
	}
	return res.Returnval, nil
}

// goneObject names the object that a fault says does not exist.
func goneObject(err error) (types.ManagedObjectReference, bool) {
	switch f := vimFault(err).(type) {
	case types.ManagedObjectNotFound:
		return f.Obj, true
	case *types.ManagedObjectNotFound:
		return f.Obj, true
	}
	return types.ManagedObjectReference{}, false
}

var errLate = errors.New("the server does not answer")
