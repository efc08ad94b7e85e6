package engine_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vicsdk/vic-go/internal/testlab"
	"github.com/vicsdk/vic-go/vic/containervm"
	"github.com/vicsdk/vic-go/vic/engine"
	"github.com/vicsdk/vic-go/vic/tether"
)

// TestOutputOfAGigabyte has a process write more than anybody takes in time: a slow
// attacher gets all of it, one that never reads holds nothing up, one that leaves
// neither, and the log has every byte; neither the controller's memory nor the
// guest's grows with it. With VIC_SOAK it is a gigabyte, else 8 MB.
func TestOutputOfAGigabyte(t *testing.T) {
	bytesOfOutput, pause := 8<<20, 2*time.Second
	if os.Getenv("VIC_SOAK") != "" {
		bytesOfOutput, pause = 1<<30, 20*time.Millisecond
	}
	dash := strings.Repeat("-", 90)
	// Every line tells its number: what is lost, doubled or out of turn changes the sum.
	n := bytesOfOutput / 99
	want := sha256.New()
	total := writeLines(want, n, dash)

	e := testlab.Start(t, testlab.Options{})
	image := e.Busybox(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	script := fmt.Sprintf("grep AnonPages /proc/meminfo >&2; seq -s '%s\n' 1 %d; grep AnonPages /proc/meminfo >&2; exit 9", dash, n)
	vm, err := e.Engine.Create(ctx, engine.RunSpec{Image: image, Detach: true,
		Container: containervm.Spec{Args: []string{"sh", "-c", script}, AwaitAttach: time.Second, MemoryMB: 128}})
	if err != nil {
		t.Fatal(err)
	}
	before := heap()
	var most atomic.Uint64
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		for ctx.Err() == nil {
			most.Store(max(most.Load(), heap()))
			time.Sleep(time.Second)
		}
	}()
	if err := vm.Start(ctx); err != nil {
		t.Fatal(err)
	}

	// Pauses after each megabyte: the guest does not wait for it, so that it reads the
	// end of the output from the container's disk.
	slow := &sumWriter{h: sha256.New(), pause: pause}
	var memory bytes.Buffer
	attached, err := vm.Attach(ctx, tether.Streams{Stdout: slow, Stderr: &memory})
	if err != nil {
		t.Fatal(err)
	}
	stuck := make(chan struct{})
	held, err := vm.AttachWith(ctx, containervm.AttachOptions{Streams: tether.Streams{Stdout: blockedWriter(stuck)}})
	if err != nil {
		t.Fatal(err)
	}
	leaves := &sumWriter{h: sha256.New()}
	gone, err := vm.AttachWith(ctx, containervm.AttachOptions{Streams: tether.Streams{Stdout: leaves}})
	if err != nil {
		t.Fatal(err)
	}
	for leaves.n.Load() < 1<<20 {
		if ctx.Err() != nil {
			t.Fatal(ctx.Err())
		}
		time.Sleep(10 * time.Millisecond)
	}
	gone.Detach()

	start := time.Now()
	info, err := vm.Wait(ctx)
	if err != nil || info.ExitCode != 9 {
		t.Fatalf("the process: exit %+v, %v", info, err)
	}
	ran := time.Since(start)
	exit, err := attached.Wait()
	if err != nil || exit.Code != 9 {
		t.Errorf("the slow attacher: exit %+v, %v", exit, err)
	}
	took := time.Since(start)
	if got := slow.n.Load(); got != total || !bytes.Equal(slow.h.Sum(nil), want.Sum(nil)) {
		t.Errorf("the slow attacher has %d bytes, sha256 %x; want %d, %x", got, slow.h.Sum(nil), total, want.Sum(nil))
	}
	close(stuck)
	held.Detach()

	logged := sha256.New()
	var size int64
	start = time.Now()
	if err := vm.Logs(ctx, tether.LogOptions{}, func(l tether.LogEntry) error {
		if l.Stream == tether.Stdout {
			logged.Write(l.Data)
			size += int64(len(l.Data))
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if size != total || !bytes.Equal(logged.Sum(nil), want.Sum(nil)) {
		t.Errorf("the log has %d bytes of standard output, sha256 %x; want %d, %x", size, logged.Sum(nil), total, want.Sum(nil))
	}
	cancel()
	<-watched
	grown := float64(most.Load()-min(before, most.Load())) / 1e6
	anon := anonPages(t, memory.String())
	t.Logf("%d bytes, sha256 %s: process %v, slow attacher %v (%.1f MB/s), log read in %v; controller (with the lab) grew by %.1f MB, the guest's anonymous pages by %.1f MB",
		total, hex.EncodeToString(want.Sum(nil)), ran.Round(time.Millisecond), took.Round(time.Millisecond), float64(total)/1e6/took.Seconds(),
		time.Since(start).Round(time.Millisecond), grown, anon)
	if grown > 96 { // of a gigabyte, and of windows, caches and the lab's own
		t.Errorf("the controller's heap grew by %.1f MB", grown)
	}
	if anon > 32 {
		t.Errorf("the guest's anonymous pages grew by %.1f MB", anon)
	}
	if err := vm.Delete(t.Context(), true); err != nil {
		t.Error(err)
	}
}

// writeLines writes what the guest's seq writes, and tells the number of bytes.
func writeLines(w io.Writer, n int, dash string) (total int64) {
	var b []byte
	for i := 1; i <= n; i++ {
		b = strconv.AppendInt(b, int64(i), 10)
		if i < n {
			b = append(b, dash...)
		}
		b = append(b, '\n')
		if len(b) > 60<<10 || i == n {
			_, _ = w.Write(b)
			total += int64(len(b))
			b = b[:0]
		}
	}
	return total
}

// heap is what the process's live objects take, in bytes.
func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

var anonLine = regexp.MustCompile(`AnonPages: +(\d+) kB`)

// anonPages is by how many megabytes the guest's anonymous memory grew.
func anonPages(t *testing.T, text string) float64 {
	m := anonLine.FindAllStringSubmatch(text, -1)
	if len(m) != 2 {
		t.Fatalf("the guest's memory: %q", text)
	}
	a, err1 := strconv.Atoi(m[0][1])
	b, err2 := strconv.Atoi(m[1][1])
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	return float64(b-a) / 1000
}

// sumWriter hashes what is written, and pauses after each megabyte.
type sumWriter struct {
	h     hash.Hash
	n     atomic.Int64
	pause time.Duration
}

func (s *sumWriter) Write(p []byte) (int, error) {
	before := s.n.Load()
	s.h.Write(p)
	if s.n.Add(int64(len(p)))>>20 != before>>20 {
		time.Sleep(s.pause)
	}
	return len(p), nil
}

// blockedWriter takes nothing until it is closed.
type blockedWriter chan struct{}

func (b blockedWriter) Write(p []byte) (int, error) {
	<-b
	return len(p), nil
}
