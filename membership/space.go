package membership

import (
	"encoding/binary"
	"hash/fnv"
	"math/bits"
	"net/netip"

	"github.com/gaissmai/bart"
)

// space is the set of leasable subnets of one network.
type space struct {
	network netip.Prefix
	length  int // of a subnet
}

// size is the number of subnets, 2^63 for more than that.
func (s space) size() uint64 {
	n := s.length - s.network.Bits()
	if n >= 63 {
		return 1 << 63
	}
	return 1 << n
}

// at returns the subnet with index i, which is below size.
func (s space) at(i uint64) netip.Prefix {
	a := s.network.Addr().As16()
	length := s.length
	if s.network.Addr().Is4() {
		length += 96
	}
	// Add i << (128 - length) to the address. The network bits are not touched,
	// since i has no more bits than lie between them and length.
	hi, lo := binary.BigEndian.Uint64(a[:8]), binary.BigEndian.Uint64(a[8:])
	shift := 128 - length
	var ihi, ilo uint64
	if shift >= 64 {
		ihi = i << (shift - 64)
	} else {
		ilo = i << shift
		ihi = i >> (64 - shift)
	}
	lo, carry := bits.Add64(lo, ilo, 0)
	hi, _ = bits.Add64(hi, ihi, carry)
	binary.BigEndian.PutUint64(a[:8], hi)
	binary.BigEndian.PutUint64(a[8:], lo)
	return netip.PrefixFrom(netip.AddrFrom16(a).Unmap(), s.length)
}

// draws is how many subnets are drawn before the scan: of a space that is half
// full, all of them are taken in one of 2^64 cases.
const draws = 64

// pick returns the first free subnet in the order that belongs to id: an order
// of hash(id, attempt), so that nodes that choose at the same time seldom
// choose alike, and one node that chooses again tries the same ones. When so
// many draws hit taken ones the space is nearly full, and the rest is a scan
// from where the first draw fell. It skips what a wide claim covers in one step,
// so that it ends after about as many steps as there are claims, however large
// the space is. refused holds what the caller has tried in vain.
func (s space) pick(id NodeID, taken *bart.Table[int], refused map[netip.Prefix]bool) (netip.Prefix, bool) {
	size := s.size()
	free := func(p netip.Prefix) bool { return !refused[p] && !taken.OverlapsPrefix(p) }
	first := drawHash(id, s.network, 0) & (size - 1) // size is a power of two
	for n := range uint64(draws) {
		if p := s.at(drawHash(id, s.network, n) & (size - 1)); free(p) {
			return p, true
		}
	}
	for walked := uint64(0); walked < size; {
		i := (first + walked) & (size - 1)
		p := s.at(i)
		if free(p) {
			return p, true
		}
		span := uint64(1) // of the aligned block of subnets that is taken around p
		if wide, _, ok := taken.LookupPrefixLPM(p); ok {
			if s.length-wide.Bits() >= bits.TrailingZeros64(size) {
				break // it covers the whole network
			}
			span <<= s.length - wide.Bits()
		}
		walked += span - i&(span-1)
	}
	return netip.Prefix{}, false
}

func drawHash(id NodeID, network netip.Prefix, n uint64) uint64 {
	h := fnv.New64a()
	h.Write(id[:])
	a := network.Addr().As16()
	h.Write(a[:])
	h.Write(binary.BigEndian.AppendUint64(nil, n))
	// FNV's low bits are weak and the mask keeps only those.
	return mix64(h.Sum64())
}

// mix64 mixes a hash once more: the finalizer of MurmurHash3.
func mix64(x uint64) uint64 {
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}
