package kernel

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// RouteProtocol is the rtm_protocol of every route that overlayd makes and the
// FRA_PROTOCOL of its policy rules (`proto 96` in ip-route(8) and `protocol 96`
// in ip-rule(8)), by which it knows its own again. Values above RTPROT_STATIC (4)
// "are not interpreted by kernel; they are just passed from user and back as is"
// (linux/include/uapi/linux/rtnetlink.h). 96 is taken neither there nor in
// iproute2's /etc/iproute2/rt_protos, and looks like the 100.96.0.0/16 of our
// examples.
const RouteProtocol = 96

// The metrics of our routes, the same for IPv4 and IPv6. RouteMetric is better
// than what network managers give to routes that appear later (100 and up, and
// 1024, the kernel's default for IPv6, IP6_RT_PRIO_USER). UnreachableMetric is
// worse, so that the route counts only once the TUN and its route are gone:
// then the overlay's traffic is refused instead of leaving by the default route.
const (
	RouteMetric       = 96
	UnreachableMetric = 9600
)

// SetRoutes makes the routes of the overlay networks the only ones of ours
// that are not part of a more specific path: each network to the TUN device
// dev with RouteMetric, scope link and, as source, the address of its family
// in sources, and each network unreachable with UnreachableMetric. Both are in
// the main table.
//
// What stands already is adopted, what differs is replaced in one step, and
// what a dead daemon left of networks that are no longer used is removed.
// A family without a source gets a route without one. Each source must be one
// of this host's addresses: see SetAddrs.
//
// The error is ErrRouteConflict, naming the route, when another program, or
// another overlayd, has a route for one of the networks in the main table.
// Nothing has been changed then.
func (k *Kernel) SetRoutes(dev string, networks []netip.Prefix, sources []netip.Addr) error {
	if err := k.lock(); err != nil {
		return err
	}
	defer k.mu.Unlock()

	l, err := k.tun(dev)
	if err != nil {
		return err
	}
	links, err := k.links()
	if err != nil {
		return err
	}
	all, err := k.routes()
	if err != nil {
		return err
	}
	index := l.Attrs().Index
	for _, r := range all {
		if r.table != unix.RT_TABLE_MAIN || !slices.Contains(networks, r.dst) {
			continue
		}
		if !r.ours() {
			return fmt.Errorf("%w: there is a %s already: remove it, or choose another overlay network",
				ErrRouteConflict, r.describe(links))
		}
		if r.otherTUN(links, index) {
			return fmt.Errorf("%w: another overlayd has the %s: stop it, or choose another overlay network",
				ErrRouteConflict, r.describe(links))
		}
	}

	var want []netlink.Route
	for _, n := range networks {
		want = append(want, tunRoute(n, index, sources), unreachableRoute(n))
	}
	for _, w := range want {
		if err := k.ensureRoute(w, all); err != nil {
			return err
		}
	}
	for _, r := range all {
		if !r.ours() || slices.ContainsFunc(want, r.is) {
			continue
		}
		stale := r.link == index ||
			r.table == unix.RT_TABLE_MAIN && slices.Contains(networks, r.dst) ||
			r.orphaned(all, networks, index)
		if !stale {
			continue
		}
		if err := k.deleteRoute(r); err != nil {
			return fmt.Errorf("removing the stale %s: %w", r.describe(links), err)
		}
		k.log.Info("removed a stale route", "route", r.describe(links))
	}
	return nil
}

// tunRoute is the route of network n to the TUN device.
func tunRoute(n netip.Prefix, index int, sources []netip.Addr) netlink.Route {
	r := netlink.Route{
		Family: familyOf(n.Addr()), Dst: ipNet(n), LinkIndex: index, Table: unix.RT_TABLE_MAIN,
		Priority: RouteMetric, Protocol: RouteProtocol, Type: unix.RTN_UNICAST,
	}
	if n.Addr().Is4() {
		r.Scope = unix.RT_SCOPE_LINK // IPv6 routes have no scope
	}
	for _, s := range sources {
		if s = s.Unmap(); s.IsValid() && s.BitLen() == n.Addr().BitLen() {
			r.Src = s.AsSlice()
			break
		}
	}
	return r
}

// unreachableRoute stays behind the TUN's.
func unreachableRoute(n netip.Prefix) netlink.Route {
	return netlink.Route{
		Family: familyOf(n.Addr()), Dst: ipNet(n), Table: unix.RT_TABLE_MAIN,
		Priority: UnreachableMetric, Protocol: RouteProtocol, Type: unix.RTN_UNREACHABLE,
	}
}

// ensureRoute adds want unless it stands among have, where it may also stand in
// another form that is ours, and is then replaced. The caller holds k.mu.
func (k *Kernel) ensureRoute(want netlink.Route, have []route) error {
	add := k.h.RouteAdd // NLM_F_EXCL: never over somebody else's
	for _, r := range have {
		if !r.is(want) {
			continue
		}
		src, _ := netip.AddrFromSlice(want.Src)
		if r.src == src && (want.Type != unix.RTN_UNICAST || r.link == want.LinkIndex) && r.plain() {
			return nil
		}
		add = k.h.RouteReplace
	}
	err := add(&want)
	dst := prefixOf(want.Dst, want.Family)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EEXIST):
		return fmt.Errorf("%w: another program has just made a route for %s: remove it, or choose another overlay network",
			ErrRouteConflict, dst)
	case errors.Is(err, unix.EPERM):
		err = ErrPermission
	case errors.Is(err, unix.EINVAL) && want.Src != nil:
		err = fmt.Errorf("%w (is the source %s an address of this host?)", err, want.Src)
	}
	return fmt.Errorf("adding the route for %s: %w", dst, err)
}

// route is a route as the kernel lists it, in the terms of this package.
type route struct {
	dst      netip.Prefix
	table    int
	kind     int // rtm_type, RTN_UNICAST and so on
	protocol int
	metric   int
	link     int // outgoing interface, 0 if none or several
	src, gw  netip.Addr
	scope    netlink.Scope
	family   int
	multi    []int // outgoing interfaces of a multipath route
	tos      int
	onlink   bool // the gateway is taken to be on the link
	mtu      int  // 0: the outgoing interface's
}

// routes lists every route of every table and both families. The caller holds
// k.mu.
func (k *Kernel) routes() ([]route, error) {
	var all []route
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := dump(func() ([]netlink.Route, error) {
			return k.h.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		})
		if err != nil {
			return nil, fmt.Errorf("listing routes: %w", err)
		}
		for _, r := range list {
			dst := prefixOf(r.Dst, family)
			if !dst.IsValid() {
				continue
			}
			e := route{dst: dst, table: r.Table, kind: r.Type, protocol: int(r.Protocol), metric: r.Priority,
				link: r.LinkIndex, scope: r.Scope, family: family, tos: r.Tos, onlink: r.Flags&unix.RTNH_F_ONLINK != 0, mtu: r.MTU}
			e.src, _ = netip.AddrFromSlice(r.Src)
			e.gw, _ = netip.AddrFromSlice(r.Gw)
			for _, hop := range r.MultiPath {
				e.multi = append(e.multi, hop.LinkIndex)
			}
			all = append(all, e)
		}
	}
	return all, nil
}

// ours tells whether the route carries our protocol number.
func (r route) ours() bool { return r.protocol == RouteProtocol }

// plain tells whether the route has a single next hop and no gateway, as all
// of those that SetRoutes makes.
func (r route) plain() bool { return !r.gw.IsValid() && len(r.multi) == 0 }

// is tells whether the kernel would take r and w for the same entry of its
// table: same destination, table, metric and kind, both ours.
func (r route) is(w netlink.Route) bool {
	return r.ours() && r.dst == prefixOf(w.Dst, w.Family) && r.table == w.Table &&
		r.metric == w.Priority && r.kind == w.Type
}

// otherTUN tells whether r leads to a TUN device other than index: a process
// is alive behind it.
func (r route) otherTUN(links map[int]netlink.Link, index int) bool {
	l := links[r.link]
	return r.link != index && l != nil && isTUN(l)
}

// orphaned tells whether r is an unreachable route for a network that is none of
// networks and of no living daemon either, which would have a route of the same
// destination to its own TUN, one other than index.
func (r route) orphaned(all []route, networks []netip.Prefix, index int) bool {
	if r.kind != unix.RTN_UNREACHABLE || r.table != unix.RT_TABLE_MAIN {
		return false
	}
	for _, n := range networks {
		if inside(r.dst, n) {
			return false
		}
	}
	return !slices.ContainsFunc(all, func(o route) bool {
		return o.ours() && o.dst == r.dst && o.table == r.table && o.kind == unix.RTN_UNICAST && o.link != index
	})
}

// routeKinds are the words of ip-route(8) for rtm_type.
var routeKinds = map[int]string{
	unix.RTN_LOCAL: "local", unix.RTN_BROADCAST: "broadcast", unix.RTN_ANYCAST: "anycast",
	unix.RTN_MULTICAST: "multicast", unix.RTN_BLACKHOLE: "blackhole", unix.RTN_UNREACHABLE: "unreachable",
	unix.RTN_PROHIBIT: "prohibit", unix.RTN_THROW: "throw", unix.RTN_NAT: "nat",
}

// describe says in words which route it is, as "route ..." or "unreachable
// route ...", in the spelling of ip-route(8).
func (r route) describe(links map[int]netlink.Link) string {
	var b strings.Builder
	if kind := routeKinds[r.kind]; kind != "" {
		b.WriteString(kind + " ")
	}
	fmt.Fprintf(&b, "route %s", r.dst)
	if r.gw.IsValid() {
		fmt.Fprintf(&b, " via %s", r.gw)
	}
	for _, i := range append([]int{r.link}, r.multi...) {
		if l := links[i]; l != nil && !r.refuses() {
			fmt.Fprintf(&b, " dev %s", l.Attrs().Name)
		}
	}
	if r.table != unix.RT_TABLE_MAIN {
		fmt.Fprintf(&b, " table %s", tableName(r.table))
	}
	if r.metric != 0 {
		fmt.Fprintf(&b, " metric %d", r.metric)
	}
	return b.String()
}

// refuses tells whether the route answers packets with an error or drops them.
func (r route) refuses() bool {
	return r.kind == unix.RTN_UNREACHABLE || r.kind == unix.RTN_BLACKHOLE || r.kind == unix.RTN_PROHIBIT
}

// tableName spells a routing table as ip-route(8) does.
func tableName(t int) string {
	switch t {
	case unix.RT_TABLE_LOCAL:
		return "local"
	case unix.RT_TABLE_MAIN:
		return "main"
	case unix.RT_TABLE_DEFAULT:
		return "default"
	}
	return fmt.Sprint(t)
}

// deleteRoute removes a route of ours. Protocol, kind and metric are part of
// the request, and the kernel deletes only what matches all of them
// (fib_table_delete in linux/net/ipv4/fib_trie.c, ip6_route_del in
// linux/net/ipv6/route.c). One that is gone already is no error. The caller
// holds k.mu.
func (k *Kernel) deleteRoute(r route) error {
	if !r.ours() {
		return fmt.Errorf("refusing to delete a route of protocol %d", r.protocol)
	}
	req := &netlink.Route{
		Family: r.family, Dst: ipNet(r.dst), Table: r.table, Type: r.kind, Protocol: RouteProtocol,
		Priority: r.metric, LinkIndex: r.link, Scope: r.scope, Tos: r.tos,
	}
	if r.gw.IsValid() {
		req.Gw = r.gw.AsSlice()
	}
	err := k.h.RouteDel(req)
	switch {
	case errors.Is(err, unix.ESRCH), errors.Is(err, unix.ENODEV):
		return nil
	case errors.Is(err, unix.EPERM):
		return ErrPermission
	}
	return err
}

// familyOf is the address family of a.
func familyOf(a netip.Addr) int {
	if a.Is4() {
		return netlink.FAMILY_V4
	}
	return netlink.FAMILY_V6
}

// prefixOf turns a destination from netlink into a Prefix. A default route may
// come as a 16-byte 0.0.0.0 with an IPv4 mask, hence the family.
func prefixOf(n *net.IPNet, family int) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	ip := n.IP
	if family == netlink.FAMILY_V4 {
		ip = ip.To4()
	}
	addr, ok := netip.AddrFromSlice(ip)
	if !ok {
		return netip.Prefix{}
	}
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(addr, ones)
}

// inside tells whether p is outer or a part of it.
func inside(p, outer netip.Prefix) bool {
	return outer.Bits() <= p.Bits() && outer.Contains(p.Addr())
}
