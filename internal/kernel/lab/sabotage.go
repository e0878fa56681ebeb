package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// What somebody else may do to the state of the daemon under test: an administrator,
// a network manager, a firewall's restart.

// DeleteLink deletes an interface.
func (n *Namespace) DeleteLink(name string) error {
	return n.toLink(name, func(l netlink.Link) error { return netlink.LinkDel(l) })
}

// AddBridge makes an interface that leads nowhere.
func (n *Namespace) AddBridge(name string) error {
	return n.Do(func() error { return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: linkAttrs(name)}) })
}

// RenameLink gives an interface another name.
func (n *Namespace) RenameLink(name, to string) error {
	return n.toLink(name, func(l netlink.Link) error {
		return errors.Join(netlink.LinkSetDown(l), netlink.LinkSetName(l, to), netlink.LinkSetUp(l))
	})
}

// SetMAC gives an interface another MAC.
func (n *Namespace) SetMAC(name string, mac net.HardwareAddr) error {
	return n.toLink(name, func(l netlink.Link) error { return netlink.LinkSetHardwareAddr(l, mac) })
}

// MoveAddr takes an address from an interface and gives it another, as a DHCP client
// does with a new lease.
func (n *Namespace) MoveAddr(name string, from, to netip.Prefix) error {
	return n.toLink(name, func(l netlink.Link) error {
		return errors.Join(netlink.AddrDel(l, &netlink.Addr{IPNet: ipNet(from)}), netlink.AddrAdd(l, &netlink.Addr{IPNet: ipNet(to)}))
	})
}

// FlushFDB removes all entries of a VXLAN device's forwarding database.
func (n *Namespace) FlushFDB(name string) error {
	return n.toLink(name, func(l netlink.Link) error { return flushNeighs(l, unix.AF_BRIDGE) })
}

// FlushNeighbours removes all neighbours of an interface, permanent ones too.
func (n *Namespace) FlushNeighbours(name string) error {
	return n.toLink(name, func(l netlink.Link) error {
		return errors.Join(flushNeighs(l, netlink.FAMILY_V4), flushNeighs(l, netlink.FAMILY_V6))
	})
}

func flushNeighs(l netlink.Link, family int) error {
	all, err := netlink.NeighList(l.Attrs().Index, family)
	for _, e := range all {
		if family == unix.AF_BRIDGE {
			e.Family, e.Flags = unix.AF_BRIDGE, netlink.NTF_SELF
		}
		if derr := netlink.NeighDel(&e); !errors.Is(derr, unix.ENOENT) {
			err = errors.Join(err, derr)
		}
	}
	return err
}

// FlushRoutes removes the routes of a protocol from all tables, and FlushRules the
// policy rules that lead to other tables than the kernel's own.
func (n *Namespace) FlushRoutes(protocol int) error {
	return n.Do(func() error {
		filter := &netlink.Route{Table: unix.RT_TABLE_UNSPEC, Protocol: netlink.RouteProtocol(protocol)}
		all, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, filter, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_PROTOCOL)
		for i := range all {
			if derr := netlink.RouteDel(&all[i]); !errors.Is(derr, unix.ESRCH) {
				err = errors.Join(err, derr)
			}
		}
		return err
	})
}

// FlushRules removes the policy rules that are not the kernel's own.
func (n *Namespace) FlushRules() error {
	return n.Do(func() error {
		var errs []error
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			all, err := netlink.RuleList(family)
			errs = append(errs, err)
			for _, r := range all {
				if r.Table > unix.RT_TABLE_LOCAL || r.Table < unix.RT_TABLE_DEFAULT {
					r.Family = family
					errs = append(errs, netlink.RuleDel(&r))
				}
			}
		}
		return errors.Join(errs...)
	})
}

// FlushRuleset removes all nftables tables whose name begins with prefix, as a
// firewall that is started anew removes all that there are.
func (n *Namespace) FlushRuleset(prefix string) error {
	return n.nft(func(c *nftables.Conn) error {
		tables, err := c.ListTables()
		if err != nil {
			return err
		}
		found := false
		for _, t := range tables {
			if strings.HasPrefix(t.Name, prefix) {
				c.DelTable(t)
				found = true
			}
		}
		if !found {
			return fmt.Errorf("no table %s*", prefix)
		}
		return c.Flush()
	})
}

// toLink calls f with an interface.
func (n *Namespace) toLink(name string, f func(netlink.Link) error) error {
	return n.Do(func() error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return fmt.Errorf("lab: %s: %s: %w", n.short, name, err)
		}
		return f(l)
	})
}
