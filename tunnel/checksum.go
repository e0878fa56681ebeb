package tunnel

import (
	"encoding/binary"
	"math/bits"
)

// sum adds the bytes of b to a running Internet checksum (RFC 1071), as 16-bit
// words in the machine's own byte order, which the sum does not mind (section
// 2(B)). It works on 64-bit words, four at a time: their end-around carry is the
// same as that of 16-bit ones (section 2(C)). b counts as if it began at an even
// offset of what is summed.
func sum(b []byte, acc uint64) uint64 {
	var carry uint64
	for len(b) >= 32 {
		acc, carry = bits.Add64(acc, binary.NativeEndian.Uint64(b), 0)
		acc, carry = bits.Add64(acc, binary.NativeEndian.Uint64(b[8:]), carry)
		acc, carry = bits.Add64(acc, binary.NativeEndian.Uint64(b[16:]), carry)
		acc, carry = bits.Add64(acc, binary.NativeEndian.Uint64(b[24:]), carry)
		acc += carry // cannot overflow twice: see RFC 1071 section 2(C)
		b = b[32:]
	}
	for len(b) >= 8 {
		acc, carry = bits.Add64(acc, binary.NativeEndian.Uint64(b), 0)
		acc += carry
		b = b[8:]
	}
	if len(b) > 0 {
		var last [8]byte // zeros count for nothing
		copy(last[:], b)
		acc, carry = bits.Add64(acc, binary.NativeEndian.Uint64(last[:]), 0)
		acc += carry
	}
	return acc
}

// fold makes a 16-bit sum of a running one.
func fold(acc uint64) uint16 {
	acc = acc>>32 + acc&0xffffffff
	acc = acc>>16 + acc&0xffff
	acc = acc>>16 + acc&0xffff
	acc = acc>>16 + acc&0xffff
	return uint16(acc)
}

// Checksum is the Internet checksum of b (RFC 1071), to be stored with
// binary.NativeEndian.
func Checksum(b []byte) uint16 { return ^fold(sum(b, 0)) }

// pseudoSum is the sum of the pseudo-header (RFC 9293 section 3.1, RFC 8200
// section 8.1) of an IP packet with length bytes behind its headers, without the
// length and with it.
func pseudoSum(ip []byte, protocol uint8, length int) uint64 {
	var tail [8]byte // length and protocol, each as a 32-bit number
	binary.BigEndian.PutUint32(tail[:], uint32(length))
	tail[7] = protocol
	if ip[0]>>4 == 4 {
		return sum(tail[:], sum(ip[12:20], 0))
	}
	return sum(tail[:], sum(ip[8:40], 0))
}
