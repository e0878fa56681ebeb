package membership

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// lab is a quiet simulation with n nodes that are not started.
func lab(t *testing.T, seed uint64, s Settings, n int) *sim {
	sm := newSim(t, seed, s)
	for range n {
		sm.add()
	}
	return sm
}

// subnets are settings with a network of exactly 2^bits subnets.
func subnets(bits int) Settings {
	return Settings{[]netip.Prefix{netip.PrefixFrom(netip.MustParseAddr("100.96.0.0"), 24-bits)}, []int{24}, 24 * time.Hour}
}

func (s *sim) subnets() string {
	out := ""
	for _, n := range s.nodes {
		out += fmt.Sprint(n.held)
	}
	return out
}

func TestSimSixAtOnce(t *testing.T) {
	for name, listed := range map[string]int{"all are seeds": 6, "one seed": 1} {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(10) {
				s := lab(t, seed, testSettings("100.96.0.0/16", "fd96::/48"), 6)
				s.loss = 0.1
				for i, n := range s.nodes {
					n.listed = i < listed
					n.start()
				}
				s.runUntil("six leases", simElect+2*simSpread+5*time.Second, s.allUpHold)
				s.run(simSettle)
				s.settled()
			}
		})
	}
}

// TestSimAsManyAsSubnets: the last ones fight for what is left, and nobody goes
// without.
func TestSimAsManyAsSubnets(t *testing.T) {
	for seed := range uint64(5) {
		s := lab(t, seed, subnets(4), 16)
		s.loss = 0.1
		for _, n := range s.nodes {
			n.start()
		}
		s.runUntil("sixteen leases", 60*time.Second, s.allUpHold)
		s.run(simSettle)
		s.settled()
		late := s.add()
		late.start()
		for _, n := range s.nodes { // they have to know of it
			n.peers = append(n.peers, make([]simPeer, len(s.nodes)-len(n.peers))...)
		}
		s.run(simSettle)
		s.settled()
		if len(late.held) != 0 {
			t.Fatalf("a seventeenth holds %v", late.held)
		}
		s.nodes[3].leave()
		s.runUntil("a lease after somebody left", 30*time.Second, func() bool { return len(late.held) == 1 })
	}
}

func TestSimLoneFirstHoldsAtOnce(t *testing.T) {
	s := lab(t, 1, testSettings("100.96.0.0/16", "fd96::/48"), 1)
	s.nodes[0].lone = true
	s.nodes[0].start()
	s.runUntil("its leases", 0, s.allUpHold)
	s.run(simSettle)
	s.settled()
}

// TestSimTwoWantTheSame: two nodes begin on the same subnet at the same time,
// before either hears of the other's claim.
func TestSimTwoWantTheSame(t *testing.T) {
	alike := 0
	for seed := range uint64(40) {
		s := lab(t, seed, subnets(1), 3)
		s.maxDelay = 500 * time.Millisecond
		a, b := s.nodes[1], s.nodes[2]
		s.nodes[0].lone = true
		s.nodes[0].start()
		s.run(10 * time.Second)
		a.start()
		b.start()
		for range 200 {
			s.run(50 * time.Millisecond)
			if p := a.leaser.slots[0].claim; p.State == Tentative && p.Prefix == b.leaser.slots[0].claim.Prefix {
				alike++
				break
			}
		}
		s.run(simSettle)
		s.settled()
		if len(a.held)+len(b.held) != 1 || len(s.nodes[0].held) != 1 {
			t.Fatalf("held: %s", s.subnets())
		}
	}
	if alike < 5 {
		t.Errorf("only in %d of 40 runs both tried the same", alike)
	}
}

func TestSimStaticBeatsDynamic(t *testing.T) {
	s := lab(t, 1, oneNetwork, 4)
	a, b, c, d := s.nodes[0], s.nodes[1], s.nodes[2], s.nodes[3]
	a.lone = true
	a.start()
	s.run(time.Second)
	b.start()
	s.runUntil("two leases", 20*time.Second, s.allUpHold)
	taken, kept := a.held[0], b.held[0]

	c.static = []netip.Prefix{taken}
	c.start()
	s.runUntil("the static lease", 20*time.Second, func() bool { return slices.Equal(c.held, c.static) })
	s.runUntil("another for the beaten one", 20*time.Second, func() bool { return len(a.held) == 1 && a.held[0] != taken })
	s.run(simSettle)
	s.settled()
	if len(a.losses) != 1 || a.losses[0].prefix != taken || a.losses[0].by.Owner != c.id || b.held[0] != kept || len(b.losses) != 0 {
		t.Errorf("losses %v and %v", a.losses, b.losses)
	}

	// Of two static ones alike the second does not start, and says who has it;
	// also when the holder is not there, and when they merely overlap.
	for _, p := range []netip.Prefix{taken, netip.PrefixFrom(taken.Addr(), 20).Masked(), netip.PrefixFrom(taken.Addr(), 28)} {
		d.static = []netip.Prefix{p}
		d.start()
		s.run(20 * time.Second)
		if d.up || !strings.Contains(d.fatal, c.id.String()) || !strings.Contains(d.fatal, p.String()) {
			t.Errorf("a second static subnet %v: %q", p, d.fatal)
		}
		if !slices.Equal(c.held, c.static) {
			t.Fatal("the first one lost it")
		}
		c.crash()
		s.run(20 * time.Second)
		d.start()
		s.run(20 * time.Second)
		if d.up || !strings.Contains(d.fatal, c.id.String()) {
			t.Errorf("beside a dead holder of %v: %q", p, d.fatal)
		}
		c.start()
		s.run(simSettle)
		s.settled()
	}
}

// TestSimStaticAtOnce: two nodes with one static subnet start together. One gets
// it, the other ends.
func TestSimStaticAtOnce(t *testing.T) {
	for seed := range uint64(20) {
		s := lab(t, seed, oneNetwork, 5)
		for i, n := range s.nodes {
			if i < 2 {
				n.static = []netip.Prefix{pfx("100.96.9.0/24")}
			}
			n.start()
		}
		s.run(simSettle)
		s.settled()
		if s.nodes[0].up == s.nodes[1].up {
			t.Fatalf("ended: %q and %q", s.nodes[0].fatal, s.nodes[1].fatal)
		}
	}
}

// TestSimStaticHeal: the same static subnet on both sides of a cut. When it
// heals the later one goes on without a subnet, and says so once.
func TestSimStaticHeal(t *testing.T) {
	s := lab(t, 1, oneNetwork, 4)
	a, b := s.nodes[0], s.nodes[2]
	a.static = []netip.Prefix{pfx("100.96.9.0/24")}
	b.static = []netip.Prefix{pfx("100.96.8.0/23")}
	s.partition(0b0011)
	for _, n := range s.nodes[:2] {
		n.start()
	}
	s.run(5 * time.Second)
	for _, n := range s.nodes[2:] {
		n.start()
	}
	s.runUntil("leases on both sides", 30*time.Second, s.allUpHold)
	s.heal(0b0011)
	s.run(simSettle)
	s.settled()
	if !slices.Equal(a.held, a.static) || len(a.losses) != 0 {
		t.Errorf("the earlier one holds %v", a.held)
	}
	if !b.up || len(b.held) != 0 || len(b.losses) != 1 || !strings.Contains(b.losses[0].reason, "not replaced") {
		t.Errorf("the later one: up %v, holds %v, lost %v", b.up, b.held, b.losses)
	}
}

// TestSimBackupOfAReleasedLease: a node comes back from a backup of before it
// left. Who took its subnet meanwhile keeps it, although its claim is younger.
func TestSimBackupOfAReleasedLease(t *testing.T) {
	for seed := range uint64(5) {
		s := lab(t, seed, subnets(1), 3)
		a, b, c := s.nodes[0], s.nodes[1], s.nodes[2]
		a.start()
		b.start()
		s.runUntil("two leases", 30*time.Second, s.allUpHold)
		s.run(10 * time.Second)
		backup := a.disk.clone()
		subnet := a.held[0]
		a.leave()
		s.run(5 * time.Second)
		c.start()
		s.runUntil("its successor", 30*time.Second, s.allUpHold)
		a.disk = backup
		a.start()
		if !slices.Equal(a.held, c.held) || c.held[0] != subnet {
			t.Fatalf("not the case that is meant: %v, %v", a.held, c.held)
		}
		s.run(simSettle)
		s.settled()
		if len(c.losses) != 0 || len(a.losses) != 1 || len(a.held) != 0 {
			t.Fatalf("losses %v and %v; held %s\n%s\n%s", a.losses, c.losses, s.subnets(), describe(a.store), strings.Join(s.log, "\n"))
		}
	}
}

// TestSimAllLeave: everybody leaves and comes back, the first one without seeds.
// It remembers the others, and they wait for somebody to begin.
func TestSimAllLeave(t *testing.T) {
	s := lab(t, 1, oneNetwork, 3)
	for i, n := range s.nodes {
		n.lone, n.listed = i == 0, false
		n.start()
	}
	s.runUntil("leases", 30*time.Second, s.allUpHold)
	for _, n := range s.nodes {
		n.leave()
	}
	s.run(10 * time.Second)
	for _, n := range s.nodes {
		n.start()
	}
	s.runUntil("leases again", 30*time.Second, s.allUpHold)
	s.run(simSettle)
	s.settled()
}

func TestSimRestarts(t *testing.T) {
	for seed := range uint64(5) {
		s := lab(t, seed, testSettings("100.96.0.0/16", "fd96::/48"), 5)
		s.nodes[0].lone = true
		for _, n := range s.nodes {
			n.start()
		}
		s.runUntil("leases", 30*time.Second, s.allUpHold)
		s.run(simSettle)
		before := s.subnets()
		check := func(what string) {
			t.Helper()
			s.run(simSettle)
			s.settled()
			if after := s.subnets(); after != before {
				t.Fatalf("%s: held %s, now %s", what, before, after)
			}
		}
		s.nodes[2].crash()
		s.run(30 * time.Second)
		s.nodes[2].start()
		check("one")
		for _, n := range s.nodes {
			n.crash()
		}
		for i := range s.nodes { // the first one last
			s.nodes[len(s.nodes)-1-i].start()
			s.run(time.Second)
		}
		check("all")
		// From a backup of before it was renewed: a version that others are past.
		for _, n := range s.nodes {
			old := n.disk.clone()
			for i := range old.claims {
				old.claims[i].Version = 1
			}
			n.crash()
			n.disk = old
			n.start()
		}
		check("all, from old backups")
	}
}

// TestSimBornAlone: two nodes begin a cluster each, choose the same subnet, and
// meet. The one that held it first keeps it.
func TestSimBornAlone(t *testing.T) {
	for seed := range uint64(20) {
		s := lab(t, seed, subnets(1), 4)
		s.partition(0b0011)
		a, a2, b, b2 := s.nodes[0], s.nodes[1], s.nodes[2], s.nodes[3]
		a.start()
		s.run(10 * time.Second)
		b.start()
		s.run(10 * time.Second)
		if len(a.held) != 1 || len(b.held) != 1 {
			t.Fatal("they did not begin")
		}
		same := a.held[0] == b.held[0]
		if !s.nodes[0].leaser.held()[0].Solo {
			t.Error("a claim made alone is not solo")
		}
		s.heal(0b0011)
		s.run(simSettle)
		s.settled()
		if len(a.losses) != 0 || same != (len(b.losses) == 1) {
			t.Fatalf("the same %v; losses of the first %v, of the second %v", same, a.losses, b.losses)
		}
		for _, n := range []*simNode{a, b} {
			if n.leaser.held()[0].Solo {
				t.Fatal("solo was not cleared")
			}
		}
		_, _ = a2, b2
	}
}

// TestSimSoloGivesWay: a node born alone with an old clock holds its subnet
// "longer" than a whole cluster, and gives way nevertheless.
func TestSimSoloGivesWay(t *testing.T) {
	for _, ahead := range []time.Duration{-12 * time.Hour, -simEpoch.Sub(time.Unix(0, 0))} { // 1970
		s := lab(t, 3, subnets(2), 4)
		s.partition(0b1000)
		alone := s.nodes[3]
		for _, n := range s.nodes[:3] {
			n.start()
		}
		s.runUntil("the cluster's leases", 30*time.Second, func() bool { return s.allUpHold() })
		alone.ahead = ahead
		alone.start()
		// Make it choose what the first one has.
		want := s.nodes[0].held[0]
		for i := range alone.leaser.slots[0].space.size() {
			if p := alone.leaser.slots[0].space.at(i); p != want {
				alone.leaser.slots[0].refused[p] = true
			}
		}
		s.runUntil("a lease of its own", 30*time.Second, func() bool { return slices.Equal(alone.held, []netip.Prefix{want}) })
		before := fmt.Sprint(s.nodes[0].held, s.nodes[1].held, s.nodes[2].held)
		if alone.leaser.held()[0].Stamp >= s.nodes[0].leaser.held()[0].Stamp {
			t.Fatal("its clock is not old")
		}
		s.heal(0b1000)
		s.runUntil("another lease", 40*time.Second, func() bool { return len(alone.held) == 1 && alone.held[0] != want })
		s.run(10 * time.Second)
		if after := fmt.Sprint(s.nodes[0].held, s.nodes[1].held, s.nodes[2].held); after != before {
			t.Errorf("the cluster held %s, now %s", before, after)
		}
	}
}

// TestSimPausedWhileTentative: a node stops for a minute between its claim and
// its lease, while others go on.
func TestSimPausedWhileTentative(t *testing.T) {
	for seed := range uint64(20) {
		s := lab(t, seed, subnets(2), 4)
		a := s.nodes[0]
		a.lone = true
		a.start()
		s.run(10 * time.Second)
		b := s.nodes[1]
		b.start()
		s.runUntil("a tentative claim", 20*time.Second, func() bool { return b.leaser.slots[0].state == slotTentative })
		s.run(time.Duration(seed) * 250 * time.Millisecond)
		if len(b.held) == 1 {
			continue
		}
		b.pause()
		s.nodes[2].start()
		s.nodes[3].start()
		s.run(time.Minute)
		b.resume()
		s.run(simSettle)
		s.settled()
		for _, n := range s.nodes {
			if len(n.losses) != 0 || len(n.held) != 1 {
				t.Fatalf("node %d holds %v, lost %v", n.i, n.held, n.losses)
			}
		}
	}
}

// TestSimPartition: a cut of any length moves nobody's subnet, and those that
// join on both sides meanwhile get along with each other afterwards.
func TestSimPartition(t *testing.T) {
	for seed := range uint64(10) {
		s := lab(t, seed, subnets(4), 8)
		s.loss = 0.05
		for _, n := range s.nodes[:6] {
			n.start()
		}
		s.runUntil("leases", 30*time.Second, s.allUpHold)
		before := s.subnets()
		const side = 0b01000111
		s.partition(side)
		s.run(25 * time.Second)
		s.nodes[6].start()
		s.nodes[7].start()
		s.run(30 * time.Second)
		s.heal(side)
		s.run(simSettle)
		s.settled()
		if after := s.subnets(); !strings.HasPrefix(after, strings.TrimSuffix(before, "[][]")) {
			t.Errorf("held %s, now %s", before, after)
		}
		if !s.allUpHold() {
			t.Errorf("somebody has none: %s", s.subnets())
		}
	}
}
