package probe

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/overlayd/overlayd/encap"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errNoBuffer = errors.New("no buffer space available")

// wire is an underlay in memory.
type wire struct {
	delay time.Duration

	mu    sync.Mutex
	nodes map[netip.AddrPort]*Prober
	cut   map[netip.AddrPort]bool // nothing arrives there
	fail  error                   // of every send
}

// node attaches a Prober to the wire, and is its Peer.
func (w *wire) node(id [16]byte, at netip.AddrPort, auth *encap.Auth) (*Prober, Peer) {
	p := New(Config{Self: id, Boot: 100, Auth: auth, Send: func(b []byte, _ [16]byte, to netip.AddrPort) error {
		return w.carry(append([]byte(nil), b...), at, to)
	}})
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.nodes == nil {
		w.nodes, w.cut = map[netip.AddrPort]*Prober{}, map[netip.AddrPort]bool{}
	}
	w.nodes[at] = p
	return p, Peer{ID: id, Boot: 100, Endpoint: at, FullSize: 1400}
}

func (w *wire) carry(b []byte, from, to netip.AddrPort) error {
	w.mu.Lock()
	dst, cut, err := w.nodes[to], w.cut[to], w.fail
	w.mu.Unlock()
	switch {
	case err != nil:
		return err
	case dst == nil || cut:
	case w.delay == 0:
		dst.Handle(b, encap.Userspace, from)
	default:
		time.AfterFunc(w.delay, func() { dst.Handle(b, encap.Userspace, from) })
	}
	return nil
}

// set changes the wire.
func (w *wire) set(change func(*wire)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change(w)
}

// run runs probers until stop is called, which waits for them.
func run(probers ...*Prober) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for _, p := range probers {
		wg.Go(func() { p.Run(ctx) })
	}
	return func() {
		cancel()
		wg.Wait()
	}
}

// encode makes the bytes of a frame.
func encode(t testing.TB, f encap.Frame, size int, auth *encap.Auth) []byte {
	t.Helper()
	b, err := f.Append(nil, size, auth)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func newAuth(t testing.TB, key string) *encap.Auth {
	t.Helper()
	a, err := encap.NewAuth([][]byte{[]byte(key)})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func addrPort(a [16]byte) netip.AddrPort { return netip.AddrPortFrom(netip.AddrFrom16(a), 8285) }

// drops are those reasons that were counted.
func drops(p *Prober) map[string]uint64 {
	m := p.Drops()
	for name, n := range m {
		if n == 0 {
			delete(m, name)
		}
	}
	return m
}

// Everything at once, for the race detector, with real time.
func TestConcurrentUse(t *testing.T) {
	w := &wire{}
	auth := newAuth(t, "0123456789abcdef")
	a, peerOfA := w.node(peerA, endpoint4, auth)
	b, peerOfB := w.node(peerB, endpoint6, auth)
	stop := run(a, b)
	defer stop()
	a.SetPeers([]Peer{peerOfB})
	b.SetPeers([]Peer{peerOfA})

	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for st, _ := a.State(peerB); st.Reach != Up; st, _ = a.State(peerB) {
		select {
		case <-a.Changed():
		case <-ctx.Done():
			t.Fatalf("not up after 10 s: %+v", st)
		}
	}

	var wg sync.WaitGroup
	var pongs atomic.Int64
	for range 3 {
		wg.Go(func() {
			for range 5 {
				if rtt, err := a.Ping(ctx, peerB); err != nil || rtt < 0 {
					t.Errorf("ping: %v, %v", rtt, err)
					return
				}
				pongs.Add(1)
			}
		})
	}
	forged := encode(t, encap.Frame{Type: encap.Probe, Sender: peerB, Receiver: peerA, Boot: 100}, 0, newAuth(t, "fedcba9876543210"))
	for range 2 {
		wg.Go(func() {
			for range 200 {
				a.Handle(forged, encap.Userspace, endpoint6)
				a.Drops()
				a.State(peerB)
			}
		})
	}
	wg.Go(func() {
		for range 50 {
			a.SetAuth(auth)
			a.SetPeers([]Peer{peerOfB, {ID: self}})
			a.SetPeers([]Peer{peerOfB})
		}
	})
	wg.Wait()
	stop()
	// Genuine probes may find the queue full of forged ones, answers do not.
	if n := drops(a)["control_auth"] + drops(a)["control_queue_full"]; n < 400 || n > 410 {
		t.Errorf("%d dropped, 400 forged: %v", n, drops(a))
	}
	if pongs.Load() != 15 {
		t.Errorf("%d of 15 pings answered", pongs.Load())
	}
}

func TestLifecycle(t *testing.T) {
	fresh := func() *Prober {
		p, _ := (&wire{}).node(peerA, endpoint4, nil)
		return p
	}
	bg := context.Background()
	t.Run("close without run", func(t *testing.T) {
		p := fresh()
		p.Close()
		p.Close()
		p.Run(bg) // returns
		if _, err := p.Ping(bg, peerB); err != ErrClosed {
			t.Errorf("ping: %v", err)
		}
	})
	t.Run("run ends with its context", func(t *testing.T) {
		p := fresh()
		ctx, cancel := context.WithCancel(bg)
		cancel()
		p.Run(ctx)
		p.Run(bg) // returns: it is closed
		if _, err := p.Ping(bg, peerB); err != ErrClosed {
			t.Errorf("ping: %v", err)
		}
		p.Close()
	})
	t.Run("close during run, many times", func(t *testing.T) {
		for range 100 {
			p := fresh()
			p.SetPeers([]Peer{peer6()})
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				p.Run(bg)
			}()
			var wg sync.WaitGroup
			wg.Go(p.Close)
			wg.Go(func() {
				if _, err := p.Ping(bg, peerB); err != ErrClosed {
					t.Errorf("ping: %v", err)
				}
			})
			wg.Wait()
			<-ended
		}
	})
	t.Run("closed, the rest still works", func(t *testing.T) {
		p := fresh()
		p.SetPeers([]Peer{peer6()})
		p.Close()
		probe := encode(t, encap.Frame{Type: encap.Probe, Sender: peerB, Receiver: peerA, Boot: 100}, 0, nil)
		for range inboxLen + 10 {
			p.Handle(probe, encap.Userspace, endpoint6) // does not block
		}
		if st, ok := p.State(peerB); !ok || st.Reach != Unknown {
			t.Errorf("state: %+v, %v", st, ok)
		}
		if got := drops(p)["control_queue_full"]; got != inboxLen+10-peerQueue {
			t.Errorf("%d frames dropped, want %d", got, inboxLen+10-peerQueue)
		}
	})
}

func TestHandleDrops(t *testing.T) {
	ok := encap.Frame{Type: encap.Probe, Sender: peerB, Receiver: peerA, Boot: 100}
	with := func(edit func(*encap.Frame)) encap.Frame {
		f := ok
		edit(&f)
		return f
	}
	auth := newAuth(t, "0123456789abcdef")
	plain := encode(t, ok, 0, nil)
	newer := append([]byte(nil), plain...)
	newer[0]++
	for _, tt := range []struct {
		name string
		b    []byte
		from netip.AddrPort
		auth *encap.Auth // ours
		want string
	}{
		{"fine", plain, endpoint6, nil, ""},
		{"fine, with a tag", encode(t, ok, 0, auth), endpoint6, auth, ""},
		{"empty", nil, endpoint6, nil, "control_malformed"},
		{"cut", plain[:40], endpoint6, nil, "control_malformed"},
		{"of another version", newer, endpoint6, nil, "control_version"},
		{"oversized", encode(t, ok, maxFrame+1, nil), endpoint6, nil, "control_malformed"},
		{"of a stranger", encode(t, with(func(f *encap.Frame) { f.Sender = self }), 0, nil), endpoint6, nil, "control_unknown_peer"},
		{"from a stranger's address", plain, endpoint4, nil, "control_unknown_peer"},
		{"to another node", encode(t, with(func(f *encap.Frame) { f.Receiver = self }), 0, nil), endpoint6, nil, "control_other_receiver"},
		{"of an earlier boot", encode(t, with(func(f *encap.Frame) { f.Boot = 99 }), 0, nil), endpoint6, nil, "control_stale_boot"},
		{"of another path", encode(t, with(func(f *encap.Frame) { f.Path = encap.Direct }), 0, nil), endpoint6, nil, "control_path"},
		{"without a tag", plain, endpoint6, auth, "control_auth"},
		{"with a tag, without a key", encode(t, ok, 0, auth), endpoint6, nil, "control_auth"},
		{"with another key", encode(t, ok, 0, newAuth(t, "fedcba9876543210")), endpoint6, auth, "control_auth"},
		{"answer to nothing", encode(t, with(func(f *encap.Frame) { f.Type = encap.Answer }), 0, nil), endpoint6, nil, "control_unexpected_answer"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var sent int
			p := New(Config{Self: peerA, Boot: 1, Auth: tt.auth, Send: func([]byte, [16]byte, netip.AddrPort) error {
				sent++
				return nil
			}})
			p.SetPeers([]Peer{peer6()})
			p.Handle(tt.b, encap.Userspace, tt.from)
			for len(p.inbox) > 0 {
				p.take(<-p.inbox)
			}
			want := map[string]uint64{}
			if tt.want != "" {
				want[tt.want] = 1
			}
			if diff := cmp.Diff(want, drops(p)); diff != "" {
				t.Errorf("drops: (-want +got)\n%s", diff)
			}
			if (sent == 1) != (tt.want == "") {
				t.Errorf("%d answers", sent)
			}
			if len(p.free) != inboxLen {
				t.Errorf("%d of %d buffers came back", len(p.free), inboxLen)
			}
		})
	}
	if got := len(New(Config{}).Drops()); got != int(reasons) {
		t.Errorf("%d reasons are listed, want %d", got, reasons)
	}
}

// A peer that floods us is cut off before it keeps the others out.
func TestFloodOfOnePeer(t *testing.T) {
	p := New(Config{Self: self, Boot: 1, Send: func([]byte, [16]byte, netip.AddrPort) error { return nil }})
	p.SetPeers([]Peer{peer4(), peer6()})
	flood := encode(t, encap.Frame{Type: encap.Probe, Sender: peerA, Receiver: self, Boot: 100}, 1400, nil)
	for range 1000 {
		p.Handle(flood, encap.Userspace, endpoint4)
	}
	p.Handle(encode(t, encap.Frame{Type: encap.Probe, Sender: peerB, Receiver: self, Boot: 100}, 0, nil), encap.Userspace, endpoint6)
	if len(p.inbox) != peerQueue+1 {
		t.Fatalf("%d frames wait, want %d", len(p.inbox), peerQueue+1)
	}
	for len(p.inbox) > 0 {
		p.take(<-p.inbox)
	}
	if st, _ := p.State(peerB); st.Reach != Unknown {
		t.Errorf("state: %+v", st)
	}
	if p.core.peers[peerB].heard.IsZero() {
		t.Error("the probe of the other peer got lost")
	}
	if got := drops(p); len(got) != 1 || got["control_queue_full"] != 1000-peerQueue {
		t.Errorf("drops: %v", got)
	}
	p.Handle(flood, encap.Userspace, endpoint4)
	if len(p.inbox) != 1 {
		t.Error("its share of the queue did not come back")
	}
}

func TestHandleAllocations(t *testing.T) {
	p := New(Config{Self: self, Boot: 1, Send: func([]byte, [16]byte, netip.AddrPort) error { return nil }})
	p.SetPeers([]Peer{peer4()})
	probe := encode(t, encap.Frame{Type: encap.Probe, Sender: peerA, Receiver: self, Boot: 100}, 1400, nil)
	turn := func() {
		p.Handle(probe, encap.Userspace, endpoint4)      // taken
		p.Handle(probe, encap.Userspace, endpoint6)      // from a stranger
		p.Handle(probe[:20], encap.Userspace, endpoint4) // malformed
		p.take(<-p.inbox)
	}
	for range inboxLen {
		turn() // every buffer has grown once
	}
	if n := testing.AllocsPerRun(100, turn); n != 0 {
		t.Errorf("%v allocations per frame, want 0", n)
	}
}

// Whatever arrives, nothing is answered but a whole probe to us, and no buffer
// gets lost.
func FuzzHandle(f *testing.F) {
	good := encap.Frame{Type: encap.Probe, Sender: peerA, Receiver: self, Boot: 100, Nonce: 1}
	f.Add(encode(f, good, 0, nil))
	f.Add(encode(f, good, 100, nil))
	f.Add(encode(f, good, 0, newAuth(f, "0123456789abcdef")))
	good.Type, good.Received = encap.Answer, smallProbe
	f.Add(encode(f, good, 0, nil))
	f.Add([]byte{})
	answers := 0
	p := New(Config{Self: self, Boot: 1, Send: func([]byte, [16]byte, netip.AddrPort) error {
		answers++
		return nil
	}})
	f.Fuzz(func(t *testing.T, b []byte) {
		p.SetPeers(nil) // forgets how much was answered
		p.SetPeers([]Peer{peer4()})
		answers = 0
		p.Handle(b, encap.Userspace, endpoint4)
		for len(p.inbox) > 0 {
			p.take(<-p.inbox)
		}
		frame, err := encap.Parse(b, nil)
		want := 0
		if err == nil && frame.Type == encap.Probe && frame.Sender == peerA && frame.Receiver == self &&
			frame.Boot >= 100 && frame.Path == encap.Userspace && frame.Size <= maxFrame {
			want = 1
		}
		if answers != want {
			t.Fatalf("%d answers, want %d, to %+v, %v", answers, want, frame, err)
		}
		if st, _ := p.State(peerA); st.Reach != Unknown || len(p.free) != inboxLen {
			t.Fatalf("state %+v, %d buffers", st, len(p.free))
		}
	})
}
