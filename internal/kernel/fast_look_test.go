package kernel_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/internal/kernel"
	"github.com/overlayd/overlayd/internal/kernel/lab"
	"github.com/overlayd/overlayd/internal/kernel/lab/labtest"
)

func TestOnLink(t *testing.T) {
	n := fastNodes(t, 2)
	a, b := n[0], n[1]
	is := func(addr netip.Addr, want string) {
		t.Helper()
		hop, why := a.k.OnLink(addr)
		if why != want || why != "" && (hop.Link != "" || hop.Asking != strings.HasSuffix(why, "not known yet")) {
			t.Errorf("%s: %+v, %q, want %q", addr, hop, why, want)
		}
		if mac := b.link("eth0").Attrs().HardwareAddr; why == "" && (hop.Link != "eth0" || hop.MTU != 1500 || string(hop.MAC[:]) != string(mac)) {
			t.Errorf("%s: %+v, want the MAC %s", addr, hop, mac)
		}
	}
	for _, to := range []netip.Addr{b.host.Addr4(), b.host.Addr6()} {
		// OnLink has the kernel ask.
		labtest.Eventually(t, 5*time.Second, func() error {
			if hop, why := a.k.OnLink(to); why != "" {
				if !hop.Asking || why != fmt.Sprintf("the link-layer address of %s on eth0 is not known yet", to) {
					t.Fatalf("%s: %+v, %q", to, hop, why)
				}
				return errors.New(why)
			}
			return nil
		})
		is(to, "")
	}
	is(netip.AddrFrom16(b.host.Addr4().As16()), "")
	for range 2 {
		is(netip.MustParseAddr("192.0.2.99"), "the link-layer address of 192.0.2.99 on eth0 is not known yet")
	}

	is(a.host.Addr4(), "192.0.2.1 is this host's own address")
	is(a.host.Addr6(), "2001:db8::1 is this host's own address")
	is(netip.MustParseAddr("192.0.2.255"), "192.0.2.255 is no single host's address")
	is(netip.MustParseAddr("fe80::1"), "fe80::1 is no address of another host")
	is(netip.Addr{}, "invalid IP is no address of another host")
	is(netip.MustParseAddr("198.51.100.1"), "no route to 198.51.100.1: network is unreachable")
	a.ok(a.h.RouteAdd(&netlink.Route{Dst: mustNet("198.51.100.0/24"), Gw: b.host.Addr4().AsSlice()}))
	is(netip.MustParseAddr("198.51.100.1"), "the gateway 192.0.2.2 is in between")

	ready(a, b)
	is(b.own[0].Next(), "the gateway 100.96.2.0 is in between")
	a.ok(a.h.RouteAdd(&netlink.Route{Dst: mustNet("198.51.101.0/24"), LinkIndex: a.link(vx4).Attrs().Index, Scope: unix.RT_SCOPE_LINK}))
	is(netip.MustParseAddr("198.51.101.1"), "interface "+vx4+" is no Ethernet link")
	a.tun("tun7")
	a.ok(a.h.LinkSetUp(a.link("tun7")))
	a.ok(a.h.RouteAdd(&netlink.Route{Dst: mustNet("198.51.102.0/24"), LinkIndex: a.link("tun7").Attrs().Index, Scope: unix.RT_SCOPE_LINK}))
	is(netip.MustParseAddr("198.51.102.1"), "interface tun7 is no Ethernet link")

	a.sysctl("ipv4/conf/all/rp_filter", "1")
	is(b.host.Addr4(), "reverse-path filtering on eth0 is strict: sysctl -w net.ipv4.conf.eth0.rp_filter=2")
	is(b.host.Addr6(), "") // IPv6 has none
	a.sysctl("ipv4/conf/eth0/rp_filter", "2")
	is(b.host.Addr4(), "")
}

func TestFastWatch(t *testing.T) {
	n := fastNodes(t, 2)
	a, b := n[0], n[1]
	ready(a, b)
	a.apply(b.direct(kernel.FastDirect))
	var told atomic.Int64
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.f.Watch(ctx, func() { told.Add(1) }) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	link := func() int { return a.link(vx4).Attrs().Index }
	// The first news show that the socket is there.
	labtest.Eventually(t, 5*time.Second, func() error {
		a.ok(a.h.LinkSetMTU(a.link(vx4), 1431))
		a.ok(a.h.LinkSetMTU(a.link(vx4), 1430))
		if told.Load() == 0 {
			return errors.New("nothing is told")
		}
		return nil
	})
	stray := netip.MustParseAddr("203.0.113.1")
	route := func(dst, via string) func() {
		return func() {
			r := &netlink.Route{Dst: mustNet(dst), Gw: netip.MustParseAddr(via).AsSlice()}
			a.ok(a.h.RouteAdd(r))
			a.ok(a.h.RouteDel(r))
		}
	}
	settle := func() int64 {
		// An address marks the end of what was before it.
		was := told.Load()
		a.ok(a.h.AddrAdd(a.link("lo"), &netlink.Addr{IPNet: mustNet(single(stray).String())}))
		labtest.Eventually(t, 5*time.Second, func() error {
			if told.Load() == was {
				return errors.New("the mark is not told")
			}
			return nil
		})
		was = told.Load()
		a.ok(a.h.AddrDel(a.link("lo"), &netlink.Addr{IPNet: mustNet(single(stray).String())}))
		labtest.Eventually(t, 5*time.Second, func() error {
			if told.Load() == was {
				return errors.New("the mark is not told")
			}
			return nil
		})
		return told.Load()
	}
	// What the mark itself makes known: an address added and removed.
	start := settle()
	marks := settle() - start
	for _, c := range []struct {
		name string
		do   func()
		want bool
	}{
		{"nothing", func() {}, false},
		{"an address", func() {
			a.ok(a.h.AddrAdd(a.link(vx4), &netlink.Addr{IPNet: mustNet("100.96.99.0/32")}))
			a.ok(a.h.AddrDel(a.link(vx4), &netlink.Addr{IPNet: mustNet("100.96.99.0/32")}))
		}, true},
		{"an FDB entry", func() {
			e := &netlink.Neigh{LinkIndex: link(), Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF, State: netlink.NUD_PERMANENT,
				HardwareAddr: hardware([6]byte{2, 9}), IP: stray.AsSlice()}
			a.ok(a.h.NeighSet(e))
			a.ok(a.h.NeighDel(e))
		}, true},
		{"a neighbour", func() {
			a.ok(a.h.NeighSet(&netlink.Neigh{LinkIndex: link(), State: netlink.NUD_PERMANENT, HardwareAddr: hardware([6]byte{2, 9}), IP: stray.AsSlice()}))
		}, true},
		{"a hop's MAC", func() {
			a.ok(a.h.NeighSet(&netlink.Neigh{LinkIndex: a.link("eth0").Attrs().Index, State: netlink.NUD_REACHABLE, HardwareAddr: hardware([6]byte{2, 9}), IP: b.host.Addr4().AsSlice()}))
		}, true},
		{"another host's MAC", func() {
			a.ok(a.h.NeighSet(&netlink.Neigh{LinkIndex: a.link("eth0").Attrs().Index, State: netlink.NUD_REACHABLE, HardwareAddr: hardware([6]byte{2, 9}), IP: netip.MustParseAddr("192.0.2.77").AsSlice()}))
		}, false},
		{"a route into the overlay", route("100.96.50.0/24", "192.0.2.2"), true},
		{"a route to a hop", route("192.0.2.2/32", "192.0.2.77"), true},
		{"a route elsewhere", route("198.51.100.0/24", "192.0.2.2"), false},
		{"an IPv6 route into the overlay", route("fd96:0:0:50::/64", "2001:db8::2"), true},
		{"an IPv6 route elsewhere", route("2001:db8:9::/64", "2001:db8::2"), false},
		{"a policy rule", func() {
			r := netlink.NewRule()
			r.Family, r.Priority, r.Table = netlink.FAMILY_V6, 1000, 100
			a.ok(a.h.RuleAdd(r))
			a.ok(a.h.RuleDel(r))
		}, true},
	} {
		before := settle()
		c.do()
		if got := settle() - before - marks; (got > 0) != c.want {
			t.Errorf("%s: told %d times", c.name, got)
		}
	}
}

// A path MTU that was learned outlives its cause for ten minutes, unless it is
// forgotten: the outer one, and the inner ones that the VXLAN device tells.
func TestFastForget(t *testing.T) {
	l := labtest.New(t)
	left, err := l.Switch("left", lab.SwitchConfig{})
	if err != nil {
		t.Fatal(err)
	}
	right, err := l.Switch("right", lab.SwitchConfig{})
	if err != nil {
		t.Fatal(err)
	}
	router, err := l.Host("router")
	if err != nil {
		t.Fatal(err)
	}
	var nodes []*fastNode
	for i, sw := range []*lab.Switch{left, right} {
		h, err := sw.Host(fmt.Sprintf("host%d", i+1), lab.PortConfig{})
		if err != nil {
			t.Fatal(err)
		}
		port, err := router.Attach(sw, lab.PortConfig{})
		if err != nil {
			t.Fatal(err)
		}
		for j, other := range []netip.Prefix{[]*lab.Switch{right, left}[i].Net4(), []*lab.Switch{right, left}[i].Net6()} {
			if err := h.AddRoute(other, port.Addrs()[j].Addr()); err != nil {
				t.Fatal(err)
			}
		}
		nodes = append(nodes, newFastNode(t, h, i+1))
	}
	a, b := nodes[0], nodes[1]
	mtu := func(dst netip.Addr, link string) int {
		t.Helper()
		var list []netlink.Route
		a.ok(a.host.Do(func() (err error) {
			list, err = netlink.RouteGetWithOptions(dst.AsSlice(), &netlink.RouteGetOptions{Oif: link})
			return err
		}))
		return list[0].MTU
	}
	for i, outer := range []netip.Addr{b.host.Addr4(), b.host.Addr6()} {
		vx := []string{vx4, vx6}[i]
		ready(b, a)
		a.f.Apply(a.own, []kernel.FastPeer{b.peer(outer, kernel.FastVXLAN)}, false)
		a.ok(a.f.SetUp(true))
		a.pings(b)
		a.ok(router.SetMTU("eth1", 1400))
		// The peer's own addresses, and those of a container behind it. What IPv4 learns
		// about the first one it notes at the route for probes, because it looks for the
		// route with the device (__ip_rt_update_pmtu in linux/net/ipv4/route.c).
		inner := append(slices.Clone(b.own), b.own[0].Next(), b.own[1].Next())
		learned := func() (all []int) {
			all = append(all, mtu(outer, ""))
			for _, dst := range inner {
				all = append(all, mtu(dst, ""), mtu(dst, vx))
			}
			return all
		}
		for range 3 { // the first one teaches the outer path, the next one the inner
			for _, dst := range inner {
				// What is too long is not cut into pieces on the way, by nobody: a probe
				// would prove nothing.
				res, err := a.host.Ping(t.Context(), lab.PingConfig{Dst: dst, Count: 1, Size: 1430, DontFragment: true, Timeout: 20 * time.Millisecond})
				a.ok(err)
				if res.Received > 0 {
					t.Errorf("to %s by %s: 1430 bytes have passed a link of 1400", dst, outer)
				}
			}
		}
		t.Logf("by %s: learned %v", outer, learned())
		in := 1400 - 50
		if outer.Is6() {
			in = 1400 - 70
		}
		want := []int{1400, in, in, in, 0, in, in, in, in}
		if got := learned(); !slices.Equal(got, want) {
			t.Errorf("by %s: learned %v, want %v", outer, got, want)
		}
		a.ok(router.SetMTU("eth1", 1500))
		a.ok(a.f.Forget(netip.MustParseAddr("2001:db8:77::1")))
		if outer.Is6() && mtu(outer, "") != 1400 {
			t.Error("another address's was forgotten")
		}
		a.ok(a.f.Forget(outer))
		if got := learned(); !slices.Equal(got, make([]int, len(got))) {
			t.Errorf("by %s: still %v", outer, got)
		}
		a.pings(b)
		a.stands()
	}
}
