package tunnel

import (
	"sync"
	"sync/atomic"
)

// memoryQueue is a bounded first-in, first-out queue of copied packets.
//
// The channels hold at most one token. Whoever finds the queue in the wrong
// state waits for a token and looks again; whoever leaves something behind for
// the next one puts the token back, so that any number may wait.
type memoryQueue struct {
	filled  chan struct{} // a token: there may be a packet
	emptied chan struct{} // a token: there may be room
	dropped atomic.Uint64 // counted by those who push

	mu    sync.Mutex
	slots []memorySlot // a ring; the buffers stay for the next packet
	head  int          // the oldest packet
	n     int          // packets in the ring
}

type memorySlot struct {
	data    []byte
	offload Offload
}

// What came of a pop.
type popResult int

const (
	poppedNone    popResult = iota // the queue was empty
	popped                         // p was filled
	poppedTooLong                  // a packet did not fit into p and is lost
)

func (q *memoryQueue) init(length int) {
	q.filled = make(chan struct{}, 1)
	q.emptied = make(chan struct{}, 1)
	q.slots = make([]memorySlot, length)
}

// push copies p to the end of the queue; it returns false if that is full.
func (q *memoryQueue) push(p *Packet) bool {
	q.mu.Lock()
	if q.n == len(q.slots) {
		q.mu.Unlock()
		return false
	}
	s := &q.slots[(q.head+q.n)%len(q.slots)]
	s.data = append(s.data[:0], p.Data...)
	for _, f := range p.Frags {
		s.data = append(s.data, f...)
	}
	s.offload = p.Offload
	q.n++
	room := q.n < len(q.slots)
	q.mu.Unlock()
	signal(q.filled)
	if room {
		signal(q.emptied)
	}
	return true
}

// pop moves the oldest packet to p.
func (q *memoryQueue) pop(p *Packet) popResult {
	q.mu.Lock()
	res := q.popLocked(p, len(p.Data))
	q.unlockPopped(res != poppedNone)
	return res
}

// popAll moves the oldest packets to pkts, which get at most room bytes each.
// It returns how many, and how many did not fit and are lost.
func (q *memoryQueue) popAll(pkts []Packet, room int) (n int, tooLong uint64) {
	q.mu.Lock()
loop:
	for n < len(pkts) {
		switch q.popLocked(&pkts[n], min(room, len(pkts[n].Data))) {
		case popped:
			n++
		case poppedTooLong:
			tooLong++
		case poppedNone:
			break loop
		}
	}
	q.unlockPopped(n > 0 || tooLong > 0)
	return n, tooLong
}

// popLocked moves the oldest packet to p if it has at most room bytes. The
// caller holds mu.
func (q *memoryQueue) popLocked(p *Packet, room int) popResult {
	if q.n == 0 {
		return poppedNone
	}
	s := &q.slots[q.head]
	q.head = (q.head + 1) % len(q.slots)
	q.n--
	if len(s.data) > room {
		return poppedTooLong
	}
	p.Data = p.Data[:copy(p.Data, s.data)]
	p.Offload = s.offload
	return popped
}

// unlockPopped releases mu and tells those who wait what there is now.
func (q *memoryQueue) unlockPopped(some bool) {
	left := q.n > 0
	q.mu.Unlock()
	if left {
		signal(q.filled)
	}
	if some {
		signal(q.emptied)
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
