package kernel

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// iface is an interface as a rule may match it.
type iface struct {
	name  string
	index int
}

// flow is the overlay's traffic in one direction, as the firewall sees it.
type flow struct {
	tun      iface
	in, out  []iface      // the possible interfaces; none: some interface that is not the TUN
	src, dst netip.Prefix // the addresses lie in these
	toUs     bool         // from the overlay to our containers
	world    bool         // between our containers and the world: what they begin, and the answers
}

// verdict is what becomes of a flow in a chain.
type verdict int

const (
	verdictNone   verdict = iota // the end of the chain, or a return
	verdictAccept                // an accept that is certain
	verdictDrop                  // a drop or reject that is certain
)

// answer is whether something matches a flow. A rule about more than the flow
// tells, such as the state of a connection, maybe does.
type answer int

const (
	maybe answer = iota
	yes
	no
)

func certain(b bool) answer {
	if b {
		return yes
	}
	return no
}

func (a answer) invert(invert bool) answer {
	switch {
	case !invert || a == maybe:
		return a
	case a == yes:
		return no
	}
	return yes
}

// maxJumps is how deep chains may call each other, as in the kernel:
// NFT_JUMP_STACK_SIZE (linux/include/net/netfilter/nf_tables.h).
const maxJumps = 16

// evaluate follows f through chain c. Rules that only may match are passed over:
// so an accept that is seen is a certain one, and a drop in front of it that
// depends on more than f does not count.
func (rs *ruleset) evaluate(c *nftables.Chain, f flow, depth int) (verdict, error) {
	if depth > maxJumps {
		return verdictNone, nil
	}
	rules, err := rs.rulesOf(c)
	if err != nil {
		return verdictNone, err
	}
	for _, r := range rules {
		if rs.without != "" && commented(r, rs.without) || rs.matches(c, r.Exprs, f) != yes {
			continue
		}
		for _, e := range r.Exprs {
			switch e := e.(type) {
			case *expr.Reject:
				return verdictDrop, nil
			case *expr.Target:
				if e.Name == "REJECT" {
					return verdictDrop, nil
				}
			case *expr.Verdict:
				switch e.Kind {
				case expr.VerdictAccept:
					return verdictAccept, nil
				case expr.VerdictDrop:
					return verdictDrop, nil
				case expr.VerdictReturn:
					return verdictNone, nil
				case expr.VerdictJump, expr.VerdictGoto:
					next := rs.chain(c, e.Chain)
					if next == nil {
						continue
					}
					v, err := rs.evaluate(next, f, depth+1)
					if err != nil || v != verdictNone || e.Kind == expr.VerdictGoto {
						return v, err
					}
				}
			}
		}
	}
	return verdictNone, nil
}

// field is what of a packet a register holds.
type field struct {
	meta expr.MetaKey
	// addr is set for a source or destination address, of which the first bits
	// bits are there; -1 after a mask that is no prefix.
	addr bool
	dst  bool
	bits int
	// value is set where the whole of it is known.
	value []byte
}

// matches tells whether a rule applies to f: no if one of its conditions does not
// hold, else maybe if one is beyond us.
func (rs *ruleset) matches(c *nftables.Chain, exprs []expr.Any, f flow) answer {
	result := yes
	registers := make(map[uint32]*field)
	for _, e := range exprs {
		a := yes
		switch e := e.(type) {
		case *expr.Counter, *expr.Log, *expr.Verdict, *expr.Reject, *expr.Target, *expr.Immediate:
		case *expr.Match:
			if e.Name != "comment" {
				a = matchState(e, f)
			}
		case *expr.Meta:
			if e.SourceRegister {
				continue // sets something
			}
			registers[e.Register] = &field{meta: e.Key}
		case *expr.Ct:
			if e.SourceRegister {
				continue // sets something
			}
			registers[e.Register] = stateField(e.Key, f)
		case *expr.Payload:
			registers[e.DestRegister] = addressField(e, f)
		case *expr.Bitwise:
			registers[e.DestRegister] = registers[e.SourceRegister].mask(e)
		case *expr.Cmp:
			switch e.Op {
			case expr.CmpOpEq, expr.CmpOpNeq:
				a = registers[e.Register].equal(e.Data, f).invert(e.Op == expr.CmpOpNeq)
			default:
				a = maybe
			}
		case *expr.Lookup:
			a = rs.lookup(c, registers[e.SourceRegister], e, f).invert(e.Invert)
		default:
			a = maybe
		}
		switch {
		case a == no:
			return no
		case a == maybe:
			result = maybe
		}
	}
	return result
}

// lookup tells whether a set has the field. Sets of addresses are not read.
func (rs *ruleset) lookup(c *nftables.Chain, fd *field, l *expr.Lookup, f flow) answer {
	if fd == nil || fd.addr || l.IsDestRegSet {
		return maybe
	}
	keys, ok := rs.setKeys(c, l)
	if !ok {
		return maybe
	}
	result := no
	for _, key := range keys {
		switch fd.equal(key, f) {
		case yes:
			return yes
		case maybe:
			result = maybe
		}
	}
	return result
}

// addressField recognizes the load of an address: at offsets 12 and 16 of an
// IPv4 header (RFC 791 section 3.1), 8 and 24 of an IPv6 header (RFC 8200
// section 3). A prefix of whole bytes is loaded shorter. nil for anything else.
func addressField(p *expr.Payload, f flow) *field {
	src, dst, size := uint32(12), uint32(16), uint32(4)
	if f.src.Addr().Is6() {
		src, dst, size = 8, 24, 16
	}
	if p.OperationType != expr.PayloadLoad || p.Base != expr.PayloadBaseNetworkHeader ||
		p.Len == 0 || p.Len > size || p.Offset != src && p.Offset != dst {
		return nil
	}
	return &field{addr: true, dst: p.Offset == dst, bits: int(p.Len) * 8}
}

// mask applies a bitwise expression to a field.
func (fd *field) mask(e *expr.Bitwise) *field {
	if fd != nil && fd.value != nil {
		return maskValue(fd.value, e)
	}
	if fd == nil || !fd.addr || len(bytes.Trim(e.Xor, "\x00")) != 0 {
		return nil
	}
	ones, ended := 0, false
	for _, b := range e.Mask {
		for bit := 7; bit >= 0; bit-- {
			set := b>>bit&1 != 0
			if set && ended {
				return nil
			}
			if set {
				ones++
			}
			ended = ended || !set
		}
	}
	return &field{addr: true, dst: fd.dst, bits: min(fd.bits, ones)}
}

// equal tells whether the field of f's packets has the value data.
func (fd *field) equal(data []byte, f flow) answer {
	switch {
	case fd == nil:
		return maybe
	case fd.addr:
		return fd.equalAddr(data, f)
	case fd.value != nil:
		return certain(bytes.Equal(fd.value, data))
	}
	v6 := f.src.Addr().Is6()
	switch fd.meta {
	case expr.MetaKeyIIFNAME:
		return f.through(f.in, func(i iface) bool { return nameMatches(data, i.name) })
	case expr.MetaKeyOIFNAME:
		return f.through(f.out, func(i iface) bool { return nameMatches(data, i.name) })
	case expr.MetaKeyIIF:
		return f.through(f.in, func(i iface) bool { return indexMatches(data, i.index) })
	case expr.MetaKeyOIF:
		return f.through(f.out, func(i iface) bool { return indexMatches(data, i.index) })
	case expr.MetaKeyNFPROTO:
		return certain(len(data) == 1 && (data[0] == unix.NFPROTO_IPV6) == v6)
	case expr.MetaKeyPROTOCOL:
		return certain(len(data) == 2 && (binary.BigEndian.Uint16(data) == unix.ETH_P_IPV6) == v6)
	}
	return maybe
}

// equalAddr compares an address field with the prefix that data begins.
func (fd *field) equalAddr(data []byte, f flow) answer {
	of := f.src
	if fd.dst {
		of = f.dst
	}
	full := make([]byte, of.Addr().BitLen()/8)
	if copy(full, data) != len(data) {
		return maybe
	}
	addr, _ := netip.AddrFromSlice(full)
	p := netip.PrefixFrom(addr, fd.bits)
	switch {
	case inside(of, p):
		return yes
	case !p.Overlaps(of):
		return no
	}
	return maybe
}

// through tells whether the interfaces that the flow may use match. When they are
// not known, they are at least not the TUN.
func (f flow) through(ifaces []iface, match func(iface) bool) answer {
	if len(ifaces) == 0 {
		if match(f.tun) {
			return no
		}
		return maybe
	}
	some, all := false, true
	for _, i := range ifaces {
		if match(i) {
			some = true
		} else {
			all = false
		}
	}
	switch {
	case all:
		return yes
	case some:
		return maybe
	}
	return no
}

// nameMatches compares an interface name with a rule's: with a NUL at its end it
// is the whole name, without it a beginning of the name (overlay*).
func nameMatches(data []byte, name string) bool {
	want := string(bytes.TrimRight(data, "\x00"))
	if len(want) < len(data) {
		return want == name
	}
	return strings.HasPrefix(name, want)
}

// indexMatches compares an interface index, which is in the host's byte order.
func indexMatches(data []byte, index int) bool {
	return len(data) == 4 && int(binary.NativeEndian.Uint32(data)) == index
}
