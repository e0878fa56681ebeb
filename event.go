package overlayd

import (
	"net/netip"
	"time"
)

// EventKind says what happened.
type EventKind string

// The kinds of events.
const (
	EventPeerUp    EventKind = "peer-up"    // a peer answers on the data path
	EventPeerDown  EventKind = "peer-down"  // a peer no longer answers on the data path
	EventLeaseHeld EventKind = "lease-held" // Prefix is ours, and in use
	EventLeaseLost EventKind = "lease-lost" // Prefix is not ours any more; Reason says why
	EventWarning   EventKind = "warning"    // Reason says what is wrong and its cure
	EventPath      EventKind = "path"       // a peer's packets take another path now: into the kernel's, or back
)

// Event is something that an embedder may want to know at once.
type Event struct {
	Kind EventKind `json:"kind"`
	Time time.Time `json:"time"`
	// Peer and PeerID are set on peer events.
	Peer   string `json:"peer,omitempty"`
	PeerID string `json:"peer_id,omitempty"`
	// Path is how the peer is sent packets now, on peer events.
	Path string `json:"path,omitempty"`
	// Prefix is set on lease events.
	Prefix netip.Prefix `json:"prefix,omitzero"`
	Reason string       `json:"reason,omitempty"`
	// Missed is how many events this subscriber was too slow for, besides those
	// that an earlier event told of. They were older than this one.
	Missed int `json:"missed,omitempty"`
}
