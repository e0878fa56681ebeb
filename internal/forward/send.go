package forward

import (
	"errors"
	"io"
	"net"
	"syscall"
)

// sendQueue collects the datagrams of one device batch for one socket, in
// order, and sends them with as few calls as possible. Its buffers belong to
// the batch: they are valid until flush returns.
type sendQueue struct {
	conn  batchConn
	drops *Drops
	ms    []datagram
	peers []*Peer // to whom ms[i] goes
	sizes []int   // inner bytes of ms[i]
	iov   [][]byte
}

// maxPieces is the most pieces that one datagram has: header and packet.
const maxPieces = 2

func newSendQueue(c batchConn, d *Drops, n int) *sendQueue {
	return &sendQueue{
		conn:  c,
		drops: d,
		ms:    make([]datagram, 0, n),
		peers: make([]*Peer, 0, n),
		sizes: make([]int, 0, n),
		iov:   make([][]byte, 0, n*maxPieces),
	}
}

// add appends a datagram for p. An empty header is left out.
func (q *sendQueue) add(p *Peer, header, packet []byte) {
	start := len(q.iov)
	if len(header) > 0 {
		q.iov = append(q.iov, header)
	}
	q.iov = append(q.iov, packet)
	q.ms = append(q.ms, datagram{bufs: q.iov[start:len(q.iov):len(q.iov)], addr: p.Endpoint})
	q.peers = append(q.peers, p)
	q.sizes = append(q.sizes, len(packet))
}

// flush sends what was added and empties the queue. A datagram that the kernel
// refuses is dropped and counted, the others still go out. The only error is
// that of a closed socket.
func (q *sendQueue) flush() error {
	defer q.reset()
	retried := -1
	for i := 0; i < len(q.ms); {
		n, err := q.conn.writeBatch(q.ms[i:])
		if n == 0 && err == nil {
			err = io.ErrShortWrite // or we would try for ever
		}
		for ; n > 0 && i < len(q.ms); n, i = n-1, i+1 {
			c := q.peers[i].Counters
			c.TxPackets.Add(1)
			c.TxBytes.Add(uint64(q.sizes[i]))
		}
		if err == nil || i == len(q.ms) {
			continue
		}
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		reason, again := classifySend(err)
		if again && retried != i {
			// What the kernel reported was the fate of an earlier datagram;
			// this one was not even tried.
			retried = i
			if reason != None {
				q.drops.Add(reason, 1)
			}
			continue
		}
		if reason == None {
			reason = TxSocketError
		}
		q.drops.Add(reason, 1)
		i++
	}
	return nil
}

func (q *sendQueue) reset() {
	clear(q.ms) // let go of buffers and peers
	clear(q.peers)
	clear(q.iov)
	q.ms, q.peers, q.sizes, q.iov = q.ms[:0], q.peers[:0], q.sizes[:0], q.iov[:0]
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
