package overlayd

import (
	"net/netip"
	"time"
)

// The schemas of the JSON documents that a node prints. A field is added
// under the same version; a changed or removed one makes a new version.
const (
	StatusSchema = "overlayd.status/v1"
	PeersSchema  = "overlayd.peers/v1"
	RoutesSchema = "overlayd.routes/v1"
	DropsSchema  = "overlayd.drops/v1"
)

// The paths by which this node sends to a peer.
const (
	PathNone           = "none"
	PathUserspaceUDP   = "userspace-udp"
	PathUserspaceVXLAN = "userspace-vxlan"
	PathKernelVXLAN    = "kernel-vxlan"
	PathDirect         = "direct"
)

// Status is a node and its peers at one moment. Slices and maps are never nil,
// so that JSON shows [] and {}.
type Status struct {
	Schema string            `json:"schema"` // StatusSchema
	Node   NodeStatus        `json:"node"`
	Peers  []PeerStatus      `json:"peers"` // sorted by name, then id; without this node
	Drops  map[string]uint64 `json:"drops"` // by reason; every reason is listed, also at 0
}

// NodeStatus describes this node.
type NodeStatus struct {
	ID        string         `json:"id"`   // 32 hexadecimal digits
	Name      string         `json:"name"` // human name
	Version   string         `json:"version"`
	Endpoints []string       `json:"endpoints"` // data endpoints "addr:port" of the local encap, IPv4 first
	Subnets   []netip.Prefix `json:"subnets"`   // held now, IPv4 first
	MTU       int            `json:"mtu"`       // inner
	Encap     string         `json:"encap"`     // udp or vxlan
	VNI       uint32         `json:"vni"`
	VTEPMAC   string         `json:"vtep_mac"`
	FastPath  string         `json:"fast_path"`
	Warnings  []string       `json:"warnings"` // what is wrong outside of us, each with its cure
}

// PeerStatus describes a peer and how this node sends to it.
type PeerStatus struct {
	ID         string         `json:"id"`
	Name       string         `json:"name"`
	State      string         `json:"state"`    // alive, suspect, dead, left or static
	Endpoint   string         `json:"endpoint"` // "addr:port" in use; empty if none is known
	Subnets    []netip.Prefix `json:"subnets"`
	Path       string         `json:"path"` // one of the Path constants
	PathReason string         `json:"path_reason"`
	PathSince  time.Time      `json:"path_since"`
	// LastProofMS is the age of the last answered probe in milliseconds, nil
	// (null) if none was ever answered.
	LastProofMS *int64 `json:"last_proof_ms"`
	// RTTUS is the smoothed round-trip time of the probes in microseconds, 0
	// while unknown.
	RTTUS     int64  `json:"rtt_us"`
	MTU       int    `json:"mtu"`
	TxBytes   uint64 `json:"tx_bytes"` // inner bytes, all paths
	RxBytes   uint64 `json:"rx_bytes"`
	TxPackets uint64 `json:"tx_packets"`
	RxPackets uint64 `json:"rx_packets"`
}

// RouteStatus is one entry of the forwarding table.
type RouteStatus struct {
	Prefix   netip.Prefix `json:"prefix"`
	Peer     string       `json:"peer"` // name; this node's own for its own subnets
	PeerID   string       `json:"peer_id"`
	Endpoint string       `json:"endpoint"` // empty for own subnets
	Path     string       `json:"path"`     // "local" for own subnets, else one of the Path constants
	Reason   string       `json:"reason"`
}

// Peers, Routes and Drops are what the commands of these names print.
type (
	// Peers is Status.Peers under a schema of its own.
	Peers struct {
		Schema string       `json:"schema"` // PeersSchema
		Peers  []PeerStatus `json:"peers"`
	}
	// Routes is the forwarding table, sorted by prefix.
	Routes struct {
		Schema string        `json:"schema"` // RoutesSchema
		Routes []RouteStatus `json:"routes"`
	}
	// Drops is Status.Drops under a schema of its own.
	Drops struct {
		Schema string            `json:"schema"` // DropsSchema
		Drops  map[string]uint64 `json:"drops"`
	}
)
