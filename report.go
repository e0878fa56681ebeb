package overlayd

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/overlayd/overlayd/internal/forward"
	"github.com/overlayd/overlayd/internal/kernel"
	"github.com/overlayd/overlayd/internal/neighbor"
	"github.com/overlayd/overlayd/internal/probe"
	"github.com/overlayd/overlayd/membership"
	"github.com/overlayd/overlayd/tunnel"
)

// Status describes the node and its peers now. It costs the packet path
// nothing.
func (n *Node) Status() Status {
	return Status{Schema: StatusSchema, Node: n.nodeStatus(), Peers: n.peerStatus(), Drops: n.drops()}
}

// Peers is the peers of Status.
func (n *Node) Peers() Peers { return Peers{Schema: PeersSchema, Peers: n.peerStatus()} }

// Drops is the drop counters of Status.
func (n *Node) Drops() Drops { return Drops{Schema: DropsSchema, Drops: n.drops()} }

// running reports whether parts may be read: Start has put them together, and
// nobody changes them any more.
func (n *Node) running() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.phase == phaseRunning
}

func (n *Node) nodeStatus() NodeStatus {
	s := NodeStatus{
		Name: n.cfg.Name, Version: BuildVersion(), Encap: n.cfg.Encap, VNI: n.cfg.VNI, FastPath: n.live().FastPath,
		Endpoints: []string{}, Subnets: []netip.Prefix{}, Warnings: []string{},
	}
	if !n.running() {
		return s
	}
	id := n.parts.member.ID()
	mac := membership.VTEPMAC(id)
	s.ID, s.VTEPMAC, s.MTU = id.String(), net.HardwareAddr(mac[:]).String(), int(n.parts.mtu)
	for _, a := range n.parts.endpoints {
		s.Endpoints = append(s.Endpoints, netip.AddrPortFrom(a, n.cfg.dataPort()).String())
	}
	s.Subnets = append(s.Subnets, n.mesh.Load().held...)
	s.Warnings = append(append(s.Warnings, n.notes.all()...), n.parts.fast.warnings()...)
	return s
}

func (n *Node) peerStatus() []PeerStatus {
	out := []PeerStatus{}
	if !n.running() {
		return out
	}
	now := time.Now()
	n.parts.fast.read()
	for _, p := range n.mesh.Load().peers {
		seen := n.seen(p)
		byPath := n.parts.fast.counted(p)
		counts := byPath.all()
		s := PeerStatus{
			ID: p.ID.String(), Name: p.Name, State: p.state.String(), Subnets: append([]netip.Prefix{}, p.Subnets...),
			Path: p.path, PathReason: p.reason, PathSince: p.since, MTU: seen.mtu,
			TxBytes: counts.TxBytes, RxBytes: counts.RxBytes, TxPackets: counts.TxPackets, RxPackets: counts.RxPackets,
		}
		if p.fwd.Endpoint.IsValid() {
			s.Endpoint = p.fwd.Endpoint.String()
		}
		if seen.probed {
			s.PathReason = n.pathReason(p)
		}
		s.RTTUS = seen.rtt.Microseconds()
		if !seen.proof.IsZero() {
			age := max(now.Sub(seen.proof).Milliseconds(), 0)
			s.LastProofMS = &age
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b PeerStatus) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID))
	})
	return out
}

// sight is what probes, or ARP, say of a peer.
type sight struct {
	proof  time.Time // of the last answer by the path in use, zero if there was none
	rtt    time.Duration
	mtu    int
	probed bool
}

// seen looks at a peer. Status and metrics are made of it.
func (n *Node) seen(p *meshPeer) sight {
	s := sight{proof: p.proof, mtu: p.fwd.MTU}
	var last time.Time
	if p.state == membership.StateStatic {
		vtep := n.parts.neighbors.State(p.ID)
		s.rtt, last = vtep.RTT, vtep.LastProof
	} else {
		last, s.rtt, s.probed = n.parts.prober.Answered(p.ID)
	}
	if p.kernel {
		last, s.rtt, _ = n.parts.prober.Proof(p.ID)
		s.proof = time.Time{}
		if p.mtu > 0 {
			s.mtu = p.mtu
		}
	}
	if last.After(s.proof) {
		s.proof = last
	}
	return s
}

func (n *Node) drops() map[string]uint64 {
	if n.running() {
		n.parts.fast.read()
		n.readQueue()
	}
	return n.dropsRead()
}

// readQueue reads how many packets the kernel has dropped in front of the device. What
// cannot be read is as it was: counters do not go back.
func (n *Node) readQueue() {
	k := n.parts.kernel
	if k == nil {
		return
	}
	now := k.QueueDrops(n.cfg.Device)
	for was := n.queueDrops.Load(); now > was && !n.queueDrops.CompareAndSwap(was, now); {
		was = n.queueDrops.Load()
	}
}

// dropsRead is drops, with what was last read of the kernel's.
func (n *Node) dropsRead() map[string]uint64 {
	// Of a node that does not run, every reason at 0.
	forwarder, prober, neighbors, member, device := new(forward.Drops), new(probe.Prober), new(neighbor.Resolver), new(membership.Member), tunnel.Device(nil)
	if n.running() {
		forwarder, prober, neighbors, member, device = n.parts.engine.Drops(), n.parts.prober, n.parts.neighbors, n.parts.member, n.parts.device
	}
	out := forwarder.Snapshot()
	maps.Copy(out, prober.Drops())
	maps.Copy(out, neighbors.Drops())
	maps.Copy(out, member.Refused())
	maps.Copy(out, deviceDrops(device))
	maps.Copy(out, n.guardDrops())
	out["tx_device_queue_full"] += n.queueDrops.Load()
	return out
}

// guardDrops are what the guard in front of the kernel paths has dropped.
func (n *Node) guardDrops() map[string]uint64 {
	if f := n.parts.fast; n.running() && f != nil {
		if c := f.counts.Load().Drops; c != nil {
			return c
		}
	}
	out := make(map[string]uint64)
	for _, reason := range kernel.GuardReasons() {
		out[reason] = 0
	}
	return out
}

// pathReason says why a peer is sent packets as it is: what was so when that was
// decided, and what is so now of the kernel's paths to it.
func (n *Node) pathReason(p *meshPeer) string {
	return joinReasons(p.reason, n.parts.prober.PathState(p.ID).Reason)
}

// joinReasons puts what is to be said of a path into one line.
func joinReasons(parts ...string) string {
	return strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), "; ")
}

// deviceDrops are the packets that the device itself dropped.
func deviceDrops(d tunnel.Device) map[string]uint64 {
	var s tunnel.Stats
	if r, ok := d.(tunnel.StatsReader); ok {
		s = r.Stats()
	}
	return map[string]uint64{
		"tx_device_too_long":   s.TooLong,
		"tx_device_queue_full": s.ReadFull,
		"rx_device_queue_full": s.WriteFull,
	}
}

// Routes is the forwarding table.
func (n *Node) Routes() Routes {
	r := Routes{Schema: RoutesSchema, Routes: []RouteStatus{}}
	if !n.running() {
		return r
	}
	m := n.mesh.Load()
	for _, p := range m.held {
		r.Routes = append(r.Routes, n.ownRoute(p))
	}
	for _, p := range m.peers {
		for _, s := range p.fwd.Prefixes {
			r.Routes = append(r.Routes, n.peerRoute(p, s))
		}
	}
	slices.SortFunc(r.Routes, func(a, b RouteStatus) int {
		return cmp.Or(a.Prefix.Addr().Compare(b.Prefix.Addr()), cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()))
	})
	return r
}

// Lookup tells where a packet to addr goes. The error wraps ErrNoRoute when
// addr is outside of the overlay or nobody's.
func (n *Node) Lookup(addr netip.Addr) (RouteStatus, error) {
	if !n.running() {
		return RouteStatus{}, ErrNotStarted
	}
	addr = addr.Unmap()
	m := n.mesh.Load()
	// The longest prefix counts, as in the forwarding table.
	var best RouteStatus
	for _, r := range n.Routes().Routes {
		if r.Prefix.Contains(addr) && r.Prefix.Bits() >= best.Prefix.Bits() {
			best = r
		}
	}
	if best.Prefix.IsValid() {
		return best, nil
	}
	for _, p := range m.view.Networks {
		if p.Contains(addr) {
			return RouteStatus{}, fmt.Errorf("%w: %v is in the overlay network %v, but no node owns it", ErrNoRoute, addr, p)
		}
	}
	return RouteStatus{}, fmt.Errorf("%w: %v is outside of the overlay networks", ErrNoRoute, addr)
}

func (n *Node) ownRoute(p netip.Prefix) RouteStatus {
	return RouteStatus{Prefix: p, Peer: n.cfg.Name, PeerID: n.parts.member.ID().String(), Path: "local", Reason: "this node's own subnet"}
}

func (n *Node) peerRoute(p *meshPeer, prefix netip.Prefix) RouteStatus {
	r := RouteStatus{Prefix: prefix, Peer: p.Name, PeerID: p.ID.String(), Path: p.path, Reason: n.pathReason(p)}
	if p.fwd.Endpoint.IsValid() {
		r.Endpoint = p.fwd.Endpoint.String()
	}
	return r
}

// Ping sends one probe to a peer, given by its name, its id or an overlay
// address that it owns, and waits for the answer until ctx ends.
func (n *Node) Ping(ctx context.Context, target string) (PingResult, error) {
	if !n.running() {
		return PingResult{}, ErrNotStarted
	}
	p, err := n.find(target)
	if err != nil {
		return PingResult{}, err
	}
	res := PingResult{Peer: p.Name, PeerID: p.ID.String(), Path: p.path}
	if p.fwd.Endpoint.IsValid() {
		res.Endpoint = p.fwd.Endpoint.String()
	}
	if p.state == membership.StateLeft || !p.fwd.Endpoint.IsValid() {
		return res, fmt.Errorf("%s cannot be reached: %s", p.Name, p.reason)
	}
	if p.state != membership.StateStatic {
		if res.RTT, err = n.parts.prober.Ping(ctx, p.ID); err != nil {
			return res, fmt.Errorf("ping %s at %s/udp: %w", p.Name, res.Endpoint, err)
		}
		return res, nil
	}
	if n.cfg.Encap != "vxlan" {
		return res, fmt.Errorf("%s is a static peer, and of the udp encap: it answers no probes", p.Name)
	}
	// Its VTEP answers ARP, which is all that it knows.
	if res.RTT, err = n.parts.neighbors.Ping(ctx, p.ID); err != nil {
		return res, fmt.Errorf("ask for %s's VTEP at %s/udp: %w", p.Name, res.Endpoint, err)
	}
	return res, nil
}

// find returns the peer that a person means.
func (n *Node) find(target string) (*meshPeer, error) {
	m := n.mesh.Load()
	if a, err := netip.ParseAddr(target); err == nil {
		r, err := n.Lookup(a)
		if err != nil {
			return nil, err
		}
		for _, p := range m.peers {
			if p.ID.String() == r.PeerID {
				return p, nil
			}
		}
		return nil, fmt.Errorf("%w: %v is this node's own", ErrNoPeer, a)
	}
	var found []*meshPeer
	for _, p := range m.peers {
		if p.ID.String() == target {
			return p, nil
		}
		if p.Name == target && target != "" { // some are known by their claim alone
			found = append(found, p)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		if target == n.cfg.Name || target == n.parts.member.ID().String() {
			return nil, fmt.Errorf("%w: %s is this node itself", ErrNoPeer, target)
		}
		return nil, fmt.Errorf("%w: %q is neither the name nor the id of a peer, nor an address", ErrNoPeer, target)
	}
	// A dead node and its successor may share a name: the living one is meant.
	var alive []*meshPeer
	var ids []string
	for _, p := range found {
		ids = append(ids, p.ID.String())
		if p.path != PathNone {
			alive = append(alive, p)
		}
	}
	if len(alive) == 1 {
		return alive[0], nil
	}
	return nil, fmt.Errorf("%w: several peers are called %q: use an id (%s)", ErrNoPeer, target, strings.Join(ids, ", "))
}
