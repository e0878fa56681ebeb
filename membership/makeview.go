package membership

import (
	"bytes"
	"net/netip"
	"slices"
)

// makeView publishes a new View.
func (m *Member) makeView() {
	m.dirty = false
	m.mu.Lock()
	claims := m.store.owners()
	m.mu.Unlock()
	v := &View{
		Self: m.id, Synced: m.leaser.synced, Networks: m.cfg.Settings.Networks,
		Claims: claims,
	}
	if old := m.view.Load(); old != nil {
		v.Serial = old.Serial + 1
	}
	for _, c := range m.leaser.held() {
		v.Held = append(v.Held, c.Prefix)
	}
	subnets := make(map[NodeID][]netip.Prefix)
	for _, c := range claims { // sorted by prefix: IPv4 first
		// A tentative claim counts, too: its owner uses the subnet only after the
		// claim has had the time to reach every node, so that its first packets
		// are known for what they are. The change to held is still on its way then.
		if c.Accepted && c.Owner != m.id {
			subnets[c.Owner] = append(subnets[c.Owner], c.Prefix)
		}
	}
	alive := int32(1)
	for id, p := range m.members {
		if p.state == StateAlive {
			alive++
		} else if len(subnets[id]) == 0 {
			continue // gone, and nothing of it is left
		}
		v.Peers = append(v.Peers, &Peer{
			ID: id, Boot: p.boot, Name: p.meta.name, State: p.state, Since: p.since,
			Addrs: p.meta.addrs, Ports: p.meta.ports, VTEPMAC: p.meta.mac,
			Caps: p.meta.caps, MTU: int(p.meta.mtu), Subnets: subnets[id],
		})
	}
	m.numMembers.Store(alive)
	for id, s := range subnets {
		if _, known := m.members[id]; !known {
			v.Peers = append(v.Peers, &Peer{ID: id, Name: m.rememberedName(id), State: StateDead, Subnets: s})
		}
	}
	slices.SortFunc(v.Peers, func(a, b *Peer) int { return bytes.Compare(a.ID[:], b.ID[:]) })
	m.view.Store(v)
	select {
	case m.changed <- struct{}{}:
	default:
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
