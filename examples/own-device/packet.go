package main

import (
	"encoding/binary"
	"net/netip"
)

// A device carries whole IP packets, so whoever sits behind it makes and reads
// headers. A real program would have a network stack here (gVisor's, for
// example), or carry packets that it got from somewhere else.
const (
	ipv4Header = 20 // RFC 791 section 3.1, without options
	udpHeader  = 8  // RFC 768
	protoUDP   = 17
)

// udpPacket makes an IPv4 packet with a UDP datagram in it.
func udpPacket(from, to netip.AddrPort, text string) []byte {
	p := make([]byte, ipv4Header+udpHeader, ipv4Header+udpHeader+len(text))
	p = append(p, text...)

	src, dst := from.Addr().As4(), to.Addr().As4()
	p[0] = 4<<4 | ipv4Header/4 // version, header length in words
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	p[8] = 64 // time to live
	p[9] = protoUDP
	copy(p[12:], src[:])
	copy(p[16:], dst[:])
	binary.BigEndian.PutUint16(p[10:], checksum(p[:ipv4Header]))

	u := p[ipv4Header:]
	binary.BigEndian.PutUint16(u[0:], from.Port())
	binary.BigEndian.PutUint16(u[2:], to.Port())
	binary.BigEndian.PutUint16(u[4:], uint16(len(u)))
	// The checksum in u[6:8] stays 0, which means "none" in UDP over IPv4.
	return p
}

// parseUDP reads what udpPacket makes; ok is false for any other packet.
func parseUDP(p []byte) (from, to netip.AddrPort, text string, ok bool) {
	if len(p) < ipv4Header+udpHeader || p[0] != 4<<4|ipv4Header/4 || p[9] != protoUDP {
		return from, to, "", false
	}
	u := p[ipv4Header:]
	from = netip.AddrPortFrom(netip.AddrFrom4([4]byte(p[12:16])), binary.BigEndian.Uint16(u[0:]))
	to = netip.AddrPortFrom(netip.AddrFrom4([4]byte(p[16:20])), binary.BigEndian.Uint16(u[2:]))
	return from, to, string(u[udpHeader:]), true
}

// checksum is the Internet checksum (RFC 1071) of a header.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
