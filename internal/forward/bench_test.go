package forward

import (
	"net/netip"
	"testing"

	"github.com/overlayd/overlayd/encap"
	"github.com/overlayd/overlayd/tunnel"
)

// bigTable has n prefixes of n peers, half of them IPv6, and returns an address
// of each. Every peer has an outer address of its own.
func bigTable(t testing.TB, n int) (*Table, []netip.Addr) {
	t.Helper()
	cfg := TableConfig{
		Networks: prefixes("10.0.0.0/8", "fd96::/16"),
		Own:      prefixes("10.255.255.0/24", "fd96:ffff::/64"),
	}
	var dsts []netip.Addr
	for i := range n {
		hi, lo := byte(i>>8), byte(i)
		a := netip.AddrFrom4([4]byte{10, hi, lo, 7})
		bits := 24
		if i%2 == 1 {
			a, bits = netip.AddrFrom16([16]byte{0xfd, 0x96, hi, lo, 15: 7}), 64
		}
		p, err := a.Prefix(bits)
		if err != nil {
			t.Fatal(err)
		}
		outer := netip.AddrFrom4([4]byte{192, 168, hi, lo})
		cfg.Peers = append(cfg.Peers, &Peer{
			Usable: true, Prefixes: []netip.Prefix{p}, Endpoint: netip.AddrPortFrom(outer, 8285),
			Sources: []netip.Addr{outer}, Counters: new(PeerCounters),
		})
		dsts = append(dsts, a)
	}
	// Neighbours in the table are not neighbours in time.
	for i := range dsts {
		j := i * 7919 % len(dsts)
		dsts[i], dsts[j] = dsts[j], dsts[i]
		cfg.Peers[i], cfg.Peers[j] = cfg.Peers[j], cfg.Peers[i]
	}
	return mustTable(t, cfg), dsts
}

// TestDecisionsDoNotAllocate: with warm and with cold caches, for what passes
// and for what is dropped.
func TestDecisionsDoNotAllocate(t *testing.T) {
	e := stubEngine(t, nil)
	for _, table := range []*Table{e.Table(), mustTable(t, testTableConfig())} {
		e.SetTable(table)
		tx := txLoopOf(e, [sockCount]batchConn{&scriptConn{}, &scriptConn{}}, [sockCount]offloads{})
		rx := newRxLoop(e, sock{}, queueOf(e))
		for _, dst := range []string{
			"100.96.2.1", "fd96:0:0:2::1", "100.96.1.1", "100.96.77.1", "203.0.113.1", "100.96.5.1", "224.0.0.1",
		} {
			src := "100.96.1.9"
			if addr(dst).Is6() {
				src = "fd96:0:0:1::9"
			}
			pkt := tunnel.Packet{Data: innerFrom(src, dst, 1400)}
			if n := testing.AllocsPerRun(100, func() {
				tx.cache = routeCache{}
				tx.decide(table, &pkt)
				tx.decide(table, &pkt)
			}); n != 0 {
				t.Errorf("to %s: %v allocations", dst, n)
			}
		}
		for _, b := range [][]byte{
			innerFrom("100.96.2.1", "100.96.1.9", 1400), innerFrom("fd96:0:0:2::1", "fd96:0:0:1::9", 1400),
			innerFrom("192.0.2.2", "100.96.1.9", 1400), innerFrom("198.51.100.1", "100.96.1.9", 1400),
			innerFrom("100.96.3.1", "100.96.1.9", 1400), innerFrom("100.96.2.1", "100.96.3.1", 1400),
		} {
			k := encap.IPv4
			if b[0]>>4 == 6 {
				k = encap.IPv6
			}
			for _, from := range []string{"192.0.2.2:1", "[2001:db8::2]:1", "192.0.2.99:1"} {
				m := received(from, frame(k, b))
				if n := testing.AllocsPerRun(100, func() {
					rx.cache = acceptCache{}
					rx.decide(table, m.addr.Addr(), m.bufs[0], false)
					rx.decide(table, m.addr.Addr(), m.bufs[0], false)
				}); n != 0 {
					t.Errorf("%x from %s: %v allocations", b[:40], from, n)
				}
			}
		}
	}
}

// countConn takes everything and keeps nothing.
type countConn struct {
	batchConn
	n int
}

func (c *countConn) readBatch([]datagram) (int, error) { panic("not read by this test") }
func (c *countConn) writeBatch(ms []datagram) (int, error) {
	c.n += len(ms)
	return len(ms), nil
}

// TestBatchesDoNotAllocate: neither does what surrounds the decisions.
func TestBatchesDoNotAllocate(t *testing.T) {
	e := stubEngine(t, nil)
	var c countConn
	tx, rx := txLoopOf(e, [sockCount]batchConn{&c, nil}, [sockCount]offloads{}), newRxLoop(e, sock{}, queueOf(e))
	pkt := tunnel.Packet{Data: innerFrom("100.96.1.9", "100.96.2.1", 1400)}
	m := received("192.0.2.2:1", frame(encap.IPv4, innerFrom("100.96.2.1", "100.96.1.9", 1400)))
	table := e.Table()
	if n := testing.AllocsPerRun(100, func() {
		tx.begin()
		for i := range tx.pkts {
			tx.pkts[i] = pkt
			tx.take(table, i)
		}
		if err := tx.queues[sock4][0].flush(); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("tx batch: %v allocations", n)
	}
	if n := testing.AllocsPerRun(100, func() {
		for range 16 {
			rx.take(table, m)
		}
		if err := rx.deliver(); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("rx batch: %v allocations", n)
	}
	if c.n == 0 || table.Peers()[0].Counters.RxPackets.Load() == 0 {
		t.Error("nothing was sent or delivered")
	}
}

func BenchmarkRoute(b *testing.B) {
	t, dsts := bigTable(b, 10000)
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		if _, v := t.Route(dsts[i]); v != ToPeer {
			b.Fatal(v)
		}
		if i++; i == len(dsts) {
			i = 0
		}
	}
}

func BenchmarkNewTable(b *testing.B) {
	t, _ := bigTable(b, 10000)
	cfg := TableConfig{Networks: prefixes("10.0.0.0/8", "fd96::/16"), Peers: t.Peers()}
	for b.Loop() {
		if _, err := NewTable(cfg); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkTxDecide(b *testing.B) {
	t, dsts := bigTable(b, 10000)
	e := stubEngine(b, nil)
	l := txLoopOf(e, [sockCount]batchConn{&countConn{}, nil}, [sockCount]offloads{})
	pkts := make([]tunnel.Packet, len(dsts))
	for i, d := range dsts {
		src := addr("10.255.255.1")
		if d.Is6() {
			src = addr("fd96:ffff::1")
		}
		pkts[i] = tunnel.Packet{Data: inner(src, d, 60)}
	}
	for _, bb := range []struct {
		name  string
		flows int
	}{{"one flow", 1}, {"10000 flows", len(pkts)}} {
		b.Run(bb.name, func(b *testing.B) {
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				if _, _, r := l.decide(t, &pkts[i]); r != None {
					b.Fatal(r)
				}
				if i++; i == bb.flows {
					i = 0
				}
			}
		})
	}
}

func BenchmarkRxDecide(b *testing.B) {
	t, srcs := bigTable(b, 10000)
	e := stubEngine(b, nil)
	e.codec = encap.UDP{}
	l := newRxLoop(e, sock{}, queueOf(e))
	ms := make([]datagram, len(srcs))
	for i, s := range srcs {
		dst := addr("10.255.255.1")
		if s.Is6() {
			dst = addr("fd96:ffff::1")
		}
		p, _ := t.Route(s)
		pkt := inner(s, dst, 60)
		ms[i] = datagram{bufs: [][]byte{pkt}, n: len(pkt), addr: p.Endpoint}
	}
	for _, bb := range []struct {
		name  string
		flows int
	}{{"one flow", 1}, {"10000 flows", len(ms)}} {
		b.Run(bb.name, func(b *testing.B) {
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				if _, _, _, r := l.decide(t, ms[i].addr.Addr(), ms[i].bufs[0], false); r != None {
					b.Fatal(r)
				}
				if i++; i == bb.flows {
					i = 0
				}
			}
		})
	}
}
