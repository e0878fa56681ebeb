package overlayd

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/overlayd/overlayd/internal/forward"
	"github.com/overlayd/overlayd/internal/probe"
	"github.com/overlayd/overlayd/membership"
)

// way is how a peer is sent data and probes, or, without an endpoint, why it is not.
type way struct {
	framing
	endpoint netip.AddrPort
	path     string
	reason   string
}

// wayTo chooses the first address family that both sides have, and a framing that
// the peer takes.
func (c *conductor) wayTo(p *membership.Peer) (w way) {
	if len(p.Addrs) == 0 {
		return way{reason: "known only by its claim: no node with this identity has been met since the start"}
	}
	for _, own := range c.n.parts.endpoints {
		for _, a := range p.Addrs {
			if a.Is4() != own.Is4() {
				continue
			}
			var port uint16
			if w.framing, port, w.path, w.reason = c.n.framingFor(p); w.reason == "" {
				w.endpoint = netip.AddrPortFrom(a, port)
			}
			return w
		}
	}
	return way{reason: fmt.Sprintf("no common address family: it has %v, this node %v", p.Addrs, c.n.parts.endpoints)}
}

// setFramings tells those who send frames how. It comes before they are told of a
// peer.
func (c *conductor) setFramings(v *membership.View) {
	next := framings{}
	for _, p := range v.Peers {
		if w := c.wayTo(p); w.endpoint.IsValid() {
			next[p.ID] = w.framing
		}
	}
	c.n.parts.framings.Store(&next)
}

func (c *conductor) mtu(p *membership.Peer) int {
	if p.MTU > 0 {
		return min(p.MTU, int(c.n.parts.mtu))
	}
	return int(c.n.parts.mtu)
}

// foreign leaves out what this node still holds, and what static peers have. After a
// partition a peer may own a subnet that this node has not given up yet; packets for
// it stay here until it has.
func (c *conductor) foreign(subnets []netip.Prefix) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(subnets), func(p netip.Prefix) bool {
		return slices.Contains(c.held, p) || slices.ContainsFunc(c.n.live().reserved(), p.Overlaps)
	})
}

// probed is everybody who may answer: also those that gossip has given up,
// since the data path has its own opinion.
func (c *conductor) probed(v *membership.View) []probe.Peer {
	var out []probe.Peer
	for _, p := range v.Peers {
		if w := c.wayTo(p); w.endpoint.IsValid() && p.State != membership.StateLeft {
			out = append(out, probe.Peer{ID: p.ID, Boot: p.Boot, Endpoint: w.endpoint, Addrs: p.Addrs, FullSize: c.mtu(p), MinSize: minInner4})
		}
	}
	return out
}

// judge decides how packets reach a peer.
func (c *conductor) judge(p *membership.Peer, old *meshPeer, now time.Time) *meshPeer {
	counters := c.countersOf(p.ID)
	m := &meshPeer{Peer: p, state: p.State, path: PathNone, since: now}
	w := c.wayTo(p)
	m.fwd = &forward.Peer{
		ID: p.ID, Name: p.Name, Prefixes: c.foreign(p.Subnets), Endpoint: w.endpoint, Sources: p.Addrs,
		Codec: w.codec, Dest: w.dest, MTU: c.mtu(p), Counters: counters,
	}
	reach, _ := c.n.parts.prober.State(p.ID)
	if reach.SmallOnly {
		m.fwd.MTU = min(m.fwd.MTU, reach.MTU)
	}
	switch {
	case p.State == membership.StateLeft:
		m.reason = "said good-bye"
	case !w.endpoint.IsValid():
		m.reason = w.reason
	case reach.Reach == probe.Up:
		m.path, m.reason = w.path, reach.Reason
		if p.State == membership.StateDead {
			// Gossip lost it, data reaches it: it is not dead.
			m.state = membership.StateSuspect
			m.reason += "; gossip does not reach it"
		}
	case p.State == membership.StateDead:
		m.reason = "given up by gossip; " + reach.Reason
	case reach.Usable():
		m.path, m.reason = w.path, reach.Reason
	default:
		m.reason = reach.Reason
	}
	m.proof = reach.LastProof
	if kind, mtu := c.n.parts.fast.path(p.ID); kind != "" && p.State != membership.StateLeft {
		m.kernel, m.path, m.mtu, m.reason = true, kind, mtu, ""
		if p.State == membership.StateDead {
			m.state = membership.StateSuspect
			m.reason = "gossip does not reach it"
		}
	}
	m.follow(old)
	return m
}

// follow completes m with what is left of what it was.
func (m *meshPeer) follow(old *meshPeer) {
	m.fwd.Usable = m.path != PathNone
	if old == nil {
		return
	}
	m.up = old.up
	if m.proof.IsZero() {
		m.proof = old.proof
	}
	if old.path == m.path {
		m.since = old.since
	}
}

// judgeStatic decides how packets reach a static peer.
func (c *conductor) judgeStatic(p *StaticPeer, old *meshPeer, now time.Time) *meshPeer {
	id, n := p.id(), c.n
	m := &meshPeer{
		Peer:  &membership.Peer{ID: id, Name: p.Name, State: membership.StateStatic, Addrs: []netip.Addr{p.Endpoint.Addr()}, Subnets: p.Subnets},
		state: membership.StateStatic, path: PathNone, since: now,
	}
	m.fwd = &forward.Peer{
		ID: id, Name: p.Name, Prefixes: p.Subnets, Endpoint: p.Endpoint, Sources: m.Addrs, Codec: n.codec(),
		MTU: n.parts.statics.to(id, int(n.parts.mtu), now), Counters: c.countersOf(id),
	}
	family := func(own netip.Addr) bool { return own.Is4() == p.Endpoint.Addr().Is4() }
	switch vtep := n.parts.neighbors.State(id); {
	case !slices.ContainsFunc(n.parts.endpoints, family):
		m.fwd.Endpoint = netip.AddrPort{}
		m.reason = fmt.Sprintf("no common address family: it has %v, this node %v", m.Addrs, n.parts.endpoints)
	case n.cfg.Encap != "vxlan":
		m.path, m.reason = PathUserspaceUDP, "given by hand; whether it is there is not looked at"
	default:
		m.fwd.Dest.MAC, m.proof, m.reason = vtep.MAC, vtep.LastProof, vtep.Reason
		if vtep.Up || p.VTEPMAC != [6]byte{} {
			m.path = PathUserspaceVXLAN
		}
	}
	m.follow(old)
	return m
}

// countersOf are a peer's, however often the Peer is made anew.
func (c *conductor) countersOf(id membership.NodeID) *forward.PeerCounters {
	counters := c.counters[id]
	if counters == nil {
		counters = new(forward.PeerCounters)
		c.counters[id] = counters
	}
	return counters
}
