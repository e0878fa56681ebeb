package probe

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/overlayd/overlayd/encap"
)

func TestCadence(t *testing.T) {
	s := newSim(1, peer4())
	s.run(time.Minute)
	if len(s.sent) == 0 || s.sent[0].at != 0 {
		t.Fatalf("the first probe is not sent at once: %v", s.sent)
	}
	seen := map[time.Duration]bool{}
	for i := 1; i < len(s.sent); i++ {
		gap := s.sent[i].at - s.sent[i-1].at
		if gap < 1800*time.Millisecond || gap > 2200*time.Millisecond {
			t.Errorf("probe %d comes %v after the one before", i, gap)
		}
		seen[gap] = true
	}
	if len(seen) < 10 {
		t.Errorf("only %d different gaps in a minute: no jitter", len(seen))
	}
	if len(s.turns) != 1 || s.turns[0] != (turn{time.Millisecond, peerA, Up}) {
		t.Errorf("turns: %v", s.turns)
	}
}

// The promise is 10 s, the design 5.2 s. Hosts fall silent at all points of
// the cycle, for all jitters.
func TestSilentHostIsDownInTime(t *testing.T) {
	var worst time.Duration
	for seed := range uint64(200) {
		s := newSim(seed, peer4(), peer6())
		died := 20*time.Second + time.Duration(seed)*11*time.Millisecond
		s.run(died)
		s.lose()
		s.run(died + 20*time.Second)
		for _, id := range [][16]byte{peerA, peerB} {
			down := time.Duration(-1)
			for _, u := range s.turns {
				if u.id == id && u.reach == Down {
					down = u.at - died
				}
			}
			if down < 0 {
				t.Fatalf("seed %d: peer %x is not down after 20 s: %v", seed, id[:2], s.turns)
			}
			worst = max(worst, down)
		}
	}
	if worst > 5200*time.Millisecond {
		t.Errorf("down after %v at worst, want 5.2 s or less", worst)
	}
	if worst < 4800*time.Millisecond {
		t.Errorf("down after %v at worst: did this test meet the worst case?", worst)
	}
}

func TestNeverAnswered(t *testing.T) {
	s := newSim(1, peer4())
	s.lose()
	s.run(2900 * time.Millisecond)
	if st := s.state(t, peerA); st.Reach != Unknown || !st.Usable() {
		t.Errorf("after two unanswered probes: %v, usable %v; want unknown and usable", st.Reach, st.Usable())
	}
	s.run(3 * time.Second)
	if st := s.state(t, peerA); st.Reach != Down || st.Usable() || st.Since != s.now || !st.LastProof.IsZero() {
		t.Errorf("after three unanswered probes: %+v", st)
	}
	n := len(s.sent)
	s.run(63 * time.Second)
	if got := len(s.sent) - n; got < 27 || got > 34 {
		t.Errorf("%d probes in a minute of being down, want one each 2 s", got)
	}
}

func TestComesBack(t *testing.T) {
	s := newSim(3, peer4())
	s.lose()
	s.run(30 * time.Second)
	s.answers = func(Outgoing) (time.Duration, bool) { return 5 * time.Millisecond, true }
	s.run(30*time.Second + 2205*time.Millisecond)
	if st := s.state(t, peerA); st.Reach != Up || st.RTT != 5*time.Millisecond {
		t.Errorf("2.2 s after the network was repaired: %+v", st)
	}
}

// Unanswered probes are counted, not elapsed time.
func TestStalledProberDemotesNobody(t *testing.T) {
	for misses := range 3 {
		t.Run(fmt.Sprintf("%d missed before", misses), func(t *testing.T) {
			s := newSim(4, peer4())
			s.run(10 * time.Second)
			s.lose()
			for p := s.core.peers[peerA]; p.track.misses < misses || !p.track.waiting; {
				s.run(s.since() + 100*time.Millisecond)
			}
			out := s.sent[len(s.sent)-1].out

			// A minute passes in which nobody calls us; the answer waits.
			s.now = s.now.Add(time.Minute)
			if _, _, changed := s.core.Poll(s.now); len(changed) > 0 {
				t.Fatalf("Poll after a stall: %v", s.state(t, peerA))
			}
			s.now = s.now.Add(900 * time.Millisecond)
			if _, _, changed := s.core.Poll(s.now); len(changed) > 0 {
				t.Fatalf("Poll 900 ms later: %v", s.state(t, peerA))
			}
			if _, _, err := s.core.Answer(s.now, encap.Userspace, out.To, answerTo(out)); err != nil {
				t.Fatalf("the answer that had waited: %v", err)
			}
			if st := s.state(t, peerA); st.Reach != Up {
				t.Errorf("afterwards: %+v", st)
			}
		})
	}
}

// A prober that is always late must not keep a dead peer up for ever.
func TestAlwaysLateProberStillNotices(t *testing.T) {
	s := newSim(5, peer4())
	s.run(10 * time.Second)
	s.lose()
	s.late = func() time.Duration { return 3 * time.Second }
	s.run(2 * time.Minute)
	if st := s.state(t, peerA); st.Reach != Down {
		t.Errorf("after two minutes: %+v", st)
	}
}

func TestSlowAnswersAreProofs(t *testing.T) {
	for _, rtt := range []time.Duration{900 * time.Millisecond, 1500 * time.Millisecond, 2500 * time.Millisecond} {
		s := newSim(6, peer4())
		s.answers = func(Outgoing) (time.Duration, bool) { return rtt, true }
		s.run(time.Minute)
		if len(s.turns) != 1 || s.turns[0].reach != Up {
			t.Errorf("with a round trip of %v: %v", rtt, s.turns)
		}
		if st := s.state(t, peerA); st.RTT != rtt {
			t.Errorf("RTT %v, want %v", st.RTT, rtt)
		}
		s.lose()
		s.run(70 * time.Second)
		if st := s.state(t, peerA); st.Reach != Down {
			t.Errorf("round trip of %v, silent for 10 s: %+v", rtt, st)
		}
	}
}

func TestRTTIsSmoothed(t *testing.T) {
	s := newSim(7, peer4())
	rtts := []time.Duration{8 * time.Millisecond, 16 * time.Millisecond, 8 * time.Millisecond}
	want := []time.Duration{8 * time.Millisecond, 9 * time.Millisecond, 8875 * time.Microsecond}
	s.answers = func(Outgoing) (time.Duration, bool) { return rtts[len(s.sent)-1], true }
	for i := range rtts {
		s.run(time.Duration(i)*2200*time.Millisecond + 100*time.Millisecond)
		if len(s.sent) != i+1 {
			t.Fatalf("%d probes after %v", len(s.sent), s.since())
		}
		if st := s.state(t, peerA); st.RTT != want[i] {
			t.Errorf("after %d answers: %v, want %v", i+1, st.RTT, want[i])
		}
	}
}

func TestProbesOfManyPeersAreSpread(t *testing.T) {
	const n = 300
	var peers []Peer
	for i := range n {
		p := peer4()
		binary.BigEndian.PutUint32(p.ID[4:], uint32(i))
		peers = append(peers, p)
	}
	s := newSim(9, peers...)
	s.run(20 * time.Second)
	busiest, perPeer := map[time.Duration]int{}, map[[16]byte]int{}
	for _, r := range s.sent {
		busiest[r.at/(100*time.Millisecond)]++
		perPeer[r.out.Frame.Receiver]++
	}
	for at, count := range busiest {
		if count > n/10+10 { // 15 on average
			t.Errorf("%d probes within 100 ms at %v", count, at*100*time.Millisecond)
		}
	}
	for id, count := range perPeer {
		if count < 9 || count > 12 {
			t.Errorf("%d probes of peer %x in 20 s", count, id)
		}
	}
	if len(perPeer) != n {
		t.Errorf("%d of %d peers were probed", len(perPeer), n)
	}

	// After a stall all are due at once, and are still not sent at once.
	s.now = s.now.Add(time.Minute)
	for total, round := 0, 0; total < n; round++ {
		due, next, _ := s.core.Poll(s.now)
		if len(due) > maxBurst {
			t.Fatalf("%d probes at once", len(due))
		}
		if total += len(due); round > 2000 {
			t.Fatalf("%d probes in %d rounds", total, round)
		}
		if !next.After(s.now) {
			t.Fatalf("Poll at %v wants to be called at %v", s.now, next)
		}
		s.now = next
	}
}

func TestNothingToDo(t *testing.T) {
	s := newSim(10)
	if due, next, changed := s.core.Poll(epoch); len(due) > 0 || !next.IsZero() || len(changed) > 0 {
		t.Errorf("Poll without peers: %v, %v, %v", due, next, changed)
	}
	if st, ok := s.core.State(peerA); ok {
		t.Errorf("state of an unknown peer: %+v", st)
	}
}

func TestSetPeers(t *testing.T) {
	moved, rebooted, resized, gone := peer4(), peer4(), peer4(), peer4()
	moved.Endpoint = netip.MustParseAddrPort("192.0.2.8:8285")
	rebooted.Boot++
	resized.FullSize = 1400
	gone.Endpoint = netip.AddrPort{}
	mapped := peer4()
	mapped.Endpoint = netip.MustParseAddrPort("[::ffff:192.0.2.7]:8285")

	for _, tt := range []struct {
		name  string
		peers []Peer
		known bool
		want  Reach
		fresh bool // probed at once
		mtu   int
	}{
		{"the same", []Peer{peer4()}, true, Up, false, 0},
		{"the same, beside another", []Peer{peer6(), peer4()}, true, Up, false, 0},
		{"the same as an IPv4-mapped address", []Peer{mapped}, true, Up, false, 0},
		{"another size", []Peer{resized}, true, Up, false, 1400},
		{"another endpoint", []Peer{moved}, true, Unknown, true, 0},
		{"another boot", []Peer{rebooted}, true, Unknown, true, 0},
		{"no endpoint", []Peer{gone}, true, Down, false, 0},
		{"removed", nil, false, Unknown, false, 0},
		{"twice", []Peer{peer4(), moved}, true, Up, false, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSim(11, peer4())
			s.run(10500 * time.Millisecond)
			before := s.state(t, peerA)
			changed := s.core.SetPeers(s.now, tt.peers)
			st, known := s.core.State(peerA)
			if known != tt.known || st.Reach != tt.want {
				t.Fatalf("state %+v, known %v", st, known)
			}
			if (len(changed) == 1 && changed[0] == peerA) != (known && (st.Reach != Up || st.MTU != before.MTU)) {
				t.Errorf("changed: %x", changed)
			}
			if before.MTU = tt.mtu; known && st.Reach == Up && st != before {
				t.Errorf("disturbed: %+v, was %+v", st, before)
			}
			due, _, _ := s.core.Poll(s.now.Add(burstGap))
			fresh := false
			for _, out := range due {
				fresh = fresh || out.Frame.Receiver == peerA
			}
			if fresh != tt.fresh {
				t.Errorf("probed at once: %v, want %v", fresh, tt.fresh)
			}
		})
	}

	t.Run("another size is tried soon", func(t *testing.T) {
		s := newSim(14, resized)
		s.run(3 * time.Second) // the next of full size would be due at 10 s
		larger := resized
		larger.FullSize = 1450
		s.core.SetPeers(s.now, []Peer{larger})
		n := len(s.sent)
		s.run(6 * time.Second)
		if len(s.sent) == n || s.sent[n].out.Size != 1450 {
			t.Errorf("the next probe is %v", s.sent[n:])
		}
	})
	t.Run("ourselves and nobody", func(t *testing.T) {
		s := newSim(12, Peer{ID: self, Endpoint: endpoint4}, Peer{Endpoint: endpoint4})
		if due, _, _ := s.core.Poll(epoch); len(due) > 0 {
			t.Errorf("probes: %v", due)
		}
	})
	t.Run("a new one without an endpoint", func(t *testing.T) {
		s := newSim(13)
		if changed := s.core.SetPeers(epoch, []Peer{gone}); len(changed) != 1 {
			t.Errorf("changed: %x", changed)
		}
		if changed := s.core.SetPeers(epoch, []Peer{gone}); len(changed) != 0 {
			t.Errorf("changed the second time: %x", changed)
		}
		if changed := s.core.SetPeers(epoch, []Peer{peer4()}); len(changed) != 1 {
			t.Errorf("changed when it has an endpoint again: %x", changed)
		}
	})
}

// The same calls give the same results, whatever order maps have: failures of
// property tests can be replayed.
func TestDeterministic(t *testing.T) {
	var peers []Peer
	for i := range 30 {
		p := peer4()
		p.ID[15] = byte(30 - i)
		peers = append(peers, p)
	}
	s := newSim(15, peers...)
	for round := range 3 {
		// All are due in the same moment, having been sent in the same moment.
		s.now = s.now.Add(10 * time.Second)
		s.core.Poll(s.now)
		s.core.SetPeers(s.now, peers)
		s.now = s.now.Add(timeout)
		due, _, _ := s.core.Poll(s.now)
		for i := 1; i < len(due); i++ {
			if due[i-1].Frame.Receiver[15] > due[i].Frame.Receiver[15] {
				t.Fatalf("round %d: peer %d before peer %d", round, due[i-1].Frame.Receiver[15], due[i].Frame.Receiver[15])
			}
		}
		if round == 0 && len(due) != len(peers) {
			t.Fatalf("%d of %d peers are due", len(due), len(peers))
		}
	}
}
