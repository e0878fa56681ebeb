package membership

import (
	"slices"
	"time"
)

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

// clockTolerance is how far the clocks of a cluster may be apart before a node
// stops trusting its own. Expiries count in hours, so that a minute is nothing.
const clockTolerance = time.Minute

// clusterSkew is how far the cluster's time is ahead of this node's own clock,
// given how far the clocks of other live nodes are, as far as they are known,
// and how many nodes live in all, this one among them. Where more than half of
// them agree, that is the time, whatever the others show. Else it is the upper
// median, for which all must be known: of two clocks the later is believed, since
// one that nobody has set stands in the past. It may reorder ahead.
func clusterSkew(ahead []time.Duration, alive int) (skew time.Duration, known bool) {
	near := 1 // this node's own
	for _, d := range ahead {
		if d.Abs() <= clockTolerance {
			near++
		}
	}
	if near*2 > alive {
		return 0, true
	}
	ahead = append(ahead, 0)
	slices.Sort(ahead)
	for i := 0; i+alive/2 < len(ahead); i++ {
		if ahead[i+alive/2]-ahead[i] <= clockTolerance {
			return ahead[i+alive/4], true // in the middle of the majority
		}
	}
	if len(ahead) < alive {
		return 0, false
	}
	return ahead[len(ahead)/2], true
}

// unixMilli is a wall clock as it travels; before 1970 counts as 1970.
func unixMilli(t time.Time) uint64 { return uint64(max(t.UnixMilli(), 0)) }

// milliTime reads what unixMilli has written; ok is false for a time that no
// clock shows, thousands of years ahead.
func milliTime(ms uint64) (t time.Time, ok bool) {
	if ms >= 1<<47 {
		return time.Time{}, false
	}
	return time.UnixMilli(int64(ms)), true
}
