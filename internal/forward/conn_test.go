package forward

import (
	"bytes"
	"net"
	"net/netip"
	"testing"
	"time"
)

// TestXNetConn sends and receives a batch between sockets of all kinds.
func TestXNetConn(t *testing.T) {
	dual, err := net.ListenUDP("udp", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer dual.Close()
	port := bound(dual).Port()
	for _, tt := range []struct {
		name     string
		from, to *net.UDPConn
		dst      netip.AddrPort
		to6      bool
	}{
		{"IPv4", listen(t, "127.0.0.1"), listen(t, "127.0.0.2"), netip.AddrPort{}, false},
		{"IPv6", listen(t, "::1"), listen(t, "::1"), netip.AddrPort{}, true},
		{"IPv4 to a socket of both families", listen(t, "127.0.0.1"), dual, netip.AddrPortFrom(addr("127.0.0.1"), port), true},
		{"IPv6 to a socket of both families", listen(t, "::1"), dual, netip.AddrPortFrom(addr("::1"), port), true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dst := tt.dst
			if !dst.IsValid() {
				dst = bound(tt.to)
			}
			from := bound(tt.from)
			tx, rx := newXNetConn(tt.from, from.Addr().Is6(), 4), newXNetConn(tt.to, tt.to6, 4)
			want := []datagram{
				{bufs: [][]byte{[]byte("one piece")}, addr: dst},
				{bufs: [][]byte{[]byte("two "), []byte("pieces")}, addr: dst},
				{bufs: [][]byte{bytes.Repeat([]byte("too long "), 10)}, addr: dst},
			}
			for sent := 0; sent < len(want); {
				n, err := tx.writeBatch(want[sent:])
				if err != nil {
					t.Fatal(err)
				}
				sent += n
			}
			if err := tt.to.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
				t.Fatal(err)
			}
			for got := 0; got < len(want); {
				ms := make([]datagram, 6) // more than newXNetConn was told
				for i := range ms {
					// Nothing of what was there before may stay.
					ms[i] = datagram{bufs: [][]byte{make([]byte, 20)}, n: 99, truncated: true, addr: addrPort("192.0.2.1:1")}
				}
				n, err := rx.readBatch(ms)
				if err != nil {
					t.Fatal(err)
				}
				for _, m := range ms[:n] {
					w := bytes.Join(want[got].bufs, nil)
					if m.addr != from || m.truncated != (len(w) > 20) || !bytes.Equal(m.bufs[0][:m.n], w[:min(len(w), 20)]) {
						t.Errorf("datagram %d: %q from %v, truncated %v; want %q from %v", got, m.bufs[0][:m.n], m.addr, m.truncated, w, from)
					}
					got++
				}
			}
		})
	}
}
