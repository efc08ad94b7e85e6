package lab

import (
	"context"
	"reflect"
	"slices"
	"strings"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// base is a managed object of ours that answers for all objects of one type.
// The simulator casts the objects of its registry to its own types, so those
// stay what they are, and calls on them are sent here instead.
type base struct {
	// The simulator looks for such a part in all objects when it searches VMs.
	mo.ExtensibleManagedObject
	lab *Lab
}

func (b *base) Reference() types.ManagedObjectReference { return b.Self }

// Lock and Unlock opt out of the simulator's lock per object: the methods here
// run beside each other and lock what they change.
func (*base) Lock()   {}
func (*base) Unlock() {}

func (l *Lab) newBase(name string) base {
	return base{mo.ExtensibleManagedObject{Self: types.ManagedObjectReference{Type: "Lab", Value: name}}, l}
}

// override registers the object that answers for objects of a managed type.
func (l *Lab) override(kind string, h mo.Reference) {
	l.reg.Put(h)
	l.overrides[kind] = h
}

// dispatch sees every request before the simulator does: it refuses what needs
// a login and has none, refuses what the lab does not support, and sends the
// rest to our objects where they have the method.
func (l *Lab) dispatch(ctx *simulator.Context, m *simulator.Method) (mo.Reference, types.BaseMethodFault) {
	l.count.add(func(c *Counters) {
		c.Requests[m.Name]++
		if m.Name == "WaitForUpdatesEx" {
			c.LongPolls++
		}
	})
	if ctx.Session == nil {
		if !anonymous[m.Name] {
			return nil, &types.NotAuthenticated{NoPermission: types.NoPermission{Object: &m.This, PrivilegeId: "System.View"}}
		}
	} else {
		l.sessions.touch(ctx.Session)
		switch req := m.Body.(type) {
		case *types.Logout:
			l.sessions.drop(ctx.Session.Key)
		case *types.TerminateSession:
			for _, key := range req.SessionId {
				if key != ctx.Session.Key { // which is refused
					l.sessions.drop(key)
				}
			}
		}
	}
	if !supported[m.Name] {
		return nil, notSupported("the method %s", m.Name)
	}
	touch(ctx, m)
	kind := m.This.Type
	if kind == "PropertyFilter" {
		kind = "PropertyCollector"
	}
	h := l.overrides[kind]
	if h == nil || ctx.Session == nil && m.This.Type != "SessionManager" {
		return nil, nil
	}
	name := strings.Title(m.Name) //nolint:staticcheck // the simulator spells methods so
	if s, ok := strings.CutSuffix(name, "_Task"); ok {
		name = s + "Task"
	}
	if _, ok := reflect.TypeOf(h).MethodByName(name); !ok {
		return nil, nil
	}
	if ctx.Session != nil && ctx.Session.Get(m.This) == nil {
		return nil, nil // the simulator answers that there is no such object
	}
	if m.This.Type == "SessionManager" && ctx.Session != nil {
		return nil, nil
	}
	// The request's body still names the object; only the receiver changes.
	m.This = h.Reference()
	return h, nil
}

// context makes a context for work of the lab's own, with a lock identity of
// its own.
func (l *Lab) context() *simulator.Context {
	return &simulator.Context{Context: context.Background(), Session: l.session, Map: l.reg}
}

// detached copies a request's context for work that outlives the request. The
// copy is an owner of locks of its own.
func detached(ctx *simulator.Context) *simulator.Context {
	c := *ctx
	c.Context = context.Background()
	return &c
}

// inner runs a task of the simulator's on an object to its end and takes it out
// of the inventory again: it is a part of a task of ours. The simulator notes
// the task on the object, hence its lock, and looks at datastores without
// theirs, hence that nobody writes those meanwhile.
func (l *Lab) inner(ctx *simulator.Context, obj mo.Reference, start func() soap.HasFault) (types.AnyType, types.BaseMethodFault) {
	l.sim.RLock()
	defer l.sim.RUnlock()
	var body soap.HasFault
	ctx.WithLock(obj, func() { body = start() })
	if f := body.Fault(); f != nil {
		if mf, ok := f.VimFault().(types.BaseMethodFault); ok {
			return nil, mf
		}
		return nil, &types.SystemError{Reason: f.String}
	}
	ref := reflect.ValueOf(body).Elem().FieldByName("Res").Elem().FieldByName("Returnval").Interface().(types.ManagedObjectReference)
	t := ctx.Map.Get(ref).(*simulator.Task)
	t.Wait()
	l.tasks.forget(ref)
	lc := l.context()
	var info types.TaskInfo
	lc.WithLock(t, func() { info = t.Info })
	if info.Error != nil {
		return nil, info.Error.Fault
	}
	return info.Result, nil
}

// observer sees what changes in the inventory.
type observer struct{ base }

// PutObject notes the simulator's own tasks, which it would keep for ever.
func (o *observer) PutObject(_ *simulator.Context, obj mo.Reference) {
	o.lab.journal.mark(obj.Reference())
	t, ok := obj.(*simulator.Task)
	if !ok {
		o.lab.sessions.collectors.entered(obj)
		return
	}
	if strings.HasPrefix(t.Self.Value, "task-v") {
		return
	}
	ts := &o.lab.tasks
	ts.mu.Lock()
	ts.done = append(ts.done, t.Self)
	ts.mu.Unlock()
}

func (o *observer) UpdateObject(_ *simulator.Context, obj mo.Reference, changes []types.PropertyChange) {
	if slices.ContainsFunc(changes, func(c types.PropertyChange) bool { return c.Name != "recentTask" }) {
		o.lab.journal.mark(obj.Reference())
	}
	o.lab.sessions.collectors.changed(obj.Reference())
}

func (o *observer) RemoveObject(_ *simulator.Context, ref types.ManagedObjectReference) {
	o.lab.journal.mark(ref)
	o.lab.sessions.collectors.left(ref)
}
