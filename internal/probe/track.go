package probe

import "time"

const (
	interval = 2 * time.Second // between probes of a peer that answers, and of one that is down
	timeout  = 1 * time.Second // after which a probe counts as unanswered
	maxMiss  = 3               // unanswered probes in a row that make a peer down

	// lateness is how late a deadline may be looked at before we take it that
	// we were stalled, and the answer may wait in some queue of ours.
	lateness = 500 * time.Millisecond

	// maxSent is how many probes are remembered, newest first: an answer that
	// takes longer than the timeout still proves something.
	maxSent = 4
)

// sent is a probe that may yet be answered.
type sent struct {
	nonce  uint64
	size   int
	at     time.Time
	sizing bool  // what becomes of it is for sizes to know
	trial  bool  // larger than what is taken to pass
	missed bool  // counted as unanswered
	err    error // why it was not even sent
}

// track counts the probes of one path to one peer. It keeps at most one probe
// that it waits for, and the last few for late answers.
type track struct {
	reach     Reach
	since     time.Time // of reach
	lastProof time.Time // arrival of the last answer, zero if never
	srtt      time.Duration

	sent     []sent    // oldest first, at most maxSent
	waiting  bool      // for the newest of sent, until deadline
	deadline time.Time // while waiting
	extended bool      // deadline was put off once because we were late
	nextAt   time.Time // of the next probe, while not waiting

	misses    int       // unanswered in a row
	firstMiss time.Time // when the first of them was sent
	missErr   error     // why the last of them was not even sent, if so
	provenAt  time.Time // when the newest answered probe was sent

	size sizes // that the path carries
}

// start begins anew, with the first probe at once.
func (t *track) start(now time.Time, full, floor int) {
	*t = track{since: now, nextAt: now, size: newSizes(now, full, floor), sent: t.sent[:0]}
}

// resize changes the bounds of sizes.
func (t *track) resize(now time.Time, full, floor int) {
	if t.size.full != full || t.size.floor != floor {
		t.size = newSizes(now, full, floor)
		t.ignoreSizes()
	}
}

// hint passes on that frames of more than size bytes are said not to pass. It
// tells whether that changes the MTU.
func (t *track) hint(now time.Time, size int) (changed bool) {
	if !t.size.hint(now, size) {
		return false
	}
	// What is under way may have been sent before the path has changed.
	t.ignoreSizes()
	t.hasten(now)
	return true
}

// ignoreSizes makes the probes under way prove nothing about sizes.
func (t *track) ignoreSizes() {
	for i := range t.sent {
		t.sent[i].sizing = false
	}
}

// hasten has a size probe sent now that is not to wait for its turn.
func (t *track) hasten(now time.Time) {
	if t.size.hurry && !t.waiting && t.reach != Down && now.Before(t.nextAt) {
		t.nextAt = now
	}
}

// wake is when tick has something to do.
func (t *track) wake() time.Time {
	if t.waiting {
		return t.deadline
	}
	return t.nextAt
}

// tick looks at what is due, and tells whether a probe is to be sent now (see
// send) and whether reach or the MTU has changed. pause is the time from one
// probe to the next while the peer is down.
func (t *track) tick(now time.Time, pause time.Duration) (due, changed bool) {
	if t.waiting && !now.Before(t.deadline) {
		if now.Sub(t.deadline) > lateness && !t.extended {
			// We were not there when it was due. Give the answer, which may
			// lie in a queue that was not read either, another chance, once.
			t.extended = true
			t.deadline = now.Add(timeout)
			return false, false
		}
		changed = t.miss(now, pause)
	}
	return !t.waiting && !now.Before(t.nextAt), changed
}

// miss counts the newest probe as unanswered.
func (t *track) miss(now time.Time, pause time.Duration) (changed bool) {
	t.waiting = false
	t.nextAt = now
	s := &t.sent[len(t.sent)-1]
	mtu := t.size.mtu
	if s.sizing {
		t.size.missed(s.size, s.at)
		t.size.answered(now, t.provenAt) // a younger ping, maybe
	}
	if s.trial || !s.at.After(t.provenAt) {
		// It was for its size, or a younger probe has been answered and this
		// one was merely lost. The next one after a trial is small.
		return t.size.mtu != mtu
	}
	s.missed = true
	t.misses++
	t.missErr = s.err
	if t.misses == 1 {
		t.firstMiss = s.at
	}
	if t.misses < maxMiss {
		return false
	}
	t.nextAt = s.at.Add(pause)
	return t.turn(now, Down)
}

// send records that a probe of size bytes is sent now: see wants.
func (t *track) send(now time.Time, nonce uint64, size int) {
	if len(t.sent) == maxSent {
		t.sent = append(t.sent[:0], t.sent[1:]...)
	}
	sizing := size > smallProbe
	t.sent = append(t.sent, sent{nonce: nonce, size: size, at: now, sizing: sizing, trial: sizing && size > t.size.mtu})
	t.waiting, t.extended, t.deadline = true, false, now.Add(timeout)
	t.size.sent(now, !sizing)
}

// wants is the size that the next probe should have.
func (t *track) wants(now time.Time) int {
	if t.reach == Down {
		return smallProbe // a silent host says nothing about sizes
	}
	return max(t.size.next(now), smallProbe)
}

// answer takes the answer to a probe of this track; pause is the time from
// that probe to the next. Answers to other probes, answers that come twice, and
// answers to a probe of another size are not ok and change nothing.
func (t *track) answer(now time.Time, nonce uint64, size int, pause time.Duration) (rtt time.Duration, changed, ok bool) {
	for i, s := range t.sent {
		if s.nonce != nonce || s.size != size {
			continue
		}
		newest := i == len(t.sent)-1
		t.sent = append(t.sent[:i], t.sent[i+1:]...)
		if newest && t.waiting {
			t.waiting = false
			t.nextAt = s.at.Add(pause)
		}
		mtu := t.size.mtu
		if s.sizing {
			t.size.passed(now, s.size)
		}
		rtt = max(0, now.Sub(s.at))
		changed = t.proof(now, s.at, rtt)
		return rtt, changed || t.size.mtu != mtu, true
	}
	return 0, false, false
}

// proof takes note that a probe sent at time at was answered. It tells whether
// reach or the MTU has changed.
func (t *track) proof(now, at time.Time, rtt time.Duration) (changed bool) {
	mtu := t.size.mtu
	t.size.answered(now, at)
	changed = t.proofOfReach(now, at, rtt)
	t.hasten(now)
	return changed || t.size.mtu != mtu
}

// proofOfReach is what proof says about the peer. Only probes that were sent
// later still count as unanswered.
func (t *track) proofOfReach(now, at time.Time, rtt time.Duration) (changed bool) {
	t.lastProof = now
	if t.srtt == 0 {
		t.srtt = rtt // RFC 6298 section 2.2
	} else {
		t.srtt += (rtt - t.srtt) / 8 // section 2.3, alpha = 1/8
	}
	if !at.After(t.provenAt) {
		return false // a later probe is proven already
	}
	t.provenAt = at
	misses := 0
	for _, s := range t.sent {
		if s.missed && s.at.After(at) {
			if misses == 0 {
				t.firstMiss = s.at
			}
			misses++
		}
	}
	t.misses = misses
	if misses >= maxMiss {
		return false // an old story: three younger probes say otherwise
	}
	return t.turn(now, Up)
}

// turn changes reach.
func (t *track) turn(now time.Time, r Reach) (changed bool) {
	if t.reach == r {
		return false
	}
	t.reach, t.since = r, now
	return true
}

// sendFailed takes note that a probe did not leave this host. It goes on
// being waited for: that keeps the pace, and a full buffer for a moment is no
// dead peer.
func (t *track) sendFailed(nonce uint64, err error) {
	for i := range t.sent {
		if t.sent[i].nonce == nonce {
			t.sent[i].err = err
		}
	}
}
