package membership

import (
	"errors"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func storeOf(t testing.TB, now time.Time, claims ...Claim) *store {
	s := newStore()
	for _, c := range claims {
		if _, err := s.merge(c, now); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// mergeOf is s and o merged, both left alone.
func mergeOf(t testing.TB, now time.Time, s, o *store) *store {
	return storeOf(t, now, slices.Concat(slices.Collect(maps.Values(s.claims)), slices.Collect(maps.Values(o.claims)))...)
}

func sameStore(a, b *store) bool {
	return maps.Equal(a.claims, b.claims) && maps.Equal(countKeys(a.byOwner), countKeys(b.byOwner)) && maps.Equal(countKeys(a.byPrefix), countKeys(b.byPrefix)) && a.digest == b.digest
}

// countKeys is how many keys an index has under each of its own.
func countKeys[K, V comparable](index map[K][]V) map[K]int {
	out := map[K]int{}
	for k, list := range index {
		out[k] = len(list)
	}
	return out
}

func checkStore(t *rapid.T, s *store) {
	t.Helper()
	var digest digests
	byOwner, byPrefix := map[NodeID][]netip.Prefix{}, map[netip.Prefix][]NodeID{}
	for k, c := range s.claims {
		if c.Key != k {
			t.Fatalf("the claim on %v lies under %v", c.Key, k)
		}
		digest.toggle(c)
		byOwner[k.Owner] = append(byOwner[k.Owner], k.Prefix)
		byPrefix[k.Prefix] = append(byPrefix[k.Prefix], k.Owner)
		if !slices.Contains(s.byOwner[k.Owner], k.Prefix) || !slices.Contains(s.byPrefix[k.Prefix], k.Owner) {
			t.Fatalf("an index lacks %+v", k)
		}
	}
	if digest != s.digest || !maps.Equal(countKeys(byOwner), countKeys(s.byOwner)) || !maps.Equal(countKeys(byPrefix), countKeys(s.byPrefix)) {
		t.Fatal("digest or counts do not belong to the claims")
	}
}

func TestStoreMergeIsAJoin(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		draw := func(label string) *store {
			return storeOf(t, simEpoch, rapid.SliceOfN(genClaim(), 0, 12).Draw(rt, label)...)
		}
		a, b, c := draw("a"), draw("b"), draw("c")
		join := func(x, y *store) *store { return mergeOf(t, simEpoch, x, y) }
		if !sameStore(join(a, b), join(b, a)) {
			rt.Fatal("not commutative")
		}
		if !sameStore(join(join(a, b), c), join(a, join(b, c))) {
			rt.Fatal("not associative")
		}
		if !sameStore(join(a, a), a) {
			rt.Fatal("not idempotent")
		}
		all := join(join(a, b), c)
		checkStore(rt, all)
		for k, won := range all.claims { // the join is an upper bound
			for _, s := range []*store{a, b, c} {
				if had, ok := s.claims[k]; ok && had != won && newer(had, won) {
					rt.Fatalf("%+v lost to %+v", had, won)
				}
			}
		}
	})
}

func TestStoreMergeInAnyOrderAndTwice(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		claims := rapid.SliceOfN(genClaim(), 0, 30).Draw(rt, "claims")
		want := storeOf(t, simEpoch, claims...)
		again := rapid.Permutation(slices.Concat(claims, claims)).Draw(rt, "another order")
		got := newStore()
		for _, c := range again {
			before := got.digest
			changed, err := got.merge(c, simEpoch)
			if err != nil || changed != (got.digest != before) {
				rt.Fatalf("changed %v, error %v, digest %x -> %x", changed, err, before, got.digest)
			}
			if again, _ := got.merge(c, simEpoch); again {
				rt.Fatal("the same record is news twice")
			}
		}
		if !sameStore(got, want) {
			rt.Fatal("the order counts")
		}
	})
}

func TestStoreDigestIsThatOfTheContent(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		a := storeOf(t, simEpoch, rapid.SliceOfN(genClaim(), 0, 6).Draw(rt, "a")...)
		b := storeOf(t, simEpoch, rapid.SliceOfN(genClaim(), 0, 6).Draw(rt, "b")...)
		if maps.Equal(a.claims, b.claims) != (a.digest == b.digest) {
			rt.Fatalf("digests %x and %x of %v and %v", a.digest, b.digest, a.claims, b.claims)
		}
	})
}

// TestStoreVersionsDecide: equal versions with different content are possible
// only by a fault; every node then keeps the same one.
func TestStoreVersionsDecide(t *testing.T) {
	c := Claim{Key: Key{pfx("100.96.1.0/24"), testID(1)}, Version: 5, State: Held, Gen: 1, Stamp: 7}
	older, twin, later := c, c, c
	older.Version, older.State = 4, Released
	twin.Stamp = 8
	later.Version, later.State, later.Stamp = 6, Tentative, 0
	for _, tc := range []struct {
		name  string
		order []Claim
		want  Claim
	}{
		{"an old message", []Claim{c, older}, c},
		{"a new one", []Claim{c, later}, later},
		{"the larger bytes of one version", []Claim{c, twin}, twin},
		{"the same, the other way", []Claim{twin, c}, twin},
	} {
		if got := storeOf(t, simEpoch, tc.order...).claims[c.Key]; got != tc.want {
			t.Errorf("%s: %+v", tc.name, got)
		}
	}
}

func TestStoreExpiry(t *testing.T) {
	dead := Claim{Key: Key{pfx("100.96.1.0/24"), testID(1)}, Version: 2, State: Released, Gen: 1, Expiry: uint64(simEpoch.Unix())}
	alive := Claim{Key: Key{pfx("100.96.1.0/24"), testID(2)}, Version: 2, State: Held, Gen: 1, Stamp: 1}
	before := simEpoch.Add(-time.Second)

	s := storeOf(t, before, dead, alive)
	if s.expire(before) {
		t.Error("expired a second early")
	}
	if len(s.owners()) != 2 {
		t.Error("a claim is missing")
	}
	if !s.expire(simEpoch) || s.expire(simEpoch) {
		t.Error("expiry is reported wrongly")
	}
	if want := storeOf(t, before, alive); !sameStore(s, want) {
		t.Errorf("left over: %v", s.claims)
	}
	if got := s.owners(); len(got) != 1 || got[0].Owner != alive.Owner {
		t.Errorf("verdicts on what is left: %v", got)
	}
	if changed, err := s.merge(dead, simEpoch); changed || err != nil || len(s.claims) != 1 {
		t.Errorf("an expired record was taken in: %v, %v", changed, err)
	}
	// A clock before 1970 knows no time at which anything is over.
	if dead.expired(time.Unix(-5, 0)) {
		t.Error("expired before 1970")
	}
}

func TestStoreBounds(t *testing.T) {
	claim := func(i int, owner NodeID) Claim {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24)
		return Claim{Key: Key{p, owner}, Version: 1, State: Held, Gen: 1, Stamp: 1}
	}
	t.Run("of one owner", func(t *testing.T) {
		s := newStore()
		for i := range 1000000 { // a million claims of one node
			_, err := s.merge(claim(i%65536, testID(1)), simEpoch)
			if want := i%65536 >= maxRecordsPerOwner; errors.Is(err, errRecordFull) != want {
				t.Fatalf("claim %d: %v", i, err)
			}
		}
		if len(s.claims) != maxRecordsPerOwner {
			t.Errorf("%d claims", len(s.claims))
		}
		next := claim(0, testID(1))
		next.Version, next.State, next.Expiry = 2, Released, uint64(simEpoch.Unix())+1
		if changed, err := s.merge(next, simEpoch); !changed || err != nil {
			t.Errorf("a new version of a known record: %v, %v", changed, err)
		}
		if _, err := s.merge(claim(0, testID(2)), simEpoch); err != nil {
			t.Errorf("another owner: %v", err)
		}
		s.expire(simEpoch.Add(2 * time.Second))
		if changed, err := s.merge(claim(99, testID(1)), simEpoch); !changed || err != nil {
			t.Errorf("after one has expired: %v, %v", changed, err)
		}
	})
	t.Run("of one prefix", func(t *testing.T) {
		s := newStore()
		for i := range 10 * maxRecordsPerPrefix {
			_, err := s.merge(claim(7, testID(i)), simEpoch)
			if want := i >= maxRecordsPerPrefix; errors.Is(err, errRecordFull) != want {
				t.Fatalf("claim %d: %v", i, err)
			}
		}
		if got := len(s.on(claim(7, testID(0)).Prefix)); got != maxRecordsPerPrefix {
			t.Errorf("%d claims", got)
		}
	})
	t.Run("of all together", func(t *testing.T) {
		s := newStore()
		for i := 0; len(s.claims) < maxRecords; i++ {
			if _, err := s.merge(claim(i%65536, testID(i/32)), simEpoch); err != nil {
				t.Fatal(err)
			}
		}
		before := s.digest
		if _, err := s.merge(claim(0, NodeID{0xff}), simEpoch); !errors.Is(err, errRecordFull) || s.digest != before || len(s.claims) != maxRecords {
			t.Errorf("one too many: %v, %d claims", err, len(s.claims))
		}
	})
}

// TestStoreOwnersIsFresh: the cached verdict follows every kind of change, and
// a slice handed out before stays as it was.
func TestStoreOwnersIsFresh(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	s := newStore()
	now := simEpoch
	for range 200 {
		before := s.owners()
		copied := slices.Clone(before)
		c := Claim{Key: Key{pfx("100.96.1.0/24"), testID(rng.IntN(3))}, Version: uint64(rng.IntN(50) + 1), State: ClaimState(rng.IntN(3) + 1), Gen: 1, Stamp: 1}
		if c.State == Released {
			c.Expiry = uint64(now.Unix()) + uint64(rng.IntN(3)+1)
		}
		s.merge(c, now)
		now = now.Add(time.Second)
		s.expire(now)
		if !slices.Equal(before, copied) {
			t.Fatal("a verdict was changed after it was given out")
		}
		if !slices.Equal(s.owners(), verdicts(s.claims)) {
			t.Fatal("the verdict is stale")
		}
	}
}
