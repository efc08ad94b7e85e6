package tether

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
)

// LogLimit bounds a log as the options of Docker's json-file driver do: a file
// that has reached MaxBytes becomes LogPath.1, the one before that LogPath.2, and
// so on, and at most MaxFiles are kept, the one that is written included. The
// zero value does not bound.
type LogLimit struct {
	MaxBytes int64 `json:"maxBytes,omitempty"`
	// MaxFiles is 1 where it is zero: then all is dropped when the file is full.
	MaxFiles int `json:"maxFiles,omitempty"`
}

// Validate tells what cannot be right, by its name in JSON.
func (l LogLimit) Validate() error {
	switch {
	case l.MaxBytes < 0:
		return fmt.Errorf("log.maxBytes: negative")
	case l.MaxFiles < 0:
		return fmt.Errorf("log.maxFiles: negative")
	case l.MaxFiles > 1 && l.MaxBytes == 0:
		return fmt.Errorf("log.maxFiles: %d without a maxBytes, no file would ever be full", l.MaxFiles)
	case l.MaxFiles > maxLogFiles:
		return fmt.Errorf("log.maxFiles: %d, more than %d", l.MaxFiles, maxLogFiles)
	}
	return nil
}

// maxLogFiles bounds the files that are kept open.
const maxLogFiles = 1000

// LogNames returns those of a directory's names that are a log's files, oldest
// first.
func LogNames(all []string) []string {
	var names []string
	for _, name := range all {
		if _, ok := logNumber(name); ok {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, func(a, b string) int {
		i, _ := logNumber(a)
		j, _ := logNumber(b)
		return j - i
	})
	return names
}

// logNumber is the number in the name of a log's file, 0 of the one that is
// written to.
func logNumber(name string) (int, bool) {
	rest, ok := strings.CutPrefix(name, filepath.Base(LogPath))
	if !ok || rest == "" {
		return 0, ok
	}
	n, err := strconv.Atoi(rest[1:])
	return n, err == nil && n > 0 && rest == "."+strconv.Itoa(n)
}

// LogFiles is a log in a directory as one file: offsets go through all of its
// files, from the oldest there was at its opening on. It implements LogFile.
//
// A file is made when the first output is written to it: to make a file takes
// much of a filesystem's code, and the output has gone to those who are attached
// by then.
type LogFiles struct {
	dir   string
	limit LogLimit

	mu    sync.Mutex
	parts []*logPart // oldest first
	size  int64      // of all there has been
	fresh bool       // the next write makes a file
	first atomic.Int64
}

type logPart struct {
	file   *os.File
	number int   // in its name; 0 is the one without
	start  int64 // of its first byte in the log
	size   int64
	dirty  bool // written since the last Sync
}

// OpenLogFiles goes on with the log of a directory, or begins one. A line that a
// power-off cut short is ended, so that it spoils no other.
func OpenLogFiles(dir string, limit LogLimit) (*LogFiles, error) {
	l := &LogFiles{dir: dir, limit: limit, fresh: true}
	// Of a log that was rotated one of these is there whenever the power went.
	_, err := os.Stat(l.name(0))
	if errors.Is(err, fs.ErrNotExist) {
		_, err = os.Stat(l.name(1))
	}
	if errors.Is(err, fs.ErrNotExist) {
		return l, nil
	}
	all, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range all {
		names = append(names, e.Name())
	}
	for _, name := range LogNames(names) {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR|os.O_APPEND, 0o600)
		if err != nil {
			return nil, errors.Join(err, l.Close())
		}
		number, _ := logNumber(name)
		p := &logPart{file: f, number: number, start: l.size}
		l.parts = append(l.parts, p)
		if p.size, err = endLine(f); err != nil {
			return nil, errors.Join(err, l.Close())
		}
		l.size += p.size
		l.fresh = number != 0
	}
	return l, nil
}

func (l *LogFiles) name(number int) string {
	name := filepath.Join(l.dir, filepath.Base(LogPath))
	if number > 0 {
		name += "." + strconv.Itoa(number)
	}
	return name
}

// endLine ends a file's last line, and returns the file's size.
func endLine(f *os.File) (int64, error) {
	st, err := f.Stat()
	if err != nil || st.Size() == 0 {
		return 0, err
	}
	var last [1]byte
	if _, err := f.ReadAt(last[:], st.Size()-1); err != nil {
		return 0, err
	}
	if last[0] == '\n' {
		return st.Size(), nil
	}
	if _, err := f.Write([]byte("\n")); err != nil {
		return 0, err
	}
	return st.Size() + 1, nil
}

// Size is the first offset that has not been written.
func (l *LogFiles) Size() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.size
}

// Start implements LogFile. It does not wait for a Write.
func (l *LogFiles) Start() int64 { return l.first.Load() }

// Write implements LogFile. It takes whole lines, and cuts between them where a
// file is full. Where the disk is full, the oldest part of the log makes room.
func (l *LogFiles) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	total := 0
	for len(b) > 0 {
		n, err := l.write(b)
		if errors.Is(err, syscall.ENOSPC) && len(l.parts) > 1 {
			if err = l.drop(); err == nil {
				continue
			}
		}
		if err != nil {
			return total, err
		}
		l.size += int64(n)
		total += n
		b = b[n:]
	}
	return total, nil
}

// write writes some whole lines, perhaps none. The log is locked.
func (l *LogFiles) write(b []byte) (int, error) {
	if l.fresh {
		if err := l.rotate(); err != nil {
			return 0, err
		}
	}
	p := l.parts[len(l.parts)-1]
	n, most := len(b), l.most()
	if room := most - p.size; int64(n) > room {
		n = bytes.LastIndexByte(b[:max(0, room)], '\n') + 1
		if n == 0 && p.size > 0 {
			l.fresh = true
			return 0, nil
		}
		if n == 0 { // a line that is longer than a file may be
			n = bytes.IndexByte(b, '\n') + 1
		}
	}
	if _, err := p.file.Write(b[:n]); err != nil {
		// A torn line would be read as garbage; take it back.
		return 0, errors.Join(err, p.file.Truncate(p.size))
	}
	p.size += int64(n)
	p.dirty = true
	return n, nil
}

// leastPart is the least size of the parts of a log without a limit. It has
// parts, too, so that a full disk costs the oldest of them and not all.
const leastPart = 1 << 20

// most is the size at which a file is full. A log without a limit is in about
// eight parts of each order of its size. The log is locked.
func (l *LogFiles) most() int64 {
	if l.limit.MaxBytes > 0 {
		return l.limit.MaxBytes
	}
	return max(leastPart, (l.size-l.first.Load())/8)
}

// rotate makes a new file to write to, under the name of the last one, which gets
// another, as do those that are in its way. What is more than the limit is
// dropped before. Each step leaves a whole log. The log is locked.
func (l *LogFiles) rotate() error {
	if l.limit.MaxBytes > 0 {
		for len(l.parts) >= max(1, l.limit.MaxFiles) {
			if err := l.drop(); err != nil {
				return err
			}
		}
	}
	numbers := make([]int, len(l.parts))
	for i, next := len(l.parts)-1, 1; i >= 0; i-- {
		numbers[i] = max(l.parts[i].number, next)
		next = numbers[i] + 1
	}
	for i, p := range l.parts {
		if p.number == numbers[i] {
			continue
		}
		if err := os.Rename(l.name(p.number), l.name(numbers[i])); err != nil {
			return err
		}
		p.number = numbers[i]
	}
	f, err := os.OpenFile(l.name(0), os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	l.parts = append(l.parts, &logPart{file: f, start: l.size})
	l.first.Store(l.parts[0].start)
	l.fresh = false
	return nil
}

// drop deletes the oldest part. The log is locked.
func (l *LogFiles) drop() error {
	p := l.parts[0]
	if err := os.Remove(l.name(p.number)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	l.parts = l.parts[1:]
	l.first.Store(p.start + p.size)
	_ = p.file.Close() // Nobody wants what was in it.
	return nil
}

// ReadAt implements LogFile.
func (l *LogFiles) ReadAt(b []byte, off int64) (int, error) {
	total := 0
	for len(b) > 0 {
		l.mu.Lock()
		var p *logPart
		for _, q := range l.parts {
			if off >= q.start && off < q.start+q.size {
				p = q
			}
		}
		var n int64
		if p != nil {
			n = min(int64(len(b)), p.start+p.size-off)
		}
		l.mu.Unlock()
		if p == nil {
			if off < l.Start() {
				return total, errRotated
			}
			return total, io.EOF
		}
		m, err := p.file.ReadAt(b[:n], off-p.start)
		total += m
		if err != nil {
			if errors.Is(err, fs.ErrClosed) {
				err = errRotated
			}
			return total, err
		}
		b, off = b[n:], off+n
	}
	return total, nil
}

// errRotated reports a part of a log that was dropped.
var errRotated = errors.New("this part of the log was rotated away")

// Sync implements LogFile.
func (l *LogFiles) Sync() error {
	l.mu.Lock()
	var dirty []*logPart
	for _, p := range l.parts {
		if p.dirty {
			p.dirty = false
			dirty = append(dirty, p)
		}
	}
	l.mu.Unlock()
	var errs error
	for _, p := range dirty {
		if err := p.file.Sync(); err != nil && !errors.Is(err, fs.ErrClosed) {
			errs = errors.Join(errs, err)
		}
	}
	return errs
}

// Close closes the files.
func (l *LogFiles) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var errs error
	for _, p := range l.parts {
		errs = errors.Join(errs, p.file.Close())
	}
	return errs
}
