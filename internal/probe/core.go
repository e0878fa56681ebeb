package probe

import (
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/overlayd/overlayd/encap"
	"github.com/overlayd/overlayd/internal/path"
)

const (
	// maxBurst and burstGap bound how many probes leave at once, for example
	// after a stall: 32 per 5 ms. With 1000 peers the last is 160 ms late.
	maxBurst = 32
	burstGap = 5 * time.Millisecond

	// maxPings is how many extra probes of a peer may be under way.
	maxPings = 8

	// answerRate, per second, and answerBurst limit how many probes of one peer are
	// answered. It sends two each 100 ms while it proves a kernel path, a few more when
	// it looks for the size that passes, and pings.
	answerRate  = 50
	answerBurst = 50

	// smallProbe is the size of a probe that proves no size: the same with and
	// without a tag, so that keys may change while it is under way. No answer
	// is larger, and they go to the peer's addresses only, one for each path, so that
	// nobody can use us to amplify traffic.
	smallProbe = encap.MinTaggedFrame

	// maxFrame is the size of the largest frame that is sent or looked at:
	// more than fits a jumbo frame of 9216 bytes.
	maxFrame = 9216
)

// ErrBusy is returned by Ping when too many pings of the peer are under way.
var ErrBusy = errors.New("probe: too many pings of this peer under way")

// ErrNoEndpoint is returned by Ping for a peer without a known endpoint.
var ErrNoEndpoint = errors.New("probe: no endpoint of the peer is known")

// Peer is what probing has to know of a peer.
type Peer struct {
	// ID is its NodeID, not zero.
	ID [16]byte
	// Boot is its boot number as gossip knows it.
	Boot uint64
	// Endpoint is where data for it is sent, and so are probes. Invalid: none
	// is known, and the peer is down.
	Endpoint netip.AddrPort
	// Addrs are further addresses that it may send from.
	Addrs []netip.Addr
	// FullSize is the size in bytes of a control frame that stands for the
	// largest inner packet: the inner MTU. Zero: only small probes are sent.
	// More than 9216 counts as 9216.
	FullSize int
	// MinSize is the smallest size that a search for the size that passes goes
	// down to. Zero, or more than FullSize: FullSize, nothing is searched.
	MinSize int

	// Ready is which kernel paths this node takes the peer's data from now. The peer is
	// told, and its probes by other kernel paths are not answered.
	Ready encap.Flags
	// Undecided says that Ready is not known yet. The peer is not answered before it is: an
	// answer without flags would take it off a path that has stood all the time.
	Undecided bool
	// VTEPs are where its kernel paths end: an address in the overlay of each inner
	// family, with the port for probes.
	VTEPs []netip.AddrPort
	// Path is what deciding about its path has to know. ID and Boot are filled in.
	Path path.Peer
}

// Outgoing is a frame that is to be sent.
type Outgoing struct {
	To    netip.AddrPort
	Frame encap.Frame
	// Size is the wanted size for encap.Frame.Append, 0 for the smallest.
	Size int
}

// Core decides which probe to send when, and what follows from the answers. It
// does no I/O and has no clock. The now of Poll never decreases; that of Answer
// and Probed is the frame's arrival, which may lie a little behind. It is not
// safe for concurrent use.
type Core struct {
	self   [16]byte
	boot   uint64
	random func() uint64

	peers  map[[16]byte]*peer
	roster roster
	queue  queue // of the peers that have an endpoint
}

// peer is a Peer with its state.
type peer struct {
	id       [16]byte
	endpoint netip.AddrPort
	sender   *sender
	ready    encap.Flags // of ours, for it
	silent   bool        // until ready is known
	theirs   encap.Flags // of its, for us, as its last probe said

	track   track  // of the userspace path
	pings   []sent // extra probes under way, oldest first
	tokens  float64
	filled  time.Time // when tokens was brought up to date
	heard   time.Time // when its last probe arrived
	refused error     // why its last frame was not taken, nil after a proof

	wake  time.Time // when Poll has to look at it
	place int       // in queue
}

// NewCore returns a Core without peers for the node self at its boot. random
// must be unpredictable to others: nonces come from it, and the jitter.
func NewCore(self [16]byte, boot uint64, random func() uint64) *Core {
	return &Core{self: self, boot: boot, random: random, peers: map[[16]byte]*peer{}}
}

// SetPeers replaces the peers. New ones, and those whose endpoint or boot has
// changed, start as unknown and are probed at once, but not all in the same
// moment; the others go on undisturbed. The zero id and our own are left out,
// and of several Peers with one id the first counts.
//
// It returns the ids of the peers whose reach or MTU has changed; a new peer
// counts as one that was unknown before, with its MTU of now.
func (c *Core) SetPeers(now time.Time, peers []Peer) (changed [][16]byte) {
	next := make(map[[16]byte]*peer, len(peers))
	c.roster = make(roster, len(peers))
	type state struct {
		p     *peer
		reach Reach
		mtu   int
	}
	var was []state   // before, in the order of peers
	var fresh []*peer // start anew
	var told []*peer  // are to be told of another readiness
	for _, q := range peers {
		if q.ID == c.self || q.ID == [16]byte{} || next[q.ID] != nil {
			continue
		}
		q.Endpoint = netip.AddrPortFrom(q.Endpoint.Addr().Unmap(), q.Endpoint.Port())
		full, floor := q.bounds()
		p := c.peers[q.ID]
		if p == nil {
			p = &peer{id: q.ID, tokens: answerBurst, filled: now}
			p.track.start(now, full, floor)
		}
		was = append(was, state{p, p.track.reach, p.track.size.mtu})
		if p.sender == nil || p.endpoint != q.Endpoint || p.sender.boot != q.Boot {
			fresh = append(fresh, p)
			p.pings, p.heard, p.refused = nil, time.Time{}, nil
			p.endpoint = q.Endpoint
			p.track.start(now, full, floor)
		}
		p.track.resize(now, full, floor)
		if p.ready != q.Ready {
			told = append(told, p)
		}
		p.sender, p.ready, p.silent = newSender(q), q.Ready, q.Undecided
		next[q.ID], c.roster[q.ID] = p, p.sender
	}
	c.peers = next

	// The first probes of many peers are spread like the later ones will be.
	step := min(burstGap, interval/time.Duration(max(len(fresh), 1)))
	for i, p := range fresh {
		p.track.nextAt = now.Add(time.Duration(i) * step)
		if !p.endpoint.IsValid() {
			p.track.turn(now, Down)
		}
	}
	for _, w := range was {
		if w.p.track.reach != w.reach || w.p.track.size.mtu != w.mtu {
			changed = append(changed, w.p.id)
		}
	}
	for _, p := range told {
		if !p.track.waiting && now.Before(p.track.nextAt) && p.endpoint.IsValid() {
			p.track.nextAt = now // so that it hears of it
		}
	}
	c.queue = c.queue[:0]
	for _, p := range next {
		if p.endpoint.IsValid() {
			p.wake = p.track.wake()
			c.queue.push(p)
		}
	}
	return changed
}

// Poll returns the probes that are to be sent now, when to call it again, and
// the ids of the peers whose reach or MTU has changed. It may be called at any time;
// next is zero when there is nothing to wait for.
func (c *Core) Poll(now time.Time) (due []Outgoing, next time.Time, changed [][16]byte) {
	for len(c.queue) > 0 {
		p := c.queue[0]
		if p.wake.After(now) {
			return due, p.wake, changed
		}
		if len(due) == maxBurst {
			return due, now.Add(burstGap), changed
		}
		send, turned := p.track.tick(now, c.pause())
		if turned {
			changed = append(changed, p.id)
		}
		if send {
			out := c.probe(p)
			out.Size = p.track.wants(now)
			p.track.send(now, out.Frame.Nonce, out.Size)
			due = append(due, out)
		}
		c.rearm(p)
	}
	return due, time.Time{}, changed
}

// Answer takes an answer, to a userspace probe, that arrived from the address from by
// any path. Its tag has been checked already. It returns the probe's round-trip time, and whether the
// peer's reach or MTU has changed. Anything but the first answer to a probe of ours,
// from the peer that was asked, is an error and changes nothing.
func (c *Core) Answer(now time.Time, by encap.Path, from netip.AddrPort, f encap.Frame) (rtt time.Duration, changed bool, err error) {
	if _, err := c.roster.admit(c.self, by, from.Addr(), &f); err != nil {
		return 0, false, err
	}
	if f.Path != encap.Userspace {
		return 0, false, ErrPath
	}
	p := c.peers[f.Sender]
	rtt, changed, ok := p.track.answer(now, f.Nonce, int(f.Received), c.pause())
	if !ok {
		i := p.ping(f.Nonce)
		if i < 0 || p.pings[i].size != int(f.Received) {
			return 0, false, ErrUnexpected
		}
		at := p.pings[i].at
		p.pings = slices.Delete(p.pings, i, i+1)
		rtt = max(0, now.Sub(at))
		changed = p.track.proof(now, at, rtt)
	}
	p.refused = nil
	c.rearm(p)
	return rtt, changed, nil
}

// Probed takes a probe that arrived from the address from by a path, and returns the
// answer to send by userspace. Its tag has been checked already.
func (c *Core) Probed(now time.Time, by encap.Path, from netip.AddrPort, f encap.Frame) (Outgoing, error) {
	if _, err := c.roster.admit(c.self, by, from.Addr(), &f); err != nil {
		return Outgoing{}, err
	}
	p := c.peers[f.Sender]
	if need := readyFor(by); p.silent || p.ready&need != need {
		return Outgoing{}, ErrNotReady
	}
	p.heard = now
	if f.Flags != p.theirs {
		// What it is ready for has changed. That is believed of answers only.
		p.theirs = f.Flags
		c.hasten(now, p.id)
	}
	if now.After(p.filled) {
		p.tokens = min(answerBurst, p.tokens+now.Sub(p.filled).Seconds()*answerRate)
		p.filled = now
	}
	if p.tokens < 1 {
		return Outgoing{}, ErrRateLimited
	}
	p.tokens--
	// To the port where the peer receives data, not to the one it sent from:
	// source ports may be spread over sockets that nobody reads.
	to := netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
	switch {
	case by != encap.Userspace:
		to = p.endpoint
	case p.endpoint.IsValid():
		to = netip.AddrPortFrom(to.Addr(), p.endpoint.Port())
	}
	return Outgoing{To: to, Frame: encap.Frame{
		Type:     encap.Answer,
		Path:     f.Path,
		Flags:    p.ready,
		Received: f.Size,
		Sender:   c.self,
		Receiver: f.Sender,
		Boot:     c.boot,
		Nonce:    f.Nonce,
	}}, nil
}

// Refused takes note that a frame was not taken, such as one whose tag is
// wrong. It may be forged, so it only serves to explain why a peer is down.
func (c *Core) Refused(id [16]byte, err error) {
	if p := c.peers[id]; p != nil && p.track.reach != Up {
		p.refused = err
	}
}

// Ping returns an extra probe of the peer. Its answer proves as much as any;
// that it is not answered proves nothing. Whoever stops waiting for it calls
// Forget.
func (c *Core) Ping(now time.Time, id [16]byte) (Outgoing, error) {
	p := c.peers[id]
	switch {
	case p == nil:
		return Outgoing{}, ErrUnknownPeer
	case !p.endpoint.IsValid():
		return Outgoing{}, ErrNoEndpoint
	case len(p.pings) >= maxPings:
		return Outgoing{}, ErrBusy
	}
	out := c.probe(p)
	p.pings = append(p.pings, sent{nonce: out.Frame.Nonce, size: out.Size, at: now})
	return out, nil
}

// Forget drops a ping that nobody waits for any more.
func (c *Core) Forget(id [16]byte, nonce uint64) {
	if p := c.peers[id]; p != nil {
		if i := p.ping(nonce); i >= 0 {
			p.pings = slices.Delete(p.pings, i, i+1)
		}
	}
}

// SendFailed takes note that a probe from Poll could not be sent. It counts as
// unanswered like any other, with err as the reason.
func (c *Core) SendFailed(id [16]byte, nonce uint64, err error) {
	if p := c.peers[id]; p != nil {
		p.track.sendFailed(nonce, err)
	}
}

// Hint takes note that frames of more than size bytes are said not to reach the
// peer: by the kernel's EMSGSIZE or a believable ICMP message. It tells whether
// the peer's MTU has changed. That happens at once, but only downwards and not
// below MinSize; a hint that was wrong is forgotten after some 10 s.
func (c *Core) Hint(now time.Time, id [16]byte, size int) (changed bool) {
	p := c.peers[id]
	if p == nil || !p.endpoint.IsValid() || !p.track.hint(now, size) {
		return false
	}
	c.rearm(p)
	return true
}

// State returns what is known of a peer; ok is false if there is no such peer.
func (c *Core) State(id [16]byte) (s State, ok bool) {
	p := c.peers[id]
	if p == nil {
		return State{Reason: "no such peer"}, false
	}
	return p.state(), true
}

// probe makes a small probe of p.
func (c *Core) probe(p *peer) Outgoing {
	return Outgoing{To: p.endpoint, Size: smallProbe, Frame: encap.Frame{
		Type:     encap.Probe,
		Path:     encap.Userspace,
		Flags:    p.ready,
		Sender:   c.self,
		Receiver: p.id,
		Boot:     c.boot,
		Nonce:    c.random(),
	}}
}

// pause draws the time between two probes.
func (c *Core) pause() time.Duration {
	const spread = interval / 5
	return interval - spread/2 + time.Duration(c.random()%uint64(spread))
}

// rearm puts p where it belongs in the queue.
func (c *Core) rearm(p *peer) {
	p.wake = p.track.wake()
	c.queue.fix(p)
}

// ping finds a ping by its nonce; -1 if there is none.
func (p *peer) ping(nonce uint64) int {
	return slices.IndexFunc(p.pings, func(s sent) bool { return s.nonce == nonce })
}
