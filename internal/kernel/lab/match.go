package lab

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Match chooses packets. Zero fields match everything.
type Match struct {
	// Proto is "udp", "tcp", "icmp" (ICMP and ICMPv6), or empty.
	Proto string
	// Port is the destination port; it needs Proto udp or tcp.
	Port uint16
	// Src and Dst are prefixes of the outermost IP header, of one family.
	Src, Dst netip.Prefix
}

// Direction is where on a host packets are looked at. Directions may be
// combined.
type Direction uint8

// The directions, as the host sees them.
const (
	In      Direction = 1 << iota // to the host itself
	Out                           // from the host itself
	Through                       // forwarded by the host
)

// hooks are the places in nftables for each direction.
var hooks = []struct {
	dir  Direction
	name string
	hook *nftables.ChainHook
}{
	{In, "in", nftables.ChainHookInput},
	{Out, "out", nftables.ChainHookOutput},
	{Through, "through", nftables.ChainHookForward},
}

// rules returns the expression lists, one per nftables rule, that together
// match what m does. ICMP has two protocol numbers, hence two rules.
func (m Match) rules(family nftables.TableFamily) ([][]expr.Any, error) {
	var protos []byte
	switch m.Proto {
	case "":
	case "udp":
		protos = []byte{unix.IPPROTO_UDP}
	case "tcp":
		protos = []byte{unix.IPPROTO_TCP}
	case "icmp":
		protos = []byte{unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6}
	default:
		return nil, fmt.Errorf("lab: protocol %q: want udp, tcp, icmp or none", m.Proto)
	}
	if m.Port != 0 && m.Proto != "udp" && m.Proto != "tcp" {
		return nil, fmt.Errorf("lab: port %d needs protocol udp or tcp", m.Port)
	}
	if m.Src.IsValid() && m.Dst.IsValid() && m.Src.Addr().Is4() != m.Dst.Addr().Is4() {
		return nil, fmt.Errorf("lab: source %v and destination %v are of different families", m.Src, m.Dst)
	}
	addrs := append(matchAddr(family, m.Src, 12, 8), matchAddr(family, m.Dst, 16, 24)...)
	if len(protos) == 0 {
		return [][]expr.Any{addrs}, nil
	}
	var out [][]expr.Any
	for _, proto := range protos {
		rule := []expr.Any{
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{proto}},
		}
		if m.Port != 0 {
			rule = append(rule,
				// The destination port is at offset 2 in UDP and TCP (RFC 768, RFC 9293).
				&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, m.Port)})
		}
		out = append(out, append(rule, addrs...))
	}
	return out, nil
}

// matchAddr compares an address of the network header, at offset off4 in IPv4
// (RFC 791) and off6 in IPv6 (RFC 8200), with a prefix.
func matchAddr(family nftables.TableFamily, p netip.Prefix, off4, off6 uint32) []expr.Any {
	if !p.IsValid() {
		return nil
	}
	off, ethertype, nfproto := off4, uint16(unix.ETH_P_IP), byte(unix.NFPROTO_IPV4)
	if p.Addr().Is6() {
		off, ethertype, nfproto = off6, unix.ETH_P_IPV6, unix.NFPROTO_IPV6
	}
	which := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{nfproto}},
	}
	if family == nftables.TableFamilyBridge {
		which = []expr.Any{
			&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, ethertype)},
		}
	}
	net := ipNet(p.Masked())
	size := uint32(len(net.IP))
	return append(which,
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: off, Len: size},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: size, Mask: net.Mask, Xor: make([]byte, size)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: net.IP})
}

// Where the lab's chains stand: before whatever is under test, counters before
// drops.
const (
	countPriority nftables.ChainPriority = -302
	dropPriority  nftables.ChainPriority = -301
)

// baseChain adds a filter chain that accepts what its rules do not decide.
func baseChain(c *nftables.Conn, table *nftables.Table, name string, hook *nftables.ChainHook, prio nftables.ChainPriority) *nftables.Chain {
	accept := nftables.ChainPolicyAccept
	return c.AddChain(&nftables.Chain{
		Name:     name,
		Table:    table,
		Type:     nftables.ChainTypeFilter,
		Hooknum:  hook,
		Priority: &prio,
		Policy:   &accept,
	})
}

// drop is the verdict that ends a packet.
func drop() expr.Any { return &expr.Verdict{Kind: expr.VerdictDrop} }

// delTable removes a table; it is no error if there is none.
func (n *Namespace) delTable(family nftables.TableFamily, name string) error {
	return n.nft(func(c *nftables.Conn) error {
		t := &nftables.Table{Family: family, Name: name}
		c.AddTable(t) // deleting a table that is not there fails
		c.DelTable(t)
		return c.Flush()
	})
}
