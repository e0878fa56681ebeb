package forward

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"

	"github.com/overlayd/overlayd/encap"
	"github.com/overlayd/overlayd/tunnel"
)

// frame puts the test framing around a packet or control frame.
func frame(k encap.Kind, payload []byte) []byte {
	b := make([]byte, testHeaderLen, testHeaderLen+len(payload))
	testCodec{}.PutHeader(b, k, encap.Dest{})
	return append(b, payload...)
}

func received(from string, b []byte) *datagram {
	return &datagram{bufs: [][]byte{b}, n: len(b), addr: addrPort(from)}
}

func TestRxDecide(t *testing.T) {
	const ours4, ours6, node2 = "100.96.1.9", "fd96:0:0:1::9", "192.0.2.2:41000"
	good4, good6 := innerFrom("100.96.2.1", ours4, 100), innerFrom("fd96:0:0:2::1", ours6, 100)
	for _, tt := range []struct {
		name      string
		from      string
		b         []byte
		truncated bool
		peer      string
		want      Reason
	}{
		{"packet", node2, frame(encap.IPv4, good4), false, "node2", None},
		{"packet, IPv6", node2, frame(encap.IPv6, good6), false, "node2", None},
		{"packet over IPv6", "[2001:db8::2]:1", frame(encap.IPv4, good4), false, "node2", None},
		{"control frame", node2, frame(encap.Control, []byte("hello")), false, "", None},
		{"control frame of a stranger", "192.0.2.77:1", frame(encap.Control, []byte("hello")), false, "", RxUnknownSource},
		{"truncated", node2, frame(encap.IPv4, good4), true, "", RxOversized},
		{"stranger", "192.0.2.77:8285", frame(encap.IPv4, good4), false, "", RxUnknownSource},
		{"stranger's garbage", "192.0.2.77:8285", []byte("?"), false, "", RxUnknownSource},
		{"empty", node2, nil, false, "", RxMalformedFrame},
		{"garbage", node2, []byte("garbage garbage"), false, "", RxMalformedFrame},
		{"frame without packet", node2, frame(encap.IPv4, nil), false, "", RxMalformed},
		{"cut packet", node2, frame(encap.IPv4, good4[:99]), false, "", RxMalformed},
		{"padded packet", node2, frame(encap.IPv6, append(slices.Clone(good6), 0)), false, "", RxMalformed},
		{"IPv6 announced as IPv4", node2, frame(encap.IPv4, good6), false, "", RxMalformed},
		{"IPv4 announced as IPv6", node2, frame(encap.IPv6, good4), false, "", RxMalformed},
		{"multicast", node2, frame(encap.IPv4, innerFrom("100.96.2.1", "224.0.0.1", 30)), false, "", RxMulticast},
		{"martian", node2, frame(encap.IPv6, innerFrom("::1", ours6, 40)), false, "", RxMartian},
		{"spoofed", node2, frame(encap.IPv4, innerFrom("100.96.3.1", ours4, 30)), false, "", RxSpoofedSource},
		{"not for us", node2, frame(encap.IPv4, innerFrom("100.96.2.1", "100.96.3.1", 30)), false, "", RxWrongDestination},
	} {
		l := newRxLoop(stubEngine(t, nil), sock{}, queueOf(stubEngine(t, nil)))
		m := received(tt.from, tt.b)
		m.truncated = tt.truncated
		_, payload, p, r := l.decide(l.e.Table(), m.addr.Addr(), m.bufs[0], m.truncated)
		name := ""
		if p != nil {
			name = p.Name
		}
		if name != tt.peer || r != tt.want {
			t.Errorf("%s: %q, %v; want %q, %v", tt.name, name, r, tt.peer, tt.want)
		}
		if r == None && !bytes.Equal(payload, tt.b[testHeaderLen:]) {
			t.Errorf("%s: payload %x", tt.name, payload)
		}
	}
}

// TestRxDeliver: a refused packet does not take the rest of the batch with it.
func TestRxDeliver(t *testing.T) {
	for _, tt := range []struct {
		name    string
		refuse  []int // packets of 5
		atOnce  bool  // the device says n < len without an error
		dropped uint64
	}{
		{"none", nil, false, 0},
		{"first", []int{0}, false, 1},
		{"middle", []int{2, 3}, false, 2},
		{"last", []int{4}, false, 1},
		{"all", []int{0, 1, 2, 3, 4}, false, 5},
		{"without an error", []int{1}, true, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got, want []int
			e := stubEngine(t, func(pkts []tunnel.Packet) (int, error) {
				for i, p := range pkts {
					k := len(p.Data) - 30
					if slices.Contains(tt.refuse, k) {
						if tt.atOnce {
							return i, nil
						}
						return i, errors.New("refused")
					}
					got = append(got, k)
				}
				return len(pkts), nil
			})
			l := newRxLoop(e, sock{}, queueOf(e))
			for i := range 5 {
				l.take(e.Table(), received("192.0.2.2:1", frame(encap.IPv4, innerFrom("100.96.2.1", "100.96.1.9", 30+i))))
				if !slices.Contains(tt.refuse, i) {
					want = append(want, i)
				}
			}
			if err := l.deliver(); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(got, want) {
				t.Errorf("delivered %v, want %v", got, want)
			}
			if n := e.Drops().Count(RxDeviceRefused); n != tt.dropped {
				t.Errorf("rx_device_refused = %d, want %d", n, tt.dropped)
			}
			c := e.Table().Peers()[0].Counters
			if c.RxPackets.Load() != uint64(len(want)) {
				t.Errorf("peer has %d packets, want %d", c.RxPackets.Load(), len(want))
			}
			if l.join.Len() != 0 || len(l.peers) != 0 {
				t.Error("the batch was not emptied")
			}
		})
	}
	t.Run("closed", func(t *testing.T) {
		e := stubEngine(t, func([]tunnel.Packet) (int, error) { return 0, fmt.Errorf("write: %w", os.ErrClosed) })
		l := newRxLoop(e, sock{}, queueOf(e))
		l.take(e.Table(), received("192.0.2.2:1", frame(encap.IPv4, innerFrom("100.96.2.1", "100.96.1.9", 30))))
		if err := l.deliver(); !errors.Is(err, os.ErrClosed) || !errors.Is(err, ErrDevice) {
			t.Errorf("deliver to a closed device: %v", err)
		}
	})
}

// brokenConn fails until it is closed.
type brokenConn struct {
	batchConn
	reads int
	until int
}

func (c *brokenConn) readBatch([]datagram) (int, error) {
	if c.reads++; c.reads >= c.until {
		return 0, &net.OpError{Op: "read", Err: net.ErrClosed}
	}
	return 0, errors.New("broken")
}

func (c *brokenConn) writeBatch([]datagram) (int, error) { panic("not written by this test") }

func TestRxSocketErrors(t *testing.T) {
	e := stubEngine(t, nil)
	c := &brokenConn{until: maxSocketErrors + 3} // also pauses
	err := newRxLoop(e, sock{conn: c}, queueOf(e)).run(t.Context())
	if !errors.Is(err, ErrSocket) || !errors.Is(err, net.ErrClosed) {
		t.Errorf("run: %v", err)
	}
	if n := e.Drops().Count(RxSocketError); n != maxSocketErrors+2 {
		t.Errorf("rx_socket_error = %d, want %d", n, maxSocketErrors+2)
	}
}

// FuzzReceive hands any datagram from any of a few addresses to a loop that is
// used again and again. Whatever is accepted must be accepted by the slow rule
// too, which parses on its own, and the other way round.
func FuzzReceive(f *testing.F) {
	seed := func(from uint8, kind encap.Kind, p []byte) { f.Add(from, frame(kind, p)) }
	seed(0, encap.IPv4, innerFrom("100.96.2.1", "100.96.1.9", 40))
	seed(0, encap.IPv6, innerFrom("fd96:0:0:2::1", "fd96:0:0:1::9", 60))
	seed(1, encap.IPv4, innerFrom("100.96.4.1", "100.96.1.9", 40))
	seed(2, encap.IPv6, innerFrom("2001:db8::2", "fd96:0:0:1::9", 40))
	seed(0, encap.IPv4, innerFrom("198.51.100.1", "100.96.1.9", 40))
	seed(0, encap.IPv4, innerFrom("100.96.3.1", "100.96.1.9", 40))
	seed(3, encap.IPv4, innerFrom("100.96.2.1", "100.96.1.9", 40))
	seed(0, encap.Control, []byte("probe"))
	f.Add(uint8(0), innerFrom("100.96.2.1", "100.96.1.9", 40))
	f.Add(uint8(0), []byte{0x45})
	f.Add(uint8(2), []byte{})
	f.Add(uint8(0), make([]byte, 3000)) // longer than anything that is expected

	from := []netip.AddrPort{
		addrPort("192.0.2.2:8285"), addrPort("192.0.2.3:8285"), addrPort("[2001:db8::2]:8285"), addrPort("192.0.2.66:8285"),
	}
	slow := slowTable{testTableConfig()}
	framed, plain := newRxLoop(stubEngine(f, nil), sock{}, queueOf(stubEngine(f, nil))), newRxLoop(stubEngine(f, nil), sock{}, queueOf(stubEngine(f, nil)))
	plain.e.codec = encap.UDP{}

	f.Fuzz(func(t *testing.T, who uint8, b []byte) {
		m := &datagram{bufs: [][]byte{b}, n: len(b), addr: from[int(who)%len(from)]}
		for _, l := range []*rxLoop{framed, plain} {
			before := slices.Clone(b)
			_, payload, p, r := l.decide(l.e.Table(), m.addr.Addr(), m.bufs[0], m.truncated)
			if !bytes.Equal(b, before) {
				t.Fatal("the datagram was changed")
			}
			if (r != None) && (p != nil || payload != nil) {
				t.Fatalf("dropped as %v, but with peer %v and %d bytes", r, p, len(payload))
			}
			known := m.addr.Addr() != addr("192.0.2.66")
			if long := len(b) > l.e.codec.HeaderLen()+1400+64; known && (long || r == RxOversized) {
				if !long || r != RxOversized {
					t.Fatalf("%d bytes: %v", len(b), r)
				}
				continue
			}
			kind, inside, err := l.e.codec.Decode(b)
			if err != nil || !known || kind == encap.Control {
				if accepted := r == None; accepted != (err == nil && known) || p != nil {
					t.Fatalf("%v: reason %v, peer %v; decode: %v, %v", m.addr, r, p, kind, err)
				}
				continue
			}
			src, dst, ok := slowParse(inside)
			if ok = ok && src.Is4() == (kind == encap.IPv4) && slow.accept(m.addr.Addr(), src, dst); ok != (r == None) {
				t.Fatalf("%v to %v from %v: %v, the slow rule says %v", src, dst, m.addr, r, ok)
			}
			if r == None && (p == nil || !bytes.Equal(payload, inside)) {
				t.Fatalf("accepted from %v with %d of %d bytes", p, len(payload), len(inside))
			}
		}
	})
}

// slowParse is parseInner by way of netip and prefixes.
func slowParse(p []byte) (src, dst netip.Addr, ok bool) {
	if len(p) < 20 {
		return src, dst, false
	}
	switch p[0] / 16 {
	case 4:
		src, _ = netip.AddrFromSlice(p[12:16])
		dst, _ = netip.AddrFromSlice(p[16:20])
		header, total := int(p[0]%16)*4, int(p[2])*256+int(p[3])
		ok = header >= 20 && header <= total && total == len(p)
	case 6:
		if len(p) < 40 {
			return src, dst, false
		}
		src, _ = netip.AddrFromSlice(p[8:24])
		dst, _ = netip.AddrFromSlice(p[24:40])
		ok = int(p[4])*256+int(p[5])+40 == len(p)
	}
	bad := append(slices.Clone(specialPrefixes), prefix("255.255.255.255/32"))
	for _, b := range bad {
		if b.Contains(src) || b.Contains(dst) || (b.Addr().Is6() && (has6(b, src) || has6(b, dst))) {
			ok = false
		}
	}
	return src, dst, ok
}

// has6 is Contains for prefixes of IPv4-mapped addresses, which Contains never
// reports.
func has6(p netip.Prefix, a netip.Addr) bool { return a.Is4In6() && p == prefix("::ffff:0:0/96") }
