package overlayd

import (
	"fmt"
	"slices"
	"time"
)

// movedFor is for how long this node's first endpoint must be gone from its interface,
// while that has another address of the family, before the node gives up: a network
// manager may take an address away and put it back.
const movedFor = 700 * time.Millisecond

// underlayMoved ends the node when the address that it was started with is another one
// now, as after a DHCP server has given out a new one: sockets, gossip and peers all know
// the old one. It reports whether the node goes on. An address that was given by hand is
// waited for, for ever.
func (c *conductor) underlayMoved(now time.Time) (on bool) {
	n := c.n
	if n.cfg.Interface == "" || n.parts.kernel == nil {
		return true
	}
	first := n.parts.endpoints[0]
	l, err := n.parts.kernel.Underlay(n.cfg.Interface)
	if err != nil { // no address at all: nothing is better
		c.goneSince = time.Time{}
		return true
	}
	other := first
	for _, p := range slices.Backward(l.Addrs) {
		if p.Addr() == first {
			c.goneSince = time.Time{}
			return true
		}
		if p.Addr().Is4() == first.Is4() {
			other = p.Addr()
		}
	}
	if other == first { // the family is gone
		c.goneSince = time.Time{}
		return true
	}
	if c.goneSince.IsZero() {
		c.goneSince = now
	}
	if now.Sub(c.goneSince) < movedFor {
		return true
	}
	n.finish(fmt.Errorf("%w: %s had %v and has %v now", ErrUnderlayChanged, n.cfg.Interface, first, other))
	return false
}
