package overlayd

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/overlayd/overlayd/encap"
	"github.com/overlayd/overlayd/internal/forward"
	"github.com/overlayd/overlayd/internal/neighbor"
	"github.com/overlayd/overlayd/internal/probe"
	"github.com/overlayd/overlayd/membership"
)

const fixedID = "000102030405060708090a0b0c0d0e0f"

func nodeID(t testing.TB, s string) membership.NodeID {
	t.Helper()
	id, err := membership.ParseNodeID(s)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// fabricate makes a node with a fixed identity that seems to run: everything
// is there, nothing moves. All of whom answers is given as answering; the
// probes of others are lost.
func fabricate(t testing.TB, answers ...membership.NodeID) *Node {
	t.Helper()
	cfg := testConfig(t, 1)
	state := fmt.Sprintf(`{"id":%q,"boot":1}`, fixedID)
	if err := os.WriteFile(filepath.Join(cfg.StateDir, "node.json"), []byte(state), 0o600); err != nil {
		t.Fatal(err)
	}
	n := newNode(t, cfg)
	for _, step := range []func() error{n.findUnderlay, n.openMember, n.bindSockets, n.openDevice} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	n.parts.prober = probe.New(probe.Config{Self: n.parts.member.ID(), Boot: n.parts.member.Boot(), Send: func(b []byte, _ [16]byte, to netip.AddrPort) error {
		f, err := encap.Parse(b, nil)
		if err != nil || !slices.Contains(answers, membership.NodeID(f.Receiver)) {
			return err
		}
		answer := encap.Frame{Type: encap.Answer, Path: f.Path, Received: f.Size, Sender: f.Receiver, Receiver: f.Sender, Boot: 7, Nonce: f.Nonce}
		if b, err = answer.Append(nil, 0, nil); err == nil {
			n.parts.prober.Handle(b, encap.Userspace, to)
		}
		return err
	}})
	n.parts.neighbors = neighbor.New(neighbor.Config{})
	var err error
	n.parts.engine, err = forward.New(forward.Config{Device: n.parts.device, Codec: n.codec(), Conns: n.parts.conns, MTU: int(n.parts.mtu)})
	if err != nil {
		t.Fatal(err)
	}
	n.parts.carrying.Go(func() { n.parts.prober.Run(n.quit) })
	n.enter(phaseRunning)
	go n.guard()
	return n
}

func member(t testing.TB, id, name string, state membership.State, addr string, subnets ...string) *membership.Peer {
	p := &membership.Peer{ID: nodeID(t, id), Boot: 7, Name: name, State: state, Ports: membership.Ports{UDP: 8285}, Caps: membership.CapUDP, Subnets: prefixes(subnets...)}
	if addr != "" {
		p.Addrs = addrs(addr)
	}
	return p
}

func fabricatedPeer(p *membership.Peer, path, reason string, since time.Time) *meshPeer {
	m := &meshPeer{Peer: p, state: p.State, path: path, reason: reason, since: since}
	m.fwd = &forward.Peer{ID: p.ID, Name: p.Name, Prefixes: p.Subnets, MTU: 1300, Counters: new(forward.PeerCounters), Usable: path != PathNone}
	if len(p.Addrs) > 0 {
		m.fwd.Endpoint = netip.AddrPortFrom(p.Addrs[0], p.Ports.UDP)
	}
	return m
}

// TestStatusOfFabricatedMesh: each field from its source. How it looks in JSON
// is held by the golden documents.
func TestStatusOfFabricatedMesh(t *testing.T) {
	n := fabricate(t)
	since := time.Date(2026, 3, 1, 12, 30, 45, 678e6, time.FixedZone("", 3600))
	bob := fabricatedPeer(member(t, "200102030405060708090a0b0c0d0e0f", "bob", membership.StateAlive, "192.0.2.2", "100.96.2.0/24", "fd96:0:0:2::/64"), PathUserspaceUDP, "answered a probe", since)
	bob.fwd.Counters.TxBytes.Store(1 << 40)
	bob.fwd.Counters.TxPackets.Store(2)
	bob.fwd.Counters.RxBytes.Store(3)
	bob.fwd.Counters.RxPackets.Store(4)
	amy := fabricatedPeer(member(t, "300102030405060708090a0b0c0d0e0f", "amy", membership.StateDead, "2001:db8::3"), PathNone, "given up by gossip", since)
	// The same name: sorted by id. And one that is known by its claim alone.
	amy2 := fabricatedPeer(member(t, "100102030405060708090a0b0c0d0e0f", "amy", membership.StateLeft, "192.0.2.4"), PathNone, "said good-bye", since)
	claim := fabricatedPeer(member(t, "400102030405060708090a0b0c0d0e0f", "", membership.StateDead, "", "100.96.4.0/24"), PathNone, "known only by its claim", since)
	bob.state = membership.StateSuspect // the data path corrects gossip
	held := prefixes("100.96.1.0/24", "fd96:0:0:1::/64")
	n.mesh.Store(&mesh{view: &membership.View{Networks: prefixes("100.96.0.0/16", "fd96::/48")}, held: held, peers: []*meshPeer{amy2, bob, amy, claim}})
	n.notes.conflicts, n.notes.findings = []string{"a conflict"}, []string{"a finding"}
	n.parts.engine.Drops().Add(forward.RxSpoofedSource, 5)

	got := n.Status()
	want := Status{
		Schema: "overlayd.status/v1",
		Node: NodeStatus{
			ID: fixedID, Name: "node1", Version: BuildVersion(), Endpoints: []string{fmt.Sprintf("%v:%d", testAddr(1), testUDPPort)},
			Subnets: held, MTU: 1400, Encap: "udp", VNI: 1, VTEPMAC: got.Node.VTEPMAC, FastPath: "auto", Warnings: []string{"a conflict", "a finding"},
		},
		Peers: []PeerStatus{
			{ID: claim.ID.String(), State: "dead", Subnets: claim.Subnets, Path: "none", PathReason: "known only by its claim", PathSince: since, MTU: 1300},
			{ID: amy2.ID.String(), Name: "amy", State: "left", Endpoint: "192.0.2.4:8285", Subnets: []netip.Prefix{}, Path: "none", PathReason: "said good-bye", PathSince: since, MTU: 1300},
			{ID: amy.ID.String(), Name: "amy", State: "dead", Endpoint: "[2001:db8::3]:8285", Subnets: []netip.Prefix{}, Path: "none", PathReason: "given up by gossip", PathSince: since, MTU: 1300},
			{ID: bob.ID.String(), Name: "bob", State: "suspect", Endpoint: "192.0.2.2:8285", Subnets: bob.Subnets, Path: "userspace-udp", PathReason: "answered a probe", PathSince: since, MTU: 1300,
				TxBytes: 1 << 40, RxBytes: 3, TxPackets: 2, RxPackets: 4},
		},
		Drops: got.Drops,
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if mac := membership.VTEPMAC(nodeID(t, fixedID)); strings.ReplaceAll(got.Node.VTEPMAC, ":", "") != fmt.Sprintf("%x", mac[:]) {
		t.Errorf("VTEP MAC %q, want that of the id: %x", got.Node.VTEPMAC, mac)
	}
	for reason, count := range got.Drops {
		if want := map[string]uint64{"rx_spoofed_source": 5}[reason]; count != want {
			t.Errorf("%s: %d, want %d", reason, count, want)
		}
	}

	// In JSON: times as RFC 3339, null for a proof that never was, no other null.
	b, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{`"path_since":"2026-03-01T12:30:45.678+01:00"`, `"last_proof_ms":null`, `"subnets":[]`, `"subnets":["100.96.1.0/24","fd96:0:0:1::/64"]`} {
		if !strings.Contains(string(b), s) {
			t.Errorf("%s is not in %s", s, b)
		}
	}
	if strings.Contains(strings.ReplaceAll(string(b), `"last_proof_ms":null`, ""), "null") {
		t.Errorf("null in %s", b)
	}
}

// TestStatusOfANodeThatDoesNotRun has every field and every reason to drop.
func TestStatusOfANodeThatDoesNotRun(t *testing.T) {
	n := newNode(t, testConfig(t, 1))
	before := n.Status()
	if err := n.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	awaitReady(t, n)
	running := n.Status()
	n.Stop()
	after := n.Status()

	for _, s := range []Status{before, after} {
		b, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(b), "null") || !strings.Contains(string(b), `"peers":[],`) {
			t.Errorf("in JSON: %s", b)
		}
		if s.Node.Name != "node1" || s.Node.Encap != "udp" || s.Node.FastPath != "auto" || s.Node.VNI != 1 || s.Node.Version == "" || len(s.Node.Subnets) > 0 {
			t.Errorf("got %+v", s.Node)
		}
		if got, want := slices.Sorted(maps.Keys(s.Drops)), slices.Sorted(maps.Keys(running.Drops)); !slices.Equal(got, want) || len(got) < 30 {
			t.Errorf("reasons %q, want those of a running node: %q", got, want)
		}
		for reason, count := range s.Drops {
			if count != 0 {
				t.Errorf("%s: %d", reason, count)
			}
		}
	}
	if r := n.Routes(); r.Schema != RoutesSchema || r.Routes == nil || len(r.Routes) > 0 {
		t.Errorf("routes: %+v", r)
	}
	if _, err := n.Lookup(netip.MustParseAddr("100.96.1.1")); !errors.Is(err, ErrNotStarted) {
		t.Errorf("Lookup: %v", err)
	}
}

// TestFind: whom a person means by a name, when there are several.
func TestFind(t *testing.T) {
	n := fabricate(t)
	since := time.Now()
	one := fabricatedPeer(member(t, "110102030405060708090a0b0c0d0e0f", "one", membership.StateAlive, "192.0.2.1", "100.96.1.0/24"), PathUserspaceUDP, "", since)
	old := fabricatedPeer(member(t, "120102030405060708090a0b0c0d0e0f", "two", membership.StateDead, "192.0.2.2", "100.96.2.0/24"), PathNone, "", since)
	two := fabricatedPeer(member(t, "130102030405060708090a0b0c0d0e0f", "two", membership.StateAlive, "192.0.2.3", "100.96.3.0/24"), PathUserspaceUDP, "", since)
	gone := fabricatedPeer(member(t, "140102030405060708090a0b0c0d0e0f", "gone", membership.StateDead, "192.0.2.4", "100.96.4.0/24"), PathNone, "", since)
	gone2 := fabricatedPeer(member(t, "150102030405060708090a0b0c0d0e0f", "gone", membership.StateLeft, "192.0.2.5", "100.96.5.0/25"), PathNone, "", since)
	twin := fabricatedPeer(member(t, "160102030405060708090a0b0c0d0e0f", "twin", membership.StateAlive, "192.0.2.6", "100.96.5.0/24"), PathUserspaceUDP, "", since)
	twin2 := fabricatedPeer(member(t, "170102030405060708090a0b0c0d0e0f", "twin", membership.StateAlive, "192.0.2.7"), PathUserspaceUDP, "", since)
	nameless := fabricatedPeer(member(t, "180102030405060708090a0b0c0d0e0f", "", membership.StateDead, "", "100.96.8.0/24"), PathNone, "", since)
	n.mesh.Store(&mesh{
		view:  &membership.View{Networks: prefixes("100.96.0.0/16")},
		held:  prefixes("100.96.0.0/24"),
		peers: []*meshPeer{one, old, two, gone, gone2, twin, twin2, nameless},
	})
	for _, tt := range []struct {
		target string
		want   *meshPeer
		refuse []string
	}{
		{"one", one, nil},
		{one.ID.String(), one, nil},
		{"100.96.1.7", one, nil},
		{"two", two, nil}, // the living one
		{old.ID.String(), old, nil},
		{"100.96.2.7", old, nil},
		{"100.96.5.7", gone2, nil}, // the longer prefix
		{"100.96.5.200", twin, nil},
		{"100.96.8.7", nameless, nil},
		{"gone", nil, []string{`several peers are called "gone"`, gone.ID.String(), gone2.ID.String()}},
		{"twin", nil, []string{`several peers are called "twin"`, twin.ID.String(), twin2.ID.String()}},
		{"three", nil, []string{`"three"`, "neither"}},
		{"", nil, []string{"neither"}},
		{"node1", nil, []string{"this node itself"}},
		{fixedID, nil, []string{"this node itself"}},
		{"100.96.0.7", nil, []string{"this node's own"}},
		{"100.96.9.7", nil, []string{"no node owns it"}},
	} {
		got, err := n.find(tt.target)
		if got != tt.want {
			t.Errorf("%q: got %+v, %v", tt.target, got, err)
		}
		if tt.want == nil {
			oneLine(t, err, tt.refuse...)
		} else if err != nil {
			t.Errorf("%q: %v", tt.target, err)
		}
	}
}
