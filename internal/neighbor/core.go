package neighbor

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/overlayd/overlayd/encap"
)

const (
	// askAgain is the pause after a question that was not answered, refresh the one
	// after an answer. After lostAfter questions in a row without an answer the peer is
	// down: within 6 s of its last sign.
	askAgain  = time.Second
	refresh   = 2 * time.Second
	lostAfter = 4

	// answerRate, per second, and answerBurst limit the answers that one peer gets. A
	// kernel asks once a second while it has no answer, and has one table per device.
	answerRate  = 20
	answerBurst = 20
)

// Peer is a VTEP of the vxlan encap.
type Peer struct {
	// ID tells peers apart.
	ID [16]byte
	// Sources are the outer addresses that it sends from, and Endpoint is where
	// messages for it go.
	Sources  []netip.Addr
	Endpoint netip.AddrPort
	// Prefixes hold the overlay addresses that it may speak for.
	Prefixes []netip.Prefix
	// Ask is the address of its VTEP, to be asked for. Invalid: it is not asked.
	Ask netip.Addr
	// MAC is that of its VTEP, if it is known otherwise. Then it is not asked for, but
	// may be pinged.
	MAC [6]byte
}

// State is what is known of a peer.
type State struct {
	// MAC is its VTEP's; the zero value if it is not known.
	MAC [6]byte
	// Up tells whether the peer has answered lately. It stays false for one whose MAC
	// is known otherwise.
	Up bool
	// RTT is that of the last answer, LastProof when it came. Zero: there was none.
	RTT       time.Duration
	LastProof time.Time
	// Reason says the same to a person.
	Reason string
}

// outgoing is a message that is to be sent.
type outgoing struct {
	kind    encap.Kind
	to      mac
	payload []byte
	at      netip.AddrPort
}

type peer struct {
	Peer
	learned   mac // zero: nothing
	up        bool
	asked     time.Time // the question that is open; zero: none
	askedAs   netip.Addr
	askedMAC  mac // where it went
	silent    int // questions in a row without an answer
	next      time.Time
	rtt       time.Duration
	proof     time.Time
	tokens    float64
	filled    time.Time
	pings     []*ping
	sendError error
}

// ping is somebody who waits for an answer.
type ping struct {
	began  time.Time
	result chan time.Duration // room for one
}

// core decides whom to answer and whom to ask. It is not safe for concurrent use.
type core struct {
	mac   mac
	own   []netip.Addr // the first address of each subnet
	peers map[[16]byte]*peer
	order []*peer // as given
}

func newCore(m mac) *core { return &core{mac: m, peers: map[[16]byte]*peer{}} }

// setPeers replaces the peers. What is known of those that have not moved stays.
func (c *core) setPeers(now time.Time, list []Peer) {
	next := make(map[[16]byte]*peer, len(list))
	c.order = c.order[:0]
	for _, q := range list {
		if next[q.ID] != nil {
			continue
		}
		p := c.peers[q.ID]
		if p == nil || p.Endpoint != q.Endpoint || p.Ask != q.Ask || p.MAC != q.MAC {
			fresh := &peer{tokens: answerBurst, filled: now, next: now}
			if p != nil {
				fresh.pings, p.pings = p.pings, nil
			}
			p = fresh
		}
		p.Peer = q
		next[q.ID] = p
		c.order = append(c.order, p)
	}
	c.peers = next
}

// mine reports whether a is an address of our VTEP.
func (c *core) mine(a netip.Addr) bool {
	return slices.Contains(c.own, a) || a == LinkLocal(c.mac)
}

// take works off a message that came from the outer address from. It returns an
// answer to send, if there is one, whether the state of a peer has changed, and why
// the message was not heeded.
func (c *core) take(now time.Time, k encap.Kind, payload []byte, from netip.Addr) (out *outgoing, changed bool, drop reason) {
	m, err := parse(k, payload)
	switch {
	case err != nil:
		return nil, false, malformed
	case !c.mine(m.target):
		return nil, false, notOurs
	case m.senderMAC == c.mac:
		return nil, false, spoofed
	case m.answer:
		changed, drop = c.heard(now, m, from)
		return nil, changed, drop
	}
	p := c.speaker(from, m.sender, m.senderMAC)
	if p == nil {
		return nil, false, spoofed
	}
	if now.After(p.filled) {
		p.tokens = min(answerBurst, p.tokens+now.Sub(p.filled).Seconds()*answerRate)
		p.filled = now
	}
	if p.tokens < 1 {
		return nil, false, rateLimited
	}
	p.tokens--
	to := m.senderMAC
	if to == (mac{}) { // whoever does not say is answered where it is known to be
		if to = p.known(); to == (mac{}) {
			return nil, false, malformed
		}
	}
	kind, b, err := build(true, c.mac, m.target, to, m.sender)
	if err != nil {
		return nil, false, malformed
	}
	return &outgoing{kind, to, b, p.Endpoint}, false, none
}

// speaker finds the peer at an outer address that may speak for an address: one of its
// own in the overlay, or on the underlay, from which a host may answer a container. A
// link-local one may be anybody's: of several peers at the outer address that with
// the MAC is meant, if there is one.
func (c *core) speaker(from, sender netip.Addr, m mac) (found *peer) {
	for _, p := range c.order {
		if !slices.Contains(p.Sources, from) || !p.Endpoint.IsValid() {
			continue
		}
		if slices.Contains(p.Sources, sender) || slices.ContainsFunc(p.Prefixes, func(q netip.Prefix) bool { return q.Contains(sender) }) {
			return p
		}
		if sender.IsLinkLocalUnicast() && sender.Is6() && (found == nil || p.known() == m) {
			found = p
		}
	}
	return found
}

// heard takes an answer.
func (c *core) heard(now time.Time, m message, from netip.Addr) (changed bool, drop reason) {
	for _, p := range c.order {
		if p.Ask != m.sender || p.asked.IsZero() || p.askedAs != m.target || p.Endpoint.Addr() != from {
			continue
		}
		if m.senderMAC == (mac{}) && p.askedMAC[0]&1 == 0 { // it need not say where it was asked: RFC 4861 section 4.4
			m.senderMAC = p.askedMAC
		}
		if m.senderMAC == (mac{}) || p.MAC != (mac{}) && p.MAC != m.senderMAC {
			return false, spoofed
		}
		p.rtt, p.proof, p.asked = max(0, now.Sub(p.asked)), now, time.Time{}
		for _, g := range p.pings {
			g.result <- max(0, now.Sub(g.began))
		}
		p.pings, p.silent, p.sendError = nil, 0, nil
		if p.MAC != (mac{}) {
			return false, none
		}
		changed = !p.up || p.learned != m.senderMAC
		p.up, p.learned, p.next = true, m.senderMAC, now.Add(refresh)
		return changed, none
	}
	return false, unsolicited
}

// known is the peer's MAC, zero if there is none.
func (p *peer) known() mac {
	if p.MAC != (mac{}) {
		return p.MAC
	}
	return p.learned
}

// poll returns the questions that are due, when to call again (zero: when something
// else happens), and whether a peer's state has changed.
func (c *core) poll(now time.Time) (due []outgoing, next time.Time, changed bool) {
	for _, p := range c.order {
		if !p.Ask.IsValid() || !p.Endpoint.IsValid() || p.MAC != (mac{}) && len(p.pings) == 0 {
			continue
		}
		if open := p.asked.Add(askAgain); !p.asked.IsZero() && open.After(now) {
			p.next = open // a ping waits for the answer to the same question
		}
		if !p.next.After(now) {
			if !p.asked.IsZero() {
				if p.silent++; p.silent >= lostAfter && p.up {
					p.up, changed = false, true
				}
			}
			if out, ok := c.ask(now, p); ok {
				due = append(due, out)
			}
			p.next = now.Add(askAgain)
		}
		if next.IsZero() || p.next.Before(next) {
			next = p.next
		}
	}
	return due, next, changed
}

// ask makes a question to p: to the MAC that it had, or, if that is not known or did
// not answer, to all.
func (c *core) ask(now time.Time, p *peer) (outgoing, bool) {
	from := c.source(p.Ask)
	if !from.IsValid() {
		return outgoing{}, false
	}
	to := p.known()
	if to == (mac{}) || p.silent > 0 {
		to = groupMAC(p.Ask)
	}
	kind, b, err := build(false, c.mac, from, to, p.Ask)
	if err != nil {
		return outgoing{}, false
	}
	p.asked, p.askedAs, p.askedMAC = now, from, to
	return outgoing{kind, to, b, p.Endpoint}, true
}

// source is the address of ours that asks for another: invalid while there is none.
func (c *core) source(ask netip.Addr) netip.Addr {
	if ask.Is6() {
		return LinkLocal(c.mac)
	}
	for _, a := range c.own {
		if a.Is4() {
			return a
		}
	}
	return netip.Addr{}
}

func (c *core) state(id [16]byte) State {
	p := c.peers[id]
	if p == nil {
		return State{Reason: "no such peer"}
	}
	s := State{MAC: p.known(), Up: p.up, RTT: p.rtt, LastProof: p.proof}
	protocol := "ARP"
	if p.Ask.Is6() {
		protocol = "neighbour discovery"
	}
	switch {
	case p.MAC != (mac{}):
		s.Reason = "its VTEP's MAC is given; whether it is there is not looked at"
	case !p.Ask.IsValid():
		s.Reason = "no address of its VTEP is known"
	case p.up:
		s.Reason = fmt.Sprintf("its VTEP %v answers %s", p.Ask, protocol)
	case !c.source(p.Ask).IsValid():
		s.Reason = fmt.Sprintf("this node has no address yet from which to ask for %v", p.Ask)
	case p.sendError != nil:
		s.Reason = fmt.Sprintf("cannot ask for %v: %v", p.Ask, p.sendError)
	case p.learned != (mac{}):
		s.Reason = fmt.Sprintf("its VTEP %v no longer answers %s", p.Ask, protocol)
	default:
		s.Reason = fmt.Sprintf("its VTEP %v does not answer %s", p.Ask, protocol)
	}
	return s
}
