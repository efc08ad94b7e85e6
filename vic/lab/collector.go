package lab

import (
	"sync"
	"time"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// collectors are the property collectors of all sessions: what the vSphere API
// reference says of PropertyCollector's filters and waits, in place of the
// simulator's. A change in the inventory only marks the filters that it may
// concern and wakes their collectors; values are read by the waits, under the
// lock of the object they are read from.
type collectors struct {
	mu     sync.Mutex // held for moments only, never while an object is read
	open   map[collectorKey]*collector
	index  map[types.ManagedObjectReference]map[*filter]struct{} // who looks at an object
	walker map[*filter]struct{}                                  // filters that find their objects by traversal
}

// A collectorKey names a collector; the default one has the same reference in
// every session.
type collectorKey struct {
	session string
	ref     types.ManagedObjectReference
}

// at returns a session's collector, and makes the default one where it is new.
func (cs *collectors) at(ctx *simulator.Context, ref types.ManagedObjectReference) *collector {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	k := collectorKey{ctx.Session.Key, ref}
	c := cs.open[k]
	if c == nil {
		if _, ok := ctx.Session.Get(ref).(*simulator.PropertyCollector); !ok {
			return nil
		}
		if cs.open == nil {
			cs.open = map[collectorKey]*collector{}
			cs.index = map[types.ManagedObjectReference]map[*filter]struct{}{}
			cs.walker = map[*filter]struct{}{}
		}
		c = &collector{cs: cs, wake: make(chan struct{}, 1)}
		cs.open[k] = c
	}
	return c
}

// end takes a collector out, ends its wait and forgets its filters.
func (cs *collectors) end(k collectorKey) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	c := cs.open[k]
	if c == nil {
		return
	}
	delete(cs.open, k)
	for _, f := range c.filters {
		cs.forget(f)
	}
	c.filters = nil
	c.interrupt()
}

// drop ends the collectors of a session.
func (cs *collectors) drop(session string) {
	cs.mu.Lock()
	var keys []collectorKey
	for k := range cs.open {
		if k.session == session {
			keys = append(keys, k)
		}
	}
	cs.mu.Unlock()
	for _, k := range keys {
		cs.end(k)
	}
}

// forget takes a filter out of the indexes. The caller has locked cs.
func (cs *collectors) forget(f *filter) {
	for ref := range f.looksAt {
		delete(cs.index[ref], f)
		if len(cs.index[ref]) == 0 {
			delete(cs.index, ref)
		}
	}
	f.looksAt = nil
	delete(cs.walker, f)
}

// changed marks the filters that look at an object. It is called under the
// object's lock.
func (cs *collectors) changed(ref types.ManagedObjectReference) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	for f := range cs.index[ref] {
		f.marks.dirty[ref] = struct{}{}
		f.marks.walk = f.marks.walk || f.walked[ref]
		f.c.rouse()
	}
}

// left marks the filters that look at an object that is gone, and those that
// looked for it where it was.
func (cs *collectors) left(ref types.ManagedObjectReference) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	for f := range cs.index[ref] {
		f.marks.gone[ref] = struct{}{}
		f.c.rouse()
	}
	if ref.Type != "Task" {
		cs.relook()
	}
}

// entered has the traversals done anew after an object has come.
func (cs *collectors) entered(obj mo.Reference) {
	if _, ok := obj.(mo.Entity); !ok {
		return
	}
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.relook()
}

// unseen is after how long what the simulator changes without telling anybody
// (lists of children) is looked at.
const unseen = 50 * time.Millisecond

// relook has all traversals done anew: now, and once more when the simulator
// has noted the object in its parents' lists. The caller has locked cs.
func (cs *collectors) relook() {
	for f := range cs.walker {
		f.marks.walk = true
		f.c.rouse()
		if f.again {
			continue
		}
		f.again = true
		time.AfterFunc(unseen, func() {
			cs.mu.Lock()
			defer cs.mu.Unlock()
			f.again, f.marks.walk = false, true
			f.c.rouse()
		})
	}
}

// collectorHandler answers the methods of PropertyCollector and PropertyFilter
// that have to do with changes; the simulator retrieves.
type collectorHandler struct{ base }

func (h *collectorHandler) collectors() *collectors { return &h.lab.sessions.collectors }

func (h *collectorHandler) CreatePropertyCollector(ctx *simulator.Context, _ *types.CreatePropertyCollector) soap.HasFault {
	pc := simulator.NewPropertyCollector(types.ManagedObjectReference{Type: "PropertyCollector"})
	return &methods.CreatePropertyCollectorBody{
		Res: &types.CreatePropertyCollectorResponse{Returnval: ctx.Session.Put(pc).Reference()},
	}
}

func (h *collectorHandler) DestroyPropertyCollector(ctx *simulator.Context, req *types.DestroyPropertyCollector) soap.HasFault {
	h.collectors().end(collectorKey{ctx.Session.Key, req.This})
	ctx.Session.Remove(ctx, req.This) // a session's default one comes anew
	return &methods.DestroyPropertyCollectorBody{Res: new(types.DestroyPropertyCollectorResponse)}
}

func (h *collectorHandler) CreateFilter(ctx *simulator.Context, req *types.CreateFilter) soap.HasFault {
	body := new(methods.CreateFilterBody)
	c := h.collectors().at(ctx, req.This)
	if c == nil {
		body.Fault_ = soapFault(&types.ManagedObjectNotFound{Obj: req.This})
		return body
	}
	f := newFilter(c, req.Spec)
	if fault := f.check(ctx); fault != nil {
		body.Fault_ = soapFault(fault)
		return body
	}
	obj := &mo.PropertyFilter{Self: types.ManagedObjectReference{Type: "PropertyFilter"}, Spec: req.Spec, PartialUpdates: req.PartialUpdates}
	f.ref = ctx.Session.Put(obj).Reference()
	c.add(f)
	body.Res = &types.CreateFilterResponse{Returnval: f.ref}
	return body
}

func (h *collectorHandler) DestroyPropertyFilter(ctx *simulator.Context, req *types.DestroyPropertyFilter) soap.HasFault {
	h.collectors().destroyFilter(ctx.Session.Key, req.This)
	ctx.Session.Remove(ctx, req.This)
	return &methods.DestroyPropertyFilterBody{Res: new(types.DestroyPropertyFilterResponse)}
}

func (cs *collectors) destroyFilter(session string, ref types.ManagedObjectReference) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	for k, c := range cs.open {
		if k.session != session {
			continue
		}
		for i, f := range c.filters {
			if f.ref == ref {
				cs.forget(f)
				c.filters = append(c.filters[:i:i], c.filters[i+1:]...)
				return
			}
		}
	}
}

func (h *collectorHandler) WaitForUpdatesEx(ctx *simulator.Context, req *types.WaitForUpdatesEx) soap.HasFault {
	body := new(methods.WaitForUpdatesExBody)
	set, fault := h.wait(ctx, req.This, req.Version, req.Options)
	if fault != nil {
		body.Fault_ = soapFault(fault)
		return body
	}
	body.Res = &types.WaitForUpdatesExResponse{Returnval: set}
	return body
}

func (h *collectorHandler) WaitForUpdates(ctx *simulator.Context, req *types.WaitForUpdates) soap.HasFault {
	body := new(methods.WaitForUpdatesBody)
	set, fault := h.wait(ctx, req.This, req.Version, &types.WaitOptions{MaxObjectUpdates: unlimited})
	if fault != nil {
		body.Fault_ = soapFault(fault)
		return body
	}
	body.Res = &types.WaitForUpdatesResponse{Returnval: *set}
	return body
}

func (h *collectorHandler) CheckForUpdates(ctx *simulator.Context, req *types.CheckForUpdates) soap.HasFault {
	body := new(methods.CheckForUpdatesBody)
	set, fault := h.wait(ctx, req.This, req.Version, &types.WaitOptions{MaxWaitSeconds: types.NewInt32(0), MaxObjectUpdates: unlimited})
	if fault != nil {
		body.Fault_ = soapFault(fault)
		return body
	}
	body.Res = &types.CheckForUpdatesResponse{Returnval: set}
	return body
}

func (h *collectorHandler) CancelWaitForUpdates(ctx *simulator.Context, req *types.CancelWaitForUpdates) soap.HasFault {
	body := new(methods.CancelWaitForUpdatesBody)
	c := h.collectors().at(ctx, req.This)
	if c == nil {
		body.Fault_ = soapFault(&types.ManagedObjectNotFound{Obj: req.This})
		return body
	}
	c.cs.mu.Lock()
	c.interrupt()
	c.cs.mu.Unlock()
	body.Res = new(types.CancelWaitForUpdatesResponse)
	return body
}
