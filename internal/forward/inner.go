package forward

import (
	"encoding/binary"
	"net/netip"
)

// Lengths and offsets of the IP headers: RFC 791 section 3.1, RFC 8200
// section 3.
const (
	ipv4HeaderLen = 20
	ipv6HeaderLen = 40
)

// verdict of an inner packet's header, before any table is asked.
type headerVerdict uint8

const (
	headerOK        headerVerdict = iota
	headerMalformed               // no complete packet of exactly its length
	headerMulticast               // destination multicast or limited broadcast
	headerMartian                 // an address that never belongs on a wire between hosts
)

// parseInner checks the header of one inner packet and returns its addresses,
// which are valid only with headerOK. The packet's length must be exactly what
// its header says: bytes behind the IP packet are nothing that a sender of ours
// makes, and whoever reads them later might take them for something.
func parseInner(p []byte) (src, dst netip.Addr, v headerVerdict) {
	if len(p) == 0 {
		return src, dst, headerMalformed
	}
	switch p[0] >> 4 {
	case 4:
		if len(p) < ipv4HeaderLen {
			return src, dst, headerMalformed
		}
		ihl := int(p[0]&0x0f) * 4
		if ihl < ipv4HeaderLen || ihl > len(p) || int(binary.BigEndian.Uint16(p[2:4])) != len(p) {
			return src, dst, headerMalformed
		}
		s, d := [4]byte(p[12:16]), [4]byte(p[16:20])
		if v := classify4(s, d); v != headerOK {
			return src, dst, v
		}
		return netip.AddrFrom4(s), netip.AddrFrom4(d), headerOK
	case 6:
		if len(p) < ipv6HeaderLen || int(binary.BigEndian.Uint16(p[4:6])) != len(p)-ipv6HeaderLen {
			return src, dst, headerMalformed
		}
		src, dst = netip.AddrFrom16([16]byte(p[8:24])), netip.AddrFrom16([16]byte(p[24:40]))
		return src, dst, classify6(src, dst)
	}
	return src, dst, headerMalformed
}

func classify4(src, dst [4]byte) headerVerdict {
	if dst[0]&0xf0 == 224 || dst == [4]byte{255, 255, 255, 255} {
		return headerMulticast
	}
	if src[0]&0xf0 == 224 || src == [4]byte{255, 255, 255, 255} || special4(src) || special4(dst) {
		return headerMartian
	}
	return headerOK
}

// special4 reports addresses that RFC 6890 section 2.2.2 does not let routers
// forward: this host (0/8), loopback (127/8), link-local (169.254/16). The
// former class E (240/4) is ordinary unicast to Linux, and so it is here.
func special4(a [4]byte) bool {
	return a[0] == 0 || a[0] == 127 || (a[0] == 169 && a[1] == 254)
}

func classify6(src, dst netip.Addr) headerVerdict {
	if dst.IsMulticast() {
		return headerMulticast
	}
	if src.IsMulticast() || special6(src) || special6(dst) {
		return headerMartian
	}
	return headerOK
}

// special6 reports addresses that RFC 6890 section 2.2.3 does not let routers
// forward: unspecified, loopback, IPv4-mapped, link-local.
func special6(a netip.Addr) bool {
	return a.IsUnspecified() || a.IsLoopback() || a.Is4In6() || a.IsLinkLocalUnicast()
}

// specialPrefixes are the prefixes that parseInner never lets pass, so that no
// overlay network may overlap them.
var specialPrefixes = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("224.0.0.0/4"),
	netip.MustParsePrefix("::/128"),
	netip.MustParsePrefix("::1/128"),
	netip.MustParsePrefix("::ffff:0:0/96"),
	netip.MustParsePrefix("fe80::/10"),
	netip.MustParsePrefix("ff00::/8"),
}
