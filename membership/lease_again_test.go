package membership

import (
	"net/netip"
	"strings"
	"testing"
	"time"
)

// What one lease leaves behind must not decide about the next.

// TestLeaseBeatenAnew: a node that lost a lease gets the whole spreading time
// for its next one too, also when that is beaten before it was ever looked at.
func TestLeaseBeatenAnew(t *testing.T) {
	d := drive(t, testID(1), oneNetwork, nil)
	for range 2 {
		mine := d.heldClaim()
		rival := mine
		rival.Owner, rival.Stamp = testID(2), mine.Stamp-1
		d.hears(rival)
		if got := kinds(d.steps()) + kinds(d.wait(simSpread-1)); got != "" {
			t.Fatalf("it gives way too soon: %q", got)
		}
		if got := kinds(d.wait(1)); got != "lost publish persist publish" {
			t.Fatalf("effects: %q", got)
		}
	}
}

// TestLeaseStampAfterThoseSeen: who hears of a lease and then gets one is the
// later of the two, however slow its clock. A stamp more than a day ahead is a
// broken clock's and moves nobody's.
func TestLeaseStampAfterThoseSeen(t *testing.T) {
	ahead := func(by time.Duration) Stamp { return stampOf(simEpoch.Add(by)) }
	for _, tc := range []struct {
		seen  Stamp
		after bool
	}{
		{ahead(time.Hour), true},
		{ahead(23 * time.Hour), true},
		{ahead(25 * time.Hour), false},
		{^Stamp(0), false},
	} {
		d := drive(t, testID(1), oneNetwork, nil)
		sp := space{oneNetwork.Networks[0], 24}
		d.hears(Claim{Key: Key{sp.at(0), testID(2)}, Version: 1, State: Held, Gen: 1, Stamp: tc.seen})
		c := d.heldClaim()
		if after := c.Stamp > tc.seen; after != tc.after {
			t.Errorf("seen %v, took %v", tc.seen.Time(), c.Stamp.Time())
		}
		if !tc.after && c.Stamp != stampOf(d.now) {
			t.Errorf("seen %v, and the clock moved to %v", tc.seen.Time(), c.Stamp.Time())
		}
	}
}

// TestLeaseFullTriesAgain: who found no subnet says so once, asks to be called
// again, and takes what becomes free.
func TestLeaseFullTriesAgain(t *testing.T) {
	s := subnets(0)
	d := drive(t, testID(1), s, nil)
	taken := Claim{Key: Key{s.Networks[0], testID(2)}, Version: 1, State: Held, Gen: 1, Stamp: 1, Expiry: d.freshExpiry(d.now)}
	d.hears(taken)
	d.others(true)
	d.fullSync(d.now, true)
	for i, want := range []string{"full", "", ""} {
		todo, next := d.step(d.now)
		if got := kinds(todo); got != want {
			t.Fatalf("try %d: %q, want %q", i, got, want)
		}
		if !next.Equal(d.now.Add(simSpread)) {
			t.Fatalf("try %d: to be called again at %v, it is %v", i, next, d.now)
		}
		d.now = next
	}
	taken.Version, taken.State = 2, Released
	d.hears(taken)
	if c := d.heldClaim(); c.Prefix != s.Networks[0] || c.Gen != 2 {
		t.Errorf("%+v", c)
	}
}

// TestLeaseFullSaysWhy: what a node keeps free itself is named as a reason.
func TestLeaseFullSaysWhy(t *testing.T) {
	s := subnets(1)
	low, high := netip.MustParsePrefix("100.96.0.0/24"), netip.MustParsePrefix("100.96.1.0/24")
	for _, tt := range []struct {
		name     string
		reserved netip.Prefix
		want     bool
	}{{"nothing is kept free", netip.MustParsePrefix("198.51.100.0/24"), false}, {"half is", low, true}} {
		d := drive(t, testID(1), s, nil)
		d.reserved = []netip.Prefix{tt.reserved}
		for i, p := range []netip.Prefix{low, high} {
			d.hears(Claim{Key: Key{p, testID(2 + i)}, Version: 1, State: Held, Gen: 1, Stamp: 1, Expiry: d.freshExpiry(d.now)})
		}
		d.others(true)
		d.fullSync(d.now, true)
		todo, _ := d.step(d.now)
		if len(todo) != 1 || todo[0].kind != effectFull || strings.Contains(todo[0].reason, "keeps free") != tt.want || !strings.HasPrefix(todo[0].reason, "no /") {
			t.Errorf("%s: %+v", tt.name, todo)
		}
	}
}
