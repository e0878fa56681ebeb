// Package header writes the IP headers of the few packets that the daemon makes
// itself, and the checksums behind them: ICMP errors, neighbour discovery, and what a
// capture shows of the underlay. The packets in the tunnel are never its business.
package header

import (
	"encoding/binary"
	"net/netip"

	"github.com/overlayd/overlayd/tunnel"
)

// The protocols that may stand behind a header, by their assigned numbers.
const (
	ICMP   = 1  // RFC 792
	UDP    = 17 // RFC 768
	ICMPv6 = 58 // RFC 4443 section 1
)

// Len4 and Len6 are the lengths of the headers, without options: RFC 791 section 3.1,
// RFC 8200 section 3.
const (
	Len4 = 20
	Len6 = 40
)

// IP is what one such header does not share with the others. None of these packets is
// a fragment or may become one.
type IP struct {
	Src, Dst netip.Addr // both IPv4, or both IPv6
	Protocol uint8      // ICMP, UDP or ICMPv6
	Class    uint8      // type of service, or traffic class
	HopLimit uint8      // or time to live
}

// Len is the header's length.
func (h IP) Len() int {
	if h.Dst.Is4() {
		return Len4
	}
	return Len6
}

// Put makes a packet of b, whose payload is there already, behind Len: it writes the
// header in front, and in the payload the checksum. The length fits the header's field.
//
// Where the checksum is also of a pseudo-header, that is written first, into the place
// of the header, so that one sum goes over both as they lie.
func (h IP) Put(b []byte) {
	payload := b[h.Len():]
	at := 2 // RFC 792, RFC 4443 section 2.1
	if h.Protocol == UDP {
		at = 6
	}
	payload[at], payload[at+1] = 0, 0 // counts as zero in its own sum
	var sum uint16
	if h.Dst.Is4() {
		src, dst := h.Src.As4(), h.Dst.As4()
		copy(b[12:], src[:])
		copy(b[16:], dst[:])
		summed := payload // all that counts for ICMP
		if h.Protocol == UDP {
			b[8], b[9] = 0, h.Protocol // RFC 768
			binary.BigEndian.PutUint16(b[10:], uint16(len(payload)))
			summed = b[8:]
		}
		sum = tunnel.Checksum(summed)
		h.put4(b)
	} else {
		src, dst := h.Src.As16(), h.Dst.As16()
		copy(b[8:], src[:])
		copy(b[24:], dst[:])
		binary.BigEndian.PutUint32(b, uint32(len(payload))) // RFC 8200 section 8.1
		binary.BigEndian.PutUint32(b[4:], uint32(h.Protocol))
		sum = tunnel.Checksum(b)
		h.put6(b)
	}
	if sum == 0 && h.Protocol == UDP {
		sum = 0xffff // zero says that there is none (RFC 768)
	}
	binary.NativeEndian.PutUint16(payload[at:], sum)
}

// put4 writes what stands before the addresses: RFC 791 section 3.1.
func (h IP) put4(b []byte) {
	b[0], b[1] = 4<<4|Len4/4, h.Class
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	binary.BigEndian.PutUint16(b[4:], 0)      // with DF an identification says nothing: RFC 6864 section 4.1
	binary.BigEndian.PutUint16(b[6:], 0x4000) // DF
	b[8], b[9] = h.HopLimit, h.Protocol
	b[10], b[11] = 0, 0
	binary.NativeEndian.PutUint16(b[10:], tunnel.Checksum(b[:Len4]))
}

// put6 writes what stands before the addresses: RFC 8200 section 3.
func (h IP) put6(b []byte) {
	binary.BigEndian.PutUint32(b, 6<<28|uint32(h.Class)<<20) // no flow label: RFC 6437 section 2
	binary.BigEndian.PutUint16(b[4:], uint16(len(b)-Len6))
	b[6], b[7] = h.Protocol, h.HopLimit
}
