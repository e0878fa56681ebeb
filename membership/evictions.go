package membership

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// evictRequest comes through the inbox.
type evictRequest struct {
	prefix netip.Prefix
	reply  chan error // one slot
}

// Evict ends the claim of a node that is gone on its subnet, so that others may
// lease it. It takes the spreading time and a full merge; the owner keeps the
// subnet if it objects until then. The error wraps ErrEvict when that is why.
// When ctx ends before, the eviction goes on by itself.
func (m *Member) Evict(ctx context.Context, prefix netip.Prefix) error {
	r := evictRequest{prefix, make(chan error, 1)}
	m.inbox.put(r)
	select {
	case err := <-r.reply:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-m.done:
		return errors.New("this node has stopped")
	}
}

func (m *Member) beginEviction(r evictRequest, now time.Time) {
	m.mu.Lock()
	err := m.leaser.evict(r.prefix, now)
	m.mu.Unlock()
	if err != nil {
		r.reply <- err
		return
	}
	m.evictions[r.prefix] = r.reply
}

func (m *Member) evictionEnded(e effect) {
	reply := m.evictions[e.prefix]
	if reply == nil {
		return
	}
	delete(m.evictions, e.prefix)
	if e.reason != "" {
		reply <- fmt.Errorf("%v %w: %s", e.prefix, ErrEvict, e.reason)
		return
	}
	reply <- nil
}
