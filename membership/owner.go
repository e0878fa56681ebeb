package membership

import (
	"bytes"
	"cmp"
	"hash/fnv"
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"
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

// judge is the owner function: which of the claims own their prefixes. It
// takes the strongest claim first and accepts greedily whatever overlaps
// nothing accepted before. Released claims own nothing. The result depends on
// the set of claims alone, and is sorted by prefix, the stronger first.
func judge(claims map[Key]Claim) []ClaimInfo {
	out := make([]ClaimInfo, 0, len(claims))
	for _, c := range claims {
		out = append(out, ClaimInfo{Claim: c})
	}
	slices.SortFunc(out, func(a, b ClaimInfo) int {
		if r := cmpBool(a.State == Released, b.State == Released); r != 0 {
			return r
		}
		return compareClaims(a.Claim, b.Claim)
	})
	var taken bart.Table[int] // prefix -> index in out of the accepted claim
	for i := range out {
		c := &out[i]
		if c.State == Released {
			c.Why = "released"
			continue
		}
		if j, ok := overlapping(&taken, c.Prefix); ok {
			_, rule := compareWhy(out[j].Claim, c.Claim)
			c.Why = "loses to " + out[j].Owner.String()[:8] + " (" + rule + ")"
			if out[j].Prefix != c.Prefix {
				c.Why = "overlaps " + out[j].Prefix.String() + ", " + c.Why
			}
			continue
		}
		taken.Insert(c.Prefix, i)
		c.Accepted = true
		c.Why = "no stronger claim"
	}
	slices.SortStableFunc(out, func(a, b ClaimInfo) int { return comparePrefix(a.Prefix, b.Prefix) })
	return out
}

// overlapping finds an entry of t that overlaps p.
func overlapping(t *bart.Table[int], p netip.Prefix) (int, bool) {
	if v, ok := t.LookupPrefix(p); ok { // an entry that covers p
		return v, true
	}
	for _, v := range t.Subnets(p) { // an entry inside p
		return v, true
	}
	return 0, false
}
