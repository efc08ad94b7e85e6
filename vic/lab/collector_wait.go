package lab

import (
	"math"
	"strconv"
	"sync"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/types"
)

// unlimited and defaultUpdates bound the objects of one update set: vCenter's
// own bound is 100, for WaitForUpdatesEx.
const (
	unlimited      = math.MaxInt32
	defaultUpdates = 100
)

// A collector is one property collector of one session.
type collector struct {
	cs      *collectors
	wake    chan struct{} // tells the wait that a filter was marked
	filters []*filter     // under cs.mu
	current *waiting      // under cs.mu

	mu      sync.Mutex // one calculation at a time
	version int
	last    *types.UpdateSet // what led to version, for a client that did not get it
	from    string           // the version that last was asked for with
	rest    []types.PropertyFilterUpdate
}

// A waiting is a request that waits.
type waiting struct {
	canceled chan struct{} // closed at the latest when it has ended
	ended    chan struct{}
	once     sync.Once
}

func (w *waiting) cancel() { w.once.Do(func() { close(w.canceled) }) }

// rouse wakes the wait, or the next one.
func (c *collector) rouse() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// interrupt cancels the wait, if there is one. The caller has locked cs.
func (c *collector) interrupt() {
	if c.current != nil {
		c.current.cancel()
	}
}

// enter begins a wait. One that is under way is cancelled, as vCenter does.
func (c *collector) enter() *waiting {
	w := &waiting{canceled: make(chan struct{}), ended: make(chan struct{})}
	c.cs.mu.Lock()
	old := c.current
	c.interrupt()
	c.current = w
	c.cs.mu.Unlock()
	if old != nil {
		<-old.ended
	}
	return w
}

func (c *collector) leave(w *waiting) {
	c.cs.mu.Lock()
	defer c.cs.mu.Unlock()
	if c.current == w {
		c.current = nil
	}
	close(w.ended)
}

// wait returns the updates since a version, as soon as there are any. It
// returns nil where MaxWaitSeconds have passed without one.
func (h *collectorHandler) wait(ctx *simulator.Context, ref types.ManagedObjectReference, version string, o *types.WaitOptions) (*types.UpdateSet, types.BaseMethodFault) {
	c := h.collectors().at(ctx, ref)
	if c == nil {
		return nil, &types.ManagedObjectNotFound{Obj: ref}
	}
	limit := defaultUpdates
	var timeout <-chan time.Time
	once := false
	if o != nil {
		switch {
		case o.MaxObjectUpdates == unlimited:
			limit = unlimited
		case o.MaxObjectUpdates > 0:
			limit = min(limit, int(o.MaxObjectUpdates))
		}
		if s := o.MaxWaitSeconds; s != nil {
			once = *s <= 0
			t := time.NewTimer(time.Duration(*s) * time.Second)
			defer t.Stop()
			timeout = t.C
		}
	}
	w := c.enter()
	defer c.leave(w)
	for {
		h.lab.sim.Lock() // see settled
		set, fault := c.next(ctx, version, limit)
		h.lab.sim.Unlock()
		if set != nil || fault != nil || once {
			return set, fault
		}
		select {
		case <-c.wake:
		case <-timeout:
			return nil, nil
		case <-w.canceled:
			if !h.lab.sessions.has(ctx.Session.Key) {
				return nil, &types.NotAuthenticated{NoPermission: types.NoPermission{Object: &ref, PrivilegeId: "System.View"}}
			}
			return nil, say(&types.RequestCanceled{}, "the wait was cancelled")
		case <-ctx.Done(): // the client's connection has ended
			return nil, &types.RequestCanceled{}
		case <-h.lab.closing.Done():
			return nil, &types.RequestCanceled{}
		}
	}
}

// next calculates the updates since a version: the last one that was given out,
// the one before it (whose answer was lost), or "" for all there is.
func (c *collector) next(ctx *simulator.Context, version string, limit int) (*types.UpdateSet, types.BaseMethodFault) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case version == "":
		c.last, c.rest = nil, nil
		c.cs.mu.Lock()
		for _, f := range c.filters {
			f.sent, f.marks.walk = nil, true
		}
		c.cs.mu.Unlock()
	case c.version > 0 && version == strconv.Itoa(c.version):
		c.last = nil
	case c.last != nil && version == c.from:
		return c.last, nil
	default:
		return nil, &types.InvalidCollectorVersion{}
	}
	all := c.rest
	if len(all) == 0 {
		c.cs.mu.Lock()
		filters := c.filters
		c.cs.mu.Unlock()
		for _, f := range filters {
			if u := f.update(ctx); len(u.ObjectSet) > 0 {
				all = append(all, u)
			}
		}
		if len(all) == 0 && version != "" {
			return nil, nil
		}
	}
	c.version++
	set := &types.UpdateSet{Version: strconv.Itoa(c.version)}
	set.FilterSet, c.rest = page(all, limit)
	if len(c.rest) > 0 {
		set.Truncated = types.NewBool(true)
	}
	c.last, c.from = set, version
	return set, nil
}

// page takes at most limit objects' updates off the front.
func page(all []types.PropertyFilterUpdate, limit int) (first, rest []types.PropertyFilterUpdate) {
	for i, u := range all {
		if n := len(u.ObjectSet); n <= limit {
			first = append(first, u)
			limit -= n
			continue
		}
		if limit > 0 {
			first = append(first, types.PropertyFilterUpdate{Filter: u.Filter, ObjectSet: u.ObjectSet[:limit]})
		}
		rest = append(rest, types.PropertyFilterUpdate{Filter: u.Filter, ObjectSet: u.ObjectSet[limit:]})
		return first, append(rest, all[i+1:]...)
	}
	return first, nil
}
