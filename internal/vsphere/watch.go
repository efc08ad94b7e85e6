package vsphere

import (
	"context"
	"slices"
	"time"

	"github.com/vmware/govmomi/vim25/types"

	"github.com/vicsdk/vic-go/internal/fault"
)

// A Watch keeps the properties of some objects up to date while anybody has a
// hold on it. What it has is under its Watcher's mu.
type Watch struct {
	w       *Watcher
	spec    types.PropertyFilterSpec
	filter  types.ManagedObjectReference
	objects map[types.ManagedObjectReference]*watched
	renewed map[types.ManagedObjectReference]bool // since the filter was made anew; nil where it was not
	ready   bool                                  // it has been told of everything once
	err     error
	waiters []*waiter
	holds   int
	timer   *time.Timer // of the time that a released watch lingers
	due     *time.Timer // of the time that the first state may take
}

// A watched object is what is known of it.
type watched struct {
	props   map[string]any
	missing []types.MissingProperty
	gone    bool
}

// A waiter waits for a state.
type waiter struct {
	f    func(State) (bool, error)
	last bool // it gives its hold back when its wait is over
	over chan struct{}
	err  error
}

// A State is what is known of a watch's objects. It is valid during the call it
// is given to; the values may be kept.
type State struct{ x *Watch }

// Get returns a property by the path that was asked for, or nil.
func (s State) Get(ref types.ManagedObjectReference, path string) any {
	if o := s.x.objects[ref]; o != nil {
		return o.props[path]
	}
	return nil
}

// Err returns why an object's properties are not known: it is gone, which is
// fault.ErrNotFound, or they may not be read.
func (s State) Err(ref types.ManagedObjectReference) error {
	o := s.x.objects[ref]
	switch {
	case o == nil:
		return nil
	case o.gone:
		return gone(ref)
	}
	for _, m := range o.missing {
		if _, known := o.props[m.Path]; known {
			continue
		}
		f := m.Fault.Fault
		if f == nil {
			return fault.Of(fault.ErrDenied, "%s of %s %s cannot be read", m.Path, ref.Type, ref.Value)
		}
		return judgeFault(f, m.Path+" of "+ref.Type+" "+ref.Value+" cannot be read")
	}
	return nil
}

// Hold takes a further hold on a watch. It fails where the watch has ended.
func (x *Watch) Hold() bool {
	x.w.mu.Lock()
	defer x.w.mu.Unlock()
	if _, open := x.w.watches[x]; !open || x.err != nil {
		return false
	}
	x.unlinger()
	x.holds++
	return true
}

// Release gives a hold back. After the last one the watch goes on for some
// seconds, in case somebody takes hold of it again.
func (x *Watch) Release() { x.release(x.w.timing.linger) }

func (x *Watch) release(linger time.Duration) {
	x.w.mu.Lock()
	defer x.w.mu.Unlock()
	x.give(linger)
}

// give gives a hold back. The caller has locked w.
func (x *Watch) give(linger time.Duration) {
	x.holds--
	if x.holds > 0 {
		return
	}
	if linger == 0 || x.w.shut {
		x.w.leave(x)
		return
	}
	x.unlinger()
	x.timer = time.AfterFunc(linger, func() {
		x.w.mu.Lock()
		defer x.w.mu.Unlock()
		if x.holds == 0 {
			x.w.leave(x)
		}
	})
}

func (x *Watch) unlinger() {
	if x.timer != nil {
		x.timer.Stop()
		x.timer = nil
	}
}

// Wait calls f with the watch's state, as soon as it is known and after each
// change, until f returns true or an error, ctx ends, or the watch does. f is
// called by one goroutine at a time and not after Wait has returned; it must be
// quick and must not use the Watcher.
func (x *Watch) Wait(ctx context.Context, f func(State) (bool, error)) error {
	return x.wait(ctx, &waiter{f: f, over: make(chan struct{})})
}

// LastWait is Wait and Release in one, without lingering: where nobody else has
// a hold, nothing more is asked of the server once f is content.
func (x *Watch) LastWait(ctx context.Context, f func(State) (bool, error)) error {
	return x.wait(ctx, &waiter{f: f, last: true, over: make(chan struct{})})
}

func (x *Watch) wait(ctx context.Context, r *waiter) error {
	w := x.w
	w.mu.Lock()
	if x.err != nil {
		defer w.mu.Unlock()
		if r.last {
			x.give(0)
		}
		return x.err
	}
	if x.ready && x.judge(r) {
		w.mu.Unlock()
		return r.err
	}
	x.waiters = append(x.waiters, r)
	w.mu.Unlock()
	select {
	case <-r.over:
		return r.err
	case <-ctx.Done():
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	i := slices.Index(x.waiters, r)
	if i < 0 { // it was over at the same moment
		return r.err
	}
	x.waiters = slices.Delete(x.waiters, i, i+1)
	if r.last {
		x.give(0)
	}
	return ctx.Err()
}

// judge tells whether a wait is over. The caller has locked w.
func (x *Watch) judge(r *waiter) bool {
	done, err := r.f(State{x})
	if !done && err == nil {
		return false
	}
	r.err = err
	if r.last {
		x.give(0)
	}
	close(r.over)
	return true
}

// settle looks who waits no longer. The caller has locked w.
func (x *Watch) settle() {
	x.ready = true
	if x.due != nil {
		x.due.Stop()
		x.due = nil
	}
	for _, o := range x.spec.ObjectSet {
		if x.objects[o.Obj] == nil && (o.Skip == nil || !*o.Skip) {
			x.objects[o.Obj] = &watched{gone: true} // since before the first wait
		}
	}
	if x.renewed != nil {
		for ref, o := range x.objects {
			if !x.renewed[ref] {
				*o = watched{gone: true}
			}
		}
		x.renewed = nil
	}
	x.ask()
}

func (x *Watch) ask() {
	waiters := x.waiters
	x.waiters = nil
	for _, r := range waiters {
		if !x.judge(r) {
			x.waiters = append(x.waiters, r)
		}
	}
}

// fail ends the watch. The caller has locked w.
func (x *Watch) fail(err error) {
	x.err = err
	x.unlinger()
	if x.due != nil {
		x.due.Stop()
		x.due = nil
	}
	for _, r := range x.waiters {
		r.err = err
		if r.last {
			x.holds--
		}
		close(r.over)
	}
	x.waiters = nil
	x.w.leave(x)
}

// drop takes an object that is gone out of the filter to come; with the last
// one the watch ends. It tells whether the filter named the object. The caller
// has locked w.
func (x *Watch) drop(ref types.ManagedObjectReference) bool {
	rest := slices.DeleteFunc(slices.Clone(x.spec.ObjectSet), func(o types.ObjectSpec) bool { return o.Obj == ref })
	if len(rest) == len(x.spec.ObjectSet) {
		return false
	}
	x.spec.ObjectSet = rest
	x.objects[ref] = &watched{gone: true}
	x.ask()
	if len(rest) == 0 {
		x.fail(gone(ref))
	}
	return true
}

// apply notes what a filter's update says. The caller has locked w.
func (x *Watch) apply(u types.PropertyFilterUpdate) {
	for _, m := range u.MissingSet {
		x.objects[m.Obj] = &watched{gone: true}
	}
	for _, up := range u.ObjectSet {
		o := x.objects[up.Obj]
		if o == nil || up.Kind == types.ObjectUpdateKindEnter {
			o = &watched{props: map[string]any{}}
			x.objects[up.Obj] = o
		}
		if x.renewed != nil {
			x.renewed[up.Obj] = true
		}
		if up.Kind == types.ObjectUpdateKindLeave {
			*o = watched{gone: true}
			continue
		}
		o.gone = false
		for _, c := range up.ChangeSet {
			switch {
			case c.Val == nil, c.Op == types.PropertyChangeOpRemove, c.Op == types.PropertyChangeOpIndirectRemove:
				delete(o.props, c.Name)
			default:
				o.props[c.Name] = c.Val
			}
		}
		for _, m := range up.MissingSet {
			if f, ok := m.Fault.Fault.(*types.ManagedObjectNotFound); ok && f.Obj == up.Obj {
				*o = watched{gone: true}
				break
			}
		}
		if !o.gone {
			o.missing = append(o.missing, up.MissingSet...)
		}
	}
}
