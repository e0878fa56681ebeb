package membership

import (
	"net/netip"
	"testing"

	"github.com/gaissmai/bart"
	"pgregory.net/rapid"
)

func tableOf(prefixes ...netip.Prefix) *bart.Table[int] {
	var t bart.Table[int]
	for _, p := range prefixes {
		t.Insert(p, 0)
	}
	return &t
}

// TestSpaceCoversEverySubnetOnce walks whole spaces.
func TestSpaceCoversEverySubnetOnce(t *testing.T) {
	for _, s := range []space{
		{pfx("10.0.0.0/8"), 24}, {pfx("10.0.0.0/8"), 8}, {pfx("100.96.0.0/16"), 24}, {pfx("192.168.7.0/24"), 30}, {pfx("128.0.0.0/1"), 12},
		{pfx("fd96::/48"), 64}, {pfx("fd96::/56"), 64}, {pfx("fd96:0:0:12::/64"), 64}, {pfx("fd96::/60"), 68}, {pfx("fd96::/120"), 126}, {pfx("fd00::/8"), 20},
	} {
		var seen bart.Table[int]
		for i := range s.size() {
			p := s.at(i)
			if !p.IsValid() || p != p.Masked() || p.Bits() != s.length || !s.network.Contains(p.Addr()) {
				t.Fatalf("%v /%d: index %d is %v", s.network, s.length, i, p)
			}
			seen.Insert(p, 0)
		}
		if want := uint64(1) << (s.length - s.network.Bits()); uint64(seen.Size()) != want || s.size() != want {
			t.Errorf("%v /%d: %d subnets, size %d, want %d", s.network, s.length, seen.Size(), s.size(), want)
		}
	}
}

// TestSpaceIsOneToOne draws from spaces too large to walk, up to the widest
// that settings allow.
func TestSpaceIsOneToOne(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := genSettings().Draw(t, "settings")
		for k, n := range s.Networks {
			sp := space{n, s.SubnetLens[k]}
			i := rapid.Uint64Max(sp.size()-1).Draw(t, "i")
			j := rapid.Uint64Max(sp.size()-1).Draw(t, "j")
			p, q := sp.at(i), sp.at(j)
			if p != p.Masked() || p.Bits() != sp.length || !n.Contains(p.Addr()) || !s.admits(Claim{Key: Key{Prefix: p}}) {
				t.Fatalf("%v /%d: index %d is %v", n, sp.length, i, p)
			}
			if (i == j) != (p == q) || i < j != (comparePrefix(p, q) < 0) {
				t.Fatalf("indices %d and %d are %v and %v", i, j, p, q)
			}
			if p != q && p.Overlaps(q) {
				t.Fatalf("%v and %v overlap", p, q)
			}
		}
	})
}

func TestPickFindsTheLastFreeOne(t *testing.T) {
	// 65,536 /24s in a /8, as many /64s in a /48: all but one are taken.
	for _, s := range []space{{pfx("10.0.0.0/8"), 24}, {pfx("fd96::/48"), 64}} {
		var taken bart.Table[int]
		for i := range s.size() {
			taken.Insert(s.at(i), 0)
		}
		if p, ok := s.pick(testID(0), &taken, nil); ok {
			t.Fatalf("%v is free in a full network", p)
		}
		for k, i := range []uint64{0, 1, 32767, 32768, 65534, 65535} {
			want := s.at(i)
			taken.Delete(want)
			if p, ok := s.pick(testID(k), &taken, nil); !ok || p != want {
				t.Fatalf("picked %v %v, only %v is free", p, ok, want)
			}
			if p, ok := s.pick(testID(k), &taken, map[netip.Prefix]bool{want: true}); ok {
				t.Fatalf("picked %v, which was refused", p)
			}
			taken.Insert(want, 0)
		}
	}
}

// TestPickAroundWidePrefixes: static subnets cover much of a space too large to
// walk, and a little is left. That this ends at all says that whole prefixes
// are skipped, not single subnets.
func TestPickAroundWidePrefixes(t *testing.T) {
	for _, tc := range []struct {
		name   string
		space  space
		taken  []string
		inside string // where all that is free lies
	}{
		{"half of a /8", space{pfx("10.0.0.0/8"), 24}, []string{"10.0.0.0/9"}, "10.128.0.0/9"},
		{"all but a /24 of a /8", space{pfx("10.0.0.0/8"), 24}, allBut("10.0.0.0/8", "10.77.3.0/24"), "10.77.3.0/24"},
		{"all but a /64 of a /48", space{pfx("fd96::/48"), 64}, allBut("fd96::/48", "fd96:0:0:abcd::/64"), "fd96:0:0:abcd::/64"},
		{"all but a /64 of a /16", space{pfx("fd96::/16"), 64}, allBut("fd96::/16", "fd96:1234:5678:9abc::/64"), "fd96:1234:5678:9abc::/64"},
		{"all but a /40 of a /16, /80s", space{pfx("fd96::/16"), 80}, allBut("fd96::/16", "fd96:1234:5600::/40"), "fd96:1234:5600::/40"},
		{"small ones inside ours", space{pfx("192.168.0.0/22"), 24}, []string{"192.168.0.4/30", "192.168.1.128/25", "192.168.3.0/24", "192.168.3.8/29"}, "192.168.2.0/24"},
		{"small ones inside wide ones", space{pfx("10.0.0.0/8"), 24}, append(allBut("10.0.0.0/8", "10.255.255.0/24"), "10.255.0.0/24", "10.0.0.0/24", "10.3.0.0/16"), "10.255.255.0/24"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var taken bart.Table[int]
			for _, p := range tc.taken {
				taken.Insert(pfx(p), 0)
			}
			for id := range 20 {
				p, ok := tc.space.pick(testID(id), &taken, nil)
				if !ok || !pfx(tc.inside).Overlaps(p) || taken.OverlapsPrefix(p) || p.Bits() != tc.space.length {
					t.Fatalf("picked %v, %v", p, ok)
				}
			}
			taken.Insert(pfx(tc.inside), 0)
			if p, ok := tc.space.pick(testID(0), &taken, nil); ok {
				t.Errorf("picked %v, nothing is free", p)
			}
		})
	}
}

// allBut returns the prefixes that make up whole without hole.
func allBut(whole, hole string) []string {
	w, h := pfx(whole), pfx(hole)
	var out []string
	for l := h.Bits(); l > w.Bits(); l-- {
		// The sibling of the prefix of length l around the hole.
		a := h.Addr().As16()
		bit := l - 1
		if h.Addr().Is4() {
			bit += 96
		}
		a[bit/8] ^= 0x80 >> (bit % 8)
		out = append(out, netip.PrefixFrom(netip.AddrFrom16(a).Unmap(), l).Masked().String())
	}
	return out
}

func TestPickFull(t *testing.T) {
	s := space{pfx("100.96.0.0/30"), 30} // of one subnet
	if p, ok := s.pick(testID(0), tableOf(), nil); !ok || p != s.network {
		t.Errorf("picked %v, %v", p, ok)
	}
	for name, taken := range map[string]*bart.Table[int]{
		"itself": tableOf(s.network), "around it": tableOf(pfx("100.96.0.0/16")), "inside it": tableOf(pfx("100.96.0.2/32")),
	} {
		if p, ok := s.pick(testID(0), taken, nil); ok {
			t.Errorf("%s: picked %v", name, p)
		}
	}
	if p, ok := s.pick(testID(0), tableOf(), map[netip.Prefix]bool{s.network: true}); ok {
		t.Errorf("refused: picked %v", p)
	}
	// What other networks and the other family hold does not count.
	if _, ok := s.pick(testID(0), tableOf(pfx("100.96.0.4/30"), pfx("::/1")), nil); !ok {
		t.Error("taken by a stranger")
	}
}

// TestPickAgainstTheModel: pick finds a free subnet exactly when there is one,
// always the same one, and never one that is taken or refused.
func TestPickAgainstTheModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := space{pfx("100.96.0.0/24"), 30}
		if rapid.Bool().Draw(t, "v6") {
			s = space{pfx("fd96::/58"), 64}
		}
		var taken bart.Table[int]
		for range rapid.IntRange(0, 80).Draw(t, "n taken") {
			i := rapid.Uint64Max(s.size()-1).Draw(t, "taken")
			length := s.length + rapid.IntRange(-5, 2).Draw(t, "wider")
			taken.Insert(netip.PrefixFrom(s.at(i).Addr(), length).Masked(), 0)
		}
		refused := map[netip.Prefix]bool{}
		for range rapid.IntRange(0, 5).Draw(t, "n refused") {
			refused[s.at(rapid.Uint64Max(s.size()-1).Draw(t, "refused"))] = true
		}
		free := map[netip.Prefix]bool{}
		for i := range s.size() {
			if p := s.at(i); !refused[p] && !taken.OverlapsPrefix(p) {
				free[p] = true
			}
		}
		id := testID(rapid.IntRange(0, 100).Draw(t, "id"))
		p, ok := s.pick(id, &taken, refused)
		if ok != (len(free) > 0) || ok && !free[p] {
			t.Fatalf("picked %v, %v; free are %v", p, ok, free)
		}
		if q, _ := s.pick(id, &taken, refused); q != p {
			t.Fatalf("picked %v, then %v", p, q)
		}
	})
}

// TestPickSpreads: nodes that choose at the same time seldom choose alike.
func TestPickSpreads(t *testing.T) {
	s := space{pfx("10.0.0.0/8"), 24}
	seen := map[netip.Prefix]int{}
	for i := range 1000 {
		p, ok := s.pick(testID(i), tableOf(), nil)
		if !ok {
			t.Fatal("nothing is free in an empty network")
		}
		seen[p]++
	}
	// Of 1000 draws among 65,536, about 7.6 fall on one drawn before.
	if same := 1000 - len(seen); same > 30 {
		t.Errorf("%d of 1000 nodes choose alike", same)
	}
}

// BenchmarkPickNearlyFull is a pick among 65,536 subnets of which one is free.
func BenchmarkPickNearlyFull(b *testing.B) {
	s := space{pfx("10.0.0.0/8"), 24}
	var taken bart.Table[int]
	for i := range s.size() - 1 {
		taken.Insert(s.at(i), 0)
	}
	i := 0
	for b.Loop() {
		if _, ok := s.pick(testID(i), &taken, nil); !ok {
			b.Fatal("the free one was not found")
		}
		i++
	}
}
