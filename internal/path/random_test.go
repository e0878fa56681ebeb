package path

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// What must hold whatever happens, over random histories of a peer and the ways to it.
func TestSchedules(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		start := drawWorld(t, "start")
		s := newSim(t, rapid.Uint64().Draw(t, "seed"), start, func(p *Peer) {
			if rapid.Bool().Draw(t, "on the link") {
				p.Chances[Direct] = Chance{Way: "d"}
			}
			p.Standing = rapid.SampledFrom([]Kind{Userspace, Userspace, KernelVXLAN, Direct}).Draw(t, "standing")
		})
		var (
			useless  time.Duration // for how long data has gone by a path that does not carry it, while userspace does
			standing = s.kind()
			sent     = 0
		)
		for range rapid.IntRange(1, 12).Draw(t, "events") {
			switch rapid.IntRange(0, 9).Draw(t, "event") {
			case 0:
				s.data, s.answered = rapid.Bool().Draw(t, "data"), rapid.Bool().Draw(t, "answered")
			case 1:
				s.peer.Boot++
				s.c.SetPeers(s.now, []Peer{s.peer})
			case 2:
				s.c.Pin(s.now, s.peer.ID, rapid.SampledFrom([]Kind{Auto, Userspace, KernelVXLAN, Direct}).Draw(t, "pin"))
			case 3:
				s.c.Break(s.now, KernelVXLAN, rapid.SampledFrom([]string{"", "broken"}).Draw(t, "broken"))
			default:
				s.w = drawWorld(t, "world")
			}
			useless = 0
			end := s.now.Add(time.Duration(rapid.IntRange(10, 60_000).Draw(t, "ms")) * time.Millisecond)
			for s.now.Before(end) {
				before, was := s.kind(), len(s.moves)
				s.run(50 * time.Millisecond)
				if n := s.sent - sent; n > 40 {
					t.Fatalf("%d messages in 50 ms", n)
				}
				sent = s.sent
				for _, m := range s.moves[was:] {
					if m.to != Userspace && m.to != standing && s.streak[m.to] < needed {
						t.Fatalf("moved to %v after %d answers in a row", m.to, s.streak[m.to])
					}
				}
				if k := s.kind(); k != Userspace {
					st := s.c.State(s.peer.ID)
					if s.c.broken[k] != "" || s.peer.Chances[k].Way == "" {
						t.Fatalf("%v, which may not be: %s", k, st.Reason)
					}
					dead := s.passes(k) < st.MTU || !s.w.ready[k-1]
					if s.data && before == k && dead && s.w.userspace && s.w.daemon {
						if useless += 50 * time.Millisecond; useless > 1200*time.Millisecond { // 200 ms until data is noticed
							t.Fatalf("data has gone by %v for %v, and it does not arrive: %s", k, useless, st.Reason)
						}
						continue
					}
				}
				useless = 0
			}
		}
		// All is well again: the best path is taken, whatever was before.
		s.w = healthy
		s.c.Break(s.now, KernelVXLAN, "")
		s.c.Pin(s.now, s.peer.ID, Auto)
		s.answered = s.data
		s.run(maxHold + maxRest + 10*time.Second)
		best := KernelVXLAN
		if s.peer.Chances[Direct].Way != "" {
			best = Direct
		}
		s.want(best)
		n := len(s.moves)
		s.run(10 * time.Minute)
		if len(s.moves) != n {
			t.Fatalf("nothing changes, and the path does: %v", s.moves[n:])
		}
	})
}

func drawWorld(t *rapid.T, label string) world {
	sizes := []int{0, 0, 500, 1280, 1400, 1450, 1450, 1450}
	often := func(what string) bool { return rapid.IntRange(0, 3).Draw(t, label+" "+what) > 0 }
	return world{
		vxlan:     rapid.SampledFrom(sizes).Draw(t, label+" vxlan"),
		direct:    rapid.SampledFrom(sizes).Draw(t, label+" direct"),
		userspace: often("userspace"),
		daemon:    often("daemon"),
		host:      often("host"),
		rtt:       time.Duration(rapid.SampledFrom([]int{50, 500, 5_000, 40_000}).Draw(t, label+" rtt")) * time.Microsecond,
		ready:     [2]bool{often("vxlan ready"), often("direct ready")},
	}
}

// A lossy underlay loses rounds by every path: that alone moves nobody to and fro.
func TestLoss(t *testing.T) {
	moves := 0
	for seed := range uint64(10) {
		w := healthy
		w.loss = 0.05
		s := newSim(t, seed, w)
		s.data, s.answered = true, true
		s.run(10 * time.Minute)
		s.want(KernelVXLAN)
		moves += len(s.moves)
	}
	if moves > 30 {
		t.Errorf("%d moves in 100 minutes of 5%% loss", moves)
	}
}

// The same events at the same times give the same decisions.
func TestDeterministic(t *testing.T) {
	run := func() []move {
		s := newSim(t, 7, healthy, func(p *Peer) { p.Chances[Direct] = Chance{Way: "d"} })
		s.data = true
		rng := rand.New(rand.NewPCG(3, 3))
		for range 50 {
			s.w.vxlan, s.w.direct = 1450*rng.IntN(2), 1450*rng.IntN(2)
			s.run(time.Duration(rng.IntN(5000)) * time.Millisecond)
		}
		return s.moves
	}
	if a, b := run(), run(); len(a) < 5 || !slices.Equal(a, b) {
		t.Errorf("%d and %d moves", len(a), len(b))
	}
}
