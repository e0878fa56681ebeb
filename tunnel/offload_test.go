package tunnel

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"pgregory.net/rapid"
)

// flow describes the packets of a test's flow.
type flow struct {
	v6      bool
	udp     bool
	options int // 4-byte words of TCP options, of IPv4 options, and 8-byte words of an IPv6 extension header
	ipOpts  int
	tos     uint8
	ttl     uint8
	id      uint16
	df      bool
	seq     uint32
	ack     uint32
	window  uint16
	flags   uint8 // of TCP
	sport   uint16
}

func (f flow) addrs() (src, dst netip.Addr) {
	if f.v6 {
		return netip.MustParseAddr("fd96::1:7"), netip.MustParseAddr("fd96::2:9")
	}
	return netip.MustParseAddr("100.96.1.7"), netip.MustParseAddr("100.96.2.9")
}

// build makes a packet with gopacket, whose lengths and checksums are its own.
func (f flow) build(t testing.TB, payload []byte) []byte {
	t.Helper()
	src, dst := f.addrs()
	var ls []gopacket.SerializableLayer
	var network gopacket.NetworkLayer
	proto := layers.IPProtocolTCP
	if f.udp {
		proto = layers.IPProtocolUDP
	}
	if f.v6 {
		ip := &layers.IPv6{Version: 6, TrafficClass: f.tos, FlowLabel: 0x12345, HopLimit: f.ttl, NextHeader: proto, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
		ls, network = append(ls, ip), ip
		if f.ipOpts > 0 {
			ip.NextHeader = layers.IPProtocolIPv6Destination
			h := make([]byte, 8*f.ipOpts)
			h[0], h[1] = byte(proto), byte(f.ipOpts-1)
			if n := len(h) - 2; n > 0 {
				h[2], h[3] = 1, byte(n-2) // PadN (RFC 8200 section 4.2)
			}
			ls = append(ls, gopacket.Payload(h))
		}
	} else {
		ip := &layers.IPv4{Version: 4, TOS: f.tos, TTL: f.ttl, Id: f.id, Protocol: proto, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
		if f.df {
			ip.Flags = layers.IPv4DontFragment
		}
		for range f.ipOpts * 4 {
			ip.Options = append(ip.Options, layers.IPv4Option{OptionType: 1})
		}
		ls, network = append(ls, ip), ip
	}
	if f.udp {
		l := &layers.UDP{SrcPort: layers.UDPPort(f.sport), DstPort: 4789}
		l.SetNetworkLayerForChecksum(network)
		ls = append(ls, l)
	} else {
		l := &layers.TCP{SrcPort: layers.TCPPort(f.sport), DstPort: 443, Seq: f.seq, Ack: f.ack, Window: f.window, Urgent: 0,
			FIN: f.flags&tcpFIN != 0, PSH: f.flags&tcpPSH != 0, ACK: f.flags&tcpACK != 0, ECE: f.flags&0x40 != 0, CWR: f.flags&tcpCWR != 0,
			SYN: f.flags&2 != 0, RST: f.flags&4 != 0, URG: f.flags&0x20 != 0}
		for range f.options * 4 {
			l.Options = append(l.Options, layers.TCPOption{OptionType: layers.TCPOptionKindNop})
		}
		l.SetNetworkLayerForChecksum(network)
		ls = append(ls, l)
	}
	ls = append(ls, gopacket.Payload(payload))
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ls...); err != nil {
		t.Fatal(err)
	}
	b := bytes.Clone(buf.Bytes())
	// gopacket leaves zero in, which says that there is none (RFC 768, RFC 8200 section 8.1).
	if at := len(b) - len(payload) - 2; f.udp && b[at] == 0 && b[at+1] == 0 {
		b[at], b[at+1] = 0xff, 0xff
	}
	return b
}

// super makes a superpacket the way a kernel hands it over.
func (f flow) super(t testing.TB, payload []byte, segment int) Packet {
	b := f.build(t, payload)
	p := Packet{Data: b, Offload: Offload{GSO: GSOTCP4, SegmentSize: uint16(segment), NeedsChecksum: true, ECN: f.flags&tcpCWR != 0}}
	switch {
	case f.udp:
		p.Offload.GSO = GSOUDP
	case f.v6:
		p.Offload.GSO = GSOTCP6
	}
	return p
}

// after is the flow as it goes on behind n segments of some size: what gopacket
// then builds is what a segment must be.
func (f flow) after(i, size, n int) flow {
	f.seq += uint32(i * size)
	f.id += uint16(i)
	if i < n-1 {
		f.flags &^= tcpFIN | tcpPSH
	}
	if i > 0 {
		f.flags &^= tcpCWR
	}
	return f
}

func drawFlow(t *rapid.T) flow {
	f := flow{
		v6: rapid.Bool().Draw(t, "v6"), udp: rapid.Bool().Draw(t, "udp"),
		options: rapid.IntRange(0, 10).Draw(t, "tcp options"), ipOpts: rapid.IntRange(0, 3).Draw(t, "ip options"),
		tos: rapid.Byte().Draw(t, "tos"), ttl: rapid.Byte().Draw(t, "ttl"), id: rapid.Uint16().Draw(t, "id"), df: rapid.Bool().Draw(t, "df"),
		seq: rapid.Uint32().Draw(t, "seq"), ack: rapid.Uint32().Draw(t, "ack"), window: rapid.Uint16().Draw(t, "window"),
		flags: tcpACK, sport: rapid.Uint16Range(1, 65535).Draw(t, "port"),
	}
	return f
}

func drawPayload(t *rapid.T, most int) []byte {
	n := rapid.IntRange(1, most).Draw(t, "payload")
	seed := rapid.Uint64().Draw(t, "content")
	b := make([]byte, n)
	for i := range b {
		seed = seed*6364136223846793005 + 1442695040888963407
		b[i] = byte(seed >> 56)
	}
	return b
}

func whole(p Packet) []byte { return append(bytes.Clone(p.Data), bytes.Join(p.Frags, nil)...) }

// TestCutAgainstGopacket: each segment is, byte for byte, the packet that
// gopacket builds from its own fields and payload.
func TestCutAgainstGopacket(t *testing.T) {
	var s Segmenter
	rapid.Check(t, func(rt *rapid.T) {
		f := drawFlow(rt)
		f.flags |= rapid.SampledFrom([]uint8{0, tcpPSH, tcpFIN | tcpPSH, tcpCWR, 0x40}).Draw(rt, "flags")
		payload := drawPayload(rt, 20000)
		size := rapid.IntRange(1, 9000).Draw(rt, "segment")
		size = max(size, len(payload)/100+1)
		p := f.super(t, payload, size)
		p.Offload.HeaderLen = rapid.Uint16().Draw(rt, "hint") // which may be anything
		before := bytes.Clone(p.Data)
		s.Reset()
		segs, err := s.Cut(&p)
		if err != nil {
			rt.Fatal(err)
		}
		n := (len(payload) + size - 1) / size
		if len(segs) != n {
			rt.Fatalf("%d segments, want %d", len(segs), n)
		}
		for i, seg := range segs {
			piece := payload[i*size : min((i+1)*size, len(payload))]
			want := f.after(i, size, n).build(t, piece)
			if got := append(bytes.Clone(seg.Header), seg.Payload...); !bytes.Equal(got, want) {
				rt.Fatalf("segment %d of %d:\n%x, want\n%x", i, n, got[:min(len(got), 120)], want[:min(len(want), 120)])
			}
			if seg.Len() != len(want) {
				rt.Fatalf("length %d", seg.Len())
			}
		}
		if !bytes.Equal(before, p.Data) {
			rt.Fatal("the superpacket was changed")
		}
	})
}

// TestCutZeroChecksum: a UDP checksum that comes out as zero is sent as all ones, since
// zero says that there is none, over IPv6 not even that (RFC 768, RFC 8200 section 8.1).
func TestCutZeroChecksum(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		f := flow{v6: v6, udp: true, sport: 0x108b, ttl: 64}
		found := false
		for i := range 1 << 16 { // one of all contents of a word makes the sum zero
			payload := []byte{byte(i >> 8), byte(i), 0x12, 0x34}
			p := f.super(t, append(payload, payload...), len(payload))
			segs, err := new(Segmenter).Cut(&p)
			if err != nil {
				t.Fatal(err)
			}
			sum := segs[0].Header[len(segs[0].Header)-2:]
			if sum[0] == 0 && sum[1] == 0 {
				t.Fatalf("v6 %v: payload %x has no checksum", v6, payload)
			}
			if sum[0] == 0xff && sum[1] == 0xff {
				found = true
				break
			}
		}
		if !found {
			t.Errorf("v6 %v: no payload has a checksum of all ones", v6)
		}
	}
}

func TestCutRefuses(t *testing.T) {
	tcp := flow{ttl: 64, flags: tcpACK}
	good := tcp.super(t, make([]byte, 3000), 1000)
	for name, change := range map[string]func(p *Packet){
		"no size":            func(p *Packet) { p.Offload.SegmentSize = 0 },
		"of another family":  func(p *Packet) { p.Offload.GSO = GSOTCP6 },
		"of another kind":    func(p *Packet) { p.Offload.GSO = GSOUDP },
		"an unknown kind":    func(p *Packet) { p.Offload.GSO = 3 },
		"none at all":        func(p *Packet) { p.Offload.GSO = GSONone },
		"with frags":         func(p *Packet) { p.Frags = [][]byte{{1}} },
		"longer than it is":  func(p *Packet) { p.Data = p.Data[:len(p.Data)-1] },
		"a fragment":         func(p *Packet) { p.Data[6] |= 0x20 },
		"a later fragment":   func(p *Packet) { p.Data[7] = 1 },
		"without payload":    func(p *Packet) { p.Data = tcp.build(t, nil) },
		"a short TCP header": func(p *Packet) { p.Data[32] = 4 << 4 },
		"a long TCP header": func(p *Packet) {
			p.Data = tcp.build(t, []byte{1})
			p.Data[32] = 15 << 4
		},
		"a short IP header": func(p *Packet) { p.Data[0] = 0x44 },
		"no IP":             func(p *Packet) { p.Data[0] = 0x15 },
		"nothing":           func(p *Packet) { p.Data = nil },
	} {
		p := Packet{Data: bytes.Clone(good.Data), Offload: good.Offload}
		change(&p)
		if segs, err := new(Segmenter).Cut(&p); err != ErrSegment || segs != nil {
			t.Errorf("%s: %d segments, %v", name, len(segs), err)
		}
	}
}

var allOffloads = Features{TCP4: true, TCP6: true, UDP: true, Checksum: true, MaxPacket: 65535, ReadBatch: 1}

// TestJoinUndoesCut: the segments of a superpacket are joined to it again, up to
// what one may hold, and cutting the result gives the same segments.
func TestJoinUndoesCut(t *testing.T) {
	var s, again Segmenter
	c := NewCoalescer(allOffloads)
	rapid.Check(t, func(rt *rapid.T) {
		f := drawFlow(rt)
		payload := drawPayload(rt, 60000)
		size := max(rapid.IntRange(1, 9000).Draw(rt, "segment"), len(payload)/60+1)
		p := f.super(t, payload, size)
		s.Reset()
		segs, err := s.Cut(&p)
		if err != nil {
			rt.Fatal(err)
		}
		c.Reset()
		var packets [][]byte
		for i, seg := range segs {
			b := append(bytes.Clone(seg.Header), seg.Payload...)
			packets = append(packets, bytes.Clone(b))
			if at := c.Add(b); at != 0 {
				rt.Fatalf("segment %d of %d was not joined", i, len(segs))
			}
		}
		out := c.Packets()
		if len(out) != 1 {
			rt.Fatalf("%d packets", len(out))
		}
		if n, bytes := c.Joined(0); n != len(segs) || bytes != len(payload)+len(segs)*len(segs[0].Header) {
			rt.Fatalf("%d packets of %d bytes together", n, bytes)
		}
		if len(segs) == 1 {
			if out[0].Offload != (Offload{}) || !bytes.Equal(out[0].Data, packets[0]) {
				rt.Fatalf("a single packet was changed: %+v", out[0].Offload)
			}
			return
		}
		if !allOffloads.Supports(out[0].Offload) {
			rt.Fatalf("offload %+v", out[0].Offload)
		}
		flat := Packet{Data: whole(out[0]), Offload: out[0].Offload}
		// A kernel wants the pseudo-header's sum in the checksum.
		tr, ok := findTransport(flat.Data, len(flat.Data))
		if !ok {
			rt.Fatal("it is not what its header says")
		}
		if sum := binary.NativeEndian.Uint16(flat.Data[tr.start+tr.checksumAt():]); sum != fold(pseudoSum(flat.Data, tr.proto, len(flat.Data)-tr.start)) {
			rt.Fatalf("checksum field %#04x", sum)
		}
		again.Reset()
		recut, err := again.Cut(&flat)
		if err != nil {
			rt.Fatal(err)
		}
		for i, seg := range recut {
			want := packets[i]
			if got := append(bytes.Clone(seg.Header), seg.Payload...); !bytes.Equal(got, want) {
				rt.Fatalf("segment %d:\n%x, was\n%x", i, got[:min(len(got), 100)], want[:min(len(want), 100)])
			}
		}
	})
}

// TestJoinKeepsApart: what does not continue a flow exactly is not joined, and
// stays behind what came before it.
func TestJoinKeepsApart(t *testing.T) {
	pay := func(n int) []byte { return bytes.Repeat([]byte{7}, n) }
	base := flow{ttl: 64, id: 5, seq: 100, ack: 9, window: 70, flags: tcpACK, sport: 1000}
	udp := base
	udp.udp = true
	follow := func(f flow) flow { f.seq += 100; f.id++; return f }
	for _, tc := range []struct {
		name   string
		first  flow
		change func(f *flow)
		len2   int
		spoil  func(b []byte)
		joined bool
	}{
		{"it continues", base, func(*flow) {}, 100, nil, true},
		{"shorter", base, func(*flow) {}, 50, nil, true},
		{"longer", base, func(*flow) {}, 101, nil, false},
		{"a pure ACK", base, func(*flow) {}, 0, nil, false},
		{"a gap", base, func(f *flow) { f.seq++ }, 100, nil, false},
		{"a repetition", base, func(f *flow) { f.seq -= 100 }, 100, nil, false},
		{"another ack", base, func(f *flow) { f.ack++ }, 100, nil, false},
		{"another window", base, func(f *flow) { f.window++ }, 100, nil, false},
		{"another port", base, func(f *flow) { f.sport++ }, 100, nil, false},
		{"another class", base, func(f *flow) { f.tos = 4 }, 100, nil, false},
		{"congestion experienced", base, func(f *flow) { f.tos = 3 }, 100, nil, false},
		{"another TTL", base, func(f *flow) { f.ttl-- }, 100, nil, false},
		{"more options", base, func(f *flow) { f.options = 1 }, 100, nil, false},
		{"IP options", base, func(f *flow) { f.ipOpts = 1 }, 100, nil, false},
		{"an identification of its own", base, func(f *flow) { f.id += 7 }, 100, nil, false},
		{"DF", base, func(f *flow) { f.df = true }, 100, nil, false},
		{"PSH", base, func(f *flow) { f.flags |= tcpPSH }, 100, nil, true},
		{"ECE", base, func(f *flow) { f.flags |= 0x40 }, 100, nil, false},
		{"FIN", base, func(f *flow) { f.flags |= tcpFIN }, 100, nil, false},
		{"SYN", base, func(f *flow) { f.flags |= 2 }, 100, nil, false},
		{"RST", base, func(f *flow) { f.flags |= 4 }, 100, nil, false},
		{"URG", base, func(f *flow) { f.flags |= 0x20 }, 100, nil, false},
		{"CWR", base, func(f *flow) { f.flags |= tcpCWR }, 100, nil, false},
		{"not ACK", base, func(f *flow) { f.flags = tcpPSH }, 100, nil, false},
		{"a wrong checksum", base, func(*flow) {}, 100, func(b []byte) { b[len(b)-1]++ }, false},
		{"a fragment", base, func(*flow) {}, 100, func(b []byte) { b[6] = 0x20 }, false},
		{"UDP", udp, func(*flow) {}, 100, nil, true},
		{"UDP, shorter", udp, func(*flow) {}, 99, nil, true},
		{"UDP, longer", udp, func(*flow) {}, 101, nil, false},
		{"UDP, wrong checksum", udp, func(*flow) {}, 100, func(b []byte) { b[30]++ }, false},
		{"UDP, no checksum", udp, func(*flow) {}, 100, func(b []byte) { b[26], b[27] = 0, 0 }, false},
		{"UDP, a length of its own", udp, func(*flow) {}, 100, func(b []byte) { b[25]-- }, false},
	} {
		for _, v6 := range []bool{false, true} {
			f := tc.first
			f.v6 = v6
			if v6 && (slices.Contains([]string{"an identification of its own", "DF", "a fragment"}, tc.name) || tc.spoil != nil) {
				continue // IPv4's own, or offsets of its
			}
			g := follow(f)
			tc.change(&g)
			a, b := f.build(t, pay(100)), g.build(t, pay(tc.len2))
			if tc.spoil != nil {
				tc.spoil(b)
			}
			wantB := bytes.Clone(b)
			third := follow(follow(f)).build(t, pay(100)) // must not overtake the second
			c := NewCoalescer(allOffloads)
			i, j, k := c.Add(a), c.Add(b), c.Add(third)
			out := c.Packets()
			if i != 0 || (j == 0) != tc.joined || k < j {
				t.Errorf("%s, v6 %v: placed at %d, %d, %d", tc.name, v6, i, j, k)
			}
			if !tc.joined && !bytes.Equal(whole(out[j]), wantB) && k != j {
				t.Errorf("%s: it was changed", tc.name)
			}
		}
	}
}

// TestJoinManyFlows: flows come mixed, and what comes out is, for each, what went
// in, in order. The model is to cut everything again.
func TestJoinManyFlows(t *testing.T) {
	c := NewCoalescer(allOffloads)
	rapid.Check(t, func(rt *rapid.T) {
		flows := make([]flow, rapid.IntRange(1, 12).Draw(rt, "flows"))
		for i := range flows {
			flows[i] = drawFlow(rt)
			flows[i].sport = uint16(i + 1)
		}
		want := map[string][][]byte{}
		key := func(b []byte) string {
			tr, _ := findTransport(b, len(b))
			return fmt.Sprint(b[0]>>4, tr.proto, b[tr.start:tr.start+2])
		}
		for range 4 { // batches, with one Coalescer
			c.Reset()
			clear(want)
			for range rapid.IntRange(0, 60).Draw(rt, "packets") {
				f := &flows[rapid.IntRange(0, len(flows)-1).Draw(rt, "of flow")]
				n := rapid.SampledFrom([]int{100, 100, 100, 40, 0}).Draw(rt, "length")
				g := *f
				if rapid.IntRange(0, 9).Draw(rt, "odd") == 0 {
					g.flags |= rapid.SampledFrom([]uint8{tcpPSH, tcpFIN, 2}).Draw(rt, "flag")
				}
				b := g.build(t, bytes.Repeat([]byte{byte(f.seq)}, n))
				f.seq, f.id = f.seq+uint32(n), f.id+1
				want[key(b)] = append(want[key(b)], bytes.Clone(b))
				c.Add(b)
			}
			got := map[string][][]byte{}
			total := 0
			for i, p := range c.Packets() {
				flat := whole(p)
				n, _ := c.Joined(i)
				total += n
				if p.Offload.GSO == GSONone {
					got[key(flat)] = append(got[key(flat)], flat)
					continue
				}
				var s Segmenter
				segs, err := s.Cut(&Packet{Data: flat, Offload: p.Offload})
				if err != nil || len(segs) != n {
					rt.Fatalf("%d segments of %d, %v", len(segs), n, err)
				}
				for _, seg := range segs {
					got[key(flat)] = append(got[key(flat)], append(bytes.Clone(seg.Header), seg.Payload...))
				}
			}
			for k, list := range want {
				if !slices.EqualFunc(list, got[k], bytes.Equal) {
					rt.Fatalf("flow %s: %d packets in, %d out, or other ones", k, len(list), len(got[k]))
				}
			}
		}
	})
}

// TestOffloadAllocates: nothing, once the arenas have grown.
func TestOffloadAllocates(t *testing.T) {
	f := flow{ttl: 64, flags: tcpACK, df: true}
	p := f.super(t, make([]byte, 60000), 1400)
	var s Segmenter
	c := NewCoalescer(allOffloads)
	var buf [64][1600]byte
	round := func() {
		s.Reset()
		c.Reset()
		segs, err := s.Cut(&p)
		if err != nil {
			t.Fatal(err)
		}
		for i, seg := range segs {
			n := copy(buf[i][:], seg.Header)
			n += copy(buf[i][n:], seg.Payload)
			c.Add(buf[i][:n])
		}
		if len(c.Packets()) != 1 {
			t.Fatal("not joined")
		}
	}
	if n := testing.AllocsPerRun(100, round); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzCut(f *testing.F) {
	for _, fl := range []flow{{ttl: 64, flags: tcpACK}, {v6: true, ttl: 64, flags: tcpACK, ipOpts: 1}, {udp: true, ttl: 1}} {
		p := fl.super(f, make([]byte, 300), 100)
		f.Add(p.Data, uint8(p.Offload.GSO), uint16(100))
	}
	var s Segmenter // reused
	f.Fuzz(func(t *testing.T, data []byte, gso uint8, size uint16) {
		p := Packet{Data: data, Offload: Offload{GSO: GSOType(gso), SegmentSize: max(size, 16)}}
		s.Reset()
		segs, err := s.Cut(&p)
		if err != nil {
			return
		}
		total := 0
		for _, seg := range segs {
			tr, ok := findTransport(append(bytes.Clone(seg.Header), seg.Payload...), seg.Len())
			if !ok || tr.payload != len(seg.Header) || len(seg.Payload) == 0 || len(seg.Payload) > int(p.Offload.SegmentSize) {
				t.Fatalf("segment %x", seg.Header)
			}
			total += len(seg.Payload)
		}
		if total+len(segs[0].Header) != len(data) {
			t.Fatalf("%d bytes of %d", total, len(data))
		}
	})
}

// FuzzJoin takes records of a length byte and a packet each.
func FuzzJoin(f *testing.F) {
	var seed []byte
	fl := flow{ttl: 64, flags: tcpACK, id: 1}
	for i := range 3 {
		b := fl.after(i, 20, 9).build(f, make([]byte, 20))
		seed = append(append(seed, byte(len(b))), b...)
	}
	f.Add(seed)
	c := NewCoalescer(allOffloads) // reused
	f.Fuzz(func(t *testing.T, data []byte) {
		c.Reset()
		n, in := 0, 0
		for len(data) > 0 {
			l := min(int(data[0]), len(data)-1)
			b := bytes.Clone(data[1 : 1+l])
			data = data[1+l:]
			if l == 0 {
				continue
			}
			if at := c.Add(b); at < 0 || at >= c.Len() {
				t.Fatalf("placed at %d of %d", at, c.Len())
			}
			n++
			in += l
		}
		out := c.Packets()
		packets, size := 0, 0
		for i := range out {
			p, s := c.Joined(i)
			packets, size = packets+p, size+s
			if !allOffloads.Supports(out[i].Offload) {
				t.Fatalf("offload %+v", out[i].Offload)
			}
		}
		if packets != n || size != in {
			t.Fatalf("%d packets of %d bytes in, %d of %d out", n, in, packets, size)
		}
	})
}
