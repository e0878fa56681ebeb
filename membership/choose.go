package membership

import (
	"net/netip"
	"slices"
	"time"

	"github.com/gaissmai/bart"
)

// pick chooses a subnet for the slot: a free one, or else one whose owner has
// been silent for the lease time.
func (l *leaser) pick(s *slot, now time.Time) (netip.Prefix, bool) {
	var taken bart.Table[int]
	l.store.settle()
	for _, g := range l.store.groups {
		for _, c := range g.claims {
			// A key of ours whose version cannot be raised is lost, too.
			spent := c.Owner == l.id && c.Version >= maxCounter-maxLeaseWrites
			if c.claims() || spent {
				taken.Insert(g.prefix, 0)
				break
			}
		}
	}
	for _, p := range l.reserved {
		taken.Insert(p, 0)
	}
	if p, ok := l.pickFree(s, &taken); ok {
		return p, true
	}
	return l.pickSilent(s, now)
}

// claims reports whether anybody still wants the prefix by this claim.
func (c *ClaimInfo) claims() bool { return c.State != Released && !c.Ended }

// pickFree chooses a subnet that nobody claims. A node whose share of the store
// is full of its own tombstones takes one of those up again: a record under a
// new key would be refused, here and by others.
func (l *leaser) pickFree(s *slot, taken *bart.Table[int]) (netip.Prefix, bool) {
	if len(l.store.byOwner[l.id]) < maxRecordsPerOwner {
		return s.space.pick(l.id, taken, s.refused)
	}
	for _, p := range l.store.byOwner[l.id] {
		ours := l.store.claims[Key{p, l.id}].State == Released && p.Bits() == s.space.length && s.space.network.Contains(p.Addr())
		if ours && !s.refused[p] && !taken.OverlapsPrefix(p) {
			return p, true
		}
	}
	return netip.Prefix{}, false
}

// pickSilent chooses a leased subnet of a node that is not there and has not
// renewed it for the lease time, in an order of this node's own, so that several
// that look for one seldom choose alike. Static subnets stay who they are for.
func (l *leaser) pickSilent(s *slot, now time.Time) (best netip.Prefix, ok bool) {
	var bestHash uint64
	for _, g := range l.store.groups {
		p := g.prefix
		c := &g.claims[0]
		if !c.Accepted || c.Static || c.State != Held || c.Owner == l.id || !l.silent(c.Claim, now) || l.live != nil && l.live(c.Owner) ||
			p.Bits() != s.space.length || slices.ContainsFunc(l.reserved, p.Overlaps) || !s.space.network.Contains(p.Addr()) || s.refused[p] ||
			len(l.store.byOwner[l.id]) >= maxRecordsPerOwner && l.store.claims[Key{p, l.id}].Version == 0 {
			continue
		}
		if h := tieHash(Key{p, l.id}); !ok || h < bestHash {
			best, bestHash, ok = p, h, true
		}
	}
	return best, ok
}
