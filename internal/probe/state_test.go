package probe

import (
	"fmt"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/overlayd/overlayd/encap"
)

func TestReasons(t *testing.T) {
	unreachable := &net.OpError{Op: "write", Net: "udp", Err: os.NewSyscallError("sendto", syscall.ENETUNREACH)}
	for _, tt := range []struct {
		name  string
		drive func(t *testing.T, s *sim)
		reach Reach
		want  string
	}{
		{"at first", func(*testing.T, *sim) {}, Unknown, "not proven yet"},
		{"answered", func(_ *testing.T, s *sim) { s.run(time.Second) }, Up, "answered a probe"},
		{"no endpoint", func(_ *testing.T, s *sim) {
			s.core.SetPeers(s.now, []Peer{{ID: peerA}})
		}, Down, "no endpoint known"},
		{"never answered", func(_ *testing.T, s *sim) {
			s.lose()
			s.run(3 * time.Second)
		}, Down, "probes to 192.0.2.7:8285/udp unanswered since 12:00:00 (3 in a row), none ever was: is the UDP port blocked?"},
		{"silent later", func(_ *testing.T, s *sim) {
			s.run(10 * time.Second)
			s.lose()
			s.run(20 * time.Second)
		}, Down, "probes to 192.0.2.7:8285/udp unanswered since 12:00:10 (6 in a row): is the host down, or the UDP port blocked?"},
		{"silent, but heard", func(t *testing.T, s *sim) {
			s.lose()
			s.run(3 * time.Second)
			if _, err := s.core.Probed(s.now, encap.Userspace, endpoint4, encap.Frame{Type: encap.Probe, Sender: peerA, Receiver: self, Boot: 100}); err != nil {
				t.Fatal(err)
			}
		}, Down, "probes to 192.0.2.7:8285/udp unanswered since 12:00:00 (3 in a row), though its own arrive here: is the port blocked on the way there, or its answers on the way back?"},
		{"another key", func(_ *testing.T, s *sim) {
			s.lose()
			s.run(3 * time.Second)
			s.core.Refused(peerA, encap.ErrTag)
		}, Down, "probes to 192.0.2.7:8285/udp unanswered since 12:00:00 (3 in a row): control frame is authenticated with another cluster key"},
		{"another key once, silent now", func(_ *testing.T, s *sim) {
			answer := s.answers
			s.lose()
			s.run(3 * time.Second)
			s.core.Refused(peerA, encap.ErrTag)
			s.answers = answer
			s.run(10 * time.Second)
			s.lose()
			s.run(20 * time.Second)
		}, Down, "probes to 192.0.2.7:8285/udp unanswered since 12:00:11 (5 in a row): is the host down, or the UDP port blocked?"},
		{"cannot send", func(_ *testing.T, s *sim) {
			s.answers = func(out Outgoing) (time.Duration, bool) {
				s.core.SendFailed(peerA, out.Frame.Nonce, fmt.Errorf("send: %w", unreachable))
				return 0, false
			}
			s.run(3 * time.Second)
		}, Down, "sending to 192.0.2.7:8285/udp fails since 12:00:00: network is unreachable"},
		{"could not send, now unanswered", func(_ *testing.T, s *sim) {
			s.answers = func(out Outgoing) (time.Duration, bool) {
				s.core.SendFailed(peerA, out.Frame.Nonce, unreachable)
				return 0, false
			}
			s.run(3 * time.Second)
			s.lose()
			s.run(5900 * time.Millisecond)
		}, Down, "probes to 192.0.2.7:8285/udp unanswered since 12:00:00 (4 in a row), none ever was: is the UDP port blocked?"},
		{"a forged frame changes no reason of a peer that is up", func(_ *testing.T, s *sim) {
			s.run(time.Second)
			s.core.Refused(peerA, encap.ErrTag)
			s.lose()
			s.run(10 * time.Second)
		}, Down, "probes to 192.0.2.7:8285/udp unanswered since 12:00:01 (5 in a row): is the host down, or the UDP port blocked?"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSim(2, peer4())
			tt.drive(t, s)
			if st := s.state(t, peerA); st.Reach != tt.reach || st.Reason != tt.want {
				t.Errorf("%v\n got %s\nwant %s", st.Reach, st.Reason, tt.want)
			}
		})
	}
}

func TestReasonOfIPv6Peer(t *testing.T) {
	s := newSim(2, peer6())
	s.lose()
	s.run(3 * time.Second)
	want := "probes to [2001:db8::7]:8285/udp unanswered since 12:00:00 (3 in a row), none ever was: is the UDP port blocked?"
	if st := s.state(t, peerB); st.Reason != want {
		t.Errorf("got %s, want %s", st.Reason, want)
	}
}
