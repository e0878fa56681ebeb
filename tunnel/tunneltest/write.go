package tunneltest

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"github.com/overlayd/overlayd/tunnel"
)

func testWriteNothing(t *testing.T, e *ends) {
	if n, err := e.dev.Write(nil); n != 0 || err != nil {
		t.Errorf("Write(nil) = %d, %v; want 0, nil", n, err)
	}
}

// Write hands packets over in order.
func testWriteOrder(t *testing.T, e *ends) {
	const n = 32
	var pkts []tunnel.Packet
	for id := range n {
		pkts = append(pkts, tunnel.Packet{Data: packet(uint32(id), 100+id)})
	}
	e.write(t, pkts[:1])
	e.write(t, pkts[1:n-3])
	e.write(t, pkts[n-3:])
	for id := range n {
		wantPacket(t, "packet received", e.receiveOwn(t), packet(uint32(id), 100+id))
	}
}

func testWriteSizes(t *testing.T, e *ends) {
	size := e.dev.Features().MaxPacket
	for id, n := range []int{min4, min6, 61, 81, 576, 1280, size - 1, size - 1, size, size} {
		want := packet(uint32(id), n)
		e.write(t, []tunnel.Packet{{Data: bytes.Clone(want)}})
		wantPacket(t, "packet received", e.receiveOwn(t), want)
	}
}

// A packet's bytes are Data followed by each of Frags.
func testWriteFrags(t *testing.T, e *ends) {
	for id := range uint32(2) {
		want := packet(id, 1000)
		for _, cuts := range [][]int{
			{1000, 1000},           // an empty one
			{60, 1000},             // one
			{60, 60, 61, 61, 1000}, // odd and empty ones
			{48, 100, 200, 300, 400, 500, 600, 700, 800, 900, 1000}, // many
		} {
			p := tunnel.Packet{Data: bytes.Clone(want[:cuts[0]])}
			for i := 1; i < len(cuts); i++ {
				p.Frags = append(p.Frags, bytes.Clone(want[cuts[i-1]:cuts[i]]))
			}
			// An ordinary packet behind it must not see its pieces.
			next := packet(id+2, 200)
			e.write(t, []tunnel.Packet{p, {Data: next}})
			wantPacket(t, "packet in pieces", e.receiveOwn(t), want)
			wantPacket(t, "packet behind it", e.receiveOwn(t), next)
		}
	}
}

// Write does not keep or change packets.
func testWriteKeepsNothing(t *testing.T, e *ends) {
	var want [][]byte
	var pkts []tunnel.Packet
	for id := range uint32(4) {
		p := packet(id, 500)
		want = append(want, p)
		c := bytes.Clone(p)
		pkts = append(pkts, tunnel.Packet{Data: c[:100:100], Frags: [][]byte{c[100:300:300], c[300:]}})
	}
	before := slices.Clone(pkts)
	e.write(t, pkts)
	for i, p := range pkts {
		b := before[i]
		if len(p.Data) != 100 || &p.Data[0] != &b.Data[0] || len(p.Frags) != 2 ||
			len(p.Frags[0]) != 200 || len(p.Frags[1]) != 200 || p.Offload != b.Offload {
			t.Fatalf("Write changed packet %d", i)
		}
		wantPacket(t, "packet after Write", slices.Concat(p.Data, p.Frags[0], p.Frags[1]), want[i])
		clear(p.Data)
		clear(p.Frags[0])
		clear(p.Frags[1])
		clear(p.Frags)
	}
	for i := range want {
		wantPacket(t, "packet received", e.receiveOwn(t), want[i])
	}
}

// refuse writes a good packet, a bad one and a good one: Write must stop at the
// bad one, and go on behind it.
func (e *ends) refuse(t *testing.T, what string, bad tunnel.Packet, kind error) {
	t.Helper()
	first, last := packet(0, 100), packet(1, 100)
	pkts := []tunnel.Packet{{Data: first}, bad, {Data: last}}
	n, err := e.dev.Write(pkts)
	if n != 1 || err == nil {
		t.Fatalf("%s: Write = %d, %v; want 1 and an error", what, n, err)
	}
	if !errors.Is(err, kind) {
		t.Errorf("%s: Write: %v; want %v", what, err, kind)
	}
	e.write(t, pkts[n+1:])
	wantPacket(t, what+": packet before", e.receiveOwn(t), first)
	wantPacket(t, what+": packet behind", e.receiveOwn(t), last)
}

// What a device does not support it refuses, so that no packet leaves it with
// a checksum or a length that is wrong.
func testWriteRefusesOffload(t *testing.T, e *ends) {
	f := e.dev.Features()
	for _, c := range []struct {
		name string
		o    tunnel.Offload
	}{
		{"unknown GSO", tunnel.Offload{GSO: 99, SegmentSize: 100}},
		{"TCP4", tunnel.Offload{GSO: tunnel.GSOTCP4, SegmentSize: 100}},
		{"TCP6", tunnel.Offload{GSO: tunnel.GSOTCP6, SegmentSize: 100}},
		{"UDP", tunnel.Offload{GSO: tunnel.GSOUDP, SegmentSize: 100}},
		{"no segment size", tunnel.Offload{GSO: tunnel.GSOUDP}},
		{"segment size alone", tunnel.Offload{SegmentSize: 100}},
		{"checksum", tunnel.Offload{NeedsChecksum: true, ChecksumStart: 40, ChecksumOffset: 6}},
	} {
		if !f.Supports(c.o) {
			e.refuse(t, c.name, tunnel.Packet{Data: packet(3, 1000), Offload: c.o}, tunnel.ErrOffload)
		}
	}
}

func testWriteRefusesGarbage(t *testing.T, e *ends) {
	version := func(v byte) []byte {
		p := packet(2, 100)
		p[0] = v<<4 | p[0]&0xf
		return p
	}
	for _, c := range []struct {
		name string
		p    tunnel.Packet
	}{
		{"nothing", tunnel.Packet{}},
		{"nothing in Data", tunnel.Packet{Frags: [][]byte{packet(2, 100)}}},
		{"version 0", tunnel.Packet{Data: version(0)}},
		{"version 5", tunnel.Packet{Data: version(5)}},
		{"version 15", tunnel.Packet{Data: version(15)}},
		{"longer than IP", tunnel.Packet{Data: packet(2, 100), Frags: [][]byte{make([]byte, 65536-100)}}},
	} {
		e.refuse(t, c.name, c.p, tunnel.ErrPacket)
	}
}
