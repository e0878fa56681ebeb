package forward

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/overlayd/overlayd/encap"
	"github.com/overlayd/overlayd/tunnel"
)

// The errors of an [Engine].
var (
	// ErrConfig: a Config that can never work.
	ErrConfig = errors.New("forward")
	// ErrDevice: the device was closed by someone else or does not work.
	ErrDevice = errors.New("forward: device")
	// ErrSocket: a socket was closed by someone else.
	ErrSocket = errors.New("forward: socket")
	// ErrNoSocket: no socket of the destination's address family.
	ErrNoSocket = errors.New("forward: no socket of this address family")
	// ErrStarted: Run was called a second time.
	ErrStarted = errors.New("forward: already started")
)

// The bounds of an inner MTU in bytes: RFC 791 section 3.2, and what the length
// field of an IPv4 header can say.
const (
	minMTU = 68
	maxMTU = 65535
)

// maxBatch bounds how many packets are read from the device at once.
const maxBatch = 128

func batchLen(n int) int { return max(1, min(n, maxBatch)) }

// Config is what an [Engine] works on. All fields but Control and Logger are
// required.
type Config struct {
	// Device gives and takes inner packets.
	Device tunnel.Device
	// Codec is the framing of what is received, and of what is sent to peers that do
	// not say otherwise.
	Codec encap.Codec
	// Conns are bound, unconnected UDP sockets: one IPv4, one IPv6, or one of
	// each. A socket that takes both families counts as IPv6 and should be
	// IPv6 only. Run takes them over.
	Conns []*net.UDPConn
	// Tx are what the first queue sends by instead of Conns, see QueueConns.
	Tx []*net.UDPConn
	// More are for a Device with further queues, one for each of them: how each
	// sends and receives. With fewer, the last queues are left alone, and what the
	// kernel puts there is lost.
	More []QueueConns
	// Control gets each control frame that comes from a known peer's address,
	// without the encap. It is called from the receive loops, by several
	// goroutines at once, must not block, and must copy what it keeps of frame.
	// Nil: control frames are ignored.
	Control func(frame []byte, from netip.AddrPort)
	// Neighbor gets each ARP message and message of neighbour discovery that comes
	// from a known peer's address: kind and payload are as of encap.Codec. It is called
	// as Control is. Nil: they are ignored.
	Neighbor func(kind encap.Kind, payload []byte, from netip.AddrPort)
	// TooBig is told, by the loops, that a peer may not be reached with packets of
	// any size: mtu is the longest inner packet that a router's ICMP message speaks
	// of, which may be forged, or 0 if the kernel has refused a datagram for its
	// size. It must not block. Nil: nobody is told.
	TooBig func(peer [16]byte, endpoint netip.AddrPort, mtu int)
	// MTU is the longest inner packet, in bytes, that is sent: 68 to 65535.
	MTU int
	// NoOffload leaves the sockets' segmentation offloads alone.
	NoOffload bool
	// Logger gets the drop counters that have risen, at most once a second
	// for each reason. Nil: nothing is logged.
	Logger *slog.Logger
}

// QueueConns are the sockets of a queue beside the first.
type QueueConns struct {
	// Rx are sockets of the families of Config.Conns that share their addresses and
	// ports with those (SO_REUSEPORT): the kernel puts each outer flow into one of
	// them.
	Rx []*net.UDPConn
	// Tx are sockets of the same families and addresses, with ports of their own, so
	// that what different queues send is different flows to the underlay, and to
	// the receiver's sockets. Several of a family share the inner flows. What comes to
	// them is not read.
	Tx []*net.UDPConn
}

// Engine forwards packets between a device and UDP sockets. All methods may be
// called by any goroutine at any time.
type Engine struct {
	device   tunnel.Device
	codec    encap.Codec
	conns    [sockCount]*net.UDPConn
	sending  []*net.UDPConn // Config.Tx
	more     []QueueConns
	seed     maphash.Seed                         // of flowHash
	running  [sockCount]atomic.Pointer[batchConn] // what Run has made of conns
	taken    []batchConn                          // all that Run has made
	control  func(frame []byte, from netip.AddrPort)
	neighbor func(kind encap.Kind, payload []byte, from netip.AddrPort)
	tooBig   func(peer [16]byte, endpoint netip.AddrPort, mtu int)
	mtu      int
	offload  bool
	log      *slog.Logger

	table     atomic.Pointer[Table]
	tap       atomic.Pointer[Tap] // nil: none
	tapping   sync.Mutex
	tapList   []*Tap                    // under tapping
	strangers atomic.Pointer[strangers] // of Run
	drops     Drops
	out       *output // to the first queue
	icmp      *icmpQueue
	started   atomic.Bool
}

// New checks cfg and makes an Engine with an empty table: everything is
// dropped until SetTable. It starts nothing. Device and Conns stay the
// caller's until Run is called.
func New(cfg Config) (*Engine, error) {
	switch {
	case cfg.Device == nil:
		return nil, fmt.Errorf("%w: no device", ErrConfig)
	case cfg.Codec == nil:
		return nil, fmt.Errorf("%w: no codec", ErrConfig)
	case len(cfg.Conns) == 0:
		return nil, fmt.Errorf("%w: no socket", ErrConfig)
	case cfg.MTU < minMTU || cfg.MTU > maxMTU:
		return nil, fmt.Errorf("%w: mtu %d is not in %d to %d", ErrConfig, cfg.MTU, minMTU, maxMTU)
	}
	if m := cfg.Device.Features().MaxPacket; m < 1 {
		return nil, fmt.Errorf("%w: device %s: largest packet is %d bytes", ErrConfig, cfg.Device.Name(), m)
	}
	if q, ok := cfg.Device.(tunnel.MultiQueue); len(cfg.More) > 0 && (!ok || len(q.Queues()) <= len(cfg.More)) {
		return nil, fmt.Errorf("%w: more sockets than device %s has queues", ErrConfig, cfg.Device.Name())
	}
	e := newEngine(cfg)
	var err error
	if e.conns, err = byFamily(cfg.Conns); err != nil {
		return nil, err
	}
	for _, q := range cfg.More {
		_, errRx := byFamily(q.Rx)
		_, errTx := families(q.Tx)
		if err := cmp.Or(errRx, errTx); err != nil {
			return nil, err
		}
	}
	if _, err := families(cfg.Tx); err != nil {
		return nil, err
	}
	e.more, e.sending = slices.Clone(cfg.More), slices.Clone(cfg.Tx)
	return e, nil
}

// byFamily sorts sockets, at most one of each family.
func byFamily(list []*net.UDPConn) (conns [sockCount]*net.UDPConn, err error) {
	sorted, err := families(list)
	if err != nil {
		return conns, err
	}
	for i, list := range sorted {
		if len(list) > 1 {
			return conns, fmt.Errorf("%w: two sockets of one address family: %v and %v", ErrConfig, list[0].LocalAddr(), list[1].LocalAddr())
		}
		if len(list) == 1 {
			conns[i] = list[0]
		}
	}
	return conns, nil
}

// families sorts sockets.
func families(list []*net.UDPConn) (sorted [sockCount][]*net.UDPConn, err error) {
	for _, c := range list {
		if c == nil {
			return sorted, fmt.Errorf("%w: nil socket", ErrConfig)
		}
		a, ok := c.LocalAddr().(*net.UDPAddr)
		if !ok {
			return sorted, fmt.Errorf("%w: socket has no address", ErrConfig)
		}
		i := sock6
		if a.IP.To4() != nil {
			i = sock4
		}
		sorted[i] = append(sorted[i], c)
	}
	return sorted, nil
}

// newEngine makes an Engine without sockets of a Config that has been checked.
func newEngine(cfg Config) *Engine {
	e := &Engine{
		device:   cfg.Device,
		codec:    cfg.Codec,
		control:  cfg.Control,
		neighbor: cfg.Neighbor,
		seed:     maphash.MakeSeed(),
		tooBig:   cfg.TooBig,
		mtu:      cfg.MTU,
		offload:  !cfg.NoOffload,
		log:      cfg.Logger,
	}
	if e.control == nil {
		e.control = func([]byte, netip.AddrPort) {}
	}
	if e.neighbor == nil {
		e.neighbor = func(encap.Kind, []byte, netip.AddrPort) {}
	}
	if e.tooBig == nil {
		e.tooBig = func([16]byte, netip.AddrPort, int) {}
	}
	if e.log == nil {
		e.log = slog.New(slog.DiscardHandler)
	}
	e.out = &output{dev: cfg.Device, drops: &e.drops}
	e.icmp = newICMPQueue(&e.drops)
	e.table.Store(new(Table))
	return e
}

// SetTable replaces the forwarding table, which is not nil. Packets that are being judged may
// still be judged by the old one.
func (e *Engine) SetTable(t *Table) {
	e.table.Store(t)
	if s := e.strangers.Load(); s != nil {
		s.renew(e.table.Load)
	}
}

// Table returns the table in force.
func (e *Engine) Table() *Table { return e.table.Load() }

// Drops returns the counters, which live as long as the Engine.
func (e *Engine) Drops() *Drops { return &e.drops }

// Run forwards until ctx ends or forwarding is no longer possible, and returns
// when every goroutine that it started has ended. It returns nil after the end
// of ctx, and otherwise an error that wraps [ErrDevice] or [ErrSocket].
//
// Run closes Device and Conns when it ends, whatever the reason: nothing else
// wakes a Read of a device. Closing them again does no harm, but closing the device
// before the end of ctx is an error that Run returns. Run works once.
func (e *Engine) Run(ctx context.Context) error {
	if e.started.Swap(true) {
		return ErrStarted
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	var (
		wg    sync.WaitGroup
		once  sync.Once
		fatal error
	)
	start := func(run func() error) {
		wg.Go(func() {
			// A loop that ends after ctx was woken on purpose.
			if err := run(); ctx.Err() == nil {
				once.Do(func() { fatal = err })
				cancel()
			}
		})
	}
	queues, err := e.openQueues()
	if err != nil {
		return errors.Join(err, e.close())
	}
	var all []batchConn
	for _, q := range queues {
		start(newTxLoop(e, q).run)
		for _, c := range q.rx {
			if c.conn != nil {
				all = append(all, c.conn)
				l := newRxLoop(e, c, q)
				start(func() error { return l.run(ctx) })
			}
		}
	}
	wg.Go(func() { e.answer(ctx) })
	st := newStrangers(&e.drops, all)
	e.strangers.Store(st)
	wg.Go(func() { logDrops(ctx, &e.drops, e.log, func() { st.tick(e.table.Load) }) })

	<-ctx.Done()
	closed := e.close()
	wg.Wait()
	if fatal != nil {
		return fatal
	}
	return closed
}

// close closes device and sockets. That a socket is closed already is no
// error.
func (e *Engine) close() error {
	var errs []error
	closing := func(c interface{ Close() error }) {
		if err := c.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, fmt.Errorf("%w: close: %w", ErrSocket, err))
		}
	}
	for _, c := range e.conns {
		if c != nil {
			closing(c)
		}
	}
	for _, c := range e.sending {
		closing(c)
	}
	for _, q := range e.more {
		for _, c := range slices.Concat(q.Rx, q.Tx) {
			closing(c)
		}
	}
	for _, c := range e.taken {
		if err := c.close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, fmt.Errorf("%w: close: %w", ErrSocket, err))
		}
	}
	if err := e.device.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		errs = append(errs, fmt.Errorf("%w: close %s: %w", ErrDevice, e.device.Name(), err))
	}
	return errors.Join(errs...)
}

// minIPv6 is the least MTU that an IPv6 sender may be told of: RFC 8200 section 5.
const minIPv6 = 1280

// mtuTo is the longest inner packet of a version that may be sent to p.
func (e *Engine) mtuTo(p *Peer, is6 bool) int {
	mtu := e.mtu
	if p.MTU > 0 {
		mtu = min(p.MTU, mtu)
		if is6 { // if the path carries less it is no path for IPv6
			mtu = max(mtu, min(minIPv6, e.mtu))
		}
	}
	return mtu
}

// codecFor is the framing of what is sent to p.
func (e *Engine) codecFor(p *Peer) encap.Codec {
	if p.Codec != nil {
		return p.Codec
	}
	return e.codec
}

// SendFrame sends one frame of any kind to an endpoint, in a framing that need not be
// the Engine's, and does not keep it. It works from New on until the sockets are
// closed.
func (e *Engine) SendFrame(codec encap.Codec, k encap.Kind, d encap.Dest, payload []byte, to netip.AddrPort) error {
	to = netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
	if !to.IsValid() {
		return fmt.Errorf("send %v frame: %v is no endpoint", k, to)
	}
	if e.conns[sockFor(to.Addr())] == nil {
		return fmt.Errorf("send %v frame to %v: %w", k, to, ErrNoSocket)
	}
	if hl := codec.HeaderLen(); hl > 0 {
		b := make([]byte, hl, hl+len(payload))
		codec.PutHeader(b, k, d)
		payload = append(b, payload...)
	}
	if err := e.send(sockFor(to.Addr()), payload, to); err != nil {
		return fmt.Errorf("send %v frame to %v: %w", k, to, err)
	}
	if tap := e.tap.Load(); tap != nil {
		(*tap)(&Seen{
			Outer: true, Outbound: true, Peer: e.table.Load().peerAt(to), Encap: codec.Name(), Remote: to,
			Local: localOf(e.conns[sockFor(to.Addr())]), Pieces: [][]byte{payload},
		})
	}
	return nil
}

// send sends one datagram, before Run and while it runs.
func (e *Engine) send(sock int, b []byte, to netip.AddrPort) error {
	run := e.running[sock].Load()
	if run == nil {
		_, err := e.conns[sock].WriteToUDPAddrPort(b, to)
		if run = e.running[sock].Load(); run == nil || !errors.Is(err, net.ErrClosed) {
			return err
		}
		// Run has taken the socket over in between.
	}
	return (*run).send(b, to)
}
