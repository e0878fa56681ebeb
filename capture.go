package overlayd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/overlayd/overlayd/internal/capture"
	"github.com/overlayd/overlayd/internal/forward"
)

// ErrBusy: as much of something is going on as may be.
var ErrBusy = errors.New("busy")

// CaptureConfig chooses the packets of a capture. The zero value chooses all.
type CaptureConfig struct {
	// Peer is a peer's name, id or an overlay address that it owns: only what is from or
	// to that peer. Packets that belong to no peer, such as strangers', are left out then.
	Peer string
	// Path is "userspace", PathUserspaceUDP or PathUserspaceVXLAN: only what takes that
	// path. What takes a path of the kernel does not pass the node.
	Path string
	// MaxBytes ends the capture before more than so many bytes are written; less than
	// 2000 counts as that. 0: nothing ends it.
	MaxBytes int64
}

// CaptureStats is what became of the chosen packets: those for which there was no
// room while they were written are missed.
type CaptureStats struct {
	Written, Missed uint64
}

// Capture writes inner packets and the datagrams that carry them to w, as pcapng
// (draft-ietf-opsawg-pcapng), until ctx ends or w fails; each Write is of whole blocks.
// What is dropped has the
// reason in a comment. The packet path does not wait for it: it copies what there is
// room for, some 32 MB, and counts the rest. At most four captures run at once; one
// more is ErrBusy.
func (n *Node) Capture(ctx context.Context, cfg CaptureConfig, w io.Writer) (CaptureStats, error) {
	return n.capture(ctx, cfg, w, nil)
}

func (n *Node) capture(ctx context.Context, cfg CaptureConfig, w io.Writer, flush func() error) (CaptureStats, error) {
	if !n.running() {
		return CaptureStats{}, ErrNotStarted
	}
	keep, err := n.captureFilter(cfg)
	if err != nil {
		return CaptureStats{}, err
	}
	underlay := n.parts.underlay
	if underlay == "" {
		underlay = "underlay"
	}
	r := capture.New(capture.Config{Keep: keep, MaxBytes: cfg.MaxBytes, Application: "overlayd " + BuildVersion(), Inner: n.parts.device.Name(), Outer: underlay})
	remove, err := n.parts.engine.AddTap(r.Saw)
	if err != nil {
		return CaptureStats{}, fmt.Errorf("%w: %w", ErrBusy, err)
	}
	defer remove()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(n.quit, cancel)() // a node that stops ends it
	s, err := r.Run(ctx, w, flush)
	return CaptureStats(s), err
}

// captureFilter is what CaptureConfig says, as a function that the loops call.
func (n *Node) captureFilter(cfg CaptureConfig) (func(*forward.Seen) bool, error) {
	switch cfg.Path {
	case "", "userspace", PathUserspaceUDP, PathUserspaceVXLAN:
	case PathKernelVXLAN, PathDirect:
		return nil, fmt.Errorf("what takes the path %s does not pass overlayd: capture on the kernel's interface", cfg.Path)
	default:
		return nil, fmt.Errorf("path %q is not one of userspace, %s, %s", cfg.Path, PathUserspaceUDP, PathUserspaceVXLAN)
	}
	var encap string
	switch cfg.Path {
	case PathUserspaceUDP:
		encap = "udp"
	case PathUserspaceVXLAN:
		encap = "vxlan"
	}
	if cfg.Peer == "" {
		return func(s *forward.Seen) bool { return encap == "" || s.Encap == encap }, nil
	}
	p, err := n.find(cfg.Peer)
	if err != nil {
		return nil, err
	}
	id, addrs := p.ID, slices.Clone(p.Addrs)
	return func(s *forward.Seen) bool {
		if encap != "" && s.Encap != encap {
			return false
		}
		if s.Peer != nil {
			return s.Peer.ID == id
		}
		// What is dropped early, and frames that are no packets.
		return s.Outer && slices.Contains(addrs, s.Remote.Addr())
	}, nil
}
