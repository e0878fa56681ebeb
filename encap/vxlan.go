package encap

import (
	"encoding/binary"
	"errors"
)

// The VXLAN header (RFC 7348 section 5) and the inner Ethernet header without a
// VLAN tag:
//
//	 0  flags, of which only I is defined: 0x08
//	 1  reserved, 3 bytes
//	 4  VNI, 3 bytes
//	 7  reserved
//	 8  destination MAC, source MAC, 6 bytes each
//	20  EtherType
const (
	vxlanHeaderLen    = 8
	ethernetHeaderLen = 14

	vxlanFlagI = 0x08 // the VNI is valid
)

// The EtherTypes (linux/include/uapi/linux/if_ether.h). 0x88B5 is the first one for
// local experiments (IEEE 802, clause 9.2.3).
const (
	etherTypeIPv4    = 0x0800
	etherTypeARP     = 0x0806
	etherTypeIPv6    = 0x86dd
	etherTypeControl = 0x88b5
)

// arpLen is the length of an ARP message for IPv4 over Ethernet (RFC 826).
const arpLen = 28

// What makes an inner IPv6 packet a message of neighbour discovery that comes from
// the link itself: RFC 4861 sections 4.3, 4.4 and 7.1.
const (
	protoICMPv6           = 58
	onLinkHopLimit        = 255
	icmpv6NeighborSolicit = 135
	icmpv6NeighborAdvert  = 136
)

var (
	// ErrVXLANFlags: the I flag is missing, or, unless that is to be ignored, a
	// reserved bit is set.
	ErrVXLANFlags = errors.New("encap: VXLAN header without the I flag, or with reserved bits")
	// ErrVNI: a frame of another VXLAN network.
	ErrVNI = errors.New("encap: unknown VNI")
	// ErrMAC: a frame for another VTEP, or one that says it is from us.
	ErrMAC = errors.New("encap: unknown MAC address")
	// ErrGroup: a frame for a group, such as IPv6 multicast, or for all.
	ErrGroup = errors.New("encap: multicast or broadcast")
	// ErrEtherType: neither IP nor ARP nor one of our control frames.
	ErrEtherType = errors.New("encap: unknown EtherType")
)

var broadcast = [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// VXLAN is the vxlan encap: RFC 7348 framing as Linux's device sends and takes it,
// with Ethernet frames between VTEPs inside.
type VXLAN struct {
	// VNI is the network identifier, below 2^24.
	VNI uint32
	// MAC is this node's VTEP address.
	MAC [6]byte
	// IgnoreReserved takes frames with reserved bits set, as RFC 7348 section 5
	// demands. Without it they are refused, as Linux does, since extensions of VXLAN
	// change with such bits what follows.
	IgnoreReserved bool
}

var _ Codec = VXLAN{}

// Name returns "vxlan".
func (VXLAN) Name() string { return "vxlan" }

// HeaderLen returns 22.
func (VXLAN) HeaderLen() int { return vxlanHeaderLen + ethernetHeaderLen }

// PutHeader implements Codec.
func (v VXLAN) PutHeader(b []byte, k Kind, d Dest) {
	binary.BigEndian.PutUint64(b, vxlanFlagI<<56|uint64(v.VNI)<<8)
	copy(b[8:14], d.MAC[:])
	copy(b[14:20], v.MAC[:])
	binary.BigEndian.PutUint16(b[20:], etherType(k))
}

func etherType(k Kind) uint16 {
	switch k {
	case IPv4:
		return etherTypeIPv4
	case IPv6, ND:
		return etherTypeIPv6
	case ARP:
		return etherTypeARP
	case Control:
		return etherTypeControl
	}
	return 0
}

// Decode implements Codec. Frames for this VTEP are taken, and broadcast ARP and
// multicast neighbour discovery. What Ethernet has padded a packet or an ARP message
// with is cut off. Its errors are ErrShort, ErrMagic for an inner packet of another
// IP version than its EtherType says, and those of VXLAN.
func (v VXLAN) Decode(datagram []byte) (Kind, []byte, error) {
	payload, typ, err := v.open(datagram)
	if err != nil {
		return Invalid, nil, err
	}
	to, from := [6]byte(datagram[8:14]), [6]byte(datagram[14:20])
	if from == v.MAC || from[0]&1 != 0 { // a loop, as in linux/drivers/net/vxlan, vxlan_set_mac
		return Invalid, nil, ErrMAC
	}
	kind, payload, err := inner(payload, typ)
	if err != nil {
		return Invalid, nil, err
	}
	switch {
	case to == v.MAC:
	case kind == ARP && to == broadcast:
	case kind == ND && to[0] == 0x33 && to[1] == 0x33 && payload[24] == 0xff: // RFC 2464 section 7
	case to[0]&1 != 0:
		return Invalid, nil, ErrGroup
	default:
		return Invalid, nil, ErrMAC
	}
	return kind, payload, nil
}

// DecodeSent implements Codec.
func (v VXLAN) DecodeSent(datagram []byte, d Dest) (Kind, []byte, error) {
	payload, typ, err := v.open(datagram)
	if err != nil {
		return Invalid, nil, err
	}
	if [6]byte(datagram[8:14]) != d.MAC || [6]byte(datagram[14:20]) != v.MAC {
		return Invalid, nil, ErrMAC
	}
	switch typ {
	case etherTypeIPv4:
		return fixed(IPv4, payload)
	case etherTypeIPv6:
		return fixed(IPv6, payload)
	case etherTypeControl:
		return Control, payload, nil
	}
	return Invalid, nil, ErrEtherType
}

// open checks the VXLAN header and returns what follows the Ethernet header.
func (v VXLAN) open(datagram []byte) (payload []byte, typ uint16, err error) {
	if len(datagram) < vxlanHeaderLen+ethernetHeaderLen {
		return nil, 0, ErrShort
	}
	h := binary.BigEndian.Uint64(datagram)
	const vni = 0xffffff << 8
	if reserved := h &^ (vxlanFlagI<<56 | vni); h&(vxlanFlagI<<56) == 0 || reserved != 0 && !v.IgnoreReserved {
		return nil, 0, ErrVXLANFlags
	}
	if uint32(h&vni>>8) != v.VNI {
		return nil, 0, ErrVNI
	}
	n := vxlanHeaderLen + ethernetHeaderLen
	return datagram[n:len(datagram):len(datagram)], binary.BigEndian.Uint16(datagram[20:]), nil
}

// inner says what an Ethernet frame carries, and where that ends.
func inner(payload []byte, typ uint16) (Kind, []byte, error) {
	switch typ {
	case etherTypeIPv4:
		kind, p, err := fixed(IPv4, payload)
		if err != nil {
			return Invalid, nil, err
		}
		return kind, trim(p, max(ipv4HeaderLen, int(binary.BigEndian.Uint16(p[2:4])))), nil
	case etherTypeIPv6:
		kind, p, err := fixed(IPv6, payload)
		if err != nil {
			return Invalid, nil, err
		}
		p = trim(p, ipv6HeaderLen+int(binary.BigEndian.Uint16(p[4:6])))
		if len(p) > ipv6HeaderLen && p[6] == protoICMPv6 && p[7] == onLinkHopLimit &&
			(p[ipv6HeaderLen] == icmpv6NeighborSolicit || p[ipv6HeaderLen] == icmpv6NeighborAdvert) {
			kind = ND
		}
		return kind, p, nil
	case etherTypeARP:
		if len(payload) < arpLen {
			return Invalid, nil, ErrShort
		}
		return ARP, trim(payload, arpLen), nil
	case etherTypeControl:
		if len(payload) == 0 {
			return Invalid, nil, ErrShort
		}
		return Control, payload, nil
	}
	return Invalid, nil, ErrEtherType
}

// fixed returns a packet whose fixed header is there and of the version that is
// said.
func fixed(k Kind, p []byte) (Kind, []byte, error) {
	version, need := byte(4), ipv4HeaderLen
	if k == IPv6 {
		version, need = 6, ipv6HeaderLen
	}
	if len(p) < need {
		return Invalid, nil, ErrShort
	}
	if p[0]>>4 != version {
		return Invalid, nil, ErrMagic
	}
	return k, p, nil
}

// trim cuts off what lies behind the first n bytes.
func trim(p []byte, n int) []byte {
	if n < len(p) {
		return p[:n:n]
	}
	return p
}
