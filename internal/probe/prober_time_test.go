//go:build !race

// Virtual time by testing/synctest, which is not reliable under the race
// detector before Go 1.27 (golang/go issue 76691).

package probe

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/overlayd/overlayd/encap"
)

// pair is two nodes that know each other, on a wire.
func pair(t *testing.T, authA, authB *encap.Auth) (w *wire, a, b *Prober, stop func()) {
	t.Helper()
	w = &wire{delay: 2 * time.Millisecond}
	a, peerOfA := w.node(peerA, endpoint4, authA)
	b, peerOfB := w.node(peerB, endpoint6, authB)
	a.SetPeers([]Peer{peerOfB})
	b.SetPeers([]Peer{peerOfA})
	return w, a, b, run(a, b)
}

// reach is what p knows of the peer with that id.
func reach(p *Prober, id [16]byte) Reach {
	synctest.Wait()
	st, _ := p.State(id)
	return st.Reach
}

// pending tells whether Changed has something to say.
func pending(p *Prober) bool {
	select {
	case <-p.Changed():
		return true
	default:
		return false
	}
}

func TestPairUpDownUp(t *testing.T) {
	for _, auth := range []*encap.Auth{nil, newAuth(t, "0123456789abcdef")} {
		synctest.Test(t, func(t *testing.T) {
			w, a, b, stop := pair(t, auth, auth)
			defer stop()
			time.Sleep(5 * time.Millisecond)
			if reach(a, peerB) != Up || reach(b, peerA) != Up || !pending(a) || !pending(b) {
				t.Fatalf("not up after a round trip: %v, %v", reach(a, peerB), reach(b, peerA))
			}
			if st, _ := a.State(peerB); st.RTT != 4*time.Millisecond {
				t.Errorf("RTT %v, want 4 ms", st.RTT)
			}
			time.Sleep(time.Minute)
			if pending(a) || pending(b) || len(drops(a)) > 0 || len(drops(b)) > 0 {
				t.Errorf("a quiet minute brought changes or drops: %v, %v", drops(a), drops(b))
			}

			// One direction dies: both notice, since both need an answer.
			w.set(func(w *wire) { w.cut[endpoint6] = true })
			time.Sleep(5300 * time.Millisecond)
			if reach(a, peerB) != Down || reach(b, peerA) != Down || !pending(a) {
				t.Fatalf("not down: %v, %v", reach(a, peerB), reach(b, peerA))
			}
			st, _ := a.State(peerB)
			if !strings.Contains(st.Reason, "though its own arrive here") {
				t.Errorf("reason of the one that hears the other: %s", st.Reason)
			}
			w.set(func(w *wire) { w.cut[endpoint6] = false })
			time.Sleep(2300 * time.Millisecond)
			if reach(a, peerB) != Up || reach(b, peerA) != Up || !pending(a) {
				t.Fatalf("not up again: %v, %v", reach(a, peerB), reach(b, peerA))
			}
		})
	}
}

func TestKeysDifferAndThenNot(t *testing.T) {
	one, two := newAuth(t, "0123456789abcdef"), newAuth(t, "fedcba9876543210")
	synctest.Test(t, func(t *testing.T) {
		_, a, b, stop := pair(t, one, two)
		defer stop()
		time.Sleep(10 * time.Second)
		st, _ := a.State(peerB)
		if reach(b, peerA) != Down || st.Reach != Down || !strings.HasSuffix(st.Reason, "another cluster key") {
			t.Fatalf("with different keys: %+v", st)
		}
		if got := drops(a); len(got) != 1 || got["control_auth"] == 0 {
			t.Errorf("drops: %v", got)
		}
		b.SetAuth(one)
		time.Sleep(2300 * time.Millisecond)
		if reach(a, peerB) != Up || reach(b, peerA) != Up {
			t.Errorf("with the same key: %v, %v", reach(a, peerB), reach(b, peerA))
		}
		b.SetAuth(nil)
		time.Sleep(10 * time.Second)
		st, _ = a.State(peerB)
		if !strings.HasSuffix(st.Reason, "the sender has no cluster key") {
			t.Errorf("the other has no key: %s", st.Reason)
		}
	})
}

func TestPingTakesOneRoundTrip(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, _, stop := pair(t, nil, nil)
		defer stop()
		time.Sleep(100 * time.Millisecond)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if rtt, err := a.Ping(ctx, peerB); rtt != 4*time.Millisecond || err != nil {
			t.Errorf("ping: %v, %v; want 4 ms", rtt, err)
		}
		if _, err := a.Ping(ctx, self); err != ErrUnknownPeer {
			t.Errorf("ping of a stranger: %v", err)
		}

		w.set(func(w *wire) { w.cut[endpoint6] = true })
		start := time.Now()
		for range 2 * maxPings { // one after the other: none stays behind
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
			if _, err := a.Ping(ctx, peerB); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("ping into a cut wire: %v", err)
			}
			cancel()
		}
		if took := time.Since(start); took != 2*maxPings*10*time.Millisecond {
			t.Errorf("took %v", took)
		}
		if len(a.pings) > 0 || len(a.asked) > 0 || len(a.core.peers[peerB].pings) > 0 {
			t.Errorf("pings stayed behind: %v, %v", a.pings, a.asked)
		}

		w.set(func(w *wire) { w.fail = errNoBuffer })
		if _, err := a.Ping(t.Context(), peerB); !errors.Is(err, errNoBuffer) {
			t.Errorf("ping that cannot be sent: %v", err)
		}
	})
}

func TestSendFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, a, _, stop := pair(t, nil, nil)
		defer stop()
		time.Sleep(time.Second)
		w.set(func(w *wire) { w.fail = fmt.Errorf("send: %w", errNoBuffer) })
		time.Sleep(10 * time.Second)
		st, _ := a.State(peerB)
		if st.Reach != Down || !strings.Contains(st.Reason, "sending to [2001:db8::7]:8285/udp fails") {
			t.Errorf("%+v", st)
		}
		if n := drops(a)["control_send_failed"]; n < 4 || n > 8 {
			t.Errorf("%d sends failed: %v", n, drops(a))
		}
	})
}

// A prober that has nothing to wait for notices that it got peers, and its owner
// that one of them cannot be probed.
func TestSetPeersWakesProber(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &wire{delay: time.Millisecond}
		a, peerOfA := w.node(peerA, endpoint4, nil)
		b, peerOfB := w.node(peerB, endpoint6, nil)
		b.SetPeers([]Peer{peerOfA})
		stop := run(a)
		defer stop()
		time.Sleep(time.Hour)
		defer run(b)()
		a.SetPeers([]Peer{peerOfB})
		time.Sleep(2 * time.Millisecond)
		if reach(a, peerB) != Up || !pending(a) {
			t.Errorf("a round trip later: %v", reach(a, peerB))
		}
		peerOfB.Endpoint = netip.AddrPort{}
		a.SetPeers([]Peer{peerOfB})
		if reach(a, peerB) != Down || !pending(a) {
			t.Errorf("without an endpoint: %v", reach(a, peerB))
		}
	})
}

// Removing a peer drops its state and what it still sends.
func TestRemovedPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, a, _, stop := pair(t, nil, nil)
		defer stop()
		time.Sleep(time.Second)
		a.SetPeers(nil)
		time.Sleep(10 * time.Second)
		if st, ok := a.State(peerB); ok {
			t.Errorf("still known: %+v", st)
		}
		if got := drops(a); got["control_unknown_peer"] == 0 || len(got) != 1 {
			t.Errorf("drops: %v", got)
		}
	})
}

// A hundred peers for a minute: nothing is dropped for being too many at once.
func TestManyPeersWithoutDrops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &wire{delay: time.Millisecond}
		hub, hubPeer := w.node(self, endpoint4, nil)
		all, peers := []*Prober{hub}, []Peer(nil)
		for i := range 100 {
			at := endpoint6.Addr().As16()
			at[15], at[14] = byte(i), 1
			p, q := w.node([16]byte{9, byte(i)}, addrPort(at), nil)
			p.SetPeers([]Peer{hubPeer})
			all, peers = append(all, p), append(peers, q)
		}
		hub.SetPeers(peers)
		stop := run(all...)
		defer stop()
		time.Sleep(time.Minute)
		for _, p := range peers {
			if reach(hub, p.ID) != Up {
				t.Fatalf("peer %x is not up", p.ID)
			}
		}
		if got := drops(hub); len(got) > 0 {
			t.Errorf("drops: %v", got)
		}
	})
}
