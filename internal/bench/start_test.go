package bench_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/vicsdk/vic-go/bootiso"
	"github.com/vicsdk/vic-go/internal/testlab"
	"github.com/vicsdk/vic-go/vic/containervm"
	"github.com/vicsdk/vic-go/vic/engine"
	"github.com/vicsdk/vic-go/vic/tether"
	"golang.org/x/sys/unix"
)

// runs is how often each start is measured.
func runs(b *testing.B) int {
	if s := os.Getenv("VIC_BENCH_RUNS"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			b.Fatalf("VIC_BENCH_RUNS %q: want a number above 0", s)
		}
		return n
	}
	return 10
}

// BenchmarkColdStart measures a container from the call that creates it to the
// first byte of its output, in turn with
//
//   - bare: the same VM (kernel, disk chain, adapter) booted by hand to its
//     PID 1, from QEMU's start to PID 1's first word;
//   - command: the same by the command "vic run", from its start to the first
//     byte on its standard output;
//   - debian: the same as the first with Debian's kernel and its modules.
//
// The stages of the starts are printed as a table. Beside that it tells the CPU time
// of QEMU's whole life, from its start to the power-off, for the bare VM and for the
// container (cpu), and that of the lab and the controller until the container is gone;
// these depend less on what else the machine does.
func BenchmarkColdStart(b *testing.B) {
	ours := testlab.Start(b, testlab.Options{})
	image := ours.Busybox(b)
	img, err := ours.Engine.Pull(b.Context(), image, nil)
	if err != nil {
		b.Fatal(err)
	}
	other := testlab.Start(b, testlab.Options{ISO: debianISO(b)})
	otherImage := other.Busybox(b)
	hand := newBareVM(b, ours, img)
	cmd := newCommand(b, ours, image)

	// Once uncounted: the labs take the ISOs apart.
	coldStart(b, ours, image)
	coldStart(b, other, otherImage)
	cmd.firstByte(b)
	for b.Loop() {
		var bare, first, whole, command, debian []time.Duration
		var bareCPU, cpu, ownCPU []time.Duration
		var ourStages, debianStages stages
		for range runs(b) {
			of := cpuSince(b)
			bare = append(bare, hand.boot(b))
			bareCPU = append(bareCPU, of().children)
			of = cpuSince(b)
			s := coldStart(b, ours, image)
			used := of()
			cpu, ownCPU = append(cpu, used.children), append(ownCPU, used.self)
			first, whole = append(first, s.first), append(whole, s.all)
			ourStages.add(s.stages)
			command = append(command, cmd.firstByte(b))
			s = coldStart(b, other, otherImage)
			debian = append(debian, s.first)
			debianStages.add(s.stages)
		}
		report(b, bare, "bare")
		report(b, first, "first-byte")
		report(b, whole, "run-and-remove")
		report(b, command, "command")
		report(b, debian, "debian")
		report(b, bareCPU, "bare-cpu")
		report(b, cpu, "cpu")
		report(b, ownCPU, "lab-and-controller-cpu")
		b.ReportMetric(ratio(first, bare), "first-byte/bare")
		b.ReportMetric(ratio(command, bare), "command/bare")
		b.ReportMetric(ratio(first, debian), "first-byte/debian")
		// Of what a benchmark logs, only ten lines are printed.
		fmt.Printf("\nstages of a start, from the call on:\n%s\nstages with Debian's kernel:\n%s\n", &ourStages, &debianStages)
	}
}

// BenchmarkEightAtOnce starts eight containers at once and measures until the
// last one's first byte, beside eight bare boots at once until the last PID 1.
func BenchmarkEightAtOnce(b *testing.B) {
	e := testlab.Start(b, testlab.Options{})
	image := e.Busybox(b)
	hands := bareVMs(b, e, image, 8)
	coldStart(b, e, image)
	for b.Loop() {
		var bare, last []time.Duration
		for range max(1, runs(b)/3) {
			bare = append(bare, atOnce(b, len(hands), func(i int) (time.Duration, error) { return hands[i].run(b.Context()) }))
			last = append(last, atOnce(b, len(hands), func(int) (time.Duration, error) {
				s, err := tryColdStart(b, e, image)
				return s.first, err
			}))
		}
		report(b, bare, "bare")
		report(b, last, "first-byte")
		b.ReportMetric(ratio(last, bare), "first-byte/bare")
	}
}

// BenchmarkFiftyAtOnce starts fifty small containers at once that stay, until the
// last of them has run a further process, beside fifty bare boots at once until
// the last PID 1. All fifty answer once more when all are up.
func BenchmarkFiftyAtOnce(b *testing.B) {
	const n = 50
	e := testlab.Start(b, testlab.Options{})
	image := e.Busybox(b)
	hands := bareVMs(b, e, image, n)
	answer := func(vm *containervm.VM) error {
		for {
			x, err := vm.Exec(b.Context(), tether.ExecSpec{Args: []string{"true"}}, tether.Streams{})
			if err == nil {
				_, err = x.Wait()
			}
			if err == nil || b.Context().Err() != nil {
				return err
			}
			if info, e := vm.Inspect(b.Context()); e != nil || !info.On() {
				return fmt.Errorf("%w (it is %s, code %d, %q; %v)", err, info.State, info.ExitCode, info.Error, e)
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
	for b.Loop() {
		bare := atOnce(b, n, func(i int) (time.Duration, error) { return hands[i].run(b.Context()) })
		vms := make([]*containervm.VM, n)
		all := atOnce(b, n, func(i int) (time.Duration, error) {
			begin := time.Now()
			vm, _, err := e.Engine.Run(b.Context(), engine.RunSpec{Image: image, Detach: true,
				Container: containervm.Spec{Args: []string{"sleep", "100000"}, MemoryMB: 128}})
			if err == nil {
				vms[i] = vm
				err = answer(vm)
			}
			return time.Since(begin), err
		})
		again := atOnce(b, n, func(i int) (time.Duration, error) {
			begin := time.Now()
			err := answer(vms[i])
			return time.Since(begin), err
		})
		atOnce(b, n, func(i int) (time.Duration, error) { return 0, vms[i].Delete(b.Context(), true) })
		report(b, []time.Duration{bare}, "bare")
		report(b, []time.Duration{all}, "answer")
		b.ReportMetric(all.Seconds()/bare.Seconds(), "answer/bare")
		b.ReportMetric(again.Seconds(), "answer-when-up-s")
	}
}

// bareVMs are VMs to be booted by hand.
func bareVMs(b *testing.B, e *testlab.Env, image string, n int) (vms []*bareVM) {
	b.Helper()
	img, err := e.Engine.Pull(b.Context(), image, nil)
	if err != nil {
		b.Fatal(err)
	}
	for range n {
		vms = append(vms, newBareVM(b, e, img))
	}
	return vms
}

// atOnce calls f n times at once and returns the time until the end of the last,
// which f tells from its own beginning.
func atOnce(b *testing.B, n int, f func(i int) (time.Duration, error)) time.Duration {
	b.Helper()
	var wg sync.WaitGroup
	took, errs := make([]time.Duration, n), make([]error, n)
	start := time.Now()
	for i := range n {
		wg.Go(func() {
			before := time.Since(start)
			took[i], errs[i] = f(i)
			took[i] += before
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		b.Fatal(err)
	}
	return slices.Max(took)
}

func median(d []time.Duration) time.Duration {
	s := slices.Sorted(slices.Values(d))
	return s[len(s)/2]
}

func ratio(a, b []time.Duration) float64 { return float64(median(a)) / float64(median(b)) }

func report(b *testing.B, d []time.Duration, name string) {
	s := slices.Sorted(slices.Values(d))
	b.ReportMetric(float64(median(s).Microseconds())/1000, name+"-median-ms")
	b.ReportMetric(float64(s[(len(s)*95+99)/100-1].Microseconds())/1000, name+"-p95-ms")
}

// A start is one that was measured.
type start struct {
	first, all time.Duration // to the first byte, and until the container was gone
	stages     []tether.Stage
}

func coldStart(b *testing.B, e *testlab.Env, image string) start {
	b.Helper()
	s, err := tryColdStart(b, e, image)
	if err != nil {
		b.Fatal(err)
	}
	return s
}

// tryColdStart runs a container and removes it.
func tryColdStart(b *testing.B, e *testlab.Env, image string) (start, error) {
	began := time.Now()
	w := &firstByte{start: began}
	var host []tether.Stage
	stage := func(name string) { host = append(host, tether.Stage{Name: name, At: time.Since(began)}) }
	var att *containervm.Attachment
	vm, exit, err := e.Engine.Run(b.Context(), engine.RunSpec{
		Image: image, Container: containervm.Spec{Args: []string{"echo", "hello"}},
		Streams: tether.Streams{Stdout: w},
		Started: func(_ *containervm.VM, a *containervm.Attachment) {
			stage("VM is on")
			att = a
		},
	})
	if err != nil || exit.Code != 0 || w.at == 0 {
		return start{}, fmt.Errorf("exit %+v, error %w", exit, err)
	}
	info, err := vm.Inspect(b.Context())
	if err != nil {
		return start{}, err
	}
	if err := vm.Delete(b.Context(), true); err != nil {
		return start{}, err
	}
	s := start{first: w.at, all: time.Since(began)}
	for _, t := range att.Timeline() {
		host = append(host, tether.Stage{Name: "controller: " + t.Name, At: t.Time.Sub(began)})
	}
	host = append(host, tether.Stage{Name: "controller: first byte", At: w.at})
	for _, t := range info.Timeline {
		host = append(host, tether.Stage{Name: "guest, since its kernel's start: " + t.Name, At: t.At})
	}
	s.stages = host
	return s, nil
}

// cpuUse is the CPU time of this process, and of those that it started and that have
// ended.
type cpuUse struct{ self, children time.Duration }

// cpuSince returns what tells the CPU time since.
func cpuSince(b *testing.B) (since func() cpuUse) {
	b.Helper()
	now := func() (u cpuUse) {
		for who, d := range map[int]*time.Duration{unix.RUSAGE_SELF: &u.self, unix.RUSAGE_CHILDREN: &u.children} {
			var r unix.Rusage
			if err := unix.Getrusage(who, &r); err != nil {
				b.Fatal(err)
			}
			*d = time.Duration(r.Utime.Nano() + r.Stime.Nano())
		}
		return u
	}
	from := now()
	return func() cpuUse {
		to := now()
		return cpuUse{to.self - from.self, to.children - from.children}
	}
}

type firstByte struct {
	start time.Time
	once  sync.Once
	at    time.Duration
}

func (f *firstByte) Write(p []byte) (int, error) {
	f.once.Do(func() { f.at = time.Since(f.start) })
	return len(p), nil
}

// stages gathers the times of many starts by stage, in the order of the first.
type stages struct {
	names []string
	at    map[string][]time.Duration
}

func (s *stages) add(list []tether.Stage) {
	if s.at == nil {
		s.at = map[string][]time.Duration{}
	}
	for _, t := range list {
		if _, ok := s.at[t.Name]; !ok {
			s.names = append(s.names, t.Name)
		}
		s.at[t.Name] = append(s.at[t.Name], t.At)
	}
}

// String is a table: median and 95th percentile of each stage.
func (s *stages) String() string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "median ms\tp95 ms\t  stage")
	for _, n := range s.names {
		d := slices.Sorted(slices.Values(s.at[n]))
		fmt.Fprintf(w, "%.1f\t%.1f\t  %s\n", float64(median(d).Microseconds())/1000, float64(d[(len(d)*95+99)/100-1].Microseconds())/1000, n)
	}
	_ = w.Flush()
	return b.String()
}

// debianISO builds an image with Debian's kernel, whose modules the tether
// loads.
func debianISO(b *testing.B) string {
	b.Helper()
	tree := os.Getenv("VIC_TEST_KERNEL_TREE")
	if tree == "" {
		b.Skip("VIC_TEST_KERNEL_TREE, an unpacked kernel package, is not set: use make")
	}
	image, modules, err := bootiso.KernelTree(tree)
	if err != nil {
		b.Fatal(err)
	}
	out := filepath.Join(b.TempDir(), "debian.iso")
	if err := bootiso.Build(b.Context(), bootiso.Options{Kernel: image, Modules: modules, Out: out}); err != nil {
		b.Fatal(err)
	}
	return out
}
