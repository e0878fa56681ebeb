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

// markInner combines the ECN that an inner packet was sent with and the outer one
// that it arrived with, in place: RFC 6040 section 4.2, figure 4. It reports false
// for a packet that has to be dropped: one that the underlay marked instead of
// dropping it, while its sender does not know what that means.
func markInner(p []byte, outer uint8) bool {
	outer &= ecnMask
	tc := trafficClass(p)
	inner := tc & ecnMask
	switch {
	case outer == ecnCE && inner == ecnNone:
		return false
	case outer == ecnCE, outer == ecnECT1 && inner == ecnECT0:
	default:
		return true
	}
	if outer == inner {
		return true
	}
	tc = tc&^ecnMask | outer
	if p[0]>>4 == 6 {
		p[1] = tc<<4 | p[1]&0x0f
		return true
	}
	// RFC 1624 section 3, equation 3: HC' = ~(~HC + ~m + m').
	old := binary.BigEndian.Uint16(p[0:2])
	p[1] = tc
	sum := uint32(^binary.BigEndian.Uint16(p[10:12])) + uint32(^old) + uint32(binary.BigEndian.Uint16(p[0:2]))
	sum = sum&0xffff + sum>>16
	sum = sum&0xffff + sum>>16
	binary.BigEndian.PutUint16(p[10:12], ^uint16(sum))
	return true
}
