package membership

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// gets checks a new lease: it is on disk before it is used, and as long as
// nothing keeps nodes from hearing each other nobody else uses it.
func (n *simNode) gets(e effect) {
	s := n.s
	s.logf("node %d holds %v: %s", n.i, e.prefix, e.reason)
	n.held = append(n.held, e.prefix)
	n.everHeld = true
	if !slices.ContainsFunc(n.disk.claims, func(c Claim) bool { return c.Prefix == e.prefix && c.State == Held }) {
		s.fail("node %d uses %v before it is on disk", n.i, e.prefix)
	}
	if s.faulty || len(n.static) > 0 {
		return
	}
	for _, o := range s.nodes {
		if o == n || !o.up || len(o.static) > 0 {
			continue
		}
		for _, p := range o.held {
			if p.Overlaps(e.prefix) {
				s.fail("nodes %d and %d use %v and %v at one time", n.i, o.i, e.prefix, p)
			}
		}
	}
}

// checkLoss: a held lease of a live node goes only to a static one, or, when
// nodes meet that could not hear each other, to one that sorts before it.
func (n *simNode) checkLoss(e effect, had []Claim) {
	s := n.s
	i := slices.IndexFunc(had, func(c Claim) bool { return c.Prefix == e.prefix })
	if i < 0 {
		s.fail("node %d loses %v, which it did not hold", n.i, e.prefix)
	}
	for _, by := range n.store.owners() {
		if !by.Accepted || !by.Prefix.Overlaps(e.prefix) || compareClaims(by.Claim, had[i]) >= 0 {
			continue
		}
		n.losses = append(n.losses, simLoss{e.prefix, by.Claim, e.reason})
		if !strings.Contains(e.reason, by.Owner.String()) || !strings.Contains(e.reason, by.Prefix.String()) {
			s.fail("node %d loses %v to %+v and says: %s", n.i, e.prefix, by, e.reason)
		}
		if !by.Static && !s.disturbed() && len(s.cuts) == 0 {
			s.fail("node %d loses %v to a dynamic claim, and nothing was the matter: %+v by %+v", n.i, e.prefix, had[i], by)
		}
		return
	}
	for _, by := range n.store.owners() {
		switch {
		case by.Prefix == e.prefix && by.ends(had[i]), by.Prefix == e.prefix && by.State == Held && by.Gen > 1 && strings.Contains(e.reason, "while this node was away"):
			// Evicted, or refuted too late: only of one that was away.
			n.losses = append(n.losses, simLoss{e.prefix, by.Claim, e.reason})
			if !s.disturbed() && len(s.cuts) == 0 {
				s.fail("node %d was there, and is evicted from %v: %+v", n.i, e.prefix, by)
			}
			return
		}
	}
	s.fail("node %d loses %v to nobody", n.i, e.prefix)
}

// checkEviction: the subnet of a node that lives and can be heard is not taken.
func (n *simNode) checkEviction(p netip.Prefix) {
	s := n.s
	if s.disturbed() || len(s.cuts) > 0 || slices.ContainsFunc(s.nodes, func(o *simNode) bool { return o.paused }) {
		return
	}
	for _, o := range s.nodes {
		if o.up && !o.left && slices.Contains(o.held, p) {
			s.fail("node %d has evicted node %d, which is there, from %v", n.i, o.i, p)
		}
	}
}

// checkFatal: a node refuses to start beside another's static subnet, which it
// names. One that ran already goes on without a subnet instead.
func (n *simNode) checkFatal(e effect) {
	if n.everHeld {
		n.s.fail("node %d ends after it ran: %s", n.i, e.reason)
	}
	for _, o := range n.s.nodes {
		for _, p := range o.static {
			for _, id := range append(slices.Clone(o.former), o.id) {
				if id != n.id && slices.ContainsFunc(n.static, p.Overlaps) && strings.Contains(e.reason, id.String()) && strings.Contains(e.reason, p.String()) {
					return
				}
			}
		}
	}
	n.s.fail("node %d ends without need: %s", n.i, e.reason)
}

// settled checks what must hold once the cluster has had time to settle.
func (s *sim) settled() {
	s.t.Helper()
	var live []*simNode
	for _, n := range s.nodes {
		if n.up {
			live = append(live, n)
		}
	}
	// Renewals go on for ever, and some may be under way; a lease time may just
	// have ended, so that somebody gets a subnet.
	alike := func() bool {
		for _, n := range live {
			if !maps.Equal(n.lasting(), live[0].lasting()) || slices.ContainsFunc(n.leaser.slots, func(s *slot) bool { return s.state == slotTentative }) {
				return false
			}
		}
		return true
	}
	for range 300 {
		if alike() {
			break
		}
		s.run(100 * time.Millisecond)
	}
	// Without a node that may begin a cluster, and after the one that began it
	// has gone for good, the others wait.
	started := slices.ContainsFunc(live, func(n *simNode) bool { return n.leaser.synced || n.listed && (!n.elector.beside || len(live) > 1) })
	for k, n := range live {
		if !maps.Equal(n.lasting(), live[0].lasting()) {
			s.fail("nodes %d and %d hold other records:\n%v\n%v", live[0].i, n.i, describe(live[0].store), describe(n.store))
		}
		if same := maps.Equal(n.store.claims, live[0].store.claims); same != (n.store.digest == live[0].store.digest) {
			s.fail("nodes %d and %d: the same records %v, and the digests say otherwise", live[0].i, n.i, same)
		}
		for _, o := range live[:k] {
			for _, p := range n.held {
				if slices.ContainsFunc(o.held, p.Overlaps) {
					s.fail("nodes %d and %d hold %v and %v", n.i, o.i, n.held, o.held)
				}
			}
		}
		if !n.leaser.synced {
			if started {
				s.fail("node %d has not synced", n.i)
			}
			continue
		}
		held := n.leaser.held()
		if !slices.Equal(held, n.disk.claims) {
			s.fail("node %d holds %v, on disk are %v", n.i, held, n.disk.claims)
		}
		if len(held) != len(n.held) || slices.ContainsFunc(held, func(c Claim) bool { return !slices.Contains(n.held, c.Prefix) }) {
			s.fail("node %d holds %v, its events say %v", n.i, held, n.held)
		}
		for _, sl := range n.leaser.slots {
			n.checkSlot(sl)
		}
		for _, c := range n.store.owners() {
			mine := slices.ContainsFunc(n.leaser.slots, func(sl *slot) bool { return sl.state == slotHeld && sl.claim == c.Claim })
			if c.Owner == n.id && c.State != Released && !mine {
				s.fail("node %d knows nothing of its own claim %+v", n.i, c)
			}
			if mine && !c.Accepted {
				s.fail("node %d holds %v, and it is not accepted: %s", n.i, c.Prefix, c.Why)
			}
		}
	}
	for _, n := range s.nodes {
		if n.store != nil && len(n.store.claims) > len(s.nodes)*maxRecordsPerOwner {
			s.fail("node %d keeps %d records", n.i, len(n.store.claims))
		}
	}
}

// lasting are the records that no node may have dropped yet, or be about to.
func (n *simNode) lasting() map[Key]Claim {
	out := maps.Clone(n.store.claims)
	maps.DeleteFunc(out, func(_ Key, c Claim) bool { return c.expired(n.leaser.wall(n.wall()).Add(clockTolerance)) })
	return out
}

// checkSlot: who has no subnet found none free, or lost a static one.
func (n *simNode) checkSlot(sl *slot) {
	switch {
	case sl.state == slotHeld:
	case sl.state == slotTentative:
		n.s.fail("node %d has not come further than a tentative claim on %v", n.i, sl.claim.Prefix)
	case sl.static.IsValid():
		if !sl.lostLoud {
			n.s.fail("node %d has not got its static subnet %v", n.i, sl.static)
		}
	default:
		for i := range sl.space.size() {
			p := sl.space.at(i)
			taken := slices.ContainsFunc(n.store.owners(), func(c ClaimInfo) bool { return c.State != Released && c.Prefix.Overlaps(p) })
			if !taken {
				n.s.fail("node %d has no subnet of %v, although %v is free", n.i, sl.space.network, p)
			}
		}
	}
}

func describe(st *store) string {
	var b strings.Builder
	for _, c := range st.owners() {
		fmt.Fprintf(&b, "  %v of %v: version %d, %v, static %v, solo %v, gen %d, stamp %v: %s\n",
			c.Prefix, c.Owner.String()[8:16], c.Version, c.State, c.Static, c.Solo, c.Gen, c.Stamp.Time().UTC().Format(time.TimeOnly), c.Why)
	}
	return b.String()
}

// allUpHold reports whether every live node has all its subnets.
func (s *sim) allUpHold() bool {
	for _, n := range s.nodes {
		if n.up && len(n.held) != len(s.settings.Networks) {
			return false
		}
	}
	return true
}
