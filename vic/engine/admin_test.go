package engine_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vicsdk/vic-go/internal/testlab"
	"github.com/vicsdk/vic-go/vic/containervm"
	"github.com/vicsdk/vic-go/vic/engine"
	"github.com/vicsdk/vic-go/vic/lab"
	"github.com/vicsdk/vic-go/vic/tether"
)

// newGovc builds VMware's command line and returns how to call it on a lab.
func newGovc(t *testing.T, e *testlab.Env) func(args ...string) string {
	t.Helper()
	dir := t.TempDir()
	bin, ca := filepath.Join(dir, "govc"), filepath.Join(dir, "ca.pem")
	if b, err := exec.Command("go", "build", "-buildvcs=false", "-o", bin, "../../internal/govc").CombinedOutput(); err != nil {
		t.Fatalf("build govc: %v\n%s", err, b)
	}
	ep := e.Lab.Endpoint()
	if err := os.WriteFile(ca, ep.CA, 0o600); err != nil {
		t.Fatal(err)
	}
	return func(args ...string) string {
		t.Helper()
		cmd := exec.Command(bin, args...)
		cmd.Env = append(os.Environ(), "HOME="+dir, "GOVMOMI_HOME="+dir, "GOVC_URL="+ep.URL.String(), "GOVC_USERNAME="+ep.User, "GOVC_PASSWORD="+ep.Password, "GOVC_TLS_CA_CERTS="+ca)
		b, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("govc %s: %v\n%s", strings.Join(args, " "), err, b)
		}
		return string(b)
	}
}

// eventLog gathers events.
type eventLog struct {
	mu   sync.Mutex
	list []containervm.Event
}

func (l *eventLog) add(e containervm.Event) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.list = append(l.list, e)
	return nil
}

// actions are those of a container since event n, without updates, which any
// change of its options is.
func (l *eventLog) actions(id string, n int) (out []containervm.Action) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.list[n:] {
		if e.ID == id && e.Action != containervm.ActionUpdate {
			out = append(out, e.Action)
		}
	}
	return out
}

func (l *eventLog) len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.list)
}

// TestAdministrator: what an administrator does with govc to a container's VM is
// followed by the right state and the right events.
func TestAdministrator(t *testing.T) {
	t.Parallel()
	e := testlab.Start(t, testlab.Options{Lab: func(o *lab.Options) { o.Hosts, o.Datastores = 2, []string{"datastore1", "datastore2"} }})
	ctx := t.Context()
	govc := newGovc(t, e)
	began := time.Now().Add(-time.Second)
	live, stop := new(eventLog), make(chan error, 1)
	ectx, end := context.WithCancel(ctx)
	go func() { stop <- e.Engine.Events(ectx, &containervm.EventOptions{Since: began}, live.add) }()

	vm, _, err := e.Engine.Run(ctx, engine.RunSpec{Image: e.Busybox(t), Detach: true, Container: containervm.Spec{
		Name: "ticker", Args: []string{"sh", "-c", "n=0; while :; do n=$((n+1)); echo tick $n; sleep 1; done"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	await := func(what string, f func(containervm.Info) bool) containervm.Info {
		t.Helper()
		deadline := time.Now().Add(90 * time.Second)
		for {
			info, err := vm.Inspect(ctx)
			if err == nil && f(info) {
				return info
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: %+v, %v", what, info, err)
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	running := func(i containervm.Info) bool { return i.State == containervm.Running && !i.Started.IsZero() }
	boot := func() string {
		t.Helper()
		var m mo.VirtualMachine
		o := object.NewVirtualMachine(e.Client.Vim(), types.ManagedObjectReference{Type: "VirtualMachine", Value: vm.Ref().ID})
		if err := o.Properties(ctx, o.Reference(), []string{"config.extraConfig"}, &m); err != nil {
			t.Fatal(err)
		}
		var st tether.Status
		v, _ := object.OptionValueList(m.Config.ExtraConfig).GetString(tether.StatusKey)
		if err := json.Unmarshal([]byte(v), &st); err != nil {
			t.Fatal(err)
		}
		return st.Boot
	}
	lines := func() int {
		t.Helper()
		// A guest without hardware virtualisation may take long for a handshake.
		for deadline := time.Now().Add(60 * time.Second); ; {
			n := 0
			err := vm.Logs(ctx, tether.LogOptions{}, func(tether.LogEntry) error { n++; return nil })
			if err == nil {
				return n
			}
			if time.Now().After(deadline) {
				t.Fatal(err)
			}
			t.Log(err)
		}
	}
	at := 0
	expect := func(want ...containervm.Action) {
		t.Helper()
		deadline := time.Now().Add(20 * time.Second)
		for {
			got := live.actions(vm.ID(), at)
			if slices.Equal(got, want) {
				at = live.len()
				return
			}
			if time.Now().After(deadline) {
				t.Errorf("events %v, want %v", got, want)
				at = live.len()
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
	}
	await("it runs", running)
	expect(containervm.ActionCreate, containervm.ActionStart)
	first := boot()

	govc("vm.power", "-reset", "ticker")
	await("it runs again after a reset", func(i containervm.Info) bool { return running(i) && boot() != first })
	expect(containervm.ActionReset)

	govc("vm.migrate", "-host", "host2", "ticker")
	govc("vm.migrate", "-host", "host1", "ticker")
	await("it runs on another host", running)
	if got := live.actions(vm.ID(), at); len(got) > 2 {
		t.Errorf("migrations: %v", got)
	}
	time.Sleep(2 * time.Second)
	at = live.len()

	second := boot()
	n := lines()
	govc("vm.power", "-suspend", "ticker")
	await("it is suspended", func(i containervm.Info) bool { return i.State == containervm.Suspended })
	short, cancel := context.WithTimeout(ctx, time.Second)
	if info, err := vm.Wait(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a wait for a suspended container ended: %+v, %v", info, err)
	}
	cancel()
	if err := vm.Delete(ctx, false); err == nil {
		t.Fatal("a suspended container was deleted without force")
	}
	govc("vm.power", "-on", "ticker")
	await("it is resumed", running)
	if boot() != second {
		t.Error("it booted anew")
	}
	deadline := time.Now().Add(30 * time.Second)
	for lines() <= n+1 {
		if time.Now().After(deadline) {
			t.Fatal("no ticks after the resume")
		}
	}
	expect(containervm.ActionSuspend, containervm.ActionResume)

	govc("snapshot.create", "-vm", "ticker", "-m=false", "s")
	await("it runs on with a snapshot", running)
	govc("snapshot.revert", "-vm", "ticker", "s")
	info := await("it is off after the revert", func(i containervm.Info) bool { return i.State == containervm.Exited })
	if info.Known {
		t.Errorf("an exit code of a VM that was cut off: %+v", info)
	}
	lines() // from its disk
	expect(containervm.ActionSnapshot, containervm.ActionDie, containervm.ActionRevert)
	if err := vm.Start(ctx); err != nil {
		t.Fatal(err)
	}
	await("it runs after the revert", running)
	govc("snapshot.remove", "-vm", "ticker", "*")
	await("it runs on after the merge", running)
	lines()
	govc("vm.power", "-off", "-force", "ticker")
	await("it is off", func(i containervm.Info) bool { return i.State == containervm.Exited && !i.Known })
	expect(containervm.ActionStart, containervm.ActionKill, containervm.ActionDie)

	govc("vm.migrate", "-ds", "datastore2", "ticker")
	if n := lines(); n == 0 {
		t.Error("no log on the other datastore")
	}
	expect(containervm.ActionRelocate)
	if err := vm.Delete(ctx, false); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(e.Lab.Dir(), "datastores/datastore2/ticker")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left on the other datastore: %v", err)
	}
	expect(containervm.ActionDestroy)
	end()
	if err := <-stop; !errors.Is(err, context.Canceled) {
		t.Errorf("events ended with %v", err)
	}
}

// TestEventsOfThePast: a controller that comes later is told what happened, in
// pages, filtered, and once.
func TestEventsOfThePast(t *testing.T) {
	e := testlab.Start(t, testlab.Options{NoBoot: true})
	ctx := t.Context()
	began := time.Now().Add(-time.Second)
	image := e.Busybox(t)
	vm, outside := detached(t, e, image)
	other, _ := detached(t, e, image)
	for range 40 { // more than a page
		tk, err := outside.Reset(ctx)
		ended(t, tk, err)
	}
	later := e.Open(t, e.Connect(t), nil)
	read := func(o containervm.EventOptions) (out []containervm.Event) {
		t.Helper()
		o.Since, o.Until = began, time.Now()
		if err := later.Events(ctx, &o, func(x containervm.Event) error { out = append(out, x); return nil }); err != nil {
			t.Fatal(err)
		}
		return out
	}
	all := read(containervm.EventOptions{})
	resets := 0
	for _, x := range all {
		if x.Action == containervm.ActionReset {
			resets++
		}
	}
	if resets != 40 {
		t.Errorf("%d resets of 40", resets)
	}
	mine := read(containervm.EventOptions{Containers: []string{vm.Name()}, Actions: []containervm.Action{containervm.ActionCreate, containervm.ActionStart}})
	var got []containervm.Action
	for _, x := range mine {
		got = append(got, x.Action)
		if x.ID != vm.ID() || x.Image == "" || x.User == "" || x.Host == "" {
			t.Errorf("%+v", x)
		}
	}
	if d := cmp.Diff([]containervm.Action{containervm.ActionCreate, containervm.ActionStart}, got); d != "" {
		t.Error(d)
	}
	// An error of the receiver ends it; so does an impossible time.
	stop := errors.New("enough")
	if err := later.Events(ctx, &containervm.EventOptions{Since: began}, func(containervm.Event) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("error %v", err)
	}
	if err := later.Events(ctx, &containervm.EventOptions{Since: time.Now(), Until: began}, func(containervm.Event) error { return nil }); err == nil {
		t.Error("Until before Since")
	}
	// A session that is lost is made again, and nothing is told twice.
	log := new(eventLog)
	ectx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	c := e.Connect(t)
	go func() { done <- e.Open(t, c, nil).Events(ectx, &containervm.EventOptions{Since: began}, log.add) }()
	wait := func(n int) {
		t.Helper()
		deadline := time.Now().Add(20 * time.Second)
		for log.len() < n {
			if time.Now().After(deadline) {
				t.Fatalf("%d events, want %d", log.len(), n)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	wait(len(all))
	terminateOthers(t, e)
	if err := other.Delete(ctx, true); err != nil {
		t.Fatal(err)
	}
	wait(len(all) + 3) // kill, die, destroy
	cancel()
	<-done
	seen := map[string]bool{}
	for _, x := range log.list {
		k := x.Time.String() + string(x.Action) + x.ID
		if seen[k] && x.Action != containervm.ActionUpdate {
			t.Errorf("told twice: %+v", x)
		}
		seen[k] = true
	}
}

// terminateOthers ends all logins but that of the environment's client.
func terminateOthers(t *testing.T, e *testlab.Env) {
	t.Helper()
	c := e.Client.Vim()
	var sm mo.SessionManager
	if err := object.NewCommon(c, *c.ServiceContent.SessionManager).Properties(t.Context(), *c.ServiceContent.SessionManager, []string{"currentSession", "sessionList"}, &sm); err != nil {
		t.Fatal(err)
	}
	var keys []string
	for _, s := range sm.SessionList {
		if s.Key != sm.CurrentSession.Key {
			keys = append(keys, s.Key)
		}
	}
	req := types.TerminateSession{This: *c.ServiceContent.SessionManager, SessionId: keys}
	if _, err := methods.TerminateSession(t.Context(), c, &req); err != nil {
		t.Fatal(err)
	}
}
