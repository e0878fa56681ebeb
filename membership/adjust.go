package membership

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// ErrReserved: what is to be reserved overlaps a subnet that this node holds.
var ErrReserved = errors.New("overlaps this node's own subnet")

// Adjustment is what can change while a Member runs. All of it replaces what the
// Config of that name has said.
type Adjustment struct {
	Seeds    []string
	Reserved []netip.Prefix
	Caps     Capability
}

// adjustRequest comes through the inbox.
type adjustRequest struct {
	Adjustment
	reply chan error // one slot
}

// Adjust takes an Adjustment up: seeds are dialled from now on, or no longer; a
// subnet that this node was about to claim and that is reserved now is given up for
// another; the capabilities are told to the others. An error that wraps ErrReserved
// says that this node holds what is to be reserved: then nothing has changed.
func (m *Member) Adjust(ctx context.Context, a Adjustment) error {
	a.Seeds, a.Reserved = slices.Clone(a.Seeds), slices.Clone(a.Reserved)
	r := adjustRequest{a, make(chan error, 1)}
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

func (m *Member) adjust(a Adjustment, now time.Time) error {
	m.mu.Lock()
	err := m.leaser.reserve(a.Reserved, now)
	m.mu.Unlock()
	if err != nil {
		return err
	}
	seeds := !slices.Equal(m.cfg.Seeds, a.Seeds)
	m.cfg.Seeds, m.cfg.Reserved, m.cfg.Caps = a.Seeds, a.Reserved, a.Caps
	if seeds {
		m.nextDial = time.Time{}
		m.findSelf()
		if !m.leaser.synced {
			m.elector = m.newElector(now) // as a start with these seeds would have it
		}
	}
	return nil
}

// reserve replaces what is never claimed.
func (l *leaser) reserve(reserved []netip.Prefix, now time.Time) error {
	lies := func(s *slot) bool {
		return !s.evict && s.state != slotNone && s.state != slotHeld && slices.ContainsFunc(reserved, s.claim.Prefix.Overlaps)
	}
	fresh := slices.DeleteFunc(slices.Clone(reserved), func(p netip.Prefix) bool { return slices.Contains(l.reserved, p) })
	for _, s := range l.slots {
		if s.state == slotHeld && !s.evict && slices.ContainsFunc(fresh, s.claim.Prefix.Overlaps) {
			return fmt.Errorf("%v %w", s.claim.Prefix, ErrReserved)
		}
	}
	l.reserved = reserved
	for _, s := range l.slots {
		if lies(s) {
			l.release(s, now)
		}
	}
	return nil
}
