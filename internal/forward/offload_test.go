package forward

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/overlayd/overlayd/encap"
	"github.com/overlayd/overlayd/tunnel"
)

// tcpPacket makes a TCP packet with right checksums and n bytes of payload.
func tcpPacket(src, dst string, seq uint32, n int) []byte {
	s, d := addr(src), addr(dst)
	tcp := &layers.TCP{SrcPort: 1000, DstPort: 80, Seq: seq, Ack: 7, ACK: true, Window: 500}
	var network gopacket.NetworkLayer
	ip4 := &layers.IPv4{Version: 4, TTL: 64, Flags: layers.IPv4DontFragment, Protocol: layers.IPProtocolTCP, SrcIP: s.AsSlice(), DstIP: d.AsSlice()}
	ip6 := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolTCP, SrcIP: s.AsSlice(), DstIP: d.AsSlice()}
	ls := []gopacket.SerializableLayer{ip4}
	network = ip4
	if s.Is6() {
		ls, network = []gopacket.SerializableLayer{ip6}, ip6
	}
	tcp.SetNetworkLayerForChecksum(network)
	payload := make([]byte, n)
	for i := range payload {
		payload[i] = byte(int(seq) + i*7)
	}
	buf := gopacket.NewSerializeBuffer()
	err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, append(ls, tcp, gopacket.Payload(payload))...)
	if err != nil {
		panic(err)
	}
	return bytes.Clone(buf.Bytes())
}

// superpacket is a TCP packet with n bytes of payload that stands for segments.
func superpacket(src, dst string, n, segment int) tunnel.Packet {
	g := tunnel.GSOTCP4
	if addr(src).Is6() {
		g = tunnel.GSOTCP6
	}
	return tunnel.Packet{Data: tcpPacket(src, dst, 1, n), Offload: tunnel.Offload{GSO: g, SegmentSize: uint16(segment), NeedsChecksum: true}}
}

// gsoConn records messages as the kernel would cut them.
type gsoConn struct {
	classes []uint8
	scriptConn
	messages []int    // how many datagrams each was
	longest  int      // bytes of one message
	whole    [][]byte // the datagrams
}

func (c *gsoConn) writeBatch(ms []datagram) (int, error) {
	n, err := c.scriptConn.writeBatch(ms)
	for _, m := range ms[:n] {
		b := bytes.Join(m.bufs, nil)
		c.longest = max(c.longest, len(b))
		c.classes = append(c.classes, m.class)
		c.messages = append(c.messages, 0)
		for first := true; first || len(b) > 0; first = false {
			one := b
			if m.segment > 0 {
				one = b[:min(m.segment, len(b))]
			}
			c.whole, b = append(c.whole, one), b[len(one):]
			c.messages[len(c.messages)-1]++
		}
	}
	return n, err
}

// TestTxSuperpacket: a superpacket becomes messages that the kernel cuts, within
// the limits of one message; where it cannot, datagrams.
func TestTxSuperpacket(t *testing.T) {
	big := superpacket("100.96.1.9", "100.96.2.1", 64000, 1300)
	small := innerFrom("100.96.1.9", "100.96.2.1", 60)
	other := innerFrom("100.96.1.9", "100.96.4.1", 60)
	var cut tunnel.Segmenter
	segs, err := cut.Cut(&big)
	if err != nil {
		t.Fatal(err)
	}
	var want [][]byte
	header := func(n byte) []byte { return []byte{0xee, byte(encap.IPv4), 2, 0, 0, 0, 0, n} }
	for _, s := range segs {
		want = append(want, slices.Concat(header(2), s.Header, s.Payload))
	}
	want = append(want, append(header(2), small...), append(header(4), other...), append(header(4), other...), append(header(2), small...))

	for _, tt := range []struct {
		name     string
		off      offloads
		script   []sendStep
		messages []int // datagrams of each
		lost     []int // of want
		still    bool  // the queue goes on with segments
	}{
		{"cut by the kernel", offloads{gso: true}, nil, []int{47, 3, 1, 2, 1}, nil, true},
		{"without offload", offloads{}, nil, slices.Repeat([]int{1}, len(want)), nil, false},
		{"refused with EIO", offloads{gso: true}, []sendStep{{1, nil}, {0, sendErr(syscall.EIO)}}, append([]int{47}, slices.Repeat([]int{1}, 7)...), nil, false},
		{"refused with EINVAL", offloads{gso: true}, []sendStep{{0, sendErr(syscall.EINVAL)}}, slices.Repeat([]int{1}, len(want)), nil, false},
		{"too big for the path", offloads{gso: true}, always(syscall.EMSGSIZE), []int{3, 1, 2, 1}, seq(47), true},
		{"no buffers", offloads{gso: true}, []sendStep{{2, nil}, {0, sendErr(syscall.ENOBUFS)}}, []int{47, 3, 2, 1}, []int{50}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := &gsoConn{scriptConn: scriptConn{script: tt.script}}
			l := txLoopOf(stubEngine(t, nil), [sockCount]batchConn{sock4: c}, [sockCount]offloads{sock4: tt.off})
			l.batch(big, tunnel.Packet{Data: small}, tunnel.Packet{Data: other}, tunnel.Packet{Data: other}, tunnel.Packet{Data: small})
			if err := l.queues[sock4][0].flush(); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(c.messages, tt.messages) || c.longest > maxMessage {
				t.Errorf("messages of %v datagrams, want %v; the longest has %d bytes", c.messages, tt.messages, c.longest)
			}
			var left [][]byte
			for i, w := range want {
				if !slices.Contains(tt.lost, i) {
					left = append(left, w)
				}
			}
			if !slices.EqualFunc(c.whole, left, bytes.Equal) {
				t.Errorf("%d datagrams, want %d, or other ones", len(c.whole), len(left))
			}
			counted := uint64(0)
			for _, p := range l.e.Table().Peers() {
				counted += p.Counters.TxPackets.Load()
			}
			if counted != uint64(len(left)) {
				t.Errorf("%d packets counted", counted)
			}
			if dropped := l.e.Drops().Count(TxSocketTooBig) + l.e.Drops().Count(TxSocketNoBuffers); dropped != uint64(len(tt.lost)) {
				t.Errorf("%d drops counted, want %d", dropped, len(tt.lost))
			}
			if l.queues[sock4][0].gso != tt.still {
				t.Errorf("goes on with segments: %v", l.queues[sock4][0].gso)
			}
		})
	}
}

func seq(n int) (out []int) {
	for i := range n {
		out = append(out, i)
	}
	return out
}

// TestRxJoined: what the kernel has joined is taken apart, each datagram is
// judged on its own, and what continues a flow goes to the device as one.
func TestRxJoined(t *testing.T) {
	var shape []string
	e := newEngine(Config{
		Device: &stubDevice{features: tunnel.Features{ReadBatch: 16, MaxPacket: 65535, TCP4: true, TCP6: true, UDP: true, Checksum: true},
			write: func(pkts []tunnel.Packet) (int, error) {
				for _, p := range pkts {
					n := len(p.Data)
					for _, f := range p.Frags {
						n += len(f)
					}
					shape = append(shape, fmt.Sprint(p.Offload.GSO, n))
				}
				return len(pkts), nil
			}},
		Codec: testCodec{}, MTU: 1400,
	})
	e.SetTable(mustTable(t, testTableConfig()))
	var control int
	e.control = func([]byte, netip.AddrPort) { control++ }
	l := newRxLoop(e, sock{off: offloads{gro: true}}, queueOf(e))
	var joined []byte
	for i := range 10 {
		p := tcpPacket("100.96.2.1", "100.96.1.9", uint32(1+i*1000), 1000)
		switch i {
		case 3:
			p[14] = 3 // a source that is not the peer's
		case 7:
			p[len(p)-1]++ // damaged on the way
		}
		joined = append(joined, frame(encap.IPv4, p)...)
	}
	size := len(joined) / 10
	joined = append(joined, frame(encap.Control, []byte("probe"))...)
	m := received("192.0.2.2:1", joined)
	m.segment = size
	l.take(e.Table(), m)
	if err := l.deliver(); err != nil {
		t.Fatal(err)
	}
	// 0 to 2, then 4 to 6, then the damaged one, then 8 and 9.
	if want := []string{"1 3040", "1 3040", "0 1040", "1 2040"}; !slices.Equal(shape, want) {
		t.Errorf("delivered %v, want %v", shape, want)
	}
	c := e.Table().Peers()[0].Counters
	if n := e.Drops().Count(RxSpoofedSource); n != 1 || control != 1 || c.RxPackets.Load() != 9 || c.RxBytes.Load() != 9*1040 {
		t.Errorf("%d spoofed, %d control frames, %d packets of %d bytes", n, control, c.RxPackets.Load(), c.RxBytes.Load())
	}
	// One datagram that is longer than any of ours, joined or not.
	l.take(e.Table(), received("192.0.2.2:1", frame(encap.IPv4, innerFrom("100.96.2.1", "100.96.1.9", 1600))))
	if n := e.Drops().Count(RxOversized); n != 1 {
		t.Errorf("rx_oversized = %d", n)
	}
}

// taken is newConn for a test.
func taken(t *testing.T, c *net.UDPConn, is6 bool, n int, offload bool) (batchConn, offloads) {
	t.Helper()
	conn, off, err := newConn(c, is6, n, 2, offload, false, func(tooBig) {})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.close() })
	return conn, off
}

// TestConnOffload: the kernel cuts and joins, between sockets of both families.
func TestConnOffload(t *testing.T) {
	for _, host := range []string{"127.0.0.1", "::1"} {
		t.Run(host, func(t *testing.T) {
			from, to := listen(t, host), listen(t, host)
			is6 := addr(host).Is6()
			tx, offTx := taken(t, from, is6, 8, true)
			rx, offRx := taken(t, to, is6, 8, true)
			if !offTx.gso || !offRx.gro {
				t.Fatalf("offloads %+v and %+v", offTx, offRx)
			}
			payload := make([]byte, 10*1000+123)
			for i := range payload {
				payload[i] = byte(i / 100)
			}
			ms := []datagram{
				{bufs: [][]byte{[]byte("one "), []byte("datagram")}, addr: bound(to)},
				{bufs: [][]byte{payload[:500], payload[500:]}, addr: bound(to), segment: 1000},
			}
			if n, err := tx.writeBatch(ms); n != 2 || err != nil {
				t.Fatalf("sent %d: %v", n, err)
			}
			limit := time.AfterFunc(30*time.Second, func() { rx.close() })
			defer limit.Stop()
			var got []byte
			datagrams, calls := 0, 0
			for len(got) < len(payload)+12 {
				in := make([]datagram, 8)
				for i := range in {
					in[i] = datagram{bufs: [][]byte{make([]byte, maxDatagram)}, segment: 77, truncated: true}
				}
				n, err := rx.readBatch(in)
				if err != nil {
					t.Fatal(err)
				}
				for _, m := range in[:n] {
					if m.addr != bound(from) || m.truncated || m.segment != 0 && m.segment != 1000 {
						t.Errorf("%d bytes from %v, truncated %v, segment %d", m.n, m.addr, m.truncated, m.segment)
					}
					got = append(got, m.bufs[0][:m.n]...)
					datagrams++
				}
				calls++
			}
			if !bytes.Equal(got, append([]byte("one datagram"), payload...)) {
				t.Error("other bytes arrived")
			}
			if datagrams != 2 {
				t.Errorf("%d messages arrived in %d calls, want 2: the kernel has not joined them", datagrams, calls)
			}
		})
	}
}

// TestConnDoesNotAllocate: in both directions, with and without offloads.
func TestConnDoesNotAllocate(t *testing.T) {
	for _, offload := range []bool{false, true} {
		from, to := listen(t, "127.0.0.1"), listen(t, "127.0.0.1")
		tx, _ := taken(t, from, false, 8, offload)
		rx, _ := taken(t, to, false, 8, offload)
		out := []datagram{{bufs: [][]byte{make([]byte, 100), make([]byte, 100)}, addr: bound(to)}}
		in := []datagram{{bufs: [][]byte{make([]byte, maxDatagram)}}}
		if n := testing.AllocsPerRun(100, func() {
			if n, err := tx.writeBatch(out); n != 1 || err != nil {
				t.Fatal(n, err)
			}
			if n, err := rx.readBatch(in); n != 1 || err != nil || in[0].n != 200 {
				t.Fatal(n, err, in[0].n)
			}
		}); n != 0 {
			t.Errorf("offload %v: %v allocations per datagram", offload, n)
		}
	}
}

// TestConnClosed: closing wakes a reader, and is told as what it is.
func TestConnClosed(t *testing.T) {
	c := listen(t, "127.0.0.1")
	conn, _ := taken(t, c, false, 1, true)
	done := make(chan error, 1)
	go func() {
		_, err := conn.readBatch([]datagram{{bufs: [][]byte{make([]byte, 10)}}})
		done <- err
	}()
	if err := conn.close(); err != nil {
		t.Error(err)
	}
	if err := <-done; !isClosed(err) {
		t.Errorf("read: %v", err)
	}
	if _, err := conn.writeBatch([]datagram{{bufs: [][]byte{{1}}, addr: addrPort("127.0.0.1:9")}}); !isClosed(err) {
		t.Errorf("write: %v", err)
	}
	if err := conn.send([]byte{1}, addrPort("127.0.0.1:9")); !isClosed(err) {
		t.Errorf("send: %v", err)
	}
}

func isClosed(err error) bool {
	op, ok := err.(*net.OpError)
	return err != nil && (ok && op.Err == net.ErrClosed || err == net.ErrClosed)
}

// TestSocketFull: what the kernel drops since nobody reads is counted, once.
func TestSocketFull(t *testing.T) {
	from, to := listen(t, "127.0.0.1"), listen(t, "127.0.0.1")
	if err := to.SetReadBuffer(4096); err != nil {
		t.Fatal(err)
	}
	rx, _ := taken(t, to, false, 8, true)
	var d Drops
	watch := newStrangers(&d, []batchConn{rx})
	count := func() { watch.tick(func() *Table { return new(Table) }) }
	const sent = 200
	for range sent {
		if _, err := from.WriteToUDPAddrPort(make([]byte, 500), bound(to)); err != nil {
			t.Fatal(err)
		}
	}
	count()
	in := make([]datagram, 8)
	for i := range in {
		in[i] = datagram{bufs: [][]byte{make([]byte, maxDatagram)}}
	}
	n, err := rx.readBatch(in)
	if err != nil {
		t.Fatal(err)
	}
	queued := 0
	for _, m := range in[:n] {
		queued += m.n / 500
	}
	if lost := d.Count(RxSocketFull); lost == 0 || lost+uint64(queued) != sent {
		t.Errorf("%d were queued and %d counted as lost, of %d", queued, lost, sent)
	}
	before := d.Count(RxSocketFull)
	count()
	if d.Count(RxSocketFull) != before {
		t.Error("counted twice")
	}
	rx.close()
	count()
	if d.Count(RxSocketFull) != before {
		t.Error("a closed socket counts")
	}
}
