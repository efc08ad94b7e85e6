package vsphere_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"runtime/pprof"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/session"
	"github.com/vmware/govmomi/vim25"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vicsdk/vic-go/internal/fault"
	"github.com/vicsdk/vic-go/internal/vsphere"
	"github.com/vicsdk/vic-go/vic/lab"
)

// tap sees a client's requests, and may answer them.
type tap struct {
	next soap.RoundTripper
	mu   sync.Mutex
	f    func(ctx context.Context, next soap.RoundTripper, req, res soap.HasFault) error
}

func (p *tap) set(f func(ctx context.Context, next soap.RoundTripper, req, res soap.HasFault) error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.f = f
}

func (p *tap) RoundTrip(ctx context.Context, req, res soap.HasFault) error {
	p.mu.Lock()
	f := p.f
	p.mu.Unlock()
	if f == nil {
		return p.next.RoundTrip(ctx, req, res)
	}
	return f(ctx, p.next, req, res)
}

type env struct {
	t   *testing.T
	lab *lab.Lab
	s   *vsphere.Session
	tap *tap
}

func login(ctx context.Context, l *lab.Lab) (*vim25.Client, error) {
	e := l.Endpoint()
	sc := soap.NewClient(e.URL, false)
	sc.SetThumbprint(e.URL.Host, e.SHA256)
	vc, err := vim25.NewClient(ctx, sc)
	if err != nil {
		return nil, err
	}
	return vc, session.NewManager(vc).Login(ctx, url.UserPassword(e.User, e.Password))
}

func start(t *testing.T, adopted bool) *env {
	t.Helper()
	l, err := lab.Start(t.Context(), lab.Options{Dir: filepath.Join(t.TempDir(), "lab"), NoQEMU: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	vc, err := login(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	p := &tap{next: vc.RoundTripper}
	vc.RoundTripper = p
	var o vsphere.SessionOptions
	if !adopted {
		o.Login = func(ctx context.Context, rt soap.RoundTripper) error {
			_, err := methods.Login(ctx, rt, &types.Login{This: *vc.ServiceContent.SessionManager, UserName: l.Endpoint().User, Password: l.Endpoint().Password})
			return err
		}
	}
	s, err := vsphere.NewSession(t.Context(), vc, o)
	if err != nil {
		t.Fatal(err)
	}
	vsphere.Hasten(s)
	t.Cleanup(func() {
		if err := s.Watcher.Close(context.Background()); err != nil {
			t.Error(err)
		}
		vc.CloseIdleConnections()
		if left := running(); left != "" {
			t.Error("goroutines left behind:\n" + left)
		}
	})
	l.ResetCounters()
	return &env{t, l, s, p}
}

// running returns the goroutines of the package that do not end.
func running() string {
	for until := time.Now().Add(5 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		var b bytes.Buffer
		_ = pprof.Lookup("goroutine").WriteTo(&b, 2)
		var left []string
		for _, g := range strings.Split(b.String(), "\n\n") {
			if strings.Contains(g, "internal/vsphere.") && !strings.Contains(g, "vsphere_test.running") {
				left = append(left, g)
			}
		}
		if len(left) == 0 || time.Now().After(until) {
			return strings.Join(left, "\n\n")
		}
	}
}

// vm makes a VM with a key that vary changes.
func (e *env) vm(name string) *object.VirtualMachine {
	e.t.Helper()
	ctx := e.t.Context()
	f := find.NewFinder(e.s.Vim, false)
	dc, err := f.Datacenter(ctx, "dc1")
	if err != nil {
		e.t.Fatal(err)
	}
	folders, err := dc.Folders(ctx)
	if err != nil {
		e.t.Fatal(err)
	}
	pool, err := f.ResourcePool(ctx, "/dc1/host/cluster1/Resources")
	if err != nil {
		e.t.Fatal(err)
	}
	tk, err := folders.VmFolder.CreateVM(ctx, types.VirtualMachineConfigSpec{
		Name: name, GuestId: "other3xLinux64Guest", NumCPUs: 1, MemoryMB: 64, Files: &types.VirtualMachineFileInfo{VmPathName: "[datastore1]"},
	}, pool, nil)
	if err != nil {
		e.t.Fatal(err)
	}
	r, err := vsphere.WaitResult(ctx, e.s, tk.Reference())
	if err != nil {
		e.t.Fatal(err)
	}
	return object.NewVirtualMachine(e.s.Vim, r.(types.ManagedObjectReference))
}

func (e *env) vary(vm *object.VirtualMachine, value string) error {
	ctx := e.t.Context()
	tk, err := vm.Reconfigure(ctx, types.VirtualMachineConfigSpec{Annotation: value})
	if err == nil {
		_, err = vsphere.Wait(ctx, e.s, tk.Reference(), nil)
	}
	return err
}

const noted = "config.annotation"

// sees waits until a watch has a VM's note.
func sees(ctx context.Context, x *vsphere.Watch, vm *object.VirtualMachine, want string) error {
	return x.Wait(ctx, func(s vsphere.State) (bool, error) {
		return s.Get(vm.Reference(), noted) == want, s.Err(vm.Reference())
	})
}

func (e *env) open(vm *object.VirtualMachine) *vsphere.Watch {
	e.t.Helper()
	x, err := e.s.Watcher.Open(e.t.Context(), vsphere.One(vm.Reference(), "name", noted))
	if err != nil {
		e.t.Fatal(err)
	}
	return x
}

func TestManyWaitAtOnce(t *testing.T) {
	e := start(t, false)
	vsphere.Relax(e.s)
	_, err := e.s.Datastores(t.Context(), true)
	if err != nil {
		t.Fatal(err)
	}
	ds, err := e.s.Datastore(t.Context(), "datastore1", func(d vsphere.Datastore) bool { return d.Name == "datastore1" })
	if err != nil || !ds.SparseDisks {
		t.Fatalf("%+v, %v", ds, err)
	}
	files := e.s.Files(ds.Ref, ds.Name)
	vm := e.vm("a")
	shared := e.open(vm)
	defer shared.Release()
	e.lab.ResetCounters()
	var wg sync.WaitGroup
	const n, each = 16, 4
	for i := range n {
		wg.Go(func() {
			for j := range each {
				if err := files.CreateThinDisk(t.Context(), fmt.Sprintf("d-%d-%d.vmdk", i, j), 1<<20); err != nil {
					t.Error(err)
				}
				if err := files.Move(t.Context(), "missing", "x", false); !errors.Is(err, fault.ErrNotFound) {
					t.Errorf("moved what is not there: %v", err)
				}
				if !shared.Hold() {
					t.Error("no further hold")
					continue
				}
				if err := sees(t.Context(), shared, vm, "end"); err != nil {
					t.Error(err)
				}
				shared.Release()
			}
		})
	}
	if err := e.vary(vm, "end"); err != nil {
		t.Error(err)
	}
	wg.Wait()
	c := e.lab.Counters()
	if got := c.Requests["CreateFilter"]; got != 2*n*each+1 || c.Requests["CreatePropertyCollector"] != 0 {
		t.Errorf("%d filters for %d tasks, requests %v", got, 2*n*each+1, c.Requests)
	}
}

func TestWaitEndsWithItsContext(t *testing.T) {
	e := start(t, false)
	vm := e.vm("a")
	x := e.open(vm)
	defer x.Release()
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	began := time.Now()
	if err := sees(ctx, x, vm, "never"); !errors.Is(err, context.Canceled) || time.Since(began) > time.Second {
		t.Errorf("after %v: %v", time.Since(began), err)
	}
	// A filter whose maker has gone is destroyed when it tells of something.
	e.tap.set(func(ctx context.Context, next soap.RoundTripper, req, res soap.HasFault) error {
		err := next.RoundTrip(ctx, req, res)
		if _, ok := req.(*methods.CreateFilterBody); ok {
			time.Sleep(50 * time.Millisecond)
		}
		return err
	})
	e.lab.ResetCounters()
	ctx, cancel = context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := e.s.Watcher.Open(ctx, vsphere.One(vm.Reference(), noted)); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	e.tap.set(nil)
	time.Sleep(100 * time.Millisecond)
	for i := range 2 { // of which one may come before the filter is known to be nobody's
		if err := e.vary(vm, fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	for e.lab.Counters().Requests["DestroyPropertyFilter"] == 0 {
		time.Sleep(time.Millisecond)
	}
}

func TestObjectGone(t *testing.T) {
	e := start(t, false)
	vm, other := e.vm("a"), e.vm("b")
	spec := vsphere.One(vm.Reference(), noted)
	spec.ObjectSet = append(spec.ObjectSet, types.ObjectSpec{Obj: other.Reference()})
	x, err := e.s.Watcher.Open(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	defer x.Release()
	ended := make(chan error, 1)
	go func() { ended <- sees(t.Context(), x, vm, "never") }()
	tk, err := vm.Destroy(t.Context())
	if err == nil {
		_, err = vsphere.Wait(t.Context(), e.s, tk.Reference(), nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, fault.ErrNotFound) || !strings.Contains(err.Error(), "gone") {
		t.Errorf("the VM is gone: %v", err)
	}
	if _, err := e.s.Watcher.Open(t.Context(), vsphere.One(vm.Reference(), noted)); !errors.Is(err, fault.ErrNotFound) {
		t.Errorf("a filter of what is gone: %v", err)
	}
	// The other one is watched on, also when the filter has to be made anew.
	terminate(t, e.lab, e.s.Vim)
	if err := e.vary(other, "on"); err != nil {
		t.Fatal(err)
	}
	if err := sees(t.Context(), x, other, "on"); err != nil {
		t.Error(err)
	}
	if err := sees(t.Context(), x, vm, "never"); !errors.Is(err, fault.ErrNotFound) {
		t.Error(err)
	}
}

// terminate ends a client's login from another one.
func terminate(t *testing.T, l *lab.Lab, vc *vim25.Client) {
	t.Helper()
	s, err := session.NewManager(vc).UserSession(t.Context())
	if err != nil || s == nil {
		t.Fatalf("session %v, %v", s, err)
	}
	by, err := login(t.Context(), l)
	if err == nil {
		err = session.NewManager(by).TerminateSession(t.Context(), []string{s.Key})
	}
	if err == nil {
		err = session.NewManager(by).Logout(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestLoginIsMadeAgain(t *testing.T) {
	e := start(t, false)
	vm := e.vm("a")
	x := e.open(vm)
	for i := range 3 {
		terminate(t, e.lab, e.s.Vim)
		want := fmt.Sprint("note ", i)
		if err := e.vary(vm, want); err != nil {
			t.Fatal(err)
		}
		if err := sees(t.Context(), x, vm, want); err != nil {
			t.Fatal(err)
		}
	}
	// Also while nothing is watched.
	x.Release()
	time.Sleep(300 * time.Millisecond)
	terminate(t, e.lab, e.s.Vim)
	if err := e.vary(vm, "last"); err != nil {
		t.Error(err)
	}
	ds, err := e.s.Datastores(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	terminate(t, e.lab, e.s.Vim)
	if _, err := e.s.Files(ds[0].Ref, ds[0].Name).ReadFile(t.Context(), "none", 1); !errors.Is(err, fault.ErrNotFound) {
		t.Errorf("a file after the login's end: %v", err)
	}
	if x = e.open(vm); sees(t.Context(), x, vm, "last") != nil {
		t.Error("no last note")
	}
}

type netError struct{}

func (netError) Error() string   { return "connection reset" }
func (netError) Timeout() bool   { return false }
func (netError) Temporary() bool { return false }

func TestWaitsFail(t *testing.T) {
	for name, fail := range map[string]func(context.Context) error{
		"connection lost": func(context.Context) error { return netError{} },
		"no answer":       func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
		"version unknown": func(context.Context) error { return soap.WrapVimFault(&types.InvalidCollectorVersion{}) },
		"wait cancelled":  func(context.Context) error { return soap.WrapVimFault(&types.RequestCanceled{}) },
		"answer lost":     nil,
	} {
		t.Run(name, func(t *testing.T) {
			e := start(t, false)
			vm := e.vm("a")
			x := e.open(vm)
			defer x.Release()
			var left atomic.Int64
			left.Store(3)
			e.tap.set(func(ctx context.Context, next soap.RoundTripper, req, res soap.HasFault) error {
				if _, ok := req.(*methods.WaitForUpdatesExBody); ok && left.Add(-1) >= 0 {
					if fail != nil {
						return fail(ctx)
					}
					if err := next.RoundTrip(ctx, req, res); err != nil {
						return err
					}
					return netError{}
				}
				return next.RoundTrip(ctx, req, res)
			})
			for i := range 5 {
				want := fmt.Sprint("note ", i)
				if err := e.vary(vm, want); err != nil {
					t.Fatal(err)
				}
				if err := sees(t.Context(), x, vm, want); err != nil {
					t.Fatal(err)
				}
			}
			if left.Load() >= 0 {
				t.Error("nothing failed")
			}
			// For good.
			left.Store(1 << 40)
			if fail == nil {
				return
			}
			err := sees(t.Context(), x, vm, "never")
			if err == nil || name == "connection lost" && !errors.Is(err, fault.ErrUnavailable) {
				t.Errorf("got %v", err)
			}
			if x.Hold() {
				t.Error("a hold on a watch that has ended")
			}
			left.Store(0)
			y := e.open(vm)
			defer y.Release()
			if err := sees(t.Context(), y, vm, "note 4"); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestTaskOutlivesConnection: a task whose wait fails for good is asked for once
// more, and one that cannot be seen is said to be so.
func TestTaskOutlivesConnection(t *testing.T) {
	e := start(t, false)
	vm := e.vm("a")
	e.tap.set(func(ctx context.Context, next soap.RoundTripper, req, res soap.HasFault) error {
		if _, ok := req.(*methods.WaitForUpdatesExBody); ok {
			return netError{}
		}
		return next.RoundTrip(ctx, req, res)
	})
	if err := e.vary(vm, "x"); !errors.Is(err, fault.ErrUnknownOutcome) {
		t.Errorf("got %v", err)
	}
}

func TestUpdateComesBeforeItsFilter(t *testing.T) {
	e := start(t, false)
	vm := e.vm("a")
	if err := e.vary(vm, "x"); err != nil {
		t.Fatal(err)
	}
	x := e.open(vm) // so that a wait is under way
	defer x.Release()
	e.tap.set(func(ctx context.Context, next soap.RoundTripper, req, res soap.HasFault) error {
		err := next.RoundTrip(ctx, req, res)
		if _, ok := req.(*methods.CreateFilterBody); ok {
			time.Sleep(100 * time.Millisecond)
		}
		return err
	})
	for range 3 {
		y := e.open(vm)
		if err := sees(t.Context(), y, vm, "x"); err != nil {
			t.Error(err)
		}
		y.Release()
	}
}

func TestTruncatedSets(t *testing.T) {
	e := start(t, false)
	var vms []*object.VirtualMachine
	spec := types.PropertyFilterSpec{PropSet: []types.PropertySpec{{Type: "VirtualMachine", PathSet: []string{"name"}}}}
	for i := range 5 {
		vms = append(vms, e.vm(fmt.Sprint("vm", i)))
		spec.ObjectSet = append(spec.ObjectSet, types.ObjectSpec{Obj: vms[i].Reference()})
	}
	e.tap.set(func(ctx context.Context, next soap.RoundTripper, req, res soap.HasFault) error {
		if r, ok := req.(*methods.WaitForUpdatesExBody); ok {
			r.Req.Options.MaxObjectUpdates = 1
		}
		return next.RoundTrip(ctx, req, res)
	})
	x, err := e.s.Watcher.Open(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	defer x.Release()
	whole := func(s vsphere.State) (bool, error) {
		for i, vm := range vms {
			if s.Get(vm.Reference(), "name") != fmt.Sprint("vm", i) {
				return true, fmt.Errorf("VM %d is not there", i)
			}
		}
		return true, nil
	}
	if err := x.Wait(t.Context(), whole); err != nil {
		t.Error(err)
	}
	terminate(t, e.lab, e.s.Vim)
	if err := e.vary(vms[0], "x"); err != nil {
		t.Error(err)
	}
	if err := x.Wait(t.Context(), whole); err != nil {
		t.Error(err)
	}
}

// TestFiltersGoLazily: quiet ones only when they are many, and not at all where
// the login ends first.
func TestFiltersGoLazily(t *testing.T) {
	e := start(t, false)
	vm := e.vm("a")
	for range 25 {
		if err := e.vary(vm, "x"); err != nil {
			t.Fatal(err)
		}
	}
	if c := e.lab.Counters(); c.Requests["DestroyPropertyFilter"] != 0 {
		t.Errorf("requests %v", c.Requests)
	}
	for range 10 {
		if err := e.vary(vm, "x"); err != nil {
			t.Fatal(err)
		}
	}
	for e.lab.Counters().Requests["DestroyPropertyFilter"] < 32 {
		time.Sleep(time.Millisecond)
	}
	// And nobody waits when there is nothing to wait for.
	time.Sleep(200 * time.Millisecond)
	n := e.lab.Counters().LongPolls
	time.Sleep(1500 * time.Millisecond)
	if got := e.lab.Counters().LongPolls; got != n {
		t.Errorf("%d waits for nothing", got-n)
	}
	if err := e.vary(vm, "y"); err != nil {
		t.Fatal(err)
	}
	e.lab.ResetCounters()
	if err := e.s.Watcher.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if c := e.lab.Counters(); c.Requests["DestroyPropertyFilter"] != 0 {
		t.Errorf("requests %v", c.Requests)
	}
	if _, err := e.s.Watcher.Open(t.Context(), vsphere.One(vm.Reference(), "name")); !errors.Is(err, fault.ErrState) {
		t.Errorf("after Close: %v", err)
	}
}

func TestAdoptedSession(t *testing.T) {
	e := start(t, true)
	vm := e.vm("a")
	x := e.open(vm)
	for i := range 3 {
		want := fmt.Sprint("note ", i)
		if err := e.vary(vm, want); err != nil {
			t.Fatal(err)
		}
		if err := sees(t.Context(), x, vm, want); err != nil {
			t.Fatal(err)
		}
	}
	waiting := make(chan error, 1)
	go func() { waiting <- sees(context.Background(), x, vm, "never") }()
	time.Sleep(20 * time.Millisecond)
	if err := e.s.Watcher.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if err := <-waiting; !errors.Is(err, fault.ErrState) {
		t.Errorf("a wait in a closed client: %v", err)
	}
	if c := e.lab.Counters(); c.Requests["CreatePropertyCollector"] != 1 || c.Requests["DestroyPropertyCollector"] != 1 {
		t.Errorf("requests %v", c.Requests)
	}
}

// TestOwnersCollectorIsLost: the owner of an adopted client logs out and in.
func TestOwnersCollectorIsLost(t *testing.T) {
	e := start(t, true)
	vm := e.vm("a")
	x := e.open(vm)
	defer x.Release()
	if err := e.vary(vm, "x"); err != nil {
		t.Fatal(err)
	}
	m := session.NewManager(e.s.Vim)
	if err := m.Logout(t.Context()); err != nil {
		t.Fatal(err)
	}
	ep := e.lab.Endpoint()
	if err := m.Login(t.Context(), url.UserPassword(ep.User, ep.Password)); err != nil {
		t.Fatal(err)
	}
	if err := e.vary(vm, "y"); err != nil {
		t.Error(err)
	}
	y := x
	if err := sees(t.Context(), x, vm, "y"); err != nil { // it may have ended between the logins
		y = e.open(vm)
		defer y.Release()
	}
	if err := sees(t.Context(), y, vm, "y"); err != nil {
		t.Error(err)
	}
}

// TestServerOverlooksFilter: a wait under way that does not take a new filter
// into account is begun anew.
func TestServerOverlooksFilter(t *testing.T) {
	e := start(t, false)
	vm := e.vm("a")
	if err := e.vary(vm, "x"); err != nil {
		t.Fatal(err)
	}
	x := e.open(vm)
	defer x.Release()
	if err := sees(t.Context(), x, vm, "x"); err != nil {
		t.Fatal(err)
	}
	var made atomic.Bool
	canceled := make(chan struct{})
	e.tap.set(func(ctx context.Context, next soap.RoundTripper, req, res soap.HasFault) error {
		err := next.RoundTrip(ctx, req, res)
		switch r := req.(type) {
		case *methods.CreateFilterBody:
			made.Store(true)
		case *methods.CancelWaitForUpdatesBody:
			close(canceled)
		case *methods.WaitForUpdatesExBody:
			if made.CompareAndSwap(true, false) && r != nil && err == nil {
				select {
				case <-canceled:
					return soap.WrapVimFault(&types.RequestCanceled{})
				case <-ctx.Done():
					return ctx.Err()
				}
			}
		}
		return err
	})
	e.lab.ResetCounters()
	y := e.open(vm)
	defer y.Release()
	if err := sees(t.Context(), y, vm, "x"); err != nil {
		t.Error(err)
	}
	if n := e.lab.Counters().Requests["CancelWaitForUpdates"]; n > 1 {
		t.Errorf("%d cancellations", n)
	}
}

// TestGoneBeforeTheFirstWait: nothing is told of an object that goes between the
// making of its filter and the first wait.
func TestGoneBeforeTheFirstWait(t *testing.T) {
	e := start(t, false)
	vm := e.vm("a")
	other, err := login(t.Context(), e.lab)
	if err != nil {
		t.Fatal(err)
	}
	e.tap.set(func(ctx context.Context, next soap.RoundTripper, req, res soap.HasFault) error {
		err := next.RoundTrip(ctx, req, res)
		if _, ok := req.(*methods.CreateFilterBody); ok && err == nil {
			e.tap.set(nil)
			if e := object.NewVirtualMachine(other, vm.Reference()).Unregister(ctx); e != nil {
				t.Error(e)
			}
		}
		return err
	})
	x := e.open(vm)
	defer x.Release()
	if err := sees(t.Context(), x, vm, "never"); !errors.Is(err, fault.ErrNotFound) {
		t.Error(err)
	}
}

// A request that begins a task is not cut off in the middle: what it made would
// be known to nobody.
func TestBeginOutlivesItsContext(t *testing.T) {
	e := start(t, false)
	vm := e.vm("outlive")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ref, err := vsphere.Begin(ctx, func(ctx context.Context) (*object.Task, error) {
		cancel()
		return vm.Reconfigure(ctx, types.VirtualMachineConfigSpec{Annotation: "outlived"})
	})
	if err != nil {
		t.Fatalf("a request that was under way: %v", err)
	}
	// It came to a good end, or was cancelled in time: both are told for sure.
	if _, err := vsphere.Wait(ctx, e.s, ref, nil); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("its task: %v", err)
	}
	asked := false
	err = vsphere.Do(ctx, e.s, func(context.Context) (*object.Task, error) { asked = true; return nil, errors.New("asked") })
	if !errors.Is(err, context.Canceled) || asked {
		t.Errorf("a request after the end: %v, sent: %v", err, asked)
	}
}

// An object that is busy with another task is asked again.
func TestBusy(t *testing.T) {
	asked := 0
	busy := func(times int) func(context.Context) (*object.Task, error) {
		asked = 0
		return func(context.Context) (*object.Task, error) {
			if asked++; asked <= times {
				return nil, soap.WrapVimFault(&types.TaskInProgress{})
			}
			return object.NewTask(nil, types.ManagedObjectReference{Type: "Task", Value: "task-1"}), nil
		}
	}
	if ref, err := vsphere.Begin(t.Context(), busy(3)); err != nil || ref.Value != "task-1" || asked != 4 {
		t.Errorf("%v, %v, asked %d times", ref, err, asked)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := vsphere.Begin(ctx, busy(1000)); !errors.Is(err, fault.ErrConflict) || asked < 2 {
		t.Errorf("for ever: %v, asked %d times", err, asked)
	}
}
