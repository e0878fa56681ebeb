package kernel_test

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/internal/kernel"
)

// hardware is a MAC as the library wants it.
func hardware(mac [6]byte) net.HardwareAddr { return mac[:] }

// delRoutes removes all routes of a family and table that have our protocol.
func (x *fastNode) delRoutes(family int, mine func(netlink.Route) bool) {
	x.Helper()
	all, err := x.h.RouteListFiltered(family, &netlink.Route{}, netlink.RT_FILTER_TABLE)
	x.ok(err)
	n := 0
	for _, r := range all {
		if r.Protocol == kernel.RouteProtocol && mine(r) {
			x.ok(x.h.RouteDel(&r))
			n++
		}
	}
	if n == 0 {
		x.Fatal("there were none")
	}
}

func inMain(r netlink.Route) bool    { return r.Table == unix.RT_TABLE_MAIN }
func notInMain(r netlink.Route) bool { return r.Table != unix.RT_TABLE_MAIN }

// delRules removes our policy rules.
func (x *fastNode) delRules(family int) {
	x.Helper()
	all, err := x.h.RuleList(family)
	x.ok(err)
	for _, r := range all {
		if r.Protocol == kernel.RouteProtocol {
			r.Family = family
			x.ok(x.h.RuleDel(&r))
		}
	}
}

func (x *fastNode) sysctl(key, value string) {
	x.Helper()
	x.ok(x.host.Sysctl("net/"+key, value))
}

// Whatever somebody does to what is ours, Check sees it, mends it, and then has
// nothing more to do.
func TestFastRepair(t *testing.T) {
	n := fastNodes(t, 3)
	a, b, c := n[0], n[1], n[2]
	ready(b, a)
	a.apply(b.peer(b.host.Addr4(), kernel.FastVXLAN), c.direct(kernel.FastDirect))
	c.apply(a.direct(kernel.FastDirect))
	a.pings(b)
	a.pings(c)
	before := a.state()
	fdb := func(dst string) *netlink.Neigh {
		return &netlink.Neigh{LinkIndex: a.link(vx4).Attrs().Index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF, State: netlink.NUD_PERMANENT,
			HardwareAddr: hardware(b.cfg.MAC), IP: net.ParseIP(dst)}
	}
	neigh := func(ip net.IP, last byte) *netlink.Neigh {
		return &netlink.Neigh{LinkIndex: a.link(vx4).Attrs().Index, State: netlink.NUD_PERMANENT, HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, last}, IP: ip}
	}
	ours := func(r netlink.Route) *netlink.Route {
		r.Protocol, r.LinkIndex = kernel.RouteProtocol, a.link(vx4).Attrs().Index
		return &r
	}
	for _, c := range []struct {
		name string
		harm func()
	}{
		{"link deleted", func() { a.ok(a.h.LinkDel(a.link(vx4))) }},
		{"both links deleted", func() { a.ok(a.h.LinkDel(a.link(vx4))); a.ok(a.h.LinkDel(a.link(vx6))) }},
		{"link renamed", func() { a.ok(a.h.LinkSetName(a.link(vx4), "mine")) }},
		{"links swapped", func() {
			a.ok(a.h.LinkSetName(a.link(vx4), "mine"))
			a.ok(a.h.LinkSetName(a.link(vx6), vx4))
			a.ok(a.h.LinkSetName(a.link("mine"), vx6))
		}},
		{"MAC changed", func() { a.ok(a.h.LinkSetHardwareAddr(a.link(vx4), net.HardwareAddr{2, 0, 0, 0, 9, 9})) }},
		{"link down", func() { a.ok(a.h.LinkSetDown(a.link(vx4))) }},
		{"link down and up", func() { a.ok(a.h.LinkSetDown(a.link(vx4))); a.ok(a.h.LinkSetUp(a.link(vx4))) }},
		{"MTU", func() { a.ok(a.h.LinkSetMTU(a.link(vx4), 1400)) }},
		{"MTU too small for IPv6", func() { a.ok(a.h.LinkSetMTU(a.link(vx4), 1000)) }},
		{"other settings", func() {
			a.ok(a.h.LinkDel(a.link(vx4)))
			a.ok(a.h.LinkAdd(&netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: vx4}, VxlanId: 2, Port: 4789, SrcAddr: a.host.Addr4().AsSlice(), Learning: true}))
			a.ok(a.h.LinkSetAlias(a.link(vx4), kernel.DeviceAlias))
		}},
		{"a bridge's port", func() {
			a.ok(a.h.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br7"}}))
			a.ok(a.h.LinkSetMaster(a.link(vx4), a.link("br7")))
			a.repairs()
			a.ok(a.h.LinkDel(a.link("br7")))
			a.ok(a.h.LinkSetDown(a.link(vx4)))
		}},
		{"a hop limit", func() {
			a.ok(a.host.Do(func() error {
				msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
				msg.Index = int32(a.link(vx4).Attrs().Index)
				info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
				info.AddRtAttr(nl.IFLA_INFO_KIND, []byte("vxlan"))
				info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(nl.IFLA_VXLAN_TTL, []byte{3})
				req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK)
				req.AddData(msg)
				req.AddData(info)
				_, err := req.Execute(unix.NETLINK_ROUTE, 0)
				return err
			}))
		}},
		{"IPv6 off", func() { a.sysctl("ipv6/conf/"+vx4+"/disable_ipv6", "1") }},
		{"link-local address wanted", func() { a.ok(a.h.LinkSetIP6AddrGenMode(a.link(vx4), 0)) }},
		{"strict reverse-path filter", func() { a.sysctl("ipv4/conf/"+vx4+"/rp_filter", "1") }},
		{"addresses", func() {
			for _, dev := range []string{vx4, vx6} {
				for _, ip := range a.own {
					a.ok(a.h.AddrDel(a.link(dev), &netlink.Addr{IPNet: mustNet(single(ip).String())}))
				}
			}
		}},
		{"FDB flushed", func() { a.ok(a.h.NeighDel(fdb("192.0.2.2"))) }},
		{"FDB entry led elsewhere", func() { a.ok(a.h.NeighSet(fdb("192.0.2.99"))) }},
		{"FDB entry with a VNI of its own", func() { e := fdb("192.0.2.2"); e.VNI = 77; a.ok(a.h.NeighDel(fdb("192.0.2.2"))); a.ok(a.h.NeighSet(e)) }},
		{"FDB entry that is not permanent", func() { e := fdb("192.0.2.2"); e.State = netlink.NUD_REACHABLE; a.ok(a.h.NeighSet(e)) }},
		{"stray FDB entries", func() {
			e := fdb("192.0.2.9")
			e.HardwareAddr = net.HardwareAddr{2, 0, 0, 0, 0, 9}
			a.ok(a.h.NeighSet(e))
			e.HardwareAddr = make(net.HardwareAddr, 6)
			a.ok(a.h.NeighAppend(e))
			e.IP = net.ParseIP("192.0.2.8")
			a.ok(a.h.NeighAppend(e))
		}},
		{"neighbours deleted", func() {
			a.ok(a.h.NeighDel(neigh(b.own[0].AsSlice(), 2)))
			a.ok(a.h.NeighDel(neigh(net.ParseIP("fe80::ff:fe00:2"), 2)))
		}},
		{"neighbour changed", func() { a.ok(a.h.NeighSet(neigh(b.own[0].AsSlice(), 7))) }},
		{"neighbour to be found out", func() { e := neigh(b.own[0].AsSlice(), 2); e.State = netlink.NUD_STALE; a.ok(a.h.NeighSet(e)) }},
		{"stray neighbour", func() { a.ok(a.h.NeighSet(neigh(net.ParseIP("100.96.77.0"), 7))) }},
		{"main routes", func() { a.delRoutes(netlink.FAMILY_V4, inMain); a.delRoutes(netlink.FAMILY_V6, inMain) }},
		{"routes for probes", func() { a.delRoutes(netlink.FAMILY_V4, notInMain); a.delRoutes(netlink.FAMILY_V6, notInMain) }},
		{"main route changed", func() {
			a.ok(a.h.RouteReplace(ours(netlink.Route{Dst: mustNet("100.96.2.0/24"), Gw: net.ParseIP("100.96.2.0"), Flags: unix.RTNH_F_ONLINK, Priority: 96, MTU: 1300})))
		}},
		{"main route without gateway", func() {
			a.delRoutes(netlink.FAMILY_V6, inMain)
			a.ok(a.h.RouteReplace(ours(netlink.Route{Dst: mustNet("100.96.2.0/24"), Scope: netlink.SCOPE_LINK, Priority: 96})))
			a.ok(a.h.RouteReplace(ours(netlink.Route{Dst: mustNet("fd96:0:0:2::/64"), Priority: 96})))
		}},
		{"second gateway", func() {
			a.ok(a.h.RouteAppend(ours(netlink.Route{Dst: mustNet("fd96:0:0:2::/64"), Gw: net.ParseIP("fe80::7"), Priority: 96})))
		}},
		{"stray routes", func() {
			a.ok(a.h.RouteAdd(ours(netlink.Route{Dst: mustNet("100.96.2.0/24"), Gw: net.ParseIP("100.96.2.0"), Flags: unix.RTNH_F_ONLINK, Priority: 3})))
			a.ok(a.h.RouteAdd(ours(netlink.Route{Dst: mustNet("100.96.88.0/24"), Scope: netlink.SCOPE_LINK, Table: 9700})))
			a.ok(a.h.RouteAdd(ours(netlink.Route{Dst: mustNet("fd96:0:0:88::/64"), Table: 9700})))
		}},
		{"rules", func() { a.delRules(netlink.FAMILY_V4); a.delRules(netlink.FAMILY_V6) }},
		{"stray rule", func() {
			r := netlink.NewRule()
			r.Family, r.Priority, r.Protocol, r.OifName, r.Table = netlink.FAMILY_V6, 96, kernel.RouteProtocol, vx4, 9777
			a.ok(a.h.RuleAdd(r))
		}},
		{"underlay down and up", func() {
			a.ok(a.host.SetUp("eth0", false))
			a.ok(a.host.SetUp("eth0", true))
			// The kernel has removed the IPv6 address.
			a.ok(a.h.AddrAdd(a.link("eth0"), &netlink.Addr{IPNet: addrNet("2001:db8::1/64"), Flags: unix.IFA_F_NODAD}))
		}},
		{"all at once", func() {
			a.ok(a.h.LinkDel(a.link(vx6)))
			a.ok(a.h.LinkSetHardwareAddr(a.link(vx4), net.HardwareAddr{2, 0, 0, 0, 9, 9}))
			a.ok(a.h.LinkSetDown(a.link(vx4)))
			a.delRules(netlink.FAMILY_V4)
			a.ok(a.h.NeighDel(fdb("192.0.2.2")))
		}},
	} {
		c.harm()
		did := a.repaired()
		t.Logf("%s: %s", c.name, strings.Join(did, "; "))
		a.same(before)
		a.pings(b)
		if t.Failed() {
			t.Fatalf("%s: see above", c.name)
		}
	}
	a.pings(n[2])
}

// repairs lets Check do what there is to do.
func (x *fastNode) repairs() {
	x.Helper()
	_, res := x.f.Check()
	x.clean(res)
}

// addrNet is an address with its prefix length.
func addrNet(s string) *net.IPNet {
	p := netip.MustParsePrefix(s)
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
