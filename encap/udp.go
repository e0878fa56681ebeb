package encap

// The lengths of the fixed inner headers: RFC 791 section 3.1 without options
// and RFC 8200 section 3.
const (
	ipv4HeaderLen = 20
	ipv6HeaderLen = 40
)

// UDP is the udp encap: the datagram's payload is the inner IP packet and
// nothing else, which is what flannel's udp backend speaks. The first nibble
// is the IP version; 0xC, which is no IP version, marks a control frame. The
// zero value is ready to use.
type UDP struct{}

var _ Codec = UDP{}

// Name returns "udp".
func (UDP) Name() string { return "udp" }

// HeaderLen returns 0: there is no header.
func (UDP) HeaderLen() int { return 0 }

// PutHeader writes nothing.
func (UDP) PutHeader([]byte, Kind, Dest) {}

// Decode implements Codec. The payload is the whole datagram. Its errors are
// ErrShort and ErrMagic.
func (UDP) Decode(datagram []byte) (Kind, []byte, error) {
	if len(datagram) == 0 {
		return Invalid, nil, ErrShort
	}
	kind, need := Invalid, 0
	switch datagram[0] >> 4 {
	case 4:
		kind, need = IPv4, ipv4HeaderLen
	case 6:
		kind, need = IPv6, ipv6HeaderLen
	case frameMagic:
		// Parse looks at the rest: its errors are worth telling apart.
		kind, need = Control, 1
	default:
		return Invalid, nil, ErrMagic
	}
	if len(datagram) < need {
		return Invalid, nil, ErrShort
	}
	return kind, datagram[:len(datagram):len(datagram)], nil
}

// DecodeSent implements Codec.
func (u UDP) DecodeSent(datagram []byte, _ Dest) (Kind, []byte, error) { return u.Decode(datagram) }
