package lab

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// floodHeader is what each datagram of a flood begins with: a magic number, by
// which strays are told, and the sequence number.
const (
	floodHeader = 16
	floodMagic  = 0x6f766c6162_31 // "ovlab1"
)

// FloodConfig describes a stream of UDP datagrams.
type FloodConfig struct {
	From, To *Namespace
	// Dst is the address of To that the datagrams go to.
	Dst netip.Addr
	// Port is the destination port. Zero: one that is free.
	Port uint16
	// Rate is datagrams per second. Zero: 1000.
	Rate int
	// Count is how many are sent at most. Zero: until Duration or ctx ends.
	Count int
	// Duration is how long sending goes on. Zero: until Count or ctx ends.
	Duration time.Duration
	// Size is the UDP payload in bytes. Zero: 64.
	Size int
	// Linger is how long to wait for late datagrams. Zero: 500 ms.
	Linger time.Duration
}

// FloodResult counts a stream of datagrams.
type FloodResult struct {
	Sent       int // what the kernel took
	SendErrors int // what it refused
	Received   int // different datagrams that arrived
	Duplicates int // copies of those
	Reordered  int // datagrams that arrived after a later one
	// Gap is the longest time between two arrivals.
	Gap time.Duration
}

// Lost is how many datagrams were sent and did not arrive.
func (r FloodResult) Lost() int { return r.Sent - r.Received }

// Flood sends numbered UDP datagrams from one namespace to another at a rate
// and counts what arrives. It ends with Count, Duration or ctx, whichever comes
// first, and that ctx ends is no error: so it can run beside a test's other
// steps until it is told to stop.
func Flood(ctx context.Context, cfg FloodConfig) (FloodResult, error) {
	if cfg.Rate == 0 {
		cfg.Rate = 1000
	}
	if cfg.Size == 0 {
		cfg.Size = 64
	}
	if cfg.Linger == 0 {
		cfg.Linger = 500 * time.Millisecond
	}
	if cfg.Size < floodHeader || cfg.Size > 65507 || cfg.Rate < 0 {
		return FloodResult{}, fmt.Errorf("lab: flood: want %d <= size <= 65507 and rate > 0", floodHeader)
	}
	in, err := cfg.To.ListenUDP(netip.AddrPortFrom(cfg.Dst, cfg.Port))
	if err != nil {
		return FloodResult{}, err
	}
	defer in.Close()
	if err := in.SetReadBuffer(4 << 20); err != nil {
		return FloodResult{}, fmt.Errorf("lab: flood: %w", err)
	}
	// Unconnected, so that an ICMP error does not stop the stream.
	from := netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
	if cfg.Dst.Is6() {
		from = netip.AddrPortFrom(netip.IPv6Unspecified(), 0)
	}
	out, err := cfg.From.ListenUDP(from)
	if err != nil {
		return FloodResult{}, err
	}
	defer out.Close()

	got := make(chan FloodResult, 1)
	go func() { got <- floodReceive(in) }()
	sent, refused := floodSend(ctx, out, in.LocalAddr().(*net.UDPAddr).AddrPort(), cfg)
	in.SetReadDeadline(time.Now().Add(cfg.Linger))
	res := <-got
	res.Sent, res.SendErrors = sent, refused
	return res, nil
}

// floodSend paces by the clock: when it was late it catches up.
func floodSend(ctx context.Context, out *net.UDPConn, dst netip.AddrPort, cfg FloodConfig) (sent, refused int) {
	b := make([]byte, cfg.Size)
	binary.BigEndian.PutUint64(b, floodMagic)
	begin := time.Now()
	tick := time.NewTicker(max(time.Second/time.Duration(cfg.Rate), time.Millisecond))
	defer tick.Stop()
	for seq := 0; cfg.Count == 0 || seq < cfg.Count; {
		elapsed := time.Since(begin)
		if cfg.Duration > 0 && elapsed >= cfg.Duration {
			return sent, refused
		}
		due := int(elapsed.Seconds()*float64(cfg.Rate)) + 1
		for ; seq < due && (cfg.Count == 0 || seq < cfg.Count); seq++ {
			binary.BigEndian.PutUint64(b[8:], uint64(seq))
			if _, err := out.WriteToUDPAddrPort(b, dst); err != nil {
				refused++
			} else {
				sent++
			}
		}
		select {
		case <-ctx.Done():
			return sent, refused
		case <-tick.C:
		}
	}
	return sent, refused
}

// floodReceive counts until the socket's deadline.
func floodReceive(in *net.UDPConn) (res FloodResult) {
	buf := make([]byte, 1<<16)
	seen := make(map[uint64]struct{})
	var highest uint64
	var last time.Time
	for {
		n, _, err := in.ReadFromUDPAddrPort(buf)
		if err != nil { // the deadline
			return res
		}
		if n < floodHeader || binary.BigEndian.Uint64(buf) != floodMagic {
			continue
		}
		now := time.Now()
		if !last.IsZero() {
			res.Gap = max(res.Gap, now.Sub(last))
		}
		last = now
		seq := binary.BigEndian.Uint64(buf[8:])
		if _, dup := seen[seq]; dup {
			res.Duplicates++
			continue
		}
		seen[seq] = struct{}{}
		res.Received++
		if seq < highest {
			res.Reordered++
		}
		highest = max(highest, seq)
	}
}

// EchoUDP sends every datagram that comes to addr back to where it came from,
// until ctx ends. It returns the address that it listens on once it does; wait
// blocks until the echo has ended.
func (n *Namespace) EchoUDP(ctx context.Context, addr netip.AddrPort) (local netip.AddrPort, wait func(), err error) {
	conn, err := n.ListenUDP(addr)
	if err != nil {
		return netip.AddrPort{}, nil, err
	}
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	go func() {
		defer close(done)
		defer stop()
		defer conn.Close()
		buf := make([]byte, 1<<16)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(buf)
			if err != nil { // closed
				return
			}
			// An answer that cannot be sent is like one that got lost.
			_, _ = conn.WriteToUDPAddrPort(buf[:n], from)
		}
	}()
	return conn.LocalAddr().(*net.UDPAddr).AddrPort(), func() { <-done }, nil
}
