package bench_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vicsdk/vic-go/bootiso"
	"github.com/vicsdk/vic-go/internal/testlab"
	"github.com/vicsdk/vic-go/internal/vmdk"
	"github.com/vicsdk/vic-go/vic"
	"github.com/vicsdk/vic-go/vic/containervm"
	"github.com/vicsdk/vic-go/vic/engine"
	"github.com/vicsdk/vic-go/vic/imagestore"
	"github.com/vicsdk/vic-go/vic/tether"
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
// first byte of its output, in turn with the same VM (kernel, RAM disk, disk
// chain, NIC) booted by hand to its PID 1.
func BenchmarkColdStart(b *testing.B) {
	e := testlab.Start(b, testlab.Options{})
	image := e.Busybox(b)
	img, err := e.Engine.Pull(b.Context(), image, nil)
	if err != nil {
		b.Fatal(err)
	}
	hand := newBareVM(b, e, img)
	coldStart(b, e, image) // once uncounted: the lab takes the ISO apart
	for b.Loop() {
		var bare, cold, whole []time.Duration
		for range runs(b) {
			bare = append(bare, hand.boot(b))
			first, all := coldStart(b, e, image)
			cold, whole = append(cold, first), append(whole, all)
		}
		report(b, bare, "bare-boot")
		report(b, cold, "first-byte")
		report(b, whole, "run-and-remove")
		b.ReportMetric(float64(median(cold))/float64(median(bare)), "first-byte/bare-boot")
	}
}

func median(d []time.Duration) time.Duration {
	s := slices.Sorted(slices.Values(d))
	return s[len(s)/2]
}

func report(b *testing.B, d []time.Duration, name string) {
	s := slices.Sorted(slices.Values(d))
	b.ReportMetric(float64(median(s).Microseconds())/1000, name+"-median-ms")
	b.ReportMetric(float64(s[(len(s)*95+99)/100-1].Microseconds())/1000, name+"-p95-ms")
}

// coldStart runs a container and tells when its first byte came and when it
// was gone.
func coldStart(b *testing.B, e *testlab.Env, image string) (first, all time.Duration) {
	b.Helper()
	start := time.Now()
	w := &firstByte{start: start}
	_, exit, err := e.Engine.Run(b.Context(), engine.RunSpec{
		Image: image, Remove: true, Container: containervm.Spec{Args: []string{"echo", "hello"}},
		Streams: tether.Streams{Stdout: w},
	})
	if err != nil || exit.Code != 0 || w.at == 0 {
		b.Fatalf("exit %+v, error %v", exit, err)
	}
	return w.at, time.Since(start)
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

// BenchmarkCalls counts what one run by a new process asks of vSphere, from its
// login to its logout, all of it counted in the server: once until the
// container has ended, once with its removal.
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
			tasks := 0
			for _, n := range c.Tasks {
				tasks += n
			}
			name := "run-"
			if remove {
				name = "run+rm-"
			}
			b.ReportMetric(float64(tasks), name+"tasks")
			b.ReportMetric(float64(c.Total()-c.LongPolls), name+"requests")
			b.ReportMetric(float64(c.LongPolls), name+"long-polls")
			b.Logf("%s: %d connections, %d logins, tasks %v", name, c.Connections, c.Logins, c.Tasks)
			b.Logf("%s: requests %v, files %v", name, c.Requests, c.Files)
		}
	}
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

// bareVM boots what the lab boots, without any of us.
type bareVM struct {
	argv []string
}

func newBareVM(b *testing.B, e *testlab.Env, img *imagestore.Image) *bareVM {
	b.Helper()
	dir := b.TempDir()
	f, err := os.Open(e.ISO)
	if err != nil {
		b.Fatal(err)
	}
	parts, err := bootiso.Extract(f)
	f.Close()
	if err != nil {
		b.Fatal(err)
	}
	kernel, initrd := filepath.Join(dir, "kernel"), filepath.Join(dir, "initrd")
	write(b, kernel, parts.Kernel)
	// The kernel takes RAM disks one after the other: the same one, and ours.
	write(b, initrd, append(parts.Initrd, pid1Archive(b, dir)...))
	disk := childOf(b, dir, e.Local(b, img.Root().Path), img.Root().Bytes)
	return &bareVM{[]string{
		"-M", "q35", "-accel", "tcg,tb-size=128", "-cpu", "max", "-m", "256", "-smp", "1",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-chardev", "stdio,id=con,signal=off", "-device", "isa-serial,chardev=con,index=0",
		"-device", "pvscsi,id=scsi0", "-drive", "if=none,id=d0,format=vmdk,file=" + disk, "-device", "scsi-hd,drive=d0,bus=scsi0.0",
		"-netdev", "user,id=n0", "-device", "vmxnet3,netdev=n0,romfile=",
		"-kernel", kernel, "-initrd", initrd, "-append", parts.Cmdline + " rdinit=/pid1",
	}}
}

// boot tells the time from QEMU's start to PID 1's first word.
func (v *bareVM) boot(b *testing.B) time.Duration {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", v.argv...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	start := time.Now()
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	var seen bytes.Buffer
	p := make([]byte, 256)
	var at time.Duration
	for at == 0 {
		n, err := out.Read(p)
		seen.Write(p[:n])
		if strings.Contains(seen.String(), "@PID1") {
			at = time.Since(start)
		} else if err != nil {
			b.Fatalf("the bare VM ended: %v: %s", err, &seen)
		}
	}
	_, _ = io.Copy(io.Discard, out)
	if err := cmd.Wait(); err != nil {
		b.Fatal(err)
	}
	return at
}

func write(b *testing.B, file string, data []byte) {
	b.Helper()
	if err := os.WriteFile(file, data, 0o600); err != nil {
		b.Fatal(err)
	}
}

// childOf makes a writable child of a disk, as the lab does.
func childOf(b *testing.B, dir, parent string, size int64) string {
	b.Helper()
	text, err := os.ReadFile(parent)
	if err != nil {
		b.Fatal(err)
	}
	d, err := vmdk.ParseDescriptor(text)
	if err != nil {
		b.Fatal(err)
	}
	desc, err := vmdk.LayerDescriptor(size, 0x1234567, d.CID, parent, "child-delta.vmdk").Encode()
	if err != nil {
		b.Fatal(err)
	}
	write(b, filepath.Join(dir, "child.vmdk"), desc)
	f, err := os.Create(filepath.Join(dir, "child-delta.vmdk"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	if err := vmdk.WriteChild(f, size); err != nil {
		b.Fatal(err)
	}
	return filepath.Join(dir, "child.vmdk")
}

// pid1Archive is a cpio archive (newc) with the program pid1.
func pid1Archive(b *testing.B, dir string) []byte {
	b.Helper()
	bin := filepath.Join(dir, "pid1")
	cmd := exec.CommandContext(b.Context(), "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", bin, "./pid1")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("build pid1: %v\n%s", err, out)
	}
	prog, err := os.ReadFile(bin)
	if err != nil {
		b.Fatal(err)
	}
	var a bytes.Buffer
	entry := func(name string, mode int, data []byte) {
		fmt.Fprintf(&a, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X", 1, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
		a.WriteString(name + "\x00")
		pad(&a)
		a.Write(data)
		pad(&a)
	}
	entry("pid1", 0o100755, prog)
	entry("TRAILER!!!", 0, nil)
	return a.Bytes()
}

func pad(b *bytes.Buffer) {
	for b.Len()%4 != 0 {
		b.WriteByte(0)
	}
}
