package probe

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/overlayd/overlayd/encap"
)

// sized is a peer whose MTU lies between those sizes.
func sized(full, least int) Peer {
	p := peer4()
	p.FullSize, p.MinSize = full, least
	return p
}

// mtu is what the MTU of peerA is taken to be.
func (s *sim) mtu() int { return s.core.peers[peerA].track.size.mtu }

// large counts the probes to peerA that are not small, from a time on.
func (s *sim) large(from time.Duration) (n int) {
	for _, r := range s.sent {
		if r.at >= from && r.out.Size != smallProbe {
			n++
		}
	}
	return n
}

// runTo goes on until the MTU is within the bounds, and tells when it is.
func (s *sim) runTo(t testing.TB, least, most int, limit time.Duration) time.Duration {
	t.Helper()
	for s.mtu() < least || s.mtu() > most {
		if s.since() >= limit {
			t.Fatalf("MTU %d after %v, want %d to %d; changes: %v", s.mtu(), limit, least, most, s.resized)
		}
		s.run(s.since() + 10*time.Millisecond)
	}
	return s.since()
}

const minute = time.Minute

func TestPathCarriesEverything(t *testing.T) {
	s := newSim(1, sized(1400, 576))
	s.run(10 * minute)
	if n := s.large(0); n < 48 || n > 61 {
		t.Errorf("%d probes of full size in 10 minutes, want one in 10 to 12.2 s", n)
	}
	for _, r := range s.sent {
		if r.out.Size != smallProbe && r.out.Size != 1400 {
			t.Fatalf("a probe of %d bytes at %v", r.out.Size, r.at)
		}
	}
	want := State{Reach: Up, MTU: 1400, Reason: "answered a probe"}
	st := s.state(t, peerA)
	if st.Reach != want.Reach || st.MTU != want.MTU || st.SmallOnly || st.Reason != want.Reason || len(s.resized) > 0 {
		t.Errorf("%+v; changes: %v", st, s.resized)
	}
}

func TestNoSizesWithoutFullSize(t *testing.T) {
	s := newSim(1, sized(0, 576))
	s.carry(smallProbe)
	s.run(2 * minute)
	if st := s.state(t, peerA); s.large(0) > 0 || st.MTU != 0 || st.SmallOnly || s.core.Hint(s.now, peerA, -1) {
		t.Errorf("%d large probes, %+v", s.large(0), st)
	}
}

func TestBounds(t *testing.T) {
	for _, tt := range []struct{ full, least, wantFull, wantFloor int }{
		{1400, 1280, 1400, 1280},
		{1400, 0, 1400, 1400},
		{1400, -5, 1400, 1400},
		{1400, 1500, 1400, 1400},
		{1400, 10, 1400, smallProbe + 1},
		{smallProbe + 1, 10, smallProbe + 1, smallProbe + 1},
		{smallProbe, 10, 0, 0},
		{-1, 10, 0, 0},
		{20000, 10000, maxFrame, maxFrame},
	} {
		p := sized(tt.full, tt.least)
		if full, floor := p.bounds(); full != tt.wantFull || floor != tt.wantFloor {
			t.Errorf("%d, %d: %d, %d", tt.full, tt.least, full, floor)
		}
	}
}

// Paths that swallow large packets, from the beginning or from some time on,
// at all points of the cycle.
func TestBlackHole(t *testing.T) {
	for _, tt := range []struct {
		name        string
		full, least int
		carries     int
		from        time.Duration
		limit       time.Duration // until the MTU is right
	}{
		{"from the beginning", 1450, 1280, 1300, 0, 15 * time.Second},
		{"from the beginning, to 576", 1450, 576, 1300, 0, 15 * time.Second},
		{"later", 1450, 1280, 1300, time.Minute, 26 * time.Second},
		{"later, to 576", 1450, 576, 1300, time.Minute, 26 * time.Second},
		{"later, one byte", 1450, 1280, 1449, time.Minute, 20 * time.Second},
		{"later, just the smallest", 1450, 1280, 1280, time.Minute, 28 * time.Second},
		{"later, jumbo frames", 8950, 576, 1300, time.Minute, 36 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var worst, noticed time.Duration
			for seed := range uint64(100) {
				s := newSim(seed, sized(tt.full, tt.least))
				broke := tt.from
				if broke > 0 {
					broke += time.Duration(seed) * 130 * time.Millisecond
					s.run(broke)
				}
				s.carry(tt.carries)
				noticed = max(noticed, s.runTo(t, 0, tt.full-1, broke+minute)-broke)
				worst = max(worst, s.runTo(t, max(tt.carries-sizeGap+1, tt.least), tt.carries, broke+minute)-broke)
				right := s.mtu()
				s.run(broke + 10*minute)
				for _, c := range s.resized {
					if c.mtu > tt.carries {
						t.Fatalf("seed %d: changes %v", seed, s.resized)
					}
				}
				st := s.state(t, peerA)
				if st.MTU < right || !st.SmallOnly || len(s.turns) != 1 {
					t.Fatalf("seed %d: MTU was %d, then %+v; changes %v, %v", seed, right, st, s.resized, s.turns)
				}
				if want := fmt.Sprintf("answers probes of %d bytes, but not those of %d: larger packets are not sent to it", st.MTU, tt.full); st.Reason != want {
					t.Fatalf("reason %q, want %q", st.Reason, want)
				}
			}
			t.Logf("noticed after %v, right after %v", noticed, worst)
			if worst > tt.limit || noticed > 15250*time.Millisecond {
				t.Errorf("noticed after %v, right after %v, want 15.2 s and %v", noticed, worst, tt.limit)
			}
		})
	}
}

// The path gets narrower once more: what was found before is no safer than
// full size was.
func TestBlackHoleBelowBlackHole(t *testing.T) {
	s := newSim(1, sized(1450, 576))
	s.carry(1400)
	s.runTo(t, 1393, 1400, 15*time.Second)
	s.run(40 * time.Second)
	s.carry(1000)
	s.runTo(t, 993, 1000, 66*time.Second)
	s.run(200 * time.Second)
	if mtu := s.mtu(); mtu > 1000 || mtu < 993 {
		t.Errorf("MTU %d; changes: %v", mtu, s.resized)
	}
	// And wider, but not all the way.
	s.carry(1400)
	s.runTo(t, 1393, 1400, 280*time.Second)
}

// Not even the smallest size passes: nothing can be done, and nothing is.
func TestSmallestSizeDoesNotPass(t *testing.T) {
	for _, tt := range []struct{ full, least int }{{1400, 1280}, {1400, 1400}, {1400, 0}, {1400, 1395}} {
		s := newSim(1, sized(tt.full, tt.least))
		s.carry(1000)
		s.run(minute)
		least := tt.least
		if least == 0 {
			least = tt.full
		}
		st := s.state(t, peerA)
		want := fmt.Sprintf("answers probes, but not those of %d bytes: does the underlay carry smaller packets only?", least)
		if st.MTU != least || st.SmallOnly != (least < tt.full) || st.Reach != Up || st.Reason != want {
			t.Errorf("%+v: %+v", tt, st)
		}
		n := len(s.sent)
		s.run(11 * minute)
		// One in 2 s, and some more since a lost one has a small one after it.
		if small, large := (len(s.sent)-n)/10, s.large(minute)/10; small > 40 || large > 9 {
			t.Errorf("%+v: %d probes a minute, %d of them large", tt, small, large)
		}
		if len(s.turns) != 1 || len(s.resized) > 1 {
			t.Errorf("%+v: changes %v, %v", tt, s.turns, s.resized)
		}

		answers := s.answers
		s.lose()
		s.run(11*minute + 10*time.Second)
		if st := s.state(t, peerA); !strings.HasPrefix(st.Reason, "probes to ") {
			t.Errorf("%+v, when it is down: %+v", tt, st)
		}
		s.answers = answers
		s.run(12 * minute)
		s.carry(1399) // better, but not good
		s.run(13 * minute)
		if st := s.state(t, peerA); least < tt.full && (st.MTU < 1392 || st.MTU > 1399) || (st.Reason == want) != (least == tt.full) {
			t.Errorf("%+v, when 1399 bytes pass: %+v", tt, st)
		}
		s.carry(1400)
		s.run(15 * minute)
		if st := s.state(t, peerA); st.MTU != 1400 || st.SmallOnly || st.Reason != "answered a probe" {
			t.Errorf("%+v, after the repair: %+v", tt, st)
		}
	}
}

func TestProbesAreFewOnNarrowPath(t *testing.T) {
	s := newSim(1, sized(1450, 576))
	s.carry(700)
	s.run(minute)
	n := len(s.sent)
	s.run(11 * minute)
	// The search each minute has 8 steps, of two sizes lost each at most.
	if all, large := (len(s.sent)-n)/10, s.large(minute)/10; all > 64 || large > 28 {
		t.Errorf("%d probes a minute, %d of them large", all, large)
	}
	for i := 1; i < len(s.sent); i++ {
		if s.sent[i].at-s.sent[i-1].at < time.Millisecond {
			t.Errorf("probe %d does not wait for the one before", i)
		}
	}
}

func TestPathIsRepaired(t *testing.T) {
	var worst time.Duration
	for seed := range uint64(100) {
		s := newSim(seed, sized(1450, 576))
		s.carry(1300)
		repaired := minute + time.Duration(seed)*time.Second
		s.run(repaired)
		s.carry(9000)
		worst = max(worst, s.runTo(t, 1450, 1450, repaired+2*minute)-repaired)
		n := len(s.resized)
		s.run(10 * minute)
		if st := s.state(t, peerA); st.MTU != 1450 || st.SmallOnly || st.Reason != "answered a probe" || len(s.resized) != n {
			t.Fatalf("seed %d: %+v; changes: %v", seed, st, s.resized)
		}
	}
	if worst > 65*time.Second {
		t.Errorf("full size after %v", worst)
	}
}

// A host that is silent says nothing about sizes, and what was known of them
// is still known when it is back.
func TestDownAndUpAgain(t *testing.T) {
	s := newSim(1, sized(1450, 1280))
	s.carry(1400)
	s.run(75 * time.Second)
	before := s.mtu()
	s.lose()
	s.run(85 * time.Second)
	if st := s.state(t, peerA); st.Reach != Down || st.MTU != before || !st.SmallOnly {
		t.Fatalf("MTU was %d: %+v", before, st)
	}
	s.run(4 * minute)
	due := s.core.queue[0].wake
	if s.core.Hint(s.now, peerA, before-1); s.core.queue[0].wake != due {
		t.Error("a hint has it probed sooner, though it is down")
	}
	s.run(5 * minute)
	if n := s.large(90 * time.Second); n > 0 {
		t.Errorf("%d large probes while it is down", n)
	}
	if st := s.state(t, peerA); !strings.HasPrefix(st.Reason, "probes to ") {
		t.Errorf("reason %q", st.Reason)
	}
	s.carry(1400)
	s.run(5*minute + 30*time.Second)
	if st := s.state(t, peerA); st.Reach != Up || st.MTU < before-1 || st.MTU > 1400 {
		t.Errorf("MTU was %d: %+v; changes: %v", before, st, s.resized)
	}
	if s.large(5*minute) == 0 {
		t.Error("no large probe since it is back")
	}
}

// A search has no more than one probe under way, that is lost for its size, so
// it does not put off that a silent host is noticed.
func TestSilentHostIsDownInTimeInSearch(t *testing.T) {
	for seed := range uint64(400) {
		s := newSim(seed, sized(1450, 576))
		s.carry(700)
		died := 5*time.Second + time.Duration(seed)*200*time.Millisecond
		s.run(died)
		s.lose()
		s.run(died + 5250*time.Millisecond)
		if st := s.state(t, peerA); st.Reach != Down {
			t.Fatalf("seed %d: silent for 5.2 s since %v: %+v", seed, died, st)
		}
	}
}

func TestHint(t *testing.T) {
	for _, tt := range []struct {
		name    string
		id      [16]byte
		size    int
		changed bool
		want    int
	}{
		{"lower", peerA, 1300, true, 1300},
		{"one byte", peerA, 1399, true, 1399},
		{"the same", peerA, 1400, false, 1400},
		{"larger", peerA, 1401, false, 1400},
		{"below the smallest", peerA, 100, true, 1280},
		{"of nothing", peerA, 0, true, 1280},
		{"negative", peerA, -1, true, 1280},
		{"for a stranger", peerB, 100, false, 1400},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSim(1, sized(1450, 1280))
			s.carry(1400)
			s.core.Hint(s.now, peerA, 1400)
			s.run(5 * time.Second)
			due := s.core.queue[0].wake
			if changed := s.core.Hint(s.now, tt.id, tt.size); changed != tt.changed || s.mtu() != tt.want {
				t.Fatalf("changed %v, MTU %d", changed, s.mtu())
			}
			// It is tried at once, and again no sooner than usual.
			if !tt.changed {
				if now := s.core.queue[0].wake; now != due {
					t.Errorf("woken at %v instead of %v", now, due)
				}
				return
			}
			if out := s.poll(t); out.Size != tt.want {
				t.Errorf("a probe of %d bytes", out.Size)
			}
			// Once more has no effect at all.
			if z := s.core.peers[peerA].track.size; s.core.Hint(s.now, peerA, tt.size) || s.core.peers[peerA].track.size != z {
				t.Error("the same hint again changed something")
			}
		})
	}
}

// Hints that are true are heeded until the path is repaired; forged ones do
// not last.
func TestHintsAreTested(t *testing.T) {
	for name, carries := range map[string]int{"forged": 1450, "true": 1300, "not low enough": 1290, "too low": 1400} {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(50) {
				s := newSim(seed, sized(1450, 1280))
				hinted := minute + time.Duration(seed)*130*time.Millisecond
				s.run(hinted)
				s.carry(carries)
				s.core.Hint(s.now, peerA, 1300)
				n := len(s.sent)
				s.run(hinted + time.Millisecond)
				if len(s.sent) != n+1 || s.sent[n].out.Size != 1300 {
					t.Fatalf("seed %d: not tried at once: %v", seed, s.sent[n:])
				}
				switch name {
				case "forged":
					s.runTo(t, 1450, 1450, hinted+12300*time.Millisecond)
				case "too low":
					s.runTo(t, 1393, 1400, hinted+25*time.Second)
				}
				s.run(hinted + 3*minute)
				if mtu := s.mtu(); mtu > carries || mtu <= carries-sizeGap {
					t.Errorf("seed %d: MTU %d; changes: %v", seed, mtu, s.resized)
				}
			}
		})
	}
}

// A hint ends a search, and answers to what was sent before do not overrule it.
func TestHintDuringProbe(t *testing.T) {
	s := newSim(1, sized(1450, 576))
	out := s.poll(t)
	s.core.Hint(s.now, peerA, 1000)
	s.now = s.now.Add(time.Millisecond)
	if _, changed, err := s.core.Answer(s.now, encap.Userspace, endpoint4, answerTo(out)); err != nil || !changed || s.mtu() != 1000 {
		t.Errorf("answered: changed %v, %v; MTU %d", changed, err, s.mtu())
	}
	if out := s.poll(t); out.Size != 1000 {
		t.Errorf("then a probe of %d bytes", out.Size)
	}

	s = newSim(1, sized(1450, 576))
	s.carry(1400)
	s.runTo(t, 1200, 1440, 15*time.Second)
	if !s.core.peers[peerA].track.size.searching() || !s.core.Hint(s.now, peerA, 1100) {
		t.Fatal("no search to end")
	}
	s.run(s.since() + 9*time.Second)
	if s.mtu() != 1100 || s.core.peers[peerA].track.size.searching() {
		t.Errorf("MTU %d; changes: %v", s.mtu(), s.resized)
	}
}

func TestNewBoundsStartAfresh(t *testing.T) {
	for _, tt := range []struct {
		name   string
		peer   Peer
		want   int
		report bool
	}{
		{"the same", sized(1450, 1280), 1300, false},
		{"larger", sized(1500, 1280), 1500, true},
		{"smaller", sized(1290, 1280), 1290, true},
		{"another smallest", sized(1450, 576), 1450, true},
		{"none", sized(0, 1280), 0, true},
		{"another boot", func() Peer { p := sized(1450, 1280); p.Boot++; return p }(), 1450, true},
		{"as small as what was found", sized(1300, 1280), 1300, false},
	} {
		s := newSim(1, sized(1450, 1280))
		s.run(5 * time.Second)
		s.core.Hint(s.now, peerA, 1300)
		old := s.poll(t)
		if changed := s.setPeers(tt.peer); (len(changed) == 1) != tt.report || s.mtu() != tt.want {
			t.Errorf("%s: changed %x, MTU %d", tt.name, changed, s.mtu())
		}
		// An old probe says nothing about the new sizes.
		f := answerTo(old)
		f.Boot = tt.peer.Boot
		s.core.Answer(s.now, encap.Userspace, endpoint4, f)
		if s.mtu() != tt.want {
			t.Errorf("%s: MTU %d after an old answer", tt.name, s.mtu())
		}
	}
}

// Lost packets are no narrow path. Loss is of any size, answers get lost, too.
func TestRandomLoss(t *testing.T) {
	for _, tt := range []struct {
		loss  float64
		share float64 // of the time at most, that the MTU is below full size
	}{{0.05, 0.002}, {0.2, 0.02}} {
		var low, all time.Duration
		for seed := range uint64(50) {
			rng := rand.New(rand.NewPCG(seed, 3))
			s := newSim(seed, sized(1450, 576))
			s.answers = func(Outgoing) (time.Duration, bool) { return 5 * time.Millisecond, rng.Float64() >= tt.loss }
			for at := time.Duration(0); at < 10*minute; at += 100 * time.Millisecond {
				s.run(at)
				if all += 100 * time.Millisecond; s.mtu() < 1450 {
					low += 100 * time.Millisecond
				}
			}
			s.carry(9000)
			s.run(12 * minute)
			if mtu := s.mtu(); mtu != 1450 {
				t.Errorf("seed %d: MTU %d at the end", seed, mtu)
			}
		}
		t.Logf("loss %v: below full size for %v of %v", tt.loss, low, all)
		if low > time.Duration(tt.share*float64(all)) {
			t.Errorf("loss %v: below full size for %v of %v", tt.loss, low, all)
		}
	}
}

// Whatever happens before: once it is quiet, the MTU is right and stays so.
func TestMTUConverges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		full := rapid.IntRange(smallProbe+1, maxFrame).Draw(t, "full")
		least := rapid.IntRange(0, full+10).Draw(t, "least")
		seed := rapid.Uint64().Draw(t, "seed")
		rng := rand.New(rand.NewPCG(seed, 4))
		p := sized(full, least)
		_, floor := p.bounds()
		s := newSim(seed, p)
		if rapid.Bool().Draw(t, "late") {
			s.late = func() time.Duration { return time.Duration(rng.IntN(400)) * time.Millisecond }
		}
		for range rapid.IntRange(1, 5).Draw(t, "phases") {
			carries := rapid.IntRange(smallProbe, full+20).Draw(t, "carries")
			loss := rapid.Float64Range(0, 0.8).Draw(t, "loss")
			slowest := rapid.SampledFrom([]int{2, 100, 1500}).Draw(t, "slowest ms")
			s.answers = func(out Outgoing) (time.Duration, bool) {
				return time.Duration(rng.IntN(slowest)) * time.Millisecond, out.Size <= carries && rng.Float64() >= loss
			}
			s.run(s.since() + time.Duration(rapid.IntRange(0, 90).Draw(t, "s"))*time.Second)
			if rapid.Bool().Draw(t, "hint") {
				was, size := s.mtu(), rapid.IntRange(0, full).Draw(t, "hinted")
				if changed := s.core.Hint(s.now, peerA, size); s.mtu() > max(size, floor) || changed != (s.mtu() != was) {
					t.Fatalf("hint of %d: MTU was %d, is %d, changed %v", size, was, s.mtu(), changed)
				}
				s.mtus[peerA] = s.mtu()
			}
		}
		carries := rapid.IntRange(smallProbe, full+20).Draw(t, "carries at the end")
		s.carry(carries)
		s.run(s.since() + 3*minute)
		n := len(s.resized)
		s.run(s.since() + 3*minute)

		most := min(max(carries, floor), full)
		least = max(most-7, floor)
		if carries >= full {
			least = full
		}
		if mtu := s.mtu(); mtu < least || mtu > most {
			t.Fatalf("%d to %d, %d pass: MTU %d", floor, full, carries, mtu)
		}
		// It may still creep up some bytes, since a search begins where the last ended.
		for _, c := range s.resized[n:] {
			if c.mtu < least || c.mtu > most {
				t.Fatalf("%d to %d, %d pass: changes %v", floor, full, carries, s.resized)
			}
		}
		if st, _ := s.core.State(peerA); st.Reach != Up || s.mtus[peerA] != st.MTU {
			t.Fatalf("MTU %d was reported as %d: %+v", st.MTU, s.mtus[peerA], st)
		}
	})
}

// What is not about the size that is tried leaves a verification, or a search,
// where it is.
func TestSizesAreNotConfused(t *testing.T) {
	z := newSizes(epoch, 1400, 1280)
	z.hint(epoch, 1300)
	lose := func(at time.Time) {
		z.sent(at, false)
		z.missed(z.target(), at)
		z.sent(at.Add(second), true)
		z.answered(at.Add(second), at.Add(second))
	}
	lose(epoch)
	z.passed(epoch.Add(2*second), 1290) // late
	if z.mtu != 1300 || z.misses != 1 {
		t.Errorf("after the answer to a smaller size: %+v", z)
	}
	lose(epoch.Add(20 * second)) // a search upwards is due, but something is wrong with 1300
	if z.searching() || z.misses != 2 {
		t.Errorf("after two losses: %+v", z)
	}
	z.passed(epoch.Add(30*second), 1300)
	z.answered(epoch.Add(30*second), epoch.Add(30*second))
	lose(epoch.Add(31 * second))
	if z.target() != 1400 || z.misses != 1 {
		t.Errorf("in the search upwards: %+v", z)
	}
	z.passed(epoch.Add(33*second), 1300)
	if z.target() != 1400 || z.misses != 1 {
		t.Errorf("after the answer to a size that was known to pass: %+v", z)
	}
}

func TestHintWithoutEndpoint(t *testing.T) {
	p := sized(1400, 1280)
	p.Endpoint = netip.AddrPort{}
	s := newSim(1, p, peer6())
	if s.core.Hint(s.now, peerA, 1300) || s.mtu() != 1400 {
		t.Errorf("MTU %d", s.mtu())
	}
	if len(s.setPeers(p, sized(1400, 1280), Peer{ID: [16]byte{9}, Endpoint: endpoint4, FullSize: 1400})) > 0 {
		t.Error("a new peer is reported as changed")
	}
}

// The prober passes a hint on, also when Send has it from the kernel.
func TestProberHint(t *testing.T) {
	var p *Prober
	var sizes []int
	p = New(Config{Self: self, Boot: 1, Send: func(b []byte, _ [16]byte, _ netip.AddrPort) error {
		sizes = append(sizes, len(b))
		p.Hint(peerA, 1300)
		return nil
	}})
	p.SetPeers([]Peer{sized(1400, 1280)})
	<-p.wake
	p.sendDue()
	if st, _ := p.State(peerA); st.MTU != 1300 || len(sizes) != 1 || sizes[0] != 1400 {
		t.Errorf("%+v after probes of %v", st, sizes)
	}
	for _, c := range []chan struct{}{p.changed, p.wake} {
		select {
		case <-c:
		default:
			t.Error("nobody was told")
		}
	}
	p.Hint(peerA, 1300)
	if len(p.changed) > 0 || len(p.wake) > 0 {
		t.Error("a hint that changes nothing is reported")
	}
}
