package membership

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// How claims live on, end, and pass to others, step by step.

const testLease = 24 * time.Hour

// of makes a claim of another node that is held and was renewed at a time.
func (d *driven) of(p netip.Prefix, owner int, renewed time.Time) Claim {
	return Claim{Key: Key{p, testID(owner)}, Version: 3, State: Held, Gen: 1, Stamp: 7, Expiry: seconds(renewed) + keepLeases*seconds(time.Unix(0, int64(testLease)))}
}

// TestLifeRenewal: what is held is renewed a few times per lease time, with the
// same stamp and generation, and so never becomes void.
func TestLifeRenewal(t *testing.T) {
	d := drive(t, testID(1), oneNetwork, nil)
	first := d.heldClaim()
	last, at := first, d.now
	for range 100 {
		todo, next := d.step(d.now)
		if got := kinds(todo); got != "" {
			t.Fatalf("a renewal too many: %q", got)
		}
		if next.Sub(at) > testLease/renewals || next.Sub(at) < testLease/renewals/2 {
			t.Fatalf("renewed after %v", next.Sub(at))
		}
		d.now = next.Add(-time.Second)
		if got := kinds(d.steps()); got != "" {
			t.Fatalf("a second too early: %q", got)
		}
		if got := kinds(d.wait(time.Second)); got != "persist publish" {
			t.Fatalf("effects: %q", got)
		}
		at = d.now
		c := d.held()[0]
		want := last
		want.Version, want.Expiry = last.Version+1, seconds(d.now)+8*24*3600
		if c != want || c != d.record(c.Key) {
			t.Fatalf("renewed: %+v\nwant:    %+v", c, want)
		}
		d.expire(d.now)
		last = c
	}
	if d.now.Sub(simEpoch) < 10*testLease {
		t.Fatal("it was not long enough to matter")
	}
}

// TestLifeTentativeIsRenewed: a claim that waits for somebody to merge with for
// days is still there for the others.
func TestLifeTentativeIsRenewed(t *testing.T) {
	d := drive(t, testID(1), oneNetwork, nil)
	d.others(true)
	d.fullSync(d.now, true)
	d.steps()
	key := d.slots[0].claim.Key
	for range 100 {
		d.wait(6 * time.Hour)
		d.expire(d.now)
		if c := d.record(key); c.State != Tentative || c.expired(d.now.Add(tentativeTime/2-6*time.Hour-time.Minute)) {
			t.Fatalf("%+v at %v", c, d.now)
		}
	}
}

// TestLifeSlept: a node that was suspended for longer than records live finds
// its own gone, and publishes it anew, behind whoever has taken it since.
func TestLifeSlept(t *testing.T) {
	d := drive(t, testID(1), oneNetwork, nil)
	mine := d.heldClaim()
	d.now = d.now.Add(9 * testLease)
	d.expire(d.now)
	if len(d.store.claims) != 0 {
		t.Fatalf("not the case that is meant: %v", d.store.claims)
	}
	if got := kinds(d.steps()); got != "persist publish" {
		t.Fatalf("effects: %q", got)
	}
	if c := d.record(mine.Key); c.State != Held || c.Stamp != stampOf(d.now) || c.Gen != mine.Gen || c.expired(d.now.Add(7*testLease)) || d.held()[0] != c {
		t.Errorf("%+v", c)
	}
	rival := d.of(mine.Prefix, 2, d.now)
	rival.Stamp = stampOf(d.now.Add(-time.Hour))
	d.hears(rival)
	if got := kinds(d.steps()) + kinds(d.wait(simSpread)); got != "lost publish persist publish" {
		t.Errorf("effects: %q", got)
	}
}

// TestLifeResumeOfTheForgotten: the same after a restart.
func TestLifeResumeOfTheForgotten(t *testing.T) {
	for _, off := range []time.Duration{time.Hour, 7 * testLease, 9 * testLease} {
		mine := Claim{Key: Key{pfx("100.96.7.0/24"), testID(1)}, Version: 5, State: Held, Gen: 2, Stamp: 99, Expiry: seconds(simEpoch.Add(-off)) + 8*24*3600}
		d := drive(t, testID(1), oneNetwork, nil, mine)
		if c := d.held()[0]; c.Stamp != mine.Stamp {
			t.Errorf("off for %v: a new claim before the cluster's time is known: %+v", off, c)
		}
		d.fullSync(d.now, true)
		c := d.held()[0]
		if c != d.record(c.Key) {
			t.Errorf("off for %v: %+v, in the store %+v", off, c, d.record(c.Key))
		}
		forgotten := off > 8*testLease
		if c.Prefix != mine.Prefix || c.Gen != mine.Gen || (c.Stamp == mine.Stamp) == forgotten || c.expired(d.now.Add(6*testLease)) {
			t.Errorf("off for %v: %+v", off, c)
		}
	}
}

// TestLifeLostNotes: a node that has lost its lease file gets its lease back
// from those who remember it, unless it has moved on.
func TestLifeLostNotes(t *testing.T) {
	mine := Claim{Key: Key{pfx("100.96.7.0/24"), testID(1)}, Version: 5, State: Held, Gen: 2, Stamp: 99, Expiry: seconds(simEpoch) + 100}
	static := mine
	static.Static = true
	for _, tc := range []struct {
		name   string
		static []netip.Prefix
		heard  Claim
		after  string // what has happened before
		held   bool
		todo   string
	}{
		{"dynamic", nil, mine, "", true, "persist publish held"},
		{"static", []netip.Prefix{mine.Prefix}, static, "", true, "persist publish held"},
		{"static is wanted now", []netip.Prefix{mine.Prefix}, mine, "", false, "publish"},
		{"another static one is wanted now", []netip.Prefix{pfx("100.96.8.0/24")}, static, "", false, "publish"},
		{"static is not wanted any more", nil, static, "", false, "publish"},
		{"it has another one", nil, mine, "claimed", false, "publish"},
		{"it has left", nil, mine, "left", false, "publish"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := drive(t, testID(1), oneNetwork, tc.static)
			switch tc.after {
			case "claimed":
				d.heldClaim()
			case "left":
				d.leave(d.now)
			}
			d.hears(tc.heard)
			d.synced = false // so that it does not look for another at once
			if !tc.held && tc.after != "left" {
				// It may be of another life that is there after all.
				twin := true
				d.twins = func() bool { return twin }
				if got := kinds(d.steps()) + kinds(d.wait(time.Hour)); got != "" || d.record(mine.Key) != tc.heard {
					t.Errorf("before it is known whose it is: %q, %+v", got, d.record(mine.Key))
				}
				twin = false
				d.now = d.now.Add(simSpread)
			}
			if got := kinds(d.steps()); got != tc.todo {
				t.Errorf("effects: %q", got)
			}
			c := d.record(mine.Key)
			if held := slices.ContainsFunc(d.held(), func(h Claim) bool { return h.Prefix == mine.Prefix }); held != tc.held || (c.State == Held) != tc.held {
				t.Errorf("held %v, record %+v", d.held(), c)
			}
			if c.Version != 6 || c.Stamp != mine.Stamp || c.Gen != mine.Gen || c.Expiry != seconds(d.now)+8*24*3600 {
				t.Errorf("record %+v", c)
			}
		})
	}
}

// TestLifeVoidRecords: they are dropped, and not taken in.
func TestLifeVoidRecords(t *testing.T) {
	d := drive(t, testID(1), oneNetwork, nil)
	c := d.of(pfx("100.96.9.0/24"), 2, d.now)
	d.hears(c)
	d.now = time.Unix(int64(c.Expiry)-1, 0)
	if d.expire(d.now); len(d.store.claims) != 1 {
		t.Error("dropped a second early")
	}
	d.now = d.now.Add(expireEvery)
	if !d.expire(d.now) || len(d.store.claims) != 0 {
		t.Error("not dropped")
	}
	if changed, err := d.merge(c, d.now); changed || err != nil {
		t.Errorf("a void record is news: %v", err)
	}
}

// TestLifeZombie: a held claim was released, its tombstone is void, and an old
// copy of the claim turns up.
func TestLifeZombie(t *testing.T) {
	owner := drive(t, testID(2), oneNetwork, nil)
	copies := []Claim{owner.heldClaim()}
	for range 3 {
		owner.wait(testLease / renewals)
		copies = append(copies, owner.held()[0])
	}
	owner.leave(owner.now)
	tombstone := owner.record(copies[0].Key)
	if tombstone.State != Released || tombstone.Version <= copies[3].Version {
		t.Fatalf("%+v after %+v", tombstone, copies)
	}
	d := drive(t, testID(1), oneNetwork, nil)
	d.hears(tombstone)
	for day := range 12 {
		d.now = d.now.Add(testLease)
		d.expire(d.now)
		if there := len(d.store.claims) == 1; there != (day < 8) {
			t.Errorf("day %d: the tombstone is there: %v", day+1, there)
		}
		for _, c := range copies {
			if changed, err := d.merge(c, d.now); changed || err != nil {
				t.Errorf("day %d: version %d came back", day+1, c.Version)
			}
		}
	}
}

// TestLifeGraceAfterAJump: when the cluster's time jumps, nothing becomes void
// at once, here or on the way.
func TestLifeGraceAfterAJump(t *testing.T) {
	d := drive(t, testID(1), oneNetwork, nil)
	mine := d.heldClaim()
	other, late := d.of(pfx("100.96.9.0/24"), 2, d.now), d.of(pfx("100.96.10.0/24"), 3, d.now)
	d.hears(other)
	d.expire(d.now)
	d.now = d.now.Add(expireEvery)
	d.setSkew(365*testLease, d.now)
	if d.expire(d.now); len(d.store.claims) != 2 {
		t.Error("dropped at once")
	}
	if d.hears(late); d.record(late.Key) != late { // its owner has not noticed yet
		t.Error("not taken in")
	}
	if got := kinds(d.steps()); got != "persist publish" {
		t.Errorf("effects: %q", got)
	}
	if c := d.held()[0]; c.Expiry <= mine.Expiry+364*24*3600 || c.Stamp != mine.Stamp {
		t.Errorf("renewed: %+v", c)
	}
	other.Version, other.Expiry = 4, other.Expiry+365*24*3600
	d.hears(other)
	d.now = d.now.Add(expireGrace)
	d.expire(d.now)
	if _, there := d.store.claims[late.Key]; there || len(d.store.claims) != 2 {
		t.Errorf("after the grace: %v", d.store.claims)
	}
	d.setSkew(365*testLease+time.Second, d.now) // no jump
	if d.now.Before(d.expireFrom) {
		t.Error("a second is taken for a jump")
	}
}

// TestLifeForgotten: a node that has lost its notes takes up again what the others
// remember, unless somebody else has it by now, also one who does not gossip.
func TestLifeForgotten(t *testing.T) {
	p := space{subnets(1).Networks[0], 24}.at(0)
	d := drive(t, testID(1), subnets(1), nil)
	d.reserved = []netip.Prefix{p}
	d.others(true)
	d.hears(d.of(p, 1, d.now))
	d.fullSync(d.now, true)
	if len(d.held()) > 0 {
		t.Errorf("reserved, and held: %v", d.held())
	}
	d.wait(3 * simSpread)
	if c := d.record(Key{p, testID(1)}); c.State != Released {
		t.Errorf("it still claims what is reserved: %+v", c)
	}
	for _, beaten := range []bool{false, true} {
		d := drive(t, testID(1), subnets(1), nil)
		if beaten {
			c := d.of(p, 2, d.now)
			c.Gen = 2
			d.hears(c)
		}
		d.others(true)
		d.hears(d.of(p, 1, d.now))
		d.fullSync(d.now, true)
		if held := len(d.held()); held == 1 == beaten {
			t.Errorf("somebody else has it: %v; held at once: %v", beaten, d.held())
		}
	}
}

// TestLifeSilentSubnets: the subnet of an owner that is silent for the lease time
// and not there goes to a newcomer that finds no free one; no other does.
func TestLifeSilentSubnets(t *testing.T) {
	s := subnets(1)
	first, second := space{s.Networks[0], 24}.at(0), space{s.Networks[0], 24}.at(1)
	now := simEpoch
	long, short := now.Add(-testLease), now.Add(-testLease+time.Second)
	change := func(c Claim, f func(*Claim)) Claim { f(&c); return c }
	for _, tc := range []struct {
		name   string
		claims func(d *driven) []Claim
		live   int
		want   netip.Prefix
		gen    uint64
	}{
		{"one is free", func(d *driven) []Claim { return []Claim{d.of(first, 2, long)} }, 0, second, 1},
		{"one is silent", func(d *driven) []Claim { return []Claim{d.of(first, 2, long), d.of(second, 3, short)} }, 0, first, 2},
		{"its owner lives", func(d *driven) []Claim { return []Claim{d.of(first, 2, long), d.of(second, 3, short)} }, 2, netip.Prefix{}, 0},
		{"not for long enough", func(d *driven) []Claim { return []Claim{d.of(first, 2, short), d.of(second, 3, short)} }, 0, netip.Prefix{}, 0},
		{"static ones stay", func(d *driven) []Claim {
			return []Claim{change(d.of(first, 2, long), func(c *Claim) { c.Static = true }), d.of(second, 3, short)}
		}, 0, netip.Prefix{}, 0},
		{"wider ones stay", func(d *driven) []Claim {
			return []Claim{change(d.of(s.Networks[0], 2, long), func(c *Claim) { c.Static = true })}
		}, 0, netip.Prefix{}, 0},
		{"somebody else has begun", func(d *driven) []Claim {
			return []Claim{d.of(first, 2, long), d.of(second, 3, short),
				{Key: Key{first, testID(4)}, Version: 1, State: Tentative, Gen: 2, Expiry: seconds(now) + 100}}
		}, 0, netip.Prefix{}, 0},
		{"reserved ones are nobody's to lease", func(d *driven) []Claim {
			d.reserved = []netip.Prefix{netip.PrefixFrom(second.Addr(), 25)}
			return []Claim{d.of(first, 2, long)}
		}, 0, first, 2},
		{"nor to take over", func(d *driven) []Claim {
			d.reserved = []netip.Prefix{first}
			return []Claim{d.of(first, 2, long), d.of(second, 3, long)}
		}, 0, second, 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := drive(t, testID(1), s, nil)
			d.leaser.live = func(id NodeID) bool { return tc.live != 0 && id == testID(tc.live) }
			for _, c := range tc.claims(d) {
				d.hears(c)
			}
			d.others(true)
			d.fullSync(d.now, true)
			todo := d.steps()
			c := d.slots[0].claim
			if c.Prefix != tc.want || c.Gen != tc.gen {
				t.Fatalf("claims %+v: %q", c, kinds(todo))
			}
			if !tc.want.IsValid() {
				if kinds(todo) != "full" {
					t.Errorf("effects: %q", kinds(todo))
				}
				return
			}
			if c := d.heldClaim(); c.Prefix != tc.want || c.State != Held || !d.accepted(d.slots[0]) {
				t.Errorf("held: %+v", c)
			}
		})
	}
}

// TestLifeRefute: an owner that is there answers a tentative claim on what it
// holds, and yields to a held one.
func TestLifeRefute(t *testing.T) {
	rival := func(d *driven, mine Claim, f func(*Claim)) Claim {
		c := Claim{Key: Key{mine.Prefix, testID(2)}, Version: 1, State: Tentative, Gen: mine.Gen + 1, Expiry: d.freshExpiry(d.now)}
		f(&c)
		return c
	}
	t.Run("tentative", func(t *testing.T) {
		d := drive(t, testID(1), oneNetwork, nil)
		mine := d.heldClaim()
		for i := range uint64(3) {
			r := rival(d, mine, func(c *Claim) { c.Version, c.Gen = 1+i, mine.Gen+1+10*i })
			d.hears(r)
			if got := kinds(d.steps()); got != "persist publish" {
				t.Fatalf("effects: %q", got)
			}
			c := d.held()[0]
			if c.Gen != r.Gen+1 || c.Stamp != mine.Stamp || c != d.record(mine.Key) || !d.accepted(d.slots[0]) {
				t.Fatalf("%+v", c)
			}
			if got := kinds(d.wait(time.Hour)); got != "" {
				t.Fatalf("then: %q", got)
			}
		}
	})
	t.Run("held", func(t *testing.T) {
		d := drive(t, testID(1), oneNetwork, nil)
		mine := d.heldClaim()
		d.hears(rival(d, mine, func(c *Claim) { c.State, c.Stamp = Held, mine.Stamp+5 }))
		if got := kinds(d.steps()) + kinds(d.wait(simSpread)); got != "lost publish persist publish" {
			t.Errorf("effects: %q", got)
		}
	})
	t.Run("static against dynamic", func(t *testing.T) {
		d := drive(t, testID(1), oneNetwork, nil)
		mine := d.heldClaim()
		d.hears(rival(d, mine, func(c *Claim) { c.Static = true }))
		if got := kinds(d.steps()); got != "" || d.held()[0] != mine {
			t.Errorf("effects: %q", got)
		}
	})
	t.Run("the last generation", func(t *testing.T) {
		d := drive(t, testID(1), oneNetwork, nil)
		mine := d.heldClaim()
		d.hears(rival(d, mine, func(c *Claim) { c.Gen = maxCounter }))
		if got := kinds(d.steps()) + kinds(d.wait(simSpread)); got != "lost publish persist publish" {
			t.Errorf("effects: %q", got)
		}
	})
	t.Run("of a backup of what was released", func(t *testing.T) {
		mine := Claim{Key: Key{pfx("100.96.7.0/24"), testID(1)}, Version: 5, State: Held, Gen: 2, Stamp: 99, Expiry: seconds(simEpoch) + 8*24*3600}
		d := drive(t, testID(1), oneNetwork, nil, mine)
		d.steps()
		released := mine
		released.Version, released.State = 6, Released
		d.hears(released)
		d.hears(rival(d, mine, func(*Claim) {}))
		if got := kinds(d.steps()); got != "persist publish" || d.held()[0].Gen != mine.Gen {
			t.Errorf("effects: %q, %+v", got, d.held())
		}
		if got := kinds(d.wait(simSpread)); got != "lost publish persist" {
			t.Errorf("effects: %q", got)
		}
	})
}

// TestLifeEnded: what was taken over and given up again does not fall back, and
// is free.
func TestLifeEnded(t *testing.T) {
	s := subnets(0)
	for _, static := range []bool{false, true} {
		d := drive(t, testID(1), s, nil)
		old := d.of(s.Networks[0], 2, d.now)
		old.Static = static
		over := Claim{Key: Key{old.Prefix, testID(3)}, Version: 2, State: Released, Static: static, Gen: 2, Stamp: 100, Expiry: d.freshExpiry(d.now)}
		unused := over
		unused.Stamp = 0
		other := over
		other.Static = !static
		for name, tc := range map[string]struct {
			by    Claim
			ended bool
		}{"given up": {over, true}, "never in use": {unused, false}, "of the other class": {other, false}} {
			st := storeOf(t, d.now, old, tc.by)
			c := st.on(old.Prefix)[0]
			if c.Owner != old.Owner || c.Ended != tc.ended || c.Accepted == tc.ended || tc.ended != strings.HasPrefix(c.Why, "ended: ") {
				t.Errorf("%s: %+v", name, c)
			}
		}
		d.hears(old)
		d.hears(over)
		if c := d.heldClaim(); c.Prefix != old.Prefix || c.Gen != 3 {
			t.Errorf("%+v", c)
		}
	}
}

// TestLifeEndedWhileHeld: an owner that was evicted while it was away hears of
// it. One with a static subnet takes it again, in a new generation.
func TestLifeEndedWhileHeld(t *testing.T) {
	for _, static := range []bool{false, true} {
		var subnet []netip.Prefix
		if static {
			subnet = []netip.Prefix{pfx("100.96.9.0/24")}
		}
		d := drive(t, testID(1), oneNetwork, subnet)
		mine := d.heldClaim()
		over := Claim{Key: Key{mine.Prefix, testID(3)}, Version: 2, State: Released, Static: static, Gen: 2, Stamp: 100, Expiry: d.freshExpiry(d.now)}
		d.hears(over)
		if got := kinds(d.steps()) + kinds(d.wait(simSpread-1)); got != "" {
			t.Fatalf("it gives way too soon: %q", got)
		}
		todo := d.wait(1)
		if kinds(todo) != "lost publish persist publish" || !strings.Contains(todo[0].reason, over.Owner.String()) || !strings.Contains(todo[0].reason, "gave it up again") {
			t.Fatalf("%q, %+v", kinds(todo), todo)
		}
		next := d.slots[0].claim
		if static && (next.Prefix != mine.Prefix || next.Gen != 3) {
			t.Errorf("then it claims %+v", next)
		}
		if !static {
			continue
		}
		// The same, heard while the new claim is tentative.
		over.Version, over.Gen = 4, 7
		d.hears(over)
		if got := kinds(d.steps()); got != "publish publish" || d.slots[0].claim.Gen != 8 || d.slots[0].claim.Prefix != mine.Prefix {
			t.Errorf("%q, %+v", got, d.slots[0].claim)
		}
	}
}

func TestClusterSkew(t *testing.T) {
	const h, s = time.Hour, time.Second
	year := 365 * 24 * h
	for _, tc := range []struct {
		name  string
		ahead []time.Duration // of the others that are known
		alive int
		want  time.Duration
		known bool
	}{
		{"alone", nil, 1, 0, true},
		{"two that agree", []time.Duration{3 * s}, 2, 0, true},
		{"of two the later: the other", []time.Duration{h}, 2, h, true},
		{"of two the later: this one", []time.Duration{-56 * year}, 2, 0, true},
		{"one of three, known", []time.Duration{h}, 3, 0, false},
		{"this one is wrong", []time.Duration{h, h + s}, 3, h, true},
		{"another is wrong", []time.Duration{s, -56 * year}, 3, 0, true},
		{"a majority of those alive is enough", []time.Duration{h, h + s, h + 2*s}, 5, h + s, true},
		{"half is not", []time.Duration{h, h + s, h + 2*s}, 6, 0, false},
		{"a wrong half does not move a right one", []time.Duration{0, h, h}, 4, h, true},
		{"all differ", []time.Duration{-2 * h, -h, h, 2 * h}, 5, 0, true},
		{"all differ, one unknown", []time.Duration{-2 * h, -h, 2 * h}, 5, 0, false},
		{"minutes apart", []time.Duration{2 * time.Minute, 4 * time.Minute}, 3, 2 * time.Minute, true},
	} {
		if got, known := clusterSkew(slices.Clone(tc.ahead), tc.alive); got != tc.want || known != tc.known {
			t.Errorf("%s: %v %v, want %v %v", tc.name, got, known, tc.want, tc.known)
		}
	}
}

// TestLifeRefutedTooLate: an owner comes back, refutes a claim that is tentative
// as far as it knows, and hears that it is held. It gives the subnet up, and the
// other one keeps it, whatever becomes of either.
func TestLifeRefutedTooLate(t *testing.T) {
	owner := drive(t, testID(1), oneNetwork, nil)
	mine := owner.heldClaim()
	d := drive(t, testID(2), oneNetwork, nil)
	d.hears(mine)
	d.others(true)
	d.fullSync(d.now, true)
	d.tentative(d.slots[0], mine.Prefix, false, d.now)
	tentative := d.record(Key{mine.Prefix, testID(2)})
	d.steps()
	d.wait(simSpread)
	d.syncStarted()
	d.syncEnded(true)
	d.steps()
	held := d.record(tentative.Key)
	if tentative.State != Tentative || held.State != Held || held.Gen != 2 {
		t.Fatalf("not the case that is meant: %+v, %+v", tentative, held)
	}
	owner.now = d.now
	owner.hears(tentative)
	if got := kinds(owner.steps()); got != "persist publish" || owner.held()[0].Gen != 3 {
		t.Fatalf("%q, %+v", got, owner.held())
	}
	refuting := owner.record(mine.Key)
	owner.hears(held)
	if got := kinds(owner.steps()); !strings.HasPrefix(got, "lost ") {
		t.Errorf("the owner: %q", got)
	}
	d.hears(refuting)
	d.steps()
	d.hears(owner.record(mine.Key))
	if got := kinds(d.steps()) + kinds(d.wait(time.Minute)); got != "" || len(d.held()) != 1 || !d.accepted(d.slots[0]) {
		t.Errorf("the other one: %q, %v", got, d.held())
	}
}

// TestLifeExpiryFromTheFuture: a claim that was renewed while the clock was years
// ahead is brought back, so that it ends like any other.
func TestLifeExpiryFromTheFuture(t *testing.T) {
	ahead := simEpoch.Add(30 * 365 * testLease)
	mine := Claim{Key: Key{pfx("100.96.7.0/24"), testID(1)}, Version: 5, State: Held, Gen: 1, Stamp: 99, Expiry: seconds(simEpoch) + 8*24*3600}
	d := &driven{newLeaser(testID(1), oneNetwork, nil, newStore(), simSpread, []Claim{mine}, ahead), t, ahead}
	d.steps()
	d.setSkew(simEpoch.Sub(ahead), d.now)
	d.others(true)
	d.fullSync(d.now, true)
	d.wait(expireGrace)
	if c := d.held()[0]; c.Stamp != mine.Stamp || c.Expiry > seconds(d.wall(d.now))+8*24*3600 || c != d.record(c.Key) {
		t.Errorf("%+v", c)
	}
}

// TestLifeBackupOfAnEarlierEra: the owner was evicted once, took its subnet again,
// and is restored from a backup of before all that.
func TestLifeBackupOfAnEarlierEra(t *testing.T) {
	old := Claim{Key: Key{pfx("100.96.7.0/24"), testID(1)}, Version: 5, State: Held, Gen: 1, Stamp: 99, Expiry: seconds(simEpoch) + 8*24*3600}
	d := drive(t, testID(1), oneNetwork, nil, old)
	d.steps()
	now := old
	now.Version, now.Gen, now.Stamp = 12, 3, 200
	d.hears(now)
	d.hears(Claim{Key: Key{old.Prefix, testID(2)}, Version: 4, State: Released, Gen: 2, Stamp: 150, Expiry: old.Expiry})
	d.others(true)
	d.fullSync(d.now, true)
	if got := kinds(d.steps()) + kinds(d.wait(time.Hour)); strings.Contains(got, "lost") || d.held()[0].Gen != 3 || d.held()[0].Version <= 12 {
		t.Errorf("%q, %+v", got, d.held())
	}
}

// TestLifePersistsOnce: however many records of a batch are about our own claims,
// they are written down once.
func TestLifePersistsOnce(t *testing.T) {
	d := drive(t, testID(1), oneNetwork, nil)
	c := d.heldClaim()
	for i := range uint64(1000) {
		forged := c
		forged.Version, forged.Gen = c.Version+10+2*i, 1+i
		d.hears(forged)
	}
	if n := strings.Count(kinds(d.take()), "persist"); n != 1 {
		t.Errorf("%d times", n)
	}
}
