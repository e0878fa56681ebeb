// Package gossiptest is an in-memory network for gossip: memberlist transports
// without sockets, with loss, delay, duplication, reordering, partitions and
// crashes. It reads the time only from package time, so that whole clusters run
// in virtual time under testing/synctest.
package gossiptest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// ErrClosed is returned by a transport that was shut down.
var ErrClosed = errors.New("gossiptest: transport closed")

// Faults are what a network does to packets. The zero value is a perfect
// network without delay. Streams are delayed and cut by partitions, but never
// lose bytes, as TCP does not.
type Faults struct {
	// Loss and Duplicate are probabilities, 0 to 1, for each packet.
	Loss, Duplicate float64
	// MinDelay and MaxDelay bound the one-way delay; each packet draws its own,
	// so that a wide range also reorders.
	MinDelay, MaxDelay time.Duration
}

// Network connects transports. Its methods may be called by any goroutine.
type Network struct {
	mu     sync.Mutex
	rng    *rand.Rand
	faults Faults
	nodes  map[netip.AddrPort]*Transport
	cut    func(from, to netip.AddrPort) bool
	stats  Stats
}

// Stats counts what the network has carried.
type Stats struct {
	Packets, PacketBytes uint64 // sent, whether they arrived or not
	Lost                 uint64 // by Loss, partitions, absent or busy receivers
	Streams              uint64
	StreamBytes          uint64 // both directions
}

// NewNetwork returns a network whose faults are drawn from seed.
func NewNetwork(seed uint64, f Faults) *Network {
	return &Network{rng: rand.New(rand.NewPCG(seed, 0)), faults: f, nodes: make(map[netip.AddrPort]*Transport)}
}

// SetFaults changes what happens to packets sent from now on.
func (n *Network) SetFaults(f Faults) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.faults = f
}

// Partition cuts the directions for which cut returns true, until it is called
// again; nil heals the network. cut must be pure. Open streams that cross a cut
// are broken.
func (n *Network) Partition(cut func(from, to netip.AddrPort) bool) {
	n.mu.Lock()
	n.cut = cut
	var broken []net.Conn
	for _, t := range n.nodes {
		for c := range t.streams {
			if n.severed(c.from, c.to) || n.severed(c.to, c.from) {
				broken = append(broken, c)
			}
		}
	}
	n.mu.Unlock()
	for _, c := range broken {
		c.Close()
	}
}

// Stats returns what has been carried so far.
func (n *Network) Stats() Stats {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.stats
}

// severed is called with n.mu held.
func (n *Network) severed(from, to netip.AddrPort) bool { return n.cut != nil && n.cut(from, to) }

// delay draws a one-way delay. The caller holds n.mu.
func (n *Network) delay() time.Duration {
	spread := n.faults.MaxDelay - n.faults.MinDelay
	if spread <= 0 {
		return n.faults.MinDelay
	}
	return n.faults.MinDelay + time.Duration(n.rng.Int64N(int64(spread)+1))
}

// Transport is one node's access to the network.
type Transport struct {
	net     *Network
	addr    netip.AddrPort
	packets chan *memberlist.Packet
	accept  chan net.Conn
	closed  chan struct{}
	once    sync.Once
	streams map[*stream]bool // guarded by net.mu
}

var _ memberlist.NodeAwareTransport = (*Transport)(nil)

// queue is how many packets may wait for a node, like a socket's buffer.
const queue = 4096

// Listen returns a transport for the address, which must not be in use.
func (n *Network) Listen(addr netip.AddrPort) (*Transport, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.nodes[addr] != nil {
		return nil, fmt.Errorf("gossiptest: %v: address already in use", addr)
	}
	t := &Transport{
		net: n, addr: addr, packets: make(chan *memberlist.Packet, queue), accept: make(chan net.Conn),
		closed: make(chan struct{}), streams: make(map[*stream]bool),
	}
	n.nodes[addr] = t
	return t, nil
}

// FinalAdvertiseAddr implements memberlist.Transport.
func (t *Transport) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return t.addr.Addr().AsSlice(), int(t.addr.Port()), nil
}

// PacketCh implements memberlist.Transport.
func (t *Transport) PacketCh() <-chan *memberlist.Packet { return t.packets }

// StreamCh implements memberlist.Transport.
func (t *Transport) StreamCh() <-chan net.Conn { return t.accept }

// WriteTo implements memberlist.Transport.
func (t *Transport) WriteTo(b []byte, addr string) (time.Time, error) {
	return t.WriteToAddress(b, memberlist.Address{Addr: addr})
}

// WriteToAddress sends a packet, or loses it.
func (t *Transport) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	now := time.Now()
	to, err := netip.ParseAddrPort(a.Addr)
	if err != nil {
		return now, err
	}
	select {
	case <-t.closed:
		return now, ErrClosed
	default:
	}
	n := t.net
	n.mu.Lock()
	defer n.mu.Unlock()
	n.stats.Packets++
	n.stats.PacketBytes += uint64(len(b))
	copies := 1
	if n.rng.Float64() < n.faults.Duplicate {
		copies = 2
	}
	if n.rng.Float64() < n.faults.Loss || n.severed(t.addr, to) {
		n.stats.Lost++
		return now, nil
	}
	b = append([]byte(nil), b...)
	for range copies {
		time.AfterFunc(n.delay(), func() { n.deliver(t.addr, to, b) })
	}
	return now, nil
}

func (n *Network) deliver(from, to netip.AddrPort, b []byte) {
	n.mu.Lock()
	defer n.mu.Unlock()
	t := n.nodes[to]
	if t == nil || n.severed(from, to) {
		n.stats.Lost++
		return
	}
	p := &memberlist.Packet{Buf: append([]byte(nil), b...), From: net.UDPAddrFromAddrPort(from), Timestamp: time.Now()}
	select {
	case t.packets <- p:
	default:
		n.stats.Lost++
	}
}

// DialTimeout implements memberlist.Transport.
func (t *Transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return t.DialAddressTimeout(memberlist.Address{Addr: addr}, timeout)
}

// DialAddressTimeout opens a stream. To an address where nobody listens it is
// refused after a round trip, across a cut it times out.
func (t *Transport) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	to, err := netip.ParseAddrPort(a.Addr)
	if err != nil {
		return nil, err
	}
	n := t.net
	n.mu.Lock()
	trip := n.delay() + n.delay()
	if n.severed(t.addr, to) || n.severed(to, t.addr) {
		trip = timeout
	}
	n.mu.Unlock()
	select {
	case <-time.After(min(trip, timeout)):
	case <-t.closed:
		return nil, ErrClosed
	}
	n.mu.Lock()
	peer := n.nodes[to]
	cut := n.severed(t.addr, to) || n.severed(to, t.addr)
	if peer == nil || cut {
		n.mu.Unlock()
		if cut {
			return nil, fmt.Errorf("gossiptest: dial %v: i/o timeout", to)
		}
		return nil, fmt.Errorf("gossiptest: dial %v: connection refused", to)
	}
	n.stats.Streams++
	near, far := net.Pipe()
	out := &stream{Conn: near, net: n, owner: t, from: t.addr, to: to}
	in := &stream{Conn: far, net: n, owner: peer, from: to, to: t.addr}
	t.streams[out], peer.streams[in] = true, true
	n.mu.Unlock()
	select {
	case peer.accept <- in:
		return out, nil
	case <-peer.closed:
	case <-t.closed:
	}
	out.Close()
	in.Close()
	return nil, fmt.Errorf("gossiptest: dial %v: connection reset", to)
}

// Shutdown implements memberlist.Transport: the node disappears, and its
// streams break.
func (t *Transport) Shutdown() error {
	t.once.Do(func() {
		close(t.closed)
		t.net.mu.Lock()
		if t.net.nodes[t.addr] == t {
			delete(t.net.nodes, t.addr)
		}
		var open []*stream
		for c := range t.streams {
			open = append(open, c)
		}
		t.net.mu.Unlock()
		for _, c := range open {
			c.Close()
		}
	})
	return nil
}

// stream is one end of a connection.
type stream struct {
	net.Conn
	net      *Network
	owner    *Transport
	from, to netip.AddrPort
}

func (s *stream) Write(b []byte) (int, error) {
	n, err := s.Conn.Write(b)
	s.net.mu.Lock()
	s.net.stats.StreamBytes += uint64(n)
	s.net.mu.Unlock()
	return n, err
}

func (s *stream) Close() error {
	s.net.mu.Lock()
	delete(s.owner.streams, s)
	s.net.mu.Unlock()
	return s.Conn.Close()
}

// LocalAddr is the address of the node at this end.
func (s *stream) LocalAddr() net.Addr { return net.TCPAddrFromAddrPort(s.from) }

// RemoteAddr is the address of the node at the other end.
func (s *stream) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(s.to) }
