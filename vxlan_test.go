package overlayd

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/overlayd/overlayd/encap"
	"github.com/overlayd/overlayd/internal/forward"
	"github.com/overlayd/overlayd/membership"
)

const testVXLANPort = 21472

// TestMixedMesh: one node of the udp encap and two of the vxlan encap reach each
// other, each by what the receiver takes.
func TestMixedMesh(t *testing.T) {
	check := nothingLeft(t)
	names := []string{"node1", "node2", "node3"}
	nodes := startMesh(t, 3, func(i int, cfg *Config) {
		cfg.VXLANPort, cfg.VNI = testVXLANPort, 77
		if i > 1 {
			cfg.Encap = "vxlan"
		} else {
			cfg.VNI = 1 // of no meaning to a node of the udp encap
		}
	})
	for i, m := range nodes {
		var want []string
		for j := range nodes {
			switch {
			case j == i:
			case j == 0:
				want = append(want, names[j]+" "+PathUserspaceUDP+" "+netip.AddrPortFrom(testAddr(1), testUDPPort).String())
			default:
				want = append(want, names[j]+" "+PathUserspaceVXLAN+" "+netip.AddrPortFrom(testAddr(j+1), testVXLANPort).String())
			}
		}
		waitFor(t, m.cfg.Name+" to reach the others", func() bool {
			var got []string
			for _, p := range m.Status().Peers {
				if p.LastProofMS != nil && len(p.Subnets) == 2 {
					got = append(got, p.Name+" "+p.Path+" "+p.Endpoint)
				}
			}
			return slices.Equal(got, want)
		})
		s := m.Status().Node
		port := uint16(testVXLANPort)
		if i == 0 {
			port = testUDPPort
		}
		if s.Encap != m.cfg.Encap || s.VNI != m.cfg.VNI || s.Endpoints[0] != netip.AddrPortFrom(testAddr(i+1), port).String() {
			t.Errorf("node: %+v", s)
		}
	}
	for family := range 2 {
		for i, from := range nodes {
			for j, to := range nodes {
				if i == j {
					continue
				}
				p := udpPacket(t, from.host(family, 10), to.host(family, 20), strings.Repeat("x", 100+i))
				if err := from.dev.Inject(p); err != nil {
					t.Fatal(err)
				}
				if got := receive(t, to.dev); !bytes.Equal(got, p) {
					t.Fatalf("%d to %d: got %x, want %x", i, j, got, p)
				}
				if _, err := from.Ping(t.Context(), to.cfg.Name); err != nil {
					t.Error(err)
				}
			}
		}
	}
	for _, m := range nodes {
		for reason, n := range m.Status().Drops {
			// A probe may come before its sender is known.
			if n > 0 && reason != "rx_unknown_source" && !strings.HasPrefix(reason, "control_") && !strings.HasPrefix(reason, "gossip_") {
				t.Errorf("%s: %d dropped as %s", m.cfg.Name, n, reason)
			}
		}
		if err := m.Stop(); err != nil {
			t.Error(err)
		}
	}
	check()
}

// TestFramingFor: what is sent to whom, and why not.
func TestFramingFor(t *testing.T) {
	const both = membership.CapUDP | membership.CapVXLAN
	mac, n := [6]byte{2, 7}, fabricate(t)
	for _, tt := range []struct {
		own          string
		caps         membership.Capability
		vni          uint32
		vxlanPort    uint16
		path, reason string
		port         uint16
		wantVNI      uint32
	}{
		{"udp", membership.CapUDP, 9, 8472, PathUserspaceUDP, "", 8285, 0},
		{"udp", both, 9, 8472, PathUserspaceUDP, "", 8285, 0},
		{"udp", membership.CapVXLAN, 9, 8472, PathUserspaceVXLAN, "", 8472, 9},
		{"udp", membership.CapVXLAN, 9, 0, PathNone, "it does not tell its vxlan port", 0, 0},
		{"udp", membership.CapKernelVXLAN, 9, 8472, PathNone, "it takes neither the udp nor the vxlan encap", 0, 0},
		{"vxlan", membership.CapUDP, 9, 8472, PathUserspaceUDP, "", 8285, 0},
		{"vxlan", both, 5, 8472, PathUserspaceVXLAN, "", 8472, 5},
		{"vxlan", membership.CapVXLAN, 0, 8472, PathUserspaceVXLAN, "", 8472, 5},
		{"vxlan", membership.CapVXLAN, 9, 8472, PathNone, "its VNI is 9, this node's is 5: give both the same --vni", 0, 0},
	} {
		n.cfg.Encap, n.cfg.VNI, n.cfg.VXLANReserved = tt.own, 5, "rfc"
		f, port, path, reason := n.framingFor(&membership.Peer{Caps: tt.caps, VNI: tt.vni, VTEPMAC: mac, Ports: membership.Ports{UDP: 8285, VXLAN: tt.vxlanPort}})
		if port != tt.port || path != tt.path || reason != tt.reason {
			t.Errorf("%+v: port %d, %s, %q", tt, port, path, reason)
		}
		want := framing{}
		switch tt.path {
		case PathUserspaceUDP:
			want.codec = encap.UDP{}
		case PathUserspaceVXLAN:
			want = framing{encap.VXLAN{VNI: tt.wantVNI, MAC: membership.VTEPMAC(n.parts.member.ID()), IgnoreReserved: true}, encap.Dest{MAC: mac}}
		}
		if f != want {
			t.Errorf("%+v: %+v, want %+v", tt, f, want)
		}
	}
}

// vtep is a VXLAN endpoint on a socket of the test, which answers ARP and returns
// packets to their sender. It is made of gopacket alone.
func vtep(t *testing.T, at netip.AddrPort, vni uint32, mac [6]byte, own netip.Addr, answers func() bool) *net.UDPConn {
	t.Helper()
	conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { conn.Close(); <-done })
	go func() {
		defer close(done)
		for b := make([]byte, 2000); ; {
			n, from, err := conn.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			p := gopacket.NewPacket(bytes.Clone(b[:n]), layers.LayerTypeVXLAN, gopacket.Default)
			vx, _ := p.Layer(layers.LayerTypeVXLAN).(*layers.VXLAN)
			eth, _ := p.Layer(layers.LayerTypeEthernet).(*layers.Ethernet)
			if vx == nil || eth == nil || vx.VNI != vni {
				t.Errorf("got %v", p)
				continue
			}
			var answer []gopacket.SerializableLayer
			if a, ok := p.Layer(layers.LayerTypeARP).(*layers.ARP); ok {
				if a.Operation != layers.ARPRequest || !bytes.Equal(a.DstProtAddress, own.AsSlice()) || !answers() {
					continue
				}
				reply := *a
				reply.Operation, reply.SourceHwAddress, reply.SourceProtAddress, reply.DstHwAddress, reply.DstProtAddress = layers.ARPReply, mac[:], own.AsSlice(), a.SourceHwAddress, a.SourceProtAddress
				answer = []gopacket.SerializableLayer{&reply}
			} else {
				ip, udp := p.Layer(layers.LayerTypeIPv4).(*layers.IPv4), p.Layer(layers.LayerTypeUDP).(*layers.UDP)
				back, u := *ip, *udp
				back.SrcIP, back.DstIP, u.SrcPort, u.DstPort = ip.DstIP, ip.SrcIP, udp.DstPort, udp.SrcPort
				_ = u.SetNetworkLayerForChecksum(&back) // serializing fails without it
				answer = []gopacket.SerializableLayer{&back, &u, gopacket.Payload(udp.Payload)}
			}
			out := gopacket.NewSerializeBuffer()
			err = gopacket.SerializeLayers(out, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, append([]gopacket.SerializableLayer{
				&layers.VXLAN{ValidIDFlag: true, VNI: vni}, &layers.Ethernet{SrcMAC: mac[:], DstMAC: eth.SrcMAC, EthernetType: eth.EthernetType}}, answer...)...)
			if err == nil {
				_, err = conn.WriteToUDPAddrPort(out.Bytes(), netip.AddrPortFrom(from.Addr(), testVXLANPort))
			}
			if err != nil {
				t.Error(err)
			}
		}
	}()
	return conn
}

// TestStaticPeer: a VTEP that does not gossip is found by ARP, carries packets, is
// lost when it falls silent, and found again.
func TestStaticPeer(t *testing.T) {
	check := nothingLeft(t)
	var silent = make(chan bool, 1)
	silent <- false
	answers := func() bool { s := <-silent; silent <- s; return !s }
	at := netip.AddrPortFrom(testAddr(9), 4789)
	conn := vtep(t, at, 1, [6]byte{2, 9, 9, 9, 9, 9}, netip.MustParseAddr("100.96.9.0"), answers)
	m := startMesh(t, 1, func(_ int, cfg *Config) {
		cfg.Encap, cfg.VXLANPort = "vxlan", testVXLANPort
		cfg.StaticPeers = []StaticPeer{{Name: "switch", Endpoint: at, Subnets: prefixes("100.96.9.0/24")}}
	})[0]
	m.await(t, "switch up", peerEvent(EventPeerUp, "switch"))
	p := m.peerStatus(t, "switch")
	if p.State != "static" || p.Path != PathUserspaceVXLAN || p.Endpoint != at.String() || p.LastProofMS == nil || len(p.ID) != 32 ||
		p.PathReason != "its VTEP 100.96.9.0 answers ARP" || p.MTU != 1400 || !slices.Equal(p.Subnets, prefixes("100.96.9.0/24")) {
		t.Errorf("%+v", p)
	}
	q := udpPacket(t, m.host(0, 10), netip.MustParseAddr("100.96.9.20"), "there and back")
	if err := m.dev.Inject(q); err != nil {
		t.Fatal(err)
	}
	back := gopacket.NewPacket(receive(t, m.dev), layers.LayerTypeIPv4, gopacket.Default)
	if app := back.ApplicationLayer(); app == nil || string(app.Payload()) != "there and back" {
		t.Errorf("came back: %v", back)
	}
	if r, err := m.Lookup(netip.MustParseAddr("100.96.9.77")); err != nil || r.Peer != "switch" || r.Path != PathUserspaceVXLAN {
		t.Errorf("%+v, %v", r, err)
	}
	if res, err := m.Ping(t.Context(), "switch"); err != nil || res.RTT <= 0 || res.Path != PathUserspaceVXLAN {
		t.Errorf("ping: %+v, %v", res, err)
	}
	<-silent
	silent <- true
	within(t, 15*time.Second, "noticing its silence", func() { m.await(t, "switch down", peerEvent(EventPeerDown, "switch")) })
	if p := m.peerStatus(t, "switch"); p.Path != PathNone || p.PathReason != "its VTEP 100.96.9.0 no longer answers ARP" {
		t.Errorf("%+v", p)
	}
	m.dev.Inject(q)
	if icmp := gopacket.NewPacket(receive(t, m.dev), layers.LayerTypeIPv4, gopacket.Default).Layer(layers.LayerTypeICMPv4); icmp == nil {
		t.Error("no ICMP error about a peer that is gone")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := m.Ping(ctx, "switch"); err == nil || !strings.Contains(err.Error(), "ask for switch's VTEP at "+at.String()) {
		t.Errorf("ping: %v", err)
	}
	<-silent
	silent <- false
	waitFor(t, "the switch to be back", func() bool { return m.peerStatus(t, "switch").Path == PathUserspaceVXLAN })
	if err := m.Stop(); err != nil {
		t.Error(err)
	}
	conn.Close()
	check()
}

// TestStaticPeerRefused: what can never work is said in one line.
func TestStaticPeerRefused(t *testing.T) {
	good := func() StaticPeer {
		return StaticPeer{Name: "switch", Endpoint: netip.MustParseAddrPort("192.0.2.7:4789"), Subnets: prefixes("100.96.9.0/24", "fd96:0:0:9::/64")}
	}
	base := testConfig(t, 1)
	base.Encap = "vxlan"
	base.StaticPeers = []StaticPeer{good()}
	if _, err := New(base); err != nil {
		t.Fatal(err)
	}
	base.StaticPeers[0].Endpoint = netip.AddrPortFrom(base.StaticPeers[0].Endpoint.Addr(), 0)
	if r, err := resolve(base); err != nil || r.StaticPeers[0].Endpoint.Port() != DefaultVXLANPort || base.StaticPeers[0].Endpoint.Port() != 0 {
		t.Errorf("%v, %v", r.StaticPeers[0].Endpoint, err)
	}
	for want, change := range map[string]func(*Config, *StaticPeer){
		"static peer \"a b\": the node name":                                    func(_ *Config, p *StaticPeer) { p.Name = "a b" },
		"static peer node1: that is this node's own name":                       func(_ *Config, p *StaticPeer) { p.Name = "node1" },
		"endpoint 0.0.0.0 is not a unicast address":                             func(_ *Config, p *StaticPeer) { p.Endpoint = netip.MustParseAddrPort("0.0.0.0:1") },
		"endpoint fe80::7 is not a unicast address":                             func(_ *Config, p *StaticPeer) { p.Endpoint = netip.MustParseAddrPort("[fe80::7]:1") },
		"endpoint 255.255.255.255 is not a unicast address":                     func(_ *Config, p *StaticPeer) { p.Endpoint = netip.MustParseAddrPort("255.255.255.255:1") },
		"is this node's own address":                                            func(c *Config, p *StaticPeer) { p.Endpoint = netip.AddrPortFrom(c.Advertise[0], 1) },
		"endpoint 100.96.3.3 lies inside the overlay network":                   func(_ *Config, p *StaticPeer) { p.Endpoint = netip.MustParseAddrPort("100.96.3.3:1") },
		"no subnet is given":                                                    func(_ *Config, p *StaticPeer) { p.Subnets = nil },
		"subnet 100.96.9.1/24 has host bits set: did you mean 100.96.9.0/24?":   func(_ *Config, p *StaticPeer) { p.Subnets[0] = netip.MustParsePrefix("100.96.9.1/24") },
		"subnet 100.95.9.0/24 does not lie inside the overlay networks":         func(_ *Config, p *StaticPeer) { p.Subnets[0] = netip.MustParsePrefix("100.95.9.0/24") },
		"subnet 100.96.9.0/24 overlaps this node's own 100.96.9.0/24":           func(c *Config, _ *StaticPeer) { c.Subnets = prefixes("100.96.9.0/24") },
		"subnet fd96:0:0:9::/64 overlaps fd96:0:0:9::/64 of static peer switch": func(_ *Config, p *StaticPeer) { p.Subnets = append(p.Subnets, p.Subnets[1]) },
		"static peer other: subnet 100.96.9.0/24 overlaps 100.96.9.0/24 of static ": func(c *Config, p *StaticPeer) {
			o := good()
			o.Name = "other"
			c.StaticPeers = append(c.StaticPeers, o)
		},
		"two static peers are called switch": func(c *Config, p *StaticPeer) {
			o := good()
			o.Subnets = prefixes("100.96.10.0/24")
			c.StaticPeers = append(c.StaticPeers, o)
		},
		"VTEP MAC 010000000000 is a group's":                        func(_ *Config, p *StaticPeer) { p.VTEPMAC = [6]byte{1} },
		"it has a VTEP MAC, but the encap here is udp: use --encap": func(c *Config, p *StaticPeer) { c.Encap, p.VTEPMAC = "udp", [6]byte{2} },
	} {
		cfg := base
		cfg.StaticPeers = []StaticPeer{good()}
		change(&cfg, &cfg.StaticPeers[0])
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("want %q, got %v", want, err)
		}
	}
}

// TestJudgeStatic: how a static peer is reached, and why.
func TestJudgeStatic(t *testing.T) {
	n := fabricate(t)
	n.parts.statics.changed = make(chan struct{}, 1)
	c := &conductor{n: n, counters: map[membership.NodeID]*forward.PeerCounters{}}
	p := StaticPeer{Name: "switch", Endpoint: netip.MustParseAddrPort("192.0.2.7:8285"), Subnets: prefixes("100.96.9.0/24")}
	now := time.Now()
	if m := c.judgeStatic(&p, nil, now); m.path != PathUserspaceUDP || !m.fwd.Usable || m.fwd.Endpoint != p.Endpoint || m.state != membership.StateStatic {
		t.Errorf("udp: %+v", m)
	}
	// What the underlay says of the size of packets holds for a while.
	n.cfg.StaticPeers = []StaticPeer{p}
	for _, tt := range []struct{ heard, want int }{{1300, 1300}, {100, 576}, {9000, 1400}} {
		n.sizeHint(p.id(), tt.heard)
		if m := c.judgeStatic(&p, nil, now); m.fwd.MTU != tt.want {
			t.Errorf("heard %d: MTU %d, want %d", tt.heard, m.fwd.MTU, tt.want)
		}
	}
	n.sizeHint(p.id(), 1300)
	if m := c.judgeStatic(&p, nil, now.Add(staticMTUTime+time.Minute)); m.fwd.MTU != 1400 {
		t.Errorf("later: MTU %d", m.fwd.MTU)
	}
	six := p
	six.Endpoint = netip.MustParseAddrPort("[2001:db8::7]:8285")
	if m := c.judgeStatic(&six, nil, now); m.path != PathNone || m.fwd.Usable || m.fwd.Endpoint.IsValid() || !strings.HasPrefix(m.reason, "no common address family") {
		t.Errorf("the other family: %+v", m)
	}
	n.cfg.Encap = "vxlan"
	n.parts.neighbors.Set(nil, n.cfg.neighbors())
	if m := c.judgeStatic(&p, nil, now); m.path != PathNone || m.fwd.Usable || m.reason != "this node has no address yet from which to ask for 100.96.9.0" {
		t.Errorf("unknown: %+v", m)
	}
	given := p
	given.VTEPMAC = [6]byte{2, 7}
	n.cfg.StaticPeers = []StaticPeer{given}
	n.parts.neighbors.Set(nil, n.cfg.neighbors())
	if m := c.judgeStatic(&given, nil, now); m.path != PathUserspaceVXLAN || m.fwd.Dest.MAC != given.VTEPMAC {
		t.Errorf("given: %+v", m)
	}
}

// TestContested: a node that has leased what a static peer has is named, and gets
// nothing of it.
func TestContested(t *testing.T) {
	n := fabricate(t)
	n.cfg.StaticPeers = []StaticPeer{{Name: "switch", Endpoint: netip.MustParseAddrPort("192.0.2.7:8285"), Subnets: prefixes("100.96.9.0/24")}}
	bob := member(t, "200102030405060708090a0b0c0d0e0f", "bob", membership.StateAlive, "192.0.2.2", "100.96.9.0/24", "fd96:0:0:2::/64")
	got := contested(&membership.View{Peers: []*membership.Peer{bob}}, n.cfg.StaticPeers)
	want := []string{"node bob has leased 100.96.9.0/24, which static peer switch has on this node: its packets go to the static peer; give all nodes the same static peers"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if fresh := n.notes.setContested(got); !slices.Equal(fresh, want) || !slices.Equal(n.notes.all(), want) {
		t.Errorf("%q, %q", fresh, n.notes.all())
	}
	if fresh := n.notes.setContested(got); len(fresh) > 0 {
		t.Errorf("again: %q", fresh)
	}
	if n.notes.setContested(nil); len(n.notes.all()) > 0 {
		t.Errorf("%q", n.notes.all())
	}
	nameless := *bob
	nameless.Name = ""
	if got := contested(&membership.View{Peers: []*membership.Peer{&nameless}}, n.cfg.StaticPeers); len(got) != 1 || !strings.HasPrefix(got[0], "node 200102030405060708090a0b0c0d0e0f has leased") {
		t.Errorf("%q", got)
	}
	c := &conductor{n: n, counters: map[membership.NodeID]*forward.PeerCounters{}}
	if m := c.judge(bob, nil, time.Now()); !slices.Equal(m.fwd.Prefixes, prefixes("fd96:0:0:2::/64")) {
		t.Errorf("bob has %v", m.fwd.Prefixes)
	}
}

// TestFramingsByNode: of two nodes that gossip knows at one address, since a host has
// lost its identity, each keeps its own framing, whichever identity sorts first.
func TestFramingsByNode(t *testing.T) {
	n := fabricate(t)
	n.cfg.Encap = "vxlan"
	c := &conductor{n: n}
	for _, ids := range [][2]string{{"200102030405060708090a0b0c0d0e0f", "f00102030405060708090a0b0c0d0e0f"}, {"f00102030405060708090a0b0c0d0e0f", "200102030405060708090a0b0c0d0e0f"}} {
		var peers []*membership.Peer
		for i, id := range ids {
			p := member(t, id, "host", membership.StateAlive, "192.0.2.2")
			p.Caps, p.Ports.VXLAN, p.VTEPMAC = membership.CapVXLAN, 8472, membership.VTEPMAC(p.ID)
			if i == 0 {
				p.State = membership.StateDead
			}
			peers = append(peers, p)
		}
		c.setFramings(&membership.View{Peers: peers})
		for _, p := range peers {
			if f := n.framing(p.ID); f.dest.MAC != p.VTEPMAC || f.codec.Name() != "vxlan" {
				t.Errorf("%v: %+v", p.ID, f)
			}
		}
	}
	if f := n.framing(membership.NodeID{7}); f.codec != n.codec() || f.dest != (encap.Dest{}) {
		t.Errorf("nobody's: %+v", f)
	}
}

// TestStaticPeerAndLease: a static peer with what this node has leased is refused,
// unless that is given up for a static subnet.
func TestStaticPeerAndLease(t *testing.T) {
	cfg := testConfig(t, 1)
	n := startNode(t, cfg)
	awaitReady(t, n)
	lease := n.Status().Node.Subnets[0]
	if err := n.Stop(); err != nil {
		t.Fatal(err)
	}
	cfg.StaticPeers = []StaticPeer{{Name: "switch", Endpoint: netip.AddrPortFrom(testAddr(9), 1), Subnets: []netip.Prefix{lease}}}
	cfg.Tunnel = newDevice()
	n = newNode(t, cfg)
	if err := n.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "static peer switch has ["+lease.String()+"], which overlaps this node's lease") {
		t.Errorf("started: %v", err)
	}
	cfg.Subnets = prefixes("100.96.77.0/24")
	if lease == cfg.Subnets[0] {
		cfg.Subnets = prefixes("100.96.78.0/24")
	}
	cfg.Tunnel = newDevice()
	n = startNode(t, cfg)
	awaitReady(t, n)
	if got := n.Status().Node.Subnets[0]; got != cfg.Subnets[0] {
		t.Errorf("it has %v", got)
	}
}
