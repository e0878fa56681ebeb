package neighbor

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"

	"github.com/overlayd/overlayd/encap"
	"github.com/overlayd/overlayd/internal/header"
	"github.com/overlayd/overlayd/tunnel"
)

// mac is an Ethernet address.
type mac = [6]byte

var broadcastMAC = mac{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// message is what ARP and neighbour discovery have in common.
type message struct {
	answer bool
	// sender and senderMAC are whom it is from. A solicitation need not tell its MAC:
	// then it is zero.
	sender    netip.Addr
	senderMAC mac
	// target is the address that is asked for; in an answer, the one that asked.
	target netip.Addr
}

var (
	errMessage  = errors.New("neighbor: malformed message")
	errFamilies = errors.New("neighbor: addresses of two families")
)

// arpLen is the length of an ARP message for IPv4 over Ethernet, which begins with
// arpKind: of Ethernet, of IPv4, and the lengths of their addresses (RFC 826, "Packet
// format"). The operations are from the same place.
const (
	arpLen     = 8 + 2*(6+4)
	arpKind    = "\x00\x01\x08\x00\x06\x04"
	arpRequest = 1
	arpReply   = 2
)

// ICMPv6 messages about neighbours (RFC 4861 sections 4.3, 4.4): their types, their
// length without options, the flags of an advertisement, and the options that hold a
// MAC (section 4.6.1), whose length is in units of 8 bytes. All are sent with the hop
// limit onLink, which no router lets pass.
const (
	neighborSolicitation  = 135
	neighborAdvertisement = 136
	neighborBodyLen       = 4 + 20

	flagRouter    = 0x80
	flagSolicited = 0x40
	flagOverride  = 0x20

	optSourceMAC = 1
	optTargetMAC = 2
	macOptionLen = 8 // RFC 2464 section 6

	onLink = 255
)

// parse reads a payload as encap.Codec.Decode returns it. What it returns has been
// checked as far as the message alone tells.
func parse(k encap.Kind, b []byte) (message, error) {
	switch k {
	case encap.ARP:
		return parseARP(b)
	case encap.ND:
		return parseND(b)
	}
	return message{}, errMessage
}

func parseARP(b []byte) (m message, err error) {
	if len(b) < arpLen || string(b[:6]) != arpKind {
		return m, errMessage
	}
	operation := binary.BigEndian.Uint16(b[6:])
	if operation != arpRequest && operation != arpReply {
		return m, errMessage
	}
	m = message{
		answer:    operation == arpReply,
		senderMAC: mac(b[8:14]),
		sender:    netip.AddrFrom4([4]byte(b[14:18])),
		target:    netip.AddrFrom4([4]byte(b[24:28])), // behind the MAC that is asked for
	}
	if !station(m.senderMAC) {
		return message{}, errMessage
	}
	return m, nil
}

// parseND reads an IPv6 packet that the codec has found to be a solicitation or an
// advertisement with a hop limit of 255, and makes the checks of RFC 4861 sections
// 7.1.1 and 7.1.2. Duplicate address detection, which has no sender, is none of them.
func parseND(b []byte) (m message, err error) {
	if len(b) < header.Len6+neighborBodyLen || len(b) != header.Len6+int(binary.BigEndian.Uint16(b[4:])) {
		return m, errMessage
	}
	ip, body := b[:header.Len6], b[header.Len6:]
	// The pseudo-header (RFC 8200 section 8.1) is even, so that the sum may go on.
	pseudo := append(slices.Clone(ip[8:40]), 0, 0, ip[4], ip[5], 0, 0, 0, ip[6])
	if tunnel.Checksum(append(pseudo, body...)) != 0 {
		return m, errMessage
	}
	src, dst := netip.AddrFrom16([16]byte(ip[8:24])), netip.AddrFrom16([16]byte(ip[24:40]))
	subject := netip.AddrFrom16([16]byte(body[8:24]))
	if body[1] != 0 || src.IsUnspecified() || src.IsMulticast() || subject.IsMulticast() {
		return m, errMessage
	}
	m.answer = body[0] == neighborAdvertisement
	m.sender, m.target = src, subject
	wanted := byte(optSourceMAC)
	if m.answer {
		if dst.IsMulticast() { // is nobody's answer
			return message{}, errMessage
		}
		m.sender, m.target, wanted = subject, dst, optTargetMAC
	}
	for opts := body[neighborBodyLen:]; len(opts) > 0; {
		if len(opts) < 2 || opts[1] == 0 || int(opts[1])*8 > len(opts) {
			return message{}, errMessage
		}
		if opts[0] == wanted && opts[1] == macOptionLen/8 {
			if m.senderMAC = mac(opts[2:8]); !station(m.senderMAC) {
				return message{}, errMessage
			}
		}
		opts = opts[int(opts[1])*8:]
	}
	return m, nil
}

// station reports whether a MAC may be that of one station.
func station(m mac) bool { return m[0]&1 == 0 && m != mac{} }

// build makes the payload of a message, and says of what kind it is. To answer, from
// is whose MAC own is; to ask, it is this node's address, and for whom is the peer's.
func build(answer bool, own mac, from netip.Addr, toMAC mac, to netip.Addr) (encap.Kind, []byte, error) {
	switch {
	case from.Is4() && to.Is4():
		return encap.ARP, buildARP(answer, own, from, toMAC, to), nil
	case from.Is6() && to.Is6():
		return encap.ND, buildND(answer, own, from, toMAC, to), nil
	}
	return encap.Invalid, nil, errFamilies
}

func buildARP(answer bool, own mac, from netip.Addr, toMAC mac, to netip.Addr) []byte {
	operation := uint16(arpReply)
	if !answer {
		operation, toMAC = arpRequest, mac{} // it is what is asked for
	}
	sender, target := from.As4(), to.As4()
	b := append(make([]byte, 0, arpLen), arpKind...)
	b = binary.BigEndian.AppendUint16(b, operation)
	b = append(b, own[:]...)
	b = append(b, sender[:]...)
	b = append(b, toMAC[:]...)
	return append(b, target[:]...)
}

func buildND(answer bool, own mac, from netip.Addr, toMAC mac, to netip.Addr) []byte {
	h := header.IP{Src: from, Dst: to, Protocol: header.ICMPv6, HopLimit: onLink}
	b := make([]byte, header.Len6+neighborBodyLen+macOptionLen)
	body, opt := b[header.Len6:], b[header.Len6+neighborBodyLen:]
	subject := to
	if answer {
		subject = from
		body[0], body[4], opt[0] = neighborAdvertisement, flagRouter|flagSolicited|flagOverride, optTargetMAC
	} else {
		body[0], opt[0] = neighborSolicitation, optSourceMAC
		if toMAC[0]&1 != 0 {
			h.Dst = solicitedNode(to)
		}
	}
	a := subject.As16()
	copy(body[8:24], a[:])
	opt[1] = macOptionLen / 8
	copy(opt[2:], own[:])
	h.Put(b)
	return b
}

// solicitedNode is the group of an address (RFC 4291 section 2.7.1).
func solicitedNode(a netip.Addr) netip.Addr {
	g := [16]byte{0: 0xff, 1: 0x02, 11: 1, 12: 0xff}
	b := a.As16()
	copy(g[13:], b[13:])
	return netip.AddrFrom16(g)
}

// groupMAC is where a question about an address goes when nobody's MAC is known:
// broadcast, or the MAC of the group (RFC 2464 section 7).
func groupMAC(a netip.Addr) mac {
	if a.Is4() {
		return broadcastMAC
	}
	b := a.As16()
	return mac{0x33, 0x33, 0xff, b[13], b[14], b[15]}
}

// LinkLocal is the IPv6 link-local address made of a MAC: RFC 4291, appendix A.
func LinkLocal(m [6]byte) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 8: m[0] ^ 2, 9: m[1], 10: m[2], 11: 0xff, 12: 0xfe, 13: m[3], 14: m[4], 15: m[5]})
}
