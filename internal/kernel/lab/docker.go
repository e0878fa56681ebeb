package lab

import (
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
)

// DockerFirewall gives the host the firewall that Docker makes by iptables: chains
// FORWARD that drop what nobody accepts, the one of IPv4 with a chain DOCKER-USER that is
// asked first. Called again, it makes the chains anew, with nothing else in them.
func (h *Host) DockerFirewall() error {
	return h.nft(func(c *nftables.Conn) error {
		for _, family := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6} {
			drop := nftables.ChainPolicyDrop
			t := &nftables.Table{Family: family, Name: "filter"}
			c.AddTable(t) // deleting a table that is not there fails
			c.DelTable(t)
			c.AddTable(t)
			forward := c.AddChain(&nftables.Chain{
				Name: "FORWARD", Table: t, Type: nftables.ChainTypeFilter,
				Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &drop,
			})
			if family == nftables.TableFamilyIPv6 {
				continue
			}
			user := c.AddChain(&nftables.Chain{Name: "DOCKER-USER", Table: t})
			c.AddRule(&nftables.Rule{Table: t, Chain: user, Exprs: []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictReturn}}})
			c.AddRule(&nftables.Rule{Table: t, Chain: forward, Exprs: []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictJump, Chain: user.Name}}})
			c.AddRule(&nftables.Rule{Table: t, Chain: forward, Exprs: []expr.Any{
				&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: ifname("docker0")},
				&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictAccept},
			}})
		}
		return c.Flush()
	})
}

// FirewallRules lists the rules of the tables called filter, a line for each: its family,
// its chain and its comment.
func (h *Host) FirewallRules() (lines []string, err error) {
	err = h.nft(func(c *nftables.Conn) error {
		chains, err := c.ListChains()
		if err != nil {
			return err
		}
		for _, chain := range chains {
			if chain.Table.Name != "filter" {
				continue
			}
			rules, err := c.GetRules(chain.Table, chain)
			if err != nil {
				return err
			}
			for _, r := range rules {
				comment, _ := userdata.GetString(r.UserData, userdata.TypeComment)
				lines = append(lines, fmt.Sprintf("family %d %s %s", chain.Table.Family, chain.Name, comment))
			}
		}
		return nil
	})
	slices.Sort(lines)
	return lines, err
}
