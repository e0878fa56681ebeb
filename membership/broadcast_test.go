package membership

import (
	"bytes"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

const (
	testOverhead = 3    // memberlist's compound overhead per message
	testLimit    = 1100 // about what a packet of 1200 leaves
)

func claimKey(i int) broadcastKey {
	return broadcastKey{kind: kindClaim, claim: Key{pfx("100.96.1.0/24"), testID(i)}}
}

// encodeLen makes every record n bytes long, with the owner in front.
func encodeLen(n int) func(broadcastKey) []byte {
	return func(k broadcastKey) []byte {
		b := make([]byte, n)
		copy(b, k.claim.Owner[:])
		return b
	}
}

func TestBroadcastRetransmits(t *testing.T) {
	for _, tc := range []struct{ nodes, mult, want int }{
		{1, 8, 8}, {2, 8, 8}, {9, 8, 8}, {10, 8, 16}, {99, 8, 16}, {100, 8, 24}, {999, 8, 24}, {1000, 8, 32}, {30, 4, 8},
	} {
		q := newBroadcastQueue(tc.mult)
		q.add(claimKey(1))
		got := 0
		for range 1000 {
			got += len(q.take(tc.nodes, testOverhead, testLimit, encodeLen(claimLen)))
		}
		if got != tc.want {
			t.Errorf("%d nodes, multiplier %d: sent %d times, want %d", tc.nodes, tc.mult, got, tc.want)
		}
		if len(q.items) != 0 {
			t.Errorf("%d records stay in the queue", len(q.items))
		}
	}
}

func TestBroadcastSendsTheRecordAsItStands(t *testing.T) {
	q := newBroadcastQueue(2)
	content := []byte("old")
	encode := func(broadcastKey) []byte { return content }
	q.add(claimKey(1))
	if got := q.take(1, 0, 100, encode); len(got) != 1 || string(got[0]) != "old" {
		t.Fatalf("%q", got)
	}
	content = []byte("new")
	if got := q.take(1, 0, 100, encode); len(got) != 1 || string(got[0]) != "new" {
		t.Fatalf("%q", got)
	}
	if got := q.take(1, 0, 100, encode); got != nil {
		t.Fatalf("sent once more: %q", got)
	}
	// Added anew it is sent as often as the first time.
	q.add(claimKey(1))
	q.take(1, 0, 100, encode)
	q.add(claimKey(1))
	sent := 0
	for range 10 {
		sent += len(q.take(1, 0, 100, encode))
	}
	if sent != 2 {
		t.Errorf("sent %d times after it was added anew", sent)
	}
}

func TestBroadcastGoneRecordsLeave(t *testing.T) {
	q := newBroadcastQueue(8)
	for i := range 5 {
		q.add(claimKey(i))
	}
	gone := testID(3)
	encode := func(k broadcastKey) []byte {
		if k.claim.Owner == gone {
			return nil
		}
		return encodeLen(claimLen)(k)
	}
	if got := q.take(3, testOverhead, testLimit, encode); len(got) != 4 {
		t.Errorf("%d messages", len(got))
	}
	if _, ok := q.items[claimKey(3)]; ok || len(q.items) != 4 {
		t.Errorf("%d records in the queue", len(q.items))
	}
}

func TestBroadcastLongRecordDoesNotBlock(t *testing.T) {
	q := newBroadcastQueue(8)
	for i := range 4 {
		q.add(claimKey(i))
	}
	encode := func(k broadcastKey) []byte {
		if k.claim.Owner == testID(0) {
			return make([]byte, 5000)
		}
		return encodeLen(claimLen)(k)
	}
	sent := 0
	for range 100 {
		for _, b := range q.take(3, testOverhead, testLimit, encode) {
			if len(b) > testLimit {
				t.Fatal("a message longer than the limit")
			}
			sent++
		}
	}
	if sent != 3*8 {
		t.Errorf("%d messages of the others, want %d", sent, 3*8)
	}
}

// TestBroadcastFair: with more records than fit one packet, each gets its turn
// before any gets a second one.
func TestBroadcastFair(t *testing.T) {
	q := newBroadcastQueue(8)
	const records = 100
	for i := range records {
		q.add(claimKey(i))
	}
	count := map[string]int{}
	perPacket := testLimit / (claimLen + testOverhead)
	for range records / perPacket {
		for _, b := range q.take(30, testOverhead, testLimit, encodeLen(claimLen)) {
			count[string(b[:16])]++
		}
	}
	for id, n := range count {
		if n > 1 {
			t.Errorf("%x was sent %d times before others", id, n)
		}
	}
	if want := records / perPacket * perPacket; len(count) != want {
		t.Errorf("%d of %d records sent", len(count), want)
	}
}

func TestBroadcastNothingToDo(t *testing.T) {
	q := newBroadcastQueue(8)
	if got := q.take(3, testOverhead, testLimit, encodeLen(claimLen)); got != nil {
		t.Errorf("%q from an empty queue", got)
	}
	q.add(claimKey(1))
	for _, limit := range []int{-5, 0, testOverhead + claimLen - 1} {
		if got := q.take(3, testOverhead, limit, encodeLen(claimLen)); got != nil {
			t.Errorf("limit %d: %d messages", limit, len(got))
		}
	}
	if got := q.take(3, testOverhead, testOverhead+claimLen, encodeLen(claimLen)); len(got) != 1 {
		t.Errorf("what just fits is not sent")
	}
}

// TestBroadcastModel: whatever is queued and asked for, a packet keeps to its
// limit, no record goes out twice in one packet or more often than allowed, and
// in the end the queue is empty. Order of calls decides the outcome.
func TestBroadcastModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes := rapid.IntRange(1, 200).Draw(t, "nodes")
		q, twin := newBroadcastQueue(3), newBroadcastQueue(3)
		lengths := map[NodeID]int{}
		encode := func(k broadcastKey) []byte { return encodeLen(lengths[k.claim.Owner])(k) }
		left := map[NodeID]int{}
		times := 0
		for p := 1; p < nodes+1; p *= 10 {
			times += 3
		}
		take := func(limit int) (sent int) {
			got := q.take(nodes, testOverhead, limit, encode)
			if same := twin.take(nodes, testOverhead, limit, encode); !slices.EqualFunc(got, same, bytes.Equal) {
				t.Fatal("the same calls, other messages")
			}
			total := 0
			seen := map[NodeID]bool{}
			for _, b := range got {
				id := NodeID(b[:16])
				total += len(b) + testOverhead
				if seen[id] || left[id] == 0 {
					t.Fatalf("%v is sent too often", id)
				}
				seen[id] = true
				left[id]--
			}
			if total > max(limit, 0) {
				t.Fatalf("%d bytes for a limit of %d", total, limit)
			}
			return len(got)
		}
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			if rapid.Bool().Draw(t, "add") {
				k := claimKey(rapid.IntRange(0, 9).Draw(t, "record"))
				if _, ok := lengths[k.claim.Owner]; !ok {
					lengths[k.claim.Owner] = rapid.IntRange(farewellLen, 100).Draw(t, "length")
				}
				left[k.claim.Owner] = times
				q.add(k)
				twin.add(k)
			} else {
				take(rapid.IntRange(-10, 400).Draw(t, "limit"))
			}
		}
		for take(1000) > 0 {
		}
		for id, n := range left {
			if n != 0 {
				t.Fatalf("%v was sent %d times too seldom", id, n)
			}
		}
	})
}
