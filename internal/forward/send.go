package forward

import (
	"errors"
	"io"
	"net"
	"syscall"
)

// sendQueue collects the datagrams of one device batch for one socket, in
// order, and sends them with as few calls as possible: with the kernel's
// segmentation, those of one size to one peer that follow each other are one
// message. Its buffers belong to the batch: they are valid until flush returns.
type sendQueue struct {
	conn  batchConn
	drops *Drops
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
}

const (
	// maxMessage is the most bytes of one message that is to be cut: over a veth a
	// longer one is cut in software, and arrives in pieces.
	maxMessage = 64000
	// maxCut bounds its datagrams: UDP_MAX_SEGMENTS of kernels before 6.10
	// (linux/include/linux/udp.h).
	maxCut = 64
)

func newSendQueue(c batchConn, d *Drops, n int, gso bool) *sendQueue {
	return &sendQueue{
		conn:   c,
		drops:  d,
		gso:    gso,
		ms:     make([]queuedDatagram, 0, n),
		iov:    make([][]byte, 0, 3*n),
		groups: make([]datagram, 0, n),
		counts: make([]int, 0, n),
	}
}

// add appends a datagram for p: the encap's header, and the inner packet in two
// pieces. Empty ones are left out.
func (q *sendQueue) add(p *Peer, header, head, rest []byte) {
	d := queuedDatagram{peer: p, inner: len(head) + len(rest)}
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
			if next.peer != ms[0].peer || next.size > ms[0].size || ms[n-1].size < ms[0].size || size+next.size > maxMessage {
				break
			}
			n, pieces, size = n+1, pieces+next.pieces, size+next.size
		}
		d := datagram{bufs: iov[:pieces:pieces], addr: ms[0].peer.Endpoint}
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
	defer q.reset()
	ms, iov := q.ms, q.iov
	q.group(ms, iov)
	groups, counts := q.groups, q.counts
	next := func() { // past the first group
		ms, iov = ms[counts[0]:], iov[len(groups[0].bufs):]
		groups, counts = groups[1:], counts[1:]
	}
	retried := false
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
			retried = false
			next()
		}
		if err == nil || len(groups) == 0 {
			continue
		}
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		if groups[0].segment > 0 && refusesSegments(err) {
			q.gso = false
			q.group(ms, iov)
			groups, counts = q.groups, q.counts
			continue
		}
		reason, again := classifySend(err)
		if again && !retried {
			// What the kernel reported was the fate of an earlier datagram;
			// this one was not even tried.
			retried = true
			if reason != None {
				q.drops.Add(reason, 1)
			}
			continue
		}
		if reason == None {
			reason = TxSocketError
		}
		q.drops.Add(reason, uint64(counts[0]))
		retried = false
		next()
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

// classifySend says under which reason an error of sendmmsg is counted, and
// whether the datagram should be tried once more: a socket reports an ICMP
// port unreachable about an earlier datagram at its next call (udp(7)), and a
// signal may interrupt any call.
func classifySend(err error) (r Reason, again bool) {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return TxSocketError, false
	}
	switch errno {
	case syscall.EINTR:
		return None, true
	case syscall.ECONNREFUSED:
		return TxSocketRefused, true
	case syscall.EPERM, syscall.EACCES:
		return TxSocketRefused, false
	case syscall.EMSGSIZE:
		return TxSocketTooBig, false
	case syscall.ENOBUFS, syscall.ENOMEM:
		return TxSocketNoBuffers, false
	case syscall.ENETUNREACH, syscall.EHOSTUNREACH, syscall.ENETDOWN:
		return TxSocketUnreachable, false
	}
	return TxSocketError, false
}
