package membership

import (
	"bytes"
	"cmp"
	"hash/fnv"
	"net/netip"
)

// compareClaims orders claims by the right to what they claim, the stronger
// first: static before dynamic, then the higher gen, held before tentative,
// solo last, the lower stamp, and what is left by a hash that favours nobody.
// It is a total order on claims with different keys.
func compareClaims(a, b Claim) int {
	r, _ := compareWhy(a, b)
	return r
}

// compareWhy also says which rule decided.
func compareWhy(a, b Claim) (int, string) {
	if r := cmpBool(b.Static, a.Static); r != 0 {
		return r, "static before dynamic"
	}
	if r := cmp.Compare(b.Gen, a.Gen); r != 0 {
		return r, "higher generation"
	}
	if r := cmpBool(b.State == Held, a.State == Held); r != 0 {
		return r, "held before tentative"
	}
	if r := cmpBool(a.Solo, b.Solo); r != 0 {
		return r, "solo last"
	}
	if r := cmp.Compare(a.Stamp, b.Stamp); r != 0 {
		return r, "held earlier"
	}
	if r := cmp.Compare(tieHash(a.Key), tieHash(b.Key)); r != 0 {
		return r, "hash of prefix and owner"
	}
	if r := bytes.Compare(a.Owner[:], b.Owner[:]); r != 0 {
		return r, "lower owner"
	}
	return comparePrefix(a.Prefix, b.Prefix), "lower prefix"
}

// cmpBool orders false before true.
func cmpBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

func comparePrefix(a, b netip.Prefix) int {
	if r := a.Addr().Compare(b.Addr()); r != 0 {
		return r
	}
	return cmp.Compare(a.Bits(), b.Bits())
}

// tieHash is FNV-1a over address, length and owner.
func tieHash(k Key) uint64 {
	h := fnv.New64a()
	a := k.Prefix.Addr().As16()
	h.Write(a[:])
	h.Write([]byte{byte(k.Prefix.Bits())})
	h.Write(k.Owner[:])
	return h.Sum64()
}
