package overlayd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/overlayd/overlayd/tunnel"
)

// meshNode is a node of the test mesh, with its device and what it told.
type meshNode struct {
	*Node
	dev    *tunnel.Memory
	events <-chan Event
	seen   []Event
}

func startMesh(t *testing.T, n int, change func(i int, cfg *Config)) []*meshNode {
	t.Helper()
	var nodes []*meshNode
	for i := 1; i <= n; i++ {
		cfg := testConfig(t, i)
		if i > 1 {
			cfg.Join = []string{testAddr(1).String()}
		}
		if change != nil {
			change(i, &cfg)
		}
		m := &meshNode{Node: newNode(t, cfg), dev: cfg.Tunnel.(*tunnel.Memory)}
		m.events = m.Events(t.Context())
		if err := m.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		nodes = append(nodes, m)
		if i == 1 {
			awaitReady(t, m.Node)
		}
	}
	for _, m := range nodes {
		awaitReady(t, m.Node)
	}
	return nodes
}

// await returns the next event that fits, and keeps it and those before it.
func (m *meshNode) await(t *testing.T, what string, fits func(Event) bool) Event {
	t.Helper()
	for _, e := range m.seen {
		if fits(e) {
			return e
		}
	}
	timeout := time.After(patience)
	for {
		select {
		case e, open := <-m.events:
			if !open {
				t.Fatalf("%s: no event: %s; events: %+v", m.cfg.Name, what, m.seen)
			}
			m.seen = append(m.seen, e)
			if fits(e) {
				return e
			}
		case <-timeout:
			t.Fatalf("%s: waited for the event: %s; events: %+v, status: %+v", m.cfg.Name, what, m.seen, m.Status())
		}
	}
}

func peerEvent(kind EventKind, name string) func(Event) bool {
	return func(e Event) bool { return e.Kind == kind && e.Peer == name }
}

// host is an address in the node's subnet of a family.
func (m *meshNode) host(family int, i byte) netip.Addr {
	p := m.Status().Node.Subnets[family]
	b := p.Addr().AsSlice()
	b[len(b)-1] = i
	a, _ := netip.AddrFromSlice(b)
	return a
}

func (m *meshNode) peerStatus(t *testing.T, name string) PeerStatus {
	t.Helper()
	for _, p := range m.Status().Peers {
		if p.Name == name {
			return p
		}
	}
	t.Fatalf("%s does not know %s: %+v", m.cfg.Name, name, m.Status().Peers)
	return PeerStatus{}
}

// knows waits until m reaches all the others by all their subnets.
func (m *meshNode) knows(t *testing.T, names ...string) {
	t.Helper()
	waitFor(t, m.cfg.Name+" to reach "+strings.Join(names, ", "), func() bool {
		up := 0
		for _, p := range m.Status().Peers {
			if slices.Contains(names, p.Name) && p.Path == PathUserspaceUDP && p.LastProofMS != nil && len(p.Subnets) == 2 {
				up++
			}
		}
		return up == len(names)
	})
}

func TestMesh(t *testing.T) {
	check := nothingLeft(t)
	nodes := startMesh(t, 3, nil)
	names := []string{"node1", "node2", "node3"}
	for i, m := range nodes {
		m.knows(t, slices.Delete(slices.Clone(names), i, i+1)...)
	}

	t.Run("events", func(t *testing.T) {
		for i, m := range nodes {
			for _, p := range m.Status().Node.Subnets {
				m.await(t, "lease held", func(e Event) bool { return e.Kind == EventLeaseHeld && e.Prefix == p })
			}
			for j, name := range names {
				if j != i {
					e := m.await(t, name+" up", peerEvent(EventPeerUp, name))
					if e.PeerID != nodes[j].Status().Node.ID || e.Reason == "" || e.Time.IsZero() || e.Missed != 0 {
						t.Errorf("event %+v", e)
					}
				}
			}
		}
	})

	// Each pair, both ways, both families, with a counted number of packets.
	t.Run("packets", func(t *testing.T) {
		type flow struct{ packets, bytes uint64 }
		sent := map[[2]int]flow{}
		for family := range 2 {
			for i, from := range nodes {
				for j, to := range nodes {
					if i == j {
						continue
					}
					for k := range i + 2*j + 1 {
						p := udpPacket(t, from.host(family, 10), to.host(family, 20), fmt.Sprintf("%d to %d, %d", i, j, k))
						if err := from.dev.Inject(p); err != nil {
							t.Fatal(err)
						}
						if got := receive(t, to.dev); !bytes.Equal(got, p) {
							t.Fatalf("%d to %d: got %x, want %x", i, j, got, p)
						}
						f := sent[[2]int{i, j}]
						sent[[2]int{i, j}] = flow{f.packets + 1, f.bytes + uint64(len(p))}
					}
				}
			}
		}
		for i, m := range nodes {
			for j := range nodes {
				if i == j {
					continue
				}
				// Both ends count when a call has returned, which may be after
				// the receiver has the packet.
				waitFor(t, fmt.Sprintf("node %d to have counted what it and %d sent", i, j), func() bool {
					p := m.peerStatus(t, names[j])
					return p.TxPackets >= sent[[2]int{i, j}].packets && p.RxPackets >= sent[[2]int{j, i}].packets
				})
				p := m.peerStatus(t, names[j])
				tx, rx := flow{p.TxPackets, p.TxBytes}, flow{p.RxPackets, p.RxBytes}
				if tx != sent[[2]int{i, j}] || rx != sent[[2]int{j, i}] {
					t.Errorf("%s says of %s: sent %v, received %v; it was %v and %v", names[i], names[j], tx, rx, sent[[2]int{i, j}], sent[[2]int{j, i}])
				}
			}
		}
	})

	t.Run("full size", func(t *testing.T) {
		for family, overhead := range []int{20 + 8, 40 + 8} {
			src, dst := nodes[0].host(family, 10), nodes[1].host(family, 20)
			p := udpPacket(t, src, dst, strings.Repeat("x", 1400-overhead))
			nodes[0].dev.Inject(p)
			if got := receive(t, nodes[1].dev); !bytes.Equal(got, p) {
				t.Errorf("a packet of %d bytes came as %d", len(p), len(got))
			}
			nodes[0].dev.Inject(udpPacket(t, src, dst, strings.Repeat("x", 1401-overhead)))
			icmp := gopacket.NewPacket(receive(t, nodes[0].dev), ipLayer(family), gopacket.Default)
			switch l := icmp.TransportLayer(); {
			case l != nil:
				t.Errorf("got %v", icmp)
			case family == 0:
				if l, ok := icmp.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4); !ok || l.TypeCode.Type() != layers.ICMPv4TypeDestinationUnreachable || l.TypeCode.Code() != layers.ICMPv4CodeFragmentationNeeded || l.Seq != 1400 {
					t.Errorf("got %v", icmp)
				}
			default:
				if l, ok := icmp.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6); !ok || l.TypeCode.Type() != layers.ICMPv6TypePacketTooBig {
					t.Errorf("got %v", icmp)
				}
			}
		}
	})

	t.Run("status", func(t *testing.T) {
		for i, m := range nodes {
			s := m.Status()
			want := NodeStatus{
				ID: s.Node.ID, Name: names[i], Version: BuildVersion(),
				Endpoints: []string{netip.AddrPortFrom(testAddr(i+1), testUDPPort).String()},
				Subnets:   s.Node.Subnets, MTU: 1400, Encap: "udp", VNI: 1, VTEPMAC: s.Node.VTEPMAC, FastPath: "auto", Warnings: []string{},
			}
			if fmt.Sprintf("%+v", s.Node) != fmt.Sprintf("%+v", want) {
				t.Errorf("got  %+v\nwant %+v", s.Node, want)
			}
			if mac, err := net.ParseMAC(s.Node.VTEPMAC); err != nil || mac[0]&3 != 2 {
				t.Errorf("VTEP MAC %q is no unicast, locally administered one", s.Node.VTEPMAC)
			}
			if len(s.Peers) != 2 || s.Peers[0].Name > s.Peers[1].Name {
				t.Fatalf("peers %+v", s.Peers)
			}
			for _, p := range s.Peers {
				j := slices.Index(names, p.Name)
				other := nodes[j].Status().Node
				if p.ID != other.ID || p.State != "alive" || p.Endpoint != other.Endpoints[0] || fmt.Sprint(p.Subnets) != fmt.Sprint(other.Subnets) ||
					p.Path != PathUserspaceUDP || p.PathReason == "" || p.PathSince.IsZero() || p.PathSince.After(time.Now()) ||
					p.LastProofMS == nil || *p.LastProofMS < 0 || *p.LastProofMS > 10_000 || p.RTTUS <= 0 || p.MTU != 1400 {
					t.Errorf("%s says of %s: %+v, which says of itself: %+v", names[i], p.Name, p, other)
				}
			}
			if got := m.Peers(); got.Schema != PeersSchema || len(got.Peers) != 2 {
				t.Errorf("peers: %+v", got)
			}
			if got := m.Drops(); got.Schema != DropsSchema || len(got.Drops) != len(s.Drops) {
				t.Errorf("drops: %+v", got)
			}
		}
	})

	t.Run("routes", func(t *testing.T) { testRoutes(t, nodes) })
	t.Run("ping", func(t *testing.T) { testPing(t, nodes) })

	t.Run("stop", func(t *testing.T) {
		gone := nodes[2]
		hosts := []netip.Addr{gone.host(0, 20), gone.host(1, 20)}
		within(t, stopTime, "Stop with peers", func() {
			if err := gone.Stop(); err != nil {
				t.Error(err)
			}
		})
		for _, m := range nodes[:2] {
			e := m.await(t, "node3 down", peerEvent(EventPeerDown, "node3"))
			p := m.peerStatus(t, "node3")
			if e.Reason == "" || p.Path != PathNone || p.PathReason != e.Reason || p.State != "left" || len(p.Subnets) != 2 {
				t.Errorf("event %+v, status %+v", e, p)
			}
			for family, dst := range hosts {
				m.dev.Inject(udpPacket(t, m.host(family, 10), dst, "anybody there?"))
				expectUnreachable(t, m, family, m.host(family, 10), dst)
				r, err := m.Lookup(dst)
				if err != nil || r.Peer != "node3" || r.Path != PathNone || r.Reason == "" {
					t.Errorf("route to %v: %+v, %v", dst, r, err)
				}
			}
			if m.Drops().Drops["tx_peer_down"] != 2 {
				t.Errorf("drops: %v", m.Drops().Drops)
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			if _, err := m.Ping(ctx, "node3"); err == nil || !strings.Contains(err.Error(), "node3 cannot be reached: "+e.Reason) {
				t.Errorf("ping of who has left: %v", err)
			}
		}
	})

	for _, m := range nodes {
		if err := m.Stop(); err != nil {
			t.Error(err)
		}
	}
	check()
}

func ipLayer(family int) gopacket.LayerType {
	if family == 0 {
		return layers.LayerTypeIPv4
	}
	return layers.LayerTypeIPv6
}

// expectUnreachable takes an ICMP error about a packet from src to dst from the
// node's device.
func expectUnreachable(t *testing.T, m *meshNode, family int, src, dst netip.Addr) {
	t.Helper()
	b := receive(t, m.dev)
	p := gopacket.NewPacket(b, ipLayer(family), gopacket.Default)
	ok := false
	if family == 0 {
		l, is := p.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4)
		ok = is && l.TypeCode.Type() == layers.ICMPv4TypeDestinationUnreachable
	} else {
		l, is := p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6)
		ok = is && l.TypeCode.Type() == layers.ICMPv6TypeDestinationUnreachable
	}
	flow := p.NetworkLayer().NetworkFlow()
	own := m.Status().Node.Subnets[family].Addr()
	if !ok || flow.Src().String() != own.String() || flow.Dst().String() != src.String() || !bytes.Contains(b, dst.AsSlice()) {
		t.Errorf("instead of an ICMP error from %v to %v about %v: %v", own, src, dst, p)
	}
}

func testRoutes(t *testing.T, nodes []*meshNode) {
	m := nodes[0]
	r := m.Routes()
	if r.Schema != RoutesSchema || len(r.Routes) != 6 {
		t.Fatalf("routes %+v", r)
	}
	if !slices.IsSortedFunc(r.Routes, func(a, b RouteStatus) int { return a.Prefix.Addr().Compare(b.Prefix.Addr()) }) {
		t.Errorf("not sorted: %+v", r.Routes)
	}
	for i, other := range nodes {
		s := other.Status().Node
		for family, p := range s.Subnets {
			want := RouteStatus{Prefix: p, Peer: s.Name, PeerID: s.ID, Endpoint: s.Endpoints[0], Path: PathUserspaceUDP}
			if i == 0 {
				want.Endpoint, want.Path = "", "local"
			}
			got, err := m.Lookup(other.host(family, 77))
			want.Reason = got.Reason
			if err != nil || got != want || got.Reason == "" {
				t.Errorf("lookup: %+v, %v; want %+v", got, err, want)
			}
			if !slices.Contains(r.Routes, want) {
				t.Errorf("%+v is not in %+v", want, r.Routes)
			}
		}
	}
	// IPv4-mapped addresses are IPv4.
	mapped := netip.AddrFrom16(nodes[1].host(0, 77).As16())
	if r, err := m.Lookup(mapped); err != nil || r.Peer != "node2" {
		t.Errorf("lookup of %v: %+v, %v", mapped, r, err)
	}
	free := netip.MustParseAddr("100.96.255.1")
	for _, s := range m.Routes().Routes {
		if s.Prefix.Contains(free) {
			free = netip.MustParseAddr("100.96.254.1")
		}
	}
	for _, tt := range []struct {
		addr netip.Addr
		want string
	}{
		{free, "no node owns it"},
		{netip.MustParseAddr("192.0.2.1"), "outside of the overlay networks"},
		{netip.MustParseAddr("2001:db8::1"), "outside of the overlay networks"},
		{netip.Addr{}, "outside of the overlay networks"},
	} {
		if _, err := m.Lookup(tt.addr); !errors.Is(err, ErrNoRoute) {
			t.Errorf("lookup of %v: %v", tt.addr, err)
		} else {
			oneLine(t, err, tt.want)
		}
	}
}

func testPing(t *testing.T, nodes []*meshNode) {
	m, peer := nodes[0], nodes[1].Status().Node
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for _, target := range []string{"node2", peer.ID, nodes[1].host(0, 1).String(), nodes[1].host(1, 1).String(), peer.Subnets[0].Addr().String()} {
		got, err := m.Ping(ctx, target)
		want := PingResult{Peer: "node2", PeerID: peer.ID, Endpoint: peer.Endpoints[0], Path: PathUserspaceUDP, RTT: got.RTT}
		if err != nil || got != want || got.RTT <= 0 {
			t.Errorf("ping %s: %+v, %v; want %+v", target, got, err, want)
		}
	}
	own := m.Status().Node
	for _, tt := range []struct {
		target string
		is     error
		want   string
	}{
		{"nobody", ErrNoPeer, `"nobody" is neither the name nor the id of a peer, nor an address`},
		{"", ErrNoPeer, "neither"},
		{own.Name, ErrNoPeer, "this node itself"},
		{own.ID, ErrNoPeer, "this node itself"},
		{m.host(0, 9).String(), ErrNoPeer, "this node's own"},
		{"192.0.2.1", ErrNoRoute, "outside of the overlay"},
		{peer.ID[:31], ErrNoPeer, "neither"},
	} {
		_, err := m.Ping(ctx, tt.target)
		if !errors.Is(err, tt.is) {
			t.Errorf("ping %q: %v", tt.target, err)
		}
		oneLine(t, err, tt.want)
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := m.Ping(over, "node2"); !errors.Is(err, context.Canceled) {
		t.Errorf("ping with an ended context: %v", err)
	}
}
