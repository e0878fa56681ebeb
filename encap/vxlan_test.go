package encap

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

var (
	macA = [6]byte{0x02, 0xaa, 0, 0, 0, 1}
	macB = [6]byte{0x02, 0xbb, 0, 0, 0, 2}

	vtepA = VXLAN{VNI: 0x123456, MAC: macA}
	vtepB = VXLAN{VNI: 0x123456, MAC: macB}
)

// packet serializes layers, with their lengths and checksums.
func packet(t testing.TB, ls ...gopacket.SerializableLayer) []byte {
	t.Helper()
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ls...); err != nil {
		t.Fatal(err)
	}
	return bytes.Clone(buf.Bytes())
}

func inner4(t testing.TB) []byte {
	return packet(t, &layers.IPv4{Version: 4, TTL: 9, Protocol: 253, SrcIP: net.IP{10, 1, 1, 2}, DstIP: net.IP{10, 1, 2, 3}}, gopacket.Payload("four"))
}

func inner6(t testing.TB) []byte {
	return packet(t, &layers.IPv6{Version: 6, HopLimit: 9, NextHeader: 253, SrcIP: net.ParseIP("fd96::1"), DstIP: net.ParseIP("fd96::2")}, gopacket.Payload("six"))
}

func arpMessage(t testing.TB) []byte {
	return packet(t, &layers.ARP{AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4,
		Operation: layers.ARPRequest, SourceHwAddress: macA[:], SourceProtAddress: []byte{10, 1, 1, 0}, DstHwAddress: make([]byte, 6), DstProtAddress: []byte{10, 1, 2, 0}})
}

func solicitation(t testing.TB, hops uint8) []byte {
	ip := &layers.IPv6{Version: 6, HopLimit: hops, NextHeader: layers.IPProtocolICMPv6, SrcIP: net.ParseIP("fe80::1"), DstIP: net.ParseIP("ff02::1:ff00:2")}
	icmp := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(layers.ICMPv6TypeNeighborSolicitation, 0)}
	if err := icmp.SetNetworkLayerForChecksum(ip); err != nil {
		t.Fatal(err)
	}
	return packet(t, ip, icmp, &layers.ICMPv6NeighborSolicitation{TargetAddress: net.ParseIP("fd96::2")})
}

// frame is what A sends to B, made by gopacket.
func frame(t testing.TB, typ layers.EthernetType, to [6]byte, payload []byte) []byte {
	t.Helper()
	buf := gopacket.NewSerializeBuffer()
	err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{},
		&layers.VXLAN{ValidIDFlag: true, VNI: 0x123456},
		&layers.Ethernet{SrcMAC: macA[:], DstMAC: to[:], EthernetType: typ}, gopacket.Payload(payload))
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Clone(buf.Bytes()[:22+len(payload)]) // gopacket pads
}

// TestVXLANFrames: what is put together and taken apart is what gopacket makes.
func TestVXLANFrames(t *testing.T) {
	for _, tt := range []struct {
		kind    Kind
		to      [6]byte
		typ     layers.EthernetType
		payload []byte
	}{
		{IPv4, macB, layers.EthernetTypeIPv4, inner4(t)},
		{IPv6, macB, layers.EthernetTypeIPv6, inner6(t)},
		{IPv6, macB, layers.EthernetTypeIPv6, solicitation(t, 254)}, // has been forwarded
		{Control, macB, 0x88b5, []byte{0xc1, 2, 3}},
		{ARP, macB, layers.EthernetTypeARP, arpMessage(t)},
		{ARP, broadcast, layers.EthernetTypeARP, arpMessage(t)},
		{ND, macB, layers.EthernetTypeIPv6, solicitation(t, 255)},
		{ND, [6]byte{0x33, 0x33, 0xff, 0, 0, 2}, layers.EthernetTypeIPv6, solicitation(t, 255)},
	} {
		t.Run(fmt.Sprint(tt.kind, " ", net.HardwareAddr(tt.to[:])), func(t *testing.T) {
			want := frame(t, tt.typ, tt.to, tt.payload)
			h := bytes.Repeat([]byte{0xee}, 30)
			vtepA.PutHeader(h, tt.kind, Dest{MAC: tt.to})
			if got := append(h[:22:22], tt.payload...); !bytes.Equal(got, want) || vtepA.HeaderLen() != 22 {
				t.Errorf("PutHeader:\n got %x\nwant %x", got, want)
			}
			if !bytes.Equal(h[22:], bytes.Repeat([]byte{0xee}, 8)) {
				t.Error("PutHeader wrote behind the header")
			}
			kind, payload, err := vtepB.Decode(append(bytes.Clone(want), make([]byte, 8)...)[:len(want)])
			if kind != tt.kind || !bytes.Equal(payload, tt.payload) || err != nil || cap(payload) != len(payload) {
				t.Errorf("Decode: %v, %x (capacity %d), %v", kind, payload, cap(payload), err)
			}
			if _, _, err := vtepA.Decode(want); err != ErrMAC {
				t.Errorf("our own frame comes back: %v", err)
			}
			switch tt.kind {
			case IPv4, IPv6, Control:
				kind, payload, err := vtepA.DecodeSent(want, Dest{MAC: tt.to})
				if kind != tt.kind || !bytes.Equal(payload, tt.payload) || err != nil {
					t.Errorf("DecodeSent: %v, %x, %v", kind, payload, err)
				}
				if _, _, err := vtepA.DecodeSent(want, Dest{MAC: macA}); err != ErrMAC {
					t.Errorf("DecodeSent to somebody else: %v", err)
				}
				if _, _, err := vtepB.DecodeSent(want, Dest{MAC: tt.to}); err != ErrMAC {
					t.Errorf("DecodeSent by somebody else: %v", err)
				}
			}
		})
	}
}

// TestVXLANPadding: Ethernet pads short frames to 60 bytes, which are not the
// packet's.
func TestVXLANPadding(t *testing.T) {
	for typ, payload := range map[layers.EthernetType][]byte{
		layers.EthernetTypeIPv4: inner4(t), layers.EthernetTypeIPv6: inner6(t), layers.EthernetTypeARP: arpMessage(t),
	} {
		_, got, err := vtepB.Decode(append(frame(t, typ, macB, payload), make([]byte, 18)...))
		if !bytes.Equal(got, payload) || err != nil {
			t.Errorf("%v: %x, %v", typ, got, err)
		}
	}
}

func TestVXLANRefuses(t *testing.T) {
	good := frame(t, layers.EthernetTypeIPv4, macB, inner4(t))
	with := func(b []byte, at int, v ...byte) []byte {
		b = bytes.Clone(b)
		copy(b[at:], v)
		return b
	}
	if _, _, err := vtepB.Decode(good); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		in   []byte
		want error
	}{
		{"another VNI", with(good, 4, 0x12, 0x34, 0x57), ErrVNI},
		{"no VNI", with(good, 4, 0, 0, 0), ErrVNI},
		{"another VTEP", with(good, 8, 2, 0xbb, 0, 0, 0, 3), ErrMAC},
		{"broadcast IPv4", with(good, 8, broadcast[:]...), ErrGroup},
		{"multicast IPv4", with(good, 8, 1, 0, 0x5e, 0, 0, 1), ErrGroup},
		{"from us", with(good, 14, macB[:]...), ErrMAC},
		{"from a group", with(good, 14, 1), ErrMAC},
		{"a VLAN tag", with(good, 20, 0x81, 0), ErrEtherType},
		{"a length", with(good, 20, 0, 46), ErrEtherType},
		{"IPv6 that is IPv4", with(append(bytes.Clone(good), make([]byte, 40)...), 20, 0x86, 0xdd), ErrMagic},
		{"IPv4 that is IPv6", with(good, 22, 0x65), ErrMagic},
		{"broadcast control", frame(t, 0x88b5, broadcast, []byte{0xc1}), ErrGroup},
		{"empty control", frame(t, 0x88b5, macB, nil), ErrShort},
		{"broadcast IPv6", frame(t, layers.EthernetTypeIPv6, broadcast, inner6(t)), ErrGroup},
		{"multicast that is for one host", frame(t, layers.EthernetTypeIPv6, [6]byte{0x33, 0x33, 0, 0, 0, 1}, inner6(t)), ErrGroup},
		{"a forwarded solicitation to a group", frame(t, layers.EthernetTypeIPv6, [6]byte{0x33, 0x33, 0xff, 0, 0, 2}, solicitation(t, 254)), ErrGroup},
		{"ARP to a group", frame(t, layers.EthernetTypeARP, [6]byte{0x33, 0x33, 0xff, 0, 0, 2}, arpMessage(t)), ErrGroup},
	} {
		t.Run(tt.name, func(t *testing.T) {
			kind, payload, err := vtepB.Decode(tt.in)
			if kind != Invalid || payload != nil || err != tt.want {
				t.Errorf("%v, %x, %v; want %v", kind, payload, err, tt.want)
			}
		})
	}
}

// TestVXLANReserved follows vxlan_reserved.sh of the kernel's selftests: each
// reserved bit alone.
func TestVXLANReserved(t *testing.T) {
	good := frame(t, layers.EthernetTypeIPv4, macB, inner4(t))
	rfc := vtepB
	rfc.IgnoreReserved = true
	for bit := range 64 {
		at, mask := bit/8, byte(0x80>>(bit%8))
		if at >= 4 && at < 7 {
			continue // the VNI
		}
		b := bytes.Clone(good)
		b[at] ^= mask
		if _, _, err := vtepB.Decode(b); err != ErrVXLANFlags {
			t.Errorf("bit %d: %v", bit, err)
		}
		if _, _, err := vtepA.DecodeSent(b, Dest{MAC: macB}); err != ErrVXLANFlags {
			t.Errorf("bit %d in what we have sent: %v", bit, err)
		}
		want := error(nil)
		if at == 0 && mask == vxlanFlagI {
			want = ErrVXLANFlags
		}
		if _, _, err := rfc.Decode(b); err != want {
			t.Errorf("bit %d, if ignored: %v, want %v", bit, err, want)
		}
	}
}

func TestVXLANCutAnywhere(t *testing.T) {
	for typ, tt := range map[layers.EthernetType]struct {
		payload []byte
		least   int
	}{
		layers.EthernetTypeIPv4: {inner4(t), 20}, layers.EthernetTypeIPv6: {solicitation(t, 255), 40},
		layers.EthernetTypeARP: {arpMessage(t), 28}, 0x88b5: {[]byte{0xc1, 1}, 1},
	} {
		b := frame(t, typ, macB, tt.payload)
		for n := range b {
			// The copy ends where the frame is cut, so that reading on panics.
			_, payload, err := vtepB.Decode(append(make([]byte, 0, n), b[:n]...))
			if short := n < 22+tt.least; short != (err == ErrShort) || !short && len(payload) != n-22 {
				t.Errorf("%v cut to %d of %d bytes: %x, %v", typ, n, len(b), payload, err)
			}
			vtepA.DecodeSent(append(make([]byte, 0, n), b[:n]...), Dest{MAC: macB})
		}
	}
}

// TestVXLANLengthField: a header that says less than itself leaves the fixed header
// whole.
func TestVXLANLengthField(t *testing.T) {
	p := inner4(t)
	p[2], p[3] = 0, 7
	if _, got, err := vtepB.Decode(frame(t, layers.EthernetTypeIPv4, macB, p)); len(got) != 20 || err != nil {
		t.Errorf("%x, %v", got, err)
	}
}

func TestVXLANAllocations(t *testing.T) {
	var c Codec = vtepB
	good, bad, h := frame(t, layers.EthernetTypeIPv6, macB, inner6(t)), frame(t, layers.EthernetTypeIPv6, macA, inner6(t)), make([]byte, 22)
	if n := testing.AllocsPerRun(100, func() {
		c.PutHeader(h, IPv6, Dest{MAC: macA})
		c.Decode(good)
		c.Decode(bad)
		c.DecodeSent(good, Dest{MAC: macB})
	}); n != 0 {
		t.Errorf("%v allocations per packet, want 0", n)
	}
}

// FuzzDecodeVXLAN compares with gopacket's reading of the same bytes.
func FuzzDecodeVXLAN(f *testing.F) {
	for typ, p := range map[layers.EthernetType][]byte{
		layers.EthernetTypeIPv4: inner4(f), layers.EthernetTypeIPv6: solicitation(f, 255), layers.EthernetTypeARP: arpMessage(f), 0x88b5: {0xc1, 1},
	} {
		f.Add(frame(f, typ, macB, p))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		kind, payload, err := vtepB.Decode(bytes.Clone(in))
		if err != nil {
			if kind != Invalid || payload != nil {
				t.Fatalf("%v with %d bytes beside error %v", kind, len(payload), err)
			}
			return
		}
		p := gopacket.NewPacket(in, layers.LayerTypeVXLAN, gopacket.DecodeOptions{NoCopy: true})
		vx, _ := p.Layer(layers.LayerTypeVXLAN).(*layers.VXLAN)
		eth, _ := p.Layer(layers.LayerTypeEthernet).(*layers.Ethernet)
		if vx == nil || !vx.ValidIDFlag || vx.VNI != 0x123456 || vx.GBPExtension || eth == nil || bytes.Equal(eth.SrcMAC, macB[:]) {
			t.Fatalf("%v of %v", kind, p)
		}
		if !bytes.HasPrefix(in[22:], payload) {
			t.Fatalf("payload %x of %x", payload, in)
		}
		forUs := bytes.Equal(eth.DstMAC, macB[:])
		want := map[layers.EthernetType]Kind{layers.EthernetTypeIPv4: IPv4, layers.EthernetTypeIPv6: IPv6, layers.EthernetTypeARP: ARP, 0x88b5: Control}[eth.EthernetType]
		if kind == ND && want == IPv6 {
			ip, _ := netip.AddrFromSlice(payload[24:40])
			if !forUs && !ip.IsMulticast() || payload[7] != 255 {
				t.Fatalf("neighbour discovery: %x", in)
			}
			return
		}
		if kind != want || !forUs && kind != ARP {
			t.Fatalf("%v of a frame of type %v for %v", kind, eth.EthernetType, eth.DstMAC)
		}
	})
}
