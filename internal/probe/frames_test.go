package probe

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/overlayd/overlayd/encap"
)

// poll returns the one probe that is due.
func (s *sim) poll(t testing.TB) Outgoing {
	t.Helper()
	due, _, _ := s.core.Poll(s.now)
	if len(due) != 1 {
		t.Fatalf("%d probes are due, want 1", len(due))
	}
	return due[0]
}

func TestProbeFrame(t *testing.T) {
	p := peer6()
	p.FullSize = 1400
	got := newSim(1, p).poll(t)
	if got.Frame.Nonce == 0 {
		t.Error("the nonce is zero")
	}
	got.Frame.Nonce = 0
	want := Outgoing{To: endpoint6, Size: 1400, Frame: encap.Frame{
		Type: encap.Probe, Sender: self, Receiver: peerB, Boot: 7,
	}}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	for _, size := range []int{-1, 0, 10, smallProbe, 20000} {
		p.FullSize = size
		want := smallProbe
		if size == 20000 {
			want = maxFrame
		}
		if got := newSim(1, p).poll(t); got.Size != want {
			t.Errorf("FullSize %d: a probe of %d bytes, want %d", size, got.Size, want)
		}
	}
}

func TestWhichAnswersCount(t *testing.T) {
	other := netip.MustParseAddr("2001:db8::77")
	for _, tt := range []struct {
		name string
		from netip.AddrPort
		edit func(*encap.Frame)
		want error
	}{
		{"the right one", endpoint4, nil, nil},
		{"from another port", netip.AddrPortFrom(endpoint4.Addr(), 40000), nil, nil},
		{"from an IPv4-mapped address", netip.MustParseAddrPort("[::ffff:192.0.2.7]:8285"), nil, nil},
		{"from another address of the peer", netip.AddrPortFrom(other, 8285), nil, nil},
		{"of a later boot", endpoint4, func(f *encap.Frame) { f.Boot++ }, nil},
		{"from a stranger's address", netip.MustParseAddrPort("192.0.2.66:8285"), nil, ErrUnknownPeer},
		{"from the address of another peer", endpoint6, nil, ErrUnknownPeer},
		{"of a stranger", endpoint4, func(f *encap.Frame) { f.Sender[0]++ }, ErrUnknownPeer},
		{"of another peer", endpoint6, func(f *encap.Frame) { f.Sender = peerB }, ErrUnexpected},
		{"to another node", endpoint4, func(f *encap.Frame) { f.Receiver[0]++ }, ErrReceiver},
		{"of an earlier boot", endpoint4, func(f *encap.Frame) { f.Boot-- }, ErrStaleBoot},
		{"of another path", endpoint4, func(f *encap.Frame) { f.Path = encap.Direct }, ErrPath},
		{"with another nonce", endpoint4, func(f *encap.Frame) { f.Nonce++ }, ErrUnexpected},
		{"to a probe of another size", endpoint4, func(f *encap.Frame) { f.Received-- }, ErrUnexpected},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := peer4()
			p.Addrs = []netip.Addr{other}
			s := newSim(1, p)
			f := answerTo(s.poll(t))
			s.core.SetPeers(s.now, []Peer{p, peer6()})
			if tt.edit != nil {
				tt.edit(&f)
			}
			before := s.state(t, peerA)
			s.now = s.now.Add(3 * time.Millisecond)
			rtt, changed, err := s.core.Answer(s.now, encap.Userspace, tt.from, f)
			if !errors.Is(err, tt.want) {
				t.Fatalf("error %v, want %v", err, tt.want)
			}
			after := s.state(t, peerA)
			if tt.want != nil {
				if diff := cmp.Diff(before, after); diff != "" || changed || rtt != 0 {
					t.Errorf("it changed something: %v, %v\n%s", changed, rtt, diff)
				}
				return
			}
			if !changed || rtt != 3*time.Millisecond || after.Reach != Up || !after.LastProof.Equal(s.now) {
				t.Errorf("changed %v, round trip %v, state %+v", changed, rtt, after)
			}

			// The same once more is a replay.
			if _, changed, err := s.core.Answer(s.now, encap.Userspace, tt.from, f); err != ErrUnexpected || changed {
				t.Errorf("replayed: %v, changed %v", err, changed)
			}
		})
	}
}

// An answer from before the peer restarted says nothing about it now.
func TestAnswerToProbeBeforeRestart(t *testing.T) {
	s := newSim(1, peer4())
	ping, err := s.core.Ping(s.now, peerA)
	if err != nil {
		t.Fatal(err)
	}
	answers := []encap.Frame{answerTo(s.poll(t)), answerTo(ping)}
	p := peer4()
	p.Boot = 101
	s.core.SetPeers(s.now, []Peer{p})
	for _, f := range answers {
		f.Boot = 101
		if _, _, err := s.core.Answer(s.now, encap.Userspace, endpoint4, f); err != ErrUnexpected {
			t.Errorf("error %v, want %v", err, ErrUnexpected)
		}
	}
}

func TestProbed(t *testing.T) {
	probe := encap.Frame{Type: encap.Probe, Size: 1400, Sender: peerA, Receiver: self, Boot: 100, Nonce: 42}
	answer := encap.Frame{Type: encap.Answer, Received: 1400, Sender: self, Receiver: peerA, Boot: 7, Nonce: 42}
	for _, tt := range []struct {
		name string
		from netip.AddrPort
		edit func(*encap.Frame)
		want error
	}{
		{"from a peer", endpoint4, nil, nil},
		{"from another port, answered to where it takes data", netip.AddrPortFrom(endpoint4.Addr(), 40000), nil, nil},
		{"of a later boot than known", endpoint4, func(f *encap.Frame) { f.Boot++ }, nil},
		{"of an earlier boot", endpoint4, func(f *encap.Frame) { f.Boot-- }, ErrStaleBoot},
		{"from a stranger's address", netip.MustParseAddrPort("192.0.2.66:8285"), nil, ErrUnknownPeer},
		{"of a stranger", endpoint4, func(f *encap.Frame) { f.Sender[0]++ }, ErrUnknownPeer},
		{"to another node", endpoint4, func(f *encap.Frame) { f.Receiver[0]++ }, ErrReceiver},
		{"of another path", endpoint4, func(f *encap.Frame) { f.Path = encap.KernelVXLAN }, ErrPath},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSim(1, peer4())
			f := probe
			if tt.edit != nil {
				tt.edit(&f)
			}
			got, err := s.core.Probed(s.now, encap.Userspace, tt.from, f)
			want := Outgoing{To: endpoint4, Frame: answer}
			if tt.want != nil {
				want = Outgoing{}
			}
			if err != tt.want || got != want {
				t.Errorf("got %+v, %v; want %+v, %v", got, err, want, tt.want)
			}
			// That it can reach us does not mean that we can reach it.
			if st := s.state(t, peerA); st.Reach != Unknown {
				t.Errorf("its probe proved something: %+v", st)
			}
		})
	}
}

func TestAnswersAreLimitedPerPeer(t *testing.T) {
	s := newSim(1, peer4(), peer6())
	probeOf := func(p Peer) error {
		_, err := s.core.Probed(s.now, encap.Userspace, p.Endpoint, encap.Frame{Type: encap.Probe, Sender: p.ID, Receiver: self, Boot: 100})
		return err
	}
	answered := func(d time.Duration) (n int) {
		for end := s.now.Add(d); s.now.Before(end); s.now = s.now.Add(time.Millisecond) {
			switch err := probeOf(peer4()); err {
			case nil:
				n++
			case ErrRateLimited:
			default:
				t.Fatal(err)
			}
		}
		return n
	}
	if n := answered(time.Second); n < 98 || n > 100 {
		t.Errorf("%d answers in the first second, want a burst of 50 and 50", n)
	}
	if n := answered(10 * time.Second); n < 499 || n > 501 {
		t.Errorf("%d answers in the next 10 s, want 500", n)
	}
	if err := probeOf(peer6()); err != nil {
		t.Errorf("another peer: %v", err)
	}
	// A rest does not save up more than a burst, time that goes back takes nothing.
	s.now = s.now.Add(time.Hour)
	if n := answered(100 * time.Millisecond); n < 50 || n > 55 {
		t.Errorf("%d answers after a rest", n)
	}
	if err := probeOf(peer6()); err != nil {
		t.Errorf("another peer after a rest: %v", err)
	}
	s.now = s.now.Add(-time.Hour)
	if err := probeOf(peer6()); err != nil {
		t.Errorf("a probe that arrived before the last: %v", err)
	}
}

func TestPing(t *testing.T) {
	s := newSim(1, peer4(), Peer{ID: peerB})
	if _, err := s.core.Ping(s.now, self); err != ErrUnknownPeer {
		t.Errorf("ping of a stranger: %v", err)
	}
	if _, err := s.core.Ping(s.now, peerB); err != ErrNoEndpoint {
		t.Errorf("ping of a peer without an endpoint: %v", err)
	}

	// Pings that are not answered prove nothing.
	var pings []Outgoing
	for range maxPings {
		out, err := s.core.Ping(s.now, peerA)
		if err != nil {
			t.Fatal(err)
		}
		pings = append(pings, out)
	}
	if _, err := s.core.Ping(s.now, peerA); err != ErrBusy {
		t.Errorf("one ping too many: %v", err)
	}
	s.run(30 * time.Second)
	if len(s.turns) != 1 || s.turns[0].reach != Up {
		t.Errorf("turns: %v", s.turns)
	}

	// The answer to one is a proof like any other.
	s.core.Forget(peerA, pings[0].Frame.Nonce)
	s.lose()
	s.run(40 * time.Second)
	if st := s.state(t, peerA); st.Reach != Down {
		t.Fatalf("before the ping: %+v", st)
	}
	out, err := s.core.Ping(s.now, peerA)
	if err != nil {
		t.Fatal(err)
	}
	s.now = s.now.Add(time.Millisecond)
	other := answerTo(out)
	other.Received++
	if _, _, err := s.core.Answer(s.now, encap.Userspace, endpoint4, other); err != ErrUnexpected {
		t.Errorf("answer to a ping of another size: %v", err)
	}
	rtt, changed, err := s.core.Answer(s.now, encap.Userspace, endpoint4, answerTo(out))
	if rtt != time.Millisecond || !changed || err != nil {
		t.Errorf("answer: %v, changed %v, %v", rtt, changed, err)
	}
	if st := s.state(t, peerA); st.Reach != Up {
		t.Errorf("after the ping: %+v", st)
	}
	if _, _, err := s.core.Answer(s.now, encap.Userspace, endpoint4, answerTo(out)); err != ErrUnexpected {
		t.Errorf("the same answer again: %v", err)
	}
	// One that was forgotten is unexpected, and so is one that is very old.
	if _, _, err := s.core.Answer(s.now, encap.Userspace, endpoint4, answerTo(pings[0])); err != ErrUnexpected {
		t.Errorf("the answer to a forgotten ping: %v", err)
	}
	s.run(50 * time.Second)
	if _, changed, err := s.core.Answer(s.now, encap.Userspace, endpoint4, answerTo(pings[1])); err != nil || changed {
		t.Errorf("an answer to a ping of 50 s ago: changed %v, %v; want no resurrection", changed, err)
	}
}
