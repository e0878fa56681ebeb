package kernel_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/internal/kernel"
)

func TestConflicts(t *testing.T) {
	gw4 := addrs("192.0.2.254")[0].AsSlice()
	via := func(x *host, r netlink.Route) netlink.Route {
		r.LinkIndex = x.link("eth0").Attrs().Index
		return r
	}
	for _, c := range []struct {
		name  string
		setup func(*host)
		own   []netip.Prefix
		want  []string // "!" in front: fatal
	}{
		{"nothing", func(x *host) {}, nil, nil},
		{"default routes and halves", func(x *host) {
			for _, d := range []string{"0.0.0.0/0", "0.0.0.0/1", "128.0.0.0/1"} {
				x.route(d, via(x, netlink.Route{Gw: gw4}))
			}
			x.route("::/0", via(x, netlink.Route{}))
		}, nil, nil},
		{"address inside, v4", func(x *host) { x.veth("cni0", "100.96.1.1/24") }, nil,
			[]string{"!overlay network 100.96.0.0/16 contains 100.96.1.1/24, an address of cni0"}},
		{"address inside, v6", func(x *host) { x.veth("cni0", "fd96:0:0:1::1/64") }, nil,
			[]string{"!overlay network fd96::/48 contains fd96:0:0:1::1/64, an address of cni0"}},
		{"own bridge", func(x *host) { x.veth("cni0", "100.96.1.1/24", "fd96:0:0:1::1/64") }, ownNets, nil},
		{"bridge of another subnet", func(x *host) { x.veth("cni0", "100.96.2.1/24", "fd96:0:0:2::1/64") }, ownNets,
			[]string{"!overlay network 100.96.0.0/16 contains 100.96.2.1/24", "!overlay network fd96::/48 contains fd96:0:0:2::1/64"}},
		{"own bridge with too short a prefix", func(x *host) { x.veth("cni0", "100.96.1.1/20") }, ownNets,
			[]string{"!overlay network 100.96.0.0/16 overlaps the route 100.96.0.0/20 dev cni0"}},
		{"container routes in the own subnet", func(x *host) {
			x.route("100.96.1.7/32", via(x, netlink.Route{}))
			x.route("fd96:0:0:1::7/128", via(x, netlink.Route{}))
		}, ownNets, nil},
		{"same prefix", func(x *host) {
			x.route("100.96.0.0/16", via(x, netlink.Route{Gw: gw4}))
			x.route("fd96::/48", via(x, netlink.Route{}))
		}, ownNets, []string{"!overlay network 100.96.0.0/16 overlaps the route 100.96.0.0/16 via 192.0.2.254 dev eth0",
			"!overlay network fd96::/48 overlaps the route fd96::/48 dev eth0"}},
		{"more specific", func(x *host) {
			x.route("100.96.77.0/24", via(x, netlink.Route{}))
			x.route("fd96:0:0:77::/64", via(x, netlink.Route{Type: unix.RTN_UNICAST}))
		}, ownNets, []string{"!overlay network 100.96.0.0/16 overlaps the route 100.96.77.0/24 dev eth0",
			"!overlay network fd96::/48 overlaps the route fd96:0:0:77::/64 dev eth0"}},
		{"refusing routes", func(x *host) {
			x.route("100.96.77.0/24", netlink.Route{Type: unix.RTN_BLACKHOLE})
			x.route("fd96:0:0:77::/64", netlink.Route{Type: unix.RTN_UNREACHABLE})
		}, ownNets, []string{"!overlay network 100.96.0.0/16 overlaps the blackhole route 100.96.77.0/24:",
			"!overlay network fd96::/48 overlaps the unreachable route fd96:0:0:77::/64 metric 1024:"}},
		{"less specific", func(x *host) {
			x.route("100.64.0.0/10", via(x, netlink.Route{}))
			x.route("fd00::/8", via(x, netlink.Route{}))
		}, nil, []string{"overlay network 100.96.0.0/16 is a part of the route 100.64.0.0/10 dev eth0",
			"overlay network fd96::/48 is a part of the route fd00::/8 dev eth0"}},
		{"on-link prefix around", func(x *host) { x.veth("lan0", "100.64.0.1/10", "fd00::1/8") }, nil,
			[]string{"overlay network 100.96.0.0/16 is a part of the route 100.64.0.0/10 dev lan0",
				"overlay network fd96::/48 is a part of the route fd00::/8 dev lan0"}},
		{"local table", func(x *host) {
			x.route("100.64.0.0/10", netlink.Route{LinkIndex: x.link("lo").Attrs().Index, Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL})
			x.route("fd96:0:0:5::/64", netlink.Route{LinkIndex: x.link("lo").Attrs().Index, Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL})
		}, nil, []string{"!overlay network 100.96.0.0/16 overlaps the local route 100.64.0.0/10 dev lo table local",
			"!overlay network fd96::/48 overlaps the local route fd96:0:0:5::/64 dev lo table local"}},
		{"another table", func(x *host) {
			x.route("100.96.0.0/16", via(x, netlink.Route{Table: 52}))
			x.route("fd96::/48", via(x, netlink.Route{Table: 52}))
		}, nil, []string{"overlay network 100.96.0.0/16 overlaps the route 100.96.0.0/16 dev eth0 table 52",
			"overlay network fd96::/48 overlaps the route fd96::/48 dev eth0 table 52"}},
		{"fatal first", func(x *host) {
			x.route("100.64.0.0/10", via(x, netlink.Route{}))
			x.route("fd96::/48", via(x, netlink.Route{}))
		}, nil, []string{"!overlay network fd96::/48 overlaps", "overlay network 100.96.0.0/16 is a part"}},
		{"ours", func(x *host) {
			x.route("100.96.3.0/24", via(x, netlink.Route{Protocol: kernel.RouteProtocol}))
			x.route("fd96:0:0:3::/64", netlink.Route{Type: unix.RTN_UNREACHABLE, Protocol: kernel.RouteProtocol})
		}, nil, nil},
		{"our device", func(x *host) {
			x.tun("overlay0", unix.IFF_TUN)
			x.configure("overlay0", ownAddrs)
			x.ok(x.k.SetRoutes("overlay0", overlay, ownAddrs))
			x.route("100.96.5.0/24", netlink.Route{LinkIndex: x.link("overlay0").Attrs().Index})
		}, nil, nil},
		{"another overlayd", func(x *host) {
			x.tun("overlay1", unix.IFF_TUN)
			x.configure("overlay1", nil)
			x.ok(x.k.SetRoutes("overlay1", overlay, nil))
		}, nil, []string{"!overlay network 100.96.0.0/16 is in use by another overlayd (route 100.96.0.0/16 dev overlay1",
			"!overlay network fd96::/48 is in use by another overlayd (route fd96::/48 dev overlay1"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := newHost(t)
			x.veth("eth0", "192.0.2.1/24", "2001:db8::1/64")
			c.setup(x)
			found, err := x.k.Conflicts(overlay, "overlay0", c.own)
			x.ok(err)
			for i, f := range found {
				got := f.Text
				if f.Fatal {
					got = "!" + got
				}
				if i >= len(c.want) || !strings.HasPrefix(got, c.want[i]) {
					t.Errorf("unexpected: %s", got)
				}
				if strings.Contains(got, "\n") || !f.Network.Overlaps(f.Prefix) {
					t.Errorf("bad conflict %+v", f)
				}
			}
			if len(found) != len(c.want) {
				t.Errorf("%d conflicts, want %q", len(found), c.want)
			}
		})
	}
}
