package lab

import (
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// State lists what is configured in the namespace, one sorted line per link,
// address, route, rule, neighbour that was set by hand, and nftables table. Two
// lists are equal when nothing was left behind between them. Link-local
// addresses, multicast routes, counters and the carrier are left out, as they
// change by themselves.
func (n *Namespace) State() ([]string, error) {
	var lines []string
	err := n.Do(func() (err error) {
		lines, err = state()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("lab: state of %s: %w", n.short, err)
	}
	return lines, nil
}

// HostState is the state of the caller's own namespace.
func HostState() ([]string, error) {
	lines, err := state()
	if err != nil {
		return nil, fmt.Errorf("lab: state: %w", err)
	}
	return lines, nil
}

// state looks at the namespace of the calling thread.
func state() ([]string, error) {
	var lines []string
	add := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }

	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("links: %w", err)
	}
	names := make(map[int]string)
	for _, l := range links {
		a := l.Attrs()
		names[a.Index] = a.Name
		add("link %s type %s mtu %d mac %s admin-up %v master %d", a.Name, l.Type(), a.MTU, a.HardwareAddr, a.RawFlags&unix.IFF_UP != 0, a.MasterIndex)
	}
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("addresses: %w", err)
	}
	for _, a := range addrs {
		if !a.IP.IsLinkLocalUnicast() {
			add("addr %s dev %s", a.IPNet, names[a.LinkIndex])
		}
	}
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, fmt.Errorf("routes: %w", err)
	}
	for _, r := range routes {
		// The kernel makes these, some of them when it likes.
		if r.Type == unix.RTN_MULTICAST || r.Dst != nil && r.Dst.IP.IsLinkLocalUnicast() {
			continue
		}
		add("route %v via %v dev %s src %v table %d proto %d type %d metric %d mtu %d", r.Dst, r.Gw, names[r.LinkIndex], r.Src, r.Table, r.Protocol, r.Type, r.Priority, r.MTU)
	}
	rules, err := netlink.RuleList(netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("rules: %w", err)
	}
	for _, r := range rules {
		add("rule %d from %v to %v iif %q oif %q mark %d table %d family %d", r.Priority, r.Src, r.Dst, r.IifName, r.OifName, r.Mark, r.Table, r.Family)
	}
	neighs, err := netlink.NeighList(0, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("neighbours: %w", err)
	}
	for _, e := range neighs {
		if e.State&unix.NUD_PERMANENT != 0 {
			add("neigh %v mac %s dev %s", e.IP, e.HardwareAddr, names[e.LinkIndex])
		}
	}
	fdb, err := netlink.NeighList(0, unix.AF_BRIDGE)
	if err != nil {
		return nil, fmt.Errorf("forwarding databases: %w", err)
	}
	for _, e := range fdb {
		if e.Flags&netlink.NTF_SELF != 0 && e.IP != nil { // of a VXLAN device
			add("fdb %s dst %s dev %s", e.HardwareAddr, e.IP, names[e.LinkIndex])
		}
	}
	c, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	tables, err := c.ListTables()
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	for _, t := range tables {
		add("nft table %s family %d", t.Name, t.Family)
	}
	slices.Sort(lines)
	return lines, nil
}
