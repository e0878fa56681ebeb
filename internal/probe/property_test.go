package probe

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/overlayd/overlayd/encap"
	"pgregory.net/rapid"
)

// The promises of the package, against networks that lose, delay, repeat and
// forge, and a prober that is called late.
func TestPromises(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		seed := rapid.Uint64().Draw(t, "seed")
		lateness := rapid.SampledFrom([]time.Duration{0, time.Millisecond, 200 * time.Millisecond}).Draw(t, "late")
		slowest := rapid.SampledFrom([]time.Duration{time.Millisecond, 300 * time.Millisecond, 700 * time.Millisecond}).Draw(t, "slowest")
		loss := rapid.Float64Range(0, 0.9).Draw(t, "loss")
		dies := rapid.Int64Range(0, 60_000).Draw(t, "dies after ms")

		rng := rand.New(rand.NewPCG(seed, 2))
		good, bad := peer4(), peer6() // good is never lost; bad is, and then dies
		good.FullSize, bad.FullSize = 1400, 1400
		good.MinSize, bad.MinSize = 1280, 576
		s := newSim(seed, good, bad)
		death := time.Duration(dies) * time.Millisecond
		if lateness > 0 {
			s.late = func() time.Duration { return time.Duration(rng.Int64N(int64(lateness))) }
		}
		s.answers = func(out Outgoing) (time.Duration, bool) {
			rtt := time.Duration(rng.Int64N(int64(slowest)))
			f := answerTo(out)
			if rng.IntN(3) == 0 { // forged by one who has not seen the probe
				g := f
				g.Nonce = rng.Uint64()
				s.waiting = append(s.waiting, arrival{s.now, out.To, g})
			}
			if rng.IntN(3) == 0 { // from before the peer's last start
				g := f
				g.Boot--
				s.waiting = append(s.waiting, arrival{s.now, out.To, g})
			}
			if out.Frame.Receiver == peerB && (s.since() >= death || rng.Float64() < loss) {
				// Lost; the good peer answers in its place.
				g := f
				g.Sender = peerA
				s.waiting = append(s.waiting, arrival{s.now, endpoint4, g})
				return 0, false
			}
			if rng.IntN(3) == 0 { // repeated
				s.waiting = append(s.waiting, arrival{s.now.Add(rtt + time.Second), out.To, f})
			}
			return rtt, true
		}
		for d := time.Duration(0); d < 12*time.Second; d += 100 * time.Millisecond {
			s.run(death + d)
			for id, p := range s.core.peers {
				if len(p.track.sent) > maxSent || len(p.pings) > 0 {
					t.Fatalf("peer %x: %d probes and %d pings remembered", id[:2], len(p.track.sent), len(p.pings))
				}
			}
		}

		if st, _ := s.core.State(peerB); st.Reach != Down || st.Since.Sub(epoch) > death+10*time.Second {
			t.Fatalf("silent since %v: %+v", death, st)
		}
		for _, u := range s.turns {
			if u.id == peerA && u.reach != Up {
				t.Fatalf("peer that answers everything turned %v at %v", u.reach, u.at)
			}
		}
		if st, _ := s.core.State(peerA); st.Reach != Up || st.RTT >= slowest || st.SmallOnly {
			t.Fatalf("peer that answers everything: %+v", st)
		}
	})
}

// Whatever frames come in, nothing but the answer to a probe changes a state.
func TestForgeriesChangeNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := newSim(rapid.Uint64().Draw(t, "seed"), peer4())
		s.run(time.Duration(rapid.IntRange(0, 5000).Draw(t, "ms")) * time.Millisecond)
		probe := s.sent[len(s.sent)-1].out
		before, _ := s.core.State(peerA)
		f := encap.Frame{
			Type:     encap.Answer,
			Path:     rapid.SampledFrom([]encap.Path{encap.Userspace, encap.KernelVXLAN}).Draw(t, "path"),
			Received: uint16(probe.Size),
			Sender:   rapid.SampledFrom([][16]byte{peerA, peerB, self}).Draw(t, "sender"),
			Receiver: rapid.SampledFrom([][16]byte{peerA, peerB, self}).Draw(t, "receiver"),
			Boot:     rapid.Uint64Range(99, 101).Draw(t, "boot"),
			Nonce:    rapid.Uint64().Draw(t, "nonce"),
		}
		from := rapid.SampledFrom([]Peer{peer4(), peer6()}).Draw(t, "from").Endpoint
		if f.Nonce == probe.Frame.Nonce {
			t.Skip("guessed the nonce")
		}
		if _, changed, err := s.core.Answer(s.now, encap.Userspace, from, f); err == nil || changed {
			t.Fatalf("accepted: %+v from %v", f, from)
		}
		if after, _ := s.core.State(peerA); after != before {
			t.Fatalf("state %+v became %+v", before, after)
		}
	})
}
