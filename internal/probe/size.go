package probe

import "time"

const (
	// fullEvery is the time between probes of the size that is taken to pass. A
	// path that stops to carry large packets only is rare, and the small probes
	// are a twentieth of the size.
	fullEvery = 10 * time.Second

	// raiseEvery is the time from one search upwards to the next, as long as
	// full size is not reached.
	raiseEvery = time.Minute

	// hintedRaise is how soon after a hint we search upwards: it may be forged.
	hintedRaise = 10 * time.Second

	// maxTrial is how many confirmed losses in a row make a search give up a
	// size: one may be bad luck, and no more is at stake than a few bytes.
	maxTrial = 2

	// sizeGap is how many bytes a search may leave untried.
	sizeGap = 8
)

// sizes finds the largest probe that a path carries, somewhat like RFC 8899.
// It says which size to try next, and is told what became of it.
//
// That a size probe is lost says little. That it is lost while the small one
// after it is answered is a confirmed loss. Three in a row, of the size that
// is taken to pass, start a search below it; a search is a bisection between
// mtu and high. One upwards is the same, only that mtu is not lowered before.
type sizes struct {
	full, floor int // mtu is between them; 0: there are no size probes
	mtu         int // the largest size that is taken to pass

	high int  // while searching: the smallest size that is taken not to pass
	top  int  // while searching: high when the search began
	bare bool // not even floor passes

	at      time.Time // when the next size probe is due
	hurry   bool      // it is not to wait for its turn
	raiseAt time.Time // when the next search upwards is due, if mtu < full

	misses  int       // confirmed losses in a row of the size that is tried
	lost    int       // this size was lost, which is not confirmed yet; or 0
	lostAt  time.Time // when that was sent
	checkAt time.Time // when the small probe after it was sent, zero: not yet
}

// newSizes begins with full size, which is taken to pass until proven wrong:
// almost all paths are like that.
func newSizes(now time.Time, full, floor int) sizes {
	return sizes{full: full, floor: floor, mtu: full, at: now}
}

// bounds are the sizes between which a peer's MTU lies, both 0 if only small
// probes are to be sent.
func (p *Peer) bounds() (full, floor int) {
	if full = min(p.FullSize, maxFrame); full <= smallProbe {
		return 0, 0
	}
	if p.MinSize <= 0 || p.MinSize > full {
		return full, full
	}
	return full, max(p.MinSize, smallProbe+1)
}

// searching tells whether a search is under way.
func (z *sizes) searching() bool { return z.high > 0 }

// target is the size that is tried next.
func (z *sizes) target() int {
	switch {
	case !z.searching():
		return z.mtu
	case z.high > z.full:
		return z.full // most likely the path was repaired altogether
	}
	return (z.mtu + z.high + 1) / 2
}

// next is the size of a size probe that is due, or 0.
func (z *sizes) next(now time.Time) int {
	if z.full == 0 || z.lost > 0 || now.Before(z.at) {
		return 0
	}
	return z.target()
}

// sent takes note of a probe: small, or what next has said.
func (z *sizes) sent(now time.Time, small bool) {
	switch {
	case !small:
		z.at, z.hurry = now.Add(fullEvery), false
	case z.lost > 0 && z.checkAt.IsZero():
		z.checkAt = now
	}
}

// missed takes note that a size probe is unanswered. The next one is small.
func (z *sizes) missed(size int, at time.Time) {
	if size == z.target() { // else late answers have moved us on meanwhile
		z.lost, z.lostAt, z.checkAt = size, at, time.Time{}
	}
}

// answered takes note that some probe which was sent at time at is answered.
// If it was sent after one that is lost, but not after the next one that might
// be lost as well, then it was for the size.
func (z *sizes) answered(now, at time.Time) {
	if z.lost > 0 && at.After(z.lostAt) {
		z.lost = 0
		if z.checkAt.IsZero() || !at.After(z.checkAt) {
			z.failed(now)
		} else {
			z.at, z.hurry = now, z.searching() // nothing is learned: once more
		}
	}
	// A search upwards begins right after an answer. So its first probe, which
	// will probably be lost, does not keep us from seeing a peer die.
	if !z.searching() && z.mtu < z.full && z.lost == 0 && z.misses == 0 && !now.Before(z.raiseAt) {
		z.search(now, z.full+1)
	}
}

// passed takes note that a size probe is answered, however late. A probe that
// is older than the losses which have led us here is forgotten by the track.
func (z *sizes) passed(now time.Time, size int) {
	z.bare = false // no size probe is smaller than floor
	if size < z.mtu || size == z.mtu && z.searching() {
		return
	}
	z.mtu, z.lost, z.misses = size, 0, 0
	if z.searching() {
		if z.mtu >= z.high {
			z.high = z.top // it was given up too early, and so may others
		}
		z.narrowed(now)
	}
}

// failed takes note of a confirmed loss of target.
func (z *sizes) failed(now time.Time) {
	z.misses++
	switch {
	case z.searching() && z.misses < maxTrial,
		!z.searching() && z.misses < maxMiss && !z.bare:
		z.at, z.hurry = now, true
	case z.searching():
		z.high, z.misses = z.target(), 0
		if z.bare {
			z.high = z.mtu // there is nothing between sizes that do not pass
		}
		z.narrowed(now)
	case z.mtu == z.floor:
		z.bare, z.misses = true, 0 // and go on as usual: it may get better
	default:
		was := z.mtu
		z.mtu = z.floor // packets should get through while we search
		z.search(now, was)
	}
}

// search begins a search between mtu and top.
func (z *sizes) search(now time.Time, top int) {
	z.high, z.top, z.misses = top, top, 0
	z.raiseAt = now.Add(raiseEvery)
	z.at, z.hurry = now, true
	if top <= z.full {
		z.narrowed(now)
	}
}

// narrowed goes on with a search, or ends it.
func (z *sizes) narrowed(now time.Time) {
	switch {
	case z.mtu == z.full:
		z.high, z.at, z.hurry = 0, now.Add(fullEvery), false
	case z.high-z.mtu <= sizeGap:
		// It took a while, and mtu may never have been tried: do that soon.
		if z.top <= z.full && z.top-z.mtu <= sizeGap {
			z.raiseAt = now // all below top passed: that was bad luck, most likely
		}
		z.high, z.at, z.hurry = 0, now, false
	default:
		z.at, z.hurry = now, true
	}
}

// hint takes somebody's word for it that no more than size bytes pass, and
// tells whether that changes mtu. A hint that cannot lower it has no effect at
// all, so that repeating one does not keep us from searching upwards.
func (z *sizes) hint(now time.Time, size int) (changed bool) {
	size = max(size, z.floor)
	if size >= z.mtu {
		return false
	}
	z.mtu, z.high, z.misses, z.lost = size, 0, 0, 0
	z.at, z.hurry = now, true
	z.raiseAt = now.Add(hintedRaise)
	return true
}
