package treecmp

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// maxLine bounds a line of a listing: a path and a target of 4 KiB each,
// escaped, and the 64 KiB of extended attributes the kernel lists at most by
// name, each with a value of at most 64 KiB, of which real files have a few.
const maxLine = 4 << 20

// line is the JSON form of an Entry. Names that JSON cannot carry are
// escaped, see escape.
type line struct {
	Path   string            `json:"path"`
	Type   Type              `json:"type"`
	Mode   uint32            `json:"mode"`
	UID    uint32            `json:"uid"`
	GID    uint32            `json:"gid"`
	Size   int64             `json:"size"`
	Sec    int64             `json:"sec"`
	Nsec   int64             `json:"nsec"`
	SHA256 string            `json:"sha256,omitempty"`
	Target string            `json:"target,omitempty"`
	Major  uint32            `json:"major,omitempty"`
	Minor  uint32            `json:"minor,omitempty"`
	Xattrs map[string][]byte `json:"xattrs,omitempty"`
	Group  string            `json:"group,omitempty"`
}

// Encode writes one line of JSON per entry.
func Encode(w io.Writer, entries []Entry) error {
	bw := bufio.NewWriter(w)
	enc := json.NewEncoder(bw)
	enc.SetEscapeHTML(false)
	for _, e := range entries {
		l := line{
			Path: escape(e.Path), Type: e.Type, Mode: e.Mode, UID: e.UID, GID: e.GID,
			Size: e.Size, Sec: e.MtimeSec, Nsec: e.MtimeNsec, SHA256: e.SHA256,
			Target: escape(e.Target), Major: e.Major, Minor: e.Minor, Group: escape(e.Group),
		}
		if len(e.Xattrs) > 0 {
			l.Xattrs = make(map[string][]byte, len(e.Xattrs))
			for name, value := range e.Xattrs {
				l.Xattrs[escape(name)] = value
			}
		}
		if err := enc.Encode(l); err != nil {
			return fmt.Errorf("encode %q: %w", e.Path, err)
		}
	}
	return bw.Flush()
}

// Decode reads what [Encode] wrote. It returns an error that names the line
// for anything else, such as a listing that was cut off within a line; a
// listing cut off between two lines can be told by its count only.
func Decode(r io.Reader) ([]Entry, error) {
	var entries []Entry
	br := bufio.NewReader(r)
	for n := 1; ; n++ {
		text, err := readLine(br)
		if errors.Is(err, io.EOF) {
			return entries, nil
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		e, err := decodeLine(text)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		entries = append(entries, e)
	}
}

// readLine returns a line without its end, and io.EOF only where no line
// begins.
func readLine(br *bufio.Reader) ([]byte, error) {
	var text []byte
	for {
		part, err := br.ReadSlice('\n')
		if len(text)+len(part) > maxLine {
			return nil, fmt.Errorf("longer than %d bytes", maxLine)
		}
		text = append(text, part...)
		switch {
		case err == nil:
			return text[:len(text)-1], nil
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF) && len(text) > 0:
			return nil, fmt.Errorf("cut off: %w", io.ErrUnexpectedEOF)
		default:
			return nil, err
		}
	}
}

func decodeLine(text []byte) (Entry, error) {
	var l line
	if err := json.Unmarshal(text, &l); err != nil {
		return Entry{}, fmt.Errorf("not an entry: %w", err)
	}
	e := Entry{
		Type: l.Type, Mode: l.Mode, UID: l.UID, GID: l.GID, Size: l.Size,
		MtimeSec: l.Sec, MtimeNsec: l.Nsec, SHA256: l.SHA256, Major: l.Major, Minor: l.Minor,
	}
	switch e.Type {
	case File, Dir, Symlink, Char, Block, FIFO, Socket:
	default:
		return Entry{}, fmt.Errorf("field type: unknown type %q", l.Type)
	}
	if l.Path == "" {
		return Entry{}, errors.New("field path: empty")
	}
	for _, f := range []struct {
		name, from string
		to         *string
	}{{"path", l.Path, &e.Path}, {"target", l.Target, &e.Target}, {"group", l.Group, &e.Group}} {
		s, err := unescape(f.from)
		if err != nil {
			return Entry{}, fmt.Errorf("field %s: %w", f.name, err)
		}
		*f.to = s
	}
	if len(l.Xattrs) > 0 {
		e.Xattrs = make(map[string][]byte, len(l.Xattrs))
		for name, value := range l.Xattrs {
			s, err := unescape(name)
			if err != nil {
				return Entry{}, fmt.Errorf("field xattrs: %w", err)
			}
			e.Xattrs[s] = value
		}
	}
	return e, nil
}

const hexDigits = "0123456789abcdef"

// escape writes a backslash as two and a byte that is not part of valid
// UTF-8 as \x and two hex digits, as JSON has no place for such bytes.
func escape(s string) string {
	if utf8.ValidString(s) && !strings.ContainsRune(s, '\\') {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, size := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			b.WriteString(`\x`)
			b.WriteByte(hexDigits[s[i]>>4])
			b.WriteByte(hexDigits[s[i]&15])
		case r == '\\':
			b.WriteString(`\\`)
		default:
			b.WriteString(s[i : i+size])
		}
		i += size
	}
	return b.String()
}

func unescape(s string) (string, error) {
	if !strings.ContainsRune(s, '\\') {
		return s, nil
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			b.WriteByte(s[i])
			continue
		}
		rest := s[i+1:]
		switch {
		case strings.HasPrefix(rest, `\`):
			b.WriteByte('\\')
			i++
		case len(rest) >= 3 && rest[0] == 'x':
			hi, lo := strings.IndexByte(hexDigits, rest[1]), strings.IndexByte(hexDigits, rest[2])
			if hi < 0 || lo < 0 {
				return "", fmt.Errorf("bad escape %q", rest[:3])
			}
			b.WriteByte(byte(hi<<4 | lo))
			i += 3
		default:
			return "", fmt.Errorf("bad escape at byte %d of %q", i, s)
		}
	}
	return b.String(), nil
}
