package e2e_test

import (
	"bytes"
	"flag"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/overlayd/overlayd/internal/kernel/lab"
	"github.com/overlayd/overlayd/internal/kernel/lab/labtest"
)

// intrusions is how many packets of each kind TestIntruders sends.
var intrusions = flag.Int("intrusions", 3000, "how many packets of each kind TestIntruders sends")

// frame is what an intruder sends: the addresses of each of its layers.
type frame struct {
	srcMAC, dstMAC net.HardwareAddr
	src, dst       netip.Addr
	inner          []byte // the inner IP packet of VXLAN, or the UDP payload to port
	port           uint16
	vtep           net.HardwareAddr // of VXLAN, for which it is
}

// bytes builds it.
func (f frame) bytes(t *testing.T) []byte {
	t.Helper()
	stack := []gopacket.SerializableLayer{}
	kind := layers.EthernetTypeIPv4
	if f.src.Is6() {
		kind = layers.EthernetTypeIPv6
	}
	stack = append(stack, &layers.Ethernet{SrcMAC: f.srcMAC, DstMAC: f.dstMAC, EthernetType: kind})
	if f.port == 0 { // a plain packet
		return packed(t, append(stack, gopacket.Payload(f.inner))...)
	}
	udp := &layers.UDP{SrcPort: 40000, DstPort: layers.UDPPort(f.port)}
	if f.src.Is4() {
		ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolUDP, SrcIP: f.src.AsSlice(), DstIP: f.dst.AsSlice()}
		must(t, udp.SetNetworkLayerForChecksum(ip))
		stack = append(stack, ip, udp)
	} else {
		ip := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolUDP, SrcIP: f.src.AsSlice(), DstIP: f.dst.AsSlice()}
		must(t, udp.SetNetworkLayerForChecksum(ip))
		stack = append(stack, ip, udp)
	}
	if f.vtep != nil {
		kind := layers.EthernetTypeIPv4
		if f.inner[0]>>4 == 6 {
			kind = layers.EthernetTypeIPv6
		}
		stack = append(stack, &layers.VXLAN{ValidIDFlag: true, VNI: 1},
			&layers.Ethernet{SrcMAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, DstMAC: f.vtep, EthernetType: kind})
	}
	return packed(t, append(stack, gopacket.Payload(f.inner))...)
}

func packed(t *testing.T, stack ...gopacket.SerializableLayer) []byte {
	t.Helper()
	buf := gopacket.NewSerializeBuffer()
	must(t, gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, stack...))
	return bytes.Clone(buf.Bytes())
}

// inTwo cuts a frame's IP packet into two fragments, the first of which holds no more than
// the UDP header (RFC 791, RFC 8200 section 4.5).
func inTwo(t *testing.T, b []byte) [][]byte {
	t.Helper()
	const ether, first = 14, 8
	if b[ether]>>4 == 4 {
		ip := &layers.IPv4{}
		must(t, ip.DecodeFromBytes(b[ether:], gopacket.NilDecodeFeedback))
		var out [][]byte
		for i, part := range [][]byte{ip.Payload[:first], ip.Payload[first:]} {
			h := &layers.IPv4{Version: 4, TTL: 64, Id: 77, Protocol: ip.Protocol, SrcIP: ip.SrcIP, DstIP: ip.DstIP, FragOffset: uint16(i)}
			if i == 0 {
				h.Flags = layers.IPv4MoreFragments
			}
			out = append(out, append(bytes.Clone(b[:ether]), packed(t, h, gopacket.Payload(part))...))
		}
		return out
	}
	ip := &layers.IPv6{}
	must(t, ip.DecodeFromBytes(b[ether:], gopacket.NilDecodeFeedback))
	var out [][]byte
	for i, part := range [][]byte{ip.Payload[:first], ip.Payload[first:]} {
		head := []byte{byte(ip.NextHeader), 0, 0, byte(i << 3), 0, 0, 0, 77}
		if i == 0 {
			head[3] |= 1
		}
		h := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolIPv6Fragment, SrcIP: ip.SrcIP, DstIP: ip.DstIP}
		out = append(out, append(bytes.Clone(b[:ether]), packed(t, h, gopacket.Payload(append(head, part...)))...))
	}
	return out
}

// TestIntruders: nobody gets a packet into a container by a kernel path who may not: a
// stranger on the link, a peer with another's source, in whole or in fragments, a container
// that poses as its host or as a peer.
func TestIntruders(t *testing.T) {
	t.Parallel()
	_, sw, nodes := seeded(t, 3, "--fast-path", "auto")
	stranger, err := sw.Host("stranger", lab.PortConfig{})
	must(t, err)
	victim, evil, third := nodes[0], nodes[1], nodes[2]
	for _, n := range nodes {
		must(t, n.Sysctl("net/ipv4/conf/all/rp_filter", "0"), n.Sysctl("net/ipv4/conf/eth0/rp_filter", "0"), n.Sysctl("net/ipv4/conf/br0/rp_filter", "0"))
	}
	must(t, evil.Masquerade(sw.Net4(), sw.Net6()))
	for _, kind := range []string{"kernel-vxlan", "direct"} { // both are open, whichever is used
		evil.setPath(t, victim, kind)
		victim.setPath(t, evil, kind)
	}
	mac := func(n *lab.Namespace, iface string) net.HardwareAddr {
		m, err := n.MAC(iface)
		must(t, err)
		return m
	}
	victimMAC := mac(victim.Namespace, "eth0")
	vtep, err := net.ParseMAC(victim.status(t).Node.VTEPMAC)
	must(t, err)
	hasMarker := func(p []byte) bool { return bytes.Contains(p, marker) }
	reached, err := victim.container.Capture("eth0", hasMarker)
	must(t, err)
	open, err := victim.container.ListenUDP(netip.MustParseAddrPort("[::]:5555"))
	must(t, err)
	defer open.Close()
	own, err := victim.ListenUDP(netip.MustParseAddrPort("[::]:5555"))
	must(t, err)
	defer own.Close()

	for _, four := range []bool{true, false} {
		family := "IPv6"
		if four {
			family = "IPv4"
		}
		of := func(n interface {
			Addr4() netip.Addr
			Addr6() netip.Addr
		}) netip.Addr {
			if four {
				return n.Addr4()
			}
			return n.Addr6()
		}
		vxlanOf := func(from netip.Addr, fromMAC net.HardwareAddr, inner []byte) []byte {
			return frame{srcMAC: fromMAC, dstMAC: victimMAC, src: from, dst: of(victim.Host), inner: inner, port: 4789, vtep: vtep}.bytes(t)
		}
		good := innerUDP(t, of(evil.container), of(victim.container))
		posing := innerUDP(t, of(third.container), of(victim.container))
		strangerMAC, evilMAC := mac(stranger.Namespace, "eth0"), mac(evil.Namespace, "eth0")
		c := evil.container
		behind := func(port uint16, vtep net.HardwareAddr, inner []byte) []byte {
			return frame{srcMAC: mac(c.Namespace, "eth0"), dstMAC: mac(evil.Namespace, "br0"), src: of(c), dst: of(victim.Host), inner: inner, port: port, vtep: vtep}.bytes(t)
		}
		sibling := innerUDP(t, of(c).Next(), of(victim.container)) // of the same host
		local := func(port uint16, vtep net.HardwareAddr) []byte {
			return frame{srcMAC: mac(victim.container.Namespace, "eth0"), dstMAC: mac(victim.Namespace, "br0"), src: of(evil.Host), dst: of(victim.Host), inner: good, port: port, vtep: vtep}.bytes(t)
		}
		for _, tt := range []struct {
			name   string
			from   *lab.Namespace
			iface  string
			frames [][]byte
			at     *node
			reason string // counted there, for each frame or, in fragments, each datagram
			passes bool
		}{
			{"what may pass", evil.Namespace, "eth0", [][]byte{vxlanOf(of(evil.Host), evilMAC, good)}, nil, "", true},
			{"what may pass directly", evil.Namespace, "eth0", [][]byte{frame{srcMAC: evilMAC, dstMAC: victimMAC, src: of(evil.container), inner: good}.bytes(t)}, nil, "", true},
			{"VXLAN of a stranger", stranger.Namespace, "eth0", [][]byte{vxlanOf(of(stranger), strangerMAC, good)}, victim, "guard_vxlan_source", false},
			{"VXLAN of a peer with another's source", evil.Namespace, "eth0", [][]byte{vxlanOf(of(evil.Host), evilMAC, posing)}, victim, "guard_vxlan_source", false},
			{"VXLAN of a peer in fragments", evil.Namespace, "eth0", inTwo(t, vxlanOf(of(evil.Host), evilMAC, posing)), victim, "guard_vxlan_fragment", false},
			{"VXLAN of a stranger in fragments", stranger.Namespace, "eth0", inTwo(t, vxlanOf(of(stranger), strangerMAC, good)), victim, "guard_vxlan_fragment", false},
			{"a plain packet of a stranger", stranger.Namespace, "eth0", [][]byte{frame{srcMAC: strangerMAC, dstMAC: victimMAC, src: of(evil.container), inner: good}.bytes(t)}, victim, "guard_plain_source", false},
			{"a plain packet of a peer with another's source", evil.Namespace, "eth0", [][]byte{frame{srcMAC: evilMAC, dstMAC: victimMAC, src: of(third.container), inner: posing}.bytes(t)}, victim, "guard_plain_source", false},
			{"a container that poses as its host, by VXLAN", c.Namespace, "eth0", [][]byte{behind(4789, vtep, sibling)}, evil, "guard_forwarded", false},
			{"a container that poses as its host, by the udp encap", c.Namespace, "eth0", [][]byte{behind(8285, nil, sibling)}, evil, "guard_forwarded", false},
			{"a container that poses as a peer at its own host, by VXLAN", victim.container.Namespace, "eth0", [][]byte{local(4789, vtep)}, victim, "guard_spoofed_outer", false},
			{"a container that poses as a peer at its own host, by the udp encap", victim.container.Namespace, "eth0", [][]byte{local(8285, nil)}, victim, "guard_spoofed_outer", false},
		} {
			t.Run(family+" "+tt.name, func(t *testing.T) {
				before := reached.Count()
				var counted uint64
				if tt.at != nil {
					counted = tt.at.status(t).Drops[tt.reason]
				}
				count := *intrusions
				if tt.passes {
					count = 10
				}
				must(t, tt.from.Inject(tt.iface, tt.frames, count))
				if tt.passes {
					must(t, reached.Wait(within(t, 5*time.Second), before+count))
					return
				}
				want := uint64(count / len(tt.frames))
				labtest.Eventually(t, 5*time.Second, func() error {
					if n := tt.at.status(t).Drops[tt.reason] - counted; n < want {
						return errNotYet
					}
					return nil
				})
				if n := reached.Count() - before; n != 0 && tt.from != victim.container.Namespace {
					t.Errorf("%d of %d have reached the container", n, count)
				} else if tt.from == victim.container.Namespace && n != count { // what it sent itself
					t.Errorf("%d of %d were seen at the container", n, count)
				}
			})
		}
	}
}
