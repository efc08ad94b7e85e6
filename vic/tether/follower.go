package tether

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sort"
	"time"
)

// errOutputLost reports to an attacher that fell behind that the log, which it
// would have read on from, could not be written.
var errOutputLost = errors.New("output lost: the attacher fell behind and the log could not be written")

// A follower reads the output of one run of a Recorder: from memory while it
// keeps up, and from the log file where it does not.
type follower struct {
	r     *Recorder
	run   *bounds
	wake  chan struct{}
	seq   int64    // number of the next chunk
	pos   [3]int64 // next byte of each stream
	log   *LogReader
	at    [3]int64 // position of log's next entry in the streams
	limit int64    // where log ends in the file
	held  LogEntry // read from log, of another stream than what was asked for
}

// follow starts at a run's byte of each stream, or at the present.
func (r *Recorder) follow(number int, replay bool, skip [3]int64) (*follower, error) {
	f := &follower{r: r, wake: r.watch()}
	r.mu.Lock()
	i := number - r.firstRun
	ok := i >= 0 && i < len(r.runs)
	if ok {
		f.run = r.runs[i]
		f.pos, f.seq = r.off, r.first+int64(len(r.ring))
		if f.run.ended {
			f.pos = f.run.end
		}
		if replay {
			end := f.pos
			f.seq, f.pos = r.first, f.run.start
			if skip == [3]int64{} {
				f.pos = r.oldest(f.run.start, end)
			}
			for s := range f.pos {
				f.pos[s] += skip[s]
				ok = ok && skip[s] >= 0 && f.pos[s] <= end[s]
			}
		}
	}
	r.mu.Unlock()
	if !ok {
		f.close()
		return nil, fmt.Errorf("%w: output of run %d from %d", ErrInvalid, number, skip)
	}
	return f, nil
}

// oldest is the first place from start on that can be read still, where the
// beginning was rotated away, and at most end. The recorder is locked.
func (r *Recorder) oldest(start, end [3]int64) [3]int64 {
	memory := r.off
	for i := len(r.ring) - 1; i >= 0; i-- {
		memory[r.ring[i].stream] = r.ring[i].off
	}
	first := r.file.Start()
	before := func(a, b [3]int64) bool { return a[Stdout] <= b[Stdout] && a[Stderr] <= b[Stderr] }
	// The mark that the run's beginning is read from.
	i := sort.Search(len(r.index), func(i int) bool { return !before(r.index[i].pos, start) }) - 1
	if before(memory, start) || i >= 0 && r.index[i].file >= first {
		return start
	}
	at := memory
	for _, m := range r.index[max(0, i):] {
		if m.file >= first && before(start, m.pos) && before(m.pos, memory) {
			at = m.pos
			break
		}
	}
	for s := range at {
		at[s] = min(max(at[s], start[s]), end[s])
	}
	return at
}

// done tells that the follower has read all of its run. The recorder is locked.
func (f *follower) done() bool {
	return f.run.ended && f.pos[Stdout] >= f.run.end[Stdout] && f.pos[Stderr] >= f.run.end[Stderr]
}

// from tells where it is in its run's standard output and error.
func (f *follower) from() [2]int64 {
	return [2]int64{f.pos[Stdout] - f.run.start[Stdout], f.pos[Stderr] - f.run.start[Stderr]}
}

func (f *follower) close() { f.r.unwatch(f.wake) }

// next returns a piece of output, which must not be changed, and io.EOF at the
// recorder's end.
func (f *follower) next(ctx context.Context) (Stream, []byte, error) {
	for {
		if f.log != nil {
			s, p, err := f.fromLog()
			if p != nil || err != nil {
				return s, p, err
			}
			continue
		}
		s, p, wait, err := f.fromMemory()
		if p != nil || err != nil {
			return s, p, err
		}
		if !wait {
			continue
		}
		select {
		case <-ctx.Done():
			return 0, nil, ctx.Err()
		case <-f.wake:
		}
	}
}

func (f *follower) fromMemory() (s Stream, p []byte, wait bool, err error) {
	r := f.r
	r.mu.Lock()
	defer r.mu.Unlock()
	if f.done() {
		return 0, nil, false, io.EOF
	}
	if f.seq < r.first {
		if !f.rejoin() {
			return 0, nil, false, f.openLog()
		}
	}
	for f.seq < r.first+int64(len(r.ring)) {
		c := r.ring[f.seq-r.first]
		f.seq++
		end := c.off + int64(len(c.data))
		if end <= f.pos[c.stream] {
			continue
		}
		p := c.data[f.pos[c.stream]-c.off:]
		f.pos[c.stream] = end
		return c.stream, p, false, nil // No piece has the output of two runs.
	}
	if r.closed {
		return 0, nil, false, io.EOF
	}
	return 0, nil, true, nil
}

// rejoin goes over to memory where memory reaches back to what was read. The
// recorder is locked.
func (f *follower) rejoin() bool {
	oldest := f.r.off
	for i := len(f.r.ring) - 1; i >= 0; i-- {
		oldest[f.r.ring[i].stream] = f.r.ring[i].off
	}
	if oldest[Stdout] > f.pos[Stdout] || oldest[Stderr] > f.pos[Stderr] {
		return false
	}
	f.seq = f.r.first
	return true
}

// openLog starts to read the file at the last mark before pos. The recorder is
// locked; it is unlocked for a moment to write the file.
func (f *follower) openLog() error {
	r := f.r
	r.mu.Unlock()
	r.flush()
	r.mu.Lock()
	i := sort.Search(len(r.index), func(i int) bool {
		m := r.index[i]
		return m.pos[Stdout] > f.pos[Stdout] || m.pos[Stderr] > f.pos[Stderr]
	}) - 1
	if i < 0 || r.index[i].file < r.file.Start() {
		return errOutputLost
	}
	m := r.index[i]
	if i+1 < len(r.index) && r.index[i+1].gap && r.index[i+1].file == m.file {
		return errOutputLost
	}
	f.limit = r.size
	for _, n := range r.index[i+1:] {
		if n.gap {
			f.limit = n.file
			break
		}
	}
	if f.limit == r.size && f.ahead() {
		return errOutputLost
	}
	f.at = m.pos
	f.log = NewLogReader(io.NewSectionReader(r.file, m.file, f.limit-m.file))
	return nil
}

// ahead tells that the file holds nothing after pos although memory does not
// reach back to it, which only a failure to write can bring about.
func (f *follower) ahead() bool {
	return f.r.flushed[Stdout] <= f.pos[Stdout] && f.r.flushed[Stderr] <= f.pos[Stderr]
}

// fromLog returns the part after pos of some entries of one stream, or nothing
// where the log has been read to its present end.
func (f *follower) fromLog() (Stream, []byte, error) {
	s, p, err := f.held.Stream, f.held.Data, error(nil)
	f.held = LogEntry{}
	for len(p) < maxEntry {
		var e LogEntry
		f.r.mu.Lock()
		done := f.done()
		f.r.mu.Unlock()
		if done {
			err = io.EOF
			break
		}
		if e, err = f.entry(); err != nil {
			break
		}
		if len(p) > 0 && e.Stream != s {
			f.held = e
			return s, p, nil
		}
		s, p = e.Stream, append(p, e.Data...)
	}
	if len(p) > 0 {
		// An error comes again.
		return s, p, nil
	}
	if errors.Is(err, io.EOF) {
		err = f.endOfLog()
	}
	return 0, nil, err
}

// entry returns the part after pos of the next entry that has one.
func (f *follower) entry() (LogEntry, error) {
	for {
		e, err := f.log.Next()
		if err == io.EOF {
			return e, err
		}
		if err != nil {
			return e, fmt.Errorf("log: %w", err)
		}
		start := f.at[e.Stream]
		f.at[e.Stream] += int64(len(e.Data))
		skip := f.pos[e.Stream] - start
		if skip >= int64(len(e.Data)) {
			continue
		}
		if skip < 0 {
			return e, errOutputLost
		}
		f.pos[e.Stream] = f.at[e.Stream]
		e.Data = e.Data[skip:]
		return e, nil
	}
}

func (f *follower) endOfLog() error {
	r := f.r
	r.mu.Lock()
	defer r.mu.Unlock()
	if f.log.Skipped() > 0 {
		return errOutputLost // The file was changed under the recorder.
	}
	f.log = nil
	if f.done() || f.rejoin() {
		return nil
	}
	if f.gapAt(f.limit) {
		return errOutputLost
	}
	return f.openLog()
}

func (f *follower) gapAt(file int64) bool {
	for _, m := range f.r.index {
		if m.gap && m.file == file {
			return true
		}
	}
	return false
}

// A logTail hands out the log file's bytes as it grows, once they are on the
// disk: what a reader has seen is there after a power-off, too.
type logTail struct {
	done <-chan struct{}  // ends a wait
	late <-chan time.Time // ends it, and the log: nothing more is asked for
	r    *Recorder
	wake chan struct{}
	off  int64
	end  int64 // where to stop, or -1 at the recorder's end
}

// lateAfter is when all that was written at a time has come to the file.
const lateAfter = 2 * partialAge

// tail reads the file from off, to its present end or on, until what was written
// at a time that is not zero has come.
func (r *Recorder) tail(ctx context.Context, off int64, on bool, until time.Time) *logTail {
	t := &logTail{done: ctx.Done(), r: r, wake: r.watch(), off: off, end: -1}
	r.mu.Lock()
	r.tails++
	r.mu.Unlock()
	switch {
	case !on:
		t.end = r.onDisk()
	case !until.IsZero():
		t.late = time.After(time.Until(until) + lateAfter)
	}
	return t
}

// onDisk is the size of the file as it is on the disk.
func (r *Recorder) onDisk() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.synced
}

func (t *logTail) close() {
	t.r.unwatch(t.wake)
	t.r.mu.Lock()
	t.r.tails--
	t.r.mu.Unlock()
}

// Read waits for more where the file has no more, until the recorder's end.
func (t *logTail) Read(p []byte) (int, error) {
	for {
		t.r.mu.Lock()
		// The last bytes are in the file once nothing is left to encode.
		size, closed := t.r.synced, t.r.closed && t.r.flushed == t.r.off && t.r.synced == t.r.size
		t.r.mu.Unlock()
		if t.end >= 0 {
			size, closed = t.end, true
		}
		if first := t.r.file.Start(); t.off < first {
			// It was rotated away, perhaps in the middle of a line.
			t.off = first
			p[0] = '\n'
			return 1, nil
		}
		if n := size - t.off; n > 0 {
			m, err := t.r.file.ReadAt(p[:min(int64(len(p)), n)], t.off)
			t.off += int64(m)
			if m > 0 {
				return m, nil
			}
			if errors.Is(err, errRotated) {
				continue
			}
			return 0, err
		}
		if closed {
			return 0, io.EOF
		}
		select {
		case <-t.done:
			return 0, context.Canceled
		case <-t.late:
			return 0, io.EOF
		case <-t.wake:
		}
	}
}
