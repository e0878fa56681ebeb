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

// TestDigests: equal for equal sets, whatever the order, also on the wire; and a
// record's versions are all in one share.
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
		wire := a.append(nil)
		if got := readDigests(wire); got != a || len(wire) != digestLen {
			t.Fatalf("%x: %v, want %v", wire, got, a)
		}
		later := digestClaim(n, testID(n))
		b.toggle(later)
		if a.all == b.all {
			t.Fatal("one more record, and the same digest")
		}
		b.toggle(later)
		later.Version += 7
		b.toggle(later)
		differ := 0
		for i := range a.shares {
			if a.shares[i] != b.shares[i] {
				differ++
			}
		}
		if differ > 1 {
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

// TestDigestWatch: what was missed is noticed within seconds, however many other
// claims come meanwhile; what is only under way is not; and who never agrees is asked
// seldom.
func TestDigestWatch(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for _, every := range []time.Duration{time.Hour, time.Second, 200 * time.Millisecond} {
		var (
			w            digestWatch
			own, theirs  digests
			now          = simEpoch
			asks         int
			first, churn time.Duration
		)
		theirs.toggle(digestClaim(0, testID(0))) // the one that was missed
		for at := time.Duration(0); at < 2*time.Minute; at += time.Second {
			for ; churn <= at; churn += every {
				c := digestClaim(1+rng.IntN(1<<16), testID(7))
				theirs.toggle(c)
				own.toggle(c)
			}
			if w.missed(&own, &theirs, now.Add(at)) {
				if asks++; asks == 1 {
					first = at
				}
				w.asked(now.Add(at))
			}
		}
		if limit := 5 * time.Second; first < digestPatience || first > limit && every >= time.Second || first > 20*time.Second {
			t.Errorf("a claim each %v: noticed after %v", every, first)
		}
		if asks > 12 {
			t.Errorf("a claim each %v: asked %d times in two minutes", every, asks)
		}
	}

	var w digestWatch
	var own, theirs digests
	for i := range 600 { // each claim is known there a second before it is here
		now := simEpoch.Add(time.Duration(i) * time.Second)
		theirs.toggle(digestClaim(i, testID(i)))
		if i > 0 {
			own.toggle(digestClaim(i-1, testID(i-1)))
		}
		if w.missed(&own, &theirs, now) {
			t.Fatalf("what was under way was asked for at %d s", i)
		}
	}
}

// TestDigestWatchOfOdd: one node that is alone with its records is no reason to ask.
func TestDigestWatchOfOdd(t *testing.T) {
	var w digestWatch
	var own, odd digests
	odd.toggle(digestClaim(0, testID(0)))
	for i := range 600 {
		theirs := &own
		if i%2 == 0 {
			theirs = &odd
		}
		if w.missed(&own, theirs, simEpoch.Add(time.Duration(i)*time.Second)) {
			t.Fatalf("asked at %d s", i)
		}
	}
}
