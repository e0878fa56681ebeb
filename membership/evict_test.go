package membership

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestEvictSteps: a dead node's subnet is claimed, nobody objects, and it is free
// for the next one.
func TestEvictSteps(t *testing.T) {
	for _, static := range []bool{false, true} {
		d := drive(t, testID(1), oneNetwork, nil)
		mine := d.heldClaim()
		victim := d.of(pfx("100.96.9.0/24"), 2, d.now)
		victim.Static = static
		d.hears(victim)
		if err := d.evict(victim.Prefix, d.now); err != nil {
			t.Fatal(err)
		}
		if err := d.evict(victim.Prefix, d.now); !errors.Is(err, ErrEvict) || !strings.Contains(err.Error(), "under way") {
			t.Errorf("twice at once: %v", err)
		}
		if got := kinds(d.steps()); got != "publish" {
			t.Fatalf("effects: %q", got)
		}
		key := Key{victim.Prefix, testID(1)}
		if c := d.record(key); c.State != Tentative || c.Gen != 2 || c.Static != static || c.Solo {
			t.Errorf("the claim: %+v", c)
		}
		if got := kinds(d.wait(simSpread - 1)); got != "" {
			t.Errorf("too soon: %q", got)
		}
		if got := kinds(d.wait(1)); got != "sync" {
			t.Fatalf("effects: %q", got)
		}
		d.syncStarted()
		d.fullSync(d.now, true)
		d.syncEnded(true)
		todo := d.steps()
		if got := kinds(todo); got != "evicted publish" || todo[0].prefix != victim.Prefix || todo[0].reason != "" {
			t.Fatalf("effects: %q, %+v", got, todo)
		}
		if c := d.record(key); c.State != Released || c.Stamp == 0 || c.Gen != 2 {
			t.Errorf("the claim: %+v", c)
		}
		on := d.store.on(victim.Prefix)
		if !on[0].Ended || on[0].Owner != victim.Owner || len(d.slots) != 1 || len(d.held()) != 1 || d.held()[0] != mine {
			t.Errorf("afterwards: %+v; held %v", on, d.held())
		}
		if err := d.evict(victim.Prefix, d.now); !errors.Is(err, ErrEvict) {
			t.Errorf("once more: %v", err)
		}
	}
}

// TestEvictLasts: as long as the victim's claim, which a clock far ahead has
// renewed.
func TestEvictLasts(t *testing.T) {
	d := drive(t, testID(1), oneNetwork, nil)
	d.heldClaim()
	victim := d.of(pfx("100.96.9.0/24"), 2, d.now.Add(10*365*testLease))
	d.hears(victim)
	if err := d.evict(victim.Prefix, d.now); err != nil {
		t.Fatal(err)
	}
	d.steps()
	d.wait(simSpread)
	d.syncStarted()
	d.syncEnded(true)
	d.steps()
	for range 20 {
		d.wait(testLease)
		d.expire(d.now)
		if c := d.store.on(victim.Prefix); len(c) != 2 || c[0].Accepted {
			t.Fatalf("%v later: %+v", d.now.Sub(simEpoch), c)
		}
	}
}

// TestEvictBeaten: somebody else has the stronger claim in the end.
func TestEvictBeaten(t *testing.T) {
	for name, tc := range map[string]struct {
		rival func(d *driven, victim, mine Claim) Claim
		want  string
	}{
		"the owner refutes": {func(d *driven, victim, mine Claim) Claim {
			victim.Version, victim.Gen = victim.Version+1, mine.Gen+1
			return victim
		}, "is there after all and keeps it"},
		"another one evicts, too": {func(d *driven, victim, mine Claim) Claim {
			mine.Owner = testID(77)
			for i := 78; compareClaims(mine, d.slots[1].claim) >= 0; i++ {
				mine.Owner = testID(i)
			}
			return mine
		}, "owns it by a stronger claim"},
	} {
		d := drive(t, testID(1), oneNetwork, nil)
		d.heldClaim()
		victim := d.of(pfx("100.96.9.0/24"), 2, d.now)
		d.hears(victim)
		if err := d.evict(victim.Prefix, d.now); err != nil {
			t.Fatal(err)
		}
		d.steps()
		rival := tc.rival(d, victim, d.slots[1].claim)
		d.hears(rival)
		todo := d.steps()
		if kinds(todo) != "evicted publish" || !strings.Contains(todo[0].reason, tc.want) || !strings.Contains(todo[0].reason, rival.Owner.String()) {
			t.Errorf("%s: %q, %+v", name, kinds(todo), todo[0])
		}
		if c := d.record(Key{victim.Prefix, testID(1)}); c.State != Released || c.Stamp != 0 || len(d.slots) != 1 {
			t.Errorf("%s: %+v", name, c)
		}
	}
}

func TestEvictRefused(t *testing.T) {
	d := drive(t, testID(1), oneNetwork, nil)
	if err := d.evict(pfx("100.96.9.0/24"), d.now); !errors.Is(err, ErrEvict) {
		t.Errorf("before it has synced: %v", err)
	}
	mine := d.heldClaim()
	living := d.of(pfx("100.96.9.0/24"), 2, d.now)
	d.hears(living)
	d.leaser.live = func(id NodeID) bool { return id == living.Owner }
	for prefix, want := range map[string]string{
		mine.Prefix.String(): "overlayd leave",
		"100.96.0.0/16":      "nobody owns it",
		"100.96.9.0/24":      "is alive",
		"100.96.9.0/25":      "nobody owns it",
		"100.96.10.0/24":     "nobody owns it",
		"100.96.9.1/24":      "not a subnet",
		"10.0.0.0/24":        "not a subnet",
		"fd96::/64":          "not a subnet",
	} {
		err := d.evict(pfx(prefix), d.now)
		if !errors.Is(err, ErrEvict) || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), prefix) {
			t.Errorf("%s: %v", prefix, err)
		}
	}
	if got := kinds(d.steps()); got != "" || len(d.slots) != 1 {
		t.Errorf("effects: %q", got)
	}
}

// TestSimEvict: a dead node is evicted from a full network, the one that waits
// gets its subnet, and the evicted one waits when it comes back.
func TestSimEvict(t *testing.T) {
	for seed := range uint64(10) {
		s := lab(t, seed, subnets(1), 3)
		s.loss = 0.05
		a, b, c := s.nodes[0], s.nodes[1], s.nodes[2]
		a.start()
		b.start()
		s.runUntil("two leases", 30*time.Second, s.allUpHold)
		c.start()
		s.run(30 * time.Second)
		subnet := b.held[0]
		b.crash()
		s.run(15 * time.Second) // until it is found dead
		if len(c.held) != 0 {
			t.Fatalf("held: %s", s.subnets())
		}
		if err := a.leaser.evict(subnet, a.wall()); err != nil {
			t.Fatal(err)
		}
		a.work()
		s.runUntil("its successor", 40*time.Second, func() bool { return slices.Contains(c.held, subnet) })
		b.start()
		s.run(simSettle)
		s.settled()
		if len(b.held) != 0 || len(b.losses) != 1 || len(a.losses)+len(c.losses) != 0 {
			t.Fatalf("held %s, lost %v %v %v", s.subnets(), a.losses, b.losses, c.losses)
		}
	}
}

// TestSimEvictAgainstAReturningOwner: the owner comes back while it is being
// evicted, at any point, and either keeps its subnet or gets another; nobody
// else ever loses one.
func TestSimEvictAgainstAReturningOwner(t *testing.T) {
	kept := 0
	for seed := range uint64(60) {
		s := lab(t, seed, subnets(2), 3)
		s.loss = 0.05
		for _, n := range s.nodes {
			n.start()
		}
		s.runUntil("leases", 30*time.Second, s.allUpHold)
		s.run(5 * time.Second)
		a, b := s.nodes[0], s.nodes[1]
		subnet := b.held[0]
		b.crash()
		s.run(15 * time.Second)
		if err := a.leaser.evict(subnet, a.wall()); err != nil {
			t.Fatal(err)
		}
		a.work()
		s.run(time.Duration(seed) * 100 * time.Millisecond)
		b.start()
		s.run(simSettle)
		s.settled()
		if !s.allUpHold() || len(a.losses)+len(s.nodes[2].losses) != 0 {
			t.Fatalf("held %s, lost %v %v", s.subnets(), a.losses, s.nodes[2].losses)
		}
		if len(b.losses) == 0 {
			kept++
		} else if b.losses[0].prefix != subnet {
			t.Fatalf("lost %v", b.losses)
		}
	}
	if kept < 10 || kept > 55 {
		t.Errorf("it kept its subnet in %d of 60 runs: the schedule tries one case only", kept)
	}
}

// TestSimReuseAfterTheLeaseTime: in a full network a newcomer gets the subnet of
// a node that has been off for the lease time, and not before.
func TestSimReuseAfterTheLeaseTime(t *testing.T) {
	set := subnets(1)
	set.LeaseTime = time.Minute
	s := lab(t, 1, set, 3)
	a, b, c := s.nodes[0], s.nodes[1], s.nodes[2]
	a.start()
	b.start()
	s.runUntil("two leases", 30*time.Second, s.allUpHold)
	c.start()
	s.run(10 * time.Second)
	subnet := b.held[0]
	b.crash()
	s.run(40 * time.Second)
	if len(c.held) != 0 {
		t.Fatalf("too soon: %s", s.subnets())
	}
	took := s.runUntil("its successor", 40*time.Second, func() bool { return slices.Contains(c.held, subnet) })
	t.Logf("%v after the 40 s", took)
	b.start()
	s.run(simSettle)
	s.settled()
	if len(a.losses)+len(c.losses) != 0 || len(b.losses) != 1 {
		t.Errorf("lost: %v %v %v", a.losses, b.losses, c.losses)
	}
}

// TestSimForgotten: what is left of a node that never comes back goes away, and
// its subnet is free again.
func TestSimForgotten(t *testing.T) {
	set := subnets(2)
	set.LeaseTime = time.Minute
	s := lab(t, 1, set, 3)
	for _, n := range s.nodes {
		n.start()
	}
	s.runUntil("leases", 30*time.Second, s.allUpHold)
	s.run(5 * time.Second) // a claim known as tentative would live for a day
	s.nodes[2].crash()
	s.run(keepLeases*time.Minute + time.Minute)
	s.settled()
	if got := len(s.nodes[0].store.claims); got != 2 {
		t.Errorf("%d records: %s", got, describe(s.nodes[0].store))
	}
	s.nodes[2].start()
	s.run(simSettle)
	s.settled()
	if !s.allUpHold() {
		t.Errorf("held: %s", s.subnets())
	}
}
