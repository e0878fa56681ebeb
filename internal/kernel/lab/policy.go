package lab

import (
	"github.com/google/nftables"
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
