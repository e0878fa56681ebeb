package probe

import (
	"bytes"
	"container/heap"
)

// queue is a heap of peers: first the one that Poll has to look at first, and
// of several the one with the lowest id, so that a Core is deterministic.
type queue []*peer

func (q *queue) push(p *peer) { heap.Push((*byWake)(q), p) }

// fix restores the order after p.wake has changed.
func (q *queue) fix(p *peer) { heap.Fix((*byWake)(q), p.place) }

// byWake implements heap.Interface.
type byWake []*peer

func (q byWake) Len() int { return len(q) }

func (q byWake) Less(i, j int) bool {
	if c := q[i].wake.Compare(q[j].wake); c != 0 {
		return c < 0
	}
	return bytes.Compare(q[i].id[:], q[j].id[:]) < 0
}

func (q byWake) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].place, q[j].place = i, j
}

func (q *byWake) Push(x any) {
	p := x.(*peer)
	p.place = len(*q)
	*q = append(*q, p)
}

func (q *byWake) Pop() any {
	last := len(*q) - 1
	p := (*q)[last]
	*q = (*q)[:last]
	return p
}
