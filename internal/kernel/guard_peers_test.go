package kernel

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"testing"
)

// The ranges cover what the prefixes cover, do not overlap, and belong to the
// longest prefix, against a model that looks at every address.
func TestGuardDisjoint(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 6))
	for range 3000 {
		var claims []claim
		for range r.IntN(8) {
			p := netip.PrefixFrom(netip.AddrFrom4([4]byte{255, 255, 255, byte(r.Uint32())}), 24+r.IntN(9)).Masked()
			claims = append(claims, claim{p, [16]byte{byte(r.IntN(3))}})
		}
		want := make(map[netip.Addr][16]byte)
		for i := range 256 {
			a := netip.AddrFrom4([4]byte{255, 255, 255, byte(i)})
			bits := -1
			for _, c := range claims {
				if !c.prefix.Contains(a) {
					continue
				}
				if old := want[a]; c.prefix.Bits() > bits || c.prefix.Bits() == bits && bytes.Compare(c.peer[:], old[:]) < 0 {
					bits, want[a] = c.prefix.Bits(), c.peer
				}
			}
		}
		got := make(map[netip.Addr][16]byte)
		all := claimList{setSent4, "x"}.disjoint(append([]claim(nil), claims...))
		for i, e := range all {
			if i > 0 && !all[i-1].to.Less(e.from) || e.to.Less(e.from) {
				t.Fatalf("%v: ranges in no order: %v", claims, all)
			}
			for a := e.from; a.IsValid() && !e.to.Less(a); a = a.Next() {
				got[a] = e.peer
			}
			if !overlapping(e, all) {
				t.Fatalf("%v does not overlap itself", e)
			}
		}
		for a, peer := range want {
			if got[a] != peer {
				t.Fatalf("%v: %v belongs to %x, want %x: %v", claims, a, got[a], peer, all)
			}
		}
		if len(got) != len(want) {
			t.Fatalf("%v cover %d addresses, the ranges %d", claims, len(want), len(got))
		}
		// Overlapping, against the same map.
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{255, 255, 255, byte(r.Uint32())}), 24+r.IntN(9)).Masked()
		e := guardElement{guardKey: guardKey{setSent4, "x", p.Addr(), lastAddr(p)}}
		hit := false
		for a := range want {
			hit = hit || p.Contains(a)
		}
		if overlapping(e, all) != hit {
			t.Fatalf("%v overlaps %v: %v", p, all, !hit)
		}
		e.head = "y"
		if overlapping(e, all) {
			t.Fatal("overlaps what has another head")
		}
	}
}
