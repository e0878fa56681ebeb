package overlayd

import (
	"net/netip"
	"slices"
)

// SubnetRange narrows what a node chooses a leased subnet from: from the subnet
// that begins with First to the one that begins with Last, both included.
type SubnetRange struct {
	First, Last netip.Addr
}

// subnetRanges checks the ranges and finds what lies outside of them. A range is
// this node's own affair: it says what to choose from, not who owns what.
func (r *resolved) subnetRanges() error {
	r.SubnetRanges = slices.Clone(r.SubnetRanges)
	seen := map[netip.Prefix]bool{}
	for _, s := range r.SubnetRanges {
		i := slices.IndexFunc(r.Networks, func(n netip.Prefix) bool { return n.Contains(s.First) && n.Contains(s.Last) })
		if i < 0 {
			return badConfig("the subnet range %v-%v does not lie inside one of the overlay networks %v", s.First, s.Last, r.Networks)
		}
		network, length := r.Networks[i], r.SubnetLens[i]
		if seen[network] {
			return badConfig("two subnet ranges for the overlay network %v: at most one is possible", network)
		}
		seen[network] = true
		for _, a := range []netip.Addr{s.First, s.Last} {
			if begin := netip.PrefixFrom(a, length).Masked().Addr(); begin != a {
				return badConfig("the subnet range %v-%v: no /%d begins with %v: did you mean %v?", s.First, s.Last, length, a, begin)
			}
		}
		if s.Last.Less(s.First) {
			return badConfig("the subnet range %v-%v ends before it begins", s.First, s.Last)
		}
		for _, own := range r.Subnets {
			if network.Contains(own.Addr()) && (own.Addr().Less(s.First) || s.Last.Less(own.Addr())) {
				return badConfig("the static subnet %v lies outside of the subnet range %v-%v: leave the range out", own, s.First, s.Last)
			}
		}
		r.outside = append(r.outside, without(network, s, length)...)
	}
	return nil
}

// without cuts what lies outside of a range of subnets out of a prefix, in as few
// pieces as there can be.
func without(p netip.Prefix, s SubnetRange, length int) []netip.Prefix {
	last := lastSubnet(p, length).Addr() // the last one that begins inside p
	switch {
	case last.Less(s.First), s.Last.Less(p.Addr()):
		return []netip.Prefix{p}
	case !p.Addr().Less(s.First) && !s.Last.Less(last):
		return nil
	}
	low, high := halves(p)
	return append(without(low, s, length), without(high, s, length)...)
}

// lastSubnet is the last subnet of a length in a prefix.
func lastSubnet(p netip.Prefix, length int) netip.Prefix {
	for p.Bits() < length {
		_, p = halves(p)
	}
	return p
}

// halves are the two prefixes that a prefix consists of.
func halves(p netip.Prefix) (low, high netip.Prefix) {
	b := p.Addr().AsSlice()
	b[p.Bits()/8] |= 0x80 >> (p.Bits() % 8)
	upper, _ := netip.AddrFromSlice(b) // as long as it was
	return netip.PrefixFrom(p.Addr(), p.Bits()+1), netip.PrefixFrom(upper, p.Bits()+1)
}
