package overlayd

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/overlayd/overlayd/internal/neighbor"
	"github.com/overlayd/overlayd/membership"
)

// StaticPeer is a peer that speaks no gossip: a kernel's VXLAN device, flannel's, a
// switch's VTEP, or, with the udp encap, flannel's udp backend. It is reached with
// this node's encap.
type StaticPeer struct {
	// Name is what it is called, unique among static peers.
	Name string
	// Endpoint is where it receives. Port 0: the one of the local encap.
	Endpoint netip.AddrPort
	// Subnets are what it owns, inside the overlay networks. No node claims them that
	// knows of this peer, and on this node they go to it whoever claims them.
	Subnets []netip.Prefix
	// VTEPMAC is the MAC of its VTEP. The zero value: it is asked for, by ARP or
	// neighbour discovery for the first address of its first subnet, again and again, so
	// that it is known when the peer is gone.
	VTEPMAC [6]byte
}

// id stands for the NodeID that a static peer has not.
func (s *StaticPeer) id() membership.NodeID {
	sum := sha256.Sum256([]byte("overlayd static peer v1\x00" + s.Name))
	return membership.NodeID(sum[:16])
}

// asked is the VTEP address that is asked for, invalid if it is not.
func (s *StaticPeer) asked() netip.Addr { return s.Subnets[0].Addr() }

// staticPeers checks the static peers and fills in their ports.
func (r *resolved) staticPeers() error {
	port := r.dataPort()
	r.StaticPeers = slices.Clone(r.StaticPeers)
	for i := range r.StaticPeers {
		p := &r.StaticPeers[i]
		if err := membership.CheckName(p.Name); err != nil {
			return badConfig("static peer %q: %v", p.Name, err)
		}
		bad := func(format string, args ...any) error {
			return badConfig("static peer %s: %s", p.Name, fmt.Sprintf(format, args...))
		}
		if p.Name == r.Name {
			return bad("that is this node's own name: give it another")
		}
		a := p.Endpoint.Addr()
		if !a.IsValid() || a.IsUnspecified() || a.IsMulticast() || a.Is4In6() || a.Zone() != "" || a.IsLinkLocalUnicast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
			return bad("endpoint %v is not a unicast address: give one such as 192.0.2.7 or 192.0.2.7:%d", a, port)
		}
		if slices.Contains(r.Advertise, a) {
			return bad("endpoint %v is this node's own address", a)
		}
		for _, n := range r.Networks {
			if n.Contains(a) {
				return bad("endpoint %v lies inside the overlay network %v: give an address of the underlay", a, n)
			}
		}
		if p.Endpoint.Port() == 0 {
			p.Endpoint = netip.AddrPortFrom(a, port)
		}
		if len(p.Subnets) == 0 {
			return bad("no subnet is given")
		}
		p.Subnets = slices.Clone(p.Subnets)
		for j, s := range p.Subnets {
			if err := r.staticPeerSubnet(i, j, s); err != nil {
				return bad("%v", err)
			}
		}
		if p.VTEPMAC[0]&1 != 0 {
			return bad("VTEP MAC %x is a group's: give the one of its VXLAN device", p.VTEPMAC)
		}
		if p.VTEPMAC != [6]byte{} && r.Encap != "vxlan" {
			return bad("it has a VTEP MAC, but the encap here is %s: use --encap vxlan, or leave the MAC out", r.Encap)
		}
		for _, o := range r.StaticPeers[:i] {
			if o.Name == p.Name {
				return badConfig("two static peers are called %s: give each its own name", p.Name)
			}
		}
	}
	return nil
}

// staticPeerSubnet checks subnet j of static peer i, which is s.
func (r *resolved) staticPeerSubnet(i, j int, s netip.Prefix) error {
	switch {
	case !s.IsValid() || s.Addr().Is4In6():
		return fmt.Errorf("subnet %v is not a prefix", s)
	case s.Masked() != s:
		return fmt.Errorf("subnet %v has host bits set: did you mean %v?", s, s.Masked())
	case !slices.ContainsFunc(r.Networks, func(n netip.Prefix) bool { return n.Bits() <= s.Bits() && n.Contains(s.Addr()) }):
		return fmt.Errorf("subnet %v does not lie inside the overlay networks %v", s, r.Networks)
	}
	for _, own := range r.Subnets {
		if own.Overlaps(s) {
			return fmt.Errorf("subnet %v overlaps this node's own %v", s, own)
		}
	}
	for k, p := range r.StaticPeers[:i+1] {
		for l, o := range p.Subnets {
			if (k != i || l < j) && o.Overlaps(s) {
				return fmt.Errorf("subnet %v overlaps %v of static peer %s", s, o, p.Name)
			}
		}
	}
	return nil
}

// sparesLease refuses static peers whose subnets overlap this node's lease.
func (r *resolved) sparesLease(own netip.Prefix) error {
	for i := range r.StaticPeers {
		p := &r.StaticPeers[i]
		if slices.ContainsFunc(p.Subnets, own.Overlaps) {
			return fmt.Errorf("static peer %s has %v, which overlaps this node's lease %v: \"overlayd leave\" without the static peer gives it back, or give the peer another subnet", p.Name, p.Subnets, own)
		}
	}
	return nil
}

// reserved are the subnets of all static peers.
func (r *resolved) reserved() (out []netip.Prefix) {
	for i := range r.StaticPeers {
		out = append(out, r.StaticPeers[i].Subnets...)
	}
	return out
}

// unclaimed is what this node never claims: static peers' subnets, and what lies outside
// of its ranges.
func (r *resolved) unclaimed() []netip.Prefix { return slices.Concat(r.reserved(), r.outside) }

// dataPort is the port that this node's encap receives on.
func (r *resolved) dataPort() uint16 {
	if r.Encap == "vxlan" {
		return r.VXLANPort
	}
	return r.UDPPort
}

// neighbors are the static peers as VTEPs.
func (r *resolved) neighbors() (out []neighbor.Peer) {
	if r.Encap != "vxlan" {
		return nil
	}
	for i := range r.StaticPeers {
		p := &r.StaticPeers[i]
		out = append(out, neighbor.Peer{
			ID: p.id(), Sources: []netip.Addr{p.Endpoint.Addr()}, Endpoint: p.Endpoint, Prefixes: p.Subnets, Ask: p.asked(), MAC: p.VTEPMAC,
		})
	}
	return out
}

// staticMTUs remembers what the underlay says of the way to static peers, which
// answer no probes of a size.
type staticMTUs struct {
	mu      sync.Mutex
	heard   map[membership.NodeID]staticMTU
	changed chan struct{} // one slot
}

type staticMTU struct {
	mtu   int
	until time.Time
}

// staticMTUTime is how long it is believed: RFC 1191 section 6.3, and Linux's
// net.ipv4.route.mtu_expires.
const staticMTUTime = 10 * time.Minute

// heardOf takes note that packets of more than mtu bytes do not reach a static peer;
// it reports whether the peer is one.
func (s *staticMTUs) heardOf(id membership.NodeID, mtu int, peers []StaticPeer, now time.Time) bool {
	if !slices.ContainsFunc(peers, func(p StaticPeer) bool { return p.id() == id }) {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.heard == nil {
		s.heard = make(map[membership.NodeID]staticMTU)
	}
	s.heard[id] = staticMTU{max(mtu, minInner4), now.Add(staticMTUTime)}
	select {
	case s.changed <- struct{}{}:
	default:
	}
	return true
}

// to is the inner MTU towards a static peer, of at most most bytes.
func (s *staticMTUs) to(id membership.NodeID, most int, now time.Time) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	h, ok := s.heard[id]
	if ok && !now.Before(h.until) {
		delete(s.heard, id)
		ok = false
	}
	if !ok {
		return most
	}
	return min(h.mtu, most)
}

// contested says, for people, which nodes claim what a static peer has.
func contested(v *membership.View, peers []StaticPeer) (out []string) {
	for _, p := range v.Peers {
		for _, s := range p.Subnets {
			for i := range peers {
				if slices.ContainsFunc(peers[i].Subnets, s.Overlaps) {
					out = append(out, fmt.Sprintf("node %s has leased %v, which static peer %s has on this node: its packets go to the static peer; give all nodes the same static peers", cmp.Or(p.Name, p.ID.String()), s, peers[i].Name))
				}
			}
		}
	}
	return out
}
