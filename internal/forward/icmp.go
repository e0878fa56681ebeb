package forward

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"net/netip"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"github.com/overlayd/overlayd/tunnel"
)

// How much of a packet an ICMP error quotes: what fits, with both headers,
// into 576 bytes (RFC 1812 section 4.3.2.3) or the minimum IPv6 MTU of 1280
// (RFC 4443 section 2.4(c)).
const (
	icmpHeaderLen = 8
	maxQuote4     = 576 - ipv4HeaderLen - icmpHeaderLen
	maxQuote6     = 1280 - ipv6HeaderLen - icmpHeaderLen
)

// icmpQueueLen is how many ICMP errors may wait to be written.
const icmpQueueLen = 32

// icmpJob is one ICMP error that is to be made.
type icmpJob struct {
	tooBig   bool // fragmentation needed or packet too big; else unreachable
	mtu      int  // with tooBig
	src, dst netip.Addr
	n        int // length of the quote
	// body is the second word of an ICMPv6 error, followed by the quote.
	body [4 + maxQuote6]byte
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
	own, quote := t.own4, maxQuote4
	if src.Is6() {
		own, quote = t.own6, maxQuote6
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
		j.n = copy(j.body[4:], pkt[:min(len(pkt), quote)])
		q.ready <- j // has room for every job there is
	default:
		q.drops.Add(TxICMPNotSent, 1)
	}
}

// answerable reports whether an ICMP error may be sent about a packet whose
// addresses are fit for one: not about another ICMP error, nor about a
// fragment that is not the first (RFC 1122 section 3.2.2, RFC 4443 section
// 2.4(e)). What cannot be told counts as an error.
func answerable(p []byte) bool {
	if p[0]>>4 == 4 {
		if binary.BigEndian.Uint16(p[6:8])&0x1fff != 0 {
			return false
		}
		ihl := int(p[0]&0x0f) * 4
		return layers.IPProtocol(p[9]) != layers.IPProtocolICMPv4 || (len(p) > ihl && isICMPv4Query(p[ihl]))
	}
	return answerable6(p)
}

// isICMPv4Query reports whether an ICMPv4 type asks or answers. Destination
// unreachable, source quench, redirect, time exceeded and parameter problem
// are errors; types above 18 are unknown to RFC 1122 and treated as if they
// were, except for the extended echo of RFC 8335.
func isICMPv4Query(typ byte) bool {
	switch typ {
	case 3, 4, 5, 11, 12:
		return false
	case 42, 43:
		return true
	}
	return typ <= 18
}

// maxExtensionHeaders bounds the walk over the extension headers of a packet.
// RFC 8200 section 4.1 knows seven.
const maxExtensionHeaders = 8

func answerable6(p []byte) bool {
	next, rest := layers.IPProtocol(p[6]), p[ipv6HeaderLen:]
	for range maxExtensionHeaders {
		var n int
		switch next {
		case layers.IPProtocolICMPv6:
			// Types below 128 are errors (RFC 4443 section 2.1); about a
			// redirect none is sent either.
			return len(rest) > 0 && rest[0] >= 128 && rest[0] != layers.ICMPv6TypeRedirect
		case layers.IPProtocolIPv6HopByHop, layers.IPProtocolIPv6Routing, layers.IPProtocolIPv6Destination:
			if len(rest) < 8 {
				return false
			}
			n = (int(rest[1]) + 1) * 8
		case layers.IPProtocolAH: // RFC 4302 section 2.2: in 4 byte units, minus 2
			if len(rest) < 8 {
				return false
			}
			n = (int(rest[1]) + 2) * 4
		case layers.IPProtocolIPv6Fragment:
			if len(rest) < 8 || binary.BigEndian.Uint16(rest[2:4])&^7 != 0 {
				return false
			}
			n = 8
		default:
			return true
		}
		if n > len(rest) {
			return false
		}
		next, rest = layers.IPProtocol(rest[0]), rest[n:]
	}
	return false
}

// hopLimit of our own packets: the default of RFC 1700.
const hopLimit = 64

// answer writes the ICMP errors that the transmit loop has asked for.
func (e *Engine) answer(ctx context.Context) {
	buf := gopacket.NewSerializeBuffer()
	pkts := make([]tunnel.Packet, 1)
	for {
		select {
		case <-ctx.Done():
			return
		case j := <-e.icmp.ready:
			b, err := j.build(buf)
			if err == nil {
				pkts[0] = tunnel.Packet{Data: b}
				err = e.out.writeOwn(pkts)
				if tap := e.tap.Load(); tap != nil && err == nil {
					e.showInner(*tap, false, nil, b, None)
				}
			}
			if err != nil {
				e.drops.Add(TxICMPNotSent, 1)
			}
			e.icmp.free <- j // has room for every job there is
		}
	}
}

// build serializes the packet of a job. The result is valid until buf is used
// again.
func (j *icmpJob) build(buf gopacket.SerializeBuffer) ([]byte, error) {
	opts := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	ls := j.layers4
	if j.dst.Is6() {
		ls = j.layers6
	}
	if err := gopacket.SerializeLayers(buf, opts, ls()...); err != nil {
		return nil, fmt.Errorf("build icmp error: %w", err)
	}
	return buf.Bytes(), nil
}

func (j *icmpJob) layers4() []gopacket.SerializableLayer {
	ip := &layers.IPv4{
		Version:  4,
		TOS:      0xc0, // internetwork control, RFC 1812 section 4.3.2.5
		Flags:    layers.IPv4DontFragment,
		TTL:      hopLimit,
		Protocol: layers.IPProtocolICMPv4,
		SrcIP:    j.src.AsSlice(),
		DstIP:    j.dst.AsSlice(),
	}
	icmp := &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(
		layers.ICMPv4TypeDestinationUnreachable, layers.ICMPv4CodeHost)}
	if j.tooBig {
		icmp.TypeCode = layers.CreateICMPv4TypeCode(
			layers.ICMPv4TypeDestinationUnreachable, layers.ICMPv4CodeFragmentationNeeded)
		icmp.Seq = uint16(j.mtu) // where RFC 1191 section 4 puts the next hop's MTU
	}
	return []gopacket.SerializableLayer{ip, icmp, gopacket.Payload(j.body[4 : 4+j.n])}
}

func (j *icmpJob) layers6() []gopacket.SerializableLayer {
	ip := &layers.IPv6{
		Version:    6,
		HopLimit:   hopLimit,
		NextHeader: layers.IPProtocolICMPv6,
		SrcIP:      j.src.AsSlice(),
		DstIP:      j.dst.AsSlice(),
	}
	icmp := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(
		layers.ICMPv6TypeDestinationUnreachable, layers.ICMPv6CodeAddressUnreachable)}
	word := uint32(0)
	if j.tooBig {
		icmp.TypeCode = layers.CreateICMPv6TypeCode(layers.ICMPv6TypePacketTooBig, 0)
		word = uint32(j.mtu)
	}
	binary.BigEndian.PutUint32(j.body[:4], word)
	// Fails for layers other than IP, and without it serializing fails.
	_ = icmp.SetNetworkLayerForChecksum(ip)
	return []gopacket.SerializableLayer{ip, icmp, gopacket.Payload(j.body[:4+j.n])}
}
