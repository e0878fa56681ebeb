package overlayd

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"go.uber.org/goleak"
)

func TestEventsInOrder(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	var h eventHub
	a, b := h.subscribe(t.Context()), h.subscribe(t.Context())
	for i := range eventQueue {
		h.publish(Event{Reason: fmt.Sprint(i)})
	}
	h.close()
	for _, ch := range []<-chan Event{a, b} {
		i := 0
		for e := range ch {
			if e.Reason != fmt.Sprint(i) || e.Missed != 0 || e.Time.IsZero() {
				t.Errorf("event %d is %+v", i, e)
			}
			i++
		}
		if i != eventQueue {
			t.Errorf("%d events, want %d", i, eventQueue)
		}
	}
	// Afterwards there is nothing to hear, and publishing is harmless.
	h.publish(Event{})
	h.close()
	if _, open := <-h.subscribe(t.Context()); open {
		t.Error("an event after the end")
	}
}

// TestSlowSubscriber: the newest events are kept, and what the events tell adds
// up, however many came.
func TestSlowSubscriber(t *testing.T) {
	for _, total := range []int{eventQueue + 1, 2 * eventQueue, 2*eventQueue + 1, 10*eventQueue + 7} {
		var h eventHub
		slow, idle := h.subscribe(t.Context()), h.subscribe(t.Context())
		for i := range total {
			h.publish(Event{Reason: fmt.Sprint(i)})
		}
		var got []Event
		missed := 0
		for len(slow) > 0 {
			e := <-slow
			got = append(got, e)
			missed += e.Missed
		}
		if len(got) != eventQueue || got[len(got)-1].Reason != fmt.Sprint(total-1) || got[0].Reason != fmt.Sprint(total-eventQueue) {
			t.Fatalf("of %d events: %d, from %q to %q", total, len(got), got[0].Reason, got[len(got)-1].Reason)
		}
		if missed != total-eventQueue {
			t.Errorf("of %d events, %d were missed, and %d were told", total, total-eventQueue, missed)
		}
		// Who has caught up hears of no missed ones any more.
		h.publish(Event{Reason: "last"})
		if e := <-slow; e.Reason != "last" || e.Missed != 0 {
			t.Errorf("after catching up: %+v", e)
		}
		if len(idle) != eventQueue {
			t.Errorf("another subscriber's queue has %d", len(idle))
		}
		h.close()
	}
}

// TestSubscriberGone: nothing is kept for one whose context has ended.
func TestSubscriberGone(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	var h eventHub
	ctx, cancel := context.WithCancel(t.Context())
	var chans []<-chan Event
	for range 100 {
		chans = append(chans, h.subscribe(ctx))
	}
	stays := h.subscribe(t.Context())
	h.publish(Event{Reason: "before"})
	cancel()
	for _, ch := range chans {
		n := 0
		for range ch { // ends: the channel is closed
			n++
		}
		if n != 1 {
			t.Fatalf("%d events, want that of before", n)
		}
	}
	h.mu.Lock()
	if len(h.subs) != 1 {
		t.Errorf("%d subscribers are kept", len(h.subs))
	}
	h.mu.Unlock()
	if _, open := <-h.subscribe(ctx); open {
		t.Error("a subscription with an ended context gets events")
	}
	if allocs := testing.AllocsPerRun(100, func() { h.publish(Event{Reason: "after"}); <-stays }); allocs > 0 {
		t.Errorf("%v allocations for an event", allocs)
	}
	h.close()
}

// TestEventRaces has everything happen at once.
func TestEventRaces(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	var h eventHub
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 500 {
				h.publish(Event{Kind: EventWarning})
			}
		})
		wg.Go(func() {
			for range 100 {
				ctx, cancel := context.WithCancel(t.Context())
				ch := h.subscribe(ctx)
				wg.Go(cancel)
				for range ch { // until cancelled or closed
				}
			}
		})
	}
	wg.Go(func() {
		for range h.subscribe(t.Context()) {
		}
	})
	for range 200 {
		h.publish(Event{Kind: EventWarning})
	}
	h.close()
	wg.Wait()
}
