package probe

import (
	"errors"
	"net/netip"
	"slices"
	"sync/atomic"

	"github.com/overlayd/overlayd/encap"
)

// Why a frame is not acted upon.
var (
	ErrUnknownPeer = errors.New("probe: not from the address of a known peer")
	ErrReceiver    = errors.New("probe: addressed to another node")
	ErrStaleBoot   = errors.New("probe: from an earlier boot of the peer")
	ErrPath        = errors.New("probe: by another path than it says")
	ErrNotReady    = errors.New("probe: by a path that data is not taken from")
	ErrUnexpected  = errors.New("probe: answer to nothing that was asked")
	ErrRateLimited = errors.New("probe: more probes than are answered")
)

// roster says whose frames are looked at. It is immutable, so that the receive
// loop can ask it without a lock.
type roster map[[16]byte]*sender

// sender is a peer as roster knows it.
type sender struct {
	boot  uint64
	addrs []netip.Addr // where it may send from; ports vary (RFC 7348 section 5)
	vteps []netip.Addr // the same for kernel paths: addresses in the overlay

	// probes and answers are how many frames of it wait in the Prober's inbox.
	// They are counted apart, so that forged probes do not keep answers out.
	probes, answers atomic.Int32
	// counts is of all that has come and gone by kernel paths.
	counts *kernelCounts
}

// share is the one of the two counters that a frame belongs to.
func (s *sender) share(t encap.FrameType) *atomic.Int32 {
	if t == encap.Answer {
		return &s.answers
	}
	return &s.probes
}

// newSender lists the addresses of a peer.
func newSender(p Peer) *sender {
	s := &sender{boot: p.Boot}
	if a := p.Endpoint.Addr().Unmap(); a.IsValid() {
		s.addrs = append(s.addrs, a)
	}
	for _, a := range p.Addrs {
		if a = a.Unmap(); a.IsValid() && !slices.Contains(s.addrs, a) {
			s.addrs = append(s.addrs, a)
		}
	}
	for _, v := range p.VTEPs {
		s.vteps = append(s.vteps, v.Addr().Unmap())
	}
	return s
}

// admit finds the sender of a frame that arrived from the address from by a path, and
// makes all checks that need neither keys nor the state of probing. An answer takes
// any path, a probe the one that it is to prove.
func (r roster) admit(self [16]byte, by encap.Path, from netip.Addr, f *encap.Frame) (*sender, error) {
	s := r[f.Sender]
	switch {
	case s == nil || !slices.Contains(s.from(by), from.Unmap()):
		return nil, ErrUnknownPeer
	case f.Receiver != self:
		return nil, ErrReceiver
	case f.Boot < s.boot:
		return nil, ErrStaleBoot
	case f.Type == encap.Probe && f.Path != by:
		return nil, ErrPath
	}
	return s, nil
}

// from is where the peer may send from by a path.
func (s *sender) from(by encap.Path) []netip.Addr {
	if by == encap.Userspace {
		return s.addrs
	}
	return s.vteps
}
