package tether

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"
	"unicode/utf8"
)

const (
	ringBytes  = 1 << 20                // output kept in memory for attachers
	ringChunks = 8192                   // and pieces of it
	bufferMax  = 256 << 10              // log bytes held back before a writer writes them itself
	flushIdle  = 10 * time.Millisecond  // the log is written when output pauses for so long
	flushMost  = 100 * time.Millisecond // and at least this often
	syncEvery  = time.Second            // and put to disk so often
	partialAge = time.Second            // a line without an end goes to the log after so long
	indexEvery = 1 << 20                // log bytes between two marks for attachers that read it
)

// LogFile is what a Recorder needs of its log (see LogFiles).
type LogFile interface {
	// Write appends whole lines: all of them or, with an error, the first ones.
	io.Writer
	// ReadAt reads from an offset in all that was ever written.
	io.ReaderAt
	// Start is the first offset that can be read still. It does not wait.
	Start() int64
	Sync() error
}

// A Recorder takes a process's output, writes it to a log file and hands it to
// any number of attachers. A writer waits for the disk and never for an
// attacher.
//
// Output is in the file at most 100 ms after it was written (a line without an
// end: one second) and on the disk a second later. Where the file cannot be
// written, as on a full disk, entries are dropped and attachers that read in
// time still get all of it; an attacher that would have needed the file gets
// an error.
type Recorder struct {
	fileMu  sync.Mutex // held while writing the file; taken before mu
	file    LogFile
	spare   []byte
	dropped error // last failure to write; guarded by fileMu

	mu       sync.Mutex
	ring     []chunk
	first    int64    // number of ring[0]
	bytes    int      // in ring
	off      [3]int64 // bytes taken so far, by stream
	logged   [3]int64 // of these, encoded for the log
	flushed  [3]int64 // of these, in the file (or dropped)
	partial  [3][]byte
	since    [3]time.Time // of partial's first byte
	buf      []byte       // encoded, not yet in the file
	stamped  time.Time    // of the last entry,
	stamp    []byte       // and as text
	size     int64        // size of the file,
	synced   int64        // and of what is on the disk
	tails    int          // readers of the file
	index    []mark
	watchers map[chan struct{}]struct{}
	runs     []*bounds // of the last runs, the last one goes on
	firstRun int       // number of runs[0]
	closed   bool
	writes   int // counts Write calls, to see a pause
	wake     chan struct{}
	quit     chan struct{}
	done     chan struct{}
	now      func() time.Time
}

type chunk struct {
	stream Stream
	off    int64 // of data[0] in its stream
	data   []byte
}

// mark says that the log entry at file holds the streams' bytes from pos on.
// After a gap the entries before it do not reach up to pos.
type mark struct {
	file int64
	pos  [3]int64
	gap  bool
}

// bounds are where a run's output lies in the streams.
type bounds struct {
	start, end [3]int64
	ended      bool
}

// NewRecorder appends to a log of size bytes. The file stays the caller's, to
// be closed after Close. It starts one goroutine that ends with Close.
func NewRecorder(f LogFile, size int64) *Recorder {
	r := &Recorder{
		file: f, size: size, synced: size, index: []mark{{file: size}},
		watchers: make(map[chan struct{}]struct{}), runs: []*bounds{{}}, firstRun: 1,
		wake: make(chan struct{}, 1), quit: make(chan struct{}), done: make(chan struct{}), now: time.Now,
	}
	go r.flusher()
	return r
}

// Writer returns a writer for one stream. It fails only after Close. Output
// for the two streams may be written at the same time.
func (r *Recorder) Writer(s Stream) io.Writer { return streamWriter{r, s} }

type streamWriter struct {
	r *Recorder
	s Stream
}

func (w streamWriter) Write(p []byte) (int, error) {
	total := len(p)
	for len(p) > 0 {
		n := min(len(p), 32<<10)
		if err := w.r.write(w.s, p[:n]); err != nil {
			return total - len(p), err
		}
		p = p[n:]
	}
	return total, nil
}

func (r *Recorder) write(s Stream, p []byte) error {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return errors.New("recorder: closed")
	}
	now := r.now()
	r.ring = append(r.ring, chunk{s, r.off[s], append([]byte(nil), p...)})
	r.bytes += len(p)
	r.off[s] += int64(len(p))
	r.writes++
	r.lines(s, p, now)
	for r.bytes > ringBytes || len(r.ring) > ringChunks {
		old := r.ring[0]
		if old.off+int64(len(old.data)) > r.logged[old.stream] {
			// What leaves the memory must be found in the log.
			r.emit(old.stream, r.partial[old.stream], r.since[old.stream])
			r.partial[old.stream] = r.partial[old.stream][:0]
		}
		r.bytes -= len(old.data)
		r.ring[0].data = nil
		r.ring = r.ring[1:]
		r.first++
	}
	full := len(r.buf) > bufferMax
	r.notify()
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
	if full {
		r.flush()
	}
	return nil
}

// lines cuts p into entries; what has no newline yet stays in partial.
func (r *Recorder) lines(s Stream, p []byte, now time.Time) {
	for len(p) > 0 {
		part := r.partial[s]
		if len(part) == 0 {
			r.since[s] = now
		}
		n, end := len(p), false
		if i := bytes.IndexByte(p, '\n'); i >= 0 {
			n, end = i+1, true
		}
		if len(part)+n > maxEntry {
			n, end = maxEntry-len(part), true
			whole := append(part, p[:n]...)
			keep := cutRune(whole)
			rest := append([]byte(nil), whole[len(whole)-keep:]...)
			r.emit(s, whole[:len(whole)-keep], r.since[s])
			r.partial[s] = append(part[:0], rest...)
			r.since[s] = now
			p = p[n:]
			continue
		}
		if end && len(part) == 0 {
			r.emit(s, p[:n], now)
		} else if part = append(part, p[:n]...); end {
			r.emit(s, part, r.since[s])
			part = part[:0]
		}
		r.partial[s] = part
		p = p[n:]
	}
}

// cutRune returns how many bytes at the end of b start a character that is
// not complete.
func cutRune(b []byte) int {
	for i := 1; i <= min(3, len(b)); i++ {
		c := b[len(b)-i]
		if utf8.RuneStart(c) {
			if c >= utf8.RuneSelf && !utf8.FullRune(b[len(b)-i:]) {
				return i
			}
			return 0
		}
	}
	return 0
}

// emit encodes an entry for the log.
func (r *Recorder) emit(s Stream, p []byte, at time.Time) {
	if len(p) == 0 {
		return
	}
	if !at.Equal(r.stamped) {
		r.stamped, r.stamp = at, at.UTC().AppendFormat(r.stamp[:0], time.RFC3339Nano)
	}
	r.buf = appendStamped(r.buf, LogEntry{s, at, p}, r.stamp)
	r.logged[s] += int64(len(p))
}

func (r *Recorder) notify() {
	for w := range r.watchers {
		select {
		case w <- struct{}{}:
		default:
		}
	}
}

func (r *Recorder) watch() chan struct{} {
	w := make(chan struct{}, 1)
	r.mu.Lock()
	r.watchers[w] = struct{}{}
	r.mu.Unlock()
	return w
}

func (r *Recorder) unwatch(w chan struct{}) {
	r.mu.Lock()
	delete(r.watchers, w)
	r.mu.Unlock()
}

// flush writes what is encoded to the file.
func (r *Recorder) flush() {
	r.fileMu.Lock()
	defer r.fileMu.Unlock()
	r.mu.Lock()
	b := r.buf
	r.buf, r.spare = r.spare[:0], nil
	logged := r.logged
	r.mu.Unlock()
	if len(b) == 0 {
		r.spare = b
		return
	}
	n, err := r.file.Write(b)
	if err != nil {
		r.dropped = fmt.Errorf("log: output dropped: %w", err)
	}
	r.mu.Lock()
	r.flushed = logged
	r.size += int64(n)
	if err != nil || r.size-r.index[len(r.index)-1].file >= indexEvery {
		r.mark(mark{file: r.size, pos: logged, gap: err != nil})
	}
	r.notify()
	r.mu.Unlock()
	if cap(b) <= 2*bufferMax {
		r.spare = b
	}
}

// mark adds to the index, and drops from it what is of no use any more. The recorder
// is locked.
func (r *Recorder) mark(m mark) {
	if last := &r.index[len(r.index)-1]; m.gap && last.gap && m.file == last.file {
		last.pos = m.pos // The same gap has grown.
		return
	}
	first := r.file.Start()
	n := 0
	for n < len(r.index) && r.index[n].file < first {
		n++
	}
	r.index = append(slices.Delete(r.index, 0, n), m)
}

// partials sends lines to the log that have waited for their end too long.
func (r *Recorder) partials(age time.Duration) (waiting bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	for s, p := range r.partial {
		if len(p) == 0 {
			continue
		}
		if now.Sub(r.since[s]) < age {
			waiting = true
			continue
		}
		r.emit(Stream(s), p, r.since[s])
		r.partial[s] = p[:0]
	}
	return waiting
}

// flusher writes and syncs the file in the background.
func (r *Recorder) flusher() {
	defer close(r.done)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	var (
		synced time.Time
		later  bool // something is left to do without a further write
	)
	for {
		var tick <-chan time.Time
		if later {
			timer.Reset(flushMost)
			tick = timer.C
		}
		select {
		case <-r.quit:
			return
		case <-tick:
		case <-r.wake:
			if !r.settle(timer) {
				return
			}
		}
		later = r.partials(partialAge)
		r.flush()
		if time.Since(synced) < syncEvery && !r.tailed() {
			later = true
			continue
		}
		_ = r.sync() // Close reports whether the file is whole.
		synced = time.Now()
	}
}

// tailed tells whether somebody waits for what the file has and the disk has
// not yet.
func (r *Recorder) tailed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.tails > 0 && r.synced < r.size
}

// sync puts the file to disk.
func (r *Recorder) sync() error {
	r.mu.Lock()
	size := r.size
	r.mu.Unlock()
	err := r.file.Sync()
	r.mu.Lock()
	defer r.mu.Unlock()
	// What a disk does not take is no more lasting for being held back.
	r.synced = max(r.synced, size)
	r.notify()
	return err
}

// settle waits until output pauses, not for long. It tells false at the end.
func (r *Recorder) settle(timer *time.Timer) bool {
	for start := time.Now(); time.Since(start) < flushMost; {
		seen := r.count()
		timer.Reset(flushIdle)
		select {
		case <-r.quit:
			return false
		case <-timer.C:
		}
		if r.count() == seen {
			break
		}
	}
	return true
}

func (r *Recorder) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.writes
}

// NextRun ends the output of one run of the process; what is written from now
// on is the next one's.
func (r *Recorder) NextRun() {
	r.partials(0)
	r.mu.Lock()
	defer r.mu.Unlock()
	last := r.runs[len(r.runs)-1]
	last.end, last.ended = r.off, true
	r.runs = append(r.runs, &bounds{start: r.off})
	if drop := len(r.runs) - pastRuns; drop > 0 {
		r.runs = append(r.runs[:0], r.runs[drop:]...)
		r.firstRun += drop
	}
	r.notify()
}

// Close ends the output: attachers get what is left and then an end. The
// error tells that the log could not be written whole.
func (r *Recorder) Close() error {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return nil
	}
	r.closed = true
	r.mu.Unlock()
	close(r.quit)
	<-r.done
	r.partials(0)
	r.flush()
	err := r.sync()
	r.fileMu.Lock()
	defer r.fileMu.Unlock()
	return errors.Join(r.dropped, err)
}
