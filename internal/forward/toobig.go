package forward

import (
	"encoding/binary"
	"net/netip"

	"github.com/overlayd/overlayd/encap"
)

// tooBig is an ICMP message that says that a datagram of ours was too big for a
// link: RFC 1191 section 4, RFC 4443 section 3.2.
type tooBig struct {
	to    netip.AddrPort // where the datagram was sent
	mtu   int            // of the link, outer headers included
	quote []byte         // the start of the datagram's payload; valid during the call
}

// udpHeaderLen is that of the outer UDP header (RFC 768).
const udpHeaderLen = 8

// overhead is what stands in front of an inner packet that is sent to p.
func (e *Engine) overhead(p *Peer) int {
	n := udpHeaderLen + e.codecFor(p).HeaderLen()
	if p.Endpoint.Addr().Is4() {
		return n + ipv4HeaderLen
	}
	return n + ipv6HeaderLen
}

// heardTooBig takes an ICMP message about a datagram of ours. It may be forged, so
// it is believed only if what it quotes is a packet that this node may have sent
// there, and that is longer than the link takes. Even then it is no more than a
// hint.
func (e *Engine) heardTooBig(m tooBig) {
	t := e.table.Load()
	for _, p := range t.senders(m.to.Addr()) {
		if p.Endpoint != m.to {
			continue // of several peers at one endpoint most are gone
		}
		kind, payload, err := e.codecFor(p).DecodeSent(m.quote, p.Dest)
		if kind == encap.Control {
			return // a probe of a size, whose sender finds out by itself
		}
		if err == nil && fixedComplete(payload) && e.mayHaveSent(t, p, payload) && innerLen(payload)+e.overhead(p) > m.mtu {
			e.drops.Add(TxSocketTooBig, 1)
			e.tooBig(p.ID, m.to, max(0, m.mtu-e.overhead(p)))
			return
		}
	}
	e.drops.Add(RxICMPNotBelieved, 1)
}

// sizeRefused takes note that the kernel has refused to send a datagram to p for
// its size.
func (e *Engine) sizeRefused(p *Peer) { e.tooBig(p.ID, p.Endpoint, 0) }

// fixedComplete reports whether an inner packet begins with a whole fixed header.
func fixedComplete(p []byte) bool {
	switch {
	case len(p) < ipv4HeaderLen:
		return false
	case p[0]>>4 == 6:
		return len(p) >= ipv6HeaderLen
	}
	return p[0]>>4 == 4
}

// innerLen is how long a packet says that it is. Its fixed header is complete.
func innerLen(p []byte) int {
	if p[0]>>4 == 4 {
		return int(binary.BigEndian.Uint16(p[2:4]))
	}
	return ipv6HeaderLen + int(binary.BigEndian.Uint16(p[4:6]))
}

// mayHaveSent reports whether a packet of which only the start is known is one that
// this node could send to a peer.
func (e *Engine) mayHaveSent(t *Table, p *Peer, start []byte) bool {
	var src, dst netip.Addr
	if start[0]>>4 == 4 {
		src, dst = netip.AddrFrom4([4]byte(start[12:16])), netip.AddrFrom4([4]byte(start[16:20]))
	} else {
		src, dst = netip.AddrFrom16([16]byte(start[8:24])), netip.AddrFrom16([16]byte(start[24:40]))
	}
	to, _ := t.Route(dst)
	_, from := t.Route(src)
	return to == p && (from == Own || from == Outside) && innerLen(start) <= e.mtu
}
