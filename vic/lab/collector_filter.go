package lab

import (
	"maps"
	"path"
	"reflect"
	"slices"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/types"
)

// A filter is one PropertyFilter. What its client was told is under its
// collector's mu, all else that changes under cs.mu.
type filter struct {
	c     *collector
	ref   types.ManagedObjectReference
	spec  types.PropertyFilterSpec
	named map[string]*types.TraversalSpec

	sent map[types.ManagedObjectReference]map[string]types.AnyType // values by path

	looksAt map[types.ManagedObjectReference]struct{} // as the index has it
	walked  map[types.ManagedObjectReference]bool     // traversed
	marks   marks
	again   bool // a traversal is due
}

// marks say what has to be looked at.
type marks struct {
	walk        bool
	dirty, gone map[types.ManagedObjectReference]struct{}
}

func noMarks() marks {
	return marks{dirty: map[types.ManagedObjectReference]struct{}{}, gone: map[types.ManagedObjectReference]struct{}{}}
}

func newFilter(c *collector, spec types.PropertyFilterSpec) *filter {
	f := &filter{
		c: c, spec: spec, named: map[string]*types.TraversalSpec{}, marks: noMarks(),
		looksAt: map[types.ManagedObjectReference]struct{}{}, walked: map[types.ManagedObjectReference]bool{},
	}
	f.marks.walk = true
	for _, o := range spec.ObjectSet {
		f.name(o.SelectSet)
	}
	return f
}

func (f *filter) name(set []types.BaseSelectionSpec) {
	for _, s := range set {
		if t, ok := s.(*types.TraversalSpec); ok {
			if t.Name != "" {
				f.named[t.Name] = t
			}
			f.name(t.SelectSet)
		}
	}
}

// check tells what is wrong with the filter at its creation.
func (f *filter) check(ctx *simulator.Context) types.BaseMethodFault {
	for _, o := range f.spec.ObjectSet {
		if fault := f.checkNames(o.SelectSet); fault != nil {
			return fault
		}
		if ctx.Session.Get(o.Obj) == nil {
			if !isTrue(f.spec.ReportMissingObjectsInResults) {
				return say(&types.ManagedObjectNotFound{Obj: o.Obj}, "the object %s has already been deleted or has not been completely created", o.Obj.Value)
			}
			continue
		}
		if _, missing, _ := f.read(ctx, o.Obj); len(missing) > 0 {
			if fault, ok := missing[0].Fault.Fault.(*types.InvalidProperty); ok {
				return fault
			}
		}
	}
	return nil
}

func (f *filter) checkNames(set []types.BaseSelectionSpec) types.BaseMethodFault {
	for _, s := range set {
		if t, ok := s.(*types.TraversalSpec); ok {
			if fault := f.checkNames(t.SelectSet); fault != nil {
				return fault
			}
		} else if n := s.GetSelectionSpec().Name; f.named[n] == nil {
			return invalidArgument("spec", "no TraversalSpec is named %q", n)
		}
	}
	return nil
}

// add puts a filter into its collector's reckoning.
func (c *collector) add(f *filter) {
	c.cs.mu.Lock()
	defer c.cs.mu.Unlock()
	c.filters = append(c.filters[:len(c.filters):len(c.filters)], f)
	if slices.ContainsFunc(f.spec.ObjectSet, func(o types.ObjectSpec) bool { return len(o.SelectSet) > 0 }) {
		c.cs.walker[f] = struct{}{}
	}
	c.rouse()
}

// look notes that the filter looks at an object. It comes before the object is
// read, so that no change is between the two.
func (f *filter) look(ref types.ManagedObjectReference, walked bool) {
	f.c.cs.mu.Lock()
	defer f.c.cs.mu.Unlock()
	if f.looksAt == nil {
		return // destroyed meanwhile
	}
	f.looksAt[ref] = struct{}{}
	f.walked[ref] = f.walked[ref] || walked
	x := f.c.cs.index
	if x[ref] == nil {
		x[ref] = map[*filter]struct{}{}
	}
	x[ref][f] = struct{}{}
}

// keep drops from the index what the filter does not look at any more.
func (f *filter) keep(want map[types.ManagedObjectReference]bool) {
	f.c.cs.mu.Lock()
	defer f.c.cs.mu.Unlock()
	for ref := range f.looksAt {
		if !want[ref] {
			delete(f.looksAt, ref)
			delete(f.walked, ref)
			delete(f.c.cs.index[ref], f)
			if len(f.c.cs.index[ref]) == 0 {
				delete(f.c.cs.index, ref)
			}
		}
	}
}

// update tells what has changed since the last time. The collector's mu is
// held.
func (f *filter) update(ctx *simulator.Context) types.PropertyFilterUpdate {
	f.c.cs.mu.Lock()
	m := f.marks
	f.marks = noMarks()
	f.c.cs.mu.Unlock()
	u := types.PropertyFilterUpdate{Filter: f.ref}
	if f.sent == nil {
		f.sent = map[types.ManagedObjectReference]map[string]types.AnyType{}
	}
	leave := func(ref types.ManagedObjectReference) {
		if _, ok := f.sent[ref]; ok {
			delete(f.sent, ref)
			u.ObjectSet = append(u.ObjectSet, types.ObjectUpdate{Kind: types.ObjectUpdateKindLeave, Obj: ref})
		}
	}
	for ref := range m.gone {
		leave(ref)
	}
	due := slices.Collect(maps.Keys(m.dirty))
	if m.walk {
		refs, seen := f.walk(ctx)
		for ref := range f.sent {
			if !slices.Contains(refs, ref) {
				leave(ref)
			}
		}
		due = slices.DeleteFunc(refs, func(r types.ManagedObjectReference) bool {
			_, dirty := m.dirty[r]
			_, known := f.sent[r]
			return known && !dirty
		})
		defer f.keep(seen)
	}
	for _, ref := range due {
		if _, known := f.sent[ref]; !known && !m.walk {
			continue // only traversed
		}
		if _, gone := m.gone[ref]; gone {
			continue
		}
		now, missing, ok := f.read(ctx, ref)
		if !ok {
			leave(ref)
			continue
		}
		if now == nil {
			continue // no property of its type is asked for
		}
		old, known := f.sent[ref]
		o := types.ObjectUpdate{Kind: types.ObjectUpdateKindModify, Obj: ref, ChangeSet: changes(old, now)}
		if !known {
			o.Kind, o.MissingSet = types.ObjectUpdateKindEnter, missing
		}
		f.sent[ref] = now
		if !known || len(o.ChangeSet) > 0 {
			u.ObjectSet = append(u.ObjectSet, o)
		}
	}
	return u
}

// changes tells what leads from one set of values to another, by name.
func changes(old, now map[string]types.AnyType) []types.PropertyChange {
	var out []types.PropertyChange
	for _, name := range slices.Sorted(maps.Keys(now)) {
		if was, ok := old[name]; !ok || !reflect.DeepEqual(was, now[name]) {
			out = append(out, types.PropertyChange{Name: name, Op: types.PropertyChangeOpAssign, Val: now[name]})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(old)) {
		if _, ok := now[name]; !ok {
			out = append(out, types.PropertyChange{Name: name, Op: types.PropertyChangeOpRemove})
		}
	}
	return out
}

// walk finds the filter's objects, in order, and all it has looked at for that.
func (f *filter) walk(ctx *simulator.Context) (refs []types.ManagedObjectReference, seen map[types.ManagedObjectReference]bool) {
	type step struct {
		obj  types.ManagedObjectReference
		spec *types.TraversalSpec
	}
	seen = map[types.ManagedObjectReference]bool{}
	found := map[types.ManagedObjectReference]bool{}
	done := map[step]bool{}
	pick := func(ref types.ManagedObjectReference) {
		if !found[ref] {
			found[ref], seen[ref] = true, true
			refs = append(refs, ref)
			f.look(ref, false)
		}
	}
	var follow func(obj types.ManagedObjectReference, set []types.BaseSelectionSpec)
	follow = func(obj types.ManagedObjectReference, set []types.BaseSelectionSpec) {
		for _, s := range set {
			t, ok := s.(*types.TraversalSpec)
			if !ok {
				t = f.named[s.GetSelectionSpec().Name]
			}
			if t == nil || done[step{obj, t}] || !isA(ctx, obj, t.Type) {
				continue
			}
			done[step{obj, t}], seen[obj] = true, true
			f.look(obj, true)
			for _, ref := range readRefs(ctx, obj, t.Path) {
				if !isTrue(t.Skip) {
					pick(ref)
				}
				follow(ref, t.SelectSet)
			}
		}
	}
	for _, o := range f.spec.ObjectSet {
		if !isTrue(o.Skip) || len(o.SelectSet) == 0 {
			pick(o.Obj)
		}
		follow(o.Obj, o.SelectSet)
	}
	return refs, seen
}

// read reads the properties that the filter asks for of one object; ok is
// false where it is gone, the map nil where none of them is of its type.
func (f *filter) read(ctx *simulator.Context, ref types.ManagedObjectReference) (map[string]types.AnyType, []types.MissingProperty, bool) {
	c, ok := retrieve(ctx, ref, f.spec.PropSet)
	if !ok || c == nil {
		return nil, nil, ok
	}
	now := map[string]types.AnyType{}
	for _, p := range c.PropSet {
		now[p.Name] = p.Val
	}
	return now, c.MissingSet, true
}

// retrieve has the simulator read an object under its lock; the values are
// copies.
func retrieve(ctx *simulator.Context, ref types.ManagedObjectReference, props []types.PropertySpec) (*types.ObjectContent, bool) {
	b := new(simulator.PropertyCollector).RetrievePropertiesEx(ctx, &types.RetrievePropertiesEx{SpecSet: []types.PropertyFilterSpec{{
		ObjectSet: []types.ObjectSpec{{Obj: ref}}, PropSet: props,
	}}})
	body, ok := b.(*methods.RetrievePropertiesExBody)
	if !ok || body.Res == nil || body.Res.Returnval == nil {
		return nil, false
	}
	if len(body.Res.Returnval.Objects) == 0 {
		return nil, true
	}
	return &body.Res.Returnval.Objects[0], true
}

// readRefs reads a property that refers to other objects.
func readRefs(ctx *simulator.Context, ref types.ManagedObjectReference, p string) []types.ManagedObjectReference {
	c, _ := retrieve(ctx, ref, []types.PropertySpec{{Type: ref.Type, PathSet: []string{p}}})
	if c == nil || len(c.PropSet) == 0 {
		return nil
	}
	switch v := c.PropSet[0].Val.(type) {
	case types.ManagedObjectReference:
		return []types.ManagedObjectReference{v}
	case types.ArrayOfManagedObjectReference:
		return v.ManagedObjectReference
	case *types.ArrayOfManagedObjectReference:
		return v.ManagedObjectReference
	}
	return nil
}

// isA tells whether an object is of a managed type or of one derived from it.
func isA(ctx *simulator.Context, ref types.ManagedObjectReference, kind string) bool {
	if ref.Type == kind {
		return true
	}
	obj := ctx.Session.Get(ref)
	if obj == nil {
		return false
	}
	t := reflect.TypeOf(obj)
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Struct && path.Base(t.PkgPath()) != "mo" {
		if t.Kind() == reflect.Pointer {
			t = t.Elem()
			continue
		}
		if t.NumField() == 0 {
			return false
		}
		t = t.Field(0).Type // the simulator's types have vSphere's as their first part
	}
	if t.Kind() != reflect.Struct {
		return false
	}
	part, ok := t.FieldByName(kind)
	return t.Name() == kind || ok && part.Anonymous
}
