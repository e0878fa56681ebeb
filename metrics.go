package overlayd

import (
	"github.com/overlayd/overlayd/internal/metrics"
	"github.com/overlayd/overlayd/internal/path"
	"github.com/overlayd/overlayd/internal/probe"
	"github.com/overlayd/overlayd/membership"
)

// metrics is what a scrape tells: the same picture of the cluster, the same counters and
// the same probes as Status. What the kernel has counted is as of the last sample (see
// fastPaths.sample and readQueue), so that a scrape reads nothing of the kernel's.
func (n *Node) metrics() metrics.Snapshot {
	s := metrics.Snapshot{
		Version: BuildVersion(),
		Node: metrics.Node{
			Name: n.cfg.Name, Encap: n.cfg.Encap, FastPath: n.live().FastPath, MTU: int(n.parts.mtu), Wanted: len(n.cfg.Networks),
		},
		Drops:   n.dropsRead(),
		Changes: n.moved.all(),
		Bounds:  probe.RoundTripBounds(),
		Leases:  map[string]int{},
		Gossip:  metrics.Gossip{Members: map[string]int{}},
	}
	for _, state := range []membership.ClaimState{membership.Tentative, membership.Held, membership.Released} {
		s.Leases[state.String()] = 0
	}
	for state := range membership.StateStatic {
		s.Gossip.Members[state.String()] = 0
	}
	if !n.running() {
		return s
	}
	m := n.mesh.Load()
	s.Node.ID, s.Node.Held = n.parts.member.ID().String(), len(m.held)
	s.Node.Ready = n.carries() == nil
	s.Node.Warnings = len(n.notes.all()) + len(n.parts.fast.warnings())
	s.Gossip.Synced, s.Gossip.Health = m.view.Synced, n.parts.member.Health()
	for _, p := range m.view.Peers {
		if len(p.Addrs) > 0 { // others were never met
			s.Gossip.Members[p.State.String()]++
		}
	}
	for state, count := range m.view.CountClaims() {
		s.Leases[state.String()] = count
	}
	for _, t := range n.parts.prober.RoundTrips() {
		s.RoundTrips = append(s.RoundTrips, metrics.RoundTrips{Path: t.Kind.String(), Count: t.Count, Sum: t.Sum, Buckets: t.Buckets})
	}
	s.Peers = make([]metrics.Peer, 0, len(m.peers))
	for _, p := range m.peers {
		seen := n.seen(p)
		s.Peers = append(s.Peers, metrics.Peer{
			Name: p.Name, ID: p.ID.String(), State: p.state.String(), Path: p.path,
			RTT: seen.rtt, Proof: seen.proof, MTU: seen.mtu, Paths: n.countsOf(p),
		})
	}
	return s
}

// countsOf are the counters of a peer by kind of path. A kind of the kernel's is there
// once it is the peer's path, or has carried something.
func (n *Node) countsOf(p *meshPeer) (out []metrics.Counts) {
	all := n.parts.fast.counted(p)
	for k, c := range all {
		kind := path.Kind(k)
		if kind != path.Userspace && c.TxPackets+c.RxPackets == 0 && p.path != kind.String() {
			continue
		}
		out = append(out, metrics.Counts{
			Path:      kind.String(),
			TxPackets: c.TxPackets, TxBytes: c.TxBytes, RxPackets: c.RxPackets, RxBytes: c.RxBytes,
		})
	}
	return out
}
