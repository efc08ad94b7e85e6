package tether_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vicsdk/vic-go/vic/tether"
)

func at(s int) time.Time { return time.Date(2026, 1, 2, 3, 4, s, 567, time.UTC) }

func line(s int, text string) string {
	return fmt.Sprintf(`{"log":%q,"stream":"stdout","time":"%s"}`, text, at(s).Format(time.RFC3339Nano)) + "\n"
}

func readAll(t testing.TB, l *tether.LogReader) (got []string) {
	t.Helper()
	for {
		e, err := l.Next()
		if errors.Is(err, io.EOF) {
			return got
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, e.Stream.String()+":"+string(e.Data))
	}
}

func TestLogReader(t *testing.T) {
	for _, tt := range []struct {
		name, log string
		want      []string
		skipped   int
	}{
		{"empty", "", nil, 0},
		{"plain", line(1, "a\n") + line(2, "b\n"), []string{"stdout:a\n", "stdout:b\n"}, 0},
		{"as Docker writes it", `{"log":"\u003cb\u003e\u0026\r\n","stream":"stderr","time":"2026-01-02T03:04:05.123456789Z"}` + "\n",
			[]string{"stderr:<b>&\r\n"}, 0},
		{"other order, more fields", `{"time":"2026-01-02T03:04:05Z","attrs":{"a":"b"},"stream":"stdout","log":"x\n"}` + "\n", []string{"stdout:x\n"}, 0},
		{"bytes", `{"log":"\ufffd\n","stream":"stdout","raw":"/wo=","time":"2026-01-02T03:04:05Z"}` + "\n", []string{"stdout:\xff\n"}, 0},
		{"cut off at the end", line(1, "a\n") + `{"log":"b`, []string{"stdout:a\n"}, 1},
		{"cut off in the middle", `{"log":"b` + "\n" + line(1, "a\n"), []string{"stdout:a\n"}, 1},
		{"no newline at the end", strings.TrimSuffix(line(1, "a\n"), "\n"), []string{"stdout:a\n"}, 0},
		{"empty lines", "\n\r\n" + line(1, "a\n") + "\n", []string{"stdout:a\n"}, 0},
		{"unknown stream", `{"log":"b","stream":"stdin","time":"2026-01-02T03:04:05Z"}` + "\n", nil, 1},
		{"no log", `{"stream":"stdout","time":"2026-01-02T03:04:05Z"}` + "\n", nil, 1},
		{"too long a line", `{"log":"` + fill(1<<20) + `"}` + "\n" + line(1, "a\n"), []string{"stdout:a\n"}, 1},
		{"too long an entry", line(1, fill(20<<10)) + line(1, "a\n"), []string{"stdout:a\n"}, 1},
		{"not JSON", "\x00\xff\x01garbage\n" + line(1, "a\n"), []string{"stdout:a\n"}, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := tether.NewLogReader(strings.NewReader(tt.log))
			if diff := cmp.Diff(tt.want, readAll(t, l)); diff != "" {
				t.Error(diff)
			}
			if l.Skipped() != tt.skipped {
				t.Errorf("%d lines skipped, want %d", l.Skipped(), tt.skipped)
			}
		})
	}
}

func TestSelectLog(t *testing.T) {
	var b strings.Builder
	for i := range 30 {
		b.WriteString(line(i, fmt.Sprintf("%d\n", i)))
		if i == 20 {
			b.WriteString("garbage\n")
		}
	}
	b.WriteString(line(30, "par") + line(30, "tial\n"))
	all := b.String()
	want := func(from, to int) (w []string) {
		for i := from; i < to; i++ {
			w = append(w, fmt.Sprintf("stdout:%d\n", i))
		}
		return w
	}
	end := []string{"stdout:par", "stdout:tial\n"}
	for _, tt := range []struct {
		name string
		o    tether.LogOptions
		want []string
	}{
		{"all", tether.LogOptions{}, append(want(0, 30), end...)},
		{"none", tether.LogOptions{Tail: -1}, nil},
		{"one line of two parts", tether.LogOptions{Tail: 1}, end},
		{"three", tether.LogOptions{Tail: 3}, append(want(28, 30), end...)},
		{"across garbage", tether.LogOptions{Tail: 12}, append(want(19, 30), end...)},
		{"more than there are", tether.LogOptions{Tail: 1000}, append(want(0, 30), end...)},
		{"since", tether.LogOptions{Since: at(28)}, append(want(28, 30), end...)},
		{"until", tether.LogOptions{Until: at(3)}, want(0, 4)},
		{"tail of until", tether.LogOptions{Until: at(9), Tail: 2}, want(8, 10)},
		{"nothing in time", tether.LogOptions{Until: at(3), Since: at(4)}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l, err := tether.SelectLog(strings.NewReader(all), int64(len(all)), tt.o)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, readAll(t, l)); diff != "" {
				t.Error(diff)
			}
		})
	}
	if _, err := tether.SelectLog(strings.NewReader(""), 0, tether.LogOptions{Follow: true}); !errors.Is(err, tether.ErrInvalid) {
		t.Errorf("follow: %v", err)
	}
}

// A tail reads backwards in blocks; lines longer than a block, and garbage
// without an end, must not confuse it.
func TestSelectLogLongLines(t *testing.T) {
	log := line(1, "first\n") + fill(700<<10) + "\n" + line(2, fill(15<<10)+"\n") + line(3, fill(16000)+"\n") + line(4, "last\n")
	l, err := tether.SelectLog(strings.NewReader(log), int64(len(log)), tether.LogOptions{Tail: 4})
	if err != nil {
		t.Fatal(err)
	}
	var sizes []int
	for _, e := range readAll(t, l) {
		sizes = append(sizes, len(e)-len("stdout:"))
	}
	if diff := cmp.Diff([]int{6, 15<<10 + 1, 16001, 5}, sizes); diff != "" {
		t.Error(diff)
	}
}

func FuzzLogReader(f *testing.F) {
	f.Add([]byte(line(1, "a\n") + line(2, "b")))
	f.Add([]byte(`{"log":"\ufffd","stream":"stderr","raw":"/w==","time":"2026-01-02T03:04:05Z"}` + "\n"))
	f.Add([]byte("{\"log\":\"\\u003c\",\"stream\":\"stdout\",\"time\":\"2026-01-02T03:04:05.1Z\"}\ngarbage\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		l := tether.NewLogReader(bytes.NewReader(b))
		n := 0
		for {
			e, err := l.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if len(e.Data) > 16<<10 || (e.Stream != tether.Stdout && e.Stream != tether.Stderr) {
				t.Fatalf("entry %+v", e)
			}
			n++
		}
		// A tail of everything is everything.
		s, err := tether.SelectLog(bytes.NewReader(b), int64(len(b)), tether.LogOptions{Tail: 1 << 30})
		if err != nil {
			t.Fatal(err)
		}
		if got := len(readAll(t, s)); got != n {
			t.Fatalf("tail finds %d entries of %d", got, n)
		}
	})
}

func FuzzConfig(f *testing.F) {
	f.Add([]byte(`{"version":1,"id":"x","authority":"a","root":{"unit":0},"process":{"args":["sh"],"env":["A=b"]},"hostname":"h",` +
		`"nics":[{"mac":"00:50:56:00:00:01","address":"10.0.0.2/24","gateway":"10.0.0.1"}],"stop":{}}`))
	f.Add([]byte(`{"version":2}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := tether.ParseConfig(b)
		if err != nil {
			return
		}
		if len(c.Process.Args) == 0 || c.Version != 1 {
			t.Fatalf("accepted %+v", c)
		}
	})
}

func TestSignalNames(t *testing.T) {
	for name, want := range map[string]int{
		"SIGTERM": 15, "term": 15, "15": 15, "SigKill": 9, "USR1": 10, "SIGRTMIN": 34, "RTMIN+3": 37, "SIGRTMAX-2": 62,
	} {
		if n, err := tether.SignalNumber(name); err != nil || n != want {
			t.Errorf("%s: %d, %v", name, n, err)
		}
	}
	for _, name := range []string{"", "0", "-1", "65", "SIG", "SIGSIGTERM", "RTMIN+31", "RTMAX--1", "15 "} {
		if n, err := tether.SignalNumber(name); !errors.Is(err, tether.ErrInvalid) {
			t.Errorf("%q: %d, %v", name, n, err)
		}
	}
	for n := 1; n <= 64; n++ {
		if back, err := tether.SignalNumber(tether.SignalName(n)); n != 32 && n != 33 && (err != nil || back != n) {
			t.Errorf("%d is %s is %d, %v", n, tether.SignalName(n), back, err)
		}
	}
}
