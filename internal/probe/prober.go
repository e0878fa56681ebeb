package probe

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/overlayd/overlayd/encap"
	"github.com/overlayd/overlayd/internal/path"
)

const (
	// inboxLen is how many frames may wait for the goroutine, and peerQueue
	// how many of them may be probes, and how many answers, of one peer, so that
	// one that floods us does not keep the others out.
	inboxLen  = 256
	peerQueue = 16
)

// ErrClosed is returned by Ping after Close or the end of Run.
var ErrClosed = errors.New("probe: closed")

// Config describes a Prober. All fields but Auth are required.
type Config struct {
	// Self is this node's NodeID and Boot its boot number.
	Self [16]byte
	Boot uint64
	// Send sends a control frame to a peer at an endpoint; the encap's header is its
	// business. b is valid during the call only, and may be written to. Only
	// the goroutine of Run calls it, never with a lock held.
	Send func(b []byte, peer [16]byte, to netip.AddrPort) error
	// Auth holds the keys; nil means that there are none. See SetAuth.
	Auth *encap.Auth
	// SendKernel sends a control frame to a peer's VTEP by a kernel path, with DF. fresh
	// asks that what the kernel knows of the path's MTU be forgotten before. As with Send,
	// b is valid during the call only. Nil: there are no kernel paths.
	SendKernel func(b []byte, peer [16]byte, k path.Kind, to netip.AddrPort, fresh bool) error
	// Echo sends an ICMP echo request by a kernel path, for whose answer Echoed is to be
	// called with the same peer, kind and round. Nil as SendKernel.
	Echo func(peer [16]byte, k path.Kind, to netip.Addr, round uint64) error
}

// Prober probes peers and answers theirs. Its methods are safe for concurrent
// use.
//
// New starts nothing; Run does the work in the caller's goroutine until Close
// or the end of its context.
type Prober struct {
	send   func([]byte, [16]byte, netip.AddrPort) error
	sendK  func([]byte, [16]byte, path.Kind, netip.AddrPort, bool) error
	echo   func([16]byte, path.Kind, netip.Addr, uint64) error
	self   [16]byte
	auth   atomic.Pointer[encap.Auth]
	roster atomic.Pointer[roster] // what Handle needs of core
	drops  counters
	trips  roundTrips

	inbox   chan *frame   // filled by Handle, never blocking
	free    chan *frame   // frames that are not in use
	wake    chan struct{} // something for Run to look at; one slot
	changed chan struct{} // one slot

	mu    sync.Mutex // guards what follows; never held during Send
	core  *Core
	kern  *kernelPaths
	asked []*ping          // not sent yet
	pings map[uint64]*ping // sent, by nonce

	buf []byte // of the frame being sent; Run's own

	stop     chan struct{} // closed by Close
	stopOnce sync.Once
	run      sync.Mutex    // held by Run
	done     chan struct{} // closed when Run has ended, or never will run
	doneOnce sync.Once
}

// frame is a control frame on its way from Handle to Run.
type frame struct {
	b     []byte
	by    encap.Path // how it came
	from  netip.AddrPort
	at    time.Time     // of arrival
	share *atomic.Int32 // gets one back when it is worked off
}

// ping is a call of Ping.
type ping struct {
	id     [16]byte
	nonce  uint64
	result chan pong // one slot
}

// pong is what became of a ping.
type pong struct {
	rtt time.Duration
	err error
}

// New returns a Prober without peers.
func New(c Config) *Prober {
	p := &Prober{
		send:    c.Send,
		sendK:   c.SendKernel,
		echo:    c.Echo,
		self:    c.Self,
		inbox:   make(chan *frame, inboxLen),
		free:    make(chan *frame, inboxLen),
		wake:    make(chan struct{}, 1),
		changed: make(chan struct{}, 1),
		core:    NewCore(c.Self, c.Boot, randomUint64),
		kern:    newKernelPaths(c.Self, c.Boot, randomUint64),
		pings:   map[uint64]*ping{},
		stop:    make(chan struct{}),
		done:    make(chan struct{}),
	}
	for range inboxLen {
		p.free <- new(frame)
	}
	p.kern.trips = &p.trips
	p.auth.Store(c.Auth)
	p.roster.Store(new(roster))
	return p
}

// randomUint64 draws an unpredictable number.
func randomUint64() uint64 {
	var b [8]byte
	rand.Read(b[:]) // never fails (crypto/rand)
	return binary.NativeEndian.Uint64(b[:])
}

// Handle takes a control frame as encap.Codec.Decode returns it, with the
// address it came from, and whether it came by userspace or a kernel path. It is meant for the receive loop: it takes no lock,
// never waits, and copies what it keeps of datagram. Frames that are not from
// a known peer to us are dropped here, before they take up room; and so is
// everything that comes faster than Run works. It allocates while its buffers
// grow to the size of the frames, then no more.
func (p *Prober) Handle(datagram []byte, by encap.Path, from netip.AddrPort) {
	f, err := encap.Peek(datagram)
	if err == nil && f.Size > maxFrame {
		err = encap.ErrLength
	}
	if err != nil {
		p.drops.addError(err)
		return
	}
	s, err := p.roster.Load().admit(p.self, by, from.Addr(), &f)
	if err != nil {
		p.drops.addError(err)
		return
	}
	s.counts.take(by, len(datagram), from.Addr())
	share := s.share(f.Type)
	if share.Add(1) > peerQueue {
		share.Add(-1)
		p.drops.add(dropQueueFull)
		return
	}
	select {
	case q := <-p.free:
		q.b = append(q.b[:0], datagram[:f.Size]...)
		q.by, q.from, q.at, q.share = by, from, time.Now(), share
		p.inbox <- q // has room: there are no more frames than that
	default:
		share.Add(-1)
		p.drops.add(dropQueueFull)
	}
}

// SetPeers replaces the peers, see Core.SetPeers.
func (p *Prober) SetPeers(peers []Peer) {
	p.mu.Lock()
	now := time.Now()
	changed := p.core.SetPeers(now, peers)
	r := p.core.roster
	changed = append(changed, p.kern.setPeers(now, peers, p.core)...)
	p.roster.Store(&r)
	p.mu.Unlock()
	p.notify(changed)
	signal(p.wake)
}

// Hint takes note that frames of more than size bytes are said not to reach the
// peer, see Core.Hint. It is cheap, and may be called from Send.
func (p *Prober) Hint(id [16]byte, size int) {
	p.mu.Lock()
	changed := p.core.Hint(time.Now(), id, size)
	p.mu.Unlock()
	if changed {
		signal(p.changed)
		signal(p.wake) // the new size is to be tried at once
	}
}

// SetAuth replaces the keys, all at once; nil means that there are none.
func (p *Prober) SetAuth(a *encap.Auth) { p.auth.Store(a) }

// State returns what is known of a peer; ok is false if there is no such peer.
func (p *Prober) State(id [16]byte) (s State, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.core.State(id)
}

// Changed returns a channel that delivers one value after the Reach or the MTU
// of any peer has changed, or the path decided on, however many and however often. It is
// never closed.
func (p *Prober) Changed() <-chan struct{} { return p.changed }

// Drops returns how many control frames were dropped, by reason. Every reason
// is there, also at 0. The map is the caller's.
func (p *Prober) Drops() map[string]uint64 {
	m := make(map[string]uint64, reasons)
	for r, name := range reasonNames {
		m[name] = p.drops[r].Load()
	}
	return m
}

// Ping sends the peer one probe more, and waits for the answer until ctx ends.
// The error is that of ctx, ErrUnknownPeer, ErrNoEndpoint, ErrBusy, ErrClosed
// or that of Send.
func (p *Prober) Ping(ctx context.Context, id [16]byte) (rtt time.Duration, err error) {
	if err := ctx.Err(); err != nil {
		return 0, err // a quick answer must not win against it
	}
	g := &ping{id: id, result: make(chan pong, 1)}
	p.mu.Lock()
	if len(p.asked) >= inboxLen {
		p.mu.Unlock()
		return 0, ErrBusy
	}
	p.asked = append(p.asked, g)
	p.mu.Unlock()
	defer p.forget(g)
	signal(p.wake)
	select {
	case r := <-g.result:
		return r.rtt, r.err
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-p.done:
		return 0, ErrClosed
	}
}

// forget drops all traces of a ping.
func (p *Prober) forget(g *ping) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, a := range p.asked {
		if a == g {
			p.asked = append(p.asked[:i], p.asked[i+1:]...)
			break
		}
	}
	if p.pings[g.nonce] == g {
		delete(p.pings, g.nonce)
		p.core.Forget(g.id, g.nonce)
	}
}

// Close makes Run return and waits for it. It may be called more than once,
// and before Run, which then returns at once. It must not be called from Send.
func (p *Prober) Close() {
	p.stopOnce.Do(func() { close(p.stop) })
	p.run.Lock() // waits for Run
	defer p.run.Unlock()
	p.doneOnce.Do(func() { close(p.done) })
}

// notify passes on that the reach or the MTU of peers has changed.
func (p *Prober) notify(changed [][16]byte) {
	if len(changed) > 0 {
		signal(p.changed)
	}
}

// signal fills the one slot of c.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
