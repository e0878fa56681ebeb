package overlayd

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/overlayd/overlayd/internal/web"
	"github.com/overlayd/overlayd/membership"
)

// asking is how the page's peers are asked what they see, nil if they are not to be.
func (n *Node) asking() *web.Asking {
	if n.cfg.HTTPPeers == 0 {
		return nil
	}
	return &web.Asking{Targets: n.targets, Read: readPeerStatus}
}

// targets are the peers that may answer, by name: those that gossip with us, at the
// address by which they are reached.
func (n *Node) targets() []web.Target {
	out := []web.Target{}
	for _, p := range n.mesh.Load().peers {
		switch p.state {
		case membership.StateAlive, membership.StateSuspect:
		default:
			continue
		}
		if p.fwd.Endpoint.IsValid() {
			out = append(out, web.Target{ID: p.ID.String(), Name: p.Name, Addr: netip.AddrPortFrom(p.fwd.Endpoint.Addr(), n.cfg.HTTPPeers)})
		}
	}
	slices.SortFunc(out, func(a, b web.Target) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ID, b.ID)) })
	return out
}

// readPeerStatus reads what a peer has answered. Only what is known of a Status is passed
// on, and only from the peer that was asked.
func readPeerStatus(id string, answer []byte) (any, error) {
	var s Status
	switch err := json.Unmarshal(answer, &s); {
	case err != nil || s.Schema != StatusSchema:
		return nil, errors.New("what it answers is no " + StatusSchema)
	case s.Node.ID != id:
		return nil, fmt.Errorf("another node answers there: %.40q", s.Node.Name)
	}
	return s, nil
}
