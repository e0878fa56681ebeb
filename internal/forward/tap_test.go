package forward

import (
	"bytes"
	"errors"
	"net/netip"
	"slices"
	"syscall"
	"testing"

	"github.com/overlayd/overlayd/encap"
	"github.com/overlayd/overlayd/tunnel"
)

type seen struct {
	outer, outbound bool
	peer, encap     string
	remote          netip.AddrPort
	class           uint8
	b               string
	reason          Reason
}

// tapOf collects what e shows.
func tapOf(t *testing.T, e *Engine) (all *[]seen, remove func()) {
	t.Helper()
	all = new([]seen)
	remove, err := e.AddTap(func(s *Seen) {
		name := ""
		if s.Peer != nil {
			name = s.Peer.Name
		}
		*all = append(*all, seen{s.Outer, s.Outbound, name, s.Encap, s.Remote, s.Class, string(bytes.Join(s.Pieces, nil)), s.Reason})
	})
	if err != nil {
		t.Fatal(err)
	}
	return all, remove
}

// TestTapSend: each packet and each datagram is shown, with what became of it.
func TestTapSend(t *testing.T) {
	e := stubEngine(t, nil)
	got, remove := tapOf(t, e)
	c := &scriptConn{script: []sendStep{{1, nil}, {0, sendErr(syscall.ENOBUFS)}, {1, nil}}}
	l := txLoopOf(e, [sockCount]batchConn{sock4: c}, [sockCount]offloads{})
	a, lost, nobody := innerFrom("100.96.1.9", "100.96.2.1", 60), innerFrom("100.96.1.9", "100.96.2.1", 61), innerFrom("100.96.1.9", "100.96.77.1", 62)
	a[1] = 0x28
	l.batch(tunnel.Packet{Data: a}, tunnel.Packet{Data: lost}, tunnel.Packet{Data: nobody}, tunnel.Packet{Data: a})
	if err := l.flush(); err != nil {
		t.Fatal(err)
	}
	to := addrPort("192.0.2.2:8285")
	framed := func(b []byte) string {
		h := make([]byte, testHeaderLen)
		testCodec{}.PutHeader(h, encap.IPv4, encap.Dest{MAC: [6]byte{2, 0, 0, 0, 0, 2}})
		return string(h) + string(b)
	}
	want := []seen{
		{false, true, "node2", "test", netip.AddrPort{}, 0, string(a), None},
		{false, true, "node2", "test", netip.AddrPort{}, 0, string(lost), None},
		{false, true, "", "test", netip.AddrPort{}, 0, string(nobody), TxNoOwner},
		{false, true, "node2", "test", netip.AddrPort{}, 0, string(a), None},
		{true, true, "node2", "test", to, 0x28, framed(a), None},
		{true, true, "node2", "test", to, 0, framed(lost), TxSocketNoBuffers},
		{true, true, "node2", "test", to, 0x28, framed(a), None},
	}
	if !slices.Equal(*got, want) {
		t.Errorf("shown\n%+v, want\n%+v", *got, want)
	}
	remove()
	l.batch(tunnel.Packet{Data: a})
	if err := l.flush(); err != nil || len(*got) != len(want) {
		t.Errorf("%v; shown after the end: %d", err, len(*got)-len(want))
	}
}

// TestTapReceive: the same for what comes in.
func TestTapReceive(t *testing.T) {
	e := stubEngine(t, nil)
	got, _ := tapOf(t, e)
	l := newRxLoop(e, sock{}, queueOf(e))
	good, spoofed, control := innerFrom("100.96.2.1", "100.96.1.9", 60), innerFrom("100.96.3.1", "100.96.1.9", 60), []byte("control")
	from, stranger := addrPort("192.0.2.2:1"), addrPort("192.0.2.66:1")
	capable := withClass(t, "100.96.2.1", "100.96.1.9", 2)
	marked := slices.Clone(capable)
	markInner(marked, 3)
	for _, m := range []*datagram{
		received("192.0.2.2:1", frame(encap.IPv4, good)), received("192.0.2.2:1", frame(encap.IPv4, spoofed)), received("192.0.2.66:1", frame(encap.IPv4, good)),
		received("192.0.2.2:1", frame(encap.Control, control)),
		{bufs: [][]byte{make([]byte, 300)}, n: 300, segment: 100, addr: stranger},
		{bufs: [][]byte{frame(encap.IPv4, slices.Clone(capable))}, n: testHeaderLen + 100, addr: from, class: 3}, // congestion
		{bufs: [][]byte{frame(encap.IPv4, slices.Clone(good))}, n: testHeaderLen + 60, addr: from, class: 3},     // congestion, and the sender knows nothing of it
	} {
		l.take(e.Table(), m)
	}
	want := []seen{
		{true, false, "node2", "test", from, 0, string(frame(encap.IPv4, good)), None},
		{false, false, "node2", "test", netip.AddrPort{}, 0, string(good), None},
		{true, false, "", "test", from, 0, string(frame(encap.IPv4, spoofed)), RxSpoofedSource},
		{true, false, "", "test", stranger, 0, string(frame(encap.IPv4, good)), RxUnknownSource},
		{true, false, "", "test", from, 0, string(frame(encap.Control, control)), None},
		{true, false, "", "test", stranger, 0, string(make([]byte, 100)), RxUnknownSource},
		{true, false, "", "test", stranger, 0, string(make([]byte, 100)), RxUnknownSource},
		{true, false, "", "test", stranger, 0, string(make([]byte, 100)), RxUnknownSource},
		{true, false, "node2", "test", from, 3, string(frame(encap.IPv4, capable)), None},
		{false, false, "node2", "test", netip.AddrPort{}, 0, string(marked), None},
		{true, false, "node2", "test", from, 3, string(frame(encap.IPv4, good)), RxECN},
		{false, false, "node2", "test", netip.AddrPort{}, 0, string(good), RxECN},
	}
	if !slices.Equal(*got, want) {
		t.Errorf("shown\n%+v, want\n%+v", *got, want)
	}
}

// TestTaps: a few at once, each of which goes by itself.
func TestTaps(t *testing.T) {
	e := stubEngine(t, nil)
	var all []*[]seen
	var removes []func()
	for range maxTaps {
		got, remove := tapOf(t, e)
		all, removes = append(all, got), append(removes, remove)
	}
	if _, err := e.AddTap(func(*Seen) {}); !errors.Is(err, ErrTaps) {
		t.Errorf("one more: %v", err)
	}
	show := func() { e.showInner(*e.tap.Load(), true, nil, nil, TxMalformed) }
	show()
	removes[1]()
	removes[1]() // again
	show()
	for i, n := range []int{2, 1, 2, 2} {
		if len(*all[i]) != n {
			t.Errorf("tap %d was shown %d", i, len(*all[i]))
		}
	}
	for _, r := range removes {
		r()
	}
	if e.tap.Load() != nil {
		t.Error("the loops still look for what to show")
	}
}
