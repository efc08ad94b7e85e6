package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// netfilter probes what container engines and their firewalls put into the
// kernel.
func netfilter() []probe {
	list := []probe{
		{"conntrack", exists("/proc/sys/net/netfilter/nf_conntrack_max")},
		{"conntrack-netlink", func() error {
			return netfilterRequest(message{kind: unix.NFNL_SUBSYS_CTNETLINK<<8 | 1, flags: unix.NLM_F_DUMP, family: unix.AF_INET})
		}},
		{"ipset", func() error {
			// IPSET_CMD_PROTOCOL, with the protocol that the sender knows.
			return netfilterRequest(message{kind: unix.NFNL_SUBSYS_IPSET<<8 | 1, family: unix.AF_INET, attrs: attr(1, []byte{7})})
		}},
		{"ipvs", exists("/proc/net/ip_vs")},
	}
	for _, f := range []struct {
		name   string
		family byte
		chains []chain
	}{
		{"ip", unix.NFPROTO_IPV4, natAndFilter(unix.NFPROTO_IPV4)},
		{"ip6", unix.NFPROTO_IPV6, natAndFilter(unix.NFPROTO_IPV6)},
		{"inet", unix.NFPROTO_INET, natAndFilter(unix.NFPROTO_INET)},
		{"bridge", unix.NFPROTO_BRIDGE, []chain{
			{"filter", unix.NF_INET_FORWARD, 0, [][]byte{ctState(), expr("log"), expr("counter")}},
			{"filter", unix.NF_INET_PRE_ROUTING, 0, [][]byte{expr("reject", be32(1, 0), attr(2, []byte{1}))}},
		}},
		{"arp", unix.NFPROTO_ARP, []chain{{"filter", 0, 0, [][]byte{expr("counter")}}}},
	} {
		list = append(list, probe{"nft-" + f.name, func() error { return table(f.family, f.chains) }})
	}
	list = append(list, probe{"nft-sets", sets}, probe{"nft-objects", objects}, probe{"nft-flowtable", flowtable})
	for _, x := range extensions {
		list = append(list, probe{"iptables-nft-" + x.name, func() error { return compat(x) }})
	}
	for _, t := range []string{"filter", "nat", "mangle", "raw"} {
		list = append(list, probe{"iptables-legacy-" + t, func() error { return legacy(unix.AF_INET, unix.IPPROTO_IP, t) }},
			probe{"ip6tables-legacy-" + t, func() error { return legacy(unix.AF_INET6, unix.IPPROTO_IPV6, t) }})
	}
	return list
}

// A chain of a table, with one rule.
type chain struct {
	kind     string
	hook     uint32
	priority int32
	rule     [][]byte
}

// natAndFilter are chains as Docker, BuildKit and the CNI plugins make them.
// Attributes are numbered as in include/uapi/linux/netfilter/nf_tables.h.
func natAndFilter(family byte) []chain {
	icmp := uint32(0) // NFT_REJECT_ICMP_UNREACH
	if family == unix.NFPROTO_INET {
		icmp = 2 // NFT_REJECT_ICMPX_UNREACH
	}
	addr, fam := make([]byte, 4), uint32(unix.NFPROTO_IPV4)
	if family == unix.NFPROTO_IPV6 {
		addr, fam = make([]byte, 16), unix.NFPROTO_IPV6
	}
	return []chain{
		{"nat", unix.NF_INET_POST_ROUTING, 100, [][]byte{expr("masq")}},
		{"nat", unix.NF_INET_PRE_ROUTING, -100, [][]byte{expr("redir")}},
		{"nat", unix.NF_INET_LOCAL_OUT, -100, [][]byte{
			expr("immediate", be32(1, 1), attr(2|unix.NLA_F_NESTED, attr(1, addr))),
			expr("nat", be32(1, 1), be32(2, fam), be32(3, 1))}}, // dnat
		{"filter", unix.NF_INET_FORWARD, 0, [][]byte{
			ctState(), expr("limit", be64(1, 10), be64(2, 1)), expr("quota", be64(1, 1<<20)), expr("connlimit", be32(1, 10)),
			expr("numgen", be32(1, 1), be32(2, 2), be32(3, 0)), expr("log", attr(2, []byte("probe\x00"))), expr("counter"),
			expr("reject", be32(1, icmp), attr(2, []byte{0}))}},
		{"filter", unix.NF_INET_PRE_ROUTING, -150, [][]byte{
			expr("fib", be32(1, 1), be32(2, 3), be32(3, 2)), // daddr, type
			expr("meta", be32(1, 1), be32(2, unix.NFT_META_MARK)), expr("socket", be32(1, 0), be32(2, 1))}},
	}
}

func ctState() []byte { return expr("ct", be32(1, 1), be32(2, unix.NFT_CT_STATE)) }

// expr is an element of a rule's list of expressions.
func expr(name string, attrs ...[]byte) []byte {
	return nest(1, str(1, name), nest(2, attrs...))
}

func table(family byte, chains []chain) error {
	b := newBatch(family)
	b.add(unix.NFT_MSG_NEWTABLE, str(1, "probe"))
	for i, c := range chains {
		name := fmt.Sprintf("chain%d", i)
		b.add(unix.NFT_MSG_NEWCHAIN, str(1, "probe"), str(3, name), nest(4, be32(1, c.hook), be32(2, uint32(c.priority))), str(7, c.kind))
		b.add(unix.NFT_MSG_NEWRULE, str(1, "probe"), str(2, name), nest(4, c.rule...))
	}
	return b.send()
}

// sets makes one set for each way that the kernel stores them.
func sets() error {
	b := newBatch(unix.NFPROTO_INET)
	b.add(unix.NFT_MSG_NEWTABLE, str(1, "sets"))
	set := func(name string, flags, key uint32, attrs ...[]byte) {
		b.add(unix.NFT_MSG_NEWSET, append([][]byte{str(1, "sets"), str(2, name), be32(3, flags), be32(4, 7), be32(5, key), be32(10, uint32(b.seq))}, attrs...)...)
	}
	set("hash", 0, 4)
	set("bitmap", 0, 2)
	set("tree", unix.NFT_SET_INTERVAL, 4)
	set("concatenation", unix.NFT_SET_INTERVAL|0x80, 8, nest(9, nest(2, nest(1, be32(1, 4)), nest(1, be32(1, 4)))))
	set("timeout", unix.NFT_SET_TIMEOUT|unix.NFT_SET_EVAL, 4, be64(11, 60000))
	set("map", unix.NFT_SET_MAP, 4, be32(6, 7), be32(7, 4))
	return b.send()
}

func objects() error {
	b := newBatch(unix.NFPROTO_INET)
	b.add(unix.NFT_MSG_NEWTABLE, str(1, "objects"))
	b.add(unix.NFT_MSG_NEWOBJ, str(1, "objects"), str(2, "hits"), be32(3, 1), nest(4))
	b.add(unix.NFT_MSG_NEWOBJ, str(1, "objects"), str(2, "budget"), be32(3, 2), nest(4, be64(1, 1<<20)))
	b.add(unix.NFT_MSG_NEWCHAIN, str(1, "objects"), str(3, "c"))
	b.add(unix.NFT_MSG_NEWRULE, str(1, "objects"), str(2, "c"), nest(4,
		expr("objref", be32(1, 1), str(2, "hits")), expr("objref", be32(1, 2), str(2, "budget"))))
	return b.send()
}

func flowtable() error {
	b := newBatch(unix.NFPROTO_INET)
	b.add(unix.NFT_MSG_NEWTABLE, str(1, "flows"))
	b.add(22, str(1, "flows"), str(2, "f"), nest(3, be32(1, 0), be32(2, 0), nest(3, str(1, "lo")))) // NEWFLOWTABLE
	b.add(unix.NFT_MSG_NEWCHAIN, str(1, "flows"), str(3, "c"), nest(4, be32(1, unix.NF_INET_FORWARD), be32(2, 0)), str(7, "filter"))
	b.add(unix.NFT_MSG_NEWRULE, str(1, "flows"), str(2, "c"), nest(4, expr("flow_offload", str(1, "f"))))
	return b.send()
}

// An extension of x_tables that iptables-nft asks for by name and revision.
type extension struct {
	name   string
	target bool
	rev    uint32
}

var extensions = []extension{
	{"addrtype", false, 1}, {"bpf", false, 1}, {"cgroup", false, 2}, {"comment", false, 0}, {"connmark", false, 1},
	{"conntrack", false, 3}, {"hashlimit", false, 3}, {"icmp", false, 0}, {"iprange", false, 1}, {"ipvs", false, 0}, {"limit", false, 0},
	{"mac", false, 0}, {"mark", false, 1}, {"multiport", false, 1}, {"owner", false, 1}, {"physdev", false, 0}, {"pkttype", false, 0},
	{"policy", false, 0}, {"recent", false, 1}, {"rpfilter", false, 0}, {"set", false, 4}, {"socket", false, 3},
	{"state", false, 0}, {"statistic", false, 0}, {"string", false, 1}, {"tcp", false, 0}, {"tcpmss", false, 0}, {"u32", false, 0}, {"udp", false, 0},
	{"CHECKSUM", true, 0}, {"CLASSIFY", true, 0}, {"CONNMARK", true, 2}, {"CT", true, 2}, {"DNAT", true, 2}, {"LOG", true, 0}, {"MARK", true, 2},
	{"MASQUERADE", true, 0}, {"NETMAP", true, 0}, {"NFLOG", true, 0}, {"NFQUEUE", true, 3}, {"REDIRECT", true, 0}, {"REJECT", true, 0},
	{"SET", true, 3}, {"SNAT", true, 1}, {"TCPMSS", true, 0}, {"TEE", true, 1}, {"TPROXY", true, 1},
}

// compat asks as iptables-nft does (nf_tables_compat.h, NFNL_MSG_COMPAT_GET).
func compat(x extension) error {
	kind := uint32(0)
	if x.target {
		kind = 1
	}
	return netfilterRequest(message{kind: unix.NFNL_SUBSYS_NFT_COMPAT << 8, family: unix.AF_INET,
		attrs: append(append(str(1, x.name), be32(2, x.rev)...), be32(3, kind)...)})
}

// legacy asks for a table as iptables-legacy does (IPT_SO_GET_INFO).
func legacy(domain, level int, name string) error {
	fd, err := unix.Socket(domain, unix.SOCK_RAW, unix.IPPROTO_RAW)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	info := make([]byte, 84)
	copy(info, name)
	n := uint32(len(info))
	_, err = call("getsockopt", unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), 64, uintptr(unsafe.Pointer(&info[0])), uintptr(unsafe.Pointer(&n)))
	return err
}

// A message to nfnetlink (include/uapi/linux/netfilter/nfnetlink.h).
type message struct {
	kind, flags uint16
	family      byte
	resource    uint16
	attrs       []byte
}

func (m message) encode(seq uint32) []byte {
	b := make([]byte, unix.NLMSG_HDRLEN+4, unix.NLMSG_HDRLEN+4+len(m.attrs))
	binary.NativeEndian.PutUint32(b, uint32(cap(b)))
	binary.NativeEndian.PutUint16(b[4:], m.kind)
	binary.NativeEndian.PutUint16(b[6:], m.flags|unix.NLM_F_REQUEST)
	binary.NativeEndian.PutUint32(b[8:], seq)
	b[16] = m.family
	binary.BigEndian.PutUint16(b[18:], m.resource)
	return append(b, m.attrs...)
}

func attr(kind uint16, data []byte) []byte {
	b := make([]byte, 4, 4+len(data)+3)
	binary.NativeEndian.PutUint16(b, uint16(4+len(data)))
	binary.NativeEndian.PutUint16(b[2:], kind)
	b = append(b, data...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

func nest(kind uint16, attrs ...[]byte) []byte {
	var all []byte
	for _, a := range attrs {
		all = append(all, a...)
	}
	return attr(kind|unix.NLA_F_NESTED, all)
}

func str(kind uint16, s string) []byte { return attr(kind, append([]byte(s), 0)) }

func be32(kind uint16, v uint32) []byte { return attr(kind, binary.BigEndian.AppendUint32(nil, v)) }

func be64(kind uint16, v uint64) []byte { return attr(kind, binary.BigEndian.AppendUint64(nil, v)) }

// A batch is a transaction of nftables.
type batch struct {
	family byte
	data   []byte
	seq    uint32
	names  map[uint32]string
}

func newBatch(family byte) *batch {
	b := &batch{family: family, seq: 1, names: map[uint32]string{}}
	b.data = message{kind: unix.NFNL_MSG_BATCH_BEGIN, resource: unix.NFNL_SUBSYS_NFTABLES}.encode(b.seq)
	return b
}

func (b *batch) add(kind uint16, attrs ...[]byte) {
	b.seq++
	m := message{kind: unix.NFNL_SUBSYS_NFTABLES<<8 | kind, flags: unix.NLM_F_ACK | unix.NLM_F_CREATE, family: b.family}
	for _, a := range attrs {
		m.attrs = append(m.attrs, a...)
	}
	b.names[b.seq] = fmt.Sprintf("message %d (%d %q)", b.seq-1, kind, strings.Trim(string(attrs[1%len(attrs)]), "\x00"))
	b.data = append(b.data, m.encode(b.seq)...)
}

func (b *batch) send() error {
	b.seq++
	b.data = append(b.data, message{kind: unix.NFNL_MSG_BATCH_END, resource: unix.NFNL_SUBSYS_NFTABLES}.encode(b.seq)...)
	return exchange(b.data, len(b.names), b.names)
}

// netfilterRequest sends one message and waits for the answer.
func netfilterRequest(m message) error {
	m.flags |= unix.NLM_F_ACK
	return exchange(m.encode(1), 1, map[uint32]string{1: "request"})
}

// exchange sends messages and reads as many acknowledgements, unless one is
// an error or a dump is done.
func exchange(data []byte, acks int, names map[uint32]string) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	limit := unix.NsecToTimeval(int64(2 * time.Second))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
		return err
	}
	if err := unix.Sendto(fd, data, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	buf := make([]byte, 64<<10)
	var failed error
	for acks > 0 && failed == nil {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if err != nil {
			return fmt.Errorf("%d answers are missing: %w", acks, err)
		}
		for b := buf[:n]; len(b) >= unix.NLMSG_HDRLEN; {
			size := binary.NativeEndian.Uint32(b)
			switch binary.NativeEndian.Uint16(b[4:]) {
			case unix.NLMSG_DONE:
				return nil
			case unix.NLMSG_ERROR:
				acks--
				if errno := -int32(binary.NativeEndian.Uint32(b[unix.NLMSG_HDRLEN:])); errno != 0 {
					failed = errors.Join(failed, fmt.Errorf("%s: %w", names[binary.NativeEndian.Uint32(b[8:])], unix.Errno(errno)))
				}
			}
			b = b[min(int(size+3)&^3, len(b)):]
		}
	}
	return failed
}
