package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// sockets probes protocols. The first one gives the loopback interface its
// address, which others use.
func sockets() []probe {
	socket := func(domain, kind, proto int) func() error {
		return func() error {
			fd, err := unix.Socket(domain, kind, proto)
			if err == nil {
				err = unix.Close(fd)
			}
			return err
		}
	}
	alg := func(kind, name string) func() error {
		return func() error {
			fd, err := unix.Socket(unix.AF_ALG, unix.SOCK_SEQPACKET, 0)
			if err != nil {
				return err
			}
			return unix.Bind(fd, &unix.SockaddrALG{Type: kind, Name: name})
		}
	}
	return []probe{
		{"loopback", func() error {
			lo, err := netlink.LinkByName("lo")
			if err != nil {
				return err
			}
			return netlink.LinkSetUp(lo)
		}},
		{"ipv6", func() error {
			l, err := net.Listen("tcp6", "[::1]:0")
			if err != nil {
				return err
			}
			return l.Close()
		}},
		{"af_packet", socket(unix.AF_PACKET, unix.SOCK_RAW, 0)},
		{"af_xdp", socket(unix.AF_XDP, unix.SOCK_RAW, 0)},
		{"af_vsock", socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0)},
		{"ping-socket", func() error {
			if err := write("/proc/sys/net/ipv4/ping_group_range", "0 100"); err != nil {
				return err
			}
			return socket(unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP)()
		}},
		{"sctp", socket(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_SCTP)},
		{"mptcp", socket(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP)},
		{"af_alg-hash", alg("hash", "hmac(sha256)")},
		{"af_alg-xts", alg("skcipher", "xts(aes)")},
		{"af_alg-essiv", alg("skcipher", "essiv(cbc(aes),sha256)")},
		{"af_alg-gcm", alg("aead", "gcm(aes)")},
		{"af_alg-chacha20poly1305", alg("aead", "rfc7539(chacha20,poly1305)")},
		{"af_alg-rng", alg("rng", "stdrng")},
		{"tls-ulp", tlsULP},
		{"congestion-control", func() error {
			return holds("/proc/sys/net/ipv4/tcp_available_congestion_control", "cubic", "bbr", "reno")
		}},
		{"congestion-default", func() error { return holds("/proc/sys/net/ipv4/tcp_congestion_control", "cubic") }},
		{"syncookies", func() error { return holds("/proc/sys/net/ipv4/tcp_syncookies", "1") }},
		{"inet-diag", func() error { _, err := netlink.SocketDiagTCP(unix.AF_INET); return err }},
		{"udp-diag", func() error { _, err := netlink.SocketDiagUDP(unix.AF_INET); return err }},
		{"unix-diag", func() error { _, err := netlink.UnixSocketDiag(); return err }},
		{"xfrm", xfrm},
		{"policy-routing", func() error {
			r := netlink.NewRule()
			r.Table, r.Priority, r.Mark = 100, 1000, 1
			return netlink.RuleAdd(r)
		}},
		{"multicast", func() error {
			eth0, err := net.InterfaceByName("eth0")
			if err != nil {
				return err
			}
			c, err := net.ListenMulticastUDP("udp4", eth0, &net.UDPAddr{IP: net.IPv4(224, 0, 0, 251), Port: 5353})
			if err != nil {
				return err
			}
			return c.Close()
		}},
	}
}

// tlsULP hands a connection to the kernel's TLS (tls(7) of the kernel:
// Documentation/networking/tls.rst).
func tlsULP() error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return err
	}
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) { set = unix.SetsockoptString(int(fd), unix.SOL_TCP, unix.TCP_ULP, "tls") })
	return errors.Join(err, set)
}

// xfrm makes the state that an encrypted overlay network has.
func xfrm() error {
	return netlink.XfrmStateAdd(&netlink.XfrmState{
		Src: net.IPv4(192, 0, 2, 1), Dst: net.IPv4(192, 0, 2, 2), Proto: netlink.XFRM_PROTO_ESP, Mode: netlink.XFRM_MODE_TRANSPORT, Spi: 0x1000,
		Aead: &netlink.XfrmStateAlgo{Name: "rfc4106(gcm(aes))", Key: make([]byte, 20), ICVLen: 64},
	})
}

// links probes kinds of interfaces and what is attached to them.
func links() []probe {
	at := func(name string) netlink.LinkAttrs {
		a := netlink.NewLinkAttrs()
		a.Name = name
		return a
	}
	below := func(name string) (netlink.LinkAttrs, error) {
		d, err := netlink.LinkByName("dummy1")
		a := at(name)
		if err == nil {
			a.ParentIndex = d.Attrs().Index
		}
		return a, err
	}
	add := func(l netlink.Link) func() error { return func() error { return netlink.LinkAdd(l) } }
	on := func(make func(netlink.LinkAttrs) netlink.Link, name string) func() error {
		return func() error {
			a, err := below(name)
			if err != nil {
				return err
			}
			return netlink.LinkAdd(make(a))
		}
	}
	qdisc := func(make func(netlink.QdiscAttrs) netlink.Qdisc, parent uint32, major uint16) func() error {
		return func() error {
			d, err := netlink.LinkByName("dummy1")
			if err != nil {
				return err
			}
			q := make(netlink.QdiscAttrs{LinkIndex: d.Attrs().Index, Handle: netlink.MakeHandle(major, 0), Parent: parent})
			return netlink.QdiscReplace(q)
		}
	}
	return []probe{
		{"no-stray-links", func() error {
			all, err := netlink.LinkList()
			for _, l := range all {
				if n := l.Attrs().Name; n != "lo" && n != "eth0" {
					err = errors.Join(err, fmt.Errorf("there is %s", n))
				}
			}
			return err
		}},
		{"link-dummy", add(&netlink.Dummy{LinkAttrs: at("dummy1")})},
		{"link-bridge", add(&netlink.Bridge{LinkAttrs: at("br0"), VlanFiltering: ptr(true)})},
		{"bridge-netfilter", exists("/proc/sys/net/bridge/bridge-nf-call-iptables", "/proc/sys/net/bridge/bridge-nf-call-ip6tables")},
		{"link-veth", add(&netlink.Veth{LinkAttrs: at("veth0"), PeerName: "veth1"})},
		{"link-macvlan", on(func(a netlink.LinkAttrs) netlink.Link {
			return &netlink.Macvlan{LinkAttrs: a, Mode: netlink.MACVLAN_MODE_BRIDGE}
		}, "mac0")},
		{"link-macvtap", on(func(a netlink.LinkAttrs) netlink.Link {
			return &netlink.Macvtap{Macvlan: netlink.Macvlan{LinkAttrs: a, Mode: netlink.MACVLAN_MODE_BRIDGE}}
		}, "mtap0")},
		{"link-vlan", on(func(a netlink.LinkAttrs) netlink.Link { return &netlink.Vlan{LinkAttrs: a, VlanId: 7} }, "vlan7")},
		{"link-ipvlan", func() error {
			// Not beside a macvlan: both want the interface's receive handler.
			if err := netlink.LinkAdd(&netlink.Dummy{LinkAttrs: at("dummy2")}); err != nil {
				return err
			}
			d, err := netlink.LinkByName("dummy2")
			if err != nil {
				return err
			}
			a := at("ipv0")
			a.ParentIndex = d.Attrs().Index
			return netlink.LinkAdd(&netlink.IPVlan{LinkAttrs: a, Mode: netlink.IPVLAN_MODE_L3S})
		}},
		{"link-vxlan", add(&netlink.Vxlan{LinkAttrs: at("vx0"), VxlanId: 42, Port: 4789})},
		{"link-geneve", add(&netlink.Geneve{LinkAttrs: at("gen0"), ID: 42, Remote: net.IPv4(192, 0, 2, 1)})},
		{"link-vrf", add(&netlink.Vrf{LinkAttrs: at("vrf0"), Table: 7})},
		{"link-ifb", add(&netlink.Ifb{LinkAttrs: at("ifb0")})},
		{"link-wireguard", add(&netlink.Wireguard{LinkAttrs: at("wg0")})},
		{"tun", tun(unix.IFF_TUN)},
		{"tap", tun(unix.IFF_TAP)},
		{"tc-htb", qdisc(func(a netlink.QdiscAttrs) netlink.Qdisc { return netlink.NewHtb(a) }, netlink.HANDLE_ROOT, 1)},
		{"tc-tbf", qdisc(func(a netlink.QdiscAttrs) netlink.Qdisc {
			return &netlink.Tbf{QdiscAttrs: a, Rate: 1 << 20, Buffer: 1 << 16, Limit: 1 << 16}
		}, netlink.HANDLE_ROOT, 2)},
		{"tc-fq_codel", qdisc(func(a netlink.QdiscAttrs) netlink.Qdisc { return netlink.NewFqCodel(a) }, netlink.HANDLE_ROOT, 3)},
		{"tc-fq", qdisc(func(a netlink.QdiscAttrs) netlink.Qdisc { return netlink.NewFq(a) }, netlink.HANDLE_ROOT, 4)},
		{"tc-ingress", qdisc(func(a netlink.QdiscAttrs) netlink.Qdisc { return &netlink.Ingress{QdiscAttrs: a} }, netlink.HANDLE_INGRESS, 0xffff)},
		{"tc-filter", func() error {
			d, err := netlink.LinkByName("dummy1")
			if err != nil {
				return err
			}
			lo, err := netlink.LinkByName("lo")
			if err != nil {
				return err
			}
			return netlink.FilterAdd(&netlink.MatchAll{
				FilterAttrs: netlink.FilterAttrs{LinkIndex: d.Attrs().Index, Parent: netlink.MakeHandle(0xffff, 0), Priority: 1, Protocol: unix.ETH_P_ALL},
				Actions:     []netlink.Action{netlink.NewMirredAction(lo.Attrs().Index)},
			})
		}},
	}
}

func ptr[T any](v T) *T { return &v }

func tun(kind uint16) func() error {
	return func() error {
		f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
		if err != nil {
			return err
		}
		var req struct {
			name  [unix.IFNAMSIZ]byte
			flags uint16
			_     [22]byte
		}
		req.flags = kind | unix.IFF_NO_PI
		_, err = call("TUNSETIFF", unix.SYS_IOCTL, f.Fd(), unix.TUNSETIFF, uintptr(unsafe.Pointer(&req)))
		return err
	}
}
