//go:build linux && amd64

package main

import (
	"encoding/binary"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// announce tells the segment that a link has an IPv4 address, as RFC 5227
// section 2.3 says and, for neighbours that only heed answers, as an answer
// nobody asked for. Without it those who knew the address's last owner, such
// as the gateway that leased it, go on sending to that one's MAC for a while.
func announce(link netlink.Link, addr netip.Addr) error {
	if !addr.Is4() {
		return nil // IPv6 neighbours are told by the kernel
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	to := &unix.SockaddrLinklayer{
		Protocol: binary.NativeEndian.Uint16([]byte{unix.ETH_P_ARP >> 8, unix.ETH_P_ARP & 0xff}),
		Ifindex:  link.Attrs().Index, Halen: 6,
	}
	copy(to.Addr[:], []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	for _, operation := range []byte{1, 2} { // request, answer
		if err := unix.Sendto(fd, arpFrame(operation, link.Attrs().HardwareAddr, addr), 0, to); err != nil {
			return err
		}
	}
	return nil
}

// arpFrame is an ARP packet (RFC 826) in which the sender asks for, or tells,
// its own address.
func arpFrame(operation byte, mac net.HardwareAddr, addr netip.Addr) []byte {
	b := []byte{0, 1, 8, 0, 6, 4, 0, operation}
	b = append(b, mac...)
	b = append(b, addr.AsSlice()...)
	if operation == 1 {
		b = append(b, 0, 0, 0, 0, 0, 0)
	} else {
		b = append(b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)
	}
	return append(b, addr.AsSlice()...)
}
