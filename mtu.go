package overlayd

import "net/netip"

// Three numbers are called MTU. They have types of their own, so that one is
// never taken for another:
//
//	underlayMTU  the longest outer IP packet that the hosts' network carries
//	innerMTU     the longest inner IP packet that the overlay carries
//
// The TUN device's MTU is the innerMTU, and so is that of containers.
type (
	underlayMTU int
	innerMTU    int
)

// What stands in front of the inner packet, in bytes: the outer IP header
// (RFC 791, RFC 8200) and UDP (RFC 768), and for VXLAN also its own header and
// the inner Ethernet header without a VLAN tag (RFC 7348 section 5).
const (
	ipv4Header     = 20
	ipv6Header     = 40
	udpHeader      = 8
	vxlanHeader    = 8
	ethernetHeader = 14
)

const (
	// minInner4 is the smallest MTU of IPv4 with any practical use, the least
	// that every host must be able to reassemble (RFC 791 section 3.2).
	minInner4 = 576
	// minInner6 is the smallest MTU of an IPv6 link (RFC 8200 section 5).
	minInner6 = 1280
	// maxInner keeps an outer datagram within what UDP over IPv4 can say.
	maxInner = 65535 - ipv4Header - udpHeader - vxlanHeader - ethernetHeader
)

// overhead is that of the largest path which a node with these settings may
// use over these underlay addresses, so that a hand-off never changes the
// inner MTU.
func overhead(encap, fastPath string, endpoints []netip.Addr) int {
	n := ipv4Header
	for _, a := range endpoints {
		if a.Is6() {
			n = ipv6Header
		}
	}
	n += udpHeader
	if encap == "vxlan" || fastPath == "auto" || fastPath == "kernel-vxlan" {
		n += vxlanHeader + ethernetHeader
	}
	return n
}

func (u underlayMTU) inner(overhead int) innerMTU {
	return innerMTU(min(int(u)-overhead, maxInner))
}
