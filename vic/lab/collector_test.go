package lab_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/property"
	"github.com/vmware/govmomi/session"
	"github.com/vmware/govmomi/view"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vicsdk/vic-go/vic/lab"
)

// updates asks for a collector's updates; a negative wait is for ever.
func updates(t *testing.T, pc *property.Collector, version string, wait, limit int32) (*types.UpdateSet, error) {
	t.Helper()
	o := &types.WaitOptions{MaxObjectUpdates: limit}
	if wait >= 0 {
		o.MaxWaitSeconds = &wait
	}
	return pc.WaitForUpdates(t.Context(), version, o)
}

func mustUpdates(t *testing.T, pc *property.Collector, version string) *types.UpdateSet {
	t.Helper()
	set, err := updates(t, pc, version, 20, 0)
	if err != nil || set == nil {
		t.Fatalf("updates since %q: %+v, %v", version, set, err)
	}
	return set
}

// told lists a set's updates, "enter vm-1 name=a".
func told(set *types.UpdateSet) []string {
	out := []string{}
	if set == nil {
		return out
	}
	for _, f := range set.FilterSet {
		for _, o := range f.ObjectSet {
			s := fmt.Sprintf("%s %s", o.Kind, o.Obj.Value)
			for _, c := range o.ChangeSet {
				s += fmt.Sprintf(" %s=%v", c.Name, c.Val)
			}
			out = append(out, s)
		}
	}
	slices.Sort(out)
	return out
}

func same(t *testing.T, what string, set *types.UpdateSet, want ...string) {
	t.Helper()
	if d := cmp.Diff(append([]string{}, want...), told(set)); d != "" {
		t.Errorf("%s (-want +got):\n%s", what, d)
	}
}

func newCollector(t *testing.T, c *client) *property.Collector {
	t.Helper()
	return must(property.DefaultCollector(c.Client.Client).Create(t.Context()))(t)
}

func addFilter(t *testing.T, pc *property.Collector, kind string, paths []string, objs ...types.ObjectSpec) *property.Filter {
	t.Helper()
	return must(pc.CreateFilter(t.Context(), types.CreateFilter{Spec: types.PropertyFilterSpec{
		ObjectSet: objs, PropSet: []types.PropertySpec{{Type: kind, PathSet: paths}},
	}}))(t)
}

func annotate(t *testing.T, vm *object.VirtualMachine, text string) {
	t.Helper()
	tk, err := vm.Reconfigure(t.Context(), types.VirtualMachineConfigSpec{Annotation: text})
	if err == nil {
		_, err = tk.WaitForResult(t.Context(), nil)
	}
	ok(t, err)
}

func TestCollectorVersions(t *testing.T) {
	c := login(t, start(t, lab.Options{NoQEMU: true}))
	vm := c.mustCreate(spec("a"))
	id := vm.Reference().Value
	pc := newCollector(t, c)
	addFilter(t, pc, "VirtualMachine", []string{"name", "config.annotation"}, types.ObjectSpec{Obj: vm.Reference()})
	if _, err := updates(t, pc, "1", 0, 0); !fault.Is(err, &types.InvalidCollectorVersion{}) {
		t.Errorf("a version before the first: %v", err)
	}
	first := mustUpdates(t, pc, "")
	same(t, "at first", first, "enter "+id+" name=a")
	if set, err := updates(t, pc, first.Version, 0, 0); err != nil || set != nil {
		t.Errorf("nothing has changed: %+v, %v", set, err)
	}
	began := time.Now()
	if set, err := updates(t, pc, first.Version, 1, 0); err != nil || set != nil || time.Since(began) < time.Second {
		t.Errorf("after %v: %+v, %v", time.Since(began), set, err)
	}
	annotate(t, vm, "x")
	second := mustUpdates(t, pc, first.Version)
	same(t, "then", second, "modify "+id+" config.annotation=x")
	// An answer that was lost comes again, until the next is asked for.
	annotate(t, vm, "y")
	again := mustUpdates(t, pc, first.Version)
	same(t, "again", again, "modify "+id+" config.annotation=x")
	third := mustUpdates(t, pc, second.Version)
	same(t, "third", third, "modify "+id+" config.annotation=y")
	if again.Version != second.Version || third.Version == second.Version {
		t.Errorf("versions %s, %s, %s", second.Version, again.Version, third.Version)
	}
	if _, err := updates(t, pc, first.Version, 0, 0); !fault.Is(err, &types.InvalidCollectorVersion{}) {
		t.Errorf("an old version: %v", err)
	}
	same(t, "all anew", mustUpdates(t, pc, ""), "enter "+id+" config.annotation=y name=a")
	// What leaves and comes within one wait is not told of.
	last := mustUpdates(t, pc, "")
	annotate(t, vm, "z")
	annotate(t, vm, "y")
	if set, err := updates(t, pc, last.Version, 0, 0); err != nil || set != nil {
		t.Errorf("there and back: %v, %v", told(set), err)
	}
	var none types.CheckForUpdates
	none.This, none.Version = pc.Reference(), last.Version
	if res, err := methods.CheckForUpdates(t.Context(), c.Client.Client, &none); err != nil || res.Returnval != nil {
		t.Errorf("CheckForUpdates: %+v, %v", res, err)
	}
	tk := must(vm.Destroy(t.Context()))(t)
	ok(t, tk.Wait(t.Context()))
	res := must(methods.WaitForUpdates(t.Context(), c.Client.Client, &types.WaitForUpdates{This: pc.Reference(), Version: last.Version}))(t)
	same(t, "gone", &res.Returnval, "leave "+id)
}

func TestCollectorWakes(t *testing.T) {
	c := login(t, start(t, lab.Options{NoQEMU: true}))
	a, b := c.mustCreate(spec("a")), c.mustCreate(spec("b"))
	pc := newCollector(t, c)
	addFilter(t, pc, "VirtualMachine", []string{"name"}, types.ObjectSpec{Obj: a.Reference()})
	set := mustUpdates(t, pc, "")
	type answer struct {
		set *types.UpdateSet
		err error
	}
	wait := func(version string) chan answer {
		ch := make(chan answer, 1)
		begun := c.lab.Counters().LongPolls
		go func() {
			res, err := methods.WaitForUpdatesEx(context.Background(), c.Client.Client, &types.WaitForUpdatesEx{This: pc.Reference(), Version: version})
			if err != nil {
				ch <- answer{nil, err}
				return
			}
			ch <- answer{res.Returnval, nil}
		}()
		for c.lab.Counters().LongPolls == begun {
			time.Sleep(time.Millisecond)
		}
		time.Sleep(10 * time.Millisecond)
		return ch
	}
	// A change of no interest does not end it, a new filter does.
	ch := wait(set.Version)
	annotate(t, a, "x")
	annotate(t, b, "x")
	select {
	case x := <-ch:
		t.Fatalf("woken by %v, %v", told(x.set), x.err)
	case <-time.After(100 * time.Millisecond):
	}
	f := addFilter(t, pc, "VirtualMachine", []string{"config.annotation"}, types.ObjectSpec{Obj: b.Reference()})
	x := <-ch
	ok(t, x.err)
	same(t, "a filter beside a wait", x.set, "enter "+b.Reference().Value+" config.annotation=x")
	// A change ends it at once.
	ch = wait(x.set.Version)
	annotate(t, b, "y")
	x = <-ch
	same(t, "a change", x.set, "modify "+b.Reference().Value+" config.annotation=y")
	// A second wait, a cancellation and the collector's end do, too.
	first := wait(x.set.Version)
	second := wait(x.set.Version)
	if x := <-first; !fault.Is(x.err, &types.RequestCanceled{}) {
		t.Errorf("the first of two waits: %v, %v", told(x.set), x.err)
	}
	ok(t, pc.CancelWaitForUpdates(t.Context()))
	if x := <-second; !fault.Is(x.err, &types.RequestCanceled{}) {
		t.Errorf("a cancelled wait: %v, %v", told(x.set), x.err)
	}
	ok(t, f.Destroy(t.Context()))
	if err := f.Destroy(t.Context()); !fault.Is(err, &types.ManagedObjectNotFound{}) {
		t.Errorf("a filter destroyed twice: %v", err)
	}
	ch = wait(x.set.Version)
	annotate(t, b, "z") // nobody's business any more
	ok(t, pc.Destroy(t.Context()))
	if x := <-ch; x.err == nil {
		t.Errorf("a wait on a destroyed collector: %v", told(x.set))
	}
}

func TestCollectorRefuses(t *testing.T) {
	c := login(t, start(t, lab.Options{NoQEMU: true}))
	vm := c.mustCreate(spec("a"))
	ctx := t.Context()
	pc := newCollector(t, c)
	create := func(s types.PropertyFilterSpec) error {
		_, err := pc.CreateFilter(ctx, types.CreateFilter{Spec: s})
		return err
	}
	gone := types.ManagedObjectReference{Type: "VirtualMachine", Value: "vm-none"}
	props := []types.PropertySpec{{Type: "VirtualMachine", PathSet: []string{"name"}}}
	wantFault(t, create(types.PropertyFilterSpec{ObjectSet: []types.ObjectSpec{{Obj: gone}}, PropSet: props}), &types.ManagedObjectNotFound{})
	ok(t, create(types.PropertyFilterSpec{ObjectSet: []types.ObjectSpec{{Obj: gone}, {Obj: vm.Reference()}}, PropSet: props, ReportMissingObjectsInResults: types.NewBool(true)}))
	wantFault(t, create(types.PropertyFilterSpec{
		ObjectSet: []types.ObjectSpec{{Obj: vm.Reference()}}, PropSet: []types.PropertySpec{{Type: "VirtualMachine", PathSet: []string{"nonesuch"}}},
	}), &types.InvalidProperty{})
	wantFault(t, create(types.PropertyFilterSpec{
		ObjectSet: []types.ObjectSpec{{Obj: vm.Reference(), SelectSet: []types.BaseSelectionSpec{&types.SelectionSpec{Name: "nowhere"}}}}, PropSet: props,
	}), &types.InvalidArgument{})
	ok(t, pc.Destroy(ctx))
	wantFault(t, create(types.PropertyFilterSpec{ObjectSet: []types.ObjectSpec{{Obj: vm.Reference()}}, PropSet: props}), &types.ManagedObjectNotFound{})
}

// TestCollectorTraverses: objects come and go by the lists they are in.
func TestCollectorTraverses(t *testing.T) {
	c := login(t, start(t, lab.Options{NoQEMU: true}))
	ctx := t.Context()
	a, b := c.mustCreate(spec("a")), c.mustCreate(spec("b"))
	list := must(view.NewManager(c.Client.Client).CreateListView(ctx, []types.ManagedObjectReference{a.Reference()}))(t)
	container := must(view.NewManager(c.Client.Client).CreateContainerView(ctx, c.ServiceContent.RootFolder, []string{"VirtualMachine"}, true))(t)
	folder := must(c.vms.CreateFolder(ctx, "f"))(t)
	through := func(obj types.ManagedObjectReference, kind, path string) types.ObjectSpec {
		return types.ObjectSpec{Obj: obj, Skip: types.NewBool(true), SelectSet: []types.BaseSelectionSpec{&types.TraversalSpec{
			SelectionSpec: types.SelectionSpec{Name: "self"}, Type: kind, Path: path,
			SelectSet: []types.BaseSelectionSpec{&types.SelectionSpec{Name: "self"}},
		}}}
	}
	names := func(set *types.UpdateSet) []string {
		var out []string
		for _, f := range set.FilterSet {
			for _, o := range f.ObjectSet {
				out = append(out, fmt.Sprint(o.Kind, " ", o.Obj.Value))
			}
		}
		slices.Sort(out)
		return out
	}
	var all []*property.Collector
	versions := map[*property.Collector]string{}
	for _, o := range []types.ObjectSpec{
		through(list.Reference(), "ManagedObjectView", "view"),
		through(container.Reference(), "ContainerView", "view"),
		through(c.vms.Reference(), "Folder", "childEntity"),
	} {
		pc := newCollector(t, c)
		addFilter(t, pc, "VirtualMachine", []string{"name"}, o)
		all = append(all, pc)
	}
	next := func(i int, want ...string) {
		t.Helper()
		pc := all[i]
		slices.Sort(want)
		var got []string
		for len(got) < len(want) {
			set := mustUpdates(t, pc, versions[pc])
			versions[pc] = set.Version
			got = append(got, names(set)...)
		}
		slices.Sort(got)
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("collector %d (-want +got):\n%s", i, d)
		}
	}
	ida, idb := a.Reference().Value, b.Reference().Value
	next(0, "enter "+ida)
	next(1, "enter "+ida, "enter "+idb)
	next(2, "enter "+ida, "enter "+idb)
	must(list.Add(ctx, []types.ManagedObjectReference{b.Reference()}))(t)
	next(0, "enter "+idb)
	_, err := list.Remove(ctx, []types.ManagedObjectReference{a.Reference()})
	ok(t, err)
	next(0, "leave "+ida)
	d := c.mustCreate(spec("d"))
	next(1, "enter "+d.Reference().Value)
	next(2, "enter "+d.Reference().Value)
	tk := must(folder.MoveInto(ctx, []types.ManagedObjectReference{d.Reference()}))(t)
	ok(t, tk.Wait(ctx))
	tk = must(b.Destroy(ctx))(t)
	ok(t, tk.Wait(ctx))
	next(0, "leave "+idb)
	next(1, "leave "+idb)
	next(2, "leave "+idb)
}

func TestCollectorPages(t *testing.T) {
	c := login(t, start(t, lab.Options{NoQEMU: true}))
	pc := newCollector(t, c)
	var want []string
	for i := range 7 {
		vm := c.mustCreate(spec(fmt.Sprint("vm", i)))
		addFilter(t, pc, "VirtualMachine", []string{"name"}, types.ObjectSpec{Obj: vm.Reference()})
		want = append(want, fmt.Sprintf("enter %s name=vm%d", vm.Reference().Value, i))
	}
	var got []string
	version := ""
	for n := 1; ; n++ {
		set := must(updates(t, pc, version, 20, 2))(t)
		version = set.Version
		got = append(got, told(set)...)
		if more := set.Truncated != nil && *set.Truncated; more != (n < 4) {
			t.Fatalf("page %d is truncated: %v", n, more)
		} else if !more {
			break
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// TestCollectorsEndWithTheirSession: waits of a login that ends do not go on.
func TestCollectorsEndWithTheirSession(t *testing.T) {
	l := start(t, lab.Options{NoQEMU: true})
	by := login(t, l)
	vm := by.mustCreate(spec("a"))
	for name, end := range map[string]func(c *client) error{
		"logout": func(c *client) error { return c.Logout(t.Context()) },
		"termination": func(c *client) error {
			s := must(session.NewManager(c.Client.Client).UserSession(t.Context()))(t)
			return by.SessionManager.TerminateSession(t.Context(), []string{s.Key})
		},
	} {
		c := login(t, l)
		pc := property.DefaultCollector(c.Client.Client)
		addFilter(t, pc, "VirtualMachine", []string{"name"}, types.ObjectSpec{Obj: vm.Reference()})
		set := mustUpdates(t, pc, "")
		errc := make(chan error, 1)
		n := l.Counters().LongPolls
		go func() {
			_, err := methods.WaitForUpdatesEx(context.Background(), c.Client.Client, &types.WaitForUpdatesEx{This: pc.Reference(), Version: set.Version})
			errc <- err
		}()
		for l.Counters().LongPolls == n {
			time.Sleep(time.Millisecond)
		}
		time.Sleep(10 * time.Millisecond)
		ok(t, end(c))
		select {
		case err := <-errc:
			if !fault.Is(err, &types.NotAuthenticated{}) {
				t.Errorf("%s: %v", name, err)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("%s: the wait goes on", name)
		}
	}
}

// TestTaskInfoBesideItsWriter: govmomi waits on the whole of a task's info.
func TestTaskInfoBesideItsWriter(t *testing.T) {
	c := login(t, start(t, lab.Options{NoQEMU: true}))
	vm := c.mustCreate(spec("a"))
	pc := newCollector(t, c)
	through := &types.TraversalSpec{Type: "TaskManager", Path: "recentTask"}
	addFilter(t, pc, "Task", []string{"info"}, types.ObjectSpec{Obj: *c.ServiceContent.TaskManager, SelectSet: []types.BaseSelectionSpec{through}})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	seen := map[types.ManagedObjectReference]bool{}
	wg.Go(func() {
		version := ""
		for ctx.Err() == nil {
			set, err := pc.WaitForUpdates(ctx, version, &types.WaitOptions{MaxWaitSeconds: types.NewInt32(1)})
			if err != nil || set == nil {
				continue
			}
			version = set.Version
			for _, f := range set.FilterSet {
				for _, o := range f.ObjectSet {
					for _, ch := range o.ChangeSet {
						if i, ok := ch.Val.(types.TaskInfo); ok && i.State == types.TaskInfoStateSuccess {
							seen[o.Obj] = true
						}
					}
				}
			}
		}
	})
	vdm := object.NewVirtualDiskManager(c.Client.Client)
	for range 4 {
		wg.Go(func() {
			for range 5 {
				tk, err := vdm.DeleteVirtualDisk(t.Context(), "[datastore1] none.vmdk", c.dc)
				if err == nil {
					err = tk.Wait(t.Context())
				}
				if !fault.Is(err, &types.FileNotFound{}) {
					t.Error(err)
				}
			}
		})
	}
	const n = 10
	for i := range n {
		annotate(t, vm, fmt.Sprint(i))
	}
	time.Sleep(100 * time.Millisecond)
	cancel()
	wg.Wait()
	if len(seen) < n {
		t.Errorf("the end of %d tasks was seen, of %d", len(seen), n)
	}
}
