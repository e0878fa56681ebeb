package forward

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/overlayd/overlayd/encap"
	"github.com/overlayd/overlayd/tunnel"
)

// withClass is an inner packet with a traffic class, and a right checksum.
func withClass(t testing.TB, src, dst string, class uint8) []byte {
	t.Helper()
	b := innerFrom(src, dst, 100)
	if b[0]>>4 == 6 {
		b[0], b[1] = 0x60|class>>4, class<<4|b[1]&0x0f
		return b
	}
	b[1] = class
	b[10], b[11] = 0, 0
	sum := uint32(0)
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(b[10:], ^uint16(sum))
	return b
}

// TestMarkInner is RFC 6040 section 4.2, figure 4, for every inner class and outer
// ECN: what gopacket reads is what the figure says, all else is as it was, and the
// checksum is that of a sum made anew.
func TestMarkInner(t *testing.T) {
	const drop = 9
	figure := [4][4]uint8{ // [inner][outer]
		ecnNone: {ecnNone: ecnNone, ecnECT0: ecnNone, ecnECT1: ecnNone, ecnCE: drop},
		ecnECT0: {ecnNone: ecnECT0, ecnECT0: ecnECT0, ecnECT1: ecnECT1, ecnCE: ecnCE},
		ecnECT1: {ecnNone: ecnECT1, ecnECT0: ecnECT1, ecnECT1: ecnECT1, ecnCE: ecnCE},
		ecnCE:   {ecnNone: ecnCE, ecnECT0: ecnCE, ecnECT1: ecnCE, ecnCE: ecnCE},
	}
	for _, addrs := range [][2]string{{"100.96.2.1", "100.96.1.9"}, {"fd96:0:0:2::1", "fd96:0:0:1::9"}} {
		for inner := range 256 {
			for outer := range 256 {
				b := withClass(t, addrs[0], addrs[1], uint8(inner))
				ok := !congestionDrops(b, uint8(outer))
				markInner(b, uint8(outer))
				want := figure[inner&ecnMask][outer&ecnMask]
				if ok != (want != drop) {
					t.Fatalf("inner %#x, outer %#x: kept %v", inner, outer, ok)
				}
				if !ok {
					continue
				}
				class := uint8(inner)&^ecnMask | want
				if expect := withClass(t, addrs[0], addrs[1], class); !bytes.Equal(b, expect) {
					t.Fatalf("inner %#x, outer %#x: header %x, want %x", inner, outer, b[:20], expect[:20])
				}
				if trafficClass(b) != class || decodedClass(t, b) != class {
					t.Fatalf("inner %#x, outer %#x: class %#x, gopacket reads %#x, want %#x", inner, outer, trafficClass(b), decodedClass(t, b), class)
				}
			}
		}
	}
}

func decodedClass(t testing.TB, b []byte) uint8 {
	t.Helper()
	if b[0]>>4 == 4 {
		p := gopacket.NewPacket(b, layers.LayerTypeIPv4, gopacket.NoCopy)
		return p.Layer(layers.LayerTypeIPv4).(*layers.IPv4).TOS
	}
	p := gopacket.NewPacket(b, layers.LayerTypeIPv6, gopacket.NoCopy)
	return p.Layer(layers.LayerTypeIPv6).(*layers.IPv6).TrafficClass
}

// TestOuterClass: a datagram gets the class of its packet, packets of another class
// are no part of its message, and a receiver's class comes in.
func TestOuterClass(t *testing.T) {
	c := &gsoConn{}
	l := txLoopOf(stubEngine(t, nil), [sockCount]batchConn{sock4: c}, [sockCount]offloads{sock4: {gso: true}})
	classes := []uint8{0, 0, 0xb8, 0xb8, 0xb8, 2, 0}
	var pkts []tunnel.Packet
	for _, class := range classes {
		pkts = append(pkts, tunnel.Packet{Data: withClass(t, "100.96.1.9", "100.96.2.1", class)})
	}
	l.batch(pkts...)
	if err := l.queues[sock4][0].flush(); err != nil {
		t.Fatal(err)
	}
	if want := []int{2, 3, 1, 1}; !slices.Equal(c.messages, want) {
		t.Errorf("messages of %v datagrams, want %v", c.messages, want)
	}
	if want := []uint8{0, 0xb8, 2, 0}; !slices.Equal(c.classes, want) {
		t.Errorf("classes %v, want %v", c.classes, want)
	}
}

// TestRxECN: what was marked on the way comes out marked, or not at all.
func TestRxECN(t *testing.T) {
	e := stubEngine(t, nil)
	l := newRxLoop(e, sock{}, queueOf(e))
	for _, inner := range []uint8{0, 2} {
		m := received("192.0.2.2:1", frame(encap.IPv4, withClass(t, "100.96.2.1", "100.96.1.9", inner)))
		m.class = ecnCE
		l.take(e.Table(), m)
	}
	pkts := l.join.Packets()
	if len(pkts) != 1 || trafficClass(pkts[0].Data) != ecnCE {
		t.Errorf("%d packets came out", len(pkts))
	}
	if n := e.Drops().Count(RxECN); n != 1 {
		t.Errorf("rx_ecn = %d, want 1", n)
	}
}

// TestConnClass: the kernel sends and tells traffic classes, of single datagrams and
// of those that it cuts and joins.
func TestConnClass(t *testing.T) {
	for _, host := range []string{"127.0.0.1", "::1"} {
		t.Run(host, func(t *testing.T) {
			from, to := listen(t, host), listen(t, host)
			is6 := addr(host).Is6()
			tx, _ := taken(t, from, is6, 8, true)
			rx, _ := taken(t, to, is6, 8, true)
			var want, got []string
			for _, class := range []uint8{0, 1, 2, 3, 0xb8, 0xff} {
				ms := []datagram{
					{bufs: [][]byte{make([]byte, 100)}, addr: bound(to), class: class},
					{bufs: [][]byte{make([]byte, 2500)}, addr: bound(to), segment: 1000, class: class},
				}
				if n, err := tx.writeBatch(ms); n != 2 || err != nil {
					t.Fatalf("sent %d: %v", n, err)
				}
				want = append(want, fmt.Sprint(100, 0, class), fmt.Sprint(2500, 1000, class))
			}
			for len(got) < len(want) {
				in := make([]datagram, 8)
				for i := range in {
					in[i] = datagram{bufs: [][]byte{make([]byte, maxDatagram)}, class: 77}
				}
				n, err := rx.readBatch(in)
				if err != nil {
					t.Fatal(err)
				}
				for _, m := range in[:n] {
					got = append(got, fmt.Sprint(m.n, m.segment, m.class))
				}
			}
			if !slices.Equal(got, want) {
				t.Errorf("size, segment and class:\n%v, want\n%v", got, want)
			}
		})
	}
}
