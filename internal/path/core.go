package path

import (
	"bytes"
	"container/heap"
	"time"
)

// Kind is a way by which a peer is sent data.
type Kind uint8

// The kinds, from the one that always works to the best.
const (
	Userspace Kind = iota
	KernelVXLAN
	Direct
	kinds
)

// Auto, as a pin, leaves the choice to the Core.
const Auto Kind = 255

// String returns the kind's name as commands take it.
func (k Kind) String() string {
	switch k {
	case Userspace:
		return "userspace"
	case KernelVXLAN:
		return "kernel-vxlan"
	case Direct:
		return "direct"
	case Auto:
		return "auto"
	}
	return "unknown"
}

// Chance tells whether a kernel path to a peer may be tried.
type Chance struct {
	// Way identifies the path's other end: addresses, MAC. What was proven of another
	// Way counts for nothing. Empty: the path cannot be tried.
	Way string
	// Why says, in one line to a person, why it cannot be tried.
	Why string
}

// Peer is what deciding has to know of a peer.
type Peer struct {
	ID   [16]byte
	Boot uint64
	// Chances are by Kind; that of Userspace is not looked at.
	Chances [kinds]Chance
	// Full is the largest inner packet, in bytes, and Floor the smallest that a path is
	// of any use for.
	Full, Floor int
	// Standing is the kernel path that a daemon which is gone has left in place. It is
	// taken over as long as nothing else was decided. Userspace: none.
	Standing Kind
}

// Send is something to be sent for a peer.
type Send struct {
	ID [16]byte
	// What is to be sent.
	What What
	// Kind and Round, with WhatRound and WhatEcho, say by which path and for what the
	// answer counts.
	Kind  Kind
	Round uint64
	// Size is that of the inner packets of a round, in bytes.
	Size int
	// Fresh asks that what the kernel has learned of the path's MTU be forgotten first.
	Fresh bool
}

// What is a kind of message.
type What uint8

// The messages.
const (
	WhatRound     What = iota // a probe per inner family, by the path
	WhatUserspace             // a probe by userspace
	WhatEcho                  // ICMP echo by the path
)

// Core decides. The now of its methods never decreases. It is not safe for
// concurrent use.
type Core struct {
	random func() uint64
	peers  map[[16]byte]*peer
	queue  queue
	broken [kinds]string // why no peer may have this kind, empty: it may
	rounds uint64        // numbers that were given out
	// changed are the peers whose State has changed since the last Poll.
	changed map[[16]byte]bool
}

// NewCore returns a Core without peers. random spreads the probes.
func NewCore(random func() uint64) *Core {
	return &Core{random: random, peers: map[[16]byte]*peer{}, changed: map[[16]byte]bool{}}
}

// SetPeers replaces the peers. The paths of those that stay are kept, as long as
// their Way is the same; those of new ones begin in userspace, or with what stands.
func (c *Core) SetPeers(now time.Time, peers []Peer) {
	next := make(map[[16]byte]*peer, len(peers))
	for i := range peers {
		q := &peers[i]
		p := c.peers[q.ID]
		if p == nil {
			p = newPeer(c, q, now)
		} else {
			p.update(q, now)
		}
		next[q.ID] = p
	}
	for id := range c.peers {
		if next[id] == nil {
			c.changed[id] = true
		}
	}
	c.peers = next
	c.queue = c.queue[:0]
	for _, p := range next {
		p.decide(now)
		p.wake = p.due()
		heap.Push(&c.queue, p)
	}
}

// Poll returns what is to be sent now and when to call it again, zero if there is
// nothing to wait for. It may be called at any time.
func (c *Core) Poll(now time.Time) (out []Send, next time.Time) {
	for len(c.queue) > 0 {
		p := c.queue[0]
		if p.wake.IsZero() || p.wake.After(now) {
			return out, p.wake
		}
		if len(out) >= maxBurst {
			return out, now.Add(burstGap)
		}
		out = p.tick(now, out)
		p.decide(now)
		p.rearm()
	}
	return out, time.Time{}
}

// Bounds of what leaves at once, as of package probe.
const (
	maxBurst = 32
	burstGap = 5 * time.Millisecond
)

// Changed returns the peers whose State has changed since the last call, in no order.
func (c *Core) Changed() (ids [][16]byte) {
	for id := range c.changed {
		ids = append(ids, id)
	}
	clear(c.changed)
	return ids
}

// with runs an event of a peer, if it is known.
func (c *Core) with(now time.Time, id [16]byte, f func(*peer)) {
	if p := c.peers[id]; p != nil {
		f(p)
		p.decide(now)
		p.rearm()
	}
}

// Ready takes note of which kinds a peer says it would take from us now.
func (c *Core) Ready(now time.Time, id [16]byte, vxlan, direct bool) {
	c.with(now, id, func(p *peer) {
		p.told(KernelVXLAN, vxlan)
		p.told(Direct, direct)
	})
}

// Heard takes note that a probe of the peer's has arrived by a kernel path: it is
// worth a try in the other direction.
func (c *Core) Heard(now time.Time, id [16]byte, k Kind) {
	c.with(now, id, func(p *peer) {
		if l := p.lane(k); l != nil && l.phase == resting && !l.held {
			l.again()
		}
	})
}

// UserspaceReach takes note of whether a peer answers by userspace: down is that it
// does not, up that it does; neither, that nothing is known.
func (c *Core) UserspaceReach(now time.Time, id [16]byte, up, down bool) {
	c.with(now, id, func(p *peer) {
		if up && p.usDown {
			p.refresh() // it is back: what was tried meanwhile says little
		}
		p.usUp, p.usDown = up, down
	})
}

// UserspaceAnswered takes note that a userspace probe which was sent at the time sent
// was answered.
func (c *Core) UserspaceAnswered(now time.Time, id [16]byte, sent time.Time, rtt time.Duration) {
	c.with(now, id, func(p *peer) {
		if sent.After(p.usProven) {
			p.usProven = sent
		}
		p.usRTT = rtt
	})
}

// Answered takes note that all probes of a round were answered. It returns the round
// trip, and whether that round was waited for at all.
func (c *Core) Answered(now time.Time, id [16]byte, k Kind, round uint64) (rtt time.Duration, ok bool) {
	c.with(now, id, func(p *peer) {
		if l := p.lane(k); l != nil {
			rtt, ok = l.answered(now, round)
		}
	})
	return rtt, ok
}

// Failed takes note that a round could not be sent.
func (c *Core) Failed(now time.Time, id [16]byte, k Kind, round uint64, err error) {
	c.with(now, id, func(p *peer) {
		if l := p.lane(k); l != nil {
			l.sendFailed(round, err)
		}
	})
}

// EchoAnswered takes note that the peer's kernel has answered an echo.
func (c *Core) EchoAnswered(now time.Time, id [16]byte, k Kind, round uint64) {
	c.with(now, id, func(p *peer) {
		if l := p.lane(k); l != nil {
			l.echoed(now, round)
		}
	})
}

// Traffic tells how many packets were sent to a peer and came from it so far, by all
// paths, without probes. Both only grow.
func (c *Core) Traffic(now time.Time, id [16]byte, tx, rx uint64) {
	c.with(now, id, func(p *peer) { p.traffic(now, tx, rx) })
}

// Refused takes note that the path decided on could not be set up.
func (c *Core) Refused(now time.Time, id [16]byte, k Kind, why string) {
	c.with(now, id, func(p *peer) {
		if p.current == k && k != Userspace {
			p.fail(now, why)
		}
	})
}

// Break takes a kind from all peers, until Break is called with an empty why.
func (c *Core) Break(now time.Time, k Kind, why string) {
	if c.broken[k] == why {
		return
	}
	mended := c.broken[k] != "" && why == ""
	c.broken[k] = why
	for id := range c.peers {
		c.with(now, id, func(p *peer) {
			if l := p.lane(k); l != nil && mended && !l.held {
				l.again()
			}
		})
	}
}

// queue is a heap of peers by wake; those that wait for nothing come last.
type queue []*peer

func (q queue) Len() int { return len(q) }

func (q queue) Less(i, j int) bool {
	a, b := q[i].wake, q[j].wake
	switch {
	case a.IsZero() != b.IsZero():
		return b.IsZero()
	case !a.Equal(b):
		return a.Before(b)
	}
	return bytes.Compare(q[i].id[:], q[j].id[:]) < 0
}

func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].place, q[j].place = i, j
}

func (q *queue) Push(x any) {
	p := x.(*peer)
	p.place = len(*q)
	*q = append(*q, p)
}

func (q *queue) Pop() any {
	last := len(*q) - 1
	p := (*q)[last]
	*q = (*q)[:last]
	return p
}
