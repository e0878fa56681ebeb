//go:build !race

package probe

import (
	"errors"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/overlayd/overlayd/encap"
	"github.com/overlayd/overlayd/internal/path"
)

// twoPaths is two Probers with userspace and kernel VXLAN between them.
type twoPaths struct {
	a, b           *Prober
	peerOfA        Peer // a, as b knows it
	peerOfB        Peer
	w              *wire
	most           int  // the largest inner packet that passes by the kernel path
	hosts          bool // kernels answer echoes
	sizes          []int
	families       map[bool]int
	only4          bool // the kernel path carries no IPv6
	freshRequested int
}

var (
	vtepsA = []netip.AddrPort{netip.MustParseAddrPort("100.96.1.0:8285"), netip.MustParseAddrPort("[fd96:0:0:1::]:8285")}
	vtepsB = []netip.AddrPort{netip.MustParseAddrPort("100.96.2.0:8285"), netip.MustParseAddrPort("[fd96:0:0:2::]:8285")}
)

func newTwoPaths(t *testing.T) *twoPaths {
	p := &twoPaths{w: &wire{delay: time.Millisecond}, most: 1450, hosts: true, families: map[bool]int{}}
	auth := newAuth(t, "0123456789abcdef")
	p.a, p.peerOfA = p.w.node(peerA, endpoint4, auth)
	p.b, p.peerOfB = p.w.node(peerB, endpoint6, auth)
	for _, q := range []*Peer{&p.peerOfA, &p.peerOfB} {
		q.Ready = encap.ReadyKernelVXLAN
		q.Path = path.Peer{Full: 1450, Floor: 1280}
		q.Path.Chances[path.KernelVXLAN].Way = "v"
	}
	p.peerOfA.VTEPs, p.peerOfB.VTEPs = vtepsA, vtepsB
	p.a.sendK, p.b.sendK = p.kernel(p.b, vtepsA), p.kernel(p.a, vtepsB)
	p.a.echo, p.b.echo = p.echo(p.a), p.echo(p.b)
	return p
}

func (p *twoPaths) kernel(dst *Prober, src []netip.AddrPort) func([]byte, [16]byte, path.Kind, netip.AddrPort, bool) error {
	return func(b []byte, _ [16]byte, k path.Kind, to netip.AddrPort, fresh bool) error {
		if k != path.KernelVXLAN {
			return errors.New("no such path")
		}
		from := src[0]
		if to.Addr().Is6() {
			from = src[1]
		}
		size := len(b) + innerHeaders(to.Addr())
		p.w.mu.Lock()
		defer p.w.mu.Unlock()
		p.sizes = append(p.sizes, size)
		p.families[to.Addr().Is6()]++
		if fresh {
			p.freshRequested++
		}
		if size > p.most || p.only4 && to.Addr().Is6() {
			return nil
		}
		copied := append([]byte(nil), b...)
		time.AfterFunc(p.w.delay, func() { dst.Handle(copied, encap.KernelVXLAN, from) })
		return nil
	}
}

func (p *twoPaths) echo(src *Prober) func([16]byte, path.Kind, netip.Addr, uint64) error {
	return func(peer [16]byte, k path.Kind, _ netip.Addr, round uint64) error {
		p.w.mu.Lock()
		defer p.w.mu.Unlock()
		if p.hosts && p.most > 0 {
			time.AfterFunc(p.w.delay, func() { src.Echoed(peer, k, round) })
		}
		return nil
	}
}

// start introduces both to each other, and returns what ends it.
func (p *twoPaths) start() (stop func()) {
	stop = run(p.a, p.b)
	p.a.SetPeers([]Peer{p.peerOfB})
	p.b.SetPeers([]Peer{p.peerOfA})
	return stop
}

// wantPaths checks what both have decided.
func (p *twoPaths) want(t *testing.T, aToB, bToA path.Kind) {
	t.Helper()
	if st := p.a.PathState(peerB); st.Kind != aToB {
		t.Errorf("a to b by %v, want %v: %s", st.Kind, aToB, st.Reason)
	}
	if st := p.b.PathState(peerA); st.Kind != bToA {
		t.Errorf("b to a by %v, want %v: %s", st.Kind, bToA, st.Reason)
	}
}

func TestKernelPath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTwoPaths(t)
		defer p.start()()
		time.Sleep(3 * time.Second)
		p.want(t, path.KernelVXLAN, path.KernelVXLAN)
		if p.families[false] == 0 || p.families[true] == 0 {
			t.Errorf("probes by family: %v", p.families)
		}
		full := 0
		for _, s := range p.sizes {
			if s == 1450 {
				full++
			}
		}
		if full < 12 {
			t.Errorf("%d probes of full size among %d frames", full, len(p.sizes))
		}
		select {
		case <-p.a.Changed():
		default:
			t.Error("nobody was told")
		}
		// Answers that come by two paths are no fault.
		time.Sleep(time.Minute)
		if d := drops(p.a); len(d) > 0 {
			t.Errorf("drops: %v", d)
		}
		tx, rx := p.a.KernelFrames(peerB)
		if tx2, rx2 := p.b.KernelFrames(peerA); tx != rx2[path.KernelVXLAN] || rx[path.KernelVXLAN] != tx2 || tx.Packets == 0 {
			t.Errorf("control frames: a %d out, %d in; b %d out, %d in", tx, rx, tx2, rx2)
		}

		// One that leaves and comes back begins where it was, as the guard's counters do.
		gone, goneRx := p.a.KernelFrames(peerB)
		p.a.SetPeers(nil)
		if tx, rx := p.a.KernelFrames(peerB); tx != gone || rx != goneRx {
			t.Errorf("control frames of a peer that has left: %d out, %d in, and there were %d and %d", tx, rx, gone, goneRx)
		}
		p.a.SetPeers([]Peer{p.peerOfB})
		time.Sleep(10 * time.Second)
		p.want(t, path.KernelVXLAN, path.KernelVXLAN)
		tx, rx = p.a.KernelFrames(peerB)
		if rx := rx[path.KernelVXLAN]; tx.Packets <= gone.Packets || rx.Packets <= goneRx[path.KernelVXLAN].Packets || rx.Bytes <= goneRx[path.KernelVXLAN].Bytes {
			t.Errorf("control frames of a peer that has come back: %d out, %d in, and there were %d and %d", tx, rx, gone, goneRx)
		}

		// Userspace does not answer any more: that is no reason to leave.
		p.w.set(func(w *wire) { w.cut[endpoint4], w.cut[endpoint6] = true, true })
		time.Sleep(time.Minute)
		p.want(t, path.KernelVXLAN, path.KernelVXLAN)
		if st, _ := p.a.State(peerB); st.Reach != Down {
			t.Errorf("userspace, which is cut: %+v", st)
		}
		p.w.set(func(w *wire) { clear(w.cut) })
		time.Sleep(5 * time.Second)
		p.w.set(func(*wire) { p.most = 0 })
		time.Sleep(8 * time.Second) // idle: the next probe has to come first
		p.want(t, path.Userspace, path.Userspace)
	})
}

// Userspace blocked one way: its answers come by the kernel path.
func TestAnswersByAnyPath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTwoPaths(t)
		defer p.start()()
		time.Sleep(3 * time.Second)
		p.w.set(func(w *wire) { w.cut[endpoint4] = true }) // nothing gets to a
		time.Sleep(30 * time.Second)
		if st, _ := p.a.State(peerB); st.Reach != Up {
			t.Errorf("a's probes arrive at b, and b's answers do by the kernel path: %+v", st)
		}
		if st, _ := p.b.State(peerA); st.Reach != Down {
			t.Errorf("b's probes do not arrive at a: %+v", st)
		}
		p.want(t, path.KernelVXLAN, path.KernelVXLAN)
	})
}

// A family that does not pass is no proof.
func TestBothFamilies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTwoPaths(t)
		p.only4 = true
		defer p.start()()
		time.Sleep(10 * time.Second)
		p.want(t, path.Userspace, path.Userspace)
	})
}

func TestNotReadyNotAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTwoPaths(t)
		p.peerOfA.Ready = 0 // b takes nothing from a by the kernel
		defer p.start()()
		time.Sleep(10 * time.Second)
		p.want(t, path.Userspace, path.KernelVXLAN)
		// a probe all the same: as a stranger would send it
		f := encap.Frame{Type: encap.Probe, Path: encap.KernelVXLAN, Sender: peerA, Receiver: peerB, Boot: 100}
		p.b.Handle(encode(t, f, 0, newAuth(t, "0123456789abcdef")), encap.KernelVXLAN, vtepsA[0])
		// One that says that it came by another path than it did, and one from elsewhere.
		p.b.Handle(encode(t, f, 0, newAuth(t, "0123456789abcdef")), encap.Userspace, endpoint4)
		p.b.Handle(encode(t, f, 0, newAuth(t, "0123456789abcdef")), encap.KernelVXLAN, endpoint4)
		synctest.Wait()
		if d := drops(p.b); d["control_not_ready"] != 1 || d["control_path"] != 1 || d["control_unknown_peer"] != 1 {
			t.Errorf("drops: %v", d)
		}
		p.peerOfA.Ready = encap.ReadyKernelVXLAN
		p.b.SetPeers([]Peer{p.peerOfA})
		time.Sleep(5 * time.Second)
		p.want(t, path.KernelVXLAN, path.KernelVXLAN)
	})
}

// TestUndecided: a node that does not know yet what it takes from a peer, because it has just
// been started again, is silent about it; the peer stays on its path meanwhile.
func TestUndecided(t *testing.T) {
	for _, silent := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			p := newTwoPaths(t)
			defer p.start()()
			time.Sleep(3 * time.Second)
			p.want(t, path.KernelVXLAN, path.KernelVXLAN)
			q := p.peerOfA
			q.Ready, q.Undecided = 0, silent
			p.b.SetPeers([]Peer{q})
			time.Sleep(4 * time.Second)
			if silent {
				p.want(t, path.KernelVXLAN, path.KernelVXLAN)
				if drops(p.b)["control_not_ready"] == 0 {
					t.Error("a has asked nothing meanwhile")
				}
			} else {
				p.want(t, path.Userspace, path.KernelVXLAN)
			}
			p.b.SetPeers([]Peer{p.peerOfA})
			time.Sleep(5 * time.Second)
			p.want(t, path.KernelVXLAN, path.KernelVXLAN)
		})
	}
}

func TestEcho(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTwoPaths(t)
		stop := run(p.a)
		stopB := run(p.b)
		defer stop()
		p.a.SetPeers([]Peer{p.peerOfB})
		p.b.SetPeers([]Peer{p.peerOfA})
		time.Sleep(5 * time.Second)
		stopB() // its daemon is dead
		time.Sleep(time.Minute)
		if st := p.a.PathState(peerB); st.Kind != path.KernelVXLAN {
			t.Errorf("its kernel answers: %+v", st)
		}
		p.w.set(func(*wire) { p.hosts = false })
		time.Sleep(10 * time.Second)
		if st := p.a.PathState(peerB); st.Kind != path.Userspace {
			t.Errorf("its kernel does not answer: %+v", st)
		}
		if st, _ := p.a.State(peerB); st.Reach != Down {
			t.Errorf("userspace: %+v", st)
		}
	})
}

func TestPinsAndBreaks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newTwoPaths(t)
		defer p.start()()
		time.Sleep(3 * time.Second)
		if before, err := p.a.Pin(peerB, path.Userspace); before != path.Auto || err != nil {
			t.Error(before, err)
		}
		p.want(t, path.Userspace, path.KernelVXLAN)
		if _, err := p.a.Pin(peerB, path.Direct); err == nil {
			t.Error("pinned to what cannot be")
		}
		if before, err := p.a.Pin(peerB, path.Auto); before != path.Userspace || err != nil {
			t.Error(before, err)
		}
		time.Sleep(time.Second)
		p.want(t, path.KernelVXLAN, path.KernelVXLAN)
		p.a.Break(path.KernelVXLAN, "gone")
		p.want(t, path.Userspace, path.KernelVXLAN)
		p.a.Break(path.KernelVXLAN, "")
		time.Sleep(time.Second)
		p.want(t, path.KernelVXLAN, path.KernelVXLAN)
		p.a.PathRefused(peerB, path.KernelVXLAN, "no")
		p.want(t, path.Userspace, path.KernelVXLAN)
	})
}
