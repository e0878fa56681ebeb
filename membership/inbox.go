package membership

import "sync"

// maxInboxMessages and maxInboxStates bound what the network can put into the
// inbox. What is dropped there is found again by the digest and the periodic full
// exchange. A full state has some 70 bytes for each record.
const (
	maxInboxMessages = 8192
	maxInboxStates   = 64
)

// inbox takes what memberlist tells, under its lock and from many goroutines,
// and hands it to the one goroutine that works it off. Putting never blocks.
// Node events are not bounded here: they are as many as memberlist's nodes.
type inbox struct {
	mu       sync.Mutex
	items    []any
	messages int
	states   int
	dropped  uint64
	signal   chan struct{}
}

func newInbox() *inbox { return &inbox{signal: make(chan struct{}, 1)} }

func (b *inbox) put(item any) {
	b.mu.Lock()
	b.items = append(b.items, item)
	b.mu.Unlock()
	b.wake()
}

// putMessage is put for what a stranger may send at any rate.
func (b *inbox) putMessage(item any) { b.putBounded(item, &b.messages, maxInboxMessages) }

// putState is putMessage for another node's full state.
func (b *inbox) putState(item any) { b.putBounded(item, &b.states, maxInboxStates) }

func (b *inbox) putBounded(item any, count *int, limit int) {
	b.mu.Lock()
	if *count >= limit {
		b.dropped++
		b.mu.Unlock()
		return
	}
	*count++
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
	b.items, b.messages, b.states = nil, 0, 0
	return items
}
