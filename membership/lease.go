package membership

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/gaissmai/bart"
)

// leaser is the protocol by which this node gets and keeps its subnets. It is
// deterministic and does no I/O: what happens is told to it, its clock is the
// now it is given, and what is to be done comes back as effects, in order.
//
// Each wanted subnet (one per network) goes its own way:
//
//	       pick, publish tentative              spread + full sync, still accepted:
//	none ------------------------> tentative --------- persist, publish held -----> held
//	 ^                                | beaten: publish released                     |
//	 +--------------------------------+<------- beaten for the spreading time -------+
//
// A node that restarts with a lease begins at held. A static subnet that is
// beaten while tentative is fatal, and one that is beaten later stays none.
type leaser struct {
	id       NodeID
	settings Settings
	spread   time.Duration
	store    *store
	clock    hybridClock
	slots    []*slot

	// alone: no other node is known to live now; everAlone: none was ever seen.
	alone, everAlone bool
	// synced: has merged in full with a node that holds the settings (or is the
	// first node) since this boot.
	synced bool

	effects []effect
}

// maxLeaseWrites is more versions than a claim goes through in its life.
const maxLeaseWrites = 1 << 32

// slot is one wanted subnet.
type slot struct {
	space  space
	static netip.Prefix // valid: this subnet and no other

	state     slotState
	claim     Claim     // ours, unless state is slotNone
	since     time.Time // when it was published as tentative
	wantSync  bool      // spread: a full sync is to begin
	syncAsked bool      // it has begun
	syncDone  bool      // it has ended well
	beaten    time.Time // since when the held claim has been beaten, zero if it is not
	refused   map[netip.Prefix]bool
	full      bool // no subnet was free at the last try
	lostLoud  bool // a static subnet was lost and said so
}

type slotState uint8

const (
	slotNone slotState = iota
	slotTentative
	slotHeld
)

// effect is something to be done, in order.
type effect struct {
	kind   effectKind
	key    Key // publish
	prefix netip.Prefix
	reason string
}

type effectKind uint8

const (
	effectPublish effectKind = iota // tell everyone the record under key
	effectPersist                   // write held claims to disk before what follows
	effectSync                      // merge in full with a live node, then call synced
	effectHeld                      // prefix is ours
	effectLost                      // prefix is not ours any more
	effectFatal                     // cannot go on: reason
	effectFull                      // no subnet is free
)

// newLeaser makes a leaser that resumes the held claims of an earlier run.
func newLeaser(id NodeID, s Settings, static []netip.Prefix, st *store, spread time.Duration, resume []Claim, now time.Time) *leaser {
	l := &leaser{id: id, settings: s, spread: spread, store: st, alone: true, everAlone: len(resume) == 0}
	for i, n := range s.Networks {
		sl := &slot{space: space{n, s.SubnetLens[i]}, refused: map[netip.Prefix]bool{}}
		for _, p := range static {
			if p.Addr().Is4() == n.Addr().Is4() {
				sl.static = p
			}
		}
		for _, c := range resume {
			fits := c.Owner == id && c.State == Held && s.admits(c) && n.Contains(c.Prefix.Addr())
			if sl.static.IsValid() {
				fits = fits && c.Static && c.Prefix == sl.static
			} else {
				fits = fits && !c.Static
			}
			if fits && sl.state == slotNone {
				sl.state, sl.claim = slotHeld, c
				l.clock.saw(c.Stamp, now)
				l.write(sl, now)
				l.emit(effect{kind: effectHeld, prefix: c.Prefix, reason: "kept from the last run"})
			}
		}
		l.slots = append(l.slots, sl)
	}
	// What an earlier run held and this one does not want is given back.
	for _, c := range resume {
		if c.Owner == id && !l.owns(c.Prefix) && s.admits(c) {
			c.State, c.Version = Released, c.Version+1
			c.Expiry = l.tombstoneExpiry(now)
			l.put(c, now)
			l.emit(effect{kind: effectPersist}) // or the next start takes it up again
		}
	}
	return l
}

func (l *leaser) owns(p netip.Prefix) bool {
	for _, s := range l.slots {
		if s.state != slotNone && s.claim.Prefix == p {
			return true
		}
	}
	return false
}

func (l *leaser) emit(e effect) { l.effects = append(l.effects, e) }

// put merges a claim of our own and publishes it.
func (l *leaser) put(c Claim, now time.Time) {
	if old, ok := l.store.claims[c.Key]; ok && c.Version <= old.Version {
		c.Version = old.Version + 1
	}
	if _, err := l.store.merge(c, now); err != nil {
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

func (l *leaser) tombstoneExpiry(now time.Time) uint64 {
	return uint64(max(now.Add(l.settings.LeaseTime).Unix(), 1))
}

// merge takes in a claim of another node, or an echo of one of our own.
func (l *leaser) merge(c Claim, now time.Time) (changed bool, err error) {
	if !l.settings.admits(c) {
		return false, errRecordNetwork
	}
	if c.Owner == l.id {
		return l.mergeOwn(c, now), nil
	}
	changed, err = l.store.merge(c, now)
	if changed {
		l.clock.saw(c.Stamp, now)
	}
	return changed, err
}

// mergeOwn meets a record that bears our name. We are its only writer, so one
// that we did not write last comes from our own past, from a restored backup
// or from a clone: the truth is published above it.
func (l *leaser) mergeOwn(c Claim, now time.Time) (changed bool) {
	old, known := l.store.claims[c.Key]
	if known && !newer(c, old) {
		return false
	}
	for _, s := range l.slots {
		if s.state != slotNone && s.claim.Key == c.Key {
			if c.Version >= maxCounter-maxLeaseWrites {
				// Nothing can be published above this: the prefix is lost.
				l.emit(effect{kind: effectLost, prefix: c.Prefix, reason: "somebody wrote the last possible version of our claim"})
				s.refused[c.Prefix] = true
				s.state, s.claim = slotNone, Claim{}
				l.store.merge(c, now)
				l.emit(effect{kind: effectPersist})
				return true
			}
			s.claim.Version = c.Version + 1
			l.emit(effect{kind: effectPersist})
			l.put(s.claim, now)
			return true
		}
	}
	if c.State == Released || c.Version >= maxCounter-maxLeaseWrites { // a tombstone of ours, from before the store was lost
		changed, _ = l.store.merge(c, now)
		return changed
	}
	c.State, c.Version = Released, c.Version+1
	c.Expiry = l.tombstoneExpiry(now)
	l.put(c, now)
	return true
}

// syncStarted is told that a sync that was asked for is under way now.
func (l *leaser) syncStarted() {
	for _, s := range l.slots {
		if s.state == slotTentative && s.wantSync {
			s.syncAsked = true
		}
	}
}

// fullSync is told that a full merge has ended; the merge's records were given
// to merge before. withOther: it was a live node that holds the settings, not
// just nobody else who could hold claims.
func (l *leaser) fullSync(now time.Time, withOther bool) {
	l.synced = true
	for _, s := range l.slots {
		if s.state == slotTentative && s.syncAsked {
			s.syncDone = true
		}
		if withOther && s.state == slotHeld && s.claim.Solo && l.accepted(s) {
			s.claim.Solo = false
			s.claim.Version++
			l.emit(effect{kind: effectPersist})
			l.write(s, now)
		}
	}
}

// syncFailed is told that the sync under way came to nothing; it is asked for
// again.
func (l *leaser) syncFailed() {
	for _, s := range l.slots {
		if s.state == slotTentative && !s.syncDone {
			s.syncAsked = false
		}
	}
}

// others is told whether another node is alive now.
func (l *leaser) others(alive bool) {
	l.alone = !alive
	if alive {
		l.everAlone = false
	}
}

func (l *leaser) accepted(s *slot) bool { return l.beatenBy(s) == nil }

// beatenBy returns an accepted claim that keeps the slot's claim from being
// accepted, nil if there is none. Not every accepted claim that overlaps ours
// does: of a wide one's losers some may overlap no winner.
func (l *leaser) beatenBy(s *slot) *ClaimInfo {
	all := l.store.owners()
	for i := range all {
		if all[i].Key == s.claim.Key {
			if all[i].Accepted {
				return nil
			}
			for j := range all {
				if all[j].Accepted && all[j].Prefix.Overlaps(s.claim.Prefix) && compareClaims(all[j].Claim, s.claim) < 0 {
					return &all[j]
				}
			}
		}
	}
	return &ClaimInfo{Claim: s.claim, Why: "the claim is not in the store"}
}

// step lets time pass and returns what is to be done, and when to call again
// at the latest (zero: only when something happens).
func (l *leaser) step(now time.Time) (todo []effect, next time.Time) {
	at := func(t time.Time) {
		if next.IsZero() || t.Before(next) {
			next = t
		}
	}
	for _, s := range l.slots {
		switch s.state {
		case slotNone:
			if l.synced && !s.lostLoud {
				l.claim(s, now)
			}
			if s.state == slotTentative {
				at(now.Add(l.spread))
				if l.alone {
					at(now)
				}
			} else if s.full {
				at(now.Add(l.spread))
			}
		case slotTentative:
			l.stepTentative(s, now, at)
		case slotHeld:
			l.stepHeld(s, now, at)
		}
	}
	todo, l.effects = l.effects, nil
	return todo, next
}

// claim picks a subnet and publishes a tentative claim on it.
func (l *leaser) claim(s *slot, now time.Time) {
	p := s.static
	if !p.IsValid() {
		var taken bart.Table[int]
		for k, c := range l.store.claims {
			// A key of ours whose version cannot be raised is lost, too.
			spent := c.Owner == l.id && c.Version >= maxCounter-maxLeaseWrites
			if c.State != Released || spent {
				taken.Insert(k.Prefix, 0)
			}
		}
		var ok bool
		if p, ok = l.pick(s, &taken); !ok {
			if len(s.refused) > 0 { // what was refused once may be free again
				clear(s.refused)
			}
			if !s.full {
				s.full = true
				l.emit(effect{kind: effectFull, prefix: s.space.network,
					reason: fmt.Sprintf("no /%d is free in %v: wait for a lease to end, evict a dead node's, or use a larger network", s.space.length, s.space.network)})
			}
			return
		}
	}
	if by := l.staticHolder(s); by != nil {
		// Our claim would have the higher gen and win: whoever comes later to a
		// static subnet gives way before it claims.
		l.emit(effect{kind: effectFatal, reason: staticTaken(p, by)})
		s.lostLoud = true
		return
	}
	s.full = false
	gen := uint64(1)
	for k, c := range l.store.claims {
		if k.Prefix == p {
			gen = max(gen, c.Gen+1)
		}
	}
	s.claim = Claim{Key: Key{p, l.id}, Version: 1, State: Tentative, Static: s.static.IsValid(), Solo: l.everAlone, Gen: min(gen, maxCounter)}
	s.state, s.since, s.wantSync, s.syncAsked, s.syncDone = slotTentative, now, false, false, false
	l.write(s, now)
}

// pick chooses a free subnet for the slot. A node whose share of the store is
// full of its own tombstones takes one of those up again: a record under a new
// key would be refused, here and by others.
func (l *leaser) pick(s *slot, taken *bart.Table[int]) (netip.Prefix, bool) {
	if l.store.perOwner[l.id] < maxRecordsPerOwner {
		return s.space.pick(l.id, taken, s.refused)
	}
	for _, c := range l.store.owners() {
		p := c.Prefix
		ours := c.Owner == l.id && c.State == Released && p.Bits() == s.space.length && s.space.network.Contains(p.Addr())
		if ours && !s.refused[p] && !taken.OverlapsPrefix(p) {
			return p, true
		}
	}
	return netip.Prefix{}, false
}

// staticHolder returns the accepted static claim of another node that overlaps
// the slot's static subnet.
func (l *leaser) staticHolder(s *slot) *ClaimInfo {
	if !s.static.IsValid() {
		return nil
	}
	all := l.store.owners()
	for i := range all {
		if c := &all[i]; c.Accepted && c.Static && c.Owner != l.id && c.Prefix.Overlaps(s.static) {
			return c
		}
	}
	return nil
}

func staticTaken(p netip.Prefix, by *ClaimInfo) string {
	return fmt.Sprintf("%v overlaps %v, which node %v has as its static subnet: give this node another --subnet", p, by.Prefix, by.Owner)
}

func (l *leaser) stepTentative(s *slot, now time.Time, at func(time.Time)) {
	if by := l.beatenBy(s); by != nil {
		if s.claim.Static {
			l.emit(effect{kind: effectFatal, reason: staticTaken(s.claim.Prefix, by)})
			l.release(s, now)
			s.lostLoud = true
			return
		}
		s.refused[s.claim.Prefix] = true
		l.release(s, now)
		at(now)
		return
	}
	if !l.alone {
		if ready := s.since.Add(l.spread); now.Before(ready) {
			at(ready)
			return
		}
		if !s.syncDone {
			if s.wantSync = true; !s.syncAsked {
				l.emit(effect{kind: effectSync})
			}
			return
		}
	}
	s.state = slotHeld
	s.claim.State = Held
	s.claim.Stamp = l.clock.next(now)
	s.claim.Version++
	clear(s.refused)
	l.emit(effect{kind: effectPersist})
	l.write(s, now)
	l.emit(effect{kind: effectHeld, prefix: s.claim.Prefix, reason: "claimed"})
}

func (l *leaser) stepHeld(s *slot, now time.Time, at func(time.Time)) {
	by := l.beatenBy(s)
	if by == nil {
		s.beaten = time.Time{}
		return
	}
	if s.beaten.IsZero() {
		s.beaten = now
	}
	if ready := s.beaten.Add(l.spread); now.Before(ready) {
		at(ready)
		return
	}
	s.beaten = time.Time{}
	p := s.claim.Prefix
	reason := fmt.Sprintf("node %v owns %v by a stronger claim", by.Owner, by.Prefix)
	s.lostLoud = s.claim.Static
	if s.lostLoud {
		reason += "; the static subnet is not replaced: give this node another --subnet"
	}
	l.emit(effect{kind: effectLost, prefix: p, reason: reason})
	l.release(s, now)
	l.emit(effect{kind: effectPersist})
	at(now)
}

// release gives the slot's claim up.
func (l *leaser) release(s *slot, now time.Time) {
	c := s.claim
	s.state, s.claim = slotNone, Claim{}
	c.State = Released
	c.Version++
	c.Expiry = l.tombstoneExpiry(now)
	l.put(c, now)
}

// leave releases everything for good.
func (l *leaser) leave(now time.Time) []effect {
	for _, s := range l.slots {
		if s.state == slotNone {
			continue
		}
		l.release(s, now) // no event: somebody asked for it
	}
	l.synced = false
	l.emit(effect{kind: effectPersist})
	var todo []effect
	todo, l.effects = l.effects, nil
	return todo
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
