package bench_test

import (
	"bytes"
	"os"
	"regexp"
	"strconv"
	"testing"

	"github.com/vicsdk/vic-go/bootiso"
	"github.com/vicsdk/vic-go/bootiso/kernel"
	"github.com/vicsdk/vic-go/internal/testlab"
	"github.com/vicsdk/vic-go/vic/containervm"
	"github.com/vicsdk/vic-go/vic/engine"
	"github.com/vicsdk/vic-go/vic/tether"
)

// BenchmarkSizes tells what a container VM costs before its process does
// anything: the sizes of the kernel as tracked, of the tether, of the RAM disk
// and of the image, and how much of the guest's memory is taken when the
// container's first process looks. "not-free" is all that is in use, with the
// page cache; "not-available" what a process could not have.
func BenchmarkSizes(b *testing.B) {
	const mb, memory = 1 << 20, 256
	e := testlab.Start(b, testlab.Options{})
	busybox := e.Busybox(b)
	for b.Loop() {
		iso, err := bootiso.Default(b.Context(), nil)
		if err != nil {
			b.Fatal(err)
		}
		image, err := os.ReadFile(iso)
		if err != nil {
			b.Fatal(err)
		}
		parts, err := bootiso.Extract(bytes.NewReader(image))
		if err != nil {
			b.Fatal(err)
		}
		agent, err := bootiso.Tether(b.Context(), "")
		if err != nil {
			b.Fatal(err)
		}
		var out bytes.Buffer
		vm, exit, err := e.Engine.Run(b.Context(), engine.RunSpec{
			Image: busybox, Container: containervm.Spec{Args: []string{"cat", "/proc/meminfo"}, MemoryMB: memory},
			Streams: tether.Streams{Stdout: &out},
		})
		if err != nil || exit.Code != 0 {
			b.Fatal(exit, err)
		}
		if err := vm.Delete(b.Context(), true); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(len(kernel.Image()))/mb, "kernel-MB")
		b.ReportMetric(float64(len(agent))/mb, "tether-MB")
		b.ReportMetric(float64(len(parts.Initrd))/mb, "initrd-MB")
		b.ReportMetric(float64(len(image))/mb, "iso-MB")
		b.ReportMetric(memory-meminfo(b, out.Bytes(), "MemFree"), "guest-not-free-MB")
		b.ReportMetric(memory-meminfo(b, out.Bytes(), "MemAvailable"), "guest-not-available-MB")
	}
}

// meminfo is a value of /proc/meminfo in MB.
func meminfo(b *testing.B, text []byte, name string) float64 {
	b.Helper()
	m := regexp.MustCompile(`(?m)^` + name + `: +(\d+) kB$`).FindSubmatch(text)
	if m == nil {
		b.Fatalf("no %s in:\n%s", name, text)
	}
	kb, err := strconv.ParseInt(string(m[1]), 10, 64)
	if err != nil {
		b.Fatal(err)
	}
	return float64(kb) / 1024
}
