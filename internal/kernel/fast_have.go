package kernel

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// held is a thing that is in the kernel, and for whom we have put it there: for
// nobody (the zero peerID) if it was there before.
type held[V comparable] struct {
	value V
	owner peerID
}

// fastHave is what there is of ours in the kernel, as read and as changed since.
type fastHave struct {
	addrs  map[vtepAddr]held[bool]
	fdb    map[fdbKey]held[fdbDst]
	neighs map[neighKey]held[[6]byte]
	rules  map[ruleKey]held[bool]      // false: another node's, or also
	routes map[routeKey]held[routeWay] // of all tables
	// foreign are the routes of others in the main table that win against ours to
	// the same destination.
	foreign map[netip.Prefix]string
	links   map[string]int // index by name
	names   map[int]string // and the other way round
}

// look makes the VXLAN devices what they must be, and then reads what there is.
// In this order, because the kernel drops a device's neighbours and routes when its
// MAC changes or it goes down. What was put in for whom is kept in mind. The
// caller holds k.mu.
func (f *Fast) look() (did []string, err error) {
	before := f.have
	f.stale = true
	for i := range f.vteps {
		did = append(did, f.ensureVTEP(i)...)
	}
	have, err := f.read()
	if err != nil {
		return did, fmt.Errorf("kernel paths: %w", permission(err))
	}
	if before != nil {
		remember(have.addrs, before.addrs)
		remember(have.fdb, before.fdb)
		remember(have.neighs, before.neighs)
		remember(have.rules, before.rules)
		remember(have.routes, before.routes)
	}
	f.have, f.stale = have, false
	return did, nil
}

// remember takes the owners over from what was there before.
func remember[K, V comparable](now, before map[K]held[V]) {
	for key, h := range now {
		h.owner = before[key].owner
		now[key] = h
	}
}

// read reads what there is. The caller holds k.mu.
func (f *Fast) read() (*fastHave, error) {
	h := &fastHave{
		addrs: make(map[vtepAddr]held[bool]), fdb: make(map[fdbKey]held[fdbDst]), neighs: make(map[neighKey]held[[6]byte]),
		rules: make(map[ruleKey]held[bool]), routes: make(map[routeKey]held[routeWay]),
		foreign: make(map[netip.Prefix]string), links: make(map[string]int), names: make(map[int]string),
	}
	links, err := f.k.links()
	if err != nil {
		return nil, err
	}
	for index, l := range links {
		h.links[l.Attrs().Name] = index
		h.names[index] = l.Attrs().Name
	}
	for i := range f.vteps {
		if err := f.readDevice(i, links, h); err != nil {
			return nil, err
		}
	}
	all, err := f.k.routes()
	if err != nil {
		return nil, err
	}
	for _, r := range all {
		if f.owns(r, links) {
			h.routes[r.key()] = held[routeWay]{value: r.way()}
		} else if r.beatsOurs() && insideAny(r.dst, f.cfg.Networks) {
			h.foreign[r.dst] = r.describe(links)
		}
	}
	rules, err := f.k.ourRules()
	if err != nil {
		return nil, err
	}
	for _, r := range rules {
		h.rules[ruleKey{r.Family, r.OifName, r.Table}] = held[bool]{value: f.ownsRule(r, all, links)}
	}
	return h, nil
}

// readDevice reads the addresses, FDB entries and neighbours of the VXLAN device of
// a family. All of them are ours, as the device is. The caller holds k.mu.
func (f *Fast) readDevice(i int, links map[int]netlink.Link, h *fastHave) error {
	l := links[f.vteps[i].index]
	if l == nil {
		return nil
	}
	addrs, err := f.k.addrs(l)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		if p := addrPrefix(a); a.Flags&ourAddrFlags != 0 && p.IsSingleIP() {
			h.addrs[vtepAddr{i, p.Addr()}] = held[bool]{}
		}
	}
	fdb, err := f.k.readFDB(f.vteps[i].index)
	if err != nil {
		return err
	}
	for _, e := range fdb {
		key := fdbKey{i, e.mac}
		if _, several := h.fdb[key]; several { // the kernel lists each destination by itself
			e.dst.odd = true
		}
		h.fdb[key] = held[fdbDst]{value: e.dst}
	}
	neighs, err := f.k.readNeighs(f.vteps[i].index)
	if err != nil {
		return err
	}
	for _, n := range neighs {
		// What is not permanent the kernel has made, and takes away again.
		if a, ok := netip.AddrFromSlice(n.IP); ok && n.State == netlink.NUD_PERMANENT {
			var mac [6]byte
			copy(mac[:], n.HardwareAddr)
			h.neighs[neighKey{i, a.Unmap()}] = held[[6]byte]{value: mac}
		}
	}
	return nil
}

// key is by what the kernel tells the route apart.
func (r route) key() routeKey { return routeKey{r.table, r.dst, r.metric, r.tos} }

// way is where the route leads.
func (r route) way() routeWay {
	return routeWay{link: r.link, gw: r.gw, src: r.src, onlink: r.onlink, mtu: r.mtu, kind: r.kind, scope: r.scope, multi: len(r.multi) > 0}
}

// beatsOurs tells whether the route, which is not ours, takes the packets that one
// of ours to the same destination would get. One of the kernel's does in any case:
// it stands for an address of this host, which is then on that network.
func (r route) beatsOurs() bool {
	return !r.ours() && r.table == unix.RT_TABLE_MAIN && r.tos == 0 &&
		(r.metric <= RouteMetric || r.protocol == unix.RTPROT_KERNEL)
}

// ourRules lists the policy rules that carry our protocol number and look as ours
// do. The caller holds k.mu.
func (k *Kernel) ourRules() ([]netlink.Rule, error) {
	var ours []netlink.Rule
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		all, err := dump(func() ([]netlink.Rule, error) { return k.h.RuleList(family) })
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT) {
			continue // a kernel without policy rules or IPv6: putting one in will tell
		}
		if err != nil {
			return nil, fmt.Errorf("listing policy rules: %w", err)
		}
		for _, r := range all {
			if r.Protocol == RouteProtocol && r.Priority == rulePriority && r.OifName != "" {
				r.Family = family
				ours = append(ours, r)
			}
		}
	}
	return ours, nil
}

// ownsRule tells whether the rule is this node's to remove: its link is one of
// our VXLAN devices, or another node on this host, which may have the same
// rule for a link, has no route in its table. all are all routes. The caller holds
// k.mu.
func (f *Fast) ownsRule(r netlink.Rule, all []route, links map[int]netlink.Link) bool {
	for i := range f.vteps {
		if r.OifName == f.vteps[i].name {
			return true
		}
	}
	for _, l := range links {
		if l.Attrs().Name == r.OifName && isVTEP(l) {
			return false
		}
	}
	return !slices.ContainsFunc(all, func(o route) bool { return o.ours() && o.table == r.Table && !f.owns(o, links) })
}

// ruleName says in words which policy rule of ours it is.
func ruleName(r netlink.Rule) string {
	name := "policy rule "
	if r.Family == netlink.FAMILY_V6 {
		name = "IPv6 policy rule "
	}
	return name + describeRule(r)
}

// deleteRule removes a policy rule of ours; one that is gone already is no error.
// The caller holds k.mu.
func (k *Kernel) deleteRule(r netlink.Rule) error {
	if r.Protocol != RouteProtocol {
		return fmt.Errorf("refusing to delete a policy rule of protocol %d", r.Protocol)
	}
	return gone(k.h.RuleDel(&r))
}

// fdbEntry is an entry of a VXLAN device's forwarding database.
type fdbEntry struct {
	mac [6]byte
	dst fdbDst
}

// readFDB lists the FDB of a VXLAN device. The caller holds k.mu.
func (k *Kernel) readFDB(index int) ([]fdbEntry, error) {
	// The request looks like one about links: the kernel reads the device from
	// that form only (valid_fdb_dump_legacy in linux/net/core/rtnetlink.c).
	msg := nl.NewIfInfomsg(unix.AF_BRIDGE)
	msg.Index = int32(index)
	msgs, err := dump(func() ([][]byte, error) {
		return k.request(unix.RTM_GETNEIGH, unix.NLM_F_DUMP, unix.RTM_NEWNEIGH, msg)
	})
	if err != nil {
		return nil, fmt.Errorf("listing an FDB: %w", err)
	}
	var all []fdbEntry
	for _, m := range msgs {
		n, err := netlink.NeighDeserialize(m)
		if err != nil {
			return nil, fmt.Errorf("listing an FDB: %w", err)
		}
		if n.LinkIndex != index || n.Flags&netlink.NTF_SELF == 0 {
			continue
		}
		var e fdbEntry
		copy(e.mac[:], n.HardwareAddr)
		addr, _ := netip.AddrFromSlice(n.IP)
		e.dst = fdbDst{addr: addr.Unmap(), odd: n.State&netlink.NUD_PERMANENT == 0 || n.VNI != 0 || hasPort(m)}
		all = append(all, e)
	}
	return all, nil
}

// hasPort tells whether an FDB entry has a port or a link of its own, which the
// kernel lists only when they are not the device's (vxlan_fdb_info in
// linux/drivers/net/vxlan/vxlan_core.c).
func hasPort(m []byte) bool {
	attrs, err := nl.ParseRouteAttr(m[(&netlink.Ndmsg{}).Len():])
	if err != nil {
		return true
	}
	for _, a := range attrs {
		switch attrType(a.Attr.Type) {
		case netlink.NDA_PORT, netlink.NDA_IFINDEX, netlink.NDA_NH_ID:
			return true
		}
	}
	return false
}

// readNeighs lists the neighbours of both families on a device. The caller holds
// k.mu.
func (k *Kernel) readNeighs(index int) ([]netlink.Neigh, error) {
	msgs, err := dump(func() ([][]byte, error) {
		return k.request(unix.RTM_GETNEIGH, unix.NLM_F_DUMP, unix.RTM_NEWNEIGH,
			&netlink.Ndmsg{Family: unix.AF_UNSPEC, Index: uint32(index)},
			nl.NewRtAttr(netlink.NDA_IFINDEX, nl.Uint32Attr(uint32(index))))
	})
	if err != nil {
		return nil, fmt.Errorf("listing neighbours: %w", err)
	}
	var all []netlink.Neigh
	for _, m := range msgs {
		n, err := netlink.NeighDeserialize(m)
		if err != nil {
			return nil, fmt.Errorf("listing neighbours: %w", err)
		}
		if n.LinkIndex == index && (n.Family == unix.AF_INET || n.Family == unix.AF_INET6) {
			all = append(all, *n)
		}
	}
	return all, nil
}

// describe says in words which route it is.
func (f *Fast) describe(key routeKey, way routeWay) string {
	var b strings.Builder
	fmt.Fprintf(&b, "route %s", key.dst)
	if way.gw.IsValid() {
		fmt.Fprintf(&b, " via %s", way.gw)
	}
	if name := f.have.names[way.link]; name != "" {
		fmt.Fprintf(&b, " dev %s", name)
	}
	if key.table != unix.RT_TABLE_MAIN {
		fmt.Fprintf(&b, " table %s", tableName(key.table))
	}
	if key.metric != RouteMetric {
		fmt.Fprintf(&b, " metric %d", key.metric)
	}
	return b.String()
}
