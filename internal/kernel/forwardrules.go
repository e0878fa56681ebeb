package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"
)

// ForwardRules is what a firewall of iptables has to let through.
//
// An accept in one table of nftables is no answer to a drop in another one, so the rules
// have to stand where the drop is. They are put into the chains that are made for that:
// iptables' own FORWARD, by Docker's word its DOCKER-USER instead, where that is. Tables
// of other firewalls are theirs, and only diagnosed. Each rule carries a comment, which
// `iptables -S` shows too, and by which it is known again.
type ForwardRules struct {
	// Device is the TUN's name; the comment is "overlayd-"+Device.
	Device string
	// Devices are all by which the overlay's packets come and leave, Device among them.
	Devices []string
	// Networks are the overlay's, Own this node's subnets.
	Networks, Own []netip.Prefix
	// World tells that containers also are to reach beyond the overlay, where no other
	// way is known by the Underlay.
	World    bool
	Underlay string
	// Inside are the interfaces behind which containers are, as Kernel.Inside finds them.
	// They make no difference but that it is looked again when there are others.
	Inside []string
}

// forwardRulesState is what SetForwardRules did last. Kernel.mu guards it.
type forwardRulesState struct {
	fixed      string // the ForwardRules, to be compared
	generation uint32 // of nftables, since when nothing has changed
}

// forwardComment marks the rules.
func forwardComment(device string) string { return guardTable(device) }

// SetForwardRules has the firewall accept forwarded packets from and to the overlay
// networks where, without these rules, one of iptables' FORWARD chains would drop some by
// its policy or by a rule. Where none would, rules that stand from before are removed. It
// costs one request as long as nobody has changed anything in nftables.
//
// It returns what was done, in words.
func (k *Kernel) SetForwardRules(f ForwardRules) (done []string, err error) {
	if err := k.lock(); err != nil {
		return nil, err
	}
	defer k.mu.Unlock()
	fixed := fmt.Sprintf("%+v", f)
	err = k.inNamespace(func() error {
		c, err := openNF()
		if err != nil {
			return err
		}
		defer c.close()
		return c.retried(func(gen, bound uint32) error {
			st := k.forward
			if st != nil && st.fixed == fixed && st.generation == gen {
				return nil
			}
			var batch []nfMessage
			var err error
			if batch, done, err = f.changes(k.forwardFlows(f), st == nil || st.fixed != fixed); err != nil {
				return err
			}
			if err := c.commit(bound, batch); err != nil {
				return err
			}
			if len(batch) > 0 {
				gen = nextGeneration(gen)
			}
			k.forward = &forwardRulesState{fixed: fixed, generation: gen}
			return nil
		})
	})
	switch {
	case errors.Is(err, errNoNF):
		return nil, nil // and so no such firewall
	case errors.Is(err, unix.EPERM):
		err = ErrPermission
	}
	if err != nil {
		return nil, fmt.Errorf("kernel: accept rules in the firewall's FORWARD chains: %w", err)
	}
	return done, nil
}

// forwardFlows are the packets that have to be let through. The caller holds k.mu.
func (k *Kernel) forwardFlows(f ForwardRules) (flows []flow) {
	cfg := DiagnoseConfig{Device: f.Device, Underlay: f.Underlay, Networks: f.Networks, Own: f.Own}
	bridges := k.bridges(cfg)
	if f.World {
		flows = k.worldFlows(cfg, bridges)
	}
	for _, cfg.Device = range f.Devices {
		flows = append(flows, k.flows(cfg, bridges)...)
	}
	return flows
}

// changes are the transaction that brings the rules to what is wanted; nil if they are.
// renew tells that nobody knows what those are that stand.
func (f *ForwardRules) changes(flows []flow, renew bool) (batch []nfMessage, done []string, err error) {
	rs, err := openRuleset()
	if err != nil {
		return nil, nil, err
	}
	defer rs.close()
	for _, c := range rs.chains {
		if !ofIptables(c) || !rs.onForward(c) {
			continue
		}
		var networks []netip.Prefix
		for _, n := range f.Networks {
			if familyCovers(c.Table.Family, n.Addr()) {
				networks = append(networks, n)
			}
		}
		comment := forwardComment(f.Device)
		rs.without = comment
		needed, err := rs.dropsAny(c, flows)
		if err != nil {
			return nil, nil, err
		}
		target, err := rs.place(c, comment, flows)
		if err != nil {
			return nil, nil, err
		}
		rs.without = ""
		ours, err := rs.commented(c, comment)
		if err != nil {
			return nil, nil, err
		}
		drops, err := rs.dropsAny(c, flows)
		if err != nil {
			return nil, nil, err
		}
		stand := len(ours) == 2*len(networks) && !drops && !renew &&
			!slices.ContainsFunc(ours, func(r *nftables.Rule) bool { return r.Chain.Name != target.Name })
		if needed && stand || !needed && len(ours) == 0 {
			continue
		}
		for _, r := range ours {
			batch = append(batch, deletion(r))
		}
		at := fmt.Sprintf("the chain %s (table %s %s)", target.Name, familyName(c.Table.Family), c.Table.Name)
		if !needed {
			done = append(done, "the rules for the overlay are no longer needed in "+at+", and removed")
			continue
		}
		for _, n := range networks {
			for _, offset := range []uint32{offDest(n.Addr()), offSource(n.Addr())} {
				m, err := acceptance(target, comment, offset, n)
				if err != nil {
					return nil, nil, err
				}
				batch = append(batch, m)
			}
			done = append(done, fmt.Sprintf("packets from and to %v are accepted in %s", n, at))
		}
	}
	return batch, done, nil
}

// ofIptables tells whether c is a FORWARD chain as iptables makes it.
func ofIptables(c *nftables.Chain) bool {
	return c.Name == "FORWARD" && c.Table.Name == "filter" &&
		(c.Table.Family == nftables.TableFamilyIPv4 || c.Table.Family == nftables.TableFamilyIPv6)
}

// dropsAny tells whether a base chain drops one of the flows.
func (rs *ruleset) dropsAny(c *nftables.Chain, flows []flow) (bool, error) {
	for _, f := range flows {
		if !familyCovers(c.Table.Family, f.dst.Addr()) {
			continue
		}
		v, err := rs.evaluate(c, f, 0)
		if err != nil {
			return false, err
		}
		if v == verdictDrop || v == verdictNone && c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop {
			return true, nil
		}
	}
	return false, nil
}

// place is the chain where the rules belong: Docker's for its users, where that is asked
// first, and for everything.
func (rs *ruleset) place(c *nftables.Chain, comment string, flows []flow) (*nftables.Chain, error) {
	rules, err := rs.rulesOf(c)
	if err != nil {
		return nil, err
	}
	user := rs.chain(c, dockerUser)
	rules = slices.DeleteFunc(slices.Clone(rules), func(r *nftables.Rule) bool { return commented(r, comment) })
	if user == nil || len(rules) == 0 || !jumpsTo(rules[0], dockerUser) {
		return c, nil
	}
	for _, f := range flows {
		if familyCovers(c.Table.Family, f.dst.Addr()) && rs.matches(c, rules[0].Exprs, f) != yes {
			return c, nil
		}
	}
	return user, nil
}

// dockerUser is the chain that Docker keeps in front of its own, for its users' rules.
const dockerUser = "DOCKER-USER"

// commented are the rules with a comment in all chains of the table of c.
func (rs *ruleset) commented(c *nftables.Chain, comment string) (found []*nftables.Rule, err error) {
	for _, o := range rs.chains {
		if *o.Table != *c.Table {
			continue
		}
		rules, err := rs.rulesOf(o)
		if err != nil {
			return nil, err
		}
		for _, r := range rules {
			if commented(r, comment) {
				found = append(found, r)
			}
		}
	}
	return found, nil
}

// commented tells whether a rule carries a comment: in its user data, as nft and newer
// iptables write it, or as a match of iptables, as iptables-restore makes of it.
func commented(r *nftables.Rule, comment string) bool {
	const typeComment = 0 // NFTNL_UDATA_RULE_COMMENT (libnftnl/include/libnftnl/udata.h): a type, a length, a value
	for b := r.UserData; len(b) >= 2 && len(b) >= 2+int(b[1]); b = b[2+int(b[1]):] {
		if b[0] == typeComment && string(b[2:2+int(b[1])]) == comment+"\x00" {
			return true
		}
	}
	return slices.ContainsFunc(r.Exprs, func(e expr.Any) bool {
		m, ok := e.(*expr.Match)
		if !ok || m.Name != "comment" {
			return false
		}
		text, ok := m.Info.(*xt.Comment)
		return ok && string(*text) == comment
	})
}

// acceptance inserts a rule at the head of a chain, with the words that iptables reads
// and nothing else: it refuses to show a table with others.
func acceptance(c *nftables.Chain, comment string, offset uint32, p netip.Prefix) (nfMessage, error) {
	what := fmt.Sprintf("adding a rule to the chain %s", c.Name)
	r := rule(within(offset, p), []expr.Any{&expr.Counter{}}, accepted())
	b, err := ruleAttrs(byte(c.Table.Family), c.Table.Name, c.Name, r)
	if err != nil {
		return nfMessage{}, fmt.Errorf("%s: %w", what, err)
	}
	text := append([]byte(comment), 0)
	b = nfAttr(b, unix.NFTA_RULE_USERDATA, append([]byte{0, byte(len(text))}, text...))
	return nfMessage{kind: unix.NFT_MSG_NEWRULE, flags: unix.NLM_F_CREATE, family: byte(c.Table.Family), attrs: b, what: what}, nil
}

// deletion deletes a rule.
func deletion(r *nftables.Rule) nfMessage {
	b := nfString(nil, unix.NFTA_RULE_TABLE, r.Table.Name)
	b = nfString(b, unix.NFTA_RULE_CHAIN, r.Chain.Name)
	b = nfAttr(b, unix.NFTA_RULE_HANDLE, binary.BigEndian.AppendUint64(nil, r.Handle))
	return nfMessage{kind: unix.NFT_MSG_DELRULE, family: byte(r.Table.Family), attrs: b, what: "deleting a rule of the chain " + r.Chain.Name}
}

// RemoveForwardRules removes the rules for a device, whoever has made them, and returns
// what was removed, in words. It is no error if there are none, or no nftables.
func (k *Kernel) RemoveForwardRules(device string) (removed []string, err error) {
	if err := k.lock(); err != nil {
		return nil, err
	}
	defer k.mu.Unlock()
	return k.removeForwardRules(device)
}

// removeForwardRules does what RemoveForwardRules says. The caller holds k.mu.
func (k *Kernel) removeForwardRules(device string) (removed []string, err error) {
	err = k.inNamespace(func() error {
		c, err := openNF()
		if err != nil {
			return err
		}
		defer c.close()
		return c.retried(func(_, bound uint32) (err error) {
			var batch []nfMessage
			if batch, removed, err = forwardDeletions(device); err != nil {
				return err
			}
			return c.commit(bound, batch)
		})
	})
	switch {
	case errors.Is(err, errNoNF):
		return nil, nil
	case errors.Is(err, unix.EPERM):
		err = ErrPermission
	}
	if err != nil {
		return nil, fmt.Errorf("kernel: removing the accept rules for %s: %w", device, err)
	}
	k.forward = nil
	return removed, nil
}

// forwardDeletions delete all rules for a device.
func forwardDeletions(device string) (batch []nfMessage, removed []string, err error) {
	rs, err := openRuleset()
	if err != nil {
		return nil, nil, err
	}
	defer rs.close()
	for _, c := range rs.chains {
		if !ofIptables(c) {
			continue
		}
		ours, err := rs.commented(c, forwardComment(device))
		if err != nil {
			return nil, nil, err
		}
		for _, r := range ours {
			batch = append(batch, deletion(r))
			removed = append(removed, fmt.Sprintf("rule %q of the chain %s (table %s %s)",
				forwardComment(device), r.Chain.Name, familyName(r.Table.Family), r.Table.Name))
		}
	}
	return batch, removed, nil
}
