package kernel_test

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/internal/kernel/lab"
)

// bothFamilies are the ways in which an inner packet and an outer one may differ
// in family.
func bothFamilies(do func(outer4, inner4 bool)) {
	for _, outer4 := range []bool{true, false} {
		for _, inner4 := range []bool{true, false} {
			do(outer4, inner4)
		}
	}
}

func (g *guarded) underlay(n int, four bool) netip.Addr {
	if four {
		return g.hosts[n-1].Addr4()
	}
	return g.hosts[n-1].Addr6()
}

// What the kernel of a peer sends is delivered and counted.
func TestGuardLetsPeersIn(t *testing.T) { everyIndex(t, guardLetsPeersIn) }

func guardLetsPeersIn(t *testing.T, g *guarded) {
	for _, four := range []bool{true, false} {
		res, err := g.hosts[1].Ping(t.Context(), lab.PingConfig{Dst: vtep(1, four), Count: 3, Interval: 10 * time.Millisecond})
		g.ok(err)
		if res.Received != 3 {
			t.Errorf("pings over VXLAN: %+v", res)
		}
	}
	if c := g.path(2); c.RxPackets != 6 || c.TxPackets != 6 || c.RxBytes != c.TxBytes || c.RxBytes < 6*28 {
		t.Errorf("counted %+v for 6 pings and their answers", c)
	}
	bothFamilies(func(outer4, inner4 bool) {
		g.inject(2, g.onWire(toPort(g.underlay(2, outer4), g.underlay(1, outer4), 4789, inVXLAN(datagram(vtep(2, inner4), "good")))))
		g.heard(inner4, "good")
		// A host answers with its underlay address.
		g.inject(2, g.onWire(toPort(g.underlay(2, outer4), g.underlay(1, outer4), 4789, inVXLAN(datagram(g.underlay(2, inner4), "host")))))
		g.heard(inner4, "host")
	})
}

// What comes from somebody else, or as somebody else, is not.
func TestGuardVXLANSource(t *testing.T) { everyIndex(t, guardVXLANSource) }

func guardVXLANSource(t *testing.T, g *guarded) {
	bothFamilies(func(outer4, inner4 bool) {
		us, peer, stranger := g.underlay(1, outer4), g.underlay(2, outer4), g.underlay(3, outer4)
		g.dropped("guard_vxlan_source", 1, func() {
			g.inject(2, g.onWire(toPort(stranger, us, 4789, inVXLAN(datagram(vtep(2, inner4), "stranger")))))
		})
		g.dropped("guard_vxlan_source", 1, func() {
			g.inject(2, g.onWire(toPort(peer, us, 4789, inVXLAN(datagram(vtep(3, inner4), "third")))))
		})
		g.dropped("guard_vxlan_source", 1, func() {
			g.inject(2, g.onWire(toPort(peer, us, 4789, inVXLAN(datagram(vtep(1, inner4), "ourselves")))))
		})
	})
}

// superpacket sends datagrams of the same length as one, which the link passes
// on whole: the kernel cuts it behind the input hook.
func (g *guarded) superpacket(four bool, bodies ...[]byte) {
	g.Helper()
	conn, err := g.hosts[1].ListenUDP(netip.AddrPortFrom(g.underlay(2, four), 0))
	g.ok(err)
	defer conn.Close()
	raw, err := conn.SyscallConn()
	g.ok(err)
	g.ok(raw.Control(func(fd uintptr) {
		g.ok(unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, len(bodies[0])))
	}))
	_, err = conn.WriteToUDPAddrPort(slices.Concat(bodies...), netip.AddrPortFrom(g.underlay(1, four), 4789))
	g.ok(err)
}

// A peer that sends many datagrams as one superpacket is seen with the first
// alone by the input hook.
func TestGuardSuperpacket(t *testing.T) { everyIndex(t, guardSuperpacket) }

func guardSuperpacket(t *testing.T, g *guarded) {
	bothFamilies(func(outer4, inner4 bool) {
		good, bad := inVXLAN(datagram(vtep(2, inner4), "good1")), inVXLAN(datagram(vtep(3, inner4), "wrong"))
		also := inVXLAN(datagram(vtep(2, inner4), "good2"))
		g.dropped("guard_vxlan_source", 2, func() {
			g.superpacket(outer4, good, bad, also, bad)
			g.heard(inner4, "good1")
			g.heard(inner4, "good2")
		})
		// The first frame may even be of another network.
		other := vxlanHeader(8, 2, ethernet(vtepMAC(1), vtepMAC(2), datagram(vtep(2, inner4), "other")))
		g.dropped("guard_vxlan_source", 1, func() { g.superpacket(outer4, other, also) })
	})
}

// What is not for us, or is no packet, is dropped or left to others.
func TestGuardVXLANFrames(t *testing.T) { everyIndex(t, guardVXLANFrames) }

func guardVXLANFrames(t *testing.T, g *guarded) {
	var attacks []attack
	bothFamilies(func(outer4, inner4 bool) {
		us, peer := g.underlay(1, outer4), g.underlay(2, outer4)
		send := func(body []byte) [][]byte { return [][]byte{g.onWire(toPort(peer, us, 4789, body))} }
		packet := datagram(vtep(2, inner4), "attack")
		tagged := append([]byte{0, 5, packet0(packet)[0], packet0(packet)[1]}, packet...)
		elsewhere := netip.MustParseAddr("100.96.9.1")
		if !inner4 {
			elsewhere = netip.MustParseAddr("fd96:0:0:9::1")
		}
		passing := ip(vtep(2, inner4), elsewhere, unix.IPPROTO_UDP, udp(vtep(2, inner4), elsewhere, 1, 2, []byte("attack")))
		frame := ethernet(vtepMAC(1), vtepMAC(2), packet)
		attacks = append(attacks,
			attack{"VLAN", "guard_vxlan_frame", 1, false, send(vxlanHeader(8, 1, etherFrame(vtepMAC(1), vtepMAC(2), unix.ETH_P_8021Q, tagged)))},
			attack{"ARP", "guard_vxlan_frame", 1, false, send(vxlanHeader(8, 1, etherFrame(vtepMAC(1), vtepMAC(2), unix.ETH_P_ARP, make([]byte, 28))))},
			attack{"no frame", "guard_vxlan_frame", 1, false, send(vxlanHeader(8, 1, nil))},
			attack{"half a frame", "guard_vxlan_frame", 1, false, send(vxlanHeader(8, 1, frame[:13]))},
			attack{"half a header", "guard_vxlan_frame", 1, false, send([]byte{8, 0, 0, 0, 0})},
			attack{"half an inner header", "", 0, false, send(vxlanHeader(8, 1, frame[:30]))},
			attack{"half an inner packet", "", 0, false, send(vxlanHeader(8, 1, frame[:len(frame)-1]))},
			attack{"no VNI flag", "", 0, false, send(vxlanHeader(0, 1, frame))},
			attack{"reserved flag", "", 0, false, send(vxlanHeader(0x88, 1, frame))},
			attack{"another network", "", 0, false, send(vxlanHeader(8, 2, frame))},
			attack{"another port", "", 0, false, [][]byte{g.onWire(toPort(peer, us, 4790, inVXLAN(packet)))}},
			attack{"through us", "guard_vxlan_destination", 1, false, send(inVXLAN(passing))},
			attack{"one family in the other's frame", "", 0, false, send(vxlanHeader(8, 1, etherFrame(vtepMAC(1), vtepMAC(2), unix.ETH_P_IP+unix.ETH_P_IPV6-packet1(packet), packet)))},
			attack{"as a stranger", "guard_vxlan_source", 1, true, [][]byte{g.onWire(toPort(g.underlay(3, outer4), us, 4789, inVXLAN(packet)))}},
			attack{"as another peer", "guard_vxlan_source", 1, true, send(inVXLAN(datagram(vtep(3, inner4), "attack")))},
			attack{"as anybody", "guard_vxlan_source", 1, true, send(inVXLAN(datagram(g.underlay(3, inner4), "attack")))},
		)
		if outer4 {
			everyone, group := netip.MustParseAddr("192.0.2.255"), netip.MustParseAddr("224.0.0.1")
			attacks = append(attacks,
				attack{"to all", "guard_vxlan_destination", 1, true, [][]byte{g.onWire(toPort(peer, everyone, 4789, inVXLAN(packet)))}},
				attack{"to a group", "guard_vxlan_destination", 1, true, [][]byte{ethernet([]byte{1, 0, 0x5e, 0, 0, 1}, g.mac(2, "eth0"), toPort(peer, group, 4789, inVXLAN(packet)))}},
				attack{"to another address of ours", "guard_vxlan_destination", 1, true, [][]byte{g.onWire(toPort(peer, vtep(1, true), 4789, inVXLAN(packet)))}},
				attack{"options", "guard_vxlan_source", 1, true, [][]byte{g.onWire(ip4(peer, us, unix.IPPROTO_UDP, 1, 0, []byte{1, 1, 1, 0},
					udp(peer, us, 5555, 4789, inVXLAN(datagram(vtep(3, inner4), "attack")))))}},
			)
		} else {
			group := netip.MustParseAddr("ff02::1")
			attacks = append(attacks,
				attack{"to a group", "guard_vxlan_destination", 1, true, [][]byte{ethernet([]byte{0x33, 0x33, 0, 0, 0, 1}, g.mac(2, "eth0"), toPort(peer, group, 4789, inVXLAN(packet)))}},
				attack{"options", "guard_vxlan_source", 1, true, [][]byte{g.onWire(ip6(peer, us, unix.IPPROTO_DSTOPTS,
					padding(unix.IPPROTO_UDP, udp(peer, us, 5555, 4789, inVXLAN(datagram(vtep(3, inner4), "attack"))))))}},
			)
		}
		if inner4 {
			attacks = append(attacks, attack{"inner options", "guard_vxlan_source", 1, true, send(inVXLAN(ip4(vtep(3, true), vtep(1, true), unix.IPPROTO_UDP, 1, 0,
				[]byte{1, 1, 1, 0}, udp(vtep(3, true), vtep(1, true), 1, earPort, []byte("attack")))))})
		} else {
			attacks = append(attacks, attack{"inner options", "guard_vxlan_source", 1, true, send(inVXLAN(ip6(vtep(3, false), vtep(1, false), unix.IPPROTO_DSTOPTS,
				padding(unix.IPPROTO_UDP, udp(vtep(3, false), vtep(1, false), 1, earPort, []byte("attack"))))))})
		}
	})
	g.withstand(attacks)
}

// packet0 and packet1 are the EtherType of a packet, in bytes and as a number.
func packet0(packet []byte) []byte { return ethernet(vtepMAC(1), vtepMAC(2), packet)[12:14] }

func packet1(packet []byte) uint16 { return binary.BigEndian.Uint16(packet0(packet)) }

// An odd outer header is no reason to drop what a peer may send.
func TestGuardOddButGood(t *testing.T) { everyIndex(t, guardOddButGood) }

func guardOddButGood(t *testing.T, g *guarded) {
	for _, inner4 := range []bool{true, false} {
		us, peer := g.underlay(1, true), g.underlay(2, true)
		g.inject(2, g.onWire(ip4(peer, us, unix.IPPROTO_UDP, 1, 0, []byte{1, 1, 1, 0}, udp(peer, us, 5555, 4789, inVXLAN(datagram(vtep(2, inner4), "good"))))))
		g.heard(inner4, "good")
		us, peer = g.underlay(1, false), g.underlay(2, false)
		g.inject(2, g.onWire(ip6(peer, us, unix.IPPROTO_DSTOPTS, padding(unix.IPPROTO_UDP, udp(peer, us, 5555, 4789, inVXLAN(datagram(vtep(2, inner4), "good")))))))
		g.heard(inner4, "good")
	}
	// Inner fragments are the peer's business.
	whole := udp(vtep(2, true), vtep(1, true), 1, earPort, []byte("in two fragments"))
	for _, f := range cut4(vtep(2, true), vtep(1, true), 77, nil, whole, 16) {
		g.inject(2, g.onWire(toPort(g.underlay(2, false), g.underlay(1, false), 4789, inVXLAN(f))))
	}
	g.heard(true, "in two fragments")
}
