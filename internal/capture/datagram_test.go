package capture

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// byGopacket is a datagram as gopacket writes it.
func byGopacket(t *testing.T, src, dst netip.AddrPort, class uint8, payload []byte) []byte {
	t.Helper()
	var ip interface {
		gopacket.NetworkLayer
		gopacket.SerializableLayer
	} = &layers.IPv6{Version: 6, TrafficClass: class, HopLimit: ttl, NextHeader: layers.IPProtocolUDP, SrcIP: src.Addr().AsSlice(), DstIP: dst.Addr().AsSlice()}
	if dst.Addr().Is4() {
		ip = &layers.IPv4{Version: 4, TOS: class, TTL: ttl, Flags: layers.IPv4DontFragment, Protocol: layers.IPProtocolUDP, SrcIP: src.Addr().AsSlice(), DstIP: dst.Addr().AsSlice()}
	}
	udp := &layers.UDP{SrcPort: layers.UDPPort(src.Port()), DstPort: layers.UDPPort(dst.Port())}
	if err := udp.SetNetworkLayerForChecksum(ip); err != nil {
		t.Fatal(err)
	}
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ip, udp, gopacket.Payload(payload)); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// TestDatagram: the headers and their checksums are those that gopacket writes, from
// whomever to whomever, for payloads of all kinds of length.
func TestDatagram(t *testing.T) {
	any4, any6 := netip.MustParseAddrPort("0.0.0.0:8472"), netip.MustParseAddrPort("[::]:8472")
	zone := netip.MustParseAddrPort("[fe80::1%eth0]:8472")
	for _, tt := range []struct {
		local, remote netip.AddrPort
		shown         netip.AddrPort // of local
		longest       int
	}{
		{local4, remote4, local4, 65507},
		{local6, remote6, local6, 65527},
		{any4, remote4, any4, 65507},
		{any6, remote4, any4, 65507},
		{any6, remote6, any6, 65527},
		{any4, remote6, any6, 65527},
		{netip.AddrPort{}, remote4, netip.MustParseAddrPort("0.0.0.0:0"), 65507},
		{netip.AddrPort{}, remote6, netip.MustParseAddrPort("[::]:0"), 65527},
		{zone, netip.MustParseAddrPort("[fe80::2%eth0]:1"), zone, 65527},
	} {
		for _, n := range []int{0, 1, 2, 7, 8, 1399, 1400, 65506, 65507, 65527, maxPacket} {
			for _, outbound := range []bool{false, true} {
				c := record{outbound: outbound, local: tt.local, remote: tt.remote, class: uint8(n), b: bytes.Repeat([]byte{0xfe, 1, byte(n)}, n)[:n]}
				src, dst := tt.remote, tt.shown
				if outbound {
					src, dst = dst, src
				}
				want := byGopacket(t, src, dst, c.class, c.b[:min(n, tt.longest)])
				if got := c.appendDatagram([]byte("before"))[len("before"):]; !bytes.Equal(got, want) {
					t.Errorf("%v from %v, %d bytes: differs", tt.local, tt.remote, n)
				}
			}
		}
	}
	// Nobody's: it is shown all the same.
	none := record{b: []byte("nobody")}
	if b := none.appendDatagram(nil); !bytes.HasSuffix(b, none.b) || len(b) != 40+8+6 {
		t.Errorf("%x", b)
	}
}

// TestZeroSum: a checksum that comes out as zero is not taken for none (RFC 768).
func TestZeroSum(t *testing.T) {
	c := record{local: local4, remote: remote4, b: []byte{0, 0}}
	sum := binary.BigEndian.Uint16(c.appendDatagram(nil)[26:])
	binary.BigEndian.PutUint16(c.b, sum)
	if got := binary.BigEndian.Uint16(c.appendDatagram(nil)[26:]); got != 0xffff {
		t.Errorf("%#x", got)
	}
}

// TestDatagramsAllocateNothing: a buffer that is large enough is used again.
func TestDatagramsAllocateNothing(t *testing.T) {
	b := make([]byte, 0, 2000)
	c := record{local: local6, remote: remote6, b: make([]byte, 1400)}
	if n := testing.AllocsPerRun(100, func() { c.appendDatagram(b) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
