package membership

import (
	"sync"
	"testing"
)

func TestInboxKeepsOrder(t *testing.T) {
	b := newInbox()
	b.put(1)
	b.putMessage(2, 1)
	b.put(3)
	select {
	case <-b.signal:
	default:
		t.Error("no signal")
	}
	got := b.take()
	if len(got) != 3 || got[0] != 1 || got[1] != 2 || got[2] != 3 {
		t.Errorf("%v", got)
	}
	if got := b.take(); len(got) != 0 {
		t.Errorf("taken twice: %v", got)
	}
}

func TestInboxBound(t *testing.T) {
	b := newInbox()
	for i := range 3 * maxInboxMessages {
		b.putMessage(i, 1)
	}
	b.put("a node event") // is never dropped
	got := b.take()
	if len(got) != maxInboxMessages+1 || got[maxInboxMessages] != "a node event" {
		t.Errorf("%d items", len(got))
	}
	if got[maxInboxMessages-1] != maxInboxMessages-1 {
		t.Errorf("the newest messages were kept, not the oldest")
	}
	if b.dropped != 2*maxInboxMessages {
		t.Errorf("%d dropped", b.dropped)
	}
	b.putMessage("room again", 1)
	if got := b.take(); len(got) != 1 || b.dropped != 2*maxInboxMessages {
		t.Errorf("%v, %d dropped", got, b.dropped)
	}
}

// TestInboxBytes: few and large things are bounded, too.
func TestInboxBytes(t *testing.T) {
	b := newInbox()
	for range 100 {
		b.putMessage("m", maxInboxMessageBytes/10)
		b.putState("s", maxInboxStateBytes/10)
	}
	if got := b.take(); len(got) != 20 || b.dropped != 180 {
		t.Errorf("%d kept, %d dropped", len(got), b.dropped)
	}
	for range 2 * maxInboxStates {
		b.putState("s", 1)
	}
	if got := b.take(); len(got) != maxInboxStates {
		t.Errorf("%d states", len(got))
	}
}

func TestInboxFromManyGoroutines(t *testing.T) {
	b := newInbox()
	const writers, each = 8, 500
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				if i%2 == 0 {
					b.put([2]int{w, i})
				} else {
					b.putMessage([2]int{w, i}, 1)
				}
			}
		})
	}
	go func() { wg.Wait(); b.put(nil) }()
	next := [writers]int{}
	for done := false; !done; {
		<-b.signal
		for _, item := range b.take() {
			if item == nil {
				done = true
				continue
			}
			it := item.([2]int)
			if it[1] != next[it[0]] {
				t.Fatalf("writer %d: item %d, want %d", it[0], it[1], next[it[0]])
			}
			next[it[0]]++
		}
	}
	for w, n := range next {
		if n != each {
			t.Errorf("writer %d: %d items", w, n)
		}
	}
}
