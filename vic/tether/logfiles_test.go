package tether_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vicsdk/vic-go/vic/tether"
)

// logLine encodes an entry as the guest does.
func logLine(n int) string {
	return fmt.Sprintf(`{"log":"line %06d\n","stream":"stdout","time":"2026-01-02T03:04:05.%06dZ"}`+"\n", n, n+1)
}

// lineNumbers reads what a reader brings, by the lines' numbers.
func lineNumbers(t *testing.T, l *tether.LogReader) []int {
	t.Helper()
	var all []int
	for {
		e, err := l.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		var n int
		if _, err := fmt.Sscanf(string(e.Data), "line %d\n", &n); err != nil {
			t.Fatalf("%q: %v", e.Data, err)
		}
		all = append(all, n)
	}
}

// onDisk opens a log's files as the reader of a stopped container does.
func onDisk(t *testing.T, dir string) (io.ReaderAt, int64, []string) {
	t.Helper()
	all, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range all {
		names = append(names, e.Name())
	}
	names = tether.LogNames(names)
	var files []*io.SectionReader
	for _, name := range names {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, io.NewSectionReader(strings.NewReader(string(b)), 0, int64(len(b))))
	}
	r, size := tether.JoinLog(files)
	return r, size, names
}

func TestLogRotation(t *testing.T) {
	line := int64(len(logLine(0)))
	for _, tt := range []struct {
		name  string
		limit tether.LogLimit
		write []int // lines of each write
		names []string
		first int // the first line that is left
	}{
		{"none", tether.LogLimit{}, []int{5, 5}, []string{"json.log"}, 0},
		{"one file is dropped when it is full", tether.LogLimit{MaxBytes: 4 * line}, []int{4, 1}, []string{"json.log"}, 4},
		{"three files", tether.LogLimit{MaxBytes: 4*line + 10, MaxFiles: 3}, []int{1, 2, 3, 4, 5, 6}, []string{"json.log.2", "json.log.1", "json.log"}, 12},
		{"many files by one write", tether.LogLimit{MaxBytes: 2 * line, MaxFiles: 2}, []int{9}, []string{"json.log.1", "json.log"}, 6},
		{"a line that is longer than a file", tether.LogLimit{MaxBytes: 1, MaxFiles: 2}, []int{3}, []string{"json.log.1", "json.log"}, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			total := 0
			// Opened anew for each write, as at every boot.
			for _, n := range tt.write {
				l, err := tether.OpenLogFiles(dir, tt.limit)
				if err != nil {
					t.Fatal(err)
				}
				var b strings.Builder
				for range n {
					b.WriteString(logLine(total))
					total++
				}
				if m, err := l.Write([]byte(b.String())); err != nil || m != b.Len() {
					t.Fatalf("%d of %d, %v", m, b.Len(), err)
				}
				sec := io.NewSectionReader(l, l.Start(), l.Size()-l.Start())
				if got := lineNumbers(t, tether.NewLogReader(sec)); got[len(got)-1] != total-1 {
					t.Errorf("read back up to %d of %d", got[len(got)-1], total)
				}
				if l.Start() > 0 {
					if _, err := l.ReadAt(make([]byte, 1), l.Start()-1); err == nil || errors.Is(err, io.EOF) {
						t.Errorf("what was dropped reads as %v", err)
					}
				}
				if err := errors.Join(l.Sync(), l.Close()); err != nil {
					t.Fatal(err)
				}
			}
			r, size, names := onDisk(t, dir)
			if d := cmp.Diff(tt.names, names); d != "" {
				t.Errorf("files: %s", d)
			}
			var want []int
			for n := tt.first; n < total; n++ {
				want = append(want, n)
			}
			l, err := tether.SelectLog(r, size, tether.LogOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(want, lineNumbers(t, l)); d != "" {
				t.Errorf("lines: %s", d)
			}
			// The tail goes through all files, and times bound it.
			until := time.Date(2026, 1, 2, 3, 4, 5, (total-1)*1000, time.UTC)
			for _, n := range []int{1, 2, 3, 100} {
				l, err := tether.SelectLog(r, size, tether.LogOptions{Tail: n, Until: until})
				if err != nil {
					t.Fatal(err)
				}
				upTo := want[:len(want)-1]
				if d := cmp.Diff(upTo[max(0, len(upTo)-n):], lineNumbers(t, l), cmp.Transformer("none", func(s []int) []int { return append([]int{}, s...) })); d != "" {
					t.Errorf("tail %d: %s", n, d)
				}
			}
		})
	}
}

// A rotation that the power cut off at any point leaves a log that is whole, and
// goes on.
func TestLogRotationCutOff(t *testing.T) {
	line := int64(len(logLine(0)))
	for _, files := range []map[string]int{
		{"json.log.1": 0},
		{"json.log.2": 0, "json.log.1": 1},
		{"json.log.3": 0, "json.log.1": 1, "json.log": 2},
		{"json.log.2": 0, "json.log": 1},
		{"json.log.7": 0, "json.log.3": 1, "json.log.1": 2},
	} {
		dir := t.TempDir()
		for name, n := range files {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(logLine(n)), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(dir, "json.log.old"), []byte("not ours"), 0o600); err != nil {
			t.Fatal(err)
		}
		l, err := tether.OpenLogFiles(dir, tether.LogLimit{MaxBytes: line, MaxFiles: 100})
		if err != nil {
			t.Fatal(err)
		}
		var want []int
		for n := range len(files) + 3 {
			want = append(want, n)
			if n >= len(files) {
				if _, err := l.Write([]byte(logLine(n))); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		r, size, _ := onDisk(t, dir)
		sel, err := tether.SelectLog(r, size, tether.LogOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, lineNumbers(t, sel)); d != "" {
			t.Errorf("%v: %s", files, d)
		}
	}
}

// Readers and attachers of a log that is rotated under them: logs follow it to
// its end, an attacher that comes late gets what is left.
func TestLogRotationUnderReaders(t *testing.T) {
	ctx := testContext(t)
	const lines = 120000 // more than the memory keeps
	g := newGuest(t, func(c *tether.Config) { c.Log = tether.LogLimit{MaxBytes: 200 << 10, MaxFiles: 3} })
	c := g.dial(ctx)
	follow, err := c.Logs(ctx, tether.LogOptions{Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	defer follow.Close()
	g.run(fmt.Sprintf(`i=0; while [ $i -lt %d ]; do printf 'line %%06d\nline %%06d\nline %%06d\nline %%06d\n' $i $((i+1)) $((i+2)) $((i+3)); i=$((i+4)); done`, lines))
	seen := lineNumbers(t, follow)
	if !slices.IsSorted(seen) || seen[len(seen)-1] != lines-1 {
		t.Errorf("the log's last line is %d of %d", seen[len(seen)-1], lines)
	}
	var out strings.Builder
	a, err := c.Attach(ctx, tether.AttachOptions{Streams: tether.Streams{Stdout: &out}, Replay: true})
	if err != nil {
		t.Fatal(err)
	}
	if exit, err := a.Wait(); err != nil || exit.Code != 0 {
		t.Fatalf("%+v, %v", exit, err)
	}
	const line = len("line 000000\n")
	_, lacking := a.Run() // nothing was to be skipped
	if lacking[0] == 0 || int(lacking[0])+out.Len() != lines*line {
		t.Errorf("lacking %d, got %d bytes", lacking[0], out.Len())
	}
	n := (int(lacking[0]) + line - 1) / line
	if begin := out.String()[n*line-int(lacking[0]):]; !strings.HasPrefix(begin, fmt.Sprintf("line %06d\n", n)) {
		t.Errorf("begins with %.30q, not with line %d", begin, n)
	}
}
