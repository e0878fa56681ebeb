package membership

import (
	"fmt"
	"net/netip"
	"slices"
	"time"
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
// beaten while tentative is fatal, and one that is beaten later stays none. An
// eviction goes the same way up to where its claim would become held.
type leaser struct {
	id       NodeID
	settings Settings
	spread   time.Duration
	store    *store
	clock    hybridClock
	slots    []*slot

	// skew is how far the cluster's time is ahead of the now that is given.
	skew time.Duration
	// live reports whether a node is known to live now; nil: none is.
	live func(NodeID) bool
	// reserved is never chosen from.
	reserved []netip.Prefix
	// twins reports whether another life of this node seems to live now: its past,
	// or a clone. nil: none does.
	twins func() bool
	// spreading reports whether we have not told everybody yet of a claim of ours,
	// as far as our part of the gossip goes. nil: it is done at once.
	spreading func(Key) bool
	// strays are held claims in our name that we know nothing of, and when they
	// are given up.
	strays map[Key]time.Time
	// alone: no other node is known to live now; everAlone: none was ever seen.
	alone, everAlone bool
	// synced: has merged in full with a node that holds the settings (or is the
	// first node) since this boot.
	synced bool
	left   bool // has released everything for good

	// clockSeen is when expire was called last; from expireFrom on records can be
	// void at all, and at expireNext such ones are looked for.
	clockSeen, expireFrom, expireNext time.Time

	effects []effect
}

// maxSpreads bounds in spreading times how long a claim waits for its turn in a
// gossip that is busy.
const maxSpreads = 10

// maxLeaseWrites is more versions than a claim goes through in its life.
const maxLeaseWrites = 1 << 32

// slot is one wanted subnet.
type slot struct {
	space  space
	static netip.Prefix // valid: this subnet and no other
	evict  bool         // made by leaser.evict, to end somebody's claim

	state     slotState
	claim     Claim     // ours, unless state is slotNone
	since     time.Time // when it was published as tentative
	wantSync  bool      // spread: a full sync is to begin
	syncAsked bool      // it has begun
	syncDone  bool      // it has ended well
	beaten    time.Time // since when the held claim has been beaten, zero if it is not
	doubted   time.Time // when it was found that an earlier life had released it
	refuted   []refutation
	resumed   uint64 // expiry of the claim as it was found at the start, until synced
	refused   map[netip.Prefix]bool
	full      bool // no subnet was free at the last try
	lostLoud  bool // a static subnet was lost and said so
}

// refutation is a tentative claim of somebody else that the slot's held one was
// raised above.
type refutation struct {
	key Key
	gen uint64
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
	effectEvicted                   // the eviction of prefix has ended; reason: why it failed, empty if it has not
)

// newLeaser makes a leaser that resumes the held claims of an earlier run.
func newLeaser(id NodeID, s Settings, static []netip.Prefix, st *store, spread time.Duration, resume []Claim, now time.Time) *leaser {
	l := &leaser{id: id, settings: s, spread: spread, store: st, alone: true, everAlone: len(resume) == 0, strays: map[Key]time.Time{}}
	for i, n := range s.Networks {
		sl := &slot{space: space{n, s.SubnetLens[i]}, refused: map[netip.Prefix]bool{}}
		for _, p := range static {
			if p.Addr().Is4() == n.Addr().Is4() {
				sl.static = p
			}
		}
		l.slots = append(l.slots, sl)
	}
	l.resume(resume, now)
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

// emit adds an effect. What is persisted is the state at the end of all effects,
// so once is enough.
func (l *leaser) emit(e effect) {
	if e.kind == effectPersist && slices.ContainsFunc(l.effects, func(e effect) bool { return e.kind == effectPersist }) {
		return
	}
	l.effects = append(l.effects, e)
}

// take returns what is to be done and forgets it.
func (l *leaser) take() (todo []effect) {
	todo, l.effects = l.effects, nil
	return todo
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
		l.restamp(s, now)
		if withOther && s.state == slotHeld && s.claim.Solo && l.accepted(s) {
			s.claim.Solo = false
			s.claim.Version++
			l.emit(effect{kind: effectPersist})
			l.write(s, now)
		}
	}
}

// syncEnded is told that the sync that was asked for last has ended. ok: the node
// that was asked has answered with all that it knew then, and that was merged;
// nothing that arrived by itself counts, which may be old. Else it is asked for
// again.
func (l *leaser) syncEnded(ok bool) {
	for _, s := range l.slots {
		if s.state == slotTentative && s.syncAsked {
			s.syncDone = s.syncDone || ok
			s.syncAsked = s.syncDone
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

// beatenBy returns the claim that keeps the slot's claim from being accepted,
// nil if there is none. Not every accepted claim that overlaps ours does: of a
// wide one's losers some may overlap no winner. And a later generation that was
// given up does, though it owns nothing.
func (l *leaser) beatenBy(s *slot) *ClaimInfo {
	claims := l.store.on(s.claim.Prefix)
	for i := range claims {
		if c := &claims[i]; c.Owner == l.id && c.Accepted {
			return nil
		}
	}
	for _, g := range l.store.overlapping(s.claim.Prefix) {
		for i := range g.claims {
			if c := &g.claims[i]; c.Accepted && compareClaims(c.Claim, s.claim) < 0 {
				return c
			}
		}
	}
	for i := range claims {
		if c := &claims[i]; c.ends(s.claim) {
			return c
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
	l.stepStrays(now, at)
	l.slots = slices.DeleteFunc(l.slots, func(s *slot) bool { return s.evict && s.state == slotNone })
	return l.take(), next
}

// claim picks a subnet and publishes a tentative claim on it.
func (l *leaser) claim(s *slot, now time.Time) {
	p := s.static
	if !p.IsValid() {
		var ok bool
		if p, ok = l.pick(s, now); !ok {
			if len(s.refused) > 0 { // what was refused once may be free again
				clear(s.refused)
			}
			if !s.full {
				s.full = true
				kept := ""
				if slices.ContainsFunc(l.reserved, s.space.network.Overlaps) {
					kept = " beside what this node keeps free (--subnet-range, --static-peer)"
				}
				l.emit(effect{kind: effectFull, prefix: s.space.network,
					reason: fmt.Sprintf("no /%d is free in %v%s: wait for a lease to end, evict a dead node's, or use a larger network", s.space.length, s.space.network, kept)})
			}
			return
		}
	}
	if by := l.staticHolder(s); by != nil {
		// Our claim would have the higher gen and win: whoever comes later to a
		// static subnet gives way before it claims.
		l.emit(effect{kind: effectFatal, reason: l.staticTaken(p, by)})
		s.lostLoud = true
		return
	}
	s.full = false
	l.tentative(s, p, s.static.IsValid(), now)
}

// tentative publishes a tentative claim of a new generation.
func (l *leaser) tentative(s *slot, p netip.Prefix, static bool, now time.Time) {
	gen := uint64(1)
	for _, c := range l.store.on(p) {
		gen = max(gen, c.Gen+1)
	}
	s.claim = Claim{
		Key: Key{p, l.id}, Version: 1, State: Tentative, Static: static, Solo: l.everAlone && !s.evict,
		Gen: min(gen, maxCounter), Expiry: seconds(l.wall(now)) + uint64(tentativeTime/time.Second),
	}
	s.state, s.since, s.wantSync, s.syncAsked, s.syncDone = slotTentative, now, false, false, false
	l.write(s, now)
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

func (l *leaser) staticTaken(p netip.Prefix, by *ClaimInfo) string {
	text := fmt.Sprintf("%v overlaps %v, which node %v has as its static subnet: give this node another --subnet", p, by.Prefix, by.Owner)
	if l.live != nil && !l.live(by.Owner) {
		text += fmt.Sprintf(", or, if that node is gone for good, run \"overlayd lease evict %v\" on one that is there", by.Prefix)
	}
	return text
}

func (l *leaser) stepTentative(s *slot, now time.Time, at func(time.Time)) {
	if by := l.beatenBy(s); by != nil {
		if s.evict {
			l.endEviction(s, by, now)
			return
		}
		if by.State == Released { // only a generation too low: again
			l.release(s, now)
			at(now)
			return
		}
		if s.claim.Static {
			l.emit(effect{kind: effectFatal, reason: l.staticTaken(s.claim.Prefix, by)})
			l.release(s, now)
			s.lostLoud = true
			return
		}
		s.refused[s.claim.Prefix] = true
		l.release(s, now)
		at(now)
		return
	}
	at(l.renew(s, now))
	if !l.alone {
		if ready := s.since.Add(l.spread); now.Before(ready) {
			at(ready)
			return
		}
		// When many nodes start at once, gossip takes longer than it mostly does:
		// what keeps our claim waiting here keeps others' from us.
		if l.spreading != nil && l.spreading(s.claim.Key) && now.Before(s.since.Add(maxSpreads*l.spread)) {
			at(now.Add(l.spread / 20))
			return
		}
		if !s.syncDone {
			if s.wantSync = true; !s.syncAsked {
				l.emit(effect{kind: effectSync})
			}
			return
		}
	}
	s.claim.Stamp = l.clock.next(l.wall(now))
	if s.evict {
		l.endEviction(s, nil, now)
		return
	}
	s.state = slotHeld
	s.claim.State = Held
	s.claim.Expiry = l.freshExpiry(now)
	s.claim.Version++
	clear(s.refused)
	l.emit(effect{kind: effectPersist})
	l.write(s, now)
	l.emit(effect{kind: effectHeld, prefix: s.claim.Prefix, reason: "claimed"})
	at(l.renew(s, now))
}
