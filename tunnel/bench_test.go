package tunnel

import "testing"

// benchSuper is a superpacket of TCP as the kernel hands it over: 64 KiB in segments of
// full size. Bytes per second are of its payload.
func benchSuper(b *testing.B) Packet {
	b.Helper()
	const payload = 45 * 1400
	b.SetBytes(payload)
	b.ReportAllocs()
	return flow{ttl: 64, flags: tcpACK, df: true}.super(b, make([]byte, payload), 1400)
}

func BenchmarkSegment(b *testing.B) {
	p := benchSuper(b)
	var s Segmenter
	for b.Loop() {
		s.Reset()
		if _, err := s.Cut(&p); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCoalesce(b *testing.B) {
	p := benchSuper(b)
	var s Segmenter
	segs, err := s.Cut(&p)
	if err != nil {
		b.Fatal(err)
	}
	var packets [][]byte
	for _, seg := range segs {
		packets = append(packets, append(append([]byte(nil), seg.Header...), seg.Payload...))
	}
	first := append([]byte(nil), packets[0]...)
	c := NewCoalescer(allOffloads)
	for b.Loop() {
		c.Reset()
		copy(packets[0], first) // whose header is the superpacket's
		for _, q := range packets {
			c.Add(q)
		}
		if len(c.Packets()) != 1 {
			b.Fatal("not joined")
		}
	}
}
