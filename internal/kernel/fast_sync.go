package kernel

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// syncing is one pass over what is wanted and what there is.
type syncing struct {
	*Fast
	want   *fastWant
	did    []string
	failed bool
}

// sync changes the kernel from what there is to what is wanted, in the order that
// Apply promises, and returns in words what it has done. failed tells that
// something could not be done. The caller holds k.mu.
func (f *Fast) sync(w *fastWant) (did []string, failed bool) {
	s := &syncing{Fast: f, want: w}
	h := f.have

	put(s, &w.addrs, h.addrs, s.putAddr, func(k vtepAddr) string { return fmt.Sprintf("address %s on %s", k.addr, s.vteps[k.vtep].name) })
	s.dropMains()
	put(s, &w.fdb, h.fdb, s.putFDB, s.fdbName)
	put(s, &w.neighs, h.neighs, s.putNeigh, s.neighName)
	s.putRules()
	put(s, &w.routes, h.routes, s.putRoute, s.routeName)
	s.putMains()

	drop(s, h.routes, func(key routeKey) bool {
		_, wanted := w.routes.of[key]
		return wanted || key.table == unix.RT_TABLE_MAIN
	}, func(key routeKey) bool { return w.dsts[key.dst] }, s.deleteRoute, s.routeName)
	s.dropRules()
	drop(s, h.neighs, w.neighs.has, func(neighKey) bool { return false }, s.deleteNeigh, s.neighName)
	drop(s, h.fdb, w.fdb.has, func(fdbKey) bool { return false }, s.deleteFDB, s.fdbName)
	s.dropAddrs()
	return s.did, s.failed
}

// has tells whether the thing is wanted.
func (w *wants[K, V]) has(key K) bool {
	_, ok := w.of[key]
	return ok
}

// problem notes that something could not be done for a peer; without one it is
// nobody's.
func (s *syncing) problem(p *FastPeer, kind FastKind, err error) {
	s.failed = true
	if p == nil {
		if s.want.res.Err == nil {
			s.want.res.Err = err
		}
		return
	}
	s.want.fail(p, kind, err)
}

// note says what was done.
func (s *syncing) note(what string) { s.did = append(s.did, what) }

// put puts in what is wanted and not there, or otherwise. set gets what is there,
// nil if nothing is.
func put[K, V comparable](s *syncing, want *wants[K, V], have map[K]held[V], set func(K, V, *V) error, name func(K) string) {
	for _, key := range want.keys {
		w := want.of[key]
		var owner peerID
		if w.owner != nil {
			owner = w.owner.ID
		}
		h, there := have[key]
		if there && h.value == w.value {
			if h.owner != owner {
				have[key] = held[V]{w.value, owner}
			}
			continue
		}
		var old *V
		if there {
			old = &h.value
		}
		if err := set(key, w.value, old); err != nil {
			s.problem(w.owner, w.kind, fmt.Errorf("setting the %s: %w", name(key), permission(err)))
			continue
		}
		have[key] = held[V]{w.value, owner}
		s.note("set the " + name(key))
	}
}

// knows tells whether the owner of a thing is one of the peers.
func (s *syncing) knows(owner peerID) bool { return owner != peerID{} && s.want.peers[owner] }

// drop removes what is there and not wanted. contradicts tells that it must not
// stay even if what there was before is to be kept.
func drop[K, V comparable](s *syncing, have map[K]held[V], wanted, contradicts func(K) bool, remove func(K, V) error, name func(K) string) {
	for key, h := range have {
		if wanted(key) || s.wish.keep && !s.knows(h.owner) && !contradicts(key) {
			continue
		}
		what := name(key)
		if err := gone(remove(key, h.value)); err != nil {
			s.problem(nil, FastNone, fmt.Errorf("removing the %s: %w", what, permission(err)))
			continue
		}
		delete(have, key)
		s.note("removed the " + what)
	}
}

// dropMains removes routes of the main table, before anything that their packets
// need.
func (s *syncing) dropMains() {
	drop(s, s.have.routes, func(key routeKey) bool { return key.table != unix.RT_TABLE_MAIN || s.want.mains.has(key) },
		func(key routeKey) bool { return s.want.dsts[key.dst] }, s.deleteRoute, s.routeName)
}

// putMains puts the routes into the main table, last. Where the way is not
// complete no route must lead, not even an old one that leads elsewhere: the TUN
// gets the packets.
func (s *syncing) putMains() {
	ready := wants[routeKey, routeWay]{}
	for _, key := range s.want.mains.keys {
		if w := s.want.mains.of[key]; !s.want.bad[badWay{w.owner.ID, w.kind}] {
			ready.add(key, w)
		}
	}
	put(s, &ready, s.have.routes, s.putRoute, s.routeName)
	for _, key := range s.want.mains.keys {
		w := s.want.mains.of[key]
		h, there := s.have.routes[key]
		if !there || h.value == w.value && !s.want.bad[badWay{w.owner.ID, w.kind}] {
			continue
		}
		what := s.routeName(key)
		if err := s.deleteRoute(key, h.value); err != nil {
			s.problem(w.owner, w.kind, fmt.Errorf("removing the %s: %w", what, permission(err)))
			continue
		}
		delete(s.have.routes, key)
		s.note("removed the " + what)
	}
}

// putAddr adds a node address to a VXLAN device, as SetAddrs does it on the TUN.
func (s *syncing) putAddr(k vtepAddr, _ bool, _ *bool) error {
	flags := ourAddrFlags
	if k.addr.Is6() {
		flags |= unix.IFA_F_NODAD
	}
	err := s.k.h.AddrAdd(s.device(k.vtep), &netlink.Addr{IPNet: hostNet(k.addr), Flags: flags})
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}

// dropAddrs removes old addresses, last: the kernel removes the routes that have
// them as source. With keep they stay while there is no new one of the family:
// before a daemon that has just started holds its subnets again.
func (s *syncing) dropAddrs() {
	for key := range s.have.addrs {
		if s.want.addrs.has(key) || s.wish.keep && !s.source(key.addr).IsValid() {
			continue
		}
		what := fmt.Sprintf("address %s on %s", key.addr, s.vteps[key.vtep].name)
		if err := gone(s.k.h.AddrDel(s.device(key.vtep), &netlink.Addr{IPNet: hostNet(key.addr)})); err != nil {
			s.problem(nil, FastNone, fmt.Errorf("removing the %s: %w", what, permission(err)))
			continue
		}
		delete(s.have.addrs, key)
		s.note("removed the " + what)
		// The kernel removes the IPv4 routes that have it as source, some of peers that
		// we do not know yet, and with a device's last IPv4 address all IPv4
		// neighbours and routes (inetdev_destroy in linux/net/ipv4/devinet.c).
		s.stale = true
	}
}

// device is the VXLAN device of a family, as far as requests need it.
func (s *syncing) device(vtep int) netlink.Link {
	return &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: s.vteps[vtep].index, Name: s.vteps[vtep].name}}
}

func (s *syncing) fdbName(k fdbKey) string {
	return fmt.Sprintf("FDB entry for %s on %s", macString(k.mac), s.vteps[k.vtep].name)
}

func (s *syncing) neighName(k neighKey) string {
	return fmt.Sprintf("neighbour %s on %s", k.addr, s.vteps[k.vtep].name)
}

// fdbRequest is an FDB entry in the library's terms.
func (s *syncing) fdbRequest(k fdbKey, dst netip.Addr) *netlink.Neigh {
	return &netlink.Neigh{
		LinkIndex: s.vteps[k.vtep].index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF, State: netlink.NUD_PERMANENT,
		HardwareAddr: k.mac[:], IP: dst.AsSlice(),
	}
}

// putFDB sets an FDB entry. The kernel changes one that is there in one step
// (vxlan_fdb_replace in linux/drivers/net/vxlan/vxlan_core.c).
func (s *syncing) putFDB(k fdbKey, dst fdbDst, old *fdbDst) error {
	if old != nil && old.odd {
		if err := s.deleteFDB(k, *old); gone(err) != nil {
			return err
		}
	}
	return s.k.h.NeighSet(s.fdbRequest(k, dst.addr))
}

// deleteFDB removes an FDB entry. An odd one needs a request without an address,
// by which the kernel takes all of the entry (__vxlan_fdb_delete), and which the
// library cannot make.
func (s *syncing) deleteFDB(k fdbKey, dst fdbDst) error {
	if !dst.odd && dst.addr.IsValid() {
		return s.k.h.NeighDel(s.fdbRequest(k, dst.addr))
	}
	_, err := s.k.request(unix.RTM_DELNEIGH, unix.NLM_F_ACK, 0,
		&netlink.Ndmsg{Family: unix.AF_BRIDGE, Index: uint32(s.vteps[k.vtep].index), Flags: netlink.NTF_SELF},
		nl.NewRtAttr(netlink.NDA_LLADDR, k.mac[:]))
	return err
}

// putNeigh sets a neighbour, in place of whatever the kernel has found out.
func (s *syncing) putNeigh(k neighKey, mac [6]byte, _ *[6]byte) error {
	return s.k.h.NeighSet(&netlink.Neigh{
		LinkIndex: s.vteps[k.vtep].index, Family: familyOf(k.addr), State: netlink.NUD_PERMANENT, HardwareAddr: mac[:], IP: k.addr.AsSlice(),
	})
}

func (s *syncing) deleteNeigh(k neighKey, _ [6]byte) error {
	return s.k.h.NeighDel(&netlink.Neigh{LinkIndex: s.vteps[k.vtep].index, Family: familyOf(k.addr), IP: k.addr.AsSlice()})
}

// putRules adds policy rules. Without its rule a link's probes go astray, so the
// ways by that link are not complete.
func (s *syncing) putRules() {
	for _, r := range s.rulesWanted() {
		if h, there := s.have.rules[r]; there {
			s.have.rules[r] = held[bool]{true, h.owner}
			continue
		}
		rule := r.request()
		if err := s.k.h.RuleAdd(rule); err != nil && !errors.Is(err, unix.EEXIST) {
			err = fmt.Errorf("adding the %s: %w", ruleName(*rule), permission(err))
			for _, key := range s.want.routes.keys {
				w := s.want.routes.of[key]
				if key.table == r.table && familyOf(key.dst.Addr()) == r.family {
					s.problem(w.owner, w.kind, err)
				}
			}
			continue
		}
		s.have.rules[r] = held[bool]{value: true}
		s.note("added the " + ruleName(*rule))
	}
}

// rulesWanted are the wanted rules; which comes first does not matter.
func (s *syncing) rulesWanted() []ruleKey {
	all := make([]ruleKey, 0, len(s.want.rules))
	for r := range s.want.rules {
		all = append(all, r)
	}
	return all
}

// request is the rule in the library's terms.
func (r ruleKey) request() *netlink.Rule {
	rule := netlink.NewRule()
	rule.Family, rule.OifName, rule.Table = r.family, r.link, r.table
	rule.Priority, rule.Protocol = rulePriority, RouteProtocol
	return rule
}

// replaced tells whether another rule takes the place of r: its link is a new one of
// the same name, with another table.
func (s *syncing) replaced(r ruleKey) bool {
	for w := range s.want.rules {
		if w.family == r.family && w.link == r.link && w.table != r.table {
			return true
		}
	}
	return false
}

// dropRules removes rules that lead to no route of ours.
func (s *syncing) dropRules() {
	for r, h := range s.have.rules {
		if s.want.rules[r] || s.wish.keep && !s.replaced(r) || !h.value {
			continue
		}
		rule := r.request()
		removed, err := s.removeRule(rule)
		if err != nil {
			s.problem(nil, FastNone, fmt.Errorf("removing the %s: %w", ruleName(*rule), permission(err)))
			continue
		}
		delete(s.have.rules, r)
		if removed {
			s.note("removed the " + ruleName(*rule))
		}
	}
}

// removeRule removes a rule, unless another node on this host has come to need it
// since it was read.
func (s *syncing) removeRule(rule *netlink.Rule) (removed bool, err error) {
	links, err := s.k.links()
	if err != nil {
		return false, err
	}
	all, err := s.k.routes()
	if err != nil || !s.ownsRule(*rule, all, links) {
		return false, err
	}
	return true, s.k.deleteRule(*rule)
}

func (s *syncing) routeName(key routeKey) string {
	if w, ok := s.want.mains.of[key]; ok {
		return s.describe(key, w.value)
	}
	if w, ok := s.want.routes.of[key]; ok {
		return s.describe(key, w.value)
	}
	return s.describe(key, s.have.routes[key].value)
}

// putRoute sets a route. One of ours that is there is replaced in one step; one of
// somebody else's never is.
func (s *syncing) putRoute(key routeKey, way routeWay, old *routeWay) error {
	set := s.k.h.RouteAdd // NLM_F_EXCL
	if old != nil {
		set = s.k.h.RouteReplace
		if old.multi || old.kind != unix.RTN_UNICAST || !old.gw.IsValid() && key.dst.Addr().Is6() {
			// Not one that Apply has made; IPv6 replaces like by like only
			// (rt6_qualify_for_ecmp in linux/net/ipv6/ip6_fib.c).
			if err := s.deleteRoute(key, *old); err != nil {
				return err
			}
			set = s.k.h.RouteAdd
		}
	}
	r := &netlink.Route{
		Family: familyOf(key.dst.Addr()), Dst: ipNet(key.dst), Table: key.table, Priority: key.metric, Protocol: RouteProtocol,
		Type: way.kind, LinkIndex: way.link, Gw: way.gw.AsSlice(), Src: way.src.AsSlice(), MTU: way.mtu,
	}
	if way.onlink {
		r.Flags = unix.RTNH_F_ONLINK
	}
	err := set(r)
	switch {
	case errors.Is(err, unix.EEXIST):
		return fmt.Errorf("%w: another program has a route to %s: remove it", ErrRouteConflict, key.dst)
	case errors.Is(err, unix.EINVAL) && way.src.IsValid():
		return fmt.Errorf("%w (is the source %s an address of this host?)", err, way.src)
	}
	return err
}

// deleteRoute removes a route of ours.
func (s *syncing) deleteRoute(key routeKey, way routeWay) error {
	return s.k.deleteRoute(route{
		dst: key.dst, table: key.table, metric: key.metric, tos: key.tos, family: familyOf(key.dst.Addr()), protocol: RouteProtocol,
		kind: way.kind, link: way.link, gw: way.gw, scope: way.scope,
	})
}
