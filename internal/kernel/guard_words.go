package kernel

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The words that the guard's rules are made of.

// lookups are the rules that look an address up which load has put behind what else is
// in the key, at register at: as one of a subnet of the usual length, then among the
// intervals. set is that of intervals of IPv4. The rules do not look at the family.
func (g *Guard) lookups(four bool, set guardSet, load []expr.Any, at uint32, then ...[]expr.Any) (rules [][]expr.Any) {
	if !four {
		set++
	}
	if net := g.netLookup(four, set, load, at); net != nil {
		rules = append(rules, rule(net, slices.Concat(then...)))
	}
	return append(rules, rule(load, in(set), slices.Concat(then...)))
}

// netLookup looks up a subnet of the usual length; nil: there is none.
func (g *Guard) netLookup(four bool, set guardSet, load []expr.Any, at uint32) []expr.Any {
	bits, size := g.Len6, uint32(16)
	if four {
		bits, size = g.Len4, 4
	}
	if bits == 0 {
		return nil
	}
	mask := net.CIDRMask(bits, int(size)*8)
	return rule(load,
		[]expr.Any{&expr.Bitwise{SourceRegister: at, DestRegister: at, Len: size, Mask: mask, Xor: make([]byte, size)}},
		in(set.net()))
}

// version matches the packets of a family.
func version(four bool) []expr.Any {
	if four {
		return ipv4()
	}
	return ipv6()
}

// prefixed puts the same words in front of rules.
func prefixed(first []expr.Any, rules ...[]expr.Any) (all [][]expr.Any) {
	for _, r := range rules {
		all = append(all, rule(first, r))
	}
	return all
}

// sourceTo and destTo load an address of the network header.
func sourceTo(four bool, register uint32) []expr.Any {
	if four {
		return load(expr.PayloadBaseNetworkHeader, offSource4, 4, register)
	}
	return load(expr.PayloadBaseNetworkHeader, offSource6, 16, register)
}

func destTo(four bool, register uint32) []expr.Any {
	if four {
		return load(expr.PayloadBaseNetworkHeader, offDest4, 4, register)
	}
	return load(expr.PayloadBaseNetworkHeader, offDest6, 16, register)
}

func rule(parts ...[]expr.Any) []expr.Any { return slices.Concat(parts...) }

func accepted() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}} }

func dropped(reason string) []expr.Any {
	return []expr.Any{&expr.Objref{Type: unix.NFT_OBJECT_COUNTER, Name: reason}, &expr.Verdict{Kind: expr.VerdictDrop}}
}

func gotoChain(name string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictGoto, Chain: name}}
}

func meta(key expr.MetaKey, register uint32) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: register}}
}

func compare(op expr.CmpOp, data []byte) []expr.Any {
	return []expr.Any{&expr.Cmp{Op: op, Register: reg, Data: data}}
}

func load(base expr.PayloadBase, offset, size, register uint32) []expr.Any {
	return []expr.Any{&expr.Payload{DestRegister: register, Base: base, Offset: offset, Len: size}}
}

func native(n uint32) []byte { return binary.NativeEndian.AppendUint32(nil, n) }

func ipv4() []expr.Any {
	return rule(meta(expr.MetaKeyNFPROTO, reg), compare(expr.CmpOpEq, []byte{unix.NFPROTO_IPV4}))
}

func ipv6() []expr.Any {
	return rule(meta(expr.MetaKeyNFPROTO, reg), compare(expr.CmpOpEq, []byte{unix.NFPROTO_IPV6}))
}

func family(a netip.Addr) []expr.Any { return version(a.Is4()) }

func offSource(a netip.Addr) uint32 {
	if a.Is4() {
		return offSource4
	}
	return offSource6
}

func offDest(a netip.Addr) uint32 {
	if a.Is4() {
		return offDest4
	}
	return offDest6
}

// within matches an address of the network header that lies in p.
func within(offset uint32, p netip.Prefix) []expr.Any {
	n := ipNet(p.Masked())
	size := uint32(len(n.IP))
	if p.IsSingleIP() {
		return rule(load(expr.PayloadBaseNetworkHeader, offset, size, reg), compare(expr.CmpOpEq, n.IP))
	}
	return rule(load(expr.PayloadBaseNetworkHeader, offset, size, reg),
		[]expr.Any{&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: size, Mask: n.Mask, Xor: make([]byte, size)}},
		compare(expr.CmpOpEq, n.IP))
}

func notUDP() []expr.Any {
	return rule(meta(expr.MetaKeyL4PROTO, reg), compare(expr.CmpOpNeq, []byte{unix.IPPROTO_UDP}))
}

// notPort matches UDP that is seen to go to none of the ports.
func notPort(ports ...uint16) []expr.Any {
	parts := load(expr.PayloadBaseTransportHeader, offUDPDest, 2, reg)
	for _, p := range ports {
		parts = append(parts, compare(expr.CmpOpNeq, binary.BigEndian.AppendUint16(nil, p))...)
	}
	return parts
}

// fragment4 and fragment6 load the 16 bits with the fragment offset; fragment6
// matches only what has a fragment header.
func fragment4() []expr.Any { return load(expr.PayloadBaseNetworkHeader, offFragment4, 2, reg) }

func fragment6() []expr.Any {
	return []expr.Any{&expr.Exthdr{DestRegister: reg, Type: unix.IPPROTO_FRAGMENT, Offset: 2, Len: 2, Op: expr.ExthdrOpIpv6}}
}

// masked compares 16 loaded bits under a mask.
func masked(loaded []expr.Any, mask uint16, op expr.CmpOp, value uint16) []expr.Any {
	return rule(loaded,
		[]expr.Any{&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 2, Mask: binary.BigEndian.AppendUint16(nil, mask), Xor: make([]byte, 2)}},
		compare(op, binary.BigEndian.AppendUint16(nil, value)))
}

// named matches an interface by its name, as a device may be made anew.
func named(key expr.MetaKey, dev string) []expr.Any {
	return rule(meta(key, reg), compare(expr.CmpOpEq, ifName(dev)))
}

// ifName is a name as nftables compares it: IFNAMSIZ bytes (linux/include/uapi/linux/if.h).
func ifName(dev string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, dev)
	return b
}

// routedBack loads the interface by which the packet's source is reached if
// that is the one it came in by, else 0: `fib saddr . iif oif`.
func routedBack() []expr.Any {
	return []expr.Any{&expr.Fib{Register: reg, FlagSADDR: true, FlagIIF: true, ResultOIF: true}}
}

// in matches if the registers are an element of the set, whose counter counts
// the packet.
func in(s guardSet) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: reg, SetName: s.String()}}
}

// inMap matches if the registers are a key of the map.
func inMap(s guardSet) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: reg, DestRegister: regResult, IsDestRegSet: true, SetName: s.String()}}
}

// toMark gives the packet the mark that the map has for the registers.
func toMark(s guardSet) []expr.Any {
	return append(inMap(s), &expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: regResult})
}

func unmark() []expr.Any {
	return []expr.Any{&expr.Immediate{Register: reg, Data: native(0)},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: reg}}
}
