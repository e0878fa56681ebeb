package path

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"time"
)

// world is a peer as it really is, and the way to it.
type world struct {
	vxlan, direct int           // largest inner packet that passes; 0: none
	userspace     bool          // its daemon answers by userspace
	daemon        bool          // its daemon is there
	host          bool          // its kernel is there
	rtt           time.Duration // of everything but userspace, and of that if usRTT is 0
	usRTT         time.Duration
	loss          float64 // of rounds
	ready         [2]bool // what it says: VXLAN, direct
}

var healthy = world{vxlan: 1450, direct: 1450, userspace: true, daemon: true, host: true, rtt: 500 * time.Microsecond, ready: [2]bool{true, true}}

// sim drives a Core with one peer in a world, in virtual time.
type sim struct {
	t     failer
	c     *Core
	w     world
	peer  Peer
	now   time.Time
	todo  []todo // sorted by time
	rng   *rand.Rand
	moves []move
	sent  int
	fresh []int // sizes of the rounds before which the kernel was to forget
	// ok is how many rounds of a kind have been answered in a row, of at least a size.
	streak [kinds]int
	// data is whether the peer is sent data, answered or not.
	data, answered bool
	tx, rx         uint64
}

type todo struct {
	at time.Time
	do func()
}

type move struct {
	at   time.Time
	from Kind
	to   Kind
	why  string
}

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// failer is a *testing.T or a *rapid.T.
type failer interface {
	Helper()
	Fatalf(format string, args ...any)
}

func newSim(t failer, seed uint64, w world, edit ...func(*Peer)) *sim {
	s := &sim{t: t, w: w, now: epoch, rng: rand.New(rand.NewPCG(seed, 1))}
	s.c = NewCore(s.rng.Uint64)
	s.peer = Peer{ID: [16]byte{1}, Boot: 1, Full: 1450, Floor: 576, Chances: [kinds]Chance{KernelVXLAN: {Way: "v"}, Direct: {Why: "it is not on the link"}}}
	for _, e := range edit {
		e(&s.peer)
	}
	s.c.SetPeers(s.now, []Peer{s.peer})
	s.after(0, s.userspaceTick)
	s.after(0, s.trafficTick)
	return s
}

func (s *sim) after(d time.Duration, do func()) {
	e := todo{s.now.Add(d), do}
	i, _ := slices.BinarySearchFunc(s.todo, e, func(a, b todo) int {
		if !a.at.After(b.at) {
			return -1
		}
		return 1
	})
	s.todo = slices.Insert(s.todo, i, e)
}

// userspaceTick stands for the prober of userspace: every 2 s, three losses are down.
func (s *sim) userspaceTick() {
	s.after(2*time.Second, s.userspaceTick)
	s.askUserspace()
	up := s.w.userspace && s.w.daemon
	if up {
		s.c.UserspaceReach(s.now, s.peer.ID, true, false)
	} else {
		s.after(5*time.Second, func() {
			if !s.w.userspace || !s.w.daemon {
				s.c.UserspaceReach(s.now, s.peer.ID, false, true)
			}
		})
	}
}

func (s *sim) askUserspace() {
	if !s.w.userspace || !s.w.daemon {
		return
	}
	sent, rtt := s.now, cmp.Or(s.w.usRTT, s.w.rtt)
	s.after(rtt, func() {
		s.c.UserspaceAnswered(s.now, s.peer.ID, sent, rtt)
		s.c.Ready(s.now, s.peer.ID, s.w.ready[0], s.w.ready[1])
	})
}

func (s *sim) trafficTick() {
	s.after(200*time.Millisecond, s.trafficTick)
	if s.data {
		s.tx += 100
		if s.answered {
			s.rx += 50
		}
	}
	s.c.Traffic(s.now, s.peer.ID, s.tx, s.rx)
}

func (s *sim) passes(k Kind) int {
	if k == Direct {
		return s.w.direct
	}
	return s.w.vxlan
}

func (s *sim) send(m Send) {
	s.sent++
	switch m.What {
	case WhatUserspace:
		s.askUserspace()
	case WhatEcho:
		if s.w.host && s.passes(m.Kind) > 0 {
			s.after(s.w.rtt, func() { s.c.EchoAnswered(s.now, m.ID, m.Kind, m.Round) })
		}
	case WhatRound:
		if m.Fresh {
			s.fresh = append(s.fresh, m.Size)
		}
		if s.w.daemon && s.w.ready[m.Kind-1] && m.Size <= s.passes(m.Kind) && s.rng.Float64() >= s.w.loss {
			s.after(s.w.rtt, func() {
				s.streak[m.Kind]++
				s.c.Ready(s.now, s.peer.ID, s.w.ready[0], s.w.ready[1])
				s.c.Answered(s.now, m.ID, m.Kind, m.Round)
			})
		} else {
			s.streak[m.Kind] = 0
		}
	}
}

// run lets time pass.
func (s *sim) run(d time.Duration) {
	s.t.Helper()
	end := s.now.Add(d)
	idle := 0
	for {
		before := s.kind()
		out, next := s.c.Poll(s.now)
		for _, m := range out {
			s.send(m)
		}
		s.note(before)
		if len(out) == 0 && !next.IsZero() && !next.After(s.now) {
			if idle++; idle > 3 {
				s.t.Fatalf("Poll wants to be called at once, again and again, and does nothing: %+v", s.c.peers[s.peer.ID])
			}
		} else {
			idle = 0
		}
		at := end
		if !next.IsZero() && next.Before(at) {
			at = next
		}
		if len(s.todo) > 0 && s.todo[0].at.Before(at) {
			at = s.todo[0].at
		}
		if at.After(s.now) {
			s.now = at
		}
		for len(s.todo) > 0 && !s.todo[0].at.After(s.now) {
			do := s.todo[0].do
			s.todo = s.todo[1:]
			before := s.kind()
			do()
			s.note(before)
		}
		if !s.now.Before(end) {
			return
		}
	}
}

func (s *sim) kind() Kind { return s.c.State(s.peer.ID).Kind }

func (s *sim) note(before Kind) {
	if k := s.kind(); k != before {
		s.moves = append(s.moves, move{s.now, before, k, s.c.State(s.peer.ID).Reason})
	}
}

// want checks which path is in use.
func (s *sim) want(k Kind) {
	s.t.Helper()
	if got := s.c.State(s.peer.ID); got.Kind != k {
		s.t.Fatalf("after %v the path is %v, want %v: %s\nmoves: %v", s.now.Sub(epoch), got.Kind, k, got.Reason, s.moves)
	}
}
