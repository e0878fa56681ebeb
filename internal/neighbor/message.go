package neighbor

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/overlayd/overlayd/encap"
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

var errMessage = errors.New("neighbor: malformed message")

// The IPv6 header's length (RFC 8200 section 3), and that of ICMPv6 messages about
// neighbours without their options (RFC 4861 sections 4.3, 4.4).
const (
	ipv6HeaderLen   = 40
	neighborBodyLen = 4 + 20
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
	// gopacket adds these lengths up in 8 bits, and panics where they overflow.
	if len(b) < 8+2*(6+4) || b[4] != 6 || b[5] != 4 {
		return m, errMessage
	}
	var a layers.ARP
	if err := a.DecodeFromBytes(b, gopacket.NilDecodeFeedback); err != nil {
		return m, errMessage
	}
	if a.AddrType != layers.LinkTypeEthernet || a.Protocol != layers.EthernetTypeIPv4 ||
		a.Operation != layers.ARPRequest && a.Operation != layers.ARPReply {
		return m, errMessage
	}
	m = message{
		answer:    a.Operation == layers.ARPReply,
		sender:    netip.AddrFrom4([4]byte(a.SourceProtAddress)),
		senderMAC: mac(a.SourceHwAddress),
		target:    netip.AddrFrom4([4]byte(a.DstProtAddress)),
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
	if len(b) < ipv6HeaderLen+neighborBodyLen || len(b) != ipv6HeaderLen+int(binary.BigEndian.Uint16(b[4:])) {
		return m, errMessage
	}
	ip, body := b[:ipv6HeaderLen], b[ipv6HeaderLen:]
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
	m.answer = body[0] == layers.ICMPv6TypeNeighborAdvertisement
	m.sender, m.target = src, subject
	wanted := layers.ICMPv6OptSourceAddress
	if m.answer {
		if dst.IsMulticast() { // is nobody's answer
			return message{}, errMessage
		}
		m.sender, m.target, wanted = subject, dst, layers.ICMPv6OptTargetAddress
	}
	for opts := body[neighborBodyLen:]; len(opts) > 0; {
		if len(opts) < 2 || opts[1] == 0 || int(opts[1])*8 > len(opts) {
			return message{}, errMessage
		}
		if layers.ICMPv6Opt(opts[0]) == wanted && opts[1] == 1 { // RFC 2464 section 6
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
	buf := gopacket.NewSerializeBuffer()
	opts := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if from.Is4() {
		a := &layers.ARP{
			AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4,
			Operation: layers.ARPRequest, SourceHwAddress: own[:], SourceProtAddress: from.AsSlice(),
			DstHwAddress: make([]byte, 6), DstProtAddress: to.AsSlice(),
		}
		if answer {
			a.Operation, a.DstHwAddress = layers.ARPReply, toMAC[:]
		}
		err := gopacket.SerializeLayers(buf, opts, a)
		return encap.ARP, buf.Bytes(), err
	}
	ip := &layers.IPv6{Version: 6, HopLimit: 255, NextHeader: layers.IPProtocolICMPv6, SrcIP: from.AsSlice(), DstIP: to.AsSlice()}
	icmp := &layers.ICMPv6{}
	var body gopacket.SerializableLayer
	if answer {
		icmp.TypeCode = layers.CreateICMPv6TypeCode(layers.ICMPv6TypeNeighborAdvertisement, 0)
		body = &layers.ICMPv6NeighborAdvertisement{
			Flags: 0xe0, TargetAddress: from.AsSlice(), // router, solicited, override
			Options: layers.ICMPv6Options{{Type: layers.ICMPv6OptTargetAddress, Data: own[:]}},
		}
	} else {
		icmp.TypeCode = layers.CreateICMPv6TypeCode(layers.ICMPv6TypeNeighborSolicitation, 0)
		if toMAC[0]&1 != 0 {
			ip.DstIP = solicitedNode(to).AsSlice()
		}
		body = &layers.ICMPv6NeighborSolicitation{
			TargetAddress: to.AsSlice(), Options: layers.ICMPv6Options{{Type: layers.ICMPv6OptSourceAddress, Data: own[:]}},
		}
	}
	if err := icmp.SetNetworkLayerForChecksum(ip); err != nil {
		return encap.Invalid, nil, err
	}
	err := gopacket.SerializeLayers(buf, opts, ip, icmp, body)
	return encap.ND, buf.Bytes(), err
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
