package membership

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// Two machines made from one image have one identity. Of two nodes with one
// NodeID alive at two addresses the one with the later boot takes another; of
// equal boots, that at the higher address.

// ErrCloned ends a Member that found another live node with its identity. It has
// drawn a new one, which the next New uses.
var ErrCloned = errors.New("identity cloned")

const (
	cloneTries = 3
	cloneWait  = time.Second // between tries
)

// cloneTested comes back through the inbox: whether somebody answered to the
// name of an earlier boot of ours at another address.
type cloneTested struct {
	life  life
	alive bool
}

// meetSelf meets a node with our identity. One with a later boot finds out by
// itself; one with an earlier boot may be our own past at an address that we
// have no more, so it is asked.
func (m *Member) meetSelf(l life) {
	if l.boot >= m.boot || l.gossip == m.cfg.Gossip || m.cloneTest {
		return
	}
	m.cloneTest = true
	m.wg.Go(func() {
		alive := false
		for try := 0; try < cloneTries && !alive; try++ {
			if try > 0 {
				select {
				case <-time.After(cloneWait):
				case <-m.ctx.Done():
					return
				}
			}
			// It answers only if the name is its own.
			_, err := m.list.Ping(gossipName(m.id, l.boot), net.UDPAddrFromAddrPort(l.gossip))
			alive = err == nil
		}
		m.inbox.put(cloneTested{l, alive})
	})
}

func (m *Member) cloneTested(t cloneTested) error {
	m.cloneTest = false
	if !t.alive {
		return nil
	}
	return m.yieldIdentity(t.life.gossip, t.life.meta.name)
}

// meetConflict: a node with our identity has even the same boot.
func (m *Member) meetConflict(c conflict) error {
	switch {
	case c.addr == m.cfg.Gossip:
		return nil
	case c.addr.Compare(m.cfg.Gossip) > 0:
		// It is the one that yields, and may not know of us: everybody else keeps
		// the first of two that they met.
		if !m.cloneTest {
			m.cloneTest = true
			m.wg.Go(func() {
				m.join(c.addr)
				m.inbox.put(cloneTested{})
			})
		}
		return nil
	}
	m.silent = true // a good-bye would be taken for the other one's
	return m.yieldIdentity(c.addr, "")
}

// yieldIdentity leaves this node's identity, and with it its lease, to the node
// at the given address.
func (m *Member) yieldIdentity(at netip.AddrPort, name string) error {
	m.rememberPeersNow() // those of the cluster, which the new identity joins
	peers := append([]rememberedPeer{{m.id, name, at}}, m.remembered...)
	if err := m.disk.newIdentity(peers, time.Now()); err != nil {
		return fmt.Errorf("%w: the live node at %v has the identity %v, and no new one could be written: %w", ErrCloned, at, m.id, err)
	}
	return fmt.Errorf("%w: the live node at %v has the identity %v, as a copy of this machine would: this one has drawn a new identity and looks for a subnet of its own", ErrCloned, at, m.id)
}
