package neighbor

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/overlayd/overlayd/encap"
)

// The bounds of the inbox: over all, and for one outer address, so that one that
// floods us does not keep the others out. maxMessage is the longest message that is
// looked at: neighbour discovery with some options that are of no use to us.
const (
	inboxLen   = 128
	peerQueue  = 16
	maxMessage = 256
)

// The errors of Ping.
var (
	ErrUnknownPeer = errors.New("neighbor: no such peer, or one whose VTEP's address is not known")
	ErrBusy        = errors.New("neighbor: too many pings of this peer under way")
)

const maxPings = 8

// Config describes a Resolver. All fields are required.
type Config struct {
	// MAC is this node's VTEP's.
	MAC [6]byte
	// Send sends one frame to a MAC behind an endpoint. It is called by Run alone, and
	// does not keep payload.
	Send func(k encap.Kind, to [6]byte, payload []byte, at netip.AddrPort) error
}

// Resolver answers for this node's VTEP and asks for others'. Its methods are safe
// for concurrent use. New starts nothing.
type Resolver struct {
	send    func(encap.Kind, [6]byte, []byte, netip.AddrPort) error
	drops   [reasons]atomic.Uint64
	sources atomic.Pointer[map[netip.Addr]*atomic.Int32] // how many messages of each wait
	inbox   chan *waiting
	free    chan *waiting
	wake    chan struct{} // one slot
	changed chan struct{} // one slot

	mu   sync.Mutex // never held during send
	core *core
}

// waiting is a message in the inbox.
type waiting struct {
	kind  encap.Kind
	b     []byte
	from  netip.Addr
	at    time.Time
	share *atomic.Int32
}

// New makes a Resolver without addresses and peers.
func New(cfg Config) *Resolver {
	r := &Resolver{
		send: cfg.Send, core: newCore(cfg.MAC),
		inbox: make(chan *waiting, inboxLen), free: make(chan *waiting, inboxLen),
		wake: make(chan struct{}, 1), changed: make(chan struct{}, 1),
	}
	r.sources.Store(new(map[netip.Addr]*atomic.Int32))
	for range inboxLen {
		r.free <- &waiting{b: make([]byte, 0, maxMessage)}
	}
	return r
}

// Handle takes a message as encap.Codec.Decode returns it, with the outer source. It
// does not block and copies what it keeps.
func (r *Resolver) Handle(k encap.Kind, payload []byte, from netip.AddrPort) {
	share := (*r.sources.Load())[from.Addr()]
	switch {
	case share == nil:
		r.drops[spoofed].Add(1)
		return
	case len(payload) > maxMessage:
		r.drops[malformed].Add(1)
		return
	case share.Add(1) > peerQueue:
		share.Add(-1)
		r.drops[queueFull].Add(1)
		return
	}
	select {
	case w := <-r.free:
		w.kind, w.b, w.from, w.at, w.share = k, append(w.b[:0], payload...), from.Addr(), time.Now(), share
		r.inbox <- w // has room: there are no more than that
	default:
		share.Add(-1)
		r.drops[queueFull].Add(1)
	}
}

// Set replaces this node's VTEP addresses, the first of each of its subnets, and the
// peers.
func (r *Resolver) Set(own []netip.Addr, peers []Peer) {
	sources := make(map[netip.Addr]*atomic.Int32, len(peers))
	old := *r.sources.Load()
	for _, p := range peers {
		for _, a := range p.Sources {
			if sources[a] = old[a]; sources[a] == nil {
				sources[a] = new(atomic.Int32)
			}
		}
	}
	r.sources.Store(&sources)
	r.mu.Lock()
	r.core.own = slices.Clone(own)
	r.core.setPeers(time.Now(), peers)
	r.mu.Unlock()
	signal(r.wake)
}

// Run works until ctx ends. It is called once.
func (r *Resolver) Run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case w := <-r.inbox:
			r.take(w)
		case <-r.wake:
		case <-timer.C:
		}
		// What has arrived comes before the conclusion that nothing did.
		for range len(r.inbox) {
			r.take(<-r.inbox)
		}
		r.mu.Lock()
		due, next, changed := r.core.poll(time.Now())
		r.mu.Unlock()
		for i := range due {
			r.transmit(&due[i])
		}
		if changed {
			signal(r.changed)
		}
		if next.IsZero() {
			timer.Stop()
		} else {
			timer.Reset(time.Until(next))
		}
	}
}

func (r *Resolver) take(w *waiting) {
	r.mu.Lock()
	out, changed, drop := r.core.take(w.at, w.kind, w.b, w.from)
	r.mu.Unlock()
	w.share.Add(-1)
	r.free <- w // has room: there are no more than that
	if drop != none {
		r.drops[drop].Add(1)
	}
	if out != nil {
		r.transmit(out)
	}
	if changed {
		signal(r.changed)
	}
}

func (r *Resolver) transmit(out *outgoing) {
	err := r.send(out.kind, out.to, out.payload, out.at)
	if err == nil {
		return
	}
	r.drops[sendFailed].Add(1)
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.core.order {
		if p.Endpoint == out.at {
			p.sendError = err
		}
	}
}

// Changed gets a value when a peer's MAC has changed, or whether it is up. Several
// changes may arrive as one. It has one receiver.
func (r *Resolver) Changed() <-chan struct{} { return r.changed }

// State tells what is known of a peer.
func (r *Resolver) State(id [16]byte) State {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.core.state(id)
}

// Ping asks a peer's VTEP for its MAC and returns how long the answer took. The error
// is that of ctx, ErrUnknownPeer or ErrBusy.
func (r *Resolver) Ping(ctx context.Context, id [16]byte) (time.Duration, error) {
	g := &ping{began: time.Now(), result: make(chan time.Duration, 1)}
	r.mu.Lock()
	p := r.core.peers[id]
	var err error
	switch {
	case p == nil || !p.Ask.IsValid() || !p.Endpoint.IsValid():
		err = ErrUnknownPeer
	case len(p.pings) >= maxPings:
		err = ErrBusy
	default:
		p.pings, p.next = append(p.pings, g), g.began
	}
	r.mu.Unlock()
	if err != nil {
		return 0, err
	}
	signal(r.wake)
	select {
	case rtt := <-g.result:
		return rtt, nil
	case <-ctx.Done():
		r.mu.Lock()
		defer r.mu.Unlock()
		if p := r.core.peers[id]; p != nil { // which may be another by now
			p.pings = slices.DeleteFunc(p.pings, func(o *ping) bool { return o == g })
		}
		return 0, ctx.Err()
	}
}

// Drops returns how many messages were not heeded, by reason. Every reason is there,
// also at 0. The map is the caller's.
func (r *Resolver) Drops() map[string]uint64 {
	m := make(map[string]uint64, reasons)
	for i, name := range reasonNames {
		m[name] = r.drops[i].Load()
	}
	return m
}

// signal fills the one slot of c.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
