package forward

import (
	"context"
	"encoding/binary"
	"hash/maphash"
	"net/netip"
	"time"

	"github.com/overlayd/overlayd/internal/header"
	"github.com/overlayd/overlayd/tunnel"
)

// How long an ICMP error is at most. It quotes as much of a packet as fits, with both
// headers, into 576 bytes (RFC 1812 section 4.3.2.3) or the minimum IPv6 MTU of 1280
// (RFC 4443 section 2.4(c)).
const (
	icmpHeaderLen = 8 // RFC 792, RFC 4443 section 3
	maxError4     = 576
	maxError6     = 1280
)

// Types of ICMP errors and their codes: RFC 792, "Destination Unreachable Message"; RFC
// 4443 sections 3.1, 3.2.
const (
	icmpv4Unreachable      = 3
	icmpv4HostUnreachable  = 1
	icmpv4FragmentNeeded   = 4
	icmpv6Unreachable      = 1
	icmpv6AddrUnreachable  = 3
	icmpv6PacketTooBig     = 2
	icmpv6PacketTooBigCode = 0
)

// internetControl is the TOS of an ICMPv4 error: precedence 6, RFC 1812 section
// 4.3.2.5.
const internetControl = 0xc0

// icmpQueueLen is how many ICMP errors may wait to be written.
const icmpQueueLen = 32

// icmpJob is one ICMP error that is to be made.
type icmpJob struct {
	tooBig   bool // fragmentation needed or packet too big; else unreachable
	mtu      int  // with tooBig
	src, dst netip.Addr
	// pkt is the error, n its length. All of it but the quote is written by build.
	pkt [maxError6]byte
	n   int
}

// icmpQueue takes ICMP errors out of the transmit loop: offer judges, copies
// the quote into a free slot and returns; run builds and writes. Neither waits
// for the other.
type icmpQueue struct {
	drops   *Drops
	limiter icmpLimiter
	start   time.Time
	free    chan *icmpJob
	ready   chan *icmpJob
}

func newICMPQueue(d *Drops) *icmpQueue {
	q := &icmpQueue{
		drops:   d,
		limiter: icmpLimiter{seed: maphash.MakeSeed()},
		start:   time.Now(),
		free:    make(chan *icmpJob, icmpQueueLen),
		ready:   make(chan *icmpJob, icmpQueueLen),
	}
	for range icmpQueueLen {
		q.free <- new(icmpJob)
	}
	return q
}

// offer asks for an ICMP error about pkt, a packet that parseInner let pass
// and whose source is src. mtu counts if reason is TxTooBig. It never blocks.
func (q *icmpQueue) offer(t *Table, reason Reason, pkt []byte, src netip.Addr, mtu int) {
	own, most, at := t.own4, maxError4, ipv4HeaderLen+icmpHeaderLen
	if src.Is6() {
		own, most, at = t.own6, maxError6, ipv6HeaderLen+icmpHeaderLen
	}
	if !own.IsValid() || !answerable(pkt) {
		return
	}
	if !q.limiter.allow(int64(time.Since(q.start)), src) {
		q.drops.Add(TxICMPNotSent, 1)
		return
	}
	select {
	case j := <-q.free:
		j.tooBig, j.mtu, j.src, j.dst = reason == TxTooBig, mtu, own, src
		j.n = at + copy(j.pkt[at:most], pkt)
		q.ready <- j // has room for every job there is
	default:
		q.drops.Add(TxICMPNotSent, 1)
	}
}

// hopLimit of our own packets: the default of RFC 1700.
const hopLimit = 64

// answer writes the ICMP errors that the transmit loop has asked for.
func (e *Engine) answer(ctx context.Context) {
	pkts := make([]tunnel.Packet, 1)
	for {
		select {
		case <-ctx.Done():
			return
		case j := <-e.icmp.ready:
			b := j.build()
			pkts[0] = tunnel.Packet{Data: b}
			if err := e.out.writeOwn(pkts); err != nil {
				e.drops.Add(TxICMPNotSent, 1)
			} else if tap := e.tap.Load(); tap != nil {
				e.showInner(*tap, false, nil, b, None)
			}
			e.icmp.free <- j // has room for every job there is
		}
	}
}

// build makes the packet of a job, around the quote. It belongs to the job.
func (j *icmpJob) build() []byte {
	h := header.IP{Src: j.src, Dst: j.dst, Protocol: header.ICMPv6, HopLimit: hopLimit}
	typ, code, word := byte(icmpv6Unreachable), byte(icmpv6AddrUnreachable), uint32(0)
	switch is4 := j.dst.Is4(); {
	case is4 && j.tooBig:
		typ, code = icmpv4Unreachable, icmpv4FragmentNeeded
		word = uint32(uint16(j.mtu)) // the next hop's MTU is its lower half: RFC 1191 section 4
	case is4:
		typ, code = icmpv4Unreachable, icmpv4HostUnreachable
	case j.tooBig:
		typ, code, word = icmpv6PacketTooBig, icmpv6PacketTooBigCode, uint32(j.mtu)
	}
	if j.dst.Is4() {
		h.Protocol, h.Class = header.ICMP, internetControl
	}
	b := j.pkt[:j.n]
	m := b[h.Len():]
	m[0], m[1] = typ, code
	binary.BigEndian.PutUint32(m[4:], word)
	h.Put(b)
	return b
}
