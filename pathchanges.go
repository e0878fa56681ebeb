package overlayd

import (
	"maps"
	"sync"

	"github.com/overlayd/overlayd/internal/metrics"
	"github.com/overlayd/overlayd/membership"
)

// pathChanges counts how often the paths of peers have changed, from what to what, and
// why, in one of a few words.
type pathChanges struct {
	mu    sync.Mutex
	count map[metrics.Change]uint64
}

// all returns the counts; the map is the caller's.
func (p *pathChanges) all() map[metrics.Change]uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.count)
}

// countChange counts that a peer's path is another than before. A peer that is new has
// not changed.
func (n *Node) countChange(was, is *meshPeer) {
	if was == nil || was.path == is.path {
		return
	}
	c := metrics.Change{From: was.path, To: is.path, Reason: n.changedFor(was, is)}
	n.moved.mu.Lock()
	defer n.moved.mu.Unlock()
	if n.moved.count == nil {
		n.moved.count = map[metrics.Change]uint64{}
	}
	n.moved.count[c]++
}

// changedFor says why a path has changed.
func (n *Node) changedFor(was, is *meshPeer) string {
	switch {
	case is.path == PathNone && is.state == membership.StateLeft:
		return "left"
	case is.path == PathNone && is.state == membership.StateDead:
		return "dead"
	case is.path == PathNone && !is.fwd.Endpoint.IsValid():
		return "no-endpoint"
	case is.path == PathNone:
		return "unanswered"
	case was.kernel || is.kernel:
		if _, _, cause := n.parts.prober.Proof(is.ID); cause != "" {
			return string(cause)
		}
		return "found" // what a daemon before this one has left
	case was.path == PathNone:
		return "answered"
	}
	return "framing"
}
