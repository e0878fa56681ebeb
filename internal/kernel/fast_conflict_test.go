package kernel_test

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/internal/kernel"
)

// A route of somebody else's for a peer's prefix stays, wins, and is told.
func TestFastForeignRoute(t *testing.T) {
	for _, c := range []struct {
		name string
		r    netlink.Route
		wins bool
	}{
		{"better", netlink.Route{}, true},
		{"the same metric", netlink.Route{Priority: kernel.RouteMetric}, true},
		{"worse", netlink.Route{Priority: 97}, false},
		{"the kernel's", netlink.Route{Priority: 256, Protocol: unix.RTPROT_KERNEL}, true},
	} {
		for i := range 2 {
			n := fastNodes(t, 2)
			a, b := n[0], n[1]
			ready(a, b)
			r := c.r
			r.Dst, r.LinkIndex = mustNet(b.nets[i].String()), a.link("eth0").Attrs().Index
			if i == 0 {
				r.Scope = unix.RT_SCOPE_LINK
			} else if r.Priority == 0 {
				r.Priority = 1 // 0 would be 1024
			}
			if r.Protocol == 0 {
				r.Protocol = unix.RTPROT_STATIC
			}
			p := b.peer(b.host.Addr4(), kernel.FastVXLAN)
			// It is there before ours, or comes later.
			for _, later := range []bool{false, true} {
				if later && c.r.Priority == kernel.RouteMetric {
					continue // IPv4 refuses it, as does IPv6 with another kind of next hop
				}
				if !later {
					p.Route = kernel.FastNone
					a.apply(p)
				}
				a.ok(a.h.RouteAdd(&r))
				var res kernel.Result
				if later {
					_, res = a.f.Check()
				} else {
					p.Route = kernel.FastVXLAN
					res = a.f.Apply(a.own, []kernel.FastPeer{p}, false)
					_, res2 := a.f.Check()
					if c.wins != (res2.Peers[p.ID] != nil) {
						t.Errorf("%s: Check %s", c.name, resultText(res2))
					}
				}
				switch {
				case c.r.Priority == kernel.RouteMetric:
					a.failsWith(res.Peers[p.ID], kernel.ErrRouteConflict, b.nets[i].String())
				case c.wins && later:
					a.failsWith(res.Peers[p.ID], kernel.ErrRouteConflict, b.nets[i].String(), "dev eth0")
				case !c.wins:
					a.clean(res)
				}
				dev := vx4
				if c.wins && c.r.Protocol != unix.RTPROT_KERNEL {
					dev = "eth0"
				}
				if got := a.way(b.own[i].Next(), ""); c.r.Protocol != unix.RTPROT_KERNEL && !strings.HasPrefix(got, dev) {
					t.Errorf("%s, later %v: %s goes by %s", c.name, later, b.own[i], got)
				}
				a.ok(a.h.RouteDel(&r)) // it is still there
				if c.wins {
					a.repaired()
				}
				a.stands()
				a.pings(b)
			}
		}
	}
}

// A device of our name that is not ours is never touched, and hinders only its family.
func TestFastForeignDevice(t *testing.T) {
	for _, c := range []struct {
		name string
		make func(a *fastNode) netlink.Link
	}{
		{"veth", func(*fastNode) netlink.Link {
			return &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: vx4}, PeerName: "other"}
		}},
		{"vxlan", func(a *fastNode) netlink.Link {
			return &netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: vx4}, VxlanId: 1, Port: 4789, SrcAddr: a.host.Addr4().AsSlice()}
		}},
	} {
		n := fastNodes(t, 2)
		a, b := n[0], n[1]
		ready(b, a)
		a.remove()
		a.ok(a.h.LinkAdd(c.make(a)))
		there := a.state()
		four, six := b.peer(b.host.Addr4(), kernel.FastVXLAN), b.peer(b.host.Addr6(), kernel.FastVXLAN)
		res := a.f.Apply(a.own, []kernel.FastPeer{four}, false)
		a.failsWith(res.VXLAN4, kernel.ErrDeviceConflict, vx4, "ip link del "+vx4)
		a.failsWith(res.Peers[four.ID], kernel.ErrDeviceConflict)
		if res.VXLAN6 != nil || res.Err != nil {
			t.Errorf("%s: %s", c.name, resultText(res))
		}
		a.failsWith(a.f.SetUp(true), kernel.ErrDeviceConflict)
		res = a.f.Apply(a.own, []kernel.FastPeer{six}, false)
		if res.Peers != nil || res.VXLAN4 == nil {
			t.Errorf("%s: %s", c.name, resultText(res))
		}
		b.apply(a.peer(a.host.Addr6(), kernel.FastVXLAN))
		a.pings(b)
		if did, _ := a.f.Check(); len(did) > 0 {
			t.Errorf("%s: %q", c.name, did)
		}
		a.remove()
		a.same(there)
		// The person follows the advice.
		a.ok(a.h.LinkDel(a.link(vx4)))
		ready(a, b)
		a.pings(b)
		a.stands()
	}
}

// Another VXLAN device with our VNI and port, or another program with the port.
func TestFastPortInUse(t *testing.T) {
	n := fastNodes(t, 2)
	a, b := n[0], n[1]
	ready(b, a)
	a.remove()
	p := b.peer(b.host.Addr4(), kernel.FastVXLAN)
	a.ok(a.h.LinkAdd(&netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: "theirs"}, VxlanId: 1, Port: 4789, SrcAddr: a.host.Addr4().AsSlice()}))
	res := a.f.Apply(a.own, []kernel.FastPeer{p}, false)
	a.failsWith(res.VXLAN4, kernel.ErrDeviceConflict, "VNI 1", "port 4789", "theirs", "--kernel-vxlan-port")
	a.link("theirs")
	a.ok(a.h.LinkDel(a.link("theirs")))

	socket, err := a.host.ListenUDP(netip.MustParseAddrPort("127.0.0.1:4789"))
	a.ok(err)
	defer socket.Close()
	if did, _ := a.f.Check(); len(did) == 0 {
		t.Error("the device was not made")
	}
	a.failsWith(a.f.SetUp(true), kernel.ErrDeviceConflict, "UDP port 4789", "--kernel-vxlan-port")
	_, res = a.f.Check()
	a.failsWith(res.VXLAN4, kernel.ErrDeviceConflict, "UDP port 4789")
	a.failsWith(res.Peers[p.ID], kernel.ErrDeviceConflict, "UDP port 4789")
	if res.VXLAN6 != nil {
		t.Error("IPv6 has the port to itself", res.VXLAN6)
	}
	a.ok(socket.Close())
	a.repaired()
	a.pings(b)
}

// A daemon that was killed between making the device and marking it.
func TestFastHalfMade(t *testing.T) {
	a := fastNodes(t, 1)[0]
	a.clean(a.f.Apply(a.own, nil, false))
	a.ok(a.h.LinkSetAlias(a.link(vx4), ""))
	a.restart()
	a.clean(a.f.Apply(a.own, nil, false))
	if alias := a.link(vx4).Attrs().Alias; alias != kernel.DeviceAlias {
		t.Errorf("alias %q", alias)
	}
	// With another MAC it is somebody else's.
	a.ok(a.h.LinkSetAlias(a.link(vx4), ""))
	a.ok(a.h.LinkSetHardwareAddr(a.link(vx4), net.HardwareAddr{2, 0, 0, 0, 9, 9}))
	_, res := a.f.Check()
	a.failsWith(res.VXLAN4, kernel.ErrDeviceConflict)
}

// What callers should not ask for harms nobody else.
func TestFastBadPeers(t *testing.T) {
	n := fastNodes(t, 2)
	a, b := n[0], n[1]
	ready(a, b)
	good := b.peer(b.host.Addr4(), kernel.FastVXLAN)
	for _, c := range []struct {
		name  string
		spoil func(*kernel.FastPeer)
		want  string
	}{
		{"MAC of another peer", func(p *kernel.FastPeer) { p.MAC = good.MAC }, "02:00:00:00:00:02 is that of peer host2"},
		{"our MAC", func(p *kernel.FastPeer) { p.MAC = a.cfg.MAC }, "this node's"},
		{"no MAC", func(p *kernel.FastPeer) { p.MAC = [6]byte{} }, "single station"},
		{"group MAC", func(p *kernel.FastPeer) { p.MAC[0] = 3 }, "single station"},
		{"prefix of another peer", func(p *kernel.FastPeer) { p.Prefixes = b.nets }, "100.96.2.0 is that of peer host2"},
		{"the whole network", func(p *kernel.FastPeer) { p.Prefixes = overlay }, "the whole overlay network"},
		{"our own", func(p *kernel.FastPeer) { p.Prefixes = a.nets }, "an address of this node"},
		{"outside", func(p *kernel.FastPeer) { p.Prefixes = prefixes("10.0.0.0/24") }, "no part of the overlay"},
		{"host bits", func(p *kernel.FastPeer) { p.Prefixes = prefixes("100.96.7.1/24") }, "no part of the overlay"},
		{"no address", func(p *kernel.FastPeer) { p.Outer = netip.Addr{} }, "not reached by VXLAN"},
		{"group address", func(p *kernel.FastPeer) { p.Outer = netip.MustParseAddr("224.0.0.1") }, "no VXLAN can be sent"},
		{"zone", func(p *kernel.FastPeer) { p.Outer = netip.MustParseAddr("fe80::1%eth0") }, "no VXLAN can be sent"},
		{"no such link", func(p *kernel.FastPeer) {
			p.Route, p.Hops = kernel.FastDirect, []kernel.DirectHop{{Link: "eth7", Addr: b.host.Addr4()}}
		}, "eth7"},
		{"by our own device", func(p *kernel.FastPeer) {
			p.Route, p.Hops = kernel.FastDirect, []kernel.DirectHop{{Link: vx4, Addr: b.host.Addr4()}}
		}, "the overlay's own"},
		{"hop elsewhere", func(p *kernel.FastPeer) {
			p.Route, p.Hops = kernel.FastDirect, []kernel.DirectHop{{Link: "eth0", Addr: netip.MustParseAddr("198.51.100.1")}}
		}, "100.96.7.0/32"},
	} {
		bad := kernel.FastPeer{ID: [16]byte{99}, Name: "bad", Prefixes: prefixes("100.96.7.0/24", "fd96:0:0:7::/64"), MAC: [6]byte{2, 0, 0, 0, 0, 7},
			Outer: netip.MustParseAddr("192.0.2.7"), Route: kernel.FastVXLAN}
		c.spoil(&bad)
		res := a.f.Apply(a.own, []kernel.FastPeer{good, bad}, false)
		a.failsWith(res.Peers[bad.ID], nil, c.want)
		if len(res.Peers) != 1 || res.Err != nil || res.VXLAN4 != nil {
			t.Errorf("%s: %s", c.name, resultText(res))
		}
		did, again := a.f.Check()
		if len(did) > 0 || len(again.Peers) != 1 {
			t.Errorf("%s: Check: %q, %s", c.name, did, resultText(again))
		}
		if got := a.way(netip.MustParseAddr("100.96.7.1"), ""); got != unix.ENETUNREACH.Error() {
			t.Errorf("%s: a route: %s", c.name, got)
		}
	}
	a.pings(b)
}

// Two nodes on one host have the same rule for the underlay, and neither takes
// away what is the other's.
func TestFastTwoNodes(t *testing.T) {
	n := fastNodes(t, 2)
	a, b := n[0], n[1]
	ready(a, b)
	both := b.peer(b.host.Addr4(), kernel.FastDirect)
	both.Hops = b.direct(0).Hops
	a.apply(both)
	before := a.state()

	other := &fastNode{T: t, host: a.host, h: a.h, k: a.k, cfg: a.cfg}
	other.own = addrs("10.99.1.0", "fd99:0:0:1::")
	other.cfg.Device, other.cfg.VNI, other.cfg.Port, other.cfg.Networks = "overlay1", 2, 4790, prefixes("10.99.0.0/16", "fd99::/48")
	other.restart()
	p := both
	p.Prefixes = prefixes("10.99.2.0/24", "fd99:0:0:2::/64")
	other.f.Apply(other.own, []kernel.FastPeer{p}, false)
	other.ok(other.f.SetUp(true))
	other.apply(p)
	if got := other.f.Adopted(); len(got) != 0 {
		t.Errorf("adopted %v", got)
	}
	a.stands()
	other.stands()
	a.apply() // a has no peers any more
	other.stands()
	a.apply(both)
	other.remove()
	a.same(before)
	a.stands()
	a.pings(b)
}

// SetRoutes, Conflicts, Diagnose and Cleanup know the kernel paths.
func TestFastBesideTheRest(t *testing.T) {
	n := fastNodes(t, 2)
	a, b := n[0], n[1]
	before := a.state()
	tun := a.tun("overlay0")
	a.ok(a.k.ConfigureDevice("overlay0", 1430, true, a.own))
	a.ok(a.k.SetRoutes("overlay0", overlay, a.own))
	ready(a, b)
	a.pings(b)
	both := b.peer(b.host.Addr4(), kernel.FastDirect)
	both.Hops = b.direct(0).Hops
	a.apply(both)
	told := a.news()
	a.ok(a.k.SetRoutes("overlay0", overlay, a.own))
	if got := told.count(); len(got) > 0 {
		t.Errorf("SetRoutes again: %q", got)
	}
	a.stands()
	found := a.k.Diagnose(kernel.DiagnoseConfig{Device: "overlay0", Underlay: "eth0", Networks: overlay, Own: a.nets})
	if len(found) > 0 {
		t.Errorf("Diagnose: %v", found)
	}
	conflicts := func(own []netip.Prefix) {
		t.Helper()
		found, err := a.k.Conflicts(overlay, "overlay0", own)
		if err != nil || len(found) > 0 {
			t.Errorf("Conflicts: %v, %v", found, err)
		}
	}
	conflicts(a.nets)

	// The daemon is killed.
	a.ok(tun.Close())
	conflicts(a.nets)
	conflicts(nil) // and its state directory is lost
	a.restart()
	a.tun("overlay0")
	a.ok(a.k.ConfigureDevice("overlay0", 1430, true, a.own))
	if _, err := a.k.Cleanup("overlay0"); !errors.Is(err, kernel.ErrHeld) {
		t.Errorf("Cleanup while it lives: %v", err)
	}
	a.ok(a.k.SetRoutes("overlay0", overlay, a.own))
	a.clean(a.f.Apply(a.own, []kernel.FastPeer{both}, true))
	// Another one's cleanup leaves it alone.
	removed, err := a.k.Cleanup("overlay7")
	if err != nil || len(removed) > 0 {
		t.Errorf("another device's: %q, %v", removed, err)
	}
	a.stands()
	a.ok(a.h.LinkDel(a.link("overlay0")))
	removed, err = a.k.Cleanup("overlay0")
	a.ok(err)
	for _, want := range []string{"device " + vx4, "device " + vx6, "unreachable route 100.96.0.0/16 metric 9600"} {
		if !slices.Contains(removed, want) {
			t.Errorf("%q is not among %q", want, removed)
		}
	}
	a.same(before)
	again, err := a.k.Cleanup("overlay0")
	if err != nil || len(again) > 0 {
		t.Errorf("again: %q, %v", again, err)
	}
}
