package tunnel

import "encoding/binary"

// Offsets and bits of the headers that are cut and joined: RFC 791 section 3.1,
// RFC 8200 section 3, RFC 9293 section 3.1, RFC 768.
const (
	ipv4HeaderLen = 20
	ipv6HeaderLen = 40
	tcpHeaderLen  = 20
	udpHeaderLen  = 8

	protoTCP = 6
	protoUDP = 17

	tcpFIN = 0x01
	tcpPSH = 0x08
	tcpACK = 0x10
	tcpCWR = 0x80

	ipv4DF = 0x4000
)

// transport says where the headers of a TCP or UDP packet end.
type transport struct {
	proto   uint8
	start   int // of the transport header
	payload int // behind it
}

// findTransport looks for the transport header of an unfragmented packet whose
// headers lie in b; size is the length of the whole packet, which must be what
// the IP header says. Only TCP and UDP are found.
func findTransport(b []byte, size int) (t transport, ok bool) {
	if len(b) < ipv4HeaderLen {
		return t, false
	}
	switch b[0] >> 4 {
	case 4:
		t.start = int(b[0]&0x0f) * 4
		// Neither more fragments nor an offset; the reserved bit is nobody's.
		if t.start < ipv4HeaderLen || int(binary.BigEndian.Uint16(b[2:])) != size || binary.BigEndian.Uint16(b[6:])&^ipv4DF != 0 {
			return t, false
		}
		t.proto = b[9]
	case 6:
		if len(b) < ipv6HeaderLen || int(binary.BigEndian.Uint16(b[4:])) != size-ipv6HeaderLen {
			return t, false
		}
		t.proto, t.start = b[6], ipv6HeaderLen
		for range 8 { // RFC 8200 section 4.1 knows seven extension headers
			if t.proto != 0 && t.proto != 43 && t.proto != 60 { // hop-by-hop, routing, destination options
				break
			}
			if len(b) < t.start+8 {
				return t, false
			}
			t.proto, t.start = b[t.start], t.start+(int(b[t.start+1])+1)*8
		}
	default:
		return t, false
	}
	switch t.proto {
	case protoTCP:
		if len(b) < t.start+tcpHeaderLen {
			return t, false
		}
		n := int(b[t.start+12]>>4) * 4
		t.payload = t.start + n
		return t, n >= tcpHeaderLen && t.payload <= len(b)
	case protoUDP:
		t.payload = t.start + udpHeaderLen
		return t, len(b) >= t.payload
	}
	return t, false
}

// checksumAt is where the checksum lies in a transport header.
func (t transport) checksumAt() int {
	if t.proto == protoTCP {
		return 16
	}
	return 6
}
