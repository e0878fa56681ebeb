package membership

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// sim runs leasers, electors, stores and broadcast queues against each other in
// virtual time: everything of a Member that decides, without memberlist. It
// does what memberlist and the Member's goroutine do around them (gossip
// rounds, pings with digests, failure detection, dials, full exchanges) in the
// plainest way, over a network with loss, delay, duplication, reordering and
// partitions. Nodes pause, crash at any point between two effects, restart
// from what they persisted or from an older backup of it, and leave. A
// run is a function of its seed and the calls made.
//
// While it runs it checks what must hold at every moment (see held and lost);
// settled checks what must hold once faults have ended.
type sim struct {
	t        simT
	rng      *rand.Rand
	now      time.Time // true time: each node's clock differs from it by its own offset
	events   simEvents
	seq      uint64
	settings Settings
	nodes    []*simNode

	loss, dup          float64 // of datagrams
	minDelay, maxDelay time.Duration
	cuts               []uint64 // of each, the nodes with a bit set and those without do not reach each other

	// faulty: nodes come back, pause or are cut off in this run. Without, no
	// held subnet may ever be lost to a dynamic claim.
	faulty bool
	healed time.Time // when the last of that ended
	log    []string
}

// simT is what *testing.T and *rapid.T have in common.
type simT interface {
	Helper()
	Fatalf(format string, args ...any)
}

const (
	simSpread = 4 * time.Second
	simElect  = 5 * time.Second
	simTick   = 200 * time.Millisecond
	simFanout = 3 // memberlist's GossipNodes
	// simSettle is the time in which a cluster settles once faults have ended:
	// 8 s to notice deaths, 5 s to dial, the spreading time to give a subnet up,
	// and it and a full merge to get another, a few times over.
	simSettle = 60 * time.Second
)

type simEvent struct {
	at  time.Time
	seq uint64
	fn  func()
}

// simEvents is a heap by time, of equal times in the order of adding.
type simEvents []simEvent

func (e simEvents) Len() int { return len(e) }
func (e simEvents) Less(i, j int) bool {
	if !e[i].at.Equal(e[j].at) {
		return e[i].at.Before(e[j].at)
	}
	return e[i].seq < e[j].seq
}
func (e simEvents) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *simEvents) Push(x any)   { *e = append(*e, x.(simEvent)) }
func (e *simEvents) Pop() any {
	last := (*e)[len(*e)-1]
	*e = (*e)[:len(*e)-1]
	return last
}

func newSim(t simT, seed uint64, s Settings) *sim {
	return &sim{
		t: t, rng: rand.New(rand.NewPCG(seed, 0)), now: simEpoch, settings: s,
		minDelay: time.Millisecond, maxDelay: 5 * time.Millisecond,
	}
}

func (s *sim) after(d time.Duration, fn func()) {
	s.seq++
	heap.Push(&s.events, simEvent{s.now.Add(d), s.seq, fn})
}

// run lets time pass.
func (s *sim) run(d time.Duration) {
	end := s.now.Add(d)
	for len(s.events) > 0 && !s.events[0].at.After(end) {
		e := heap.Pop(&s.events).(simEvent)
		s.now = e.at
		e.fn()
	}
	s.now = end
}

// runUntil lets time pass until cond holds, at most limit, and returns how long
// it took.
func (s *sim) runUntil(what string, limit time.Duration, cond func() bool) time.Duration {
	s.t.Helper()
	began := s.now
	for !cond() {
		if s.now.Sub(began) > limit {
			s.fail("after %v still not: %s", limit, what)
		}
		s.run(50 * time.Millisecond)
	}
	return s.now.Sub(began)
}

func (s *sim) logf(format string, args ...any) {
	s.log = append(s.log, fmt.Sprintf("%9.3f  ", s.now.Sub(simEpoch).Seconds())+fmt.Sprintf(format, args...))
}

func (s *sim) fail(format string, args ...any) {
	s.t.Helper()
	s.t.Fatalf("%s\nat %.3f s; what happened:\n%s", fmt.Sprintf(format, args...), s.now.Sub(simEpoch).Seconds(), strings.Join(s.log, "\n"))
}

func (s *sim) delay() time.Duration {
	return s.minDelay + time.Duration(s.rng.Int64N(int64(s.maxDelay-s.minDelay)+1))
}

func (s *sim) isCut(a, b *simNode) bool {
	return slices.ContainsFunc(s.cuts, func(side uint64) bool { return side>>a.i&1 != side>>b.i&1 })
}

// reaches reports whether a message of a would be handled by b now.
func (s *sim) reaches(a, b *simNode) bool { return a.up && b.up && !b.paused && !s.isCut(a, b) }

// partition cuts the nodes of side off from the others.
func (s *sim) partition(side uint64) {
	s.logf("cut: %b", side)
	s.faulty = true
	s.cuts = append(s.cuts, side)
}

// heal ends a partition.
func (s *sim) heal(side uint64) {
	s.logf("healed: %b", side)
	s.healed = s.now
	if i := slices.Index(s.cuts, side); i >= 0 {
		s.cuts = slices.Delete(s.cuts, i, i+1)
	}
}

// disturbed reports whether a held subnet may be lost to a claim that sorts
// before it, because nodes that could not hear each other meet.
func (s *sim) disturbed() bool { return s.faulty && s.now.Sub(s.healed) < simSettle }
