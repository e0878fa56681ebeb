package path

import (
	"container/heap"
	"errors"
	"fmt"
	"time"
)

const (
	// activeFor is how long a peer counts as one that is sent data after the last was.
	activeFor = 2 * time.Second
	// provisional is for how long after a hand-off it is watched whether what goes out
	// is answered, and before how recent a packet from the peer it had to be.
	provisional = 15 * time.Second
	recent      = 10 * time.Second
	// unanswered is how long data must have gone out, in how many samples, without
	// any coming back.
	unanswered        = 1500 * time.Millisecond
	unansweredSamples = 3
)

// peer is a Peer with its state.
type peer struct {
	core        *Core
	id          [16]byte
	boot        uint64
	chances     [kinds]Chance
	full, floor int
	lanes       [kinds]lane // that of Userspace is not used

	current  Kind
	decided  bool // current is more than where everybody begins
	standing bool // current was found in place and is not proven yet
	since    time.Time
	fell     string // why it last went to userspace, empty: it has always been there
	cause    Cause  // of the last change
	pin      Kind

	usUp, usDown bool
	usProven     time.Time // when the newest userspace probe that was answered was sent
	usAsked      time.Time // when we last asked for one
	usRTT        time.Duration

	activeUntil time.Time
	tx, rx      uint64
	counted     bool
	rxAt        time.Time // when rx was last seen to grow
	watched     bool      // the hand-off is provisional
	oneWay      int       // samples in a row in which only tx has grown
	oneWayAt    time.Time // the first of them

	wake  time.Time
	place int
}

func newPeer(c *Core, q *Peer, now time.Time) *peer {
	p := &peer{core: c, id: q.ID, boot: q.Boot, chances: q.Chances, full: q.Full, floor: q.Floor, pin: Auto, since: now}
	for k := range p.lanes {
		p.lanes[k] = lane{p: p, kind: Kind(k), way: q.Chances[k].Way}
	}
	p.adopt(q, now)
	p.touch()
	return p
}

// adopt takes over a path that was found in place, as long as nothing was decided.
func (p *peer) adopt(q *Peer, now time.Time) {
	l := p.lane(q.Standing)
	if l == nil || l.way == "" || p.decided {
		return
	}
	p.decided, p.standing = true, true
	p.current, p.since = l.kind, now
	p.activeUntil = now.Add(activeFor)
	l.stop()
	l.carry(now, p.full)
	l.nextAt = now
	p.touch()
}

// update takes over what is new about a peer.
func (p *peer) update(q *Peer, now time.Time) {
	p.chances, p.full, p.floor = q.Chances, q.Full, q.Floor
	for k := Userspace + 1; k < kinds; k++ {
		l := p.lane(k)
		if way := q.Chances[k].Way; way != l.way {
			gone := l.phase == carrying
			l.stop()
			l.way, l.failures, l.why = way, 0, ""
			if gone && way != "" {
				p.leave(now, fmt.Sprintf("its other end has changed: now %s", way), CauseWithdrawn)
			}
			// Without a way decide leaves it, and has a reason.
		}
		if q.Boot != p.boot {
			l.ready, l.told = false, false
			l.rounds = l.rounds[:0]
			l.misses, l.echo, l.echoMisses, l.echoAlive = 0, 0, 0, false
		}
		if l.phase == carrying && l.mtu > p.full {
			l.mtu = p.full
			p.touch()
		}
	}
	p.boot = q.Boot
	p.adopt(q, now)
}

// lane returns the lane of a kernel kind, nil for any other.
func (p *peer) lane(k Kind) *lane {
	if k == Userspace || k >= kinds {
		return nil
	}
	return &p.lanes[k]
}

func (p *peer) touch() { p.core.changed[p.id] = true }

// due is when tick has something to do, zero: never.
func (p *peer) due() (at time.Time) {
	for k := Userspace + 1; k < kinds; k++ {
		if t := p.lanes[k].due(); !t.IsZero() && (at.IsZero() || t.Before(at)) {
			at = t
		}
	}
	return at
}

func (p *peer) rearm() {
	p.wake = p.due()
	heap.Fix(&p.core.queue, p.place)
}

func (p *peer) tick(now time.Time, out []Send) []Send {
	for k := Userspace + 1; k < kinds; k++ {
		out = p.lanes[k].tick(now, out)
	}
	return out
}

// barred says why a kernel path must not be used, empty: it may.
func (p *peer) barred(k Kind) string {
	l := p.lane(k)
	switch {
	case p.core.broken[k] != "":
		return p.core.broken[k]
	case l.way == "":
		if why := p.chances[k].Why; why != "" {
			return why
		}
		return "--fast-path does not allow it"
	case l.told && !l.ready:
		return "the peer is not ready for it"
	}
	return ""
}

// wanted tells whether a kernel path is to be proven.
func (p *peer) wanted(k Kind) bool {
	switch {
	case k == p.current || p.barred(k) != "":
		return false
	case !p.lanes[k].ready && !p.usDown:
		return false // it will say so
	case p.pin != Auto:
		return k == p.pin
	}
	return k > p.current
}

// decide draws the conclusions, after every event.
func (p *peer) decide(now time.Time) {
	if l := p.lane(p.current); l != nil {
		if why := p.barred(l.kind); why != "" {
			l.stop()
			p.leave(now, why, CauseWithdrawn)
		} else if p.pin == Userspace && p.usUp {
			l.stop()
			p.leave(now, "", CauseAsked)
		} else if l.misses >= lost {
			switch {
			case p.usProven.After(l.firstMiss):
				p.fail(now, l.lostSince()+", while userspace answers")
			case p.usDown && l.echoMisses >= echoSilent && !l.echoAlive:
				p.fail(now, l.lostSince()+", and neither userspace nor its kernel answers")
			}
		}
	}
	for k := kinds - 1; k > Userspace; k-- {
		l := &p.lanes[k]
		switch {
		case l.phase == carrying:
		case !p.wanted(k):
			if !l.held {
				l.stop()
			}
		case l.phase == off:
			l.prove(now)
		case l.phase == proving && l.sizes.proven():
			p.promote(now, l)
		}
	}
}

// promote moves to a path that is proven.
func (p *peer) promote(now time.Time, l *lane) {
	if old := p.lane(p.current); old != nil {
		old.stop()
	}
	p.current, p.since, p.decided, p.standing, p.fell = l.kind, now, true, false, ""
	l.carry(now, l.sizes.pass)
	p.cause = CauseProven
	if p.pin == l.kind {
		p.cause = CauseAsked
	}
	p.watched = !p.rxAt.IsZero() && now.Sub(p.rxAt) <= recent
	p.oneWay = 0
	p.activeUntil = now.Add(activeFor)
	p.touch()
}

// leave goes to userspace. The lane has been stopped.
func (p *peer) leave(now time.Time, why string, cause Cause) {
	p.cause = cause
	p.fell = ""
	if why != "" {
		p.fell = fmt.Sprintf("%v was left at %s: %s", p.current, now.Format(clock), why)
	}
	p.current, p.since, p.decided, p.standing, p.watched = Userspace, now, true, false, false
	p.touch()
}

// fail leaves the path in use, which does not work.
func (p *peer) fail(now time.Time, why string) {
	p.lane(p.current).hold(now, why)
	p.leave(now, "", CauseFailed)
}

// told takes note of whether the peer would take a path.
func (p *peer) told(k Kind, ready bool) {
	l := p.lane(k)
	l.told, l.ready = true, ready
}

// refresh tries at once what is resting.
func (p *peer) refresh() {
	for k := Userspace + 1; k < kinds; k++ {
		if l := p.lane(k); l.phase == resting && !l.held {
			l.again()
		}
	}
}

// traffic follows the counters.
func (p *peer) traffic(now time.Time, tx, rx uint64) {
	sent, came := p.counted && tx > p.tx, p.counted && rx > p.rx
	p.tx, p.rx, p.counted = tx, rx, true
	if came {
		p.rxAt, p.oneWay = now, 0
		p.watched = p.watched && now.Sub(p.since) < unanswered // it works both ways
	}
	if !sent {
		return
	}
	l := p.lane(p.current)
	if l != nil && !now.Before(p.activeUntil) {
		l.nextAt = now
	}
	p.activeUntil = now.Add(activeFor)
	if came || l == nil || !p.watched {
		return
	}
	if p.oneWay++; p.oneWay == 1 {
		p.oneWayAt = now
	}
	switch {
	case now.Sub(p.since) > provisional:
		p.watched = false
	case p.oneWay >= unansweredSamples && now.Sub(p.oneWayAt) >= unanswered:
		p.fail(now, "data goes out and nothing comes back, where something did before: does a firewall on the peer's host drop what comes from its "+l.kind.String()+" device?")
	}
}

// Pin keeps a peer on one kind of path, as long as that works; Auto ends it. It
// returns the pin before. The error, one line, is why the kind cannot be had.
func (c *Core) Pin(now time.Time, id [16]byte, k Kind) (before Kind, err error) {
	p := c.peers[id]
	if p == nil {
		return Auto, errors.New("no such peer")
	}
	before = p.pin
	switch {
	case k == Auto:
	case k == Userspace:
		if !p.usUp && p.current != Userspace {
			return before, errors.New("userspace does not answer")
		}
	case k >= kinds:
		return before, errors.New("no such path")
	default:
		if why := p.barred(k); why != "" {
			return before, errors.New(why)
		}
	}
	p.pin = k
	if l := p.lane(k); l != nil && l.phase == resting {
		l.again() // a pin does not wait for a hold-down
	}
	p.decide(now)
	p.rearm()
	p.touch()
	return before, nil
}
