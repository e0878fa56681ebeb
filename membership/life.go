package membership

import (
	"fmt"
	"slices"
	"time"
)

// How long records live. Every record carries the time at which it is void, so
// that all nodes drop it alike and an old copy of it brings nothing back:
//
//	claimed, renewed        may be taken if             void
//	or released             no other is free
//	     |-------- lease time ------|----------------------|
//	     |------------------ keepLeases lease times -------|
//
// A node renews what it holds a few times per lease time. So what is held stays
// as long as its owner lives, a dead owner's subnet waits for it, and what is
// left of nodes that are gone for good goes away by itself.

const (
	// keepLeases is how many lease times after its last renewal a claim is void,
	// and after its release a tombstone. It is large, so that a node that was off
	// for a long weekend, or whose clock is wrong by a day, keeps its subnet.
	keepLeases = 8
	// renewals is how often a claim is renewed per lease time, at the least.
	renewals = 4
	// tentativeTime is how long a tentative claim lives without being renewed:
	// that of a node that died before it held anything. It is long beside what
	// the clocks of a cluster without a majority of right ones may be apart.
	tentativeTime = 24 * time.Hour
	// expireEvery is how often void records are looked for.
	expireEvery = 10 * time.Second
	// expireGrace is how long nothing is taken for void after this node's idea of
	// the cluster's time has jumped, so that everybody can renew what they hold.
	expireGrace = time.Minute
)

// wall is the cluster's time, by which claims are stamped and expire. Whatever
// is merely waited for goes by now itself.
func (l *leaser) wall(now time.Time) time.Time { return now.Add(l.skew) }

func seconds(t time.Time) uint64 { return uint64(max(t.Unix(), 0)) }

func (l *leaser) leaseSeconds() uint64 { return uint64(l.settings.LeaseTime / time.Second) }

// freshExpiry is when a claim that is renewed or released now becomes void.
func (l *leaser) freshExpiry(now time.Time) uint64 {
	return seconds(l.wall(now)) + keepLeases*l.leaseSeconds()
}

// Renewed is when the owner of a held claim has said last that it is there, by
// the cluster's time, given the cluster's lease time.
func (c Claim) Renewed(lease time.Duration) time.Time {
	return time.Unix(int64(c.Expiry-min(c.Expiry, keepLeases*uint64(lease/time.Second))), 0)
}

func (l *leaser) renewedAt(c Claim) uint64 { return seconds(c.Renewed(l.settings.LeaseTime)) }

// silent reports whether the owner of a held claim has not renewed it for the
// lease time.
func (l *leaser) silent(c Claim, now time.Time) bool {
	return seconds(l.wall(now)) >= l.renewedAt(c)+l.leaseSeconds()
}

// renewal is when a held claim of ours is to be renewed. Claims made together
// spread over a quarter of the time.
func (l *leaser) renewal(c Claim) uint64 {
	every := l.leaseSeconds() / renewals
	return l.renewedAt(c) + max(every-tieHash(c.Key)%(every/4+1), 1)
}

// renew moves the expiry of a held or tentative claim of ours on if it is time,
// and tells when to look again.
func (l *leaser) renew(s *slot, now time.Time) (next time.Time) {
	due, fresh := l.renewal(s.claim), l.freshExpiry(now)
	if s.state == slotTentative {
		half := uint64(tentativeTime / time.Second / 2)
		due, fresh = s.claim.Expiry-min(s.claim.Expiry, half), seconds(l.wall(now))+2*half
	}
	// An expiry from the future is of a clock that was wrong.
	ahead := s.state == slotHeld && l.synced && s.claim.Expiry > fresh+l.leaseSeconds() && !now.Before(l.expireFrom)
	if wall := seconds(l.wall(now)); wall < due && !ahead {
		return now.Add(time.Duration(min(due-wall, 1<<30)) * time.Second)
	}
	s.claim.Expiry = fresh
	s.claim.Version++
	if s.state == slotHeld {
		l.emit(effect{kind: effectPersist})
	}
	l.write(s, now)
	return now.Add(time.Second)
}

// setSkew is told how far the cluster's time is ahead of this node's clock.
func (l *leaser) setSkew(d time.Duration, now time.Time) {
	if (d - l.skew).Abs() > clockTolerance {
		l.expireFrom = now.Add(expireGrace)
	}
	l.skew = d
}

// voidTime is the time by which records are void or not.
func (l *leaser) voidTime(now time.Time) time.Time {
	if now.Before(l.expireFrom) {
		return time.Unix(-1, 0) // when nothing is
	}
	return l.wall(now)
}

// expire drops what is void, from time to time, and reports whether it has.
func (l *leaser) expire(now time.Time) bool {
	if !l.clockSeen.IsZero() {
		// With a monotonic clock Sub goes by that, and Round(0) takes it away.
		if jump := now.Round(0).Sub(l.clockSeen.Round(0)) - now.Sub(l.clockSeen); jump.Abs() > clockTolerance {
			l.expireFrom = now.Add(expireGrace)
		}
	}
	l.clockSeen = now
	if now.Before(l.expireFrom) || now.Before(l.expireNext) {
		return false
	}
	l.expireNext = now.Add(expireEvery)
	return l.store.expire(l.wall(now))
}

// resume takes up what an earlier run held, and gives back what this one does
// not want of it.
func (l *leaser) resume(claims []Claim, now time.Time) {
	for _, s := range l.slots {
		for _, c := range claims {
			if s.state != slotNone || c.Owner != l.id || c.State != Held || !l.fits(s, c) {
				continue
			}
			l.clock.saw(c.Stamp, l.wall(now))
			s.state, s.claim, s.resumed = slotHeld, c, c.Expiry
			l.write(s, now)
			l.renew(s, now)
			l.emit(effect{kind: effectHeld, prefix: c.Prefix, reason: "kept from the last run"})
		}
	}
	for _, c := range claims {
		if c.Owner == l.id && !l.owns(c.Prefix) && l.settings.admits(c) {
			l.bury(c, now)
			l.emit(effect{kind: effectPersist}) // or the next start takes it up again
		}
	}
}

// restamp makes a claim that was void before this life began a new one: the others
// have forgotten it, and whoever holds the subnet now has done so for longer. It
// waits until the cluster's time is known.
func (l *leaser) restamp(s *slot, now time.Time) {
	old := s.claim
	old.Expiry, s.resumed = s.resumed, 0
	if s.state != slotHeld || !old.expired(l.wall(now)) {
		return
	}
	s.claim.Stamp = l.clock.next(l.wall(now))
	s.claim.Version++
	l.emit(effect{kind: effectPersist})
	l.write(s, now)
}

// fits reports whether the slot wants what c claims.
func (l *leaser) fits(s *slot, c Claim) bool {
	if s.evict || slices.ContainsFunc(l.reserved, c.Prefix.Overlaps) || !l.settings.admits(c) || !s.space.network.Contains(c.Prefix.Addr()) {
		return false
	}
	if s.static.IsValid() {
		return c.Static && c.Prefix == s.static
	}
	return !c.Static
}

// put merges a claim of our own and publishes it.
func (l *leaser) put(c Claim, now time.Time) {
	if old, ok := l.store.claims[c.Key]; ok && c.Version <= old.Version {
		c.Version = old.Version + 1
	}
	if _, err := l.store.merge(c, l.voidTime(now)); err != nil {
		// Our own tombstones fill our share: nobody needs the record.
		return
	}
	l.emit(effect{kind: effectPublish, key: c.Key})
}

// write publishes the slot's claim, above any version of it that is known.
func (l *leaser) write(s *slot, now time.Time) {
	if old, ok := l.store.claims[s.claim.Key]; ok {
		if old == s.claim {
			return
		}
		s.claim.Version = max(s.claim.Version, old.Version+1)
	}
	l.put(s.claim, now)
}

// bury publishes a tombstone in the place of a claim of ours. It outlives every
// copy of the claim.
func (l *leaser) bury(c Claim, now time.Time) {
	c.State, c.Version = Released, c.Version+1
	c.Expiry = max(l.freshExpiry(now), c.Expiry)
	for _, other := range l.store.on(c.Prefix) {
		if c.ends(other.Claim) { // or that would come back in the end
			c.Expiry = max(c.Expiry, other.Expiry)
		}
	}
	l.put(c, now)
}

// release gives the slot's claim up.
func (l *leaser) release(s *slot, now time.Time) {
	c := s.claim
	s.state, s.claim = slotNone, Claim{}
	l.bury(c, now)
}

// leave releases everything for good.
func (l *leaser) leave(now time.Time) []effect {
	for _, s := range l.slots {
		if s.state != slotNone {
			l.release(s, now) // no event: somebody asked for it
		}
	}
	l.synced, l.left = false, true
	l.emit(effect{kind: effectPersist})
	return l.take()
}

// merge takes in a claim of another node, or an echo of one of our own.
func (l *leaser) merge(c Claim, now time.Time) (changed bool, err error) {
	if !l.settings.admits(c) {
		return false, errRecordNetwork
	}
	if c.Owner == l.id {
		return l.mergeOwn(c, now), nil
	}
	changed, err = l.store.merge(c, l.voidTime(now))
	if changed {
		l.clock.saw(c.Stamp, l.wall(now))
	}
	return changed, err
}

// mergeOwn meets a record that bears our name. We are its only writer, so one
// that we did not write last comes from our own past, from a restored backup
// or from a clone: the truth is published above it.
func (l *leaser) mergeOwn(c Claim, now time.Time) (changed bool) {
	old, known := l.store.claims[c.Key]
	if known && !newer(c, old) || c.expired(l.voidTime(now)) {
		return false
	}
	spent := c.Version >= maxCounter-maxLeaseWrites // nothing can be published above it
	for _, s := range l.slots {
		if s.state != slotNone && s.claim.Key == c.Key {
			l.overrule(s, c, spent, now)
			return true
		}
	}
	if c.State == Released || spent { // a tombstone of ours, from before the store was lost
		changed, _ = l.store.merge(c, l.voidTime(now))
		return changed
	}
	if c.State == Tentative || l.left {
		l.bury(c, now)
		return true
	}
	changed, _ = l.store.merge(c, l.voidTime(now))
	i := slices.IndexFunc(l.slots, func(s *slot) bool { return s.state == slotNone && l.fits(s, c) })
	if i < 0 || !l.wins(c) {
		if len(l.strays) < maxRecordsPerOwner {
			l.strays[c.Key] = now.Add(2 * l.spread)
		}
		return changed
	}
	// We held it, and have lost our notes: the others remember.
	s := l.slots[i]
	s.state, s.claim, s.beaten = slotHeld, c, time.Time{}
	s.claim.Version++
	s.claim.Expiry = max(l.freshExpiry(now), c.Expiry)
	l.emit(effect{kind: effectPersist})
	l.put(s.claim, now)
	l.emit(effect{kind: effectHeld, prefix: c.Prefix, reason: "kept from an earlier run, as the others remember it"})
	return true
}

// wins reports whether a claim of ours that is in the store is accepted.
func (l *leaser) wins(c Claim) bool {
	return slices.ContainsFunc(l.store.on(c.Prefix), func(v ClaimInfo) bool { return v.Owner == c.Owner && v.Accepted })
}

// stepStrays gives up what we are said to hold and do not: not at once, and not
// while another life of ours seems to live, whose it may be.
func (l *leaser) stepStrays(now time.Time, at func(time.Time)) {
	for k, due := range l.strays {
		c, there := l.store.claims[k]
		if !there || c.State != Held || l.owns(k.Prefix) {
			delete(l.strays, k)
			continue
		}
		if now.Before(due) {
			at(due)
			continue
		}
		if l.twins != nil && l.twins() {
			l.strays[k] = now.Add(l.spread)
			at(now.Add(l.spread))
			continue
		}
		delete(l.strays, k)
		l.bury(c, now)
	}
}

// overrule answers a newer record of what the slot claims.
func (l *leaser) overrule(s *slot, c Claim, spent bool, now time.Time) {
	if spent && s.evict {
		l.emit(effect{kind: effectEvicted, prefix: c.Prefix, reason: "somebody wrote the last possible version of this node's claim"})
		s.state, s.claim = slotNone, Claim{}
		l.store.merge(c, l.voidTime(now))
		return
	}
	if spent {
		l.emit(effect{kind: effectLost, prefix: c.Prefix, reason: "somebody wrote the last possible version of our claim"})
		s.refused[c.Prefix] = true
		s.state, s.claim = slotNone, Claim{}
		l.store.merge(c, l.voidTime(now))
		l.emit(effect{kind: effectPersist})
		return
	}
	if s.state == slotHeld {
		l.emit(effect{kind: effectPersist})
	}
	same := c
	same.Version, same.Expiry = s.claim.Version, s.claim.Expiry
	if same == s.claim {
		// It says the same: a later version of our own past, or of a clone's.
		// Answering a clone would never end.
		s.claim = c
		l.store.merge(c, l.voidTime(now))
		return
	}
	if c.State == Held && s.state == slotHeld && c.Static == s.claim.Static && compareClaims(c, s.claim) < 0 {
		// The stronger of two truths is the later one, or a clone's: insisting on
		// ours would be answered for ever.
		c.Version++
		c.Expiry = max(s.claim.Expiry, c.Expiry)
		s.claim = c
		l.put(c, now)
		return
	}
	if c.State == Released {
		// Our notes are from before we gave it up (a restored backup). Whoever is
		// about to take it since then is not refuted.
		s.doubted = now
	}
	s.claim.Version = c.Version + 1
	s.claim.Expiry = max(s.claim.Expiry, c.Expiry)
	l.put(s.claim, now)
}

// stepHeld looks after a held claim.
func (l *leaser) stepHeld(s *slot, now time.Time, at func(time.Time)) {
	if _, ok := l.store.claims[s.claim.Key]; !ok {
		// It is void: this node has slept for many lease times. As in resume.
		s.claim.Stamp = l.clock.next(l.wall(now))
		s.claim.Expiry = l.freshExpiry(now)
		s.claim.Version++
		l.emit(effect{kind: effectPersist})
		l.write(s, now)
	}
	if l.refutedTooLate(s) {
		s.claim.Stamp = 0 // a tombstone of one in use would end the other's, too
		l.lose(s, fmt.Sprintf("another node took %v over while this node was away", s.claim.Prefix), now)
		at(now)
		return
	}
	by := l.beatenBy(s)
	if by == nil {
		s.beaten = time.Time{}
		at(l.renew(s, now))
		return
	}
	if l.refute(s, by, now) {
		at(now)
		return
	}
	if s.beaten.IsZero() {
		s.beaten = now
	}
	if ready := s.beaten.Add(l.spread); now.Before(ready) {
		at(ready)
		return
	}
	reason := fmt.Sprintf("node %v owns %v by a stronger claim", by.Owner, by.Prefix)
	switch {
	case by.State == Released:
		reason = fmt.Sprintf("node %v took %v over while this node was away, and gave it up again", by.Owner, by.Prefix)
	case s.claim.Static:
		reason += "; the static subnet is not replaced: give this node another --subnet"
		s.lostLoud = true
	}
	l.lose(s, reason, now)
	at(now)
}

// lose gives a held claim up against our will.
func (l *leaser) lose(s *slot, reason string, now time.Time) {
	s.beaten, s.refuted = time.Time{}, nil
	l.emit(effect{kind: effectLost, prefix: s.claim.Prefix, reason: reason})
	l.release(s, now)
	l.emit(effect{kind: effectPersist})
}

// refute answers a tentative claim on what we hold: somebody takes us for gone.
// Against a held one, or a static one if ours is not, nothing is to be done.
func (l *leaser) refute(s *slot, by *ClaimInfo, now time.Time) bool {
	if by.State != Tentative || by.Static && !s.claim.Static || by.Gen >= maxCounter {
		return false
	}
	if !s.doubted.IsZero() && now.Before(s.doubted.Add(2*l.spread)) {
		return false
	}
	if len(s.refuted) == maxRefutations {
		s.refuted = s.refuted[1:]
	}
	s.refuted = append(s.refuted, refutation{by.Key, by.Gen})
	s.claim.Gen = max(s.claim.Gen, by.Gen+1)
	s.claim.Version++
	l.emit(effect{kind: effectPersist})
	l.write(s, now)
	return true
}

// maxRefutations bounds what is remembered of those who were refuted.
const maxRefutations = 16

// refutedTooLate reports whether somebody whose tentative claim was refuted had
// got the lease before it could hear of that. It has been there all the time,
// and we have not: it keeps the subnet.
func (l *leaser) refutedTooLate(s *slot) bool {
	for _, r := range s.refuted {
		if c, ok := l.store.claims[r.key]; ok && c.State == Held && c.Gen == r.gen {
			return true
		}
	}
	return false
}

// held returns the claims to be persisted: what would be used at once after a
// restart.
func (l *leaser) held() []Claim {
	var out []Claim
	for _, s := range l.slots {
		if s.state == slotHeld {
			out = append(out, s.claim)
		}
	}
	return out
}
