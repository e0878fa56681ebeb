package path

import (
	"fmt"
	"slices"
	"time"
)

const (
	needed     = 3 // answered rounds in a row that prove a path
	lost       = 3 // unanswered ones in a row that make it suspect
	tryTwice   = 2 // unanswered ones of one size, while proving, that make it fail
	maxRounds  = 8 // remembered, so that a late answer still counts
	slowAfter  = 10
	echoSilent = 3 // echoes in a row without an answer that mean a dead host

	provingEvery = 100 * time.Millisecond
	activeEvery  = 150 * time.Millisecond
	idleEvery    = 5 * time.Second
	slowEvery    = time.Second
	echoEvery    = 500 * time.Millisecond

	roundTimeout    = 300 * time.Millisecond // besides twice the round trip
	maxRoundTimeout = time.Second

	// lateness is how late a deadline may be looked at before we take it that we were
	// stalled, and the answer may wait in some queue of ours.
	lateness = 150 * time.Millisecond

	firstRest = time.Second
	maxRest   = 5 * time.Minute
	firstHold = 10 * time.Second
	maxHold   = 5 * time.Minute
	forgiving = 10 * time.Minute

	raiseEvery = time.Minute
)

// phase is what is done about a kernel path.
type phase uint8

const (
	off      phase = iota // nothing: it is not wanted, or cannot be tried
	resting               // until nextAt, after an attempt that failed
	proving               // one round after the other
	carrying              // it is the path in use
)

// lane is one kernel path to one peer.
type lane struct {
	p     *peer
	kind  Kind
	way   string
	ready bool // the peer says that it would take it
	told  bool // or would not

	phase  phase
	nextAt time.Time // of the next round, or the end of resting
	rounds []round   // under way or missed, oldest first
	sizes  ladder    // while proving, and while a larger size is tried in use
	flush  bool      // the kernel is to forget what it has learned

	mtu       int // while carrying
	misses    int // unanswered in a row while carrying
	firstMiss time.Time
	raiseAt   time.Time // when a larger size is tried

	echo       uint64 // under way, 0: none
	echoAt     time.Time
	echoMisses int
	echoAlive  bool // the last echo was answered, and no round since

	rest     time.Duration // the last one
	held     bool          // resting is a hold-down
	failures int           // that are not forgotten
	since    time.Time     // carrying since
	proof    time.Time     // arrival of the last answer, zero: none
	rtt      time.Duration // smoothed
	why      string        // what the last failure was
}

type round struct {
	n            uint64
	size         int
	at, deadline time.Time
	trial        bool // its loss says nothing about the path
	extended     bool
	missed       bool
	err          error
}

// again ends its rest: if it is wanted, the next attempt begins at once.
func (l *lane) again() {
	if l.phase == resting {
		l.phase, l.nextAt, l.rest, l.held = off, time.Time{}, 0, false
	}
}

// prove begins an attempt.
func (l *lane) prove(now time.Time) {
	l.phase, l.nextAt, l.held = proving, now, false
	l.rounds = l.rounds[:0]
	l.sizes = newLadder(l.p.full, l.p.floor)
	l.flush = l.why != "" // it has failed before, perhaps for what the kernel had learned
}

// stop forgets all but the failures.
func (l *lane) stop() {
	l.phase, l.nextAt, l.held = off, time.Time{}, false
	l.rounds = l.rounds[:0]
	l.misses, l.echo, l.echoMisses, l.echoAlive = 0, 0, 0, false
}

// carry makes it the path in use.
func (l *lane) carry(now time.Time, mtu int) {
	l.phase, l.mtu, l.since = carrying, mtu, now
	l.rest, l.misses, l.echoMisses, l.echoAlive = 0, 0, 0, false
	l.nextAt = now.Add(activeEvery)
	l.raiseAt = now.Add(raiseEvery)
	l.sizes = ladder{}
	l.why = ""
}

// restFor makes it wait for longer each time.
func (l *lane) restFor(now time.Time, why string) {
	l.rest = min(max(2*l.rest, firstRest), maxRest)
	l.phase, l.held, l.why = resting, false, why
	l.rounds = l.rounds[:0]
	l.nextAt = now.Add(l.rest - l.rest/8 + time.Duration(l.p.core.random()%uint64(l.rest/4)))
}

// hold keeps it from being tried after it has failed in use.
func (l *lane) hold(now time.Time, why string) {
	if now.Sub(l.since) >= forgiving {
		l.failures = 0
	}
	d := min(firstHold<<min(l.failures, 5), maxHold)
	l.failures++
	l.stop()
	l.phase, l.held, l.why = resting, true, why
	l.nextAt = now.Add(d)
}

// timeout is how long a round may take.
func (l *lane) timeout() time.Duration {
	return min(roundTimeout+2*max(l.rtt, l.p.usRTT), maxRoundTimeout)
}

// due is when tick has something to do.
func (l *lane) due() (at time.Time) {
	earlier := func(t time.Time) {
		if at.IsZero() || !t.IsZero() && t.Before(at) {
			at = t
		}
	}
	if l.phase == off {
		return at
	}
	if l.phase != proving || !l.waiting() {
		earlier(l.nextAt)
	}
	for _, r := range l.rounds {
		if !r.missed {
			earlier(r.deadline)
		}
	}
	if l.phase == carrying {
		if l.trying() && !l.waitingTrial() {
			earlier(l.raiseAt)
		}
		if l.misses >= lost {
			earlier(l.echoAt)
		}
	}
	return at
}

// waiting tells whether a round is under way.
func (l *lane) waiting() bool {
	return slices.ContainsFunc(l.rounds, func(r round) bool { return !r.missed })
}

func (l *lane) waitingTrial() bool {
	return slices.ContainsFunc(l.rounds, func(r round) bool { return r.trial && !r.missed })
}

// trying tells whether the path in use may carry more.
func (l *lane) trying() bool { return l.mtu < l.p.full }

// tick does what is due.
func (l *lane) tick(now time.Time, out []Send) []Send {
	for i := 0; i < len(l.rounds); i++ {
		r := &l.rounds[i]
		if r.missed || now.Before(r.deadline) {
			continue
		}
		if now.Sub(r.deadline) > lateness && !r.extended {
			r.extended, r.deadline = true, now.Add(l.timeout())
			continue
		}
		r.missed = true
		if out = l.miss(now, *r, out); l.phase == resting || l.phase == off {
			return out
		}
	}
	switch l.phase {
	case resting:
		if !now.Before(l.nextAt) {
			l.phase = off // decide begins anew, if it is still wanted
		}
	case proving:
		if !l.waiting() && !now.Before(l.nextAt) {
			out = l.send(now, l.sizes.next(), false, out)
		}
	case carrying:
		out = l.keep(now, out)
	}
	return out
}

// keep looks after the path in use.
func (l *lane) keep(now time.Time, out []Send) []Send {
	if !now.Before(l.nextAt) {
		out = l.send(now, l.mtu, false, out)
		l.nextAt = now.Add(l.pace(now))
	}
	if l.trying() && !l.waitingTrial() && !now.Before(l.raiseAt) {
		if l.sizes.full == 0 {
			l.sizes, l.flush = newLadder(l.p.full, l.p.floor), true
			l.sizes.pass = l.mtu
		}
		out = l.send(now, l.sizes.next(), true, out)
	}
	if l.misses >= lost && !now.Before(l.echoAt) {
		if l.echo != 0 {
			l.echoMisses++
			l.echoAlive = l.echoAlive && l.echoMisses < echoSilent
		}
		l.p.core.rounds++
		l.echo, l.echoAt = l.p.core.rounds, now.Add(echoEvery)
		out = append(out, Send{ID: l.p.id, What: WhatEcho, Kind: l.kind, Round: l.echo})
	}
	return out
}

// pace is the time from one round to the next.
func (l *lane) pace(now time.Time) time.Duration {
	switch {
	case l.misses >= slowAfter:
		return slowEvery
	case l.misses > 0 || now.Before(l.p.activeUntil):
		return activeEvery
	}
	return idleEvery - idleEvery/8 + time.Duration(l.p.core.random()%uint64(idleEvery/4))
}

func (l *lane) send(now time.Time, size int, trial bool, out []Send) []Send {
	if len(l.rounds) == maxRounds {
		l.rounds = slices.Delete(l.rounds, 0, 1)
	}
	l.p.core.rounds++
	n := l.p.core.rounds
	l.rounds = append(l.rounds, round{n: n, size: size, at: now, deadline: now.Add(l.timeout()), trial: trial})
	fresh := l.flush
	l.flush = false
	return append(out, Send{ID: l.p.id, What: WhatRound, Kind: l.kind, Round: n, Size: size, Fresh: fresh})
}

// miss takes note that a round is unanswered.
func (l *lane) miss(now time.Time, r round, out []Send) []Send {
	switch {
	case r.trial:
		if l.sizes.missed(r.size) == failed {
			l.sizes.pass = 0 // what has passed once no longer does
			l.raised(now)
		}
	case l.phase == proving:
		l.nextAt = now
		if l.sizes.missed(r.size) == failed {
			l.restFor(now, l.silence(r))
		}
	case l.phase == carrying:
		l.misses++
		if l.misses == 1 {
			l.firstMiss, l.echoAt, l.echo, l.echoMisses = r.at, now, 0, 0
		}
		if !now.Before(l.p.usAsked.Add(provingEvery)) {
			l.p.usAsked = now
			out = append(out, Send{ID: l.p.id, What: WhatUserspace})
		}
		// What was idle may be in use by now: the next rounds come quickly.
		if soon := now.Add(l.pace(now)); l.nextAt.After(soon) {
			l.nextAt = now
		}
	}
	return out
}

// silence says, of a round, what was not answered.
func (l *lane) silence(r round) string {
	if r.err != nil {
		return fmt.Sprintf("sending a probe of %d bytes failed: %v", r.size, r.err)
	}
	return fmt.Sprintf("probes of %d bytes are not answered", r.size)
}

// answered takes note of an answered round, however late, and returns its round trip.
func (l *lane) answered(now time.Time, n uint64) (rtt time.Duration, ok bool) {
	i := slices.IndexFunc(l.rounds, func(r round) bool { return r.n == n })
	if i < 0 {
		return 0, false
	}
	r := l.rounds[i]
	l.rounds = slices.Delete(l.rounds, i, i+1)
	l.proof = now
	if rtt = now.Sub(r.at); l.rtt == 0 {
		l.rtt = rtt // RFC 6298 section 2
	} else {
		l.rtt += (rtt - l.rtt) / 8
	}
	switch {
	case r.trial:
		if !r.missed {
			l.sizes.passed(r.size)
			if l.sizes.proven() {
				l.raised(now)
			}
		}
	case l.phase == proving:
		if r.missed {
			return rtt, true // that size has been given up
		}
		l.sizes.passed(r.size)
		l.nextAt = r.at.Add(provingEvery)
	case l.phase == carrying:
		// Only what was sent later still counts as unanswered.
		l.misses = 0
		for _, o := range l.rounds {
			if o.missed && !o.trial && o.n > n {
				if l.misses == 0 {
					l.firstMiss = o.at
				}
				l.misses++
			}
		}
		if l.misses == 0 {
			l.echo, l.echoMisses, l.echoAlive = 0, 0, false
		}
	}
	return rtt, true
}

// raised ends the search for a larger size.
func (l *lane) raised(now time.Time) {
	if l.sizes.pass > l.mtu {
		l.mtu = l.sizes.pass
		l.p.touch()
	}
	l.sizes = ladder{}
	l.raiseAt = now.Add(raiseEvery)
}

// echoed takes note of an answer of the peer's kernel.
func (l *lane) echoed(now time.Time, n uint64) {
	if l.phase == carrying && n == l.echo {
		l.echo, l.echoMisses, l.echoAt = 0, 0, now.Add(echoEvery)
		if !l.echoAlive {
			l.echoAlive = true
			l.p.touch()
		}
	}
}

func (l *lane) sendFailed(n uint64, err error) {
	for i := range l.rounds {
		if l.rounds[i].n == n {
			l.rounds[i].err = err
		}
	}
}
