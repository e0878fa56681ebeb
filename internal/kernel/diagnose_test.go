package kernel_test

import (
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/internal/kernel"
)

// healthy is a host with nothing wrong: underlay, TUN, bridge, forwarding on.
func healthy(t *testing.T) *host {
	t.Helper()
	x, _ := configured(t)
	x.veth("eth0", "192.0.2.1/24", "2001:db8::1/64")
	x.veth("cni0", "100.96.1.1/24", "fd96:0:0:1::1/64")
	x.route("0.0.0.0/0", netlink.Route{LinkIndex: x.link("eth0").Attrs().Index, Gw: addrs("192.0.2.254")[0].AsSlice()})
	x.route("::/0", netlink.Route{LinkIndex: x.link("eth0").Attrs().Index, Gw: addrs("2001:db8::ff")[0].AsSlice()})
	x.sysctl("ipv4/ip_forward", "1")
	x.sysctl("ipv6/conf/all/forwarding", "1")
	x.sysctl("ipv4/conf/all/rp_filter", "0")
	x.sysctl("ipv4/conf/eth0/rp_filter", "0")
	return x
}

var diagnosis = kernel.DiagnoseConfig{Device: "overlay0", Underlay: "eth0", Networks: overlay, Own: ownNets}

// expect compares the findings with want, each a code and a part of the text.
func (x *host) expect(cfg kernel.DiagnoseConfig, want ...[2]string) {
	x.Helper()
	found := x.k.Diagnose(cfg)
	for i, f := range found {
		if i >= len(want) {
			x.Errorf("unexpected: %+v", f)
		} else if f.Code != want[i][0] || !strings.Contains(f.Text, want[i][1]) || strings.Contains(f.Text, "\n") {
			x.Errorf("got %s: %s\nwant %s: ...%s", f.Code, f.Text, want[i][0], want[i][1])
		}
	}
	if len(found) < len(want) {
		x.Errorf("only %v, want %v", codes(found), want)
	}
}

func TestDiagnoseHealthy(t *testing.T) {
	x := healthy(t)
	x.expect(diagnosis)
	// Things that are no obstacle.
	x.route("100.64.0.0/10", netlink.Route{LinkIndex: x.link("eth0").Attrs().Index})
	x.route("100.96.9.0/24", netlink.Route{LinkIndex: x.link("eth0").Attrs().Index, Table: 100})
	x.route("100.96.128.0/17", netlink.Route{LinkIndex: x.link("eth0").Attrs().Index, Protocol: kernel.RouteProtocol})
	x.route("fd96:0:0:8000::/49", netlink.Route{LinkIndex: x.link("eth0").Attrs().Index, Protocol: kernel.RouteProtocol})
	x.rule(netlink.FAMILY_V4, func(r *netlink.Rule) { r.Priority, r.Table, r.Mark = 1000, 100, 0x42 })
	x.expect(diagnosis)
}

// Nothing to report where nothing can be found out.
func TestDiagnoseWithoutDevice(t *testing.T) {
	x := newHost(t)
	x.sysctl("ipv4/ip_forward", "1")
	x.sysctl("ipv6/conf/all/forwarding", "1")
	x.expect(kernel.DiagnoseConfig{Device: "overlay0", Underlay: "eth0", Networks: overlay, Own: ownNets})
	x.expect(kernel.DiagnoseConfig{})
}

func TestDiagnoseForwarding(t *testing.T) {
	x := healthy(t)
	x.sysctl("ipv4/conf/overlay0/forwarding", "0")
	x.expect(diagnosis, [2]string{kernel.CodeForwarding4, "sysctl -w net.ipv4.conf.overlay0.forwarding=1"})
	x.sysctl("ipv4/ip_forward", "0")
	x.expect(diagnosis, [2]string{kernel.CodeForwarding4, "sysctl -w net.ipv4.ip_forward=1"})
	x.sysctl("ipv6/conf/all/forwarding", "0")
	x.expect(diagnosis,
		[2]string{kernel.CodeForwarding4, "sysctl -w net.ipv4.ip_forward=1"},
		[2]string{kernel.CodeForwarding6, "sysctl -w net.ipv6.conf.all.forwarding=1 (and net.ipv6.conf.eth0.accept_ra=2 first"})
	only4, only6 := diagnosis, diagnosis
	only4.Networks, only6.Networks = overlay[:1], overlay[1:]
	x.expect(only4, [2]string{kernel.CodeForwarding4, ""})
	x.expect(only6, [2]string{kernel.CodeForwarding6, ""})
}

func TestDiagnoseRPFilter(t *testing.T) {
	x := healthy(t)
	x.sysctl("ipv4/conf/eth0/rp_filter", "1")
	under := [2]string{kernel.CodeStrictRPFilter, "sysctl -w net.ipv4.conf.eth0.rp_filter=2"}
	x.expect(diagnosis, under)
	x.sysctl("ipv4/conf/eth0/rp_filter", "0")
	x.sysctl("ipv4/conf/all/rp_filter", "1") // our device is loose of its own
	x.expect(diagnosis, under)
	x.sysctl("ipv4/conf/overlay0/rp_filter", "0")
	x.expect(diagnosis, [2]string{kernel.CodeStrictRPFilter, "sysctl -w net.ipv4.conf.overlay0.rp_filter=2"}, under)
	only6 := diagnosis
	only6.Networks = overlay[1:]
	x.expect(only6)
	x.sysctl("ipv4/conf/all/rp_filter", "2")
	x.expect(diagnosis)
}

// A device name with a dot is spelled as sysctl(8) wants it.
func TestDiagnoseRPFilterVLAN(t *testing.T) {
	x := healthy(t)
	x.veth("eth0.12", "198.51.100.1/24")
	x.sysctl("ipv4/conf/eth0.12/rp_filter", "1")
	cfg := diagnosis
	cfg.Underlay = "eth0.12"
	x.expect(cfg, [2]string{kernel.CodeStrictRPFilter, "net.ipv4.conf.eth0/12.rp_filter=2"})
}

func (x *host) rule(family int, set func(*netlink.Rule)) {
	x.Helper()
	r := netlink.NewRule()
	r.Family = family
	set(r)
	x.ok(x.h.RuleAdd(r))
}

func TestDiagnoseRoutes(t *testing.T) {
	eth := func(x *host) int { return x.link("eth0").Attrs().Index }
	for _, c := range []struct {
		name  string
		setup func(*host)
		want  [][2]string
	}{
		{"better metric", func(x *host) {
			x.route("100.96.0.0/16", netlink.Route{LinkIndex: eth(x), Priority: 50})
			x.route("fd96::/48", netlink.Route{LinkIndex: eth(x), Priority: 50})
		}, [][2]string{
			{kernel.CodeCoveringRoute, "packets for 100.96.0.0/16, part of the overlay network 100.96.0.0/16, leave the overlay by the route 100.96.0.0/16 dev eth0 metric 50"},
			{kernel.CodeCoveringRoute, "by the route fd96::/48 dev eth0 metric 50"}}},
		{"worse metric", func(x *host) {
			x.route("100.96.0.0/16", netlink.Route{LinkIndex: eth(x), Priority: 500})
			x.route("fd96::/48", netlink.Route{LinkIndex: eth(x), Priority: 500})
		}, nil},
		{"more specific", func(x *host) {
			x.route("100.96.77.8/29", netlink.Route{LinkIndex: eth(x)})
			x.route("fd96:0:0:77:1::/80", netlink.Route{LinkIndex: eth(x)})
		}, [][2]string{
			{kernel.CodeCoveringRoute, "packets for 100.96.77.8/29, part of the overlay network 100.96.0.0/16, leave the overlay by the route 100.96.77.8/29 dev eth0"},
			{kernel.CodeCoveringRoute, "by the route fd96:0:0:77:1::/80 dev eth0"}}},
		{"refusing", func(x *host) {
			x.route("100.96.128.0/17", netlink.Route{Type: unix.RTN_BLACKHOLE})
			x.route("100.96.64.0/24", netlink.Route{Type: unix.RTN_PROHIBIT})
			x.route("fd96:0:0:8000::/49", netlink.Route{Type: unix.RTN_UNREACHABLE})
		}, [][2]string{
			{kernel.CodeCoveringRoute, "by the blackhole route 100.96.128.0/17"},
			{kernel.CodeCoveringRoute, "by the prohibit route 100.96.64.0/24"},
			{kernel.CodeCoveringRoute, "by the unreachable route fd96:0:0:8000::/49"}}},
		{"own subnet", func(x *host) {
			x.route("100.96.1.64/26", netlink.Route{LinkIndex: eth(x)})
			x.route("fd96:0:0:1:8000::/65", netlink.Route{LinkIndex: eth(x)})
		}, nil},
		{"policy rule", func(x *host) {
			x.route("0.0.0.0/0", netlink.Route{LinkIndex: eth(x), Table: 52})
			x.route("::/0", netlink.Route{LinkIndex: eth(x), Table: 52})
			x.rule(netlink.FAMILY_V4, func(r *netlink.Rule) { r.Priority, r.Table = 5270, 52 })
			x.rule(netlink.FAMILY_V6, func(r *netlink.Rule) { r.Priority, r.Table = 5271, 52 })
		}, [][2]string{
			{kernel.CodePolicyRule, "because of the policy rule 5270: from all lookup 52: remove it, or put one in front of it: ip rule add priority 5269 to 100.96.0.0/16 lookup main"},
			{kernel.CodePolicyRule, "because of the policy rule 5271: from all lookup 52: remove it, or put one in front of it: ip -6 rule add priority 5270 to fd96::/48 lookup main"}}},
		{"policy rule for containers", func(x *host) {
			x.route("0.0.0.0/0", netlink.Route{LinkIndex: eth(x), Table: 52})
			x.route("::/0", netlink.Route{LinkIndex: eth(x), Table: 52})
			x.rule(netlink.FAMILY_V4, func(r *netlink.Rule) { r.Priority, r.Table, r.Src = 90, 52, mustNet("100.96.1.0/24") })
			x.rule(netlink.FAMILY_V6, func(r *netlink.Rule) { r.Priority, r.Table, r.IifName = 91, 52, "cni0" })
		}, [][2]string{
			{kernel.CodePolicyRule, "90: from 100.96.1.0/24 lookup 52"},
			{kernel.CodePolicyRule, "91: from all iif cni0 lookup 52"}}},
		{"policy rule that refuses", func(x *host) {
			x.rule(netlink.FAMILY_V4, func(r *netlink.Rule) {
				r.Priority, r.Type, r.Dst = 90, unix.RTN_UNREACHABLE, mustNet("100.96.0.0/16")
			})
		}, [][2]string{{kernel.CodePolicyRule, "90: from all to 100.96.0.0/16"}}},
		{"policy rule that catches nothing of ours", func(x *host) {
			x.route("0.0.0.0/0", netlink.Route{LinkIndex: eth(x), Table: 52})
			x.rule(netlink.FAMILY_V4, func(r *netlink.Rule) { r.Priority, r.Table, r.Dst = 90, 52, mustNet("10.0.0.0/8") })
			x.rule(netlink.FAMILY_V6, func(r *netlink.Rule) { r.Priority, r.Table = 91, 77 }) // an empty table
		}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := healthy(t)
			c.setup(x)
			x.expect(diagnosis, c.want...)
		})
	}
}

// Diagnose writes nothing.
func TestDiagnoseChangesNothing(t *testing.T) {
	x := healthy(t)
	x.addDropPolicy()
	before := x.routes()
	x.k.Diagnose(diagnosis)
	x.same(before, x.routes())
}
