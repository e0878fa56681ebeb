package tunneltest

import (
	"bytes"
	"encoding/binary"
)

// mark stands at the start of the payload of every packet of the suite.
const mark = "overlayd"

// The lengths of the headers that packet makes, and the shortest packets.
const (
	ip4Len  = 20 // RFC 791, section 3.1
	ip6Len  = 40 // RFC 8200, section 3
	udpLen  = 8  // RFC 768
	payload = len(mark) + 4
	min4    = ip4Len + udpLen + payload
	min6    = ip6Len + udpLen + payload
)

// The addresses are for documentation and benchmarks (RFC 5737, RFC 3849): no
// host owns them.
var (
	src4 = [4]byte{192, 0, 2, 1}
	dst4 = [4]byte{198, 51, 100, 1}
	src6 = [16]byte{0x20, 0x01, 0x0d, 0xb8, 0, 1, 15: 1}
	dst6 = [16]byte{0x20, 0x01, 0x0d, 0xb8, 0, 2, 15: 2}
)

// packet makes a UDP packet, IPv4 for even ids and IPv6 for odd ones, of size
// bytes, which differs from one with another id in the payload. Checksums are
// finished.
func packet(id uint32, size int) []byte {
	if id%2 == 0 {
		return packet4(id, size)
	}
	return packet6(id, size)
}

func packet4(id uint32, size int) []byte {
	p := make([]byte, size)
	p[0] = 4<<4 | ip4Len/4
	binary.BigEndian.PutUint16(p[2:], uint16(size))
	p[8] = 64 // time to live
	p[9] = 17 // UDP
	copy(p[12:], src4[:])
	copy(p[16:], dst4[:])
	binary.BigEndian.PutUint16(p[10:], ^sum(0, p[:ip4Len]))
	putUDP(p, ip4Len, id, sum(0, p[12:ip4Len]))
	return p
}

func packet6(id uint32, size int) []byte {
	p := make([]byte, size)
	p[0] = 6 << 4
	binary.BigEndian.PutUint16(p[4:], uint16(size-ip6Len))
	p[6] = 17 // UDP
	p[7] = 64 // hop limit
	copy(p[8:], src6[:])
	copy(p[24:], dst6[:])
	putUDP(p, ip6Len, id, sum(0, p[8:ip6Len]))
	return p
}

// putUDP fills everything behind the IP header; addrs is the sum of the
// addresses.
func putUDP(p []byte, at int, id uint32, addrs uint16) {
	u := p[at:]
	binary.BigEndian.PutUint16(u[0:], 40000)
	binary.BigEndian.PutUint16(u[2:], 40001)
	binary.BigEndian.PutUint16(u[4:], uint16(len(u)))
	copy(u[udpLen:], mark)
	binary.BigEndian.PutUint32(u[udpLen+len(mark):], id)
	for i := udpLen + payload; i < len(u); i++ {
		u[i] = byte(i) + byte(id)
	}
	pseudo := binary.BigEndian.AppendUint16([]byte{0, 17}, uint16(len(u)))
	c := ^sum(addrs, append(pseudo, u...))
	if c == 0 {
		c = 0xffff
	}
	binary.BigEndian.PutUint16(u[6:], c)
}

// sum is the one's complement sum of RFC 1071.
func sum(acc uint16, b []byte) uint16 {
	s := uint32(acc)
	for i, v := range b {
		if i%2 == 0 {
			s += uint32(v) << 8
		} else {
			s += uint32(v)
		}
		s = s&0xffff + s>>16
	}
	return uint16(s)
}

// isOwn tells whether p is, or once was, a packet of the suite's.
func isOwn(p []byte) bool { return bytes.Contains(p, []byte(mark)) }
