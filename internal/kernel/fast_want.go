package kernel

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// probeTable is the number of the first of our routing tables: the one of the
// link with index i is probeTable+i. Indexes are never shared, and what a link
// leaves when it goes is a rule, whose table is then wrong and which is removed.
const probeTable = 9600

// rulePriority is that of our policy rules: after the local table's 0, before
// the main table's 32766.
const rulePriority = 96

// peerID is FastPeer.ID. The zero value stands for nobody: what was in the kernel
// before us.
type peerID = [16]byte

// vtepAddr is an address on the VXLAN device of a family.
type vtepAddr struct {
	vtep int
	addr netip.Addr
}

// fdbKey names an FDB entry, neighKey a neighbour, each on the VXLAN device of a
// family.
type fdbKey struct {
	vtep int
	mac  [6]byte
}

type neighKey struct {
	vtep int
	addr netip.Addr
}

// fdbDst is where an FDB entry leads. odd tells that it has something that ours
// have not, such as another port.
type fdbDst struct {
	addr netip.Addr
	odd  bool
}

// ruleKey is a policy rule: `oif link lookup table`.
type ruleKey struct {
	family int
	link   string
	table  int
}

// routeKey is by what the kernel tells routes apart.
type routeKey struct {
	table  int
	dst    netip.Prefix
	metric int
	tos    int
}

// routeWay is where a route leads.
type routeWay struct {
	link    int
	gw, src netip.Addr
	onlink  bool
	mtu     int
	// The rest is always the same in our routes: kind RTN_UNICAST, scope
	// universe, not multi.
	kind  int
	scope netlink.Scope
	multi bool
}

// wanted is a thing that must be in the kernel, and for which peer's way.
type wanted[V comparable] struct {
	value V
	owner *FastPeer
	kind  FastKind
}

// wants are wanted things by what the kernel tells them apart by, in order.
type wants[K, V comparable] struct {
	keys []K
	of   map[K]wanted[V]
}

// newWants makes room for n of them.
func newWants[K, V comparable](n int) wants[K, V] {
	return wants[K, V]{keys: make([]K, 0, n), of: make(map[K]wanted[V], n)}
}

// add adds a thing, unless another peer has it already, which it returns.
func (w *wants[K, V]) add(key K, value wanted[V]) *FastPeer {
	if there, ok := w.of[key]; ok {
		if there == value {
			return nil
		}
		return there.owner
	}
	if w.of == nil {
		w.of = make(map[K]wanted[V])
	}
	w.keys = append(w.keys, key)
	w.of[key] = value
	return nil
}

// fastWant is all that must be in the kernel, and in res what cannot be.
type fastWant struct {
	addrs  wants[vtepAddr, bool]
	fdb    wants[fdbKey, fdbDst]
	neighs wants[neighKey, [6]byte]
	rules  map[ruleKey]bool
	routes wants[routeKey, routeWay] // of the tables for probes
	mains  wants[routeKey, routeWay] // of the main table
	// peers are the peers' ids. dsts are their prefixes and first addresses: a
	// route to one of those that is not wanted contradicts what is.
	peers map[peerID]bool
	dsts  map[netip.Prefix]bool
	bad   map[badWay]bool
	res   Result
	// missing tells that a hop's link is not among those that were there when the
	// kernel was read.
	missing bool
}

// badWay is a way to a peer that is not complete, so that no route of the main
// table may lead there.
type badWay struct {
	id   peerID
	kind FastKind
}

// fail notes that a peer's way is not complete.
func (w *fastWant) fail(p *FastPeer, kind FastKind, err error) {
	w.bad[badWay{p.ID, kind}] = true
	w.res.fail(p.ID, err)
}

// want works out what must be in the kernel. The caller holds k.mu.
func (f *Fast) want() *fastWant {
	n := len(f.wish.peers)
	w := &fastWant{
		fdb: newWants[fdbKey, fdbDst](n), neighs: newWants[neighKey, [6]byte](2 * n),
		routes: newWants[routeKey, routeWay](2 * n), mains: newWants[routeKey, routeWay](2 * n),
		rules: make(map[ruleKey]bool), peers: make(map[peerID]bool, n), dsts: make(map[netip.Prefix]bool, 4*n),
		bad: make(map[badWay]bool),
		res: Result{VXLAN4: f.vteps[0].err, VXLAN6: f.vteps[1].err},
	}
	for i := range f.vteps {
		if f.vteps[i].index == 0 {
			continue
		}
		for _, a := range f.wish.own {
			w.addrs.add(vtepAddr{i, a}, wanted[bool]{})
		}
	}
	for i := range f.wish.peers {
		p := &f.wish.peers[i]
		w.peers[p.ID] = true
		if err := f.checkPeer(p); err != nil {
			w.res.fail(p.ID, err)
			continue
		}
		for _, n := range p.Prefixes {
			w.dsts[n], w.dsts[single(n.Addr())] = true, true
		}
		f.wantVXLAN(w, p)
		f.wantDirect(w, p)
		f.wantMain(w, p)
	}
	return w
}

// checkPeer refuses what would lead packets of others away. Callers have checked
// prefixes; but these become routes.
func (f *Fast) checkPeer(p *FastPeer) error {
	for _, n := range p.Prefixes {
		if !n.IsValid() || n != n.Masked() || !insideAny(n, f.cfg.Networks) {
			return fmt.Errorf("its subnet %s is no part of the overlay networks", n)
		}
		if slices.Contains(f.cfg.Networks, n) {
			return fmt.Errorf("its subnet %s is the whole overlay network", n)
		}
		if slices.ContainsFunc(f.wish.own, n.Contains) {
			return fmt.Errorf("its subnet %s has an address of this node", n)
		}
	}
	return nil
}

// linkLocal is the IPv6 address that an interface makes of its MAC (RFC 4291
// appendix A). IPv6 takes no gateway that is not on the link but a link-local one.
func linkLocal(mac [6]byte) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 8: mac[0] ^ 2, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe, 13: mac[3], 14: mac[4], 15: mac[5]})
}

// source is this node's own address of the family of a, the zero Addr if it has none.
func (f *Fast) source(a netip.Addr) netip.Addr {
	i := slices.IndexFunc(f.wish.own, func(own netip.Addr) bool { return own.BitLen() == a.BitLen() })
	if i < 0 {
		return netip.Addr{}
	}
	return f.wish.own[i]
}

// vxlanWay is the way to prefix n of a peer by the VXLAN device of a family. The
// node's own address in a subnet is the first one.
func (f *Fast) vxlanWay(family int, n netip.Prefix, mac [6]byte) routeWay {
	way := routeWay{link: f.vteps[family].index, gw: n.Addr(), src: f.source(n.Addr()), onlink: true, kind: unix.RTN_UNICAST}
	if n.Addr().Is6() {
		way.gw, way.onlink = linkLocal(mac), false
	}
	return way
}

// hop is the peer's hop of the family of a, nil if it has none.
func (p *FastPeer) hop(a netip.Addr) *DirectHop {
	for i := range p.Hops {
		if p.Hops[i].Addr.BitLen() == a.BitLen() {
			return &p.Hops[i]
		}
	}
	return nil
}

// wantVXLAN adds what VXLAN to a peer needs, but for the main table's routes.
func (f *Fast) wantVXLAN(w *fastWant, p *FastPeer) {
	if !p.Outer.IsValid() {
		return
	}
	i := familyIndex(p.Outer)
	v := &f.vteps[i]
	taken := func(what string, other *FastPeer) {
		w.fail(p, FastVXLAN, fmt.Errorf("%s is that of peer %s too", what, other.Name))
	}
	switch {
	case v.index == 0:
		w.bad[badWay{p.ID, FastVXLAN}] = true // the result has the reason
		return
	case p.Outer.Zone() != "" || p.Outer.IsUnspecified() || p.Outer.IsMulticast():
		w.fail(p, FastVXLAN, fmt.Errorf("no VXLAN can be sent to %s", p.Outer))
		return
	case !usableMAC(p.MAC) || p.MAC == f.cfg.MAC:
		w.fail(p, FastVXLAN, fmt.Errorf("its VTEP MAC %s is this node's, or not that of a single station", macString(p.MAC)))
		return
	}
	if other := w.fdb.add(fdbKey{i, p.MAC}, wanted[fdbDst]{fdbDst{addr: p.Outer}, p, FastVXLAN}); other != nil {
		taken("its VTEP MAC "+macString(p.MAC), other)
		return
	}
	for _, n := range p.Prefixes {
		gw := f.vxlanWay(i, n, p.MAC).gw
		if other := w.neighs.add(neighKey{i, gw}, wanted[[6]byte]{p.MAC, p, FastVXLAN}); other != nil {
			taken("its address "+gw.String(), other)
			return
		}
	}
	for _, n := range p.Prefixes {
		if n.Addr().Is6() {
			f.wantProbe(w, p, FastVXLAN, n, v.name, f.vxlanWay(i, n, p.MAC), v.up)
		}
		// A probe to an IPv4 address needs no way but the neighbour: where no route leads by
		// the link that its socket is bound to, IPv4 takes the destination for one of it
		// (ip_route_output_key_hash_rcu in linux/net/ipv4/route.c). So there is no policy rule,
		// with which every look-up in the host's IPv4 routes would cost more.
	}
}

// wantDirect adds the routes for probes on the direct way to a peer.
func (f *Fast) wantDirect(w *fastWant, p *FastPeer) {
	for _, n := range p.Prefixes {
		hop := p.hop(n.Addr())
		if hop == nil {
			continue
		}
		way, err := f.directWay(n, *hop)
		if err != nil {
			w.missing = w.missing || errors.Is(err, ErrNoInterface)
			w.fail(p, FastDirect, err)
			continue
		}
		f.wantProbe(w, p, FastDirect, n, hop.Link, way, true)
	}
}

// directWay is the plain way to prefix n of a peer by a hop.
func (f *Fast) directWay(n netip.Prefix, hop DirectHop) (routeWay, error) {
	index, ok := f.have.links[hop.Link]
	switch {
	case !ok:
		return routeWay{}, fmt.Errorf("interface %q: %w", hop.Link, ErrNoInterface)
	case hop.Link == f.cfg.Device || hop.Link == f.vteps[0].name || hop.Link == f.vteps[1].name:
		return routeWay{}, fmt.Errorf("interface %s is the overlay's own", hop.Link)
	case hop.Addr.Zone() != "":
		return routeWay{}, fmt.Errorf("address %s has a zone", hop.Addr)
	}
	return routeWay{link: index, gw: hop.Addr, src: f.source(n.Addr()), kind: unix.RTN_UNICAST}, nil
}

// wantProbe adds a route for probes to the peer's own address in n, and the rule
// that leads probes there. There is no route to a link that is down.
func (f *Fast) wantProbe(w *fastWant, p *FastPeer, kind FastKind, n netip.Prefix, link string, way routeWay, up bool) {
	table := probeTable + way.link
	w.rules[ruleKey{familyOf(n.Addr()), link, table}] = true
	if !up {
		return
	}
	key := routeKey{table: table, dst: single(n.Addr()), metric: RouteMetric}
	if other := w.routes.add(key, wanted[routeWay]{way, p, kind}); other != nil {
		w.fail(p, kind, fmt.Errorf("its address %s is that of peer %s too", n.Addr(), other.Name))
	}
}

// wantMain adds the routes that hand the peer's packets over to the kernel.
func (f *Fast) wantMain(w *fastWant, p *FastPeer) {
	for _, n := range p.Prefixes {
		var way routeWay
		var err error
		switch p.Route {
		case FastVXLAN:
			if way, err = f.mainVXLAN(w, p, n); err != nil {
				w.res.fail(p.ID, err)
				continue
			}
		case FastDirect:
			hop := p.hop(n.Addr())
			if hop == nil {
				continue
			}
			if way, err = f.directWay(n, *hop); err != nil {
				continue // wantDirect has told
			}
		default:
			continue
		}
		if foreign := f.have.foreign[n]; foreign != "" {
			w.res.fail(p.ID, fmt.Errorf("%w: its packets go by the %s, which is not overlayd's: remove it", ErrRouteConflict, foreign))
			continue
		}
		way.mtu = p.MTU
		key := routeKey{table: unix.RT_TABLE_MAIN, dst: n, metric: RouteMetric}
		if other := w.mains.add(key, wanted[routeWay]{way, p, p.Route}); other != nil {
			w.res.fail(p.ID, fmt.Errorf("its subnet %s is that of peer %s too", n, other.Name))
		}
	}
}

// mainVXLAN is the way to n by VXLAN, or why it cannot be taken.
func (f *Fast) mainVXLAN(w *fastWant, p *FastPeer, n netip.Prefix) (routeWay, error) {
	if !p.Outer.IsValid() {
		return routeWay{}, errors.New("it is not reached by VXLAN")
	}
	i := familyIndex(p.Outer)
	v := &f.vteps[i]
	switch {
	case v.err != nil:
		return routeWay{}, v.err
	case w.bad[badWay{p.ID, FastVXLAN}]:
		return routeWay{}, nil // told already; sync leaves it out
	case !v.up:
		return routeWay{}, fmt.Errorf("device %s is down", v.name)
	}
	return f.vxlanWay(i, n, p.MAC), nil
}
