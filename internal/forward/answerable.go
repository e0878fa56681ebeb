package forward

import (
	"encoding/binary"

	"github.com/overlayd/overlayd/internal/header"
)

// Headers that stand between that of IPv6 and what it carries: RFC 8200 sections 4.3
// to 4.6, RFC 4302 section 2.
const (
	protoHopByHop    = 0
	protoRouting     = 43
	protoFragment    = 44
	protoAH          = 51
	protoDestOptions = 60
)

// icmpv6Redirect is a type: RFC 4861 section 4.5.
const icmpv6Redirect = 137

// answerable reports whether an ICMP error may be sent about a packet whose
// addresses are fit for one: not about another ICMP error, nor about a
// fragment that is not the first (RFC 1122 section 3.2.2, RFC 4443 section
// 2.4(e)). What cannot be told counts as an error.
func answerable(p []byte) bool {
	if p[0]>>4 == 4 {
		if binary.BigEndian.Uint16(p[6:8])&0x1fff != 0 {
			return false
		}
		ihl := int(p[0]&0x0f) * 4
		return p[9] != header.ICMP || (len(p) > ihl && isICMPv4Query(p[ihl]))
	}
	return answerable6(p)
}

// isICMPv4Query reports whether an ICMPv4 type asks or answers. Destination
// unreachable, source quench, redirect, time exceeded and parameter problem
// are errors; types above 18 are unknown to RFC 1122 and treated as if they
// were, except for the extended echo of RFC 8335.
func isICMPv4Query(typ byte) bool {
	switch typ {
	case 3, 4, 5, 11, 12:
		return false
	case 42, 43:
		return true
	}
	return typ <= 18
}

// maxExtensionHeaders bounds the walk over the extension headers of a packet.
// RFC 8200 section 4.1 knows seven.
const maxExtensionHeaders = 8

func answerable6(p []byte) bool {
	next, rest := p[6], p[ipv6HeaderLen:]
	for range maxExtensionHeaders {
		var n int
		switch next {
		case header.ICMPv6:
			// Types below 128 are errors (RFC 4443 section 2.1); about a
			// redirect none is sent either.
			return len(rest) > 0 && rest[0] >= 128 && rest[0] != icmpv6Redirect
		case protoHopByHop, protoRouting, protoDestOptions:
			if len(rest) < 8 {
				return false
			}
			n = (int(rest[1]) + 1) * 8
		case protoAH: // RFC 4302 section 2.2: in 4 byte units, minus 2
			if len(rest) < 8 {
				return false
			}
			n = (int(rest[1]) + 2) * 4
		case protoFragment:
			if len(rest) < 8 || binary.BigEndian.Uint16(rest[2:4])&^7 != 0 {
				return false
			}
			n = 8
		default:
			return true
		}
		if n > len(rest) {
			return false
		}
		next, rest = rest[0], rest[n:]
	}
	return false
}
