package forward

import (
	"encoding/binary"
	"hash/maphash"
)

// The protocols that have ports (linux/include/uapi/linux/in.h).
const (
	protoTCP     = 6
	protoUDP     = 17
	protoSCTP    = 132
	protoUDPLite = 136
)

// flowHash is the same for all packets of an inner flow, whose header parseInner
// has found sound: made of addresses, and ports where there are any, or of an IPv6
// flow label (RFC 6437 section 3), as RFC 7348 section 5 wants it for the outer
// source port. Fragments of a packet, only the first of which has ports, stay
// together.
func flowHash(seed maphash.Seed, p []byte) uint64 {
	var key [16 + 16 + 4 + 1]byte
	n, rest := 0, []byte(nil)
	var proto uint8
	if p[0]>>4 == 4 {
		n = copy(key[:], p[12:20])
		if binary.BigEndian.Uint16(p[6:8])&0x3fff == 0 { // neither more fragments nor an offset
			proto, rest = p[9], p[int(p[0]&0x0f)*4:]
		}
	} else {
		n = copy(key[:], p[8:40])
		proto, rest = p[6], p[ipv6HeaderLen:]
	}
	switch proto {
	case protoTCP, protoUDP, protoSCTP, protoUDPLite:
		if len(rest) >= 4 {
			n += copy(key[n:], rest[:4])
		}
	default:
		if p[0]>>4 == 6 {
			key[n], key[n+1], key[n+2] = p[1]&0x0f, p[2], p[3]
			n += 3
		}
	}
	key[n] = proto
	return maphash.Bytes(seed, key[:n+1])
}
