package kernel_test

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/internal/kernel"
	"github.com/overlayd/overlayd/internal/kernel/lab"
)

// container gives the first host a bridge with a container, whose addresses are
// in the host's subnets.
func (g *guarded) container() (c *lab.Container, bridge net.HardwareAddr) {
	g.Helper()
	b, err := g.hosts[0].Bridge(lab.BridgeConfig{Addrs: prefixes("100.96.1.1/24", "fd96:0:0:1::1/64")})
	g.ok(err)
	c, err = b.Container("c1")
	g.ok(err)
	if g.knows != unknown {
		g.guard.Inside = []string{"br0"}
		g.set()
	}
	g.in(0, func(nl *netlink.Handle) error {
		l, err := nl.LinkByName("br0")
		bridge = l.Attrs().HardwareAddr
		return err
	})
	return c, bridge
}

// listenAt puts an ear at a host in place of the one for the family.
func (g *guarded) listenAt(host int, at netip.AddrPort) {
	g.Helper()
	ear, err := g.hosts[host].ListenUDP(at)
	g.ok(err)
	g.Cleanup(func() { ear.Close() })
	g.ears[at.Addr().Is4()].Close()
	g.ears[at.Addr().Is4()] = ear
}

// A container of the host does not pose as a peer, nor as the host.
func TestGuardContainers(t *testing.T) { everyIndex(t, guardContainers) }

func guardContainers(t *testing.T, g *guarded) {
	c, bridge := g.container()
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 9}
	for _, four := range []bool{true, false} {
		us, peer := g.underlay(1, four), g.underlay(2, four)
		own := c.Addr6()
		if four {
			own = c.Addr4()
		}
		send := func(packet []byte) { g.ok(injectAt(c.Namespace, "eth0", ethernet(bridge, mac, packet))) }

		// As a peer, in VXLAN and in the UDP encap.
		spoofed := toPort(peer, us, 4789, inVXLAN(datagram(vtep(2, four), "attack")))
		_, err := g.k.RemoveGuard("overlay0")
		g.ok(err)
		send(spoofed)
		g.heard(four, "attack")
		g.set()
		g.dropped("guard_spoofed_outer", 1, func() { send(spoofed) })
		g.listenAt(0, netip.AddrPortFrom(us, 8285))
		g.dropped("guard_spoofed_outer", 1, func() { send(toPort(peer, us, 8285, []byte("attack"))) })
		// As itself it may send what it wants; only nobody listens to it.
		send(toPort(own, us, 8285, []byte("itself")))
		g.heard(four, "itself")
		// And peers may.
		g.inject(2, g.onWire(toPort(peer, us, 8285, []byte("peer"))))
		g.heard(four, "peer")

		// As this host.
		g.listenAt(1, netip.AddrPortFrom(peer, 8472))
		g.dropped("guard_forwarded", 1, func() { send(toPort(own, peer, 8472, []byte("attack"))) })
		if !four { // a router of IPv4 takes no packet from its own address
			g.dropped("guard_forwarded", 1, func() { send(toPort(us, peer, 8472, []byte("attack"))) })
		}
		whole := udp(own, peer, 1, 8472, []byte("attack, in fragments"))
		frags := cut4(own, peer, 5, nil, whole, 8)
		if !four {
			frags = cut6(own, peer, nothing, unix.IPPROTO_UDP, whole, 5, 8)
		}
		g.dropped("guard_forwarded", 1, func() {
			for _, f := range backwards(frags) {
				send(f)
			}
		})
		// Its other traffic passes, also in fragments, and so does what goes elsewhere.
		g.listenAt(1, netip.AddrPortFrom(peer, 8473))
		whole = udp(own, peer, 1, 8473, []byte("other, in fragments"))
		frags = cut4(own, peer, 6, nil, whole, 8)
		if !four {
			frags = cut6(own, peer, nothing, unix.IPPROTO_UDP, whole, 6, 8)
		}
		for _, f := range frags {
			send(f)
		}
		g.heard(four, "other, in fragments")
		g.listenAt(2, netip.AddrPortFrom(g.underlay(3, four), 8472))
		send(toPort(own, g.underlay(3, four), 8472, []byte("stranger")))
		g.heard(four, "stranger")
	}
}

// What is not in VXLAN comes from a direct peer, or from a container of ours.
func TestGuardPlain(t *testing.T) { everyIndex(t, guardPlain) }

func guardPlain(t *testing.T, g *guarded) {
	c, bridge := g.container()
	direct := guardPeer(2)
	direct.Direct = []kernel.DirectSender{{Link: "eth0", MAC: [6]byte(g.mac(1, "eth0"))}}
	for _, four := range []bool{true, false} {
		g.guard.Peers[0] = guardPeer(2)
		g.set()
		packet := datagram(vtep(2, four), "attack")
		peers := ethernet(g.mac(0, "eth0"), g.mac(1, "eth0"), packet)
		_, err := g.k.RemoveGuard("overlay0")
		g.ok(err)
		g.inject(1, peers)
		g.heard(four, "attack")
		g.set()
		g.dropped("guard_plain_source", 1, func() { g.inject(1, peers) })

		g.guard.Peers[0] = direct
		g.set()
		before := g.path(2)
		g.inject(1, peers)
		g.heard(four, "attack")
		if after := g.path(2); after.RxPackets != before.RxPackets+1 || after.RxBytes != before.RxBytes+uint64(len(packet)) {
			t.Errorf("counted %+v, then %+v", before, after)
		}
		g.dropped("guard_plain_source", 3, func() {
			g.inject(2, g.onWire(packet)) // by a stranger
			g.inject(1, ethernet(g.mac(0, "eth0"), g.mac(1, "eth0"), datagram(vtep(3, four), "attack")))
			g.inject(1, ethernet(g.mac(0, "eth0"), g.mac(1, "eth0"), datagram(vtep(1, four), "attack"))) // as a container of ours
		})
		g.dropped("guard_plain_destination", 1, func() {
			dst := vtep(9, four)
			g.inject(1, ethernet(g.mac(0, "eth0"), g.mac(1, "eth0"), ip(vtep(2, four), dst, unix.IPPROTO_UDP, udp(vtep(2, four), dst, 1, 2, nil))))
		})

		// Containers: in and out of the overlay, and as somebody else.
		own := c.Addr6()
		if four {
			own = c.Addr4()
		}
		mac := net.HardwareAddr{2, 0, 0, 0, 0, 9}
		g.ok(injectAt(c.Namespace, "eth0", ethernet(bridge, mac, datagram(own, "container"))))
		g.heard(four, "container")
		g.dropped("guard_plain_source", 1, func() {
			g.ok(injectAt(c.Namespace, "eth0", ethernet(bridge, mac, datagram(vtep(2, four), "attack"))))
		})
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		for _, dst := range []netip.Addr{vtep(2, four), vtep(1, four)} { // by VXLAN; by lo to itself
			res, err := c.Ping(ctx, lab.PingConfig{Dst: dst, Count: 1})
			g.ok(err)
			if res.Received != 1 {
				t.Errorf("%v does not answer a container", dst)
			}
		}
		res, err := g.hosts[0].Ping(ctx, lab.PingConfig{Dst: own, Count: 1})
		g.ok(err)
		if res.Received != 1 {
			t.Error("the container does not answer its host")
		}
	}
}

// What goes by a plain route to a direct peer is counted, and only that.
func TestGuardCountsSent(t *testing.T) { everyIndex(t, guardCountsSent) }

func guardCountsSent(t *testing.T, g *guarded) {
	third := guardPeer(3)
	third.Direct = []kernel.DirectSender{{Link: "eth0", MAC: [6]byte(g.mac(2, "eth0"))}}
	g.guard.Peers = append(g.guard.Peers, third)
	g.set()
	for i, four := range []bool{true, false} {
		via := g.underlay(3, four)
		subnet := netip.PrefixFrom(vtep(3, four), 24)
		if !four {
			subnet = netip.PrefixFrom(vtep(3, four), 64)
		}
		g.ok(g.hosts[0].AddRoute(subnet, via))
		conn, err := g.hosts[0].ListenUDP(netip.AddrPortFrom(vtep(1, four), 0))
		g.ok(err)
		_, err = conn.WriteToUDPAddrPort(make([]byte, 100), netip.AddrPortFrom(vtep(3, four), 9))
		g.ok(err)
		_, err = conn.WriteToUDPAddrPort(make([]byte, 100), netip.AddrPortFrom(via, 9)) // not in the overlay
		g.ok(err)
		g.ok(conn.Close())
		want := uint64(128)
		if i == 1 {
			want += 148
		}
		if got := g.path(3); got != (kernel.PathCounts{TxPackets: uint64(i + 1), TxBytes: want}) {
			t.Errorf("counted %+v, want %d packets and %d bytes", got, i+1, want)
		}
	}
	if got := g.path(2); got != (kernel.PathCounts{}) {
		t.Errorf("counted %+v for a peer to which nothing was sent", got)
	}
}
