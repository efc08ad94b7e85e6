package rpci

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// MaxPayload is the largest payload of a frame in bytes: twice what RPCI itself
// carries in one message.
const MaxPayload = 128 << 10

const (
	magic0     = 0xF5
	magic1     = 0x1C
	headerSize = 10
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ErrTooLarge reports a payload above MaxPayload.
var ErrTooLarge = errors.New("rpci: payload above 128 KiB")

// AppendFrame appends a frame with the given sequence number and payload to b.
func AppendFrame(b []byte, seq uint32, payload []byte) ([]byte, error) {
	if len(payload) > MaxPayload {
		return b, fmt.Errorf("%w: %d bytes", ErrTooLarge, len(payload))
	}
	start := len(b)
	b = append(b, magic0, magic1)
	b = binary.LittleEndian.AppendUint32(b, seq)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(payload)))
	b = append(b, payload...)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[start+2:], castagnoli)), nil
}

// A Reader finds frames in a stream. What is not a frame (noise, a frame cut
// off by a lost connection, a wrong checksum) is skipped.
type Reader struct {
	r *bufio.Reader
}

// NewReader reads frames from r. Its memory is bounded by one frame.
func NewReader(r io.Reader) *Reader {
	return &Reader{r: bufio.NewReaderSize(r, headerSize+MaxPayload+4)}
}

// Next returns the next whole frame. The payload is the caller's. The error is
// the stream's; a damaged frame is no error.
func (r *Reader) Next() (seq uint32, payload []byte, err error) {
	for {
		h, err := r.r.Peek(2)
		if err != nil {
			return 0, nil, err
		}
		if h[0] != magic0 || h[1] != magic1 {
			_, _ = r.r.Discard(1)
			continue
		}
		if h, err = r.r.Peek(headerSize); err != nil {
			return 0, nil, err
		}
		seq = binary.LittleEndian.Uint32(h[2:])
		n := binary.LittleEndian.Uint32(h[6:])
		if n > MaxPayload {
			_, _ = r.r.Discard(1)
			continue
		}
		f, ok, err := r.body(int(n))
		if err != nil {
			return 0, nil, err
		}
		if !ok {
			_, _ = r.r.Discard(1)
			continue
		}
		payload = append([]byte(nil), f[headerSize:headerSize+int(n)]...)
		_, _ = r.r.Discard(len(f))
		return seq, payload, nil
	}
}

// body peeks a whole frame of n payload bytes. A frame whose bytes stop coming
// is given up as soon as a later frame's start shows that its sender is gone:
// the bytes that have come are searched for another whole frame.
func (r *Reader) body(n int) (frame []byte, ok bool, err error) {
	total := headerSize + n + 4
	for {
		have := r.r.Buffered()
		if have >= total {
			f, err := r.r.Peek(total)
			if err != nil {
				return nil, false, err
			}
			sum := crc32.Checksum(f[2:headerSize+n], castagnoli)
			return f, sum == binary.LittleEndian.Uint32(f[headerSize+n:]), nil
		}
		b, _ := r.r.Peek(have)
		if frameInside(b[1:]) {
			return nil, false, nil
		}
		if _, err := r.r.Peek(have + 1); err != nil {
			return nil, false, err
		}
	}
}

// frameInside tells whether a whole, intact frame lies in b.
func frameInside(b []byte) bool {
	for len(b) >= headerSize+4 {
		if b[0] == magic0 && b[1] == magic1 {
			n := binary.LittleEndian.Uint32(b[6:])
			if n <= MaxPayload && len(b) >= headerSize+int(n)+4 {
				end := headerSize + int(n)
				if crc32.Checksum(b[2:end], castagnoli) == binary.LittleEndian.Uint32(b[end:]) {
					return true
				}
			}
		}
		b = b[1:]
	}
	return false
}
