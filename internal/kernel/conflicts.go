package kernel

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Conflict is something in this host that has a part of an overlay network.
type Conflict struct {
	// Network is the overlay network concerned, Prefix what overlaps it: a
	// route's destination, or an address with its on-link prefix length.
	Network, Prefix netip.Prefix
	// Device is the interface of the address or route, empty if it has none.
	Device string
	// Fatal tells an error, with which the overlay cannot work, from a warning.
	Fatal bool
	// Text is one line: what it is, where, and what to change.
	Text string
}

// Conflicts compares the overlay networks with the addresses and routes of this
// host. Fatal are
//
//   - an address of this host in an overlay network, but not in own;
//   - a route in the main table to an overlay network or a part of it, and one
//     in the local table that touches it at all, because the local table comes first;
//   - a route of another overlayd that is alive.
//
// Warnings are routes to more than an overlay network, which loses that part
// to us, and routes in other tables, which count only for those packets that
// a policy rule sends there.
//
// No conflicts are: default routes, also those in two halves (0.0.0.0/1, as VPNs
// make them); what is on device, or on a VXLAN device that a daemon which had that
// device has left; our own routes; and what lies in own, the
// subnets that this node held before: this host's container bridge is there.
//
// The fatal ones come first, then they are in the order of networks.
func (k *Kernel) Conflicts(networks []netip.Prefix, device string, own []netip.Prefix) ([]Conflict, error) {
	if err := k.lock(); err != nil {
		return nil, err
	}
	defer k.mu.Unlock()

	links, err := k.links()
	if err != nil {
		return nil, err
	}
	addrs, err := k.addrs(nil)
	if err != nil {
		return nil, err
	}
	routes, err := k.routes()
	if err != nil {
		return nil, err
	}

	var found []Conflict
	for _, n := range networks {
		foreign := slices.DeleteFunc(slices.Clone(addrs), func(a netlink.Addr) bool {
			p := addrPrefix(a)
			return !p.IsValid() || !n.Contains(p.Addr()) || insideAny(single(p.Addr()), own) ||
				ofNode(links[a.LinkIndex], device)
		})
		for _, a := range foreign {
			p, name := addrPrefix(a), linkName(links, a.LinkIndex)
			found = append(found, Conflict{Network: n, Prefix: p, Device: name, Fatal: true,
				Text: fmt.Sprintf("overlay network %s contains %s, an address of %s, outside of this node's own subnet: "+
					"choose another overlay network, or remove that address", n, p, name)})
		}
		for _, r := range routes {
			if r.comesWith(foreign) {
				continue // told as the address's
			}
			if c, ok := routeConflict(n, r, device, own, links); ok {
				found = append(found, c)
			}
		}
	}
	slices.SortStableFunc(found, func(a, b Conflict) int {
		rank := func(c Conflict) int {
			if c.Fatal {
				return 0
			}
			return 1
		}
		return cmp.Compare(rank(a), rank(b))
	})
	return found, nil
}

// routeConflict judges one route against network n.
func routeConflict(n netip.Prefix, r route, device string, own []netip.Prefix, links map[int]netlink.Link) (Conflict, bool) {
	name := linkName(links, r.link)
	switch {
	case !n.Overlaps(r.dst) || r.dst.Bits() <= 1:
		return Conflict{}, false
	case ofNode(links[r.link], device) || insideAny(r.dst, own):
		return Conflict{}, false
	case r.kind == unix.RTN_BROADCAST || r.kind == unix.RTN_ANYCAST || r.kind == unix.RTN_MULTICAST || r.kind == unix.RTN_THROW:
		return Conflict{}, false // come with an address, or decide nothing
	}
	c := Conflict{Network: n, Prefix: r.dst, Device: name}
	if r.refuses() {
		c.Device = "" // IPv6 lists lo
	}
	text := r.describe(links)
	switch {
	case r.ours():
		if !r.otherTUN(links, -1) {
			return Conflict{}, false
		}
		c.Fatal = true
		c.Text = fmt.Sprintf("overlay network %s is in use by another overlayd (%s): stop it, or choose another overlay network", n, text)
	case r.table == unix.RT_TABLE_LOCAL:
		c.Fatal = true
		c.Text = fmt.Sprintf("overlay network %s overlaps the %s, by which these addresses are this host's: "+
			"choose another overlay network, or remove that route", n, text)
	case r.table != unix.RT_TABLE_MAIN:
		c.Text = fmt.Sprintf("overlay network %s overlaps the %s: packets that a policy rule sends to that table do not reach the overlay; "+
			"choose another overlay network, or remove that route", n, text)
	case r.dst.Bits() < n.Bits():
		c.Text = fmt.Sprintf("overlay network %s is a part of the %s, which loses these addresses to the overlay: "+
			"choose another overlay network if hosts behind that route have addresses in it", n, text)
	default:
		c.Fatal = true
		c.Text = fmt.Sprintf("overlay network %s overlaps the %s: choose another overlay network, or remove that route", n, text)
	}
	return c, true
}

// comesWith tells whether the kernel made the route for one of addrs: the one to
// its on-link prefix, or the one in the local table to itself.
func (r route) comesWith(addrs []netlink.Addr) bool {
	return r.protocol == unix.RTPROT_KERNEL && slices.ContainsFunc(addrs, func(a netlink.Addr) bool {
		p := addrPrefix(a)
		return r.dst == p.Masked() && r.link == a.LinkIndex || r.dst == single(p.Addr())
	})
}

// single is a as /32 or /128.
func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// insideAny tells whether p lies in one of nets.
func insideAny(p netip.Prefix, nets []netip.Prefix) bool {
	return slices.ContainsFunc(nets, func(n netip.Prefix) bool { return inside(p, n) })
}

// linkName is the name of an interface, empty if there is none.
func linkName(links map[int]netlink.Link, index int) string {
	if l := links[index]; l != nil {
		return l.Attrs().Name
	}
	return ""
}
