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
	items map[broadcastKey]int // -> how often it was sent
	mult  int                  // memberlist's RetransmitMult
}

// broadcastKey is a claim's key, the settings or a farewell.
type broadcastKey struct {
	kind     byte
	claim    Key
	farewell farewell
}

func newBroadcastQueue(mult int) *broadcastQueue {
	return &broadcastQueue{items: make(map[broadcastKey]int), mult: mult}
}

// add queues a record, anew if it is queued already.
func (q *broadcastQueue) add(k broadcastKey) { q.items[k] = 0 }

// take returns messages for one packet: the least sent first, as many as fit
// limit when each costs overhead more than its length. encode returns nil for
// a record that is gone.
func (q *broadcastQueue) take(nodes, overhead, limit int, encode func(broadcastKey) []byte) [][]byte {
	if len(q.items) == 0 {
		return nil
	}
	// The formula is memberlist's retransmitLimit (util.go).
	times := q.mult * int(math.Ceil(math.Log10(float64(nodes+1))))
	type item struct {
		key  broadcastKey
		sent int
	}
	order := make([]item, 0, len(q.items))
	for k, n := range q.items {
		order = append(order, item{k, n})
	}
	slices.SortFunc(order, func(a, b item) int { return cmp.Compare(a.sent, b.sent) })
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
			q.items[it.key] = it.sent + 1
		}
	}
	return out
}
