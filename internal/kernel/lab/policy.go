package lab

import (
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// policyTable holds a chain on the forward hook, as container runtimes make it.
const policyTable = "lab_policy"

// ForwardPolicyDrop gives the host a firewall that forwards nothing: a chain
// without rules on the forward hook, with a policy of drop. Docker makes one
// like it.
func (h *Host) ForwardPolicyDrop() error {
	return h.nft(func(c *nftables.Conn) error {
		drop := nftables.ChainPolicyDrop
		t := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: policyTable})
		c.AddChain(&nftables.Chain{
			Name: "forward", Table: t, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &drop,
		})
		return c.Flush()
	})
}

// ForwardPolicyAccept undoes ForwardPolicyDrop.
func (h *Host) ForwardPolicyAccept() error { return h.delTable(nftables.TableFamilyINet, policyTable) }

// DropForwardedFrom gives the host a firewall that forwards nothing that has come by
// an interface, until ForwardPolicyAccept.
func (h *Host) DropForwardedFrom(iface string) error {
	return h.nft(func(c *nftables.Conn) error {
		accept := nftables.ChainPolicyAccept
		t := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: policyTable})
		ch := c.AddChain(&nftables.Chain{
			Name: "forward", Table: t, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &accept,
		})
		c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: []expr.Any{
			&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: ifname(iface)},
			drop(),
		}})
		return c.Flush()
	})
}
