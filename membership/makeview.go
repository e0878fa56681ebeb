package membership

import (
	"bytes"
	"slices"
)

// makeView publishes a new View. What has not changed since the last one is
// shared with it.
func (m *Member) makeView() {
	m.dirty = false
	m.mu.Lock()
	touched := m.store.takeTouched()
	for id := range m.changes {
		touched[id] = true
	}
	clear(m.changes)
	delete(touched, m.id)
	m.peers = m.updatePeers(touched)
	v := &View{
		Self: m.id, Synced: m.leaser.synced, Networks: m.cfg.Settings.Networks,
		Peers: m.peers, groups: m.store.groups,
	}
	m.mu.Unlock()
	if old := m.view.Load(); old != nil {
		v.Serial = old.Serial + 1
	}
	for _, c := range m.leaser.held() {
		v.Held = append(v.Held, c.Prefix)
	}
	alive := int32(1)
	for _, p := range v.Peers {
		if p.State == StateAlive {
			alive++
		}
	}
	m.numMembers.Store(alive)
	m.view.Store(v)
	select {
	case m.changed <- struct{}{}:
	default:
	}
}

// updatePeers returns the list of peers with those of touched made anew.
func (m *Member) updatePeers(touched map[NodeID]bool) []*Peer {
	if len(touched) == 0 {
		return m.peers
	}
	fresh := make([]*Peer, 0, len(touched))
	for id := range touched {
		if p := m.makePeer(id); p != nil {
			fresh = append(fresh, p)
		}
	}
	byID := func(a, b *Peer) int { return bytes.Compare(a.ID[:], b.ID[:]) }
	slices.SortFunc(fresh, byID)
	out := make([]*Peer, 0, len(m.peers)+len(fresh))
	for _, p := range m.peers {
		if touched[p.ID] {
			continue
		}
		for len(fresh) > 0 && byID(fresh[0], p) < 0 {
			out, fresh = append(out, fresh[0]), fresh[1:]
		}
		out = append(out, p)
	}
	return append(out, fresh...)
}

// makePeer describes a node, nil if it is gone and nothing of it is left.
func (m *Member) makePeer(id NodeID) *Peer {
	// A tentative claim counts, too: its owner uses the subnet only after the
	// claim has had the time to reach every node, so that its first packets
	// are known for what they are. The change to held is still on its way then.
	subnets := m.store.accepted(id)
	p := m.members[id]
	switch {
	case p == nil && len(subnets) == 0:
		return nil
	case p == nil:
		return &Peer{ID: id, Name: m.rememberedName(id), State: StateDead, Subnets: subnets}
	case p.state != StateAlive && len(subnets) == 0:
		return nil
	}
	return &Peer{
		ID: id, Boot: p.boot, Name: p.meta.name, State: p.state, Since: p.since,
		Addrs: p.meta.addrs, Ports: p.meta.ports, VTEPMAC: p.meta.mac,
		Caps: p.meta.caps, VNI: p.meta.vni, MTU: int(p.meta.mtu), Subnets: subnets,
	}
}

func (m *Member) rememberedName(id NodeID) string {
	for _, r := range m.remembered {
		if r.ID == id {
			return r.Name
		}
	}
	return ""
}
