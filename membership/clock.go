package membership

import "time"

// Stamp is a hybrid logical clock: milliseconds of Unix time in the upper 48
// bits, a counter in the lower 16. Stamps of one node always grow, and a stamp
// taken after another one was seen is larger than it, even when the wall clock
// is behind (Kulkarni et al., "Logical Physical Clocks", 2014).
type Stamp uint64

const (
	stampCounterBits = 16
	// maxStampAhead is how far ahead of the wall clock a stamp may be and
	// still move the clock: a node whose clock runs a year fast must not drag
	// everyone along.
	maxStampAhead = 24 * time.Hour
)

func stampOf(t time.Time) Stamp {
	ms := max(t.UnixMilli(), 0)
	return Stamp(ms) << stampCounterBits
}

// Time is the wall-clock part of the stamp.
func (s Stamp) Time() time.Time { return time.UnixMilli(int64(s >> stampCounterBits)) }

// hybridClock issues stamps. The zero value is ready.
type hybridClock struct{ last Stamp }

// next returns a stamp larger than any returned or accepted before.
func (c *hybridClock) next(now time.Time) Stamp {
	c.last = max(stampOf(now), c.last+1)
	return c.last
}

// saw takes note of a stamp of another node.
func (c *hybridClock) saw(s Stamp, now time.Time) {
	// A wall clock before 1970 counts as 1970, as in stampOf.
	if s <= stampOf(stampOf(now).Time().Add(maxStampAhead)) {
		c.last = max(c.last, s)
	}
}
