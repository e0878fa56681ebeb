package overlayd

import (
	"fmt"
	"net/netip"

	"github.com/overlayd/overlayd/encap"
	"github.com/overlayd/overlayd/membership"
)

// framing is how a peer is sent frames.
type framing struct {
	codec encap.Codec
	dest  encap.Dest
}

// framings are all peers' framings. Their addresses would not do: one that is gone may
// have had that of one that is there.
type framings map[membership.NodeID]framing

// codec is the framing that this node receives, and sends to those that take it.
func (n *Node) codec() encap.Codec {
	if n.cfg.Encap == "vxlan" {
		return n.vxlan(n.cfg.VNI)
	}
	return encap.UDP{}
}

// vxlan is the vxlan encap from this node's VTEP.
func (n *Node) vxlan(vni uint32) encap.VXLAN {
	return encap.VXLAN{VNI: vni, MAC: membership.VTEPMAC(n.parts.member.ID()), IgnoreReserved: n.cfg.VXLANReserved == "rfc"}
}

// framingFor chooses a framing that a gossiping peer takes, this node's own if it
// can: it returns the framing, the peer's port for it and the path's name, or, in
// one line, why there is none.
func (n *Node) framingFor(p *membership.Peer) (f framing, port uint16, path, reason string) {
	own, other := membership.CapUDP, membership.CapVXLAN
	if n.cfg.Encap == "vxlan" {
		own, other = other, own
	}
	takes := own
	if p.Caps&own == 0 {
		takes = other
	}
	switch {
	case p.Caps&takes == 0:
		return framing{}, 0, PathNone, "it takes neither the udp nor the vxlan encap"
	case takes == membership.CapUDP:
		return framing{codec: encap.UDP{}}, p.Ports.UDP, PathUserspaceUDP, ""
	case p.Ports.VXLAN == 0:
		return framing{}, 0, PathNone, "it does not tell its vxlan port"
	}
	vni := p.VNI
	if n.cfg.Encap == "vxlan" {
		if vni != 0 && vni != n.cfg.VNI {
			return framing{}, 0, PathNone, fmt.Sprintf("its VNI is %d, this node's is %d: give both the same --vni", vni, n.cfg.VNI)
		}
		vni = n.cfg.VNI
	}
	return framing{n.vxlan(vni), encap.Dest{MAC: p.VTEPMAC}}, p.Ports.VXLAN, PathUserspaceVXLAN, ""
}

// sendControl sends a control frame to a peer, as it takes it.
func (n *Node) sendControl(b []byte, peer [16]byte, to netip.AddrPort) error {
	f := n.framing(peer)
	return n.parts.engine.SendFrame(f.codec, encap.Control, f.dest, b, to)
}

// framing is a peer's, or this node's own if it is not known.
func (n *Node) framing(peer membership.NodeID) framing {
	f, ok := (*n.parts.framings.Load())[peer]
	if !ok {
		f.codec = n.codec()
	}
	return f
}
