package encap

import (
	"testing"

	"github.com/google/gopacket/layers"
)

// BenchmarkVXLAN is what the vxlan encap costs a packet, on both sides.
func BenchmarkVXLAN(b *testing.B) {
	b.ReportAllocs()
	var c Codec = vtepB
	datagram, h := frame(b, layers.EthernetTypeIPv4, macB, inner4(b)), make([]byte, c.HeaderLen())
	for b.Loop() {
		c.PutHeader(h, IPv4, Dest{MAC: macA})
		if _, _, err := c.Decode(datagram); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkUDP is the same of the udp encap.
func BenchmarkUDP(b *testing.B) {
	b.ReportAllocs()
	var c Codec = UDP{}
	datagram := inner4(b)
	for b.Loop() {
		c.PutHeader(nil, IPv4, Dest{})
		if _, _, err := c.Decode(datagram); err != nil {
			b.Fatal(err)
		}
	}
}
