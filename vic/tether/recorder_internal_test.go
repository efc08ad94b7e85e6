package tether

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// smallDisk is a log file on a disk that can be full.
type smallDisk struct {
	*os.File
	mu   sync.Mutex
	full bool
}

func (d *smallDisk) Write(p []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.full {
		return 0, syscall.ENOSPC
	}
	return d.File.Write(p)
}

func (d *smallDisk) Start() int64 { return 0 }

func (d *smallDisk) set(full bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.full = full
}

func newDisk(t *testing.T) *smallDisk {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(t.TempDir(), "log"), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return &smallDisk{File: f}
}

func replay(r *Recorder) *follower {
	f, err := r.follow(1, true, [3]int64{})
	if err != nil {
		panic(err)
	}
	return f
}

func present(r *Recorder) *follower {
	f, err := r.follow(1, false, [3]int64{})
	if err != nil {
		panic(err)
	}
	return f
}

// drain reads a follower to its end.
func drain(f *follower) (out [3][]byte, err error) {
	defer f.close()
	for {
		s, p, err := f.next(context.Background())
		if err == io.EOF {
			return out, nil
		}
		if err != nil {
			return out, err
		}
		out[s] = append(out[s], p...)
	}
}

// Followers that start anywhere and read whenever get each stream whole, the
// log holds it too, and nothing depends on where lines end.
func TestFollowersGetEveryByte(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	disk := newDisk(t)
	r := NewRecorder(disk, 0)
	var want [3][]byte
	type late struct {
		f    *follower
		from [3]int
	}
	followers := []late{{f: replay(r)}}
	for i := range 2000 {
		s := Stdout + Stream(rnd.IntN(2))
		p := make([]byte, rnd.IntN(3000))
		for j := range p {
			switch rnd.IntN(60) {
			case 0:
				p[j] = '\n'
			case 1:
				p[j] = byte(rnd.IntN(256))
			default:
				p[j] = 'a' + byte(rnd.IntN(26))
			}
		}
		if i%400 == 250 {
			followers = append(followers,
				late{f: replay(r)},
				late{f: present(r), from: [3]int{0, len(want[1]), len(want[2])}})
		}
		if _, err := r.Writer(s).Write(p); err != nil {
			t.Fatal(err)
		}
		want[s] = append(want[s], p...)
		if i%10 == 0 { // One that nearly keeps up.
			_, _, _ = followers[0].f.next(context.Background())
		}
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	for i, l := range followers[1:] {
		got, err := drain(l.f)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range []Stream{Stdout, Stderr} {
			if !bytes.Equal(got[s], want[s][l.from[s]:]) {
				t.Errorf("follower %d got %d bytes of %v, not the %d written", i, len(got[s]), s, len(want[s])-l.from[s])
			}
		}
	}
	followers[0].f.close()
	var logged [3][]byte
	log := NewLogReader(io.NewSectionReader(disk, 0, 1<<40))
	for {
		e, err := log.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		logged[e.Stream] = append(logged[e.Stream], e.Data...)
	}
	if log.Skipped() != 0 || !bytes.Equal(logged[1], want[1]) || !bytes.Equal(logged[2], want[2]) {
		t.Errorf("the log holds %d and %d bytes, want %d and %d", len(logged[1]), len(logged[2]), len(want[1]), len(want[2]))
	}
}

func TestFullDisk(t *testing.T) {
	disk := newDisk(t)
	r := NewRecorder(disk, 0)
	w := r.Writer(Stdout)
	text := func(c string) string { return strings.Repeat(strings.Repeat(c, 99)+"\n", 30<<10) } // three times the memory
	behind := replay(r)
	write := func(s string) {
		t.Helper()
		if _, err := io.WriteString(w, s); err != nil {
			t.Fatal(err)
		}
		r.flush()
	}
	write(text("a"))
	disk.set(true)
	write(text("b"))
	disk.set(false)
	after := present(r)
	write("after\n")
	if err := r.Close(); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("Close: %v", err)
	}
	if got, err := drain(after); err != nil || string(got[Stdout]) != "after\n" {
		t.Errorf("in time: %q, %v", got[Stdout], err)
	}
	got, err := drain(behind)
	if !errors.Is(err, errOutputLost) || string(got[Stdout]) != text("a") {
		t.Errorf("behind: %d bytes, %v", len(got[Stdout]), err)
	}
	log := NewLogReader(io.NewSectionReader(disk, 0, 1<<40))
	n := 0
	for {
		e, err := log.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		n++
		if e.Data[0] == 'b' {
			t.Fatal("the log holds what was dropped")
		}
	}
	if n != 30<<10+1 || log.Skipped() != 0 {
		t.Errorf("%d entries, %d torn", n, log.Skipped())
	}
}

// A disk that stays full neither keeps a follower that fell behind waiting nor makes
// the recorder grow.
func TestFullDiskForGood(t *testing.T) {
	disk := newDisk(t)
	r := NewRecorder(disk, 0)
	w := r.Writer(Stdout)
	behind, none := replay(r), 0
	for i := range 3000 {
		disk.set(i >= 1000)
		if _, err := io.WriteString(w, strings.Repeat("x", 1999)+"\n"); err != nil {
			t.Fatal(err)
		}
		r.flush()
		if i == 1500 {
			none = len(r.index)
		}
	}
	if n := len(r.index); n > none {
		t.Errorf("the index grew from %d to %d marks while nothing could be written", none, n)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	got := 0
	for {
		_, p, err := behind.next(ctx)
		if got += len(p); err != nil {
			if !errors.Is(err, errOutputLost) || got != 2_000_000 {
				t.Errorf("behind: %d bytes, %v", got, err)
			}
			break
		}
	}
	behind.close()
	if err := r.Close(); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("Close: %v", err)
	}
}

// Marks in parts of the log that were rotated away go.
func TestIndexOfRotatedLog(t *testing.T) {
	disk := &rotated{smallDisk: newDisk(t)}
	r := NewRecorder(disk, 0)
	w := r.Writer(Stdout)
	piece := bytes.Repeat([]byte("x"), 1<<20)
	for range 50 {
		if _, err := w.Write(piece); err != nil {
			t.Fatal(err)
		}
		r.flush()
		disk.start.Store(r.size)
	}
	if n := len(r.index); n > 3 {
		t.Errorf("%d marks in a log that was rotated away after each", n)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
}

// rotated is a log whose beginning goes.
type rotated struct {
	*smallDisk
	start atomic.Int64
}

func (d *rotated) Start() int64 { return d.start.Load() }

// What the quick parser takes, the JSON decoder takes alike.
func FuzzParseEntry(f *testing.F) {
	f.Add([]byte(`{"log":"a\n","stream":"stdout","time":"2026-01-02T03:04:05.123Z"}` + "\n"))
	f.Add([]byte(`{"log":"\"\\\t\r","stream":"stderr","time":"2026-01-02T03:04:05Z"}`))
	f.Add([]byte(`{"log":"","stream":"stdout","time":"2026-01-02T03:04:05+01:00"}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		quick, ok := new(stamps).parsePlain(line)
		if !ok {
			return
		}
		slow, err := parseEntry(line)
		if err != nil || slow.Stream != quick.Stream || !slow.Time.Equal(quick.Time) || !bytes.Equal(slow.Data, quick.Data) {
			t.Fatalf("%q: quick %+v, slow %+v, %v", line, quick, slow, err)
		}
	})
}

func TestEntriesReadBack(t *testing.T) {
	for _, data := range []string{"plain\n", "", "\x00\x01\x1f\x7f", "\"\\/\b\f\r\t\u2028é😀", "\xff\xc3(\n", strings.Repeat("\x00", maxEntry), strings.Repeat("\xff", maxEntry)} {
		line := appendEntry(nil, LogEntry{Stream: Stderr, Data: []byte(data)})
		if len(line) > maxLine {
			t.Errorf("%.20q: %d bytes encoded", data, len(line))
		}
		e, err := parseEntry(line)
		if err != nil || string(e.Data) != data || e.Stream != Stderr {
			t.Errorf("%.20q reads back as %.20q, %v", data, e.Data, err)
		}
	}
}
