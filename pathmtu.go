package overlayd

import (
	"context"
	"fmt"
	"net/netip"
	"time"
)

// sizeHints passes on what the underlay says about the size of packets to those who
// probe it, off the packet path. They take less for granted at once, and look soon
// whether more passes all the same.
type sizeHints struct {
	header func(peer [16]byte) int // bytes of the encap's header
	link   func(to netip.Addr) (underlayMTU, error)
	pass   func(peer [16]byte, inner int)
	queue  chan sizeHint
}

type sizeHint struct {
	peer     [16]byte
	endpoint netip.AddrPort
	inner    int // the longest inner packet; 0: as long as the own link takes
}

// sizeHintsPause is the least time between two hints that are looked at.
const sizeHintsPause = 10 * time.Millisecond

func newSizeHints(header func([16]byte) int, link func(netip.Addr) (underlayMTU, error), pass func([16]byte, int)) *sizeHints {
	return &sizeHints{header: header, link: link, pass: pass, queue: make(chan sizeHint, 16)}
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
				outer, err := s.link(h.endpoint.Addr())
				if err != nil {
					break // the probes will find out
				}
				h.inner = int(outer.inner(overheadTo(h.endpoint.Addr()) + s.header(h.peer)))
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

// linkMTU is the MTU of the interface that packets to an address leave by: that of
// our endpoint of its family. The kernel's path MTU, which whoever forges an ICMP
// message can set, is not asked for.
func (n *Node) linkMTU(to netip.Addr) (underlayMTU, error) {
	for _, own := range n.parts.endpoints {
		if own.Is4() == to.Is4() {
			l, err := linkByAddr(own)
			return underlayMTU(l.MTU), err
		}
	}
	return 0, fmt.Errorf("no endpoint of the family of %v", to)
}

// headerLen is the length of the encap's header towards a peer.
func (n *Node) headerLen(peer [16]byte) int { return n.framing(peer).codec.HeaderLen() }

// sizeHint takes note that inner packets of more than size bytes are said not to
// reach a peer.
func (n *Node) sizeHint(peer [16]byte, size int) {
	if !n.parts.statics.heardOf(peer, size, n.live().StaticPeers, time.Now()) {
		n.parts.prober.Hint(peer, size)
	}
}
