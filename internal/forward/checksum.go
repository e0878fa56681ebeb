package forward

import (
	"encoding/binary"

	"github.com/overlayd/overlayd/tunnel"
)

// finishChecksum completes a transport checksum that holds only the
// pseudo-header's sum (RFC 1071), in place. It reports whether the offsets lie
// in the packet behind its fixed IP header.
func finishChecksum(p []byte, o *tunnel.Offload) bool {
	start, at := int(o.ChecksumStart), int(o.ChecksumStart)+int(o.ChecksumOffset)
	if start < ipv4HeaderLen || at+2 > len(p) {
		return false
	}
	sum := uint64(0)
	b := p[start:]
	for ; len(b) >= 4; b = b[4:] {
		sum += uint64(binary.BigEndian.Uint32(b))
	}
	if len(b) >= 2 {
		sum += uint64(binary.BigEndian.Uint16(b))
		b = b[2:]
	}
	if len(b) == 1 {
		sum += uint64(b[0]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	c := ^uint16(sum)
	if c == 0 {
		c = 0xffff // to UDP zero means "none", and for others both are the same (RFC 768)
	}
	binary.BigEndian.PutUint16(p[at:], c)
	return true
}
