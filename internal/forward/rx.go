package forward

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/overlayd/overlayd/encap"
	"github.com/overlayd/overlayd/tunnel"
)

// minRxPacket and rxSlack size the receive buffers: room for the header and
// for a packet of our MTU or the minimum IPv6 MTU (RFC 8200 section 5), and
// somewhat more for a peer whose idea of the MTU differs. What fits is
// accepted, whoever is next in line may answer that it is too big; what does
// not fit is seen as truncated.
const (
	minRxPacket = 1280
	rxSlack     = 64
)

// maxDatagram is the largest UDP payload that any buffer needs (RFC 768: a
// 16-bit length), rxBatch how many datagrams one call receives at most.
const (
	maxDatagram = 65535
	rxBatch     = 64
	// groBatch is rxBatch where the kernel joins datagrams, each of which then
	// needs a buffer of maxDatagram.
	groBatch = 32
)

// A socket that has failed maxSocketErrors times in a row is from then on
// called no more often than every socketErrorPause, so that it costs no
// processor. Ordinary errors come one at a time.
const (
	maxSocketErrors  = 16
	socketErrorPause = 10 * time.Millisecond
)

// rxLoop carries packets from one socket to the device.
type rxLoop struct {
	out   *output
	e     *Engine
	conn  batchConn
	local netip.AddrPort
	ms    []datagram
	size  int               // of the longest datagram that is expected
	join  *tunnel.Coalescer // of what was accepted from one batch
	peers []*Peer           // from whom join's packets are
	cache acceptCache
}

func newRxLoop(e *Engine, c sock, q *queue) *rxLoop {
	n := rxBatch
	if c.off.gro {
		n = groBatch
	}
	l := &rxLoop{
		out:   q.out,
		e:     e,
		conn:  c.conn,
		local: c.local,
		ms:    make([]datagram, n),
		size:  min(e.codec.HeaderLen()+max(e.mtu, minRxPacket)+rxSlack, maxDatagram),
		join:  tunnel.NewCoalescer(q.dev.Features()),
		peers: make([]*Peer, 0, n),
	}
	size := l.size
	if c.off.gro {
		size = maxDatagram
	}
	for i := range l.ms {
		l.ms[i].bufs = [][]byte{make([]byte, size)}
	}
	return l
}

// run receives batches until the socket or the device is closed. The error is
// that, or the end of ctx; it is never nil.
func (l *rxLoop) run(ctx context.Context) error {
	failed := 0
	for {
		n, err := l.conn.readBatch(l.ms)
		if n <= 0 {
			if errors.Is(err, net.ErrClosed) {
				return fmt.Errorf("%w: receive: %w", ErrSocket, err)
			}
			l.e.drops.Add(RxSocketError, 1)
			if failed++; failed >= maxSocketErrors {
				if err := pause(ctx, socketErrorPause); err != nil {
					return err
				}
			}
			continue
		}
		failed = 0
		t := l.e.table.Load()
		for i := range l.ms[:n] {
			l.take(t, &l.ms[i])
		}
		if err := l.deliver(); err != nil {
			return err
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// take works off the datagrams in m: it keeps their packets for deliver, gives
// control frames away, and drops and counts the rest.
func (l *rxLoop) take(t *Table, m *datagram) {
	b := m.bufs[0][:m.n]
	if m.segment > 0 && len(l.cache.senders(t, m.addr.Addr())) == 0 {
		// A stranger's whole train, for one lookup.
		l.e.drops.Add(RxUnknownSource, uint64((len(b)+m.segment-1)/m.segment))
		if tap := l.e.tap.Load(); tap != nil {
			l.showOuter(*tap, m, b, nil, RxUnknownSource)
		}
		return
	}
	for first := true; first || len(b) > 0; first = false {
		one := b
		if m.segment > 0 {
			one = b[:min(m.segment, len(b)):min(m.segment, len(b))]
		}
		b = b[len(one):]
		kind, payload, p, reason := l.decide(t, m.addr.Addr(), one, m.truncated && len(b) == 0)
		if p != nil && congestionDrops(payload, m.class) {
			reason = RxECN
		}
		tap := l.e.tap.Load()
		if tap != nil {
			l.showOuter(*tap, m, one, p, reason)
		}
		if p != nil {
			markInner(payload, m.class)
			if tap != nil {
				l.e.showInner(*tap, false, p, payload, reason)
			}
		}
		switch {
		case reason != None:
			l.e.drops.Add(reason, 1)
		case kind == encap.Control:
			l.e.control(payload, m.addr)
		case kind == encap.ARP, kind == encap.ND:
			l.e.neighbor(kind, payload, m.addr)
		case l.join.Add(payload) == len(l.peers): // a new one of join's packets
			l.peers = append(l.peers, p)
		}
	}
}

// decide takes a datagram apart and says whether it may pass. With None the
// payload is an inner packet from peer p, or, without a p, a control frame or a
// message of ARP or neighbour discovery from a known address. The stranger is asked about first: what he sends costs one
// lookup, and counts as his.
func (l *rxLoop) decide(t *Table, outer netip.Addr, b []byte, truncated bool) (kind encap.Kind, payload []byte, p *Peer, r Reason) {
	if len(l.cache.senders(t, outer)) == 0 {
		return encap.Invalid, nil, nil, RxUnknownSource
	}
	if truncated || len(b) > l.size {
		return encap.Invalid, nil, nil, RxOversized
	}
	kind, payload, err := l.e.codec.Decode(b)
	if err != nil {
		return encap.Invalid, nil, nil, frameReason(err)
	}
	if kind != encap.IPv4 && kind != encap.IPv6 {
		return kind, payload, nil, None
	}
	src, dst, v := parseInner(payload)
	switch v {
	case headerMalformed:
		return encap.Invalid, nil, nil, RxMalformed
	case headerMulticast:
		return encap.Invalid, nil, nil, RxMulticast
	case headerMartian:
		return encap.Invalid, nil, nil, RxMartian
	}
	if src.Is4() != (kind == encap.IPv4) {
		return encap.Invalid, nil, nil, RxMalformed // the encap says one version, the packet another
	}
	if p, r = l.cache.accept(t, outer, src, dst); r != None {
		return encap.Invalid, nil, nil, r
	}
	return kind, payload, p, None
}

// frameReason says under which reason a frame is counted that the encap refuses.
func frameReason(err error) Reason {
	switch err {
	case encap.ErrVXLANFlags:
		return RxVXLANReserved
	case encap.ErrVNI:
		return RxUnknownVNI
	case encap.ErrGroup:
		return RxMulticast
	case encap.ErrMAC:
		return RxUnknownMAC
	case encap.ErrEtherType:
		return RxUnknownEtherType
	}
	return RxMalformedFrame
}

// deliver writes what take has kept, in one call unless the device refuses a
// packet, and forgets it. The only error is that of a closed device.
func (l *rxLoop) deliver() error {
	if len(l.peers) == 0 {
		return nil
	}
	err := l.out.write(l.join, l.peers)
	clear(l.peers)
	l.peers = l.peers[:0]
	l.join.Reset()
	return err
}
