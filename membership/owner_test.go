package membership

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// TestCompareClaimsRules has a pair for each rule, in the order of the rules:
// a is the stronger by that rule, and the weaker by every one behind it.
func TestCompareClaimsRules(t *testing.T) {
	p := pfx("100.96.1.0/24")
	lowHash, highHash := testID(0), testID(1)
	if tieHash(Key{p, lowHash}) > tieHash(Key{p, highHash}) {
		lowHash, highHash = highHash, lowHash
	}
	low := func(c Claim) Claim { c.Key = Key{p, lowHash}; return c }
	high := func(c Claim) Claim { c.Key = Key{p, highHash}; return c }
	for _, tc := range []struct {
		rule string
		a, b Claim
	}{
		{"static before dynamic",
			high(Claim{Static: true, Gen: 1, State: Tentative, Solo: true, Stamp: 9}),
			low(Claim{Gen: 2, State: Held, Stamp: 1})},
		{"higher generation",
			high(Claim{Gen: 2, State: Tentative, Solo: true, Stamp: 9}),
			low(Claim{Gen: 1, State: Held, Stamp: 1})},
		{"held before tentative",
			high(Claim{Gen: 1, State: Held, Solo: true, Stamp: 9}),
			low(Claim{Gen: 1, State: Tentative, Stamp: 1})},
		{"solo last",
			high(Claim{Gen: 1, State: Held, Stamp: 9}),
			low(Claim{Gen: 1, State: Held, Solo: true, Stamp: 1})},
		{"held earlier",
			high(Claim{Gen: 1, State: Held, Stamp: 1}),
			low(Claim{Gen: 1, State: Held, Stamp: 2})},
		{"hash of prefix and owner",
			low(Claim{Gen: 1, State: Held, Stamp: 1}),
			high(Claim{Gen: 1, State: Held, Stamp: 1})},
	} {
		t.Run(tc.rule, func(t *testing.T) {
			for _, static := range []bool{false, true} { // both classes know the same rules
				a, b := tc.a, tc.b
				a.Static, b.Static = a.Static || static, b.Static || static
				if static && tc.a.Static {
					continue
				}
				for _, v := range []uint64{1, 5} { // versions say nothing
					a.Version, b.Version = v, 3
					if r, rule := compareWhy(a, b); r >= 0 || rule != tc.rule {
						t.Errorf("a to b: %d by %q", r, rule)
					}
					if r, rule := compareWhy(b, a); r <= 0 || rule != tc.rule {
						t.Errorf("b to a: %d by %q", r, rule)
					}
				}
			}
		})
	}
}

func TestCompareClaimsIsATotalOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := genClaim().Draw(t, "a"), genClaim().Draw(t, "b"), genClaim().Draw(t, "c")
		ab, bc, ac := compareClaims(a, b), compareClaims(b, c), compareClaims(a, c)
		if compareClaims(a, a) != 0 {
			t.Fatal("a differs from itself")
		}
		if ab != -compareClaims(b, a) {
			t.Fatal("not antisymmetric")
		}
		if ab == 0 && a.Key != b.Key {
			t.Fatal("two keys, no order")
		}
		if ab <= 0 && bc <= 0 && (ac > 0 || ac == 0 && (ab != 0 || bc != 0)) {
			t.Fatalf("not transitive: %d %d %d", ab, bc, ac)
		}
	})
}

// stronger is the order of DESIGN.md section 4, said once more and slowly.
func stronger(a, b Claim) bool {
	rank := func(c Claim) []byte {
		no := func(b bool) byte {
			if b {
				return 0
			}
			return 1
		}
		return fmt.Appendf(nil, "%d %020d %d %d %020d %020d %x %x %03d", no(c.Static), maxCounter-c.Gen, no(c.State == Held), no(!c.Solo),
			uint64(c.Stamp), tieHash(c.Key), c.Owner[:], c.Prefix.Addr().As16(), c.Prefix.Bits())
	}
	return bytes.Compare(rank(a), rank(b)) < 0
}

// verdicts is the owner function on a set of claims, from nothing.
func verdicts(claims map[Key]Claim) []ClaimInfo {
	s := newStore()
	for _, c := range claims {
		s.merge(c, time.Unix(0, 0))
	}
	return s.owners()
}

// judgeSlowly is the model of the owner function: again and again the strongest
// of what is left is accepted, and whatever overlaps it is beaten. What a later
// generation of its class has ended is not there.
func judgeSlowly(claims map[Key]Claim) (accepted map[Key]bool) {
	var left []Claim
	for _, c := range claims {
		over := false
		for _, r := range claims {
			over = over || r.Prefix == c.Prefix && r.State == Released && r.Stamp != 0 && r.Static == c.Static && r.Gen > c.Gen
		}
		if c.State != Released && !over {
			left = append(left, c)
		}
	}
	accepted = map[Key]bool{}
	for len(left) > 0 {
		best := left[0]
		for _, c := range left {
			if stronger(c, best) {
				best = c
			}
		}
		accepted[best.Key] = true
		left = slices.DeleteFunc(left, func(c Claim) bool { return c.Prefix.Overlaps(best.Prefix) })
	}
	return accepted
}

func TestJudgeAgainstTheModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		claims := map[Key]Claim{}
		for _, c := range rapid.SliceOfN(genClaim(), 0, 40).Draw(t, "claims") {
			claims[c.Key] = c
		}
		want := judgeSlowly(claims)
		got := verdicts(claims)
		if len(got) != len(claims) {
			t.Fatalf("%d verdicts on %d claims", len(got), len(claims))
		}
		var accepted []ClaimInfo
		for i, c := range got {
			if c.Claim != claims[c.Key] {
				t.Fatalf("a claim was changed: %+v, %+v", c.Claim, claims[c.Key])
			}
			if c.Accepted != want[c.Key] {
				t.Fatalf("%v of %v: accepted %v, the model says %v", c.Prefix, c.Owner, c.Accepted, want[c.Key])
			}
			if c.Why == "" {
				t.Fatal("a verdict without a reason")
			}
			if c.Accepted {
				accepted = append(accepted, c)
			}
			if i > 0 {
				p := got[i-1]
				switch by := comparePrefix(p.Prefix, c.Prefix); {
				case by > 0:
					t.Fatalf("%v comes before %v", p.Prefix, c.Prefix)
				case by == 0 && p.State != Released && c.State != Released && compareClaims(p.Claim, c.Claim) >= 0:
					t.Fatalf("of %v the weaker comes first", c.Prefix)
				case by == 0 && c.Accepted && !p.Ended:
					t.Fatalf("of %v not the first counts", c.Prefix)
				}
			}
		}
		for _, c := range got {
			beaten := false
			for _, a := range accepted {
				if a.Key != c.Key && a.Prefix.Overlaps(c.Prefix) {
					if c.Accepted {
						t.Fatalf("%v and %v overlap and are both accepted", a.Prefix, c.Prefix)
					}
					beaten = beaten || compareClaims(a.Claim, c.Claim) < 0
				}
			}
			if c.State != Released && !c.Accepted && !beaten && !c.Ended {
				t.Fatalf("%v of %v loses to nobody", c.Prefix, c.Owner)
			}
		}
	})
}

// TestJudgeIsAFunctionOfTheSet: maps range in another order each time, and
// records arrive in any.
func TestJudgeIsAFunctionOfTheSet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		list := rapid.SliceOfNDistinct(genClaim(), 0, 30, func(c Claim) Key { return c.Key }).Draw(t, "claims")
		again := rapid.Permutation(list).Draw(t, "another order")
		verdict := func(list []Claim) []ClaimInfo {
			m := map[Key]Claim{}
			for _, c := range list {
				m[c.Key] = c
			}
			return verdicts(m)
		}
		want := verdict(list)
		if d := cmp.Diff(want, verdict(again), cmpRecords); d != "" {
			t.Fatal(d)
		}
	})
}

func TestJudgeReasons(t *testing.T) {
	a := Claim{Key: Key{pfx("100.96.0.0/20"), testID(0)}, Version: 1, State: Held, Static: true, Gen: 1, Stamp: 1}
	b := Claim{Key: Key{pfx("100.96.1.0/24"), testID(1)}, Version: 1, State: Held, Gen: 1, Stamp: 1}
	c := Claim{Key: Key{pfx("100.96.1.0/24"), testID(2)}, Version: 1, State: Tentative, Gen: 1}
	d := Claim{Key: Key{pfx("100.96.1.0/24"), testID(3)}, Version: 1, State: Released, Gen: 9}
	for _, tc := range []struct {
		claims []Claim
		of     NodeID
		want   string
	}{
		{[]Claim{b}, b.Owner, "no stronger claim"},
		{[]Claim{b, c, d}, b.Owner, "no stronger claim"},
		{[]Claim{b, c, d}, c.Owner, "loses to 00000000 (held before tentative)"},
		{[]Claim{b, c, d}, d.Owner, "released"},
		{[]Claim{a, b}, b.Owner, "overlaps 100.96.0.0/20, loses to 00000000 (static before dynamic)"},
	} {
		m := map[Key]Claim{}
		for _, c := range tc.claims {
			m[c.Key] = c
		}
		for _, v := range verdicts(m) {
			if v.Owner == tc.of && v.Why != tc.want {
				t.Errorf("of %v in %d claims: %q, want %q", v.Prefix, len(m), v.Why, tc.want)
			}
		}
	}
}

// manyClaims is a store's content with n claims: held /24s of n nodes, and of
// every tenth prefix a beaten claim and a tombstone more.
func manyClaims(n int) map[Key]Claim {
	claims := make(map[Key]Claim, n)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := 0; len(claims) < n; i++ {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24)
		add := func(c Claim) { c.Version, c.Gen = 1, 1; claims[c.Key] = c }
		add(Claim{Key: Key{p, testID(i)}, State: Held, Stamp: Stamp(rng.Uint64N(1<<60) + 1)})
		if i%10 == 0 {
			add(Claim{Key: Key{p, testID(i + 100000)}, State: Tentative})
			add(Claim{Key: Key{p, testID(i + 200000)}, State: Released, Expiry: 1})
		}
	}
	return claims
}
