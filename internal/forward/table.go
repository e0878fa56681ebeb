package forward

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"
)

// ErrTable is wrapped by the errors of [NewTable].
var ErrTable = errors.New("forwarding table")

// Verdict says to whom a destination belongs.
type Verdict uint8

// The verdicts. Of several prefixes that hold an address the longest counts.
const (
	Outside    Verdict = iota // not in the overlay networks
	Unassigned                // in the overlay networks, but nobody's
	Own                       // in a subnet of this node
	ToPeer                    // in a peer's prefix
)

// String returns the verdict in one word.
func (v Verdict) String() string {
	switch v {
	case Outside:
		return "outside"
	case Unassigned:
		return "unassigned"
	case Own:
		return "own"
	case ToPeer:
		return "peer"
	}
	return "unknown"
}

// TableConfig is what a [Table] is made of. All prefixes are masked, none is
// IPv4-mapped.
type TableConfig struct {
	// Networks are the overlay networks.
	Networks []netip.Prefix
	// Own are the subnets that this node holds, inside Networks.
	Own []netip.Prefix
	// OwnAddrs are the node's own addresses, in the overlay and on the
	// underlay. The first of a family that lies inside Networks is the source
	// of ICMP errors; without one, none are sent in that family. A Linux TUN
	// takes IPv4 packets with such a source only if accept_local is set for it
	// (linux/Documentation/networking/ip-sysctl.rst).
	OwnAddrs []netip.Addr
	// AllowSource are inner sources that are accepted from any known peer.
	// They never cover addresses inside Networks, nor OwnAddrs.
	AllowSource []netip.Prefix
	// Peers are all other nodes. Table keeps the pointers.
	Peers []*Peer
}

// Table is the forwarding table: immutable, so that any number of goroutines
// may read it without a lock. A change is a new Table.
type Table struct {
	routes  bart.Fast[route]
	allow   bart.Lite
	sources map[netip.Addr][]*Peer // by outer address
	peers   []*Peer
	own     []netip.Addr // as in the TableConfig
	// own4 and own6 are the sources of ICMP errors, invalid if there is none.
	own4, own6 netip.Addr
}

type route struct {
	peer    *Peer // set with ToPeer only
	verdict Verdict
}

// RouteEntry is one prefix of a [Table].
type RouteEntry struct {
	Prefix  netip.Prefix
	Verdict Verdict // Own or ToPeer
	Peer    *Peer   // nil with Own
}

// NewTable checks cfg and makes a Table of it. The slices of cfg may be reused
// afterwards, the Peers may not be changed. Errors wrap [ErrTable]: a prefix
// that is invalid, outside of the networks, or given to two owners; an outer
// address that can be none.
func NewTable(cfg TableConfig) (*Table, error) {
	t := &Table{
		sources: make(map[netip.Addr][]*Peer, len(cfg.Peers)),
		peers:   slices.Clone(cfg.Peers),
		own:     slices.Clone(cfg.OwnAddrs),
	}
	for _, n := range cfg.Networks {
		if err := checkPrefix(n); err != nil {
			return nil, fmt.Errorf("%w: network %v: %w", ErrTable, n, err)
		}
		for _, s := range specialPrefixes {
			if n.Overlaps(s) {
				return nil, fmt.Errorf("%w: network %v overlaps %v, which is never routed", ErrTable, n, s)
			}
		}
		t.routes.Insert(n, route{verdict: Unassigned})
	}
	for _, p := range cfg.Own {
		if err := t.assign(p, cfg.Networks, route{verdict: Own}); err != nil {
			return nil, fmt.Errorf("%w: own subnet %v: %w", ErrTable, p, err)
		}
	}
	for _, peer := range cfg.Peers {
		if err := peer.check(cfg.Networks); err != nil {
			return nil, err
		}
		for _, p := range peer.Prefixes {
			if err := t.assign(p, cfg.Networks, route{verdict: ToPeer, peer: peer}); err != nil {
				return nil, fmt.Errorf("%w: peer %q: prefix %v: %w", ErrTable, peer.Name, p, err)
			}
		}
		for _, a := range peer.Sources {
			t.sources[a] = append(t.sources[a], peer)
		}
	}
	for _, p := range cfg.AllowSource {
		if err := checkPrefix(p); err != nil {
			return nil, fmt.Errorf("%w: allowed source %v: %w", ErrTable, p, err)
		}
		t.allow.Insert(p)
	}
	for _, a := range cfg.OwnAddrs {
		if !a.IsValid() || a.Is4In6() || a.Zone() != "" {
			return nil, fmt.Errorf("%w: own address %v is not a plain IPv4 or IPv6 address", ErrTable, a)
		}
		inside := func(n netip.Prefix) bool { return n.Contains(a) }
		switch {
		case !slices.ContainsFunc(cfg.Networks, inside):
		case a.Is4() && !t.own4.IsValid():
			t.own4 = a
		case a.Is6() && !t.own6.IsValid():
			t.own6 = a
		}
	}
	return t, nil
}

func checkPrefix(p netip.Prefix) error {
	switch {
	case !p.IsValid():
		return errors.New("not a prefix")
	case p.Addr().Is4In6():
		return errors.New("an IPv4-mapped prefix")
	case p != p.Masked():
		return fmt.Errorf("has bits set behind its length, %v would be right", p.Masked())
	}
	return nil
}

// assign gives p to an owner. A prefix that is equal to a whole network takes
// the network's place.
func (t *Table) assign(p netip.Prefix, networks []netip.Prefix, r route) error {
	if err := checkPrefix(p); err != nil {
		return err
	}
	inside := func(n netip.Prefix) bool { return n.Bits() <= p.Bits() && n.Contains(p.Addr()) }
	if !slices.ContainsFunc(networks, inside) {
		return errors.New("outside of the overlay networks")
	}
	if old, ok := t.routes.Get(p); ok && old.verdict != Unassigned {
		if old.peer == nil {
			return errors.New("already ours")
		}
		return fmt.Errorf("already owned by peer %q", old.peer.Name)
	}
	t.routes.Insert(p, r)
	return nil
}

// Route looks a destination up. The peer is nil unless the verdict is [ToPeer].
// dst must not be IPv4-mapped.
func (t *Table) Route(dst netip.Addr) (*Peer, Verdict) {
	r, _ := t.routes.Lookup(dst) // a miss is the zero route: Outside
	return r.peer, r.verdict
}

// senders returns the peers that send from an outer address, which must not be
// IPv4-mapped.
func (t *Table) senders(outer netip.Addr) []*Peer { return t.sources[outer] }

// accept is the rule for packets from the underlay: may a packet with these
// inner addresses come from the outer address? If so, it returns the peer that
// it is counted for, else the reason.
//
// The inner source decides who must have sent it: the owner of the prefix that
// it lies in. A source outside of the overlay must be an underlay address of a
// peer at this outer address (a host answers a container), or be allowed for
// all, which no address of our own is. The inner destination must be ours.
//
// senders is t.senders(outer).
func (t *Table) accept(senders []*Peer, outer, src, dst netip.Addr) (*Peer, Reason) {
	if len(senders) == 0 {
		return nil, RxUnknownSource
	}
	var from *Peer
	switch owner, v := t.Route(src); v {
	case ToPeer:
		if slices.Contains(owner.Sources, outer) {
			from = owner
		}
	case Outside:
		if slices.Contains(t.own, src) {
			break // whatever a peer says that its addresses are
		}
		from = underlayOwner(senders, src)
		if from == nil && t.allow.Contains(src) {
			from = senders[0]
		}
	}
	if from == nil {
		return nil, RxSpoofedSource
	}
	if _, v := t.Route(dst); v != Own {
		return nil, RxWrongDestination
	}
	return from, None
}

// underlayOwner returns the first of peers that has a as an underlay address.
func underlayOwner(peers []*Peer, a netip.Addr) *Peer {
	for _, p := range peers {
		if slices.Contains(p.Sources, a) {
			return p
		}
	}
	return nil
}

// peerAt returns a peer with an endpoint, nil if there is none.
func (t *Table) peerAt(to netip.AddrPort) *Peer {
	for _, p := range t.sources[to.Addr()] {
		if p.Endpoint == to {
			return p
		}
	}
	return nil
}

// Peers returns the peers in the order of the TableConfig.
func (t *Table) Peers() []*Peer { return slices.Clone(t.peers) }

// Routes returns the prefixes of this node and its peers, sorted.
func (t *Table) Routes() []RouteEntry {
	var out []RouteEntry
	for p, r := range t.routes.AllSorted() {
		if r.verdict != Unassigned {
			out = append(out, RouteEntry{Prefix: p, Verdict: r.verdict, Peer: r.peer})
		}
	}
	return out
}

// routeCache remembers the last answer of Route. It holds the Table that gave
// the answer, so a new Table is never answered from an old one: the pointers
// differ for as long as the cache keeps the old one alive.
type routeCache struct {
	table   *Table
	dst     netip.Addr
	peer    *Peer
	verdict Verdict
}

func (c *routeCache) route(t *Table, dst netip.Addr) (*Peer, Verdict) {
	if c.table == t && c.dst == dst {
		return c.peer, c.verdict
	}
	p, v := t.Route(dst)
	*c = routeCache{table: t, dst: dst, peer: p, verdict: v}
	return p, v
}

// acceptCache remembers, in the same way, the last outer address that was a
// peer's, and the last pair of inner addresses that was accepted from it.
// Refusals are not remembered, so that a stranger's packets push nothing out.
type acceptCache struct {
	table    *Table
	outer    netip.Addr
	found    []*Peer // the senders at outer
	src, dst netip.Addr
	peer     *Peer
}

func (c *acceptCache) senders(t *Table, outer netip.Addr) []*Peer {
	if c.table == t && c.outer == outer {
		return c.found
	}
	peers := t.senders(outer)
	if len(peers) > 0 {
		*c = acceptCache{table: t, outer: outer, found: peers}
	}
	return peers
}

func (c *acceptCache) accept(t *Table, outer, src, dst netip.Addr) (*Peer, Reason) {
	senders := c.senders(t, outer)
	if c.peer != nil && c.table == t && c.outer == outer && c.src == src && c.dst == dst {
		return c.peer, None
	}
	p, r := t.accept(senders, outer, src, dst)
	if r == None { // then there are senders, and table and outer are set
		c.src, c.dst, c.peer = src, dst, p
	}
	return p, r
}
