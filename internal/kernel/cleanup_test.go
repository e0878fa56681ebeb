package kernel_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/internal/kernel"
)

// litter puts foreign things around ours, some of them very similar.
func (x *host) litter() {
	x.Helper()
	eth := x.veth("eth0", "192.0.2.1/24", "2001:db8::1/64").Attrs().Index
	x.veth("cni0", "100.96.1.1/24", "fd96:0:0:1::1/64")
	x.route("0.0.0.0/0", netlink.Route{LinkIndex: eth, Gw: addrs("192.0.2.254")[0].AsSlice()})
	x.route("::/0", netlink.Route{LinkIndex: eth, Gw: addrs("2001:db8::ff")[0].AsSlice()})
	for _, proto := range []netlink.RouteProtocol{unix.RTPROT_STATIC, 95, 97, 188} {
		for _, table := range []int{unix.RT_TABLE_MAIN, 100, 1000} {
			third := int(proto)
			x.route(fmt.Sprintf("10.%d.0.0/16", third), netlink.Route{LinkIndex: eth, Protocol: proto, Table: table, Priority: kernel.RouteMetric})
			x.route(fmt.Sprintf("10.%d.0.0/16", third), netlink.Route{Type: unix.RTN_UNREACHABLE, Protocol: proto, Table: table, Priority: kernel.UnreachableMetric})
			x.route(fmt.Sprintf("fd00:%d::/48", third), netlink.Route{LinkIndex: eth, Protocol: proto, Table: table, Priority: kernel.RouteMetric})
			x.route(fmt.Sprintf("fd00:%d::/48", third), netlink.Route{Type: unix.RTN_UNREACHABLE, Protocol: proto, Table: table, Priority: kernel.UnreachableMetric})
		}
	}
	// The same destinations as our own, in a table of somebody else's.
	x.route("100.96.0.0/16", netlink.Route{Type: unix.RTN_UNREACHABLE, Table: 100, Priority: kernel.UnreachableMetric})
	x.route("fd96::/48", netlink.Route{Type: unix.RTN_UNREACHABLE, Table: 100, Priority: kernel.UnreachableMetric})
}

func TestCleanup(t *testing.T) {
	x := newHost(t)
	x.litter()
	before := x.routes()

	f := x.tun("overlay0", unix.IFF_TUN)
	x.configure("overlay0", ownAddrs)
	x.ok(x.k.SetRoutes("overlay0", overlay, ownAddrs))
	eth := x.link("eth0").Attrs().Index
	for _, table := range []int{100, 1000} { // ours in other tables
		x.route("100.96.7.0/24", netlink.Route{LinkIndex: eth, Gw: addrs("192.0.2.7")[0].AsSlice(), Table: table, Protocol: kernel.RouteProtocol})
		x.route("fd96:0:0:7::/64", netlink.Route{LinkIndex: eth, Gw: addrs("2001:db8::7")[0].AsSlice(), Table: table, Protocol: kernel.RouteProtocol})
	}
	x.ok(f.Close()) // the daemon is killed
	removed, err := x.k.Cleanup("overlay0")
	x.ok(err)
	if n := 2 + 4; len(removed) != n {
		t.Errorf("%d things removed, want %d: %q", len(removed), n, removed)
	}
	for _, want := range []string{"unreachable route 100.96.0.0/16 metric 9600", "unreachable route fd96::/48 metric 9600",
		"route 100.96.7.0/24 via 192.0.2.7 dev eth0 table 100"} {
		if !slices.ContainsFunc(removed, func(s string) bool { return strings.HasPrefix(s, want) }) {
			t.Errorf("%q is not among %q", want, removed)
		}
	}
	x.same(before, x.routes())
	again, err := x.k.Cleanup("overlay0")
	if err != nil || len(again) != 0 {
		t.Errorf("the second time: %q, %v", again, err)
	}
}

// A TUN is gone with its process: while it is there, its daemon lives, and
// nothing of it is touched, whatever run directory the caller thinks of.
func TestCleanupBesideALivingDaemon(t *testing.T) {
	x := newHost(t)
	x.tun("overlay0", unix.IFF_TUN)
	x.configure("overlay0", ownAddrs)
	x.ok(x.k.SetRoutes("overlay0", overlay, ownAddrs))
	before := x.routes()
	if removed, err := x.k.Cleanup("overlay0"); !errors.Is(err, kernel.ErrHeld) || len(removed) != 0 {
		t.Errorf("its own device: %q, %v", removed, err)
	}
	x.same(before, x.routes())

	x.route("10.99.0.0/16", netlink.Route{Type: unix.RTN_UNREACHABLE, Protocol: kernel.RouteProtocol, Priority: kernel.UnreachableMetric})
	removed, err := x.k.Cleanup("overlay9")
	if err != nil || len(removed) != 1 || !strings.Contains(removed[0], "10.99.0.0/16") {
		t.Errorf("another device: %q, %v", removed, err)
	}
	x.same(before, x.routes())
	x.link("overlay0")
}

// Cleanup leaves a device alone that only has the name.
func TestCleanupForeignDevice(t *testing.T) {
	x := newHost(t)
	x.tun("overlay0", unix.IFF_TUN)
	x.veth("overlay1", "192.0.2.1/24")
	x.ok(x.h.LinkSetAlias(x.link("overlay1"), kernel.DeviceAlias))
	for _, dev := range []string{"overlay0", "overlay1", "overlay2"} {
		removed, err := x.k.Cleanup(dev)
		if err != nil || len(removed) != 0 {
			t.Errorf("%s: %q, %v", dev, removed, err)
		}
	}
	x.link("overlay0")
	x.link("overlay1")
}

// Release is for one node: the routes of another one stay.
func TestRelease(t *testing.T) {
	x := newHost(t)
	x.litter()
	x.tun("overlay1", unix.IFF_TUN)
	x.configure("overlay1", addrs("10.99.1.0"))
	x.ok(x.k.SetRoutes("overlay1", prefixes("10.99.0.0/16", "fd99::/48"), nil))
	f := x.tun("overlay0", unix.IFF_TUN)
	before, addrsBefore := x.routes(), x.addrsOf("overlay1")

	for _, closed := range []bool{false, true} {
		x.configure("overlay0", ownAddrs)
		x.ok(x.k.SetRoutes("overlay0", overlay, ownAddrs))
		want := 4
		if closed {
			x.ok(f.Close())
			want = 2
		}
		removed, err := x.k.Release("overlay0", overlay)
		if err != nil || len(removed) != want {
			t.Errorf("closed %v: removed %q, %v, want %d", closed, removed, err, want)
		}
		x.same(before, x.routes())
		if got := x.addrsOf("overlay1"); !slices.Equal(got, addrsBefore) {
			t.Errorf("addresses of the other device: %q", got)
		}
		if !closed {
			if got := x.addrsOf("overlay0"); len(got) != 0 {
				t.Errorf("addresses left: %q", got)
			}
		}
	}
}
