package membership

import (
	"net/netip"
	"time"
)

// State is what gossip says of a peer.
type State uint8

// The states of a peer. Names are those of the status output.
const (
	StateAlive   State = iota // answers gossip
	StateSuspect              // does not answer gossip now, not yet given up
	StateDead                 // given up by gossip; its claim stays
	StateLeft                 // said good-bye
	StateStatic               // configured by hand, speaks no gossip
)

// String returns the name that status uses.
func (s State) String() string {
	switch s {
	case StateAlive:
		return "alive"
	case StateSuspect:
		return "suspect"
	case StateDead:
		return "dead"
	case StateLeft:
		return "left"
	case StateStatic:
		return "static"
	}
	return "unknown"
}

// Ports are the outer UDP ports of a node's data plane.
type Ports struct {
	UDP         uint16 // the udp encap, 8285 unless told otherwise
	VXLAN       uint16 // the userspace vxlan encap, 8472
	KernelVXLAN uint16 // the kernel's VXLAN device, 4789
}

// Capability is a set of things that a node's data plane understands.
type Capability uint16

// The capabilities. Unknown bits of a newer node are kept and ignored.
const (
	CapUDP         Capability = 1 << iota // accepts the udp encap
	CapVXLAN                              // accepts the userspace vxlan encap
	CapKernelVXLAN                        // accepts kernel VXLAN
	CapDirect                             // accepts plain routing
)

// Peer is another node as gossip describes it. A Peer in a View is shared:
// nobody changes it.
type Peer struct {
	ID   NodeID
	Boot uint64
	Name string
	// State is gossip's opinion. It decides nothing about ownership, and the
	// data path has its own opinion of reachability.
	State State
	// Since is when State was last seen to change, by this node's clock.
	Since time.Time
	// Addrs are the underlay addresses of the data endpoints: at most one
	// IPv4 and one IPv6 address, in that order. They are checked: unicast,
	// outside the overlay networks.
	Addrs   []netip.Addr
	Ports   Ports
	VTEPMAC [6]byte
	Caps    Capability
	// VNI is the VXLAN network that it is in, 0 if it does not say.
	VNI uint32
	// MTU is the inner MTU that the peer accepts, per family of its underlay.
	MTU int
	// Subnets are what the peer owns by the records known here, IPv4 first.
	Subnets []netip.Prefix
}

// View is an immutable picture of the cluster. Two pointers to different
// Views may be compared by Serial: the later one has the higher number.
type View struct {
	Serial uint64
	// Self is this node.
	Self NodeID
	// Synced tells whether the node has merged in full with the cluster.
	Synced bool
	// Networks are the overlay networks, IPv4 first.
	Networks []netip.Prefix
	// Held are the subnets that this node holds and uses, IPv4 first. Empty
	// until the lease is held.
	Held []netip.Prefix
	// Peers are all other nodes, one entry per NodeID, sorted by NodeID. Nodes
	// that are known only as owners of a claim are listed with StateDead and
	// no Addrs.
	Peers []*Peer
	// groups are the claims by prefix.
	groups []*group
}

// Claims is every claim known, sorted by prefix and then rank: the first of each
// prefix is the one that counts, if Accepted says so. The slice is the caller's.
func (v *View) Claims() []ClaimInfo { return flatten(v.groups) }

// CountClaims is how many claims are known, by state; those that are 0 may be left out.
func (v *View) CountClaims() map[ClaimState]int {
	n := map[ClaimState]int{}
	for _, g := range v.groups {
		for i := range g.claims {
			n[g.claims[i].State]++
		}
	}
	return n
}

// ClaimInfo is one claim as the owner function judges it.
type ClaimInfo struct {
	Claim
	// Accepted tells whether the claim owns its prefix.
	Accepted bool
	// Ended tells that a later generation of claims on the prefix was in use and
	// given up, so that this one is over.
	Ended bool
	// Why says in a few words what the claim wins or loses by.
	Why string
}
