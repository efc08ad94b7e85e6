package lab

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"sync"

	"github.com/vmware/govmomi/vim25/types"
)

const (
	// maxFrame is the largest frame that a port takes: QEMU joins segments of
	// up to 64 KiB for a NIC that offloads.
	maxFrame = 64<<10 + 64
	// portQueue is how many frames wait for a slow port before it loses some.
	portQueue = 512
	// maxStations bounds the addresses that a segment knows.
	maxStations = 4096
)

type mac [6]byte

func (m mac) group() bool { return m[0]&1 != 0 }

// A segment is a port group's learning switch. A slow port loses frames of its
// own and holds up nobody.
type segment struct {
	mu       sync.RWMutex
	ports    map[*port]struct{}
	stations map[mac]*port
	gateway  mac
	up       func(frame []byte) // to the gateway; nil until there is one
}

func newSegment() *segment {
	return &segment{ports: map[*port]struct{}{}, stations: map[mac]*port{}}
}

// forward passes on a frame that came from a port, or from the gateway where
// from is nil. The frame is not changed afterwards by anyone.
func (s *segment) forward(from *port, frame []byte) {
	if len(frame) < 14 {
		return
	}
	dst, src := mac(frame[:6]), mac(frame[6:12])
	s.mu.RLock()
	if from != nil && s.stations[src] != from && !src.group() && src != s.gateway {
		s.mu.RUnlock()
		s.learn(src, from)
		s.mu.RLock()
	}
	up := s.up
	if p, ok := s.stations[dst]; ok && !dst.group() {
		if p != from {
			p.send(frame)
		}
		s.mu.RUnlock()
		return
	}
	if dst.group() || dst != s.gateway {
		for p := range s.ports {
			if p != from {
				p.send(frame)
			}
		}
	}
	s.mu.RUnlock()
	if from != nil && up != nil && (dst.group() || dst == s.gateway) {
		up(frame)
	}
}

func (s *segment) learn(m mac, p *port) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, on := s.ports[p]; !on {
		return
	}
	if _, known := s.stations[m]; !known && len(s.stations) >= maxStations {
		return // frames for it are flooded
	}
	s.stations[m] = p
}

func (s *segment) add(p *port) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ports[p] = struct{}{}
}

func (s *segment) remove(p *port) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.ports, p)
	for m, q := range s.stations {
		if q == p {
			delete(s.stations, m)
		}
	}
}

// A port is a NIC's end of a QEMU stream socket: frames after their length in
// 4 bytes, big-endian (QEMU, net/stream.c).
type port struct {
	conn net.Conn
	out  chan []byte
	wg   sync.WaitGroup
	end  chan struct{}
	once sync.Once

	mu  sync.Mutex
	seg *segment // nil: the cable is out
}

// plug connects a NIC of a QEMU to its port group. QEMU listens, so that the next
// lab on the directory can do so again. It returns when QEMU has the connection:
// 7.2 writes to a null pointer what a guest sends before (net/stream.c).
func (l *Lab) plug(ctx context.Context, q *qemu, m *machine, n *types.VirtualVmxnet3) error {
	b, ok := n.Backing.(*types.VirtualEthernetCardNetworkBackingInfo)
	if !ok || l.nets[b.DeviceName] == nil {
		return fmt.Errorf("network adapter %d has no network", n.Key)
	}
	id := fmt.Sprintf("net%d", n.Key)
	hit, forget := q.qmp.expect("NETDEV_STREAM_CONNECTED", func(b json.RawMessage) bool {
		var d struct {
			ID string `json:"netdev-id"`
		}
		return json.Unmarshal(b, &d) == nil && d.ID == id
	})
	defer forget()
	conn, err := l.dialQEMU(nicSocket(m.ref.Value, n.Key))
	if err == nil {
		select {
		case <-hit:
		case <-q.qmp.gone:
			err = errQEMUGone
		case <-ctx.Done():
			err = ctx.Err()
		}
		if err != nil {
			_ = conn.Close()
		}
	}
	if err != nil {
		return fmt.Errorf("network adapter %d: %w", n.Key, err)
	}
	p := newPort(conn)
	l.connectNIC(p, n)
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ports[n.Key] = p
	return nil
}

// connectNIC connects a new port to its NIC's port group.
func (l *Lab) connectNIC(p *port, n *types.VirtualVmxnet3) {
	b, ok := n.Backing.(*types.VirtualEthernetCardNetworkBackingInfo)
	if ok && l.nets[b.DeviceName] != nil && (n.Connectable == nil || n.Connectable.StartConnected) {
		p.connect(l.nets[b.DeviceName].segment)
	}
}

func newPort(conn net.Conn) *port {
	p := &port{conn: conn, out: make(chan []byte, portQueue), end: make(chan struct{})}
	p.wg.Add(2)
	go p.read()
	go p.write()
	return p
}

// connect puts the port on a segment, or on none.
func (p *port) connect(s *segment) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.seg == s {
		return
	}
	if p.seg != nil {
		p.seg.remove(p)
	}
	p.seg = s
	if s != nil {
		s.add(p)
	}
}

func (p *port) send(frame []byte) {
	select {
	case p.out <- frame:
	default:
	}
}

func (p *port) read() {
	defer p.wg.Done()
	r := bufio.NewReaderSize(p.conn, 256<<10)
	var h [4]byte
	for {
		if _, err := io.ReadFull(r, h[:]); err != nil {
			return
		}
		n := binary.BigEndian.Uint32(h[:])
		if n > maxFrame {
			return // not QEMU's framing any more
		}
		b := make([]byte, n)
		if _, err := io.ReadFull(r, b); err != nil {
			return
		}
		p.mu.Lock()
		s := p.seg
		p.mu.Unlock()
		if s != nil {
			s.forward(p, b)
		}
	}
}

func (p *port) write() {
	defer p.wg.Done()
	w := bufio.NewWriterSize(p.conn, 256<<10)
	var h [4]byte
	for {
		select {
		case <-p.end:
			return
		case b := <-p.out:
			binary.BigEndian.PutUint32(h[:], uint32(len(b)))
			_, _ = w.Write(h[:])
			_, err := w.Write(b)
			if err == nil && len(p.out) == 0 {
				err = w.Flush()
			}
			if err != nil {
				return
			}
		}
	}
}

func (p *port) close() {
	p.once.Do(func() {
		p.connect(nil)
		close(p.end)
		_ = p.conn.Close()
		p.wg.Wait()
	})
}
