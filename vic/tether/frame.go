package tether

import (
	"bufio"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
)

// A serial line loses bytes without a word: its far end comes and goes in the
// middle of what is under way, and a UART holds sixteen. So what it carries is
// cut into frames that a reader finds again after anything else. As in RFC 1662,
// section 4, a frame is enclosed by flags, which occur nowhere within it: 0x7E
// and 0x7D are sent as 0x7D and the byte with bit 5 turned. Inside is, with
// numbers in little-endian order:
//
//	offset  size  field
//	0       1     kind
//	1       4     epoch, which the controller draws for a connection
//	5       4     sequence number of the payload's first byte
//	9       4     sequence number of the byte that is expected next
//	13      4     window: how many bytes from there on are taken
//	17      n     payload, at most 1024 bytes
//	17+n    4     CRC-32C of all before it
const (
	frameFlag    = 0x7e
	frameEscape  = 0x7d
	frameHeader  = 17
	framePayload = 1024
	frameMost    = frameHeader + framePayload + 4
)

// Kinds of frames.
const (
	frameHello   = 1 // a controller begins an epoch
	frameWelcome = 2 // the guest takes it
	frameData    = 3 // payload, and what the header tells; may be empty
	frameNack    = 4 // as frameData, and something before what came is missing
	frameProbe   = 5 // as frameData, and wants an answer
	frameBye     = 6 // the sender has closed
	frameReset   = 7 // the guest knows of no such epoch
)

type frame struct {
	kind             byte
	epoch            uint32
	seq, ack, window uint32
	payload          []byte
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// append appends the frame with its flags to b.
func (f *frame) append(b []byte) []byte {
	var h [frameHeader]byte
	h[0] = f.kind
	for i, v := range []uint32{f.epoch, f.seq, f.ack, f.window} {
		binary.LittleEndian.PutUint32(h[1+4*i:], v)
	}
	var sum [4]byte
	binary.LittleEndian.PutUint32(sum[:], crc32.Update(crc32.Checksum(h[:], castagnoli), castagnoli, f.payload))
	b = append(b, frameFlag)
	for _, part := range [][]byte{h[:], f.payload, sum[:]} {
		for _, c := range part {
			if c == frameFlag || c == frameEscape {
				b = append(b, frameEscape, c^0x20)
				continue
			}
			b = append(b, c)
		}
	}
	return append(b, frameFlag)
}

// A frameReader finds frames in a stream. What is none is skipped.
type frameReader struct {
	r   *bufio.Reader
	buf [frameMost]byte
}

func newFrameReader(r io.Reader) *frameReader {
	return &frameReader{r: bufio.NewReaderSize(r, 8<<10)}
}

// next returns the next whole frame, whose payload is good until the next call.
// The error is the stream's.
func (r *frameReader) next() (frame, error) {
	for {
		n, err := r.between()
		if err != nil {
			return frame{}, err
		}
		if f, ok := parseFrame(r.buf[:n]); ok {
			return f, nil
		}
	}
}

// between reads up to the next flag, and returns how many bytes were before it;
// none where they can be no frame's.
func (r *frameReader) between() (int, error) {
	n, escaped, bad := 0, false, false
	for {
		c, err := r.r.ReadByte()
		switch {
		case err != nil:
			return 0, err
		case c == frameFlag:
			if bad || escaped {
				return 0, nil
			}
			return n, nil
		case c == frameEscape:
			bad = bad || escaped
			escaped = true
			continue
		}
		if escaped {
			c ^= 0x20
			escaped = false
		}
		if bad = bad || n == len(r.buf); !bad {
			r.buf[n] = c
			n++
		}
	}
}

func parseFrame(b []byte) (frame, bool) {
	if len(b) < frameHeader+4 {
		return frame{}, false
	}
	body, sum := b[:len(b)-4], b[len(b)-4:]
	if crc32.Checksum(body, castagnoli) != binary.LittleEndian.Uint32(sum) {
		return frame{}, false
	}
	le := binary.LittleEndian
	return frame{
		kind: body[0], epoch: le.Uint32(body[1:]), seq: le.Uint32(body[5:]), ack: le.Uint32(body[9:]), window: le.Uint32(body[13:]),
		payload: body[frameHeader:],
	}, true
}

// ErrLineTaken reports a serial line whose guest no longer knows the connection:
// another controller has begun one, or the guest has started anew.
var ErrLineTaken = errors.New("the serial line was taken over by another connection, or its guest has started anew")
