package membership

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
)

// TestLives tells a Member of boots of one node, in every order, and asks whom it
// takes for the peer.
func TestLives(t *testing.T) {
	id := testID(5)
	up := func(boot uint64) any {
		n := memberlist.Node{Name: gossipName(id, boot), Addr: net.IPv4(192, 0, 2, byte(boot)), Port: 7946}
		n.Meta = meta{ports: Ports{UDP: 8285}, addrs: []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, byte(boot)})}, name: "x"}.append(nil)
		return nodeUp{n}
	}
	down := func(boot uint64) any { return nodeDown{memberlist.Node{Name: gossipName(id, boot)}} }
	bye := func(boot uint64) any { return farewell{id, boot} }
	type later time.Duration
	for _, tc := range []struct {
		name  string
		told  []any
		boot  uint64
		state State
	}{
		{"one", []any{up(1)}, 1, StateAlive},
		{"a restart", []any{up(1), up(2)}, 2, StateAlive},
		{"its past is found dead", []any{up(1), up(2), down(1)}, 2, StateAlive},
		{"it dies", []any{up(1), down(1)}, 1, StateDead},
		{"it dies and comes back", []any{up(1), down(1), up(1)}, 1, StateAlive},
		{"the past turns up", []any{up(2), up(1)}, 2, StateAlive},
		{"it says good-bye", []any{up(1), bye(1)}, 1, StateLeft},
		{"its past says good-bye", []any{up(2), bye(1)}, 2, StateAlive},
		{"late news of one that said good-bye", []any{up(1), bye(1), up(1)}, 1, StateLeft},
		{"it says good-bye and dies", []any{up(1), bye(1), down(1), later(time.Minute)}, 1, StateLeft},
		{"a good-bye that was not its own", []any{up(1), bye(1), later(time.Minute)}, 1, StateAlive},
		{"a clone says good-bye: the original counts again", []any{up(1), up(2), bye(2)}, 1, StateAlive},
		{"the same, met in the other order", []any{up(2), up(1), bye(2)}, 1, StateAlive},
		{"a restart of what was killed says good-bye", []any{up(1), up(2), down(1), bye(2)}, 2, StateLeft},
		{"a clone dies", []any{up(1), up(2), down(2)}, 2, StateDead},
		{"a clone is dead for long", []any{up(1), up(2), down(2), later(time.Minute)}, 1, StateAlive},
		{"two clones say good-bye", []any{up(1), up(2), up(3), bye(3), bye(2)}, 1, StateAlive},
	} {
		m := benchMember(t, 0)
		now := simEpoch
		for _, told := range tc.told {
			switch it := told.(type) {
			case nodeUp:
				m.nodeUp(it, now)
			case nodeDown:
				m.nodeDown(it, now)
			case farewell:
				m.saidGoodbye(it, now)
			case later:
				now = now.Add(time.Duration(it))
			}
			m.nextForget = time.Time{}
			m.forget(now)
		}
		p := m.members[id]
		if p == nil || p.boot != tc.boot || p.state != tc.state || p.gossip.Addr() != netip.AddrFrom4([4]byte{192, 0, 2, byte(tc.boot)}) {
			t.Errorf("%s: %+v", tc.name, p)
		}
	}
	t.Run("forgotten", func(t *testing.T) {
		m := benchMember(t, 0)
		m.nodeUp(up(1).(nodeUp), simEpoch)
		m.nodeDown(down(1).(nodeDown), simEpoch)
		for _, after := range []time.Duration{time.Hour, 25 * time.Hour} {
			m.nextForget = time.Time{}
			if m.forget(simEpoch.Add(after)); (m.members[id] != nil) != (after < m.cfg.Settings.LeaseTime) {
				t.Errorf("after %v it is there: %v", after, m.members[id] != nil)
			}
		}
	})
}

// TestNameSet: memberlist is kept from knowing more nodes than we do.
func TestNameSet(t *testing.T) {
	var s nameSet
	for i := range maxMembers {
		if !s.roomFor(gossipName(testID(i), 1)) {
			t.Fatalf("no room for node %d", i)
		}
		s.add(gossipName(testID(i), 1))
	}
	if s.roomFor("another") || !s.roomFor(gossipName(testID(7), 1)) {
		t.Error("not what is there, and nothing else")
	}
	s.remove(gossipName(testID(7), 1))
	if !s.roomFor("another") {
		t.Error("no room after one has gone")
	}
}
