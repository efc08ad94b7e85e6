package lab

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"
)

// A station is a NIC that speaks raw frames.
type station struct {
	t    *testing.T
	mac  mac
	conn net.Conn
	r    *bufio.Reader
	p    *port
}

func newStation(t *testing.T, s *segment, m mac) *station {
	a, b := net.Pipe()
	p := newPort(a)
	p.connect(s)
	st := &station{t, m, b, bufio.NewReader(b), p}
	t.Cleanup(func() { _ = b.Close(); p.close() })
	return st
}

func (s *station) send(dst mac, kind uint16, body []byte) {
	s.t.Helper()
	f := append(append(append([]byte{}, dst[:]...), s.mac[:]...), byte(kind>>8), byte(kind))
	f = append(f, body...)
	f = append(binary.BigEndian.AppendUint32(nil, uint32(len(f))), f...)
	if _, err := s.conn.Write(f); err != nil {
		s.t.Fatal(err)
	}
}

func (s *station) next() []byte {
	s.t.Helper()
	_ = s.conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	var h [4]byte
	if _, err := io.ReadFull(s.r, h[:]); err != nil {
		s.t.Fatalf("no frame: %v", err)
	}
	b := make([]byte, binary.BigEndian.Uint32(h[:]))
	if _, err := io.ReadFull(s.r, b); err != nil {
		s.t.Fatal(err)
	}
	return b
}

var broadcast = mac{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

func arpRequest(m mac, from, to netip.Addr) []byte {
	b := []byte{0, 1, 8, 0, 6, 4, 0, 1}
	b = append(b, m[:]...)
	b = append(b, from.AsSlice()...)
	b = append(b, make([]byte, 6)...)
	return append(b, to.AsSlice()...)
}

func TestGatewayAnswersForItsAddresses(t *testing.T) {
	for _, isolated := range []bool{false, true} {
		w, err := newNetwork(Network{Name: "n", Subnet: netip.MustParsePrefix("192.168.127.0/24"), Isolated: isolated})
		if err != nil {
			t.Fatal(err)
		}
		defer w.close()
		a := newStation(t, w.segment, mac{0, 0x50, 0x56, 0x80, 0, 1})
		me := netip.MustParseAddr("192.168.127.20")
		for _, ip := range []string{"192.168.127.1", "192.168.127.254"} {
			a.send(broadcast, 0x0806, arpRequest(a.mac, me, netip.MustParseAddr(ip)))
			f := a.next()
			if len(f) < 42 || f[21] != 2 || netip.AddrFrom4([4]byte(f[28:32])).String() != ip || mac(f[6:12]) != w.segment.gateway {
				t.Errorf("isolated %v, %s: answer\n%s", isolated, ip, hex.Dump(f))
			}
		}
		// It does not answer for addresses that stations have.
		a.send(broadcast, 0x0806, arpRequest(a.mac, me, netip.MustParseAddr("192.168.127.30")))
		a.send(broadcast, 0x0806, arpRequest(a.mac, me, netip.MustParseAddr("192.168.127.1")))
		if f := a.next(); netip.AddrFrom4([4]byte(f[28:32])).String() != "192.168.127.1" {
			t.Errorf("answer for another's address\n%s", hex.Dump(f))
		}
	}
}

func TestSwitchLearns(t *testing.T) {
	s := newSegment()
	a := newStation(t, s, mac{2, 0, 0, 0, 0, 1})
	b := newStation(t, s, mac{2, 0, 0, 0, 0, 2})
	c := newStation(t, s, mac{2, 0, 0, 0, 0, 3})
	body := func(x string) []byte { return []byte(x) }
	last := func(f []byte) string { return string(f[14:]) }
	a.send(b.mac, 0x9000, body("flood")) // nobody knows b yet
	if last(b.next()) != "flood" || last(c.next()) != "flood" {
		t.Fatal("an unknown station's frame was not flooded")
	}
	b.send(a.mac, 0x9000, body("reply"))
	if last(a.next()) != "reply" {
		t.Fatal("no reply")
	}
	a.send(b.mac, 0x9000, body("direct"))
	a.send(broadcast, 0x9000, body("all"))
	if last(b.next()) != "direct" || last(b.next()) != "all" {
		t.Fatal("b's frames")
	}
	if f := c.next(); last(f) != "all" {
		t.Fatalf("c heard %q, which was for b", last(f))
	}
	// A cable that is out hears nothing, and its station is forgotten.
	b.p.connect(nil)
	a.send(b.mac, 0x9000, body("gone"))
	if last(c.next()) != "gone" {
		t.Fatal("the frame of a station that left was not flooded")
	}
}

// TestSwitchSlowPort: a port that nobody reads holds up nobody.
func TestSwitchSlowPort(t *testing.T) {
	s := newSegment()
	a := newStation(t, s, mac{2, 0, 0, 0, 0, 1})
	_ = newStation(t, s, mac{2, 0, 0, 0, 0, 2}) // never reads
	c := newStation(t, s, mac{2, 0, 0, 0, 0, 3})
	const n = portQueue * 3
	sent := make(chan error, 1)
	go func() {
		f := append(append(append([]byte{}, broadcast[:]...), a.mac[:]...), make([]byte, 1000)...)
		f = append(binary.BigEndian.AppendUint32(nil, uint32(len(f))), f...)
		for range n {
			if _, err := a.conn.Write(f); err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	for range portQueue {
		c.next()
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
}

func TestSwitchBoundsStations(t *testing.T) {
	s := newSegment()
	p := &port{}
	s.add(p)
	for i := range maxStations * 2 {
		s.learn(mac{2, 0, byte(i >> 24), byte(i >> 16), byte(i >> 8), byte(i)}, p)
	}
	if len(s.stations) != maxStations {
		t.Errorf("%d stations", len(s.stations))
	}
	s.remove(p)
	if len(s.stations) != 0 {
		t.Error("stations of a port that is gone")
	}
}
