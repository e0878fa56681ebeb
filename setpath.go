package overlayd

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/overlayd/overlayd/internal/path"
	"github.com/overlayd/overlayd/membership"
)

// setPathTimeout bounds how long SetPath waits for the data path to move.
const setPathTimeout = 5 * time.Second

// PathAuto and PathUserspace are what SetPath takes, besides PathKernelVXLAN and
// PathDirect.
const (
	PathAuto      = "auto"
	PathUserspace = "userspace"
)

// PathResult tells how a peer is sent packets.
type PathResult struct {
	Peer   string `json:"peer"` // name
	PeerID string `json:"peer_id"`
	Path   string `json:"path"` // one of the Path constants of Status
	Reason string `json:"reason"`
}

// SetPath keeps a peer, given as for Ping, on one kind of path: PathUserspace,
// PathKernelVXLAN or PathDirect; PathAuto leaves the choice to the node again, which
// keeps a path that works. It returns when the peer's packets take that path. When that
// cannot be had, or not within five seconds, it fails with the reason and all stays as it
// was. A path that dies is left all the same, and taken again once it works. The choice
// holds until the node stops.
func (n *Node) SetPath(ctx context.Context, target, want string) (PathResult, error) {
	if !n.running() {
		return PathResult{}, ErrNotStarted
	}
	kinds := map[string]path.Kind{PathAuto: path.Auto, PathUserspace: path.Userspace, PathKernelVXLAN: path.KernelVXLAN, PathDirect: path.Direct}
	kind, ok := kinds[want]
	if !ok {
		return PathResult{}, fmt.Errorf("%w: path %q is none of auto, userspace, kernel-vxlan, direct", ErrConfig, want)
	}
	p, err := n.find(target)
	if err != nil {
		return PathResult{}, err
	}
	result := func() PathResult {
		res := PathResult{Peer: p.Name, PeerID: p.ID.String(), Path: PathNone}
		for _, s := range n.peerStatus() {
			if s.ID == res.PeerID {
				res.Path, res.Reason = s.Path, s.PathReason
			}
		}
		return res
	}
	fail := func(why string) (PathResult, error) {
		return result(), fmt.Errorf("%s cannot be sent packets by %s: %s", p.Name, want, why)
	}
	if kind == path.KernelVXLAN || kind == path.Direct {
		switch {
		case p.state == membership.StateStatic:
			return fail("it is a static peer, which answers no probes")
		case n.parts.fast == nil:
			return fail("kernel paths are off on this node (--fast-path off, or no TUN of its own)")
		}
	}
	if p.state == membership.StateStatic {
		return result(), nil
	}
	ctx, cancel := context.WithTimeout(ctx, setPathTimeout)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	// What is in the way now may be about to go, as a neighbour that is being asked for.
	before, pinned := n.parts.prober.Pin(p.ID, kind)
	for {
		if pinned == nil {
			if res := result(); moved(res.Path, kind) {
				return res, nil
			}
		}
		select {
		case <-tick.C:
			if pinned != nil {
				_, pinned = n.parts.prober.Pin(p.ID, kind)
			}
		case <-n.ended:
			return result(), ErrStopped
		case <-ctx.Done():
			if pinned != nil {
				return fail(pinned.Error())
			}
			why := n.parts.prober.PathState(p.ID).Reason
			n.parts.prober.Pin(p.ID, before)
			return fail(why)
		}
	}
}

// moved tells whether packets take a path of a kind.
func moved(now string, kind path.Kind) bool {
	switch kind {
	case path.Auto:
		return true
	case path.Userspace:
		return slices.Contains([]string{PathUserspaceUDP, PathUserspaceVXLAN}, now)
	}
	return now == kind.String()
}
