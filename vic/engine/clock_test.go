package engine_test

import (
	"bytes"
	"context"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vmware/govmomi/object"

	"github.com/vicsdk/vic-go/internal/testlab"
	"github.com/vicsdk/vic-go/vic/engine"
	"github.com/vicsdk/vic-go/vic/tether"
)

// A container whose VM was suspended, and one that was reverted to a snapshot with
// its memory, tells the time as this machine does, and draws other random numbers.
func TestClockAfterSuspend(t *testing.T) {
	e := testlab.Start(t, testlab.Options{})
	image := e.Busybox(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	vm, err := e.Engine.Create(ctx, engine.RunSpec{Image: image, Detach: true, Container: sh(`echo ready; sleep 1000`)})
	if err != nil {
		t.Fatal(err)
	}
	if err := vm.Start(ctx); err != nil {
		t.Fatal(err)
	}
	waitLog(t, vm, "ready\n")
	// look returns how far behind the guest's clock is, at least and at most, and a
	// random number.
	look := func() (least, most time.Duration, number string) {
		t.Helper()
		var out bytes.Buffer
		before := time.Now()
		x, err := vm.Exec(ctx, tether.ExecSpec{Args: []string{"sh", "-c", "date +%s; head -c 16 /dev/urandom | od -An -tx1"}}, tether.Streams{Stdout: &out})
		if err == nil {
			_, err = x.Wait()
		}
		if err != nil {
			t.Fatal(err)
		}
		text, number, _ := strings.Cut(out.String(), "\n")
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		shown := time.Unix(n, 0) // and up to a second more
		return before.Sub(shown) - time.Second, time.Since(shown), number
	}
	right := func(what string) string {
		t.Helper()
		least, most, number := look()
		t.Logf("%s: %v to %v behind", what, least, most)
		if least > 2*time.Second || most < -2*time.Second {
			t.Errorf("%s, the guest's clock is %v to %v behind", what, least, most)
		}
		return number
	}
	do := func(f func(context.Context) (*object.Task, error)) {
		t.Helper()
		tk, err := f(ctx)
		if err == nil {
			err = tk.Wait(ctx)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	right("at first")
	admin := outside(e, vm)
	do(admin.Suspend)
	time.Sleep(5 * time.Second) // which the guest must not miss
	do(func(ctx context.Context) (*object.Task, error) { return admin.PowerOn(ctx) })
	right("after the resume")

	do(func(ctx context.Context) (*object.Task, error) {
		return admin.CreateSnapshot(ctx, "s", "", true, false)
	})
	time.Sleep(3 * time.Second)
	var numbers []string
	for range 2 {
		do(func(ctx context.Context) (*object.Task, error) { return admin.RevertToSnapshot(ctx, "s", false) })
		numbers = append(numbers, right("after the revert"))
	}
	if numbers[0] == numbers[1] {
		t.Errorf("both reverts draw %s", numbers[0])
	}
	if err := vm.Delete(ctx, true); err != nil {
		t.Fatal(err)
	}
}
