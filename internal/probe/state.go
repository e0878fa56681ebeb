package probe

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"time"
)

// Reach says whether a peer can be reached by a path.
type Reach uint8

// What is known of a peer.
const (
	Unknown Reach = iota // nothing proven yet, nor given up: worth a try
	Up                   // answers probes
	Down                 // does not
)

// String returns "unknown", "up" or "down".
func (r Reach) String() string {
	switch r {
	case Up:
		return "up"
	case Down:
		return "down"
	}
	return "unknown"
}

// State is what probing has found out about a peer.
type State struct {
	Reach Reach
	// Since is when Reach became what it is.
	Since time.Time
	// LastProof is when the last answer arrived, zero if none ever did since
	// the peer's endpoint or boot last changed.
	LastProof time.Time
	// RTT is the smoothed round-trip time (RFC 6298 section 2), 0 before the
	// first answer.
	RTT time.Duration
	// MTU is the size in bytes of the largest frame that is taken to reach the
	// peer: FullSize as long as nothing speaks against it, and never less than
	// MinSize. It stays while the peer is down. 0 if FullSize is.
	MTU int
	// SmallOnly tells that MTU is less than FullSize.
	SmallOnly bool
	// Reason says in a few words, to a person, why Reach is what it is.
	Reason string
}

// Usable tells whether packets should be sent to the peer: not if it is down.
func (s State) Usable() bool { return s.Reach != Down }

// clock is the layout of a time of day in a reason.
const clock = "15:04:05"

// state puts together what is known of p.
func (p *peer) state() State {
	t := &p.track
	s := State{
		Reach:     t.reach,
		Since:     t.since,
		LastProof: t.lastProof,
		RTT:       t.srtt,
		MTU:       t.size.mtu,
		SmallOnly: t.size.mtu < t.size.full,
	}
	switch {
	case !p.endpoint.IsValid():
		s.Reason = "no endpoint known"
	case t.reach == Unknown:
		s.Reason = "not proven yet"
	case t.reach == Up && t.size.bare:
		s.Reason = fmt.Sprintf("answers probes, but not those of %d bytes: does the underlay carry smaller packets only?", t.size.mtu)
	case t.reach == Up && s.SmallOnly:
		s.Reason = fmt.Sprintf("answers probes of %d bytes, but not those of %d: larger packets are not sent to it", t.size.mtu, t.size.full)
	case t.reach == Up:
		s.Reason = "answered a probe"
	default:
		s.Reason = p.whyDown()
	}
	return s
}

// whyDown explains a peer that is down. What has been heard from the peer
// nevertheless is only good for a hint.
func (p *peer) whyDown() string {
	t, to := &p.track, endpointName(p.endpoint)
	if t.missErr != nil {
		return fmt.Sprintf("sending to %s fails since %s: %v", to, t.firstMiss.Format(clock), cause(t.missErr))
	}
	why := fmt.Sprintf("probes to %s unanswered since %s (%d in a row)", to, t.firstMiss.Format(clock), t.misses)
	switch {
	case p.refused != nil:
		return why + ": " + strings.TrimPrefix(p.refused.Error(), "encap: ")
	case p.heard.After(t.firstMiss):
		return why + ", though its own arrive here: is the port blocked on the way there, or its answers on the way back?"
	case t.lastProof.IsZero():
		return why + ", none ever was: is the UDP port blocked?"
	}
	return why + ": is the host down, or the UDP port blocked?"
}

// endpointName writes an endpoint the way firewalls do.
func endpointName(ap netip.AddrPort) string { return ap.String() + "/udp" }

// cause strips an error of a socket down to what the kernel said: the rest
// repeats addresses.
func cause(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}
