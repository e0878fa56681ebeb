package probe

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/overlayd/overlayd/encap"
)

var (
	self  = [16]byte{1, 1}
	peerA = [16]byte{2, 2}
	peerB = [16]byte{3, 3}

	endpoint4 = netip.MustParseAddrPort("192.0.2.7:8285")
	endpoint6 = netip.MustParseAddrPort("[2001:db8::7]:8285")

	// epoch is the start of virtual time.
	epoch = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
)

// sim runs a Core in virtual time over a made-up network.
type sim struct {
	core *Core
	now  time.Time
	// answers decides about each probe: how long until its answer arrives, or
	// not at all.
	answers func(out Outgoing) (rtt time.Duration, ok bool)
	// late, if set, is how late Poll is called.
	late func() time.Duration

	sent    []record
	turns   []turn
	resized []resized
	mtus    map[[16]byte]int // as of the last change
	waiting []arrival        // sorted by at
}

type record struct {
	at  time.Duration // since epoch
	out Outgoing
}

type turn struct {
	at    time.Duration
	id    [16]byte
	reach Reach
}

// resized is a change of an MTU.
type resized struct {
	at  time.Duration
	id  [16]byte
	mtu int
}

type arrival struct {
	at    time.Time
	from  netip.AddrPort
	frame encap.Frame
}

func newSim(seed uint64, peers ...Peer) *sim {
	rng := rand.New(rand.NewPCG(seed, 1))
	s := &sim{core: NewCore(self, 7, rng.Uint64), now: epoch}
	s.answers = func(Outgoing) (time.Duration, bool) { return time.Millisecond, true }
	s.mtus = map[[16]byte]int{}
	s.setPeers(peers...)
	return s
}

// setPeers replaces the peers.
func (s *sim) setPeers(peers ...Peer) (changed [][16]byte) {
	changed = s.core.SetPeers(s.now, peers)
	for id, p := range s.core.peers {
		s.mtus[id] = p.track.size.mtu
	}
	return changed
}

// carry makes the network answer everything up to that size.
func (s *sim) carry(size int) {
	s.answers = func(out Outgoing) (time.Duration, bool) { return time.Millisecond, out.Size <= size }
}

// lose makes the network answer nothing any more.
func (s *sim) lose() {
	s.answers = func(Outgoing) (time.Duration, bool) { return 0, false }
}

// answerTo is what a peer with boot 100 answers.
func answerTo(out Outgoing) encap.Frame {
	return encap.Frame{
		Type:     encap.Answer,
		Path:     out.Frame.Path,
		Size:     encap.MinFrame,
		Received: uint16(out.Size),
		Sender:   out.Frame.Receiver,
		Receiver: out.Frame.Sender,
		Boot:     100,
		Nonce:    out.Frame.Nonce,
	}
}

// since is the virtual time since the epoch.
func (s *sim) since() time.Duration { return s.now.Sub(epoch) }

// note records changes of reach or MTU, or both.
func (s *sim) note(changed [][16]byte) {
	for _, id := range changed {
		st, _ := s.core.State(id)
		mtu := s.mtus[id]
		if st.MTU != mtu {
			s.mtus[id] = st.MTU
			s.resized = append(s.resized, resized{s.since(), id, st.MTU})
		}
		if st.MTU == mtu || st.Since.Equal(s.now) {
			s.turns = append(s.turns, turn{s.since(), id, st.Reach})
		}
	}
}

// run goes on until d after the epoch.
func (s *sim) run(d time.Duration) {
	end := epoch.Add(d)
	for {
		due, next, changed := s.core.Poll(s.now)
		s.note(changed)
		for _, out := range due {
			s.sent = append(s.sent, record{s.since(), out})
			if rtt, ok := s.answers(out); ok {
				s.waiting = append(s.waiting, arrival{s.now.Add(rtt), out.To, answerTo(out)})
			}
		}
		slices.SortStableFunc(s.waiting, func(a, b arrival) int { return a.at.Compare(b.at) })

		if s.late != nil && !next.IsZero() {
			next = next.Add(s.late())
		}
		if len(s.waiting) > 0 && (next.IsZero() || !s.waiting[0].at.After(next)) && !s.waiting[0].at.After(end) {
			a := s.waiting[0]
			s.waiting = s.waiting[1:]
			s.now = a.at
			if _, changed, err := s.core.Answer(s.now, encap.Userspace, a.from, a.frame); err == nil && changed {
				s.note([][16]byte{a.frame.Sender})
			}
			continue
		}
		if next.IsZero() || next.After(end) {
			s.now = end
			return
		}
		s.now = next
	}
}

// state is the State of a peer that must be there.
func (s *sim) state(t testing.TB, id [16]byte) State {
	t.Helper()
	st, ok := s.core.State(id)
	if !ok {
		t.Fatalf("no such peer: %x", id)
	}
	return st
}

func peer4() Peer { return Peer{ID: peerA, Boot: 100, Endpoint: endpoint4} }
func peer6() Peer { return Peer{ID: peerB, Boot: 100, Endpoint: endpoint6} }
