package overlayd

import (
	"context"
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
	// Renewed is when the owner of a held claim said last that it is there, nil
	// (null) for others. After the lease time without a word a claim may be taken
	// over when no other subnet is free.
	Renewed *time.Time `json:"renewed"`
	// Expires is when the record is void and forgotten, if its owner does not
	// renew it before.
	Expires time.Time `json:"expires"`
	Gen     uint64    `json:"gen"`
	Version uint64    `json:"version"`
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

// Evict ends the claim of a node that is gone on its subnet, so that others may
// lease it; the owner keeps it if it is there and objects. It takes some seconds,
// and goes on by itself when ctx ends before. The error wraps ErrEvict when the
// subnet cannot be taken from its owner.
func (n *Node) Evict(ctx context.Context, prefix netip.Prefix) error {
	if !n.running() {
		return ErrNotStarted
	}
	return n.parts.member.Evict(ctx, prefix)
}

func (n *Node) lease(m *mesh, c membership.ClaimInfo) LeaseStatus {
	s := LeaseStatus{
		Prefix: c.Prefix, OwnerID: c.Owner.String(), OwnerState: "unknown", State: c.State.String(), Class: "dynamic",
		Wins: c.Accepted, Why: c.Why, Expires: time.Unix(int64(c.Expiry), 0).UTC(), Gen: c.Gen, Version: c.Version,
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
	if c.State == membership.Held {
		t := c.Renewed(n.cfg.settings.LeaseTime).UTC()
		s.Renewed = &t
	}
	return s
}
