package membership

import (
	"bytes"
	"time"
)

// elector decides whether this node starts the cluster. It is deterministic.
//
// A node without seeds and remembered peers is the first one. With seeds,
// somebody must begin when all hosts start at once with the same list: if for
// the whole waiting time no live node was known that holds the cluster's
// settings, the lowest NodeID among the live nodes that find their own address
// in their list acts as first. A node without seeds that has the settings from
// an earlier run begins after the same time, when none of its peers of then
// answers. One that only remembers peers, since it left, counts as one that
// finds itself in its list, but begins only beside one of those peers: they may
// all be on the other side of a cut.
type elector struct {
	id      NodeID
	wait    time.Duration
	lone    bool // neither seeds nor remembered peers
	resumes bool // no seeds, and the settings from an earlier run
	beside  bool // no seeds, but remembered peers
	started time.Time
}

// candidate is a live node as far as the election is concerned.
type candidate struct {
	id     NodeID
	holder bool // holds the settings
	listed bool // finds itself in its seed list, or has none
}

// decide reports whether this node acts as first now, and if not, when to ask
// again. listed tells whether this node finds itself in its list, or has none.
func (e *elector) decide(now time.Time, listed bool, others []candidate) (first bool, next time.Time) {
	if e.lone {
		return true, time.Time{}
	}
	for _, o := range others {
		if o.holder {
			// Somebody to sync with is there: start over if it goes.
			e.started = now
			return false, now.Add(e.wait)
		}
	}
	if ready := e.started.Add(e.wait); now.Before(ready) {
		return false, ready
	}
	if e.resumes {
		// Its peers of then are gone, and nobody else will come to begin.
		return true, time.Time{}
	}
	if !listed || e.beside && len(others) == 0 {
		return false, now.Add(e.wait)
	}
	for _, o := range others {
		if o.listed && bytes.Compare(o.id[:], e.id[:]) < 0 {
			return false, now.Add(e.wait / 5)
		}
	}
	return true, time.Time{}
}
