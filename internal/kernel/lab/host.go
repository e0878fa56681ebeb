package lab

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Host is a machine: a namespace that forwards packets, with links to switches
// and, once it has a bridge, containers. A host with links to two switches is a
// router between them.
type Host struct {
	*Namespace

	mu     sync.Mutex
	ports  []*Port
	bridge *Bridge
}

// Host adds a host without links.
func (l *Lab) Host(name string) (*Host, error) {
	ns, err := l.add(name, map[string]string{
		"net/ipv4/ip_forward":                "1",
		"net/ipv6/conf/all/forwarding":       "1",
		"net/ipv6/conf/default/forwarding":   "1",
		"net/ipv4/conf/all/rp_filter":        "0",
		"net/ipv4/conf/default/rp_filter":    "0",
		"net/ipv4/icmp_ratemask":             "0", // limit no ICMP errors: tests count them
		"net/ipv6/icmp/ratelimit":            "0",
		"net/ipv4/conf/all/send_redirects":   "0",
		"net/ipv4/conf/all/accept_redirects": "0",
	})
	if err != nil {
		return nil, err
	}
	return &Host{Namespace: ns}, nil
}

// Host adds a host with one link, eth0, to the switch.
func (s *Switch) Host(name string, cfg PortConfig) (*Host, error) {
	h, err := s.lab.Host(name)
	if err != nil {
		return nil, err
	}
	if _, err := h.Attach(s, cfg); err != nil {
		return nil, err
	}
	return h, nil
}

// Attach links the host to a switch. Its interfaces are eth0, eth1 and so on.
func (h *Host) Attach(s *Switch, cfg PortConfig) (*Port, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	p, err := s.connect(h, fmt.Sprintf("eth%d", len(h.ports)), cfg)
	if err != nil {
		return nil, err
	}
	h.ports = append(h.ports, p)
	return p, nil
}

// Ports are the host's links to switches, in the order they were made.
func (h *Host) Ports() []*Port {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.ports)
}

// Addr4 and Addr6 are the host's first underlay address of the family; the
// zero Addr if it has none.
func (h *Host) Addr4() netip.Addr { return h.addr(netip.Addr.Is4) }

// Addr6 is the host's first IPv6 underlay address.
func (h *Host) Addr6() netip.Addr { return h.addr(netip.Addr.Is6) }

func (h *Host) addr(is func(netip.Addr) bool) netip.Addr {
	for _, p := range h.Ports() {
		if a := pick(p.addrs, is); a.IsValid() {
			return a
		}
	}
	return netip.Addr{}
}

// AddRoute adds a route by way of a neighbour.
func (n *Namespace) AddRoute(dst netip.Prefix, via netip.Addr) error {
	r := &netlink.Route{Dst: ipNet(dst.Masked()), Gw: via.AsSlice()}
	if err := n.nl.RouteAdd(r); err != nil {
		return fmt.Errorf("lab: %s: route %v via %v: %w", n.short, dst, via, err)
	}
	return nil
}

// SetMTU sets the MTU of an interface of the namespace.
func (n *Namespace) SetMTU(iface string, mtu int) error {
	l, err := n.nl.LinkByName(iface)
	if err == nil {
		err = n.nl.LinkSetMTU(l, mtu)
	}
	if err != nil {
		return fmt.Errorf("lab: %s: MTU of %s: %w", n.short, iface, err)
	}
	return nil
}

// MTU returns the MTU of an interface of the namespace.
func (n *Namespace) MTU(iface string) (int, error) {
	l, err := n.nl.LinkByName(iface)
	if err != nil {
		return 0, fmt.Errorf("lab: %s: %s: %w", n.short, iface, err)
	}
	return l.Attrs().MTU, nil
}

// addAddrs gives addresses to an interface, which is up, and waits until they
// are usable.
func (n *Namespace) addAddrs(iface string, addrs []netip.Prefix) error {
	l, err := n.nl.LinkByName(iface)
	if err != nil {
		return fmt.Errorf("lab: %s: %s: %w", n.short, iface, err)
	}
	for _, a := range addrs {
		addr := &netlink.Addr{IPNet: ipNet(a)}
		if a.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD
		}
		if err := n.nl.AddrAdd(l, addr); err != nil {
			return fmt.Errorf("lab: %s: address %v on %s: %w", n.short, a, iface, err)
		}
	}
	for _, a := range addrs {
		if err := n.awaitLocal(a.Addr()); err != nil {
			return err
		}
	}
	return nil
}

// awaitLocal waits until packets to an address of the namespace are taken in.
// An IPv6 address gets its local route from a work queue, also without
// duplicate address detection (addrconf_dad_work in linux/net/ipv6/addrconf.c);
// until then even the answer to its own neighbour solicitation is dropped, and
// the next one is sent a second later.
func (n *Namespace) awaitLocal(a netip.Addr) error {
	limit := time.Now().Add(upLimit)
	local := &netlink.Route{Table: unix.RT_TABLE_LOCAL, Dst: ipNet(netip.PrefixFrom(a, a.BitLen()))}
	family := netlink.FAMILY_V4
	if a.Is6() {
		family = netlink.FAMILY_V6
	}
	for {
		routes, err := n.nl.RouteListFiltered(family, local, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_DST)
		if err != nil {
			return fmt.Errorf("lab: %s: local routes: %w", n.short, err)
		}
		if len(routes) > 0 {
			return nil
		}
		if time.Now().After(limit) {
			return fmt.Errorf("lab: %s: address %v does not become usable", n.short, a)
		}
		time.Sleep(time.Millisecond)
	}
}
