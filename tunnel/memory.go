package tunnel

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
)

// The defaults of a MemoryConfig.
const (
	// DefaultMemoryQueue is the length of a TUN's queue (TUN_READQ_SIZE in
	// linux/drivers/net/tun.c).
	DefaultMemoryQueue = 500
	// DefaultMemoryMaxPacket is Ethernet's MTU, which a TUN starts with.
	DefaultMemoryMaxPacket = 1500
	// DefaultMemoryBatch is the batch of the device of OpenWater.
	DefaultMemoryBatch = 64
)

// MemoryConfig describes an in-memory device. The zero value is useful.
type MemoryConfig struct {
	// Name is what Memory.Name returns. Empty: "memory".
	Name string
	// Features are what the device says of itself, and keeps to: set the
	// offloads to emulate a device with a virtio-net header. ReadBatch below 1
	// means 64. MaxPacket below 1 means 1500; 65,535 is needed to carry
	// superpackets of full size, and more is not possible.
	Features Features
	// Queue is how many packets wait in each direction before further ones are
	// dropped. Below 1 means 500. Its buffers are made when they are first
	// needed, as long as the packets that come, and used again.
	Queue int
}

// Memory is a [Device] that lives in memory, for tests and for programs that
// join an overlay without a privilege or an interface. It has two ends.
//
// The device end, Name, Features, Read, Write and Close, belongs to the
// overlay. The host end stands for the kernel on the other side of a TUN: Inject
// and InjectPacket send packets into the overlay, Receive and ReceivePacket get
// what the overlay delivers. The methods of the host end may be called by any
// number of goroutines.
//
// Packets are copied in and copied out, and stay in order. Nothing is allocated
// per packet once the queues have seen packets of that length.
type Memory struct {
	name     string
	features Features
	in       memoryQueue // from the host end to Read
	out      memoryQueue // from Write to the host end
	tooLong  atomic.Uint64

	closeOnce sync.Once
	closed    chan struct{}
}

var (
	_ Device      = (*Memory)(nil)
	_ StatsReader = (*Memory)(nil)
)

// NewMemory makes an in-memory device.
func NewMemory(cfg MemoryConfig) *Memory {
	f := cfg.Features
	f.ReadBatch = max(f.ReadBatch, 0)
	f.MaxPacket = min(max(f.MaxPacket, 0), maxIP)
	f.ReadBatch = cmp.Or(f.ReadBatch, DefaultMemoryBatch)
	f.MaxPacket = cmp.Or(f.MaxPacket, DefaultMemoryMaxPacket)
	length := cmp.Or(max(cfg.Queue, 0), DefaultMemoryQueue)
	m := &Memory{
		name:     cmp.Or(cfg.Name, "memory"),
		features: f,
		closed:   make(chan struct{}),
	}
	m.in.init(length)
	m.out.init(length)
	return m
}

// Name returns the configured name.
func (m *Memory) Name() string { return m.name }

// Features returns the configured features with the defaults filled in.
func (m *Memory) Features() Features { return m.features }

// Stats tells what the device has dropped.
func (m *Memory) Stats() Stats {
	return Stats{
		TooLong:   m.tooLong.Load(),
		ReadFull:  m.in.dropped.Load(),
		WriteFull: m.out.dropped.Load(),
	}
}

// Read is described at [Device].
func (m *Memory) Read(pkts []Packet) (int, error) {
	if len(pkts) == 0 {
		return 0, nil
	}
	pkts = pkts[:min(len(pkts), m.features.ReadBatch)]
	for {
		if m.isClosed() {
			return 0, m.closedError("read")
		}
		n, tooLong := m.in.popAll(pkts, m.features.MaxPacket)
		if tooLong > 0 {
			m.tooLong.Add(tooLong)
		}
		if n > 0 {
			return n, nil
		}
		select {
		case <-m.in.filled:
		case <-m.closed:
		}
	}
}

// Write is described at [Device]. Packets that the queue to the host end has no
// room for are consumed and lost, as they would be behind a TUN.
func (m *Memory) Write(pkts []Packet) (int, error) {
	for i := range pkts {
		p := &pkts[i]
		if m.isClosed() {
			return i, m.closedError("write")
		}
		if !m.features.Supports(p.Offload) {
			return i, fmt.Errorf("tunnel: write %s: %w", m.name, ErrOffload)
		}
		if !isIP(p, size(p)) {
			return i, fmt.Errorf("tunnel: write %s: %w", m.name, ErrPacket)
		}
		if !m.out.push(p) {
			m.out.dropped.Add(1)
		}
	}
	return len(pkts), nil
}

// Close ends both ends. Packets that wait for Read are gone; those already
// written can still be received.
func (m *Memory) Close() error {
	m.closeOnce.Do(func() { close(m.closed) })
	return nil
}

// Inject sends an IP packet into the overlay, as a host does by routing it to a
// TUN: it never waits, and when the queue is full the packet is lost and
// counted. The packet is copied. The error is ErrPacket for what is no IP
// packet or longer than Features.MaxPacket, or os.ErrClosed after Close.
func (m *Memory) Inject(packet []byte) error {
	p := Packet{Data: packet}
	if err := m.checkInject(&p); err != nil {
		return err
	}
	if !m.in.push(&p) {
		m.in.dropped.Add(1)
	}
	return nil
}

// InjectPacket sends a packet of any kind that Features allow and waits for
// room in the queue. Data and Frags are copied, joined. The errors are those of
// Inject, ErrOffload for an Offload that the device lacks, and ctx's.
func (m *Memory) InjectPacket(ctx context.Context, p Packet) error {
	for {
		if err := m.checkInject(&p); err != nil {
			return err
		}
		if m.in.push(&p) {
			return nil
		}
		select {
		case <-m.in.emptied:
		case <-m.closed:
		case <-ctx.Done():
			return fmt.Errorf("tunnel: inject into %s: %w", m.name, context.Cause(ctx))
		}
	}
}

func (m *Memory) checkInject(p *Packet) error {
	if m.isClosed() {
		return m.closedError("inject into")
	}
	if !m.features.Supports(p.Offload) {
		return fmt.Errorf("tunnel: inject into %s: %w", m.name, ErrOffload)
	}
	n := size(p)
	if !isIP(p, n) {
		return fmt.Errorf("tunnel: inject into %s: %w", m.name, ErrPacket)
	}
	if n > m.features.MaxPacket {
		return fmt.Errorf("tunnel: inject into %s: %w of at most %d bytes, but of %d",
			m.name, ErrPacket, m.features.MaxPacket, n)
	}
	return nil
}

// Receive waits for a packet that the overlay delivers, copies it into buf and
// returns its length. The error is io.ErrShortBuffer for a packet longer than
// buf and ErrOffload for one whose Offload is not zero, which only ReceivePacket
// can tell; both are lost. After Close it returns what was written before, then
// os.ErrClosed. Otherwise it is ctx's.
func (m *Memory) Receive(ctx context.Context, buf []byte) (int, error) {
	p := Packet{Data: buf}
	if err := m.ReceivePacket(ctx, &p); err != nil {
		return 0, err
	}
	if p.Offload != (Offload{}) {
		return 0, fmt.Errorf("tunnel: receive from %s: %w", m.name, ErrOffload)
	}
	return len(p.Data), nil
}

// ReceivePacket is Receive for packets of any kind. As for Read, p.Data is a
// buffer with len(p.Data) bytes of room, which is resliced to the packet's
// length; Offload is overwritten; Frags is left alone. After an error p.Data has
// kept its length.
func (m *Memory) ReceivePacket(ctx context.Context, p *Packet) error {
	for {
		// Asked before the queue: what was written before Close is then in it.
		closed := m.isClosed()
		switch m.out.pop(p) {
		case popped:
			return nil
		case poppedTooLong:
			return fmt.Errorf("tunnel: receive from %s: %w", m.name, io.ErrShortBuffer)
		}
		if closed {
			return m.closedError("receive from")
		}
		select {
		case <-m.out.filled:
		case <-m.closed:
		case <-ctx.Done():
			return fmt.Errorf("tunnel: receive from %s: %w", m.name, context.Cause(ctx))
		}
	}
}

func (m *Memory) isClosed() bool {
	select {
	case <-m.closed:
		return true
	default:
		return false
	}
}

func (m *Memory) closedError(op string) error {
	return fmt.Errorf("tunnel: %s %s: %w", op, m.name, os.ErrClosed)
}
