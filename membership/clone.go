package membership

import (
	"errors"
	"fmt"
	"maps"
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
	// twinEvery is how often another life of ours is asked whether it lives, for as
	// long as gossip takes it for alive.
	twinEvery = 3 * time.Second
	maxTwins  = 16
)

// twin is another life of this node: its own past, which is soon found dead, or a
// clone.
type twin struct {
	boot uint64
	at   netip.AddrPort
}

type twinTest struct {
	name    string // the human one, if known
	next    time.Time
	testing bool
	since   time.Time
}

// twinAnswered comes back through the inbox: whether a twin answered to its name.
type twinAnswered struct {
	twin  twin
	alive bool
}

// meetTwin takes note of a node with our identity.
func (m *Member) meetTwin(l life) {
	t := twin{l.boot, l.gossip}
	if l.gossip == m.cfg.Gossip || m.twins[t] != nil || len(m.twins) >= maxTwins {
		return
	}
	m.twins[t] = &twinTest{name: l.meta.name}
}

// twinGone forgets those of a boot that gossip has given up.
func (m *Member) twinGone(boot uint64) {
	maps.DeleteFunc(m.twins, func(t twin, _ *twinTest) bool { return t.boot == boot && boot != m.boot })
}

// testTwins asks those that this node would have to give way to, and returns when
// to call again at the latest. One with a later boot finds out by itself.
func (m *Member) testTwins(now, next time.Time) time.Time {
	for t, test := range m.twins {
		if test.since.IsZero() {
			test.since = now
		}
		if t.boot > m.boot || test.testing {
			continue
		}
		if now.Before(test.next) {
			next = earlier(next, test.next)
			continue
		}
		test.testing, test.next = true, now.Add(twinEvery)
		m.wg.Go(func() {
			// It answers only if the name is its own.
			_, err := m.list.Ping(gossipName(m.id, t.boot), net.UDPAddrFromAddrPort(t.at))
			m.inbox.put(twinAnswered{t, err == nil})
		})
	}
	return next
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func (m *Member) twinAnswered(a twinAnswered, now time.Time) error {
	test := m.twins[a.twin]
	if test == nil {
		return nil
	}
	test.testing = false
	switch {
	case !a.alive && a.twin.boot == m.boot && now.Sub(test.since) > 10*twinEvery:
		delete(m.twins, a.twin) // memberlist tells of its end under our own name only
	case !a.alive:
	case a.twin.boot < m.boot:
		return m.yieldIdentity(a.twin.at, test.name)
	case a.twin.at.Compare(m.cfg.Gossip) < 0:
		m.silent = true // a good-bye would be taken for the other one's
		return m.yieldIdentity(a.twin.at, test.name)
	default:
		// It is the one that yields, and may not know of us: everybody else keeps
		// the first of two that they met.
		m.wg.Go(func() { m.join(a.twin.at) })
	}
	return nil
}

// yieldIdentity leaves this node's identity, and with it its lease, to the node
// at the given address.
func (m *Member) yieldIdentity(at netip.AddrPort, name string) error {
	m.rememberPeersNow() // those of the cluster, which the new identity joins
	peers := append([]rememberedPeer{{m.id, name, at}}, m.remembered...)
	if err := m.disk.newIdentity(peers, time.Now()); err != nil {
		return fmt.Errorf("the live node at %v has the identity %v, as a copy of this machine would, and no new one could be written: %w", at, m.id, err)
	}
	return fmt.Errorf("%w: the live node at %v has the identity %v, as a copy of this machine would: this one has drawn a new identity and looks for a subnet of its own", ErrCloned, at, m.id)
}
