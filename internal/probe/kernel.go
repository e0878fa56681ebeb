package probe

import (
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/overlayd/overlayd/encap"
	"github.com/overlayd/overlayd/internal/path"
)

// kernelPaths makes frames of what a path.Core wants to be sent by kernel paths, and
// tells it what became of them. Like Core it does no I/O and has no clock.
type kernelPaths struct {
	self   [16]byte
	boot   uint64
	random func() uint64
	core   *path.Core
	peers  map[[16]byte]*kernelPeer
	// counts are of all that were ever among the peers: the guard counts on when one
	// comes back.
	counts map[[16]byte]*kernelCounts
	done   [64]doneNonce // the last answers, in a ring
	next   int
	trips  *roundTrips
}

// kernelPeer is a peer as kernel paths know it.
type kernelPeer struct {
	vteps  []netip.AddrPort
	ready  encap.Flags
	reach  Reach // what core was told
	rounds []kernelRound
}

// kernelRound is a round under way: what is left of its probes.
type kernelRound struct {
	n     uint64
	kind  path.Kind
	wants []wanted
}

// wanted is an answer that is waited for.
type wanted struct {
	nonce uint64
	size  int
}

// doneNonce is an answer that was taken, and how it came: the same one may come by
// other paths.
type doneNonce struct {
	nonce uint64
	by    uint8 // bits, by encap.Path
}

// kernelFrame is a frame to be sent by a kernel path.
type kernelFrame struct {
	kind  path.Kind
	to    netip.AddrPort
	frame encap.Frame
	size  int
	round uint64 // of a probe
	fresh bool
}

// kernelEcho is an ICMP echo request to be sent.
type kernelEcho struct {
	id    [16]byte
	kind  path.Kind
	to    netip.Addr
	round uint64
}

// maxKernelRounds is how many rounds of a peer are remembered: those of two paths.
const maxKernelRounds = 16

// The lengths of the headers of a probe inside a kernel path: RFC 791, RFC 8200, RFC 768.
const (
	headers4 = 20 + 8
	headers6 = 40 + 8
)

func newKernelPaths(self [16]byte, boot uint64, random func() uint64) *kernelPaths {
	return &kernelPaths{self: self, boot: boot, random: random, core: path.NewCore(random), peers: map[[16]byte]*kernelPeer{}, counts: map[[16]byte]*kernelCounts{}}
}

// readyFor is the flag of a path, none of userspace.
func readyFor(by encap.Path) encap.Flags {
	switch by {
	case encap.KernelVXLAN:
		return encap.ReadyKernelVXLAN
	case encap.Direct:
		return encap.ReadyDirect
	}
	return 0
}

// pathOf is a kind's number in frames.
func pathOf(k path.Kind) encap.Path {
	if k == path.Direct {
		return encap.Direct
	}
	return encap.KernelVXLAN
}

// kindOf is the kind of a number in frames.
func kindOf(by encap.Path) path.Kind {
	switch by {
	case encap.KernelVXLAN:
		return path.KernelVXLAN
	case encap.Direct:
		return path.Direct
	}
	return path.Userspace
}

// setPeers replaces the peers, by those that Core has taken. It returns what reached
// does.
func (k *kernelPaths) setPeers(now time.Time, peers []Peer, c *Core) (changed [][16]byte) {
	r := c.roster
	next := make(map[[16]byte]*kernelPeer, len(r))
	list := make([]path.Peer, 0, len(r))
	for i := range peers {
		q := &peers[i]
		s := r[q.ID]
		if s == nil || next[q.ID] != nil {
			continue
		}
		p := k.peers[q.ID]
		if p == nil {
			p = new(kernelPeer)
		}
		p.vteps, p.ready = slices.Clone(q.VTEPs), q.Ready
		if k.counts[q.ID] == nil {
			k.counts[q.ID] = new(kernelCounts)
		}
		s.counts = k.counts[q.ID]
		next[q.ID] = p
		about := q.Path
		about.ID, about.Boot = q.ID, q.Boot
		list = append(list, about)
	}
	k.peers = next
	k.core.SetPeers(now, list)
	ids := make([][16]byte, 0, len(next))
	for id := range next {
		ids = append(ids, id)
	}
	return k.reached(now, c, ids...)
}

// reached tells the path core what Core thinks of userspace, and returns the peers
// about whose path something else was decided since the last call. Of the peers whose
// reach has not changed nothing is to be told.
func (k *kernelPaths) reached(now time.Time, c *Core, ids ...[16]byte) (changed [][16]byte) {
	for _, id := range ids {
		if p, q := k.peers[id], c.peers[id]; p != nil && q != nil && q.track.reach != p.reach {
			p.reach = q.track.reach
			k.core.UserspaceReach(now, id, p.reach == Up, p.reach == Down)
		}
	}
	return k.core.Changed()
}

// poll returns what is to be sent now, and when to call it again.
func (k *kernelPaths) poll(now time.Time, c *Core) (frames []kernelFrame, echoes []kernelEcho, next time.Time) {
	sends, next := k.core.Poll(now)
	for _, s := range sends {
		p := k.peers[s.ID]
		switch {
		case p == nil:
		case s.What == path.WhatUserspace:
			c.hasten(now, s.ID)
		case len(p.vteps) == 0:
		case s.What == path.WhatEcho:
			echoes = append(echoes, kernelEcho{s.ID, s.Kind, p.vteps[0].Addr(), s.Round})
		case s.What == path.WhatRound:
			frames = append(frames, k.round(p, s)...)
		}
	}
	return frames, echoes, next
}

// round makes the probes of a round.
func (k *kernelPaths) round(p *kernelPeer, s path.Send) (out []kernelFrame) {
	if len(p.rounds) == maxKernelRounds {
		p.rounds = slices.Delete(p.rounds, 0, 1)
	}
	r := kernelRound{n: s.Round, kind: s.Kind}
	for i, to := range p.vteps {
		f := encap.Frame{
			Type: encap.Probe, Path: pathOf(s.Kind), Flags: p.ready,
			Sender: k.self, Receiver: s.ID, Boot: k.boot, Nonce: k.random(),
		}
		size := max(smallProbe, min(s.Size-innerHeaders(to.Addr()), maxFrame))
		out = append(out, kernelFrame{kind: s.Kind, to: to, frame: f, size: size, round: s.Round, fresh: s.Fresh && i == 0})
		r.wants = append(r.wants, wanted{f.Nonce, size})
	}
	p.rounds = append(p.rounds, r)
	return out
}

// innerHeaders is the length of the headers in front of a frame in a kernel path.
func innerHeaders(a netip.Addr) int {
	if a.Is4() {
		return headers4
	}
	return headers6
}

// answer takes an answer to a probe of ours by a kernel path. Its sender has been
// admitted, and its tag checked.
func (k *kernelPaths) answer(now time.Time, f encap.Frame) error {
	p := k.peers[f.Sender]
	if p == nil {
		return ErrUnknownPeer
	}
	for i := range p.rounds {
		r := &p.rounds[i]
		w := slices.Index(r.wants, wanted{f.Nonce, int(f.Received)})
		if w < 0 || pathOf(r.kind) != f.Path {
			continue
		}
		r.wants = slices.Delete(r.wants, w, w+1)
		if len(r.wants) == 0 {
			n, kind := r.n, r.kind
			p.rounds = slices.Delete(p.rounds, i, i+1)
			if rtt, ok := k.core.Answered(now, f.Sender, kind, n); ok {
				k.trips.observe(kind, rtt)
			}
		}
		return nil
	}
	return ErrUnexpected
}

// told takes note of what an answer that was taken says of its sender.
func (k *kernelPaths) told(now time.Time, by encap.Path, f encap.Frame) {
	k.done[k.next] = doneNonce{f.Nonce, 1 << by}
	k.next = (k.next + 1) % len(k.done)
	k.core.Ready(now, f.Sender, f.Flags&encap.ReadyKernelVXLAN != 0, f.Flags&encap.ReadyDirect != 0)
}

// again tells whether an answer was taken already, by another path.
func (k *kernelPaths) again(by encap.Path, f encap.Frame) bool {
	for i := range k.done {
		if d := &k.done[i]; d.by != 0 && d.nonce == f.Nonce && d.by&(1<<by) == 0 {
			d.by |= 1 << by
			return true
		}
	}
	return false
}

// probed takes note of a probe that is to be answered, and returns by which kernel
// paths it is answered, too.
func (k *kernelPaths) probed(now time.Time, by encap.Path, from netip.Addr, answer encap.Frame) (out []kernelFrame) {
	id := answer.Receiver
	p := k.peers[id]
	if p == nil || len(p.vteps) == 0 {
		return nil
	}
	kinds := []path.Kind{kindOf(by)}
	if by != encap.Userspace {
		k.core.Heard(now, id, kindOf(by))
	}
	if current := k.core.State(id).Kind; current != kinds[0] {
		kinds = append(kinds, current)
	}
	to := p.vteps[0]
	for _, v := range p.vteps {
		if v.Addr() == from {
			to = v
		}
	}
	for _, kind := range kinds {
		if kind != path.Userspace {
			out = append(out, kernelFrame{kind: kind, to: to, frame: answer})
		}
	}
	return out
}

// hasten has a small probe sent to a peer soon, if none is under way.
func (c *Core) hasten(now time.Time, id [16]byte) {
	if p := c.peers[id]; p != nil && p.endpoint.IsValid() && !p.track.waiting && now.Before(p.track.nextAt) {
		p.track.nextAt = now
		c.rearm(p)
	}
}

// kernelCounts counts the control frames of a peer in kernel paths, as inner packets,
// since the counters of these paths have them as well. What came is by path.Kind.
type kernelCounts struct {
	txPackets, txBytes atomic.Uint64
	came               [path.Direct + 1]struct{ packets, bytes atomic.Uint64 }
}

// take counts a frame that has come by a path.
func (c *kernelCounts) take(by encap.Path, size int, from netip.Addr) {
	if c != nil && by != encap.Userspace {
		k := &c.came[kindOf(by)]
		k.packets.Add(1)
		k.bytes.Add(uint64(size + innerHeaders(from)))
	}
}

// going counts a frame that is about to be sent, and stayed takes one back that was not.
func (c *kernelCounts) going(size int, to netip.Addr) {
	c.txPackets.Add(1)
	c.txBytes.Add(uint64(size + innerHeaders(to)))
}

func (c *kernelCounts) stayed(size int, to netip.Addr) {
	c.txPackets.Add(^uint64(0))
	c.txBytes.Add(-uint64(size + innerHeaders(to)))
}
