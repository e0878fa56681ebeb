package kernel

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"
)

// worldFlows are the packets between containers and the world beyond the overlay: what
// containers begin, and the answers. A firewall need not let the world begin anything.
// The caller holds k.mu.
func (k *Kernel) worldFlows(cfg DiagnoseConfig, bridges []bridge) (all []flow) {
	routes, err := k.routes()
	if err != nil {
		return nil
	}
	var overlay []flow
	for _, f := range k.flows(cfg, bridges) {
		if !f.toUs && slices.Contains(cfg.Own, f.src) {
			overlay = append(overlay, f)
		}
	}
	for _, f := range overlay {
		everywhere := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if f.src.Addr().Is6() {
			everywhere = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		up := k.uplinks(everywhere, routes, cfg.Underlay)
		all = append(all,
			flow{tun: f.tun, in: f.in, out: up, src: f.src, dst: everywhere, world: true},
			flow{tun: f.tun, in: up, out: f.in, src: everywhere, dst: f.src, toUs: true, world: true})
	}
	return all
}

// uplinks are the interfaces by which the world is reached: those of the default routes,
// or else the underlay. The caller holds k.mu.
func (k *Kernel) uplinks(everywhere netip.Prefix, routes []route, underlay string) (up []iface) {
	links, err := k.links()
	if err != nil {
		return nil
	}
	add := func(index int) {
		if l := links[index]; l != nil && !slices.Contains(up, iface{l.Attrs().Name, index}) {
			up = append(up, iface{l.Attrs().Name, index})
		}
	}
	for _, r := range routes {
		if r.dst == everywhere && r.table == unix.RT_TABLE_MAIN && !r.refuses() {
			for _, index := range append(r.multi, r.link) {
				add(index)
			}
		}
	}
	for index, l := range links {
		if len(up) == 0 && l.Attrs().Name == underlay {
			add(index)
		}
	}
	return up
}

// answers tells that all packets of a flow belong to connections that our side has
// begun.
func (f flow) answers() bool { return f.world && f.toUs }

// own is the end of a flow that is ours.
func (f flow) own() netip.Prefix {
	if f.toUs {
		return f.dst
	}
	return f.src
}

// worldCure spells the commands that let containers of these subnets reach the world
// through chain c.
func (rs *ruleset) worldCure(c *nftables.Chain, own []netip.Prefix) string {
	var all []string
	add := func(format string, args ...any) { all = append(all, fmt.Sprintf(format, args...)) }
	tool, chain := rs.iptables(c)
	at := fmt.Sprintf("nft insert rule %s %s %s", familyName(c.Table.Family), c.Table.Name, c.Name)
	for _, p := range own {
		ip := "ip"
		if p.Addr().Is6() {
			ip = "ip6"
		}
		switch {
		case c.Table.Name == "firewalld":
			add("firewall-cmd --permanent --zone=trusted --add-source=%v", p)
		case tool != "":
			add("%s -I %s -s %v -j ACCEPT", tool, chain, p)
			add("%s -I %s -d %v -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", tool, chain, p)
		default:
			add("%s %s saddr %v accept", at, ip, p)
			add("%s %s daddr %v ct state related,established accept", at, ip, p)
		}
	}
	if c.Table.Name == "firewalld" {
		add("firewall-cmd --reload")
	}
	return strings.Join(all, "; ")
}

// stateField is the state of a flow's connections, as far as it is known.
func stateField(key expr.CtKey, f flow) *field {
	if key != expr.CtKeySTATE || !f.answers() {
		return nil
	}
	return &field{value: native(expr.CtStateBitESTABLISHED)}
}

// matchState tells what iptables' match of the connection's state makes of a flow
// (conntrack_mt in linux/net/netfilter/xt_conntrack.c).
func matchState(m *expr.Match, f flow) answer {
	info, ok := m.Info.(*xt.ConntrackMtinfo3)
	if !ok || !f.answers() || xt.ConntrackFlags(info.MatchFlags)&^xt.ConntrackStateAlias != xt.ConntrackState {
		return maybe
	}
	inverted := xt.ConntrackFlags(info.InvertFlags)&xt.ConntrackState != 0
	return certain(uint32(info.StateMask)&expr.CtStateBitESTABLISHED != 0).invert(inverted)
}

// maskValue applies a bitwise expression to a known value.
func maskValue(value []byte, e *expr.Bitwise) *field {
	if len(value) != 4 || len(e.Mask) != 4 || len(e.Xor) != 4 {
		return nil
	}
	number := binary.NativeEndian.Uint32
	return &field{value: native(number(value)&number(e.Mask) ^ number(e.Xor))}
}
