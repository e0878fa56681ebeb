package metrics

import "time"

// MaxPeers is how many peers have series of their own; the others are counted in
// overlayd_peers_without_series, and in all sums over peers.
const MaxPeers = 2000

// Snapshot is what a node has counted, at one moment.
type Snapshot struct {
	Version string
	Node    Node
	Peers   []Peer
	// Drops are by reason.
	Drops   map[string]uint64
	Changes map[Change]uint64
	// Bounds are the upper bounds of the buckets of RoundTrips, rising.
	Bounds     []time.Duration
	RoundTrips []RoundTrips
	// Leases are how many claims there are, by state.
	Leases map[string]int
	Gossip Gossip
}

// Node is the node itself.
type Node struct {
	Name, ID, Encap, FastPath string
	MTU                       int // inner, in bytes
	Ready                     bool
	// Held are how many subnets it holds, of Wanted.
	Held, Wanted int
	Warnings     int
}

// Gossip is how gossip does.
type Gossip struct {
	Synced bool
	// Health is memberlist's score of this node, 0 if all is well.
	Health int
	// Members are how many nodes there are besides this one, by state.
	Members map[string]int
}

// Peer is another node.
type Peer struct {
	Name, ID, State, Path string
	// RTT is the round trip, 0 if it is not known.
	RTT time.Duration
	// Proof is when it answered last, zero if never.
	Proof time.Time
	MTU   int
	// Paths are what went to it and came from it.
	Paths []Counts
}

// Counts is packets and bytes of one kind of path.
type Counts struct {
	Path                                   string
	TxPackets, TxBytes, RxPackets, RxBytes uint64
}

// Change is a change of a peer's path. Reason is one of a few words.
type Change struct{ From, To, Reason string }

// RoundTrips is a histogram of round trips by one kind of path.
type RoundTrips struct {
	Path  string
	Count uint64
	Sum   time.Duration
	// Buckets is, for each of the Snapshot's Bounds, how many took at most as long.
	Buckets []uint64
}
