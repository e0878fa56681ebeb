package lab

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// What somebody does by hand to a device that a process has made: a TUN device comes
// without address and route.

// AddAddr gives an interface, which is up, an address with the length of its subnet,
// and waits until it is usable.
func (n *Namespace) AddAddr(iface string, addr netip.Prefix) error {
	return n.addAddrs(iface, []netip.Prefix{addr})
}

// AddRouteDev adds a route into an interface, without a neighbour.
func (n *Namespace) AddRouteDev(dst netip.Prefix, iface string) error {
	l, err := n.nl.LinkByName(iface)
	if err == nil {
		r := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(dst.Masked())}
		if dst.Addr().Is4() {
			r.Scope = netlink.SCOPE_LINK // IPv6 has no scopes of routes
		}
		err = n.nl.RouteAdd(r)
	}
	if err != nil {
		return fmt.Errorf("lab: %s: route %v into %s: %w", n.short, dst, iface, err)
	}
	return nil
}
