package forward

import "encoding/binary"

// The two ECN bits of an IPv4 TOS or IPv6 traffic class byte: RFC 3168 section 5.
const (
	ecnMask = 0b11
	ecnNone = 0b00 // Not-ECT
	ecnECT1 = 0b01
	ecnECT0 = 0b10
	ecnCE   = 0b11
)

// trafficClass is the TOS or traffic class byte of an inner packet whose fixed
// header is complete: what the outer header gets, DSCP and ECN alike (RFC 2983
// section 3.1's uniform model on the way out, RFC 6040 section 4.1's normal mode).
func trafficClass(p []byte) uint8 {
	if p[0]>>4 == 4 {
		return p[1]
	}
	return p[0]<<4 | p[1]>>4
}

// congestionDrops reports whether an inner packet has to be dropped for the outer ECN
// that it arrived with: the underlay marked it instead of dropping it, while its
// sender does not know what that means (RFC 6040 section 4.2, figure 4).
func congestionDrops(p []byte, outer uint8) bool {
	return outer&ecnMask == ecnCE && trafficClass(p)&ecnMask == ecnNone
}

// markInner combines the ECN that an inner packet was sent with and the outer one
// that it arrived with, in place: RFC 6040 section 4.2, figure 4. What
// congestionDrops speaks of stays as it is.
func markInner(p []byte, outer uint8) {
	outer &= ecnMask
	tc := trafficClass(p)
	inner := tc & ecnMask
	switch {
	case inner == ecnNone:
		return
	case outer == ecnCE, outer == ecnECT1 && inner == ecnECT0:
	default:
		return
	}
	if outer == inner {
		return
	}
	tc = tc&^ecnMask | outer
	if p[0]>>4 == 6 {
		p[1] = tc<<4 | p[1]&0x0f
		return
	}
	// RFC 1624 section 3, equation 3: HC' = ~(~HC + ~m + m').
	old := binary.BigEndian.Uint16(p[0:2])
	p[1] = tc
	sum := uint32(^binary.BigEndian.Uint16(p[10:12])) + uint32(^old) + uint32(binary.BigEndian.Uint16(p[0:2]))
	sum = sum&0xffff + sum>>16
	sum = sum&0xffff + sum>>16
	binary.BigEndian.PutUint16(p[10:12], ^uint16(sum))
}
