package forward

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestRoute(t *testing.T) {
	tb := mustTable(t, testTableConfig())
	for _, tt := range []struct {
		dst  string
		peer string
		want Verdict
	}{
		{"100.96.1.7", "", Own},
		{"100.96.2.0", "node2", ToPeer},
		{"100.96.2.255", "node2", ToPeer},
		{"100.96.4.1", "node4", ToPeer},
		{"100.96.99.1", "", Unassigned},
		{"100.97.0.1", "", Outside},
		{"192.0.2.2", "", Outside},
		{"fd96:0:0:1::9", "", Own},
		{"fd96:0:0:2::9", "node2", ToPeer},
		{"fd96:0:0:9::9", "", Unassigned},
		{"fd97::1", "", Outside},
	} {
		p, v := tb.Route(addr(tt.dst))
		name := ""
		if p != nil {
			name = p.Name
		}
		if v != tt.want || name != tt.peer {
			t.Errorf("Route(%s) = %q, %v; want %q, %v", tt.dst, name, v, tt.peer, tt.want)
		}
	}
}

// TestAccept is the receive rule, case by case.
func TestAccept(t *testing.T) {
	tb := mustTable(t, testTableConfig())
	const ours4, ours6 = "100.96.1.9", "fd96:0:0:1::9"
	for _, tt := range []struct {
		name            string
		outer, src, dst string
		peer            string
		want            Reason
	}{
		{"peer's subnet", "192.0.2.2", "100.96.2.9", ours4, "node2", None},
		{"peer's subnet, IPv6 in IPv4", "192.0.2.2", "fd96:0:0:2::9", ours6, "node2", None},
		{"peer's subnet, IPv4 in IPv6", "2001:db8::2", "100.96.2.9", ours4, "node2", None},
		{"peer's subnet, IPv6 in IPv6", "2001:db8::2", "fd96:0:0:2::9", ours6, "node2", None},
		{"peer whose next hop is down", "2001:db8::5", "100.96.5.1", ours4, "node5", None},

		{"first peer of a shared address", "192.0.2.3", "100.96.3.1", ours4, "node3", None},
		{"second peer of a shared address", "192.0.2.3", "100.96.4.1", ours4, "node4", None},
		{"peer elsewhere than the shared address", "192.0.2.3", "100.96.2.1", ours4, "", RxSpoofedSource},

		{"stranger", "192.0.2.99", "100.96.2.9", ours4, "", RxUnknownSource},
		{"stranger, IPv6", "2001:db8::99", "fd96:0:0:2::9", ours6, "", RxUnknownSource},
		{"stranger with allowed source", "192.0.2.99", "198.51.100.1", ours4, "", RxUnknownSource},

		{"another peer's subnet", "192.0.2.2", "100.96.3.9", ours4, "", RxSpoofedSource},
		{"another peer's subnet, IPv6", "2001:db8::2", "fd96:0:0:5::9", ours6, "", RxSpoofedSource},
		{"our own subnet as source", "192.0.2.2", "100.96.1.5", ours4, "", RxSpoofedSource},
		{"nobody's overlay address", "192.0.2.2", "100.96.77.1", ours4, "", RxSpoofedSource},
		{"nobody's overlay address, IPv6", "2001:db8::2", "fd96:0:0:77::1", ours6, "", RxSpoofedSource},
		{"an owner that never sends", "192.0.2.2", "100.96.6.1", ours4, "", RxSpoofedSource},
		{"source from the internet", "192.0.2.2", "203.0.113.1", ours4, "", RxSpoofedSource},

		{"peer's underlay address", "192.0.2.2", "192.0.2.2", ours4, "node2", None},
		{"peer's other underlay address", "192.0.2.2", "2001:db8::2", ours6, "node2", None},
		{"another peer's underlay address", "192.0.2.2", "192.0.2.3", ours4, "", RxSpoofedSource},

		{"allowed source", "192.0.2.2", "198.51.100.7", ours4, "node2", None},
		{"allowed source, IPv6", "2001:db8::7", "2001:db8:1::7", ours6, "node7", None},
		{"allowed source in another's overlay subnet", "192.0.2.2", "100.96.4.4", ours4, "", RxSpoofedSource},
		{"allowed source, nobody's overlay address", "192.0.2.2", "100.96.78.4", ours4, "", RxSpoofedSource},
		{"allowed source beside the overlay", "192.0.2.2", "100.97.0.4", ours4, "node2", None},

		{"our own underlay address, though allowed by prefix", "192.0.2.2", "198.51.100.200", ours4, "", RxSpoofedSource},
		{"our own underlay address, IPv6", "2001:db8::2", "2001:db8:1::200", ours6, "", RxSpoofedSource},

		{"for another peer", "192.0.2.2", "100.96.2.9", "100.96.3.1", "", RxWrongDestination},
		{"for the sender itself", "192.0.2.2", "100.96.2.9", "100.96.2.1", "", RxWrongDestination},
		{"for nobody", "192.0.2.2", "100.96.2.9", "100.96.55.1", "", RxWrongDestination},
		{"for the internet", "192.0.2.2", "100.96.2.9", "203.0.113.1", "", RxWrongDestination},
		{"for the internet, IPv6", "192.0.2.2", "fd96:0:0:2::9", "2001:db8:9::1", "", RxWrongDestination},
		{"spoofed and for another", "192.0.2.2", "100.96.3.9", "100.96.4.1", "", RxSpoofedSource},
	} {
		outer, src, dst := addr(tt.outer), addr(tt.src), addr(tt.dst)
		p, r := tb.accept(tb.senders(outer), outer, src, dst)
		name := ""
		if p != nil {
			name = p.Name
		}
		if name != tt.peer || r != tt.want {
			t.Errorf("%s: accept = %q, %v; want %q, %v", tt.name, name, r, tt.peer, tt.want)
		}
	}
}

// TestAcceptCache: an accepted packet speaks for none that differs from it.
func TestAcceptCache(t *testing.T) {
	tb, empty := mustTable(t, testTableConfig()), new(Table)
	outer, src, dst := addr("192.0.2.2"), addr("100.96.2.1"), addr("100.96.1.9")
	for _, tt := range []struct {
		name            string
		table           *Table
		outer, src, dst netip.Addr
		want            Reason
	}{
		{"the same", tb, outer, src, dst, None},
		{"another destination", tb, outer, src, addr("100.96.3.1"), RxWrongDestination},
		{"another source", tb, outer, addr("100.96.3.1"), dst, RxSpoofedSource},
		{"another peer", tb, addr("192.0.2.3"), src, dst, RxSpoofedSource},
		{"a stranger", tb, addr("192.0.2.99"), src, dst, RxUnknownSource},
		{"another table", empty, outer, src, dst, RxUnknownSource},
	} {
		var c acceptCache
		if p, r := c.accept(tb, outer, src, dst); p == nil || r != None {
			t.Fatalf("accept = %v, %v", p, r)
		}
		if _, r := c.accept(tt.table, tt.outer, tt.src, tt.dst); r != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, r, tt.want)
		}
		if p, r := c.accept(tb, outer, src, dst); p == nil || r != None {
			t.Errorf("after %s: accept = %v, %v", tt.name, p, r)
		}
	}
}

func TestNewTableRefuses(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*TableConfig)
		want   string
	}{
		{"zero network", func(c *TableConfig) { c.Networks[0] = netip.Prefix{} }, "not a prefix"},
		{"unmasked network", func(c *TableConfig) { c.Networks[0] = prefix("100.96.0.1/16") }, "100.96.0.0/16 would be right"},
		{"mapped network", func(c *TableConfig) { c.Networks = append(c.Networks, prefix("::ffff:10.0.0.0/104")) }, "IPv4-mapped"},
		{"loopback network", func(c *TableConfig) { c.Networks = append(c.Networks, prefix("127.1.0.0/16")) }, "never routed"},
		{"link-local network", func(c *TableConfig) { c.Networks = append(c.Networks, prefix("fe80::/64")) }, "never routed"},
		{"own subnet outside", func(c *TableConfig) { c.Own[0] = prefix("10.0.0.0/24") }, "outside of the overlay networks"},
		{"own subnet wider than its network", func(c *TableConfig) { c.Own[0] = prefix("100.96.0.0/12") }, "outside of the overlay networks"},
		{"peer's prefix outside", func(c *TableConfig) { c.Peers[0].Prefixes[0] = prefix("10.0.0.0/24") }, `peer "node2": prefix 10.0.0.0/24: outside`},
		{"peer's prefix is ours", func(c *TableConfig) { c.Peers[0].Prefixes[0] = prefix("100.96.1.0/24") }, "already ours"},
		{"two owners", func(c *TableConfig) { c.Peers[1].Prefixes[0] = prefix("100.96.2.0/24") }, `already owned by peer "node2"`},
		{"nil peer", func(c *TableConfig) { c.Peers[0] = nil }, "nil peer"},
		{"no counters", func(c *TableConfig) { c.Peers[0].Counters = nil }, "no counters"},
		{"negative mtu", func(c *TableConfig) { c.Peers[0].MTU = -1 }, "negative"},
		{"endpoint in the overlay", func(c *TableConfig) { c.Peers[0].Endpoint = addrPort("100.96.2.1:8285") }, "inside the overlay network 100.96.0.0/16"},
		{"endpoint without port", func(c *TableConfig) { c.Peers[0].Endpoint = addrPort("192.0.2.2:0") }, "no port"},
		{"endpoint without address", func(c *TableConfig) { c.Peers[0].Endpoint = netip.AddrPortFrom(netip.Addr{}, 1) }, "not a unicast address"},
		{"mapped source", func(c *TableConfig) { c.Peers[0].Sources[0] = addr("::ffff:192.0.2.2") }, "give it as 192.0.2.2"},
		{"source with a zone", func(c *TableConfig) { c.Peers[0].Sources[0] = addr("fe80::1%eth0") }, "zone"},
		{"source in the overlay", func(c *TableConfig) { c.Peers[0].Sources[0] = addr("fd96::1") }, "inside the overlay"},
		{"unmasked allowed source", func(c *TableConfig) { c.AllowSource[0] = prefix("10.0.0.1/8") }, "10.0.0.0/8 would be right"},
		{"mapped own address", func(c *TableConfig) { c.OwnAddrs[0] = addr("::ffff:100.96.1.0") }, "own address"},
	} {
		cfg := testTableConfig()
		tt.change(&cfg)
		_, err := NewTable(cfg)
		if err == nil || !errors.Is(err, ErrTable) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error %v; want ErrTable with %q", tt.name, err, tt.want)
		}
	}
}

func TestTableLists(t *testing.T) {
	cfg := testTableConfig()
	tb := mustTable(t, cfg)
	if !slices.Equal(tb.Peers(), cfg.Peers) {
		t.Error("Peers differ from the config's")
	}
	var got []string
	for _, r := range tb.Routes() {
		s := r.Prefix.String() + " " + r.Verdict.String()
		if r.Peer != nil {
			s += " " + r.Peer.Name
		}
		got = append(got, s)
	}
	want := []string{
		"100.96.1.0/24 own", "100.96.2.0/24 peer node2", "100.96.3.0/24 peer node3", "100.96.4.0/24 peer node4",
		"100.96.5.0/24 peer node5", "100.96.6.0/24 peer node6",
		"fd96:0:0:1::/64 own", "fd96:0:0:2::/64 peer node2", "fd96:0:0:5::/64 peer node5", "fd96:0:0:7::/64 peer node7",
	}
	if !slices.Equal(got, want) {
		t.Errorf("Routes:\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	// A node may hold a whole network: its prefix takes the network's place.
	whole := mustTable(t, TableConfig{Networks: prefixes("100.96.0.0/16"), Own: prefixes("100.96.0.0/16")})
	if _, v := whole.Route(addr("100.96.3.4")); v != Own {
		t.Errorf("address in our network-wide subnet is %v", v)
	}
}

// slowTable is the model of Table: the config itself, searched from end to end.
type slowTable struct{ cfg TableConfig }

func (s slowTable) route(a netip.Addr) (*Peer, Verdict) {
	best, peer, v := -1, (*Peer)(nil), Outside
	try := func(p netip.Prefix, q *Peer, w Verdict) {
		if p.Contains(a) && (p.Bits() > best || (p.Bits() == best && v == Unassigned)) {
			best, peer, v = p.Bits(), q, w
		}
	}
	for _, p := range s.cfg.Networks {
		try(p, nil, Unassigned)
	}
	for _, p := range s.cfg.Own {
		try(p, nil, Own)
	}
	for _, q := range s.cfg.Peers {
		for _, p := range q.Prefixes {
			try(p, q, ToPeer)
		}
	}
	return peer, v
}

func (s slowTable) accept(outer, src, dst netip.Addr) bool {
	if _, v := s.route(dst); v != Own {
		return false
	}
	inOverlay := slices.ContainsFunc(s.cfg.Networks, func(p netip.Prefix) bool { return p.Contains(src) })
	allowed := slices.ContainsFunc(s.cfg.AllowSource, func(p netip.Prefix) bool { return p.Contains(src) })
	for _, q := range s.cfg.Peers {
		if !slices.Contains(q.Sources, outer) {
			continue
		}
		if owner, _ := s.route(src); owner == q {
			return true
		}
		// What is ours is nobody else's, whatever he says that his addresses are.
		if !inOverlay && !slices.Contains(s.cfg.OwnAddrs, src) && (allowed || slices.Contains(q.Sources, src)) {
			return true
		}
	}
	return false
}

// drawAddr draws from few bits, so that prefixes nest and addresses meet them.
func drawAddr(is6 bool) *rapid.Generator[netip.Addr] {
	return rapid.Custom(func(t *rapid.T) netip.Addr {
		hi, lo := rapid.Uint8Range(0, 7).Draw(t, "hi"), rapid.Uint8Range(0, 7).Draw(t, "lo")
		net := rapid.SampledFrom([]byte{1, 1, 1, 2, 3}).Draw(t, "net")
		if is6 {
			return netip.AddrFrom16([16]byte{0xfd, net, hi, 15: lo})
		}
		return netip.AddrFrom4([4]byte{10, net, hi, lo})
	})
}

func drawConfig(t *rapid.T) TableConfig {
	// 10.1/16 and fd01::/16 are networks; .2 is sometimes one, .3 never.
	cfg := TableConfig{Networks: prefixes("10.1.0.0/16", "fd01::/16")}
	if rapid.Bool().Draw(t, "second network") {
		cfg.Networks = append(cfg.Networks, prefixes("10.2.0.0/16", "fd02::/16")...)
	}
	used := map[netip.Prefix]bool{}
	draw := func(label string) []netip.Prefix {
		var out []netip.Prefix
		for range rapid.IntRange(0, 4).Draw(t, label) {
			is6 := rapid.Bool().Draw(t, "is6")
			a := drawAddr(is6).Draw(t, "addr")
			bits := rapid.IntRange(16, a.BitLen()).Draw(t, "bits")
			p, _ := a.Prefix(bits)
			inside := slices.ContainsFunc(cfg.Networks, func(n netip.Prefix) bool { return n.Contains(a) })
			if inside && !used[p] {
				used[p] = true
				out = append(out, p)
			}
		}
		return out
	}
	cfg.Own = draw("own")
	outers := rapid.SliceOfN(rapid.SampledFrom(addrs("192.0.2.1", "192.0.2.2", "2001:db8::1", "10.3.1.1")), 0, 3)
	for i := range rapid.IntRange(0, 5).Draw(t, "peers") {
		cfg.Peers = append(cfg.Peers, &Peer{
			Name: fmt.Sprint("p", i), Prefixes: draw("prefixes"),
			Sources: outers.Draw(t, "sources"), Counters: new(PeerCounters),
		})
	}
	for range rapid.IntRange(0, 2).Draw(t, "allowed") {
		a := drawAddr(rapid.Bool().Draw(t, "is6")).Draw(t, "allow")
		p, _ := a.Prefix(rapid.IntRange(0, a.BitLen()).Draw(t, "bits"))
		cfg.AllowSource = append(cfg.AllowSource, p)
	}
	cfg.OwnAddrs = rapid.SliceOfN(drawAddr(false), 0, 2).Draw(t, "own addresses")
	return cfg
}

// TestTableAgainstModel compares lookups and the receive rule, with and without
// caches, also over table swaps.
func TestTableAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type pair struct {
			fast *Table
			slow slowTable
		}
		var tables []pair
		for range 2 {
			cfg := drawConfig(t)
			fast, err := NewTable(cfg)
			if err != nil {
				t.Fatal(err)
			}
			tables = append(tables, pair{fast, slowTable{cfg}})
		}
		var rc routeCache
		var ac acceptCache
		outers := rapid.SampledFrom(addrs("192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::9", "10.3.1.1"))
		for range 60 {
			tb := tables[rapid.IntRange(0, 1).Draw(t, "table")]
			is6 := rapid.Bool().Draw(t, "is6")
			src, dst := drawAddr(is6).Draw(t, "src"), drawAddr(is6).Draw(t, "dst")
			outer := outers.Draw(t, "outer")
			if rapid.Bool().Draw(t, "underlay source") {
				src = outers.Draw(t, "src")
			}
			wantPeer, want := tb.slow.route(dst)
			for _, route := range []func(netip.Addr) (*Peer, Verdict){
				tb.fast.Route,
				func(a netip.Addr) (*Peer, Verdict) { return rc.route(tb.fast, a) },
				func(a netip.Addr) (*Peer, Verdict) { return rc.route(tb.fast, a) },
			} {
				if p, v := route(dst); p != wantPeer || v != want {
					t.Fatalf("route(%v) = %v, %v; want %v, %v", dst, p, v, wantPeer, want)
				}
			}
			wantOK := tb.slow.accept(outer, src, dst)
			p, r := tb.fast.accept(tb.fast.senders(outer), outer, src, dst)
			if (r == None) != wantOK || (p != nil) != wantOK {
				t.Fatalf("accept(%v, %v, %v) = %v, %v; want accepted %v", outer, src, dst, p, r, wantOK)
			}
			for range 2 {
				if cp, cr := ac.accept(tb.fast, outer, src, dst); cp != p || cr != r {
					t.Fatalf("cached accept(%v, %v, %v) = %v, %v; without cache %v, %v", outer, src, dst, cp, cr, p, r)
				}
			}
		}
	})
}
