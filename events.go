package overlayd

import (
	"context"
	"sync"
	"time"
)

// eventQueue is how many events a slow subscriber may be behind.
const eventQueue = 64

// eventHub hands events to subscribers. Publishing never blocks. The zero
// value is ready.
type eventHub struct {
	mu     sync.Mutex
	subs   map[chan Event]*subscription
	closed bool
}

type subscription struct {
	missed int
	stop   func() bool // ends the watch on the subscriber's context
}

func (h *eventHub) subscribe(ctx context.Context) <-chan Event {
	ch := make(chan Event, eventQueue)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed || ctx.Err() != nil {
		close(ch)
		return ch
	}
	if h.subs == nil {
		h.subs = make(map[chan Event]*subscription)
	}
	s := &subscription{}
	h.subs[ch] = s
	s.stop = context.AfterFunc(ctx, func() { h.drop(ch) })
	return ch
}

func (h *eventHub) drop(ch chan Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, ok := h.subs[ch]; ok {
		delete(h.subs, ch)
		close(ch)
	}
}

func (h *eventHub) publish(e Event) {
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for ch, s := range h.subs {
		for {
			e.Missed = s.missed
			select {
			case ch <- e:
				s.missed = 0
			default:
				// Full: make room. Only the subscriber takes besides us, so this
				// ends after one or two rounds. What the lost one tells of others
				// lost before it must not be lost with it.
				select {
				case lost := <-ch:
					s.missed += 1 + lost.Missed
				default:
				}
				continue
			}
			break
		}
	}
}

func (h *eventHub) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	for ch, s := range h.subs {
		s.stop()
		close(ch)
	}
	h.subs = nil
}
