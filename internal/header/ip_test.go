package header

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// byGopacket is the packet that gopacket makes of the same.
func byGopacket(t testing.TB, h IP, payload []byte) []byte {
	t.Helper()
	var ip interface {
		gopacket.NetworkLayer
		gopacket.SerializableLayer
	} = &layers.IPv6{Version: 6, TrafficClass: h.Class, HopLimit: h.HopLimit, NextHeader: layers.IPProtocol(h.Protocol), SrcIP: h.Src.AsSlice(), DstIP: h.Dst.AsSlice()}
	if h.Dst.Is4() {
		ip = &layers.IPv4{Version: 4, TOS: h.Class, TTL: h.HopLimit, Flags: layers.IPv4DontFragment, Protocol: layers.IPProtocol(h.Protocol), SrcIP: h.Src.AsSlice(), DstIP: h.Dst.AsSlice()}
	}
	ls := []gopacket.SerializableLayer{ip}
	switch h.Protocol {
	case ICMP:
		ls = append(ls, &layers.ICMPv4{
			TypeCode: layers.CreateICMPv4TypeCode(payload[0], payload[1]),
			Id:       binary.BigEndian.Uint16(payload[4:]), Seq: binary.BigEndian.Uint16(payload[6:]),
		}, gopacket.Payload(payload[8:]))
	case ICMPv6:
		icmp := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(payload[0], payload[1])}
		if err := icmp.SetNetworkLayerForChecksum(ip); err != nil {
			t.Fatal(err)
		}
		ls = append(ls, icmp, gopacket.Payload(payload[4:]))
	case UDP:
		udp := &layers.UDP{SrcPort: layers.UDPPort(binary.BigEndian.Uint16(payload)), DstPort: layers.UDPPort(binary.BigEndian.Uint16(payload[2:]))}
		if err := udp.SetNetworkLayerForChecksum(ip); err != nil {
			t.Fatal(err)
		}
		ls = append(ls, udp, gopacket.Payload(payload[8:]))
	}
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ls...); err != nil {
		t.Fatal(err)
	}
	b := buf.Bytes()
	if at := h.Len() + 6; h.Protocol == UDP && b[at] == 0 && b[at+1] == 0 {
		b[at], b[at+1] = 0xff, 0xff // gopacket says that there is none: RFC 768 says how to say zero
	}
	return b
}

// put is what Put makes, in a buffer that was used before.
func put(h IP, payload []byte) []byte {
	b := append(bytes.Repeat([]byte{0xa5}, h.Len()), payload...)
	h.Put(b)
	return b
}

// asUDP makes the length right, which Put leaves to its caller.
func asUDP(payload []byte) []byte {
	payload = slices.Clone(payload)
	binary.BigEndian.PutUint16(payload[4:], uint16(len(payload)))
	return payload
}

var (
	v4, w4 = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("198.51.100.254")
	v6, w6 = netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("fe80::ffff:2")
)

// FuzzPut: gopacket would write the same, whatever it is.
func FuzzPut(f *testing.F) {
	for _, n := range []int{8, 9, 28, 556, 1240, 65507} {
		for class := range uint8(3) {
			f.Add(v4.AsSlice(), w4.AsSlice(), class*0x60, uint8(64), bytes.Repeat([]byte{class, 0xff, 7}, n)[:n])
			f.Add(v6.AsSlice(), w6.AsSlice(), class*0x60, uint8(255), bytes.Repeat([]byte{class, 0xff, 7}, n)[:n])
		}
	}
	f.Add(v6.AsSlice(), w6.AsSlice(), uint8(0), uint8(1), make([]byte, 65535))
	f.Fuzz(func(t *testing.T, from, to []byte, class, hops uint8, payload []byte) {
		src, ok := netip.AddrFromSlice(from)
		dst, ok2 := netip.AddrFromSlice(to)
		if !ok || !ok2 || src.Is4() != dst.Is4() || len(payload) < 8 || len(payload) > 65535 || dst.Is4() && len(payload) > 65535-Len4 {
			return
		}
		protocols := []uint8{UDP, ICMPv6}
		if dst.Is4() {
			protocols[1] = ICMP
		}
		for _, p := range protocols {
			if p == UDP {
				payload = asUDP(payload)
			}
			h := IP{Src: src, Dst: dst, Protocol: p, Class: class, HopLimit: hops}
			if got, want := put(h, payload), byGopacket(t, h, payload); !bytes.Equal(got, want) {
				t.Errorf("%+v:\n got %x\nwant %x", h, got, want)
			}
		}
	})
}

// TestZeroSum: a checksum of zero is written as such, except for UDP, where it would
// say that there is none.
func TestZeroSum(t *testing.T) {
	for _, h := range []IP{
		{Src: v4, Dst: w4, Protocol: UDP}, {Src: v6, Dst: w6, Protocol: UDP},
		{Src: v4, Dst: w4, Protocol: ICMP}, {Src: v6, Dst: w6, Protocol: ICMPv6},
	} {
		payload, at, want := make([]byte, 10), 2, uint16(0)
		if h.Protocol == UDP {
			payload, at, want = asUDP(payload), 6, 0xffff
		}
		payload[0] = 9 // all zeros have no sum of 0xffff
		sum := binary.BigEndian.Uint16(put(h, payload)[h.Len()+at:])
		binary.BigEndian.PutUint16(payload[8:], sum)
		b := put(h, payload)
		if got := binary.BigEndian.Uint16(b[h.Len()+at:]); got != want {
			t.Errorf("%+v: %#x, want %#x", h, got, want)
		}
		if again := byGopacket(t, h, payload); !bytes.Equal(b, again) {
			t.Errorf("%+v: gopacket has %x, not %x", h, again, b)
		}
	}
}

func TestPutAllocatesNothing(t *testing.T) {
	for _, h := range []IP{{Src: v4, Dst: w4, Protocol: ICMP}, {Src: v6, Dst: w6, Protocol: ICMPv6}, {Src: v6, Dst: w6, Protocol: UDP}} {
		b := make([]byte, h.Len()+100)
		if n := testing.AllocsPerRun(100, func() { h.Put(b) }); n != 0 {
			t.Errorf("%v allocations", n)
		}
	}
}
