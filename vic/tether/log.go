package tether

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
	"unicode/utf8"
)

// LogPath of the log on the root disk, beside the container's root.
const LogPath = "/log/json.log"

// StatusPath of the last Status on the root disk, beside the container's root.
const StatusPath = "/state/status.json"

// Stream names one of a process's output streams.
type Stream uint8

// The output streams. A process with a TTY has only Stdout.
const (
	Stdout Stream = 1
	Stderr Stream = 2
)

// String returns "stdout" or "stderr".
func (s Stream) String() string {
	switch s {
	case Stdout:
		return "stdout"
	case Stderr:
		return "stderr"
	}
	return fmt.Sprintf("stream %d", uint8(s))
}

const (
	// maxEntry bounds the output in one log entry, in bytes. Longer lines are
	// several entries; only the last ends in a newline.
	maxEntry = 16 << 10
	// maxLine bounds an encoded entry: every byte as \u00xx and as base64.
	maxLine = 160 << 10
)

// LogEntry is one line of output, or a part of a line where it does not end
// in a newline.
type LogEntry struct {
	Stream Stream
	Time   time.Time
	// Data is the output with its newline, at most 16 KiB.
	Data []byte
}

// appendEntry encodes an entry as Docker's json-file driver does. Output that
// is not UTF-8 has, beside the text in which each wrong byte became U+FFFD,
// its bytes in base64 under "raw", so that the log holds what was written.
func appendEntry(b []byte, e LogEntry) []byte {
	return appendStamped(b, e, e.Time.UTC().AppendFormat(nil, time.RFC3339Nano))
}

// appendStamped is appendEntry with the time as text.
func appendStamped(b []byte, e LogEntry, stamp []byte) []byte {
	b = append(b, `{"log":"`...)
	b, valid := appendText(b, e.Data)
	b = append(b, `","stream":"`...)
	b = append(b, e.Stream.String()...)
	if !valid {
		b = append(b, `","raw":"`...)
		b = base64.StdEncoding.AppendEncode(b, e.Data)
	}
	b = append(b, `","time":"`...)
	b = append(b, stamp...)
	return append(b, "\"}\n"...)
}

// appendText appends p as the inside of a JSON string (RFC 8259 section 7).
func appendText(b, p []byte) (_ []byte, valid bool) {
	const hex = "0123456789abcdef"
	valid = true
	start := 0
	for i := 0; i < len(p); {
		c := p[i]
		if c < utf8.RuneSelf {
			if c >= ' ' && c != '"' && c != '\\' {
				i++
				continue
			}
			b = append(b, p[start:i]...)
			switch c {
			case '"', '\\':
				b = append(b, '\\', c)
			case '\n':
				b = append(b, '\\', 'n')
			case '\r':
				b = append(b, '\\', 'r')
			case '\t':
				b = append(b, '\\', 't')
			default:
				b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
			}
			i++
			start = i
			continue
		}
		r, n := utf8.DecodeRune(p[i:])
		if r == utf8.RuneError && n == 1 {
			b = append(b, p[start:i]...)
			b = append(b, "\ufffd"...)
			valid = false
			i++
			start = i
			continue
		}
		i += n
	}
	return append(b, p[start:]...), valid
}

// errNotEntry reports a line of a log that is no entry.
var errNotEntry = errors.New("not a log entry")

// stamps remembers the last time that was read: lines that were written
// together have the same.
type stamps struct {
	text string
	time time.Time
}

func (s *stamps) parse(line []byte) (LogEntry, error) {
	if e, ok := s.parsePlain(line); ok {
		return e, nil
	}
	return parseEntry(line)
}

func parseEntry(line []byte) (LogEntry, error) {
	var v struct {
		Log    *string   `json:"log"`
		Stream string    `json:"stream"`
		Raw    []byte    `json:"raw"`
		Time   time.Time `json:"time"`
	}
	if err := json.Unmarshal(line, &v); err != nil {
		return LogEntry{}, fmt.Errorf("%w: %v", errNotEntry, err)
	}
	e := LogEntry{Time: v.Time, Data: v.Raw}
	switch v.Stream {
	case "stdout":
		e.Stream = Stdout
	case "stderr":
		e.Stream = Stderr
	default:
		return LogEntry{}, fmt.Errorf("%w: stream %.20q", errNotEntry, v.Stream)
	}
	if v.Log == nil {
		return LogEntry{}, fmt.Errorf("%w: no log", errNotEntry)
	}
	if e.Data == nil {
		e.Data = []byte(*v.Log)
	}
	if len(e.Data) > maxEntry {
		return LogEntry{}, fmt.Errorf("%w: %d bytes of output, more than %d", errNotEntry, len(e.Data), maxEntry)
	}
	return e, nil
}

// parsePlain reads an entry in exactly the form that appendEntry gives to
// text, ten times as fast as a JSON decoder. What it does not know is for that.
func (s *stamps) parsePlain(line []byte) (e LogEntry, ok bool) {
	rest, ok := bytes.CutPrefix(line, []byte(`{"log":"`))
	if !ok {
		return e, false
	}
	end := bytes.Index(rest, []byte(`","stream":"std`))
	if end < 0 {
		return e, false
	}
	text := rest[:end]
	rest, ok = bytes.CutSuffix(bytes.TrimRight(rest[end+len(`","stream":"std`):], "\r\n"), []byte(`"}`))
	if !ok || len(rest) < len(`out","time":"`) {
		return e, false
	}
	switch at := rest[len(`out","time":"`):]; string(rest[:len(rest)-len(at)]) {
	case `out","time":"`:
		e.Stream = Stdout
	case `err","time":"`:
		e.Stream = Stderr
	default:
		return e, false
	}
	if at := rest[len(`out","time":"`):]; string(at) != s.text {
		text := string(at)
		t, err := time.Parse(time.RFC3339Nano, text)
		if err != nil || t.Format(time.RFC3339Nano) != text {
			return e, false
		}
		s.text, s.time = text, t
	}
	e.Time = s.time
	if e.Data, ok = unescape(text); !ok || len(e.Data) > maxEntry {
		return LogEntry{}, false
	}
	return e, true
}

// unescape undoes appendText; what appendText does not write is refused.
func unescape(text []byte) ([]byte, bool) {
	data := make([]byte, 0, len(text))
	for len(text) > 0 {
		i := 0
		for i < len(text) && text[i] != '\\' && text[i] != '"' && text[i] >= ' ' {
			i++
		}
		data = append(data, text[:i]...)
		if text = text[i:]; len(text) == 0 {
			break
		}
		if text[0] != '\\' || len(text) < 2 {
			return nil, false
		}
		c := text[1]
		switch c {
		case '"', '\\':
		case 'n':
			c = '\n'
		case 'r':
			c = '\r'
		case 't':
			c = '\t'
		default:
			return nil, false
		}
		data, text = append(data, c), text[2:]
	}
	return data, utf8.Valid(data)
}

// A LogReader reads the entries of a log, oldest first. It is for one
// goroutine.
type LogReader struct {
	r       *bufio.Reader
	keep    func(LogEntry) (keep, more bool)
	close   func() error
	skipped int
	line    []byte // of the last entry, valid until the next
	stamps  stamps
}

// NewLogReader reads a log from r, which stays the caller's. The log may come
// from a hostile container: no more than one entry is held in memory, and what
// is no entry (such as a line that a crash cut off) is skipped.
func NewLogReader(r io.Reader) *LogReader {
	return &LogReader{r: bufio.NewReaderSize(r, maxLine)}
}

// Next returns the next entry, whose Data is the caller's, and io.EOF after
// the last. Other errors are those of the underlying reader.
func (l *LogReader) Next() (LogEntry, error) {
	for {
		line, err := l.r.ReadSlice('\n')
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			if err := l.discardLine(); err != nil {
				return LogEntry{}, err
			}
			l.skipped++
			continue
		case err != nil && (len(bytes.TrimSpace(line)) == 0 || !errors.Is(err, io.EOF)):
			return LogEntry{}, err
		}
		if len(bytes.TrimSpace(line)) == 0 {
			continue
		}
		e, perr := l.stamps.parse(line)
		if perr != nil {
			l.skipped++
			if err != nil {
				return LogEntry{}, err
			}
			continue
		}
		if l.keep != nil {
			keep, more := l.keep(e)
			if !more {
				return LogEntry{}, io.EOF
			}
			if !keep {
				continue
			}
		}
		l.line = line
		return e, nil
	}
}

func (l *LogReader) discardLine() error {
	for {
		_, err := l.r.ReadSlice('\n')
		if !errors.Is(err, bufio.ErrBufferFull) {
			return err
		}
	}
}

// Skipped counts the lines so far that were no entries.
func (l *LogReader) Skipped() int { return l.skipped }

// Close frees what the reader holds. A reader of Client.Logs must be closed;
// for others it does nothing.
func (l *LogReader) Close() error {
	if l.close == nil {
		return nil
	}
	return l.close()
}

// LogOptions choose entries of a log.
type LogOptions struct {
	// Follow waits for more until the process has ended, for good where it has a
	// restart policy, or until Until has passed.
	Follow bool `json:"follow,omitempty"`
	// Tail starts with the last Tail lines. Zero means all, as Docker's "all"
	// does; a negative number means none but what Follow brings.
	Tail int `json:"tail,omitempty"`
	// Since and Until bound the entries' times, both ends included. Zero
	// times do not bound.
	Since time.Time `json:"since,omitzero"`
	Until time.Time `json:"until,omitzero"`
}

func (o LogOptions) keep(e LogEntry) (keep, more bool) {
	if !o.Until.IsZero() && e.Time.After(o.Until) {
		return false, false
	}
	return o.Since.IsZero() || !e.Time.Before(o.Since), true
}

// SelectLog reads the chosen entries of a whole log of size bytes, such as
// that of a stopped container. Follow has no meaning here and is refused. r
// stays the caller's.
func SelectLog(r io.ReaderAt, size int64, o LogOptions) (*LogReader, error) {
	if o.Follow {
		return nil, fmt.Errorf("%w: follow: this log is not being written", ErrInvalid)
	}
	start, err := tailOffset(r, 0, size, o)
	if err != nil {
		return nil, err
	}
	l := NewLogReader(io.NewSectionReader(r, start, size-start))
	l.keep = o.keep
	return l, nil
}

// JoinLog makes one of a log's files, oldest first.
func JoinLog(files []*io.SectionReader) (r io.ReaderAt, size int64) {
	j := joined(files)
	for _, f := range files {
		size += f.Size()
	}
	return j, size
}

type joined []*io.SectionReader

// ReadAt implements io.ReaderAt.
func (j joined) ReadAt(p []byte, off int64) (int, error) {
	total := 0
	for _, f := range j {
		if off >= f.Size() {
			off -= f.Size()
			continue
		}
		n, err := f.ReadAt(p[total:min(len(p), total+int(min(f.Size()-off, int64(len(p)))))], off)
		total, off = total+n, 0
		if err != nil && err != io.EOF {
			return total, err
		}
		if total == len(p) {
			return total, nil
		}
	}
	return total, io.EOF
}

// tailOffset finds where the last o.Tail lines start that o.Until lets
// through, reading backwards from size to first.
func tailOffset(r io.ReaderAt, first, size int64, o LogOptions) (int64, error) {
	switch {
	case o.Tail == 0:
		return first, nil
	case o.Tail < 0:
		return size, nil
	}
	const block = 64 << 10
	var (
		tail  []byte // bytes from pos on, up to the start of the line after
		pos   = size
		lines int
		start = size
	)
	// line judges one whole line that starts at off.
	line := func(b []byte, off int64) (done bool) {
		e, err := parseEntry(b)
		if err != nil || (!o.Until.IsZero() && e.Time.After(o.Until)) {
			return false
		}
		if start == size || bytes.HasSuffix(e.Data, []byte("\n")) {
			if lines == o.Tail {
				return true
			}
			lines++
		}
		start = off
		return false
	}
	for pos > first {
		n := min(block, pos-first)
		b := make([]byte, n, int(n)+len(tail))
		if _, err := r.ReadAt(b, pos-n); errors.Is(err, errRotated) {
			return start, nil // just now
		} else if err != nil && !errors.Is(err, io.EOF) {
			return 0, fmt.Errorf("log: %w", err)
		}
		pos -= n
		tail = append(b, tail...)
		for {
			body := bytes.TrimSuffix(tail, []byte("\n"))
			i := bytes.LastIndexByte(body, '\n')
			if i < 0 {
				break
			}
			if line(tail[i+1:], pos+int64(i)+1) {
				return start, nil
			}
			tail = tail[:i+1]
		}
		if len(tail) > maxLine+block {
			// Garbage without newlines; keep its end as a mark that it is one line.
			tail = append([]byte("!"), tail[len(tail)-1])
		}
	}
	if len(tail) > 0 {
		line(tail, first)
	}
	return start, nil
}
