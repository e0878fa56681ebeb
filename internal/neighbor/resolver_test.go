package neighbor

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/overlayd/overlayd/encap"
)

// pair runs two Resolvers that reach each other after a millisecond, while up.
type pair struct {
	mu   sync.Mutex
	up   bool
	r    [2]*Resolver
	sent int
}

var ends = [2]struct {
	mac  mac
	own  netip.Addr
	at   netip.AddrPort
	list netip.Prefix
}{
	{ours, own4, netip.MustParseAddrPort("192.0.2.1:8472"), netip.MustParsePrefix("100.96.1.0/24")},
	{theirs, their4, endpoint, netip.MustParsePrefix("100.96.2.0/24")},
}

func newPair(t *testing.T) *pair {
	p := &pair{up: true}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	t.Cleanup(func() { cancel(); wg.Wait() })
	for i := range p.r {
		p.r[i] = New(Config{MAC: ends[i].mac, Send: func(k encap.Kind, to [6]byte, payload []byte, at netip.AddrPort) error {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.sent++
			if other := 1 - i; p.up && at == ends[other].at && (to == ends[other].mac || to[0]&1 != 0) {
				b := append([]byte(nil), payload...)
				time.AfterFunc(time.Millisecond, func() { p.r[other].Handle(k, b, netip.AddrPortFrom(ends[i].at.Addr(), 50000)) })
			}
			return nil
		}})
		wg.Go(func() { p.r[i].Run(ctx) })
	}
	p.r[1].Set([]netip.Addr{their4}, []Peer{{ID: [16]byte{1}, Sources: []netip.Addr{ends[0].at.Addr()}, Endpoint: ends[0].at, Prefixes: []netip.Prefix{ends[0].list}}})
	return p
}

func (p *pair) count() int { p.mu.Lock(); defer p.mu.Unlock(); return p.sent }

func (p *pair) link(up bool) { p.mu.Lock(); p.up = up; p.mu.Unlock() }

// TestResolver: a peer is found, lost and found again, and whoever waits is told.
func TestResolver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		r, id := p.r[0], [16]byte{2}
		if _, err := r.Ping(t.Context(), id); !errors.Is(err, ErrUnknownPeer) {
			t.Errorf("ping of nobody: %v", err)
		}
		r.Set([]netip.Addr{own4}, []Peer{them(their4)})
		<-r.Changed()
		if s := r.State(id); !s.Up || s.MAC != theirs || s.RTT != 2*time.Millisecond {
			t.Errorf("%+v", s)
		}
		time.Sleep(100 * time.Millisecond)
		if rtt, err := r.Ping(t.Context(), id); rtt != 2*time.Millisecond || err != nil {
			t.Errorf("ping: %v, %v", rtt, err)
		}
		p.link(false)
		began := time.Now()
		<-r.Changed()
		if took := time.Since(began); r.State(id).Up || took < 3*time.Second || took > 10*time.Second {
			t.Errorf("up: %v after %v", r.State(id).Up, took)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		if _, err := r.Ping(ctx, id); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("ping: %v", err)
		}
		p.link(true)
		<-r.Changed()
		if !r.State(id).Up {
			t.Errorf("%+v", r.State(id))
		}
		before := p.count()
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := p.count() - before; n < 50 || n > 70 { // a question and an answer in 2 s
			t.Errorf("%d messages in a quiet minute", n)
		}
		want := map[string]uint64{"neighbor_malformed": 0, "neighbor_not_ours": 0, "neighbor_spoofed": 0, "neighbor_unsolicited": 0,
			"neighbor_rate_limited": 0, "neighbor_queue_full": 0, "neighbor_send_failed": 0}
		if d := cmp.Diff(want, r.Drops()); d != "" {
			t.Error(d)
		}
	})
}

// TestGivenMAC: it is not asked for, but answers pings.
func TestGivenMAC(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		given := them(their4)
		given.MAC = theirs
		p.r[0].Set([]netip.Addr{own4}, []Peer{given})
		time.Sleep(time.Minute)
		if s := p.r[0].State(given.ID); p.count() != 0 || s.MAC != theirs || s.Up {
			t.Errorf("%d messages, %+v", p.count(), s)
		}
		if rtt, err := p.r[0].Ping(t.Context(), given.ID); rtt != 2*time.Millisecond || err != nil {
			t.Errorf("ping: %v, %v", rtt, err)
		}
		time.Sleep(time.Minute)
		if p.count() != 2 {
			t.Errorf("%d messages", p.count())
		}
	})
}

// TestFlood: what one peer sends too much keeps nobody else out, and a stranger's is
// not even queued.
func TestFlood(t *testing.T) {
	answers := map[netip.AddrPort]int{}
	r := New(Config{MAC: ours, Send: func(_ encap.Kind, _ [6]byte, _ []byte, at netip.AddrPort) error {
		answers[at]++
		return nil
	}})
	quiet := Peer{ID: [16]byte{3}, Sources: []netip.Addr{netip.MustParseAddr("192.0.2.3")}, Endpoint: netip.MustParseAddrPort("192.0.2.3:8472"),
		Prefixes: []netip.Prefix{netip.MustParsePrefix("100.96.3.0/24")}}
	r.Set([]netip.Addr{own4}, []Peer{them(netip.Addr{}), quiet})
	noisy := arp(t, 1, theirs, their4, mac{}, own4)
	for range 10000 {
		r.Handle(encap.ARP, noisy, endpoint)
		r.Handle(encap.ARP, noisy, netip.MustParseAddrPort("192.0.2.66:8472"))
	}
	r.Handle(encap.ARP, make([]byte, maxMessage+1), endpoint)
	r.Handle(encap.ARP, arp(t, 1, other, netip.MustParseAddr("100.96.3.0"), mac{}, own4), quiet.Endpoint)
	for range len(r.inbox) {
		r.take(<-r.inbox)
	}
	if answers[quiet.Endpoint] != 1 || answers[endpoint] != peerQueue || len(answers) != 2 {
		t.Errorf("answers: %v", answers)
	}
	if d := r.Drops(); d["neighbor_queue_full"] != 10000-peerQueue || d["neighbor_spoofed"] != 10000 || d["neighbor_malformed"] != 1 {
		t.Errorf("%v", d)
	}
	if n := testing.AllocsPerRun(100, func() { r.Handle(encap.ARP, noisy, netip.MustParseAddrPort("192.0.2.66:1")) }); n != 0 {
		t.Errorf("a stranger's costs %v allocations", n)
	}
}
