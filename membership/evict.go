package membership

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// ErrEvict: a subnet cannot be taken from its owner.
var ErrEvict = errors.New("cannot be evicted")

// evict begins to end somebody else's claim on p, so that p is free again. It
// claims p tentatively with the next generation, gives the owner the spreading
// time to refute that, and then gives up what it has not been refuted: the owner
// function does not go back to an older generation. The result comes as an
// effect; an error says why it cannot even begin.
func (l *leaser) evict(p netip.Prefix, now time.Time) error {
	no := func(format string, args ...any) error {
		return fmt.Errorf("%v %w: %s", p, ErrEvict, fmt.Sprintf(format, args...))
	}
	if !l.synced {
		return no("this node has not merged with its cluster yet")
	}
	i := slices.IndexFunc(l.slots, func(s *slot) bool { return s.space.network.Contains(p.Addr()) })
	if i < 0 || p.Masked() != p {
		return no("it is not a subnet of the overlay networks; see \"overlayd lease list\"")
	}
	if slices.ContainsFunc(l.slots, func(s *slot) bool { return s.evict && s.claim.Prefix.Overlaps(p) }) {
		return no("that is under way")
	}
	claims := l.store.on(p)
	j := slices.IndexFunc(claims, func(c ClaimInfo) bool { return c.Accepted })
	if j < 0 {
		return no("nobody owns it; see \"overlayd lease list\"")
	}
	victim := claims[j].Claim
	if victim.Owner == l.id {
		return no("it is this node's own: use \"overlayd leave\"")
	}
	if own := l.store.claims[Key{p, l.id}]; own.Version >= maxCounter-maxLeaseWrites {
		return no("this node's own record of it cannot be raised: do it on another one")
	}
	if l.live != nil && l.live(victim.Owner) {
		return no("its owner, node %v, is alive: use \"overlayd leave\" there", victim.Owner)
	}
	if len(l.store.byOwner[l.id]) >= maxRecordsPerOwner && l.store.claims[Key{p, l.id}].Version == 0 {
		return no("this node has given up too many subnets lately: do it on another one")
	}
	s := &slot{space: l.slots[i].space, evict: true}
	l.tentative(s, p, victim.Static, now)
	l.slots = append(l.slots, s)
	return nil
}

// endEviction gives the claim of an eviction up. With a stamp it counts as one
// that was in use, and ends the older ones.
func (l *leaser) endEviction(s *slot, by *ClaimInfo, now time.Time) {
	reason := ""
	if by != nil {
		reason = fmt.Sprintf("node %v owns it by a stronger claim", by.Owner)
		if by.State == Held {
			reason = fmt.Sprintf("its owner, node %v, is there after all and keeps it", by.Owner)
		}
	}
	l.emit(effect{kind: effectEvicted, prefix: s.claim.Prefix, reason: reason})
	l.release(s, now)
}
