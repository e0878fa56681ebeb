package membership

import (
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// digestClaim is the claim of an owner on some subnet.
func digestClaim(i int, owner NodeID) Claim {
	return Claim{Key: Key{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24), owner}, Version: 1, State: Held, Gen: 1, Expiry: 1 << 40}
}

// TestDigests: equal for equal sets, whatever the order; a record's versions are all
// in one share, which they change; and what travels says so.
func TestDigests(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var a, b digests
		n := rapid.IntRange(0, 50).Draw(t, "records")
		for i := range n {
			a.toggle(digestClaim(i, testID(i)))
			b.toggle(digestClaim(n-1-i, testID(n-1-i)))
		}
		if a != b {
			t.Fatalf("%v, %v", a, b)
		}
		v := new(digestView).next(a, simEpoch)
		if v.next(b, simEpoch.Add(time.Hour)) != v {
			t.Fatal("nothing has changed, and it is another view")
		}
		later := digestClaim(n, testID(n))
		later.Expiry = rapid.Uint64().Draw(t, "expiry")
		b.toggle(later)
		after := v.next(b, simEpoch.Add(time.Second))
		b.toggle(later)
		later.Expiry++
		b.toggle(later)
		again := after.next(b, simEpoch.Add(2*time.Second))
		if v.all == after.all || after.all == again.all {
			t.Fatal("another record, and the same digest")
		}
		now := simEpoch.Add(3 * time.Second)
		wire := again.append(nil, now)
		if len(wire) != digestLen {
			t.Fatalf("%d bytes", len(wire))
		}
		got, differ := readDigests(wire), 0
		for i := range got.shares {
			want := 25500 * time.Millisecond // never, which is long ago
			switch {
			case again.shares[i] != v.shares[i]:
				want = time.Second
				differ++
			case v.shares[i] != 0:
				want = 3 * time.Second
			case v.changed[i] != time.Time{}: // two records of one share and hash: as good as never
				want = got.quiet[i]
			}
			if got.shares[i] != again.shares[i] || got.quiet[i] != want {
				t.Fatalf("share %d: %x, quiet for %v; want %x, %v", i, got.shares[i], got.quiet[i], again.shares[i], want)
			}
		}
		if differ != 1 {
			t.Fatalf("one record in %d shares", differ)
		}
	})
}

// TestDigestsSpread: the shares are of one size.
func TestDigestsSpread(t *testing.T) {
	var counts [shareCount]int
	for i := range 100 * shareCount {
		var d digests
		d.toggle(digestClaim(i, testID(i)))
		for s, v := range d.shares {
			if v != 0 {
				counts[s]++
			}
		}
	}
	for s, n := range counts {
		if n < 50 || n > 150 {
			t.Errorf("share %d has %d records: %v", s, n, counts)
		}
	}
}

// side is a node's records in the tests of digestWatch.
type side struct {
	d digests
	v *digestView
	w digestWatch
}

func newSide() *side { return &side{v: new(digestView)} }

func (s *side) toggle(c Claim, now time.Time) {
	s.d.toggle(c)
	s.v = s.v.next(s.d, now)
}

// ask compares s with o, over the wire, and reports whether s asks for everything.
func (s *side) ask(o *side, now time.Time) bool {
	r := readDigests(o.v.append(nil, now))
	shares := s.w.missed(s.v, &r, now)
	s.w.asked(shares, now)
	return len(shares) > 0
}

// TestDigestWatch: what was missed is noticed within seconds, by whoever of the two
// looks, also while other claims come; and who is never helped asks less and less.
func TestDigestWatch(t *testing.T) {
	for _, every := range []time.Duration{time.Hour, time.Second, 200 * time.Millisecond} {
		for _, mine := range []bool{false, true} {
			rng := rand.New(rand.NewPCG(1, 1))
			own, other := newSide(), newSide()
			has := other
			if mine {
				has = own
			}
			has.toggle(digestClaim(0, testID(0)), simEpoch)
			var first, churn time.Duration
			asks := 0
			for at := time.Duration(0); at < 10*time.Minute; at += time.Second {
				now := simEpoch.Add(at)
				for ; churn <= at; churn += every {
					c := digestClaim(1+rng.IntN(1<<16), testID(7))
					own.toggle(c, simEpoch.Add(churn))
					other.toggle(c, simEpoch.Add(churn))
				}
				if own.ask(other, now) {
					if asks++; asks == 1 {
						first = at
					}
				}
			}
			if limit := 5 * time.Second; first < digestPatience || first > limit && every >= time.Second || first > 20*time.Second {
				t.Errorf("a claim each %v: noticed after %v", every, first)
			}
			if asks > 100 {
				t.Errorf("a claim each %v: asked %d times in ten minutes", every, asks)
			}
		}
	}
}

// TestDigestWatchUnderWay: what is known there a second before or after it is here
// needs no help, however many there are.
func TestDigestWatchUnderWay(t *testing.T) {
	for _, every := range []time.Duration{50 * time.Millisecond, time.Second, 10 * time.Second} {
		early, late := newSide(), newSide()
		type news struct {
			c  Claim
			at time.Duration
		}
		var waiting []news
		next := time.Duration(0)
		for at := time.Duration(0); at < 5*time.Minute; at += 50 * time.Millisecond {
			now := simEpoch.Add(at)
			for len(waiting) > 0 && waiting[0].at <= at {
				late.toggle(waiting[0].c, now)
				waiting = waiting[1:]
			}
			if at >= next {
				c := digestClaim(int(at/(50*time.Millisecond)), testID(1))
				early.toggle(c, now)
				waiting = append(waiting, news{c, at + 1500*time.Millisecond})
				next += every
			}
			if early.ask(late, now) || late.ask(early, now) {
				t.Fatalf("a claim each %v: what was under way was asked for after %v", every, at)
			}
		}
	}
}
