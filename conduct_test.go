package overlayd

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/overlayd/overlayd/internal/forward"
	"github.com/overlayd/overlayd/internal/probe"
	"github.com/overlayd/overlayd/membership"
)

// TestJudge: what gossip says and what probes say make a path.
func TestJudge(t *testing.T) {
	answering, silent := nodeID(t, "a00102030405060708090a0b0c0d0e0f"), nodeID(t, "b00102030405060708090a0b0c0d0e0f")
	n := fabricate(t, answering)
	c := &conductor{n: n, counters: map[membership.NodeID]*forward.PeerCounters{}}
	peer := func(id membership.NodeID, state membership.State, addr string) *membership.Peer {
		return member(t, id.String(), "p", state, addr, "100.96.2.0/24")
	}
	n.parts.prober.SetPeers(c.probed(&membership.View{Peers: []*membership.Peer{
		peer(answering, membership.StateAlive, "192.0.2.1"), peer(silent, membership.StateAlive, "192.0.2.2"),
	}}))
	waitFor(t, "the peer to answer", func() bool {
		s, _ := n.parts.prober.State(answering)
		return s.Reach == probe.Up
	})
	for _, tt := range []struct {
		name   string
		peer   *membership.Peer
		state  membership.State
		path   string
		reason string
	}{
		{"answers", peer(answering, membership.StateAlive, "192.0.2.1"), membership.StateAlive, PathUserspaceUDP, "answered a probe"},
		{"not proven yet", peer(silent, membership.StateAlive, "192.0.2.2"), membership.StateAlive, PathUserspaceUDP, "not proven yet"},
		{"lost by gossip, answers", peer(answering, membership.StateDead, "192.0.2.1"), membership.StateSuspect, PathUserspaceUDP, "answered a probe; gossip does not reach it"},
		{"lost by gossip, not proven", peer(silent, membership.StateDead, "192.0.2.2"), membership.StateDead, PathNone, "given up by gossip; not proven yet"},
		{"left, though it answers", peer(answering, membership.StateLeft, "192.0.2.1"), membership.StateLeft, PathNone, "said good-bye"},
		{"claim only", peer(silent, membership.StateDead, ""), membership.StateDead, PathNone, "known only by its claim"},
		{"other family", peer(silent, membership.StateAlive, "2001:db8::1"), membership.StateAlive, PathNone, "no common address family: it has [2001:db8::1], this node [" + testAddr(1).String() + "]"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			now := time.Now()
			got := c.judge(tt.peer, nil, now)
			if got.state != tt.state || got.path != tt.path || !strings.Contains(got.reason, tt.reason) || got.fwd.Usable != (tt.path != PathNone) || !got.since.Equal(now) {
				t.Errorf("got %v, %s, %q, usable %v, since %v", got.state, got.path, got.reason, got.fwd.Usable, got.since)
			}
			if got.fwd.MTU != 1400 || got.fwd.Counters == nil {
				t.Errorf("got %+v", got.fwd)
			}
			// The counters stay, and the time as long as the path is the same.
			again := c.judge(tt.peer, got, now.Add(time.Second))
			if again.fwd.Counters != got.fwd.Counters || !again.since.Equal(now) {
				t.Errorf("again: %+v", again)
			}
			other := *got
			other.path = "another"
			if again = c.judge(tt.peer, &other, now.Add(time.Second)); !again.since.Equal(now.Add(time.Second)) {
				t.Errorf("after a change of path: since %v", again.since)
			}
		})
	}
	for _, tt := range []struct{ theirs, want int }{{0, 1400}, {1300, 1300}, {9000, 1400}} {
		p := peer(silent, membership.StateAlive, "192.0.2.2")
		p.MTU = tt.theirs
		if got := c.judge(p, nil, time.Now()); got.fwd.MTU != tt.want {
			t.Errorf("a peer with an MTU of %d: %d, want %d", tt.theirs, got.fwd.MTU, tt.want)
		}
	}
}

// TestEndpointOfEachFamily: both sides' first common one, IPv4 before IPv6.
func TestEndpointOfEachFamily(t *testing.T) {
	four, six := "192.0.2.9", "2001:db8::9"
	for _, tt := range []struct{ own, theirs, want string }{
		{four, four, four}, {four, six, ""}, {six, four, ""}, {six, six, six},
		{four + " " + six, four, four}, {four + " " + six, six, six}, {four + " " + six, four + " " + six, four},
		{six, four + " " + six, six}, {four, four + " " + six, four}, {four, "", ""},
	} {
		c := &conductor{n: &Node{cfg: &resolved{}}}
		c.n.parts.endpoints = addrs(strings.Fields(tt.own)...)
		got := c.wayTo(&membership.Peer{Addrs: addrs(strings.Fields(tt.theirs)...), Ports: membership.Ports{UDP: 8285}, Caps: membership.CapUDP}).endpoint
		want := netip.AddrPort{}
		if tt.want != "" {
			want = netip.AddrPortFrom(netip.MustParseAddr(tt.want), 8285)
		}
		if got != want {
			t.Errorf("own %q, theirs %q: %v, want %v", tt.own, tt.theirs, got, want)
		}
	}
}

// TestBeatenSubnet: while this node has not given up a subnet that a peer owns
// by now, there is still a forwarding table, and the subnet is ours in it.
func TestBeatenSubnet(t *testing.T) {
	n := fabricate(t)
	c := &conductor{n: n, counters: map[membership.NodeID]*forward.PeerCounters{}, held: prefixes("100.96.1.0/24")}
	p := member(t, "a00102030405060708090a0b0c0d0e0f", "p", membership.StateAlive, "192.0.2.1", "100.96.1.0/24", "100.96.2.0/24")
	m := c.judge(p, nil, time.Now())
	table, err := forward.NewTable(forward.TableConfig{Networks: n.cfg.Networks, Own: c.held, Peers: []*forward.Peer{m.fwd}})
	if err != nil {
		t.Fatal(err)
	}
	for addr, want := range map[string]forward.Verdict{"100.96.1.7": forward.Own, "100.96.2.7": forward.ToPeer} {
		if _, got := table.Route(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s: %v, want %v", addr, got, want)
		}
	}
	if !slices.Equal(m.Subnets, p.Subnets) || len(p.Subnets) != 2 {
		t.Errorf("the status shows %v", m.Subnets)
	}
}

// TestAnnounce: one event for each coming and going, also of who vanishes.
func TestAnnounce(t *testing.T) {
	up, silent := nodeID(t, "a00102030405060708090a0b0c0d0e0f"), nodeID(t, "b00102030405060708090a0b0c0d0e0f")
	n := fabricate(t, up)
	c := &conductor{n: n, counters: map[membership.NodeID]*forward.PeerCounters{}}
	events := n.Events(t.Context())
	var last *mesh = &mesh{}
	step := func(state membership.State, want string, ids ...membership.NodeID) {
		t.Helper()
		next := &mesh{}
		for _, id := range ids {
			p := member(t, id.String(), "p"+id.String()[:1], state, "192.0.2.1")
			next.peers = append(next.peers, c.judge(p, last.peer(id), time.Now()))
		}
		c.announce(last, next)
		last = next
		got := ""
		for len(events) > 0 {
			e := <-events
			got += fmt.Sprintf("%s %s %s; ", e.Kind, e.Peer, e.Reason)
		}
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	step(membership.StateAlive, "", up, silent) // nobody is proven yet
	v := &membership.View{Peers: []*membership.Peer{member(t, up.String(), "", membership.StateAlive, "192.0.2.1"), member(t, silent.String(), "", membership.StateAlive, "192.0.2.1")}}
	n.parts.prober.SetPeers(c.probed(v))
	waitFor(t, "the peer to answer", func() bool {
		s, _ := n.parts.prober.State(up)
		return s.Reach == probe.Up
	})
	step(membership.StateAlive, "peer-up pa answered a probe; ", up, silent)
	step(membership.StateAlive, "", up, silent)
	step(membership.StateLeft, "peer-down pa said good-bye; ", up, silent)
	step(membership.StateLeft, "", up, silent)
	step(membership.StateAlive, "peer-up pa answered a probe; ", up, silent)
	step(membership.StateAlive, "peer-down pa gone; ", silent)
	step(membership.StateAlive, "") // who was never up does not go
}
