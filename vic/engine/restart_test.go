package engine_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/vicsdk/vic-go/internal/testlab"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/containervm"
	"github.com/vicsdk/vic-go/vic/engine"
	"github.com/vicsdk/vic-go/vic/tether"
)

// TestReconcile: which containers whose VM is off are started when a controller
// of the VCH comes.
func TestReconcile(t *testing.T) {
	t.Parallel()
	e := testlab.Start(t, testlab.Options{NoBoot: true})
	image := e.Busybox(t)
	ctx := t.Context()
	off := func(name, policy, boot string) *containervm.VM {
		vm, err := e.Engine.Create(ctx, engine.RunSpec{Image: image, Detach: true, Container: containervm.Spec{
			Name: name, Args: []string{"true"}, Restart: tether.Restart{Policy: policy}}})
		if err != nil {
			t.Fatal(err)
		}
		if boot == "" {
			return vm
		}
		if err := vm.Start(ctx); err != nil {
			t.Fatal(err)
		}
		guestSays(t, e, vm, tether.Status{Version: 1, Boot: boot, State: tether.Running, Started: time.Now()})
		return vm
	}
	end := func(vm *containervm.VM) {
		tk, err := outside(e, vm).PowerOff(ctx)
		ended(t, tk, err)
	}
	off("never-started", "always", "")
	for _, policy := range []string{"no", "on-failure", "always", "unless-stopped"} {
		end(off("cut-off-"+policy, policy, "b1"))
		vm := off("stopped-"+policy, policy, "b1")
		zero := time.Duration(0)
		if err := vm.Stop(ctx, &containervm.StopOptions{Grace: &zero}); err != nil {
			t.Fatal(err)
		}
		if info, err := vm.Inspect(ctx); err != nil || info.Stopped != (policy == "unless-stopped") || info.Restart.Policy != policy {
			t.Errorf("stopped: %+v, %v", info, err)
		}
	}
	// A start makes the stop before it void.
	again := off("stopped-and-started", "unless-stopped", "b1")
	if err := again.Kill(ctx, ""); err != nil {
		t.Fatal(err)
	}
	if err := again.Start(ctx); err != nil {
		t.Fatal(err)
	}
	guestSays(t, e, again, tether.Status{Version: 1, Boot: "b2", State: tether.Running})
	end(again)

	want := []string{"cut-off-always", "cut-off-unless-stopped", "stopped-always", "stopped-and-started"}
	for range 2 {
		got, err := e.Engine.Reconcile(ctx)
		slices.Sort(got)
		if err != nil {
			t.Error(err)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("started (-want +got):\n%s", d)
		}
		want = nil
	}
}

func outside(e *testlab.Env, vm *containervm.VM) *object.VirtualMachine {
	return object.NewVirtualMachine(e.Client.Vim(), types.ManagedObjectReference{Type: "VirtualMachine", Value: vm.Ref().ID})
}

// guestSays sets a status as a guest does.
func guestSays(t *testing.T, e *testlab.Env, vm *containervm.VM, s tether.Status) {
	t.Helper()
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	tk, err := outside(e, vm).Reconfigure(t.Context(), types.VirtualMachineConfigSpec{
		ExtraConfig: []types.BaseOptionValue{&types.OptionValue{Key: tether.StatusKey, Value: string(b)}},
	})
	ended(t, tk, err)
}

// TestWaitFor waits for what guests tell.
func TestWaitFor(t *testing.T) {
	e := testlab.Start(t, testlab.Options{NoBoot: true})
	vm, outside := detached(t, e, e.Busybox(t))
	type result struct {
		info containervm.Info
		err  error
	}
	wait := func(c containervm.WaitCondition) chan result {
		ch := make(chan result, 1)
		go func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			info, err := vm.WaitFor(ctx, c)
			ch <- result{info, err}
		}()
		time.Sleep(200 * time.Millisecond) // until it has seen the present state
		return ch
	}
	status := tether.Status{Version: 1, Boot: "b1", State: tether.Running, Started: time.Now()}
	guestSays(t, e, vm, status)
	removed := wait(containervm.Removed)
	for n, c := range []containervm.WaitCondition{containervm.NotRunning, containervm.NextExit} {
		w := wait(c)
		select {
		case r := <-w:
			t.Fatalf("%s came back while it ran: %+v", c, r)
		default:
		}
		status.State, status.Restarts, status.ExitCode, status.Finished = tether.Restarting, n+1, 7+n, time.Now()
		guestSays(t, e, vm, status)
		if r := <-w; r.err != nil || r.info.State != containervm.Restarting || r.info.ExitCode != 7+n || r.info.Restarts != n+1 {
			t.Errorf("%s: %+v, %v", c, r.info, r.err)
		}
	}
	next := wait(containervm.NextExit)
	status.State, status.ExitCode = tether.Exited, 9
	guestSays(t, e, vm, status)
	if r := <-next; r.err != nil || r.info.ExitCode != 9 {
		t.Errorf("the last exit: %+v", r)
	}
	tk, err := outside.PowerOff(t.Context())
	ended(t, tk, err)
	if r := <-wait(containervm.NotRunning); r.err != nil || r.info.State != containervm.Exited || !r.info.Known || r.info.ExitCode != 9 {
		t.Errorf("not-running of what is off: %+v", r)
	}
	next = wait(containervm.NextExit)
	if err := vm.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	guestSays(t, e, vm, tether.Status{Version: 1, Boot: "b2", State: tether.Failed, ExitCode: 127, Error: "no such program"})
	if r := <-next; r.err != nil || r.info.ExitCode != 127 {
		t.Errorf("next-exit of what was off: %+v", r)
	}
	if _, err := vm.WaitFor(t.Context(), "soon"); !errors.Is(err, vic.ErrInvalid) {
		t.Errorf("an unknown condition: %v", err)
	}
	if err := vm.Delete(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	if r := <-removed; r.err != nil {
		t.Errorf("removed: %v", r.err)
	}
	if r := <-wait(containervm.Removed); r.err != nil {
		t.Errorf("removed before: %v", r.err)
	}
}

// TestRestartedContainer runs containers with a restart policy for real: whoever
// attached before the start gets the first run, stops and kills are kept in mind,
// and what an administrator powered off comes back.
func TestRestartedContainer(t *testing.T) {
	t.Parallel()
	e := testlab.Start(t, testlab.Options{})
	image := e.Busybox(t)
	ctx := t.Context()
	var out bytes.Buffer
	vm, exit, err := e.Engine.Run(ctx, engine.RunSpec{
		Image: image, Streams: tether.Streams{Stdout: &out},
		Container: containervm.Spec{
			Args:    []string{"sh", "-c", "n=$(cat /n 2>/dev/null); n=x$n; echo $n >/n; sync; echo run $n; [ $n = xxx ] && exec sleep 1000; exit 5"},
			Restart: tether.Restart{Policy: "unless-stopped"},
		},
	})
	if err != nil || exit.Code != 5 || !exit.Restarts || out.String() != "run x\n" {
		t.Fatalf("the first run: %+v, %v, %q", exit, err, out.String())
	}
	waitLog(t, vm, "run x\nrun xx\nrun xxx\n")
	running := func(vm *containervm.VM) containervm.Info {
		t.Helper()
		for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
			info, err := vm.Inspect(ctx)
			if err != nil || info.State == containervm.Running && !info.Started.IsZero() {
				return info
			}
			if time.Now().After(end) {
				t.Fatalf("not running: %+v", info)
			}
		}
	}
	if info := running(vm); info.Restarts != 2 || info.ExitCode != 5 || info.Finished.After(info.Started) {
		t.Errorf("running again: %+v", info)
	}
	// Cut off from outside, it should run.
	tk, err := outside(e, vm).PowerOff(ctx)
	ended(t, tk, err)
	if got, err := e.Engine.Reconcile(ctx); err != nil || len(got) != 1 {
		t.Fatalf("reconcile: %v, %v", got, err)
	}
	waitLog(t, vm, "run x\nrun xx\nrun xxx\nrun xxxx\n")
	// Stopped during a pause, it should not.
	for end := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		if info, err := vm.Inspect(ctx); err != nil || info.State == containervm.Restarting && info.Restarts > 5 { // the pause is 3.2 s
			break
		} else if time.Now().After(end) {
			t.Fatalf("%+v", info)
		}
	}
	if err := vm.Stop(ctx, nil); err != nil {
		t.Fatal(err)
	}
	info, err := vm.Inspect(ctx)
	if err != nil || info.State != containervm.Exited || info.ExitCode != 5 || !info.Known || !info.Stopped {
		t.Errorf("stopped: %+v, %v", info, err)
	}
	if got, err := e.Engine.Reconcile(ctx); err != nil || len(got) != 0 {
		t.Errorf("reconcile after a stop: %v, %v", got, err)
	}
}

// TestNobodyConnected: ten restarts, and a process that gets ill and well again,
// while no controller is connected; the one that comes next finds counts, times
// and the log right.
func TestNobodyConnected(t *testing.T) {
	t.Parallel() // it waits most of the time
	e := testlab.Start(t, testlab.Options{})
	image := e.Busybox(t)
	ctx := t.Context()
	before := e.Connect(t)
	eng := e.Open(t, before, nil)
	run := func(name, script string, change func(*engine.RunSpec)) {
		s := engine.RunSpec{Image: image, Detach: true, Container: sh(script)}
		s.Container.Name = name
		change(&s)
		if _, _, err := eng.Run(ctx, s); err != nil {
			t.Fatal(err)
		}
	}
	begin := time.Now()
	run("restless", `n=$(cat /n 2>/dev/null || echo 0); n=$((n+1)); echo $n >/n; echo run $n; exit $((100+n))`, func(s *engine.RunSpec) {
		s.Container.Restart = tether.Restart{Policy: "on-failure", MaxRetries: 10}
		s.Container.Log = tether.LogLimit{MaxBytes: 300, MaxFiles: 100}
	})
	run("sickly", `mkdir -p /tmp; while :; do sleep 4; touch /tmp/ill; sleep 6; rm /tmp/ill; done`, func(s *engine.RunSpec) {
		s.Health = engine.HealthSpec{Test: []string{"CMD-SHELL", "echo as $(id -u); if [ -e /tmp/ill ]; then echo ill >>/seen; exit 1; else echo well >>/seen; fi"},
			Interval: 500 * time.Millisecond, Retries: 3}
	})
	if err := before.Close(ctx); err != nil {
		t.Fatal(err)
	}
	// Ten pauses from 100 ms on, doubled, are 102.3 s.
	time.Sleep(time.Until(begin.Add(100 * time.Second)))

	after := e.Open(t, e.Connect(t), nil)
	vm, _, err := after.Find(ctx, "restless")
	if err != nil {
		t.Fatal(err)
	}
	wctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	info, err := vm.Wait(wctx)
	if err != nil || info.State != containervm.Exited || !info.Known || info.ExitCode != 111 || info.Restarts != 10 {
		t.Fatalf("after ten restarts: %+v, %v", info, err)
	}
	if took := info.Finished.Sub(begin); took < 102*time.Second || took > 4*time.Minute {
		t.Errorf("the last run ended %v after the start", took)
	}
	if len(info.Runs) != 8 {
		t.Fatalf("runs: %+v", info.Runs)
	}
	for i, r := range info.Runs {
		if r.Number != 4+i || r.ExitCode != 104+i {
			t.Errorf("run %d: %+v", 4+i, r)
		}
		if i > 0 {
			want := 100 * time.Millisecond << (r.Number - 2)
			if pause := r.Started.Sub(info.Runs[i-1].Finished); pause < want || pause > want+want/4+5*time.Second {
				t.Errorf("pause before run %d: %v, want %v", r.Number, pause, want)
			}
		}
	}
	read := func(o tether.LogOptions) (lines []string) {
		t.Helper()
		if err := vm.Logs(ctx, o, func(l tether.LogEntry) error { lines = append(lines, string(l.Data)); return nil }); err != nil {
			t.Fatal(err)
		}
		return lines
	}
	var want []string
	for n := range 11 {
		want = append(want, fmt.Sprintf("run %d\n", n+1))
	}
	if d := cmp.Diff(want, read(tether.LogOptions{})); d != "" {
		t.Errorf("log: %s", d)
	}
	if d := cmp.Diff(want[6:], read(tether.LogOptions{Tail: 5})); d != "" {
		t.Errorf("its tail, over several files: %s", d)
	}
	if d := cmp.Diff(want[4:6], read(tether.LogOptions{Since: info.Runs[1].Started, Until: info.Runs[2].Finished})); d != "" {
		t.Errorf("a part of it: %s", d)
	}

	ill, info, err := after.Find(ctx, "sickly")
	if err != nil || info.State != containervm.Running || info.Health == nil {
		t.Fatalf("%+v, %v", info, err)
	}
	c, err := ill.Dial(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	h, err := c.Health(ctx)
	if err != nil || len(h.Log) != 5 || string(h.Log[0].Output) != "as 0\n" {
		t.Errorf("%+v, %v", h, err)
	}
	if err := ill.Kill(ctx, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := ill.Wait(wctx); err != nil {
		t.Fatal(err)
	}
	// The checks have gone on all the time.
	var out bytes.Buffer
	if err := after.CopyOut(ctx, "sickly", "/seen", &out, nil); err != nil {
		t.Fatal(err)
	}
	falls, recoveries := strings.Count(out.String(), "well\nill\n"), strings.Count(out.String(), "ill\nwell\n")
	if falls < 3 || recoveries < 3 {
		t.Errorf("the check saw it fall ill %d times, and recover %d times", falls, recoveries)
	}
}
