package tether

import (
	"bytes"
	"encoding/binary"
	"io"
	"testing"
)

// FuzzFrames: what was framed is found again behind anything, and as it was.
func FuzzFrames(f *testing.F) {
	f.Add([]byte("[    0.1] kernel"), byte(frameData), uint32(1), uint32(2), []byte("hello"))
	f.Add((&frame{kind: frameHello, epoch: 7}).append(nil)[:9], byte(frameHello), uint32(0), uint32(0), []byte{})
	f.Add([]byte{frameFlag, frameEscape, frameFlag}, byte(frameNack), uint32(9), uint32(9), []byte{1, 2, 3})
	f.Fuzz(func(t *testing.T, junk []byte, kind byte, epoch, seq uint32, payload []byte) {
		payload = payload[:min(len(payload), framePayload)]
		want := frame{kind: kind, epoch: epoch, seq: seq, ack: ^seq, window: epoch, payload: payload}
		wire := want.append(nil)
		if bytes.Count(wire, []byte{frameFlag}) != 2 || wire[0] != frameFlag || wire[len(wire)-1] != frameFlag {
			t.Fatalf("flags within a frame: %x", wire)
		}
		r := newFrameReader(bytes.NewReader(append(bytes.Clone(junk), wire...)))
		last, n := frame{}, 0
		for {
			got, err := r.next()
			if err != nil {
				if err != io.EOF {
					t.Fatal(err)
				}
				break
			}
			if len(got.payload) > framePayload {
				t.Fatalf("a payload of %d bytes", len(got.payload))
			}
			last, n = got, n+1
			last.payload = bytes.Clone(got.payload)
		}
		if n == 0 || last.kind != kind || last.epoch != epoch || last.seq != seq || last.ack != ^seq || last.window != epoch || !bytes.Equal(last.payload, payload) {
			t.Fatalf("%d frames, the last %+v, want %+v", n, last, want)
		}
	})
}

// FuzzLineFrames: whatever frames come, a connection keeps within its bounds.
func FuzzLineFrames(f *testing.F) {
	one := func(kind byte, seq, ack, window uint32, n byte) []byte {
		b := []byte{kind}
		for _, v := range []uint32{seq, ack, window} {
			b = binary.LittleEndian.AppendUint32(b, v)
		}
		return append(b, n)
	}
	f.Add(append(one(frameData, 0, 0, 4096, 200), one(frameData, 800, 5, 4096, 3)...))
	f.Add(append(one(frameNack, 0, 3, 4096, 0), one(frameProbe, 0, 3, 0, 0)...))
	f.Add(one(frameBye, 0, 0, 0, 0))
	f.Fuzz(func(t *testing.T, script []byte) {
		c := newLineConn(1, lineGuestWindow, func(*frame) error { return nil }, nil)
		if _, err := c.Write([]byte("hello, guest")); err != nil {
			t.Fatal(err)
		}
		for len(script) >= 14 && !c.ended() {
			le := binary.LittleEndian
			c.receive(&frame{
				kind: script[0], epoch: 1, seq: le.Uint32(script[1:]), ack: le.Uint32(script[5:]), window: le.Uint32(script[9:]),
				payload: make([]byte, 4*int(script[13])),
			})
			script = script[14:]
			c.mu.Lock()
			if len(c.in) > lineBuffer || len(c.out) > lineQueue || c.sent-c.una > uint32(len(c.out)) || c.next-c.una > c.sent-c.una {
				t.Errorf("in %d, out %d, from %d next %d sent %d", len(c.in), len(c.out), c.una, c.next, c.sent)
			}
			c.mu.Unlock()
		}
		c.fail(io.EOF)
	})
}
