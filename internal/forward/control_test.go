package forward

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/overlayd/overlayd/encap"
	"github.com/overlayd/overlayd/tunnel"
)

// TestEngineControl: frames of known addresses arrive with their sender, in
// either encap; those of strangers do not.
func TestEngineControl(t *testing.T) {
	for _, codec := range []encap.Codec{encap.UDP{}, testCodec{}} {
		for _, over6 := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s over6=%v", codec.Name(), over6), func(t *testing.T) {
				type got struct {
					Frame string
					From  netip.AddrPort
				}
				frames := make(chan got, 10)
				s := newSides(t, codec, over6, [2]func([]byte, netip.AddrPort){
					1: func(b []byte, from netip.AddrPort) { frames <- got{string(b), from} },
				})
				ctx := deadline(t)
				if err := s[0].engine.SendFrame(codec, encap.Control, encap.Dest{}, []byte("\xc0before Run"), s[0].peer.Endpoint); err != nil {
					t.Fatal(err)
				}
				run(t, s[0].engine)
				run(t, s[1].engine)
				if err := s[0].engine.SendFrame(codec, encap.Control, encap.Dest{}, []byte("\xc0second"), s[0].peer.Endpoint); err != nil {
					t.Fatal(err)
				}
				for _, want := range []string{"\xc0before Run", "\xc0second"} {
					select {
					case g := <-frames:
						if diff := cmp.Diff(got{want, s[1].peer.Endpoint}, g, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
							t.Errorf("frame (-want +got):\n%s", diff)
						}
					case <-ctx.Done():
						t.Fatal("no frame")
					}
				}
				s[1].engine.SetTable(new(Table))
				if err := s[0].engine.SendFrame(codec, encap.Control, encap.Dest{}, []byte("\xc0stranger"), s[0].peer.Endpoint); err != nil {
					t.Fatal(err)
				}
				waitFor(t, func() bool { return s[1].engine.Drops().Count(RxUnknownSource) == 1 })
				if len(frames) != 0 {
					t.Errorf("a stranger's frame was given away: %q", (<-frames).Frame)
				}
			})
		}
	}
}

// TestSendFrame: in the framing that is asked for, whatever the Engine's is.
func TestSendFrame(t *testing.T) {
	dev := tunnel.NewMemory(tunnel.MemoryConfig{})
	defer dev.Close()
	from, to := listen(t, "127.0.0.1"), listen(t, "127.0.0.2")
	e, err := New(Config{Device: dev, Codec: encap.UDP{}, Conns: []*net.UDPConn{from}, MTU: 1400})
	if err != nil {
		t.Fatal(err)
	}
	mapped := netip.AddrPortFrom(netip.AddrFrom16(bound(to).Addr().As16()), bound(to).Port())
	if err := e.SendFrame(testCodec{}, encap.ARP, encap.Dest{MAC: [6]byte{7}}, []byte("frame"), mapped); err != nil {
		t.Fatal(err)
	}
	if err := to.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 100)
	n, err := to.Read(b)
	if want := append([]byte{0xee, byte(encap.ARP), 7, 0, 0, 0, 0, 0}, "frame"...); err != nil || !bytes.Equal(b[:n], want) {
		t.Errorf("sent %x, %v; want %x", b[:n], err, want)
	}
	if err := e.SendFrame(encap.UDP{}, encap.Control, encap.Dest{}, nil, addrPort("[2001:db8::1]:1")); !errors.Is(err, ErrNoSocket) {
		t.Errorf("without an IPv6 socket: %v", err)
	}
	if err := e.SendFrame(encap.UDP{}, encap.Control, encap.Dest{}, nil, netip.AddrPort{}); err == nil {
		t.Error("no endpoint, no error")
	}
	from.Close()
	if err := e.SendFrame(encap.UDP{}, encap.Control, encap.Dest{}, nil, bound(to)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("on a closed socket: %v", err)
	}
}
