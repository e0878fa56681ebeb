package overlayd

import (
	"context"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// sizeHints passes on what the underlay says about the size of packets to those who
// probe it, off the packet path: a hint is worth a probe, and the table follows what
// probes have found.
type sizeHints struct {
	encap int // bytes of the encap's header
	pass  func(peer [16]byte, inner int)
	queue chan sizeHint
}

type sizeHint struct {
	peer     [16]byte
	endpoint netip.AddrPort
	inner    int // the longest inner packet; 0: ask the kernel
}

// sizeHintsPause is the least time between two hints that are looked at.
const sizeHintsPause = 10 * time.Millisecond

func newSizeHints(encap int, pass func([16]byte, int)) *sizeHints {
	return &sizeHints{encap: encap, pass: pass, queue: make(chan sizeHint, 16)}
}

// heard takes a hint from the packet path. Those for which there is no room come
// again with the next packet that is too long.
func (s *sizeHints) heard(peer [16]byte, endpoint netip.AddrPort, inner int) {
	select {
	case s.queue <- sizeHint{peer, endpoint, inner}:
	default:
	}
}

// run passes hints on until ctx ends.
func (s *sizeHints) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case h := <-s.queue:
			if h.inner == 0 {
				outer, err := linkMTU(h.endpoint)
				if err != nil {
					break // the probes will find out
				}
				h.inner = int(outer.inner(overheadTo(h.endpoint.Addr()) + s.encap))
			}
			s.pass(h.peer, h.inner)
		}
		select { // so that a flood of forged ones costs nothing
		case <-ctx.Done():
			return
		case <-time.After(sizeHintsPause):
		}
	}
}

// overheadTo is the length of the outer IP and UDP headers towards an address.
func overheadTo(a netip.Addr) int {
	if a.Is4() {
		return ipv4Header + udpHeader
	}
	return ipv6Header + udpHeader
}

// linkMTU asks the kernel for the MTU of its way to an endpoint: IP_MTU, IPV6_MTU of
// a connected socket (ip(7), ipv6(7)). Nothing is sent.
func linkMTU(to netip.AddrPort) (underlayMTU, error) {
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		return 0, err
	}
	defer c.Close()
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	mtu := 0
	closed := raw.Control(func(fd uintptr) {
		if to.Addr().Is4() {
			mtu, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU)
		} else {
			mtu, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU)
		}
	})
	if closed != nil {
		return 0, closed
	}
	return underlayMTU(mtu), err
}
