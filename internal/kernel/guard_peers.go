package kernel

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// A claim is a prefix that a peer has in a set.
type claim struct {
	prefix netip.Prefix
	peer   [16]byte
}

// claimList is the claims of one set that share a head.
type claimList struct {
	set  guardSet
	head string
}

// elements are what the sets have to hold for the peers of g, by set, head and
// address, so that no two of one set overlap. The error names what was left out,
// and of whom.
func (g *Guard) elements() ([]guardElement, error) {
	claims := make(map[claimList][]claim)
	var errs []error
	for _, p := range g.Peers {
		if err := g.claim(p, claims); err != nil {
			errs = append(errs, fmt.Errorf("guard: peer %s: %w", guardPeerID(p.ID), err))
		}
	}
	var all []guardElement
	for l, c := range claims {
		for _, e := range l.disjoint(c) {
			all = append(all, g.subnet(e))
		}
	}
	slices.SortFunc(all, func(a, b guardElement) int { return a.guardKey.compare(b.guardKey) })
	return all, errors.Join(errs...)
}

// subnet moves an element that is a subnet of the usual length to the set of those.
func (g *Guard) subnet(e guardElement) guardElement {
	bits := g.lenOf(e.from)
	if p := netip.PrefixFrom(e.from, bits); bits > 0 && !e.set.isMap() && p.Masked() == p && lastAddr(p) == e.to {
		e.set, e.to = e.set.net(), e.from
	}
	return e
}

// lenOf is the usual length of subnets in the family of a, 0: there is none.
func (g *Guard) lenOf(a netip.Addr) int {
	if a.Is4() {
		return g.Len4
	}
	return g.Len6
}

func (k guardKey) compare(o guardKey) int {
	return cmp.Or(cmp.Compare(k.set, o.set), strings.Compare(k.head, o.head), k.from.Compare(o.from), k.to.Compare(o.to))
}

// claim adds what one peer has. What is no address or prefix that a packet could
// have is left out, so that the kernel does not refuse the others along with it.
func (g *Guard) claim(p GuardPeer, claims map[claimList][]claim) error {
	var errs []error
	leave := func(what string, v any, why string) {
		errs = append(errs, fmt.Errorf("%s %v is left out: %s", what, v, why))
	}
	add := func(s guardSet, head string, at netip.Prefix) {
		l := claimList{s.pick(at.Addr()), head}
		claims[l] = append(claims[l], claim{at.Masked(), p.ID})
	}
	prefixes := func(what string, all []netip.Prefix) (good []netip.Prefix) {
		for _, f := range all {
			if why := badPrefix(f); why != "" {
				leave(what, f, why)
				continue
			}
			good = append(good, f)
		}
		return good
	}
	inner := prefixes("inner source", p.Inner)
	for _, o := range p.Outer {
		o = o.Unmap()
		if why := badPeerAddr(o); why != "" {
			leave("outer address", o, why)
			continue
		}
		add(setOuter4, "", single(o))
		for _, f := range inner {
			add(setVXLAN4, string(o.AsSlice()), f)
		}
	}
	for _, d := range p.Direct {
		if why := badSender(d); why != "" {
			leave("direct sender", fmt.Sprintf("%q %x", d.Link, d.MAC), why)
			continue
		}
		head := string(ifName(d.Link)) + string(d.MAC[:]) + "\x00\x00"
		for _, f := range inner {
			// Only sources in the overlay are looked up.
			if slices.ContainsFunc(g.Networks, f.Overlaps) {
				add(setDirect4, head, f)
			}
		}
	}
	for _, f := range prefixes("subnet", p.Prefixes) {
		add(setSent4, string(native(0)), f)
	}
	return errors.Join(errs...)
}

func badPeerAddr(a netip.Addr) string {
	switch {
	case !a.IsValid():
		return "no address"
	case a.Zone() != "":
		return "it has a zone"
	case a.IsUnspecified() || a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return "not the address of a host"
	}
	return ""
}

func badPrefix(p netip.Prefix) string {
	switch {
	case !p.IsValid():
		return "no prefix"
	case p.Addr().Is4In6():
		return "IPv4 written as IPv6"
	}
	return ""
}

func badSender(d DirectSender) string {
	switch {
	case !isIfName(d.Link):
		return "no interface has such a name"
	case d.MAC == [6]byte{}:
		return "no link-layer address"
	case d.MAC[0]&1 != 0:
		return "a link-layer address of a group"
	}
	return ""
}

// isIfName tells whether an interface may have the name: dev_valid_name in
// linux/net/core/dev.c.
func isIfName(s string) bool {
	const nbsp = 0xa0 // a space to isspace in linux/lib/ctype.c
	return s != "" && len(s) < unix.IFNAMSIZ && s != "." && s != ".." &&
		!strings.ContainsAny(s, "/:\x00 \t\n\v\f\r") && strings.IndexByte(s, nbsp) < 0
}

// disjoint makes of prefixes, which may lie in each other, ranges that do not
// overlap, since the kernel refuses an element that does (nft_pipapo_insert in
// linux/net/netfilter/nft_set_pipapo.c). Each range belongs to the longest
// prefix over it; of two that are the same, to the peer with the smaller ID.
// What is covered is the same as before: who has an element matters only for
// the counts.
func (l claimList) disjoint(claims []claim) []guardElement {
	slices.SortFunc(claims, func(a, b claim) int {
		return cmp.Or(a.prefix.Addr().Compare(b.prefix.Addr()), cmp.Compare(a.prefix.Bits(), b.prefix.Bits()),
			slices.Compare(a.peer[:], b.peer[:]))
	})
	var all []guardElement
	var open []claim  // the prefixes around the place that has been reached, the longest last
	var at netip.Addr // what is below it has its range; invalid beyond the last address
	until := func(end netip.Addr, owner [16]byte) {
		if !at.IsValid() || end.Less(at) {
			return
		}
		if n := len(all); n > 0 && all[n-1].peer == owner && all[n-1].to.Next() == at {
			all[n-1].to = end
		} else {
			all = append(all, guardElement{guardKey: guardKey{l.set, l.head, at, end}, peer: owner})
		}
		at = end.Next()
	}
	shut := func() {
		top := open[len(open)-1]
		until(lastAddr(top.prefix), top.peer)
		open = open[:len(open)-1]
	}
	for _, c := range claims {
		for len(open) > 0 && !open[len(open)-1].prefix.Contains(c.prefix.Addr()) {
			shut()
		}
		if n := len(open); n > 0 {
			top := open[n-1]
			if top.prefix == c.prefix {
				continue
			}
			if at.Less(c.prefix.Addr()) {
				until(c.prefix.Addr().Prev(), top.peer)
			}
		}
		at = c.prefix.Addr()
		open = append(open, c)
	}
	for len(open) > 0 {
		shut()
	}
	return all
}

// lastAddr is the highest address of p.
func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// overlapping tells whether e overlaps an element of the same set and head in
// all, which is sorted and disjoint.
func overlapping(e guardElement, all []guardElement) bool {
	i, _ := slices.BinarySearchFunc(all, e.guardKey, func(x guardElement, k guardKey) int {
		return cmp.Or(cmp.Compare(x.set, k.set), strings.Compare(x.head, k.head), x.to.Compare(k.from))
	})
	// The first one that does not end before e begins.
	return i < len(all) && all[i].set == e.set && all[i].head == e.head && all[i].from.Compare(e.to) <= 0
}
