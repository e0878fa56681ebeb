package tunnel

import (
	"encoding/binary"
	"errors"
)

// ErrSegment: a superpacket contradicts its Offload, or is none that can be cut.
var ErrSegment = errors.New("superpacket that cannot be cut")

// Segment is one of the packets that a superpacket stands for: its headers in
// memory of the Segmenter, its payload where the superpacket has it.
type Segment struct {
	Header, Payload []byte
}

// Len is the length of the packet in bytes.
func (s *Segment) Len() int { return len(s.Header) + len(s.Payload) }

// Segmenter cuts superpackets into segments as the kernel does (tcp_gso_segment
// and __udp_gso_segment in linux/net/ipv4). Only headers are written; payload
// stays where it is, and is summed. The zero value is ready to use. It is not
// safe for concurrent use.
type Segmenter struct {
	arena []byte
	segs  []Segment
}

// Reset gives the memory of all segments that were cut back to the Segmenter.
func (s *Segmenter) Reset() { s.arena, s.segs = s.arena[:0], s.segs[:0] }

// Cut returns the segments of a superpacket, with finished checksums. They refer
// to p.Data and to memory of the Segmenter, and are valid until Reset. The error
// is ErrSegment.
func (s *Segmenter) Cut(p *Packet) ([]Segment, error) {
	if p.Offload.GSO == GSONone || Longest(p) == 0 {
		return nil, ErrSegment
	}
	b, size := p.Data, int(p.Offload.SegmentSize)
	t, _ := findTransport(b, len(b))
	payload := b[t.payload:]
	first := len(s.segs)
	pseudo := pseudoSum(b, t.proto, 0)
	for i := 0; len(payload) > 0; i++ {
		n := min(size, len(payload))
		at := len(s.arena)
		s.arena = append(s.arena, b[:t.payload]...)
		h := s.arena[at:len(s.arena):len(s.arena)]
		seg := Segment{Header: h, Payload: payload[:n:n]}
		payload = payload[n:]
		t.cutIP(h, i, n)
		if t.proto == protoTCP {
			cutTCP(h[t.start:], i*size, i == 0, len(payload) == 0)
		} else {
			binary.BigEndian.PutUint16(h[t.start+4:], uint16(udpHeaderLen+n))
		}
		t.finish(h, seg.Payload, pseudo)
		s.segs = append(s.segs, seg)
	}
	return s.segs[first:len(s.segs):len(s.segs)], nil
}

// Longest is the length of the longest packet that p stands for: its own, or that
// of its first segment. It is 0 for a superpacket that Cut would refuse.
func Longest(p *Packet) int {
	if p.Offload.GSO == GSONone {
		return len(p.Data)
	}
	t, ok := findTransport(p.Data, len(p.Data))
	if !ok || len(p.Frags) > 0 || p.Offload.SegmentSize == 0 || !gsoFits(p.Offload.GSO, p.Data[0]>>4, t.proto) || len(p.Data) == t.payload {
		return 0
	}
	return min(t.payload+int(p.Offload.SegmentSize), len(p.Data))
}

// gsoFits reports whether a kind of superpacket belongs to IP version and
// protocol.
func gsoFits(g GSOType, version, proto uint8) bool {
	switch g {
	case GSOTCP4:
		return version == 4 && proto == protoTCP
	case GSOTCP6:
		return version == 6 && proto == protoTCP
	case GSOUDP:
		return proto == protoUDP
	}
	return false
}

// cutIP makes the IP header that of the i-th segment with n bytes of payload.
func (t transport) cutIP(h []byte, i, n int) {
	if h[0]>>4 == 6 {
		binary.BigEndian.PutUint16(h[4:], uint16(len(h)-ipv6HeaderLen+n))
		return
	}
	binary.BigEndian.PutUint16(h[2:], uint16(len(h)+n))
	binary.BigEndian.PutUint16(h[4:], binary.BigEndian.Uint16(h[4:])+uint16(i))
	h[10], h[11] = 0, 0
	binary.NativeEndian.PutUint16(h[10:], Checksum(h[:t.start]))
}

// cutTCP makes a TCP header that of the segment at an offset: FIN and PSH belong
// to the last one, CWR to the first.
func cutTCP(h []byte, offset int, first, last bool) {
	binary.BigEndian.PutUint32(h[4:], binary.BigEndian.Uint32(h[4:])+uint32(offset))
	if !last {
		h[13] &^= tcpFIN | tcpPSH
	}
	if !first {
		h[13] &^= tcpCWR
	}
}

// finish writes the transport checksum. pseudo is the sum of the pseudo-header
// without the length.
func (t transport) finish(h, payload []byte, pseudo uint64) {
	var length [8]byte
	binary.BigEndian.PutUint32(length[:], uint32(len(h)-t.start+len(payload)))
	at := t.start + t.checksumAt()
	h[at], h[at+1] = 0, 0
	// Transport headers have an even length, so the payload begins at an even
	// offset.
	c := ^fold(sum(payload, sum(h[t.start:], sum(length[:], pseudo))))
	if c == 0 && t.proto == protoUDP {
		c = 0xffff // zero says that there is none (RFC 768)
	}
	binary.NativeEndian.PutUint16(h[at:], c)
}

// FinishChecksum completes a transport checksum that holds only the
// pseudo-header's sum, as p.Offload says, in place; p has no Frags. It reports
// whether the offsets lie in the packet behind its fixed IP header.
func FinishChecksum(p *Packet) bool {
	start := int(p.Offload.ChecksumStart)
	at := start + int(p.Offload.ChecksumOffset)
	if start < ipv4HeaderLen || at+2 > len(p.Data) {
		return false
	}
	c := Checksum(p.Data[start:])
	if c == 0 {
		c = 0xffff // to UDP zero means "none", and for others both are the same (RFC 768)
	}
	binary.NativeEndian.PutUint16(p.Data[at:], c)
	p.Offload.NeedsChecksum = false
	return true
}
