package forward

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"hash/maphash"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/overlayd/overlayd/tunnel"
)

// offered returns the packet that an ICMP error about pkt becomes, or nil.
func offered(t *testing.T, e *Engine, reason Reason, pkt []byte, mtu int) []byte {
	t.Helper()
	src, _, v := parseInner(pkt)
	if v != headerOK {
		t.Fatalf("test packet is not sound: %v", v)
	}
	e.icmp.offer(e.Table(), reason, pkt, src, mtu)
	select {
	case j := <-e.icmp.ready:
		b := slices.Clone(j.build())
		e.icmp.free <- j
		return b
	default:
		return nil
	}
}

// TestICMPGolden holds whole packets, byte by byte.
func TestICMPGolden(t *testing.T) {
	pkt4 := innerFrom("100.96.1.9", "100.96.200.1", 30)
	pkt6 := innerFrom("fd96:0:0:1::9", "fd96:0:0:99::1", 44)
	for _, tt := range []struct {
		name   string
		reason Reason
		pkt    []byte
		want   string
	}{
		{"host unreachable", TxNoOwner, pkt4, "45c0003a0000400040016f3a64600100646001090301e51700000000" + hex.EncodeToString(pkt4)},
		{"fragmentation needed", TxTooBig, pkt4, "45c0003a0000400040016f3a64600100646001090304dfcc" + "00000548" + hex.EncodeToString(pkt4)},
		{"address unreachable", TxPeerDown, pkt6, "600000000034" + "3a40" + "fd960000000000010000000000000000fd960000000000010000000000000009" + "0103aa3e00000000" + hex.EncodeToString(pkt6)},
		{"packet too big", TxTooBig, pkt6, "600000000034" + "3a40" + "fd960000000000010000000000000000fd960000000000010000000000000009" + "0200a3f900000548" + hex.EncodeToString(pkt6)},
	} {
		got := offered(t, stubEngine(t, nil), tt.reason, tt.pkt, 1352)
		if hex.EncodeToString(got) != tt.want {
			t.Errorf("%s:\n got %x\nwant %s", tt.name, got, tt.want)
		}
	}
}

// TestICMPParsesBack reads the errors with gopacket, for quotes of all kinds of
// length, and checks both checksums by adding everything up.
func TestICMPParsesBack(t *testing.T) {
	for _, tt := range []struct {
		src, dst string
		lengths  []int
		limit    int
	}{
		{"100.96.1.9", "100.96.200.1", []int{20, 21, 28, 547, 548, 549, 1400}, 576},
		{"fd96:0:0:1::9", "fd96:0:0:99::1", []int{40, 41, 48, 1231, 1232, 1233, 1400}, 1280},
	} {
		for _, n := range tt.lengths {
			for _, reason := range []Reason{TxNoOwner, TxTooBig} {
				pkt := innerFrom(tt.src, tt.dst, n)
				for i := range pkt[len(pkt)-n/8:] {
					pkt[len(pkt)-1-i] = 0
				}
				if n > 60 {
					for i := 48; i < n; i++ {
						pkt[i] = byte(i * 31)
					}
				}
				b := offered(t, stubEngine(t, nil), reason, pkt, 1300)
				if len(b) > tt.limit || (n > tt.limit && len(b) != tt.limit) {
					t.Errorf("error about %d bytes is %d long, the limit %d", n, len(b), tt.limit)
				}
				checkICMP(t, b, pkt, reason == TxTooBig, 1300)
			}
		}
	}
}

// checkICMP parses an ICMP error and compares it with what it is about, and with the
// one that gopacket makes.
func checkICMP(t *testing.T, b, about []byte, tooBig bool, mtu int) {
	t.Helper()
	src, _, _ := parseInner(about)
	first, own := gopacket.LayerType(layers.LayerTypeIPv4), addr("100.96.1.0")
	if src.Is6() {
		first, own = layers.LayerTypeIPv6, addr("fd96:0:0:1::")
	}
	p := gopacket.NewPacket(b, first, gopacket.DecodeOptions{NoCopy: true})
	if p.ErrorLayer() != nil {
		t.Fatalf("%x: %v", b, p.ErrorLayer().Error())
	}
	flow := p.NetworkLayer().NetworkFlow()
	if flow.Src().String() != own.String() || flow.Dst().String() != src.String() {
		t.Errorf("error goes %v, want %v->%v", flow, own, src)
	}
	var quote []byte
	if src.Is4() {
		ip, icmp := p.Layer(layers.LayerTypeIPv4).(*layers.IPv4), p.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4)
		code, next := uint8(layers.ICMPv4CodeHost), 0
		if tooBig {
			code, next = layers.ICMPv4CodeFragmentationNeeded, mtu
		}
		if icmp.TypeCode != layers.CreateICMPv4TypeCode(layers.ICMPv4TypeDestinationUnreachable, code) || icmp.Id != 0 || int(icmp.Seq) != next {
			t.Errorf("%v, unused %d, next-hop mtu %d, want %d", icmp.TypeCode, icmp.Id, icmp.Seq, next)
		}
		if ip.TTL != 64 || int(ip.Length) != len(b) || ip.IHL != 5 || ip.TOS != 0xc0 || ip.Id != 0 || ip.Flags != layers.IPv4DontFragment || ip.FragOffset != 0 {
			t.Errorf("%+v, length %d", ip, len(b))
		}
		if sum(b[:20]) != 0xffff || sum(b[20:]) != 0xffff {
			t.Errorf("sums are %#x and %#x, want 0xffff", sum(b[:20]), sum(b[20:]))
		}
		quote = b[28:]
	} else {
		ip, icmp := p.Layer(layers.LayerTypeIPv6).(*layers.IPv6), p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6)
		want, next := layers.CreateICMPv6TypeCode(layers.ICMPv6TypeDestinationUnreachable, layers.ICMPv6CodeAddressUnreachable), 0
		if tooBig {
			want, next = layers.CreateICMPv6TypeCode(layers.ICMPv6TypePacketTooBig, 0), mtu
		}
		if got := binary.BigEndian.Uint32(icmp.Payload); icmp.TypeCode != want || got != uint32(next) {
			t.Errorf("%v, mtu %d, want %v, %d", icmp.TypeCode, got, want, next)
		}
		if ip.HopLimit != 64 || int(ip.Length) != len(b)-40 || ip.TrafficClass != 0 || ip.FlowLabel != 0 {
			t.Errorf("%+v, length %d", ip, len(b))
		}
		pseudo := append(slices.Clone(b[8:40]), 0, 0, byte(ip.Length>>8), byte(ip.Length), 0, 0, 0, 58)
		if s := sum(append(pseudo, b[40:]...)); s != 0xffff {
			t.Errorf("sum is %#x, want 0xffff", s)
		}
		quote = b[48:]
	}
	if !bytes.HasPrefix(about, quote) || len(quote) < min(len(about), 500) {
		t.Errorf("quotes %d bytes that are not the packet's beginning", len(quote))
	}
	if again := rewritten(t, p); !bytes.Equal(again, b) {
		t.Errorf("gopacket writes it as\n%x, not\n%x", again, b)
	}
}

// rewritten is an ICMP error as gopacket writes it once it has read it, with its own
// lengths and checksums.
func rewritten(t *testing.T, p gopacket.Packet) []byte {
	t.Helper()
	var ls []gopacket.SerializableLayer
	switch ip := p.NetworkLayer().(type) {
	case *layers.IPv4:
		ip.Length, ip.Checksum = 0, 0
		icmp := p.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4)
		ls = append(ls, ip, icmp, gopacket.Payload(icmp.Payload))
	case *layers.IPv6:
		ip.Length = 0
		icmp := p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6)
		if err := icmp.SetNetworkLayerForChecksum(ip); err != nil {
			t.Fatal(err)
		}
		ls = append(ls, ip, icmp, gopacket.Payload(icmp.Payload))
	}
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ls...); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func sum(b []byte) uint16 {
	var s uint32
	for i, c := range b {
		s += uint32(c) << (8 * (1 - i%2))
		s = s&0xffff + s>>16
	}
	return uint16(s)
}

// TestICMPAllocatesNothing: the packet is made where the quote lies.
func TestICMPAllocatesNothing(t *testing.T) {
	e := stubEngine(t, nil)
	for _, pkt := range [][]byte{innerFrom("100.96.1.9", "100.96.200.1", 1400), innerFrom("fd96:0:0:1::9", "fd96:0:0:99::1", 1400)} {
		src, _, _ := parseInner(pkt)
		e.icmp.offer(e.Table(), TxTooBig, pkt, src, 1300)
		j := <-e.icmp.ready
		if n := testing.AllocsPerRun(100, func() { j.build() }); n != 0 {
			t.Errorf("%v: %v allocations", src, n)
		}
		e.icmp.free <- j
	}
}

func TestAnswerable(t *testing.T) {
	v4 := func(proto byte, frag uint16, rest ...byte) []byte {
		p := innerFrom("100.96.1.9", "100.96.2.1", 20+len(rest))
		p[9] = proto
		binary.BigEndian.PutUint16(p[6:], frag)
		copy(p[20:], rest)
		return p
	}
	v6 := func(next byte, rest ...byte) []byte {
		p := innerFrom("fd96::1", "fd96::2", 40+len(rest))
		p[6] = next
		copy(p[40:], rest)
		return p
	}
	ext := func(next byte, rest ...byte) []byte { return append([]byte{next, 0, 0, 0, 0, 0, 0, 0}, rest...) }
	chain := func(n int) []byte {
		b := []byte{17}
		for range n {
			b = append([]byte{60, 0, 0, 0, 0, 0, 0, 0}, b...)
		}
		b[(n-1)*8] = 17
		return b
	}
	for _, tt := range []struct {
		name string
		p    []byte
		want bool
	}{
		{"udp", v4(17, 0, 1, 2), true},
		{"no payload", v4(17, 0), true},
		{"first fragment", v4(17, 0x2000, 1, 2), true},
		{"second fragment", v4(17, 0x2001, 1, 2), false},
		{"last fragment", v4(17, 0x0001, 1, 2), false},
		{"don't fragment", v4(6, 0x4000, 1, 2), true},
		{"echo", v4(1, 0, 8, 0), true},
		{"echo reply", v4(1, 0, 0, 0), true},
		{"extended echo", v4(1, 0, 42, 0), true},
		{"unreachable", v4(1, 0, 3, 1), false},
		{"source quench", v4(1, 0, 4, 0), false},
		{"redirect", v4(1, 0, 5, 0), false},
		{"time exceeded", v4(1, 0, 11, 0), false},
		{"parameter problem", v4(1, 0, 12, 0), false},
		{"unknown type", v4(1, 0, 99, 0), false},
		{"icmp without a type", v4(1, 0), false},

		{"udp6", v6(17, 1, 2), true},
		{"no next header", v6(59), true},
		{"echo6", v6(58, 128, 0), true},
		{"unreachable6", v6(58, 1, 3), false},
		{"too big6", v6(58, 2, 0), false},
		{"unknown error6", v6(58, 127, 0), false},
		{"redirect6", v6(58, 137, 0), false},
		{"icmp6 without a type", v6(58), false},
		{"hop-by-hop, udp", v6(0, ext(17, 1, 2)...), true},
		{"hop-by-hop, error", v6(0, ext(58, 1, 0)...), false},
		{"routing, destination options, error", v6(43, ext(60, ext(58, 3, 0)...)...), false},
		{"routing, destination options, echo", v6(43, ext(60, ext(58, 129, 0)...)...), true},
		{"AH, error", v6(51, append([]byte{58, 4}, append(make([]byte, 22), 1, 0)...)...), false},
		{"AH, echo", v6(51, append([]byte{58, 4}, append(make([]byte, 22), 128, 0)...)...), true},
		{"first fragment6", v6(44, 17, 0, 0, 1, 0, 0, 0, 9, 1, 2), true},
		{"first fragment6 of an error", v6(44, 58, 0, 0, 1, 0, 0, 0, 9, 1, 0), false},
		{"second fragment6", v6(44, 17, 0, 0, 8, 0, 0, 0, 9, 1, 2), false},
		{"cut extension", v6(0, 17, 0, 0), false},
		{"extension beyond the end", v6(0, 17, 9, 0, 0, 0, 0, 0, 0), false},
		{"cut AH", v6(51, 17, 9, 0, 0), false},
		{"seven extensions", v6(60, chain(7)...), true},
		{"too many extensions", v6(60, chain(8)...), false},
	} {
		if got := answerable(tt.p); got != tt.want {
			t.Errorf("%s: answerable = %v, want %v", tt.name, got, tt.want)
		}
	}
}

// TestTxAnswers: which drops are answered at all, by way of the loop.
func TestTxAnswers(t *testing.T) {
	for _, tt := range []struct {
		name   string
		dst    string
		n      int
		change func(p []byte)
		reason Reason
		answer bool
	}{
		{"nobody's", "100.96.200.1", 100, nil, TxNoOwner, true},
		{"nobody's, IPv6", "fd96:0:0:99::1", 100, nil, TxNoOwner, true},
		{"next hop down", "100.96.5.1", 100, nil, TxPeerDown, true},
		{"next hop down, IPv6", "fd96:0:0:5::1", 100, nil, TxPeerDown, true},
		{"no socket", "fd96:0:0:7::1", 100, nil, TxNoSocket, true},
		{"too big", "100.96.2.1", 1401, nil, TxTooBig, true},
		{"too big, IPv6", "fd96:0:0:2::1", 1401, nil, TxTooBig, true},
		{"outside", "203.0.113.1", 100, nil, TxOutsideNetwork, false},
		{"own subnet", "100.96.1.1", 100, nil, TxOwnDestination, false},
		{"later fragment", "100.96.200.1", 100, func(p []byte) { p[7] = 9 }, TxNoOwner, false},
		{"icmp error", "100.96.200.1", 100, func(p []byte) { p[9], p[20] = 1, 3 }, TxNoOwner, false},
	} {
		e := stubEngine(t, nil)
		l := txLoopOf(e, [sockCount]batchConn{sock4: &scriptConn{}}, [sockCount]offloads{})
		src := "100.96.1.9"
		if addr(tt.dst).Is6() {
			src = "fd96:0:0:1::9"
		}
		pkt := innerFrom(src, tt.dst, tt.n)
		if tt.change != nil {
			tt.change(pkt)
		}
		l.batch(tunnel.Packet{Data: pkt})
		if n := e.Drops().Count(tt.reason); n != 1 {
			t.Errorf("%s: %v = %d, want 1", tt.name, tt.reason, n)
		}
		select {
		case j := <-e.icmp.ready:
			if b := j.build(); !tt.answer {
				t.Errorf("%s: answered by %x", tt.name, b)
			} else {
				checkICMP(t, b, pkt, tt.reason == TxTooBig, 1400)
			}
		default:
			if tt.answer {
				t.Errorf("%s: not answered", tt.name)
			}
		}
		if n := e.Drops().Count(TxICMPNotSent); n != 0 {
			t.Errorf("%s: tx_icmp_not_sent = %d", tt.name, n)
		}
	}
	// Without an address of the family there is no source to answer from.
	e := stubEngine(t, nil)
	cfg := testTableConfig()
	cfg.OwnAddrs = cfg.OwnAddrs[:3] // without the IPv6 overlay address
	e.SetTable(mustTable(t, cfg))
	if offered(t, e, TxNoOwner, innerFrom("fd96:0:0:1::9", "fd96:0:0:99::1", 60), 0) != nil {
		t.Error("IPv6 error without an IPv6 address")
	}
	if offered(t, e, TxNoOwner, innerFrom("100.96.1.9", "100.96.99.1", 60), 0) == nil {
		t.Error("no IPv4 error with an IPv4 address")
	}
}

// TestICMPSuppressed: what the limits and a full queue hold back is counted.
func TestICMPSuppressed(t *testing.T) {
	e := stubEngine(t, nil)
	pkt := innerFrom("100.96.1.9", "100.96.99.1", 60)
	sent := 0
	for range 500 {
		if offered(t, e, TxNoOwner, pkt, 0) != nil {
			sent++
		}
	}
	if not := e.Drops().Count(TxICMPNotSent); sent < icmpDestBurst || sent >= 500 || not != uint64(500-sent) {
		t.Errorf("one destination: %d sent, %d suppressed", sent, not)
	}
	// A queue that nobody empties fills up, and offer still returns.
	e = stubEngine(t, nil)
	for i := range icmpQueueLen + 5 {
		src := netip.AddrFrom4([4]byte{100, 96, 1, byte(i + 1)})
		e.icmp.offer(e.Table(), TxNoOwner, inner(src, addr("100.96.99.1"), 60), src, 0)
	}
	if n := e.Drops().Count(TxICMPNotSent); n < 5 || len(e.icmp.ready)+int(n) != icmpQueueLen+5 {
		t.Errorf("full queue: %d suppressed, %d ready", n, len(e.icmp.ready))
	}
}

func TestBucket(t *testing.T) {
	const every = 10 * time.Millisecond
	var b bucket
	now := int64(time.Hour)
	take := func() (n int) {
		for b.allow(now, every, 50) {
			n++
		}
		return n
	}
	if n := take(); n != 50 {
		t.Errorf("a fresh bucket holds %d, want 50", n)
	}
	now += int64(every) - 1
	if n := take(); n != 0 {
		t.Errorf("%d before the time", n)
	}
	now++
	if n := take(); n != 1 {
		t.Errorf("%d after one interval, want 1", n)
	}
	now += int64(7 * every)
	if n := take(); n != 7 {
		t.Errorf("%d after seven intervals, want 7", n)
	}
	now += int64(time.Hour)
	if n := take(); n != 50 {
		t.Errorf("%d after an hour, want 50", n)
	}
}

// TestLimiterIsFair: a flood towards one destination leaves tokens for another.
func TestLimiterIsFair(t *testing.T) {
	l := icmpLimiter{seed: maphash.MakeSeed()}
	for range 1000 {
		l.allow(0, addr("100.96.1.1"))
	}
	// Others share the noisy one's bucket with probability 1/256 each.
	ok := 0
	for i := range 8 {
		if l.allow(0, netip.AddrFrom4([4]byte{100, 96, 1, byte(10 + i)})) {
			ok++
		}
	}
	if ok < 6 {
		t.Errorf("%d of 8 others got a token", ok)
	}
	total := ok
	for i := range 60000 {
		if l.allow(0, netip.AddrFrom4([4]byte{100, 97, byte(i >> 8), byte(i)})) {
			total++
		}
	}
	if total+icmpDestBurst != icmpBurst {
		t.Errorf("%d tokens over all, want %d", total+icmpDestBurst, icmpBurst)
	}
}
