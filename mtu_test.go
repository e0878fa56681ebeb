package overlayd

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/overlayd/overlayd/tunnel"
)

// TestOverhead adds up the headers by hand: IPv4 20, IPv6 40, UDP 8, VXLAN 8,
// Ethernet 14. The larger underlay family counts, and the larger path that may
// ever be used.
func TestOverhead(t *testing.T) {
	four, six, both := addrs("192.0.2.1"), addrs("2001:db8::1"), addrs("192.0.2.1", "2001:db8::1")
	for _, tt := range []struct {
		encap, fastPath string
		endpoints       []netip.Addr
		want            int
	}{
		{"udp", "off", four, 28},
		{"udp", "off", six, 48},
		{"udp", "off", both, 48},
		{"udp", "direct", four, 28}, // a plain route adds nothing
		{"udp", "direct", six, 48},
		{"udp", "auto", four, 50},
		{"udp", "auto", six, 70},
		{"udp", "auto", both, 70},
		{"udp", "kernel-vxlan", four, 50},
		{"udp", "kernel-vxlan", six, 70},
		{"vxlan", "off", four, 50},
		{"vxlan", "off", six, 70},
		{"vxlan", "auto", four, 50},
		{"vxlan", "auto", both, 70},
		{"vxlan", "direct", six, 70},
	} {
		if got := overhead(tt.encap, tt.fastPath, tt.endpoints); got != tt.want {
			t.Errorf("%s, %s, %v: %d, want %d", tt.encap, tt.fastPath, tt.endpoints, got, tt.want)
		}
	}
	for _, tt := range []struct {
		outer    underlayMTU
		overhead int
		want     innerMTU
	}{
		{1500, 28, 1472}, {1500, 50, 1450}, {9000, 70, 8930}, {1280, 70, 1210},
		{65536, 28, 65485}, {65536, 70, 65466}, // the loopback interface
	} {
		if got := tt.outer.inner(tt.overhead); got != tt.want {
			t.Errorf("%d bytes of overhead in %d: %d, want %d", tt.overhead, tt.outer, got, tt.want)
		}
	}
}

// TestInnerMTU looks at an underlay of a known MTU, without sockets.
func TestInnerMTU(t *testing.T) {
	find := func(t *testing.T, outer underlayMTU, cfg Config) (innerMTU, error) {
		t.Helper()
		n := newNode(t, cfg)
		return innerFor(n.cfg, outer, "eth7", n.cfg.Advertise)
	}
	four, six := netip.MustParsePrefix("100.96.0.0/16"), netip.MustParsePrefix("fd96::/48")
	for _, tt := range []struct {
		outer    underlayMTU
		mtu      int
		fastPath string
		adv      []netip.Addr
		networks []netip.Prefix
		want     innerMTU
		refused  []string
	}{
		{1500, 0, "off", addrs("192.0.2.1"), []netip.Prefix{four, six}, 1472, nil},
		{1500, 0, "auto", addrs("192.0.2.1"), []netip.Prefix{four, six}, 1450, nil},
		{1500, 0, "auto", addrs("192.0.2.1", "2001:db8::1"), []netip.Prefix{four, six}, 1430, nil},
		{9000, 0, "off", addrs("2001:db8::1"), []netip.Prefix{six}, 8952, nil},
		{1500, 1400, "off", addrs("192.0.2.1"), []netip.Prefix{four, six}, 1400, nil},
		{1500, 1472, "off", addrs("192.0.2.1"), []netip.Prefix{four, six}, 1472, nil},
		{1500, 1473, "off", addrs("192.0.2.1"), []netip.Prefix{four, six}, 0, []string{"MTU 1473", "eth7 has an MTU of 1500", "leaves 1472 inside"}},
		{1500, 1451, "auto", addrs("192.0.2.1"), []netip.Prefix{four}, 0, []string{"MTU 1451", "leaves 1450 inside"}},
		// IPv6 needs 1280 (RFC 8200 section 5), exactly.
		{1308, 0, "off", addrs("192.0.2.1"), []netip.Prefix{four, six}, 1280, nil},
		{1307, 0, "off", addrs("192.0.2.1"), []netip.Prefix{four, six}, 0, []string{"fd96::/48 cannot be carried", "1279 is left inside eth7's 1307", "needs 1280", "leave that network out"}},
		{1307, 0, "off", addrs("192.0.2.1"), []netip.Prefix{four}, 1279, nil},
		{1349, 0, "auto", addrs("2001:db8::1"), []netip.Prefix{six}, 0, []string{"fd96::/48 cannot be carried", "1279 is left"}},
		{604, 0, "off", addrs("192.0.2.1"), []netip.Prefix{four}, 576, nil},
		{603, 0, "off", addrs("192.0.2.1"), []netip.Prefix{four}, 0, []string{"100.96.0.0/16 cannot be carried", "575 is left", "needs 576"}},
	} {
		t.Run(fmt.Sprintf("%d-%d-%s-%v", tt.outer, tt.mtu, tt.fastPath, tt.networks), func(t *testing.T) {
			cfg := soundConfig()
			cfg.MTU, cfg.FastPath, cfg.Advertise, cfg.Networks = tt.mtu, tt.fastPath, tt.adv, tt.networks
			cfg.Tunnel = tunnel.NewMemory(tunnel.MemoryConfig{})
			got, err := find(t, tt.outer, cfg)
			if tt.refused != nil {
				oneLine(t, err, tt.refused...)
			} else if err != nil || got != tt.want {
				t.Errorf("got %d, %v; want %d", got, err, tt.want)
			}
		})
	}
}

// TestDeviceHoldsInnerPackets: a caller's own device must take the longest
// inner packet. The loopback interface allows more than any device holds.
func TestDeviceHoldsInnerPackets(t *testing.T) {
	for _, tt := range []struct {
		mtu, holds int
		refused    []string
	}{
		{1400, 1400, nil},
		{1400, 1399, []string{"device own", "at most 1399 bytes", "the MTU is 1400", "set the MTU to 1399"}},
		{0, 1500, []string{"device own", "at most 1500 bytes", "the MTU is 65485", "set the MTU to 1500"}},
		{0, 65535, nil},
	} {
		cfg := testConfig(t, 1)
		cfg.MTU, cfg.FastPath = tt.mtu, "off"
		cfg.Tunnel = tunnel.NewMemory(tunnel.MemoryConfig{Name: "own", Features: tunnel.Features{MaxPacket: tt.holds}})
		n := newNode(t, cfg)
		err := n.Start(t.Context())
		if tt.refused != nil {
			oneLine(t, err, tt.refused...)
		} else if err != nil {
			t.Errorf("MTU %d in a device for %d: %v", tt.mtu, tt.holds, err)
		}
		n.Stop()
	}
}
