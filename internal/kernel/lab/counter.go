package lab

import (
	"errors"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// Counter counts packets in the kernel, with a table of nftables of its own. A
// superpacket of the kernel's segmentation offload counts once, a packet that a
// Block drops is counted.
type Counter struct {
	ns    *Namespace
	table *nftables.Table
	dir   Direction
}

// Count starts to count what matches. The counter ends with Close, or with the
// lab.
func (n *Namespace) Count(m Match, dir Direction) (*Counter, error) {
	rules, err := m.rules(nftables.TableFamilyINet)
	if err != nil {
		return nil, err
	}
	if dir&(In|Out|Through) == 0 {
		return nil, fmt.Errorf("lab: %s: count in no direction", n.short)
	}
	k := &Counter{ns: n, dir: dir, table: &nftables.Table{
		Family: nftables.TableFamilyINet,
		Name:   fmt.Sprintf("lab_count_%d", n.lab.serial.Add(1)),
	}}
	err = n.nft(func(c *nftables.Conn) error {
		t := c.AddTable(k.table)
		for _, hook := range hooks {
			if dir&hook.dir == 0 {
				continue
			}
			ch := baseChain(c, t, hook.name, hook.hook, countPriority)
			for _, r := range rules {
				c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: append(r[:len(r):len(r)], &expr.Counter{})})
			}
		}
		return c.Flush()
	})
	if err != nil {
		return nil, err
	}
	return k, nil
}

// Read returns the packets counted so far and their bytes, IP header included.
func (k *Counter) Read() (packets, bytes uint64, err error) {
	err = k.ns.nft(func(c *nftables.Conn) error {
		for _, hook := range hooks {
			if k.dir&hook.dir == 0 {
				continue
			}
			rules, err := c.GetRules(k.table, &nftables.Chain{Name: hook.name, Table: k.table})
			if err != nil {
				return err
			}
			found := false
			for _, r := range rules {
				for _, e := range r.Exprs {
					if n, ok := e.(*expr.Counter); ok {
						packets, bytes, found = packets+n.Packets, bytes+n.Bytes, true
					}
				}
			}
			if !found {
				return errors.New("the counter is gone")
			}
		}
		return nil
	})
	return packets, bytes, err
}

// Close ends the counter.
func (k *Counter) Close() error {
	return k.ns.delTable(nftables.TableFamilyINet, k.table.Name)
}
