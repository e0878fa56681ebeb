package capture

import (
	"encoding/binary"
	"net/netip"

	"github.com/overlayd/overlayd/internal/header"
)

// udpHeaderLen is RFC 768's.
const udpHeaderLen = 8

// ttl is the default one of RFC 1700.
const ttl = 64

// appendDatagram appends what a socket took or gave, with IP and UDP headers in front.
// The checksums are right, whatever they were. What no datagram has room for is cut.
func (c *record) appendDatagram(b []byte) []byte {
	src, dst := c.remote, c.local
	if c.outbound {
		src, dst = dst, src
	}
	if !c.local.Addr().IsValid() || c.local.Addr().Is4() != c.remote.Addr().Is4() { // a socket of all addresses
		any := netip.IPv6Unspecified()
		if c.remote.Addr().Is4() {
			any = netip.IPv4Unspecified()
		}
		if c.outbound {
			src = netip.AddrPortFrom(any, src.Port())
		} else {
			dst = netip.AddrPortFrom(any, dst.Port())
		}
	}
	h := header.IP{Src: src.Addr(), Dst: dst.Addr(), Protocol: header.UDP, Class: c.class, HopLimit: ttl}
	most := maxPacket - udpHeaderLen // IPv6 does not count its own header (RFC 8200 section 3)
	if h.Dst.Is4() {
		most -= header.Len4
	}
	payload := c.b[:min(len(c.b), most)]
	at, ip := len(b), [header.Len6]byte{}
	b = append(b, ip[:h.Len()]...)
	b = binary.BigEndian.AppendUint16(b, src.Port())
	b = binary.BigEndian.AppendUint16(b, dst.Port())
	b = binary.BigEndian.AppendUint16(b, uint16(udpHeaderLen+len(payload)))
	b = append(b, 0, 0)
	b = append(b, payload...)
	h.Put(b[at:])
	return b
}
