package forward

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/overlayd/overlayd/encap"
	"github.com/overlayd/overlayd/tunnel"
)

// listen binds a UDP socket to a loopback address.
func listen(t testing.TB, a string) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr(a), 0)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func bound(c *net.UDPConn) netip.AddrPort {
	a := c.LocalAddr().(*net.UDPAddr).AddrPort()
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// run starts e and stops it at the end of the test, or when stop is called,
// which returns what Run returned.
func run(t testing.TB, e *Engine) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	var once sync.Once
	var err error
	stop = func() error {
		once.Do(func() { cancel(); err = <-done })
		return err
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	return stop
}

func deadline(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// side is one of two nodes on loopback sockets.
type side struct {
	dev    *tunnel.Memory
	conns  []*net.UDPConn
	engine *Engine
	cfg    TableConfig
	peer   *Peer // the other side
}

// newSides makes two nodes, 1 and 2, whose engines are not running yet. Their
// overlay networks are as in testTableConfig; they reach each other over
// outer4 or outer6.
func newSides(t *testing.T, codec encap.Codec, over6 bool, control [2]func([]byte, netip.AddrPort)) [2]*side {
	t.Helper()
	var s [2]*side
	for i := range s {
		s[i] = &side{
			dev:   tunnel.NewMemory(tunnel.MemoryConfig{Name: fmt.Sprint("node", i+1), Queue: 1024}),
			conns: []*net.UDPConn{listen(t, fmt.Sprintf("127.0.0.%d", i+1)), listen(t, "::1")},
		}
		for _, c := range s[i].conns {
			// Room for all that the tests have under way at once.
			if err := c.SetReadBuffer(1 << 20); err != nil {
				t.Fatal(err)
			}
		}
		var err error
		s[i].engine, err = New(Config{Device: s[i].dev, Codec: codec, Conns: s[i].conns, Control: control[i], MTU: 1400})
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := range s {
		me, other := i+1, 2-i
		far := s[1-i].conns[0]
		if over6 {
			far = s[1-i].conns[1]
		}
		s[i].peer = &Peer{
			ID: [16]byte{byte(other)}, Name: fmt.Sprint("node", other), Usable: true,
			Prefixes: prefixes(fmt.Sprintf("100.96.%d.0/24", other), fmt.Sprintf("fd96:0:0:%d::/64", other)),
			Endpoint: bound(far), Sources: []netip.Addr{bound(far).Addr()}, Counters: new(PeerCounters),
		}
		s[i].cfg = TableConfig{
			Networks: prefixes("100.96.0.0/16", "fd96::/48"),
			Own:      prefixes(fmt.Sprintf("100.96.%d.0/24", me), fmt.Sprintf("fd96:0:0:%d::/64", me)),
			OwnAddrs: addrs(fmt.Sprintf("100.96.%d.0", me), fmt.Sprintf("fd96:0:0:%d::", me)),
			Peers:    []*Peer{s[i].peer},
		}
		s[i].engine.SetTable(mustTable(t, s[i].cfg))
	}
	return s
}

// TestEnginesCarry sends 100,000 packets of random sizes, both inner families
// mixed, both ways at once, while the tables are swapped all the time, and
// compares every byte and the order.
func TestEnginesCarry(t *testing.T) {
	perRun := 25000 // packets each way; two ways, two runs
	if testing.Short() {
		perRun = 2000
	}
	for _, tt := range []struct {
		name  string
		codec encap.Codec
		over6 bool
	}{
		{"udp over IPv4", encap.UDP{}, false},
		{"framed over IPv6", testCodec{}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSides(t, tt.codec, tt.over6, [2]func([]byte, netip.AddrPort){})
			stops := [2]func() error{run(t, s[0].engine), run(t, s[1].engine)}

			ctx, cancel := context.WithCancel(deadline(t))
			defer cancel()
			var traffic, swapping sync.WaitGroup
			for i := range s {
				traffic.Go(func() { carry(ctx, t, cancel, s[i].dev, s[1-i].dev, i+1, 2-i, perRun) })
			}
			swapped := make(chan struct{})
			for i := range s {
				swapping.Go(func() {
					tick := time.NewTicker(time.Millisecond)
					defer tick.Stop()
					for {
						select {
						case <-swapped:
							return
						case <-tick.C:
							s[i].engine.SetTable(mustTable(t, s[i].cfg))
						}
					}
				})
			}
			traffic.Wait()
			close(swapped)
			swapping.Wait()
			for i := range s {
				if err := stops[i](); err != nil {
					t.Errorf("Run of node %d: %v", i+1, err)
				}
				tx, rx := s[i].peer.Counters, s[1-i].peer.Counters
				if n := tx.TxPackets.Load(); n != uint64(perRun) {
					t.Errorf("node %d sent %d packets, want %d", i+1, n, perRun)
				}
				if n := rx.RxPackets.Load(); n != uint64(perRun) || rx.RxBytes.Load() != tx.TxBytes.Load() {
					t.Errorf("node %d got %d packets, want %d; %d bytes of %d", 2-i, n, perRun, rx.RxBytes.Load(), tx.TxBytes.Load())
				}
				for name, n := range s[i].engine.Drops().Snapshot() {
					if n != 0 {
						t.Errorf("node %d: %s = %d", i+1, name, n)
					}
				}
			}
		})
	}
}

// carry sends n packets from one device and checks them at the other. No more
// than a window is under way, so that no queue on the way is full.
func carry(ctx context.Context, t *testing.T, cancel func(), from, to *tunnel.Memory, src, dst, n int) {
	window := make(chan struct{}, 200)
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range n {
			select {
			case window <- struct{}{}:
			case <-ctx.Done():
				return
			}
			if err := from.InjectPacket(ctx, tunnel.Packet{Data: numbered(src, dst, i)}); err != nil {
				t.Errorf("packet %d of node %d: %v", i, src, err)
				cancel()
				return
			}
		}
	})
	buf := make([]byte, 2000)
	for i := range n {
		k, err := to.Receive(ctx, buf)
		if err != nil {
			t.Errorf("packet %d of node %d did not come: %v", i, src, err)
			break
		}
		if !bytes.Equal(buf[:k], numbered(src, dst, i)) {
			t.Errorf("packet %d of node %d differs: %x", i, src, buf[:k])
			break
		}
		<-window
	}
	if t.Failed() {
		cancel()
	}
	wg.Wait()
}

// numbered makes packet i of a stream: of random family, size and content,
// which follow from i alone.
func numbered(src, dst, i int) []byte {
	r := rand.New(rand.NewPCG(uint64(i), uint64(src)))
	n := 48 + r.IntN(1400-48+1)
	var p []byte
	head := ipv4HeaderLen
	if r.IntN(2) == 0 {
		p = innerFrom(fmt.Sprintf("100.96.%d.9", src), fmt.Sprintf("100.96.%d.9", dst), n)
	} else {
		p = innerFrom(fmt.Sprintf("fd96:0:0:%d::9", src), fmt.Sprintf("fd96:0:0:%d::9", dst), n)
		head = ipv6HeaderLen
	}
	binary.BigEndian.PutUint64(p[head:], uint64(i))
	for j := head + 8; j < n; j++ {
		p[j] = byte(r.Uint32())
	}
	return p
}

// TestEngineDropsFromNetwork sends what nobody should send over real sockets. A
// good packet behind the bad ones, on the same socket, tells that they have all
// been seen.
func TestEngineDropsFromNetwork(t *testing.T) {
	for _, over6 := range []bool{false, true} {
		t.Run(fmt.Sprintf("over6=%v", over6), func(t *testing.T) {
			dev := tunnel.NewMemory(tunnel.MemoryConfig{})
			conns := []*net.UDPConn{listen(t, "127.0.0.1"), listen(t, "::1")}
			e, err := New(Config{Device: dev, Codec: encap.UDP{}, Conns: conns, MTU: 1400})
			if err != nil {
				t.Fatal(err)
			}
			// Node 2 and 3 share an address; a stranger has another one.
			target, shared, stranger := bound(conns[0]), "127.0.0.2", "127.0.0.9"
			if over6 {
				target, shared, stranger = bound(conns[1]), "::1", ""
			}
			sender := listen(t, shared)
			cfg := testTableConfig()
			cfg.AllowSource = prefixes("198.51.100.0/24", "100.96.0.0/12")
			cfg.Peers = nil
			for n := 2; n <= 3; n++ {
				cfg.Peers = append(cfg.Peers, &Peer{
					Name: fmt.Sprint("node", n), Usable: true, Counters: new(PeerCounters),
					Prefixes: prefixes(fmt.Sprintf("100.96.%d.0/24", n), fmt.Sprintf("fd96:0:0:%d::/64", n)),
					Sources:  addrs(shared),
				})
			}
			cfg.Peers = append(cfg.Peers, &Peer{
				Name: "node4", Counters: new(PeerCounters), Prefixes: prefixes("100.96.4.0/24"), Sources: addrs("192.0.2.4"),
			})
			table := mustTable(t, cfg)
			e.SetTable(table)
			run(t, e)
			ctx := deadline(t)

			send := func(c *net.UDPConn, b []byte) {
				t.Helper()
				if _, err := c.WriteToUDPAddrPort(b, target); err != nil {
					t.Fatal(err)
				}
			}
			buf := make([]byte, 2000)
			expect := func(want []byte) {
				t.Helper()
				n, err := dev.Receive(ctx, buf)
				if err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(buf[:n], want) {
					t.Fatalf("delivered %x, want %x", buf[:n], want)
				}
			}
			good := innerFrom("100.96.2.1", "100.96.1.9", 700)
			want := e.Drops().Snapshot()
			count := func(r Reason, bs ...[]byte) {
				for _, b := range bs {
					send(sender, b)
					want[r.String()]++
				}
			}
			count(RxMalformedFrame, nil, []byte{0}, []byte("GET / HTTP/1.1\r\n"), good[:19], bytes.Repeat([]byte{0xff}, 900))
			count(RxMalformed, good[:20], good[:699], append(bytes.Clone(good), 0), innerFrom("fd96:0:0:2::1", "fd96:0:0:1::9", 60)[:59])
			count(RxOversized, innerFrom("100.96.2.1", "100.96.1.9", 1465), innerFrom("100.96.2.1", "100.96.1.9", 9000), innerFrom("100.96.2.1", "100.96.1.9", 60000))
			count(RxMulticast, innerFrom("100.96.2.1", "224.0.0.1", 40), innerFrom("fd96:0:0:2::1", "ff02::1", 60))
			count(RxMartian, innerFrom("127.0.0.1", "100.96.1.9", 40), innerFrom("fe80::1", "fd96:0:0:1::9", 60))
			count(RxSpoofedSource,
				innerFrom("100.96.1.1", "100.96.1.9", 40), // ours
				innerFrom("100.96.4.1", "100.96.1.9", 40), // another peer's, who is elsewhere
				innerFrom("100.96.9.1", "100.96.1.9", 40), // nobody's, though allowed by prefix
				innerFrom("203.0.113.1", "100.96.1.9", 40))
			count(RxWrongDestination,
				innerFrom("100.96.2.1", "100.96.3.9", 40), innerFrom("100.96.2.1", "203.0.113.1", 40),
				innerFrom("fd96:0:0:3::1", "fd96:0:0:77::1", 60))
			send(sender, good)
			expect(good)
			for _, ok := range [][]byte{
				innerFrom("100.96.3.1", "100.96.1.9", 1400), innerFrom("fd96:0:0:2::1", "fd96:0:0:1::9", 1400),
				innerFrom("198.51.100.1", "100.96.1.9", 40),
				// Longer than our MTU, but it fits: the next hop may say so.
				innerFrom("100.96.2.1", "100.96.1.9", 1464),
			} {
				send(sender, ok)
				expect(ok)
			}
			if stranger == "" {
				// There is one loopback address only: make it a stranger's.
				cfg.Peers = cfg.Peers[2:]
				e.SetTable(mustTable(t, cfg))
				for range 3 {
					send(sender, good)
				}
				waitFor(t, func() bool { return e.Drops().Count(RxUnknownSource) == 3 })
				e.SetTable(table)
			} else {
				other := listen(t, stranger)
				for range 3 {
					send(other, good)
				}
				waitFor(t, func() bool { return e.Drops().Count(RxUnknownSource) == 3 })
			}
			want["rx_unknown_source"] = 3
			send(sender, good)
			expect(good)
			if diff := cmp.Diff(want, e.Drops().Snapshot()); diff != "" {
				t.Errorf("drops (-want +got):\n%s", diff)
			}
			if n := table.Peers()[0].Counters.RxPackets.Load(); n < 4 {
				t.Errorf("node2 has %d packets", n)
			}
			if n := table.Peers()[1].Counters.RxPackets.Load(); n != 1 {
				t.Errorf("node3 has %d packets, want 1", n)
			}
		})
	}
}

// waitFor polls a condition, with a deadline.
func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	late := time.After(30 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatal("the condition did not come true within 30 s")
		}
	}
}

// TestEngineAnswers: ICMP errors come back out of the device, more of them than
// may wait at once.
func TestEngineAnswers(t *testing.T) {
	s := newSides(t, encap.UDP{}, false, [2]func([]byte, netip.AddrPort){})
	run(t, s[0].engine)
	ctx := deadline(t)
	buf := make([]byte, 2000)
	pkts := [][]byte{
		innerFrom("100.96.1.9", "100.96.77.1", 100), innerFrom("fd96:0:0:1::9", "fd96:0:0:77::1", 100),
		innerFrom("100.96.1.9", "100.96.2.1", 1401), innerFrom("fd96:0:0:1::9", "fd96:0:0:2::1", 1401),
	}
	for i := range icmpQueueLen + 2 {
		pkts = append(pkts, innerFrom(fmt.Sprintf("100.96.1.%d", 10+i), "100.96.77.1", 100))
	}
	for _, pkt := range pkts {
		if err := s[0].dev.InjectPacket(ctx, tunnel.Packet{Data: pkt}); err != nil {
			t.Fatal(err)
		}
		n, err := s[0].dev.Receive(ctx, buf)
		if err != nil {
			t.Fatal(err)
		}
		checkICMP(t, buf[:n], pkt, len(pkt) > 1400, 1400)
	}
}
