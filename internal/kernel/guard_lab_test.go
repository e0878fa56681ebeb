package kernel_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/overlayd/overlayd/internal/kernel"
	"github.com/overlayd/overlayd/internal/kernel/lab"
	"github.com/overlayd/overlayd/internal/kernel/lab/labtest"
)

// guarded is three hosts on a switch: the first with the guard, and VXLAN devices
// of the kernel, one by family, on the first two. Their VTEP addresses are
// 100.96.N.0 and fd96:0:0:N::. Whoever sends frames from the third is a stranger.
type guarded struct {
	*testing.T
	lab   *lab.Lab
	hosts []*lab.Host
	k     *kernel.Kernel
	guard kernel.Guard
	links []map[string]netlink.Link // by host
	ears  map[bool]*net.UDPConn     // on the first host's VTEP addresses, by Is4
	knows int                       // known, stale or unknown
}

const earPort = 7777

func vtepMAC(n int) net.HardwareAddr { return net.HardwareAddr{0x02, 0, 0, 0, 0x96, byte(n)} }

func vtep(n int, four bool) netip.Addr {
	if four {
		return netip.AddrFrom4([4]byte{100, 96, byte(n), 0})
	}
	return netip.AddrFrom16([16]byte{0xfd, 0x96, 7: byte(n)})
}

// What the guard knows of the devices.
const (
	known   = iota // their indexes, and which bridge is inside
	stale          // indexes that they no longer have
	unknown        // no index, and no bridge
)

// everyIndex runs a test with guards that know more of the devices or less.
func everyIndex(t *testing.T, test func(*testing.T, *guarded)) {
	for knows, name := range []string{"known", "stale", "unknown"} {
		t.Run(name, func(t *testing.T) {
			g := newGuarded(t)
			g.knows = knows
			g.set()
			test(t, g)
		})
	}
}

func newGuarded(t *testing.T) *guarded {
	t.Helper()
	l, _, hosts := labtest.Hosts(t, 3)
	g := &guarded{T: t, lab: l, hosts: hosts, guard: guardOf(guardPeer(2)), ears: make(map[bool]*net.UDPConn)}
	for i, h := range hosts {
		g.ok(h.Sysctl("net/ipv4/conf/all/rp_filter", "0"))
		links := make(map[string]netlink.Link)
		g.in(i, func(nl *netlink.Handle) error {
			if i < 2 {
				for _, four := range []bool{true, false} {
					g.vxlan(nl, i+1, four)
				}
			}
			all, err := nl.LinkList()
			for _, l := range all {
				links[l.Attrs().Name] = l
			}
			return err
		})
		g.links = append(g.links, links)
	}
	g.in(0, func(*netlink.Handle) (err error) {
		g.k, err = kernel.Open(kernel.Config{Logger: labtest.Logger(t)})
		return err
	})
	t.Cleanup(func() { g.k.Close() })
	for _, four := range []bool{true, false} {
		ear, err := hosts[0].ListenUDP(netip.AddrPortFrom(vtep(1, four), earPort))
		g.ok(err)
		t.Cleanup(func() { ear.Close() })
		g.ears[four] = ear
	}
	g.set()
	return g
}

func (g *guarded) ok(err error) {
	g.Helper()
	if err != nil {
		g.Fatal(err)
	}
}

// in runs f on a host with netlink.
func (g *guarded) in(host int, f func(*netlink.Handle) error) {
	g.Helper()
	g.ok(g.hosts[host].Do(func() error {
		nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer nl.Close()
		return f(nl)
	}))
}

func (g *guarded) set() {
	g.Helper()
	names := slices.Concat(g.guard.VXLANs, g.guard.Underlays, g.guard.Inside)
	g.guard.Indexes = g.k.Indexes(names...)
	if len(g.guard.Indexes) != len(names) {
		g.Fatalf("indexes of %v: %v", names, g.guard.Indexes)
	}
	switch g.knows {
	case stale:
		for name := range g.guard.Indexes {
			g.guard.Indexes[name] += 1000
		}
	case unknown:
		g.guard.Indexes = nil
	}
	g.ok(g.k.SetGuard(g.guard, false))
}

// vxlan gives host number n (from 1) a VXLAN device over one family, with the
// other of the first two as peer. The routes to it are over IPv4.
func (g *guarded) vxlan(nl *netlink.Handle, n int, four bool) {
	other := 3 - n
	a := netlink.NewLinkAttrs()
	a.Name, a.MTU, a.HardwareAddr = "overlay0-v6", 1400, vtepMAC(n)
	local, remote := g.hosts[n-1].Addr6(), g.hosts[other-1].Addr6()
	if four {
		a.Name, local, remote = "overlay0-v4", g.hosts[n-1].Addr4(), g.hosts[other-1].Addr4()
	}
	g.ok(nl.LinkAdd(&netlink.Vxlan{LinkAttrs: a, VxlanId: 1, Port: 4789, SrcAddr: local.AsSlice(), UDPCSum: true}))
	l, err := nl.LinkByName(a.Name)
	g.ok(err)
	g.ok(nl.LinkSetUp(l))
	index := l.Attrs().Index
	g.ok(nl.NeighAppend(&netlink.Neigh{LinkIndex: index, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF,
		State: netlink.NUD_PERMANENT, HardwareAddr: vtepMAC(other), IP: remote.AsSlice()}))
	for _, inner4 := range []bool{true, false} {
		own := vtep(n, inner4)
		g.ok(nl.AddrAdd(l, &netlink.Addr{IPNet: mustNet(single(own).String()), Flags: unix.IFA_F_NODAD | unix.IFA_F_NOPREFIXROUTE}))
		gw := vtep(other, inner4)
		subnet := netip.PrefixFrom(gw, 24)
		if !inner4 {
			gw, subnet = linkLocal(vtepMAC(other)), netip.PrefixFrom(gw, 64)
		}
		g.ok(nl.NeighSet(&netlink.Neigh{LinkIndex: index, IP: gw.AsSlice(), HardwareAddr: vtepMAC(other), State: netlink.NUD_PERMANENT}))
		metric := 10
		if !four {
			metric = 20
		}
		g.ok(nl.RouteReplace(&netlink.Route{LinkIndex: index, Dst: mustNet(subnet.String()), Gw: gw.AsSlice(),
			Src: own.AsSlice(), Flags: int(netlink.FLAG_ONLINK), Priority: metric}))
	}
}

func linkLocal(m net.HardwareAddr) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: m[0] ^ 2, 9: m[1], 10: m[2], 11: 0xff, 12: 0xfe, 13: m[3], 14: m[4], 15: m[5]})
}

// drops reads one drop counter.
func (g *guarded) drops(reason string) uint64 {
	g.Helper()
	c, err := g.k.GuardCounts()
	g.ok(err)
	n, ok := c.Drops[reason]
	if !ok {
		g.Fatalf("there is no reason %s in %v", reason, c.Drops)
	}
	return n
}

// path reads what is counted for a peer.
func (g *guarded) path(n int) kernel.PathCounts {
	g.Helper()
	c, err := g.k.GuardCounts()
	g.ok(err)
	return c.Peers[guardPeer(n).ID]
}

// heard waits for a datagram with this text at the first host, and fails if there
// is another one before it.
func (g *guarded) heard(four bool, text string) {
	g.Helper()
	ear := g.ears[four]
	g.ok(ear.SetReadDeadline(time.Now().Add(5 * time.Second)))
	b := make([]byte, 2048)
	n, from, err := ear.ReadFromUDPAddrPort(b)
	if err != nil {
		c, _ := g.k.GuardCounts()
		g.Fatalf("%q was not heard: %v; drops %v", text, err, c.Drops)
	}
	if string(b[:n]) != text {
		g.Errorf("heard %q from %v, want %q", b[:n], from, text)
	}
}

// either waits until this text is heard by one of the ears.
func (g *guarded) either(text string) {
	g.Helper()
	labtest.Eventually(g.T, 5*time.Second, func() error {
		for _, ear := range g.ears {
			if got, ok := g.listen(ear); ok && got == text {
				return nil
			}
		}
		return fmt.Errorf("%q was not heard", text)
	})
}

// listen returns what has come, without waiting.
func (g *guarded) listen(ear *net.UDPConn) (text string, ok bool) {
	g.Helper()
	raw, err := ear.SyscallConn()
	g.ok(err)
	g.ok(raw.Control(func(fd uintptr) {
		b := make([]byte, 2048)
		n, _, err := unix.Recvfrom(int(fd), b, unix.MSG_DONTWAIT)
		if err != nil && !errors.Is(err, unix.EAGAIN) {
			g.Error(err)
		}
		text, ok = string(b[:max(n, 0)]), err == nil
	}))
	return text, ok
}

// silent fails if anything was heard.
func (g *guarded) silent() {
	g.Helper()
	for _, ear := range g.ears {
		if text, ok := g.listen(ear); ok {
			g.Errorf("heard %q", text)
		}
	}
}

// dropped does something that has to raise one counter, by n, and to be heard by
// nobody.
func (g *guarded) dropped(reason string, n uint64, do func()) {
	g.Helper()
	before, err := g.k.GuardCounts()
	g.ok(err)
	do()
	labtest.Eventually(g.T, 5*time.Second, func() error {
		now, err := g.k.GuardCounts()
		if err != nil {
			return err
		}
		for r, d := range now.Drops {
			want := before.Drops[r]
			if r == reason {
				want += n
			}
			if d != want {
				return fmt.Errorf("%s is %d, want %d: %v", r, d, want, now.Drops)
			}
		}
		return nil
	})
	g.silent()
}

// inject sends frames from a host's eth0, as they are.
func (g *guarded) inject(host int, frames ...[]byte) {
	g.Helper()
	g.ok(injectAt(g.hosts[host].Namespace, "eth0", frames...))
}

func injectAt(n *lab.Namespace, dev string, frames ...[]byte) error {
	return n.Do(func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return os.NewSyscallError("socket", err)
		}
		defer unix.Close(fd)
		l, err := net.InterfaceByName(dev) // of this thread's namespace
		if err != nil {
			return err
		}
		for _, f := range frames {
			if err := unix.Sendto(fd, f, 0, &unix.SockaddrLinklayer{Ifindex: l.Index, Halen: 6}); err != nil {
				return os.NewSyscallError("sendto", err)
			}
		}
		return nil
	})
}

// mac is the link-layer address of a host's interface.
func (g *guarded) mac(host int, dev string) net.HardwareAddr {
	return g.links[host][dev].Attrs().HardwareAddr
}

// onWire makes a frame of an IP packet from the third host to the first.
func (g *guarded) onWire(packet []byte) []byte {
	return ethernet(g.mac(0, "eth0"), g.mac(2, "eth0"), packet)
}

// Headers, made by hand so that they can be wrong.

func ethernet(dst, src net.HardwareAddr, packet []byte) []byte {
	kind := uint16(unix.ETH_P_IP)
	if packet[0]>>4 == 6 {
		kind = unix.ETH_P_IPV6
	}
	return etherFrame(dst, src, kind, packet)
}

func etherFrame(dst, src net.HardwareAddr, kind uint16, body []byte) []byte {
	b := append(append([]byte{}, dst...), src...)
	return append(binary.BigEndian.AppendUint16(b, kind), body...)
}

// ip makes a packet of the addresses' family.
func ip(src, dst netip.Addr, proto byte, body []byte) []byte {
	if src.Is4() {
		return ip4(src, dst, proto, 0x9696, 0, nil, body)
	}
	return ip6(src, dst, proto, body)
}

// ip4 has an identification, the flags and offset of a fragment, and options.
func ip4(src, dst netip.Addr, proto byte, id, frag uint16, options, body []byte) []byte {
	h := make([]byte, 20, 20+len(options)+len(body))
	h[0] = 0x40 | byte((20+len(options))/4)
	binary.BigEndian.PutUint16(h[2:], uint16(20+len(options)+len(body)))
	binary.BigEndian.PutUint16(h[4:], id)
	binary.BigEndian.PutUint16(h[6:], frag)
	h[8], h[9] = 64, proto
	copy(h[12:], src.AsSlice())
	copy(h[16:], dst.AsSlice())
	h = append(h, options...)
	binary.BigEndian.PutUint16(h[10:], ^sum16(0, h))
	return append(h, body...)
}

func ip6(src, dst netip.Addr, next byte, body []byte) []byte {
	h := []byte{0x60, 0, 0, 0, byte(len(body) >> 8), byte(len(body)), next, 64}
	return append(append(append(h, src.AsSlice()...), dst.AsSlice()...), body...)
}

// fragment6 is a fragment header before body: RFC 8200 section 4.5.
func fragment6(next byte, offset int, more bool, id uint32, body []byte) []byte {
	f := uint16(offset)
	if more {
		f |= 1
	}
	h := []byte{next, 0, byte(f >> 8), byte(f)}
	return append(binary.BigEndian.AppendUint32(h, id), body...)
}

// padding is a destination options header of 8 bytes before body.
func padding(next byte, body []byte) []byte {
	return append([]byte{next, 0, 1, 4, 0, 0, 0, 0}, body...)
}

func udp(src, dst netip.Addr, from, to uint16, body []byte) []byte {
	h := binary.BigEndian.AppendUint16(nil, from)
	h = binary.BigEndian.AppendUint16(h, to)
	h = binary.BigEndian.AppendUint16(h, uint16(8+len(body)))
	h = append(append(h, 0, 0), body...)
	pseudo := append(append([]byte{}, src.AsSlice()...), dst.AsSlice()...)
	s := ^sum16(uint32(unix.IPPROTO_UDP+len(h))+uint32(sum16(0, pseudo)), h)
	binary.BigEndian.PutUint16(h[6:], max(s, 1))
	return h
}

func sum16(s uint32, b []byte) uint16 {
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		s += uint32(b[len(b)-1]) << 8
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

func vxlanHeader(flags byte, vni uint32, frame []byte) []byte {
	return append([]byte{flags, 0, 0, 0, byte(vni >> 16), byte(vni >> 8), byte(vni), 0}, frame...)
}

// datagram is an inner packet that the first host's ears would hear.
func datagram(src netip.Addr, text string) []byte {
	dst := vtep(1, src.Is4())
	return ip(src, dst, unix.IPPROTO_UDP, udp(src, dst, 1, earPort, []byte(text)))
}

// inVXLAN is an inner packet to the first host as VXLAN.
func inVXLAN(packet []byte) []byte {
	return vxlanHeader(8, 1, ethernet(vtepMAC(1), vtepMAC(2), packet))
}

// toPort is a whole packet from and to an underlay address.
func toPort(src, dst netip.Addr, port uint16, body []byte) []byte {
	return ip(src, dst, unix.IPPROTO_UDP, udp(src, dst, 5555, port, body))
}
