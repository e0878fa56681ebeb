package overlayd

import (
	"net/netip"
	"time"

	"github.com/overlayd/overlayd/membership"
)

// LeasesSchema is the schema of Leases.
const LeasesSchema = "overlayd.leases/v1"

// Leases is every claim on a subnet that this node knows of, sorted by prefix;
// of several claims on one prefix the strongest comes first.
type Leases struct {
	Schema string        `json:"schema"` // LeasesSchema
	Leases []LeaseStatus `json:"leases"`
}

// LeaseStatus is one claim and what becomes of it.
type LeaseStatus struct {
	Prefix  netip.Prefix `json:"prefix"`
	Owner   string       `json:"owner"` // name; empty if no node with this id was ever met
	OwnerID string       `json:"owner_id"`
	// OwnerState is the owner's state as in PeerStatus, "self" for this node,
	// "unknown" if no node with this id was met since the start.
	OwnerState string `json:"owner_state"`
	State      string `json:"state"` // tentative, held or released
	Class      string `json:"class"` // static or dynamic
	// Wins tells whether the claim owns its prefix, Why by what it wins or loses.
	Wins bool   `json:"wins"`
	Why  string `json:"why"`
	// HeldSince is when the claim became held, by its owner's clock; nil (null)
	// if it never did.
	HeldSince *time.Time `json:"held_since"`
	Gen       uint64     `json:"gen"`
	Version   uint64     `json:"version"`
}

// Leases lists the claims that this node knows of.
func (n *Node) Leases() Leases {
	l := Leases{Schema: LeasesSchema, Leases: []LeaseStatus{}}
	if !n.running() {
		return l
	}
	m := n.mesh.Load()
	for _, c := range m.view.Claims() {
		l.Leases = append(l.Leases, n.lease(m, c))
	}
	return l
}

func (n *Node) lease(m *mesh, c membership.ClaimInfo) LeaseStatus {
	s := LeaseStatus{
		Prefix: c.Prefix, OwnerID: c.Owner.String(), OwnerState: "unknown", State: c.State.String(), Class: "dynamic",
		Wins: c.Accepted, Why: c.Why, Gen: c.Gen, Version: c.Version,
	}
	if c.Static {
		s.Class = "static"
	}
	if c.Owner == n.parts.member.ID() {
		s.Owner, s.OwnerState = n.cfg.Name, "self"
	} else if p := m.peer(c.Owner); p != nil {
		s.Owner = p.Name
		if len(p.Addrs) > 0 {
			s.OwnerState = p.state.String()
		}
	}
	if c.Stamp != 0 {
		t := c.Stamp.Time().UTC()
		s.HeldSince = &t
	}
	return s
}
