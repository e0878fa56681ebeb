package kernel

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The reasons for which the guard drops a packet. Each is a named counter in the
// table, so that `nft list counters` shows them too.
const (
	dropVXLANFragment    = "guard_vxlan_fragment"
	dropVXLANSource      = "guard_vxlan_source"
	dropVXLANDestination = "guard_vxlan_destination"
	dropVXLANFrame       = "guard_vxlan_frame"
	dropSpoofedOuter     = "guard_spoofed_outer"
	dropForwarded        = "guard_forwarded"
	dropPlainSource      = "guard_plain_source"
	dropPlainDestination = "guard_plain_destination"
)

var guardReasons = []string{
	dropVXLANFragment, dropVXLANSource, dropVXLANDestination, dropVXLANFrame,
	dropSpoofedOuter, dropForwarded, dropPlainSource, dropPlainDestination,
}

// Where the guard's chains stand on their hooks.
const (
	// beforeDefrag is before fragments are put together: NF_IP_PRI_CONNTRACK_DEFRAG
	// is -400 (linux/include/uapi/linux/netfilter_ipv4.h).
	beforeDefrag nftables.ChainPriority = -450
	// late is after everybody else's chains, so that the mark that is set there is
	// seen by nobody and changed by nobody.
	late nftables.ChainPriority = 1000
	// afterSNAT is where packets look as they leave: NF_IP_PRI_NAT_SRC is 100.
	afterSNAT nftables.ChainPriority = 300
)

// Offsets in headers, in bytes: RFC 791, RFC 8200, RFC 768, RFC 7348.
const (
	offFragment4  = 6 // flags and fragment offset
	offSource4    = 12
	offDest4      = 16
	offSource6    = 8
	offDest6      = 24
	offNext6      = 6
	offUDPDest    = 2
	offVNI        = 8 + 4             // of the UDP header
	offInnerEther = 8 + 8 + 12        // EtherType of the inner frame, of the UDP header
	offEtherSrc   = 6                 // of the link layer's header
	moreFragments = 0x2000            // MF
	fragOffset4   = 0x1fff            // IPv4's fragment offset
	fragOffset6   = 0xfff8            // IPv6's, in the fragment header's second 16 bits
	reg           = unix.NFT_REG32_00 // the first of the 4-byte registers
	regResult     = unix.NFT_REG32_00 + 15
)

// chains are the rules of the guard. They depend on nothing but what is set for
// the life of a node or changes rarely; peers are elements of sets.
//
// Every packet of the host passes them, so there is one base chain at a hook and no
// more hooks than it takes: what is of no concern leaves after a few comparisons.
//
// A verdict of accept ends one base chain; other tables, and later chains, still
// see the packet and may drop it.
func (g *Guard) chains() []tableChain {
	return slices.Concat(g.sentChains(), g.fragmentChain(), g.innerChains(), g.plainChains(), g.arrivalChains(), g.inputChains())
}

// arrivalChains is what every packet passes that comes in, before fragments are put
// together and before anybody rewrites addresses: what comes out of VXLAN goes one way,
// what has an overlay source and destination another, and the first fragments of VXLAN
// and what a container sends to a peer's overlay ports do not get further.
//
// What this host forwards may not go to a peer's overlay ports at all: a container
// cannot send as this host, as it would behind a masquerade. That goes for traffic of
// other hosts, too, which this host routes to a peer; it would have to be told from a
// container's. What the host's own translation sends there (DNAT) is not seen here.
//
// Where the packets of peers come in, a device is known by its index, which is compared
// at a fraction of what a name costs; what comes by another device, or by one that was
// made anew meanwhile, is asked for its name.
func (g *Guard) arrivalChains() []tableChain {
	c := tableChain{name: "arrival", hook: nftables.ChainHookPrerouting, priority: beforeDefrag}
	first := min(1, len(g.VXLANs)) // that of IPv4
	for _, known := range []struct {
		devs []string
		to   string
	}{{g.VXLANs[:first], "vxlan_destination"}, {g.Underlays, "outside"}, {g.Inside, "inside"}, {g.VXLANs[first:], "vxlan_destination"}} {
		for _, dev := range known.devs {
			if g.Indexes[dev] != 0 {
				c.rules = append(c.rules, rule(g.cameBy(dev), gotoChain(known.to)))
			}
		}
	}
	for _, name := range g.vxlanNames() {
		c.rules = append(c.rules, rule(meta(expr.MetaKeyIIFNAME, reg), compare(expr.CmpOpEq, name), gotoChain("vxlan_destination")))
	}
	c.rules = append(c.rules, gotoChain("outside"))

	// Whole packets for the endpoints: most of them are VXLAN of peers.
	outside := tableChain{name: "outside"}
	for _, a := range g.Locals {
		whole := masked(fragment4(), moreFragments|fragOffset4, expr.CmpOpEq, 0)
		if a.Is6() { // no header stands between
			whole = rule(load(expr.PayloadBaseNetworkHeader, offNext6, 1, reg), compare(expr.CmpOpEq, []byte{unix.IPPROTO_UDP}))
		}
		outside.rules = append(outside.rules, rule(family(a), within(offDest(a), single(a)), whole, accepted()))
	}
	for _, n := range g.Networks {
		outside.rules = append(outside.rules, rule(family(n.Addr()), within(offSource(n.Addr()), n), within(offDest(n.Addr()), n), gotoChain("plain")))
	}
	outside.rules = append(outside.rules,
		rule(ipv4(), masked(fragment4(), moreFragments|fragOffset4, expr.CmpOpEq, moreFragments), gotoChain("first_fragment")),
		rule(ipv6(), masked(fragment6(), fragOffset6, expr.CmpOpEq, 0), gotoChain("first_fragment")))
	outside.rules = append(outside.rules, g.otherUDP()...)
	outside.rules = append(outside.rules,
		rule(ipv4(), load(expr.PayloadBaseNetworkHeader, offDest4, 4, reg), inMap(setOuter4), dropped(dropForwarded)),
		rule(ipv6(), load(expr.PayloadBaseNetworkHeader, offDest6, 16, reg), inMap(setOuter6), dropped(dropForwarded)))

	// What a container of ours sends to a peer's subnet, at first sight.
	inside := tableChain{name: "inside"}
	for _, p := range g.Own {
		if to := g.netLookup(p.Addr().Is4(), setSent4.pick(p.Addr()), sentKey(p.Addr().Is4()), reg+1); to != nil {
			inside.rules = append(inside.rules, rule(family(p.Addr()), within(offSource(p.Addr()), p), to, accepted()))
		}
	}
	inside.rules = append(inside.rules, gotoChain("outside"))
	return []tableChain{outside, inside, c}
}

// cameBy matches what came in by a device: by its index, if that is known, and else by
// its name.
func (g *Guard) cameBy(dev string) []expr.Any {
	if i := g.Indexes[dev]; i != 0 {
		return rule(meta(expr.MetaKeyIIF, reg), compare(expr.CmpOpEq, native(i)))
	}
	return named(expr.MetaKeyIIFNAME, dev)
}

// vxlanNames are what the names of our VXLAN devices begin with, or, where they have
// nothing of their own in common, the names.
func (g *Guard) vxlanNames() (names [][]byte) {
	if len(g.VXLANs) == 2 {
		a, b := g.VXLANs[0], g.VXLANs[1]
		if n := len(a) - 1; n > len(g.Device) && len(a) == len(b) && a[:n] == b[:n] {
			return [][]byte{[]byte(a[:n])}
		}
	}
	for _, dev := range g.VXLANs {
		names = append(names, ifName(dev))
	}
	return names
}

// otherUDP lets go what is not seen to be for one of the overlay's ports. The fragments
// that follow a first one have no port and are let through: the first is not.
func (g *Guard) otherUDP() [][]expr.Any {
	return [][]expr.Any{
		rule(notUDP(), accepted()),
		rule(ipv4(), masked(fragment4(), fragOffset4, expr.CmpOpNeq, 0), accepted()),
		rule(ipv6(), masked(fragment6(), fragOffset6, expr.CmpOpNeq, 0), accepted()),
		rule(notPort(append([]uint16{g.Port}, g.Ports...)...), accepted()),
	}
}

// fragmentChain drops the first fragment of what goes to the VXLAN port of this
// host. Without it a datagram is never put together. IPv6 needs that: where
// nobody tracks connections the kernel puts fragments together only after the
// input hook, and a rule there would see no more than the first fragment has.
//
// A fragment is dropped unless it is seen to be harmless: one whose headers
// cannot be followed has no protocol for nftables (ipv6_find_hdr fails in
// nft_set_pktinfo_ipv6), and all that asks for it does not match. An IPv6
// datagram in one fragment (RFC 6946) is taken for a first one; no VXLAN sender
// makes them.
//
// The address is looked at by its type, because the VXLAN socket also gets what
// is sent to broadcast and multicast addresses.
func (g *Guard) fragmentChain() []tableChain {
	fib := &expr.Fib{Register: reg, FlagDADDR: true, ResultADDRTYPE: true}
	c := tableChain{name: "first_fragment", rules: [][]expr.Any{
		rule(notUDP(), accepted()),
		rule(notPort(append([]uint16{g.Port}, g.Ports...)...), accepted()),
		// What is forwarded may not go to a peer's overlay ports, in fragments as little
		// as whole.
		rule(ipv4(), load(expr.PayloadBaseNetworkHeader, offDest4, 4, reg), inMap(setOuter4), dropped(dropForwarded)),
		rule(ipv6(), load(expr.PayloadBaseNetworkHeader, offDest6, 16, reg), inMap(setOuter6), dropped(dropForwarded)),
		rule(notPort(g.Port), accepted()),
		rule([]expr.Any{fib}, compare(expr.CmpOpEq, native(unix.RTN_UNICAST)), accepted()), // forwarded
		dropped(dropVXLANFragment),
	}}
	return []tableChain{c}
}

// inputChains look at what goes to the overlay's ports of this host, as late as
// possible before its socket gets it.
//
// What comes in by an interface that is neither lo nor an underlay has to come from
// where its source is routed to: a container cannot send as a peer. (What came by our
// own devices has been looked at, and probes do come by them.)
//
// VXLAN is let in by two steps. The first looks at the outer packet and marks what
// comes from a peer with the number of the outer address. The mark is the packet's
// through vxlan_rcv (skb_scrub_packet keeps it within a namespace), so that the second
// step (innerChains), where the inner packet comes out of the device, knows who sent
// it: the source has to be one of that peer's. There the kernel has taken the frame
// apart, and what is looked at is what will be routed. One step would not do: a
// datagram may be a superpacket of many, which a virtual link passes on whole, and
// which the kernel cuts after the input hook (udp_unexpected_gso in
// linux/include/linux/udp.h); a rule there sees the first frame alone.
func (g *Guard) inputChains() []tableChain {
	vni := binary.BigEndian.AppendUint32(nil, g.VNI)[1:]
	input := tableChain{name: "input", hook: nftables.ChainHookInput, priority: late, rules: append(g.peersVXLAN(), g.otherUDP()...)}
	for _, dev := range slices.Concat(g.Underlays, []string{"lo", g.Device}, g.VXLANs) {
		input.rules = append(input.rules, rule(named(expr.MetaKeyIIFNAME, dev), gotoChain("vxlan")))
	}
	input.rules = append(input.rules,
		rule(routedBack(), compare(expr.CmpOpNeq, native(0)), gotoChain("vxlan")),
		dropped(dropSpoofedOuter))

	vxlan := tableChain{name: "vxlan", rules: [][]expr.Any{
		rule(notPort(g.Port), accepted()),
		rule(load(expr.PayloadBaseTransportHeader, offVNI, 3, reg), compare(expr.CmpOpNeq, vni), accepted()), // not ours
	}}
	for _, a := range g.Locals {
		vxlan.rules = append(vxlan.rules, rule(family(a), within(offDest(a), single(a)), gotoChain("vxlan_frame")))
	}
	vxlan.rules = append(vxlan.rules, dropped(dropVXLANDestination))

	frame := tableChain{name: "vxlan_frame"}
	for _, ether := range []uint16{unix.ETH_P_IP, unix.ETH_P_IPV6} {
		frame.rules = append(frame.rules, rule(load(expr.PayloadBaseTransportHeader, offInnerEther, 2, reg),
			compare(expr.CmpOpEq, binary.BigEndian.AppendUint16(nil, ether)), gotoChain("vxlan_mark")))
	}
	frame.rules = append(frame.rules, dropped(dropVXLANFrame))

	mark := tableChain{name: "vxlan_mark", rules: [][]expr.Any{
		rule(ipv4(), load(expr.PayloadBaseNetworkHeader, offSource4, 4, reg), toMark(setOuter4), accepted()),
		rule(ipv6(), load(expr.PayloadBaseNetworkHeader, offSource6, 16, reg), toMark(setOuter6), accepted()),
		dropped(dropVXLANSource),
	}}
	return []tableChain{mark, frame, vxlan, input}
}

// peersVXLAN marks what is all right at first sight: VXLAN of a peer that has come by an
// underlay to an endpoint of ours, with an IP packet in it. What is not is looked at by
// one rule after the other, which say why it is dropped.
func (g *Guard) peersVXLAN() (rules [][]expr.Any) {
	// The VNI with the byte behind it, which has to be 0: the kernel takes no other.
	vni := binary.BigEndian.AppendUint32(nil, g.VNI<<8)
	for _, dev := range g.Underlays {
		for _, a := range g.Locals {
			four, set := a.Is4(), setOuter6
			if four {
				set = setOuter4
			}
			for _, ether := range []uint16{unix.ETH_P_IP, unix.ETH_P_IPV6} {
				rules = append(rules, rule(family(a), meta(expr.MetaKeyL4PROTO, reg), compare(expr.CmpOpEq, []byte{unix.IPPROTO_UDP}),
					load(expr.PayloadBaseTransportHeader, offUDPDest, 2, reg), compare(expr.CmpOpEq, binary.BigEndian.AppendUint16(nil, g.Port)),
					load(expr.PayloadBaseTransportHeader, offInnerEther, 2, reg), compare(expr.CmpOpEq, binary.BigEndian.AppendUint16(nil, ether)),
					load(expr.PayloadBaseTransportHeader, offVNI, 4, reg), compare(expr.CmpOpEq, vni),
					within(offDest(a), single(a)), g.cameBy(dev),
					sourceTo(four, reg), toMark(set), accepted()))
			}
		}
	}
	return rules
}

// innerChains are the second step of letting VXLAN in. What comes out of a device
// without a known mark is dropped, however it came in. Packets must come out one by
// one, as guard_gro.go sees to it.
func (g *Guard) innerChains() (all []tableChain) {
	for _, four := range []bool{true, false} {
		from := rule(meta(expr.MetaKeyMARK, reg), sourceTo(four, reg+1))
		all = append(all, tableChain{name: innerChain(four), rules: append(
			g.lookups(four, setVXLAN4, from, reg+1, unmark(), accepted()), dropped(dropVXLANSource))})
	}
	destination := tableChain{name: "vxlan_destination"}
	for _, p := range g.Own {
		destination.rules = append(destination.rules, rule(family(p.Addr()), within(offDest(p.Addr()), p), gotoChain(innerChain(p.Addr().Is4()))))
	}
	destination.rules = append(destination.rules, dropped(dropVXLANDestination))
	return append(all, destination)
}

func innerChain(four bool) string {
	if four {
		return "vxlan_source4"
	}
	return "vxlan_source6"
}

// plainChains look at what comes in with a source and a destination in the
// overlay, but not in VXLAN: only what came through our devices, from a
// container of ours, or to one from a direct peer, may. Locally made packets do not
// pass here, but by lo.
func (g *Guard) plainChains() []tableChain {
	plain := tableChain{name: "plain"}
	destination := tableChain{name: "plain_destination"}
	own := func(p netip.Prefix) []expr.Any { return rule(family(p.Addr()), within(offSource(p.Addr()), p)) }
	for _, p := range g.Own {
		for _, dev := range g.Inside {
			plain.rules = append(plain.rules, rule(named(expr.MetaKeyIIFNAME, dev), own(p), gotoChain("sent")))
		}
		destination.rules = append(destination.rules, rule(family(p.Addr()), within(offDest(p.Addr()), p), accepted()))
	}
	for _, dev := range []string{"lo", g.Device} {
		plain.rules = append(plain.rules, rule(named(expr.MetaKeyIIFNAME, dev), accepted()))
	}
	for _, four := range []bool{true, false} {
		from := rule(meta(expr.MetaKeyIIFTYPE, reg), compare(expr.CmpOpEq, binary.NativeEndian.AppendUint16(nil, unix.ARPHRD_ETHER)),
			meta(expr.MetaKeyIIFNAME, reg), load(expr.PayloadBaseLLHeader, offEtherSrc, 6, reg+4), sourceTo(four, reg+6))
		plain.rules = append(plain.rules, prefixed(version(four), g.lookups(four, setDirect4, from, reg+6, gotoChain("plain_destination"))...)...)
	}
	for _, p := range g.Own {
		plain.rules = append(plain.rules, rule(own(p), routedBack(), compare(expr.CmpOpNeq, native(0)), gotoChain("sent")))
	}
	plain.rules = append(plain.rules, dropped(dropPlainSource))
	destination.rules = append(destination.rules, dropped(dropPlainDestination))
	return []tableChain{destination, plain}
}

// sentChains count what containers and this host send to peers, by whatever path: where
// a packet leaves is not known yet, and a chain where it is would see every packet of the
// host twice.
func (g *Guard) sentChains() []tableChain {
	sent := tableChain{name: "sent"}
	for _, four := range []bool{true, false} {
		sent.rules = append(sent.rules, prefixed(version(four), g.lookups(four, setSent4, sentKey(four), reg+1, accepted())...)...)
	}
	local := tableChain{name: "local", hook: nftables.ChainHookOutput, priority: afterSNAT}
	for _, n := range g.Networks {
		local.rules = append(local.rules, rule(family(n.Addr()), within(offDest(n.Addr()), n), gotoChain("sent")))
	}
	return []tableChain{sent, local}
}

// sentKey loads the key of the sets of what is sent.
func sentKey(four bool) []expr.Any {
	return rule([]expr.Any{&expr.Immediate{Register: reg, Data: native(0)}}, destTo(four, reg+1))
}
