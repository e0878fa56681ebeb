package kernel

import (
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// tableDormant is NFT_TABLE_F_DORMANT (linux/include/uapi/linux/netfilter/nf_tables.h):
// the chains of such a table see no packets.
const tableDormant = 0x1

// devicePrefix is what all our device names start with by default, so that a
// firewall can name them at once.
const devicePrefix = "overlay"

// diagnoseFirewall evaluates every chain on the forward hook for the overlay's
// traffic in both directions. The caller holds k.mu.
func (k *Kernel) diagnoseFirewall(cfg DiagnoseConfig, bridges []bridge) []Finding {
	var found []Finding
	err := k.inNamespace(func() error {
		rs, err := openRuleset()
		if err != nil {
			return err
		}
		defer rs.close()
		overlay := k.flows(cfg, bridges)
		var world []flow
		if cfg.World {
			world = k.worldFlows(cfg, bridges)
		}
		for _, c := range rs.chains {
			for _, flows := range [][]flow{overlay, world} {
				if f, ok := rs.judge(c, cfg.Device, flows); ok {
					found = append(found, f)
				}
			}
		}
		return nil
	})
	if err != nil {
		k.log.Debug("the nftables rules were not read", "err", err)
	}

	has4, has6 := families(cfg.Networks)
	for _, f := range []struct {
		has              bool
		names, tool, old string
	}{
		{has4, "/proc/thread-self/net/ip_tables_names", "iptables-legacy", "iptables"},
		{has6, "/proc/thread-self/net/ip6_tables_names", "ip6tables-legacy", "ip6tables"},
	} {
		names, err := k.readProc(f.names)
		if f.has && err == nil && slices.Contains(strings.Fields(string(names)), "filter") {
			found = append(found, Finding{CodeLegacyTables, fmt.Sprintf(
				"there is a firewall in legacy %s, which was not read and gets no rules of ours: make sure that its FORWARD chain accepts the overlay (%s -S FORWARD), as with: %s",
				f.old, f.tool, iptablesCure(f.tool, "FORWARD", cfg.Device))})
		}
	}
	return found
}

// flows are the packets that have to be let through: from containers into the
// overlay and back, in each family. The caller holds k.mu.
func (k *Kernel) flows(cfg DiagnoseConfig, bridges []bridge) []flow {
	tun := iface{name: cfg.Device}
	if l, err := k.h.LinkByName(cfg.Device); err == nil {
		tun.index = l.Attrs().Index
	}
	var inner []iface
	for _, b := range bridges {
		if i := (iface{b.name, b.index}); !slices.Contains(inner, i) {
			inner = append(inner, i)
		}
	}
	var all []flow
	for _, n := range cfg.Networks {
		own := n // as long as there is no lease, any subnet may become ours
		for _, o := range cfg.Own {
			if inside(o, n) {
				own = o
			}
		}
		all = append(all,
			flow{tun: tun, in: inner, out: []iface{tun}, src: own, dst: n},
			flow{tun: tun, in: []iface{tun}, out: inner, src: n, dst: own, toUs: true})
	}
	return all
}

// judge evaluates one base chain for the flows of one kind, and says what is wrong with
// it, if anything.
func (rs *ruleset) judge(c *nftables.Chain, device string, flows []flow) (Finding, bool) {
	if !rs.onForward(c) {
		return Finding{}, false
	}
	var from, to bool // lost packets from and to the overlay, or the world
	var lost []netip.Prefix
	code := ""
	for _, f := range flows {
		if !familyCovers(c.Table.Family, f.dst.Addr()) {
			continue
		}
		v, err := rs.evaluate(c, f, 0)
		if err != nil || v == verdictAccept {
			continue
		}
		why := CodeForwardRule
		if v == verdictNone {
			if c.Policy == nil || *c.Policy != nftables.ChainPolicyDrop {
				continue
			}
			why = CodeForwardPolicy
		}
		if code == "" {
			code = why
		}
		from, to = from || f.toUs, to || !f.toUs
		if own := f.own(); !slices.Contains(lost, own) {
			lost = append(lost, own)
		}
	}
	if code == "" {
		return Finding{}, false
	}
	direction := map[[2]bool]string{
		{true, true}: "to or from", {true, false}: "from", {false, true}: "to",
	}[[2]bool{from, to}]
	how := "by its policy"
	if code == CodeForwardRule {
		how = "by a rule"
	}
	whose, cure := direction+" the overlay", rs.cure(c, device)
	if flows[0].world {
		whose, cure = "of containers "+direction+" the world beyond the overlay", rs.worldCure(c, lost)
	}
	return Finding{code, fmt.Sprintf("the firewall's chain %s (table %s %s) drops forwarded packets %s, and no rule is seen to accept those %s: %s",
		c.Name, familyName(c.Table.Family), c.Table.Name, how, whose, cure)}, true
}

// onForward tells whether c sees forwarded IP packets.
func (rs *ruleset) onForward(c *nftables.Chain) bool {
	return c.Hooknum != nil && *c.Hooknum == *nftables.ChainHookForward &&
		(c.Table.Family == nftables.TableFamilyIPv4 || c.Table.Family == nftables.TableFamilyIPv6 || c.Table.Family == nftables.TableFamilyINet) &&
		!rs.dormant[*c.Table]
}

// familyCovers tells whether a table of family f sees packets of a's family.
func familyCovers(f nftables.TableFamily, a netip.Addr) bool {
	return f == nftables.TableFamilyINet || a.Is4() == (f == nftables.TableFamilyIPv4)
}

func familyName(f nftables.TableFamily) string {
	switch f {
	case nftables.TableFamilyIPv4:
		return "ip"
	case nftables.TableFamilyIPv6:
		return "ip6"
	}
	return "inet"
}

// cure spells the commands that let the overlay through chain c, in the terms
// of whoever owns the table.
func (rs *ruleset) cure(c *nftables.Chain, device string) string {
	if c.Table.Name == "firewalld" {
		return fmt.Sprintf("firewall-cmd --permanent --zone=trusted --add-interface=%s && firewall-cmd --reload", device)
	}
	if tool, chain := rs.iptables(c); tool != "" {
		return iptablesCure(tool, chain, device)
	}
	if strings.HasPrefix(device, devicePrefix) {
		device = devicePrefix + "*"
	}
	at := fmt.Sprintf("nft insert rule %s %s %s", familyName(c.Table.Family), c.Table.Name, c.Name)
	return fmt.Sprintf(`%s iifname '"%s"' accept; %s oifname '"%s"' accept`, at, device, at, device)
}

// iptables is the command that changes c, and the chain where its user's rules belong;
// empty if c is not one of iptables'.
func (rs *ruleset) iptables(c *nftables.Chain) (tool, chain string) {
	if !ofIptables(c) {
		return "", ""
	}
	tool, chain = "iptables", c.Name
	if c.Table.Family == nftables.TableFamilyIPv6 {
		tool = "ip6tables"
	}
	if rules, err := rs.rulesOf(c); err == nil && len(rules) > 0 && jumpsTo(rules[0], dockerUser) {
		chain = dockerUser // Docker keeps this one first, and its rules alone
	}
	return tool, chain
}

// jumpsTo tells whether a rule is a jump to the chain name.
func jumpsTo(r *nftables.Rule, name string) bool {
	return slices.ContainsFunc(r.Exprs, func(e expr.Any) bool {
		v, ok := e.(*expr.Verdict)
		return ok && v.Kind == expr.VerdictJump && v.Chain == name
	})
}

// iptablesCure is the two commands that let the overlay through an iptables chain.
func iptablesCure(tool, chain, device string) string {
	if strings.HasPrefix(device, devicePrefix) {
		device = devicePrefix + "+"
	}
	return fmt.Sprintf("%s -I %s -i %s -j ACCEPT; %s -I %s -o %s -j ACCEPT", tool, chain, device, tool, chain, device)
}

// ruleset reads the nftables rules of the calling thread's namespace as they
// are needed.
type ruleset struct {
	conn    *nftables.Conn
	chains  []*nftables.Chain
	dormant map[nftables.Table]bool // keyed as a Chain's Table: family and name
	rules   map[*nftables.Chain][]*nftables.Rule
	without string // a comment: rules with it are passed over
}

func openRuleset() (*ruleset, error) {
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return nil, err
	}
	rs := &ruleset{conn: conn, dormant: make(map[nftables.Table]bool), rules: make(map[*nftables.Chain][]*nftables.Rule)}
	tables, err := conn.ListTables()
	if err == nil {
		rs.chains, err = conn.ListChains()
	}
	if err != nil {
		return nil, errors.Join(err, conn.CloseLasting())
	}
	for _, t := range tables {
		// The attribute is big-endian, but is decoded in the host's order; all
		// flags that exist fit into one byte, so either is unambiguous.
		if (t.Flags|bits.ReverseBytes32(t.Flags))&tableDormant != 0 {
			rs.dormant[nftables.Table{Name: t.Name, Family: t.Family}] = true
		}
	}
	return rs, nil
}

func (rs *ruleset) close() { rs.conn.CloseLasting() }

// rulesOf returns the rules of c, in order.
func (rs *ruleset) rulesOf(c *nftables.Chain) ([]*nftables.Rule, error) {
	if rules, ok := rs.rules[c]; ok {
		return rules, nil
	}
	rules, err := rs.conn.GetRules(c.Table, c)
	if err != nil {
		return nil, err
	}
	rs.rules[c] = rules
	return rules, nil
}

// chain finds another chain of the table of c.
func (rs *ruleset) chain(c *nftables.Chain, name string) *nftables.Chain {
	for _, o := range rs.chains {
		if o.Name == name && *o.Table == *c.Table {
			return o
		}
	}
	return nil
}

// setKeys returns the elements of a set, ok only if it is a plain one, without intervals.
func (rs *ruleset) setKeys(c *nftables.Chain, l *expr.Lookup) (keys [][]byte, ok bool) {
	set, err := rs.conn.GetSetByName(c.Table, l.SetName)
	if err != nil || set.Interval || set.IsMap || set.Concatenation {
		return nil, false
	}
	elements, err := rs.conn.GetSetElements(set)
	if err != nil {
		return nil, false
	}
	for _, e := range elements {
		keys = append(keys, e.Key)
	}
	return keys, true
}
