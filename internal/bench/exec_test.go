package bench_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/vicsdk/vic-go/internal/testlab"
	"github.com/vicsdk/vic-go/vic/containervm"
	"github.com/vicsdk/vic-go/vic/engine"
	"github.com/vicsdk/vic-go/vic/tether"
)

// BenchmarkExec measures an exec of /bin/true in a running container over a
// connection that is there, and fifteen at once, in turn with
//
//   - ping: one round trip to the tether;
//   - fork: the same program started and waited for by a shell in the guest, taken
//     from the time of an exec of a shell that does it a hundred times;
//   - forks: fifteen of them at once, likewise.
//
// The goals: one exec within 1.3 × (2 pings + fork), fifteen within 1.3 × forks + 2
// pings.
func BenchmarkExec(b *testing.B) {
	const many = 15
	e := testlab.Start(b, testlab.Options{})
	image := e.Busybox(b)
	vm, _, err := e.Engine.Run(b.Context(), engine.RunSpec{Image: image, Detach: true, Container: containervm.Spec{Args: []string{"sleep", "100000"}}})
	if err != nil {
		b.Fatal(err)
	}
	c := dial(b, vm)
	defer c.Close()
	exec := func(args ...string) (time.Duration, error) {
		start := time.Now()
		a, err := c.Exec(b.Context(), tether.ExecSpec{Args: args}, tether.Streams{})
		if err != nil {
			return 0, err
		}
		exit, err := a.Wait()
		if err == nil && exit.Code != 0 {
			err = fmt.Errorf("exit %+v", exit)
		}
		return time.Since(start), err
	}
	one := func(args ...string) time.Duration {
		d, err := exec(args...)
		if err != nil {
			b.Fatal(err)
		}
		return d
	}
	atOnce := func() time.Duration {
		var wg sync.WaitGroup
		errs := make([]error, many)
		start := time.Now()
		for i := range many {
			wg.Go(func() { _, errs[i] = exec("/bin/true") })
		}
		wg.Wait()
		for _, err := range errs {
			if err != nil {
				b.Fatal(err)
			}
		}
		return time.Since(start)
	}
	// What a shell does in a loop, without what the shell itself takes.
	loop := func(n int, body string) time.Duration {
		script := "i=0; while [ $i -lt %d ]; do i=$((i+1)); %s; done"
		return max(0, one("sh", "-c", fmt.Sprintf(script, n, body))-one("sh", "-c", fmt.Sprintf(script, n, ":"))) / time.Duration(n)
	}
	forks := ""
	for range many {
		forks += "/bin/true & "
	}
	one("/bin/true")
	atOnce()
	for b.Loop() {
		var ping, fork, single, multi, group []time.Duration
		for range runs(b) {
			d, err := c.Ping(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			ping = append(ping, d)
			single = append(single, one("/bin/true"))
			fork = append(fork, loop(100, "/bin/true"))
			multi = append(multi, atOnce())
			group = append(group, loop(10, forks+"wait"))
		}
		report(b, ping, "ping")
		report(b, fork, "fork")
		report(b, single, "exec")
		report(b, group, "15-forks")
		report(b, multi, "15-execs")
		b.ReportMetric(float64(median(single))/float64(2*median(ping)+median(fork)), "exec/(2-pings+fork)")
		b.ReportMetric(float64(median(multi)-2*median(ping))/float64(median(group)), "(15-execs-2-pings)/15-forks")
	}
	if err := vm.Delete(b.Context(), true); err != nil {
		b.Fatal(err)
	}
}

// dial connects to a guest that is coming up.
func dial(b *testing.B, vm *containervm.VM) *tether.Client {
	b.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		c, err := vm.Dial(b.Context())
		if err == nil {
			if st, err := c.Status(b.Context()); err == nil && st.State == tether.Running {
				return c
			}
			_ = c.Close()
		}
		if time.Now().After(end) {
			b.Fatalf("the container does not run: %v", err)
		}
	}
}
