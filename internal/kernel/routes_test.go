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

// ourRoutes is our routes in words.
func (x *host) ourRoutes() []string {
	x.Helper()
	var all []string
	for _, r := range x.ours() {
		dev := ""
		if r.Type == unix.RTN_UNICAST {
			l, err := x.h.LinkByIndex(r.LinkIndex)
			x.ok(err)
			dev = l.Attrs().Name
		}
		all = append(all, fmt.Sprintf("%s type %d dev %q src %v scope %d metric %d table %d", r.Dst, r.Type, dev, r.Src, r.Scope, r.Priority, r.Table))
	}
	slices.Sort(all)
	return all
}

// wantRoutes is what SetRoutes must have made of both networks.
var wantRoutes = []string{
	`100.96.0.0/16 type 1 dev "overlay0" src 100.96.1.0 scope 253 metric 96 table 254`,
	`100.96.0.0/16 type 7 dev "" src <nil> scope 0 metric 9600 table 254`,
	`fd96::/48 type 1 dev "overlay0" src fd96:0:0:1:: scope 0 metric 96 table 254`,
	`fd96::/48 type 7 dev "" src <nil> scope 0 metric 9600 table 254`,
}

func TestSetRoutes(t *testing.T) {
	x, _ := configured(t)
	for range 2 {
		if got := x.ourRoutes(); !slices.Equal(got, wantRoutes) {
			t.Fatalf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(wantRoutes, "\n"))
		}
		x.ok(x.k.SetRoutes("overlay0", overlay, ownAddrs))
	}
	for i, to := range addrs("100.96.2.3", "fd96:0:0:2::3") {
		r, err := x.h.RouteGet(to.AsSlice())
		x.ok(err)
		tun := x.link("overlay0").Attrs()
		if r[0].LinkIndex != tun.Index || !r[0].Src.Equal(ownAddrs[i].AsSlice()) || r[0].MTU != 0 || tun.MTU != 1472 {
			t.Errorf("%s: %+v by a device with MTU %d", to, r[0], tun.MTU)
		}
	}
}

// Setting the same routes again must not take any away, not even for a moment.
func TestSetRoutesAgainChangesNothing(t *testing.T) {
	x, _ := configured(t)
	changes := make(chan netlink.RouteUpdate, 64)
	done := make(chan struct{})
	x.ok(netlink.RouteSubscribe(changes, done)) // on this thread: in this namespace
	x.ok(x.k.SetRoutes("overlay0", overlay, ownAddrs))
	// A route of our own making marks the end of what can have happened.
	x.route("203.0.113.0/24", netlink.Route{LinkIndex: x.link("overlay0").Attrs().Index})
	for u := range changes {
		if u.Dst != nil && u.Dst.String() == "203.0.113.0/24" {
			break
		}
		if u.Protocol == kernel.RouteProtocol {
			t.Errorf("route %v was changed (type %d)", u.Dst, u.Type)
		}
	}
	close(done)
	for range changes {
	}
}

func TestSetRoutesNewSource(t *testing.T) {
	x, _ := configured(t)
	moved := addrs("100.96.7.0", "fd96:0:0:7::")
	x.ok(x.k.SetAddrs("overlay0", slices.Concat(ownAddrs, moved)))
	x.ok(x.k.SetRoutes("overlay0", overlay, moved))
	x.ok(x.k.SetAddrs("overlay0", moved))
	want := strings.NewReplacer("100.96.1.0", "100.96.7.0", "fd96:0:0:1::", "fd96:0:0:7::").Replace(strings.Join(wantRoutes, "\n"))
	if got := strings.Join(x.ourRoutes(), "\n"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}

	// Without a source, and with one network less.
	x.ok(x.k.SetRoutes("overlay0", overlay[:1], nil))
	want = `100.96.0.0/16 type 1 dev "overlay0" src <nil> scope 253 metric 96 table 254
100.96.0.0/16 type 7 dev "" src <nil> scope 0 metric 9600 table 254`
	if got := strings.Join(x.ourRoutes(), "\n"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if err := x.k.SetRoutes("overlay0", overlay, addrs("100.96.9.9", "fd96::9")); err == nil || !strings.Contains(err.Error(), "address of this host") {
		t.Errorf("a source that is no address of this host: %v", err)
	}
}

// After kill -9 the TUN is gone with its routes and addresses, the unreachable
// routes are not: nothing leaks, and the next daemon takes them over.
func TestKilled(t *testing.T) {
	x, tun := configured(t)
	eth := x.veth("eth0", "192.0.2.1/24", "2001:db8::1/64")
	x.route("0.0.0.0/0", netlink.Route{LinkIndex: eth.Attrs().Index, Gw: addrs("192.0.2.254")[0].AsSlice()})
	x.route("::/0", netlink.Route{LinkIndex: eth.Attrs().Index, Gw: addrs("2001:db8::ff")[0].AsSlice()})
	x.ok(tun.Close())

	want := []string{wantRoutes[1], wantRoutes[3]}
	if got := x.ourRoutes(); !slices.Equal(got, want) {
		t.Fatalf("left behind: %q, want %q", got, want)
	}
	for _, to := range addrs("100.96.2.3", "fd96:0:0:2::3") {
		if r, err := x.h.RouteGet(to.AsSlice()); !errors.Is(err, unix.EHOSTUNREACH) {
			t.Errorf("%s leaks: %+v, %v", to, r, err)
		}
	}
	found, err := x.k.Conflicts(overlay, "overlay0", ownNets)
	if err != nil || len(found) != 0 {
		t.Errorf("our own leavings are a conflict: %v, %v", found, err)
	}

	next, err := kernel.Open(kernel.Config{})
	x.ok(err)
	defer next.Close()
	x.tun("overlay0", unix.IFF_TUN)
	x.ok(next.ConfigureDevice("overlay0", 1472, false, ownAddrs))
	x.ok(next.SetRoutes("overlay0", overlay, ownAddrs))
	if got := x.ourRoutes(); !slices.Equal(got, wantRoutes) {
		t.Errorf("after the restart:\n%s", strings.Join(got, "\n"))
	}
}

// Routes of ours with other metrics, as another version would have made them, are
// replaced: exactly those, whatever is beside them.
func TestOtherMetrics(t *testing.T) {
	x, _ := configured(t)
	tun := x.link("overlay0").Attrs().Index
	for _, n := range overlay {
		for _, metric := range []int{1, 97, 20000} {
			x.route(n.String(), netlink.Route{LinkIndex: tun, Protocol: kernel.RouteProtocol, Priority: metric})
			x.route(n.String(), netlink.Route{Type: unix.RTN_UNREACHABLE, Protocol: kernel.RouteProtocol, Priority: metric + 1})
		}
	}
	x.ok(x.k.SetRoutes("overlay0", overlay, ownAddrs))
	if got := x.ourRoutes(); !slices.Equal(got, wantRoutes) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(wantRoutes, "\n"))
	}
}

// A dead daemon's unreachable routes for networks that are not used any more go;
// those of another one that is alive stay.
func TestStaleNetworks(t *testing.T) {
	x, tun := configured(t)
	x.ok(tun.Close())
	x.tun("overlay1", unix.IFF_TUN)
	x.configure("overlay1", nil)
	x.ok(x.k.SetRoutes("overlay1", prefixes("10.99.0.0/16", "fd99::/48"), nil))
	for _, r := range x.ours() {
		if d := r.Dst.String(); d != "10.99.0.0/16" && d != "fd99::/48" {
			t.Errorf("stale: %s", d)
		}
	}
	x.tun("overlay2", unix.IFF_TUN)
	x.configure("overlay2", nil)
	x.ok(x.k.SetRoutes("overlay2", prefixes("10.98.0.0/16", "fd98::/48"), nil))
	if got := x.ours(); len(got) != 8 {
		t.Errorf("%d routes, want 4 of each daemon: %v", len(got), got)
	}
	// A third one that wants the network of a living one is refused.
	err := x.k.SetRoutes("overlay2", prefixes("10.99.0.0/16"), nil)
	if !errors.Is(err, kernel.ErrRouteConflict) || !strings.Contains(err.Error(), "overlay1") {
		t.Errorf("got %v, want ErrRouteConflict that names overlay1", err)
	}
}

func TestSetRoutesConflict(t *testing.T) {
	for _, c := range []struct {
		dst  string
		r    netlink.Route
		text string
	}{
		{"100.96.0.0/16", netlink.Route{}, "route 100.96.0.0/16 dev eth0"},
		{"100.96.0.0/16", netlink.Route{Priority: kernel.RouteMetric}, "route 100.96.0.0/16 dev eth0 metric 96"},
		{"100.96.0.0/16", netlink.Route{Type: unix.RTN_BLACKHOLE, Priority: 9999}, "blackhole route 100.96.0.0/16 metric 9999"},
		{"fd96::/48", netlink.Route{Priority: kernel.RouteMetric}, "route fd96::/48 dev eth0 metric 96"},
		{"fd96::/48", netlink.Route{Type: unix.RTN_UNREACHABLE, Priority: kernel.UnreachableMetric}, "unreachable route fd96::/48 metric 9600"},
	} {
		x := newHost(t)
		eth := x.veth("eth0", "192.0.2.1/24", "2001:db8::1/64")
		if c.r.Type == 0 {
			c.r.LinkIndex = eth.Attrs().Index
		}
		x.route(c.dst, c.r)
		x.tun("overlay0", unix.IFF_TUN)
		x.configure("overlay0", ownAddrs)
		before := x.routes()
		err := x.k.SetRoutes("overlay0", overlay, ownAddrs)
		if !errors.Is(err, kernel.ErrRouteConflict) || !strings.Contains(err.Error(), c.text) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s %v: %v, want one line with %q", c.dst, c.r, err, c.text)
		}
		x.same(before, x.routes())
	}
	// A route for the same prefix in another table is none of our business.
	x := newHost(t)
	eth := x.veth("eth0", "192.0.2.1/24")
	x.route("100.96.0.0/16", netlink.Route{LinkIndex: eth.Attrs().Index, Table: 100})
	x.tun("overlay0", unix.IFF_TUN)
	x.configure("overlay0", ownAddrs)
	x.ok(x.k.SetRoutes("overlay0", overlay, ownAddrs))
}
