package forward

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"syscall"
)

// sendQueue collects the datagrams of one device batch for one socket, in
// order, and sends them with as few calls as possible: with the kernel's
// segmentation, those of one size to one peer that follow each other are one
// message. Its buffers belong to the batch: they are valid until flush returns.
type sendQueue struct {
	e     *Engine
	conn  batchConn
	local netip.AddrPort
	gso   bool // the kernel cuts messages for us
	ms    []queuedDatagram
	iov   [][]byte // the pieces of ms, in order

	// Of flush.
	groups []datagram // messages
	counts []int      // how many of ms each is
}

// queuedDatagram is one datagram. Its pieces are the next ones of iov.
type queuedDatagram struct {
	peer   *Peer
	pieces int
	size   int // of the datagram
	inner  int // bytes of the inner packet
	class  uint8
}

const (
	// maxMessage is the most bytes of one message that is to be cut: over a veth a
	// longer one is cut in software, and arrives in pieces.
	maxMessage = 64000
	// maxCut bounds its datagrams: UDP_MAX_SEGMENTS of kernels before 6.10
	// (linux/include/linux/udp.h).
	maxCut = 64
)

func newSendQueue(e *Engine, s sock, n int) *sendQueue {
	return &sendQueue{
		e:      e,
		conn:   s.conn,
		local:  s.local,
		gso:    s.off.gso,
		ms:     make([]queuedDatagram, 0, n),
		iov:    make([][]byte, 0, 3*n),
		groups: make([]datagram, 0, n),
		counts: make([]int, 0, n),
	}
}

// add appends a datagram for p: the encap's header, and the inner packet in two
// pieces, of which the second may be empty.
func (q *sendQueue) add(p *Peer, header, head, rest []byte) {
	d := queuedDatagram{peer: p, inner: len(head) + len(rest), class: trafficClass(head)}
	d.size = len(header) + d.inner
	for _, b := range [...][]byte{header, head, rest} {
		if len(b) > 0 {
			q.iov = append(q.iov, b)
			d.pieces++
		}
	}
	q.ms = append(q.ms, d)
}

// group makes messages of the datagrams from the first one on, whose pieces begin
// at iov.
func (q *sendQueue) group(ms []queuedDatagram, iov [][]byte) {
	q.groups, q.counts = q.groups[:0], q.counts[:0]
	for len(ms) > 0 {
		n, pieces, size := 1, ms[0].pieces, ms[0].size
		for q.gso && n < len(ms) && n < maxCut {
			next := &ms[n]
			// A shorter one can only be the last.
			if next.peer != ms[0].peer || next.class != ms[0].class || next.size > ms[0].size || ms[n-1].size < ms[0].size || size+next.size > maxMessage {
				break
			}
			n, pieces, size = n+1, pieces+next.pieces, size+next.size
		}
		d := datagram{bufs: iov[:pieces:pieces], addr: ms[0].peer.Endpoint, class: ms[0].class}
		if n > 1 {
			d.segment = ms[0].size
		}
		q.groups, q.counts = append(q.groups, d), append(q.counts, n)
		ms, iov = ms[n:], iov[pieces:]
	}
}

// flush sends what was added and empties the queue. A message that the kernel
// refuses is dropped and counted, the others still go out. The only error is
// that of a closed socket.
func (q *sendQueue) flush() error {
	if len(q.ms) == 0 {
		return nil
	}
	defer q.reset()
	ms, iov := q.ms, q.iov
	q.group(ms, iov)
	groups, counts := q.groups, q.counts
	next := func(r Reason) { // past the first group, which was sent or dropped
		if tap := q.e.tap.Load(); tap != nil {
			q.show(*tap, ms[:counts[0]], iov, r)
		}
		ms, iov = ms[counts[0]:], iov[len(groups[0].bufs):]
		groups, counts = groups[1:], counts[1:]
	}
	tries, cut := 0, false
	for len(groups) > 0 {
		n, err := q.conn.writeBatch(groups)
		if n == 0 && err == nil {
			err = io.ErrShortWrite // or we would try for ever
		}
		for ; n > 0 && len(groups) > 0; n-- {
			c := ms[0].peer.Counters
			c.TxPackets.Add(uint64(counts[0]))
			bytes := 0
			for i := range ms[:counts[0]] {
				bytes += ms[i].inner
			}
			c.TxBytes.Add(uint64(bytes))
			tries = 0
			next(None)
		}
		if err == nil || len(groups) == 0 {
			continue
		}
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		if groups[0].segment > 0 && refusesSegments(err) {
			q.gso, cut = false, true
			q.group(ms, iov)
			groups, counts = q.groups, q.counts
			continue
		}
		reason := classifySend(err)
		if tries < maxEarlier && (reason == None || mayBeEarlier(err)) {
			// What the kernel has reported may be the fate of an earlier datagram, to
			// somebody else, and this one was not even tried.
			tries++
			if errors.Is(err, syscall.ECONNREFUSED) { // it never is this one's
				q.e.drops.Add(reason, 1)
			}
			continue
		}
		if reason == None {
			reason = TxSocketError
		}
		if reason == TxSocketTooBig {
			// Kernels before 6.2 say so of a message that is to be cut by EINVAL: then it
			// was no reason to do without.
			q.gso = q.gso || cut
			q.e.sizeRefused(ms[0].peer)
		}
		q.e.drops.Add(reason, uint64(counts[0]))
		tries = 0
		next(reason)
	}
	return nil
}

func (q *sendQueue) reset() {
	clear(q.ms) // let go of buffers and peers
	clear(q.iov)
	clear(q.groups)
	q.ms, q.iov, q.groups, q.counts = q.ms[:0], q.iov[:0], q.groups[:0], q.counts[:0]
}

// refusesSegments reports whether an error may come from a message's being cut:
// EIO from a device without checksum offload, EINVAL from a socket that cannot
// (udp_send_skb in linux/net/ipv4/udp.c).
func refusesSegments(err error) bool {
	return errors.Is(err, syscall.EIO) || errors.Is(err, syscall.EINVAL)
}

// maxEarlier is how often a datagram is tried again after what may be the errors of
// others, of which each can come in between. Its own comes every time.
const maxEarlier = 8

// mayBeEarlier reports whether an error of a socket may be an ICMP error about a
// datagram that was sent before (icmp_err_convert in linux/net/ipv4/icmp.c,
// icmpv6_err_convert in linux/net/ipv6/icmp.c).
func mayBeEarlier(err error) bool {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return false
	}
	switch errno {
	case syscall.ECONNREFUSED, syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.EHOSTDOWN, syscall.ENONET,
		syscall.EMSGSIZE, syscall.EACCES, syscall.EPROTO, syscall.ENOPROTOOPT, syscall.EOPNOTSUPP:
		return true
	}
	return false
}

// classifySend says under which reason an error of sendmmsg is counted: None for
// one that says nothing.
func classifySend(err error) Reason {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return TxSocketError
	}
	switch errno {
	case syscall.EINTR:
		return None
	case syscall.ECONNREFUSED, syscall.EPERM, syscall.EACCES:
		return TxSocketRefused
	case syscall.EMSGSIZE:
		return TxSocketTooBig
	case syscall.ENOBUFS, syscall.ENOMEM:
		return TxSocketNoBuffers
	case syscall.ENETUNREACH, syscall.EHOSTUNREACH, syscall.ENETDOWN:
		return TxSocketUnreachable
	}
	return TxSocketError
}
