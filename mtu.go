package overlayd

import (
	"fmt"
	"net/netip"
)

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

// innerFor returns the inner MTU of a node with this Config over an interface
// with the MTU outer, or says in one line why there is none.
func innerFor(cfg *resolved, outer underlayMTU, ifname string, endpoints []netip.Addr) (innerMTU, error) {
	most := outer.inner(overhead(cfg.Encap, cfg.FastPath, endpoints))
	mtu := most
	if cfg.MTU != 0 {
		if mtu = innerMTU(cfg.MTU); mtu > most {
			return 0, fmt.Errorf("MTU %d does not fit: %s has an MTU of %d, which leaves %d inside", cfg.MTU, ifname, outer, most)
		}
	}
	for _, n := range cfg.Networks {
		least := innerMTU(minInner4)
		if n.Addr().Is6() {
			least = minInner6
		}
		if mtu < least {
			return 0, fmt.Errorf("%v cannot be carried: an MTU of %d is left inside %s's %d, and it needs %d: raise the interface's MTU, or leave that network out", n, mtu, ifname, outer, least)
		}
	}
	return mtu, nil
}
