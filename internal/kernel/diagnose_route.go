package kernel

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// diagnoseRoutes asks the kernel where it would send packets for the overlay,
// and names the route or the rule that leads elsewhere. The caller holds k.mu.
func (k *Kernel) diagnoseRoutes(cfg DiagnoseConfig, bridges []bridge) []Finding {
	l, err := k.link(cfg.Device)
	if err != nil {
		return nil
	}
	all, err := k.routes()
	if err != nil {
		return nil
	}
	links, err := k.links()
	if err != nil {
		return nil
	}
	index := l.Attrs().Index
	var found []Finding
	for _, n := range cfg.Networks {
		// Before SetRoutes everything is astray.
		if !slices.ContainsFunc(all, func(r route) bool { return r.ours() && r.dst == n && r.link == index }) {
			continue
		}
		for _, addr := range samples(n, cfg.Own, all, index) {
			table, astray := k.astray(addr, index, all, bridges)
			if !astray {
				continue
			}
			if f := k.blame(n, addr, table, index, all, links); !slices.Contains(found, f) {
				found = append(found, f)
			}
		}
	}
	return found
}

// How many addresses of a network Diagnose looks up: some spread over the
// network, and some where other routes are.
const (
	spreadSamples = 8
	routeSamples  = 64
)

// samples picks addresses of n that belong to other nodes: some spread evenly
// over n, and one of each foreign route that lies in n.
func samples(n netip.Prefix, own []netip.Prefix, all []route, index int) []netip.Addr {
	var picked []netip.Addr
	pick := func(a netip.Addr) {
		if n.Contains(a) && !insideAny(single(a), own) && !slices.Contains(picked, a) {
			picked = append(picked, a)
		}
	}
	if n.Addr().BitLen()-n.Bits() > 3 {
		for i := range spreadSamples {
			// The three highest host bits count through, the lowest is set.
			b := n.Masked().Addr().AsSlice()
			for bit := range 3 {
				if i>>bit&1 != 0 {
					pos := n.Bits() + bit
					b[pos/8] |= 0x80 >> (pos % 8)
				}
			}
			b[len(b)-1] |= 1
			a, _ := netip.AddrFromSlice(b)
			pick(a)
		}
	}
	for _, r := range all {
		if len(picked) >= spreadSamples+routeSamples {
			break
		}
		if !inside(r.dst, n) || r.dst == n || r.ours() || r.link == index ||
			r.kind == unix.RTN_BROADCAST || r.kind == unix.RTN_ANYCAST {
			continue
		}
		if r.dst.IsSingleIP() {
			pick(r.dst.Addr())
		} else {
			pick(r.dst.Addr().Next()) // the first one may be an anycast address
		}
	}
	return picked
}

// astray tells whether packets to addr, from this host or from a container
// behind one of bridges, take another way than the device index or a route of
// ours, and in which table that way was found: 0 if the kernel only says that
// it refuses. The caller holds k.mu.
func (k *Kernel) astray(addr netip.Addr, index int, all []route, bridges []bridge) (table int, astray bool) {
	lookups := []*netlink.RouteGetOptions{nil}
	for _, b := range bridges {
		if b.addr.BitLen() == addr.BitLen() {
			lookups = append(lookups, &netlink.RouteGetOptions{IifIndex: b.index, SrcAddr: b.addr.Next().AsSlice()})
		}
	}
	for _, options := range lookups {
		got, err := k.h.RouteGetWithOptions(addr.AsSlice(), options)
		switch {
		case options == nil && refused(err):
			return 0, true
		case err != nil || len(got) == 0:
			// For a container also: forwarding off, or a bridge that is down.
			continue
		case got[0].LinkIndex == index:
			continue
		}
		if r, ok := bestRoute(all, addr, got[0].Table, index); ok && r.ours() {
			continue // a path of ours to that peer
		}
		return got[0].Table, true
	}
	return 0, false
}

// refused tells whether a lookup has ended at an unreachable, prohibit or
// blackhole route or rule, or at none: fib_props in
// linux/net/ipv4/fib_semantics.c gives the errors.
func refused(err error) bool {
	return errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.ENETUNREACH) ||
		errors.Is(err, unix.EACCES) || errors.Is(err, unix.EINVAL)
}

// bestRoute finds the route by which table has led addr away from the device
// index: the longest, of these the one with the best metric. With table 0 it is
// the one, in any table, that refuses addr and is not ours.
func bestRoute(all []route, addr netip.Addr, table, index int) (best route, ok bool) {
	for _, r := range all {
		if !r.dst.Contains(addr) || r.link == index {
			continue
		}
		if table == 0 && (!r.refuses() || r.ours()) || table != 0 && r.table != table {
			continue
		}
		if !ok || r.dst.Bits() > best.dst.Bits() || r.dst.Bits() == best.dst.Bits() && r.metric < best.metric {
			best, ok = r, true
		}
	}
	return best, ok
}

// blame finds out what leads addr, an address of network n, astray. The caller
// holds k.mu.
func (k *Kernel) blame(n netip.Prefix, addr netip.Addr, table, index int, all []route, links map[int]netlink.Link) Finding {
	by := ""
	r, known := bestRoute(all, addr, table, index)
	if known {
		by = " by the " + r.describe(links)
		table = r.table
	}
	if known && (table == unix.RT_TABLE_MAIN || table == unix.RT_TABLE_LOCAL) {
		return Finding{CodeCoveringRoute, fmt.Sprintf(
			"packets for %s, part of the overlay network %s, leave the overlay%s: remove that route, or choose another overlay network",
			part(r.dst, n), n, by)}
	}
	ip := "ip"
	if addr.Is6() {
		ip = "ip -6"
	}
	text := fmt.Sprintf("packets for %s, part of the overlay network %s, leave the overlay%s", part(r.dst, n), n, by)
	rules := k.rulesTo(familyOf(addr), table)
	if len(rules) == 0 {
		return Finding{CodePolicyRule, fmt.Sprintf("%s: see `%s rule` and `%s route get %s`", text, ip, ip, addr)}
	}
	var names []string
	for _, rule := range rules {
		names = append(names, describeRule(rule))
	}
	return Finding{CodePolicyRule, fmt.Sprintf("%s, because of the policy rule %s: remove it, or put one in front of it: %s rule add priority %d to %s lookup main",
		text, strings.Join(names, " or "), ip, max(1, rules[0].Priority-1), n)}
}

// part is what of network n the prefix covers; all of it if that is not known.
func part(p, n netip.Prefix) netip.Prefix {
	if p.IsValid() && inside(p, n) {
		return p
	}
	return n
}

// The priorities of the rules that every namespace starts with, besides 0 for the
// local table: fib_default_rules_init in linux/net/ipv4/fib_rules.c.
const (
	priorityMain    = 32766
	priorityDefault = 32767
)

// rulesTo lists the policy rules ahead of the main table that lead to table, or,
// if that is 0, all that are ahead of it. Ours are for probes only. The caller
// holds k.mu.
func (k *Kernel) rulesTo(family, table int) []netlink.Rule {
	all, err := dump(func() ([]netlink.Rule, error) { return k.h.RuleList(family) })
	if err != nil {
		return nil
	}
	return slices.DeleteFunc(all, func(r netlink.Rule) bool {
		return r.Priority == 0 && r.Table == unix.RT_TABLE_LOCAL || r.Priority == priorityMain || r.Priority == priorityDefault ||
			table != 0 && r.Table != table || r.Protocol == RouteProtocol
	})
}

// describeRule spells a policy rule as ip-rule(8) does, as far as it goes.
func describeRule(r netlink.Rule) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d:", r.Priority)
	if r.Invert {
		b.WriteString(" not")
	}
	if r.Src != nil {
		fmt.Fprintf(&b, " from %s", r.Src)
	} else {
		b.WriteString(" from all")
	}
	if r.Dst != nil {
		fmt.Fprintf(&b, " to %s", r.Dst)
	}
	if r.Mark != 0 {
		fmt.Fprintf(&b, " fwmark %#x", r.Mark)
	}
	if r.IifName != "" {
		fmt.Fprintf(&b, " iif %s", r.IifName)
	}
	if r.OifName != "" {
		fmt.Fprintf(&b, " oif %s", r.OifName)
	}
	if r.Table != 0 {
		fmt.Fprintf(&b, " lookup %s", tableName(r.Table))
	}
	return b.String()
}
