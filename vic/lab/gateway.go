package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"

	"github.com/containers/gvisor-tap-vsock/pkg/services/dhcp"
	"github.com/containers/gvisor-tap-vsock/pkg/services/dns"
	"github.com/containers/gvisor-tap-vsock/pkg/services/forwarder"
	"github.com/containers/gvisor-tap-vsock/pkg/tap"
	gvtypes "github.com/containers/gvisor-tap-vsock/pkg/types"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

const mtu = 1500

// A network is a port group: its segment and the gateway on it, a user-space
// network stack.
type network struct {
	Network
	subnet  netip.Prefix
	segment *segment
	stack   *stack.Stack
	pool    *tap.IPPool
	closers []io.Closer
	ctx     context.Context
	end     context.CancelFunc

	mu     sync.Mutex
	closed bool
	wg     sync.WaitGroup
}

// toSegment carries the gateway's frames to its segment.
type toSegment struct{ s *segment }

func (t toSegment) DeliverNetworkPacket(_ tcpip.NetworkProtocolNumber, pkt *stack.PacketBuffer) {
	t.s.forward(nil, append([]byte(nil), pkt.ToView().AsSlice()...))
}

// addresses of a subnet that the gateway uses.
func gatewayOf(p netip.Prefix) netip.Addr { return p.Addr().Next() }

func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().As4()
	n := binary.BigEndian.Uint32(b[:]) | (1<<(32-p.Bits()) - 1)
	binary.BigEndian.PutUint32(b[:], n)
	return netip.AddrFrom4(b)
}

// hostOf is the address behind which guests find this machine's loopback.
func hostOf(p netip.Prefix) netip.Addr { return lastOf(p).Prev() }

func newNetwork(n Network) (*network, error) {
	w := &network{Network: n, subnet: n.Subnet, segment: newSegment()}
	w.ctx, w.end = context.WithCancel(context.Background())
	gw, host := gatewayOf(n.Subnet), hostOf(n.Subnet)
	b := n.Subnet.Addr().As4()
	w.segment.gateway = mac{0x5a, 0x94, b[0], b[1], b[2], b[3] | 1}
	hw := net.HardwareAddr(w.segment.gateway[:]).String()

	ep, err := tap.NewLinkEndpoint(false, mtu, hw, gw.String(), []string{host.String()})
	if err != nil {
		return nil, err
	}
	ep.Connect(toSegment{w.segment})
	w.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4},
	})
	if err := w.configure(ep, gw); err != nil {
		w.stack.Destroy()
		return nil, err
	}
	w.pool = tap.NewIPPool(&net.IPNet{IP: n.Subnet.Addr().AsSlice(), Mask: net.CIDRMask(n.Subnet.Bits(), 32)})
	w.reserve(gw, host, hw)
	if err := w.services(gw, host); err != nil {
		w.close()
		return nil, err
	}
	w.segment.mu.Lock()
	w.segment.up = func(frame []byte) {
		data := buffer.MakeWithData(frame)
		data.TrimFront(14)
		pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: data})
		ep.DeliverNetworkPacket(tcpip.NetworkProtocolNumber(binary.BigEndian.Uint16(frame[12:])), pkt)
		pkt.DecRef()
	}
	w.segment.mu.Unlock()
	return w, nil
}

func (w *network) configure(ep stack.LinkEndpoint, gw netip.Addr) error {
	if err := w.stack.CreateNIC(1, ep); err != nil {
		return errors.New(err.String())
	}
	if err := w.stack.AddProtocolAddress(1, tcpip.ProtocolAddress{
		Protocol:          ipv4.ProtocolNumber,
		AddressWithPrefix: tcpip.AddrFrom4(gw.As4()).WithPrefix(),
	}, stack.AddressProperties{}); err != nil {
		return errors.New(err.String())
	}
	// The gateway answers for every address that is not of the subnet.
	w.stack.SetSpoofing(1, true)
	w.stack.SetPromiscuousMode(1, true)
	sub, err := tcpip.NewSubnet(tcpip.AddrFrom4(w.subnet.Addr().As4()), tcpip.MaskFromBytes(net.CIDRMask(w.subnet.Bits(), 32)))
	if err != nil {
		return err
	}
	w.stack.SetRouteTable([]tcpip.Route{{Destination: sub, NIC: 1}})
	return nil
}

// reserve keeps the gateway's own addresses and the lower half of the subnet
// out of DHCP.
func (w *network) reserve(gw, host netip.Addr, hw string) {
	w.pool.Reserve(gw.AsSlice(), hw)
	w.pool.Reserve(host.AsSlice(), "host")
	w.pool.Reserve(lastOf(w.subnet).AsSlice(), "broadcast")
	half := 1 << (32 - w.subnet.Bits() - 1)
	a := gw.Next()
	for i := 2; i < half; i++ {
		w.pool.Reserve(a.AsSlice(), "fixed")
		a = a.Next()
	}
}

func (w *network) services(gw, host netip.Addr) error {
	cfg := &gvtypes.Configuration{MTU: mtu, Subnet: w.subnet.String(), GatewayIP: gw.String()}
	d, err := dhcp.New(cfg, w.stack, w.pool)
	if err != nil {
		return fmt.Errorf("DHCP: %w", err)
	}
	w.run(d.Underlying, func() { _ = d.Serve() })
	if w.Isolated {
		// Nothing is beyond: what is sent there is answered with a reset.
		return nil
	}
	addr := tcpip.FullAddress{NIC: 1, Addr: tcpip.AddrFrom4(gw.As4()), Port: 53}
	uc, err := gonet.DialUDP(w.stack, &addr, nil, ipv4.ProtocolNumber)
	if err != nil {
		return fmt.Errorf("DNS: %w", err)
	}
	tl, err := gonet.ListenTCP(w.stack, addr, ipv4.ProtocolNumber)
	if err != nil {
		return fmt.Errorf("DNS: %w", errors.Join(err, uc.Close()))
	}
	s, err := dns.New(uc, tl, nil)
	if err != nil {
		return fmt.Errorf("DNS: %w", err)
	}
	w.run(uc, func() { _ = s.Serve() })
	w.run(tl, func() { _ = s.ServeTCP() })

	tf := tcp.NewForwarder(w.stack, 0, 64, func(r *tcp.ForwarderRequest) { w.forwardTCP(r, host) })
	w.stack.SetTransportProtocolHandler(tcp.ProtocolNumber, tf.HandlePacket)
	var natLock sync.Mutex
	nat := map[tcpip.Address]tcpip.Address{tcpip.AddrFrom4(host.As4()): tcpip.AddrFrom4([4]byte{127, 0, 0, 1})}
	uf := forwarder.UDP(w.stack, nat, &natLock, false)
	w.stack.SetTransportProtocolHandler(udp.ProtocolNumber, uf.HandlePacket)
	return nil
}

func (w *network) run(c io.Closer, f func()) {
	w.closers = append(w.closers, c)
	w.wg.Add(1)
	go func() {
		defer w.wg.Done()
		f()
	}()
}

// forwardTCP connects a guest to what it dials beyond its network.
func (w *network) forwardTCP(r *tcp.ForwarderRequest, host netip.Addr) {
	dst := netip.AddrFrom4(r.ID().LocalAddress.As4())
	switch {
	case dst == host:
		dst = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	case w.subnet.Contains(dst) || dst.IsLoopback() || dst.IsMulticast() || dst.IsLinkLocalUnicast() || dst.IsUnspecified():
		r.Complete(true)
		return
	}
	w.mu.Lock()
	if w.closed {
		w.mu.Unlock()
		r.Complete(true)
		return
	}
	w.wg.Add(1)
	w.mu.Unlock()
	go func() {
		defer w.wg.Done()
		var d net.Dialer
		out, err := d.DialContext(w.ctx, "tcp", netip.AddrPortFrom(dst, r.ID().LocalPort).String())
		if err != nil {
			r.Complete(true)
			return
		}
		var wq waiter.Queue
		ep, terr := r.CreateEndpoint(&wq)
		r.Complete(false)
		if terr != nil {
			_ = out.Close()
			return
		}
		in := gonet.NewTCPConn(&wq, ep)
		stop := context.AfterFunc(w.ctx, func() { _, _ = in.Close(), out.Close() })
		defer stop()
		pipe(in, out)
	}()
}

// A halfCloser can end its own direction.
type halfCloser interface {
	net.Conn
	CloseWrite() error
}

// pipe copies both ways, passing on the end of each direction, and closes both.
func pipe(a, b net.Conn) {
	var wg sync.WaitGroup
	one := func(dst, src net.Conn) {
		defer wg.Done()
		_, err := io.Copy(dst, src)
		if h, ok := dst.(halfCloser); ok && err == nil {
			_ = h.CloseWrite()
			return
		}
		_, _ = a.Close(), b.Close()
	}
	wg.Add(2)
	go one(a, b)
	go one(b, a)
	wg.Wait()
	_, _ = a.Close(), b.Close()
}

// dial connects from the gateway to a guest.
func (w *network) dial(ctx context.Context, a netip.AddrPort) (net.Conn, error) {
	return gonet.DialContextTCP(ctx, w.stack, tcpip.FullAddress{NIC: 1, Addr: tcpip.AddrFrom4(a.Addr().As4()), Port: a.Port()}, ipv4.ProtocolNumber)
}

// release frees the lease of a NIC that is gone.
func (w *network) release(mac string) { w.pool.Release(mac) }

func (w *network) close() {
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	w.end()
	for _, c := range w.closers {
		_ = c.Close()
	}
	w.stack.Destroy()
	w.wg.Wait()
}
