package path

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func TestHandOff(t *testing.T) {
	s := newSim(t, 1, healthy)
	s.run(time.Second)
	s.want(KernelVXLAN)
	if st := s.c.State(s.peer.ID); st.MTU != 1450 || st.LastProof.IsZero() || st.RTT != healthy.rtt || st.Reason != "probes of 1450 bytes are answered" {
		t.Errorf("state: %+v", st)
	}
	if len(s.moves) != 1 || len(s.fresh) > 0 {
		t.Errorf("moves: %v, forgotten before %v", s.moves, s.fresh)
	}
	// Idle, it costs a probe each 5 s.
	s.run(5 * time.Second)
	before := s.sent
	s.run(time.Minute)
	if n := s.sent - before; n < 8 || n > 20 {
		t.Errorf("an idle peer is sent %d probes in a minute", n)
	}
}

func TestNotReady(t *testing.T) {
	w := healthy
	w.ready = [2]bool{}
	s := newSim(t, 1, w)
	s.run(time.Minute)
	s.want(Userspace)
	if s.sent != 0 {
		t.Errorf("%d probes to a peer that is not ready", s.sent)
	}
	if r := s.c.State(s.peer.ID).Reason; r != "no direct: it is not on the link; no kernel-vxlan: the peer is not ready for it" && !strings.Contains(r, "not ready for it") {
		t.Error(r)
	}
	s.w.ready[0] = true
	s.run(3 * time.Second)
	s.want(KernelVXLAN)
	s.w.ready[0] = false // it says so in its answers, and is believed at once
	s.run(2100 * time.Millisecond)
	s.want(Userspace)
	s.w.ready[0] = true // that was no failure: no hold-down
	s.run(3 * time.Second)
	s.want(KernelVXLAN)
}

func TestDeadPath(t *testing.T) {
	for _, tt := range []struct {
		name string
		harm func(*world)
	}{
		{"blocked", func(w *world) { w.vxlan = 0 }},
		{"smaller", func(w *world) { w.vxlan = 1400 }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for at := range 40 { // whatever is under way
				s := newSim(t, uint64(at), healthy)
				s.data, s.answered = true, true
				s.run(10*time.Second + time.Duration(at)*7*time.Millisecond)
				s.want(KernelVXLAN)
				tt.harm(&s.w)
				s.run(800 * time.Millisecond)
				s.want(Userspace)
				if r := s.c.State(s.peer.ID).Reason; !strings.Contains(r, "unanswered since 00:00:10 (3 in a row), while userspace answers; held down until 00:00:") {
					t.Fatal(r)
				}
				s.w, s.fresh = healthy, nil // repaired
				s.run(9 * time.Second)
				s.want(Userspace) // held down
				s.run(3 * time.Second)
				s.want(KernelVXLAN)
				if !slices.Equal(s.fresh, []int{1450}) {
					t.Fatalf("forgotten before %v", s.fresh)
				}
			}
		})
	}
}

// A path that died while nothing was sent by it is left as soon as something is.
func TestDeadPathOfIdlePeer(t *testing.T) {
	s := newSim(t, 1, healthy)
	s.run(20 * time.Second)
	s.w.vxlan = 0
	s.run(100 * time.Millisecond)
	s.data = true
	s.run(time.Second)
	s.want(Userspace)

	s = newSim(t, 1, healthy)
	s.run(20 * time.Second)
	s.w.vxlan = 0
	s.run(7 * time.Second) // one lost round is enough to look closer
	s.want(Userspace)
}

func TestSmallerSize(t *testing.T) {
	for size := 576; size <= 1450; size += 19 {
		w := healthy
		w.vxlan = size
		s := newSim(t, 1, w)
		s.run(15 * time.Second)
		s.want(KernelVXLAN)
		if st := s.c.State(s.peer.ID); st.MTU > size || st.MTU < size-sizeGap || size < 1440 && !strings.Contains(st.Reason, "larger packets are not sent by it") {
			t.Fatalf("%d bytes pass, the state is %+v", size, st)
		}
		s.w.vxlan, s.fresh = 1450, nil
		s.run(61 * time.Second)
		if size < 1440 && !slices.Equal(s.fresh, []int{1450}) {
			t.Fatalf("%d bytes had passed; forgotten before %v", size, s.fresh)
		}
		if st := s.c.State(s.peer.ID); st.Kind != KernelVXLAN || st.MTU != 1450 {
			t.Fatalf("%d bytes had passed, now 1450 do, and the state is %+v", size, st)
		}
	}
	w := healthy
	w.vxlan = 570
	s := newSim(t, 1, w)
	s.run(15 * time.Second)
	s.want(Userspace)
}

// With nothing better there is no leaving; a dead daemon is no dead host.
func TestDeadDaemon(t *testing.T) {
	s := newSim(t, 1, healthy)
	s.data = true
	s.run(10 * time.Second)
	s.w.daemon = false
	s.run(2 * time.Minute)
	s.want(KernelVXLAN)
	if r := s.c.State(s.peer.ID).Reason; !strings.Contains(r, "its kernel answers") {
		t.Error(r)
	}
	before := s.sent
	s.run(time.Minute)
	if n := s.sent - before; n > 400 {
		t.Errorf("%d messages to a dead daemon in a minute", n)
	}
	// It comes back: nothing moves.
	s.w.daemon = true
	s.peer.Boot++
	s.c.SetPeers(s.now, []Peer{s.peer})
	s.run(10 * time.Second)
	s.want(KernelVXLAN)
	if len(s.moves) != 1 {
		t.Error(s.moves)
	}
}

func TestDeadHost(t *testing.T) {
	s := newSim(t, 1, healthy)
	s.data = true
	s.run(10 * time.Second)
	s.w.daemon, s.w.host = false, false
	s.run(9 * time.Second)
	s.want(Userspace)
	if r := s.c.State(s.peer.ID).Reason; !strings.Contains(r, "neither userspace nor its kernel answers") {
		t.Error(r)
	}
}

// 8285 blocked, 4789 open.
func TestUserspaceBlocked(t *testing.T) {
	w := healthy
	w.userspace = false
	s := newSim(t, 1, w)
	s.run(10 * time.Second)
	s.want(KernelVXLAN)
	s.run(5 * time.Minute)
	s.want(KernelVXLAN)
	if len(s.moves) != 1 {
		t.Error(s.moves)
	}
	s.w.userspace = true
	s.run(time.Minute)
	s.want(KernelVXLAN)

	// Nothing passes for an hour; then everything does, and is not waited for.
	s = newSim(t, 1, healthy)
	s.run(time.Minute)
	s.w = world{}
	s.run(time.Hour)
	s.want(Userspace)
	s.w = healthy
	s.run(3 * time.Second)
	s.want(KernelVXLAN)
}

// A path that comes and goes is held down for longer each time.
func TestFlapping(t *testing.T) {
	s := newSim(t, 1, healthy)
	s.data = true
	for range 900 {
		s.run(2 * time.Second)
		s.w.vxlan ^= 1450
	}
	if n := len(s.moves); n > 20 {
		t.Errorf("%d moves in half an hour", n)
	}
	s.w.vxlan = 1450
	s.run(5*time.Minute + 10*time.Second)
	s.want(KernelVXLAN)
	s.run(10 * time.Minute) // all is forgotten
	s.w.vxlan = 0
	s.run(time.Second)
	s.want(Userspace)
	s.w.vxlan = 1450
	s.run(12 * time.Second)
	s.want(KernelVXLAN)
}

// The attempts on a path that never works become rare.
func TestBackOff(t *testing.T) {
	w := healthy
	w.vxlan = 0
	s := newSim(t, 1, w)
	s.run(time.Hour)
	s.want(Userspace)
	if s.sent > 150 {
		t.Errorf("%d probes in an hour", s.sent)
	}
	if r := s.c.State(s.peer.ID).Reason; !strings.Contains(r, "probes of 576 bytes are not answered; tried again at ") && !strings.Contains(r, "being tried again") {
		t.Error(r)
	}
	// Its own probe arriving is a reason not to wait.
	s.w.vxlan = 1450
	s.c.Heard(s.now, s.peer.ID, KernelVXLAN)
	s.run(time.Second)
	s.want(KernelVXLAN)
}

// A firewall behind the proof eats the data.
func TestOneWay(t *testing.T) {
	s := newSim(t, 1, healthy)
	s.data, s.answered = true, true
	s.w.ready[0] = false
	s.run(10 * time.Second)
	s.w.ready[0] = true
	for s.kind() == Userspace {
		s.run(10 * time.Millisecond)
	}
	s.answered = false
	s.run(3 * time.Second)
	s.want(Userspace)
	if r := s.c.State(s.peer.ID).Reason; !strings.Contains(r, "nothing comes back") {
		t.Error(r)
	}

	// Where nothing came back before, nothing is missed.
	s = newSim(t, 1, healthy)
	s.data = true
	s.run(time.Minute)
	s.want(KernelVXLAN)
	// And what has worked for a while by the new path is not watched any more.
	s = newSim(t, 1, healthy)
	s.data, s.answered = true, true
	s.w.ready[0] = false
	s.run(5 * time.Second)
	s.w.ready[0] = true
	s.run(5 * time.Second)
	s.want(KernelVXLAN)
	s.answered = false
	s.run(time.Minute)
	s.want(KernelVXLAN)
}

func TestDirectIsBetter(t *testing.T) {
	s := newSim(t, 1, healthy, func(p *Peer) { p.Chances[Direct] = Chance{Way: "d"} })
	s.data = true
	s.run(2 * time.Second)
	s.want(Direct)
	s.w.direct = 0
	s.run(3 * time.Second)
	s.want(KernelVXLAN) // by way of userspace
	if len(s.moves) != 3 && len(s.moves) != 4 {
		t.Error(s.moves)
	}
	s.w.direct = 1450
	s.run(12 * time.Second)
	s.want(Direct)
}

func TestPins(t *testing.T) {
	s := newSim(t, 1, healthy, func(p *Peer) { p.Chances[Direct] = Chance{Way: "d"} })
	s.run(5 * time.Second)
	s.want(Direct)
	pin := func(k Kind, want string) {
		t.Helper()
		_, err := s.c.Pin(s.now, s.peer.ID, k)
		if got := ""; err != nil || want != "" {
			if err != nil {
				got = err.Error()
			}
			if got != want {
				t.Fatalf("pinned to %v: %q, want %q", k, got, want)
			}
		}
	}
	s.w.vxlan = 0
	pin(KernelVXLAN, "")
	s.run(3 * time.Second)
	s.want(Direct)
	if r := s.c.State(s.peer.ID).Reason; !strings.Contains(r, "pinned to kernel-vxlan; probes of 1450 bytes are answered; no kernel-vxlan: ") {
		t.Error(r)
	}
	s.w.vxlan = 1450
	s.run(5 * time.Second)
	s.want(KernelVXLAN)
	pin(Userspace, "")
	s.want(Userspace)
	s.run(time.Minute)
	s.want(Userspace)
	pin(KernelVXLAN, "")
	s.run(time.Second)
	s.want(KernelVXLAN)
	// A pinned path that dies falls back all the same, and returns.
	s.data = true
	s.run(time.Second)
	s.w.vxlan = 0
	s.run(time.Second)
	s.want(Userspace)
	s.w.vxlan = 1450
	s.run(12 * time.Second)
	s.want(KernelVXLAN)
	// Held down, and asked for by hand.
	s.w.vxlan = 0
	s.run(time.Second)
	s.want(Userspace)
	s.w.vxlan = 1450
	pin(KernelVXLAN, "")
	s.run(time.Second)
	s.want(KernelVXLAN)
	// Auto keeps it, until what is better is proven.
	n := len(s.moves)
	pin(Auto, "")
	s.run(3 * time.Second)
	s.want(Direct)
	for _, m := range s.moves[n:] {
		if m.to == Userspace {
			t.Errorf("auto went by way of userspace: %v", s.moves[n:])
		}
	}
	s.peer.Chances[KernelVXLAN] = Chance{Why: "its VNI is another"}
	s.c.SetPeers(s.now, []Peer{s.peer})
	pin(KernelVXLAN, "its VNI is another")
	s.w.userspace = false
	s.run(10 * time.Second)
	pin(Userspace, "userspace does not answer")
	s.want(Direct)
}

func TestBroken(t *testing.T) {
	s := newSim(t, 1, healthy)
	s.run(5 * time.Second)
	s.c.Break(s.now, KernelVXLAN, "the guard is gone")
	s.want(Userspace)
	s.run(time.Minute)
	s.want(Userspace)
	if r := s.c.State(s.peer.ID).Reason; !strings.Contains(r, "the guard is gone") || strings.Count(r, "the guard is gone") != 1 {
		t.Error(r)
	}
	s.c.Break(s.now, KernelVXLAN, "")
	s.run(time.Second)
	s.want(KernelVXLAN)
	s.c.Refused(s.now, s.peer.ID, KernelVXLAN, "another program has a route")
	s.want(Userspace)
	s.run(9 * time.Second)
	s.want(Userspace)
	s.run(2 * time.Second)
	s.want(KernelVXLAN)
}

// What was proven of one address says nothing of another.
func TestOtherWay(t *testing.T) {
	s := newSim(t, 1, healthy)
	s.run(5 * time.Second)
	s.want(KernelVXLAN)
	s.w.vxlan = 0
	s.peer.Chances[KernelVXLAN].Way = "w"
	s.c.SetPeers(s.now, []Peer{s.peer})
	s.want(Userspace)
	s.run(time.Second)
	s.w.vxlan = 1450
	s.run(4 * time.Second)
	s.want(KernelVXLAN)
	s.c.SetPeers(s.now, nil)
	if ids := s.c.Changed(); len(ids) != 1 {
		t.Errorf("changed: %v", ids)
	}
	if st := s.c.State(s.peer.ID); st.Kind != Userspace {
		t.Errorf("a peer that is gone: %+v", st)
	}
}

// What stands when a node starts is kept while it works.
func TestStanding(t *testing.T) {
	s := newSim(t, 1, healthy, func(p *Peer) { p.Standing = KernelVXLAN })
	s.want(KernelVXLAN)
	s.run(time.Minute)
	s.want(KernelVXLAN)
	w := healthy
	w.vxlan = 0
	s = newSim(t, 1, w, func(p *Peer) { p.Standing = KernelVXLAN })
	s.run(1500 * time.Millisecond)
	s.want(Userspace)
	// Failed once, it is not taken over again.
	s.c.SetPeers(s.now, []Peer{s.peer})
	s.want(Userspace)

	// The peer's subnets, and with them the way, become known later than the peer.
	w = healthy
	w.userspace, w.vxlan = false, 0
	s = newSim(t, 1, w, func(p *Peer) { p.Chances[KernelVXLAN] = Chance{Why: "no subnet"} })
	s.run(time.Second)
	s.want(Userspace)
	s.peer.Chances[KernelVXLAN], s.peer.Standing = Chance{Way: "v"}, KernelVXLAN
	s.c.SetPeers(s.now, []Peer{s.peer})
	s.want(KernelVXLAN)
}

// A prober that was stalled for a minute has missed nothing.
func TestStalled(t *testing.T) {
	for at := range 30 {
		w := healthy
		w.rtt, w.usRTT = 450*time.Millisecond, time.Millisecond // several rounds are under way
		s := newSim(t, uint64(at), w)
		s.data, s.answered = true, true
		s.run(10*time.Second + time.Duration(at)*11*time.Millisecond)
		s.want(KernelVXLAN)
		for range 5 {
			s.now = s.now.Add(time.Minute) // answers and ticks lie in queues
			// The driver takes what has arrived before it concludes anything; at worst
			// nothing of it is there yet.
			out, _ := s.c.Poll(s.now)
			for _, m := range out {
				s.send(m)
			}
			s.run(3 * time.Second)
			s.want(KernelVXLAN)
		}
		if len(s.moves) != 1 {
			t.Fatal(s.moves)
		}
	}
}

// Many peers' first probes do not leave in one moment.
func TestBurst(t *testing.T) {
	c := NewCore(func() uint64 { return 1 })
	var peers []Peer
	for i := range 1000 {
		peers = append(peers, Peer{ID: [16]byte{byte(i), byte(i >> 8), 1}, Full: 1450, Floor: 576, Chances: [kinds]Chance{KernelVXLAN: {Way: "v"}}})
	}
	now := epoch
	c.SetPeers(now, peers)
	for _, p := range peers {
		c.Ready(now, p.ID, true, false)
	}
	total := 0
	for total < 1000 {
		out, next := c.Poll(now)
		if len(out) > maxBurst {
			t.Fatalf("%d at once", len(out))
		}
		if total += len(out); !next.After(now) && total < 1000 {
			t.Fatalf("to be called at once, after %d", total)
		}
		now = next
	}
	if d := now.Sub(epoch); d > 300*time.Millisecond {
		t.Errorf("the last of 1000 peers' first probe after %v", d)
	}
}
