package e2e_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/internal/kernel/lab"
	"github.com/overlayd/overlayd/internal/kernel/lab/labtest"
)

// The tests in this file follow those of the kernel for its own device, as far as
// they are about an end of a tunnel: vxlan_reserved.sh and vxlan_bridge_1d.sh of
// tools/testing/selftests/net/forwarding. Each names the case that it follows.

// forger is a VTEP whose frames are made by the test.
type forger struct {
	host   *lab.Host
	victim *node
	mac    net.HardwareAddr // of the victim's VTEP
	inner  netip.Addr       // an address of the forger's subnet
}

var forgerMAC = net.HardwareAddr{2, 0, 0, 0, 0, 0xfe}

// forged starts a node with a forger as its only peer.
func forged(t *testing.T, args ...string) (*node, *forger) {
	t.Helper()
	_, _, nodes := cluster(t, 2)
	a, subnets := nodes[0], subnetsOf(200)
	f := &forger{host: nodes[1].Host, victim: a, inner: subnets[0].Addr().Next().Next()}
	for _, at := range []netip.Addr{f.host.Addr4(), f.host.Addr6()} {
		i := 0
		if at.Is6() {
			i = 1
		}
		args = append(args, fmt.Sprintf("--static-peer=name=forger%d,endpoint=%v,subnet=%v,vtep-mac=%v", i, at, subnets[i], forgerMAC))
	}
	open, err := f.host.ListenUDP(netip.AddrPortFrom(netip.IPv6Unspecified(), vxlanPort)) // or its kernel sends ICMP errors
	must(t, err)
	t.Cleanup(func() { open.Close() })
	a.start(t, append(args, "--encap", "vxlan", "--subnet", subnetsOf(1)[0].String()+","+subnetsOf(1)[1].String())...)
	a.lease(t)
	a.attach(t)
	mac, err := net.ParseMAC(a.status(t).Node.VTEPMAC)
	must(t, err)
	f.mac = mac
	return a, f
}

// serialized joins layers.
func serialized(t *testing.T, ls ...gopacket.SerializableLayer) []byte {
	t.Helper()
	buf := gopacket.NewSerializeBuffer()
	must(t, gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ls...))
	return bytes.Clone(buf.Bytes())
}

// frame is a VXLAN frame with an inner UDP packet to the victim's container.
func (f *forger) frame(t *testing.T, tos uint8, payload string) []byte {
	t.Helper()
	ip := &layers.IPv4{Version: 4, TTL: 64, TOS: tos, Protocol: layers.IPProtocolUDP, SrcIP: f.inner.AsSlice(), DstIP: f.victim.container.Addr4().AsSlice()}
	udp := &layers.UDP{SrcPort: 4444, DstPort: 5555}
	must(t, udp.SetNetworkLayerForChecksum(ip))
	return serialized(t, &layers.VXLAN{ValidIDFlag: true, VNI: 1},
		&layers.Ethernet{SrcMAC: forgerMAC, DstMAC: f.mac, EthernetType: layers.EthernetTypeIPv4}, ip, udp, gopacket.Payload(payload))
}

// send sends frames over IPv4 with an outer TOS.
func (f *forger) send(t *testing.T, tos int, frames ...[]byte) {
	t.Helper()
	c, err := f.host.ListenUDP(netip.AddrPortFrom(f.host.Addr4(), 0))
	must(t, err)
	defer c.Close()
	raw, err := c.SyscallConn()
	must(t, err)
	must(t, raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TOS, tos) }), err)
	for _, b := range frames {
		_, err := c.WriteToUDPAddrPort(b, netip.AddrPortFrom(f.victim.Addr4(), vxlanPort))
		must(t, err)
	}
}

// receiver collects what the victim's container receives.
func (f *forger) receiver(t *testing.T) *lab.Capture {
	t.Helper()
	open, err := f.victim.container.ListenUDP(netip.MustParseAddrPort("[::]:5555")) // nobody answers with ICMP
	must(t, err)
	t.Cleanup(func() { open.Close() })
	c, err := f.victim.container.Capture("eth0", func(p []byte) bool { return bytes.Contains(p, []byte("vxlan-selftest")) })
	must(t, err)
	t.Cleanup(c.Stop)
	return c
}

// got waits until a marker that was sent last has arrived, and returns the TOS and
// the payload of all that has.
func got(t *testing.T, c *lab.Capture, last string) (tos []uint8, payloads []string) {
	t.Helper()
	labtest.Eventually(t, 10*time.Second, func() error {
		tos, payloads = nil, nil
		for _, p := range c.Packets() {
			pkt := gopacket.NewPacket(p.Data, layers.LayerTypeEthernet, gopacket.Default)
			ip, _ := pkt.Layer(layers.LayerTypeIPv4).(*layers.IPv4)
			if app := pkt.ApplicationLayer(); ip != nil && app != nil {
				tos, payloads = append(tos, ip.TOS), append(payloads, string(app.Payload()))
			}
		}
		if len(payloads) == 0 || payloads[len(payloads)-1] != last {
			return fmt.Errorf("%q has not arrived: %q", last, payloads)
		}
		return nil
	})
	return tos, payloads
}

// TestVXLANReserved: vxlan_reserved.sh, default_test and those of single bits. Each
// reserved bit alone has a frame dropped and counted; with
// "rfc", as with the kernel's RESERVED_BITS attribute, it is ignored.
func TestVXLANReserved(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"strict", "rfc"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			a, f := forged(t, "--vxlan-reserved", mode)
			c := f.receiver(t)
			var frames [][]byte
			var want []string
			for bit := range 64 {
				if bit == 4 || bit/8 >= 4 && bit/8 < 7 { // I, and the VNI
					continue
				}
				b := f.frame(t, 0, fmt.Sprintf("vxlan-selftest bit %d", bit))
				b[bit/8] |= 0x80 >> (bit % 8)
				frames = append(frames, b)
				if mode == "rfc" {
					want = append(want, fmt.Sprintf("vxlan-selftest bit %d", bit))
				}
			}
			without := f.frame(t, 0, "vxlan-selftest without I")
			without[0] = 0
			before := a.status(t).Drops["rx_vxlan_reserved"]
			f.send(t, 0, append(frames, without, f.frame(t, 0, "vxlan-selftest last"))...)
			_, payloads := got(t, c, "vxlan-selftest last")
			if want = append(want, "vxlan-selftest last"); !slices.Equal(payloads, want) {
				t.Errorf("arrived: %q, want %q", payloads, want)
			}
			dropped := uint64(1)
			if mode == "strict" {
				dropped += uint64(len(frames))
			}
			if n := a.status(t).Drops["rx_vxlan_reserved"] - before; n != dropped {
				t.Errorf("%d counted, want %d", n, dropped)
			}
		})
	}
}

// TestVXLANECNDecap: vxlan_bridge_1d.sh, test_ecn_decap: every outer with every inner
// ECN, in the order of the kernel's table (RFC 6040, figure 4).
func TestVXLANECNDecap(t *testing.T) {
	t.Parallel()
	a, f := forged(t)
	c := f.receiver(t)
	const dropped = 0xff
	table := [4][4]uint8{ // by outer, inner
		{0, 1, 2, 3}, {0, 1, 1, 3}, {0, 1, 2, 3}, {dropped, 3, 3, 3},
	}
	var want []string
	const dscp = 0x28 // of the inner header, which stays
	for outer := range uint8(4) {
		for inner := range uint8(4) {
			f.send(t, int(outer), f.frame(t, dscp|inner, fmt.Sprintf("vxlan-selftest %d %d", outer, inner)))
			if table[outer][inner] != dropped {
				want = append(want, fmt.Sprintf("vxlan-selftest %d %d: %#x", outer, inner, dscp|table[outer][inner]))
			}
		}
	}
	f.send(t, 0, f.frame(t, 0, "vxlan-selftest last"))
	tos, payloads := got(t, c, "vxlan-selftest last")
	var all []string
	for i := range payloads[:len(payloads)-1] {
		all = append(all, fmt.Sprintf("%s: %#x", payloads[i], tos[i]))
	}
	if !slices.Equal(all, want) {
		t.Errorf("arrived: %q, want %q", all, want)
	}
	if n := a.status(t).Drops["rx_ecn"]; n != 1 {
		t.Errorf("%d counted as rx_ecn", n)
	}
}

// TestVXLANTOSAndTTL: vxlan_bridge_1d.sh, test_tos, test_ecn_encap and test_ttl: the
// outer TOS is the inner one with its ECN, over IPv4 and IPv6; the outer TTL is the
// host's, whatever the inner one is, and the packet arrives with one hop less for each
// host.
func TestVXLANTOSAndTTL(t *testing.T) {
	t.Parallel()
	a, f := forged(t)
	for _, inner := range a.container.Addrs() {
		dst, outerVersion := f.inner, layers.LayerTypeIPv4
		if inner.Is6() {
			dst, outerVersion = subnetsOf(200)[1].Addr().Next().Next(), layers.LayerTypeIPv6
		}
		c, err := a.Capture("eth0", func(p []byte) bool { return bytes.Contains(p, []byte("vxlan-selftest")) })
		must(t, err)
		out, err := a.container.Dial(within(t, 10*time.Second), "udp", netip.AddrPortFrom(dst, 9))
		must(t, err)
		defer out.Close()
		raw, err := out.(*net.UDPConn).SyscallConn()
		must(t, err)
		type header struct{ tos, ttl uint8 }
		sent := []header{{0, 64}, {0x40, 64}, {0x41, 10}, {0x42, 200}, {0xff, 255}, {3, 3}}
		for _, h := range sent {
			must(t, raw.Control(func(fd uintptr) {
				if inner.Is6() {
					err = errors.Join(unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_TCLASS, int(h.tos)), unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, int(h.ttl)))
				} else {
					err = errors.Join(unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TOS, int(h.tos)), unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TTL, int(h.ttl)))
				}
			}), err)
			_, err := out.Write([]byte("vxlan-selftest"))
			must(t, err)
			must(t, c.Wait(within(t, 10*time.Second), 1+slices.Index(sent, h))) // in order, and not joined
		}
		for i, p := range c.Packets() {
			all := gopacket.NewPacket(p.Data, layers.LayerTypeEthernet, gopacket.Default)
			var o, in header
			switch ip := all.Layer(outerVersion).(type) {
			case *layers.IPv4:
				o = header{ip.TOS, ip.TTL}
			case *layers.IPv6:
				o = header{ip.TrafficClass, ip.HopLimit}
			}
			udp, _ := all.Layer(layers.LayerTypeUDP).(*layers.UDP)
			if udp == nil || udp.DstPort != vxlanPort || udp.Checksum == 0 {
				t.Fatalf("%v", all)
			}
			vx := gopacket.NewPacket(udp.Payload, layers.LayerTypeVXLAN, gopacket.Default)
			eth, _ := vx.Layer(layers.LayerTypeEthernet).(*layers.Ethernet)
			switch ip := vx.NetworkLayer().(type) {
			case *layers.IPv4:
				in = header{ip.TOS, ip.TTL}
			case *layers.IPv6:
				in = header{ip.TrafficClass, ip.HopLimit}
			}
			if eth == nil || !bytes.Equal(eth.DstMAC, forgerMAC) || !bytes.Equal(eth.SrcMAC, f.mac) {
				t.Errorf("%v", vx)
			}
			if want := (header{sent[i].tos, 64}); o != want || in != (header{sent[i].tos, sent[i].ttl - 1}) {
				t.Errorf("sent %+v: outer %+v, want %+v; inner %+v", sent[i], o, want, in)
			}
		}
		c.Stop()
	}
}

// TestVXLANChecksums: a zero outer UDP checksum is taken, a wrong one is not, over
// IPv4 (RFC 768) and IPv6 (RFC 6935 section 5): the udp6zerocsumrx of the kernel.
func TestVXLANChecksums(t *testing.T) {
	t.Parallel()
	a, f := forged(t)
	// A socket, since a capture sees what was joined in one piece.
	open, err := a.container.ListenUDP(netip.MustParseAddrPort("[::]:5555"))
	must(t, err)
	defer open.Close()
	var want []string
	for _, six := range []bool{false, true} {
		src, dst := address(f.host, six), address(a.Host, six)
		for _, kind := range []string{"right", "zero", "wrong"} {
			name := fmt.Sprintf("vxlan-selftest %s %v", kind, six)
			inner := f.frame(t, 0, name)
			if six { // a peer of its own, with a subnet of IPv6 alone
				inner = f.frame6(t, name)
			}
			udp := serializedUDP(t, src, dst, inner)
			switch kind {
			case "zero":
				udp[6], udp[7] = 0, 0
			case "wrong":
				udp[7] ^= 1
				if binary.BigEndian.Uint16(udp[6:]) == 0 {
					udp[6] = 1
				}
			}
			must(t, sendRaw(f.host, dst, udp))
			if kind != "wrong" {
				want = append(want, name)
			}
		}
	}
	f.send(t, 0, f.frame(t, 0, "vxlan-selftest last"))
	want = append(want, "vxlan-selftest last")
	var payloads []string
	for b := make([]byte, 100); len(payloads) < len(want); {
		must(t, open.SetReadDeadline(time.Now().Add(10*time.Second)))
		n, err := open.Read(b)
		must(t, err)
		payloads = append(payloads, string(b[:n]))
	}
	slices.Sort(payloads) // the two families have a socket each
	slices.Sort(want)
	if !slices.Equal(payloads, want) {
		t.Errorf("arrived: %q, want %q", payloads, want)
	}
	labtest.Eventually(t, 10*time.Second, func() error {
		if n := a.status(t).Drops["rx_checksum"]; n != 2 {
			return fmt.Errorf("%d counted: %v", n, a.status(t).Drops)
		}
		return nil
	})
}

// frame6 is a frame with an inner UDP packet of IPv6.
func (f *forger) frame6(t *testing.T, payload string) []byte {
	t.Helper()
	ip := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolUDP, SrcIP: subnetsOf(200)[1].Addr().Next().Next().AsSlice(), DstIP: f.victim.container.Addr6().AsSlice()}
	udp := &layers.UDP{SrcPort: 4444, DstPort: 5555}
	must(t, udp.SetNetworkLayerForChecksum(ip))
	return serialized(t, &layers.VXLAN{ValidIDFlag: true, VNI: 1},
		&layers.Ethernet{SrcMAC: forgerMAC, DstMAC: f.mac, EthernetType: layers.EthernetTypeIPv6}, ip, udp, gopacket.Payload(payload))
}

// serializedUDP is an outer UDP header, with its checksum, and what follows.
func serializedUDP(t *testing.T, src, dst netip.Addr, payload []byte) []byte {
	t.Helper()
	udp := &layers.UDP{SrcPort: 50000, DstPort: vxlanPort}
	if src.Is4() {
		must(t, udp.SetNetworkLayerForChecksum(&layers.IPv4{Version: 4, Protocol: layers.IPProtocolUDP, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}))
	} else {
		must(t, udp.SetNetworkLayerForChecksum(&layers.IPv6{Version: 6, NextHeader: layers.IPProtocolUDP, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}))
	}
	return serialized(t, udp, gopacket.Payload(payload))
}

// sendRaw sends what follows the IP header as it is.
func sendRaw(h *lab.Host, dst netip.Addr, b []byte) error {
	return h.Do(func() error {
		family, to := unix.AF_INET, unix.Sockaddr(nil)
		if dst.Is4() {
			to = &unix.SockaddrInet4{Addr: dst.As4()}
		} else {
			family, to = unix.AF_INET6, &unix.SockaddrInet6{Addr: dst.As16()}
		}
		fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, b, 0, to)
	})
}
