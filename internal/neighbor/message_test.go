package neighbor

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/overlayd/overlayd/encap"
)

// readARP is what gopacket reads, and whether it is a message for us. It panics where
// the lengths of the addresses overflow 8 bits, and keeps only 8 bits of a hardware
// type.
func readARP(b []byte) (m message, ok bool) {
	defer func() {
		if recover() != nil {
			m, ok = message{}, false
		}
	}()
	var a layers.ARP
	if a.DecodeFromBytes(b, gopacket.NilDecodeFeedback) != nil || a.AddrType != layers.LinkTypeEthernet || b[0] != 0 || a.Protocol != layers.EthernetTypeIPv4 ||
		a.HwAddressSize != 6 || a.ProtAddressSize != 4 || a.Operation != layers.ARPRequest && a.Operation != layers.ARPReply {
		return m, false
	}
	m = message{a.Operation == layers.ARPReply, netip.AddrFrom4([4]byte(a.SourceProtAddress)), mac(a.SourceHwAddress), netip.AddrFrom4([4]byte(a.DstProtAddress))}
	return m, station(m.senderMAC)
}

// readND is the same of neighbour discovery.
func readND(b []byte) (m message, ok bool) {
	p := gopacket.NewPacket(b, layers.LayerTypeIPv6, gopacket.NoCopy)
	ip, _ := p.Layer(layers.LayerTypeIPv6).(*layers.IPv6)
	icmp, _ := p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6)
	if p.ErrorLayer() != nil || ip == nil || icmp == nil || int(ip.Length) != len(b)-40 || !summed(ip, icmp) || icmp.TypeCode.Code() != 0 {
		return m, false
	}
	addr := func(b []byte) netip.Addr { return netip.AddrFrom16([16]byte(b)) }
	var opts layers.ICMPv6Options
	var wanted layers.ICMPv6Opt
	switch n := p.Layers()[len(p.Layers())-1].(type) {
	case *layers.ICMPv6NeighborSolicitation:
		opts, wanted = n.Options, layers.ICMPv6OptSourceAddress
		m = message{sender: addr(ip.SrcIP), target: addr(n.TargetAddress)}
		ok = !m.target.IsMulticast()
	case *layers.ICMPv6NeighborAdvertisement:
		opts, wanted = n.Options, layers.ICMPv6OptTargetAddress
		m = message{answer: true, sender: addr(n.TargetAddress), target: addr(ip.DstIP)}
		ok = !m.sender.IsMulticast() && !m.target.IsMulticast()
	}
	for _, o := range opts {
		if o.Type == wanted && len(o.Data) == 6 {
			m.senderMAC = mac(o.Data)
			ok = ok && station(m.senderMAC)
		}
	}
	src := addr(ip.SrcIP)
	return m, ok && !src.IsUnspecified() && !src.IsMulticast()
}

// summed reports whether a checksum is the one that gopacket writes. To whoever adds
// up, both zeros are the same.
func summed(ip *layers.IPv6, icmp *layers.ICMPv6) bool {
	again := layers.ICMPv6{TypeCode: icmp.TypeCode}
	if again.SetNetworkLayerForChecksum(ip) != nil {
		return false
	}
	buf := gopacket.NewSerializeBuffer()
	if gopacket.SerializeLayers(buf, gopacket.SerializeOptions{ComputeChecksums: true}, &again, gopacket.Payload(icmp.Payload)) != nil {
		return false
	}
	return again.Checksum == icmp.Checksum || again.Checksum|icmp.Checksum == 0xffff && again.Checksum&icmp.Checksum == 0
}

// discovery reports whether a packet is one that the codec takes for neighbour
// discovery; and makes its checksum right.
func discovery(b []byte, sum bool) bool {
	if len(b) < 44 || b[0]>>4 != 6 || b[6] != 58 || b[7] != 255 || b[40] != ns && b[40] != na {
		return false
	}
	if sum {
		b[42], b[43] = 0, 0
		p := gopacket.NewPacket(b, layers.LayerTypeIPv6, gopacket.Default)
		ip, _ := p.Layer(layers.LayerTypeIPv6).(*layers.IPv6)
		icmp, _ := p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6)
		if ip == nil || icmp == nil || icmp.SetNetworkLayerForChecksum(ip) != nil {
			return true
		}
		buf := gopacket.NewSerializeBuffer()
		if gopacket.SerializeLayers(buf, gopacket.SerializeOptions{ComputeChecksums: true}, icmp, gopacket.Payload(icmp.Payload)) == nil {
			binary.BigEndian.PutUint16(b[42:], icmp.Checksum)
		}
	}
	return true
}

// FuzzParse: what gopacket reads is read, as the same, and nothing else.
func FuzzParse(f *testing.F) {
	source, target := option(layers.ICMPv6OptSourceAddress, theirs), option(layers.ICMPv6OptTargetAddress, theirs)
	f.Add(false, false, arp(f, 1, theirs, their4, mac{}, own4))
	f.Add(false, false, arp(f, 2, theirs, their4, ours, own4))
	f.Add(false, false, append(arp(f, 2, theirs, their4, ours, own4), 1, 2, 3))
	f.Add(false, false, append([]byte{0x30}, arp(f, 1, theirs, their4, mac{}, own4)[1:]...))
	f.Add(true, true, nd(f, ns, their6, solicitedNode(own6), own6, source))
	f.Add(true, true, nd(f, ns, their6, solicitedNode(own6), own6, target, source, source))
	f.Add(true, true, nd(f, na, their6, LinkLocal(ours), their6, target))
	f.Add(true, true, nd(f, na, their6, LinkLocal(ours), their6))
	f.Add(true, false, nd(f, na, their6, own6, their6, layers.ICMPv6Option{Type: layers.ICMPv6OptTargetAddress, Data: make([]byte, 14)}))
	f.Fuzz(func(t *testing.T, isND, sum bool, b []byte) {
		b = bytes.Clone(b)
		kind, read := encap.ARP, readARP
		if isND {
			if kind, read = encap.ND, readND; !discovery(b, sum) {
				return
			}
		}
		got, err := parse(kind, b)
		want, ok := read(b)
		if ok != (err == nil) || ok && got != want {
			t.Errorf("%x:\n%+v, %v, to gopacket it is\n%+v, %v", b, got, err, want, ok)
		}
		if err != nil && got != (message{}) {
			t.Errorf("%+v beside %v", got, err)
		}
	})
}

// TestBuild: gopacket reads in each kind of message what it was made of, and would
// have written the same.
func TestBuild(t *testing.T) {
	for _, tt := range []struct {
		name     string
		answer   bool
		from, to netip.Addr
		toMAC    mac
		want     []byte
	}{
		{"ARP request", false, own4, their4, broadcastMAC, arp(t, layers.ARPRequest, ours, own4, mac{}, their4)},
		{"ARP request to a known MAC", false, own4, their4, theirs, arp(t, layers.ARPRequest, ours, own4, mac{}, their4)},
		{"ARP reply", true, own4, their4, theirs, arp(t, layers.ARPReply, ours, own4, theirs, their4)},
		{"solicitation of the group", false, LinkLocal(ours), their6, groupMAC(their6), nd(t, ns, LinkLocal(ours), solicitedNode(their6), their6, option(layers.ICMPv6OptSourceAddress, ours))},
		{"solicitation of one", false, LinkLocal(ours), their6, theirs, nd(t, ns, LinkLocal(ours), their6, their6, option(layers.ICMPv6OptSourceAddress, ours))},
		{"advertisement", true, own6, their6, theirs, advertisement(t)},
	} {
		kind, b, err := build(tt.answer, ours, tt.from, tt.toMAC, tt.to)
		if err != nil || !bytes.Equal(b, tt.want) {
			t.Errorf("%s: %v\n got %x\nwant %x", tt.name, err, b, tt.want)
		}
		want := message{answer: tt.answer, sender: tt.from, senderMAC: ours, target: tt.to}
		read, layer := readARP, layers.LayerTypeARP
		if kind == encap.ND {
			read, layer = readND, layers.LayerTypeIPv6
		}
		if got, ok := read(b); !ok || got != want {
			t.Errorf("%s: to gopacket it is %+v, %v", tt.name, got, ok)
		}
		if p := gopacket.NewPacket(b, layer, gopacket.Default); p.ErrorLayer() != nil {
			t.Errorf("%s: %v", tt.name, p.ErrorLayer().Error())
		}
		if got, err := parse(kind, b); err != nil || got != want {
			t.Errorf("%s: we read %+v, %v", tt.name, got, err)
		}
	}
	for _, tt := range [][2]netip.Addr{{own4, their6}, {own6, their4}, {own4, {}}, {{}, their6}, {}} {
		for _, answer := range []bool{false, true} {
			if kind, b, err := build(answer, ours, tt[0], theirs, tt[1]); err == nil || b != nil || kind != encap.Invalid {
				t.Errorf("%v: %v, %x", tt, kind, b)
			}
		}
	}
}

// advertisement is what a router says that was asked.
func advertisement(t *testing.T) []byte {
	ip := &layers.IPv6{Version: 6, HopLimit: 255, NextHeader: layers.IPProtocolICMPv6, SrcIP: own6.AsSlice(), DstIP: their6.AsSlice()}
	icmp := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(na, 0)}
	if err := icmp.SetNetworkLayerForChecksum(ip); err != nil {
		t.Fatal(err)
	}
	return serialize(t, ip, icmp, &layers.ICMPv6NeighborAdvertisement{
		Flags: 0xe0, TargetAddress: own6.AsSlice(), Options: layers.ICMPv6Options{option(layers.ICMPv6OptTargetAddress, ours)},
	})
}
