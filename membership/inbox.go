package membership

import "sync"

// What the network can put into the inbox is bounded in number and in bytes. What
// is dropped there is found again by the digest and the periodic full exchange. A
// full state has some 70 bytes for each record.
const (
	maxInboxMessages     = 8192
	maxInboxMessageBytes = 8 << 20
	maxInboxStates       = 64
	maxInboxStateBytes   = 64 << 20
)

// inbox takes what memberlist tells, under its lock and from many goroutines,
// and hands it to the one goroutine that works it off. Putting never blocks.
// Node events are not bounded here: they come one for each datagram at most, and
// are worked off faster than that.
type inbox struct {
	mu       sync.Mutex
	items    []any
	messages quota
	states   quota
	dropped  uint64
	signal   chan struct{}
}

// quota is how much of a kind waits.
type quota struct{ n, bytes int }

func newInbox() *inbox { return &inbox{signal: make(chan struct{}, 1)} }

func (b *inbox) put(item any) {
	b.mu.Lock()
	b.items = append(b.items, item)
	b.mu.Unlock()
	b.wake()
}

// putMessage is put for what a stranger may send at any rate, of some size.
func (b *inbox) putMessage(item any, size int) {
	b.putBounded(item, &b.messages, size, maxInboxMessages, maxInboxMessageBytes)
}

// putState is putMessage for another node's full state.
func (b *inbox) putState(item any, size int) {
	b.putBounded(item, &b.states, size, maxInboxStates, maxInboxStateBytes)
}

func (b *inbox) putBounded(item any, q *quota, size, most, mostBytes int) {
	b.mu.Lock()
	if q.n >= most || q.bytes+size > mostBytes {
		b.dropped++
		b.mu.Unlock()
		return
	}
	q.n++
	q.bytes += size
	b.items = append(b.items, item)
	b.mu.Unlock()
	b.wake()
}

func (b *inbox) wake() {
	select {
	case b.signal <- struct{}{}:
	default:
	}
}

// take returns everything that has arrived, in order.
func (b *inbox) take() []any {
	b.mu.Lock()
	defer b.mu.Unlock()
	items := b.items
	b.items, b.messages, b.states = nil, quota{}, quota{}
	return items
}
