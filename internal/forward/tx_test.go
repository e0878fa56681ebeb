package forward

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/overlayd/overlayd/encap"
	"github.com/overlayd/overlayd/tunnel"
)

// scriptConn is a batchConn whose writeBatch follows a script: each call takes
// its next step, or all of the batch when there is none left.
type scriptConn struct {
	batchConn
	script []sendStep
	sent   []sentDatagram
	calls  int
}

type sendStep struct {
	n   int
	err error
}

type sentDatagram struct {
	to     string
	pieces int
	b      []byte
}

func (c *scriptConn) readBatch([]datagram) (int, error) { panic("not read by this test") }

func (c *scriptConn) writeBatch(ms []datagram) (int, error) {
	c.calls++
	step := sendStep{n: len(ms)}
	if len(c.script) > 0 {
		step, c.script = c.script[0], c.script[1:]
	}
	for _, m := range ms[:step.n] {
		c.sent = append(c.sent, sentDatagram{m.addr.String(), len(m.bufs), bytes.Join(m.bufs, nil)})
	}
	return step.n, step.err
}

func sendErr(errno syscall.Errno) error {
	return &net.OpError{Op: "write", Err: os.NewSyscallError("sendmmsg", errno)}
}

// batch puts packets into the loop's batch as Read would.
func (l *txLoop) batch(pkts ...tunnel.Packet) {
	l.begin()
	for i, p := range pkts {
		l.pkts[i] = p
		l.take(l.e.table.Load(), i)
	}
}

func TestTxDecide(t *testing.T) {
	const own4, own6 = "100.96.1.9", "fd96:0:0:1::9"
	for _, tt := range []struct {
		name string
		pkt  tunnel.Packet
		peer string
		want Reason
	}{
		{"to a peer", tunnel.Packet{Data: innerFrom(own4, "100.96.2.1", 100)}, "node2", None},
		{"to a peer, IPv6", tunnel.Packet{Data: innerFrom(own6, "fd96:0:0:2::1", 100)}, "node2", None},
		{"full size", tunnel.Packet{Data: innerFrom(own4, "100.96.2.1", 1400)}, "node2", None},
		{"full size for the peer", tunnel.Packet{Data: innerFrom(own6, "fd96:0:0:7::1", 1280)}, "node7", TxNoSocket},
		{"over our MTU", tunnel.Packet{Data: innerFrom(own4, "100.96.2.1", 1401)}, "node2", TxTooBig},
		{"over our MTU, not the peer's", tunnel.Packet{Data: innerFrom(own4, "100.96.3.1", 1401)}, "node3", TxTooBig},
		{"host's underlay address as source", tunnel.Packet{Data: innerFrom("192.0.2.1", "100.96.2.1", 100)}, "node2", None},
		{"own subnet", tunnel.Packet{Data: innerFrom(own4, "100.96.1.1", 100)}, "", TxOwnDestination},
		{"own subnet, IPv6", tunnel.Packet{Data: innerFrom(own6, "fd96:0:0:1::1", 100)}, "", TxOwnDestination},
		{"outside", tunnel.Packet{Data: innerFrom(own4, "203.0.113.1", 100)}, "", TxOutsideNetwork},
		{"nobody's", tunnel.Packet{Data: innerFrom(own4, "100.96.200.1", 100)}, "", TxNoOwner},
		{"next hop down", tunnel.Packet{Data: innerFrom(own4, "100.96.5.1", 100)}, "node5", TxPeerDown},
		{"no endpoint", tunnel.Packet{Data: innerFrom(own4, "100.96.6.1", 100)}, "node6", TxPeerDown},
		{"multicast", tunnel.Packet{Data: innerFrom(own4, "224.0.0.251", 100)}, "", TxMulticast},
		{"router solicitation", tunnel.Packet{Data: innerFrom("fe80::1", "ff02::2", 48)}, "", TxMulticast},
		{"martian", tunnel.Packet{Data: innerFrom("127.0.0.1", "100.96.2.1", 100)}, "", TxMartian},
		{"malformed", tunnel.Packet{Data: innerFrom(own4, "100.96.2.1", 100)[:99]}, "", TxMalformed},
		{"superpacket that is none", tunnel.Packet{Data: innerFrom(own4, "100.96.2.1", 100),
			Offload: tunnel.Offload{GSO: tunnel.GSOTCP4, SegmentSize: 10}}, "node2", TxMalformed},
		{"superpacket", superpacket(own4, "100.96.2.1", 5000, 1360), "node2", None},
		{"superpacket, IPv6", superpacket(own6, "fd96:0:0:2::1", 5000, 1340), "node2", None},
		{"superpacket of segments that are too big", superpacket(own4, "100.96.2.1", 5000, 1361), "node2", TxTooBig},
		{"checksum outside of the packet", tunnel.Packet{Data: innerFrom(own4, "100.96.2.1", 100),
			Offload: tunnel.Offload{NeedsChecksum: true, ChecksumStart: 20, ChecksumOffset: 79}}, "node2", TxMalformed},
		{"checksum in the IP header", tunnel.Packet{Data: innerFrom(own4, "100.96.2.1", 100),
			Offload: tunnel.Offload{NeedsChecksum: true, ChecksumStart: 4, ChecksumOffset: 2}}, "node2", TxMalformed},
	} {
		l := txLoopOf(stubEngine(t, nil), [sockCount]batchConn{sock4: &scriptConn{}}, [sockCount]offloads{})
		p, _, r := l.decide(l.e.Table(), &tt.pkt)
		name := ""
		if p != nil {
			name = p.Name
		}
		if name != tt.peer || r != tt.want {
			t.Errorf("%s: %q, %v; want %q, %v", tt.name, name, r, tt.peer, tt.want)
		}
	}
	l := txLoopOf(stubEngine(t, nil), [sockCount]batchConn{sock6: &scriptConn{}}, [sockCount]offloads{})
	if p, _, r := l.decide(l.e.Table(), &tunnel.Packet{Data: innerFrom(own6, "fd96:0:0:7::1", 1281)}); r != TxTooBig || p.Name != "node7" {
		t.Errorf("over the peer's MTU: %v, %v", p, r)
	}
}

// TestTxBatch sends one device batch to peers of both outer families.
func TestTxBatch(t *testing.T) {
	var c4, c6 scriptConn
	l := txLoopOf(stubEngine(t, nil), [sockCount]batchConn{sock4: &c4, sock6: &c6}, [sockCount]offloads{})
	a := innerFrom("100.96.1.9", "100.96.2.1", 60)
	b := innerFrom("fd96:0:0:1::9", "fd96:0:0:7::1", 80)
	c := innerFrom("fd96:0:0:1::9", "fd96:0:0:2::1", 81)
	d := innerFrom("100.96.1.9", "100.96.4.1", 61)
	l.batch(tunnel.Packet{Data: a}, tunnel.Packet{Data: b}, tunnel.Packet{Data: c[:80]}, tunnel.Packet{Data: c}, tunnel.Packet{Data: d})
	if err := l.flush(); err != nil {
		t.Fatal(err)
	}
	header := func(k encap.Kind, n byte) []byte { return []byte{0xee, byte(k), 2, 0, 0, 0, 0, n} }
	want4 := []sentDatagram{
		{"192.0.2.2:8285", 2, append(header(encap.IPv4, 2), a...)},
		{"192.0.2.2:8285", 2, append(header(encap.IPv6, 2), c...)},
		{"192.0.2.3:9999", 2, append(header(encap.IPv4, 4), d...)},
	}
	want6 := []sentDatagram{{"[2001:db8::7]:8285", 2, append(header(encap.IPv6, 7), b...)}}
	opt := cmp.AllowUnexported(sentDatagram{})
	if diff := cmp.Diff(want4, c4.sent, opt); diff != "" {
		t.Errorf("IPv4 socket (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(want6, c6.sent, opt); diff != "" {
		t.Errorf("IPv6 socket (-want +got):\n%s", diff)
	}
	if c4.calls != 1 || c6.calls != 1 {
		t.Errorf("%d and %d calls, want one for each socket", c4.calls, c6.calls)
	}
	p := l.e.Table().Peers()[0].Counters
	if p.TxPackets.Load() != 2 || p.TxBytes.Load() != 141 {
		t.Errorf("node2: %d packets, %d bytes", p.TxPackets.Load(), p.TxBytes.Load())
	}
	if n := l.e.Drops().Count(TxMalformed); n != 1 {
		t.Errorf("tx_malformed = %d, want 1", n)
	}
}

// always is an error that comes as often as a datagram is tried.
func always(errno syscall.Errno) []sendStep {
	return slices.Repeat([]sendStep{{0, sendErr(errno)}}, maxEarlier+1)
}

// TestSendErrors: what the kernel refuses is counted under its errno, and the
// rest of the batch goes out in order.
func TestSendErrors(t *testing.T) {
	for _, tt := range []struct {
		name   string
		script []sendStep
		lost   []int // of 5
		drops  map[Reason]uint64
	}{
		{"all at once", nil, nil, nil},
		{"partial", []sendStep{{2, nil}, {1, nil}}, nil, nil},
		{"first is too big", always(syscall.EMSGSIZE), []int{0}, map[Reason]uint64{TxSocketTooBig: 1}},
		{"middle is too big", append([]sendStep{{2, nil}}, always(syscall.EMSGSIZE)...), []int{2}, map[Reason]uint64{TxSocketTooBig: 1}},
		{"count and error in one", append([]sendStep{{2, sendErr(syscall.EMSGSIZE)}}, always(syscall.EMSGSIZE)[1:]...), []int{2}, map[Reason]uint64{TxSocketTooBig: 1}},
		{"last is too big", append([]sendStep{{4, nil}}, always(syscall.EMSGSIZE)...), []int{4}, map[Reason]uint64{TxSocketTooBig: 1}},
		{"no buffers", []sendStep{{0, sendErr(syscall.ENOBUFS)}, {0, sendErr(syscall.ENOMEM)}}, []int{0, 1}, map[Reason]uint64{TxSocketNoBuffers: 2}},
		{"firewall", append([]sendStep{{1, nil}, {0, sendErr(syscall.EPERM)}, {1, nil}}, always(syscall.EACCES)...), []int{1, 3}, map[Reason]uint64{TxSocketRefused: 2}},
		{"no route", slices.Concat(always(syscall.ENETUNREACH), always(syscall.EHOSTUNREACH), []sendStep{{0, sendErr(syscall.ENETDOWN)}}), []int{0, 1, 2}, map[Reason]uint64{TxSocketUnreachable: 3}},
		{"pending error of an earlier datagram", []sendStep{{1, nil}, {0, sendErr(syscall.ECONNREFUSED)}}, nil, map[Reason]uint64{TxSocketRefused: 1}},
		{"an earlier one was too big for a link", []sendStep{{1, nil}, {0, sendErr(syscall.EMSGSIZE)}}, nil, nil},
		{"an earlier one met no host", []sendStep{{0, sendErr(syscall.EHOSTUNREACH)}, {2, nil}, {0, sendErr(syscall.EHOSTUNREACH)}}, nil, nil},
		{"errors of many others", always(syscall.EHOSTUNREACH)[1:], nil, nil},
		{"refused for good", always(syscall.ECONNREFUSED), []int{0}, map[Reason]uint64{TxSocketRefused: maxEarlier + 1}},
		{"interrupted", []sendStep{{0, sendErr(syscall.EINTR)}}, nil, nil},
		{"interrupted for good", always(syscall.EINTR), []int{0}, map[Reason]uint64{TxSocketError: 1}},
		{"unknown errno", []sendStep{{0, sendErr(syscall.EINVAL)}}, []int{0}, map[Reason]uint64{TxSocketError: 1}},
		{"unknown error", []sendStep{{3, errors.New("odd")}}, []int{3}, map[Reason]uint64{TxSocketError: 1}},
		{"neither count nor error", []sendStep{{0, nil}}, []int{0}, map[Reason]uint64{TxSocketError: 1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := &scriptConn{script: tt.script}
			l := txLoopOf(stubEngine(t, nil), [sockCount]batchConn{sock4: c}, [sockCount]offloads{})
			var want []int
			for i := range 5 {
				if l.batchOne(i, innerFrom("100.96.1.9", "100.96.2.1", 30+i)); !slices.Contains(tt.lost, i) {
					want = append(want, i)
				}
			}
			if err := l.queues[sock4][0].flush(); err != nil {
				t.Fatal(err)
			}
			var got []int
			for _, s := range c.sent {
				got = append(got, len(s.b)-testHeaderLen-30)
			}
			if !slices.Equal(got, want) {
				t.Errorf("sent %v, want %v", got, want)
			}
			for r := None + 1; r < reasonCount; r++ {
				if n := l.e.Drops().Count(r); n != tt.drops[r] {
					t.Errorf("%v = %d, want %d", r, n, tt.drops[r])
				}
			}
			if n := l.e.Table().Peers()[0].Counters.TxPackets.Load(); n != uint64(len(want)) {
				t.Errorf("peer has %d packets, want %d", n, len(want))
			}
			// The queue is empty and works again.
			c.script, c.sent = nil, nil
			l.batchOne(0, innerFrom("100.96.1.9", "100.96.2.1", 30))
			if err := l.queues[sock4][0].flush(); err != nil || len(c.sent) != 1 {
				t.Errorf("next batch: %v, %d sent", err, len(c.sent))
			}
		})
	}
	t.Run("closed", func(t *testing.T) {
		c := &scriptConn{script: []sendStep{{1, nil}, {0, fmt.Errorf("write: %w", net.ErrClosed)}}}
		l := txLoopOf(stubEngine(t, nil), [sockCount]batchConn{sock4: c}, [sockCount]offloads{})
		for i := range 3 {
			l.batchOne(i, innerFrom("100.96.1.9", "100.96.2.1", 30))
		}
		if err := l.queues[sock4][0].flush(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("flush on a closed socket: %v", err)
		}
	})
}

func (l *txLoop) batchOne(i int, b []byte) {
	l.pkts[i] = tunnel.Packet{Data: b}
	l.take(l.e.table.Load(), i)
}
