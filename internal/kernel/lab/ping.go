package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// PingConfig describes a series of ICMP echo requests.
type PingConfig struct {
	Dst netip.Addr
	// Src is the source address. Zero: the kernel's choice.
	Src netip.Addr
	// Count is how many requests are sent. Zero: 3.
	Count int
	// Interval is the time between two requests. Zero: 10 ms.
	Interval time.Duration
	// Timeout is how long to wait for answers after the last request. Zero: 1 s.
	Timeout time.Duration
	// Size is the length of the whole IP packet, headers included: the MTU for a
	// full-size one. Zero: 84.
	Size int
	// DontFragment sets the don't-fragment bit and lets the kernel cut nothing:
	// IP_PMTUDISC_PROBE, which also ignores a path MTU learned earlier.
	DontFragment bool
	// TTL is the hop limit. Zero: the kernel's default.
	TTL int
}

// PingResult is what came of a series of echo requests.
type PingResult struct {
	Sent       int // requests that the kernel took
	Received   int // requests that were answered, each counted once
	Duplicates int // further answers
	Corrupt    int // answers with another payload than was sent
	// RTTs are the round-trip times of the answered requests, in the order of
	// their answers.
	RTTs []time.Duration
	// Errors are the ICMP errors about our requests, in the order they came.
	Errors []ICMPError
	// SendErr is the last error of sending a request, for example EMSGSIZE.
	SendErr error
}

// ICMPError is an ICMP error message about a packet of ours.
type ICMPError struct {
	From       netip.Addr
	Type, Code byte
	// MTU is the next hop's, in "fragmentation needed" (RFC 1191) and "packet too
	// big" (RFC 4443).
	MTU int
}

// Unreachable tells whether the error is a destination unreachable message of
// either family (RFC 792 type 3, RFC 4443 type 1), other than "fragmentation
// needed".
func (e ICMPError) Unreachable() bool {
	if e.From.Is4() {
		return e.Type == 3 && e.Code != 4
	}
	return e.Type == 1
}

// TooBig tells whether the error is "fragmentation needed" (RFC 792 type 3
// code 4) or "packet too big" (RFC 4443 type 2).
func (e ICMPError) TooBig() bool {
	if e.From.Is4() {
		return e.Type == 3 && e.Code == 4
	}
	return e.Type == 2
}

// Lost is how many requests were not answered, those included that could not
// be sent.
func (r PingResult) Lost(count int) int { return count - r.Received }

// RTT returns the p-th quantile of the round-trip times, 0 <= p <= 1, or 0 if
// there are none.
func (r PingResult) RTT(p float64) time.Duration {
	if len(r.RTTs) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(r.RTTs))
	return s[int(p*float64(len(s)-1))]
}

// pingHeader is the length of an echo message's header (RFC 792, RFC 4443).
const pingHeader = 8

// Ping sends ICMP echo requests from the namespace and collects the answers.
// Lost packets are no error: look at the result. It returns when every request
// is answered, or Timeout after the last one, or when ctx ends.
func (n *Namespace) Ping(ctx context.Context, cfg PingConfig) (PingResult, error) {
	if cfg.Count == 0 {
		cfg.Count = 3
	}
	if cfg.Interval == 0 {
		cfg.Interval = 10 * time.Millisecond
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = time.Second
	}
	if cfg.Size == 0 {
		cfg.Size = 84
	}
	headers := 20 + pingHeader
	if cfg.Dst.Is6() {
		headers = 40 + pingHeader
	}
	if !cfg.Dst.IsValid() || cfg.Size < headers || cfg.Size > 65535 || cfg.Count > 1<<16 {
		return PingResult{}, fmt.Errorf("lab: ping: want a destination, %d <= size <= 65535 and count <= 65536", headers)
	}
	p := &pinger{cfg: cfg, id: uint16(rand.Uint32()), sent: make(map[uint16]time.Time)}
	p.payload = make([]byte, cfg.Size-headers)
	for i := range p.payload {
		p.payload[i] = byte(i*7 + i>>8)
	}
	network, any4or6 := "ip4:icmp", "0.0.0.0"
	if cfg.Dst.Is6() {
		network, any4or6 = "ip6:ipv6-icmp", "::"
	}
	if cfg.Src.IsValid() {
		any4or6 = cfg.Src.String()
	}
	conn, err := n.listenPacket(network, any4or6, p.control)
	if err != nil {
		return PingResult{}, err
	}
	defer conn.Close()
	p.conn = conn.(*net.IPConn)
	if err := p.run(ctx); err != nil {
		return p.res, fmt.Errorf("lab: ping %v from %s: %w", cfg.Dst, n.short, err)
	}
	return p.res, nil
}

// pinger is one series. Sending and receiving take turns in one goroutine.
type pinger struct {
	cfg     PingConfig
	conn    *net.IPConn
	id      uint16
	payload []byte
	sent    map[uint16]time.Time // requests by sequence number
	seen    map[uint16]bool      // answered ones
	res     PingResult
}

// control sets the options of the socket (ip(7), ipv6(7)).
func (p *pinger) control(_, _ string, c syscall.RawConn) error {
	var err error
	set := func(fd, level, opt, value int) {
		if err == nil {
			err = os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, level, opt, value))
		}
	}
	ctlErr := c.Control(func(f uintptr) {
		fd := int(f)
		if p.cfg.Dst.Is4() {
			if p.cfg.DontFragment {
				set(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
			} else {
				set(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT)
			}
			if p.cfg.TTL > 0 {
				set(fd, unix.IPPROTO_IP, unix.IP_TTL, p.cfg.TTL)
			}
			return
		}
		if p.cfg.DontFragment {
			set(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE)
			set(fd, unix.IPPROTO_IPV6, unix.IPV6_DONTFRAG, 1)
		}
		if p.cfg.TTL > 0 {
			set(fd, unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, p.cfg.TTL)
		}
	})
	return errors.Join(ctlErr, err)
}

func (p *pinger) run(ctx context.Context) error {
	// A deadline in the past wakes the reader when ctx ends.
	stop := context.AfterFunc(ctx, func() { p.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	p.seen = make(map[uint16]bool)
	buf := make([]byte, 1<<16)
	next := time.Now()
	for seq := 0; seq < p.cfg.Count; seq++ {
		p.send(uint16(seq))
		next = next.Add(p.cfg.Interval)
		wait := next
		if seq == p.cfg.Count-1 {
			wait = time.Now().Add(p.cfg.Timeout)
		}
		for last := seq == p.cfg.Count-1; !last || p.res.Received < p.res.Sent; {
			p.conn.SetReadDeadline(wait)
			if ctx.Err() != nil { // after setting it: AfterFunc's must win
				return context.Cause(ctx)
			}
			size, from, err := p.conn.ReadFrom(buf)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				break
			}
			if err != nil {
				return err
			}
			p.receive(buf[:size], from.(*net.IPAddr), time.Now())
		}
	}
	return nil
}

// send sends one request.
func (p *pinger) send(seq uint16) {
	b := make([]byte, pingHeader, pingHeader+len(p.payload))
	b[0] = 8 // echo request, RFC 792
	if p.cfg.Dst.Is6() {
		b[0] = 128 // RFC 4443; the kernel fills in the checksum
	}
	binary.BigEndian.PutUint16(b[4:], p.id)
	binary.BigEndian.PutUint16(b[6:], seq)
	b = append(b, p.payload...)
	if p.cfg.Dst.Is4() {
		binary.BigEndian.PutUint16(b[2:], internetChecksum(b))
	}
	p.sent[seq] = time.Now()
	if _, err := p.conn.WriteToIP(b, &net.IPAddr{IP: p.cfg.Dst.AsSlice(), Zone: p.cfg.Dst.Zone()}); err != nil {
		delete(p.sent, seq)
		p.res.SendErr = err
		return
	}
	p.res.Sent++
}

// receive looks at one ICMP message. A raw socket gets all of the namespace.
func (p *pinger) receive(b []byte, from *net.IPAddr, now time.Time) {
	if len(b) < pingHeader {
		return
	}
	addr, _ := netip.AddrFromSlice(from.IP)
	addr = addr.Unmap()
	reply, request := byte(0), byte(8)
	if p.cfg.Dst.Is6() {
		reply, request = 129, 128
	}
	switch b[0] {
	case reply:
		seq, ours := p.ours(b)
		switch {
		case !ours:
		case string(b[pingHeader:]) != string(p.payload):
			p.res.Corrupt++
		case p.seen[seq]:
			p.res.Duplicates++
		default:
			p.seen[seq] = true
			p.res.Received++
			p.res.RTTs = append(p.res.RTTs, now.Sub(p.sent[seq]))
		}
	case request:
	default:
		inner := b[pingHeader:] // the packet that the error is about
		if hl := innerHeader(inner); hl > 0 && len(inner) >= hl+pingHeader && inner[hl] == request {
			if _, ours := p.ours(inner[hl:]); ours {
				e := ICMPError{From: addr, Type: b[0], Code: b[1]}
				if e.TooBig() {
					e.MTU = int(binary.BigEndian.Uint32(b[4:])) // the upper half is zero in IPv4
				}
				p.res.Errors = append(p.res.Errors, e)
			}
		}
	}
}

// ours returns the sequence number of an echo message, and whether it belongs
// to this series.
func (p *pinger) ours(b []byte) (uint16, bool) {
	seq := binary.BigEndian.Uint16(b[6:])
	_, known := p.sent[seq]
	return seq, known && binary.BigEndian.Uint16(b[4:]) == p.id
}

// innerHeader returns the length of the IP header of a quoted packet, 0 if
// there is none.
func innerHeader(b []byte) int {
	switch {
	case len(b) >= 20 && b[0]>>4 == 4:
		return int(b[0]&0x0f) * 4
	case len(b) >= 40 && b[0]>>4 == 6:
		return 40
	}
	return 0
}

// internetChecksum is the one of RFC 1071.
func internetChecksum(b []byte) uint16 {
	var sum uint32
	for ; len(b) >= 2; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
