package lab

import (
	"errors"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// The nftables tables of the lab. Each is removed as a whole.
const (
	partitionTable = "lab_partition"
	blockTable     = "lab_block"
)

// Cut pulls the cables of all the host's ports: the link goes down at the
// switch, so that the host's interfaces lose their carrier. For a fault that
// the host cannot see, use [Lab.Partition].
func (h *Host) Cut() error { return h.plug(false) }

// Restore undoes Cut.
func (h *Host) Restore() error { return h.plug(true) }

func (h *Host) plug(up bool) error {
	var errs []error
	for _, p := range h.Ports() {
		errs = append(errs, p.SetUp(up))
	}
	h.lab.log.Debug("link changed", "host", h.short, "up", up)
	return errors.Join(errs...)
}

// Partition makes the switches drop everything between the hosts of a and
// those of b, both ways, which neither can see. Partitions add up until Heal.
func (l *Lab) Partition(a, b []*Host) error {
	return errors.Join(l.DropBetween(a, b), l.DropBetween(b, a))
}

// DropBetween makes the switches drop everything from the hosts of from to
// those of to, one way. It adds to what is dropped already, until Heal.
func (l *Lab) DropBetween(from, to []*Host) error {
	l.mu.Lock()
	switches := append([]*Switch(nil), l.switches...)
	l.mu.Unlock()
	var errs []error
	for _, s := range switches {
		in, out := s.portsOf(from), s.portsOf(to)
		if len(in) > 0 && len(out) > 0 {
			errs = append(errs, s.dropBetween(in, out))
		}
	}
	return errors.Join(errs...)
}

// Heal undoes every Partition and DropBetween.
func (l *Lab) Heal() error {
	l.mu.Lock()
	switches := append([]*Switch(nil), l.switches...)
	l.mu.Unlock()
	var errs []error
	for _, s := range switches {
		errs = append(errs, s.delTable(nftables.TableFamilyBridge, partitionTable))
	}
	return errors.Join(errs...)
}

// portsOf returns the names of the switch's ports to the hosts.
func (s *Switch) portsOf(hosts []*Host) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var names []string
	for _, p := range s.ports {
		for _, h := range hosts {
			if p.host == h {
				names = append(names, p.name)
			}
		}
	}
	return names
}

func (s *Switch) dropBetween(in, out []string) error {
	return s.nft(func(c *nftables.Conn) error {
		t := c.AddTable(&nftables.Table{Family: nftables.TableFamilyBridge, Name: partitionTable})
		ch := baseChain(c, t, "forward", nftables.ChainHookForward, dropPriority)
		for _, i := range in {
			for _, o := range out {
				c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: []expr.Any{
					&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
					&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: ifname(i)},
					&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
					&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: ifname(o)},
					drop(),
				}})
			}
		}
		return c.Flush()
	})
}

// ifname is an interface name as nftables compares it: IFNAMSIZ bytes.
func ifname(name string) []byte {
	b := make([]byte, 16)
	copy(b, name)
	return b
}

// Block makes the host drop what matches, like a firewall on the host: a
// sender on it gets EPERM. Blocks add up until Unblock.
func (h *Host) Block(m Match, dir Direction) error {
	rules, err := m.rules(nftables.TableFamilyINet)
	if err != nil {
		return err
	}
	if dir&(In|Out|Through) == 0 {
		return fmt.Errorf("lab: %s: block in no direction", h.short)
	}
	return h.nft(func(c *nftables.Conn) error {
		t := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: blockTable})
		for _, hook := range hooks {
			if dir&hook.dir == 0 {
				continue
			}
			ch := baseChain(c, t, hook.name, hook.hook, dropPriority)
			for _, r := range rules {
				c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: append(r[:len(r):len(r)], drop())})
			}
		}
		return c.Flush()
	})
}

// Unblock undoes every Block of the host.
func (h *Host) Unblock() error { return h.delTable(nftables.TableFamilyINet, blockTable) }

// Block makes the switch drop what matches, like a middlebox that nobody can
// see. Blocks add up until Unblock. Fragments but the first have no port.
func (s *Switch) Block(m Match) error {
	rules, err := m.rules(nftables.TableFamilyBridge)
	if err != nil {
		return err
	}
	return s.nft(func(c *nftables.Conn) error {
		t := c.AddTable(&nftables.Table{Family: nftables.TableFamilyBridge, Name: blockTable})
		ch := baseChain(c, t, "forward", nftables.ChainHookForward, dropPriority)
		for _, r := range rules {
			c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: append(r[:len(r):len(r)], drop())})
		}
		return c.Flush()
	})
}

// Unblock undoes every Block of the switch.
func (s *Switch) Unblock() error { return s.delTable(nftables.TableFamilyBridge, blockTable) }

// Corrupt makes the switch spoil the UDP checksum of what matches, which must be UDP,
// until Unblock: like a device on the way that computes checksums wrong. The senders'
// kernels must finish checksums themselves (see FinishChecksums): one that is left to the
// network card is not looked at by the receiver.
func (s *Switch) Corrupt(m Match) error {
	rules, err := m.rules(nftables.TableFamilyBridge)
	if err != nil {
		return err
	}
	return s.nft(func(c *nftables.Conn) error {
		t := c.AddTable(&nftables.Table{Family: nftables.TableFamilyBridge, Name: blockTable})
		ch := baseChain(c, t, "forward", nftables.ChainHookForward, dropPriority)
		for _, r := range rules {
			c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: append(r[:len(r):len(r)],
				// The checksum is at offset 6 (RFC 768). 0 would mean that there is none.
				&expr.Immediate{Register: 1, Data: []byte{0x12, 0x34}},
				&expr.Payload{OperationType: expr.PayloadWrite, SourceRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 6, Len: 2})})
		}
		return c.Flush()
	})
}
