package forward

import (
	"bytes"
	"net/netip"
	"slices"
	"testing"

	"github.com/overlayd/overlayd/encap"
	"github.com/overlayd/overlayd/tunnel"
)

var (
	ourVTEP   = encap.VXLAN{VNI: 7, MAC: [6]byte{2, 0, 0, 0, 0, 1}}
	theirVTEP = encap.VXLAN{VNI: 7, MAC: [6]byte{2, 0, 0, 0, 0, 2}} // node 2's
)

func vxlanFrame(v encap.VXLAN, k encap.Kind, to [6]byte, payload []byte) []byte {
	b := make([]byte, v.HeaderLen(), v.HeaderLen()+len(payload))
	v.PutHeader(b, k, encap.Dest{MAC: to})
	return append(b, payload...)
}

// TestMixedFramings: each peer is sent what it takes, by packets and by control
// frames.
func TestMixedFramings(t *testing.T) {
	for _, own := range []encap.Codec{encap.UDP{}, ourVTEP} {
		t.Run(own.Name(), func(t *testing.T) {
			e := stubEngine(t, nil)
			e.codec = own
			cfg := testTableConfig()
			cfg.Peers[0].Codec, cfg.Peers[2].Codec = ourVTEP, encap.UDP{}
			e.SetTable(mustTable(t, cfg))
			var c scriptConn
			l := txLoopOf(e, [sockCount]batchConn{sock4: &c}, [sockCount]offloads{})
			a, b := innerFrom("100.96.1.9", "100.96.2.1", 60), innerFrom("100.96.1.9", "100.96.4.1", 61)
			l.batch(tunnel.Packet{Data: a}, tunnel.Packet{Data: b}, tunnel.Packet{Data: a})
			if err := l.flush(); err != nil {
				t.Fatal(err)
			}
			framed := vxlanFrame(ourVTEP, encap.IPv4, theirVTEP.MAC, a)
			for i, want := range [][]byte{framed, b, framed} {
				if i >= len(c.sent) || !bytes.Equal(c.sent[i].b, want) {
					t.Fatalf("datagram %d of %d: want %x", i, len(c.sent), want)
				}
			}
			if p := e.Table().Peers(); e.overhead(p[0]) != 50 || e.overhead(p[2]) != 28 || e.overhead(p[5]) != 48+own.HeaderLen() {
				t.Errorf("overheads %d, %d, %d", e.overhead(p[0]), e.overhead(p[2]), e.overhead(p[5]))
			}
			// What a router quotes of it is believed in the peer's framing alone.
			long := innerFrom("100.96.1.9", "100.96.2.1", 1400)
			for _, quote := range [][]byte{vxlanFrame(ourVTEP, encap.IPv4, theirVTEP.MAC, long), long, vxlanFrame(ourVTEP, encap.IPv4, ourVTEP.MAC, long)} {
				e.heardTooBig(tooBig{to: addrPort("192.0.2.2:8285"), mtu: 1300, quote: quote[:quoteLen]})
			}
			if believed, not := e.Drops().Count(TxSocketTooBig), e.Drops().Count(RxICMPNotBelieved); believed != 1 || not != 2 {
				t.Errorf("%d believed, %d not", believed, not)
			}
		})
	}
}

// TestVXLANReceive: what is no packet for us is counted as what it is, and what is
// about neighbours is given away.
func TestVXLANReceive(t *testing.T) {
	const node2 = "192.0.2.2:51234"
	good := innerFrom("100.96.2.1", "100.96.1.9", 100)
	arp := make([]byte, 28)
	nd := innerFrom("fe80::2", "ff02::1:ff00:0", 72)
	nd[6], nd[7], nd[40] = 58, 255, 135
	frame := func(k encap.Kind, payload []byte) []byte { return vxlanFrame(theirVTEP, k, ourVTEP.MAC, payload) }
	with := func(b []byte, at int, v ...byte) []byte {
		b = slices.Clone(b)
		copy(b[at:], v)
		return b
	}
	multicast := [6]byte{0x33, 0x33, 0xff, 0, 0, 0}
	for _, tt := range []struct {
		name, from string
		b          []byte
		kind       encap.Kind // of what is given away
		want       Reason
	}{
		{"a packet", node2, frame(encap.IPv4, good), encap.IPv4, None},
		{"padded", node2, append(frame(encap.IPv4, good), 0, 0, 0), encap.IPv4, None},
		{"control", node2, frame(encap.Control, []byte{0xc1}), encap.Control, None},
		{"ARP", node2, frame(encap.ARP, arp), encap.ARP, None},
		{"solicitation", node2, frame(encap.IPv6, nd), encap.ND, None},
		{"solicitation to a group", node2, vxlanFrame(theirVTEP, encap.IPv6, multicast, nd), encap.ND, None},
		{"a stranger's ARP", "192.0.2.66:8472", frame(encap.ARP, arp), 0, RxUnknownSource},
		{"reserved bit", node2, with(frame(encap.IPv4, good), 7, 1), 0, RxVXLANReserved},
		{"no I flag", node2, with(frame(encap.IPv4, good), 0, 0), 0, RxVXLANReserved},
		{"another VNI", node2, with(frame(encap.IPv4, good), 6, 8), 0, RxUnknownVNI},
		{"another VTEP", node2, vxlanFrame(theirVTEP, encap.IPv4, [6]byte{2, 9}, good), 0, RxUnknownMAC},
		{"to all", node2, vxlanFrame(theirVTEP, encap.IPv4, [6]byte{255, 255, 255, 255, 255, 255}, good), 0, RxMulticast},
		{"our own", node2, vxlanFrame(ourVTEP, encap.IPv4, ourVTEP.MAC, good), 0, RxUnknownMAC},
		{"VLAN", node2, with(frame(encap.IPv4, good), 20, 0x81, 0), 0, RxUnknownEtherType},
		{"cut", node2, frame(encap.IPv4, good)[:30], 0, RxMalformedFrame},
		{"cut packet", node2, frame(encap.IPv4, good[:99]), 0, RxMalformed},
		{"spoofed", node2, frame(encap.IPv4, innerFrom("100.96.3.1", "100.96.1.9", 30)), 0, RxSpoofedSource},
		{"to a group", node2, frame(encap.IPv6, innerFrom("fd96:0:0:2::1", "ff02::1", 60)), 0, RxMulticast},
		{"from the link", node2, frame(encap.IPv6, innerFrom("fe80::2", "fd96:0:0:1::9", 60)), 0, RxMartian},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var kind encap.Kind
			var from netip.AddrPort
			e := stubEngine(t, func(p []tunnel.Packet) (int, error) { kind = encap.IPv4; return len(p), nil })
			e.codec = ourVTEP
			e.control = func(_ []byte, f netip.AddrPort) { kind, from = encap.Control, f }
			e.neighbor = func(k encap.Kind, payload []byte, f netip.AddrPort) {
				if kind, from = k, f; k == encap.ARP && len(payload) != 28 || k == encap.ND && !bytes.Equal(payload, nd) {
					t.Errorf("payload %x", payload)
				}
			}
			l := newRxLoop(e, sock{}, queueOf(e))
			l.take(e.Table(), received(tt.from, tt.b))
			if err := l.deliver(); err != nil {
				t.Fatal(err)
			}
			if kind != tt.kind || kind > encap.IPv6 && from != addrPort(tt.from) {
				t.Errorf("given away: %v from %v, want %v", kind, from, tt.kind)
			}
			for r := None + 1; r < reasonCount; r++ {
				if n := e.Drops().Count(r); (n == 1) != (r == tt.want) || n > 1 {
					t.Errorf("%v = %d, want %v alone", r, n, tt.want)
				}
			}
		})
	}
}

// TestLanes: with several sockets of a family flows are spread over them, and each
// stays on one.
func TestLanes(t *testing.T) {
	e := stubEngine(t, nil)
	q, conns := queueOf(e), make([]scriptConn, 4)
	for i := range conns {
		q.tx[sock4] = append(q.tx[sock4], sock{conn: &conns[i]})
	}
	l := newTxLoop(e, q)
	const flows = 64
	for range 3 {
		for flow := 0; flow < flows; flow += len(l.pkts) {
			var pkts []tunnel.Packet
			for i := range l.pkts {
				p := innerFrom("100.96.1.9", "100.96.2.1", 60)
				p[9], p[21] = 17, byte(flow+i)
				pkts = append(pkts, tunnel.Packet{Data: p})
			}
			l.batch(pkts...)
			if err := l.flush(); err != nil {
				t.Fatal(err)
			}
		}
	}
	lane := map[byte]int{}
	for i := range conns {
		if n := len(conns[i].sent); n < flows*3/16 {
			t.Errorf("lane %d has %d packets of %d", i, n, flows*3)
		}
		for _, s := range conns[i].sent {
			flow := s.b[testHeaderLen+21]
			if was, ok := lane[flow]; ok && was != i {
				t.Errorf("flow %d is on lanes %d and %d", flow, was, i)
			}
			lane[flow] = i
		}
	}
	if len(lane) != flows {
		t.Errorf("%d flows have arrived", len(lane))
	}
}
