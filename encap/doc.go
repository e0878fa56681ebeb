// Package encap turns inner packets and control frames into datagrams and
// back. It is pure: bytes in, bytes out, no I/O, no clock, and no allocation
// on the data path.
//
// A [Codec] is the framing of the data plane. [UDP] has no header at all: the
// datagram is the inner packet. [VXLAN] is RFC 7348 framing with Ethernet between
// VTEPs; control frames have an EtherType of their own there, 0x88B5.
//
// # Control frames
//
// A node finds out whether a peer can be reached by sending it a probe on the
// port and path that data takes, and having it answered. Probe and answer
// are the two types of control frame ([Frame], [Frame.Append], [Parse]). All
// integers are big endian; the numbers on the right are byte offsets:
//
//	+-------+-------+---------------+---------------+---------------+
//	|  0xC  |   1   |     type      |     path      |     flags     |  0
//	+-------+-------+---------------+---------------+---------------+
//	|         total length          |           received            |  4
//	+-------------------------------+-------------------------------+
//	|                                                               |  8
//	|                       sender's NodeID (16)                    |
//	|                                                               |
//	+---------------------------------------------------------------+
//	|                                                               | 24
//	|                      receiver's NodeID (16)                   |
//	|                                                               |
//	+---------------------------------------------------------------+
//	|                       sender's boot (8)                       | 40
//	+---------------------------------------------------------------+
//	|                           nonce (8)                           | 48
//	+---------------------------------------------------------------+
//	|                  padding (any number of bytes)                | 56
//	+---------------------------------------------------------------+
//	|              tag (16, only if flags bit 0 is set)             |
//	+---------------------------------------------------------------+
//
// The fields are these:
//
//   - The first byte is the magic 0xC in the high nibble, which no IP version
//     has there, and the format version, 1, in the low one.
//   - type: 1 is a probe, 2 an answer.
//   - path: 0 userspace, 1 kernel-vxlan, 2 direct. In a probe, the path by
//     which it was sent; in an answer, the one by which the probe arrived.
//   - flags: bit 0, a tag is present; bit 1, the sender is ready to take
//     kernel-vxlan traffic from the receiver; bit 2, the same for direct. Other
//     bits are sent as zero and ignored.
//   - total length: of the frame in bytes, with padding and tag, so 56 or more
//     (72 with a tag). Whatever follows in the datagram is not part of the
//     frame: Ethernet pads short frames, and the vxlan encap carries Ethernet.
//   - received: in an answer, the total length of the probe as it arrived. It
//     is reserved in a probe and must be zero there.
//   - The receiver's NodeID keeps a node that has taken over an address from
//     answering for the node that had it before.
//   - boot: the sender's boot number; it grows with every start of a node.
//   - nonce: random for each probe, and repeated in its answer, so that who
//     cannot see the probe cannot forge the answer, with or without a tag.
//   - padding: brings a probe up to the size that is to be proven. Sent as
//     zeros, covered by the tag, and not looked at: later versions of this
//     format may put fields there and announce them by a flag.
//   - tag: HMAC-SHA256 (RFC 2104) over everything before it, cut to its first
//     128 bits. Its key comes from a cluster key by HKDF-SHA256 (RFC 5869)
//     without a salt and with the info string "overlayd control frame v1".
//
// A node that has cluster keys sends tagged frames under the first of them,
// takes frames tagged under any of them, and refuses untagged ones. A node
// without a key sends untagged frames and refuses tagged ones: both mean that
// the two are configured differently, and the error says so.
//
// What the tag does not do: it hides nothing, and it does not stop a replay. A
// replayed answer is recognised by its nonce; a replayed probe makes the
// receiver send one small answer to the address of the peer, no more.
//
// # Examples
//
// The smallest probe, without a key, of 56 (0x38) bytes, from node 0001..0f to
// node 1011..1f, sender's boot 0x68d2c1f0, nonce 0xa1a2a3a4a5a6a7a8:
//
//	c1 01 00 00 00 38 00 00
//	00 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f
//	10 11 12 13 14 15 16 17 18 19 1a 1b 1c 1d 1e 1f
//	00 00 00 00 68 d2 c1 f0
//	a1 a2 a3 a4 a5 a6 a7 a8
//
// The answer to it, from a node with boot 0x68d2c200 that is ready for both
// kernel paths; 56 bytes of the probe arrived:
//
//	c1 02 00 06 00 38 00 38
//	10 11 12 13 14 15 16 17 18 19 1a 1b 1c 1d 1e 1f
//	00 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f
//	00 00 00 00 68 d2 c2 00
//	a1 a2 a3 a4 a5 a6 a7 a8
//
// The same probe sent through kernel-vxlan, padded to 80 (0x50) bytes and
// tagged under the cluster key 000102..1f:
//
//	c1 01 01 01 00 50 00 00
//	00 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f
//	10 11 12 13 14 15 16 17 18 19 1a 1b 1c 1d 1e 1f
//	00 00 00 00 68 d2 c1 f0
//	a1 a2 a3 a4 a5 a6 a7 a8
//	00 00 00 00 00 00 00 00
//	e4 e7 0a e9 d7 f8 89 be f4 d7 05 f1 b5 a8 89 c4
package encap
