package membership

import (
	"net/netip"
	"slices"
	"time"
)

// A peer is a NodeID at its highest boot. Gossip tells of lower ones, too: a
// restarted node's past, which is found dead within seconds, and the original of
// a clone, which counts again once the clone has said good-bye.

const (
	// maxEarlier bounds the lower boots that are kept of one node.
	maxEarlier = 4
	// pastAfter is how long a node's highest boot must be gone before a lower one
	// counts that gossip still takes for alive. Failure detection is faster.
	pastAfter = 30 * time.Second
)

func (m *Member) nodeUp(it nodeUp, now time.Time) {
	id, boot, mt, err := m.readNode(&it.node)
	if err != nil {
		return // counted by NotifyAlive
	}
	addr, _ := netip.AddrFromSlice(it.node.Addr)
	l := life{boot, mt, netip.AddrPortFrom(addr.Unmap(), it.node.Port)}
	if id == m.id {
		m.meetTwin(l)
		return
	}
	p, known := m.members[id]
	switch {
	case !known && len(m.members) >= maxMembers:
		m.count(errRecordFull)
		return
	case !known:
		p = &member{}
		m.members[id] = p
	case boot < p.boot:
		p.keepEarlier(l)
		return
	case boot == p.boot && p.state == StateLeft:
		return // late news of somebody who said good-bye
	}
	if known && boot > p.boot && p.state == StateAlive {
		p.keepEarlier(p.life)
	}
	if boot > p.boot || p.state != StateAlive {
		p.since = now
	}
	p.life, p.state, p.down = l, StateAlive, false
	m.touch(id)
	m.peersChanged(now)
}

func (m *Member) nodeDown(it nodeDown, now time.Time) {
	id, boot, err := parseGossipName(it.node.Name)
	if err == nil && id == m.id {
		m.twinGone(boot)
	}
	p := m.members[id]
	if err != nil || p == nil {
		return
	}
	p.earlier = slices.DeleteFunc(p.earlier, func(l life) bool { return l.boot == boot })
	if boot != p.boot {
		return
	}
	p.down = true
	if p.state != StateAlive {
		return
	}
	p.state, p.since = StateDead, now
	m.touch(id)
}

// saidGoodbye takes note of a farewell and reports whether it was news.
func (m *Member) saidGoodbye(f farewell, now time.Time) bool {
	p := m.members[f.Node]
	if p == nil || f.Boot != p.boot || p.state == StateLeft {
		return false
	}
	p.state, p.since = StateLeft, now
	m.fallBack(p, now)
	m.touch(f.Node)
	return true
}

func (p *member) keepEarlier(l life) {
	p.earlier = slices.DeleteFunc(p.earlier, func(e life) bool { return e.boot == l.boot })
	if len(p.earlier) < maxEarlier {
		p.earlier = append(p.earlier, l)
	}
}

// fallBack returns to the highest of a node's earlier boots that gossip takes
// for alive, if there is one.
func (m *Member) fallBack(p *member, now time.Time) {
	if len(p.earlier) == 0 {
		return
	}
	i := 0
	for j, l := range p.earlier {
		if l.boot > p.earlier[i].boot {
			i = j
		}
	}
	p.life = p.earlier[i]
	p.earlier = slices.Delete(p.earlier, i, i+1)
	p.state, p.since, p.down = StateAlive, now, false
	m.peersChanged(now)
}

// forgetEvery is how often members are looked over for those that are gone.
const forgetEvery = 10 * time.Second

// forget drops members that are gone and have nothing left: no claim, and
// nothing that could still be said of their boot.
func (m *Member) forget(now time.Time) {
	if now.Before(m.nextForget) {
		return
	}
	m.nextForget = now.Add(forgetEvery)
	for id, p := range m.members {
		if p.state == StateAlive {
			continue
		}
		if now.Sub(p.since) > pastAfter && p.state == StateLeft && !p.down {
			// It has said good-bye, and goes on: that was not its own word.
			p.state, p.since = StateAlive, now
			m.touch(id)
			continue
		}
		if now.Sub(p.since) > pastAfter && len(p.earlier) > 0 {
			m.fallBack(p, now)
			m.touch(id)
			continue
		}
		if now.Sub(p.since) > m.cfg.Settings.LeaseTime && len(m.store.byOwner[id]) == 0 {
			delete(m.members, id)
			m.touch(id)
			m.peersChanged(now)
		}
	}
}

// touch asks for a new view because of one member.
func (m *Member) touch(id NodeID) {
	m.changes[id] = true
	m.dirty = true
	m.aliveAt = nil
}
