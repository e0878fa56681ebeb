package encap

import "errors"

// Kind says what a datagram carries.
type Kind uint8

// The kinds of payload.
const (
	Invalid Kind = iota // nothing that we understand
	IPv4                // an inner IPv4 packet
	IPv6                // an inner IPv6 packet
	Control             // a control frame, see Parse
	ARP                 // an ARP message for IPv4 over Ethernet, of 28 bytes (RFC 826)
	ND                  // an IPv6 packet with a neighbour solicitation or advertisement from the link (RFC 4861)
)

// String returns the name used in logs and test output.
func (k Kind) String() string {
	switch k {
	case IPv4:
		return "ipv4"
	case IPv6:
		return "ipv6"
	case Control:
		return "control"
	case ARP:
		return "arp"
	case ND:
		return "nd"
	}
	return "invalid"
}

// Dest is what a header has to know about the receiver. The udp encap uses
// none of it.
type Dest struct {
	// MAC is the receiver's VTEP address.
	MAC [6]byte
}

// Codec is one userspace framing. All methods are pure and safe for
// concurrent use; none allocates.
type Codec interface {
	// Name is the framing's name as in --encap: "udp" or "vxlan".
	Name() string

	// HeaderLen is the number of bytes between the outer UDP header and the
	// inner packet or control frame. It never changes and is the same for
	// every Kind.
	HeaderLen() int

	// PutHeader writes HeaderLen() bytes to the start of b, which must have
	// room for them (it panics otherwise, as every slice index does). Every
	// byte is written, so b may hold anything before. k is not Invalid.
	PutHeader(b []byte, k Kind, d Dest)

	// Decode takes a datagram apart, as it came from the UDP socket.
	//
	// For IPv4 and IPv6 the payload is an inner packet whose fixed header
	// (20 or 40 bytes) lies in it completely; nothing else of it has been
	// checked. For Control the payload goes to Parse and may be followed by
	// padding. For ARP it is the whole message, for ND the IPv6 packet with the
	// message's type in it; both for the receiver's VTEP or a group that it may be in.
	// The payload aliases datagram and keeps its spare capacity out.
	// With an error the kind is Invalid and the payload nil. The error is one
	// of this package's sentinels, to be compared with == or errors.Is.
	Decode(datagram []byte) (k Kind, payload []byte, err error)

	// DecodeSent takes a datagram apart that this node may have sent to d, or its
	// start, as ICMP errors quote it. The kind is IPv4, IPv6 or Control; an inner
	// packet's fixed header lies in the payload completely. Errors are as of Decode.
	DecodeSent(datagram []byte, d Dest) (k Kind, payload []byte, err error)
}

// The errors of Decode, and those of Parse that any truncated or foreign
// datagram can cause.
var (
	// ErrShort: the datagram ends before the header that it announces.
	ErrShort = errors.New("encap: truncated")
	// ErrMagic: neither an IP packet nor one of our control frames.
	ErrMagic = errors.New("encap: neither IPv4, IPv6 nor a control frame")
	// ErrVersion: a control frame of a format version that we do not know.
	ErrVersion = errors.New("encap: unknown version of control frame")
)
