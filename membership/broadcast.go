package membership

import (
	"cmp"
	"math"
	"slices"
)

// broadcastQueue spreads records by gossip: each queued record goes out in a
// number of messages that grows with the logarithm of the cluster's size. It
// holds keys, not bytes: what goes out is the record as it stands when it is
// sent, so that an old version never displaces a newer one. It is not safe for
// concurrent use.
type broadcastQueue struct {
	items map[broadcastKey]queued
	mult  int    // memberlist's RetransmitMult
	added uint64 // how many were ever queued
}

// queued is the state of a record in the queue.
type queued struct {
	sent  int    // how often it was sent
	since uint64 // the value of added when it was queued last
}

// broadcastKey is a claim's key, the settings or a farewell.
type broadcastKey struct {
	kind     byte
	claim    Key
	farewell farewell
}

func newBroadcastQueue(mult int) *broadcastQueue {
	return &broadcastQueue{items: make(map[broadcastKey]queued), mult: mult}
}

// add queues a record, anew if it is queued already.
func (q *broadcastQueue) add(k broadcastKey) {
	q.added++
	q.items[k] = queued{since: q.added}
}

// fresh reports whether a queued record has not been sent often enough that most
// nodes of any cluster may have it, at second hand.
func (q *broadcastQueue) fresh(k broadcastKey) bool {
	it, ok := q.items[k]
	return ok && it.sent < q.mult
}

// take returns messages for one packet: the least sent first, the oldest first
// among those, as many as fit limit when each costs overhead more than its
// length. encode returns nil for a record that is gone.
func (q *broadcastQueue) take(nodes, overhead, limit int, encode func(broadcastKey) []byte) [][]byte {
	if len(q.items) == 0 {
		return nil
	}
	// The formula is memberlist's retransmitLimit (util.go).
	times := q.mult * int(math.Ceil(math.Log10(float64(nodes+1))))
	type item struct {
		key broadcastKey
		queued
	}
	order := make([]item, 0, len(q.items))
	for k, n := range q.items {
		order = append(order, item{k, n})
	}
	slices.SortFunc(order, func(a, b item) int {
		return cmp.Or(cmp.Compare(a.sent, b.sent), cmp.Compare(a.since, b.since))
	})
	var out [][]byte
	for _, it := range order {
		if limit < overhead+farewellLen { // not even the shortest fits
			break
		}
		b := encode(it.key)
		if b == nil {
			delete(q.items, it.key)
			continue
		}
		if len(b)+overhead > limit {
			continue
		}
		out = append(out, b)
		limit -= len(b) + overhead
		if it.sent+1 >= times {
			delete(q.items, it.key)
		} else {
			it.sent++
			q.items[it.key] = it.queued
		}
	}
	return out
}
