package forward

import (
	"errors"
	"net/netip"
	"slices"
)

// Seen is a packet or a datagram as a [Tap] is shown it.
type Seen struct {
	// Outer tells that it is a datagram of the underlay, else an inner packet, which
	// may be longer than any MTU on its way out.
	Outer bool
	// Outbound is from the device to the underlay.
	Outbound bool
	// Peer is whom it is from or to, nil if that is not known.
	Peer *Peer
	// Encap is the name of its framing.
	Encap string
	// Local and Remote are the ends of a datagram, Class is its TOS or traffic class. A
	// local address may be unspecified.
	Local, Remote netip.AddrPort
	Class         uint8
	// Pieces are the packet, or the datagram's payload, in order; valid during the call.
	Pieces [][]byte
	// Reason is why it is dropped, None if it is not. What the device refuses is shown
	// before that, with None.
	Reason Reason
}

// Tap is shown what passes. It is called by the loops, by several goroutines at once,
// and must not block.
type Tap func(*Seen)

// maxTaps bounds how many taps there may be.
const maxTaps = 4

// ErrTaps: there are as many taps as there may be.
var ErrTaps = errors.New("forward: too many captures at once")

// AddTap has t shown everything until remove is called, and perhaps for a moment
// longer. Without a tap the loops do not more than look for one.
func (e *Engine) AddTap(t Tap) (remove func(), err error) {
	e.tapping.Lock()
	defer e.tapping.Unlock()
	if len(e.tapList) == maxTaps {
		return nil, ErrTaps
	}
	p := &t
	e.tapList = append(e.tapList, p)
	e.setTaps()
	return func() {
		e.tapping.Lock()
		defer e.tapping.Unlock()
		e.tapList = slices.DeleteFunc(e.tapList, func(o *Tap) bool { return o == p })
		e.setTaps()
	}, nil
}

// setTaps publishes tapList as one tap.
func (e *Engine) setTaps() {
	if len(e.tapList) == 0 {
		e.tap.Store(nil)
		return
	}
	list := slices.Clone(e.tapList)
	all := Tap(func(s *Seen) {
		for _, t := range list {
			(*t)(s)
		}
	})
	e.tap.Store(&all)
}

// showInner shows an inner packet.
func (e *Engine) showInner(t Tap, outbound bool, p *Peer, b []byte, r Reason) {
	s := Seen{Outbound: outbound, Peer: p, Pieces: [][]byte{b}, Reason: r, Encap: e.codec.Name()}
	if p != nil && outbound {
		s.Encap = e.codecFor(p).Name()
	}
	t(&s)
}

// showOuter shows a datagram that came in, or several of m's that were joined.
func (l *rxLoop) showOuter(t Tap, m *datagram, b []byte, p *Peer, r Reason) {
	for first := true; first || len(b) > 0; first = false {
		n := len(b)
		if m.segment > 0 {
			n = min(n, m.segment)
		}
		t(&Seen{Outer: true, Peer: p, Encap: l.e.codec.Name(), Local: l.local, Remote: m.addr, Class: m.class, Pieces: [][]byte{b[:n]}, Reason: r})
		b = b[n:]
	}
}

// show shows datagrams that were sent, or not.
func (q *sendQueue) show(t Tap, ms []queuedDatagram, iov [][]byte, r Reason) {
	for i := range ms {
		d := &ms[i]
		t(&Seen{
			Outer: true, Outbound: true, Peer: d.peer, Encap: q.e.codecFor(d.peer).Name(), Local: q.local, Remote: d.peer.Endpoint,
			Class: d.class, Pieces: iov[:d.pieces], Reason: r,
		})
		iov = iov[d.pieces:]
	}
}
