package path

import (
	"fmt"
	"strings"
	"time"
)

// clock is the layout of a time of day in a reason.
const clock = "15:04:05"

// State is what was decided about a peer.
type State struct {
	// Kind is the path to be used, Since when it was decided on.
	Kind  Kind
	Since time.Time
	// MTU is the largest inner packet that a kernel path carries, in bytes; of
	// Userspace it is 0.
	MTU int
	// LastProof is when the last round by Kind was answered, zero if none was, and RTT
	// its smoothed round trip. Both are 0 of Userspace.
	LastProof time.Time
	RTT       time.Duration
	// Pin is the kind that the peer is kept on, or Auto.
	Pin Kind
	// Cause is what kind of thing made Kind what it is, empty if it never changed.
	Cause Cause
	// Reason says why, to a person. It may be empty of Userspace.
	Reason string
}

// Cause is a Reason in one word, for those who count. There are few of them.
type Cause string

// The causes of a change of Kind.
const (
	CauseProven    Cause = "proven"    // probes by a better path are answered
	CauseAsked     Cause = "asked"     // somebody has pinned the peer to it
	CauseFailed    Cause = "failed"    // the path in use did not work
	CauseWithdrawn Cause = "withdrawn" // it may not be used any more, or leads elsewhere
)

// Proof is LastProof, RTT and Cause of State, for who needs no Reason.
func (c *Core) Proof(id [16]byte) (last time.Time, rtt time.Duration, cause Cause) {
	p := c.peers[id]
	if p == nil {
		return last, rtt, cause
	}
	if l := p.lane(p.current); l != nil {
		last, rtt = l.proof, l.rtt
	}
	return last, rtt, p.cause
}

// State returns what was decided about a peer; of one that is not known, Userspace.
func (c *Core) State(id [16]byte) State {
	p := c.peers[id]
	if p == nil {
		return State{Pin: Auto}
	}
	s := State{Kind: p.current, Since: p.since, Pin: p.pin, Cause: p.cause}
	if l := p.lane(p.current); l != nil {
		s.MTU, s.LastProof, s.RTT = l.mtu, l.proof, l.rtt
		s.Reason = p.carried(l)
		if p.pin != Auto && p.pin != p.current {
			s.Reason += "; " + p.kept()
		}
	} else {
		s.Reason = p.kept()
	}
	if p.pin != Auto {
		s.Reason = strings.TrimSuffix(fmt.Sprintf("pinned to %v; %s", p.pin, s.Reason), "; ")
	}
	return s
}

// carried says why a kernel path is in use.
func (p *peer) carried(l *lane) string {
	switch {
	case l.misses >= lost && l.echoAlive:
		return l.lostSince() + ", its kernel answers: is its daemon dead?"
	case l.misses >= lost:
		return l.lostSince() + ", and there is nothing better"
	case p.standing && l.proof.Before(p.since):
		return "it was in place when this node started"
	case l.mtu < p.full:
		return fmt.Sprintf("probes of %d bytes are answered, those of %d are not: larger packets are not sent by it", l.mtu, p.full)
	}
	return fmt.Sprintf("probes of %d bytes are answered", l.mtu)
}

// lostSince says since when rounds are unanswered.
func (l *lane) lostSince() string {
	return fmt.Sprintf("probes by %v are unanswered since %s (%d in a row)", l.kind, l.firstMiss.Format(clock), l.misses)
}

// kept says why no kernel path is in use.
func (p *peer) kept() string {
	var parts []string
	if p.fell != "" {
		parts = append(parts, p.fell)
	}
	for k := kinds - 1; k > Userspace; k-- {
		if p.pin != Auto && p.pin != k {
			continue
		}
		if why := p.kept1(&p.lanes[k]); why != "" && !(p.fell != "" && strings.HasSuffix(p.fell, why)) {
			parts = append(parts, fmt.Sprintf("no %v: %s", k, why))
		}
	}
	return strings.Join(parts, "; ")
}

func (p *peer) kept1(l *lane) string {
	switch {
	case p.core.broken[l.kind] != "":
		return p.core.broken[l.kind]
	case l.way == "":
		return p.chances[l.kind].Why
	case l.phase == resting && l.held:
		return fmt.Sprintf("%s; held down until %s", l.why, l.nextAt.Format(clock))
	case l.phase == resting:
		return fmt.Sprintf("%s; tried again at %s", l.why, l.nextAt.Format(clock))
	case l.phase == proving && l.why != "":
		return "being tried again: " + l.why
	case l.phase == proving:
		return "being proven"
	case l.told && !l.ready:
		return "the peer is not ready for it"
	case !l.ready:
		return "the peer has not said yet that it is ready for it"
	}
	return ""
}
