package bench_test

import (
	"io"
	"testing"

	"github.com/vicsdk/vic-go/internal/testlab"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/containervm"
	"github.com/vicsdk/vic-go/vic/engine"
	"github.com/vicsdk/vic-go/vic/lab"
	"github.com/vicsdk/vic-go/vic/tether"
)

// BenchmarkCalls counts what one run by a new process asks of vSphere, from its
// login to its logout, over all its connections, all of it counted in the
// server: once until the container has ended, once with its removal. The login
// itself (RetrieveServiceContent, Login) and the waits (WaitForUpdatesEx) are
// counted apart.
func BenchmarkCalls(b *testing.B) {
	e := testlab.Start(b, testlab.Options{})
	image := e.Busybox(b)
	coldStart(b, e, image)
	for b.Loop() {
		for _, remove := range []bool{false, true} {
			e.Lab.ResetCounters()
			id := oneProcess(b, e, image, remove)
			c := e.Lab.ResetCounters()
			if !remove {
				vm, _, err := e.Engine.Find(b.Context(), id)
				if err == nil {
					err = vm.Delete(b.Context(), true)
				}
				if err != nil {
					b.Fatal(err)
				}
			}
			name := "run"
			if remove {
				name = "run+rm"
			}
			reportCalls(b, name, c)
		}
	}
}

func reportCalls(b *testing.B, name string, c lab.Counters) {
	b.Helper()
	tasks := 0
	for _, n := range c.Tasks {
		tasks += n
	}
	login := c.Requests["RetrieveServiceContent"] + c.Requests["Login"]
	b.ReportMetric(float64(tasks), name+"-tasks")
	b.ReportMetric(float64(c.Total()-c.LongPolls-login), name+"-requests")
	b.ReportMetric(float64(login), name+"-login-requests")
	b.ReportMetric(float64(c.LongPolls), name+"-long-polls")
	b.Logf("%s: %d connections, %d logins, tasks %v", name, c.Connections, c.Logins, c.Tasks)
	b.Logf("%s: requests %v, files %v", name, c.Requests, c.Files)
}

// oneProcess does what the command does: connect, open the VCH, run, log out.
// It returns the container's ID.
func oneProcess(b *testing.B, e *testlab.Env, image string, remove bool) string {
	b.Helper()
	cfg, err := e.Lab.Config()
	if err != nil {
		b.Fatal(err)
	}
	c, err := vic.Connect(b.Context(), cfg)
	if err != nil {
		b.Fatal(err)
	}
	eng := e.Open(b, c, nil)
	vm, exit, err := eng.Run(b.Context(), engine.RunSpec{
		Image: image, Remove: remove, Container: containervm.Spec{Args: []string{"echo", "hello"}},
		Streams: tether.Streams{Stdout: io.Discard},
	})
	if err != nil || exit.Code != 0 {
		b.Fatalf("exit %+v, error %v", exit, err)
	}
	if err := c.Close(b.Context()); err != nil {
		b.Fatal(err)
	}
	return vm.ID()
}
