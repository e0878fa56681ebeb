package forward

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"

	"github.com/overlayd/overlayd/encap"
	"github.com/overlayd/overlayd/tunnel"
)

// maxDeviceErrors is after how many failed Reads in a row a device is given
// up. A single error is of that call only; a deleted interface fails for ever.
const maxDeviceErrors = 16

// The sockets are kept by address family.
const (
	sock4 = iota
	sock6
	sockCount
)

func sockFor(a netip.Addr) int {
	if a.Is4() {
		return sock4
	}
	return sock6
}

// txLoop carries packets from the device to the sockets.
type txLoop struct {
	dev     tunnel.Device
	e       *Engine
	pkts    []tunnel.Packet
	bufs    [][]byte
	headers []byte // of the encap, for each datagram of a batch
	cut     tunnel.Segmenter
	// queues are by address family, several for many outer source ports.
	queues [sockCount][]*sendQueue
	cache  routeCache
}

func newTxLoop(e *Engine, q *queue) *txLoop {
	f := q.dev.Features()
	n := batchLen(f.ReadBatch)
	l := &txLoop{
		dev:     q.dev,
		e:       e,
		pkts:    make([]tunnel.Packet, n),
		bufs:    make([][]byte, n),
		headers: make([]byte, 0, n*firstHeaders),
	}
	for i := range l.bufs {
		l.bufs[i] = make([]byte, f.MaxPacket)
	}
	for i, list := range q.tx {
		for _, s := range list {
			l.queues[i] = append(l.queues[i], newSendQueue(e, s, n))
		}
	}
	return l
}

// run reads batches until the device or a socket is closed or the device
// fails. The error is never nil.
func (l *txLoop) run() error {
	failed := 0
	for {
		for i := range l.pkts {
			l.pkts[i] = tunnel.Packet{Data: l.bufs[i]}
		}
		n, err := l.dev.Read(l.pkts)
		if n <= 0 {
			if err == nil {
				err = io.ErrNoProgress
			}
			if failed++; errors.Is(err, os.ErrClosed) || failed == maxDeviceErrors {
				return fmt.Errorf("%w: read %s: %w", ErrDevice, l.dev.Name(), err)
			}
			l.e.drops.Add(TxDeviceError, 1)
			continue
		}
		failed = 0
		t := l.e.table.Load()
		l.begin()
		for i := range l.pkts[:n] {
			l.take(t, i)
		}
		if err := l.flush(); err != nil {
			return err
		}
	}
}

// flush sends what the batch has queued.
func (l *txLoop) flush() error {
	for _, list := range l.queues {
		for _, q := range list {
			if err := q.flush(); err != nil {
				return fmt.Errorf("%w: send: %w", ErrSocket, err)
			}
		}
	}
	return nil
}

// begin forgets the batch before.
func (l *txLoop) begin() {
	l.headers = l.headers[:0]
	l.cut.Reset()
}

// take queues packet i of the batch for its peer, or drops and counts it and
// has it answered.
func (l *txLoop) take(t *Table, i int) {
	pkt := &l.pkts[i]
	p, src, reason := l.decide(t, pkt)
	if tap := l.e.tap.Load(); tap != nil {
		l.e.showInner(*tap, true, p, pkt.Data, reason)
	}
	if reason != None { // counted first: whoever is answered may look
		l.e.drops.Add(reason, 1)
	}
	switch reason {
	case None:
	case TxNoOwner, TxPeerDown, TxNoSocket:
		l.e.icmp.offer(t, reason, pkt.Data, src, 0)
	case TxTooBig:
		l.e.icmp.offer(t, reason, pkt.Data, src, l.e.mtuTo(p, src.Is6()))
	}
	if reason != None {
		return
	}
	kind := encap.IPv4
	if src.Is6() {
		kind = encap.IPv6
	}
	q := l.queueFor(p, pkt.Data)
	if pkt.Offload.GSO == tunnel.GSONone {
		q.add(p, l.header(kind, p), pkt.Data, nil)
		return
	}
	segs, err := l.cut.Cut(pkt)
	if err != nil {
		l.e.drops.Add(TxMalformed, 1)
		if tap := l.e.tap.Load(); tap != nil { // once more, since it was shown as good
			l.e.showInner(*tap, true, p, pkt.Data, TxMalformed)
		}
		return
	}
	for i := range segs {
		q.add(p, l.header(kind, p), segs[i].Header, segs[i].Payload)
	}
}

// queueFor chooses by which socket a packet goes: all of a flow by one, so that they
// stay in order.
func (l *txLoop) queueFor(p *Peer, pkt []byte) *sendQueue {
	list := l.queues[sockFor(p.Endpoint.Addr())]
	if len(list) == 1 {
		return list[0]
	}
	return list[flowHash(l.e.seed, pkt)%uint64(len(list))]
}

// firstHeaders is how many bytes of encap headers per packet there is room for at
// first.
const firstHeaders = 32

// header makes the encap's header for one datagram to p, in memory of the batch.
func (l *txLoop) header(kind encap.Kind, p *Peer) []byte {
	codec := l.e.codecFor(p)
	n, hl := len(l.headers), codec.HeaderLen()
	if hl == 0 {
		return nil
	}
	if cap(l.headers) < n+hl { // those made before keep the old memory alive
		l.headers = make([]byte, 0, 2*cap(l.headers)+64*hl)
		n = 0
	}
	l.headers = l.headers[:n+hl]
	h := l.headers[n : n+hl : n+hl]
	codec.PutHeader(h, kind, p.Dest)
	return h
}

// decide says to whom a packet from the device goes, or why it does not. The
// peer is set where there is one, src whenever the header is sound.
func (l *txLoop) decide(t *Table, pkt *tunnel.Packet) (p *Peer, src netip.Addr, r Reason) {
	src, dst, v := parseInner(pkt.Data)
	switch v {
	case headerMalformed:
		return nil, src, TxMalformed
	case headerMulticast:
		return nil, src, TxMulticast
	case headerMartian:
		return nil, src, TxMartian
	}
	p, verdict := l.cache.route(t, dst)
	switch verdict {
	case Outside:
		return nil, src, TxOutsideNetwork
	case Own:
		return nil, src, TxOwnDestination
	case Unassigned:
		return nil, src, TxNoOwner
	}
	if !p.Usable || !p.Endpoint.IsValid() {
		return p, src, TxPeerDown
	}
	if len(l.queues[sockFor(p.Endpoint.Addr())]) == 0 {
		return p, src, TxNoSocket
	}
	longest := tunnel.Longest(pkt)
	if longest > l.e.mtuTo(p, src.Is6()) {
		return p, src, TxTooBig
	}
	if longest == 0 || pkt.Offload.GSO == tunnel.GSONone && pkt.Offload.NeedsChecksum && !tunnel.FinishChecksum(pkt) {
		return p, src, TxMalformed
	}
	return p, src, None
}
