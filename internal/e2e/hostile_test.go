package e2e_test

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/overlayd/overlayd/internal/kernel/lab"
	"github.com/overlayd/overlayd/internal/kernel/lab/labtest"
)

// marker is in every packet that the hostile hosts make, and in nothing else.
var marker = []byte("hostile-datagram-marker")

// innerUDP makes an inner packet.
func innerUDP(t *testing.T, src, dst netip.Addr) []byte {
	t.Helper()
	var ip interface {
		gopacket.NetworkLayer
		gopacket.SerializableLayer
	}
	if src.Is4() {
		ip = &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolUDP, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
	} else {
		ip = &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolUDP, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
	}
	udp := &layers.UDP{SrcPort: 4444, DstPort: 5555}
	must(t, udp.SetNetworkLayerForChecksum(ip))
	buf := gopacket.NewSerializeBuffer()
	must(t, gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ip, udp, gopacket.Payload(marker)))
	return buf.Bytes()
}

// controlFrame is the first byte of a control frame of the version in use: see
// package encap.
const controlFrame = 0xc1

// attack is a datagram to the overlay's port and the reason under which it is
// dropped.
type attack struct {
	name, reason string
	datagram     []byte
}

// hostile sends to the overlay's port of host1 what does not belong there, from
// a peer's host and from a stranger's, in both families.
func hostile(t *testing.T, l *lab.Lab, nodes []*node, stranger *lab.Host) {
	victim, evil, third := nodes[0], nodes[1], nodes[2]
	const times = 20

	// Whatever the daemon hands to its kernel passes the device.
	delivered, err := victim.Capture("overlay0", func(p []byte) bool { return bytes.Contains(p, marker) })
	must(t, err)
	reached, err := victim.container.Capture("eth0", func(p []byte) bool { return bytes.Contains(p, marker) })
	must(t, err)

	// Somebody listens, so that no error message about what gets through, which
	// would quote it, is seen as another one.
	open, err := victim.container.ListenUDP(netip.MustParseAddrPort("[::]:5555"))
	must(t, err)
	defer open.Close()

	v, e, o := victim.container, evil.container, third.container
	good4, good6 := innerUDP(t, e.Addr4(), v.Addr4()), innerUDP(t, e.Addr6(), v.Addr6())
	longer := append(bytes.Clone(good4), marker...)
	shortHeader := bytes.Clone(good4)
	shortHeader[0] = 4<<4 | 4 // an IHL below 5 (RFC 791)
	attacks := []attack{
		{"empty", "rx_malformed_frame", []byte{}},
		{"zeros", "rx_malformed_frame", make([]byte, 200)},
		{"neither IP nor control", "rx_malformed_frame", append([]byte{0xf0}, marker...)},
		{"only the first byte", "rx_malformed_frame", []byte{0x45}},
		{"no more than a control frame's first byte", "control_malformed", []byte{controlFrame}},
		{"garbage in a control frame", "control_malformed", append([]byte{controlFrame}, bytes.Repeat(marker, 4)...)},
		{"a control frame of another version", "control_version", append([]byte{controlFrame + 1}, bytes.Repeat(marker, 4)...)},
		{"cut off", "rx_malformed", good4[:len(good4)-1]},
		{"cut off, IPv6", "rx_malformed", good6[:45]},
		{"bytes behind", "rx_malformed", longer},
		{"short header", "rx_malformed", shortHeader},
		{"oversized", "rx_oversized", append([]byte{0x45}, bytes.Repeat(marker, 200)...)},
		{"a third node's source", "rx_spoofed_source", innerUDP(t, o.Addr4(), v.Addr4())},
		{"a third node's source, IPv6", "rx_spoofed_source", innerUDP(t, o.Addr6(), v.Addr6())},
		{"the victim's own source", "rx_spoofed_source", innerUDP(t, victim.own4(), v.Addr4())},
		{"the victim's underlay source", "rx_spoofed_source", innerUDP(t, victim.Addr4(), v.Addr4())},
		{"the third node's underlay source", "rx_spoofed_source", innerUDP(t, third.Addr6(), v.Addr6())},
		{"a source on the internet", "rx_spoofed_source", innerUDP(t, netip.MustParseAddr("198.51.100.7"), v.Addr4())},
		{"nobody's source", "rx_spoofed_source", innerUDP(t, unowned(t, nodes, network4), v.Addr4())},
		{"to a third node", "rx_wrong_destination", innerUDP(t, e.Addr4(), o.Addr4())},
		{"to the victim's underlay address", "rx_wrong_destination", innerUDP(t, e.Addr4(), victim.Addr4())},
		{"to the internet", "rx_wrong_destination", innerUDP(t, e.Addr6(), netip.MustParseAddr("2001:db8:ffff::1"))},
		{"to a multicast group", "rx_multicast", innerUDP(t, e.Addr4(), netip.MustParseAddr("224.0.0.1"))},
		{"to a multicast group, IPv6", "rx_multicast", innerUDP(t, e.Addr6(), netip.MustParseAddr("ff02::1"))},
		{"to broadcast", "rx_multicast", innerUDP(t, e.Addr4(), netip.MustParseAddr("255.255.255.255"))},
		{"from loopback", "rx_martian", innerUDP(t, netip.MustParseAddr("127.0.0.1"), v.Addr4())},
		{"to loopback", "rx_martian", innerUDP(t, e.Addr4(), netip.MustParseAddr("127.0.0.1"))},
		{"from a link-local address", "rx_martian", innerUDP(t, netip.MustParseAddr("fe80::1"), v.Addr6())},
	}
	// send sends from an address that may be any of the host's.
	send := func(from *lab.Host, v6 bool, datagrams ...[]byte) {
		t.Helper()
		src, dst := from.Addr4(), victim.Addr4()
		if v6 {
			src, dst = from.Addr6(), victim.Addr6()
		}
		conn, err := from.ListenUDP(netip.AddrPortFrom(src, 0))
		must(t, err)
		defer conn.Close()
		for _, d := range datagrams {
			_, err := conn.WriteToUDPAddrPort(d, netip.AddrPortFrom(dst, 8285))
			must(t, err)
		}
	}
	before := victim.status(t).Drops
	// counted waits until the victim has counted exactly what was sent.
	counted := func(want map[string]uint64) {
		t.Helper()
		labtest.Eventually(t, 10*time.Second, func() error {
			now := victim.status(t).Drops
			for reason, n := range want {
				if got := now[reason] - before[reason]; got != n {
					return fmt.Errorf("%d dropped as %s, want %d", got, reason, n)
				}
			}
			return nil
		})
	}

	// First the proof that the captures see what gets through.
	send(evil.Host, false, good4, good6)
	send(evil.Host, true, good4, good6)
	must(t, delivered.Wait(within(t, 5*time.Second), 4), reached.Wait(within(t, 5*time.Second), 4))

	logged := len(victim.log(t))
	began := time.Now()
	want := make(map[string]uint64)
	for i := range times {
		for _, a := range attacks {
			send(evil.Host, i%2 == 1, a.datagram)
			want[a.reason]++
		}
	}
	counted(want)
	for i := range times {
		for _, a := range attacks {
			want["rx_unknown_source"]++ // whatever else is wrong with it
			send(stranger, i%2 == 1, a.datagram)
		}
		// Also what a peer may send is refused from a stranger.
		send(stranger, i%2 == 1, good4, good6)
		want["rx_unknown_source"] += 2
	}
	counted(want)

	// A stream of them does not fill the log.
	flood := make(chan struct{})
	go func() {
		defer close(flood)
		conn, err := evil.ListenUDP(netip.AddrPortFrom(evil.Addr4(), 0))
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for until := time.Now().Add(4 * time.Second); time.Now().Before(until); <-tick.C {
			for _, a := range attacks {
				if _, err := conn.WriteToUDPAddrPort(a.datagram, netip.AddrPortFrom(victim.Addr4(), 8285)); err != nil {
					t.Error(err)
					return
				}
			}
		}
	}()
	<-flood
	seconds := int(time.Since(began).Seconds()) + 1
	lines := make(map[string]int)
	for line := range strings.Lines(victim.log(t)[logged:]) {
		for reason := range want {
			if strings.Contains(line, "reason="+reason) {
				lines[reason]++
			}
		}
	}
	if len(lines) == 0 {
		t.Error("nothing of it is in the log")
	}
	for reason, n := range lines {
		if n > seconds {
			t.Errorf("%d lines about %s in %d s", n, reason, seconds)
		}
	}

	// The overlay goes on as if nothing had been.
	for _, dst := range v.Addrs() {
		pingAll(t, e.Namespace, lab.PingConfig{Dst: dst})
	}
	delivered.Stop()
	reached.Stop()
	if d, r := delivered.Count(), reached.Count(); d != 4 || r != 4 {
		t.Errorf("%d packets were delivered to the host and %d to the container, want 4 and 4: %x", d, r, delivered.Packets()[min(4, d-1)].Data)
	}
}
